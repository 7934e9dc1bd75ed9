//! Counters of the server.

use std::time::Instant;

use super::StreamKind;
use crate::metrics::{Counter, DurationHistogram, Gauge};

/// Counters since the server bound its sockets.
///
/// The counters contain no names and no client addresses.
#[derive(Debug, Default)]
pub struct Counters {
    /// Datagrams from sources with access, handed to the responder.
    pub udp_queries: Counter,
    /// Responses handed to the kernel, including REFUSED.
    pub udp_responses: Counter,
    /// Datagrams from sources without access.
    pub udp_refused: Counter,
    /// Datagrams dropped without parsing: from port 0 or a listening address.
    pub udp_implausible: Counter,
    /// Responses dropped because the send buffer stayed full.
    pub udp_dropped: Counter,
    /// Queries answered with SERVFAIL because too many responses were deferred.
    pub udp_overloads: Counter,
    /// Deferred responses that missed the response timeout.
    pub udp_response_timeouts: Counter,
    /// Responses that the kernel refused to send (no route, firewall, …).
    pub udp_send_errors: Counter,
    /// Receive errors; the worker continues after each.
    pub udp_receive_errors: Counter,
    /// Responses that are deferred now.
    pub udp_deferred: Gauge,
    /// Times until responses were ready.
    pub udp_times: ResponseTimes,
    /// Counters of plain TCP.
    pub tcp: StreamCounters,
    /// Counters of DNS over TLS.
    pub tls: StreamCounters,
    /// Counters of DNS over QUIC.
    pub quic: StreamCounters,
    /// QUIC connection attempts that got a Retry packet (RFC 9000 section 8.1.2).
    pub quic_retries: Counter,
    /// Caught panics; each one is a bug.
    pub panics: Counter,
}

/// Counters of one kind of connection.
#[derive(Debug, Default)]
pub struct StreamCounters {
    /// Messages from sources with access, handed to the responder.
    pub queries: Counter,
    /// Responses handed to the kernel, including REFUSED.
    pub responses: Counter,
    /// Connections from sources without access.
    pub refused: Counter,
    /// Open connections, including those in the handshake.
    pub open: Gauge,
    /// Accepted connections.
    pub connections: Counter,
    /// Connections closed at once because a limit was reached and all others were in use.
    pub rejected: Counter,
    /// Idle connections closed to make room for others.
    pub evicted_idle: Counter,
    /// Connections closed to make room for others while they waited for their client.
    pub evicted_stalled: Counter,
    /// Handshakes that failed or timed out.
    pub failed_handshakes: Counter,
    /// Connections closed because they were idle, which is a normal end.
    pub idle_timeouts: Counter,
    /// Connections closed because a message did not arrive completely in time.
    pub message_timeouts: Counter,
    /// Connections closed because the client did not read its responses.
    pub write_timeouts: Counter,
    /// Deferred responses that missed the response timeout.
    pub response_timeouts: Counter,
    /// Connections ended by a reset, another error, or an empty or truncated message.
    pub broken: Counter,
    /// Accept errors; the listener continues after each.
    pub accept_errors: Counter,
    /// Responses that are deferred now.
    pub deferred: Gauge,
    /// Times until responses were ready.
    pub times: ResponseTimes,
}

/// Times from the receipt of a query until its response was ready to be sent.
#[derive(Debug, Default)]
pub struct ResponseTimes {
    /// Responses that were available at once; one of 64 is timed.
    pub immediate: DurationHistogram,
    /// All deferred responses.
    pub deferred: DurationHistogram,
}

impl StreamCounters {
    /// Counts a query; returns the current time if its response is to be timed.
    pub(super) fn count_query(&self) -> Option<Instant> {
        (self.queries.increment() % SAMPLED_EVERY == 1).then(Instant::now)
    }
}

/// Interval of the samples: queries of a connection, or batches of a UDP worker.
///
/// Reading the clock for every query would cost the fast path more than all other counts.
pub(super) const SAMPLED_EVERY: u64 = 64;

impl Counters {
    /// Returns the counters of `kind`.
    pub(super) fn of(&self, kind: StreamKind) -> &StreamCounters {
        match kind {
            StreamKind::Tcp => &self.tcp,
            StreamKind::Tls => &self.tls,
            StreamKind::Quic => &self.quic,
        }
    }
}
