//! Freshness and size of the registries' data.

use serde::Serialize;

use crate::service::RegistrySet;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Staleness {
    /// The registry has removed keys that are held, and so still served.
    Held,
    /// The registry is unreachable, and its last known data, if any, is served.
    Disconnected,
}

impl RegistryStatus {
    /// Returns why an instance in these registries may be stale, or `None` if it is fresh.
    ///
    /// One registry whose data is fresh is enough.
    pub fn staleness_of(&self, registries: RegistrySet) -> Option<Staleness> {
        let is_stale = !registries.is_empty() && registries.is_subset_of(self.stale_registries());
        is_stale.then(|| self.reason(registries))
    }

    /// Returns why the absence of data may be stale, or `None` if it is certain.
    ///
    /// Any stale registry could have the missing data, and so could one that was never read.
    pub fn staleness(&self) -> Option<Staleness> {
        let stale = self.stale_registries().union(self.unread);
        (!stale.is_empty()).then(|| self.reason(stale))
    }

    /// Returns why the data of these registries, which are all stale, may be stale.
    fn reason(&self, registries: RegistrySet) -> Staleness {
        if self.disconnected.union(self.unread).intersects(registries) {
            Staleness::Disconnected
        } else {
            Staleness::Held
        }
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
}

/// Counts of one registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RegistryStats {
    /// Keys that can be served, including held ones.
    pub keys: usize,
    /// Endpoints of the keys that can be served.
    pub instances: usize,
    /// Held keys: removed by the registry, but still served.
    pub held: usize,
    /// Changes since startup that routine lists found but no event had reported.
    ///
    /// Some versions of etcd lose events.
    pub differences: u64,
}
