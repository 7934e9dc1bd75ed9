//! The queue of changed names, from the thread that publishes them to the bridge.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::service::BridgeChange;

/// The changes of a batch: the last one of each name.
pub(super) type ChangedNames = BTreeMap<Box<str>, BridgeChange>;

/// A queue of changes; adding to it never waits. It is as long as there are names at most.
#[derive(Debug, Default)]
pub struct BridgeRequests {
    changes: Mutex<ChangedNames>,
    changed: Notify,
}

impl BridgeRequests {
    /// Adds changes, in the order in which they happened.
    pub fn update(&self, changes: Vec<BridgeChange>) {
        if !changes.is_empty() {
            self.lock().extend(changes.into_iter().map(|change| (change.name().into(), change)));
            self.changed.notify_one();
        }
    }

    /// Waits for changes and takes all of them.
    pub(super) async fn take(&self) -> ChangedNames {
        loop {
            let notified = self.changed.notified();
            let changes = std::mem::take(&mut *self.lock());
            if !changes.is_empty() {
                return changes;
            }
            notified.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, ChangedNames> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_change_of_a_name_waits() {
        let requests = BridgeRequests::default();
        for _ in 0..1000 {
            let removed = |name: &str| BridgeChange::Removed(name.into());
            requests.update(vec![removed("a"), removed("b")]);
        }
        assert_eq!(requests.lock().len(), 2);
    }
}
