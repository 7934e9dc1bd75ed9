//! Requests to read the configuration again: `svcdns reload`, and what `svcdns check` asks.

use std::fmt;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::requester::{NotPermitted, Privilege, Requester};

/// Limit on requests that wait for the reload in progress.
const MAX_WAITING_RELOADS: usize = 8;

/// The right to read the configuration again.
const RELOAD: Privilege = Privilege { command: "reload", deed: "reload the configuration" };

/// A request to read the configuration again.
#[derive(Debug)]
pub struct ReloadRequest {
    /// Whether to find out what would change, and to change nothing.
    pub check: bool,
    /// Receives what has changed, or why nothing has.
    pub reply: oneshot::Sender<Result<ReloadView, String>>,
}

/// Passes requests on to the task that reloads the configuration.
#[derive(Debug)]
pub(super) struct ReloadRequests(mpsc::Sender<ReloadRequest>);

/// The result of a reload.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReloadView {
    /// The differences to the configuration before.
    pub changes: Vec<ConfigChangeView>,
    /// Problems that do not keep the server from running.
    pub warnings: Vec<String>,
}

/// A difference between two configurations.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConfigChangeView {
    /// Path of the key: `ttl`, `registry.main.url`, `alias.www`.
    pub path: String,
    /// The old value as the file writes it; `None` if it was not set.
    pub before: Option<String>,
    /// The new value as the file writes it; `None` if it is no longer set.
    pub after: Option<String>,
    /// Source of the new value: the place in the file, a variable, a flag or `default`.
    pub source: String,
    /// Whether the server keeps the old value until it is started again.
    pub needs_restart: bool,
}

impl fmt::Display for ConfigChangeView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, before, after, source, needs_restart } = self;
        let [before, after] = [before, after].map(|value| value.as_deref().unwrap_or("not set"));
        if *needs_restart {
            write!(f, "{path}: needs a restart, stays {before}, then {after} ({source})")
        } else {
            write!(f, "{path}: {before} → {after} ({source})")
        }
    }
}

/// Error: the configuration was not read again, or does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReloadError {
    /// The sender has no right.
    #[error(transparent)]
    NotPermitted(#[from] NotPermitted),
    /// The new configuration cannot be used.
    #[error("{0}")]
    Refused(String),
    /// The server is stopping, or has no configuration, as in `svcdns demo`.
    #[error("this server does not reload its configuration, or is stopping")]
    Unavailable,
}

impl ReloadError {
    /// Returns the status code of the response.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::NotPermitted(_) => StatusCode::FORBIDDEN,
            Self::Refused(_) => StatusCode::CONFLICT,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl ReloadRequests {
    /// Creates the requests of a server, and their receiver.
    pub(super) fn new() -> (Self, mpsc::Receiver<ReloadRequest>) {
        let (sender, requests) = mpsc::channel(MAX_WAITING_RELOADS);
        (Self(sender), requests)
    }

    /// Reads the configuration again; with `check`, only finds out what would change.
    ///
    /// # Errors
    /// If the sender has no right, or the configuration does not hold.
    pub(super) async fn reload(
        &self,
        requester: Requester,
        check: bool,
    ) -> Result<ReloadView, ReloadError> {
        let user = requester.authorize(RELOAD)?;
        if !check {
            tracing::info!(user, "reloading the configuration");
        }
        let (reply, result) = oneshot::channel();
        let sent = self.0.send(ReloadRequest { check, reply }).await;
        sent.map_err(|_| ReloadError::Unavailable)?;
        result.await.map_err(|_| ReloadError::Unavailable)?.map_err(ReloadError::Refused)
    }
}
