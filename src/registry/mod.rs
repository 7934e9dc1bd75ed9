//! Registries: the stores from which services are read.
//!
//! Each kind of registry ([`Source`]) has a directory with a supervisor that follows its store
//! forever and sends events to the catalog; static services, which have no store, are a file.
//!
//! A registry knows no DNS and keeps no copy of the store. It writes to a store only in
//! [`register`](Source::register), when a user asks for it.

pub mod consul;
pub mod etcd;
pub mod file;
pub mod gsvc;
pub mod nacos;
pub mod polaris;
pub mod static_services;
#[cfg(feature = "zookeeper")]
pub mod zookeeper;

mod attempts;
mod backoff;
mod failure;
mod http;
mod identify;
mod members;
mod polling;
mod register;
mod secret;
mod service_faults;
mod session;
mod source;
mod store_identity;
#[cfg(test)]
mod test_server;
mod tls;

pub use attempts::ConnectionTuning;
pub use polling::PollingTuning;
pub use register::{RegisterError, RegisterEvent, Registrant};
pub use secret::{Credential, CredentialError, Secret};
pub use source::{NamedSource, Source};
pub use store_identity::StoreIdentity;
pub use tls::Tls;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::service::{Change, ListKind, RegistryId, RegistryName, Update};

/// A registry that can be followed.
pub trait Registry: Send + 'static {
    /// Follows the store until `stop` is cancelled or the feed is closed.
    ///
    /// Sends a list of the store, then each change as it happens. Recovers from every failure of
    /// the store without help.
    ///
    /// `first` is the kind of the first list: [`ListKind::Routine`] if the receiver knows nothing
    /// of this registry yet, [`ListKind::Reconnect`] if it holds data of an earlier call.
    fn follow(
        self,
        first: ListKind,
        feed: Feed,
        commands: mpsc::Receiver<RegistryCommand>,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send;
}

/// A request to a registry that is being followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryCommand {
    /// Check which of these leases no longer exist.
    ///
    /// The reply is a [`Change::LeasesChecked`] on the feed. No reply comes if the store cannot be
    /// reached; the catalog then asks again. A registry that cannot look up its leases replies that
    /// all are gone; one without leases ignores the command.
    CheckLeases(Vec<i64>),
}

/// The sending half of the update channel, for one registry.
#[derive(Clone, Debug)]
pub struct Feed {
    registry: RegistryId,
    sender: mpsc::Sender<Update>,
    state: Arc<RegistryState>,
    /// Closes the feed; never cancelled unless [`Feed::until`] was called.
    closed: CancellationToken,
}

/// Error: the receiver of a feed is gone, so the registry should stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the receiver of this registry's changes is gone")]
pub struct FeedClosed;

impl Feed {
    /// Creates the feed of a registry that reports its health in `state`.
    pub fn new(
        registry: RegistryId,
        sender: mpsc::Sender<Update>,
        state: Arc<RegistryState>,
    ) -> Self {
        Self { registry, sender, state, closed: CancellationToken::new() }
    }

    /// Returns a feed that is closed from the cancellation of `stop` on.
    ///
    /// What a follower sends later would be of a registry that may have another number by then.
    #[must_use]
    pub fn until(self, stop: CancellationToken) -> Self {
        Self { closed: stop, ..self }
    }

    /// Sends changes as one update, or nothing if there are none.
    ///
    /// Waits while the channel is full.
    ///
    /// # Errors
    /// Returns [`FeedClosed`] if the receiver is gone, or the feed was told to close.
    pub async fn send(&self, changes: Vec<Change>) -> Result<(), FeedClosed> {
        if changes.is_empty() {
            return Ok(());
        }
        let room = tokio::select! {
            biased;
            () = self.closed.cancelled() => return Err(FeedClosed),
            room = self.sender.reserve() => room.map_err(|_| FeedClosed)?,
        };
        room.send(Update::Registry(self.registry, changes));
        Ok(())
    }

    /// Returns the state in which the registry reports its health.
    pub fn state(&self) -> &RegistryState {
        &self.state
    }
}

/// The health of one registry, shared by its supervisor and its readers.
///
/// Displays as the registry's name.
#[derive(Clone, Debug)]
pub struct RegistryState {
    /// The registry's name.
    pub name: RegistryName,
    /// The URL as configured, without secrets.
    pub url: String,
    /// Time for which a mass removal is held, for messages.
    pub removal_grace: Duration,
    report: Arc<Mutex<RegistryReport>>,
}

/// Report of a registry's connection to the store.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RegistryReport {
    /// Whether the store is reachable now.
    pub connected: bool,
    /// Whether at least one list was completed.
    pub synced: bool,
    /// Store revision up to which svcdns has read; 0 if the store has no revisions.
    pub revision: u64,
    /// The time of the last change or other message from the store.
    #[serde(serialize_with = "unix_seconds")]
    pub last_event: Option<SystemTime>,
    /// The last failure, until the registry has recovered from it.
    pub error: Option<String>,
    /// Whether the last failure is a refusal, which trying again does not mend.
    ///
    /// For example, the store denies a permission, or is of another kind.
    #[serde(skip)]
    pub refused: bool,
    /// Time when the keys in the last snapshot were current; `None` without a snapshot.
    #[serde(skip)]
    pub snapshot: Option<SystemTime>,
    /// Number of lists completed.
    pub lists: u64,
    /// Time when the last of them was complete.
    #[serde(skip)]
    pub last_list: Option<Instant>,
    /// Number of connections lost.
    pub disconnects: u64,
}

impl RegistryReport {
    /// Notes that a list is complete.
    pub fn note_list(&mut self) {
        self.synced = true;
        self.lists += 1;
        self.last_list = Some(Instant::now());
    }
}

impl RegistryState {
    /// Creates the state of a registry that was never reached.
    pub fn new(name: RegistryName, url: String, removal_grace: Duration) -> Self {
        Self { name, url, removal_grace, report: Arc::default() }
    }

    /// Returns this state with the report of the same registry in a former configuration.
    ///
    /// The registry counts as not connected until its new follower says otherwise.
    #[must_use]
    pub fn continuing(self, former: &Self) -> Self {
        former.update(|report| report.connected = false);
        Self { report: Arc::clone(&former.report), ..self }
    }

    /// Returns a copy of the report.
    pub fn report(&self) -> RegistryReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Updates the report under its lock.
    pub fn update(&self, change: impl FnOnce(&mut RegistryReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl fmt::Display for RegistryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// The states of all registries, in the order of the configuration; shared with readers.
///
/// A reload may replace them all.
#[derive(Clone, Debug)]
pub struct RegistryStates(Arc<ArcSwap<Vec<Arc<RegistryState>>>>);

impl RegistryStates {
    /// Creates the shared list.
    pub fn new(states: Vec<Arc<RegistryState>>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(states)))
    }

    /// Returns the states of the current configuration.
    pub fn load(&self) -> Arc<Vec<Arc<RegistryState>>> {
        self.0.load_full()
    }

    /// Replaces the states by those of another configuration.
    pub fn replace(&self, states: Vec<Arc<RegistryState>>) {
        self.0.store(Arc::new(states));
    }
}

/// Returns the name of the registry at an index of the configuration.
pub fn name_at(states: &[Arc<RegistryState>], index: usize) -> String {
    states.get(index).map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn unix_seconds<S: serde::Serializer>(
    time: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok())
        .map(|since| since.as_secs())
        .serialize(serializer)
}
