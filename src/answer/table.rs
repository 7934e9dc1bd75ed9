//! The table that readers share: persistent shards under one root.
//!
//! A publication copies the shards it touches, the rows that hold them and the root; all else is shared with the
//! generation before. Readers load one pointer and see one generation whole.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::quality::RandomState;

use super::Changed;
use crate::catalog::Service;

/// Rows of a sharded map, and shards of a row.
const WIDTH: usize = 64;

/// 4,096 immutable shards in two levels, chosen by the high bits of a hash.
#[derive(Debug)]
pub(super) struct Sharded<T> {
    rows: Vec<Arc<Vec<Arc<T>>>>,
}

impl<T> Clone for Sharded<T> {
    fn clone(&self) -> Self {
        Self { rows: self.rows.clone() }
    }
}

impl<T: Default> Default for Sharded<T> {
    fn default() -> Self {
        let row = Arc::new(vec![Arc::<T>::default(); WIDTH]);
        Self { rows: vec![row; WIDTH] }
    }
}

impl<T> Sharded<T> {
    /// The number of the shard that `hash` falls into, 0-4095.
    pub(super) fn index(hash: u64) -> usize {
        usize::from((hash >> 52) as u16)
    }

    /// The shard that `hash` falls into.
    pub(super) fn shard(&self, hash: u64) -> &T {
        let index = Self::index(hash);
        &self.rows[index / WIDTH][index % WIDTH]
    }

    /// All shards.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.rows.iter().flat_map(|row| row.iter().map(Arc::as_ref))
    }

    fn set(&mut self, index: usize, shard: T) {
        Arc::make_mut(&mut self.rows[index / WIDTH])[index % WIDTH] = Arc::new(shard);
    }

    /// Applies changes, each with its hash, one new shard for all that fall into one. `merge` makes a shard from the old
    /// one and its changes, in the order given.
    pub(super) fn update<C>(&mut self, mut changes: Vec<(u64, C)>, merge: impl Fn(&T, &mut [(u64, C)]) -> T) {
        changes.sort_by_key(|(hash, _)| Self::index(*hash));
        for chunk in changes.chunk_by_mut(|a, b| Self::index(a.0) == Self::index(b.0)) {
            let hash = chunk[0].0;
            let shard = merge(self.shard(hash), chunk);
            self.set(Self::index(hash), shard);
        }
    }
}

/// Ready-made records by owner: one contiguous piece, found by a binary search over tags.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Sorted by (tag, owner), as the octets are.
    slots: Box<[(u32, u32)]>,
    /// Each: the length of the owner, the owner (wire labels in front of the zone, lower-cased), the record.
    bytes: Box<[u8]>,
}

/// The part of a hash that tells records of one shard apart.
#[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
fn tag(hash: u64) -> u32 {
    hash as u32
}

impl Records {
    /// The record of `owner`.
    pub(super) fn find(&self, hash: u64, owner: &[u8]) -> Option<&[u8]> {
        let tag = tag(hash);
        let first = self.slots.partition_point(|(slot, _)| *slot < tag);
        (first..self.slots.len()).take_while(|at| self.slots[*at].0 == tag).find_map(|at| {
            let (found, record) = self.entry(at);
            (found == owner).then_some(record)
        })
    }

    fn entry(&self, at: usize) -> (&[u8], &[u8]) {
        let start = self.slots[at].1 as usize;
        let end = self.slots.get(at + 1).map_or(self.bytes.len(), |slot| slot.1 as usize);
        let owner_end = start + 1 + usize::from(self.bytes[start]);
        (&self.bytes[start + 1..owner_end], &self.bytes[owner_end..end])
    }

    /// This shard with records put and removed; of several changes of one owner the last counts.
    pub(super) fn with(&self, changes: &mut [(u64, RecordChange)]) -> Self {
        changes.sort_by(|a, b| (tag(a.0), &a.1.owner).cmp(&(tag(b.0), &b.1.owner)));
        let mut slots = Vec::with_capacity(self.slots.len() + changes.len());
        let mut bytes = Vec::with_capacity(self.bytes.len() + changes.iter().map(|(_, change)| change.octets()).sum::<usize>());
        let mut put = |tag: u32, owner: &[u8], record: &[u8]| {
            // A shard of 4 GiB cannot be: an owner's record is at most a few MiB and there are 4,096 shards.
            slots.push((tag, u32::try_from(bytes.len()).unwrap_or(u32::MAX)));
            bytes.push(u8::try_from(owner.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(owner);
            bytes.extend_from_slice(record);
        };
        let mut old = 0;
        for same in changes.chunk_by(|a, b| tag(a.0) == tag(b.0) && a.1.owner == b.1.owner) {
            let Some((hash, change)) = same.last() else { continue };
            let here = (tag(*hash), &*change.owner);
            while old < self.slots.len() && (self.slots[old].0, self.entry(old).0) < here {
                put(self.slots[old].0, self.entry(old).0, self.entry(old).1);
                old += 1;
            }
            if old < self.slots.len() && (self.slots[old].0, self.entry(old).0) == here {
                old += 1;
            }
            if let Some(record) = &change.record {
                put(here.0, here.1, record);
            }
        }
        for at in old..self.slots.len() {
            put(self.slots[at].0, self.entry(at).0, self.entry(at).1);
        }
        Self { slots: slots.into(), bytes: bytes.into() }
    }
}

/// A record to put, or, without one, to remove.
#[derive(Debug)]
pub(super) struct RecordChange {
    /// The owner, wire labels in front of the zone, lower-cased, at most 254 octets.
    pub(super) owner: Vec<u8>,
    /// The record's octets.
    pub(super) record: Option<Vec<u8>>,
}

impl RecordChange {
    fn octets(&self) -> usize {
        self.record.as_ref().map_or(0, |record| 1 + self.owner.len() + record.len())
    }
}

type Services = Box<[(u64, Arc<Service>)]>;
type Above = Box<[(Box<str>, u32)]>;
type Addresses = Box<[(u32, u64)]>;

/// One generation of everything that is published.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    hasher: RandomState,
    generation: u64,
    /// An upper bound of the labels in a base.
    pub(super) longest_base: usize,
    pub(super) records: Sharded<Records>,
    services: Sharded<Services>,
    /// Names above published ones, as text in front of the zone, with the number of names right below them that were
    /// published: the empty non-terminals (RFC 8020).
    above: Sharded<Above>,
    /// Hash of an address, hash of the base of a service that has it.
    addresses: Sharded<Addresses>,
}

impl Snapshot {
    /// Counts publications; grows by one with each.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The service of a base.
    pub fn service(&self, base: &str) -> Option<&Arc<Service>> {
        self.services_with(self.hash(base.as_bytes())).find(|service| service.base() == base)
    }

    /// Every service, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter().flat_map(|shard| shard.iter().map(|(_, service)| service))
    }

    /// The services that have a served instance at `address`, in no order.
    pub(super) fn at_address(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        let hash = self.hasher.hash_one(address);
        let shard = self.addresses.shard(hash);
        let first = shard.partition_point(|(slot, _)| *slot < tag(hash));
        shard[first..]
            .iter()
            .take_while(move |(slot, _)| *slot == tag(hash))
            .flat_map(|(_, base)| self.services_with(*base))
            .filter(move |service| service.served().any(|instance| instance.endpoint.host.address() == Some(address)))
    }

    /// The ready-made record of an owner: wire labels in front of the zone, lower-cased.
    pub(super) fn record(&self, owner: &[u8]) -> Option<&[u8]> {
        let hash = self.hash(owner);
        self.records.shard(hash).find(hash, owner)
    }

    /// Whether a published name lies below `name`, text in front of the zone.
    pub(super) fn is_above(&self, name: &str) -> bool {
        let shard = self.above.shard(self.hash(name.as_bytes()));
        shard.binary_search_by(|(entry, _)| (**entry).cmp(name)).is_ok()
    }

    /// The hash by which names are found, of a base's text or an owner's octets.
    pub(super) fn hash(&self, name: &[u8]) -> u64 {
        self.hasher.hash_one(name)
    }

    fn services_with(&self, hash: u64) -> impl Iterator<Item = &Arc<Service>> {
        let shard = self.services.shard(hash);
        let first = shard.partition_point(|(slot, _)| *slot < hash);
        shard[first..].iter().take_while(move |(slot, _)| *slot == hash).map(|(_, service)| service)
    }

    /// Begins the next generation.
    pub(super) fn advance(&mut self) {
        self.generation += 1;
    }

    /// Puts and removes services.
    pub(super) fn update_services(&mut self, changes: &[Changed]) {
        self.longest_base = changes.iter().map(|change| change.base.split('.').count()).fold(self.longest_base, usize::max);
        let keyed = changes.iter().map(|change| (self.hash(change.base.as_bytes()), change)).collect();
        self.services.update(keyed, |shard, changes| {
            let changed =
                |entry: &(u64, Arc<Service>)| changes.iter().any(|(hash, change)| *hash == entry.0 && *change.base == *entry.1.base());
            let mut next: Vec<_> = shard.iter().filter(|entry| !changed(entry)).cloned().collect();
            next.extend(changes.iter().filter_map(|(hash, change)| Some((*hash, change.after.clone()?))));
            next.sort_unstable_by_key(|(hash, _)| *hash);
            next.into()
        });
    }

    /// Puts and removes ready-made records.
    pub(super) fn update_records(&mut self, changes: Vec<RecordChange>) {
        let keyed = changes.into_iter().map(|change| (self.hash(&change.owner), change)).collect();
        self.records.update(keyed, Records::with);
    }

    /// Adds to the counts of names below.
    pub(super) fn update_above(&mut self, changes: Vec<(Box<str>, i32)>) {
        let keyed = changes.into_iter().map(|change| (self.hash(change.0.as_bytes()), change)).collect();
        self.above.update(keyed, |shard, changes| {
            let mut next = shard.to_vec();
            for (_, (name, delta)) in changes {
                match next.binary_search_by(|(entry, _)| entry.cmp(name)) {
                    Ok(at) => next[at].1 = next[at].1.saturating_add_signed(*delta),
                    Err(at) => next.insert(at, (name.clone(), u32::try_from(*delta).unwrap_or(0))),
                }
            }
            next.retain(|(_, count)| *count > 0);
            next.into()
        });
    }

    /// Adds (`true`) and removes (`false`) addresses of bases.
    pub(super) fn update_addresses(&mut self, changes: &[(IpAddr, &str, bool)]) {
        let keyed =
            changes.iter().map(|(address, base, add)| (self.hasher.hash_one(address), (self.hash(base.as_bytes()), *add))).collect();
        self.addresses.update(keyed, |shard, changes| {
            let mut next = shard.to_vec();
            for (hash, (base, add)) in changes.iter() {
                let entry = (tag(*hash), *base);
                match (next.binary_search(&entry), add) {
                    (Err(at), true) => next.insert(at, entry),
                    (Ok(at), false) => {
                        next.remove(at);
                    }
                    _ => {}
                }
            }
            next.into()
        });
    }
}
