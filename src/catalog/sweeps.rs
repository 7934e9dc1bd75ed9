//! Sweeps: removal of the keys that are missing from a complete list.

use std::time::Instant;

use super::Catalog;
use super::grace::HeldKey;
use super::holds::HoldCause;
use super::mirror::EntryState;
use super::tracker::ListInProgress;
use crate::name::base_of;
use crate::service::{ListKind, ListScope, RegistryId, key_prefix};

impl Catalog {
    /// Begins a list, and abandons one in progress.
    pub(super) fn begin_list(
        &mut self,
        registry: RegistryId,
        kind: ListKind,
        scope: ListScope,
        now: Instant,
    ) {
        let tracker = &mut self.trackers[registry.index()];
        if tracker.list.is_some() {
            self.mirror.dedup_waiting(registry);
        }
        let base = match &scope {
            ListScope::Registry => None,
            ListScope::Service(name) => base_of(name, &self.settings.zones).ok(),
        };
        let base = base.map(|base| base.text);
        tracker.begin(kind, (scope, base), self.mirror.tally(registry).instances, now);
        self.ledger.begin_list(registry);
    }

    /// Ends a complete list: removes, or holds, the keys that the list did not name.
    ///
    /// A list of the registry costs O(all keys), a per-service list O(keys of the service).
    pub(super) fn end_list(&mut self, registry: RegistryId, revision: u64, now: Instant) {
        let tracker = &mut self.trackers[registry.index()];
        let (is_checking, generation) = (tracker.is_checking(), tracker.generation);
        let Some(list) = tracker.end(revision, now) else { return };
        let mut swept = match &list.scope {
            ListScope::Registry => self.mirror.not_in_list(registry, generation),
            ListScope::Service(name) => self.keys_of_name(registry, name, Some(generation)),
        };
        if !list.unreadable.is_empty() {
            swept.retain(|slot| list.can_read(&self.mirror.hash_and_text(*slot).1));
        }
        let ListInProgress { scope, other_bases, in_round, is_doubted, .. } = list;
        if is_checking {
            self.trackers[registry.index()].differences += swept.len() as u64;
        }
        if is_doubted && !self.grace(registry).is_zero() {
            self.hold_all(registry, &swept, now);
        } else {
            self.sweep(registry, swept, in_round, now);
        }
        self.end_complete_round(registry, now);
        if let ListScope::Service(name) = &scope {
            self.trackers[registry.index()].names.set_bases(name, other_bases);
            self.hold_mass_expiry(registry, now);
        }
        self.ledger.end_list(registry, &scope, generation);
        self.mirror.queue_waiting(registry);
    }

    /// Takes a list of the names: removes, or holds, the keys of all other names.
    ///
    /// O(names and removed keys); after a list of the registry, once O(all keys).
    pub(super) fn replace_names(
        &mut self,
        registry: RegistryId,
        kind: ListKind,
        names: Box<[Box<str>]>,
        now: Instant,
    ) {
        let tracker = &mut self.trackers[registry.index()];
        if tracker.list.is_some() {
            self.mirror.dedup_waiting(registry);
        }
        let judges_all = tracker.begin_names(kind, self.mirror.tally(registry).instances, now);
        let may_lack = tracker.names.may_lack();
        let gone = tracker.names.replace(names);
        let is_suspicious = tracker.round_is_suspicious();
        let (mut in_round, mut others) = (Vec::new(), Vec::new());
        let names = &self.trackers[registry.index()].names;
        if may_lack {
            let prefixes = names.iter().map(key_prefix).collect();
            let swept = if is_suspicious { &mut in_round } else { &mut others };
            *swept = self.mirror.of_other_names(registry, &prefixes);
        } else {
            for gone in &gone {
                let is_judged = judges_all || (is_suspicious && gone.awaited);
                let swept = if is_judged { &mut in_round } else { &mut others };
                swept.extend(self.keys_of_name(registry, &gone.name, None));
            }
        }
        self.ledger.retain_names(registry, names);
        for gone in gone {
            self.trackers[registry.index()].names.set_bases(&gone.name, Vec::new());
        }
        self.sweep(registry, in_round, true, now);
        self.sweep(registry, others, false, now);
        self.end_complete_round(registry, now);
    }

    /// Returns the present keys of a name, without those seen in list generation `except`.
    fn keys_of_name(&self, registry: RegistryId, name: &str, except: Option<u32>) -> Vec<u32> {
        let prefix = key_prefix(name);
        // Without a base, no key registers the name itself.
        let own = base_of(name, &self.settings.zones).ok().map(|base| base.text);
        let others = self.trackers[registry.index()].names.other_bases(name);
        let bases = own.as_deref().into_iter().chain(others);
        let keys = bases.flat_map(|base| self.mirror.with_prefix(registry, base, &prefix));
        let mut slots: Vec<u32> = keys.collect();
        slots.retain(|slot| {
            self.mirror.state(*slot) == EntryState::Present
                && except.is_none_or(|generation| self.mirror.generation(*slot) != generation)
        });
        slots
    }

    /// Removes keys that are missing from a list, or holds them as the round demands.
    ///
    /// Before the last list of a suspicious round, all of them are held, since only the sum over
    /// the round shows whether it is a mass removal.
    fn sweep(&mut self, registry: RegistryId, swept: Vec<u32>, in_round: bool, now: Instant) {
        let keys = swept.iter().filter_map(|&slot| self.mirror.key(slot));
        let instances = keys.map(|key| key.endpoints.len()).sum();
        let tally = self.mirror.tally(registry);
        let (keys_left, instances_left) =
            (tally.present - swept.len(), tally.instances - instances);
        let tracker = &mut self.trackers[registry.index()];
        let (grace, is_last) = (tracker.grace, tracker.names.are_listed());
        let round = tracker.round.as_mut().filter(|_| in_round && !grace.is_zero());
        let hold = round.and_then(|round| {
            round.add(swept.len(), instances);
            let is_held = if is_last {
                round.should_hold(keys_left, instances_left)
            } else {
                round.is_suspicious()
            };
            is_held.then(|| round.cause())
        });
        for slot in swept {
            if let Some(cause) = hold {
                let held = self.hold(registry, slot, cause, (now, now + grace));
                let round = self.trackers[registry.index()].round.as_mut().filter(|_| !is_last);
                if let (Some(round), Some(key)) = (round, held) {
                    round.held.push(HeldKey { slot, key });
                }
            } else {
                self.update_entry(slot, None, EntryState::Removed);
            }
            self.mirror.mark_changed(self.mirror.base(slot), None);
        }
        if let Some(cause) = hold.filter(|_| is_last) {
            self.confirm_hold(registry, cause);
        }
    }

    /// Holds keys that are missing from a list that may be incomplete.
    fn hold_all(&mut self, registry: RegistryId, swept: &[u32], now: Instant) {
        for &slot in swept {
            let period = (now, now + self.grace(registry));
            self.hold(registry, slot, HoldCause::Doubt, period);
            self.mirror.mark_changed(self.mirror.base(slot), None);
        }
    }

    /// Ends the round if it has listed each name.
    fn end_complete_round(&mut self, registry: RegistryId, now: Instant) {
        if self.trackers[registry.index()].names.are_listed() {
            self.end_round(registry, now);
        }
    }

    /// Ends the round, if any: the held keys stay held if they are a mass removal.
    pub(super) fn end_round(&mut self, registry: RegistryId, now: Instant) {
        let Some(round) = self.trackers[registry.index()].end_round(now) else { return };
        let tally = self.mirror.tally(registry);
        if round.should_hold(tally.present, tally.instances) {
            self.confirm_hold(registry, round.cause());
        } else {
            self.end_holds(round.held);
        }
    }
}
