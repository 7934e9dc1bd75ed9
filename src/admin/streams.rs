//! Count of the open change streams of a connection.
//!
//! A connection that carries a stream may live longer than others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the open change streams of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct StreamCount(Arc<AtomicUsize>);

/// Guard of one open change stream, which counts until the guard is dropped.
#[derive(Debug)]
pub(super) struct StreamGuard(Arc<AtomicUsize>);

impl StreamCount {
    /// Counts a stream until the returned guard is dropped.
    pub(super) fn begin(&self) -> StreamGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        StreamGuard(Arc::clone(&self.0))
    }

    /// Returns whether any stream is open.
    pub(super) fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
