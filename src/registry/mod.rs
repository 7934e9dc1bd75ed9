//! Where services come from: one folder for each kind of registry ([`Source`]), with a supervisor that follows its store
//! for ever and sends what it sees down one channel.
//!
//! A registry knows no DNS and keeps no copy of what it read. It never writes to a store except for
//! [`register`](Source::register), by request of a person.

pub mod etcd;
pub mod file;
pub mod gsvc;

mod contents;
mod register;
mod secret;
mod source;

pub use register::{RegisterError, RegisterEvent, Registrant};
pub use secret::{Credential, CredentialError, Secret};
pub use source::{NamedSource, Source};

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::service::{Change, ListKind, RegistryId, RegistryName, Update};

/// A registry that can be followed.
pub trait Registry: Send + 'static {
    /// Follows the store until `stop` is cancelled: lists it, then sends each change as it comes; survives every
    /// failure of the store by itself. Ends soon after `stop`, or when the follower has gone.
    ///
    /// The first list is of kind `first`: `Routine` while the follower knows nothing of this registry, `Reconnect` if it
    /// knows what an earlier call of `follow` told it.
    fn follow(
        self,
        first: ListKind,
        feed: Feed,
        commands: mpsc::Receiver<Command>,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send;
}

/// What a follower may ask of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Which of these leases no longer exist? Answered with [`Change::LeasesGone`] on the feed, soon or, when the store
    /// cannot be asked, never. A registry without leases ignores it.
    AskLeases(Vec<i64>),
}

/// The sending side of the one channel, as handed to a registry.
#[derive(Clone, Debug)]
pub struct Feed {
    registry: RegistryId,
    sender: mpsc::Sender<Update>,
    state: Arc<State>,
}

/// The follower has gone; the registry should end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody follows this registry any more")]
pub struct FollowerGone;

impl Feed {
    /// A feed for the registry of this number, which reports its health in `state`.
    pub fn new(registry: RegistryId, sender: mpsc::Sender<Update>, state: Arc<State>) -> Self {
        Self { registry, sender, state }
    }

    /// Sends changes as one update; waits when the follower is behind. None are not sent.
    ///
    /// # Errors
    /// When the follower has gone.
    pub async fn send(&self, changes: Vec<Change>) -> Result<(), FollowerGone> {
        if changes.is_empty() {
            return Ok(());
        }
        self.sender.send(Update::Registry(self.registry, changes)).await.map_err(|_| FollowerGone)
    }

    /// The registry's own report of its condition.
    pub fn state(&self) -> &State {
        &self.state
    }
}

/// The condition of one registry, written by its supervisor and read by whoever shows it. Shown as
/// the registry's name.
#[derive(Debug)]
pub struct State {
    /// The registry's name.
    pub name: RegistryName,
    /// The registry as a person wrote it, without secrets.
    pub url: String,
    report: Mutex<Report>,
}

/// What a registry reports about itself.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Whether the store is reachable now.
    pub connected: bool,
    /// Whether one list was ever completed.
    pub synced: bool,
    /// The store's revision that everything up to was read; 0 where it counts none.
    pub revision: u64,
    /// When the last change or sign of life came.
    #[serde(serialize_with = "unix_seconds")]
    pub last_event: Option<SystemTime>,
    /// What went wrong last, in words; none while all is well.
    pub error: Option<String>,
    /// Lists completed.
    pub lists: u64,
    /// Connections lost.
    pub disconnects: u64,
}

impl State {
    /// A state with nothing reached yet.
    pub fn new(name: RegistryName, url: String) -> Self {
        Self { name, url, report: Mutex::default() }
    }

    /// A copy of the report.
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the report.
    pub fn update(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// Returns the name of the registry at this place in the configuration.
pub fn name_at(states: &[Arc<State>], place: usize) -> String {
    states.get(place).map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn unix_seconds<S: serde::Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).map(|since| since.as_secs()).serialize(serializer)
}
