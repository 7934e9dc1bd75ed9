//! Timeouts and limits of the server.

use std::time::Duration;

use crate::descriptors::DescriptorShare;

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
    /// Connections in total; at most half of the descriptors that the process may open.
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
    /// Bytes of responses to clients that do not read, over all connections.
    ///
    /// Beyond this, a connection whose client does not read is closed.
    pub unread_bytes: usize,
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
            connections: 4096,
            connections_per_source: 1024,
            connections_per_loopback_source: 3072,
            connections_without_access: 32,
            in_flight: 32,
            queued_bytes: 256 * 1024,
            unread_bytes: 64 * 1024 * 1024,
        }
    }
}

impl Limits {
    /// Returns the limits of a process that may open this many descriptors.
    ///
    /// Connections take at most half of them. The limits per source shrink in proportion.
    pub(super) fn within(self, descriptors: usize) -> Self {
        let connections = self.connections.min(DescriptorShare::Server.of(descriptors));
        if connections == self.connections {
            return self;
        }
        let scaled = |limit: usize| (limit.saturating_mul(connections) / self.connections).max(1);
        Self {
            connections,
            connections_per_source: scaled(self.connections_per_source),
            connections_per_loopback_source: scaled(self.connections_per_loopback_source),
            connections_without_access: scaled(self.connections_without_access),
            ..self
        }
    }

    /// Returns a deadline for a waiting connection while this many are open.
    ///
    /// The deadline is `timeout` while at most half of the limit is used. From there it shrinks in
    /// proportion to the free half, down to `min` on a full server.
    pub(super) fn shortened(&self, timeout: Duration, open: usize, min: Duration) -> Duration {
        let half = self.connections / 2;
        let (free, other_half) = (self.connections.saturating_sub(open), self.connections - half);
        if open <= half {
            return timeout;
        }
        let share = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let shortened = timeout.saturating_mul(share(free)) / share(other_half).max(1);
        shortened.max(min).min(timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn timeouts_shrink_linearly_above_half_of_the_connection_limit() {
        let limits = Limits { connections: 1000, ..Limits::default() };
        let millis = [0, 500, 501, 750, 900, 999, 1000, 1100]
            .map(|open| limits.shortened(10 * SECOND, open, SECOND).as_millis());
        assert_eq!(millis, [10_000, 10_000, 9_980, 5_000, 2_000, 1_000, 1_000, 1_000]);
        assert_eq!(limits.shortened(SECOND / 2, 1000, SECOND), SECOND / 2);
        let one = Limits { connections: 1, ..limits };
        assert_eq!(one.shortened(10 * SECOND, 1, SECOND), SECOND);
    }

    #[test]
    fn a_low_descriptor_limit_lowers_all_connection_limits_in_proportion() {
        let numbers = |descriptors| {
            let limits = Limits::default().within(descriptors);
            [
                limits.connections,
                limits.connections_per_source,
                limits.connections_per_loopback_source,
                limits.connections_without_access,
            ]
        };
        assert_eq!(numbers(1_048_576), [4096, 1024, 3072, 32]);
        assert_eq!(numbers(8192), [4096, 1024, 3072, 32]);
        assert_eq!(numbers(1024), [512, 128, 384, 4]);
        assert_eq!(numbers(0), [1, 1, 1, 1]);
    }
}
