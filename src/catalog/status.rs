//! How far what is known can be relied on, and how much it is.

use serde::Serialize;

use crate::service::RegistrySet;

/// How far the data can be relied on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Whether absence means something: each registry has completed a list, or one has and 10 s have passed.
    pub synced: bool,
    /// The registries that have completed a list and cannot be reached now.
    pub away: RegistrySet,
    /// The registries of which keys are served although they say that these are gone.
    pub held: RegistrySet,
    /// How many such keys there are.
    pub holding: usize,
}

/// Why what a registry said may be out of date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staleness {
    /// It cannot be reached: what it said last is served.
    Away,
    /// It no longer has what is served, which is not believed yet.
    Held,
}

impl Condition {
    /// Says why what these registries hold may be out of date; none while it is not.
    pub fn staleness_of(&self, holders: RegistrySet) -> Option<Staleness> {
        if self.away.intersects(holders) { Some(Staleness::Away) } else { self.held.intersects(holders).then_some(Staleness::Held) }
    }

    /// Says why an absence may be out of date, which any registry might end; none while it is not.
    pub fn staleness(&self) -> Option<Staleness> {
        self.staleness_of(self.stale())
    }

    /// Returns the registries of which what they said may be out of date.
    pub fn stale(&self) -> RegistrySet {
        self.away.union(self.held)
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
