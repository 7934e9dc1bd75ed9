//! How far one registry is followed: its lists, its epoch's revisions, its lease_checks.

use std::collections::HashMap;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::grace::{ExpiryDetector, Holds, MAX_REMOVAL_GRACE};
use crate::service::ListKind;

/// The state of following one registry.
#[derive(Debug, Default)]
pub(super) struct RegistryTracker {
    /// How long a mass removal is held; zero to believe all at once.
    pub(super) grace: Duration,
    /// Whether a list was ever completed.
    pub(super) synced: bool,
    /// Whether the registry said that it cannot be reached.
    pub(super) disconnected: bool,
    /// The running list.
    pub(super) list: Option<ListInProgress>,
    /// The number of the running or the last list: each begins an epoch, within which revisions compare.
    pub(super) generation: u32,
    /// What routine lists found that no event had told, so far.
    pub(super) differences: u64,
    /// What events of this epoch removed.
    pub(super) removals: RecentRemovals,
    /// Deletes by lease.
    pub(super) detector: ExpiryDetector,
    /// Keys that are gone and still served.
    pub(super) holds: Holds,
}

/// A running list.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListInProgress {
    /// Why it is made.
    pub(super) kind: ListKind,
    /// The registry's instances before it.
    pub(super) before: usize,
}

impl RegistryTracker {
    /// The state before the first list, with this removal grace.
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace: grace.min(MAX_REMOVAL_GRACE), ..Self::default() }
    }

    /// Whether its keys are known and it cannot be reached.
    pub(super) fn is_disconnected(&self) -> bool {
        self.synced && self.disconnected
    }

    /// Whether what a list says should be known already: a routine one, not the first.
    pub(super) fn is_checking(&self) -> bool {
        self.synced && self.list.is_some_and(|list| list.kind == ListKind::Routine)
    }

    /// Begins a list. One that is running is abandoned: what it said stays, nothing is swept by it. Its doubt is not lost:
    /// a list after an abandoned one of a restored store is believed no more than that.
    pub(super) fn begin(&mut self, kind: ListKind, instances: usize) {
        let strictness = |kind: ListKind| match kind {
            ListKind::Routine => 0,
            ListKind::Reconnect => 1,
            ListKind::Restored => 2,
        };
        let (mut kind, mut before) = (kind, instances);
        if let Some(abandoned) = self.list.take() {
            before = abandoned.before;
            if strictness(abandoned.kind) > strictness(kind) {
                kind = abandoned.kind;
            }
        }
        self.list = Some(ListInProgress { kind, before });
        self.generation = self.generation.wrapping_add(1);
        self.removals = RecentRemovals::default();
    }

    /// Ends the running list; none if there is none.
    pub(super) fn end(&mut self) -> Option<ListInProgress> {
        let list = self.list.take()?;
        self.synced = true;
        Some(list)
    }
}

/// Keys remembered at most twice over.
const MIN_RECENT_REMOVALS: usize = 32_768;

/// The revisions of keys that events of this epoch removed from the mirror, so that an older put that is replayed after a
/// delete is seen to be older. The latest 32,768 at least, 65,536 at most, are remembered, by the seeded hash of the key.
#[derive(Debug, Default)]
pub(super) struct RecentRemovals {
    recent: HashMap<u64, u64, RandomState>,
    earlier: HashMap<u64, u64, RandomState>,
}

impl RecentRemovals {
    /// Notes a removal; nothing for revision 0, which means that the registry counts none.
    pub(super) fn note(&mut self, hash: u64, revision: u64) {
        if revision == 0 {
            return;
        }
        if self.recent.len() >= MIN_RECENT_REMOVALS && !self.recent.contains_key(&hash) {
            self.earlier = std::mem::take(&mut self.recent);
        }
        self.recent.insert(hash, revision);
    }

    /// The revision of the last removal remembered, 0 for none.
    pub(super) fn revision(&self, hash: u64) -> u64 {
        self.recent.get(&hash).or_else(|| self.earlier.get(&hash)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_bounded_and_keeps_the_latest() {
        let mut removals = RecentRemovals::default();
        for n in 1..=200_000 {
            removals.note(n, n);
        }
        assert!(removals.recent.len() + removals.earlier.len() <= 2 * MIN_RECENT_REMOVALS);
        assert_eq!(removals.revision(200_000), 200_000);
        assert_eq!(removals.revision(200_000 - 32_000), 200_000 - 32_000);
        assert_eq!(removals.revision(1), 0);
    }
}
