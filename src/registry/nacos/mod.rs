//! Nacos registries.
//!
//! The names of all services and the instances of each are polled (`super::polling`): Nacos can
//! push changes only through its gRPC protocol, one subscription a service. An unchanged answer
//! goes no further than its digest.
//!
//! Nacos keeps the instances of running programs in memory only. A server that was restarted
//! answers with empty or partial lists until the programs have registered again, and an unknown
//! service looks like one that has lost its last instance. The catalog therefore holds
//! all removals after an outage, and those of an empty list at other times.
//!
//! - `poll`: the queries of polling
//! - `client`: HTTP and the interfaces of Nacos's versions; `login`: access tokens; `failure`:
//!   messages
//! - `parse`: conversion of Nacos's answers to [`crate::service`]
//! - `register`: the only code that writes

mod client;
mod failure;
mod login;
mod parse;
mod poll;
mod register;

use std::fmt;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::client::NacosClient;
use self::poll::NacosPoller;
use super::attempts::Attempts;
use super::failure::Failure;
use super::identify::ServerKind;
use super::polling::{self, PolledStore, PollingTuning};
use super::{ConnectionTuning, Credential, Feed, Registry, RegistryCommand, Tls};
use crate::service::ListKind;

pub use register::register;

/// Nacos's default group, which GoFrame uses.
pub const DEFAULT_GROUP: &str = "DEFAULT_GROUP";

/// A Nacos namespace and group that can be followed.
#[derive(Clone, Debug)]
pub struct NacosRegistry {
    settings: Settings,
}

impl NacosRegistry {
    /// Creates the registry; [`Registry::follow`] makes the first connection.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }
}

impl Registry for NacosRegistry {
    async fn follow(
        self,
        first: ListKind,
        feed: Feed,
        commands: mpsc::Receiver<RegistryCommand>,
        stop: CancellationToken,
    ) {
        polling::follow(self, first, feed, commands, stop).await;
    }
}

impl PolledStore for NacosRegistry {
    type Client = NacosPoller;

    async fn connect(&self, endpoint: &str) -> Result<NacosPoller, Failure> {
        let client = NacosClient::new(&self.settings, endpoint).await?;
        Ok(NacosPoller::new(client, &self.settings.clusters))
    }

    fn attempts(&self) -> Attempts {
        self.settings.attempts()
    }

    fn tuning(&self) -> (&PollingTuning, &ConnectionTuning) {
        (&self.settings.tuning.polling, &self.settings.tuning.connection)
    }
}

/// Settings of a Nacos registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The servers' HTTP interfaces as `host:port`, with IPv6 addresses in brackets.
    ///
    /// One server is used at a time.
    pub endpoints: Vec<String>,
    /// The user to log in as; `None` for no login.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<Credential>,
    /// Where user and password are configured, for messages about a refusal.
    pub login_keys: Option<String>,
    /// The id of the Nacos namespace; `None` for `public`.
    pub namespace: Option<String>,
    /// The group.
    pub group: String,
    /// The clusters whose instances are served; empty for all.
    pub clusters: Vec<String>,
    /// TLS settings; `None` for plain connections.
    pub tls: Option<Tls>,
    /// Limits, intervals and timeouts.
    pub tuning: NacosTuning,
}

impl Settings {
    /// Creates settings for these servers, with default values for all other settings.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            username: None,
            password: None,
            login_keys: None,
            namespace: None,
            group: DEFAULT_GROUP.to_owned(),
            clusters: Vec::new(),
            tls: None,
            tuning: NacosTuning::default(),
        }
    }

    fn attempts(&self) -> Attempts {
        let Self { endpoints, tls, tuning, .. } = self;
        Attempts::new(ServerKind::Nacos, endpoints, tls.as_ref(), &tuning.connection)
    }
}

impl fmt::Display for Settings {
    /// Formats the registry's URL: `nacos://a:8848,b:8848`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "nacos+https" } else { "nacos" };
        write!(f, "{scheme}://{}", self.endpoints.join(","))
    }
}

/// Limits, intervals and timeouts; the defaults suit real servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NacosTuning {
    /// Timeouts of requests, and waits between attempts.
    pub connection: ConnectionTuning,
    /// Intervals and limits of polling.
    pub polling: PollingTuning,
    /// Time between two heartbeats of a registration.
    pub heartbeat_interval: Duration,
}

impl Default for NacosTuning {
    fn default() -> Self {
        Self {
            connection: PollingTuning::connection(),
            polling: PollingTuning::default(),
            // The interval of Nacos's own clients.
            heartbeat_interval: Duration::from_secs(5),
        }
    }
}
