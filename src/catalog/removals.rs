//! Removals: deletes, expired leases and holds.

use std::sync::Arc;
use std::time::Instant;

use super::Catalog;
use super::expiry::{CheckOutcome, Tombstone};
use super::grace::HeldKey;
use super::holds::HoldCause;
use super::key::{RegistryKey, SharedKeyFields};
use super::mirror::{EntryState, Mirror};
use crate::service::{LeaseReply, RegistryId, Removal};

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
        let hash = self.mirror.hasher().key(registry, text);
        let slot = self.mirror.find(hash, registry, || text);
        if self.is_outdated(registry, hash, slot, revision) {
            return;
        }
        self.trackers[registry.index()].removals.record(hash, revision);
        self.ledger.remove_key(registry, hash);
        let Some(slot) = slot else { return };
        let Some(key) = self.mirror.key(slot).map(Arc::clone) else { return };
        let tracker = &self.trackers[registry.index()];
        if removal == Removal::Unknown && tracker.is_listing_restored_service() {
            // At the end of the list, the key is held with all others that the list does not name.
            return;
        }
        let in_service_list = tracker.is_listing_service();
        let hold_at_once = in_service_list && tracker.has_reconnected(now);
        let may_expire = key.lease != 0 || in_service_list;
        if removal == Removal::Explicit || !may_expire || self.grace(registry).is_zero() {
            self.update_entry(slot, None, EntryState::Removed);
        } else if self.mirror.state(slot) == EntryState::Present {
            self.advance_time(registry, now);
            let before = self.mirror.tally(registry).instances;
            let mut tombstone = Tombstone {
                at: now,
                revision,
                slot,
                key,
                before,
                held_until: None,
                expired: in_service_list,
            };
            if hold_at_once {
                self.hold_tombstone(registry, &mut tombstone);
            } else {
                self.update_entry(slot, None, EntryState::Tombstoned);
            }
            self.trackers[registry.index()].detector.add(tombstone);
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
        self.hold_expired(registry, expired, now);
        for (slot, key) in released {
            if is_unchanged(&self.mirror, slot, &key, EntryState::Held) {
                self.update_entry(slot, None, EntryState::Tombstoned);
                self.mirror.mark_changed(self.mirror.base(slot), None);
            }
        }
    }

    /// Holds keys that per-service lists reported as expired, if it is a mass expiry.
    pub(super) fn hold_mass_expiry(&mut self, registry: RegistryId, now: Instant) {
        let leaves_nothing = self.mirror.tally(registry).instances == 0;
        let tracker = &mut self.trackers[registry.index()];
        let leaves_nothing = leaves_nothing && tracker.has_reconnected(now);
        let expired = tracker.detector.take_mass_expiry(leaves_nothing);
        self.hold_expired(registry, expired, now);
    }

    /// Holds the keys of a mass expiry for the rest of the removal grace.
    fn hold_expired(&mut self, registry: RegistryId, expired: Vec<Tombstone>, now: Instant) {
        let is_mass_expiry = !expired.is_empty();
        for tombstone in expired {
            let until = tombstone.at + self.grace(registry);
            if tombstone.held_until.is_some() || !is_pending(&self.mirror, &tombstone) {
                continue;
            }
            if until > now {
                self.hold(registry, tombstone.slot, HoldCause::Expiry, (tombstone.at, until));
                self.mirror.mark_changed(self.mirror.base(tombstone.slot), None);
            } else {
                self.finalize(&tombstone);
            }
        }
        if is_mass_expiry {
            self.confirm_hold(registry, HoldCause::Expiry);
        }
    }

    /// Ends the tombstones, the holds and the round whose time has passed.
    pub(super) fn advance_time(&mut self, registry: RegistryId, now: Instant) {
        let tracker = &mut self.trackers[registry.index()];
        let (tombstones, held) = (tracker.detector.advance(now), tracker.held_keys.take_ended(now));
        for tombstone in tombstones {
            self.finalize(&tombstone);
        }
        self.end_holds(held);
        if self.trackers[registry.index()].detector.has_unanswered() {
            self.confirm_hold(registry, HoldCause::Expiry);
        }
        if self.trackers[registry.index()].round_wake().is_some_and(|wake| wake <= now) {
            self.end_round(registry, now);
        }
    }

    /// Removes keys whose hold has ended, unless they were put again.
    pub(super) fn end_holds(&mut self, held: Vec<HeldKey>) {
        for HeldKey { slot, key } in held {
            if is_unchanged(&self.mirror, slot, &key, EntryState::Held) {
                self.update_entry(slot, None, EntryState::Removed);
                self.mirror.mark_changed(self.mirror.base(slot), None);
            }
        }
    }

    /// Holds the keys of recent deletes while they are in doubt.
    ///
    /// Only the keys whose removal no [`Self::settle`] has published yet are held.
    pub(super) fn hold_unpublished(&mut self, registry: RegistryId, now: Instant) {
        let mut tombstones = self.trackers[registry.index()].detector.take_unpublished();
        for tombstone in &mut tombstones {
            let is_over = tombstone.at + self.grace(registry) <= now;
            if tombstone.held_until.is_none() && !is_over && is_pending(&self.mirror, tombstone) {
                self.hold_tombstone(registry, tombstone);
            }
        }
        self.trackers[registry.index()].detector.put_back(tombstones);
    }

    /// Holds the key of a tombstone for the removal grace, counted from the delete.
    fn hold_tombstone(&mut self, registry: RegistryId, tombstone: &mut Tombstone) {
        let until = tombstone.at + self.grace(registry);
        let period = (tombstone.at, until);
        if let Some(held) = self.hold(registry, tombstone.slot, HoldCause::Expiry, period) {
            tombstone.key = held;
            tombstone.held_until = Some(until);
        }
    }

    /// Removes a tombstone's key for good.
    pub(super) fn finalize(&mut self, tombstone: &Tombstone) {
        if is_pending(&self.mirror, tombstone) {
            self.update_entry(tombstone.slot, None, EntryState::Removed);
            self.mirror.mark_changed(self.mirror.base(tombstone.slot), None);
        }
    }

    /// Keeps serving a key that its registry has removed; returns the held key.
    ///
    /// `period` is the time of the removal, and the end of the hold.
    pub(super) fn hold(
        &mut self,
        registry: RegistryId,
        slot: u32,
        cause: HoldCause,
        period: (Instant, Instant),
    ) -> Option<Arc<RegistryKey>> {
        let mut held = RegistryKey::clone(self.mirror.key(slot)?);
        held.shared = self.builder.shared_fields.intern(Arc::new(SharedKeyFields {
            hold: Some(cause),
            ..SharedKeyFields::clone(&held.shared)
        }));
        let held = Arc::new(held);
        self.update_entry(slot, Some(Arc::clone(&held)), EntryState::Held);
        let is_first = *self.mirror.tally(registry).held.get(cause) == 1;
        let key = HeldKey { slot, key: Arc::clone(&held) };
        self.trackers[registry.index()].held_keys.add(key, cause, period, is_first);
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
