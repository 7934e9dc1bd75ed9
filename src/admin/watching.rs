//! How many live changes a connection carries: one that carries any may live on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the live changes that a connection carries.
#[derive(Clone, Debug, Default)]
pub(super) struct Watching(Arc<AtomicUsize>);

/// One stream of live changes, while it lasts.
#[derive(Debug)]
pub(super) struct WatchingGuard(Arc<AtomicUsize>);

impl Watching {
    /// Counts one more, until the guard is dropped.
    pub(super) fn begin(&self) -> WatchingGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        WatchingGuard(Arc::clone(&self.0))
    }

    /// Whether the connection carries any.
    pub(super) fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for WatchingGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
