//! Host names of endpoints, and their addresses.

use std::net::IpAddr;

/// Known addresses of a host name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// The first lookup is in progress.
    Pending,
    /// The addresses from the last successful lookup, without duplicates; may be empty.
    Known(Box<[IpAddr]>),
    /// No lookup has succeeded yet.
    Failed,
}

/// A host name whose addresses are needed from now on, or no longer.
///
/// The name is in lower case, without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostChange {
    /// An endpoint is registered under the name, so its addresses are needed.
    Wanted(Box<str>),
    /// The last endpoint registered under the name is gone.
    Unwanted(Box<str>),
}
