//! What is known now: the one mirror of the registries' keys, and the model made of it.
//!
//! Has no DNS bytes, no clock of its own and no I/O: [`Catalog::apply`] and [`Catalog::settle`] are told the time, and say
//! which services changed and what to ask a registry.

mod conflicts;
mod grace;
mod hosts;
mod intern;
mod key;
mod mirror;
mod model;
mod one_or_many;
#[cfg(test)]
mod properties;
mod puts;
mod rejections;
mod removals;
mod status;
#[cfg(test)]
mod tests;
mod text;
mod tracker;

pub use conflicts::{Conflict, ConflictKind, conflicts};
pub use hosts::HostAddresses;
pub use key::{Group, RegistryKey};
pub use mirror::ServiceChange;
pub use model::{Docker0, ExclusionReason, Instance, Service};
pub use one_or_many::OneOrMany;
pub use rejections::{MAX_LISTED_REJECTIONS, RejectedKey, Rejections};
pub use status::{RegistryStats, RegistryStatus, Staleness, Stats};

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::name::Zones;
use crate::service::{Change, HostChange, MAX_REGISTRIES, Metadata, RegistryId, Update};
use foldhash::fast::RandomState;

use hosts::HostIndex;
use intern::Interner;
use key::SharedKeyFields;
use mirror::{EntryState, Mirror};
use rejections::Ledger;
use tracker::RegistryTracker;

/// Largest [`Settings::max_instances_per_service`]: the targets of a service's SRV records (IPv4, IPv6 and names) have 16-bit
/// numbers in all.
pub const MAX_INSTANCES_PER_SERVICE: usize = (u16::MAX / 3) as usize;

/// Largest [`Settings::max_keys`]: the keys of [`MAX_REGISTRIES`] such registries still have 32-bit places.
pub const MAX_KEYS: usize = (u32::MAX as usize) / MAX_REGISTRIES;

/// With several registries, how long the slower ones are waited for.
const MAX_SYNC_WAIT: Duration = Duration::from_secs(10);

/// What the catalog is told by the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The served zones: their suffixes are taken off registered names.
    pub zones: Zones,
    /// What to do with endpoints at Docker's bridge address.
    pub docker0: Docker0,
    /// How long a mass removal is held, for each registry to tracker (at most [`MAX_REGISTRIES`]).
    /// Zero believes all at once; a day is the most.
    pub removal_graces: Vec<Duration>,
    /// Most endpoints of one base name, over all deployments, namespaces and versions. A key without a usable endpoint
    /// counts as one. At most [`MAX_INSTANCES_PER_SERVICE`].
    pub max_instances_per_service: usize,
    /// Most keys of one registry, those that cannot be served apart; at most [`MAX_KEYS`].
    pub max_keys: usize,
}

impl Settings {
    /// The default settings for these zones and this many registries.
    pub fn new(zones: Zones, registries: usize) -> Self {
        Self {
            zones,
            docker0: Docker0::Drop,
            removal_graces: vec![Duration::from_secs(12); registries],
            max_instances_per_service: 10_000,
            max_keys: 2_000_000,
        }
    }
}

/// What the registries hold, and the services made of it.
///
/// Changes go in one by one, in O(1) amortised; [`Self::settle`] then makes each touched service anew, once. RecentRemovals is
/// bounded by the caps of the [`Settings`] and by what the registries hold.
#[derive(Debug)]
pub struct Catalog {
    settings: Settings,
    mirror: Mirror,
    trackers: Vec<RegistryTracker>,
    groups: Interner<Group>,
    shared_fields: Interner<SharedKeyFields>,
    /// The shared of the last put: mostly that of the next, too.
    last_shared: Option<Arc<SharedKeyFields>>,
    metadata: Interner<Metadata>,
    /// Keys removed_keys since the interned values were tidied last.
    removed_keys: usize,
    /// How often to tidy them still.
    cleanups_due: u8,
    ledger: Ledger,
    hosts: HostIndex,
    /// When the first call came.
    started: Option<Instant>,
}

/// What has happened since the catalog was settled last.
#[derive(Clone, Debug, Default)]
pub struct SettleOutcome {
    /// The services that came, changed or went, sorted by base.
    pub changed: Vec<ServiceChange>,
    /// Which registry to ask which of its leases are gone ([`Change::LeasesGone`]).
    pub lease_checks: Vec<(RegistryId, Vec<i64>)>,
    /// The host names that endpoints are registered under since, or no longer: their addresses are to be looked up, and come
    /// back as [`Update::Hosts`].
    pub hosts: Vec<HostChange>,
    /// When to settle again even if no change comes.
    pub wake: Option<Instant>,
}

impl Catalog {
    /// An empty catalog that trackers the registries of these settings.
    pub fn new(mut settings: Settings) -> Self {
        let graces = std::mem::take(&mut settings.removal_graces).into_iter().take(MAX_REGISTRIES);
        let trackers: Vec<_> = graces.map(RegistryTracker::new).collect();
        let registries = trackers.len();
        let hasher = RandomState::default();
        Self {
            settings,
            mirror: Mirror::new(hasher.clone(), registries),
            trackers,
            groups: Interner::new(hasher.clone()),
            shared_fields: Interner::new(hasher.clone()),
            last_shared: None,
            metadata: Interner::new(hasher),
            removed_keys: 0,
            cleanups_due: 0,
            ledger: Ledger::new(registries),
            hosts: HostIndex::default(),
            started: None,
        }
    }

    /// Takes an update. O(1) amortised for each change in it; a [`Change::ListEnd`] is O(all keys). Services change at the next
    /// [`Self::settle`].
    pub fn apply(&mut self, update: Update, now: Instant) {
        match update {
            Update::Registry(registry, changes) => {
                for change in changes {
                    self.apply_change(registry, change, now);
                }
            }
            Update::Hosts(found) => {
                for base in self.hosts.set_addresses(found) {
                    if let Some(base) = self.mirror.find_base(&base) {
                        self.mirror.mark_changed(base, None);
                    }
                }
            }
        }
    }

    /// Takes a change of a registry. One that is not followed is ignored.
    fn apply_change(&mut self, registry: RegistryId, change: Change, now: Instant) {
        self.started.get_or_insert(now);
        let Some(tracker) = self.trackers.get_mut(registry.index()) else { return };
        match change {
            Change::ListBegin(kind) => {
                if tracker.list.is_some() {
                    self.mirror.dedup_waiting(registry);
                }
                tracker.begin(kind, self.mirror.tally(registry).instances);
                self.ledger.begin_list(registry);
            }
            Change::Put(put) => self.put(registry, put),
            Change::Delete { key, revision, removal } => {
                self.delete(registry, &key, revision, removal, now)
            }
            Change::ListEnd { .. } => {
                if let Some(list) = tracker.end() {
                    self.end_list(registry, list, now);
                }
            }
            Change::Connected(connected) => tracker.disconnected = !connected,
            Change::LeasesGone(gone) => self.conclude_lease_check(registry, &gone, now),
        }
    }

    /// Lets time pass, makes each touched service anew, and says what became of it. To be called when no change is waiting,
    /// and at [`SettleOutcome::wake`].
    ///
    /// What a running list changes shows after its [`Change::ListEnd`]; only where a service changes for another reason
    /// meanwhile (another registry's event, the end of a hold) is what the list has said of that service so far seen with it.
    pub fn settle(&mut self, now: Instant) -> SettleOutcome {
        let started = *self.started.get_or_insert(now);
        let mut outcome = SettleOutcome::default();
        for registry in self.registries() {
            self.advance_time(registry, now);
            let tracker = &mut self.trackers[registry.index()];
            outcome
                .lease_checks
                .extend(tracker.detector.take_lease_check(now).map(|leases| (registry, leases)));
            self.hold_unpublished(registry, now);
            let tracker = &self.trackers[registry.index()];
            outcome.wake =
                earlier(outcome.wake, earlier(tracker.detector.wake(), tracker.holds.wake()));
        }
        outcome.changed = self.mirror.rebuild(self.settings.docker0);
        // Lists come sorted, which a stable sort makes use of.
        outcome.changed.sort_by(|a, b| a.base().cmp(b.base()));
        outcome.hosts = self.hosts.update(&outcome.changed);
        self.remove_unused();
        if !self.registry_status(now).synced && self.trackers.iter().any(|tracker| tracker.synced) {
            outcome.wake = earlier(outcome.wake, Some(started + MAX_SYNC_WAIT));
        }
        outcome
    }

    /// The service of this base, as of the last [`Self::settle`].
    pub fn service(&self, base: &str) -> Option<&Arc<Service>> {
        self.mirror.service(base)
    }

    /// All services as of the last [`Self::settle`], in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.mirror.services()
    }

    /// What is known of the addresses of host names, as of the last [`Self::settle`] and what was told since.
    pub fn hosts(&self) -> &HostAddresses {
        &self.hosts.addresses
    }

    /// How far the data can be relied on.
    pub fn registry_status(&self, now: Instant) -> RegistryStatus {
        let waited = self
            .started
            .is_some_and(|started| now.saturating_duration_since(started) >= MAX_SYNC_WAIT);
        let all = self.trackers.iter().all(|tracker| tracker.synced);
        RegistryStatus {
            synced: all || (waited && self.trackers.iter().any(|tracker| tracker.synced)),
            disconnected: self
                .registries()
                .filter(|registry| self.trackers[registry.index()].is_disconnected())
                .collect(),
            with_held_keys: self
                .registries()
                .filter(|registry| self.mirror.tally(*registry).held > 0)
                .collect(),
            held_keys: self.registries().map(|registry| self.mirror.tally(registry).held).sum(),
        }
    }

    /// What cannot be served now, and why. Made anew only after a change of it.
    pub fn rejections(&mut self) -> Arc<Rejections> {
        self.ledger.view()
    }

    /// Sizes, for metrics.
    pub fn stats(&self) -> Stats {
        let of = |registry| {
            let tally = self.mirror.tally(registry);
            RegistryStats {
                keys: tally.present + tally.held,
                instances: tally.instances + tally.held_instances,
                held: tally.held,
                differences: self.trackers[registry.index()].differences,
            }
        };
        Stats { registries: self.registries().map(of).collect() }
    }

    fn registries(&self) -> impl Iterator<Item = RegistryId> + use<> {
        RegistryId::first(self.trackers.len())
    }

    fn grace(&self, registry: RegistryId) -> Duration {
        self.trackers[registry.index()].grace
    }

    /// Whether an event is older than what is known of its key in this list epoch.
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

    /// Changes an entry, and the rejections with it.
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

    /// Marks the service of an entry that its registry changed.
    fn mark_changed(&mut self, slot: u32, registry: RegistryId) {
        let in_list = self.trackers[registry.index()].list.is_some();
        self.mirror.mark_changed(self.mirror.base(slot), in_list.then_some(registry));
    }

    /// Forgets shared_fields, groups and metadata that no key has any more, now and then; twice, since readers may hold the services before
    /// a change a little longer.
    fn remove_unused(&mut self) {
        if self.removed_keys > (self.shared_fields.len().max(self.metadata.len()) / 2).max(1024) {
            self.removed_keys = 0;
            self.cleanups_due = 2;
        }
        if self.cleanups_due > 0 {
            self.cleanups_due -= 1;
            self.last_shared = None;
            self.shared_fields.remove_unused();
            self.groups.remove_unused();
            self.metadata.remove_unused();
        }
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}
