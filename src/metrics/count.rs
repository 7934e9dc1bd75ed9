//! Plain atomics, written by the loops and read by whoever shows them.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Shares of a [`Counter`]. Threads beyond that many share them, which is right all the same and only a little slower.
const STRIPES: usize = 8;

/// A count that only grows. Kept in shares, one for each thread that counts, and summed when it is read: threads that
/// count at the same time do not wait for each other's cache line.
#[derive(Debug, Default)]
pub struct Counter([Stripe; STRIPES]);

/// A cache line of its own; of two, since processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe(AtomicU64);

impl Counter {
    /// The count now, over all threads. What others count meanwhile may be missing.
    pub fn get(&self) -> u64 {
        self.0.iter().fold(0, |sum, stripe| sum.wrapping_add(stripe.0.load(Ordering::Relaxed)))
    }

    /// Counts one more and returns this thread's share of the count with it, as [`Self::add`] does.
    pub fn increment(&self) -> u64 {
        self.add(1)
    }

    /// Counts `more` and returns this thread's share of the count with them. A share begins at 0 and passes every number
    /// once, so "each time it is a power of two" is seldom, however much is counted; the whole is at least as much.
    pub fn add(&self, more: u64) -> u64 {
        let Stripe(stripe) = &self.0[own_stripe() % STRIPES];
        stripe.fetch_add(more, Ordering::Relaxed).wrapping_add(more)
    }
}

/// The number of this thread's share in every counter: the next one, when it counts for the first time.
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

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// One more; returns the number with it.
    pub fn increment(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// One less.
    pub fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Barrier;

    #[test]
    fn what_many_threads_count_is_summed() {
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
    fn threads_count_apart_from_each_other() {
        // All alive at once; others of the test run may take shares in between, but not all of them each time.
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
        assert!(stripes.len() > 1 && stripes.iter().all(|share| *share < STRIPES), "{stripes:?}");
        assert_eq!(own_stripe(), own_stripe(), "a thread keeps its share");
    }

    #[test]
    fn a_thread_sees_its_share_grow_by_what_it_adds() {
        // A counter of its own: this thread is the only one with this counter.
        let counter = Counter::default();
        assert_eq!([counter.increment(), counter.add(2), counter.increment()], [1, 3, 4]);
        assert_eq!(counter.get(), 4);
    }

    #[test]
    fn shares_are_in_lines_of_their_own() {
        assert_eq!((align_of::<Stripe>(), size_of::<Counter>()), (128, STRIPES * 128));
    }
}
