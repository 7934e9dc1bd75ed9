//! Endpoints that are registered by host name, and the addresses those names have.

use std::net::IpAddr;

/// What is known of the addresses of a host name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// The first lookup is under way.
    Pending,
    /// The last lookup that gave an answer found these, each once; none where the host has none.
    Known(Box<[IpAddr]>),
    /// No lookup has given an answer yet.
    Failed,
}

/// A host name (lower-cased, without a trailing dot) for whoever looks addresses up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostChange {
    /// An endpoint is registered under it: its addresses are wanted, from now on.
    Wanted(Box<str>),
    /// No endpoint is registered under it any more.
    Unwanted(Box<str>),
}
