//! The model: what a service registry holds, and how it changes.
//!
//! Knows neither DNS nor any particular registry. A leaf: imports no other room.

mod change;
mod metadata;
mod registry;
mod rejection;
mod resolution;
mod update;

pub use change::{Change, ListKind, Put, Removal};
pub use metadata::Metadata;
pub use registry::{InvalidRegistryName, MAX_REGISTRIES, RegistryId, RegistryName, RegistrySet};
pub use rejection::{Reason, Rejected};
pub use resolution::{Addresses, HostChange};
pub use update::Update;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// The identity under which a process registers itself, as written, case kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    /// The deployment; `default` where the registrant set none.
    pub deployment: Arc<str>,
    /// The namespace; `default` where the registrant set none.
    pub namespace: Arc<str>,
    /// The registered name, e.g. `hello.svc` (HTTP servers) or `demo` (gRPC servers).
    pub name: Arc<str>,
    /// The version; `latest` where the registrant set none.
    pub version: Arc<str>,
}

/// Where an instance says it can be reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address.
    V6(Ipv6Addr),
    /// A host name, lower-cased, without a trailing dot; `localhost` included.
    Name(Box<str>),
}

impl Host {
    /// The address, where the host is one.
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

/// A host and a port from 1 to 65535.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The host.
    pub host: Host,
    /// The port, never 0.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    /// `10.0.0.1:80`, `[fd00::5]:80`, `web.example:80`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::V6(address) => write!(f, "[{address}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

/// One registry key, understood: who registered, at which endpoints, with which metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// Who.
    pub id: ServiceId,
    /// The usable endpoints, in the order of the key. May be empty: the service is then known but has no instance.
    pub endpoints: Vec<Endpoint>,
    /// The endpoints of the same key that cannot be served, each with its reason. They never hurt the usable ones.
    pub rejected: Vec<Rejected>,
    /// What the registrant says about itself.
    pub metadata: Arc<Metadata>,
}
