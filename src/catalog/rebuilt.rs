//! Rebuilding the catalog with other settings, from the keys that it has.
//!
//! A change of the zones, the limits or the registries may concern every key. So the catalog saves
//! its keys in memory, as for a snapshot, and a new catalog restores them. The next lists, of the
//! kind [`ListKind::Reconnect`](crate::service::ListKind::Reconnect), bring what only the
//! registries know: rejected keys, and which held keys are still missing.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Instant;

use super::{Catalog, MAX_SYNC_WAIT, Service, ServiceChange, Settings, SettleOutcome, save_keys};
use crate::service::RegistryId;

/// A registry before and after a change of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptRegistry {
    /// The number of the registry so far.
    pub before: RegistryId,
    /// Its number from now on.
    pub after: RegistryId,
}

impl Catalog {
    /// Starts again with other settings and the keys of these registries, and settles.
    ///
    /// A kept registry that was read counts as read and unreachable, until it reports that it is
    /// connected. The names of all other registries are gone. The addresses of host names, those of
    /// the port bridge, and the verdicts of checks stay. Checks stay on or off.
    ///
    /// O(all keys). The former and the new services are both in memory while readers have the
    /// former.
    pub fn rebuild(
        &mut self,
        settings: Settings,
        kept: &[KeptRegistry],
        now: Instant,
    ) -> SettleOutcome {
        let was_synced = self.registry_status(now).synced;
        let saved: Vec<Vec<u8>> = kept.iter().map(|kept| self.save(kept.before)).collect();
        let before: Vec<Arc<Service>> = self.services().cloned().collect();
        let rules = settings.checks.clone();
        // The former entries are freed before the new ones are made.
        let Self { trackers, hosts, bridged, checks, started, .. } =
            std::mem::replace(self, Self::new(settings));
        (self.hosts, self.bridged, self.checks) = (hosts, bridged, checks);
        if let (Some(checks), Some(rules)) = (&mut self.checks, rules) {
            checks.set_rules(rules);
        }
        // A new registry is awaited only if the others were, too.
        let waited = now.checked_sub(MAX_SYNC_WAIT).filter(|_| was_synced);
        self.started = waited.or(started);
        for (KeptRegistry { before, after }, saved) in kept.iter().zip(saved) {
            let (Some(former), true) =
                (trackers.get(before.index()), after.index() < self.trackers.len())
            else {
                continue;
            };
            // Saved keys can be restored. Without them, the registry would just be unread.
            let restored = former.synced && self.restore(*after, &saved, now).is_ok();
            debug_assert!(restored || !former.synced, "saved keys are well-formed");
            let tracker = &mut self.trackers[after.index()];
            tracker.differences = former.differences;
            tracker.held_keys.begun = former.held_keys.begun;
        }
        self.settle_after(before, now)
    }

    /// Returns the saved keys of a registry.
    fn save(&self, registry: RegistryId) -> Vec<u8> {
        let mut saved = Vec::new();
        // Writing to memory never fails.
        let _ = save_keys(self.services(), registry, &self.settings.zones, &mut saved);
        saved
    }
}

/// Returns the changes from former services to those that a new catalog added, by base.
///
/// `added` is sorted by base. Services that are the same as before are among the changes.
pub(super) fn changes_from(
    mut before: Vec<Arc<Service>>,
    added: Vec<ServiceChange>,
) -> Vec<ServiceChange> {
    if before.is_empty() {
        return added;
    }
    before.sort_unstable_by(|a, b| a.base().cmp(b.base()));
    let mut changes = Vec::with_capacity(before.len().max(added.len()));
    let (mut before, mut added) = (before.into_iter().peekable(), added.into_iter().peekable());
    loop {
        let order = match (before.peek(), added.peek()) {
            (Some(before), Some(added)) => before.base().cmp(added.base()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return changes,
        };
        let before = if order.is_le() { before.next() } else { None };
        let after = if order.is_ge() { added.next().and_then(|added| added.after) } else { None };
        changes.push(ServiceChange { before, after });
    }
}
