//! What the server counts.

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
    /// Messages handed to the responder, refused ones not among them.
    pub tcp_queries: Counter,
    /// Answers handed to the kernel over TCP, refusals among them.
    pub tcp_answers: Counter,
    /// Connections from a source without access.
    pub tcp_refused: Counter,
    /// Connections that are open now.
    pub tcp_open: Gauge,
    /// Connections admitted.
    pub tcp_connections: Counter,
    /// Connections closed at once because a limit was reached.
    pub tcp_rejected: Counter,
    /// Connections closed because nothing was asked for a while: the ordinary end of many.
    pub tcp_idle_timeouts: Counter,
    /// Connections closed because a message that had begun did not arrive in full.
    pub tcp_message_timeouts: Counter,
    /// Connections closed because the client did not take its answers.
    pub tcp_write_timeouts: Counter,
    /// Answers over TCP given up because they took too long to make.
    pub tcp_answer_timeouts: Counter,
    /// Connections ended by a reset, another error, or a message that cannot be one (empty, cut short).
    pub tcp_broken: Counter,
    /// Errors reported while accepting; the loop goes on after each.
    pub tcp_accept_errors: Counter,
    /// Panics contained. Each one is a bug of ours.
    pub panics: Counter,
}
