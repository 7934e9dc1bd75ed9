//! Counters and gauges: relaxed atomics that any thread can update cheaply.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Number of stripes of a [`Counter`]; additional threads share them.
const STRIPES: usize = 8;

/// A count that only grows.
///
/// Each thread counts in a stripe of its own, and a reader sums the stripes. Threads that count at
/// the same time therefore do not compete for a cache line.
#[derive(Debug, Default)]
pub struct Counter([Stripe; STRIPES]);

/// A stripe, aligned to two cache lines because processors prefetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe(AtomicU64);

impl Counter {
    /// Returns the sum over all threads; concurrent updates may be missing.
    pub fn get(&self) -> u64 {
        self.0.iter().fold(0, |sum, stripe| sum.wrapping_add(stripe.0.load(Ordering::Relaxed)))
    }

    /// Adds one and returns the new count of this thread's stripe.
    pub fn increment(&self) -> u64 {
        self.add(1)
    }

    /// Adds `more` and returns the new count of this thread's stripe.
    ///
    /// A stripe starts at 0 and, if only incremented, takes every value once. Callers can therefore
    /// act at powers of two, which become rare as the count grows. The total is never below the
    /// returned value.
    pub fn add(&self, more: u64) -> u64 {
        let Stripe(stripe) = &self.0[own_stripe() % STRIPES];
        stripe.fetch_add(more, Ordering::Relaxed).wrapping_add(more)
    }
}

/// Returns the index of this thread's stripe, assigned at the thread's first use.
fn own_stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    OWN.with(|own| {
        if own.get() == usize::MAX {
            own.set(NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
        }
        own.get()
    })
}

/// A number that increases and decreases.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Returns the current number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds one and returns the new number.
    pub fn increment(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// Subtracts one.
    pub fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Adds one until the guard is dropped.
    #[must_use]
    pub fn hold(&self) -> GaugeGuard<'_> {
        self.increment();
        GaugeGuard(self)
    }
}

/// One of the things that a gauge counts; see [`Gauge::hold`].
#[derive(Debug)]
pub struct GaugeGuard<'g>(&'g Gauge);

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        self.0.decrement();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Barrier;

    #[test]
    fn counts_of_many_threads_are_summed() {
        let (counter, threads) = (Counter::default(), 3 * STRIPES as u64);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let counter = &counter;
                scope.spawn(move || {
                    for _ in 0..1000 {
                        counter.increment();
                    }
                    counter.add(thread);
                });
            }
        });
        assert_eq!(counter.get(), 1000 * threads + (0..threads).sum::<u64>());
    }

    #[test]
    fn threads_count_in_different_stripes() {
        // All threads are alive at the same time. Other tests may take some stripes meanwhile, but
        // not every second one.
        let barrier = Barrier::new(STRIPES);
        let stripes: HashSet<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..STRIPES)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        own_stripe()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(stripes.len() > 1 && stripes.iter().all(|stripe| *stripe < STRIPES), "{stripes:?}");
        assert_eq!(own_stripe(), own_stripe(), "a thread keeps its stripe");
    }

    #[test]
    fn adding_returns_the_count_of_the_calling_threads_stripe() {
        // No other thread uses this counter.
        let counter = Counter::default();
        assert_eq!([counter.increment(), counter.add(2), counter.increment()], [1, 3, 4]);
        assert_eq!(counter.get(), 4);
    }

    #[test]
    fn stripes_share_no_cache_line() {
        assert_eq!((align_of::<Stripe>(), size_of::<Counter>()), (128, STRIPES * 128));
    }
}
