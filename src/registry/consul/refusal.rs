//! Reactions to an agent that refuses connections: fewer waiting queries, and retries.

use std::time::Duration;

use tokio::time::Instant;

use crate::registry::ConnectionTuning;
use crate::registry::backoff::Backoff;

/// Time within which further refusals belong to the same burst.
///
/// Every query that was on its way when the agent had no room is refused at about the same time.
const BURST: Duration = Duration::from_secs(1);

/// The number of services that may have a waiting query.
#[derive(Debug)]
pub(super) struct WaitingLimit {
    /// At least 1, at most `configured`.
    current: usize,
    configured: usize,
    /// Time of the last refusal.
    refused: Option<Instant>,
    /// Time at which the limit was last lowered.
    lowered: Option<Instant>,
}

impl WaitingLimit {
    /// Creates the limit from the configured one; 0 counts as 1.
    pub(super) fn new(configured: usize) -> Self {
        let configured = configured.max(1);
        Self { current: configured, configured, refused: None, lowered: None }
    }

    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// Halves the limit after the agent has refused a connection, once per burst of refusals.
    ///
    /// `waiting` is the number of waiting queries now. Returns whether the limit was lowered.
    pub(super) fn lower(&mut self, waiting: usize, now: Instant) -> bool {
        self.refused = Some(now);
        if self.lowered.is_some_and(|lowered| now.duration_since(lowered) < BURST) {
            return false;
        }
        self.lowered = Some(now);
        // Without waiting queries, others have the connections.
        let used = if waiting == 0 { self.current } else { self.current.min(waiting + 1) };
        self.current = (used / 2).max(1);
        true
    }

    /// Doubles the limit, up to the configured one, if the last refusal is older than `after`.
    pub(super) fn raise(&mut self, after: Duration, now: Instant) {
        if self.refused.is_none_or(|refused| now.duration_since(refused) > after) {
            self.current = (self.current * 2).min(self.configured);
        }
    }
}

/// The attempts at a query that the session depends on, while the agent may have no room.
pub(super) struct Retries {
    backoff: Backoff,
    failed: u32,
}

impl Retries {
    /// Number of attempts in a row that may be refused; with the default backoff about 8 s.
    const MAX: u32 = 8;

    pub(super) fn new(tuning: &ConnectionTuning) -> Self {
        Self { backoff: tuning.backoff(), failed: 0 }
    }

    /// Returns how long to wait before the next attempt; `None` if there were too many.
    pub(super) fn next(&mut self) -> Option<Duration> {
        self.failed += 1;
        (self.failed <= Self::MAX).then(|| self.backoff.next())
    }

    pub(super) fn reset(&mut self) {
        self.failed = 0;
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_refusals_halves_the_limit_once() {
        let mut now = Instant::now();
        let mut limit = WaitingLimit::new(100);
        for waiting in (40..60).rev() {
            limit.lower(waiting, now);
        }
        assert_eq!(limit.current(), 30, "half of the queries that waited");
        now += BURST;
        assert!(limit.lower(29, now) && !limit.lower(29, now));
        assert_eq!(limit.current(), 15);
        now += BURST;
        limit.lower(0, now);
        assert_eq!(limit.current(), 7, "no query waits yet");
        for _ in 0..9 {
            now += BURST;
            limit.lower(0, now);
        }
        assert_eq!(limit.current(), 1);
        limit.raise(BURST, now);
        assert_eq!(limit.current(), 1, "refused just now");
        now += BURST * 2;
        for _ in 0..9 {
            limit.raise(BURST, now);
        }
        assert_eq!(limit.current(), 100);
    }
}
