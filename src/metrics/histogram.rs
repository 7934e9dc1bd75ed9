//! Histograms of durations.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in seconds; one more bucket is for longer durations.
const BOUNDS: [f64; 15] =
    [1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0];

/// A histogram of durations from 1 µs to 10 s, which any thread updates without a lock.
#[derive(Debug, Default)]
pub struct DurationHistogram {
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

/// The durations that a histogram held at some time.
#[derive(Clone, Debug)]
pub(super) struct Durations {
    /// Sum, in seconds.
    pub(super) sum: f64,
    /// The upper bound of each bucket, and the number of durations in it alone.
    pub(super) buckets: Vec<(f64, u64)>,
}

impl DurationHistogram {
    /// Creates an empty histogram.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one duration.
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Returns the number of durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Returns the current contents; concurrent updates may be missing.
    pub(super) fn durations(&self) -> Durations {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let sum = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed));
        Durations { sum: sum.as_secs_f64(), buckets: bounds.zip(counts).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_in_the_bucket_of_the_next_bound() {
        let histogram = DurationHistogram::new();
        for micros in [0, 1, 2, 10_000_000, 10_000_001, u64::MAX / 1000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let Durations { buckets, .. } = histogram.durations();
        let seen: Vec<_> = buckets.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(seen, [(1e-6, 2), (3e-6, 1), (10.0, 1), (f64::INFINITY, 2)]);
        assert_eq!(histogram.count(), 6);
        let histogram = DurationHistogram::new();
        histogram.observe(Duration::from_millis(1500));
        histogram.observe(Duration::from_millis(500));
        assert!((histogram.durations().sum - 2.0).abs() < 1e-9);
    }
}
