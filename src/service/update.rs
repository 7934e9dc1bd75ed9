//! The one type of everything that changes what is served.

use super::{Addresses, Change, RegistryId};

/// Something that changes what is served, with its source.
///
/// All sources send down one channel, in the order in which each of them sees things; whoever drains it publishes what came
/// of all that was waiting at once.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// Changes of one registry, in order.
    Registry(RegistryId, Vec<Change>),
    /// What is known now of the addresses of host names that endpoints are registered under.
    Hosts(Vec<(Box<str>, Addresses)>),
}

impl Update {
    /// Returns how many changes it holds.
    pub fn len(&self) -> usize {
        match self {
            Self::Registry(_, changes) => changes.len(),
            Self::Hosts(hosts) => hosts.len(),
        }
    }

    /// Whether it holds no change.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
