//! Options of the bridge's sockets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpSocket;

/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 4096;

/// Time without bytes before the kernel sends the first keepalive probe.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
/// Time between two keepalive probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Unanswered keepalive probes after which the connection ends.
const KEEPALIVE_RETRIES: u32 = 4;

/// Sets what both sides of a connection have: no delay of small segments, and keepalive.
fn set_options(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_TIME)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES),
    )
}

/// Opens a listener; with `shared`, others of this process can listen on the same address.
///
/// Accepted connections inherit its options (tcp(7)).
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
    set_options(&SockRef::from(&socket))?;
    socket.bind(&SocketAddr::V4(address).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Creates a socket for a connection to an instance.
///
/// # Errors
/// If the process has no descriptor left.
pub(super) fn outgoing(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    set_options(&SockRef::from(&socket))?;
    Ok(socket)
}

/// Makes the close of a socket a reset, which the peer sees at once as an error.
pub(super) fn reset_on_close(socket: &impl AsFd) {
    // It fails for a connection that is already gone.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
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
