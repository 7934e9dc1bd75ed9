//! The end of a run before its time: no destructor runs when a signal ends a program, and the servers would go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

/// Whether this program was told to end.
static TOLD: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT and SIGTERM end the run where it looks at [`go_on`].
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
            TOLD.store(true, Ordering::Relaxed);
        });
    });
}

/// Panics when the program was told to end, which ends all servers and removes their files.
pub(crate) fn go_on() {
    assert!(!TOLD.load(Ordering::Relaxed), "ended by a signal");
}
