//! `svcdns serve`: runs the server until a signal stops it.

use std::process::ExitCode;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::ServerLocation;
use super::arguments::ServeArgs;
use crate::daemon::{HangUp, Launch, Log, Notifier, Predecessor, Server, ShutdownSignals};
use crate::inherited::InheritedSockets;

pub(super) async fn run(
    location: &ServerLocation,
    command: ServeArgs,
    inherited: InheritedSockets,
) -> anyhow::Result<ExitCode> {
    let source = location.source(command.file.config.as_deref(), command.flags.0);
    let config = source.load()?;
    let log = Log::start(&config.log)?;
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let stop = CancellationToken::new();
    let signals = ShutdownSignals::new()?;
    // A signal during the start also stops the server, so that none takes over afterwards.
    let reloads = Arc::<Notify>::default();
    let ending = tokio::spawn(signals.stop_on(stop.clone(), HangUp::Reload(Arc::clone(&reloads))));
    let mut launch =
        Launch { notifier: Notifier::from_environment(), inherited, ..Launch::default() };
    if command.take_over {
        anyhow::ensure!(
            launch.inherited.sockets.is_empty(),
            "--take-over is for servers that no service manager starts: systemd passes this one \
             its sockets, so a restart loses no query"
        );
        let (predecessor, inherited) = Predecessor::find(&config).await?;
        launch = Launch { inherited, predecessor: Some(predecessor), ..launch };
    }
    let mut server = Server::start(&config, &log, launch, stop).await?;
    for address in &server.addresses {
        info!(%address, "listening over UDP and TCP");
    }
    for address in &server.tls {
        info!(%address, "listening over TLS");
    }
    for address in &server.quic {
        info!(%address, "listening over QUIC");
    }
    for registry in &config.registries {
        info!(registry = %registry.name, url = %registry.source, "following");
    }
    let zones: Vec<&str> = config.zones.iter().map(crate::name::Zone::text).collect();
    let state_dir = server.state_dir.as_ref().map(|path| tracing::field::display(path.display()));
    info!(
        zones = zones.join(" "),
        runtime_dir = %server.runtime_dir.display(),
        state_dir,
        "started"
    );
    server.reload_from(source, config, reloads);
    let ended = server.finish().await;
    ending.abort();
    if let Some(process) = ended? {
        info!(process, "stopped: another server has taken over");
    } else {
        info!("stopped");
    }
    Ok(ExitCode::SUCCESS)
}
