//! Configuration from a file, the environment and flags.
//!
//! Flags override the environment, which overrides the file, which overrides the defaults. Each
//! value keeps its origin ([`Config::effective`]).

mod aliases;
mod bridge;
mod checks;
mod directories;
mod document;
mod effective;
mod encrypted;
mod error;
mod file;
mod flags;
mod gather;
mod key;
mod keys;
mod layers;
mod read;
mod registry;
mod reload;
mod secret;
mod settings;
mod source;
mod static_services;
mod table;
mod toml_file;
mod upstream;
mod values;
mod warning;

pub use aliases::ConfiguredAlias;
pub use checks::CheckConfig;
pub use directories::runtime_directories;
pub use document::{markdown, registry_markdown, restart_markdown, static_markdown, template};
pub use effective::EffectiveValue;
pub use error::{ConfigError, Origin};
pub use flags::{DiffFlags, Flags, RegistryFlags, ServeFlags};
pub use gather::CONFIG_VARIABLE;
pub use key::{Key, SecretKey, ValueForm};
pub use registry::registry_note;
pub use reload::{ConfigChange, Effect, SecretDigests};
pub use secret::{ConfiguredSecret, SecretPlace};
pub use source::ConfigSource;
pub use table::KEYS;
pub use warning::ConfigWarning;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::answer::{Aliases, Answers};
use crate::catalog::{Docker0, Merge};
use crate::name::{Name, Zones};
use crate::registry::NamedSource;
use crate::server::EncryptedSettings;
use crate::upstream::{Servers, Target, UpstreamOrder};

/// The default configuration file, which is read if it exists.
pub const DEFAULT_FILE: &str = "/etc/svcdns/svcdns.toml";

/// The checked configuration, with defaults filled in.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses for plain DNS over UDP and TCP; port 0 picks a free port.
    pub listen: Vec<SocketAddr>,
    /// Networks that may query, in addition to loopback.
    pub allow: Vec<IpNet>,
    /// Registries to follow, from 1 to [`crate::service::MAX_REGISTRIES`].
    ///
    /// The last is that of the static services, if there are any.
    pub registries: Vec<NamedSource>,
    /// Combination of the registries' instances of one name.
    pub merge: Merge,
    /// Served zones.
    pub zones: Zones,
    /// The aliases as written.
    pub aliases: Vec<ConfiguredAlias>,
    /// GoFrame deployment of names that do not contain one.
    pub deployment: String,
    /// GoFrame namespace of names that do not contain one.
    pub namespace: String,
    /// Whether a service without version `latest` is answered with all of its versions.
    pub version_fallback: bool,
    /// Treatment of answers that do not fit the response.
    pub answers: Answers,
    /// Treatment of endpoints at Docker's default bridge address.
    pub docker0: Docker0,
    /// TTL of positive answers in seconds, 0 to 86,400.
    pub ttl: u32,
    /// TTL of negative answers in seconds, 0 to 86,400.
    pub negative_ttl: u32,
    /// Limit on instances per service in each registry.
    pub max_instances_per_service: usize,
    /// Limit on keys per registry.
    pub max_keys: usize,
    /// Limit on open connections over TCP, TLS and QUIC.
    pub tcp_connections: usize,
    /// Limit on open connections of one client address.
    pub tcp_connections_per_source: usize,
    /// Limit on open connections of one loopback address.
    pub tcp_connections_per_loopback_source: usize,
    /// Idle time after which a connection is closed.
    pub tcp_idle_timeout: Duration,
    /// Upstreams for names outside the zones.
    pub upstream: UpstreamConfig,
    /// Limit on the memory of the upstream cache, in bytes; 0 turns it off.
    pub cache_bytes: usize,
    /// Limit on serving stale data while no upstream responds; zero turns it off.
    pub serve_stale: Duration,
    /// Domains exempt from the rebinding guard; `None` turns the guard off.
    pub rebinding: Option<Vec<Name>>,
    /// Whether to forward messages with opcodes other than QUERY.
    pub forward_opcodes: bool,
    /// Addresses and certificate for DNS over TLS and QUIC.
    pub encrypted: EncryptedSettings,
    /// The port bridge; `None` if it is off.
    pub bridge: Option<crate::bridge::Settings>,
    /// Checks of endpoints; `None` turns them off.
    pub checks: Option<CheckConfig>,
    /// Address of metrics, health and the JSON interface; `None` for only the socket.
    pub admin_listen: Option<SocketAddr>,
    /// Runtime directory, if `runtime-dir` or `state-dir` is set.
    pub runtime_dir: Option<PathBuf>,
    /// State directory, if set.
    pub state_dir: Option<PathBuf>,
    /// Whether to save the registries' keys, and to answer from them after a start.
    pub snapshot: bool,
    /// Age from which a snapshot is not used.
    pub max_stale: Duration,
    /// Filter of the log, in the syntax of `tracing`.
    pub log: String,
    /// Logs one of this many queries per thread; 0 logs none.
    pub log_queries: u32,
    /// Secrets of the registries, given by where they are stored.
    pub secrets: Vec<ConfiguredSecret>,
    /// Problems that do not keep the server from starting.
    pub warnings: Vec<ConfigWarning>,
    /// The checked aliases.
    alias_targets: Aliases,
    effective: Vec<EffectiveValue>,
}

/// Upstreams for names outside the zones.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// Upstreams for names outside the domains of `domains`.
    pub servers: Servers,
    /// Upstreams of single domains.
    pub domains: Vec<(Name, Vec<Target>)>,
    /// Order of querying each list of upstreams; `None` leaves it to their origin.
    pub order: Option<UpstreamOrder>,
    /// PEM file with the CAs trusted for TLS; `None` uses the system's trust store.
    pub ca_file: Option<PathBuf>,
    /// Whether to randomize the letter case of names in queries.
    pub random_case: bool,
    /// Whether address queries for single-label names may go to public upstreams.
    pub forward_single_labels: bool,
}

impl Config {
    /// Removes all aliases.
    pub fn remove_aliases(&mut self) {
        self.aliases.clear();
        self.alias_targets = Aliases::default();
    }

    /// Reads, merges and checks all sources.
    ///
    /// The configuration file is `file`, otherwise the one in the environment variable
    /// `SVCDNS_CONFIG`, otherwise [`DEFAULT_FILE`] if it exists. Environment variables without the
    /// prefix `SVCDNS_` are ignored.
    ///
    /// # Errors
    /// Returns the first error found, with its origin.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &Flags,
    ) -> Result<Self, ConfigError> {
        read::read(&gather::gather(file, environment, flags)?)
    }

    /// Returns the values of all keys, then those of each registry's section and static service.
    pub fn effective(&self) -> &[EffectiveValue] {
        &self.effective
    }

    /// Returns whether a registry is configured; if not, GoFrame's default is used.
    pub fn names_registries(&self) -> bool {
        self.effective
            .iter()
            .any(|effective| effective.key == registry::URL && effective.origin != Origin::Default)
    }
}

#[cfg(test)]
mod tests;
