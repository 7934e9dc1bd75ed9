//! The state of following one registry: its list in progress, its epoch and its removals.

use std::collections::HashMap;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::expiry::ExpiryDetector;
use super::grace::{Holds, MAX_REMOVAL_GRACE};
use super::names::RegisteredNames;
use crate::service::{ListKind, ListScope};

/// The catalog's state of one registry, except for its keys.
#[derive(Debug, Default)]
pub(super) struct RegistryTracker {
    /// Time for which a mass removal is held; zero applies every removal at once.
    pub(super) grace: Duration,
    /// Whether the registry has ever completed a list of all keys, or a list of each name.
    pub(super) synced: bool,
    /// Whether the registry has reported that it is unreachable.
    pub(super) disconnected: bool,
    /// The list in progress.
    pub(super) list: Option<ListInProgress>,
    /// The registered names, if the registry lists each by itself.
    pub(super) names: RegisteredNames,
    /// Number of the list in progress, or of the last one.
    ///
    /// Each list begins an epoch, and revisions are comparable only within one epoch.
    pub(super) generation: u32,
    /// Changes since startup that routine lists found but no event had reported.
    pub(super) differences: u64,
    /// Revisions of the keys that events of this epoch removed.
    pub(super) removals: RecentRemovals,
    /// Recent deletes of leased keys.
    pub(super) detector: ExpiryDetector,
    /// Keys that the registry has removed and that are still served.
    pub(super) holds: Holds,
}

/// A list that has begun and not ended.
#[derive(Clone, Debug)]
pub(super) struct ListInProgress {
    /// The keys that the list covers.
    pub(super) scope: ListScope,
    /// Reason for the list.
    pub(super) kind: ListKind,
    /// The registry's instances when the list began.
    pub(super) before: usize,
}

impl RegistryTracker {
    /// Creates the state before the first list, with this removal grace.
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace: grace.min(MAX_REMOVAL_GRACE), ..Self::default() }
    }

    /// Returns whether the registry has completed a list and is unreachable now.
    pub(super) fn is_disconnected(&self) -> bool {
        self.synced && self.disconnected
    }

    /// Returns whether a routine list is in progress, which should bring no changes.
    ///
    /// The first list of a registry does not count, nor does a list of one service.
    pub(super) fn is_checking(&self) -> bool {
        self.synced && self.list.as_ref().is_some_and(ListInProgress::is_check)
    }

    /// Begins a list, abandoning one in progress: its puts stay, and it removes no key.
    ///
    /// The new list inherits the stricter of the two kinds, so a routine list right after an
    /// abandoned list of a restored store still has its removals held.
    pub(super) fn begin(&mut self, kind: ListKind, scope: ListScope, instances: usize) {
        let (mut kind, mut before) = (kind, instances);
        if let Some(abandoned) = self.list.take() {
            before = abandoned.before;
            kind = kind.max(abandoned.kind);
        }
        self.list = Some(ListInProgress { scope, kind, before });
        self.generation = self.generation.wrapping_add(1);
        self.removals = RecentRemovals::default();
    }

    /// Ends the list in progress and returns it, if any.
    pub(super) fn end(&mut self) -> Option<ListInProgress> {
        let list = self.list.take()?;
        self.synced |= match &list.scope {
            ListScope::Registry => true,
            ListScope::Service(name) => {
                self.names.record(name);
                self.names.is_complete()
            }
        };
        Some(list)
    }
}

impl ListInProgress {
    /// Returns whether the list should bring no changes.
    pub(super) fn is_check(&self) -> bool {
        self.kind == ListKind::Routine && self.scope == ListScope::Registry
    }
}

/// Minimum number of latest removals that [`RecentRemovals`] remembers.
///
/// The set remembers at most twice as many.
const MIN_RECENT_REMOVALS: usize = 32_768;

/// Revisions of the keys that events of this epoch removed.
///
/// Detects an older put that is replayed after the delete of its key. Keys are identified by
/// their seeded hash.
#[derive(Debug, Default)]
pub(super) struct RecentRemovals {
    recent: HashMap<u64, u64, RandomState>,
    earlier: HashMap<u64, u64, RandomState>,
}

impl RecentRemovals {
    /// Records a removal; revision 0 (the registry counts none) is ignored.
    pub(super) fn record(&mut self, hash: u64, revision: u64) {
        if revision == 0 {
            return;
        }
        if self.recent.len() >= MIN_RECENT_REMOVALS && !self.recent.contains_key(&hash) {
            self.earlier = std::mem::take(&mut self.recent);
        }
        self.recent.insert(hash, revision);
    }

    /// Returns the revision of the key's last remembered removal, 0 for none.
    pub(super) fn revision(&self, hash: u64) -> u64 {
        self.recent.get(&hash).or_else(|| self.earlier.get(&hash)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_removals_are_bounded_and_keep_the_latest() {
        let mut removals = RecentRemovals::default();
        for n in 1..=200_000 {
            removals.record(n, n);
        }
        assert!(removals.recent.len() + removals.earlier.len() <= 2 * MIN_RECENT_REMOVALS);
        assert_eq!(removals.revision(200_000), 200_000);
        assert_eq!(removals.revision(200_000 - 32_000), 200_000 - 32_000);
        assert_eq!(removals.revision(1), 0);
    }
}
