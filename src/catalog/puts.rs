//! Puts: parse a registration into a key, check the limits and store the key.

use std::sync::Arc;

use ipnet::Ipv4Net;

use super::Catalog;
use super::key::{Group, KeyLayout, RegistryKey, SharedKeyFields, UncommonFields};
use super::mirror::{EntryState, instance_cost};
use super::rules::OVERRIDE_LAYER;
use crate::name::{Base, BaseError, Name, Zones, base_of};
use crate::service::{Endpoint, Host, Put, Reason, Registration, RegistryId, Rejected, ServiceId};

impl Catalog {
    /// Applies a put: stores the key, or replaces its previous content by a rejection.
    pub(super) fn put(&mut self, registry: RegistryId, put: Put) {
        let Put { key: text, revision, lease, content } = put;
        let hash = self.mirror.hash(registry, &text);
        let slot = self.mirror.find(hash, registry, &text);
        let tracker = &self.trackers[registry.index()];
        let (in_list, generation) = (tracker.list.is_some(), tracker.generation);
        if !in_list && self.is_outdated(registry, hash, slot, revision) {
            return;
        }
        self.ledger.remove_key(registry, hash);
        let built =
            content.and_then(|content| self.build_key(registry, &text, revision, lease, content));
        let admitted = built.and_then(|(base, key)| {
            self.trackers[registry.index()].note_base(&base);
            self.admit(registry, hash, slot, &text, &base, key)
        });
        let Err(rejected) = admitted else { return };
        if let Some(slot) = slot {
            self.update_entry(slot, None, EntryState::Removed);
            self.mark_changed(slot, registry);
        }
        if !in_list {
            self.trackers[registry.index()].removals.record(hash, revision);
        }
        self.ledger.add_key(registry, hash, &text, rejected, generation, in_list);
    }

    /// Builds the key of a registration; returns the key and its base name.
    fn build_key(
        &mut self,
        registry: RegistryId,
        text: &str,
        revision: u64,
        lease: i64,
        content: Registration,
    ) -> Result<(String, RegistryKey), Rejected> {
        let Registration { id, mut endpoints, mut rejected, metadata, overrides } = content;
        let layer = if overrides { OVERRIDE_LAYER } else { self.layer(registry) };
        let base = base_of(&id.name, &self.settings.zones).map_err(|error| {
            let reason = match error {
                BaseError::NotDns => Reason::NAME_NOT_DNS,
                BaseError::TooLong => Reason::NAME_TOO_LONG,
                BaseError::Reserved => Reason::NAME_RESERVED,
            };
            Rejected::new(&id.name, reason)
        })?;
        endpoints.retain(|endpoint| {
            let is_in_pool = |pool: Ipv4Net| match &endpoint.host {
                Host::V4(address) => pool.contains(address),
                Host::V6(address) => {
                    address.to_ipv4_mapped().is_some_and(|address| pool.contains(&address))
                }
                // Its addresses are known only later: the bridge leaves out those in its pool.
                Host::Name(_) => false,
            };
            let reason = match self.settings.bridge_pool {
                Some(pool) if is_in_pool(pool) => Some(Reason::ENDPOINT_OF_BRIDGE),
                _ => reject_host(&endpoint.host, &self.settings.zones),
            };
            rejected.extend(reason.map(|reason| Rejected::new(&endpoint.to_string(), reason)));
            reason.is_none()
        });
        if endpoints.len() > usize::from(u16::MAX) {
            return Err(Rejected::new(text, Reason::TOO_MANY_INSTANCES));
        }
        let last = self.last_shared.take().filter(|shared| {
            let same = shared.registry == registry
                && (shared.layer, shared.rank) == (layer, base.rank)
                && shared.hold.is_none()
                && shared.group.matches_id(&id);
            same && shared.layout.matches(text, &base.text, &endpoints)
        });
        let (shared, text) = match last {
            Some(shared) => (shared, None),
            None => self.share_fields((registry, layer), text, &id, &base, &endpoints),
        };
        self.last_shared = Some(Arc::clone(&shared));
        let is_uncommon = text.is_some() || !rejected.is_empty();
        let uncommon =
            is_uncommon.then(|| Box::new(UncommonFields { text, rejected: rejected.into() }));
        let key = RegistryKey {
            revision,
            lease,
            endpoints: endpoints.into(),
            metadata: self.metadata.intern(metadata),
            shared,
            uncommon,
        };
        Ok((base.text, key))
    }

    /// Interns the shared fields of a key.
    ///
    /// Also returns the text of the key if no layout can express it.
    fn share_fields(
        &mut self,
        (registry, layer): (RegistryId, u8),
        text: &str,
        id: &ServiceId,
        base: &Base,
        endpoints: &[Endpoint],
    ) -> (Arc<SharedKeyFields>, Option<Box<str>>) {
        let (layout, text) = match KeyLayout::split(text, &base.text, endpoints) {
            Some(layout) => (layout, None),
            None => (KeyLayout::default(), Some(text.into())),
        };
        let group = self.groups.intern(Arc::new(Group::of(id)));
        let shared =
            SharedKeyFields { group, registry, layer, rank: base.rank, hold: None, layout };
        (self.shared_fields.intern(Arc::new(shared)), text)
    }

    /// Stores a key in the mirror unless that would exceed a limit.
    fn admit(
        &mut self,
        registry: RegistryId,
        hash: u64,
        slot: Option<u32>,
        text: &str,
        base: &str,
        key: RegistryKey,
    ) -> Result<(), Rejected> {
        let generation = self.trackers[registry.index()].generation;
        let same_base = slot.filter(|&slot| self.mirror.name(self.mirror.base(slot)) == base);
        if let Some(slot) = same_base
            && self.mirror.state(slot) == EntryState::Present
            && self.mirror.key(slot).is_some_and(|known| **known == key)
        {
            self.mirror.set_generation(slot, generation);
            return Ok(());
        }
        let tracker = &mut self.trackers[registry.index()];
        tracker.differences += u64::from(tracker.is_checking());
        let replaced = same_base
            .filter(|&slot| self.mirror.state(slot).is_live())
            .and_then(|slot| self.mirror.key(slot));
        let (cost, freed) = (instance_cost(&key), replaced.map_or(0, |key| instance_cost(key)));
        let exceeds = |now: u32| {
            let others = now.saturating_sub(freed) as usize;
            others + cost as usize > self.settings.max_instances_per_service
        };
        let known = self.mirror.find_base(base);
        // Each registry has the limit to itself; nearly always, all of them together are below it.
        if exceeds(known.map_or(0, |base| self.mirror.cost_of(base)))
            && (exceeds(0)
                || known.is_some_and(|base| exceeds(self.mirror.cost_in(registry, base))))
        {
            return Err(Rejected::new(text, Reason::TOO_MANY_INSTANCES));
        }
        if slot.is_none() && self.mirror.tally(registry).keys >= self.settings.max_keys {
            return Err(Rejected::new(text, Reason::TOO_MANY_KEYS));
        }
        let slot = if let Some(slot) = same_base {
            self.update_entry(slot, Some(Arc::new(key)), EntryState::Present);
            self.mirror.set_generation(slot, generation);
            slot
        } else {
            if let Some(slot) = slot {
                self.update_entry(slot, None, EntryState::Removed);
                self.mark_changed(slot, registry);
            }
            self.ledger.add_endpoints(|| (hash, text.to_owned()), &key);
            self.mirror.insert(hash, Arc::new(key), base, known, generation)
        };
        self.mark_changed(slot, registry);
        Ok(())
    }
}

/// Returns the reason why an endpoint's host cannot be served, or `None`.
///
/// An address can always be served, a host name unless it is malformed or in a served zone.
pub fn reject_host(host: &Host, zones: &Zones) -> Option<Reason> {
    let Host::Name(host) = host else { return None };
    match Name::from_text(host) {
        Ok(name) => zones.find(&name).map(|_| Reason::HOST_IN_ZONE),
        Err(_) => Some(Reason::HOST_MALFORMED),
    }
}
