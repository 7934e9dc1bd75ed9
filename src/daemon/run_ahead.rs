//! Iterators that run in a thread of their own, ahead of whoever takes their items.

use std::sync::mpsc::sync_channel;
use std::thread;

/// Number of items that are passed on together.
const BATCH_ITEMS: usize = 1024;

/// Limit on the batches that wait to be taken.
const MAX_WAITING_BATCHES: usize = 8;

/// Runs an iterator in a second thread, and passes its items to `take`.
///
/// If no thread can be started, the iterator runs in this one.
pub(super) fn run_ahead<I, R>(
    items: impl Fn() -> I,
    take: impl FnOnce(&mut dyn Iterator<Item = I::Item>) -> R,
) -> R
where
    I: Iterator<Item: Send> + Send,
{
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(MAX_WAITING_BATCHES);
        // Asked again after its end, when a batch was not full.
        let mut ahead = items().fuse();
        let run = move || {
            loop {
                let batch: Vec<_> = ahead.by_ref().take(BATCH_ITEMS).collect();
                // An error means that the rest is not wanted.
                if batch.is_empty() || sender.send(batch).is_err() {
                    return;
                }
            }
        };
        match thread::Builder::new().name("ahead".to_owned()).spawn_scoped(scope, run) {
            Ok(_) => take(&mut receiver.into_iter().flatten()),
            Err(_) => take(&mut items()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_items_arrive_in_order() {
        for count in [0, 1, BATCH_ITEMS, 100_000] {
            let all: Vec<usize> = run_ahead(|| 0..count, |items| items.collect());
            assert!(all.into_iter().eq(0..count), "{count}");
        }
    }

    #[test]
    fn an_iterator_that_has_ended_is_not_asked_again() {
        let mut items = [Some(1), None, Some(2)].into_iter();
        let items = std::iter::from_fn(move || items.next().flatten());
        let all: Vec<u64> = run_ahead(|| items.clone(), |items| items.collect());
        assert_eq!(all, [1]);
    }

    #[test]
    fn the_iterator_ends_when_no_more_items_are_taken() {
        let first: Vec<u64> = run_ahead(|| 0.., |items| items.take(3).collect());
        assert_eq!(first, [0, 1, 2]);
    }
}
