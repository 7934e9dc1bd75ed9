//! What is known, made into what is answered: the catalog's changes compiled into the table, published in one store.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;

use super::full::{self, Found};
use super::table::{RecordChange, Snapshot};
use super::{Answerer, Counters, Settings, compile};
use crate::catalog::{self, Catalog, Outcome, Service};
use crate::service::Change;

/// Owns what is known and publishes it for an [`Answerer`].
#[derive(Debug)]
pub struct Publisher {
    catalog: Catalog,
    answerer: Arc<Answerer>,
}

/// What came of a batch of changes.
#[derive(Debug, Default)]
pub struct Published {
    /// The services that changed, by base.
    pub changed: Vec<Changed>,
    /// What to ask registries: which of these leases no longer exist?
    pub doubts: Vec<(u8, Vec<i64>)>,
    /// When to call [`Publisher::apply`] again, though nothing may have come.
    pub wake: Option<Instant>,
}

/// A service before and after a change.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Its base.
    pub base: Box<str>,
    /// What it was; none for a new one.
    pub before: Option<Arc<Service>>,
    /// What it is; none for one that is gone.
    pub after: Option<Arc<Service>>,
}

impl Publisher {
    /// A publisher of nothing yet, for this many registries, and its answerer.
    #[must_use]
    pub fn new(catalog: catalog::Settings, answer: Settings, registries: usize, now: Instant) -> (Self, Arc<Answerer>) {
        let mut catalog = Catalog::new(catalog, registries);
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let answerer = Arc::new(Answerer {
            settings: answer,
            snapshot: ArcSwap::default(),
            condition: ArcSwap::from_pointee(catalog.condition(now)),
            rejections: ArcSwap::new(catalog.rejections()),
            stats: ArcSwap::from_pointee(catalog.stats()),
            counters: Counters::default(),
            #[expect(clippy::cast_possible_truncation, reason = "serial numbers wrap (RFC 1982)")]
            serial: seconds as u32,
        });
        (Self { catalog, answerer: Arc::clone(&answerer) }, answerer)
    }

    /// What is known.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Applies changes, each with its registry's place, and publishes them at once; without changes, what time has brought.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = (u8, Change)>, now: Instant) -> Published {
        for (registry, change) in changes {
            self.catalog.apply(registry, change, now);
        }
        let Outcome { changed, doubts, wake } = self.catalog.settle(now);
        let changed = self.publish(changed);
        self.answerer.rejections.store(self.catalog.rejections());
        self.answerer.stats.store(Arc::new(self.catalog.stats()));
        // After the data: who reads "synced" finds what was synced.
        let condition = self.catalog.condition(now);
        if **self.answerer.condition.load() != condition {
            self.answerer.condition.store(Arc::new(condition));
        }
        Published { changed, doubts, wake }
    }

    fn publish(&self, bases: Vec<Box<str>>) -> Vec<Changed> {
        if bases.is_empty() {
            return Vec::new();
        }
        let before = self.answerer.snapshot.load_full();
        let changed: Vec<_> = bases
            .into_iter()
            .map(|base| Changed { before: before.service(&base).cloned(), after: self.catalog.service(&base).cloned(), base })
            .collect();
        let mut next = Snapshot::clone(&before);
        next.advance();
        next.update_services(&changed);
        next.update_above(above_changes(&changed));
        next.update_addresses(&address_changes(&changed));
        let records = self.record_changes(&next, &changed);
        next.update_records(records);
        self.answerer.snapshot.store(Arc::new(next));
        changed
    }

    /// The ready-made records to put and remove: the names under which a changed service is or was published. What stands
    /// there is decided by the full path, on the new model: another service may have that name too.
    fn record_changes(&self, next: &Snapshot, changed: &[Changed]) -> Vec<RecordChange> {
        let settings = &self.answerer.settings;
        let mut changes = Vec::new();
        for Changed { base, before, after } in changed {
            let old = Names::of(settings, base, before.as_deref());
            let new = Names::of(settings, base, after.as_deref());
            // A service's record holds all its instances, an instance's only its address.
            let services = old.services.union(&new.services).map(|owner| (owner, false));
            let instances = old.instances.symmetric_difference(&new.instances).map(|owner| (owner, true));
            changes.extend(
                services
                    .chain(instances)
                    .map(|(owner, instance)| RecordChange { owner: owner.clone(), record: compiled(next, settings, owner, instance) }),
            );
        }
        changes
    }
}

/// What the full path says stands at `owner`, made ready; none where nothing is worth it.
fn compiled(snapshot: &Snapshot, settings: &Settings, owner: &[u8], addresses_only: bool) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut rest = owner;
    while let Some((length, tail)) = rest.split_first() {
        let (label, tail) = tail.split_at_checked(usize::from(*length))?;
        labels.push(label);
        rest = tail;
    }
    match full::resolve(snapshot, settings, &labels, |_| {}) {
        Found::Service(selection) => {
            let mut builder = compile::record(settings, selection.service, &selection.instances);
            if addresses_only {
                builder.srv.units.clear();
                builder.addresses_only = true;
            }
            Some(builder.build())
        }
        Found::Empty | Found::Absent => None,
    }
}

/// The names under which a service is published ready-made: wire labels in front of the zone.
#[derive(Debug, Default)]
struct Names {
    services: BTreeSet<Vec<u8>>,
    instances: BTreeSet<Vec<u8>>,
}

impl Names {
    fn of(settings: &Settings, base: &str, service: Option<&Service>) -> Self {
        let mut names = Self::default();
        let Some(service) = service else { return names };
        for key in service.visible_keys() {
            names.services.extend(compile::service_owner(settings, base, &key.group));
        }
        let mut scope = None;
        for instance in service.served() {
            let group = &instance.key.group;
            if scope.as_ref().is_none_or(|(of, _)| *of != instance.key.scope()) {
                scope = Some((instance.key.scope(), compile::service_owner(settings, base, group)));
            }
            if let (Some(address), Some((_, Some(owner)))) = (instance.endpoint.host.address(), &scope) {
                names.instances.extend(compile::instance_owner(address, owner).filter(|owner| fits(settings, owner)));
            }
        }
        names
    }
}

/// Whether labels fit a DNS name (255 octets) with the first zone.
fn fits(settings: &Settings, owner: &[u8]) -> bool {
    owner.len() + settings.zones.first().name().as_wire().len() <= 255
}

/// The names above a service's names: text in front of the zone. `a.b` in namespace `n` of deployment `d` lies, as `a.b`,
/// below `b`; as `a.b.n`, below `b.n` and `n`; as `a.b.n.d`, below `b.n.d`, `n.d` and `d`.
fn above_changes(changed: &[Changed]) -> Vec<(Box<str>, i32)> {
    let mut counts: BTreeMap<String, i32> = BTreeMap::new();
    for Changed { base, before, after } in changed {
        for (service, delta) in [(before, -1), (after, 1)] {
            let Some(service) = service else { continue };
            let scopes: BTreeSet<_> = service.visible_keys().map(|key| key.scope()).collect();
            for (deployment, namespace) in scopes {
                let tails = [String::new(), namespace.to_owned(), format!("{namespace}.{deployment}")];
                for tail in tails {
                    let name = if tail.is_empty() { base.to_string() } else { format!("{base}.{tail}") };
                    for (dot, _) in name.match_indices('.') {
                        *counts.entry(name[dot + 1..].to_owned()).or_default() += delta;
                    }
                }
            }
        }
    }
    counts.into_iter().filter(|(_, delta)| *delta != 0).map(|(name, delta)| (name.into(), delta)).collect()
}

/// The addresses that came to services and went from them.
fn address_changes(changed: &[Changed]) -> Vec<(IpAddr, &str, bool)> {
    let of = |service: &Option<Arc<Service>>| -> BTreeSet<IpAddr> {
        service.iter().flat_map(|service| service.served()).filter_map(|instance| instance.endpoint.host.address()).collect()
    };
    let mut changes = Vec::new();
    for Changed { base, before, after } in changed {
        let (before, after) = (of(before), of(after));
        changes.extend(before.difference(&after).map(|address| (*address, &**base, false)));
        changes.extend(after.difference(&before).map(|address| (*address, &**base, true)));
    }
    changes
}
