//! What a person can write: a file, the environment and flags, merged into the settings that the rooms run on.
//!
//! Flags beat the environment, which beats the file, which beats the defaults. Where each value came from stays in this
//! room ([`Config::effective`]); no other room sees it.

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
mod rooms;
mod secret;
mod table;
mod upstream;
mod values;
mod warning;

pub use directories::runtime_directories;
pub use document::{markdown, registry_markdown, template};
pub use effective::Effective;
pub use error::{ConfigError, Origin};
pub use flags::{Flags, RegistryFlags, ServeFlags};
pub use gather::CONFIG_VARIABLE;
pub use key::{Key, Kind, SecretKey};
pub use secret::{GivenSecret, SecretPlace};
pub use table::KEYS;
pub use warning::ConfigWarning;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::answer::Answers;
use crate::catalog::Docker0;
use crate::name::{Name, Zones};
use crate::registry::NamedSource;
use crate::server::EncryptedSettings;
use crate::upstream::{Servers, Target};

/// The file that is read when no other is named, where it exists.
pub const DEFAULT_FILE: &str = "/etc/svcdns/svcdns.toml";

/// Everything that can be set, checked and with defaults filled in.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to answer; a port of 0 means any free one.
    pub listen: Vec<SocketAddr>,
    /// Who may ask from elsewhere than this machine.
    pub allow: Vec<IpNet>,
    /// The registries to follow, at least one, at most [`crate::service::MAX_REGISTRIES`].
    pub registries: Vec<NamedSource>,
    /// The served zones.
    pub zones: Zones,
    /// GoFrame's deployment that short names mean.
    pub deployment: String,
    /// GoFrame's namespace that short names mean.
    pub namespace: String,
    /// Whether a service without version `latest` answers with every version.
    pub version_fallback: bool,
    /// How many records an answer holds.
    pub answers: Answers,
    /// What to do with endpoints at Docker's own bridge.
    pub docker0: Docker0,
    /// How long a mass removal is not believed; zero for never held.
    pub removal_grace: Duration,
    /// Lifetime of an answer, in seconds, 0 to 86,400.
    pub ttl: u32,
    /// Lifetime of a negative answer, in seconds, 0 to 86,400.
    pub negative_ttl: u32,
    /// Most instances of one service.
    pub max_instances_per_service: usize,
    /// Most keys of one registry.
    pub max_keys: usize,
    /// Most TCP connections at a time.
    pub tcp_connections: usize,
    /// How long a TCP connection may be idle.
    pub tcp_idle_timeout: Duration,
    /// Who is asked for names outside the zones.
    pub upstream: Upstream,
    /// Most octets of the cache of what upstreams said; 0 for none.
    pub cache_octets: usize,
    /// How long past its end what an upstream said may be answered; zero for never.
    pub serve_stale: Duration,
    /// The domains that may have private addresses; none where all may.
    pub rebinding: Option<Vec<Name>>,
    /// Whether messages that are no questions are passed on.
    pub forward_opcodes: bool,
    /// Where to answer over TLS and QUIC, and with what certificate.
    pub encrypted: EncryptedSettings,
    /// Where metrics, health and the JSON interface are served besides the runtime directory's socket; none for nowhere.
    pub admin_listen: Option<SocketAddr>,
    /// The runtime directory, if one was named, by `runtime-dir` or by `state-dir`.
    pub runtime_dir: Option<PathBuf>,
    /// The state directory, if one was named.
    pub state_dir: Option<PathBuf>,
    /// The filter of the log, in tracing's notation.
    pub log: String,
    /// Of how many questions one is logged; 0 for none.
    pub log_queries: u32,
    /// The secrets of the registries, and where they come from.
    pub secrets: Vec<GivenSecret>,
    /// Problems that do not keep svcdns from serving, such as a password file that anyone can read.
    pub warnings: Vec<ConfigWarning>,
    effective: Vec<Effective>,
}

/// Who is asked for names outside the zones, and how.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Who is asked for names without upstreams of their own.
    pub servers: Servers,
    /// Who is asked for a domain.
    pub domains: Vec<(Name, Vec<Target>)>,
    /// The authorities that may vouch for upstreams; none for those the machine trusts.
    pub ca_file: Option<PathBuf>,
    /// Whether questions go out with letters in random case.
    pub random_case: bool,
    /// Whether address queries for names of one label go to upstreams with public addresses.
    pub forward_single_labels: bool,
}

impl Config {
    /// Merges and checks what was written. `file` is the file named by a flag; where none is, the variable
    /// `SVCDNS_CONFIG` names it, and else [`DEFAULT_FILE`] is read if it exists. Variables that do not begin with
    /// `SVCDNS_` are ignored.
    ///
    /// # Errors
    /// The first mistake found, with its place.
    pub fn load(file: Option<&Path>, environment: impl IntoIterator<Item = (String, String)>, flags: &Flags) -> Result<Self, ConfigError> {
        read::read(&gather::gather(file, environment, flags)?)
    }

    /// Returns every key in the order of the table and then those of each registry, with its value and where that
    /// came from.
    pub fn effective(&self) -> &[Effective] {
        &self.effective
    }

    /// Whether somebody named the registries; else GoFrame's default is followed.
    pub fn names_registries(&self) -> bool {
        self.effective.iter().any(|effective| effective.key == registry::URL && effective.origin != Origin::Default)
    }
}

#[cfg(test)]
mod tests;
