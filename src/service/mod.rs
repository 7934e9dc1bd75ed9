//! The model of a service registry: registrations, and the events that change them.
//!
//! The model is independent of DNS and of any particular registry. It imports no other module.

mod bridging;
mod change;
mod check;
mod metadata;
mod name_pattern;
mod registry;
mod rejection;
mod resolution;
mod update;
mod wall_clock;

pub use bridging::{BridgeCandidate, BridgeChange, BridgedName, ReachableRegistration};
pub use change::{Change, LeaseReply, ListKind, ListScope, Put, Removal, key_prefix};
pub use check::{CheckChange, CheckTarget, CheckVerdict, Probe};
pub use metadata::Metadata;
pub use name_pattern::NamePattern;
pub use registry::{InvalidRegistryName, MAX_REGISTRIES, RegistryId, RegistryName, RegistrySet};
pub use rejection::{Reason, Rejected};
pub use resolution::{Addresses, HostChange};
pub use update::{Release, Update};
pub use wall_clock::{UnixTime, WallClock};

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// The identity of a registered service, with case preserved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    /// The deployment; `default` if the registrant set none.
    pub deployment: Arc<str>,
    /// The namespace; `default` if the registrant set none.
    pub namespace: Arc<str>,
    /// The registered name: `hello.svc` of an HTTP server, `demo` of a gRPC server.
    pub name: Arc<str>,
    /// The version; `latest` if the registrant set none.
    pub version: Arc<str>,
}

/// The host of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address.
    V6(Ipv6Addr),
    /// A host name in lower case without a trailing dot, possibly `localhost`.
    Name(Box<str>),
}

impl Host {
    /// Returns the address, or `None` for a host name.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::V4(address) => Some((*address).into()),
            Self::V6(address) => Some((*address).into()),
            Self::Name(_) => None,
        }
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6(address),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(address) => address.fmt(f),
            Self::V6(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// The host and port where an instance can be reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The host.
    pub host: Host,
    /// The port, 1-65535.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    /// Formats as `10.0.0.1:80`, `[fd00::5]:80` or `web.example:80`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::V6(address) => write!(f, "[{address}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

/// A parsed registry key.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// The service that registered.
    pub id: ServiceId,
    /// The usable endpoints, in the order of the key.
    ///
    /// May be empty: the service then exists without instances.
    pub endpoints: Vec<Endpoint>,
    /// The endpoints that cannot be served; they do not affect the usable ones.
    pub rejected: Vec<Rejected>,
    /// The registrant's metadata.
    pub metadata: Arc<Metadata>,
    /// Whether the registration precedes those of every registry.
    ///
    /// It then hides all others of its name in its deployment and namespace.
    pub overrides: bool,
}

impl Registration {
    /// Creates the registration of a service without instances and metadata.
    pub fn without_endpoints(id: ServiceId) -> Self {
        Self {
            id,
            endpoints: Vec::new(),
            rejected: Vec::new(),
            metadata: Arc::default(),
            overrides: false,
        }
    }
}
