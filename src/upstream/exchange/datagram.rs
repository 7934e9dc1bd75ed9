//! Receiving on connected UDP sockets, ICMP errors included.

use std::io::{self, ErrorKind};

use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Limit of the UDP responses that are read whole.
///
/// Queries advertise 1,232 bytes, which some upstreams exceed. A longer response is cut, hence
/// malformed, hence retried over TCP.
pub(super) const MAX_UDP_RESPONSE_BYTES: usize = 4096;

/// Waits until a datagram may have arrived.
///
/// # Errors
/// Returns the ICMP error that arrived: the port is closed or the host unreachable. The kernel
/// does not report it as readiness to read, so waiting for that alone would miss it.
pub(super) async fn readable(io: &UdpSocket) -> io::Result<()> {
    loop {
        let ready = io.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error() {
            if let Some(error) = io.take_error()? {
                return Err(error);
            }
            // A send call has returned the error already.
            clear_readiness(io, Interest::ERROR);
        }
        if ready.is_readable() {
            return Ok(());
        }
    }
}

/// Marks a socket as empty, which saves a receive call that would find nothing.
///
/// A datagram that has arrived meanwhile is read with the next one.
pub(super) fn mark_empty(io: &UdpSocket) {
    clear_readiness(io, Interest::READABLE);
}

/// Clears the readiness that Tokio knows of.
fn clear_readiness(io: &UdpSocket, interest: Interest) {
    let _ = io.try_io(interest, || -> io::Result<()> { Err(ErrorKind::WouldBlock.into()) });
}
