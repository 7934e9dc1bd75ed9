//! Binds the sockets of all addresses before the server starts.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::bind_error::LISTEN;
use super::encrypted::EncryptedSockets;
use super::query_log::QueryLog;
use super::sink::Tap;
use super::sockets::{PlainEndpoint, canonical, worker_count};
use super::{Access, BindError, Counters, Heartbeats, Limits, Settings, interfaces};
use crate::descriptors;
use crate::inherited::{Inherited, InheritedSockets, OpenSockets, SocketName};
use crate::wire::Transport;

/// Maximum attempts to find a port that is free for both TCP and UDP.
const MAX_PORT_ATTEMPTS: usize = 16;

/// Bound sockets, ready to be served.
#[derive(Debug)]
pub struct Bound {
    pub(super) endpoints: Vec<PlainEndpoint>,
    /// Unspecified addresses whose expansions are followed, with resolved ports.
    pub(super) wildcards: Vec<SocketAddr>,
    pub(super) encrypted: Option<EncryptedSockets>,
    pub(super) access: Access,
    pub(super) tap: Tap,
    pub(super) limits: Limits,
    pub(super) counters: Arc<Counters>,
    pub(super) open: OpenSockets,
    /// Cancelled once no other process reads the sockets for QUIC.
    pub(super) quic_is_free: CancellationToken,
    pub(super) heartbeats: Arc<Heartbeats>,
}

impl Bound {
    /// Returns the addresses for plain DNS bound at startup, with resolved ports.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.endpoints.iter().map(|endpoint| endpoint.address).collect()
    }

    /// Returns the addresses for DNS over TLS, with resolved ports.
    pub fn tls_addresses(&self) -> Vec<SocketAddr> {
        self.encrypted
            .iter()
            .flat_map(|encrypted| &encrypted.tls)
            .map(|(address, _)| *address)
            .collect()
    }

    /// Returns the addresses for DNS over QUIC, with resolved ports.
    pub fn quic_addresses(&self) -> Vec<SocketAddr> {
        self.encrypted
            .iter()
            .flat_map(|encrypted| &encrypted.quic)
            .map(|(address, _)| *address)
            .collect()
    }

    /// Returns the token to cancel once no other process reads the sockets for QUIC.
    pub fn quic_is_free(&self) -> CancellationToken {
        self.quic_is_free.clone()
    }

    /// Returns the sockets that the server reads, once it serves.
    pub fn open_sockets(&self) -> OpenSockets {
        self.open.clone()
    }

    /// Returns the counters, which live until the server has ended.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Returns the signs of life of the UDP workers, which exist once the server serves.
    pub fn heartbeats(&self) -> Arc<Heartbeats> {
        Arc::clone(&self.heartbeats)
    }
}

/// Binds UDP and TCP on every address of `settings`, without a runtime.
///
/// UDP and TCP of an address share a port. An unspecified address becomes one pair of sockets per
/// current address of the machine: a response must come from the queried address. [`Bound::serve`]
/// follows later address changes.
///
/// # Errors
/// If the settings are invalid or a socket cannot be opened. No socket stays open in that case.
pub fn bind(settings: &Settings) -> Result<Bound, BindError> {
    let bound = bind_or_inherit(settings, InheritedSockets::default())?;
    bound.quic_is_free.cancel();
    Ok(bound)
}

/// Binds like [`bind`], but takes the passed sockets of an address if there are any.
///
/// The server reads the sockets for QUIC only after [`Bound::quic_is_free`].
///
/// # Errors
/// Like [`bind`].
pub fn bind_or_inherit(
    settings: &Settings,
    mut inherited: InheritedSockets,
) -> Result<Bound, BindError> {
    settings.check()?;
    let passed = RefCell::new(inherited.take(SocketName::Dns));
    let limits = settings.limits.clone().within(descriptors::limit());
    if limits.connections < settings.limits.connections {
        warn!(
            tcp_connections = settings.limits.connections,
            allowed = limits.connections,
            "the limit on open files (ulimit -Hn) allows fewer connections than configured"
        );
    }
    let wanted = settings.limits.udp_workers;
    let (mut endpoints, mut wildcards): (Vec<PlainEndpoint>, Vec<SocketAddr>) =
        (Vec::new(), Vec::new());
    for &listen in &settings.listen {
        let listen = canonical(listen);
        // `0.0.0.0:53` and `127.0.0.1:53` together would cover one address twice.
        let bound =
            |address: &SocketAddr| endpoints.iter().any(|endpoint| endpoint.address == *address);
        if listen.ip().is_unspecified() {
            let addresses = interfaces::local_addresses(listen)
                .map_err(|error| BindError::explain(Transport::Udp, &LISTEN, listen, error))?;
            let addresses: Vec<_> =
                addresses.into_iter().filter(|address| !bound(address)).collect();
            let group = open_group(
                &addresses,
                |group| workers_for_next(&endpoints, group, wanted),
                &passed,
                true,
            )?;
            if group.is_empty()
                && !endpoints.iter().any(|endpoint| endpoint.address.port() == listen.port())
            {
                return Err(BindError::NoSuchAddress { address: listen });
            }
            info!(
                %listen,
                addresses = group.len(),
                "listening on every address of the machine, current and future"
            );
            let port =
                group.first().map_or_else(|| listen.port(), |endpoint| endpoint.address.port());
            wildcards.push(SocketAddr::new(listen.ip(), port));
            endpoints.extend(group);
        } else if !bound(&listen) {
            let group = open_group(
                &[listen],
                |group| workers_for_next(&endpoints, group, wanted),
                &passed,
                false,
            )?;
            endpoints.extend(group);
        }
    }
    let encrypted = EncryptedSockets::open(&settings.encrypted, &mut inherited)?;
    Ok(Bound {
        endpoints,
        wildcards,
        encrypted,
        access: settings.access(),
        tap: QueryLog::new(settings.log_queries).map_or_else(Tap::default, Tap::new),
        limits,
        counters: Arc::new(Counters::default()),
        open: OpenSockets::default(),
        quic_is_free: CancellationToken::new(),
        heartbeats: Arc::default(),
    })
}

/// Returns the number of UDP workers of the next address.
///
/// All endpoints in `endpoints` and `group` are open already.
fn workers_for_next(endpoints: &[PlainEndpoint], group: &[PlainEndpoint], wanted: usize) -> usize {
    worker_count(endpoints.iter().chain(group).map(|endpoint| endpoint.udp.len()).sum(), wanted)
}

/// Opens `addresses`, which share one port; port 0 becomes one that all have free.
///
/// With `skip_absent`, an address that cannot be used yet (IPv6 duplicate address detection) is
/// skipped with a warning.
fn open_group(
    addresses: &[SocketAddr],
    workers: impl Fn(&[PlainEndpoint]) -> usize,
    passed: &RefCell<Vec<Inherited>>,
    skip_absent: bool,
) -> Result<Vec<PlainEndpoint>, BindError> {
    let mut attempt = 1;
    loop {
        let result = try_group(addresses, &workers, passed, skip_absent);
        match &result {
            Err(BindError::InUse(_))
                if attempt < MAX_PORT_ATTEMPTS
                    && addresses.iter().any(|address| address.port() == 0) =>
            {
                attempt += 1;
            }
            _ => return result,
        }
    }
}

/// Opens all addresses once; the first failure closes all of them.
fn try_group(
    addresses: &[SocketAddr],
    workers: &impl Fn(&[PlainEndpoint]) -> usize,
    passed: &RefCell<Vec<Inherited>>,
    skip_absent: bool,
) -> Result<Vec<PlainEndpoint>, BindError> {
    let mut endpoints: Vec<PlainEndpoint> = Vec::with_capacity(addresses.len());
    for &(mut address) in addresses {
        if let (0, Some(first)) = (address.port(), endpoints.first()) {
            address.set_port(first.address.port());
        }
        let taken = PlainEndpoint::take(address, &mut passed.borrow_mut());
        match taken
            .map_or_else(|| PlainEndpoint::open(address, workers(&endpoints)), Ok)
            .map_err(|(transport, error)| BindError::explain(transport, &LISTEN, address, error))
        {
            Ok(endpoint) => endpoints.push(PlainEndpoint { followed: skip_absent, ..endpoint }),
            Err(BindError::NoSuchAddress { address }) if skip_absent => {
                warn!(%address, "skipping an address that is not usable yet");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(endpoints)
}

#[cfg(test)]
mod tests {
    use super::super::sockets::open_udp;
    use super::super::{PortTaken, SettingsError};
    use super::*;
    use socket2::{Domain, Protocol, Socket, Type};
    use std::net::UdpSocket;

    fn listening(addresses: &[&str]) -> Settings {
        Settings {
            listen: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ..Settings::default()
        }
    }

    #[test]
    fn port_0_selects_one_port_for_udp_and_tcp() {
        let bound = bind(&listening(&["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"])).unwrap();
        assert_eq!(bound.addresses().len(), 3);
        assert!(bound.addresses().iter().filter(|address| address.is_ipv4()).count() == 2);
        for endpoint in &bound.endpoints {
            assert_ne!(endpoint.address.port(), 0);
            assert_eq!(endpoint.udp.len(), Settings::default().limits.udp_workers);
            assert!(
                endpoint.udp.iter().all(|socket| socket.local_addr().unwrap() == endpoint.address)
            );
            assert_eq!(endpoint.tcp.local_addr().unwrap(), endpoint.address);
        }
    }

    #[test]
    fn unspecified_addresses_expand_to_all_addresses_on_one_port() {
        let settings =
            Settings { allow: vec!["127.0.0.0/8".parse().unwrap()], ..listening(&["0.0.0.0:0"]) };
        let bound = bind(&settings).unwrap();
        let port = bound.addresses()[0].port();
        assert!(
            bound.addresses().contains(&SocketAddr::from(([127, 0, 0, 1], port))),
            "{:?}",
            bound.addresses()
        );
        assert!(
            bound
                .addresses()
                .iter()
                .all(|address| address.port() == port && !address.ip().is_unspecified())
        );
    }

    #[test]
    fn an_address_listed_twice_is_bound_once() {
        // No other test uses this loopback address, so the port stays free.
        let port = bind(&listening(&["127.77.4.1:0"])).unwrap().addresses()[0].port();
        let address = format!("127.77.4.1:{port}");

        let bound = bind(&listening(&[&address, &address])).unwrap();
        assert_eq!(bound.addresses().len(), 1);
    }

    #[test]
    fn a_port_in_use_is_reported_with_address_and_transport() {
        let taken = bind(&listening(&["127.0.0.1:0"])).unwrap();
        let address = taken.addresses()[0];
        let error = bind(&listening(&[&address.to_string()])).unwrap_err();
        assert!(
            matches!(error, BindError::InUse(PortTaken { transport: Transport::Tcp, .. })),
            "{error:?}"
        );
        assert_eq!(
            error.to_string(),
            format!(
                "cannot listen on {address} (TCP): the port is in use by another process; \
                 stop it, or choose another port with --listen"
            )
        );

        // No other test uses this loopback address, so the TCP port is free.
        let udp = UdpSocket::bind("127.77.6.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let error = bind(&listening(&[&address.to_string()])).unwrap_err();
        assert!(
            matches!(error, BindError::InUse(PortTaken { transport: Transport::Udp, .. })),
            "{error:?}"
        );
    }

    #[test]
    fn no_other_program_can_bind_a_port_of_the_server() {
        let shares = |address: SocketAddr| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&address.into()).map(|()| socket)
        };
        // No other test uses this loopback address.
        let other = shares("127.77.8.1:0".parse().unwrap()).unwrap();
        let address = other.local_addr().unwrap().as_socket().unwrap();
        for workers in [1, 3] {
            let limits = Limits { udp_workers: workers, ..Limits::default() };
            let error =
                bind(&Settings { limits, ..listening(&[&address.to_string()]) }).unwrap_err();
            assert!(
                matches!(error, BindError::InUse(PortTaken { transport: Transport::Udp, .. })),
                "{error:?}"
            );
        }
        drop(other);
        let limits = Limits { udp_workers: 3, ..Limits::default() };
        let settings = Settings { limits, ..listening(&[&address.to_string()]) };
        let bound = bind(&settings).unwrap();
        assert_eq!(bound.endpoints[0].udp.len(), 3);
        assert!(open_udp(address, 3).is_err(), "the port is ours alone");
    }

    #[test]
    fn an_address_of_another_machine_cannot_be_bound() {
        let settings = Settings {
            allow: vec!["198.51.100.0/24".parse().unwrap()],
            ..listening(&["198.51.100.7:0"])
        };
        let error = bind(&settings).unwrap_err();
        assert!(matches!(error, BindError::NoSuchAddress { .. }), "{error:?}");
    }

    #[test]
    fn reachable_addresses_are_not_bound_without_an_access_rule() {
        assert!(matches!(
            bind(&listening(&["0.0.0.0:0"])),
            Err(BindError::Settings(SettingsError::Exposed { .. }))
        ));
    }
}
