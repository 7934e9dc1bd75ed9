//! Holds that an operator ends by hand: `svcdns release`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::requester::{NotPermitted, Privilege, Requester};
use crate::catalog::{Hold, HoldView, Released};
use crate::registry::{RegistryStates, name_at};
use crate::service::{MAX_REGISTRIES, RegistryId, RegistrySet, Release, Update, WallClock};

/// The right to end holds.
const RELEASE: Privilege = Privilege { command: "release", deed: "end a hold" };

/// Sends requests to end holds to the publisher, and waits for the results.
#[derive(Debug)]
pub(super) struct Releases {
    registries: RegistryStates,
    updates: mpsc::Sender<Update>,
    waiting: Mutex<WaitingReleases>,
}

/// The requests that wait for their result.
#[derive(Debug, Default)]
struct WaitingReleases {
    last_ticket: u64,
    replies: HashMap<u64, oneshot::Sender<Vec<Hold>>>,
}

/// A hold that ended by hand.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReleasedView {
    /// Index of the registry in the configuration, from 0.
    pub registry: usize,
    /// Name of the registry.
    pub registry_name: String,
    /// The hold as it was before.
    #[serde(flatten)]
    pub hold: HoldView,
}

/// Error: a request to end holds is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReleaseError {
    /// The sender has no right.
    #[error(transparent)]
    NotPermitted(#[from] NotPermitted),
    /// The server follows no registry of this name.
    #[error("no registry is named {name:?}; this server follows {known}")]
    UnknownRegistry {
        /// The requested name.
        name: String,
        /// The names of all registries.
        known: String,
    },
    /// The publisher has ended.
    #[error("the server is stopping")]
    Stopping,
}

impl ReleaseError {
    /// Returns the status code of the response.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::NotPermitted(_) => StatusCode::FORBIDDEN,
            Self::UnknownRegistry { .. } => StatusCode::NOT_FOUND,
            Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Releases {
    /// Creates the requests of a server with these registries.
    pub(super) fn new(registries: RegistryStates, updates: mpsc::Sender<Update>) -> Self {
        Self { registries, updates, waiting: Mutex::default() }
    }

    /// Ends the holds of a registry, or of all, and returns them once that is published.
    ///
    /// # Errors
    /// If the sender has no right, or the registry is unknown.
    pub(super) async fn release(
        &self,
        requester: Requester,
        name: Option<&str>,
    ) -> Result<Vec<ReleasedView>, ReleaseError> {
        let user = requester.authorize(RELEASE)?;
        let states = self.registries.load();
        let named = states.iter().zip(RegistryId::first(MAX_REGISTRIES));
        let named = named.filter(|(state, _)| name.is_none_or(|name| state.name.as_str() == name));
        let registries: RegistrySet = named.map(|(_, registry)| registry).collect();
        if let (Some(name), true) = (name, registries.is_empty()) {
            let known: Vec<&str> = states.iter().map(|state| state.name.as_str()).collect();
            return Err(ReleaseError::UnknownRegistry {
                name: name.to_owned(),
                known: known.join(", "),
            });
        }
        let (reply, result) = oneshot::channel();
        let ticket = self.wait_for(reply);
        let update = Update::Release(Release { ticket, registries });
        self.updates.send(update).await.map_err(|_| ReleaseError::Stopping)?;
        let holds = result.await.map_err(|_| ReleaseError::Stopping)?;
        for Hold { registry, cause, keys, .. } in &holds {
            let registry = name_at(&states, registry.index());
            tracing::warn!(%registry, keys, cause = cause.code(), user, "a hold was ended by hand");
        }
        let clock = WallClock::now();
        let view = |hold: &Hold| ReleasedView {
            registry: hold.registry.index(),
            registry_name: name_at(&states, hold.registry.index()),
            hold: hold.view(&clock),
        };
        Ok(holds.iter().map(view).collect())
    }

    /// Hands the published results to their requests.
    pub(super) fn complete(&self, released: Vec<Released>) {
        if released.is_empty() {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for Released { ticket, holds } in released {
            if let Some(reply) = waiting.replies.remove(&ticket) {
                // A client that has gone away needs no reply.
                let _ = reply.send(holds);
            }
        }
    }

    /// Adds a request that waits for its result; returns its number.
    fn wait_for(&self, reply: oneshot::Sender<Vec<Hold>>) -> u64 {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.last_ticket += 1;
        let ticket = waiting.last_ticket;
        waiting.replies.insert(ticket, reply);
        ticket
    }
}
