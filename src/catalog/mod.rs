//! What is known now: the one mirror of the registries' keys, and the model made of it.
//!
//! Has no DNS bytes, no clock of its own and no I/O: [`Catalog::take`] and [`Catalog::settle`] are told the time, and say
//! which services changed and what to ask a registry.

mod conflicts;
mod few;
mod follow;
mod grace;
mod hosts;
mod intern;
mod key;
mod mirror;
mod model;
#[cfg(test)]
mod properties;
mod puts;
mod rejections;
mod removals;
mod status;
#[cfg(test)]
mod tests;
mod text;

pub use conflicts::{Conflict, ConflictKind, conflicts};
pub use few::Few;
pub use hosts::HostAddresses;
pub use key::{Group, Key};
pub use mirror::Changed;
pub use model::{Docker0, Instance, LeftOut, Service};
pub use rejections::{LISTED, RejectedKey, Rejections};
pub use status::{Condition, RegistryStats, Staleness, Stats};

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::name::Zones;
use crate::service::{Change, HostChange, MAX_REGISTRIES, Metadata, RegistryId, Update};
use foldhash::fast::RandomState;

use follow::Follow;
use hosts::Hosts;
use intern::Interner;
use key::Frame;
use mirror::{Mirror, Standing};
use rejections::Ledger;

/// Largest [`Settings::max_instances_per_service`]: the targets of a service's SRV records (IPv4, IPv6 and names) have 16-bit
/// numbers in all.
pub const MAX_INSTANCES_PER_SERVICE: usize = (u16::MAX / 3) as usize;

/// Largest [`Settings::max_keys`]: the keys of [`MAX_REGISTRIES`] such registries still have 32-bit places.
pub const MAX_KEYS: usize = (u32::MAX as usize) / MAX_REGISTRIES;

/// With several registries, how long the slower ones are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the catalog is told by the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The served zones: their suffixes are taken off registered names.
    pub zones: Zones,
    /// What to do with endpoints at Docker's bridge address.
    pub docker0: Docker0,
    /// How long a mass removal is held, for each registry to follow (at most [`MAX_REGISTRIES`]).
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
/// Changes go in one by one, in O(1) amortised; [`Self::settle`] then makes each touched service anew, once. Memory is
/// bounded by the caps of the [`Settings`] and by what the registries hold.
#[derive(Debug)]
pub struct Catalog {
    settings: Settings,
    mirror: Mirror,
    follows: Vec<Follow>,
    groups: Interner<Group>,
    frames: Interner<Frame>,
    /// The frame of the last put: mostly that of the next, too.
    last_frame: Option<Arc<Frame>>,
    metadata: Interner<Metadata>,
    /// Keys dropped since the interned values were tidied last.
    dropped: usize,
    /// How often to tidy them still.
    tidy: u8,
    ledger: Ledger,
    hosts: Hosts,
    /// When the first call came.
    began: Option<Instant>,
}

/// What has happened since the catalog was settled last.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The services that came, changed or went, sorted by base.
    pub changed: Vec<Changed>,
    /// Which registry to ask which of its leases are gone ([`Change::LeasesGone`]).
    pub doubts: Vec<(RegistryId, Vec<i64>)>,
    /// The host names that endpoints are registered under since, or no longer: their addresses are to be looked up, and come
    /// back as [`Update::Hosts`].
    pub hosts: Vec<HostChange>,
    /// When to settle again even if no change comes.
    pub wake: Option<Instant>,
}

impl Catalog {
    /// An empty catalog that follows the registries of these settings.
    pub fn new(mut settings: Settings) -> Self {
        let graces = std::mem::take(&mut settings.removal_graces).into_iter().take(MAX_REGISTRIES);
        let follows: Vec<_> = graces.map(Follow::new).collect();
        let registries = follows.len();
        let hasher = RandomState::default();
        Self {
            settings,
            mirror: Mirror::new(hasher.clone(), registries),
            follows,
            groups: Interner::new(hasher.clone()),
            frames: Interner::new(hasher.clone()),
            last_frame: None,
            metadata: Interner::new(hasher),
            dropped: 0,
            tidy: 0,
            ledger: Ledger::new(registries),
            hosts: Hosts::default(),
            began: None,
        }
    }

    /// Takes an update. O(1) amortised for each change in it; a [`Change::ListEnd`] is O(all keys). Services change at the next
    /// [`Self::settle`].
    pub fn take(&mut self, update: Update, now: Instant) {
        match update {
            Update::Registry(registry, changes) => {
                for change in changes {
                    self.apply(registry, change, now);
                }
            }
            Update::Hosts(found) => {
                for base in self.hosts.resolve(found) {
                    if let Some(base) = self.mirror.base_named(&base) {
                        self.mirror.touch(base, None);
                    }
                }
            }
        }
    }

    /// Takes a change of a registry. One that is not followed is ignored.
    fn apply(&mut self, registry: RegistryId, change: Change, now: Instant) {
        self.began.get_or_insert(now);
        let Some(follow) = self.follows.get_mut(registry.place()) else { return };
        match change {
            Change::ListBegin(kind) => {
                if follow.list.is_some() {
                    self.mirror.abandon(registry);
                }
                follow.begin(kind, self.mirror.tally(registry).instances);
                self.ledger.begin_list(registry);
            }
            Change::Put(put) => self.put(registry, put),
            Change::Delete { key, revision, removal } => self.delete(registry, &key, revision, removal, now),
            Change::ListEnd { .. } => {
                if let Some(list) = follow.end() {
                    self.end_list(registry, list, now);
                }
            }
            Change::Connected(connected) => follow.disconnected = !connected,
            Change::LeasesGone(gone) => self.answer(registry, &gone, now),
        }
    }

    /// Lets time pass, makes each touched service anew, and says what became of it. To be called when no change is waiting,
    /// and at [`Outcome::wake`].
    ///
    /// What a running list changes shows after its [`Change::ListEnd`]; only where a service changes for another reason
    /// meanwhile (another registry's event, the end of a hold) is what the list has said of that service so far seen with it.
    pub fn settle(&mut self, now: Instant) -> Outcome {
        let began = *self.began.get_or_insert(now);
        let mut outcome = Outcome::default();
        for registry in self.registries() {
            self.pass_time(registry, now);
            let follow = &mut self.follows[registry.place()];
            outcome.doubts.extend(follow.storm.doubt(now).map(|leases| (registry, leases)));
            self.give_benefit_of_doubt(registry, now);
            let follow = &self.follows[registry.place()];
            outcome.wake = earlier(outcome.wake, earlier(follow.storm.wake(), follow.holds.wake()));
        }
        outcome.changed = self.mirror.rebuild(self.settings.docker0);
        // Lists come sorted, which a stable sort makes use of.
        outcome.changed.sort_by(|a, b| a.base().cmp(b.base()));
        outcome.hosts = self.hosts.follow(&outcome.changed);
        self.tidy();
        if !self.condition(now).synced && self.follows.iter().any(|follow| follow.synced) {
            outcome.wake = earlier(outcome.wake, Some(began + PATIENCE));
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
    pub fn condition(&self, now: Instant) -> Condition {
        let waited = self.began.is_some_and(|began| now.saturating_duration_since(began) >= PATIENCE);
        let all = self.follows.iter().all(|follow| follow.synced);
        Condition {
            synced: all || (waited && self.follows.iter().any(|follow| follow.synced)),
            away: self.registries().filter(|registry| self.follows[registry.place()].is_away()).collect(),
            held: self.registries().filter(|registry| self.mirror.tally(*registry).held > 0).collect(),
            holding: self.registries().map(|registry| self.mirror.tally(registry).held).sum(),
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
                differences: self.follows[registry.place()].differences,
            }
        };
        Stats { registries: self.registries().map(of).collect() }
    }

    fn registries(&self) -> impl Iterator<Item = RegistryId> + use<> {
        RegistryId::first(self.follows.len())
    }

    fn grace(&self, registry: RegistryId) -> Duration {
        self.follows[registry.place()].grace
    }

    /// Whether an event is older than what is known of its key in this list epoch.
    fn is_outdated(&self, registry: RegistryId, hash: u64, slot: Option<u32>, revision: u64) -> bool {
        let follow = &self.follows[registry.place()];
        let current = |slot: &u32| self.mirror.standing(*slot) == Standing::Present && self.mirror.generation(*slot) == follow.generation;
        let known = slot.filter(current).and_then(|slot| self.mirror.key(slot)).map_or(0, |key| key.revision);
        revision != 0 && revision < known.max(follow.memory.revision(hash))
    }

    /// Changes an entry, and the rejections with it.
    fn change(&mut self, slot: u32, key: Option<Arc<Key>>, standing: Standing) {
        let Self { mirror, ledger, dropped, .. } = self;
        if let Some(key) = mirror.key(slot).filter(|_| mirror.standing(slot).counts()) {
            ledger.leave(|| mirror.hash_and_text(slot).0, key);
        }
        *dropped += usize::from(key.is_some() || standing == Standing::Removed);
        mirror.update(slot, key, standing);
        if let Some(key) = mirror.key(slot).filter(|_| standing.counts()) {
            ledger.enter(|| mirror.hash_and_text(slot), key);
        }
    }

    /// Marks the service of an entry that its registry changed.
    fn touch(&mut self, slot: u32, registry: RegistryId) {
        let in_list = self.follows[registry.place()].list.is_some();
        self.mirror.touch(self.mirror.base(slot), in_list.then_some(registry));
    }

    /// Forgets frames, groups and metadata that no key has any more, now and then; twice, since readers may hold the services before
    /// a change a little longer.
    fn tidy(&mut self) {
        if self.dropped > (self.frames.len().max(self.metadata.len()) / 2).max(1024) {
            self.dropped = 0;
            self.tidy = 2;
        }
        if self.tidy > 0 {
            self.tidy -= 1;
            self.last_frame = None;
            self.frames.tidy();
            self.groups.tidy();
            self.metadata.tidy();
        }
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}
