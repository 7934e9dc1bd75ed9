//! How long to wait before the next attempt.

use std::time::Duration;

use super::part_of;

/// Waits that double from a shortest to a longest, each drawn at random so that many followers of one store do not come
/// back at the same moment.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    /// The wait before the last draw; none while nothing has failed.
    last: Option<Duration>,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), last: None }
    }

    /// The next wait: at most the shortest for the first, then half to all of a duration that doubles.
    pub(super) fn next(&mut self) -> Duration {
        let Some(last) = self.last else {
            self.last = Some(self.min);
            return part_of(self.min);
        };
        self.last = Some(last.saturating_mul(2).min(self.max));
        last / 2 + part_of(last / 2)
    }

    /// Begins at the shortest wait again.
    pub(super) fn reset(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_again() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(min, max);
        for _ in 0..2 {
            assert!(backoff.next() <= min);
            for whole in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
                let whole = Duration::from_millis(whole);
                let wait = backoff.next();
                assert!(wait >= whole / 2 && wait <= whole, "{wait:?} of {whole:?}");
            }
            backoff.reset();
        }
    }
}
