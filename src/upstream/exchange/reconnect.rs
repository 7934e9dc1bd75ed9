//! Decides whether a query is sent again after its connection has ended.
//!
//! An upstream may close a connection at any time, with queries in flight (RFC 7766 section 6.2.4):
//! some do so after each answer, some while they restart. The query is then sent on a new
//! connection, until its deadline passes or the upstream turns out to close every connection
//! without answering.

use std::time::Duration;

/// Pauses before the next connection, by the number of consecutive unanswered ones.
///
/// There is no pause after the first, because idle connections usually end this way. The last pause
/// is repeated.
const PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
];

/// Lost connections after which a query gets its own connection.
///
/// An upstream that answers one query for each connection would otherwise answer all queries in
/// flight one after the other.
const MAX_SHARED_LOSSES: usize = 2;

/// Limit on connections to one upstream that carry a single query.
pub(super) const MAX_EXCLUSIVE_CONNECTIONS: usize = 16;

/// Limit on consecutive lost connections without any answer of the upstream.
///
/// At this limit, the upstream counts as unreachable.
const MAX_SILENT_LOSSES: usize = 5;

/// Which queries were answered while a query waited on a connection that it lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Answered {
    /// No query, on any connection to the upstream.
    Nobody,
    /// A query on another connection.
    Elsewhere,
    /// A query on the same connection.
    Here,
}

impl Answered {
    /// Compares numbers of responses before and after a query.
    ///
    /// Each pair has the number on the query's connection and on all connections.
    pub(super) fn between(before: [usize; 2], after: [usize; 2]) -> Self {
        if after[0] != before[0] {
            Self::Here
        } else if after[1] != before[1] {
            Self::Elsewhere
        } else {
            Self::Nobody
        }
    }
}

/// The connections that one query has lost so far.
#[derive(Debug, Default)]
pub(super) struct LostConnections {
    all: usize,
    /// Consecutive lost connections that answered no query.
    unanswered: usize,
    /// Consecutive lost connections during which the upstream answered no query.
    silent: usize,
}

impl LostConnections {
    /// Records a lost connection; returns the pause before the next, `None` to give up.
    pub(super) fn record(&mut self, answered: Answered) -> Option<Duration> {
        self.all += 1;
        self.unanswered = if answered == Answered::Here { 0 } else { self.unanswered + 1 };
        self.silent = if answered == Answered::Nobody { self.silent + 1 } else { 0 };
        if self.silent >= MAX_SILENT_LOSSES {
            return None;
        }
        let pause = self.unanswered.checked_sub(1).map(|index| index.min(PAUSES.len() - 1));
        Some(pause.map_or(Duration::ZERO, |index| PAUSES[index]))
    }

    /// Returns whether the query should get its own connection next.
    pub(super) fn need_exclusive(&self) -> bool {
        self.all >= MAX_SHARED_LOSSES
    }
}

/// Reason why a connection could not be opened.
#[derive(Debug)]
pub(super) struct ConnectError {
    pub(super) reason: String,
    /// Whether the upstream accepted the connection and then closed it.
    pub(super) closed: bool,
}

impl From<String> for ConnectError {
    fn from(reason: String) -> Self {
        Self { reason, closed: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_on_lost_connections_are_repeated_while_any_is_answered() {
        let mut lost = LostConnections::default();
        assert!(!lost.need_exclusive());
        for _ in 0..1000 {
            assert_eq!(lost.record(Answered::Here), Some(Duration::ZERO));
        }
        assert!(lost.need_exclusive());
        for _ in 0..1000 {
            assert!(lost.record(Answered::Elsewhere).is_some());
        }
        assert_eq!(lost.record(Answered::Elsewhere), Some(PAUSES[3]), "it alone is not answered");
        assert_eq!(lost.record(Answered::Here), Some(Duration::ZERO));
        let pauses: Vec<_> = std::iter::from_fn(|| lost.record(Answered::Nobody)).collect();
        assert_eq!(pauses, PAUSES);
        let together: Duration = PAUSES.into_iter().sum();
        assert!(together < Duration::from_secs(1), "clients wait for the failure");
    }
}
