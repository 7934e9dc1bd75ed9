//! Deadlines and bounds of the server.

use std::time::Duration;

/// Deadlines and bounds of the server. A bound of 0 where at least one is needed counts as 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a connection may stay open with nothing asked and nothing owed (RFC 7766 section 6.2.3).
    pub idle_timeout: Duration,
    /// How long a connection may take to agree on its encryption.
    pub handshake_timeout: Duration,
    /// How long a message over TCP may take to arrive, from its first octet to its last.
    pub message_timeout: Duration,
    /// How long a client may take to accept answers that are ready.
    pub write_timeout: Duration,
    /// How long an answer may take to be made.
    pub answer_timeout: Duration,
    /// How long answers in flight have to get out once the server stops.
    pub drain_timeout: Duration,
    /// Threads that answer over UDP on each listening address, each with a socket of its own. Once there are 32 in all,
    /// further addresses get one each.
    pub udp_workers: usize,
    /// Answers over UDP that may be waited for at a time, over all sockets; beyond that, SERVFAIL.
    pub udp_in_flight: usize,
    /// Connections in all.
    pub connections: usize,
    /// Connections of one source address.
    pub connections_per_source: usize,
    /// Connections of one loopback address, where a whole machine may look like one source.
    pub connections_per_loopback_source: usize,
    /// Connections of all sources without access, open only for the time of their refusal.
    pub connections_without_access: usize,
    /// Messages of one connection whose answers are being made or wait to be written.
    pub in_flight: usize,
    /// Octets of answers that may wait on one connection; beyond that no further message of it is read. Answers already
    /// being made (at most `in_flight`, of at most 64 KiB each) may come on top.
    pub queued_octets: usize,
}

/// Most threads that answer over UDP unless told otherwise: far more answers than any one machine asks for.
const MAX_UDP_WORKERS: usize = 4;

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(3),
            message_timeout: Duration::from_secs(3),
            write_timeout: Duration::from_secs(3),
            answer_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(1),
            udp_workers: std::thread::available_parallelism().map_or(1, usize::from).min(MAX_UDP_WORKERS),
            udp_in_flight: 4096,
            connections: 256,
            connections_per_source: 64,
            connections_per_loopback_source: 192,
            connections_without_access: 32,
            in_flight: 32,
            queued_octets: 256 * 1024,
        }
    }
}
