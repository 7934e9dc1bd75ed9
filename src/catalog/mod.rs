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
mod rejections;
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

use crate::name::{Base, BaseError, Name, Zones, base_of};
use crate::service::{
    Change, Endpoint, Host, HostChange, ListKind, MAX_REGISTRIES, Metadata, Put, Reason, Registration, RegistryId, Rejected, Removal,
    ServiceId, Update,
};
use foldhash::fast::RandomState;

use follow::{Follow, List};
use grace::{Answer, DOUBT, Hold, Sweep, Tomb};
use hosts::Hosts;
use intern::Interner;
use key::{Around, Frame, Odd};
use mirror::{Mirror, Standing, size};
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

    fn put(&mut self, registry: RegistryId, put: Put) {
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

    /// Whether an event is older than what is known of its key in this list epoch.
    fn is_outdated(&self, registry: RegistryId, hash: u64, slot: Option<u32>, revision: u64) -> bool {
        let follow = &self.follows[registry.place()];
        let current = |slot: &u32| self.mirror.standing(*slot) == Standing::Present && self.mirror.generation(*slot) == follow.generation;
        let known = slot.filter(current).and_then(|slot| self.mirror.key(slot)).map_or(0, |key| key.revision);
        revision != 0 && revision < known.max(follow.memory.revision(hash))
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

    fn delete(&mut self, registry: RegistryId, text: &str, revision: u64, removal: Removal, now: Instant) {
        let hash = self.mirror.hash(registry, text);
        let slot = self.mirror.find(hash, registry, text);
        if self.is_outdated(registry, hash, slot, revision) {
            return;
        }
        self.follows[registry.place()].memory.note(hash, revision);
        self.ledger.clear(registry, hash);
        let Some(slot) = slot else { return };
        match removal {
            Removal::Lease(lease) if lease != 0 && !self.grace(registry).is_zero() => {
                if self.mirror.standing(slot) == Standing::Present {
                    self.expire(registry, slot, lease, now);
                }
            }
            Removal::Lease(_) | Removal::Explicit => {
                self.change(slot, None, Standing::Removed);
                self.touch(slot, registry);
            }
        }
    }

    /// A key that hung on a lease is gone: believed for now, unless a storm of expiry rages.
    fn expire(&mut self, registry: RegistryId, slot: u32, lease: i64, now: Instant) {
        self.pass_time(registry, now);
        let before = self.mirror.tally(registry).instances;
        let Some(key) = self.mirror.key(slot).map(Arc::clone) else { return };
        let storm = &mut self.follows[registry.place()].storm;
        if storm.is_expiry() {
            storm.goes_on(now);
            self.hold(registry, slot, now + self.grace(registry), Standing::Removed);
        } else {
            storm.bury(Tomb { at: now, slot, key, lease, before });
            self.change(slot, None, Standing::Buried);
        }
        self.touch(slot, registry);
    }

    fn answer(&mut self, registry: RegistryId, gone: &[i64], now: Instant) {
        self.pass_time(registry, now);
        match self.follows[registry.place()].storm.answer(gone) {
            Answer::Unasked => {}
            Answer::Expiry(tombs) => {
                for tomb in tombs {
                    let until = tomb.at + self.grace(registry);
                    if until > now && self.is_open(&tomb) {
                        self.hold(registry, tomb.slot, until, Standing::Removed);
                        self.mirror.touch(self.mirror.base(tomb.slot), None);
                    } else {
                        self.forget(&tomb);
                    }
                }
            }
            Answer::Deliberate(tombs) => tombs.iter().for_each(|tomb| self.forget(tomb)),
        }
    }

    /// Sweeps what a complete list did not name.
    fn end_list(&mut self, registry: RegistryId, list: List, now: Instant) {
        let generation = self.follows[registry.place()].generation;
        let swept = self.mirror.older(registry, generation);
        let keys = swept.iter().filter_map(|&slot| self.mirror.key(slot));
        let instances = keys.map(|key| key.endpoints.len()).sum();
        let tally = self.mirror.tally(registry);
        let sweep = Sweep {
            keys: swept.len(),
            instances,
            before: list.before,
            keys_left: tally.present - swept.len(),
            instances_left: tally.instances - instances,
        };
        let grace = self.grace(registry);
        let hold = !grace.is_zero() && sweep.is_doubtful(list.kind);
        if list.kind == ListKind::Routine {
            self.follows[registry.place()].differences += swept.len() as u64;
        }
        for slot in swept {
            if hold {
                self.hold(registry, slot, now + grace, Standing::Removed);
            } else {
                self.change(slot, None, Standing::Removed);
            }
            self.mirror.touch(self.mirror.base(slot), None);
        }
        self.ledger.end_list(registry, generation);
        self.mirror.release(registry);
    }

    /// Ends what is over: tombstones, storms, holds.
    fn pass_time(&mut self, registry: RegistryId, now: Instant) {
        let follow = &mut self.follows[registry.place()];
        let (tombs, holds) = (follow.storm.advance(now), follow.holds.ended(now));
        for tomb in tombs {
            self.forget(&tomb);
        }
        for Hold { slot, key, then } in holds {
            if self.is_still(slot, &key, Standing::Held) {
                self.change(slot, None, then);
                self.mirror.touch(self.mirror.base(slot), None);
            }
        }
    }

    /// While a registry is asked whether leases expired: goes on serving what hung on them and was not seen missing yet.
    fn give_benefit_of_doubt(&mut self, registry: RegistryId, now: Instant) {
        let mut tombs = self.follows[registry.place()].storm.take_unseen();
        for tomb in &mut tombs {
            let until = tomb.at + DOUBT.min(self.grace(registry));
            if until > now
                && self.is_open(tomb)
                && let Some(held) = self.hold(registry, tomb.slot, until, Standing::Buried)
            {
                tomb.key = held;
            }
        }
        self.follows[registry.place()].storm.put_back(tombs);
    }

    /// Whether a tombstone still stands for its key: that was neither put again nor removed.
    fn is_open(&self, tomb: &Tomb) -> bool {
        [Standing::Buried, Standing::Held].into_iter().any(|standing| self.is_still(tomb.slot, &tomb.key, standing))
    }

    /// Takes a tombstone's key out for good.
    fn forget(&mut self, tomb: &Tomb) {
        if self.is_open(tomb) {
            self.change(tomb.slot, None, Standing::Removed);
            self.mirror.touch(self.mirror.base(tomb.slot), None);
        }
    }

    /// Serves a key although its registry says that it is gone; returns it as it is served.
    fn hold(&mut self, registry: RegistryId, slot: u32, until: Instant, then: Standing) -> Option<Arc<Key>> {
        let mut held = Key::clone(self.mirror.key(slot)?);
        held.frame = self.frames.intern(Arc::new(Frame { held: true, ..Frame::clone(&held.frame) }));
        let held = Arc::new(held);
        self.change(slot, Some(Arc::clone(&held)), Standing::Held);
        self.follows[registry.place()].holds.add(until, Hold { slot, key: Arc::clone(&held), then });
        Some(held)
    }

    /// Whether an entry is still the one that a tombstone or a hold was made for: each put makes a new key.
    fn is_still(&self, slot: u32, key: &Arc<Key>, standing: Standing) -> bool {
        self.mirror.standing(slot) == standing && self.mirror.key(slot).is_some_and(|known| Arc::ptr_eq(known, key))
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

/// Why a host name cannot be an endpoint.
fn host_reason(host: &str, zones: &Zones) -> Option<Reason> {
    match Name::from_text(host) {
        Ok(name) => zones.find(&name).map(|_| Reason::HOST_IN_ZONE),
        Err(_) => Some(Reason::HOST_MALFORMED),
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}
