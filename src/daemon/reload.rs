//! Reads the configuration again while the server runs, and applies what has changed.
//!
//! A reload has two steps: everything that may fail is prepared beside the running parts, then the
//! prepared parts take their place. A configuration that does not hold therefore changes nothing.

use std::error::Error;
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
use crate::server::{BindError, PreparedListeners};
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
    /// A part of the server cannot work with a value.
    #[error("{place}: {reason}")]
    Unusable {
        /// Source of the value, and its key.
        place: String,
        /// Description of the error, with its causes.
        reason: String,
    },
    /// The task that reads the files panicked.
    #[error("reading the configuration panicked; please report this: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

impl ReloadRefusal {
    /// Creates the refusal of the value of a key.
    fn of(config: &Config, key: &str, error: &dyn Error) -> Self {
        let (mut reason, mut cause) = (error.to_string(), error.source());
        while let Some(error) = cause {
            reason = format!("{reason}: {error}");
            cause = error.source();
        }
        Self::Unusable { place: config.place_of(key), reason }
    }
}

/// Returns the key of the value because of which a socket cannot be opened.
fn key_of(error: &ListenError, config: &Config) -> &'static str {
    let address = match error {
        ListenError::Taken { taken, .. } | ListenError::Bind(BindError::InUse(taken)) => {
            taken.address
        }
        ListenError::Bind(
            BindError::NotPermitted { address, .. }
            | BindError::NoSuchAddress { address }
            | BindError::System { address, .. },
        ) => *address,
        ListenError::Bind(BindError::Certificate(_)) => return "tls.cert-file",
        ListenError::Bind(BindError::Settings(_)) => return "listen",
    };
    if config.encrypted.tls.contains(&address) {
        "tls.listen"
    } else if config.encrypted.quic.contains(&address) {
        "tls.quic-listen"
    } else {
        "listen"
    }
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
        let refusal = |key: &str, error: &dyn Error| ReloadRefusal::of(&config, key, error);
        let log = LogFilter::parse(&config.log).map_err(|error| refusal("log", &error))?;
        let (dns, settings) = (self.parts.dns.clone(), config.server());
        let open = move || dns.prepare(&settings).map_err(ListenError::with_holder);
        // Loads certificates, and looks for the process that uses a port.
        let listeners = tokio::task::spawn_blocking(open).await?;
        let listeners = listeners.map_err(|error| refusal(key_of(&error, &config), &error))?;
        let upstream = config.upstream(listeners.addresses());
        if let Some(settings) = &upstream {
            let settings = settings.clone();
            let checked = tokio::task::spawn_blocking(move || settings.check()).await?;
            checked.map_err(|error| refusal("upstream-ca-file", &error))?;
        }
        let admin = match self.parts.port.prepare(config.admin_listen).await {
            Ok(admin) => admin,
            // As at the start: a port that could not be opened then prevents no other change.
            Err((address, error)) if config.admin_listen == self.config.admin_listen => {
                tracing::warn!(%address, %error, "the HTTP interface still has no port");
                PreparedPort::Unchanged
            }
            Err((_, error)) => return Err(refusal("admin-listen", &error)),
        };
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
