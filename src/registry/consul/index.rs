//! The rules for Consul's indexes, and the pace of queries.
//!
//! An index numbers the changes of the store. A blocking query names the last index that its
//! client has seen, and Consul answers once there is a newer one, or after a time (Consul's
//! documentation, "Blocking Queries").

use std::time::Duration;

use tokio::time::Instant;

/// How the index of an answer compares with the index before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IndexStep {
    /// The index is the same: nothing has changed.
    Same,
    /// The index has grown.
    Forward,
    /// The index is 0, missing or lower: the store was restored, or Consul misbehaves.
    Back,
}

/// Compares the index of an answer with the last one; 0 means none.
pub(super) fn step(last: u64, index: u64) -> IndexStep {
    if index == 0 || index < last {
        IndexStep::Back
    } else if index == last {
        IndexStep::Same
    } else {
        IndexStep::Forward
    }
}

/// Returns the index to wait for after an answer; 0 means not to wait.
pub(super) fn next(last: u64, index: u64) -> u64 {
    if step(last, index) == IndexStep::Back { 0 } else { index }
}

/// Limits the rate of a query that Consul answers without waiting.
///
/// A service may change many times a second, and some versions of Consul answer at once although
/// nothing has changed. A token bucket lets bursts pass without delay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Queries without a change that may start at once, up to [`Pace::BURST`].
    tokens: f64,
    updated: Option<Instant>,
}

impl Pace {
    /// Queries of a burst.
    const BURST: f64 = 10.0;
    /// Lasting rate of queries per second, for answers without a change.
    const RATE: f64 = 2.0;

    /// Creates a pace with a full burst.
    pub(super) fn new() -> Self {
        Self { tokens: Self::BURST, updated: None }
    }

    /// Takes tokens for the previous answer; returns how long to wait before the query.
    ///
    /// An answer without a change costs five times as much as one with a change.
    pub(super) fn next(&mut self, step: IndexStep, now: Instant) -> Duration {
        let cost = if step == IndexStep::Forward { 0.2 } else { 1.0 };
        let since = self.updated.map_or(Duration::ZERO, |updated| now.duration_since(updated));
        self.tokens = (self.tokens + since.as_secs_f64() * Self::RATE).min(Self::BURST) - cost;
        self.updated = Some(now);
        Duration::from_secs_f64((-self.tokens / Self::RATE).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_goes_back_or_is_missing_starts_again_from_zero() {
        for (last, index, expected, wait_for) in [
            (0, 7, IndexStep::Forward, 7),
            (7, 7, IndexStep::Same, 7),
            (7, 8, IndexStep::Forward, 8),
            (7, 6, IndexStep::Back, 0),
            (7, 0, IndexStep::Back, 0),
            (0, 0, IndexStep::Back, 0),
            (u64::MAX, 1, IndexStep::Back, 0),
        ] {
            assert_eq!((step(last, index), next(last, index)), (expected, wait_for));
        }
    }

    #[test]
    fn bursts_pass_at_once_and_lasting_floods_are_slowed() {
        for (step, seconds) in [(IndexStep::Same, 50.0), (IndexStep::Forward, 10.0)] {
            let mut pace = Pace::new();
            let mut now = Instant::now();
            for _ in 0..10 {
                assert_eq!(pace.next(step, now), Duration::ZERO);
            }
            while pace.next(step, now) == Duration::ZERO {}
            let start = now;
            for _ in 0..100 {
                now += pace.next(step, now);
            }
            let elapsed = (now - start).as_secs_f64();
            assert!((elapsed - seconds).abs() <= 1.0, "100 queries in {elapsed} s");
            now += Duration::from_secs(60);
            assert_eq!(pace.next(step, now), Duration::ZERO);
        }
    }
}
