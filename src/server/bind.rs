//! Binds the sockets of all addresses before the server starts.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::encrypted::EncryptedSockets;
use super::handle::{ListenerChange, ServerHandle};
use super::listening::{HeldAddresses, ListenState, Listening, SharedListenState};
use super::rules::ServingRules;
use super::sockets::PlainEndpoint;
use super::{BindError, Counters, Heartbeats, Settings};
use crate::inherited::{InheritedSockets, OpenSockets, SocketName};

/// Bound sockets, ready to be served.
#[derive(Debug)]
pub struct Bound {
    pub(super) endpoints: Vec<PlainEndpoint>,
    pub(super) encrypted: EncryptedSockets,
    pub(super) rules: ServingRules,
    pub(super) counters: Arc<Counters>,
    pub(super) open: OpenSockets,
    /// Cancelled once no other process reads the sockets for QUIC.
    pub(super) quic_is_free: CancellationToken,
    pub(super) heartbeats: Arc<Heartbeats>,
    pub(super) handle: ServerHandle,
    pub(super) changes: mpsc::Receiver<ListenerChange>,
}

impl Bound {
    /// Returns the addresses for plain DNS bound at startup, with resolved ports.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.endpoints.iter().map(|endpoint| endpoint.address).collect()
    }

    /// Returns the addresses for DNS over TLS, with resolved ports.
    pub fn tls_addresses(&self) -> Vec<SocketAddr> {
        self.handle.tls_addresses()
    }

    /// Returns the addresses for DNS over QUIC, with resolved ports.
    pub fn quic_addresses(&self) -> Vec<SocketAddr> {
        self.handle.quic_addresses()
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

    /// Returns the handle that changes the server while it runs.
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
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
/// Addresses of sockets that the service manager holds are served even if `settings` lack them. The
/// server reads the sockets for QUIC only after [`Bound::quic_is_free`].
///
/// # Errors
/// Like [`bind`].
pub fn bind_or_inherit(
    settings: &Settings,
    mut inherited: InheritedSockets,
) -> Result<Bound, BindError> {
    let mut state = ListenState { held: HeldAddresses::of(&inherited), ..ListenState::default() };
    let settings = state.held.added_to(settings);
    settings.check()?;
    let passed = inherited.take(SocketName::Dns);
    let (endpoints, plain) =
        state.open_plain(&settings.listen, settings.limits.udp_workers, passed)?;
    let encrypted =
        EncryptedSockets::open(&settings.encrypted, &mut inherited, &Listening::default())?;
    let workers = |endpoint: &PlainEndpoint| (endpoint.address, endpoint.udp.len());
    state.active = endpoints.iter().map(workers).collect();
    state.listening = Listening { plain, ..encrypted.listening.clone() };
    let (sender, changes) = mpsc::channel(1);
    let shared = SharedListenState::new(state);
    Ok(Bound {
        endpoints,
        encrypted,
        rules: ServingRules::new(&settings),
        counters: Arc::new(Counters::default()),
        open: OpenSockets::default(),
        quic_is_free: CancellationToken::new(),
        heartbeats: Arc::default(),
        handle: ServerHandle { state: shared, changes: sender },
        changes,
    })
}

#[cfg(test)]
mod tests {
    use super::super::sockets::open_udp;
    use super::super::{Limits, PortTaken, SettingsError};
    use super::*;
    use crate::wire::Transport;
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
