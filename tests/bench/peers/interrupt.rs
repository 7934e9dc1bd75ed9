//! Ends an interrupted run by unwinding, so that destructors stop the servers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

/// Whether SIGINT or SIGTERM has arrived.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes SIGINT and SIGTERM end the run at its next [`check`].
pub(crate) fn watch() {
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let [mut interrupt, mut terminate] = [SignalKind::interrupt(), SignalKind::terminate()]
                .map(|kind| signal(kind).unwrap());
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            INTERRUPTED.store(true, Ordering::Relaxed);
        });
    });
}

/// Panics after SIGINT or SIGTERM.
///
/// Unwinding stops all servers and removes their files.
pub(crate) fn check() {
    assert!(!INTERRUPTED.load(Ordering::Relaxed), "ended by a signal");
}
