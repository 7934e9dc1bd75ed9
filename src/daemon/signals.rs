//! Signals that stop the program.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Receives the signals that stop a program.
#[derive(Debug)]
pub struct ShutdownSignals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl ShutdownSignals {
    /// Installs the handlers; the signals then no longer end the process by themselves.
    ///
    /// # Errors
    /// If the system does not allow it.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Cancels `stop` at the first SIGTERM or SIGINT.
    ///
    /// A second signal ends a `daemon` at once; a `daemon` ignores SIGHUP. Any other program cleans
    /// up first, and SIGHUP stops it, too: its terminal was closed.
    pub async fn stop_on(mut self, stop: CancellationToken, daemon: bool) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                _ = self.hang_up.recv() => if daemon {
                    info!("ignoring SIGHUP: the configuration is only read at startup");
                    continue;
                },
            }
            if stop.is_cancelled() && daemon {
                std::process::exit(1);
            }
            stop.cancel();
        }
    }
}
