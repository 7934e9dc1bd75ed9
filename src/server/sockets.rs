//! Opens the sockets of an address, and decides how many UDP workers serve it.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::inherited::{Inherited, InheritedSocket, SocketName};
use crate::wire::Transport;

/// Size of the receive buffer of a UDP socket, in bytes.
///
/// It has room for a burst of several thousand queries. The kernel may grant less
/// (`net.core.rmem_max`).
const UDP_RECEIVE_BUFFER_BYTES: usize = 1024 * 1024;
/// Size of the send buffer of a TCP connection, in bytes; the kernel doubles it.
///
/// It limits the memory that a client can pin by never reading. Connections inherit the size from
/// their listener.
const TCP_SEND_BUFFER_BYTES: usize = 128 * 1024;
/// Size of the receive buffer of a connection to an inherited listener, in bytes.
const TCP_RECEIVE_BUFFER_BYTES: usize = 128 * 1024;
/// Connections that may wait in the accept queue; the kernel limits it to `net.core.somaxconn`.
///
/// Beyond this, the kernel drops a client's SYN, and the client tries again only after a second.
const LISTEN_BACKLOG: i32 = 4096;
/// Total UDP worker threads; beyond this, each further address gets one.
const MAX_UDP_THREADS: usize = 32;

/// An address for plain DNS, with one UDP socket per worker and one TCP socket.
#[derive(Debug)]
pub(super) struct PlainEndpoint {
    pub(super) address: SocketAddr,
    /// Whether the address comes from a wildcard: its removal ends the listener.
    pub(super) followed: bool,
    pub(super) udp: Vec<UdpSocket>,
    pub(super) tcp: TcpListener,
}

impl PlainEndpoint {
    /// Opens the TCP socket and `workers` UDP sockets of one address.
    ///
    /// Takes those of `passed` instead if there are any: all of them, because each socket has its
    /// share of the clients, and none besides, because clients of a new one would be lost with it.
    ///
    /// # Errors
    /// The transport that failed, and the system's error.
    pub(super) fn open(
        mut address: SocketAddr,
        workers: usize,
        passed: &mut Vec<Inherited>,
    ) -> Result<Self, (Transport, io::Error)> {
        let (mut udp, mut tcp) = (Vec::new(), None);
        let is_wanted = |one: &mut Inherited| one.name == SocketName::Dns && one.address == address;
        for Inherited { socket, .. } in passed.extract_if(.., is_wanted) {
            match socket {
                InheritedSocket::Udp(socket) => udp.push(socket),
                InheritedSocket::Tcp(socket) => tcp = Some(socket),
            }
        }
        let tcp_failed = |error| (Transport::Tcp, error);
        if let Some(tcp) = &tcp {
            let tcp = SockRef::from(tcp);
            // ReceiveBuffer= of a socket unit is meant for UDP, but applies to every connection.
            let _ = tcp.set_recv_buffer_size(TCP_RECEIVE_BUFFER_BYTES);
            let _ = tcp.set_send_buffer_size(TCP_SEND_BUFFER_BYTES);
        }
        let tcp = tcp.map_or_else(|| open_tcp(address), Ok).map_err(tcp_failed)?;
        tcp.set_nonblocking(true).map_err(tcp_failed)?;
        address.set_port(tcp.local_addr().map_err(tcp_failed)?.port());
        if udp.is_empty() {
            udp = open_udp(address, workers).map_err(|error| (Transport::Udp, error))?;
        }
        Ok(Self { address, followed: false, udp, tcp })
    }
}

/// Opens a non-blocking TCP listener on one address.
pub(super) fn open_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // This allows a restart while connections of the previous run are in TIME_WAIT. Another
    // listening socket still makes `bind` fail.
    socket.set_reuse_address(true)?;
    let _ = socket.set_send_buffer_size(TCP_SEND_BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

/// Opens `count` non-blocking sockets on one address.
///
/// The kernel spreads clients over them (`SO_REUSEPORT`).
pub(super) fn open_udp(address: SocketAddr, count: usize) -> io::Result<Vec<UdpSocket>> {
    let new = || {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        let _ = socket.set_recv_buffer_size(UDP_RECEIVE_BUFFER_BYTES);
        socket.set_nonblocking(true)?;
        Ok::<_, io::Error>(socket)
    };
    // The first socket is bound without SO_REUSEPORT. That fails if another program has the port,
    // even if it would share the port; and it keeps later programs from binding the port.
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

/// Converts an IPv4-mapped IPv6 address to the IPv4 address.
///
/// The server's IPv6 sockets are IPv6-only, so they could not serve a mapped address.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip == address.ip() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

/// Returns the number of UDP workers for one more address: `wanted` or 1.
///
/// `running` counts the workers of all other addresses.
pub(super) fn worker_count(running: usize, wanted: usize) -> usize {
    if running + wanted <= MAX_UDP_THREADS { wanted.max(1) } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_beyond_the_worker_limit_get_one_worker_each() {
        let threads =
            |wanted: usize| (0..20).fold(0, |running, _| running + worker_count(running, wanted));
        assert_eq!([0, 1, 4].map(threads), [20, 20, MAX_UDP_THREADS + 12]);
        assert_eq!(worker_count(0, 100), 1);
    }
}
