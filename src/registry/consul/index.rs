//! The rules for Consul's indexes, and the pace of queries.
//!
//! An index numbers the changes of the store. A blocking query names the last index that its
//! client has seen, and Consul answers once there is a newer one, or after a time (Consul's
//! documentation, "Blocking Queries").

use std::time::Duration;

use tokio::time::Instant;

use crate::registry::backoff::Backoff;

/// How the index of an answer compares with the index before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IndexStep {
    /// The index is the same: nothing has changed.
    Same,
    /// The index has grown.
    Forward,
    /// The index is lower: the store was restored, or this server lags behind another.
    Back,
    /// The index is 0 or malformed, as some versions of Consul send it: it says nothing.
    Invalid,
}

/// Compares the index of an answer with the last one; 0 means none.
pub(super) fn step(last: u64, index: u64) -> IndexStep {
    if index == 0 {
        IndexStep::Invalid
    } else if index < last {
        IndexStep::Back
    } else if index == last {
        IndexStep::Same
    } else {
        IndexStep::Forward
    }
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

/// Limits the rate of the rounds that begin because an index has gone back.
///
/// A store is rarely restored twice; an index that goes back time and again says nothing.
#[derive(Debug)]
pub(super) struct RoundPace {
    backoff: Backoff,
    /// The maximum wait, and the time without such a round after which waits are short again.
    max: Duration,
    /// Time of the last such round.
    last: Option<Instant>,
}

impl RoundPace {
    /// Creates a pace whose waits double from `min` to `max`.
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { backoff: Backoff::new(min, max), max, last: None }
    }

    /// Returns when the next round may begin.
    pub(super) fn next(&mut self, now: Instant) -> Instant {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) > self.max) {
            self.backoff.reset();
        }
        let next = now + self.backoff.next();
        self.last = Some(next);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_compared_with_the_last_one() {
        for (last, index, expected) in [
            (0, 7, IndexStep::Forward),
            (7, 7, IndexStep::Same),
            (7, 8, IndexStep::Forward),
            (7, 6, IndexStep::Back),
            (7, 0, IndexStep::Invalid),
            (0, 0, IndexStep::Invalid),
            (u64::MAX, 1, IndexStep::Back),
        ] {
            assert_eq!(step(last, index), expected);
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
