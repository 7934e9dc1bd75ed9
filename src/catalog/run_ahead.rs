//! Runs an iterator in a second thread, ahead of its consumer.

use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Limit on the items that wait to be taken.
const MAX_WAITING_ITEMS: usize = 8;

/// Runs an iterator in a second thread, and passes its items to `take`.
///
/// Passing an item on takes some µs, so each should be a batch. If no thread can be started, the
/// iterator runs in this one.
pub(super) fn run_ahead<I, R>(
    items: I,
    take: impl FnOnce(&mut dyn Iterator<Item = I::Item>) -> R,
) -> R
where
    I: Iterator<Item: Send> + Send,
{
    let items = Mutex::new(items);
    let lock = || items.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(MAX_WAITING_ITEMS);
        let run = move || {
            // An error means that the rest is not wanted.
            let _ = lock().try_for_each(|item| sender.send(item));
        };
        match thread::Builder::new().name("ahead".to_owned()).spawn_scoped(scope, run) {
            Ok(_) => take(&mut receiver.into_iter()),
            Err(_) => take(&mut *lock()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_items_arrive_in_order() {
        for count in [0, 1, 10_000] {
            let all: Vec<usize> = run_ahead(0..count, |items| items.collect());
            assert!(all.into_iter().eq(0..count), "{count}");
        }
    }

    #[test]
    fn the_iterator_ends_when_no_more_items_are_taken() {
        let first: Vec<u64> = run_ahead(0.., |items| items.take(3).collect());
        assert_eq!(first, [0, 1, 2]);
    }
}
