//! Removals: deletes, expired leases, holds, and keys missing from a list.

use std::sync::Arc;
use std::time::Instant;

use super::Catalog;
use super::grace::{Conclusion, Hold, LEASE_CHECK_HOLD, Sweep, Tombstone};
use super::key::{RegistryKey, SharedKeyFields};
use super::mirror::EntryState;
use super::tracker::ListInProgress;
use crate::service::{ListKind, RegistryId, Removal};

impl Catalog {
    /// Applies a delete event; one of a leased key may be held ([`super::grace`]).
    pub(super) fn delete(
        &mut self,
        registry: RegistryId,
        text: &str,
        revision: u64,
        removal: Removal,
        now: Instant,
    ) {
        let hash = self.mirror.hash(registry, text);
        let slot = self.mirror.find(hash, registry, text);
        if self.is_outdated(registry, hash, slot, revision) {
            return;
        }
        self.trackers[registry.index()].removals.record(hash, revision);
        self.ledger.remove_key(registry, hash);
        let Some(slot) = slot else { return };
        match removal {
            Removal::Lease(lease) if lease != 0 && !self.grace(registry).is_zero() => {
                if self.mirror.state(slot) == EntryState::Present {
                    self.delete_leased(registry, slot, lease, now);
                }
            }
            Removal::Lease(_) | Removal::Explicit => {
                self.update_entry(slot, None, EntryState::Removed);
                self.mark_changed(slot, registry);
            }
        }
    }

    /// Applies the delete of a leased key: leaves a tombstone, or holds the key.
    fn delete_leased(&mut self, registry: RegistryId, slot: u32, lease: i64, now: Instant) {
        self.advance_time(registry, now);
        let before = self.mirror.tally(registry).instances;
        let Some(key) = self.mirror.key(slot).map(Arc::clone) else { return };
        let detector = &mut self.trackers[registry.index()].detector;
        if detector.is_expiry() {
            detector.extend(now);
            self.hold(registry, slot, now + self.grace(registry), EntryState::Removed);
        } else {
            detector.add(Tombstone { at: now, slot, key, lease, before });
            self.update_entry(slot, None, EntryState::Tombstoned);
        }
        self.mark_changed(slot, registry);
    }

    /// Takes the reply to a lease check: these of the checked leases no longer exist.
    pub(super) fn conclude_lease_check(
        &mut self,
        registry: RegistryId,
        gone: &[i64],
        now: Instant,
    ) {
        self.advance_time(registry, now);
        match self.trackers[registry.index()].detector.conclude(gone) {
            Conclusion::NotAsked => {}
            Conclusion::Expired(tombstones) => {
                for tombstone in tombstones {
                    let until = tombstone.at + self.grace(registry);
                    if until > now && self.is_pending(&tombstone) {
                        self.hold(registry, tombstone.slot, until, EntryState::Removed);
                        self.mirror.mark_changed(self.mirror.base(tombstone.slot), None);
                    } else {
                        self.finalize(&tombstone);
                    }
                }
            }
            Conclusion::Deregistered(tombstones) => {
                for tombstone in &tombstones {
                    self.finalize(tombstone);
                }
            }
        }
    }

    /// Ends a complete list: removes, or holds, the keys that the list did not name.
    pub(super) fn end_list(&mut self, registry: RegistryId, list: ListInProgress, now: Instant) {
        let generation = self.trackers[registry.index()].generation;
        let swept = self.mirror.not_in_list(registry, generation);
        let keys = swept.iter().filter_map(|&slot| self.mirror.key(slot));
        let instances = keys.map(|key| key.endpoints.len()).sum();
        let tally = self.mirror.tally(registry);
        let sweep = Sweep {
            keys: swept.len(),
            instances,
            before: list.before,
            keys_left: tally.present - swept.len(),
            instances_left: tally.instances - instances,
        };
        let grace = self.grace(registry);
        let hold = !grace.is_zero() && sweep.should_hold(list.kind);
        if list.kind == ListKind::Routine {
            self.trackers[registry.index()].differences += swept.len() as u64;
        }
        for slot in swept {
            if hold {
                self.hold(registry, slot, now + grace, EntryState::Removed);
            } else {
                self.update_entry(slot, None, EntryState::Removed);
            }
            self.mirror.mark_changed(self.mirror.base(slot), None);
        }
        self.ledger.end_list(registry, generation);
        self.mirror.queue_waiting(registry);
    }

    /// Expires tombstones, bursts and holds that are over at this time.
    pub(super) fn advance_time(&mut self, registry: RegistryId, now: Instant) {
        let tracker = &mut self.trackers[registry.index()];
        let (tombstones, holds) = (tracker.detector.advance(now), tracker.holds.take_ended(now));
        for tombstone in tombstones {
            self.finalize(&tombstone);
        }
        for Hold { slot, key, after } in holds {
            if self.is_unchanged(slot, &key, EntryState::Held) {
                self.update_entry(slot, None, after);
                self.mirror.mark_changed(self.mirror.base(slot), None);
            }
        }
    }

    /// Holds recent tombstones while a lease check is pending.
    ///
    /// Only the keys whose removal no [`Self::settle`] has published yet are held.
    pub(super) fn hold_unpublished(&mut self, registry: RegistryId, now: Instant) {
        let mut tombstones = self.trackers[registry.index()].detector.take_unpublished();
        for tombstone in &mut tombstones {
            let until = tombstone.at + LEASE_CHECK_HOLD.min(self.grace(registry));
            if until > now
                && self.is_pending(tombstone)
                && let Some(held) =
                    self.hold(registry, tombstone.slot, until, EntryState::Tombstoned)
            {
                tombstone.key = held;
            }
        }
        self.trackers[registry.index()].detector.put_back(tombstones);
    }

    /// Returns whether a tombstone's key was neither put again nor removed for good.
    fn is_pending(&self, tombstone: &Tombstone) -> bool {
        [EntryState::Tombstoned, EntryState::Held]
            .into_iter()
            .any(|state| self.is_unchanged(tombstone.slot, &tombstone.key, state))
    }

    /// Removes a tombstone's key for good.
    fn finalize(&mut self, tombstone: &Tombstone) {
        if self.is_pending(tombstone) {
            self.update_entry(tombstone.slot, None, EntryState::Removed);
            self.mirror.mark_changed(self.mirror.base(tombstone.slot), None);
        }
    }

    /// Keeps serving a key that its registry has removed; returns the held key.
    fn hold(
        &mut self,
        registry: RegistryId,
        slot: u32,
        until: Instant,
        after: EntryState,
    ) -> Option<Arc<RegistryKey>> {
        let mut held = RegistryKey::clone(self.mirror.key(slot)?);
        held.shared = self.shared_fields.intern(Arc::new(SharedKeyFields {
            held: true,
            ..SharedKeyFields::clone(&held.shared)
        }));
        let held = Arc::new(held);
        self.update_entry(slot, Some(Arc::clone(&held)), EntryState::Held);
        self.trackers[registry.index()]
            .holds
            .add(until, Hold { slot, key: Arc::clone(&held), after });
        Some(held)
    }

    /// Returns whether an entry still has this very key and state.
    ///
    /// A put of a held or tombstoned key creates a new key, even with the same content.
    fn is_unchanged(&self, slot: u32, key: &Arc<RegistryKey>, state: EntryState) -> bool {
        self.mirror.state(slot) == state
            && self.mirror.key(slot).is_some_and(|known| Arc::ptr_eq(known, key))
    }
}
