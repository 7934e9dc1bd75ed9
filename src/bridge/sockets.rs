//! Options of the bridge's sockets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{SockaddrIn, getsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpSocket;

/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 4096;

/// Shortest time between two keepalive probes that the kernel accepts.
const MIN_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Unanswered keepalive probes after which the connection ends.
const KEEPALIVE_RETRIES: u32 = 4;

/// Limit on the bytes that wait in a socket to be sent, beside those that the receiver's window
/// allows.
///
/// Without it, the kernel takes some megabytes for a receiver that has stalled.
const UNSENT_BYTES: u32 = 128 * 1024;

/// Options of the sockets of both sides of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketOptions {
    /// Time without bytes before the kernel sends the first keepalive probe.
    keepalive: Duration,
}

impl SocketOptions {
    /// Creates the options; a silent connection is probed after `keepalive`.
    pub(super) fn new(keepalive: Duration) -> Self {
        Self { keepalive }
    }

    /// Sets the options: no delay of small segments, keepalive, and few unsent bytes.
    ///
    /// Accepted connections inherit those of their listener (tcp(7)).
    ///
    /// # Errors
    /// If the kernel lacks one of the first two.
    pub(super) fn set(self, socket: &impl AsFd) -> io::Result<()> {
        let socket = SockRef::from(socket);
        socket.set_tcp_nodelay(true)?;
        // It saves memory; some sandboxes lack it.
        let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES);
        socket.set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(self.keepalive)
                .with_interval((self.keepalive / 3).max(MIN_KEEPALIVE_INTERVAL))
                .with_retries(KEEPALIVE_RETRIES),
        )
    }

    /// Creates a socket for a connection to an instance.
    ///
    /// # Errors
    /// If the process has no descriptor left, or the machine lacks the address family.
    pub(super) fn outgoing(self, address: SocketAddr) -> io::Result<TcpSocket> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        self.set(&socket)?;
        Ok(socket)
    }
}

/// Opens a listener; with `shared`, others of this process can listen on the same address.
///
/// # Errors
/// If the address is in use, or the process may not bind it.
pub(super) fn listen(address: SocketAddrV4, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Connections of a former run in TIME_WAIT do not matter.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&SocketAddr::V4(address).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Makes the close of a socket a reset, which the peer sees at once as an error.
pub(super) fn reset_on_close(socket: &impl AsFd) {
    // It fails for a connection that is already gone.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Returns whether an address belongs to this machine.
///
/// Usually, the kernel drops packets to loopback addresses from elsewhere, but not with
/// `route_localnet`, which some container networks set.
pub(super) fn is_of_this_machine(address: Ipv4Addr) -> bool {
    if address.is_loopback() {
        return true;
    }
    let Ok(mut interfaces) = getifaddrs() else { return false };
    interfaces.any(|interface| {
        let own = interface.address.and_then(|own| own.as_sockaddr_in().map(SockaddrIn::ip));
        own == Some(address)
    })
}

/// Returns the destination of a connection before the kernel redirected it.
///
/// # Errors
/// If the connection was not redirected.
pub(super) fn original_destination(stream: &impl AsFd) -> io::Result<SocketAddrV4> {
    let found = getsockopt(stream, sockopt::OriginalDst)?;
    let address = Ipv4Addr::from(u32::from_be(found.sin_addr.s_addr));
    Ok(SocketAddrV4::new(address, u16::from_be(found.sin_port)))
}
