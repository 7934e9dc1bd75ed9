//! The owners whose nodes a publication compiles.

use std::sync::Arc;

use super::owner::{MAX_NAME_BYTES, is_configured, owner_of, service_owner};
use super::settings::Settings;
use super::table::Snapshot;
use crate::catalog::{Group, Service, ServiceChange};

/// Owners whose nodes a change affects, as wire labels in front of the zone.
#[derive(Debug, Default)]
pub(super) struct AffectedOwners<'c> {
    bytes: Vec<u8>,
    /// End of each owner in `bytes`, and its changed service if that still exists.
    pub(super) ends: Vec<(usize, Option<&'c Arc<Service>>)>,
}

impl<'c> AffectedOwners<'c> {
    /// Collects the owners whose nodes these changes affect.
    ///
    /// The owners are: the shortest names of the changed services in each scope, before and after
    /// the change; their bases, which exist even for services of other scopes; names that the
    /// services take over from other services or give back; and the names above them that came into
    /// being or vanished.
    pub(super) fn of(
        settings: &Settings,
        next: &Snapshot,
        changed: &'c [ServiceChange],
        toggled: &[Box<str>],
    ) -> Self {
        let mut owners = Self::default();
        owners.ends.reserve(changed.len() + toggled.len());
        for change in changed {
            let (base, ServiceChange { before, after }) = (change.base(), change);
            let mut scopes: Vec<&Arc<Group>> = Vec::new();
            for service in before.iter().chain(after) {
                scopes.extend(service.visible_groups());
            }
            scopes.sort_by_key(|group| (&group.deployment, &group.namespace));
            scopes.dedup_by_key(|group| (&group.deployment, &group.namespace));
            owners.put(settings, owner_of(base), after.as_ref());
            for group in scopes {
                if !is_configured(settings, group) {
                    owners.put(settings, service_owner(settings, base, group), after.as_ref());
                } else if base
                    .rsplit_once('.')
                    .is_some_and(|(front, _)| next.service(front).is_some())
                {
                    // `a.b.n` is both `a.b` in namespace `n` and `a` in namespace `b` of deployment
                    // `n`.
                    owners.put(
                        settings,
                        owner_of(&format!("{base}.{}", group.namespace)),
                        after.as_ref(),
                    );
                }
            }
        }
        for name in toggled {
            owners.put(settings, owner_of(name), None);
        }
        owners
    }

    /// Adds an owner unless it is too long for DNS.
    fn put(
        &mut self,
        settings: &Settings,
        owner: Option<Vec<u8>>,
        service: Option<&'c Arc<Service>>,
    ) {
        let zone = settings.zones.first().name().as_wire();
        if let Some(owner) = owner.filter(|owner| owner.len() + zone.len() <= MAX_NAME_BYTES) {
            self.bytes.extend(owner);
            self.ends.push((self.bytes.len(), service));
        }
    }

    /// Returns each owner, and its changed service if that still exists.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&'c Arc<Service>>)> {
        split_at_ends(&self.bytes, self.ends.iter().map(|(end, _)| *end))
            .zip(self.ends.iter().map(|(_, service)| *service))
    }
}

/// Splits bytes at the given ends.
pub(super) fn split_at_ends(
    bytes: &[u8],
    ends: impl Iterator<Item = usize>,
) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    ends.map(move |end| &bytes[std::mem::replace(&mut start, end)..end])
}
