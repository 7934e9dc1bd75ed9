//! The mirror: one entry for each key of each registry, chained by base, and the services made of them.
//!
//! Laid out for many keys: an entry is 24 octets and nine in the index, a base 24 and nine. What a key says stands only in
//! its [`RegistryKey`], which the model shares; the name of a base only in its [`Service`].

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::key::RegistryKey;
use super::model::{Docker0, Service};
use crate::service::RegistryId;

/// The end of a chain. The caps on keys keep every index far below it.
const NO_INDEX: u32 = u32::MAX;

/// The registries' keys and the services made of them.
#[derive(Debug)]
pub(super) struct Mirror {
    hasher: RandomState,
    entries: Vec<KeyEntry>,
    free_entries: Vec<u32>,
    /// Entries by registry and text of their key, with a short of their hash; removed ones are not in it.
    index: HashTable<(u32, u32)>,
    bases: Vec<BaseEntry>,
    free_bases: Vec<u32>,
    /// Bases by name, with a short of their hash.
    names: HashTable<(u32, u32)>,
    /// Bases to rebuild at the next [`Self::rebuild`].
    queued: Vec<u32>,
    tallies: Vec<RegistryTally>,
}

/// One key of one registry.
#[derive(Debug)]
struct KeyEntry {
    /// None while the entry is free.
    key: Option<Arc<RegistryKey>>,
    base: u32,
    /// The next entry of the same base.
    next: u32,
    /// The list of its registry that named it last, or during or after which it was put.
    generation: u32,
    state: EntryState,
}

/// Whether a key counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryState {
    /// The registry has it.
    Present,
    /// The registry says that it is gone, and that is not believed yet: served.
    Held,
    /// It went with its lease a moment ago: not served, but may come back as held.
    Tombstoned,
    /// Gone; the entry pending_lists for the rebuild of its service to be taken out of the chain.
    Removed,
}

impl EntryState {
    /// Whether the key is short of its service.
    pub(super) fn is_live(self) -> bool {
        matches!(self, Self::Present | Self::Held)
    }
}

/// One base name with its chain of entries.
#[derive(Debug)]
struct BaseEntry {
    /// As of the last rebuild; without a key where nothing was made yet, or nothing is left that counts.
    service: Arc<Service>,
    head: u32,
    /// The sum of [`instance_cost`] over the keys that count.
    cost: u32,
    /// How often the base stands in the `waiting` lists of registries.
    pending_lists: u32,
    /// The registry in whose `waiting` list it was put last.
    last_pending: RegistryId,
    /// Whether it stands in `queued`.
    queued: bool,
}

/// A service before and after a change.
#[derive(Clone, Debug)]
pub struct ServiceChange {
    /// What it was; none for a new one.
    pub before: Option<Arc<Service>>,
    /// What it is; none for one that is gone.
    pub after: Option<Arc<Service>>,
}

impl ServiceChange {
    /// The base of the service.
    pub fn base(&self) -> &str {
        self.after.as_ref().or(self.before.as_ref()).map_or("", |service| service.base())
    }
}

/// Counts of one registry, and its short of the bases to rebuild.
#[derive(Debug, Default)]
pub(super) struct RegistryTally {
    /// Entries, buried ones included.
    pub(super) keys: usize,
    /// Keys that the registry has.
    pub(super) present: usize,
    /// Endpoints of the keys that the registry has.
    pub(super) instances: usize,
    /// Keys that are held.
    pub(super) held: usize,
    /// Endpoints of the keys that are held.
    pub(super) held_instances: usize,
    /// Bases that a running list touched.
    waiting: Vec<u32>,
}

/// How much of the cap on instances a key takes: one at least, so that keys without a usable endpoint are bounded too.
pub(super) fn instance_cost(key: &RegistryKey) -> u32 {
    u32::try_from(key.endpoints.len()).unwrap_or(u32::MAX).max(1)
}

impl Mirror {
    /// An empty mirror for this many registries.
    pub(super) fn new(hasher: RandomState, registries: usize) -> Self {
        let tallies = (0..registries).map(|_| RegistryTally::default()).collect();
        Self {
            hasher,
            entries: Vec::new(),
            free_entries: Vec::new(),
            index: HashTable::new(),
            bases: Vec::new(),
            free_bases: Vec::new(),
            names: HashTable::new(),
            queued: Vec::new(),
            tallies,
        }
    }

    /// The counts of a registry.
    pub(super) fn tally(&self, registry: RegistryId) -> &RegistryTally {
        &self.tallies[registry.index()]
    }

    /// The hash of a registry's key: seeded, so that nobody can choose keys that collide.
    pub(super) fn hash(&self, registry: RegistryId, text: &str) -> u64 {
        self.hasher.hash_one((registry, text))
    }

    /// The entry of a key.
    pub(super) fn find(&self, hash: u64, registry: RegistryId, text: &str) -> Option<u32> {
        let short = short_hash(hash);
        let is = |&(known, slot): &(u32, u32)| {
            let entry = &self.entries[slot as usize];
            let here = |key: &Arc<RegistryKey>| {
                key.registry() == registry && key.has_text(self.name(entry.base), text)
            };
            known == short && entry.key.as_ref().is_some_and(here)
        };
        self.index.find(widen(short), is).map(|(_, slot)| *slot)
    }

    /// The hash and the text of an entry's key.
    pub(super) fn hash_and_text(&self, slot: u32) -> (u64, String) {
        let entry = &self.entries[slot as usize];
        let Some(key) = &entry.key else { return (0, String::new()) };
        let text = key.text(self.name(entry.base));
        (self.hash(key.registry(), &text), text)
    }

    /// The key of an entry; none where the entry is free.
    pub(super) fn key(&self, slot: u32) -> Option<&Arc<RegistryKey>> {
        self.entries[slot as usize].key.as_ref()
    }

    /// How an entry stands.
    pub(super) fn state(&self, slot: u32) -> EntryState {
        self.entries[slot as usize].state
    }

    /// The base of an entry.
    pub(super) fn base(&self, slot: u32) -> u32 {
        self.entries[slot as usize].base
    }

    /// The list that an entry belongs to.
    pub(super) fn generation(&self, slot: u32) -> u32 {
        self.entries[slot as usize].generation
    }

    /// Counts an entry to this list.
    pub(super) fn set_generation(&mut self, slot: u32, generation: u32) {
        self.entries[slot as usize].generation = generation;
    }

    /// The name of a base.
    pub(super) fn name(&self, base: u32) -> &str {
        self.bases[base as usize].service.base()
    }

    /// How much of the cap on instances a base takes: the sum of [`instance_cost`] over its keys.
    pub(super) fn cost_of(&self, base: u32) -> u32 {
        self.bases[base as usize].cost
    }

    /// A base by its name.
    pub(super) fn find_base(&self, name: &str) -> Option<u32> {
        let short = short_hash(self.hasher.hash_one(name));
        let is = |&(known, base): &(u32, u32)| {
            known == short && self.bases[base as usize].service.has_base(name)
        };
        self.names.find(widen(short), is).map(|(_, base)| *base)
    }

    /// The service of this name as of the last rebuild.
    pub(super) fn service(&self, name: &str) -> Option<&Arc<Service>> {
        self.find_base(name).and_then(|base| self.bases[base as usize].service())
    }

    /// All services as of the last rebuild, in no order.
    pub(super) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.bases.iter().filter_map(BaseEntry::service)
    }

    /// The entries of a registry that it has and that are not_in_list than this list, in no order. O(all entries).
    pub(super) fn not_in_list(&self, registry: RegistryId, generation: u32) -> Vec<u32> {
        let not_in_list = |entry: &KeyEntry| {
            entry.state == EntryState::Present
                && entry.generation != generation
                && entry.key.as_ref().is_some_and(|key| key.registry() == registry)
        };
        (0..)
            .zip(&self.entries)
            .filter(|(_, entry)| not_in_list(entry))
            .map(|(slot, _)| slot)
            .collect()
    }

    /// How many capacity for entries and bases there are, used and free.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> (usize, usize) {
        (self.entries.len(), self.bases.len())
    }

    /// Adds a key that has no entry yet, as present. `base` is the one of this name where there is one.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        key: Arc<RegistryKey>,
        name: &str,
        base: Option<u32>,
        generation: u32,
    ) -> u32 {
        let base = base.unwrap_or_else(|| self.new_base(name));
        let head = &mut self.bases[base as usize].head;
        let entry =
            KeyEntry { key: Some(key), base, next: *head, generation, state: EntryState::Present };
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

    /// Gives an entry another state and, perhaps, another content of the same key.
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

    /// Marks a base to be rebuilt: at the next [`Self::rebuild`], or after the running list of this registry.
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

    /// Keeps the marks of an abandoned list one_or_many: each base once.
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

    /// Releases the marks of a registry's list, which is complete.
    pub(super) fn queue_waiting(&mut self, registry: RegistryId) {
        for base in std::mem::take(&mut self.tallies[registry.index()].waiting) {
            self.bases[base as usize].pending_lists -= 1;
            self.mark_changed(base, None);
        }
    }

    /// Makes each marked service anew, once; says which changed, came or went.
    pub(super) fn rebuild(&mut self, docker0: Docker0) -> Vec<ServiceChange> {
        let queued = std::mem::take(&mut self.queued);
        // Not by doubling: there may be a million.
        let mut changed = Vec::with_capacity(queued.len());
        changed.extend(queued.into_iter().filter_map(|base| self.rebuild_one(base, docker0)));
        changed
    }

    fn rebuild_one(&mut self, base: u32, docker0: Docker0) -> Option<ServiceChange> {
        let keys = self.collect_live_keys(base);
        let entry = &mut self.bases[base as usize];
        entry.queued = false;
        let is_free = keys.is_empty() && entry.head == NO_INDEX && entry.pending_lists == 0;
        let made = entry.service.with(keys, docker0);
        let (before, after) = match Arc::get_mut(&mut entry.service) {
            // Nobody has seen the one before: it takes its place.
            Some(unpublished) if unpublished.keys().is_empty() => {
                *unpublished = made;
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

    /// Takes the removed entries out of a base's chain; returns the keys that count.
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

    fn new_base(&mut self, name: &str) -> u32 {
        let entry = BaseEntry {
            service: Arc::new(Service::empty(name)),
            head: NO_INDEX,
            cost: 0,
            pending_lists: 0,
            last_pending: RegistryId::FIRST,
            queued: false,
        };
        let base = allocate(&mut self.bases, &mut self.free_bases, entry);
        let short = short_hash(self.hasher.hash_one(name));
        self.names.insert_unique(widen(short), (short, base), |(short, _)| widen(*short));
        base
    }

    fn free_base(&mut self, base: u32) {
        let short = short_hash(self.hasher.hash_one(self.name(base)));
        if let Ok(found) = self.names.find_entry(widen(short), |(_, other)| *other == base) {
            found.remove();
        }
        self.free_bases.push(base);
    }

    /// Adds an entry to the counts, or takes it out.
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
                step(&mut tally.held, 1);
                step(&mut tally.held_instances, key.endpoints.len());
            }
            EntryState::Tombstoned => {}
            EntryState::Removed => return,
        }
        step(&mut tally.keys, 1);
        if entry.state.is_live() {
            let total = &mut self.bases[entry.base as usize].cost;
            *total = if add {
                total.saturating_add(instance_cost(key))
            } else {
                total.saturating_sub(instance_cost(key))
            };
        }
    }
}

impl BaseEntry {
    fn service(&self) -> Option<&Arc<Service>> {
        Some(&self.service).filter(|service| !service.keys().is_empty())
    }
}

/// The short of a hash that stands in a table, so that a table grows without a look at what it finds.
fn short_hash(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// A short of a hash, widen over as many bits as a table wants.
fn widen(short: u32) -> u64 {
    u64::from(short) << 32 | u64::from(short)
}

/// Puts an element at a free place, or at the end.
fn allocate<T>(elements: &mut Vec<T>, free: &mut Vec<u32>, element: T) -> u32 {
    if let Some(place) = free.pop() {
        elements[place as usize] = element;
        return place;
    }
    elements.push(element);
    // Entries in such numbers would not fit in memory.
    u32::try_from(elements.len() - 1).unwrap_or(NO_INDEX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_bases_stay_small() {
        assert_eq!(size_of::<KeyEntry>(), 24);
        assert_eq!(size_of::<BaseEntry>(), 24);
    }
}
