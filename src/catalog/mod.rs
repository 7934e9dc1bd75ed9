//! The catalog: a mirror of the registries' keys, and the services built from them.
//!
//! The catalog knows no DNS, does no I/O and has no clock. Callers pass the time to
//! [`Catalog::apply`] and [`Catalog::settle`]; `settle` returns the services that changed and the
//! leases to check with each registry.

mod bridged;
mod build;
mod checks;
mod conflicts;
mod expiry;
mod grace;
mod hash;
mod holds;
mod hosts;
mod intern;
mod key;
mod mirror;
mod model;
mod names;
mod one_or_many;
#[cfg(test)]
mod properties;
mod puts;
mod rebuilt;
mod registry_services;
mod rejections;
mod release;
mod removals;
mod restored;
mod rules;
mod run_ahead;
mod saved;
mod status;
mod sweeps;
#[cfg(test)]
mod tests;
mod text;
mod tracker;

pub use bridged::BridgedAddresses;
pub use build::reject_host;
pub use checks::CheckRules;
pub use conflicts::{Conflict, ConflictKind, conflicts, conflicts_with_alias, spelling};
pub use holds::{Hold, HoldCause, HoldView, PerCause, Released};
pub use hosts::HostAddresses;
pub use key::{Group, RegistryKey};
pub use model::{ExclusionReason, Instance, Service, ServiceChange};
pub use one_or_many::OneOrMany;
pub use rebuilt::KeptRegistry;
pub use rejections::{MAX_LISTED_REJECTIONS, RejectedKey, Rejections};
pub use rules::{Docker0, Merge, ServiceRules};
pub use saved::{MalformedKeys, save_keys};
pub use status::{RegistryStats, RegistryStatus, Staleness, Stats};

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use crate::name::Zones;
use crate::service::{
    Change, CheckChange, HostChange, MAX_REGISTRIES, RegistryId, RegistrySet, Update,
};
use build::KeyBuilder;
use checks::CheckIndex;
use hosts::HostIndex;
use mirror::{EntryState, Mirror};
use registry_services::RegistryServices;
use rejections::Ledger;
use removals::is_pending;
use tracker::RegistryTracker;

/// Upper bound of [`Settings::max_instances_per_service`], and of the records of one set.
///
/// SRV records refer to the IPv4, IPv6 and host name targets of their owner by one 16-bit index,
/// and there may be as many targets of each kind as instances. Several registries together may have
/// more instances of a service: further ones have no record.
pub const MAX_INSTANCES_PER_SERVICE: usize = (u16::MAX / 3) as usize;

/// Upper bound of [`Settings::max_keys`].
///
/// 32-bit indices must cover the keys of [`MAX_REGISTRIES`] registries.
pub const MAX_KEYS: usize = (u32::MAX as usize) / MAX_REGISTRIES;

/// Maximum wait from startup for the first list of every registry, if one list is complete.
const MAX_SYNC_WAIT: Duration = Duration::from_secs(10);

/// Configuration of the catalog.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The served zones, whose suffixes are stripped from registered names.
    pub zones: Zones,
    /// Treatment of endpoints at Docker's default bridge address.
    pub docker0: Docker0,
    /// Removal grace of each registry: how long a mass removal is held.
    ///
    /// The length is the number of registries, at most [`MAX_REGISTRIES`]. Zero applies every
    /// removal at once; values above 24 h are cut to 24 h.
    pub removal_graces: Vec<Duration>,
    /// The layer of each registry, from [`Merge::layers`]; all equal for a missing one.
    pub layers: Vec<u8>,
    /// Limit on one registry's endpoints of one base name, over all deployments and versions.
    ///
    /// A key without a usable endpoint counts as one. At most [`MAX_INSTANCES_PER_SERVICE`].
    pub max_instances_per_service: usize,
    /// Limit on the accepted keys of one registry; at most [`MAX_KEYS`].
    pub max_keys: usize,
    /// The addresses of the port bridge, which no endpoint may have.
    pub bridge_pool: Option<Ipv4Net>,
    /// Rules for the endpoints to check; `None` turns checks off.
    pub checks: Option<CheckRules>,
}

impl Settings {
    /// Returns the default settings for these zones and this many registries.
    pub fn new(zones: Zones, registries: usize) -> Self {
        Self {
            zones,
            docker0: Docker0::Drop,
            removal_graces: vec![Duration::from_secs(12); registries],
            layers: Merge::Union.layers((0..registries).map(|_| false)),
            max_instances_per_service: 10_000,
            max_keys: 2_000_000,
            bridge_pool: None,
            checks: None,
        }
    }
}

/// The keys of all registries, and the services built from them.
///
/// Each change is applied in amortised O(1); [`Self::settle`] then rebuilds every affected service
/// once. The limits in [`Settings`] bound the memory.
#[derive(Debug)]
pub struct Catalog {
    settings: Arc<Settings>,
    mirror: Mirror,
    trackers: Vec<RegistryTracker>,
    builder: KeyBuilder,
    /// Keys removed or replaced since the last clean-up of interned values.
    removed_keys: usize,
    /// Clean-ups still to run, one per [`Self::settle`].
    cleanups_due: u8,
    ledger: Ledger,
    registry_services: RegistryServices,
    hosts: HostIndex,
    bridged: BridgedAddresses,
    /// Names whose address the bridge changed since the last [`Self::settle`].
    rebridged: Vec<Box<str>>,
    checks: Option<CheckIndex>,
    /// The registries that had not completed a list at the last [`Self::settle`].
    unsynced: RegistrySet,
    /// The results of releases since the last [`Self::settle`].
    released: Vec<Released>,
    /// The time of the first call.
    started: Option<Instant>,
}

/// The result of [`Catalog::settle`].
#[derive(Clone, Debug, Default)]
pub struct SettleOutcome {
    /// The services that were added, changed or removed, sorted by base name.
    pub changed: Vec<ServiceChange>,
    /// Leases for each registry to check; the reply is a [`Change::LeasesChecked`].
    pub lease_checks: Vec<(RegistryId, Vec<i64>)>,
    /// Host names whose addresses are needed from now on, or no longer.
    ///
    /// The addresses come back as [`Update::Hosts`].
    pub hosts: Vec<HostChange>,
    /// Names in front of the zone whose address the port bridge changed.
    pub rebridged: Vec<Box<str>>,
    /// Endpoints to check from now on, or no longer.
    ///
    /// The verdicts come back as [`Update::Checks`].
    pub checks: Vec<CheckChange>,
    /// The holds that ended by hand.
    pub released: Vec<Released>,
    /// Time of the next [`Catalog::settle`], even if no change arrives.
    pub wake: Option<Instant>,
}

impl Catalog {
    /// Creates an empty catalog with one registry for each removal grace.
    pub fn new(mut settings: Settings) -> Self {
        let graces = std::mem::take(&mut settings.removal_graces).into_iter().take(MAX_REGISTRIES);
        let trackers: Vec<_> = graces.map(RegistryTracker::new).collect();
        let registries = trackers.len();
        let checks = settings.checks.take().map(CheckIndex::new);
        Self {
            settings: Arc::new(settings),
            mirror: Mirror::new(registries),
            trackers,
            builder: KeyBuilder::default(),
            removed_keys: 0,
            cleanups_due: 0,
            ledger: Ledger::new(registries),
            registry_services: RegistryServices::default(),
            hosts: HostIndex::default(),
            bridged: BridgedAddresses::default(),
            rebridged: Vec::new(),
            checks,
            unsynced: RegistryId::first(registries).collect(),
            released: Vec::new(),
            started: None,
        }
    }

    /// Applies an update; services change at the next [`Self::settle`].
    ///
    /// Amortised O(1) for each change in the update, except that a [`Change::ListEnd`] is O(all
    /// keys), or O(keys of the service), and a [`Change::ServiceNames`] is O(names).
    pub fn apply(&mut self, update: Update, now: Instant) {
        match update {
            Update::Registry(registry, changes) => {
                for change in changes {
                    self.apply_change(registry, change, now);
                }
            }
            Update::Hosts(found) => {
                let affected = self.hosts.set_addresses(found);
                self.mark_bases(affected);
            }
            Update::Checks(verdicts) => {
                let affected = self.checks.as_mut().map(|checks| checks.judge(verdicts));
                self.mark_bases(affected.unwrap_or_default());
            }
            Update::Bridged(names) => {
                self.bridged.update(&names);
                self.rebridged.extend(names.into_iter().map(|bridged| bridged.name));
            }
            Update::Release(release) => self.release(release),
        }
    }

    /// Applies one change of a registry; a change of an unknown registry is ignored.
    fn apply_change(&mut self, registry: RegistryId, change: Change, now: Instant) {
        self.started.get_or_insert(now);
        let Some(tracker) = self.trackers.get_mut(registry.index()) else { return };
        match change {
            Change::ListBegin { kind, scope } => self.begin_list(registry, kind, scope, now),
            Change::ServiceNames { kind, names } => {
                self.replace_names(registry, kind, names, now);
            }
            Change::Put(put) => self.put(registry, put),
            Change::Delete { key, revision, removal } => {
                self.delete(registry, &key, revision, removal, now);
            }
            Change::Unreadable { key } => {
                if let Some(list) = &mut tracker.list {
                    list.unreadable.insert(key);
                }
            }
            Change::ListEnd { revision } => self.end_list(registry, revision, now),
            Change::Connected(connected) => {
                tracker.disconnected = !connected;
                tracker.detector.forget_check();
            }
            Change::LeasesChecked(reply) => self.conclude_lease_check(registry, reply, now),
        }
    }

    /// Advances the time, rebuilds the affected services and returns the changes.
    ///
    /// The caller settles when no update is waiting, and at [`SettleOutcome::wake`].
    ///
    /// The changes of a list become visible after its [`Change::ListEnd`]. A service that is
    /// rebuilt earlier for another reason (an event of another registry, the end of a hold)
    /// already includes the instances that the list has delivered so far.
    pub fn settle(&mut self, now: Instant) -> SettleOutcome {
        self.settle_after(Vec::new(), now)
    }

    /// Settles a catalog that follows one with these services.
    fn settle_after(&mut self, before: Vec<Arc<Service>>, now: Instant) -> SettleOutcome {
        let started = *self.started.get_or_insert(now);
        let mut outcome = SettleOutcome::default();
        for registry in self.registries() {
            self.advance_time(registry, now);
            self.hold_unpublished(registry, now);
            let Self { mirror, trackers, .. } = &mut *self;
            let RegistryTracker { detector, held_keys, .. } = &mut trackers[registry.index()];
            let leases = detector.take_lease_check(now, |tombstone| is_pending(mirror, tombstone));
            outcome.lease_checks.extend(leases.map(|leases| (registry, leases)));
            outcome.wake = earlier(outcome.wake, earlier(detector.wake(now), held_keys.wake()));
            outcome.wake = earlier(outcome.wake, trackers[registry.index()].round_wake());
        }
        self.note_synced();
        let rules = ServiceRules { docker0: self.settings.docker0, unsynced: self.unsynced };
        outcome.changed = self.mirror.rebuild(rules, |service| {
            if let Some(checks) = &self.checks {
                checks.leave_out(service);
            }
        });
        self.registry_services.update(&outcome.changed);
        // A list arrives in key order, and a stable sort is fast on nearly sorted input.
        outcome.changed.sort_by(|a, b| a.base().cmp(b.base()));
        outcome.changed = rebuilt::changes_from(before, outcome.changed);
        outcome.hosts = self.hosts.update(&outcome.changed);
        outcome.rebridged = std::mem::take(&mut self.rebridged);
        if let Some(checks) = &mut self.checks {
            outcome.checks = checks.update(&outcome.changed);
        }
        outcome.released = std::mem::take(&mut self.released);
        self.remove_unused();
        if !self.registry_status(now).synced && self.trackers.iter().any(|tracker| tracker.synced) {
            outcome.wake = earlier(outcome.wake, Some(started + MAX_SYNC_WAIT));
        }
        outcome
    }

    /// Returns the service of a base name as of the last [`Self::settle`].
    pub fn service(&self, base: &str) -> Option<&Arc<Service>> {
        self.mirror.service(base)
    }

    /// Returns all services as of the last [`Self::settle`], in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.mirror.services()
    }

    /// Returns the latest known addresses of host names.
    ///
    /// New host names appear with [`Self::settle`], new addresses with [`Self::apply`].
    pub fn hosts(&self) -> &HostAddresses {
        &self.hosts.addresses
    }

    /// Returns the addresses of bridged names, as of the last [`Self::apply`].
    pub fn bridged(&self) -> &BridgedAddresses {
        &self.bridged
    }

    /// Returns the freshness of the registries' data at this time.
    pub fn registry_status(&self, now: Instant) -> RegistryStatus {
        let waited = self
            .started
            .is_some_and(|started| now.saturating_duration_since(started) >= MAX_SYNC_WAIT);
        let all = self.trackers.iter().all(|tracker| tracker.synced);
        let synced = all || (waited && self.trackers.iter().any(|tracker| tracker.synced));
        RegistryStatus {
            registries: self.registries().collect(),
            synced,
            known: self
                .registries()
                .filter(|registry| self.trackers[registry.index()].synced)
                .collect(),
            disconnected: self
                .registries()
                .filter(|registry| self.trackers[registry.index()].is_disconnected())
                .collect(),
            unread: self
                .registries()
                .filter(|registry| synced && !self.trackers[registry.index()].synced)
                .collect(),
            with_held_keys: self
                .registries()
                .filter(|registry| self.mirror.tally(*registry).held.total() > 0)
                .collect(),
            held_keys: self
                .registries()
                .map(|registry| self.mirror.tally(registry).held.total())
                .sum(),
        }
    }

    /// Returns the current rejections; the value is shared until one of them changes.
    pub fn rejections(&mut self) -> Arc<Rejections> {
        self.ledger.view()
    }

    /// Returns the counts for metrics.
    pub fn stats(&self) -> Stats {
        let of = |registry| {
            let tally = self.mirror.tally(registry);
            let held = tally.held.total();
            let tracker = &self.trackers[registry.index()];
            RegistryStats {
                keys: tally.present + held,
                instances: tally.instances + tally.held_instances,
                services: self.registry_services.get(registry),
                held,
                holds: tracker.held_keys.begun,
                differences: tracker.differences,
            }
        };
        Stats {
            registries: self.registries().map(of).collect(),
            left_out: self.checks.as_ref().map_or(0, |checks| checks.left_out),
        }
    }

    /// Marks the services from which a registry was left out until it completed its first list.
    fn note_synced(&mut self) {
        for registry in self.registries() {
            let is_synced = self.trackers[registry.index()].synced;
            if is_synced && self.unsynced.contains(registry) {
                self.unsynced.remove(registry);
                self.mirror.mark_shared(registry);
            }
        }
    }

    fn registries(&self) -> impl Iterator<Item = RegistryId> + use<> {
        RegistryId::first(self.trackers.len())
    }

    fn grace(&self, registry: RegistryId) -> Duration {
        self.trackers[registry.index()].grace
    }

    /// Returns whether an event is older than the key's last revision in this epoch.
    fn is_outdated(
        &self,
        registry: RegistryId,
        hash: u64,
        slot: Option<u32>,
        revision: u64,
    ) -> bool {
        let tracker = &self.trackers[registry.index()];
        let current = |slot: &u32| {
            self.mirror.state(*slot) == EntryState::Present
                && self.mirror.generation(*slot) == tracker.generation
        };
        let known = slot
            .filter(current)
            .and_then(|slot| self.mirror.key(slot))
            .map_or(0, |key| key.revision);
        revision != 0 && revision < known.max(tracker.removals.revision(hash))
    }

    /// Changes the state of an entry, its key if given, and its rejections.
    fn update_entry(&mut self, slot: u32, key: Option<Arc<RegistryKey>>, state: EntryState) {
        let Self { mirror, ledger, removed_keys, .. } = self;
        if let Some(key) = mirror.key(slot).filter(|_| mirror.state(slot).is_live()) {
            ledger.remove_endpoints(|| mirror.hash_and_text(slot).0, key);
        }
        *removed_keys += usize::from(key.is_some() || state == EntryState::Removed);
        mirror.update(slot, key, state);
        if let Some(key) = mirror.key(slot).filter(|_| state.is_live()) {
            ledger.add_endpoints(|| mirror.hash_and_text(slot), key);
        }
    }

    /// Marks the services of these base names as changed.
    fn mark_bases(&mut self, bases: BTreeSet<Box<str>>) {
        for base in bases {
            if let Some(base) = self.mirror.base_named(&base) {
                self.mirror.mark_changed(base, None);
            }
        }
    }

    /// Marks the service of an entry as changed by this registry.
    fn mark_changed(&mut self, slot: u32, registry: RegistryId) {
        let in_list = self.trackers[registry.index()].list.is_some();
        self.mirror.mark_changed(self.mirror.base(slot), in_list.then_some(registry));
    }

    /// Drops interned values that are no longer used by any key, after enough removals.
    ///
    /// The work takes two calls: during the first, readers may hold the previous services.
    fn remove_unused(&mut self) {
        if self.removed_keys > (self.builder.shared_values() / 2).max(1024) {
            self.removed_keys = 0;
            self.cleanups_due = 2;
        }
        if self.cleanups_due > 0 {
            self.cleanups_due -= 1;
            self.builder.remove_unused();
        }
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}
