//! What is known, made into what is answered: the catalog's changes compiled into the table, published in one store.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;

use super::full::{self, Form, Found};
use super::hosts::Hosts;
use super::record::{RecordBuilder, put_marker};
use super::table::Snapshot;
use super::{Answerer, Counters, Settings, compile};
use crate::catalog::{self, Catalog, Changed, Condition, Group, Outcome, Service};
use crate::service::{Addresses, Change, HostChange};

/// Owns what is known and publishes it for an [`Answerer`].
#[derive(Debug)]
pub struct Publisher {
    catalog: Catalog,
    hosts: Hosts,
    answerer: Arc<Answerer>,
    /// Generations that readers may still hold.
    held: Vec<Arc<Snapshot>>,
}

/// What came of a batch of changes.
#[derive(Debug, Default)]
pub struct Published {
    /// The services that changed, by base.
    pub changed: Vec<Changed>,
    /// The host names that endpoints are registered under since, or no longer: their addresses are to be looked up, and told
    /// by [`Publisher::resolve`]. None with forwarding off.
    pub hosts: Vec<HostChange>,
    /// What to ask registries: which of these leases no longer exist?
    pub doubts: Vec<(u8, Vec<i64>)>,
    /// When to call [`Publisher::apply`] again, though nothing may have come.
    pub wake: Option<Instant>,
}

impl Publisher {
    /// A publisher of nothing yet, for this many registries, and its answerer.
    #[must_use]
    pub fn new(catalog: catalog::Settings, answer: Settings, registries: usize, now: Instant) -> (Self, Arc<Answerer>) {
        let mut catalog = Catalog::new(catalog, registries);
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let answerer = Arc::new(Answerer {
            settings: answer,
            snapshot: ArcSwap::from_pointee(Snapshot::new(catalog.condition(now))),
            rejections: ArcSwap::new(catalog.rejections()),
            stats: ArcSwap::from_pointee(catalog.stats()),
            counters: Counters::default(),
            #[expect(clippy::cast_possible_truncation, reason = "serial numbers wrap (RFC 1982)")]
            serial: seconds as u32,
        });
        (Self { catalog, hosts: Hosts::default(), answerer: Arc::clone(&answerer), held: Vec::new() }, answerer)
    }

    /// Applies changes, each with its registry's place, and publishes them at once; without changes, what time has brought.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = (u8, Change)>, now: Instant) -> Published {
        for (registry, change) in changes {
            self.catalog.apply(registry, change, now);
        }
        let Outcome { changed, doubts, wake } = self.catalog.settle(now);
        let hosts = self.publish(&changed, self.catalog.condition(now));
        self.answerer.rejections.store(self.catalog.rejections());
        self.answerer.stats.store(Arc::new(self.catalog.stats()));
        Published { changed, hosts, doubts, wake }
    }

    /// Takes what is known now of the addresses of host names, and publishes it at once.
    pub fn resolve(&mut self, found: Vec<(Box<str>, Addresses)>) -> Published {
        let before = self.answerer.snapshot.load_full();
        let mut next = Snapshot::clone(&before);
        let touched = self.hosts.resolve(found, &mut next.hosts);
        let same = |base: Box<str>| before.service(&base).cloned();
        let changed: Vec<_> = touched
            .into_iter()
            .filter_map(same)
            .map(|service| Changed { before: Some(Arc::clone(&service)), after: Some(service) })
            .collect();
        if !changed.is_empty() {
            next.advance();
            self.compile(&mut next, &changed, &[]);
            self.store(next);
        }
        Published { changed, ..Published::default() }
    }

    fn publish(&mut self, changed: &[Changed], condition: Condition) -> Vec<HostChange> {
        let before = self.answerer.snapshot.load_full();
        if changed.is_empty() {
            if before.condition != condition {
                self.store(before.with(condition));
            }
            return Vec::new();
        }
        let mut next = before.with(condition);
        next.advance();
        next.update_services(changed);
        let turned = next.update_above(above_changes(changed));
        next.update_addresses(changed.iter().flat_map(address_changes));
        let hosts = if self.answerer.settings.forwarding { self.hosts.follow(changed, &mut next.hosts) } else { Vec::new() };
        self.compile(&mut next, changed, &turned);
        self.store(next);
        hosts
    }

    /// Publishes a generation. Those before it that readers still hold are kept until they do not: no reader is to be the
    /// one that has to free what is left of one.
    fn store(&mut self, next: Snapshot) {
        let before = self.answerer.snapshot.swap(Arc::new(next));
        self.held.push(before);
        self.held.retain(|generation| Arc::strong_count(generation) > 1);
    }

    /// Makes the ready-made records that changed services touch, and those of the names above them that came or went.
    fn compile(&self, next: &mut Snapshot, changed: &[Changed], turned: &[Box<str>]) {
        let settings = &self.answerer.settings;
        let owners = Owners::of(settings, next, changed, turned);
        let mut builder = RecordBuilder::default();
        next.update_records(owners.iter(), |next, owner, out| compiled(next, settings, owner, &mut builder, out));
    }
}

/// Appends what the full path says stands at `owner`, made ready, or a marker where it must be asked; `false` where there is
/// nothing. What stands at a name is decided on the whole model: another service than the one that changed may have that
/// name.
fn compiled(snapshot: &Snapshot, settings: &Settings, owner: &[u8], builder: &mut RecordBuilder, out: &mut Vec<u8>) -> bool {
    let labels: Vec<&[u8]> = labels(owner).collect();
    if let Found::Service(selection) = full::resolve(snapshot, settings, &labels, |_| {})
        && selection.form == Form::Service
    {
        // The names of its instances are made of the owner. And under a longer name than need be, which is only made anew with
        // what once was there, the record would not follow the service.
        let is_shortest =
            |group: &Arc<Group>| compile::service_owner(settings, selection.service.base(), group).is_some_and(|name| name == owner);
        let mut groups = selection.instances.iter().map(|instance| instance.key.group());
        if selection.service.visible_groups().any(is_shortest) && groups.all(is_shortest) {
            compile::record(settings, &snapshot.hosts, Some(owner), &selection.instances, builder);
            builder.build(out);
            return true;
        }
    }
    let mut text = String::new();
    let is_there = full::join(&labels, &mut text) && (snapshot.is_above(&text) || snapshot.service(&text).is_some());
    if is_there {
        put_marker(out);
    }
    is_there
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

/// Owners of ready-made records that a change touches, one behind the other: wire labels in front of the zone.
#[derive(Debug, Default)]
struct Owners {
    octets: Vec<u8>,
    ends: Vec<usize>,
}

impl Owners {
    /// The names under which the changed services are or were published, each one's shortest name in a deployment and
    /// namespace; their bases, which are names also where they lead elsewhere only; names of others that they take or give
    /// back; and the names above that `turned`.
    fn of(settings: &Settings, next: &Snapshot, changed: &[Changed], turned: &[Box<str>]) -> Self {
        let mut owners = Self::default();
        for change in changed {
            let (base, Changed { before, after }) = (change.base(), change);
            let mut scopes: Vec<&Arc<Group>> = Vec::new();
            for service in before.iter().chain(after) {
                scopes.extend(service.visible_groups());
            }
            scopes.sort_by_key(|group| (&group.deployment, &group.namespace));
            scopes.dedup_by_key(|group| (&group.deployment, &group.namespace));
            owners.put(settings, compile::owner(base));
            for group in scopes {
                if !compile::is_configured(settings, group) {
                    owners.put(settings, compile::service_owner(settings, base, group));
                } else if base.rsplit_once('.').is_some_and(|(front, _)| next.service(front).is_some()) {
                    // `a.b` with its namespace spelled out, `a.b.n`, is what `a` in namespace `b` of deployment `n` is called, too.
                    owners.put(settings, compile::owner(&format!("{base}.{}", group.namespace)));
                }
            }
        }
        for name in turned {
            owners.put(settings, compile::owner(name));
        }
        owners
    }

    /// Adds an owner, where it fits DNS.
    fn put(&mut self, settings: &Settings, owner: Option<Vec<u8>>) {
        let zone = settings.zones.first().name().as_wire();
        if let Some(owner) = owner.filter(|owner| owner.len() + zone.len() <= compile::MAX_NAME) {
            self.octets.extend(owner);
            self.ends.push(self.octets.len());
        }
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.octets[start..*end])
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
fn above_changes(changed: &[Changed]) -> Vec<(Box<str>, i32)> {
    let mut counts: BTreeMap<String, i32> = BTreeMap::new();
    for change in changed {
        let (base, Changed { before, after }) = (change.base(), change);
        for (service, delta) in [(before, -1), (after, 1)] {
            let mut last = None;
            // Sorted by deployment and namespace.
            for (deployment, namespace) in service.iter().flat_map(|service| service.visible_groups()).map(|group| group.scope()) {
                if last.replace((deployment, namespace)) == Some((deployment, namespace)) {
                    continue;
                }
                let full = format!("{namespace}.{deployment}");
                let labels = [namespace, deployment].map(compile::is_label);
                // Names are made of what can be labels only.
                let tails = [("", true), (namespace, labels[0]), (&full, labels[0] && labels[1])];
                for (tail, _) in tails.into_iter().filter(|(_, can_be)| *can_be) {
                    let mut above = base.split_once('.').map(|(_, above)| above);
                    loop {
                        let name = match above {
                            Some(above) if tail.is_empty() => above.to_owned(),
                            Some(above) => format!("{above}.{tail}"),
                            None => break,
                        };
                        count(&mut counts, name, delta);
                        above = above.and_then(|above| above.split_once('.')).map(|(_, above)| above);
                    }
                    let mut above = Some(tail).filter(|tail| !tail.is_empty());
                    while let Some(name) = above {
                        count(&mut counts, name.to_owned(), delta);
                        above = name.split_once('.').map(|(_, above)| above);
                    }
                }
            }
        }
    }
    counts.into_iter().filter(|(_, delta)| *delta != 0).map(|(name, delta)| (name.into(), delta)).collect()
}

fn count(counts: &mut BTreeMap<String, i32>, name: String, delta: i32) {
    *counts.entry(name).or_default() += delta;
}

/// The addresses that came to a service and went from it.
fn address_changes(changed: &Changed) -> impl Iterator<Item = (IpAddr, &str, bool)> {
    let [before, after] = [&changed.before, &changed.after].map(|service| places(service.as_deref()));
    difference(&before, &after).into_iter().map(|(address, there)| (address, changed.base(), there))
}
