//! What the server counts.

use super::StreamKind;
use crate::metrics::{Counter, Gauge};

/// Everything the server counts since it was bound. A count never says what was asked or by whom.
#[derive(Debug, Default)]
pub struct Counters {
    /// Datagrams handed to the responder, refused ones not among them.
    pub udp_queries: Counter,
    /// Answers handed to the kernel over UDP, refusals among them.
    pub udp_answers: Counter,
    /// Datagrams from a source without access.
    pub udp_refused: Counter,
    /// Datagrams dropped unread: from port 0 or from one of our own addresses.
    pub udp_implausible: Counter,
    /// Answers dropped because the socket's send buffer stayed full.
    pub udp_dropped: Counter,
    /// Answers that would have to be waited for, and were SERVFAIL because too many others were waited for.
    pub udp_overloads: Counter,
    /// Answers over UDP given up because they took too long to make.
    pub udp_answer_timeouts: Counter,
    /// Answers the kernel would not send (no route, firewall …).
    pub udp_send_errors: Counter,
    /// Errors reported while receiving; the loop goes on after each.
    pub udp_receive_errors: Counter,
    /// Plain TCP.
    pub tcp: StreamCounters,
    /// DNS over TLS.
    pub tls: StreamCounters,
    /// DNS over QUIC.
    pub quic: StreamCounters,
    /// Attempts at a connection over QUIC that had to show first that they come from where they say.
    pub quic_retries: Counter,
    /// Panics contained. Each one is a bug of ours.
    pub panics: Counter,
}

/// What is counted of one kind of connection.
#[derive(Debug, Default)]
pub struct StreamCounters {
    /// Messages handed to the responder, refused ones not among them.
    pub queries: Counter,
    /// Answers handed to the kernel, refusals among them.
    pub answers: Counter,
    /// Connections from a source without access.
    pub refused: Counter,
    /// Connections that are open now, those included that are still agreeing on their encryption.
    pub open: Gauge,
    /// Connections admitted.
    pub connections: Counter,
    /// Connections closed at once because a limit was reached.
    pub rejected: Counter,
    /// Connections whose encryption was not agreed on: in time, or at all.
    pub failed_handshakes: Counter,
    /// Connections closed because nothing was asked for a while: the ordinary end of many.
    pub idle_timeouts: Counter,
    /// Connections closed because a message that had begun did not arrive in full.
    pub message_timeouts: Counter,
    /// Connections closed because the client did not take its answers.
    pub write_timeouts: Counter,
    /// Answers given up because they took too long to make.
    pub answer_timeouts: Counter,
    /// Connections ended by a reset, another error, or a message that cannot be one (empty, cut short).
    pub broken: Counter,
    /// Errors reported while accepting; the loop goes on after each.
    pub accept_errors: Counter,
}

impl Counters {
    /// What is counted of connections of this kind.
    pub(super) fn of(&self, kind: StreamKind) -> &StreamCounters {
        match kind {
            StreamKind::Tcp => &self.tcp,
            StreamKind::Tls => &self.tls,
            StreamKind::Quic => &self.quic,
        }
    }
}
