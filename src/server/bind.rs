//! Opens the sockets, and says in words what stands in the way.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use tracing::{info, warn};

use super::certificate::CertificateError;
use super::query_log::QueryLog;
use super::serve::Endpoint;
use super::sink::Tap;
use super::{Bound, Counters, Settings, SettingsError, interfaces};
use crate::wire::Transport;

/// Octets of datagrams that may wait to be read: some thousand queries in a burst. The kernel may grant less.
const UDP_RECEIVE_BUFFER: usize = 1024 * 1024;
/// Octets of answers the kernel keeps of one connection (it doubles the figure), so that clients which never read cost
/// little. Connections inherit it from their listener.
const TCP_SEND_BUFFER: usize = 128 * 1024;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 512;
/// Threads that answer over UDP, in all, beyond which a further address gets one only.
const THREADS: usize = 32;
/// How often a free TCP port is tried whose UDP port is taken.
const ATTEMPTS: usize = 16;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The settings themselves.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The certificate of the encrypted listeners.
    #[error("no encrypted connections without a certificate")]
    Certificate(#[from] CertificateError),
    /// Somebody else has the port.
    #[error(transparent)]
    InUse(PortTaken),
    /// A port below 1024, without the right to it.
    #[error(
        "cannot listen on {address}: ports below 1024 need a permission; give it with `sudo setcap cap_net_bind_service=+ep` and the path \
         of svcdns, or with AmbientCapabilities=CAP_NET_BIND_SERVICE in a systemd unit, or choose a port from 1024 on, such as {flag} {example}"
    )]
    NotPermitted {
        /// The address.
        address: SocketAddr,
        /// The flag that named it.
        flag: &'static str,
        /// An address that needs no permission.
        example: SocketAddr,
    },
    /// No interface has the address.
    #[error("cannot listen on {address}: this machine has no such address at the moment")]
    NoSuchAddress {
        /// The address.
        address: SocketAddr,
    },
    /// Anything else the system said.
    #[error("cannot listen on {address} ({}): {source}", transport_name(*.transport))]
    System {
        /// The address.
        address: SocketAddr,
        /// Whether for UDP or TCP.
        transport: Transport,
        /// What the system said.
        source: io::Error,
    },
}

/// A port that another process has.
///
/// The server does not look for that process. A caller that does puts it into the message with
/// [`Self::by`].
#[derive(Debug, thiserror::Error)]
pub struct PortTaken {
    /// The address.
    pub address: SocketAddr,
    /// Whether its UDP or its TCP port.
    pub transport: Transport,
    /// The flag that named the address.
    pub flag: &'static str,
}

impl PortTaken {
    /// The message, with who has the port.
    pub fn by(&self, holder: impl fmt::Display) -> String {
        let Self { address, transport, flag } = self;
        let transport = transport_name(*transport);
        format!("cannot listen on {address} ({transport}): the port is taken by {holder}; stop that, or choose another port with {flag}")
    }
}

impl fmt::Display for PortTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.by("another process"))
    }
}

/// How an address was named, for what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// The flag.
    flag: &'static str,
    /// A port that needs no permission.
    port: u16,
}

/// Plain DNS.
pub(super) static LISTEN: Named = Named { flag: "--listen", port: 5300 };
/// DNS over TLS.
pub(super) static LISTEN_TLS: Named = Named { flag: "--tls-listen", port: 8853 };
/// DNS over QUIC.
pub(super) static LISTEN_QUIC: Named = Named { flag: "--tls-quic-listen", port: 8853 };

impl BindError {
    /// What the system said, in words and with what to do.
    pub(super) fn explain(transport: Transport, named: &'static Named, address: SocketAddr, error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::AddrInUse => Self::InUse(PortTaken { address, transport, flag: named.flag }),
            ErrorKind::PermissionDenied if (1..1024).contains(&address.port()) => {
                Self::NotPermitted { address, flag: named.flag, example: SocketAddr::new(address.ip(), named.port) }
            }
            ErrorKind::AddrNotAvailable => Self::NoSuchAddress { address },
            _ => Self::System { address, transport, source: error },
        }
    }
}

fn transport_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "UDP",
        Transport::Tcp => "TCP",
    }
}

/// Opens UDP and TCP on every address of `settings`, both on the same port. Needs no runtime.
///
/// An unspecified address becomes one pair of sockets for each address the machine has now: an answer has to come from
/// the address that was asked, which one socket for all cannot promise. Addresses that come and go later are followed once
/// it is served.
///
/// # Errors
/// When the settings cannot be served, or a socket cannot be opened; none stays open then.
pub fn bind(settings: &Settings) -> Result<Bound, BindError> {
    settings.check()?;
    let wanted = settings.limits.udp_workers;
    let (mut endpoints, mut wildcards): (Vec<Endpoint>, Vec<SocketAddr>) = (Vec::new(), Vec::new());
    for &listen in &settings.listen {
        let listen = canonical(listen);
        // `0.0.0.0:53` and `127.0.0.1:53` together name one address twice.
        let bound = |address: &SocketAddr| endpoints.iter().any(|endpoint| endpoint.address == *address);
        if listen.ip().is_unspecified() {
            let addresses =
                interfaces::addresses_for(listen).map_err(|error| BindError::explain(Transport::Udp, &LISTEN, listen, error))?;
            let addresses: Vec<_> = addresses.into_iter().filter(|address| !bound(address)).collect();
            let group = open_group(&addresses, |more| workers(&endpoints, more, wanted), true)?;
            if group.is_empty() && !endpoints.iter().any(|endpoint| endpoint.address.port() == listen.port()) {
                return Err(BindError::NoSuchAddress { address: listen });
            }
            info!(listen = %listen, addresses = group.len(), "listening on each address the machine has, now and later");
            let port = group.first().map_or_else(|| listen.port(), |endpoint| endpoint.address.port());
            wildcards.push(SocketAddr::new(listen.ip(), port));
            endpoints.extend(group);
        } else if !bound(&listen) {
            let group = open_group(&[listen], |more| workers(&endpoints, more, wanted), false)?;
            endpoints.extend(group);
        }
    }
    let encrypted = settings.encrypted.open()?;
    Ok(Bound {
        endpoints,
        wildcards,
        encrypted,
        access: settings.access(),
        tap: QueryLog::new(settings.log_queries).map_or_else(Tap::default, Tap::new),
        limits: settings.limits.clone(),
        counters: Arc::new(Counters::default()),
    })
}

/// How many threads the next address gets for UDP, beside those that are there.
fn workers(endpoints: &[Endpoint], more: &[Endpoint], wanted: usize) -> usize {
    workers_beside(endpoints.iter().chain(more).map(|endpoint| endpoint.udp.len()).sum(), wanted)
}

/// How many threads an address gets for UDP where `wanted` are wished for and so many are `running` for others.
pub(super) fn workers_beside(running: usize, wanted: usize) -> usize {
    if running + wanted <= THREADS { wanted.max(1) } else { 1 }
}

/// An IPv4 address written as an IPv6 one, as the IPv4 address: the IPv6 sockets here carry IPv6 only.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip == address.ip() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

/// Opens all `addresses` (of one port) on one port; where that is 0, on one that is free on all of them for TCP and UDP.
/// With `skip_absent`, addresses that cannot be used yet (an IPv6 address still being checked) are left out with a warning.
fn open_group(addresses: &[SocketAddr], workers: impl Fn(&[Endpoint]) -> usize, skip_absent: bool) -> Result<Vec<Endpoint>, BindError> {
    let mut attempt = 1;
    loop {
        let result = try_group(addresses, &workers, skip_absent);
        match &result {
            Err(BindError::InUse(_)) if attempt < ATTEMPTS && addresses.iter().any(|address| address.port() == 0) => attempt += 1,
            _ => return result,
        }
    }
}

fn try_group(addresses: &[SocketAddr], workers: &impl Fn(&[Endpoint]) -> usize, skip_absent: bool) -> Result<Vec<Endpoint>, BindError> {
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(addresses.len());
    for &(mut address) in addresses {
        if let (0, Some(first)) = (address.port(), endpoints.first()) {
            address.set_port(first.address.port());
        }
        match open(address, workers(&endpoints)).map_err(|(transport, error)| BindError::explain(transport, &LISTEN, address, error)) {
            Ok(endpoint) => endpoints.push(Endpoint { followed: skip_absent, ..endpoint }),
            Err(BindError::NoSuchAddress { address }) if skip_absent => {
                warn!(%address, "not listening on an address that cannot be used at the moment");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(endpoints)
}

/// Opens the sockets of one address.
///
/// # Errors
/// What the system says of one of them.
pub(super) fn open(mut address: SocketAddr, workers: usize) -> Result<Endpoint, (Transport, io::Error)> {
    let tcp_failed = |error| (Transport::Tcp, error);
    let tcp = open_tcp(address).map_err(tcp_failed)?;
    address.set_port(tcp.local_addr().map_err(tcp_failed)?.port());
    let udp = open_udp(address, workers).map_err(|error| (Transport::Udp, error))?;
    Ok(Endpoint { address, followed: false, udp, tcp })
}

pub(super) fn open_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A restart must not wait for connections of the last run to be forgotten; it takes no port that is listened on.
    socket.set_reuse_address(true)?;
    let _ = socket.set_send_buffer_size(TCP_SEND_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Opens `count` sockets on one address, among which the kernel spreads the clients.
pub(super) fn open_udp(address: SocketAddr, count: usize) -> io::Result<Vec<UdpSocket>> {
    let new = || {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        let _ = socket.set_recv_buffer_size(UDP_RECEIVE_BUFFER);
        socket.set_nonblocking(true)?;
        Ok::<_, io::Error>(socket)
    };
    // The first is bound before it may share its port: it fails where any other program has the port, also one that would
    // share it. Whoever comes later in the same way fails because of us.
    let first = new()?;
    first.bind(&address.into())?;
    if count > 1 {
        first.set_reuse_port(true)?;
    }
    let mut sockets = vec![first.into()];
    while sockets.len() < count {
        let next = new()?;
        next.set_reuse_port(true)?;
        next.bind(&address.into())?;
        sockets.push(next.into());
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(addresses: &[&str]) -> Settings {
        Settings { listen: addresses.iter().map(|address| address.parse().unwrap()).collect(), ..Settings::default() }
    }

    #[test]
    fn a_free_port_is_the_same_for_udp_and_tcp() {
        let bound = bind(&listening(&["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"])).unwrap();
        assert_eq!(bound.addresses().len(), 3);
        assert!(bound.addresses().iter().filter(|address| address.is_ipv4()).count() == 2);
        for endpoint in &bound.endpoints {
            assert_ne!(endpoint.address.port(), 0);
            assert_eq!(endpoint.udp.len(), Settings::default().limits.udp_workers);
            assert!(endpoint.udp.iter().all(|socket| socket.local_addr().unwrap() == endpoint.address));
            assert_eq!(endpoint.tcp.local_addr().unwrap(), endpoint.address);
        }
    }

    #[test]
    fn the_unspecified_address_becomes_every_address_on_one_port() {
        let settings = Settings { allow: vec!["127.0.0.0/8".parse().unwrap()], ..listening(&["0.0.0.0:0"]) };
        let bound = bind(&settings).unwrap();
        let port = bound.addresses()[0].port();
        assert!(bound.addresses().contains(&SocketAddr::from(([127, 0, 0, 1], port))), "{:?}", bound.addresses());
        assert!(bound.addresses().iter().all(|address| address.port() == port && !address.ip().is_unspecified()));
    }

    #[test]
    fn many_addresses_get_few_threads_each() {
        let threads = |wanted: usize| (0..20).fold(0, |running, _| running + workers_beside(running, wanted));
        assert_eq!([0, 1, 4].map(threads), [20, 20, THREADS + 12]);
        assert_eq!(workers_beside(0, 100), 1);
    }

    #[test]
    fn an_address_named_twice_is_opened_once() {
        // An address of its own: no other test takes the port in between.
        let port = bind(&listening(&["127.77.4.1:0"])).unwrap().addresses()[0].port();
        let address = format!("127.77.4.1:{port}");

        let bound = bind(&listening(&[&address, &address])).unwrap();
        assert_eq!(bound.addresses().len(), 1);
    }

    #[test]
    fn a_taken_port_is_reported_with_its_address_and_transport() {
        let taken = bind(&listening(&["127.0.0.1:0"])).unwrap();
        let address = taken.addresses()[0];
        let error = bind(&listening(&[&address.to_string()])).unwrap_err();
        assert!(matches!(error, BindError::InUse(PortTaken { transport: Transport::Tcp, .. })), "{error:?}");
        assert_eq!(
            error.to_string(),
            format!(
                "cannot listen on {address} (TCP): the port is taken by another process; stop that, or choose another port with --listen"
            )
        );

        // An address of its own: no connection of another test has the same number as its TCP port.
        let udp = UdpSocket::bind("127.77.6.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let error = bind(&listening(&[&address.to_string()])).unwrap_err();
        assert!(matches!(error, BindError::InUse(PortTaken { transport: Transport::Udp, .. })), "{error:?}");
    }

    #[test]
    fn a_port_is_shared_with_no_other_program_by_accident() {
        let shares = |address: SocketAddr| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&address.into()).map(|()| socket)
        };
        // An address of its own, as above.
        let other = shares("127.77.8.1:0".parse().unwrap()).unwrap();
        let address = other.local_addr().unwrap().as_socket().unwrap();
        for workers in [1, 3] {
            let limits = crate::server::Limits { udp_workers: workers, ..crate::server::Limits::default() };
            let error = bind(&Settings { limits, ..listening(&[&address.to_string()]) }).unwrap_err();
            assert!(matches!(error, BindError::InUse(PortTaken { transport: Transport::Udp, .. })), "{error:?}");
        }
        drop(other);
        let limits = crate::server::Limits { udp_workers: 3, ..crate::server::Limits::default() };
        let settings = Settings { limits, ..listening(&[&address.to_string()]) };
        let bound = bind(&settings).unwrap();
        assert_eq!(bound.endpoints[0].udp.len(), 3);
        assert!(open_udp(address, 3).is_err(), "the port is ours alone");
    }

    #[test]
    fn an_address_of_another_machine_is_said_to_be_absent() {
        let settings = Settings { allow: vec!["198.51.100.0/24".parse().unwrap()], ..listening(&["198.51.100.7:0"]) };
        let error = bind(&settings).unwrap_err();
        assert!(matches!(error, BindError::NoSuchAddress { .. }), "{error:?}");
    }

    #[test]
    fn a_low_port_without_the_right_to_it_says_how_to_get_it() {
        let address = "127.0.0.1:53".parse().unwrap();
        let message = BindError::explain(Transport::Tcp, &LISTEN, address, ErrorKind::PermissionDenied.into()).to_string();
        assert!(message.contains("127.0.0.1:53") && message.contains("setcap") && message.contains("127.0.0.1:5300"), "{message}");
        let other = BindError::explain(Transport::Tcp, &LISTEN, "127.0.0.1:5300".parse().unwrap(), ErrorKind::PermissionDenied.into());
        assert!(matches!(other, BindError::System { .. }), "{other:?}");
    }

    #[test]
    fn exposed_addresses_are_not_opened() {
        assert!(matches!(bind(&listening(&["0.0.0.0:0"])), Err(BindError::Settings(SettingsError::Exposed { .. }))));
    }
}
