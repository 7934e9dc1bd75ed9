//! Removals.

use std::sync::Arc;
use std::time::Instant;

use super::Catalog;
use super::follow::List;
use super::grace::{Answer, DOUBT, Hold, Sweep, Tomb};
use super::key::{Frame, Key};
use super::mirror::Standing;
use crate::service::{ListKind, RegistryId, Removal};

impl Catalog {
    pub(super) fn delete(&mut self, registry: RegistryId, text: &str, revision: u64, removal: Removal, now: Instant) {
        let hash = self.mirror.hash(registry, text);
        let slot = self.mirror.find(hash, registry, text);
        if self.is_outdated(registry, hash, slot, revision) {
            return;
        }
        self.follows[registry.place()].memory.note(hash, revision);
        self.ledger.clear(registry, hash);
        let Some(slot) = slot else { return };
        match removal {
            Removal::Lease(lease) if lease != 0 && !self.grace(registry).is_zero() => {
                if self.mirror.standing(slot) == Standing::Present {
                    self.expire(registry, slot, lease, now);
                }
            }
            Removal::Lease(_) | Removal::Explicit => {
                self.change(slot, None, Standing::Removed);
                self.touch(slot, registry);
            }
        }
    }

    /// A key that hung on a lease is gone: believed for now, unless a storm of expiry rages.
    fn expire(&mut self, registry: RegistryId, slot: u32, lease: i64, now: Instant) {
        self.pass_time(registry, now);
        let before = self.mirror.tally(registry).instances;
        let Some(key) = self.mirror.key(slot).map(Arc::clone) else { return };
        let storm = &mut self.follows[registry.place()].storm;
        if storm.is_expiry() {
            storm.goes_on(now);
            self.hold(registry, slot, now + self.grace(registry), Standing::Removed);
        } else {
            storm.bury(Tomb { at: now, slot, key, lease, before });
            self.change(slot, None, Standing::Buried);
        }
        self.touch(slot, registry);
    }

    pub(super) fn answer(&mut self, registry: RegistryId, gone: &[i64], now: Instant) {
        self.pass_time(registry, now);
        match self.follows[registry.place()].storm.answer(gone) {
            Answer::Unasked => {}
            Answer::Expiry(tombs) => {
                for tomb in tombs {
                    let until = tomb.at + self.grace(registry);
                    if until > now && self.is_open(&tomb) {
                        self.hold(registry, tomb.slot, until, Standing::Removed);
                        self.mirror.touch(self.mirror.base(tomb.slot), None);
                    } else {
                        self.forget(&tomb);
                    }
                }
            }
            Answer::Deliberate(tombs) => tombs.iter().for_each(|tomb| self.forget(tomb)),
        }
    }

    /// Sweeps what a complete list did not name.
    pub(super) fn end_list(&mut self, registry: RegistryId, list: List, now: Instant) {
        let generation = self.follows[registry.place()].generation;
        let swept = self.mirror.older(registry, generation);
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
        let hold = !grace.is_zero() && sweep.is_doubtful(list.kind);
        if list.kind == ListKind::Routine {
            self.follows[registry.place()].differences += swept.len() as u64;
        }
        for slot in swept {
            if hold {
                self.hold(registry, slot, now + grace, Standing::Removed);
            } else {
                self.change(slot, None, Standing::Removed);
            }
            self.mirror.touch(self.mirror.base(slot), None);
        }
        self.ledger.end_list(registry, generation);
        self.mirror.release(registry);
    }

    /// Ends what is over: tombstones, storms, holds.
    pub(super) fn pass_time(&mut self, registry: RegistryId, now: Instant) {
        let follow = &mut self.follows[registry.place()];
        let (tombs, holds) = (follow.storm.advance(now), follow.holds.ended(now));
        for tomb in tombs {
            self.forget(&tomb);
        }
        for Hold { slot, key, then } in holds {
            if self.is_still(slot, &key, Standing::Held) {
                self.change(slot, None, then);
                self.mirror.touch(self.mirror.base(slot), None);
            }
        }
    }

    /// While a registry is asked whether leases expired: goes on serving what hung on them and was not seen missing yet.
    pub(super) fn give_benefit_of_doubt(&mut self, registry: RegistryId, now: Instant) {
        let mut tombs = self.follows[registry.place()].storm.take_unseen();
        for tomb in &mut tombs {
            let until = tomb.at + DOUBT.min(self.grace(registry));
            if until > now
                && self.is_open(tomb)
                && let Some(held) = self.hold(registry, tomb.slot, until, Standing::Buried)
            {
                tomb.key = held;
            }
        }
        self.follows[registry.place()].storm.put_back(tombs);
    }

    /// Whether a tombstone still stands for its key: that was neither put again nor removed.
    fn is_open(&self, tomb: &Tomb) -> bool {
        [Standing::Buried, Standing::Held].into_iter().any(|standing| self.is_still(tomb.slot, &tomb.key, standing))
    }

    /// Takes a tombstone's key out for good.
    fn forget(&mut self, tomb: &Tomb) {
        if self.is_open(tomb) {
            self.change(tomb.slot, None, Standing::Removed);
            self.mirror.touch(self.mirror.base(tomb.slot), None);
        }
    }

    /// Serves a key although its registry says that it is gone; returns it as it is served.
    fn hold(&mut self, registry: RegistryId, slot: u32, until: Instant, then: Standing) -> Option<Arc<Key>> {
        let mut held = Key::clone(self.mirror.key(slot)?);
        held.frame = self.frames.intern(Arc::new(Frame { held: true, ..Frame::clone(&held.frame) }));
        let held = Arc::new(held);
        self.change(slot, Some(Arc::clone(&held)), Standing::Held);
        self.follows[registry.place()].holds.add(until, Hold { slot, key: Arc::clone(&held), then });
        Some(held)
    }

    /// Whether an entry is still the one that a tombstone or a hold was made for: each put makes a new key.
    fn is_still(&self, slot: u32, key: &Arc<Key>, standing: Standing) -> bool {
        self.mirror.standing(slot) == standing && self.mirror.key(slot).is_some_and(|known| Arc::ptr_eq(known, key))
    }
}
