//! Reads the configuration again while the server runs, and applies what has changed.
//!
//! A reload has two steps: everything that may fail is prepared beside the running parts, then the
//! prepared parts take their place. A configuration that does not hold therefore changes nothing.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::ListenError;
use super::admin_port::PreparedPort;
use super::log::LogFilter;
use super::parts::Parts;
use crate::admin::{ConfigChangeView, ReloadRequest, ReloadView, ServerInfo};
use crate::config::{Config, ConfigChange, ConfigError, ConfigSource, Effect, SecretDigests};
use crate::server::PreparedListeners;
use crate::upstream;

/// Reloads the configuration of a server, one reload at a time.
#[derive(Debug)]
pub(super) struct Reloader {
    source: ConfigSource,
    /// The configuration in operation.
    config: Arc<Config>,
    secrets: SecretDigests,
    parts: Parts,
}

/// A configuration that holds, with the parts that are ready to operate with it.
struct PreparedReload {
    config: Config,
    secrets: SecretDigests,
    view: ReloadView,
    log: EnvFilter,
    /// The settings of the forwarder; `None` turns forwarding off.
    upstream: Option<upstream::Settings>,
    admin: PreparedPort,
    listeners: PreparedListeners,
}

/// Reason why a configuration is not put into operation.
#[derive(Debug, thiserror::Error)]
enum ReloadRefusal {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The filter of the log is invalid.
    #[error("log: {0}")]
    Log(#[from] tracing_subscriber::filter::ParseError),
    /// Reading the CA certificates for upstreams failed.
    #[error(transparent)]
    CaFile(#[from] upstream::CaFileError),
    /// Opening a listener failed.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Opening the port of the HTTP interface failed.
    #[error("cannot serve health and metrics at {address}: {error}; choose another admin-listen")]
    AdminPort {
        /// The address.
        address: std::net::SocketAddr,
        /// The error of the system.
        error: std::io::Error,
    },
    /// The task that reads the files panicked.
    #[error("reading the configuration panicked; please report this: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

impl Reloader {
    /// Creates the reloader of a server that runs with `config`, which `source` loaded.
    pub(super) fn new(source: ConfigSource, config: Config, parts: Parts) -> Self {
        let secrets = SecretDigests::default().of(&config);
        Self { source, config: Arc::new(config), secrets, parts }
    }

    /// Serves requests and signals until `stop`.
    ///
    /// Signals that come during a reload lead to one more.
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<ReloadRequest>,
        signals: Arc<Notify>,
        stop: CancellationToken,
    ) {
        loop {
            let request = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = signals.notified() => None,
                request = requests.recv() => match request {
                    Some(request) => Some(request),
                    None => return,
                },
            };
            match request {
                Some(ReloadRequest { check, reply }) => {
                    let result = if check {
                        Box::pin(self.check()).await
                    } else {
                        Box::pin(self.reload()).await
                    };
                    // A client that has gone away needs no reply.
                    let _ = reply.send(result.map_err(|refusal| refusal.to_string()));
                }
                None => drop(Box::pin(self.reload()).await),
            }
        }
    }

    /// Finds out what a reload would change.
    async fn check(&self) -> Result<ReloadView, ReloadRefusal> {
        Ok(self.prepare().await?.view)
    }

    /// Reads the configuration and applies it; reports the result to all who watch.
    async fn reload(&mut self) -> Result<ReloadView, ReloadRefusal> {
        let _notice = self.parts.notifier.reloading();
        let prepared = self.prepare().await;
        self.parts.admin.reloads.note(prepared.is_ok());
        match prepared {
            Ok(prepared) => {
                let view = prepared.view.clone();
                self.commit(prepared).await;
                log_changes(&view);
                Ok(view)
            }
            Err(refusal) => {
                tracing::error!(
                    "the configuration was not reloaded, the server runs on unchanged: {refusal}"
                );
                Err(refusal)
            }
        }
    }

    /// Reads the configuration and prepares everything that may fail; changes nothing.
    async fn prepare(&self) -> Result<PreparedReload, ReloadRefusal> {
        let (source, secrets) = (self.source.clone(), self.secrets.clone());
        let read = move || source.load().map(|config| (secrets.of(&config), config));
        // Reading can block, for example on a network file system.
        let (secrets, config) = tokio::task::spawn_blocking(read).await??;
        let mut changes = self.config.changes_to(&config);
        changes.extend(self.secrets.changes_to(&secrets));
        let view = ReloadView {
            changes: changes.into_iter().map(view_of).collect(),
            warnings: config.warnings.iter().map(ToString::to_string).collect(),
        };
        let config = config.keeping_restart_keys(&self.config);
        let log = LogFilter::parse(&config.log)?;
        let (dns, settings) = (self.parts.dns.clone(), config.server());
        let open = move || dns.prepare(&settings).map_err(ListenError::with_holder);
        // Loads certificates, and looks for the process that uses a port.
        let listeners = tokio::task::spawn_blocking(open).await??;
        let upstream = config.upstream(listeners.addresses());
        if let Some(settings) = &upstream {
            let settings = settings.clone();
            tokio::task::spawn_blocking(move || settings.check()).await??;
        }
        let admin = self.parts.port.prepare(config.admin_listen).await;
        let admin =
            admin.map_err(|(address, error)| ReloadRefusal::AdminPort { address, error })?;
        Ok(PreparedReload { config, secrets, view, log, upstream, admin, listeners })
    }

    /// Puts what was prepared into operation, which cannot fail.
    async fn commit(&mut self, prepared: PreparedReload) {
        let PreparedReload { config, secrets, view: _, log, upstream, admin, listeners } = prepared;
        let dns = &self.parts.dns;
        if config.log != self.config.log {
            self.parts.log.replace(log);
        }
        // Forwarding begins before, and ends after, names are left to it.
        let ends = upstream.is_none();
        if !ends {
            self.parts.forwarder.replace(upstream);
        }
        dns.commit(listeners).await;
        let info = ServerInfo::clone(&self.parts.admin.info.load());
        let listen = dns.addresses();
        self.parts.admin.info.store(Arc::new(ServerInfo {
            listen: listen.clone(),
            tls: dns.tls_addresses(),
            quic: dns.quic_addresses(),
            ..info
        }));
        let config = Arc::new(config);
        // Fails only if the server is stopping.
        let _ = self.parts.pipeline.reconfigure(Arc::clone(&config), listen).await;
        if ends {
            self.parts.forwarder.replace(None);
        }
        self.parts.port.commit(admin, &self.parts.admin);
        (self.config, self.secrets) = (config, secrets);
    }
}

/// Returns a change as the HTTP interface shows it.
fn view_of(change: ConfigChange) -> ConfigChangeView {
    let ConfigChange { path, before, after, source, effect } = change;
    let needs_restart = effect == Effect::NeedsRestart;
    ConfigChangeView { path, before, after, source, needs_restart }
}

/// Logs what a reload has changed.
fn log_changes(view: &ReloadView) {
    for warning in &view.warnings {
        tracing::warn!("{warning}");
    }
    for change in &view.changes {
        if change.needs_restart {
            tracing::warn!("{change}");
        } else {
            tracing::info!("{change}");
        }
    }
    let changes = view.changes.iter().filter(|change| !change.needs_restart).count();
    tracing::info!(changes, "the configuration was reloaded");
}
