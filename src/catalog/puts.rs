//! Puts.

use std::sync::Arc;

use super::Catalog;
use super::key::{Around, Frame, Group, Key, Odd};
use super::mirror::{Standing, size};
use crate::name::{Base, BaseError, Name, Zones, base_of};
use crate::service::{Endpoint, Host, Put, Reason, Registration, RegistryId, Rejected, ServiceId};

impl Catalog {
    pub(super) fn put(&mut self, registry: RegistryId, put: Put) {
        let Put { key: text, revision, lease, content } = put;
        let hash = self.mirror.hash(registry, &text);
        let slot = self.mirror.find(hash, registry, &text);
        let follow = &self.follows[registry.place()];
        let (in_list, generation) = (follow.list.is_some(), follow.generation);
        if !in_list && self.is_outdated(registry, hash, slot, revision) {
            return;
        }
        self.ledger.clear(registry, hash);
        let understood = content.and_then(|content| self.understand(registry, &text, revision, lease, content));
        let admitted = understood.and_then(|(base, key)| self.admit(registry, hash, slot, &text, &base, key));
        let Err(rejected) = admitted else { return };
        if let Some(slot) = slot {
            self.change(slot, None, Standing::Removed);
            self.touch(slot, registry);
        }
        if !in_list {
            self.follows[registry.place()].memory.note(hash, revision);
        }
        self.ledger.reject(registry, hash, &text, rejected, generation, in_list);
    }

    /// Makes the model's key of a registration, and finds its base.
    fn understand(
        &mut self,
        registry: RegistryId,
        text: &str,
        revision: u64,
        lease: i64,
        content: Registration,
    ) -> Result<(String, Key), Rejected> {
        let Registration { id, mut endpoints, mut rejected, metadata } = content;
        let base = base_of(&id.name, &self.settings.zones).map_err(|error| {
            let reason = match error {
                BaseError::NotDns => Reason::NAME_NOT_DNS,
                BaseError::TooLong => Reason::NAME_TOO_LONG,
                BaseError::Reserved => Reason::NAME_RESERVED,
            };
            Rejected::new(&id.name, reason)
        })?;
        endpoints.retain(|endpoint| {
            let reason = match &endpoint.host {
                Host::Name(host) => host_reason(host, &self.settings.zones),
                Host::V4(_) | Host::V6(_) => None,
            };
            rejected.extend(reason.map(|reason| Rejected::new(&endpoint.to_string(), reason)));
            reason.is_none()
        });
        if endpoints.len() > usize::from(u16::MAX) {
            return Err(Rejected::new(text, Reason::TOO_MANY_INSTANCES));
        }
        let last = self.last_frame.take().filter(|frame| {
            let same = frame.registry == registry && frame.rank == base.rank && !frame.held && frame.group.is_of(&id);
            same && frame.around.makes(text, &base.text, &endpoints)
        });
        let (frame, text) = match last {
            Some(frame) => (frame, None),
            None => self.frame(registry, text, &id, &base, &endpoints),
        };
        self.last_frame = Some(Arc::clone(&frame));
        let is_odd = text.is_some() || !rejected.is_empty();
        let odd = is_odd.then(|| Box::new(Odd { text, rejected: rejected.into() }));
        let key = Key { revision, lease, endpoints: endpoints.into(), metadata: self.metadata.intern(metadata), frame, odd };
        Ok((base.text, key))
    }

    /// The frame of a key, and its text where the frame does not make it.
    fn frame(
        &mut self,
        registry: RegistryId,
        text: &str,
        id: &ServiceId,
        base: &Base,
        endpoints: &[Endpoint],
    ) -> (Arc<Frame>, Option<Box<str>>) {
        let (around, text) = match Around::of(text, &base.text, endpoints) {
            Some(around) => (around, None),
            None => (Around::default(), Some(text.into())),
        };
        let group = self.groups.intern(Arc::new(Group::of(id)));
        let frame = Frame { group, registry, rank: base.rank, held: false, around };
        (self.frames.intern(Arc::new(frame)), text)
    }

    /// Puts a key into the mirror, if the caps leave room for it.
    fn admit(&mut self, registry: RegistryId, hash: u64, slot: Option<u32>, text: &str, base: &str, key: Key) -> Result<(), Rejected> {
        let generation = self.follows[registry.place()].generation;
        let same_base = slot.filter(|&slot| self.mirror.name(self.mirror.base(slot)) == base);
        if let Some(slot) = same_base
            && self.mirror.standing(slot) == Standing::Present
            && self.mirror.key(slot).is_some_and(|known| **known == key)
        {
            self.mirror.set_generation(slot, generation);
            return Ok(());
        }
        let follow = &mut self.follows[registry.place()];
        follow.differences += u64::from(follow.is_checking());
        let replaced = same_base.filter(|&slot| self.mirror.standing(slot).counts()).and_then(|slot| self.mirror.key(slot));
        let known = self.mirror.base_named(base);
        let now = known.map_or(0, |base| self.mirror.size_of(base));
        let others = now.saturating_sub(replaced.map_or(0, |key| size(key)));
        if others as usize + size(&key) as usize > self.settings.max_instances_per_service {
            return Err(Rejected::new(text, Reason::TOO_MANY_INSTANCES));
        }
        if slot.is_none() && self.mirror.tally(registry).keys >= self.settings.max_keys {
            return Err(Rejected::new(text, Reason::TOO_MANY_KEYS));
        }
        let slot = if let Some(slot) = same_base {
            self.change(slot, Some(Arc::new(key)), Standing::Present);
            self.mirror.set_generation(slot, generation);
            slot
        } else {
            if let Some(slot) = slot {
                self.change(slot, None, Standing::Removed);
                self.touch(slot, registry);
            }
            self.ledger.enter(|| (hash, text.to_owned()), &key);
            self.mirror.insert(hash, Arc::new(key), base, known, generation)
        };
        self.touch(slot, registry);
        Ok(())
    }
}

/// Why a host name cannot be an endpoint.
fn host_reason(host: &str, zones: &Zones) -> Option<Reason> {
    match Name::from_text(host) {
        Ok(name) => zones.find(&name).map(|_| Reason::HOST_IN_ZONE),
        Err(_) => Some(Reason::HOST_MALFORMED),
    }
}
