//! ZooKeeper registries, in the layout of GoFrame.
//!
//! A root node has a folder for each service, and a folder has leaves with the registrations:
//! `/microservices/service-default-default-hello.svc-latest/hello.svc`. The supervisor lists all
//! leaves, and then reads only what an event of a watch concerns, since events carry no data. Each
//! session begins with a list: ZooKeeper cannot resume from a revision. An outage removes no
//! instance.
//!
//! - `supervisor`: the sessions with one server after another, and the kinds of their lists
//! - `follower`: one session: lists, events, and the reads that they require
//! - `reads`: the reads in flight, whose replies arrive in their order
//! - `unreadable`: the nodes that cannot be read
//! - `paths`: where a node is below the root
//! - `connection`, `wire`: ZooKeeper's protocol; `failure`: messages
//! - `parse`: conversion of nodes to [`crate::service`]
//! - `register`: the only code that writes

mod connection;
mod failure;
mod follower;
mod parse;
mod paths;
mod reads;
mod register;
mod supervisor;
mod unreadable;
mod wire;

use std::fmt;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::supervisor::ZooKeeperSupervisor;
use super::attempts::{Attempts, ConnectionTuning, MAX_DURATION};
use super::identify::ServerKind;
use super::session::{self, StoreLink};
use super::{Credential, Feed, Registry, RegistryCommand, Tls};
use crate::service::ListKind;

pub use parse::LEAF_NOT_JSON;
pub use paths::invalid_path;
pub use register::register;

/// The root node that GoFrame uses unless told otherwise.
pub const DEFAULT_ROOT: &str = "/microservices";

/// A ZooKeeper ensemble that can be followed.
#[derive(Clone, Debug)]
pub struct ZooKeeperRegistry {
    settings: Settings,
}

impl ZooKeeperRegistry {
    /// Creates the registry; [`Registry::follow`] makes the first connection.
    pub fn new(settings: Settings) -> Self {
        Self { settings: settings.bounded() }
    }
}

impl Registry for ZooKeeperRegistry {
    async fn follow(
        self,
        first: ListKind,
        feed: Feed,
        commands: mpsc::Receiver<RegistryCommand>,
        stop: CancellationToken,
    ) {
        let link = StoreLink::new(self.settings.attempts(), feed, commands);
        session::follow(ZooKeeperSupervisor::new(self.settings, first, link), stop).await;
    }
}

/// Settings of a ZooKeeper registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The servers as `host:port`, with IPv6 addresses in brackets.
    ///
    /// One server is used at a time.
    pub endpoints: Vec<String>,
    /// The node that has the services' folders, without a slash at its end.
    pub root: String,
    /// The user and the password.
    pub login: Option<DigestLogin>,
    /// TLS settings; `None` for plain connections.
    pub tls: Option<Tls>,
    /// First segments of the keys to follow.
    pub heads: Vec<String>,
    /// Limits, intervals and timeouts.
    pub tuning: ZooKeeperTuning,
}

/// A user of ZooKeeper's scheme `digest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestLogin {
    /// The user.
    pub user: String,
    /// The user's password.
    pub password: Credential,
    /// Where both are configured, for messages about a refusal.
    pub keys: String,
}

impl Settings {
    /// Creates settings for these servers, with default values for all other settings.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            root: DEFAULT_ROOT.to_owned(),
            login: None,
            tls: None,
            heads: super::gsvc::GOFRAME_HEADS.map(str::to_owned).to_vec(),
            tuning: ZooKeeperTuning::default(),
        }
    }

    fn bounded(self) -> Self {
        Self { tuning: self.tuning.bounded(), ..self }
    }

    fn attempts(&self) -> Attempts {
        let Self { endpoints, tls, tuning, .. } = self;
        Attempts::new(ServerKind::ZooKeeper, endpoints, tls.as_ref(), &tuning.connection)
    }

    /// Returns where the login is configured, if there is one.
    fn login_keys(&self) -> Option<&str> {
        self.login.as_ref().map(|login| &*login.keys)
    }
}

impl fmt::Display for Settings {
    /// Formats the registry's URL: `zookeeper://a:2181,b:2181/microservices`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zookeeper://{}{}", self.endpoints.join(","), self.root)
    }
}

/// Limits, intervals and timeouts; the defaults suit real ensembles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZooKeeperTuning {
    /// Timeouts of connections and waits between them.
    pub connection: ConnectionTuning,
    /// Session timeout to ask for; the server has its own limits, by default 4 s and 40 s.
    ///
    /// A third of it is the time between pings on an idle connection, and two thirds are the
    /// longest silence of the server. Nothing in the store depends on a follower's session.
    pub session_timeout: Duration,
    /// Limit on the reads in flight.
    pub max_reads: usize,
    /// Limit on the changes in one update, at least 1.
    pub batch_size: usize,
    /// Time between routine lists, give or take a fifth.
    ///
    /// They find changes without an event, such as those of a leaf whose ACL has changed.
    pub relist_interval: Duration,
    /// Time between attempts to read the nodes that could not be read.
    pub retry_interval: Duration,
    /// Whether to use one-shot watches even if the server has recursive ones.
    pub one_shot_watches: bool,
}

impl Default for ZooKeeperTuning {
    fn default() -> Self {
        // ZooKeeper never answers a connection that it accepts in its first milliseconds.
        let connection = ConnectionTuning {
            dial_timeout: Duration::from_secs(3),
            ..ConnectionTuning::default()
        };
        Self {
            connection,
            session_timeout: Duration::from_secs(10),
            max_reads: 256,
            batch_size: 1_000,
            relist_interval: Duration::from_secs(300),
            retry_interval: Duration::from_secs(5),
            one_shot_watches: false,
        }
    }
}

impl ZooKeeperTuning {
    /// Caps every duration at [`MAX_DURATION`].
    fn bounded(self) -> Self {
        Self {
            connection: self.connection.bounded(),
            session_timeout: self.session_timeout.min(MAX_DURATION),
            relist_interval: self.relist_interval.min(MAX_DURATION),
            retry_interval: self.retry_interval.min(MAX_DURATION),
            ..self
        }
    }
}
