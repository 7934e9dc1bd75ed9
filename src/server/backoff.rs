//! Pauses between errors that repeat.

use std::time::Duration;

/// A pause that doubles with each error in a row, so that one that stays costs no core.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    errors: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_secs(1);

    /// The pause after one more error.
    pub(super) fn next(&mut self) -> Duration {
        let pause = Self::FIRST.saturating_mul(1 << self.errors.min(10)).min(Self::LONGEST);
        self.errors = self.errors.saturating_add(1);
        pause
    }

    /// Forgets the errors; says whether there were any.
    pub(super) fn reset(&mut self) -> bool {
        std::mem::take(&mut self.errors) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_second_and_begin_anew() {
        let mut backoff = Backoff::default();
        assert!(!backoff.reset());
        let pauses: Vec<u128> = (0..12).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000]);
        assert!(backoff.reset());
        assert_eq!(backoff.next(), Backoff::FIRST);
    }
}
