//! The current holds, and their end by hand.

use super::Catalog;
use super::grace::HoldPeriod;
use super::holds::{Hold, HoldCause, Released};
use crate::service::{RegistryId, RegistrySet, Release};

impl Catalog {
    /// Returns the current holds, in the order of the registries.
    pub fn holds(&self) -> Vec<Hold> {
        self.registries().flat_map(|registry| self.holds_of(registry)).collect()
    }

    fn holds_of(&self, registry: RegistryId) -> impl Iterator<Item = Hold> {
        let counts = self.mirror.tally(registry).held;
        let held_keys = &self.trackers[registry.index()].held_keys;
        HoldCause::ALL.into_iter().filter_map(move |cause| {
            let keys = *counts.get(cause);
            let HoldPeriod { since, until, is_certain } =
                held_keys.period(cause).filter(|_| keys > 0)?;
            Some(Hold { registry, cause, keys, since, until, is_certain })
        })
    }

    /// Records that the held keys of a cause, if any, are a mass removal.
    pub(super) fn confirm_hold(&mut self, registry: RegistryId, cause: HoldCause) {
        if *self.mirror.tally(registry).held.get(cause) > 0 {
            self.trackers[registry.index()].held_keys.confirm(cause);
        }
    }

    /// Applies the held removals of registries, and forgets what may become a hold.
    ///
    /// Later removals are judged anew.
    pub(super) fn release(&mut self, Release { ticket, registries }: Release) {
        let known = self.registries().collect::<RegistrySet>().intersection(registries);
        let holds = known.iter().flat_map(|registry| self.holds_of(registry)).collect();
        for registry in known.iter() {
            let tracker = &mut self.trackers[registry.index()];
            if let Some(round) = &mut tracker.round {
                round.held.clear();
            }
            let (tombstones, held_keys) =
                (tracker.detector.take_all(), tracker.held_keys.take_all());
            for tombstone in tombstones {
                self.finalize(&tombstone);
            }
            self.end_holds(held_keys);
        }
        self.released.push(Released { ticket, holds });
    }
}
