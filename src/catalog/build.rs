//! Building of keys: checks a registration, and shares the fields that many keys have.

use std::borrow::Cow;
use std::sync::Arc;

use super::Settings;
use super::intern::Interner;
use super::key::{Group, KeyLayout, RegistryKey, SharedKeyFields, UncommonFields};
use super::rules::OVERRIDE_LAYER;
use crate::name::{Base, BaseError, Name, Zones, base_of};
use crate::service::{
    Endpoint, Host, Metadata, Reason, Registration, RegistryId, Rejected, ServiceId,
};

/// Builds keys, and interns the fields that they share.
///
/// Independent of the mirror, so that another thread may build keys while this one stores them.
#[derive(Debug, Default)]
pub(super) struct KeyBuilder {
    pub(super) groups: Interner<Group>,
    pub(super) shared_fields: Interner<SharedKeyFields>,
    /// The shared fields of the last key built; the next key usually has the same.
    last_shared: Option<Arc<SharedKeyFields>>,
    pub(super) metadata: Interner<Metadata>,
}

/// A key that is ready to be stored, and its base name.
#[derive(Debug)]
pub(super) struct BuiltKey<'t> {
    pub(super) base: Cow<'t, str>,
    /// The result of [`super::hash::KeyHasher::base`].
    pub(super) base_hash: u64,
    pub(super) key: RegistryKey,
}

impl BuiltKey<'_> {
    /// Returns the key as stored in the registry.
    pub(super) fn text(&self) -> String {
        self.key.text(&self.base)
    }

    /// Refuses the whole key for this reason.
    pub(super) fn refuse(&self, reason: Reason) -> RefusedKey {
        let text = self.text();
        RefusedKey { rejected: Rejected::new(&text, reason), text: text.into() }
    }
}

/// The text of a key that cannot be served, and why.
#[derive(Debug)]
pub(super) struct RefusedKey {
    pub(super) text: Box<str>,
    pub(super) rejected: Rejected,
}

impl Settings {
    /// Returns the layer of a registration.
    pub(super) fn layer(&self, registry: RegistryId, overrides: bool) -> u8 {
        let of_registry = || self.layers.get(registry.index()).copied().unwrap_or(u8::MAX);
        if overrides { OVERRIDE_LAYER } else { of_registry() }
    }

    /// Returns the reason why an endpoint cannot be served, or `None`.
    pub(super) fn reject_endpoint(&self, endpoint: &Endpoint) -> Option<Reason> {
        match (&endpoint.host, self.bridge_pool) {
            (Host::V4(address), Some(pool)) if pool.contains(address) => {
                Some(Reason::ENDPOINT_OF_BRIDGE)
            }
            (host, _) => reject_host(host, &self.zones),
        }
    }
}

impl KeyBuilder {
    /// Builds the key of a registration; returns its base name and the key.
    pub(super) fn build(
        &mut self,
        settings: &Settings,
        registry: RegistryId,
        text: &str,
        (revision, lease): (u64, i64),
        content: Registration,
    ) -> Result<(String, RegistryKey), Rejected> {
        let Registration { id, mut endpoints, mut rejected, metadata, overrides } = content;
        let layer = settings.layer(registry, overrides);
        let base = base_of(&id.name, &settings.zones).map_err(|error| {
            let reason = match error {
                BaseError::NotDns => Reason::NAME_NOT_DNS,
                BaseError::TooLong => Reason::NAME_TOO_LONG,
                BaseError::Reserved => Reason::NAME_RESERVED,
            };
            Rejected::new(&id.name, reason)
        })?;
        endpoints.retain(|endpoint| {
            let reason = settings.reject_endpoint(endpoint);
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
            None => self.split(registry, layer, text, &id, &base, &endpoints),
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

    /// Returns the shared fields of a key, and its text if no layout can express it.
    fn split(
        &mut self,
        registry: RegistryId,
        layer: u8,
        text: &str,
        id: &ServiceId,
        base: &Base,
        endpoints: &[Endpoint],
    ) -> (Arc<SharedKeyFields>, Option<Box<str>>) {
        let (layout, text) = match KeyLayout::split(text, &base.text, endpoints) {
            Some(layout) => (layout, None),
            None => (KeyLayout::default(), Some(text.into())),
        };
        (self.share(registry, (layer, base.rank), Group::of(id), layout), text)
    }

    /// Interns the shared fields of a key that is not held.
    pub(super) fn share(
        &mut self,
        registry: RegistryId,
        (layer, rank): (u8, u8),
        group: Group,
        layout: KeyLayout,
    ) -> Arc<SharedKeyFields> {
        let group = self.groups.intern(Arc::new(group));
        let shared = SharedKeyFields { group, registry, layer, rank, hold: None, layout };
        self.shared_fields.intern(Arc::new(shared))
    }

    /// Drops the shared values that no key has any more.
    pub(super) fn remove_unused(&mut self) {
        self.last_shared = None;
        self.shared_fields.remove_unused();
        self.groups.remove_unused();
        self.metadata.remove_unused();
    }

    /// Returns the size of the largest set of shared values.
    pub(super) fn shared_values(&self) -> usize {
        self.shared_fields.len().max(self.metadata.len())
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
