//! How far what is known can be relied on, and how much it is.

use serde::Serialize;

use crate::service::RegistrySet;

/// How far the data can be relied on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegistryStatus {
    /// Whether absence means something: each registry has completed a list, or one has and 10 s have passed.
    pub synced: bool,
    /// The registries that have completed a list and cannot be reached now.
    pub disconnected: RegistrySet,
    /// The registries of which keys are served although they say that these are gone.
    pub with_held_keys: RegistrySet,
    /// How many such keys there are.
    pub held_keys: usize,
}

/// Why what a registry said may be out of date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staleness {
    /// It cannot be reached: what it said last is served.
    Disconnected,
    /// It no longer has what is served, which is not believed yet.
    Held,
}

impl RegistryStatus {
    /// Says why what these registries hold may be out of date; none while it is not.
    pub fn staleness_of(&self, holders: RegistrySet) -> Option<Staleness> {
        if self.disconnected.intersects(holders) {
            Some(Staleness::Disconnected)
        } else {
            self.with_held_keys.intersects(holders).then_some(Staleness::Held)
        }
    }

    /// Says why an absence may be out of date, which any registry might end; none while it is not.
    pub fn staleness(&self) -> Option<Staleness> {
        self.staleness_of(self.stale_registries())
    }

    /// Returns the registries of which what they said may be out of date.
    pub fn stale_registries(&self) -> RegistrySet {
        self.disconnected.union(self.with_held_keys)
    }
}

/// Sizes, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Stats {
    /// One entry for each registry, in the order of the configuration.
    pub registries: Vec<RegistryStats>,
}

/// Sizes of one registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RegistryStats {
    /// Its keys that can be served, those held included.
    pub keys: usize,
    /// Their endpoints.
    pub instances: usize,
    /// Of those, keys that it no longer has.
    pub held: usize,
    /// Differences that routine lists found against what the events had said, since the start: some versions of etcd lose
    /// events.
    pub differences: u64,
}
