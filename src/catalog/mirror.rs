//! The mirror: one entry for each key of each registry, and the service of each base name.
//!
//! The memory layout favours many keys: an entry takes 24 bytes plus nine in the index, and so does
//! a base name. The content of a key is stored only in its [`RegistryKey`], which services share. A
//! base name is stored only in its [`Service`].

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hint::black_box;
use std::sync::Arc;

use hashbrown::HashTable;

use super::build::BuiltKey;
use super::hash::{KeyHasher, short_hash, widen};
use super::holds::PerCause;
use super::key::RegistryKey;
use super::model::{Service, ServiceChange};
use super::rules::ServiceRules;
use crate::service::RegistryId;

/// End of a chain; [`super::MAX_KEYS`] keeps every valid index far below it.
const NO_INDEX: u32 = u32::MAX;

/// The keys of all registries and the services built from them.
#[derive(Debug)]
pub(super) struct Mirror {
    hasher: KeyHasher,
    entries: Vec<KeyEntry>,
    free_entries: Vec<u32>,
    /// Entries by [`short_hash`] of registry and key text, without removed ones.
    index: HashTable<(u32, u32)>,
    bases: Vec<BaseEntry>,
    free_bases: Vec<u32>,
    /// Index of bases by [`short_hash`] of their names.
    names: HashTable<(u32, u32)>,
    /// Bases whose services the next [`Self::rebuild`] rebuilds.
    queued: Vec<u32>,
    tallies: Vec<RegistryTally>,
    /// Costs of single registries' live keys, for the large bases that [`Self::cost_in`] counted.
    ///
    /// None is zero, so none is left of a base without keys.
    costs: HashMap<(u32, RegistryId), u32>,
}

/// The entry of one key of one registry.
#[derive(Debug)]
struct KeyEntry {
    /// The key, `None` in a free entry.
    key: Option<Arc<RegistryKey>>,
    /// Index of the key's base.
    base: u32,
    /// The next entry in the chain of the same base.
    next: u32,
    /// Number of the last list that named the key or began before its put.
    generation: u32,
    state: EntryState,
}

/// Relation of an entry to its registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryState {
    /// The registry has the key.
    Present,
    /// The registry has removed the key, and a hold keeps it served.
    Held,
    /// The key was deleted moments ago, perhaps with its lease; it may still become held.
    Tombstoned,
    /// The key is gone; the next rebuild of its service frees the entry.
    Removed,
}

impl EntryState {
    /// Returns whether the key is part of its service.
    pub(super) fn is_live(self) -> bool {
        matches!(self, Self::Present | Self::Held)
    }
}

/// A base name and its chain of entries.
#[derive(Debug)]
struct BaseEntry {
    /// The service as of the last rebuild; without keys if nothing is registered.
    service: Arc<Service>,
    /// The first entry of the chain.
    head: u32,
    /// Sum of [`instance_cost`] over the live keys.
    cost: u32,
    /// Number of occurrences of this base in `RegistryTally::waiting`.
    pending_lists: u32,
    /// The registry whose `waiting` the base was last added to.
    last_pending: RegistryId,
    /// Whether the base is in `Mirror::queued`.
    queued: bool,
}

/// Counts of one registry, and the bases that wait for the end of its list.
#[derive(Debug, Default)]
pub(super) struct RegistryTally {
    /// Entries of the registry, including tombstoned ones.
    pub(super) keys: usize,
    /// Keys present in the registry.
    pub(super) present: usize,
    /// Endpoints of the keys present in the registry.
    pub(super) instances: usize,
    /// Held keys.
    pub(super) held: PerCause<usize>,
    /// Endpoints of the held keys.
    pub(super) held_instances: usize,
    /// Bases changed by the list in progress, or by an abandoned list.
    waiting: Vec<u32>,
}

/// Returns a key's share of the instance limit.
///
/// At least one, so that the limit also bounds keys without a usable endpoint.
pub(super) fn instance_cost(key: &RegistryKey) -> u32 {
    u32::try_from(key.endpoints.len()).unwrap_or(u32::MAX).max(1)
}

impl Mirror {
    /// Creates an empty mirror for this many registries.
    pub(super) fn new(registries: usize) -> Self {
        let tallies = (0..registries).map(|_| RegistryTally::default()).collect();
        Self {
            hasher: KeyHasher::default(),
            entries: Vec::new(),
            free_entries: Vec::new(),
            index: HashTable::new(),
            bases: Vec::new(),
            free_bases: Vec::new(),
            names: HashTable::new(),
            queued: Vec::new(),
            costs: HashMap::new(),
            tallies,
        }
    }

    /// Reserves memory for this many more keys.
    pub(super) fn reserve(&mut self, keys: usize) {
        self.entries.reserve(keys);
        self.index.reserve(keys, |(short, _)| widen(*short));
    }

    /// Returns the counts of a registry.
    pub(super) fn tally(&self, registry: RegistryId) -> &RegistryTally {
        &self.tallies[registry.index()]
    }

    /// Returns the hasher of the keys and base names.
    pub(super) fn hasher(&self) -> KeyHasher {
        self.hasher.clone()
    }

    /// Returns the entry of a key, given its hash.
    ///
    /// `text` is called if an entry has the same hash.
    pub(super) fn find<T: AsRef<str>>(
        &self,
        hash: u64,
        registry: RegistryId,
        text: impl Fn() -> T,
    ) -> Option<u32> {
        let short = short_hash(hash);
        let is = |&(known, slot): &(u32, u32)| {
            let entry = &self.entries[slot as usize];
            let here = |key: &Arc<RegistryKey>| {
                key.registry() == registry && key.has_text(self.name(entry.base), text().as_ref())
            };
            known == short && entry.key.as_ref().is_some_and(here)
        };
        self.index.find(widen(short), is).map(|(_, slot)| *slot)
    }

    /// Loads the parts of the indexes that keys with these hashes, and their bases', need.
    ///
    /// The processor overlaps these loads, but not those of one [`Self::insert`] after another.
    pub(super) fn look_ahead(&self, hashes: impl Iterator<Item = (u64, u64)>) {
        for (key, base) in hashes {
            let (key, base) = (widen(short_hash(key)), widen(short_hash(base)));
            black_box(self.index.find(key, |_| false).is_some());
            black_box(self.names.find(base, |_| false).is_some());
        }
    }

    /// Returns the hash and the text of an entry's key.
    pub(super) fn hash_and_text(&self, slot: u32) -> (u64, String) {
        let entry = &self.entries[slot as usize];
        let Some(key) = &entry.key else { return (0, String::new()) };
        let text = key.text(self.name(entry.base));
        (self.hasher.key(key.registry(), &text), text)
    }

    /// Returns the key of an entry, `None` if the entry is free.
    pub(super) fn key(&self, slot: u32) -> Option<&Arc<RegistryKey>> {
        self.entries[slot as usize].key.as_ref()
    }

    /// Returns the state of an entry.
    pub(super) fn state(&self, slot: u32) -> EntryState {
        self.entries[slot as usize].state
    }

    /// Returns the base of an entry.
    pub(super) fn base(&self, slot: u32) -> u32 {
        self.entries[slot as usize].base
    }

    /// Returns the number of the list that an entry belongs to.
    pub(super) fn generation(&self, slot: u32) -> u32 {
        self.entries[slot as usize].generation
    }

    /// Assigns an entry to the list of this number.
    pub(super) fn set_generation(&mut self, slot: u32, generation: u32) {
        self.entries[slot as usize].generation = generation;
    }

    /// Returns the name of a base.
    pub(super) fn name(&self, base: u32) -> &str {
        self.bases[base as usize].service.base()
    }

    /// Returns the cost of a base's live keys in all registries.
    pub(super) fn cost_of(&self, base: u32) -> u32 {
        self.bases[base as usize].cost
    }

    /// Returns the cost of a base's live keys in one registry: its share of the instance limit.
    ///
    /// O(entries of the base) the first time, then O(1).
    pub(super) fn cost_in(&mut self, registry: RegistryId, base: u32) -> u32 {
        if let Some(cost) = self.costs.get(&(base, registry)) {
            return *cost;
        }
        let mut cost: u32 = 0;
        let mut slot = self.bases[base as usize].head;
        while slot != NO_INDEX {
            let entry = &self.entries[slot as usize];
            let key = entry.key.as_ref().filter(|key| key.registry() == registry);
            if let Some(key) = key.filter(|_| entry.state.is_live()) {
                cost = cost.saturating_add(instance_cost(key));
            }
            slot = entry.next;
        }
        if cost > 0 {
            self.costs.insert((base, registry), cost);
        }
        cost
    }

    /// Finds a base by its name and the hash of that.
    pub(super) fn find_base(&self, hash: u64, name: &str) -> Option<u32> {
        let short = short_hash(hash);
        let is = |&(known, base): &(u32, u32)| {
            known == short && self.bases[base as usize].service.has_base(name)
        };
        self.names.find(widen(short), is).map(|(_, base)| *base)
    }

    /// Finds a base by its name.
    pub(super) fn base_named(&self, name: &str) -> Option<u32> {
        self.find_base(self.hasher.base(name), name)
    }

    /// Returns the service of a base name as of the last rebuild.
    pub(super) fn service(&self, name: &str) -> Option<&Arc<Service>> {
        self.base_named(name).and_then(|base| self.bases[base as usize].service())
    }

    /// Returns all services as of the last rebuild, in no particular order.
    pub(super) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.bases.iter().filter_map(BaseEntry::service)
    }

    /// Returns a registry's present entries that the list of this number did not name.
    ///
    /// O(all entries).
    pub(super) fn not_in_list(&self, registry: RegistryId, generation: u32) -> Vec<u32> {
        let is_missing = |entry: &KeyEntry| {
            entry.state == EntryState::Present
                && entry.generation != generation
                && entry.key.as_ref().is_some_and(|key| key.registry() == registry)
        };
        (0..)
            .zip(&self.entries)
            .filter(|(_, entry)| is_missing(entry))
            .map(|(slot, _)| slot)
            .collect()
    }

    /// Returns a registry's present entries whose keys begin with none of these prefixes.
    ///
    /// A prefix ends with the first slash of a key. O(all entries).
    pub(super) fn of_other_names(
        &self,
        registry: RegistryId,
        prefixes: &HashSet<String>,
    ) -> Vec<u32> {
        let is_other = |entry: &KeyEntry, key: &Arc<RegistryKey>| {
            key.registry() == registry && {
                let text = key.text(self.name(entry.base));
                let prefix = text.split_inclusive('/').next().unwrap_or_default();
                !prefixes.contains(prefix)
            }
        };
        let is_swept = |entry: &KeyEntry| {
            entry.state == EntryState::Present
                && entry.key.as_ref().is_some_and(|key| is_other(entry, key))
        };
        (0..)
            .zip(&self.entries)
            .filter(|(_, entry)| is_swept(entry))
            .map(|(slot, _)| slot)
            .collect()
    }

    /// Returns a registry's entries of a base whose keys begin with the prefix.
    ///
    /// O(entries of the base).
    pub(super) fn with_prefix(&self, registry: RegistryId, base: &str, prefix: &str) -> Vec<u32> {
        let mut slots = Vec::new();
        let mut slot =
            self.base_named(base).map_or(NO_INDEX, |base| self.bases[base as usize].head);
        while slot != NO_INDEX {
            let entry = &self.entries[slot as usize];
            let matches = |key: &Arc<RegistryKey>| {
                key.registry() == registry && key.text(base).starts_with(prefix)
            };
            if entry.key.as_ref().is_some_and(matches) {
                slots.push(slot);
            }
            slot = entry.next;
        }
        slots
    }

    /// Returns the numbers of allocated entries and bases, used and free.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> (usize, usize) {
        (self.entries.len(), self.bases.len())
    }

    /// Adds a key that has no entry yet; `base` is its base, if that has an entry.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        built: BuiltKey<'_>,
        base: Option<u32>,
        generation: u32,
    ) -> u32 {
        let base = base.unwrap_or_else(|| self.new_base(built.base_hash, &built.base));
        let head = &mut self.bases[base as usize].head;
        let (key, state) = (Some(Arc::new(built.key)), EntryState::Present);
        let entry = KeyEntry { key, base, next: *head, generation, state };
        let slot = allocate(&mut self.entries, &mut self.free_entries, entry);
        *head = slot;
        self.index.insert_unique(
            widen(short_hash(hash)),
            (short_hash(hash), slot),
            |(short, _)| widen(*short),
        );
        self.count(slot, true);
        slot
    }

    /// Changes the state of an entry and, if given, its key.
    ///
    /// The new key must have the same text.
    pub(super) fn update(&mut self, slot: u32, key: Option<Arc<RegistryKey>>, state: EntryState) {
        self.count(slot, false);
        let entry = &mut self.entries[slot as usize];
        if let Some(key) = key {
            entry.key = Some(key);
        }
        entry.state = state;
        if state == EntryState::Removed {
            let (hash, _) = self.hash_and_text(slot);
            if let Ok(found) =
                self.index.find_entry(widen(short_hash(hash)), |(_, other)| *other == slot)
            {
                found.remove();
            }
        }
        self.count(slot, true);
    }

    /// Marks a base for the next [`Self::rebuild`], or for the rebuild after a registry's list.
    pub(super) fn mark_changed(&mut self, base: u32, waiting_for: Option<RegistryId>) {
        let entry = &mut self.bases[base as usize];
        match waiting_for {
            None if !entry.queued => {
                entry.queued = true;
                self.queued.push(base);
            }
            Some(registry) if entry.pending_lists == 0 || entry.last_pending != registry => {
                entry.pending_lists += 1;
                entry.last_pending = registry;
                self.tallies[registry.index()].waiting.push(base);
            }
            _ => {}
        }
    }

    /// Bounds the bases that wait for an abandoned list by removing duplicates.
    pub(super) fn dedup_waiting(&mut self, registry: RegistryId) {
        let waiting = &mut self.tallies[registry.index()].waiting;
        waiting.sort_unstable();
        let bases = &mut self.bases;
        waiting.dedup_by(|again, base| {
            let same = again == base;
            bases[*base as usize].pending_lists -= u32::from(same);
            same
        });
    }

    /// Queues the bases that waited for the end of a registry's list.
    pub(super) fn queue_waiting(&mut self, registry: RegistryId) {
        for base in std::mem::take(&mut self.tallies[registry.index()].waiting) {
            self.bases[base as usize].pending_lists -= 1;
            self.mark_changed(base, None);
        }
    }

    /// Marks the bases of a registry whose services also have keys of other registries.
    ///
    /// O(all entries).
    pub(super) fn mark_shared(&mut self, registry: RegistryId) {
        for slot in 0..self.entries.len() {
            let KeyEntry { key, base, .. } = &self.entries[slot];
            let of_other = |key: &Arc<RegistryKey>| key.registry() != registry;
            let is_shared = key.as_ref().is_some_and(|key| !of_other(key))
                && self.bases[*base as usize].service.keys().iter().any(of_other);
            if is_shared {
                self.mark_changed(*base, None);
            }
        }
    }

    /// Rebuilds the service of every marked base; returns the services that changed.
    ///
    /// `leave_out` may exclude further instances of each rebuilt service.
    pub(super) fn rebuild(
        &mut self,
        rules: ServiceRules,
        leave_out: impl Fn(&mut Service),
    ) -> Vec<ServiceChange> {
        let queued = std::mem::take(&mut self.queued);
        // Reserve once instead of doubling: there may be a million services.
        let mut changed = Vec::with_capacity(queued.len());
        changed.extend(
            queued.into_iter().filter_map(|base| self.rebuild_one(base, rules, &leave_out)),
        );
        changed
    }

    fn rebuild_one(
        &mut self,
        base: u32,
        rules: ServiceRules,
        leave_out: impl Fn(&mut Service),
    ) -> Option<ServiceChange> {
        let keys = self.collect_live_keys(base);
        let entry = &mut self.bases[base as usize];
        entry.queued = false;
        let is_free = keys.is_empty() && entry.head == NO_INDEX && entry.pending_lists == 0;
        let mut made = entry.service.with(keys, rules);
        leave_out(&mut made);
        let (before, after) = match Arc::get_mut(&mut entry.service) {
            // No reader has the previous, empty service, so it may be overwritten in place.
            Some(empty) if empty.keys().is_empty() => {
                *empty = made;
                (None, entry.service().cloned())
            }
            _ => {
                let before = std::mem::replace(&mut entry.service, Arc::new(made));
                (Some(before).filter(|before| !before.keys().is_empty()), entry.service().cloned())
            }
        };
        if is_free {
            self.free_base(base);
        }
        (before.is_some() || after.is_some()).then_some(ServiceChange { before, after })
    }

    /// Frees the removed entries of a base; returns the live keys.
    fn collect_live_keys(&mut self, base: u32) -> Vec<Arc<RegistryKey>> {
        let mut keys = Vec::new();
        let mut before = NO_INDEX;
        let mut slot = self.bases[base as usize].head;
        while slot != NO_INDEX {
            let entry = &mut self.entries[slot as usize];
            let next = entry.next;
            if entry.state == EntryState::Removed {
                entry.key = None;
                self.free_entries.push(slot);
                if before == NO_INDEX {
                    self.bases[base as usize].head = next;
                } else {
                    self.entries[before as usize].next = next;
                }
            } else {
                if entry.state.is_live() {
                    keys.extend(entry.key.clone());
                }
                before = slot;
            }
            slot = next;
        }
        keys
    }

    fn new_base(&mut self, hash: u64, name: &str) -> u32 {
        let entry = BaseEntry {
            service: Arc::new(Service::empty(name)),
            head: NO_INDEX,
            cost: 0,
            pending_lists: 0,
            last_pending: RegistryId::FIRST,
            queued: false,
        };
        let base = allocate(&mut self.bases, &mut self.free_bases, entry);
        let short = short_hash(hash);
        self.names.insert_unique(widen(short), (short, base), |(short, _)| widen(*short));
        base
    }

    fn free_base(&mut self, base: u32) {
        let short = short_hash(self.hasher.base(self.name(base)));
        if let Ok(found) = self.names.find_entry(widen(short), |(_, other)| *other == base) {
            found.remove();
        }
        self.free_bases.push(base);
    }

    /// Adds an entry to the counts of its registry, or subtracts it.
    fn count(&mut self, slot: u32, add: bool) {
        let entry = &self.entries[slot as usize];
        let Some(key) = &entry.key else { return };
        let tally = &mut self.tallies[key.registry().index()];
        let step =
            |number: &mut usize, by: usize| *number = if add { *number + by } else { *number - by };
        match entry.state {
            EntryState::Present => {
                step(&mut tally.present, 1);
                step(&mut tally.instances, key.endpoints.len());
            }
            EntryState::Held => {
                if let Some(cause) = key.hold() {
                    step(tally.held.get_mut(cause), 1);
                }
                step(&mut tally.held_instances, key.endpoints.len());
            }
            EntryState::Tombstoned => {}
            EntryState::Removed => return,
        }
        step(&mut tally.keys, 1);
        if entry.state.is_live() {
            let total = &mut self.bases[entry.base as usize].cost;
            let cost = instance_cost(key);
            let changed = |total: u32| {
                if add { total.saturating_add(cost) } else { total.saturating_sub(cost) }
            };
            *total = changed(*total);
            if !self.costs.is_empty()
                && let Entry::Occupied(mut known) = self.costs.entry((entry.base, key.registry()))
            {
                match changed(*known.get()) {
                    0 => _ = known.remove(),
                    cost => _ = known.insert(cost),
                }
            }
        }
    }
}

impl BaseEntry {
    fn service(&self) -> Option<&Arc<Service>> {
        Some(&self.service).filter(|service| !service.keys().is_empty())
    }
}

/// Stores an element in a free slot or at the end; returns its index.
fn allocate<T>(elements: &mut Vec<T>, free: &mut Vec<u32>, element: T) -> u32 {
    if let Some(index) = free.pop() {
        elements[index as usize] = element;
        return index;
    }
    elements.push(element);
    // More elements would not fit in memory.
    u32::try_from(elements.len() - 1).unwrap_or(NO_INDEX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_and_base_entries_have_24_bytes() {
        assert_eq!(size_of::<KeyEntry>(), 24);
        assert_eq!(size_of::<BaseEntry>(), 24);
    }
}
