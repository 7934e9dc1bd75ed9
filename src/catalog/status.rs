//! Freshness and size of the registries' data.

use serde::Serialize;

use super::holds::PerCause;
use crate::service::{RegistryId, RegistrySet};

/// Freshness of the data of all registries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegistryStatus {
    /// Whether the absence of a name can be trusted.
    ///
    /// True once every registry has completed a list, or one has and 10 s have passed.
    pub synced: bool,
    /// The registries with a complete list, from the registry or from an earlier run.
    pub known: RegistrySet,
    /// The registries that have completed a list and are unreachable now.
    pub disconnected: RegistrySet,
    /// The registries without a complete list, once svcdns no longer waits for them.
    pub unread: RegistrySet,
    /// The registries with held keys: removed by the registry, but still served.
    pub with_held_keys: RegistrySet,
    /// All registries.
    pub registries: RegistrySet,
    /// Number of held keys.
    pub held_keys: usize,
}

/// Reason why the data of a registry may be stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staleness {
    /// This registry has removed keys that are held, and so still served.
    Held(RegistryId),
    /// The registry is unreachable, and its last known data, if any, is served.
    Disconnected,
}

impl RegistryStatus {
    /// Returns whether every registry has a complete list, from itself or from an earlier run.
    pub fn is_complete(&self) -> bool {
        self.registries.is_subset_of(self.known)
    }

    /// Returns why one of these instances may be stale, or `None` if all are fresh.
    ///
    /// Each is given by the registries that hold it; one whose data is fresh is enough.
    pub fn staleness_of(&self, instances: impl Iterator<Item = RegistrySet>) -> Option<Staleness> {
        let stale = self.stale_registries();
        let is_stale = |set: &RegistrySet| !set.is_empty() && set.is_subset_of(stale);
        self.reason(instances.filter(is_stale).fold(RegistrySet::EMPTY, RegistrySet::union))
    }

    /// Returns why the absence of data may be stale, or `None` if it is certain.
    ///
    /// Any stale registry could have the missing data, and so could one that was never read.
    pub fn staleness(&self) -> Option<Staleness> {
        self.reason(self.stale_registries().union(self.unread))
    }

    /// Returns why the data of these registries, which are all stale, may be stale.
    ///
    /// Of several registries with held keys, the first is named.
    fn reason(&self, registries: RegistrySet) -> Option<Staleness> {
        if self.disconnected.union(self.unread).intersects(registries) {
            return Some(Staleness::Disconnected);
        }
        self.with_held_keys.intersection(registries).first().map(Staleness::Held)
    }

    /// Returns the registries whose data may be stale.
    pub fn stale_registries(&self) -> RegistrySet {
        self.disconnected.union(self.with_held_keys)
    }
}

/// Counts of the catalog's keys and instances, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Stats {
    /// The counts of each registry, in the order of the configuration.
    pub registries: Vec<RegistryStats>,
    /// Instances that failed checks leave out.
    pub left_out: usize,
}

/// Counts of one registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RegistryStats {
    /// Keys that can be served, including held ones.
    pub keys: usize,
    /// Endpoints of the keys that can be served.
    pub instances: usize,
    /// Services with keys in the registry.
    pub services: usize,
    /// Held keys: removed by the registry, but still served.
    pub held: usize,
    /// Holds since startup for each cause, without those that turned out to be no mass removal.
    pub holds: PerCause<u64>,
    /// Changes since startup that routine lists found but no event had reported.
    ///
    /// Some versions of etcd lose events.
    pub differences: u64,
}
