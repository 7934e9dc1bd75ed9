//! Changes of checks, for the services without a waiting query.
//!
//! The index of the catalog does not count them: it stays the same when a check becomes critical or
//! passes (Consul 1.20). One waiting query for the checks of all services tells of each change;
//! the polled services are then read again.

use std::time::Duration;

use tokio::time::Instant;

use super::index::{self, IndexStep, Pace};
use crate::registry::backoff::Backoff;

/// The query for the next change of a check.
#[derive(Debug)]
pub(super) struct CheckChanges {
    /// The index of the last answer; 0 if changes may have been missed since.
    index: u64,
    pace: Pace,
    /// Spaces the queries after failures and invalid indexes.
    backoff: Backoff,
    has_failed: bool,
    /// Time until the next query may start; `None` while one is in progress.
    delay: Option<Duration>,
}

impl CheckChanges {
    /// Creates the state before the first query.
    pub(super) fn new(backoff: Backoff) -> Self {
        let (index, pace, has_failed) = (0, Pace::new(), false);
        Self { index, pace, backoff, has_failed, delay: Some(Duration::ZERO) }
    }

    /// Returns the index and the delay of the next query, unless one is in progress.
    pub(super) fn next_query(&mut self) -> Option<(u64, Duration)> {
        self.delay.take().map(|delay| (self.index, delay))
    }

    /// Records that no query waits, so that changes are missed.
    pub(super) fn pause(&mut self) {
        self.index = 0;
    }

    /// Takes the index of an answer; returns whether a check may have changed.
    pub(super) fn answered(&mut self, index: u64, now: Instant) -> bool {
        let step = index::step(self.index, index);
        (self.index, self.has_failed) = (index, false);
        self.delay = Some(if step == IndexStep::Invalid {
            self.backoff.next()
        } else {
            self.backoff.reset();
            self.pace.next(step, now)
        });
        step != IndexStep::Same
    }

    /// Records a failure, after which a check may have changed.
    ///
    /// Returns whether the previous attempt also failed.
    pub(super) fn failed(&mut self) -> bool {
        self.index = 0;
        self.delay = Some(self.backoff.next());
        std::mem::replace(&mut self.has_failed, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_may_have_changed_unless_the_index_is_the_same() {
        let (now, max) = (Instant::now(), Duration::from_secs(1));
        let mut changes = CheckChanges::new(Backoff::new(max, max));
        assert_eq!(changes.next_query(), Some((0, Duration::ZERO)));
        assert_eq!(changes.next_query(), None, "one is in progress");
        for (index, may_have_changed) in [(7, true), (7, false), (8, true), (3, true), (0, true)] {
            assert_eq!(changes.answered(index, now), may_have_changed, "{index}");
            assert_eq!(changes.next_query().unwrap().0, index);
        }
        assert!(changes.answered(9, now));
        // Changes may be missed after a failure, and while no query waits.
        assert!(!changes.failed());
        assert_eq!(changes.next_query().unwrap().0, 0);
        assert!(changes.failed(), "failed again");
        assert!(changes.answered(9, now));
        changes.pause();
        assert!(changes.answered(9, now));
        assert!(!changes.failed(), "an answer in between");
    }
}
