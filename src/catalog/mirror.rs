//! The mirror: one entry for each key of each registry, chained by base, and the services made of them.
//!
//! Laid out for many keys: an entry is 24 octets and nine in the index, a base 24 and nine. What a key says stands only in
//! its [`Key`], which the model shares; the name of a base only in its [`Service`].

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::key::Key;
use super::model::{Docker0, Service};
use crate::service::RegistryId;

/// The end of a chain. The caps on keys keep every index far below it.
const NONE: u32 = u32::MAX;

/// The registries' keys and the services made of them.
#[derive(Debug)]
pub(super) struct Mirror {
    hasher: RandomState,
    entries: Vec<Entry>,
    free_entries: Vec<u32>,
    /// Entries by registry and text of their key, with a part of their hash; removed ones are not in it.
    index: HashTable<(u32, u32)>,
    bases: Vec<Base>,
    free_bases: Vec<u32>,
    /// Bases by name, with a part of their hash.
    names: HashTable<(u32, u32)>,
    /// Bases to rebuild at the next [`Self::rebuild`].
    ready: Vec<u32>,
    tallies: Vec<Tally>,
}

/// One key of one registry.
#[derive(Debug)]
struct Entry {
    /// None while the entry is free.
    key: Option<Arc<Key>>,
    base: u32,
    /// The next entry of the same base.
    next: u32,
    /// The list of its registry that named it last, or during or after which it was put.
    generation: u32,
    standing: Standing,
}

/// Whether a key counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The registry has it.
    Present,
    /// The registry says that it is gone, and that is not believed yet: served.
    Held,
    /// It went with its lease a moment ago: not served, but may come back as held.
    Buried,
    /// Gone; the entry waits for the rebuild of its service to be taken out of the chain.
    Removed,
}

impl Standing {
    /// Whether the key is part of its service.
    pub(super) fn counts(self) -> bool {
        matches!(self, Self::Present | Self::Held)
    }
}

/// One base name with its chain of entries.
#[derive(Debug)]
struct Base {
    /// As of the last rebuild; without a key where nothing was made yet, or nothing is left that counts.
    service: Arc<Service>,
    head: u32,
    /// The sum of [`size`] over the keys that count.
    size: u32,
    /// How often the base stands in the `waiting` lists of registries.
    waits: u32,
    /// The registry in whose `waiting` list it was put last.
    waiter: RegistryId,
    /// Whether it stands in `ready`.
    ready: bool,
}

/// A service before and after a change.
#[derive(Clone, Debug)]
pub struct Changed {
    /// What it was; none for a new one.
    pub before: Option<Arc<Service>>,
    /// What it is; none for one that is gone.
    pub after: Option<Arc<Service>>,
}

impl Changed {
    /// The base of the service.
    pub fn base(&self) -> &str {
        self.after.as_ref().or(self.before.as_ref()).map_or("", |service| service.base())
    }
}

/// Counts of one registry, and its part of the bases to rebuild.
#[derive(Debug, Default)]
pub(super) struct Tally {
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
pub(super) fn size(key: &Key) -> u32 {
    u32::try_from(key.endpoints.len()).unwrap_or(u32::MAX).max(1)
}

impl Mirror {
    /// An empty mirror for this many registries.
    pub(super) fn new(hasher: RandomState, registries: usize) -> Self {
        let tallies = (0..registries).map(|_| Tally::default()).collect();
        Self {
            hasher,
            entries: Vec::new(),
            free_entries: Vec::new(),
            index: HashTable::new(),
            bases: Vec::new(),
            free_bases: Vec::new(),
            names: HashTable::new(),
            ready: Vec::new(),
            tallies,
        }
    }

    /// The counts of a registry.
    pub(super) fn tally(&self, registry: RegistryId) -> &Tally {
        &self.tallies[registry.place()]
    }

    /// The hash of a registry's key: seeded, so that nobody can choose keys that collide.
    pub(super) fn hash(&self, registry: RegistryId, text: &str) -> u64 {
        self.hasher.hash_one((registry, text))
    }

    /// The entry of a key.
    pub(super) fn find(&self, hash: u64, registry: RegistryId, text: &str) -> Option<u32> {
        let part = part(hash);
        let is = |&(known, slot): &(u32, u32)| {
            let entry = &self.entries[slot as usize];
            let here = |key: &Arc<Key>| key.registry() == registry && key.has_text(self.name(entry.base), text);
            known == part && entry.key.as_ref().is_some_and(here)
        };
        self.index.find(spread(part), is).map(|(_, slot)| *slot)
    }

    /// The hash and the text of an entry's key.
    pub(super) fn hash_and_text(&self, slot: u32) -> (u64, String) {
        let entry = &self.entries[slot as usize];
        let Some(key) = &entry.key else { return (0, String::new()) };
        let text = key.text(self.name(entry.base));
        (self.hash(key.registry(), &text), text)
    }

    /// The key of an entry; none where the entry is free.
    pub(super) fn key(&self, slot: u32) -> Option<&Arc<Key>> {
        self.entries[slot as usize].key.as_ref()
    }

    /// How an entry stands.
    pub(super) fn standing(&self, slot: u32) -> Standing {
        self.entries[slot as usize].standing
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

    /// How much of the cap on instances a base takes: the sum of [`size`] over its keys.
    pub(super) fn size_of(&self, base: u32) -> u32 {
        self.bases[base as usize].size
    }

    /// A base by its name.
    pub(super) fn base_named(&self, name: &str) -> Option<u32> {
        let part = part(self.hasher.hash_one(name));
        let is = |&(known, base): &(u32, u32)| known == part && self.bases[base as usize].service.has_base(name);
        self.names.find(spread(part), is).map(|(_, base)| *base)
    }

    /// The service of this name as of the last rebuild.
    pub(super) fn service(&self, name: &str) -> Option<&Arc<Service>> {
        self.base_named(name).and_then(|base| self.bases[base as usize].service())
    }

    /// All services as of the last rebuild, in no order.
    pub(super) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.bases.iter().filter_map(Base::service)
    }

    /// The entries of a registry that it has and that are older than this list, in no order. O(all entries).
    pub(super) fn older(&self, registry: RegistryId, generation: u32) -> Vec<u32> {
        let older = |entry: &Entry| {
            entry.standing == Standing::Present
                && entry.generation != generation
                && entry.key.as_ref().is_some_and(|key| key.registry() == registry)
        };
        (0..).zip(&self.entries).filter(|(_, entry)| older(entry)).map(|(slot, _)| slot).collect()
    }

    /// How many places for entries and bases there are, used and free.
    #[cfg(test)]
    pub(super) fn places(&self) -> (usize, usize) {
        (self.entries.len(), self.bases.len())
    }

    /// Adds a key that has no entry yet, as present. `base` is the one of this name where there is one.
    pub(super) fn insert(&mut self, hash: u64, key: Arc<Key>, name: &str, base: Option<u32>, generation: u32) -> u32 {
        let base = base.unwrap_or_else(|| self.new_base(name));
        let head = &mut self.bases[base as usize].head;
        let entry = Entry { key: Some(key), base, next: *head, generation, standing: Standing::Present };
        let slot = place(&mut self.entries, &mut self.free_entries, entry);
        *head = slot;
        self.index.insert_unique(spread(part(hash)), (part(hash), slot), |(part, _)| spread(*part));
        self.count(slot, true);
        slot
    }

    /// Gives an entry another standing and, perhaps, another content of the same key.
    pub(super) fn update(&mut self, slot: u32, key: Option<Arc<Key>>, standing: Standing) {
        self.count(slot, false);
        let entry = &mut self.entries[slot as usize];
        if let Some(key) = key {
            entry.key = Some(key);
        }
        entry.standing = standing;
        if standing == Standing::Removed {
            let (hash, _) = self.hash_and_text(slot);
            if let Ok(found) = self.index.find_entry(spread(part(hash)), |(_, other)| *other == slot) {
                found.remove();
            }
        }
        self.count(slot, true);
    }

    /// Marks a base to be rebuilt: at the next [`Self::rebuild`], or after the running list of this registry.
    pub(super) fn touch(&mut self, base: u32, waiting_for: Option<RegistryId>) {
        let record = &mut self.bases[base as usize];
        match waiting_for {
            None if !record.ready => {
                record.ready = true;
                self.ready.push(base);
            }
            Some(registry) if record.waits == 0 || record.waiter != registry => {
                record.waits += 1;
                record.waiter = registry;
                self.tallies[registry.place()].waiting.push(base);
            }
            _ => {}
        }
    }

    /// Keeps the marks of an abandoned list few: each base once.
    pub(super) fn abandon(&mut self, registry: RegistryId) {
        let waiting = &mut self.tallies[registry.place()].waiting;
        waiting.sort_unstable();
        let bases = &mut self.bases;
        waiting.dedup_by(|again, base| {
            let same = again == base;
            bases[*base as usize].waits -= u32::from(same);
            same
        });
    }

    /// Releases the marks of a registry's list, which is complete.
    pub(super) fn release(&mut self, registry: RegistryId) {
        for base in std::mem::take(&mut self.tallies[registry.place()].waiting) {
            self.bases[base as usize].waits -= 1;
            self.touch(base, None);
        }
    }

    /// Makes each marked service anew, once; says which changed, came or went.
    pub(super) fn rebuild(&mut self, docker0: Docker0) -> Vec<Changed> {
        let ready = std::mem::take(&mut self.ready);
        // Not by doubling: there may be a million.
        let mut changed = Vec::with_capacity(ready.len());
        changed.extend(ready.into_iter().filter_map(|base| self.rebuild_one(base, docker0)));
        changed
    }

    fn rebuild_one(&mut self, base: u32, docker0: Docker0) -> Option<Changed> {
        let keys = self.take_stock(base);
        let record = &mut self.bases[base as usize];
        record.ready = false;
        let is_free = keys.is_empty() && record.head == NONE && record.waits == 0;
        let made = record.service.with(keys, docker0);
        let (before, after) = match Arc::get_mut(&mut record.service) {
            // Nobody has seen the one before: it takes its place.
            Some(unseen) if unseen.keys().is_empty() => {
                *unseen = made;
                (None, record.service().cloned())
            }
            _ => {
                let before = std::mem::replace(&mut record.service, Arc::new(made));
                (Some(before).filter(|before| !before.keys().is_empty()), record.service().cloned())
            }
        };
        if is_free {
            self.free_base(base);
        }
        (before.is_some() || after.is_some()).then_some(Changed { before, after })
    }

    /// Takes the removed entries out of a base's chain; returns the keys that count.
    fn take_stock(&mut self, base: u32) -> Vec<Arc<Key>> {
        let mut keys = Vec::new();
        let mut before = NONE;
        let mut slot = self.bases[base as usize].head;
        while slot != NONE {
            let entry = &mut self.entries[slot as usize];
            let next = entry.next;
            if entry.standing == Standing::Removed {
                entry.key = None;
                self.free_entries.push(slot);
                if before == NONE {
                    self.bases[base as usize].head = next;
                } else {
                    self.entries[before as usize].next = next;
                }
            } else {
                if entry.standing.counts() {
                    keys.extend(entry.key.clone());
                }
                before = slot;
            }
            slot = next;
        }
        keys
    }

    fn new_base(&mut self, name: &str) -> u32 {
        let record =
            Base { service: Arc::new(Service::empty(name)), head: NONE, size: 0, waits: 0, waiter: RegistryId::FIRST, ready: false };
        let base = place(&mut self.bases, &mut self.free_bases, record);
        let part = part(self.hasher.hash_one(name));
        self.names.insert_unique(spread(part), (part, base), |(part, _)| spread(*part));
        base
    }

    fn free_base(&mut self, base: u32) {
        let part = part(self.hasher.hash_one(self.name(base)));
        if let Ok(found) = self.names.find_entry(spread(part), |(_, other)| *other == base) {
            found.remove();
        }
        self.free_bases.push(base);
    }

    /// Adds an entry to the counts, or takes it out.
    fn count(&mut self, slot: u32, add: bool) {
        let entry = &self.entries[slot as usize];
        let Some(key) = &entry.key else { return };
        let tally = &mut self.tallies[key.registry().place()];
        let step = |number: &mut usize, by: usize| *number = if add { *number + by } else { *number - by };
        match entry.standing {
            Standing::Present => {
                step(&mut tally.present, 1);
                step(&mut tally.instances, key.endpoints.len());
            }
            Standing::Held => {
                step(&mut tally.held, 1);
                step(&mut tally.held_instances, key.endpoints.len());
            }
            Standing::Buried => {}
            Standing::Removed => return,
        }
        step(&mut tally.keys, 1);
        if entry.standing.counts() {
            let total = &mut self.bases[entry.base as usize].size;
            *total = if add { total.saturating_add(size(key)) } else { total.saturating_sub(size(key)) };
        }
    }
}

impl Base {
    fn service(&self) -> Option<&Arc<Service>> {
        Some(&self.service).filter(|service| !service.keys().is_empty())
    }
}

/// The part of a hash that stands in a table, so that a table grows without a look at what it finds.
fn part(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// A part of a hash, spread over as many bits as a table wants.
fn spread(part: u32) -> u64 {
    u64::from(part) << 32 | u64::from(part)
}

/// Puts an element at a free place, or at the end.
fn place<T>(elements: &mut Vec<T>, free: &mut Vec<u32>, element: T) -> u32 {
    if let Some(place) = free.pop() {
        elements[place as usize] = element;
        return place;
    }
    elements.push(element);
    // Entries in such numbers would not fit in memory.
    u32::try_from(elements.len() - 1).unwrap_or(NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_bases_stay_small() {
        assert_eq!(size_of::<Entry>(), 24);
        assert_eq!(size_of::<Base>(), 24);
    }
}
