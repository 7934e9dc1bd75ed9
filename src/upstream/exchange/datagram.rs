//! Receiving on connected UDP sockets, including ICMP errors.

use std::io::{self, ErrorKind};

use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Maximum length of a UDP response that is read whole, in bytes.
///
/// Queries advertise 1,232 bytes, which some upstreams exceed. A longer response is cut off, so it
/// is malformed and the query is retried over TCP.
pub(super) const MAX_UDP_RESPONSE_BYTES: usize = 4096;

/// Waits until a datagram may have arrived.
///
/// # Errors
/// Returns the ICMP error that arrived: the port is closed or the host unreachable. The kernel does
/// not report an error as readiness to read, so waiting for readiness alone would miss it.
pub(super) async fn readable(io: &UdpSocket) -> io::Result<()> {
    loop {
        let ready = io.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error() {
            if let Some(error) = io.take_error()? {
                return Err(error);
            }
            // An earlier send call has already returned the error.
            clear_readiness(io, Interest::ERROR);
        }
        if ready.is_readable() {
            return Ok(());
        }
    }
}

/// Marks a socket as empty, which saves a receive call that would return nothing.
///
/// If a datagram arrives in the meantime, it is read together with the next one.
pub(super) fn mark_empty(io: &UdpSocket) {
    clear_readiness(io, Interest::READABLE);
}

/// Clears the readiness that Tokio has recorded.
fn clear_readiness(io: &UdpSocket, interest: Interest) {
    let _ = io.try_io(interest, || -> io::Result<()> { Err(ErrorKind::WouldBlock.into()) });
}
