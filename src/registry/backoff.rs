//! Exponential backoff with jitter.

use std::time::Duration;

/// Computes the waits between attempts.
///
/// A wait doubles from a minimum to a maximum, with jitter to keep the many followers of one store
/// from reconnecting at the same time.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    /// The previous wait before jitter; `None` while there was no failure.
    last: Option<Duration>,
}

impl Backoff {
    /// Creates a backoff; a `max` below `min` is raised to it.
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), last: None }
    }

    /// Returns the next wait.
    ///
    /// The first is random up to the minimum, later ones between half and all of their step.
    pub(super) fn next(&mut self) -> Duration {
        let Some(last) = self.last else {
            self.last = Some(self.min);
            return random_up_to(self.min);
        };
        self.last = Some(last.saturating_mul(2).min(self.max));
        last / 2 + random_up_to(last / 2)
    }

    /// Resets the wait to the minimum.
    pub(super) fn reset(&mut self) {
        self.last = None;
    }
}

/// Returns a random duration of at most `max`.
pub(super) fn random_up_to(max: Duration) -> Duration {
    max.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_start_over_after_a_reset() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(min, max);
        for _ in 0..2 {
            assert!(backoff.next() <= min);
            for step in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
                let step = Duration::from_millis(step);
                let wait = backoff.next();
                assert!(wait >= step / 2 && wait <= step, "{wait:?} of {step:?}");
            }
            backoff.reset();
        }
    }
}
