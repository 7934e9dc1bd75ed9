//! Time of a connection's last activity.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time of the last activity, shared by a connection's reader and writer.
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
        let now = self.elapsed();
        self.last.store(now, Ordering::Relaxed);
        now
    }

    /// Returns the time since the last activity.
    pub(super) fn since(&self) -> Duration {
        Duration::from_millis(self.elapsed().saturating_sub(self.last.load(Ordering::Relaxed)))
    }

    /// Returns milliseconds since `start`.
    fn elapsed(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
