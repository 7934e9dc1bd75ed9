//! Puts: build the key of a registration, check the limits and store the key.

use std::sync::Arc;

use super::Catalog;
use super::build::{BuiltKey, RefusedKey};
use super::mirror::{EntryState, instance_cost};
use crate::service::{Put, Reason, RegistryId};

impl Catalog {
    /// Applies a put: stores the key, or replaces its previous content by a rejection.
    pub(super) fn put(&mut self, registry: RegistryId, put: Put) {
        let Put { key: text, revision, lease, content } = put;
        let hasher = self.mirror.hasher();
        let hash = hasher.key(registry, &text);
        let slot = self.mirror.find(hash, registry, || &*text);
        let in_list = self.trackers[registry.index()].list.is_some();
        if !in_list && self.is_outdated(registry, hash, slot, revision) {
            return;
        }
        let built = content.and_then(|content| {
            self.builder.build(&self.settings, registry, &text, (revision, lease), content)
        });
        let built = match built {
            Ok((base, key)) => {
                Ok(BuiltKey { base_hash: hasher.base(&base), base: base.into(), key })
            }
            Err(rejected) => Err(RefusedKey { text, rejected }),
        };
        let refused = self.store(registry, hash, slot, built);
        if refused && !in_list {
            self.trackers[registry.index()].removals.record(hash, revision);
        }
    }

    /// Stores a key, or a rejection in its place; returns whether it was a rejection.
    ///
    /// `slot` is the entry with the text of the key, if there is one.
    pub(super) fn store(
        &mut self,
        registry: RegistryId,
        hash: u64,
        slot: Option<u32>,
        built: Result<BuiltKey<'_>, RefusedKey>,
    ) -> bool {
        self.ledger.remove_key(registry, hash);
        let admitted = built.and_then(|built| {
            self.trackers[registry.index()].note_base(&built.base);
            self.admit(registry, hash, slot, built)
        });
        let Err(RefusedKey { text, rejected }) = admitted else { return false };
        if let Some(slot) = slot {
            self.update_entry(slot, None, EntryState::Removed);
            self.mark_changed(slot, registry);
        }
        let tracker = &self.trackers[registry.index()];
        let (in_list, generation) = (tracker.list.is_some(), tracker.generation);
        self.ledger.add_key(registry, hash, &text, rejected, generation, in_list);
        true
    }

    /// Stores a key in the mirror unless that would exceed a limit.
    fn admit(
        &mut self,
        registry: RegistryId,
        hash: u64,
        slot: Option<u32>,
        built: BuiltKey<'_>,
    ) -> Result<(), RefusedKey> {
        let generation = self.trackers[registry.index()].generation;
        let BuiltKey { base, base_hash, key } = &built;
        let same_base = slot.filter(|&slot| self.mirror.name(self.mirror.base(slot)) == *base);
        if let Some(slot) = same_base
            && self.mirror.state(slot) == EntryState::Present
            && self.mirror.key(slot).is_some_and(|known| **known == *key)
        {
            self.mirror.set_generation(slot, generation);
            return Ok(());
        }
        let tracker = &mut self.trackers[registry.index()];
        tracker.differences += u64::from(tracker.is_checking());
        let replaced = same_base
            .filter(|&slot| self.mirror.state(slot).is_live())
            .and_then(|slot| self.mirror.key(slot));
        let (cost, freed) = (instance_cost(key), replaced.map_or(0, |key| instance_cost(key)));
        let exceeds = |now: u32| {
            let others = now.saturating_sub(freed) as usize;
            others + cost as usize > self.settings.max_instances_per_service
        };
        let known = self.mirror.find_base(*base_hash, base);
        // Each registry has the limit to itself; nearly always, all of them together are below it.
        if exceeds(known.map_or(0, |base| self.mirror.cost_of(base)))
            && (exceeds(0)
                || known.is_some_and(|base| exceeds(self.mirror.cost_in(registry, base))))
        {
            return Err(built.refuse(Reason::TOO_MANY_INSTANCES));
        }
        if slot.is_none() && self.mirror.tally(registry).keys >= self.settings.max_keys {
            return Err(built.refuse(Reason::TOO_MANY_KEYS));
        }
        let slot = if let Some(slot) = same_base {
            self.update_entry(slot, Some(Arc::new(built.key)), EntryState::Present);
            self.mirror.set_generation(slot, generation);
            slot
        } else {
            if let Some(slot) = slot {
                self.update_entry(slot, None, EntryState::Removed);
                self.mark_changed(slot, registry);
            }
            self.ledger.add_endpoints(|| (hash, built.text()), key);
            self.mirror.insert(hash, built, known, generation)
        };
        self.mark_changed(slot, registry);
        Ok(())
    }
}
