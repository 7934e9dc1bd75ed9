//! Time of the last activity of a connection or a thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time of the last activity, for any number of threads.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    /// Milliseconds since `start`.
    last: AtomicU64,
}

impl Activity {
    /// Starts the clock.
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Records activity now; returns the milliseconds since the start.
    pub(super) fn touch(&self) -> u64 {
        self.touch_at(Instant::now())
    }

    /// Records activity at a time; returns the milliseconds from the start until then.
    pub(super) fn touch_at(&self, now: Instant) -> u64 {
        let now = self.at(now);
        self.last.store(now, Ordering::Relaxed);
        now
    }

    /// Returns the time of the last activity, in milliseconds since the start.
    #[cfg(test)]
    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// Returns the time since the last activity.
    pub(super) fn since(&self) -> Duration {
        let now = self.at(Instant::now());
        Duration::from_millis(now.saturating_sub(self.last.load(Ordering::Relaxed)))
    }

    /// Returns the milliseconds from `start` until `now`.
    fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }
}
