//! etcd registries.
//!
//! The supervisor lists every configured head at one revision and watches it from the next. The
//! client library never reopens anything itself, so the supervisor does: it picks a member,
//! connects, lists or resumes, watches, and starts over after every failure. An outage removes
//! no instance.
//!
//! - `supervisor`: the state machine; it alone knows up to which revision each head was read
//! - `connection`: a client of one member
//! - `list` and `watch`: the readers of a store; `stride`: the key range of one page of a list
//! - `leases`: which leases still exist
//! - `change`: conversion of etcd's keys and events to [`crate::service`]
//! - `register`: the only code that writes

mod change;
mod connection;
mod failure;
mod leases;
mod list;
mod register;
mod stride;
mod supervisor;
mod watch;

use std::fmt;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::supervisor::EtcdSupervisor;
use super::attempts::{Attempts, MAX_DURATION};
use super::gsvc::GOFRAME_HEADS;
use super::identify::ServerKind;
use super::session::{self, StoreLink};
use super::{ConnectionTuning, Credential, Feed, Registry, RegistryCommand, Tls};
use crate::service::ListKind;

pub use register::register;

/// An etcd cluster that can be followed.
#[derive(Clone, Debug)]
pub struct EtcdRegistry {
    settings: Settings,
}

impl EtcdRegistry {
    /// Creates the registry; [`Registry::follow`] makes the first connection.
    pub fn new(settings: Settings) -> Self {
        Self { settings: settings.bounded() }
    }
}

impl Registry for EtcdRegistry {
    async fn follow(
        self,
        first: ListKind,
        feed: Feed,
        commands: mpsc::Receiver<RegistryCommand>,
        stop: CancellationToken,
    ) {
        let link = StoreLink::new(self.settings.attempts(), feed, commands);
        session::follow(EtcdSupervisor::new(self.settings, first, link), stop).await;
    }
}

/// Settings of an etcd registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cluster members as `host:port`, with IPv6 addresses in brackets.
    ///
    /// One member is used at a time.
    pub endpoints: Vec<String>,
    /// The user to log in as; requires [`Settings::password`].
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<Credential>,
    /// Where user and password are configured, for messages about a refused login.
    pub login_keys: Option<String>,
    /// TLS settings; `None` for plain connections.
    pub tls: Option<Tls>,
    /// First segments of the keys to follow; [`GOFRAME_HEADS`] if empty.
    pub heads: Vec<String>,
    /// Page sizes, intervals and timeouts.
    pub tuning: EtcdTuning,
}

impl Settings {
    /// Creates settings for these members, with default values for all other settings.
    pub fn new(endpoints: Vec<String>) -> Self {
        let heads = GOFRAME_HEADS.map(str::to_owned).to_vec();
        let tuning = EtcdTuning::default();
        Self {
            endpoints,
            username: None,
            password: None,
            login_keys: None,
            tls: None,
            heads,
            tuning,
        }
    }

    fn bounded(self) -> Self {
        Self { tuning: self.tuning.bounded(), ..self }
    }

    fn attempts(&self) -> Attempts {
        let Self { endpoints, tls, tuning, .. } = self;
        Attempts::new(ServerKind::Etcd, endpoints, tls.as_ref(), &tuning.connection)
    }
}

impl fmt::Display for Settings {
    /// Formats the registry's URL: `etcd://a:2379,b:2379`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}", self.endpoints.join(","))
    }
}

/// Page sizes, intervals and timeouts; the defaults suit real clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTuning {
    /// Number of keys on the first page of a list.
    ///
    /// The target of later pages is 4 MiB, with at most four times as many keys. For a very large
    /// list it is a sixteenth of all keys, up to 16 MiB. A page that exceeds 64 MiB is requested
    /// again in parts.
    pub page_size: u32,
    /// Limit on the keys in one update, at least 1.
    ///
    /// Smaller than a page because parsed keys take more memory.
    pub batch_size: usize,
    /// Timeouts and waits between attempts.
    pub connection: ConnectionTuning,
    /// Time between pings on an idle connection.
    ///
    /// etcd closes connections that are pinged more often than every 5 s.
    pub keepalive_interval: Duration,
    /// Maximum wait for the response to a ping.
    pub keepalive_timeout: Duration,
    /// Silence on a watch before the supervisor requests a progress notification.
    pub progress_interval: Duration,
    /// Longest further silence on a watch after that request.
    pub progress_deadline: Duration,
    /// Time between routine lists, give or take a fifth.
    ///
    /// The lists find events that the watch missed: some versions of etcd lose events (etcd#17610,
    /// etcd#19179).
    pub relist_interval: Duration,
    /// Maximum time until a list verifies a resumed watch; the actual time is random.
    ///
    /// A store that was restored from a backup and has since grown past our revision looks like
    /// one that was never restored.
    pub verify_within: Duration,
}

impl Default for EtcdTuning {
    fn default() -> Self {
        Self {
            page_size: 5_000,
            batch_size: 1_000,
            connection: ConnectionTuning::default(),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(4),
            progress_interval: Duration::from_secs(10),
            progress_deadline: Duration::from_secs(20),
            relist_interval: Duration::from_secs(300),
            verify_within: Duration::from_secs(30),
        }
    }
}

impl EtcdTuning {
    /// Caps every duration at [`MAX_DURATION`].
    fn bounded(self) -> Self {
        Self {
            connection: self.connection.bounded(),
            keepalive_interval: self.keepalive_interval.min(MAX_DURATION),
            keepalive_timeout: self.keepalive_timeout.min(MAX_DURATION),
            progress_interval: self.progress_interval.min(MAX_DURATION),
            progress_deadline: self.progress_deadline.min(MAX_DURATION),
            relist_interval: self.relist_interval.min(MAX_DURATION),
            verify_within: self.verify_within.min(MAX_DURATION),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_capped_to_avoid_overflow() {
        let tuning = EtcdTuning {
            relist_interval: Duration::MAX,
            connection: ConnectionTuning { backoff_max: Duration::MAX, ..Default::default() },
            ..EtcdTuning::default()
        }
        .bounded();
        let capped = (tuning.relist_interval, tuning.connection.backoff_max);
        assert_eq!(capped, (MAX_DURATION, MAX_DURATION));
        assert_eq!(EtcdTuning::default().bounded(), EtcdTuning::default());
    }
}
