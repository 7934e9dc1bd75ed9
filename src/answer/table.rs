//! The lookup table: persistent shards under one root, shared with readers.
//!
//! A publication copies the shards that it changes and the tree nodes above them; it shares the
//! rest with the previous generation. A reader loads one pointer and so sees exactly one
//! generation.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use foldhash::quality::RandomState;

use super::address_index::{AddressIndex, AddressIndexChanges};
use super::holds::PublishedHolds;
use super::settings::Settings;
use super::shard::Shard;
use super::sharded::Sharded;
use super::tally::ZoneSlots;
use crate::catalog::{
    BridgedAddresses, Hold, HostAddresses, RegistryKey, RegistryStatus, Service, ServiceChange,
};
use crate::name::instance_address;

/// Services with the hash of their base, in ascending order of hashes.
type ServiceShard = Arc<[(u64, Arc<Service>)]>;
/// Names with the number of published names directly below each; sorted.
type AncestorShard = Arc<[(Box<str>, u32)]>;

/// One generation of the lookup table.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The settings that the table was compiled with, and that responses from it follow.
    settings: Arc<Settings>,
    /// The slots of its zones in the counts of questions.
    pub(super) zone_slots: Arc<ZoneSlots>,
    hasher: RandomState,
    generation: u64,
    /// Whether nodes are missing, so that every query needs the full path.
    pub(super) is_uncompiled: bool,
    /// Freshness of the registries' data.
    pub(super) registry_status: RegistryStatus,
    /// The holds of the registries.
    pub(super) holds: PublishedHolds,
    /// Number of services, and of aliases of services.
    len: usize,
    /// Number of aliases of services.
    aliases: usize,
    /// Upper bound of the number of labels in a base.
    pub(super) longest_base: usize,
    /// Whether any base has ever begun with a label that looks like an instance label.
    ///
    /// Such a name has more than one interpretation, so the fast path leaves it to the full path.
    pub(super) has_instance_like_base: bool,
    pub(super) nodes: Sharded<Shard>,
    services: Sharded<ServiceShard>,
    /// Names above published ones (RFC 8020), as text in front of the zone.
    ///
    /// Each has the number of published names directly below it.
    ancestors: Sharded<AncestorShard>,
    /// The hashes of the bases of the services at each address.
    addresses: AddressIndex,
    /// Known addresses of the host names that endpoints are registered under.
    pub(super) hosts: HostAddresses,
    /// Addresses that the port bridge gave to names.
    pub(super) bridged: BridgedAddresses,
    /// Registered services that are not served because an alias replaces them.
    pub(super) replaced: Arc<BTreeMap<Box<str>, Arc<Service>>>,
}

impl Snapshot {
    /// Returns an empty table.
    pub(super) fn new(settings: Arc<Settings>, registry_status: RegistryStatus) -> Self {
        Self {
            settings,
            zone_slots: Arc::default(),
            hasher: RandomState::default(),
            generation: 0,
            is_uncompiled: false,
            registry_status,
            holds: PublishedHolds::default(),
            len: 0,
            aliases: 0,
            longest_base: 0,
            has_instance_like_base: false,
            nodes: Sharded::default(),
            services: Sharded::default(),
            ancestors: Sharded::default(),
            addresses: AddressIndex::default(),
            hosts: HostAddresses::default(),
            bridged: BridgedAddresses::default(),
            replaced: Arc::default(),
        }
    }

    /// Returns the next generation of the same table, with other settings.
    pub(super) fn with_settings(&self, settings: Settings) -> Self {
        let mut next = Self { settings: Arc::new(settings), ..self.clone() };
        next.advance();
        next
    }

    /// Returns an empty table for the next generation, with other settings.
    pub(super) fn rebuilt(&self, settings: Settings, registry_status: RegistryStatus) -> Self {
        Self { generation: self.generation + 1, ..Self::new(Arc::new(settings), registry_status) }
    }

    /// Returns the settings of this generation.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Returns a copy with another registry status and other holds.
    pub(super) fn with_registry_status(
        &self,
        registry_status: RegistryStatus,
        holds: PublishedHolds,
    ) -> Self {
        Self { registry_status, holds, ..self.clone() }
    }

    /// Returns the holds of the registries, in the order of the registries.
    pub fn holds(&self) -> &[Hold] {
        self.holds.holds()
    }

    /// Returns the hold of which a key is part, if it is held.
    pub fn hold_of(&self, key: &RegistryKey) -> Option<&Hold> {
        let cause = key.hold()?;
        let mut holds = self.holds().iter();
        holds.find(|hold| hold.registry == key.registry() && hold.cause == cause)
    }

    /// Returns a copy for readers before its nodes are compiled.
    pub(super) fn uncompiled(&self) -> Self {
        Self { is_uncompiled: true, ..self.clone() }
    }

    /// Returns the generation, which grows by one with each publication of changes.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the freshness of the registries' data in this generation.
    pub fn registry_status(&self) -> RegistryStatus {
        self.registry_status
    }

    /// Returns the number of services, without aliases.
    pub fn len(&self) -> usize {
        self.len - self.aliases
    }

    /// Returns whether there is no service and no alias of one.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the service, or the alias of one, with this base.
    pub fn service(&self, base: &str) -> Option<&Arc<Service>> {
        self.services_with(self.hash(base.as_bytes())).find(|service| service.has_base(base))
    }

    /// Returns the addresses that the port bridge gave to names.
    pub fn bridged(&self) -> &BridgedAddresses {
        &self.bridged
    }

    /// Adds the changes of aliases to the changes of registered services.
    ///
    /// Services that an alias replaces move to [`Self::replaced`]. Returns `None` if no change
    /// concerns an alias.
    pub(super) fn expand_aliases(
        &mut self,
        changed: &[ServiceChange],
    ) -> Option<Vec<ServiceChange>> {
        let settings = Arc::clone(&self.settings);
        let aliases = &settings.aliases;
        let concerns = |base: &str| {
            aliases.target(base).is_some() || aliases.of_service(base).next().is_some()
        };
        if aliases.is_empty() || !changed.iter().any(|change| concerns(change.base())) {
            return None;
        }
        let mut all = Vec::with_capacity(changed.len());
        for change in changed {
            let base = change.base();
            if aliases.target(base).is_some() {
                let replaced = Arc::make_mut(&mut self.replaced);
                match &change.after {
                    Some(service) => replaced.insert(base.into(), Arc::clone(service)),
                    None => replaced.remove(base),
                };
                continue;
            }
            all.push(change.clone());
            for alias in aliases.of_service(base) {
                let target = change.after.clone().unwrap_or_else(|| Arc::new(Service::empty(base)));
                all.push(ServiceChange {
                    before: self.service(alias).cloned(),
                    after: Some(Arc::new(Service::alias(alias, target))),
                });
            }
        }
        Some(all)
    }

    /// Returns the registered services that aliases replace, with their bases.
    pub fn replaced(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.replaced.values()
    }

    /// Returns all services and the aliases of services, unordered.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter().flat_map(|shard| shard.iter().map(|(_, service)| service))
    }

    /// Returns the services with a selectable instance at `address`, unordered.
    pub(super) fn services_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        self.addresses
            .bases_at(address)
            .flat_map(|base| self.services_with(base))
            .filter(move |service| service.selectable().any(|instance| instance.is_at(address)))
    }

    /// Returns whether any selectable instance has an address in this range of one family.
    pub(super) fn has_addresses_in(&self, addresses: &RangeInclusive<IpAddr>) -> bool {
        self.addresses.has_any(addresses)
    }

    /// Returns the precompiled node of an owner: wire labels in front of the zone.
    pub(super) fn node(&self, owner: &[u8]) -> Option<&[u8]> {
        let mut buffer = [0; 256];
        let hash = self.hash(to_lower_case(owner, &mut buffer)?);
        self.node_at(hash, owner).map(|(_, node)| node)
    }

    /// Returns the node of an owner with this hash, and the owner in lower case.
    pub(super) fn node_at(&self, hash: u64, owner: &[u8]) -> Option<(&[u8], &[u8])> {
        self.nodes.shard(hash).find(hash, owner)
    }

    /// Returns whether a published name lies below `name`, a text in front of the zone.
    pub(super) fn has_names_below(&self, name: &str) -> bool {
        let shard = self.ancestors.shard(self.hash(name.as_bytes()));
        shard.binary_search_by(|(entry, _)| (**entry).cmp(name)).is_ok()
    }

    /// Hashes a base's text or an owner's bytes, in lower case.
    pub(super) fn hash(&self, name: &[u8]) -> u64 {
        self.hasher.hash_one(name)
    }

    /// Returns the services whose base has this hash.
    fn services_with(&self, hash: u64) -> impl Iterator<Item = &Arc<Service>> {
        let shard = self.services.shard(hash);
        let first = shard.partition_point(|(slot, _)| *slot < hash);
        shard[first..].iter().take_while(move |(slot, _)| *slot == hash).map(|(_, service)| service)
    }

    /// Begins the next generation.
    pub(super) fn advance(&mut self) {
        self.generation += 1;
    }

    /// Adds, replaces and removes services.
    pub(super) fn update_services(&mut self, changes: &[ServiceChange]) {
        let mut keyed = Vec::with_capacity(changes.len());
        for change in changes {
            let base = change.base();
            self.longest_base = self.longest_base.max(base.split('.').count());
            let first = base.split('.').next().unwrap_or_default();
            self.has_instance_like_base |= instance_address(first.as_bytes()).is_some();
            // Cloned before the sort: services in this order are close together in memory.
            keyed.push((self.hash(base.as_bytes()), (change, change.after.clone())));
            let is_alias = |service: &Arc<Service>| service.alias_target().is_some();
            self.len -= usize::from(change.before.is_some());
            self.len += usize::from(change.after.is_some());
            self.aliases -= usize::from(change.before.as_ref().is_some_and(is_alias));
            self.aliases += usize::from(change.after.as_ref().is_some_and(is_alias));
        }
        self.services.update(keyed, |shard, changes| {
            changes.sort_unstable_by_key(|(hash, _)| *hash);
            let is_changed = |(hash, service): &&(u64, Arc<Service>)| {
                let first = changes.partition_point(|(other, _)| other < hash);
                let mut same = changes[first..].iter().take_while(|(other, _)| other == hash);
                same.any(|(_, (change, _))| change.base() == service.base())
            };
            let mut next = Vec::with_capacity(shard.len() + changes.len());
            next.extend(shard.iter().filter(|entry| !is_changed(entry)).cloned());
            next.extend(
                changes.iter_mut().filter_map(|(hash, (_, after))| Some((*hash, after.take()?))),
            );
            next.sort_unstable_by_key(|(hash, _)| *hash);
            next.into()
        });
    }

    /// Sets the node of each owner, or removes it (`None`).
    ///
    /// Owners are wire labels in front of the zone, in lower case. If an owner occurs twice, only
    /// one of its nodes is used, in no defined order.
    pub(super) fn update_nodes<'o>(
        &mut self,
        changes: impl Iterator<Item = (&'o [u8], Option<&'o [u8]>)>,
    ) {
        let keyed = changes.map(|change| (self.hash(change.0), change)).collect();
        self.nodes.update(keyed, Shard::with);
    }

    /// Changes counts of names directly below; returns names that came or went.
    pub(super) fn update_ancestors(&mut self, changes: Vec<(Box<str>, i32)>) -> Vec<Box<str>> {
        let mut toggled = Vec::new();
        let keyed =
            changes.into_iter().map(|change| (self.hash(change.0.as_bytes()), change)).collect();
        self.ancestors.update(keyed, |shard, changes| {
            let mut next = shard.to_vec();
            for (_, (name, delta)) in changes {
                match next.binary_search_by(|(entry, _)| entry.cmp(name)) {
                    Ok(at) => {
                        next[at].1 = next[at].1.saturating_add_signed(*delta);
                        toggled.extend((next[at].1 == 0).then(|| name.clone()));
                    }
                    Err(at) => {
                        next.insert(at, (name.clone(), u32::try_from(*delta).unwrap_or(0)));
                        toggled.push(name.clone());
                    }
                }
            }
            next.retain(|(_, count)| *count > 0);
            next.into()
        });
        toggled
    }

    /// Returns the hasher of the bases, for [`sorted_addresses`].
    pub(super) fn hasher(&self) -> RandomState {
        self.hasher.clone()
    }

    /// Adds and removes addresses of bases.
    pub(super) fn update_addresses(&mut self, changes: &AddressIndexChanges) {
        self.addresses.update(changes);
    }
}

/// Prepares adding (`true`) or removing (`false`) addresses of bases.
pub(super) fn sorted_addresses<'b>(
    hasher: &RandomState,
    changes: impl Iterator<Item = (IpAddr, &'b str, bool)>,
) -> AddressIndexChanges {
    let hash = |base: &str| hasher.hash_one(base.as_bytes());
    AddressIndexChanges::sorted(changes.map(|(address, base, add)| (address, hash(base), add)))
}

/// Copies a wire-form name to the zeroed `buffer`, in lower case.
pub(super) fn to_lower_case<'r>(name: &[u8], buffer: &'r mut [u8; 256]) -> Option<&'r [u8]> {
    buffer.get_mut(..name.len())?.copy_from_slice(name);
    // The loop handles whole words. Length bytes are at most 63, below 'A', so only letters change.
    for word in &mut buffer.as_chunks_mut::<16>().0[..name.len().div_ceil(16)] {
        word.make_ascii_lowercase();
    }
    buffer.get(..name.len())
}
