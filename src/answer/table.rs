//! The table that readers share: persistent shards under one root.
//!
//! A publication copies the shards it touches, the rows that hold them and the root; all else is shared with the
//! generation before. Readers load one pointer and see one generation whole.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::quality::RandomState;

use super::hosts::Known;
use crate::catalog::{Changed, Service};
use crate::name::instance_address;

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
    pub(super) fn update<C>(&mut self, mut changes: Vec<(u64, C)>, mut merge: impl FnMut(&T, &mut [(u64, C)]) -> T) {
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

    /// This shard with the records of some owners made anew: `make` appends one, or says `false`: there is none.
    fn with<M: Copy>(&self, changes: &mut [(u64, (&[u8], M))], mut make: impl FnMut(&[u8], M, &mut Vec<u8>) -> bool) -> Self {
        changes.sort_by(|a, b| (tag(a.0), a.1.0).cmp(&(tag(b.0), b.1.0)));
        let mut next = NewRecords {
            slots: Vec::with_capacity(self.slots.len() + changes.len()),
            bytes: Vec::with_capacity(self.bytes.len() + changes.len() * USUAL),
        };
        let mut old = 0;
        for same in changes.chunk_by(|a, b| tag(a.0) == tag(b.0) && a.1.0 == b.1.0) {
            let (owner, meaning) = same[0].1;
            let here = (tag(same[0].0), owner);
            while old < self.slots.len() && (self.slots[old].0, self.entry(old).0) < here {
                next.keep(self, old);
                old += 1;
            }
            if old < self.slots.len() && (self.slots[old].0, self.entry(old).0) == here {
                old += 1;
            }
            next.put(here.0, owner, |bytes| make(owner, meaning, bytes));
        }
        for at in old..self.slots.len() {
            next.keep(self, at);
        }
        Self { slots: next.slots.into(), bytes: next.bytes.into() }
    }
}

/// Octets of a usual record with its owner, to begin with.
const USUAL: usize = 96;

/// A shard on the way.
struct NewRecords {
    slots: Vec<(u32, u32)>,
    bytes: Vec<u8>,
}

impl NewRecords {
    fn put(&mut self, tag: u32, owner: &[u8], record: impl FnOnce(&mut Vec<u8>) -> bool) {
        let start = self.bytes.len();
        self.bytes.push(u8::try_from(owner.len()).unwrap_or(u8::MAX));
        self.bytes.extend_from_slice(owner);
        if record(&mut self.bytes) {
            // A shard of 4 GiB cannot be: an owner's record has a few MiB at most, and there are 4,096 shards.
            self.slots.push((tag, u32::try_from(start).unwrap_or(u32::MAX)));
        } else {
            self.bytes.truncate(start);
        }
    }

    fn keep(&mut self, shard: &Records, at: usize) {
        let (owner, record) = shard.entry(at);
        self.put(shard.slots[at].0, owner, |bytes| {
            bytes.extend_from_slice(record);
            true
        });
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
    len: usize,
    /// An upper bound of the labels in a base.
    pub(super) longest_base: usize,
    /// Whether some base was ever known that begins like an instance's name: one that may mean something else.
    pub(super) instance_bases: bool,
    pub(super) records: Sharded<Records>,
    services: Sharded<Services>,
    /// Names above published ones, as text in front of the zone, with the number of names right below them that were
    /// published: the empty non-terminals (RFC 8020).
    above: Sharded<Above>,
    /// Hash of an address, hash of the base of a service that has it.
    addresses: Sharded<Addresses>,
    /// What is known of the host names that endpoints are registered under.
    pub(super) hosts: Known,
}

impl Snapshot {
    /// Counts publications; grows by one with each.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Number of services.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no service.
    pub fn is_empty(&self) -> bool {
        self.len == 0
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
        self.longest_base = changes.iter().map(|change| change.base().split('.').count()).fold(self.longest_base, usize::max);
        let first = |change: &Changed| instance_address(change.base().split('.').next().unwrap_or_default().as_bytes());
        self.instance_bases |= changes.iter().any(|change| first(change).is_some());
        self.len -= changes.iter().filter(|change| change.before.is_some()).count();
        self.len += changes.iter().filter(|change| change.after.is_some()).count();
        let keyed = changes.iter().map(|change| (self.hash(change.base().as_bytes()), change)).collect();
        self.services.update(keyed, |shard, changes| {
            let changed =
                |entry: &(u64, Arc<Service>)| changes.iter().any(|(hash, change)| *hash == entry.0 && change.base() == entry.1.base());
            let mut next: Vec<_> = shard.iter().filter(|entry| !changed(entry)).cloned().collect();
            next.extend(changes.iter().filter_map(|(hash, change)| Some((*hash, change.after.clone()?))));
            next.sort_unstable_by_key(|(hash, _)| *hash);
            next.into()
        });
    }

    /// Makes the ready-made records of these owners (wire labels in front of the zone, lower-cased) anew: `make` appends
    /// one, or says `false`: there is none. It sees this generation, but for its records, and what is handed in beside the
    /// owner. Of an owner that comes twice one is taken.
    pub(super) fn update_records<'o, M: Copy>(
        &mut self,
        owners: impl Iterator<Item = (&'o [u8], M)>,
        mut make: impl FnMut(&Self, &[u8], M, &mut Vec<u8>) -> bool,
    ) {
        let mut records = std::mem::take(&mut self.records);
        let keyed = owners.map(|(owner, meaning)| (self.hash(owner), (owner, meaning))).collect();
        records.update(keyed, |shard, changes| shard.with(changes, |owner, meaning, out| make(self, owner, meaning, out)));
        self.records = records;
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
    pub(super) fn update_addresses<'b>(&mut self, changes: impl Iterator<Item = (IpAddr, &'b str, bool)>) {
        let keyed = changes.map(|(address, base, add)| (self.hasher.hash_one(address), (self.hash(base.as_bytes()), add))).collect();
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
