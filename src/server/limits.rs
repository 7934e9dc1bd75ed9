//! Timeouts and limits of the server.

use std::time::Duration;

/// Timeouts and limits of the server.
///
/// A limit of 0 counts as 1 where the server needs at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time without queries and pending responses before a connection is closed.
    ///
    /// RFC 7766 section 6.2.3.
    pub idle_timeout: Duration,
    /// Time for a TLS or QUIC handshake.
    pub handshake_timeout: Duration,
    /// Time for a message on a connection to arrive, from its first byte to its last.
    pub message_timeout: Duration,
    /// Time for the client to accept available responses.
    pub write_timeout: Duration,
    /// Time for the responder to make a response.
    pub response_timeout: Duration,
    /// Time for responses in flight to finish at shutdown.
    pub drain_timeout: Duration,
    /// UDP worker threads per listening address, each with its own socket.
    ///
    /// Once 32 threads run in total, every further address gets one.
    pub udp_workers: usize,
    /// Deferred UDP responses over all sockets; further clients get SERVFAIL.
    pub udp_in_flight: usize,
    /// Connections in total.
    pub connections: usize,
    /// Connections per source address.
    pub connections_per_source: usize,
    /// Connections per loopback address; a whole machine may appear as one source.
    pub connections_per_loopback_source: usize,
    /// Connections of sources without access, which stay open only for the refusal.
    pub connections_without_access: usize,
    /// Queries in flight per connection, including queued responses.
    pub in_flight: usize,
    /// Bytes of responses queued per connection; beyond this, the server stops reading.
    ///
    /// Responses of queries already in flight (at most `in_flight`, at most 64 KiB each) may exceed
    /// the limit.
    pub queued_bytes: usize,
}

/// Default limit on UDP worker threads per address.
///
/// Four threads answer far more queries than one machine sends.
const MAX_UDP_WORKERS: usize = 4;

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(3),
            message_timeout: Duration::from_secs(3),
            write_timeout: Duration::from_secs(3),
            response_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(1),
            udp_workers: std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(MAX_UDP_WORKERS),
            udp_in_flight: 4096,
            connections: 256,
            connections_per_source: 64,
            connections_per_loopback_source: 192,
            connections_without_access: 32,
            in_flight: 32,
            queued_bytes: 256 * 1024,
        }
    }
}
