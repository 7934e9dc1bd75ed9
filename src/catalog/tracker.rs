//! The state of following one registry: its list in progress, its epoch and its removals.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use super::expiry::{BURST_WINDOW, ExpiryDetector};
use super::grace::{HeldKeys, MAX_REMOVAL_GRACE, Round};
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
    /// The lists whose removals are judged together.
    pub(super) round: Option<Round>,
    /// The newest revision of the keys of an earlier run, until the first complete list.
    pub(super) restored_revision: u64,
    /// Time of the end of the last suspicious round.
    reconnected: Option<Instant>,
    /// The registered names, if the registry sends per-service lists.
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
    pub(super) held_keys: HeldKeys,
}

/// A list that has begun and not ended.
#[derive(Clone, Debug)]
pub(super) struct ListInProgress {
    /// The keys that the list covers.
    pub(super) scope: ListScope,
    /// The base of the listed name, if it is a per-service list of a valid name.
    base: Option<String>,
    /// The bases of accepted keys, apart from `base`.
    pub(super) other_bases: Vec<Box<str>>,
    /// Whether the removals of the list are judged with those of the round.
    pub(super) in_round: bool,
    /// Whether the removals of the list are held, whatever the round.
    pub(super) is_doubted: bool,
    /// Keys at which and below which the list cannot tell what the store has.
    pub(super) unreadable: HashSet<Box<str>>,
}

impl ListInProgress {
    /// Returns whether the list can tell that the store lacks a key.
    pub(super) fn can_read(&self, key: &str) -> bool {
        let above = key.match_indices('/').map(|(at, _)| &key[..at]);
        !above.chain([key]).any(|key| self.unreadable.contains(key))
    }
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
    /// The first list of a registry does not count, nor does a per-service list.
    pub(super) fn is_checking(&self) -> bool {
        let is_full = |list: &ListInProgress| list.scope == ListScope::Registry;
        self.synced && self.list.as_ref().is_some_and(is_full) && !self.round_is_suspicious()
    }

    /// Returns whether a per-service list is in progress.
    pub(super) fn is_listing_service(&self) -> bool {
        self.list.as_ref().is_some_and(|list| list.scope != ListScope::Registry)
    }

    /// Returns whether a per-service list of a restored store is in progress.
    pub(super) fn is_listing_restored_service(&self) -> bool {
        let in_round = self.list.as_ref().is_some_and(|list| list.in_round);
        self.is_listing_service()
            && self.round.as_ref().is_some_and(|round| in_round && round.is_of_restored_store())
    }

    /// Returns whether the lists follow a reconnect, or are of a restored store.
    pub(super) fn round_is_suspicious(&self) -> bool {
        self.round.as_ref().is_some_and(Round::is_suspicious)
    }

    /// Begins a list, abandoning one in progress: its puts stay, and it removes no key.
    ///
    /// The new list inherits the round of the abandoned one, so a routine list right after an
    /// abandoned list of a restored store still has its removals held.
    pub(super) fn begin(
        &mut self,
        kind: ListKind,
        (scope, base): (ListScope, Option<String>),
        instances: usize,
        now: Instant,
    ) {
        let inherits = self.list.take().is_some_and(|abandoned| abandoned.in_round);
        let is_doubted = kind == ListKind::Doubted && scope != ListScope::Registry;
        let in_round = match &scope {
            ListScope::Registry => {
                self.names.expect_others();
                true
            }
            ListScope::Service(_) if is_doubted => false,
            ListScope::Service(name) => {
                let is_suspicious = kind > ListKind::Routine;
                if is_suspicious && (self.round.is_none() || self.names.is_listed(name)) {
                    self.names.await_all();
                }
                let is_awaited = self.round_is_suspicious() && self.names.is_awaited(name);
                inherits || is_suspicious || is_awaited
            }
        };
        if in_round {
            self.join_round(kind, instances, now);
        }
        let (other_bases, unreadable) = (Vec::new(), HashSet::new());
        self.list =
            Some(ListInProgress { scope, base, other_bases, in_round, is_doubted, unreadable });
        self.generation = self.generation.wrapping_add(1);
        self.removals = RecentRemovals::default();
    }

    /// Records the base of a key that was put.
    pub(super) fn note_base(&mut self, base: &str) {
        let Some(list) = &mut self.list else { return };
        let ListScope::Service(name) = &list.scope else { return };
        let is_known = list.base.as_deref() == Some(base)
            || list.other_bases.iter().any(|known| **known == *base);
        if !is_known {
            list.other_bases.push(base.into());
            self.names.add_base(name, base);
        }
    }

    /// Begins a list of the names, abandoning a list in progress.
    ///
    /// Also begins a round if the registry is not synced yet or has reconnected. Returns whether
    /// all removals of the list are judged with those of the round.
    pub(super) fn begin_names(&mut self, kind: ListKind, instances: usize, now: Instant) -> bool {
        let inherits = self.list.take().is_some_and(|abandoned| abandoned.in_round);
        let is_suspicious = kind > ListKind::Routine;
        if is_suspicious && (self.round.is_none() || self.names.is_named()) {
            self.names.await_all();
        }
        if is_suspicious || !self.synced {
            self.join_round(kind, instances, now);
        }
        is_suspicious || inherits
    }

    fn join_round(&mut self, kind: ListKind, instances: usize, now: Instant) {
        let round = self.round.get_or_insert_with(|| Round::new(kind, instances, now));
        round.join(kind, now);
    }

    /// Ends the list in progress, which is as of this revision, and returns it, if any.
    pub(super) fn end(&mut self, revision: u64, now: Instant) -> Option<ListInProgress> {
        let list = self.list.take()?;
        match &list.scope {
            ListScope::Registry => {
                // While svcdns was down, the store went back in time or was replaced.
                let known = std::mem::take(&mut self.restored_revision);
                if (1..known).contains(&revision)
                    && let Some(round) = &mut self.round
                {
                    round.join(ListKind::Restored, now);
                }
                self.names.record_all();
                self.synced = true;
            }
            ListScope::Service(name) => {
                if self.names.record(name)
                    && let Some(round) = &mut self.round
                {
                    round.renew(now);
                }
            }
        }
        Some(list)
    }

    /// Ends the round and returns it, if any.
    pub(super) fn end_round(&mut self, now: Instant) -> Option<Round> {
        let round = self.round.take()?;
        self.synced |= self.names.are_known();
        if round.is_suspicious() {
            self.reconnected = Some(now);
        }
        Some(round)
    }

    /// Returns when the round ends if it makes no progress.
    ///
    /// A list in progress is progress.
    pub(super) fn round_wake(&self) -> Option<Instant> {
        self.round.as_ref().filter(|_| self.list.is_none()).map(|round| round.deadline)
    }

    /// Returns whether the registry has just reconnected: its round is in progress or recent.
    pub(super) fn has_reconnected(&self, now: Instant) -> bool {
        let is_recent = |end| now.saturating_duration_since(end) < BURST_WINDOW;
        self.round_is_suspicious() || self.reconnected.is_some_and(is_recent)
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
    /// Records a removal; revision 0 (the registry has none) is ignored.
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
    fn the_latest_removals_are_remembered_in_bounded_memory() {
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
