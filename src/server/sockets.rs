//! The sockets of one address, and how many UDP workers it gets.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

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

/// A listening address of plain DNS with its sockets: one for each UDP worker, and one for TCP.
#[derive(Debug)]
pub(super) struct PlainEndpoint {
    pub(super) address: SocketAddr,
    /// Whether it was not named, but is one of a wildcard's: it goes with the address.
    pub(super) followed: bool,
    pub(super) udp: Vec<UdpSocket>,
    pub(super) tcp: TcpListener,
}

impl PlainEndpoint {
    /// Opens the sockets of one address.
    ///
    /// # Errors
    /// What the system says of one of them.
    pub(super) fn open(mut address: SocketAddr, workers: usize) -> Result<Self, (Transport, io::Error)> {
        let tcp_failed = |error| (Transport::Tcp, error);
        let tcp = open_tcp(address).map_err(tcp_failed)?;
        address.set_port(tcp.local_addr().map_err(tcp_failed)?.port());
        let udp = open_udp(address, workers).map_err(|error| (Transport::Udp, error))?;
        Ok(Self { address, followed: false, udp, tcp })
    }
}

/// Opens a TCP socket that listens on one address.
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

/// An IPv4 address written as an IPv6 one, as the IPv4 address: the IPv6 sockets here carry IPv6 only.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip == address.ip() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

/// How many threads an address gets for UDP where `wanted` are wished for and so many are `running` for others.
pub(super) fn workers_beside(running: usize, wanted: usize) -> usize {
    if running + wanted <= THREADS { wanted.max(1) } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_addresses_get_few_threads_each() {
        let threads = |wanted: usize| (0..20).fold(0, |running, _| running + workers_beside(running, wanted));
        assert_eq!([0, 1, 4].map(threads), [20, 20, THREADS + 12]);
        assert_eq!(workers_beside(0, 100), 1);
    }
}
