//! Exponential backoff for repeated socket errors.

use std::time::Duration;

/// A pause that doubles with each consecutive error.
///
/// It limits the CPU time that a lasting error costs.
#[derive(Debug, Default)]
pub(super) struct ErrorBackoff {
    errors: u32,
}

impl ErrorBackoff {
    /// Pause after the first error.
    const INITIAL: Duration = Duration::from_millis(1);
    /// Maximum pause.
    const MAX: Duration = Duration::from_secs(1);

    /// Returns the pause after another error.
    pub(super) fn next(&mut self) -> Duration {
        let pause = Self::INITIAL.saturating_mul(1 << self.errors.min(10)).min(Self::MAX);
        self.errors = self.errors.saturating_add(1);
        pause
    }

    /// Resets the backoff; returns whether there were errors.
    pub(super) fn reset(&mut self) -> bool {
        std::mem::take(&mut self.errors) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_second_until_reset() {
        let mut backoff = ErrorBackoff::default();
        assert!(!backoff.reset());
        let pauses: Vec<u128> = (0..12).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000]);
        assert!(backoff.reset());
        assert_eq!(backoff.next(), ErrorBackoff::INITIAL);
    }
}
