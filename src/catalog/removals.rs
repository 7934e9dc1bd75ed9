//! Removals: deletes, expired leases, holds, and keys missing from a list.

use std::sync::Arc;
use std::time::Instant;

use super::Catalog;
use super::expiry::{CheckOutcome, Tombstone};
use super::grace::{Hold, Sweep};
use super::key::{RegistryKey, SharedKeyFields};
use super::mirror::{EntryState, Mirror};
use super::tracker::ListInProgress;
use crate::name::base_of;
use crate::service::{LeaseReply, ListKind, ListScope, RegistryId, Removal, key_prefix};

impl Catalog {
    /// Applies a delete event; one of a leased key may be held ([`super::expiry`]).
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
        let Some(key) = self.mirror.key(slot).map(Arc::clone) else { return };
        if removal == Removal::Explicit || key.lease == 0 || self.grace(registry).is_zero() {
            self.update_entry(slot, None, EntryState::Removed);
        } else if self.mirror.state(slot) == EntryState::Present {
            self.advance_time(registry, now);
            let before = self.mirror.tally(registry).instances;
            let tombstone = Tombstone {
                at: now,
                revision,
                slot,
                key,
                before,
                held_until: None,
                expired: false,
            };
            self.trackers[registry.index()].detector.add(tombstone);
            self.update_entry(slot, None, EntryState::Tombstoned);
        } else {
            return;
        }
        self.mark_changed(slot, registry);
    }

    /// Takes the reply to a lease check.
    pub(super) fn conclude_lease_check(
        &mut self,
        registry: RegistryId,
        reply: LeaseReply,
        now: Instant,
    ) {
        self.advance_time(registry, now);
        let detector = &mut self.trackers[registry.index()].detector;
        let CheckOutcome { deregistered, expired, is_settled } = detector.conclude(reply, now);
        let released = if is_settled { detector.release() } else { Vec::new() };
        for tombstone in deregistered {
            self.finalize(&tombstone);
        }
        for tombstone in expired {
            let until = tombstone.at + self.grace(registry);
            if tombstone.held_until.is_some() || !is_pending(&self.mirror, &tombstone) {
                continue;
            }
            if until > now {
                self.hold(registry, tombstone.slot, until);
                self.mirror.mark_changed(self.mirror.base(tombstone.slot), None);
            } else {
                self.finalize(&tombstone);
            }
        }
        for (slot, key) in released {
            if is_unchanged(&self.mirror, slot, &key, EntryState::Held) {
                self.update_entry(slot, None, EntryState::Tombstoned);
                self.mirror.mark_changed(self.mirror.base(slot), None);
            }
        }
    }

    /// Ends a complete list: removes, or holds, the keys that the list did not name.
    pub(super) fn end_list(&mut self, registry: RegistryId, list: ListInProgress, now: Instant) {
        let generation = self.trackers[registry.index()].generation;
        let swept = match &list.scope {
            ListScope::Registry => self.mirror.not_in_list(registry, generation),
            ListScope::Service(name) => self.not_in_service_list(registry, name),
        };
        if list.is_check() {
            self.trackers[registry.index()].differences += swept.len() as u64;
        }
        self.sweep(registry, &list, swept, now);
        self.ledger.end_list(registry, &list.scope, generation);
        self.mirror.queue_waiting(registry);
    }

    /// Removes, or holds, the keys of the names that a complete list of names does not have.
    pub(super) fn replace_names(
        &mut self,
        registry: RegistryId,
        kind: ListKind,
        names: Box<[Box<str>]>,
        now: Instant,
    ) {
        let before = self.mirror.tally(registry).instances;
        let tracker = &mut self.trackers[registry.index()];
        tracker.generation = tracker.generation.wrapping_add(1);
        let gone = tracker.names.replace(names);
        tracker.synced |= tracker.names.is_complete();
        self.ledger.remove_names(registry, &gone);
        let swept = gone.iter().flat_map(|name| self.not_in_service_list(registry, name)).collect();
        self.sweep(
            registry,
            &ListInProgress { scope: ListScope::Registry, kind, before },
            swept,
            now,
        );
    }

    /// Returns the present keys of a registered name that the last list did not name.
    fn not_in_service_list(&self, registry: RegistryId, name: &str) -> Vec<u32> {
        let generation = self.trackers[registry.index()].generation;
        // Without a base, all keys of the name are rejected.
        let Ok(base) = base_of(name, &self.settings.zones) else { return Vec::new() };
        self.mirror.not_in_service_list(registry, &base.text, &key_prefix(name), generation)
    }

    /// Removes, or holds, the keys that a complete list did not name.
    fn sweep(
        &mut self,
        registry: RegistryId,
        list: &ListInProgress,
        swept: Vec<u32>,
        now: Instant,
    ) {
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
        for slot in swept {
            if hold {
                self.hold(registry, slot, now + grace);
            } else {
                self.update_entry(slot, None, EntryState::Removed);
            }
            self.mirror.mark_changed(self.mirror.base(slot), None);
        }
    }

    /// Ends the tombstones and holds that are over at this time.
    pub(super) fn advance_time(&mut self, registry: RegistryId, now: Instant) {
        let tracker = &mut self.trackers[registry.index()];
        let (tombstones, holds) = (tracker.detector.advance(now), tracker.holds.take_ended(now));
        for tombstone in tombstones {
            self.finalize(&tombstone);
        }
        for Hold { slot, key } in holds {
            if is_unchanged(&self.mirror, slot, &key, EntryState::Held) {
                self.update_entry(slot, None, EntryState::Removed);
                self.mirror.mark_changed(self.mirror.base(slot), None);
            }
        }
    }

    /// Holds the keys of recent deletes while there is a doubt about them.
    ///
    /// Only the keys whose removal no [`Self::settle`] has published yet are held.
    pub(super) fn hold_unpublished(&mut self, registry: RegistryId, now: Instant) {
        let mut tombstones = self.trackers[registry.index()].detector.take_unpublished();
        for tombstone in &mut tombstones {
            let until = tombstone.at + self.grace(registry);
            if until > now
                && is_pending(&self.mirror, tombstone)
                && let Some(held) = self.hold(registry, tombstone.slot, until)
            {
                tombstone.key = held;
                tombstone.held_until = Some(until);
            }
        }
        self.trackers[registry.index()].detector.put_back(tombstones);
    }

    /// Removes a tombstone's key for good.
    fn finalize(&mut self, tombstone: &Tombstone) {
        if is_pending(&self.mirror, tombstone) {
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
    ) -> Option<Arc<RegistryKey>> {
        let mut held = RegistryKey::clone(self.mirror.key(slot)?);
        held.shared = self.shared_fields.intern(Arc::new(SharedKeyFields {
            held: true,
            ..SharedKeyFields::clone(&held.shared)
        }));
        let held = Arc::new(held);
        self.update_entry(slot, Some(Arc::clone(&held)), EntryState::Held);
        self.trackers[registry.index()].holds.add(until, Hold { slot, key: Arc::clone(&held) });
        Some(held)
    }
}

/// Returns whether a tombstone's key was neither put again nor removed for good.
pub(super) fn is_pending(mirror: &Mirror, tombstone: &Tombstone) -> bool {
    [EntryState::Tombstoned, EntryState::Held]
        .into_iter()
        .any(|state| is_unchanged(mirror, tombstone.slot, &tombstone.key, state))
}

/// Returns whether an entry still has this very key and state.
///
/// A put of a held or tombstoned key creates a new key, even with the same content.
fn is_unchanged(mirror: &Mirror, slot: u32, key: &Arc<RegistryKey>, state: EntryState) -> bool {
    mirror.state(slot) == state && mirror.key(slot).is_some_and(|known| Arc::ptr_eq(known, key))
}
