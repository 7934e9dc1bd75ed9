//! `svcdns serve`.

use std::io::IsTerminal;
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

use super::Place;
use super::arguments::Serve;
use super::server::Server;

pub(super) async fn run(place: &Place, command: Serve) -> anyhow::Result<ExitCode> {
    let config = place.configure(command.file.config.as_deref(), command.flags.0)?;
    log(&config.log)?;
    let stop = CancellationToken::new();
    let signals = Signals::new()?;
    let server = Server::start(&config, stop.clone()).await?;
    for address in &server.addresses {
        info!(%address, "answering over UDP and TCP");
    }
    for address in &server.tls {
        info!(%address, "answering over TLS");
    }
    for address in &server.quic {
        info!(%address, "answering over QUIC");
    }
    for registry in &config.registries {
        info!(%registry, "following");
    }
    let zones: Vec<&str> = config.zones.iter().map(crate::name::Zone::text).collect();
    info!(zones = zones.join(" "), state_dir = %server.state_dir.display(), "started");
    let ending = tokio::spawn(signals.stop_on(stop, true));
    let ended = server.finish().await;
    ending.abort();
    ended?;
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Logs to standard error from now on.
pub(super) fn log(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(filter)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would complain to standard error, and panic where that is what nobody reads any more.
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// The signals that end a program.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// From now on, these signals no longer end the process by themselves.
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Cancels `stop` at the first SIGTERM or SIGINT. A second one ends a `daemon` at once, and any other program is left
    /// to tidy up. SIGHUP is ignored by a daemon, and stops any other program as its terminal goes.
    pub(super) async fn stop_on(mut self, stop: CancellationToken, daemon: bool) {
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
