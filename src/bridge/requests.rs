//! The queue of changed names, from the thread that publishes them to the bridge.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::service::BridgeChange;

/// A queue of changes; adding to it never waits.
#[derive(Debug, Default)]
pub struct BridgeRequests {
    changes: Mutex<Vec<BridgeChange>>,
    changed: Notify,
}

impl BridgeRequests {
    /// Adds changes, in the order in which they happened.
    pub fn update(&self, changes: Vec<BridgeChange>) {
        if !changes.is_empty() {
            self.changes.lock().unwrap_or_else(PoisonError::into_inner).extend(changes);
            self.changed.notify_one();
        }
    }

    /// Waits for changes and takes all of them.
    pub(super) async fn take(&self) -> Vec<BridgeChange> {
        loop {
            let notified = self.changed.notified();
            let changes =
                std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner));
            if !changes.is_empty() {
                return changes;
            }
            notified.await;
        }
    }
}
