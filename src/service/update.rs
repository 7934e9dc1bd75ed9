//! Updates of the served data, from registries, lookups, checks, operators and the port bridge.

use super::{Addresses, BridgedName, Change, CheckVerdict, RegistryId, RegistrySet};

/// An update of the served data, with its source.
///
/// All sources send through one channel. The receiver takes all waiting updates at once and
/// publishes their combined result.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// Events of one registry, in the order in which they happened.
    Registry(RegistryId, Vec<Change>),
    /// Results of looking up host names of endpoints.
    Hosts(Vec<(Box<str>, Addresses)>),
    /// Addresses that the port bridge gave to names, or took from them.
    Bridged(Vec<BridgedName>),
    /// New verdicts on checked endpoints.
    Checks(Vec<CheckVerdict>),
    /// An operator ends holds by hand.
    Release(Release),
}

/// A request to apply the held removals of registries at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// Number of the request, by which its sender recognizes the result.
    pub ticket: u64,
    /// The registries whose holds end.
    pub registries: RegistrySet,
}

impl Update {
    /// Returns the number of events, results, addresses, verdicts and requests in the update.
    pub fn len(&self) -> usize {
        match self {
            Self::Registry(_, changes) => changes.len(),
            Self::Hosts(hosts) => hosts.len(),
            Self::Bridged(names) => names.len(),
            Self::Checks(verdicts) => verdicts.len(),
            Self::Release(_) => 1,
        }
    }

    /// Returns whether the update is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
