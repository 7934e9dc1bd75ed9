//! The signals that end the server.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// The signals that end a program.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Takes these signals over: from now on they no longer end the process by themselves.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Cancels `stop` at the first SIGTERM or SIGINT. A second one ends a `daemon` at once, and any other program is left
    /// to tidy up. SIGHUP is ignored by a daemon, and stops any other program as its terminal goes.
    pub async fn stop_on(mut self, stop: CancellationToken, daemon: bool) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                _ = self.hang_up.recv() => if daemon {
                    info!("SIGHUP is ignored: a changed configuration is read at the next start");
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
