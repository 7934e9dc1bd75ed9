//! The table that readers share: persistent shards under one root.
//!
//! A publication copies the shards it touches and the nodes above them; all else is shared with the
//! generation before. Readers load one pointer and see one generation whole.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::quality::RandomState;

use super::shard::Shard;
use super::sharded::{Sharded, tag};
use crate::catalog::{HostAddresses, RegistryStatus, Service, ServiceChange};
use crate::name::instance_address;

type Services = Arc<[(u64, Arc<Service>)]>;
type Above = Arc<[(Box<str>, u32)]>;
type Addresses = Arc<[(u32, u64)]>;

/// One generation of everything that is published.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    hasher: RandomState,
    generation: u64,
    /// How far what is published can be relied on.
    pub(super) condition: RegistryStatus,
    len: usize,
    /// An upper bound of the labels in a base.
    pub(super) longest_base: usize,
    /// Whether some base was ever known that begins like an instance's name: one that may mean something else.
    pub(super) instance_bases: bool,
    pub(super) records: Sharded<Shard>,
    services: Sharded<Services>,
    /// Names above published ones, as text in front of the zone, with the number of names right below them that were
    /// published: the empty non-terminals (RFC 8020).
    above: Sharded<Above>,
    /// Hash of an address, hash of the base of a service that has it.
    addresses: Sharded<Addresses>,
    /// What is known of the host names that endpoints are registered under.
    pub(super) hosts: HostAddresses,
}

impl Snapshot {
    /// Nothing yet.
    pub(super) fn new(condition: RegistryStatus) -> Self {
        Self { condition, ..Self::default() }
    }

    /// The same in another condition.
    pub(super) fn with(&self, condition: RegistryStatus) -> Self {
        Self { condition, ..self.clone() }
    }

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
        self.services_with(self.hash(base.as_bytes())).find(|service| service.has_base(base))
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

    /// The ready-made record of an owner: wire labels in front of the zone.
    pub(super) fn record(&self, owner: &[u8]) -> Option<&[u8]> {
        let mut room = [0; 256];
        let hash = self.hash(lower_cased(owner, &mut room)?);
        self.record_at(hash, owner).map(|(_, record)| record)
    }

    /// The same by its hash, with the owner as it is kept: lower-cased.
    pub(super) fn record_at(&self, hash: u64, owner: &[u8]) -> Option<(&[u8], &[u8])> {
        self.records.shard(hash).find(hash, owner)
    }

    /// Whether a published name lies below `name`, text in front of the zone.
    pub(super) fn is_above(&self, name: &str) -> bool {
        let shard = self.above.shard(self.hash(name.as_bytes()));
        shard.binary_search_by(|(entry, _)| (**entry).cmp(name)).is_ok()
    }

    /// The hash by which names are found, of a base's text or an owner's octets, lower-cased.
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
    pub(super) fn update_services(&mut self, changes: &[ServiceChange]) {
        self.longest_base = changes.iter().map(|change| change.base().split('.').count()).fold(self.longest_base, usize::max);
        let first = |change: &ServiceChange| instance_address(change.base().split('.').next().unwrap_or_default().as_bytes());
        self.instance_bases |= changes.iter().any(|change| first(change).is_some());
        self.len -= changes.iter().filter(|change| change.before.is_some()).count();
        self.len += changes.iter().filter(|change| change.after.is_some()).count();
        // Cloned here, in the order of the services, which lie in memory much like that.
        let keyed = changes.iter().map(|change| (self.hash(change.base().as_bytes()), (change, change.after.clone()))).collect();
        self.services.update(keyed, |shard, changes| {
            changes.sort_unstable_by_key(|(hash, _)| *hash);
            let is_changed = |(hash, service): &&(u64, Arc<Service>)| {
                let first = changes.partition_point(|(other, _)| other < hash);
                let mut same = changes[first..].iter().take_while(|(other, _)| other == hash);
                same.any(|(_, (change, _))| change.base() == service.base())
            };
            let mut next = Vec::with_capacity(shard.len() + changes.len());
            next.extend(shard.iter().filter(|entry| !is_changed(entry)).cloned());
            next.extend(changes.iter_mut().filter_map(|(hash, (_, after))| Some((*hash, after.take()?))));
            next.sort_unstable_by_key(|(hash, _)| *hash);
            next.into()
        });
    }

    /// Puts the ready-made records of these owners (wire labels in front of the zone, lower-cased), or removes them (`None`).
    /// Of an owner that comes twice one is taken.
    pub(super) fn update_records<'o>(&mut self, changes: impl Iterator<Item = (&'o [u8], Option<&'o [u8]>)>) {
        let keyed = changes.map(|change| (self.hash(change.0), change)).collect();
        self.records.update(keyed, Shard::with);
    }

    /// Adds to the counts of names below; returns the names that came to have any, or have none any more.
    pub(super) fn update_above(&mut self, changes: Vec<(Box<str>, i32)>) -> Vec<Box<str>> {
        let mut turned = Vec::new();
        let keyed = changes.into_iter().map(|change| (self.hash(change.0.as_bytes()), change)).collect();
        self.above.update(keyed, |shard, changes| {
            let mut next = shard.to_vec();
            for (_, (name, delta)) in changes {
                match next.binary_search_by(|(entry, _)| entry.cmp(name)) {
                    Ok(at) => {
                        next[at].1 = next[at].1.saturating_add_signed(*delta);
                        turned.extend((next[at].1 == 0).then(|| name.clone()));
                    }
                    Err(at) => {
                        next.insert(at, (name.clone(), u32::try_from(*delta).unwrap_or(0)));
                        turned.push(name.clone());
                    }
                }
            }
            next.retain(|(_, count)| *count > 0);
            next.into()
        });
        turned
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

/// A valid name in wire form, or a part of one, lower-cased into `room`, which is all 0.
pub(super) fn lower_cased<'r>(name: &[u8], room: &'r mut [u8; 256]) -> Option<&'r [u8]> {
    room.get_mut(..name.len())?.copy_from_slice(name);
    // Whole words of the processor at a time. Length octets are at most 63, below 'A': only letters change.
    for word in &mut room.as_chunks_mut::<16>().0[..name.len().div_ceil(16)] {
        word.make_ascii_lowercase();
    }
    room.get(..name.len())
}
