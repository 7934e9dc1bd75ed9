//! Names that the port bridge may serve, and the addresses that it gives them.

use std::net::{Ipv4Addr, SocketAddr};

/// A name and the registrations behind it, as the port bridge needs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeCandidate {
    /// The shortest name of the service or version, without the zone: `hello`, `v2.hello.prod`.
    pub name: Box<str>,
    /// The namespace, in lower case.
    pub namespace: Box<str>,
    /// The registrations that the name selects.
    pub registrations: Vec<ReachableRegistration>,
}

/// A registration with the addresses of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachableRegistration {
    /// The value of the metadata `protocol` in lower case, if there is one.
    pub protocol: Option<Box<str>>,
    /// The weight, 0-65535.
    pub weight: u16,
    /// The port of the first registered endpoint; `None` without endpoints.
    pub first_port: Option<u16>,
    /// The addresses of the served endpoints. A host name may have several, or none.
    pub endpoints: Vec<SocketAddr>,
}

/// A change of the names that the port bridge may serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BridgeChange {
    /// The name exists from now on, or its registrations changed.
    Put(BridgeCandidate),
    /// The name is gone.
    Removed(Box<str>),
}

impl BridgeChange {
    /// Returns the name.
    pub fn name(&self) -> &str {
        match self {
            Self::Put(candidate) => &candidate.name,
            Self::Removed(name) => name,
        }
    }
}

/// A name and the address that clients on this machine get for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgedName {
    /// The name as in [`BridgeCandidate::name`].
    pub name: Box<str>,
    /// The address on loopback; `None` if clients get the addresses of the instances.
    pub address: Option<Ipv4Addr>,
}
