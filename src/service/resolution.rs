//! Endpoints registered by host name, and the addresses of those names.

use std::net::IpAddr;

/// Known addresses of a host name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// The first lookup is in progress.
    Pending,
    /// The addresses from the last successful lookup, each once; may be empty.
    Known(Box<[IpAddr]>),
    /// No lookup has succeeded yet.
    Failed,
}

/// A host name to look up from now on, or no longer.
///
/// In lower case, without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostChange {
    /// An endpoint is registered under the name, so its addresses are needed.
    Wanted(Box<str>),
    /// No endpoint is registered under the name any more.
    Unwanted(Box<str>),
}
