//! What a port means: the instances behind each port of a bridged name.
//!
//! - Port 80, if it is in `bridge.ports`: the first port of registrations with protocol `http`.
//! - Port 443, if it is in `bridge.ports`: the first port of registrations with protocol `https`;
//!   without any, of those with `http`: a GoFrame server with HTTPS registers as `http` if its
//!   certificate comes from files.
//! - Any other port of `bridge.ports`: the first port of every registration.
//! - Every other port, and one of these without such a registration: the endpoints with that port.
//!
//! A connection to a port without instances is reset at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use super::choice::WeightedInstance;
use super::in_use::in_pool;
use super::instance::InstanceState;
use crate::service::ReachableRegistration;

/// The port that stands for protocol `http`.
const HTTP_PORT: u16 = 80;
/// The port that stands for protocol `https`.
const HTTPS_PORT: u16 = 443;

/// The instances of a name by port.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes {
    /// Sorted by port.
    by_port: Box<[(u16, Box<[WeightedInstance]>)]>,
    /// Endpoints that were left out because they are in the pool itself.
    loops: Box<[SocketAddr]>,
}

/// Weights by the address of the endpoint.
type EndpointWeights = BTreeMap<SocketAddr, u32>;

impl Routes {
    /// Builds the routes of a name; `state` returns the state of an instance.
    pub(super) fn new(
        registrations: &[ReachableRegistration],
        listed_ports: &[u16],
        pool: Ipv4Net,
        mut state: impl FnMut(SocketAddr) -> Arc<InstanceState>,
    ) -> Self {
        let is_loop = |address: &SocketAddr| in_pool(pool, *address).is_some();
        let all =
            || registrations.iter().flat_map(|one| one.endpoints.iter().map(move |e| (one, e)));
        let mut loops: Vec<_> = all().map(|(_, e)| *e).filter(is_loop).collect();
        let usable = || all().filter(|(_, endpoint)| !is_loop(endpoint));
        loops.sort_unstable();
        loops.dedup();
        let mut ports: BTreeMap<u16, EndpointWeights> = BTreeMap::new();
        for (registration, endpoint) in usable() {
            let weights = ports.entry(endpoint.port()).or_default();
            add(weights, *endpoint, registration.weight);
        }
        for port in listed_ports {
            let first_ports = |protocol: Option<&str>| {
                let mut weights = EndpointWeights::new();
                for (registration, endpoint) in usable() {
                    let is_wanted =
                        protocol.is_none() || registration.protocol.as_deref() == protocol;
                    if is_wanted && registration.first_port == Some(endpoint.port()) {
                        add(&mut weights, *endpoint, registration.weight);
                    }
                }
                weights
            };
            let weights = match *port {
                HTTP_PORT => first_ports(Some("http")),
                HTTPS_PORT => Some(first_ports(Some("https")))
                    .filter(|found| !found.is_empty())
                    .unwrap_or_else(|| first_ports(Some("http"))),
                _ => first_ports(None),
            };
            if !weights.is_empty() {
                ports.insert(*port, weights);
            }
        }
        let by_port = ports.into_iter().map(|(port, weights)| {
            let instances = weights
                .into_iter()
                .map(|(address, weight)| WeightedInstance { state: state(address), weight });
            (port, instances.collect())
        });
        Self { by_port: by_port.collect(), loops: loops.into() }
    }

    /// Returns the instances behind a port.
    pub(super) fn instances(&self, port: u16) -> &[WeightedInstance] {
        match self.by_port.binary_search_by_key(&port, |(port, _)| *port) {
            Ok(at) => &self.by_port[at].1,
            Err(_) => &[],
        }
    }

    /// Returns the ports that have instances, in order.
    pub(super) fn ports(&self) -> impl ExactSizeIterator<Item = u16> {
        self.by_port.iter().map(|(port, _)| *port)
    }

    /// Returns whether no port has an instance.
    pub(super) fn is_empty(&self) -> bool {
        self.by_port.is_empty()
    }

    /// Returns the endpoints that were left out because they are in the pool itself.
    pub(super) fn loops(&self) -> &[SocketAddr] {
        &self.loops
    }
}

/// Adds an endpoint of a registration.
///
/// Several registrations may have the same endpoint, such as those of one program in two
/// registries: it counts once, with its highest weight.
fn add(weights: &mut EndpointWeights, endpoint: SocketAddr, weight: u16) {
    let highest = weights.entry(endpoint).or_default();
    *highest = (*highest).max(weight.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(protocol: &str, endpoints: &[&str]) -> ReachableRegistration {
        let endpoints: Vec<SocketAddr> = endpoints.iter().map(|e| e.parse().unwrap()).collect();
        ReachableRegistration {
            protocol: (!protocol.is_empty()).then(|| protocol.into()),
            weight: 1,
            first_port: endpoints.first().map(SocketAddr::port),
            endpoints,
        }
    }

    /// Returns the instances behind a port, with ports 80, 443 and 9000 listed.
    fn instances(registrations: &[ReachableRegistration], port: u16) -> Vec<String> {
        let pool = "127.83.0.0/16".parse().unwrap();
        let routes = Routes::new(registrations, &[80, 443, 9000], pool, |address| {
            Arc::new(InstanceState::new(address))
        });
        routes.instances(port).iter().map(|one| one.state.address.to_string()).collect()
    }

    #[test]
    fn port_80_is_the_first_port_of_http_registrations() {
        let service = [
            registration("http", &["192.0.2.1:8001", "192.0.2.1:8443", "198.51.100.1:8001"]),
            registration("http", &["192.0.2.2:8002"]),
            registration("grpc", &["192.0.2.3:8003"]),
        ];
        let expected = ["192.0.2.1:8001", "192.0.2.2:8002", "198.51.100.1:8001"];
        assert_eq!(instances(&service, 80), expected);
        assert_eq!(instances(&service, 443), expected, "nothing is https");
        assert_eq!(instances(&service, 9000).len(), 4, "the first port of every registration");
        assert_eq!(instances(&service, 8443), ["192.0.2.1:8443"]);
        assert_eq!(instances(&service, 8003), ["192.0.2.3:8003"]);
        assert!(instances(&service, 8004).is_empty());
    }

    #[test]
    fn port_443_is_the_first_port_of_https_registrations() {
        let service =
            [registration("http", &["192.0.2.1:8001"]), registration("https", &["192.0.2.1:8443"])];
        assert_eq!(instances(&service, 80), ["192.0.2.1:8001"]);
        assert_eq!(instances(&service, 443), ["192.0.2.1:8443"]);
    }

    #[test]
    fn a_listed_port_without_its_protocol_is_that_port_of_the_endpoints() {
        let service = [registration("https", &["192.0.2.1:8443", "192.0.2.1:80"])];
        assert_eq!(instances(&service, 80), ["192.0.2.1:80"]);
        assert!(instances(&[registration("grpc", &["192.0.2.1:1"])], 80).is_empty());
    }

    #[test]
    fn endpoints_in_the_pool_are_loops_and_left_out() {
        let service = [registration(
            "http",
            &["127.83.4.5:8001", "[::ffff:127.83.4.6]:8001", "192.0.2.1:8001"],
        )];
        assert_eq!(instances(&service, 80), ["192.0.2.1:8001"]);
        let pool = "127.83.0.0/16".parse().unwrap();
        let only_loops = [registration("http", &["127.83.4.5:80"])];
        let routes =
            Routes::new(&only_loops, &[80], pool, |address| Arc::new(InstanceState::new(address)));
        assert!(routes.is_empty());
        assert_eq!(routes.loops(), ["127.83.4.5:80".parse().unwrap()]);
    }

    #[test]
    fn an_endpoint_of_several_registrations_counts_once_for_each_of_their_protocols() {
        let service = [
            ReachableRegistration { weight: 2, ..registration("grpc", &["192.0.2.1:8000"]) },
            ReachableRegistration { weight: 9, ..registration("http", &["192.0.2.1:8000"]) },
            ReachableRegistration { weight: 3, ..registration("http", &["192.0.2.1:8000"]) },
        ];
        let pool = "127.83.0.0/16".parse().unwrap();
        let routes = Routes::new(&service, &[80, 9000], pool, |address| {
            Arc::new(InstanceState::new(address))
        });
        for port in [80, 8000, 9000] {
            let weights: Vec<_> = routes.instances(port).iter().map(|one| one.weight).collect();
            assert_eq!(weights, [9], "port {port}");
        }
    }
}
