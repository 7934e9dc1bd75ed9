//! What is known, made into what is answered: the catalog's changes compiled into the table, published in one store.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;

use super::answerer::Answerer;
use super::compile;
use super::counters::Counters;
use super::full::{self, Form, Found};
use super::owner::{MAX_NAME, is_configured, is_label, owner_of, service_owner};
use super::record::{RecordBuilder, put_marker};
use super::settings::Settings;
use super::table::Snapshot;
use crate::catalog::{self, Catalog, Group, Service, ServiceChange, SettleOutcome};
use crate::service::{HostChange, RegistryId, Update};

/// Changed services whose records are made at once: what is needed on the way takes some hundred octets for each, and whoever
/// shares the thread waits some tenths of a second.
const SLICE: usize = 100_000;

/// Owns what is known and publishes it for an [`Answerer`].
#[derive(Debug)]
pub struct Publisher {
    catalog: Catalog,
    answerer: Arc<Answerer>,
    /// Generations that readers may still hold.
    held: Vec<Arc<Snapshot>>,
    /// Changed services whose records [`Publication::go_on`] makes at once: [`SLICE`], fewer in
    /// tests.
    pub(super) slice: usize,
}

/// What came of some updates.
#[derive(Debug, Default)]
pub struct Published {
    /// The services that changed, by base.
    pub changed: Vec<ServiceChange>,
    /// The host names that endpoints are registered under since, or no longer: their addresses are to be looked up, and come
    /// back as [`Update::Hosts`].
    pub hosts: Vec<HostChange>,
    /// What to ask registries: which of these leases no longer exist?
    pub doubts: Vec<(RegistryId, Vec<i64>)>,
    /// When to call [`Publisher::apply`] again, though nothing may have come.
    pub wake: Option<Instant>,
}

impl Publisher {
    /// A publisher of nothing yet, and its answerer.
    #[must_use]
    pub fn new(catalog: catalog::Settings, answer: Settings, now: Instant) -> (Self, Arc<Answerer>) {
        let mut catalog = Catalog::new(catalog);
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let answerer = Arc::new(Answerer {
            settings: answer,
            snapshot: ArcSwap::from_pointee(Snapshot::new(catalog.registry_status(now))),
            rejections: ArcSwap::new(catalog.rejections()),
            stats: ArcSwap::from_pointee(catalog.stats()),
            counters: Counters::default(),
            #[expect(clippy::cast_possible_truncation, reason = "serial numbers wrap (RFC 1982)")]
            first_serial: seconds as u32,
        });
        (Self { catalog, answerer: Arc::clone(&answerer), held: Vec::new(), slice: SLICE }, answerer)
    }

    /// Takes updates, and publishes what came of them at once; without updates, what time has brought.
    pub fn apply(&mut self, updates: impl IntoIterator<Item = Update>, now: Instant) -> Published {
        self.begin(updates, now).publish()
    }

    /// Takes updates as [`Self::apply`] does, and begins to publish what came of them: the model is made, its records are not.
    pub fn begin(&mut self, updates: impl IntoIterator<Item = Update>, now: Instant) -> Publication<'_> {
        for update in updates {
            self.catalog.apply(update, now);
        }
        let outcome = self.catalog.settle(now);
        let condition = self.catalog.registry_status(now);
        let before = self.answerer.snapshot.load();
        let is_new = !outcome.changed.is_empty() || before.condition != condition;
        let next = is_new.then(|| {
            let mut next = before.with(condition);
            if !outcome.changed.is_empty() {
                next.advance();
                next.hosts = self.catalog.hosts().clone();
                next.update_services(&outcome.changed);
            }
            next
        });
        Publication { publisher: self, outcome, next, made: 0 }
    }

    /// Publishes a generation. Those before it that readers still hold are kept until they do not: no reader is to be the
    /// one that has to free what is left of one.
    fn store(&mut self, next: Snapshot) {
        let before = self.answerer.snapshot.swap(Arc::new(next));
        self.held.push(before);
        self.held.retain(|generation| Arc::strong_count(generation) > 1);
    }

    /// Makes the ready-made records that changed services touch, and those of the names above them that came or went.
    fn compile(&self, next: &mut Snapshot, changed: &[ServiceChange], turned: &[Box<str>]) {
        let settings = &self.answerer.settings;
        let owners = Owners::of(settings, next, changed, turned);
        let mut builder = RecordBuilder::default();
        // Made in the order of the services, which lie in memory much like that, before they go where their hashes say.
        let mut octets = Vec::new();
        let mut ends = Vec::with_capacity(owners.ends.len());
        for (owner, service) in owners.iter() {
            compile_one(next, settings, owner, service, &mut builder, &mut octets);
            ends.push(octets.len());
        }
        let records = parts(&octets, ends.iter().copied());
        next.update_records(owners.iter().zip(records).map(|((owner, _), record)| (owner, (!record.is_empty()).then_some(record))));
    }
}

/// A publication on the way. Readers see nothing of it before it is published as a whole; one that is dropped before loses its
/// changes.
#[derive(Debug)]
#[must_use = "what is not published is lost"]
pub struct Publication<'p> {
    publisher: &'p mut Publisher,
    outcome: SettleOutcome,
    /// The generation on the way: its services are complete. None where nothing has changed.
    next: Option<Snapshot>,
    /// Changed services, from the first on, for which everything else is made, too.
    made: usize,
}

impl Publication<'_> {
    /// Makes the records of the next services, 100,000 at most. `false` when nothing is left but to publish them.
    pub fn go_on(&mut self) -> bool {
        let Self { publisher, outcome, next, made } = self;
        let rest = outcome.changed.get(*made..).unwrap_or_default();
        let changed = &rest[..rest.len().min(publisher.slice)];
        let Some(next) = next.as_mut().filter(|_| !changed.is_empty()) else { return false };
        // An owner that several slices touch is made by each, at last by one that sees all that bears on it.
        let turned = next.update_above(above_changes(changed));
        next.update_addresses(changed.iter().flat_map(address_changes));
        publisher.compile(next, changed, &turned);
        *made += changed.len();
        *made < outcome.changed.len()
    }

    /// Does what is left of the work, and publishes it at once.
    pub fn publish(mut self) -> Published {
        while self.go_on() {}
        let Self { publisher, outcome: SettleOutcome { changed, lease_checks: doubts, hosts, wake }, next, .. } = self;
        if let Some(next) = next {
            publisher.store(next);
        }
        publisher.answerer.rejections.store(publisher.catalog.rejections());
        publisher.answerer.stats.store(Arc::new(publisher.catalog.stats()));
        Published { changed, hosts, doubts, wake }
    }
}

/// Appends what the full path says stands at `owner`, made ready, or a marker where it must be asked; nothing where there is
/// nothing. What stands at a name is decided on the whole model: another service than the one that changed, which is `near` if it
/// is still there, may have that name.
fn compile_one(
    snapshot: &Snapshot,
    settings: &Settings,
    owner: &[u8],
    near: Option<&Arc<Service>>,
    builder: &mut RecordBuilder,
    out: &mut Vec<u8>,
) {
    let labels: Vec<&[u8]> = labels(owner).collect();
    if let Found::Service(selection) = full::resolve_near(snapshot, settings, &labels, near, |_| {})
        && selection.form == Form::Service
    {
        // The names of its instances are made of the owner. And under a longer name than need be, which is only made anew with
        // what once was there, the record would not follow the service.
        let is_shortest = |group: &Arc<Group>| service_owner(settings, selection.service.base(), group).is_some_and(|name| name == owner);
        let mut groups = selection.instances.iter().map(|instance| instance.key.group());
        if selection.service.visible_groups().any(is_shortest) && groups.all(is_shortest) {
            compile::record(settings, &snapshot.hosts, Some(owner), &selection, builder);
            builder.build(out);
            return;
        }
    }
    let mut text = String::new();
    if full::join(&labels, &mut text) && (snapshot.is_above(&text) || snapshot.service(&text).is_some()) {
        put_marker(out);
    }
}

/// The labels of an owner in wire form without the root.
fn labels(mut owner: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = owner.split_first()?;
        let (label, rest) = rest.split_at_checked(usize::from(*length))?;
        owner = rest;
        Some(label)
    })
}

/// The parts of some octets that end at these places.
fn parts(octets: &[u8], ends: impl Iterator<Item = usize>) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    ends.map(move |end| &octets[std::mem::replace(&mut start, end)..end])
}

/// Owners of ready-made records that a change touches, one behind the other: wire labels in front of the zone.
#[derive(Debug, Default)]
struct Owners<'c> {
    octets: Vec<u8>,
    /// Where each ends, and the service that is there since the change.
    ends: Vec<(usize, Option<&'c Arc<Service>>)>,
}

impl<'c> Owners<'c> {
    /// The names under which the changed services are or were published, each one's shortest name in a deployment and
    /// namespace; their bases, which are names also where they lead elsewhere only; names of others that they take or give
    /// back; and the names above that `turned`.
    fn of(settings: &Settings, next: &Snapshot, changed: &'c [ServiceChange], turned: &[Box<str>]) -> Self {
        let mut owners = Self::default();
        owners.ends.reserve(changed.len() + turned.len());
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
                } else if base.rsplit_once('.').is_some_and(|(front, _)| next.service(front).is_some()) {
                    // `a.b` with its namespace spelled out, `a.b.n`, is what `a` in namespace `b` of deployment `n` is called, too.
                    owners.put(settings, owner_of(&format!("{base}.{}", group.namespace)), after.as_ref());
                }
            }
        }
        for name in turned {
            owners.put(settings, owner_of(name), None);
        }
        owners
    }

    /// Adds an owner, where it fits DNS.
    fn put(&mut self, settings: &Settings, owner: Option<Vec<u8>>, service: Option<&'c Arc<Service>>) {
        let zone = settings.zones.first().name().as_wire();
        if let Some(owner) = owner.filter(|owner| owner.len() + zone.len() <= MAX_NAME) {
            self.octets.extend(owner);
            self.ends.push((self.octets.len(), service));
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&'c Arc<Service>>)> {
        parts(&self.octets, self.ends.iter().map(|(end, _)| *end)).zip(self.ends.iter().map(|(_, service)| *service))
    }
}

/// The addresses of a service's instances, sorted, each once.
fn places(service: Option<&Service>) -> Vec<IpAddr> {
    let served = service.into_iter().flat_map(Service::served);
    let mut places: Vec<_> = served.filter_map(|instance| instance.endpoint.host.address()).collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// What stands in one of two sorted lists only, and whether it is the second.
fn difference(before: &[IpAddr], after: &[IpAddr]) -> Vec<(IpAddr, bool)> {
    let gone = before.iter().filter(|address| after.binary_search(address).is_err()).map(|address| (*address, false));
    gone.chain(after.iter().filter(|address| before.binary_search(address).is_err()).map(|address| (*address, true))).collect()
}

/// The names above a service's names: text in front of the zone. `a.b` in namespace `n` of deployment `d` lies, as `a.b`,
/// below `b`; as `a.b.n`, below `b.n` and `n`; as `a.b.n.d`, below `b.n.d`, `n.d` and `d`.
fn above_changes(changed: &[ServiceChange]) -> Vec<(Box<str>, i32)> {
    let mut counts: BTreeMap<String, i32> = BTreeMap::new();
    let mut full = String::new();
    for change in changed {
        let (base, ServiceChange { before, after }) = (change.base(), change);
        // As most changes: only the instances are others.
        if let (Some(before), Some(after)) = (before, after)
            && scopes(before).eq(scopes(after))
        {
            continue;
        }
        for (service, delta) in [(before, -1), (after, 1)] {
            let mut last = None;
            // Sorted by deployment and namespace.
            for (deployment, namespace) in service.iter().flat_map(|service| scopes(service)) {
                if last.replace((deployment, namespace)) == Some((deployment, namespace)) {
                    continue;
                }
                full.clear();
                full.extend([namespace, ".", deployment]);
                let labels = [namespace, deployment].map(is_label);
                // Names are made of what can be labels only.
                let tails = [("", true), (namespace, labels[0]), (&full, labels[0] && labels[1])];
                for (tail, _) in tails.into_iter().filter(|(_, can_be)| *can_be) {
                    let mut above = base.split_once('.').map(|(_, above)| above);
                    loop {
                        match above {
                            Some(above) if tail.is_empty() => count(&mut counts, above, delta),
                            Some(above) => count(&mut counts, &format!("{above}.{tail}"), delta),
                            None => break,
                        }
                        above = above.and_then(|above| above.split_once('.')).map(|(_, above)| above);
                    }
                    let mut above = Some(tail).filter(|tail| !tail.is_empty());
                    while let Some(name) = above {
                        count(&mut counts, name, delta);
                        above = name.split_once('.').map(|(_, above)| above);
                    }
                }
            }
        }
    }
    counts.into_iter().filter(|(_, delta)| *delta != 0).map(|(name, delta)| (name.into(), delta)).collect()
}

/// Deployments and namespaces of a service's names, sorted.
fn scopes(service: &Service) -> impl Iterator<Item = (&str, &str)> {
    service.visible_groups().map(|group| group.scope())
}

fn count(counts: &mut BTreeMap<String, i32>, name: &str, delta: i32) {
    match counts.get_mut(name) {
        Some(known) => *known += delta,
        None => drop(counts.insert(name.to_owned(), delta)),
    }
}

/// The addresses that came to a service and went from it.
fn address_changes(changed: &ServiceChange) -> impl Iterator<Item = (IpAddr, &str, bool)> {
    let [before, after] = [&changed.before, &changed.after].map(|service| places(service.as_deref()));
    difference(&before, &after).into_iter().map(|(address, there)| (address, changed.base(), there))
}
