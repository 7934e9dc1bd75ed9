//! Polaris registries.
//!
//! The HTTP interface of a Polaris server is polled (`super::polling`): the names of one
//! namespace, and the instances of each. Every query has the revision of the last answer, so that
//! an unchanged list costs the server and svcdns little.
//!
//! - `naming`: GoFrame's names of services
//! - `client`: the queries; `failure`: messages
//! - `parse`: conversion of Polaris's answers to [`crate::service`]
//! - `register`: the only code that writes

mod client;
mod failure;
mod naming;
mod parse;
mod register;

use std::fmt;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::attempts::{Attempts, ConnectionTuning};
use super::failure::Failure;
use super::identify::ServerKind;
use super::polling::{self, PolledStore, PollingTuning};
use super::{Credential, Feed, Registry, RegistryCommand, Tls};
use crate::service::ListKind;

use client::PolarisClient;
pub use naming::ServiceNaming;
pub use register::register;

/// A namespace of a Polaris server that can be followed.
#[derive(Clone, Debug)]
pub struct PolarisRegistry {
    settings: Settings,
}

impl PolarisRegistry {
    /// Creates the registry; [`Registry::follow`] makes the first connection.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }
}

impl Registry for PolarisRegistry {
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

impl PolledStore for PolarisRegistry {
    type Client = PolarisClient;

    async fn connect(&self, endpoint: &str) -> Result<PolarisClient, Failure> {
        PolarisClient::new(&self.settings, endpoint).await
    }

    fn attempts(&self) -> Attempts {
        self.settings.attempts()
    }

    fn tuning(&self) -> (&PollingTuning, &ConnectionTuning) {
        (&self.settings.tuning.polling, &self.settings.tuning.connection)
    }
}

/// Settings of a Polaris registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The servers' HTTP interfaces as `host:port`, with IPv6 addresses in brackets.
    ///
    /// One server is used at a time.
    pub endpoints: Vec<String>,
    /// The token.
    pub token: Option<Credential>,
    /// Where the token is configured, for messages about a refusal.
    pub token_keys: Option<String>,
    /// The namespace of Polaris to read, which is not GoFrame's.
    pub namespace: String,
    /// How GoFrame's names of services are split.
    pub naming: ServiceNaming,
    /// TLS settings; `None` for plain connections.
    pub tls: Option<Tls>,
    /// Limits, intervals and timeouts.
    pub tuning: PolarisTuning,
}

impl Settings {
    /// Creates settings for these servers, with default values for all other settings.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            token: None,
            token_keys: None,
            namespace: DEFAULT_NAMESPACE.to_owned(),
            naming: ServiceNaming::default(),
            tls: None,
            tuning: PolarisTuning::default(),
        }
    }

    fn attempts(&self) -> Attempts {
        let Self { endpoints, tls, tuning, .. } = self;
        Attempts::new(ServerKind::Polaris, endpoints, tls.as_ref(), &tuning.connection)
    }
}

/// The namespace in which GoFrame registers unless it is given another.
pub const DEFAULT_NAMESPACE: &str = "default";

impl fmt::Display for Settings {
    /// Formats the registry's URL: `polaris://a:8090,b:8090`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "polaris+https" } else { "polaris" };
        write!(f, "{scheme}://{}", self.endpoints.join(","))
    }
}

/// Limits, intervals and timeouts; the defaults suit real servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolarisTuning {
    /// Timeouts of requests and waits between attempts.
    pub connection: ConnectionTuning,
    /// Intervals and limits of polling.
    pub polling: PollingTuning,
}

impl Default for PolarisTuning {
    fn default() -> Self {
        Self { connection: PollingTuning::connection(), polling: PollingTuning::default() }
    }
}
