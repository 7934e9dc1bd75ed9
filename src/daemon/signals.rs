//! Signals that stop the program, or make it read its configuration again.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// What SIGHUP does.
#[derive(Clone, Debug)]
pub enum HangUp {
    /// It stops the program.
    Stop,
    /// It has no effect on a daemon.
    Ignore,
    /// It makes a daemon read its configuration again.
    Reload(Arc<Notify>),
}

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
    /// A second signal ends a daemon at once, and SIGHUP does not stop it. Any other program cleans
    /// up first, and SIGHUP stops it, too: its terminal was closed.
    pub async fn stop_on(mut self, stop: CancellationToken, hang_up: HangUp) {
        let is_daemon = !matches!(hang_up, HangUp::Stop);
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                _ = self.hang_up.recv() => match &hang_up {
                    HangUp::Stop => {}
                    HangUp::Ignore => {
                        info!("ignoring SIGHUP: there is no configuration to read again");
                        continue;
                    }
                    HangUp::Reload(reload) => {
                        info!("reloading the configuration because of SIGHUP");
                        reload.notify_one();
                        continue;
                    }
                },
            }
            if stop.is_cancelled() && is_daemon {
                std::process::exit(1);
            }
            stop.cancel();
        }
    }
}
