//! Checks of endpoints: the endpoints to check, and the verdicts on them.

use std::net::{IpAddr, SocketAddr};

/// The way in which an endpoint is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Probe {
    /// A TCP connection is opened and closed.
    Tcp,
    /// A path is requested with HTTP GET.
    Http,
}

/// An endpoint to check. Instances with the same endpoint share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckTarget {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The way in which the endpoint is checked.
    pub probe: Probe,
}

impl CheckTarget {
    /// Returns the address with the port.
    pub fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

/// A target to check from now on, or no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckChange {
    /// The first instance of the target is registered.
    Wanted(CheckTarget),
    /// The last instance of the target is gone.
    Unwanted(CheckTarget),
}

/// Whether the instances of a target are to be left out.
///
/// Targets without a verdict pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckVerdict {
    /// The target.
    pub target: CheckTarget,
    /// Whether its check fails.
    pub fails: bool,
}
