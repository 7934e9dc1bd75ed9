//! Consul registries.
//!
//! The supervisor reads the names of all services, then the instances of each with one query, and
//! follows both with blocking queries: Consul answers such a query once there is a newer index
//! than the query's. A limited number of services has a waiting query; the others are read again
//! once the index of the catalog, or of all checks, shows that something has changed. An outage
//! removes no instance.
//!
//! - `supervisor`: the sessions with one agent after another, and the rounds over all services
//! - `schedule`: which services have a waiting query, and which are read next
//! - `check_changes`: the query for changes of checks
//! - `refusal`: fewer waiting queries and retries, if the agent refuses connections
//! - `index`: the rules for Consul's indexes, and the pace of queries
//! - `client`: requests; `failure`: messages
//! - `parse`: conversion of Consul's answers to [`crate::service`]
//! - `register`: the only code that writes

mod check_changes;
mod client;
mod failure;
mod index;
mod parse;
mod refusal;
mod register;
mod schedule;
mod supervisor;

use std::fmt;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::supervisor::ConsulSupervisor;
use super::attempts::Attempts;
use super::identify::ServerKind;
use super::session::{self, StoreLink};
use super::{ConnectionTuning, Credential, Feed, Registry, RegistryCommand, Tls};
use crate::service::ListKind;

pub use parse::{ENTRY_NOT_JSON, NO_ADDRESS, NO_PORT};
pub use register::register;

/// Default limit on waiting queries.
///
/// Consul accepts 200 connections from one client address by default. GoFrame programs on the same
/// host need some of them for their heartbeats.
pub const DEFAULT_MAX_WAITING: usize = 100;

/// A Consul datacenter that can be followed.
#[derive(Clone, Debug)]
pub struct ConsulRegistry {
    settings: Settings,
}

impl ConsulRegistry {
    /// Creates the registry; [`Registry::follow`] makes the first connection.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }
}

impl Registry for ConsulRegistry {
    async fn follow(
        self,
        first: ListKind,
        feed: Feed,
        commands: mpsc::Receiver<RegistryCommand>,
        stop: CancellationToken,
    ) {
        let link = StoreLink::new(self.settings.attempts(), feed, commands);
        session::follow(ConsulSupervisor::new(self.settings, first, link), stop).await;
    }
}

/// Settings of a Consul registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The agents' HTTP interfaces as `host:port`, with IPv6 addresses in brackets.
    ///
    /// One agent is used at a time.
    pub endpoints: Vec<String>,
    /// The ACL token.
    pub token: Option<Credential>,
    /// Where the token is configured, for messages about a refusal.
    pub token_keys: Option<String>,
    /// The datacenter to read; `None` for the agent's own.
    pub datacenter: Option<String>,
    /// The namespace to read, of Consul Enterprise; `None` for the token's.
    pub namespace: Option<String>,
    /// Which servers may answer.
    pub reads: Reads,
    /// Limit on waiting queries for services; at least 1.
    pub max_waiting: usize,
    /// TLS settings; `None` for plain connections.
    pub tls: Option<Tls>,
    /// Limits, intervals and timeouts.
    pub tuning: ConsulTuning,
}

impl Settings {
    /// Creates settings for these agents, with default values for all other settings.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            token: None,
            token_keys: None,
            datacenter: None,
            namespace: None,
            reads: Reads::Default,
            max_waiting: DEFAULT_MAX_WAITING,
            tls: None,
            tuning: ConsulTuning::default(),
        }
    }

    fn attempts(&self) -> Attempts {
        let Self { endpoints, tls, tuning, .. } = self;
        Attempts::new(ServerKind::Consul, endpoints, tls.as_ref(), &tuning.connection)
    }
}

impl fmt::Display for Settings {
    /// Formats the registry's URL: `consul://a:8500,b:8500`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "consul+https" } else { "consul" };
        write!(f, "{scheme}://{}", self.endpoints.join(","))
    }
}

/// The consistency of reads: which of Consul's servers may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Reads {
    /// The leader, which almost always has the latest data.
    #[default]
    Default,
    /// Any server, with data that may lag behind.
    Stale,
    /// The leader, after it has asked a majority of the servers.
    Consistent,
}

impl Reads {
    /// All values, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Default, Self::Stale, Self::Consistent];

    /// Returns the name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Stale => "stale",
            Self::Consistent => "consistent",
        }
    }
}

/// Limits, intervals and timeouts; the defaults suit real clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsulTuning {
    /// Limit on concurrent queries that do not wait.
    pub max_reads: usize,
    /// Timeouts and waits between attempts.
    pub connection: ConnectionTuning,
    /// Time for which Consul lets a blocking query wait; Consul adds up to a sixteenth.
    ///
    /// At its end Consul answers although nothing has changed, so this is also the interval at
    /// which each service is verified.
    pub wait: Duration,
    /// Time between checks whether the agent answers and its cluster has a leader.
    pub heartbeat_interval: Duration,
    /// Maximum wait for the answer to such a check.
    pub heartbeat_timeout: Duration,
    /// Shortest time between two readings of all services without a waiting query.
    pub poll_interval: Duration,
}

impl Default for ConsulTuning {
    fn default() -> Self {
        Self {
            max_reads: 8,
            connection: ConnectionTuning::default(),
            wait: Duration::from_secs(300),
            heartbeat_interval: Duration::from_secs(5),
            heartbeat_timeout: Duration::from_secs(5),
            poll_interval: Duration::from_secs(5),
        }
    }
}
