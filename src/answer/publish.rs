//! Publication: compiles changes of the catalog into the table for readers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;

use super::affected::{AffectedOwners, split_at_ends};
use super::answerer::Answerer;
use super::counters::Counters;
use super::full::{self, NameForm, NameLookup};
use super::holds::PublishedHolds;
use super::node::{NodeBuilder, put_alias, put_marker};
use super::owner::{is_label, owner_labels, service_owner};
use super::settings::Settings;
use super::table::{Snapshot, sorted_addresses};
use super::tally::QueryTallies;
use super::{bridging, compile};
use crate::catalog::{
    self, Catalog, Group, MalformedKeys, Released, Service, ServiceChange, SettleOutcome,
};
use crate::service::{BridgeChange, CheckChange, HostChange, RegistryId, Update, WallClock};

/// Maximum services compiled per step.
///
/// A step blocks its thread for some tenths of a second. Its buffers take some hundred bytes per
/// service.
const SERVICES_PER_STEP: usize = 100_000;

/// Owns the catalog and publishes its changes for an [`Answerer`].
#[derive(Debug)]
pub struct Publisher {
    pub(super) catalog: Catalog,
    pub(super) answerer: Arc<Answerer>,
    /// Older generations that readers may still hold.
    retired: Vec<Arc<Snapshot>>,
    /// Maximum services compiled per call of [`Publication::compile_next`]; lower in tests.
    pub(super) services_per_step: usize,
}

/// Result of a publication.
#[derive(Debug, Default)]
pub struct Published {
    /// The changed services, by base.
    pub changed: Vec<ServiceChange>,
    /// Host names whose addresses are needed from now on, or no longer.
    ///
    /// Their addresses come back as [`Update::Hosts`].
    pub hosts: Vec<HostChange>,
    /// Names for the port bridge, if it is on. Their addresses come back as [`Update::Bridged`].
    pub bridge: Vec<BridgeChange>,
    /// Endpoints to check from now on, or no longer.
    ///
    /// The verdicts come back as [`Update::Checks`].
    pub checks: Vec<CheckChange>,
    /// Leases for each registry to check: do they still exist?
    pub lease_checks: Vec<(RegistryId, Vec<i64>)>,
    /// The holds that ended by hand.
    pub released: Vec<Released>,
    /// Time to call [`Publisher::apply`] again, even without updates.
    pub wake: Option<Instant>,
}

impl Publisher {
    /// Creates a publisher of an empty catalog, and its answerer.
    #[must_use]
    pub fn new(
        catalog: catalog::Settings,
        answer: Settings,
        now: Instant,
    ) -> (Self, Arc<Answerer>) {
        let tallies = QueryTallies::default();
        let zone_slots = Arc::new(tallies.slots(&answer.zones));
        let mut catalog = Catalog::new(catalog);
        let seconds =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut snapshot = Snapshot::new(Arc::new(answer), catalog.registry_status(now));
        snapshot.zone_slots = zone_slots;
        add_aliases(&mut snapshot);
        let answerer = Arc::new(Answerer {
            snapshot: ArcSwap::from_pointee(snapshot),
            rejections: ArcSwap::new(catalog.rejections()),
            stats: ArcSwap::from_pointee(catalog.stats()),
            counters: Counters::default(),
            tallies,
            #[expect(clippy::cast_possible_truncation, reason = "serial numbers wrap (RFC 1982)")]
            first_serial: seconds as u32,
        });
        let publisher = Self {
            catalog,
            answerer: Arc::clone(&answerer),
            retired: Vec::new(),
            services_per_step: SERVICES_PER_STEP,
        };
        (publisher, answerer)
    }

    /// Takes the keys that a registry had in an earlier run; publishes nothing yet.
    ///
    /// `saved` is the result of [`catalog::save_keys`].
    ///
    /// # Errors
    /// If the keys are malformed; nothing is then restored.
    pub fn restore(
        &mut self,
        registry: RegistryId,
        saved: &[u8],
        now: Instant,
    ) -> Result<(), MalformedKeys> {
        self.catalog.restore(registry, saved, now)
    }

    /// Applies updates and publishes the result.
    ///
    /// Call it without updates to apply the effects of time (see [`Published::wake`]).
    pub fn apply(&mut self, updates: impl IntoIterator<Item = Update>, now: Instant) -> Published {
        self.begin(updates, now).publish()
    }

    /// Applies updates to the catalog and begins a publication of the result.
    ///
    /// The new generation has its services; [`Publication::compile_next`] compiles their nodes.
    pub fn begin(
        &mut self,
        updates: impl IntoIterator<Item = Update>,
        now: Instant,
    ) -> Publication<'_> {
        let mut publication = self.settle(updates, now);
        let Publication { outcome, with_aliases, next, .. } = &mut publication;
        if let Some(next) = next {
            next.update_services(with_aliases.as_ref().unwrap_or(&outcome.changed));
        }
        publication
    }

    /// Begins a publication, and first publishes a generation without nodes of changed services.
    ///
    /// Until the next generation, every query takes the full path. At the start of a server, that
    /// is better than no answer: compiling a million services takes a second.
    pub fn publish_services(
        &mut self,
        updates: impl IntoIterator<Item = Update>,
        now: Instant,
    ) -> Publication<'_> {
        let mut publication = self.settle(updates, now);
        let Publication { publisher, outcome, with_aliases, next, indexed, .. } = &mut publication;
        if let Some(next) = next {
            let changed = with_aliases.as_ref().unwrap_or(&outcome.changed);
            let hasher = next.hasher();
            let addresses = || sorted_addresses(&hasher, changed.iter().flat_map(address_changes));
            let (addresses, toggled) = beside(addresses, || {
                next.update_services(changed);
                next.update_ancestors(ancestor_changes(changed))
            });
            next.update_addresses(&addresses);
            *indexed = Some(toggled);
            publisher.store(next.uncompiled());
        }
        publication
    }

    /// Applies updates to the catalog and begins a generation, still without the changed services.
    fn settle(
        &mut self,
        updates: impl IntoIterator<Item = Update>,
        now: Instant,
    ) -> Publication<'_> {
        for update in updates {
            self.catalog.apply(update, now);
        }
        let outcome = self.catalog.settle(now);
        let registry_status = self.catalog.registry_status(now);
        let before = self.answerer.snapshot.load();
        let holds = self.catalog.holds();
        let same_holds = before.holds() == holds;
        let is_rebridged = !outcome.rebridged.is_empty();
        let is_new = !outcome.changed.is_empty()
            || is_rebridged
            || before.registry_status != registry_status
            || !same_holds;
        let mut with_aliases = None;
        let next = is_new.then(|| {
            let holds = if same_holds {
                before.holds.clone()
            } else {
                let names = &before.settings().registry_names;
                PublishedHolds::new(holds, names, &WallClock::now())
            };
            let mut next = before.with_registry_status(registry_status, holds);
            if !outcome.changed.is_empty() || is_rebridged {
                next.advance();
                next.bridged = self.catalog.bridged().clone();
                next.hosts = self.catalog.hosts().clone();
                with_aliases = next.expand_aliases(&outcome.changed);
            }
            next
        });
        let (reported, indexed, bridge) = (None, None, Vec::new());
        Publication {
            publisher: self,
            outcome,
            with_aliases,
            reported,
            next,
            indexed,
            compiled: 0,
            bridge,
        }
    }

    /// Makes a generation the one that readers load.
    ///
    /// The publisher keeps older generations until no reader holds them, so that no reader spends
    /// time on freeing one.
    pub(super) fn store(&mut self, next: Snapshot) {
        let before = self.answerer.snapshot.swap(Arc::new(next));
        self.retired.push(before);
        self.retired.retain(|generation| Arc::strong_count(generation) > 1);
    }
}

/// Adds the names of all aliases to a table without services.
pub(super) fn add_aliases(next: &mut Snapshot) {
    let settings = Arc::clone(next.settings());
    let aliases = &settings.aliases;
    if aliases.is_empty() {
        return;
    }
    let services = aliases.unregistered_services();
    next.update_services(&services);
    let mut names = next.update_ancestors(aliases.ancestors());
    names.extend(aliases.outside_bases().map(Box::from));
    compile_affected(next, &services, &names);
}

/// Compiles the nodes that changed services and names above them affect; returns their owners.
fn compile_affected<'c>(
    next: &mut Snapshot,
    changed: &'c [ServiceChange],
    toggled: &[Box<str>],
) -> AffectedOwners<'c> {
    let settings = &*Arc::clone(next.settings());
    let owners = AffectedOwners::of(settings, next, changed, toggled);
    let mut builder = NodeBuilder::default();
    // Compiled in the order of the services, which is close to their order in memory.
    let mut bytes = Vec::new();
    let mut ends = Vec::with_capacity(owners.ends.len());
    for (owner, service) in owners.iter() {
        compile_node(next, settings, owner, service, &mut builder, &mut bytes);
        ends.push(bytes.len());
    }
    let nodes = split_at_ends(&bytes, ends.iter().copied());
    next.update_nodes(
        owners
            .iter()
            .zip(nodes)
            .map(|((owner, _), node)| (owner, (!node.is_empty()).then_some(node))),
    );
    owners
}

/// A publication in progress, invisible to readers until [`Self::publish`].
#[derive(Debug)]
#[must_use = "what is not published is lost"]
pub struct Publication<'p> {
    pub(super) publisher: &'p mut Publisher,
    pub(super) outcome: SettleOutcome,
    /// The published changes, if aliases make them differ from those of the catalog.
    pub(super) with_aliases: Option<Vec<ServiceChange>>,
    /// The changes since the former generation, if the new one is made from nothing.
    pub(super) reported: Option<Vec<ServiceChange>>,
    /// The new generation; `None` if nothing changed.
    pub(super) next: Option<Snapshot>,
    /// The names that came or went, if [`Publisher::publish_services`] has indexed all changes.
    pub(super) indexed: Option<Vec<Box<str>>>,
    /// Number of changed services that are completely compiled.
    pub(super) compiled: usize,
    /// What changed for the port bridge so far.
    pub(super) bridge: Vec<BridgeChange>,
}

impl Publication<'_> {
    /// Compiles the nodes of the next 100,000 changed services and aliases at most.
    ///
    /// Returns `false` once all nodes are compiled and only [`Self::publish`] is left to call.
    pub fn compile_next(&mut self) -> bool {
        let Self { publisher, outcome, with_aliases, next, indexed, compiled, bridge, .. } = self;
        let all = with_aliases.as_ref().unwrap_or(&outcome.changed);
        let rest = all.get(*compiled..).unwrap_or_default();
        let changed = &rest[..rest.len().min(publisher.services_per_step)];
        // The bridge knows the names that it gave addresses to: it is not told about them again.
        let rebridged = std::mem::take(&mut outcome.rebridged);
        if let Some(next) = next.as_mut().filter(|_| !rebridged.is_empty()) {
            compile_affected(next, &[], &rebridged);
        }
        let Some(next) = next.as_mut().filter(|_| !changed.is_empty()) else { return false };
        // Several steps may compile the same owner; the last step sees everything that affects it.
        let toggled = if let Some(toggled) = indexed {
            std::mem::take(toggled)
        } else {
            let addresses = changed.iter().flat_map(address_changes);
            next.update_addresses(&sorted_addresses(&next.hasher(), addresses));
            next.update_ancestors(ancestor_changes(changed))
        };
        let owners = compile_affected(next, changed, &toggled);
        let settings = next.settings();
        if settings.bridge {
            let owners = owners.iter().map(|(owner, _)| owner);
            bridge.extend(bridging::changes(next, settings, owners, changed));
        }
        *compiled += changed.len();
        *compiled < all.len()
    }

    /// Completes the work and publishes the generation.
    pub fn publish(mut self) -> Published {
        while self.compile_next() {}
        let Self {
            publisher,
            outcome: SettleOutcome { changed, lease_checks, hosts, checks, released, wake, .. },
            reported,
            next,
            mut bridge,
            ..
        } = self;
        if let Some(next) = next {
            if let Some(reported) = reported.as_ref().filter(|_| next.settings().bridge) {
                // The bridge has been told about all names that there are, not about former ones.
                let former = publisher.answerer.settings();
                bridge.extend(bridging::former_names(&next, &former, reported));
            }
            publisher.store(next);
        }
        let changed = reported.unwrap_or(changed);
        publisher.answerer.rejections.store(publisher.catalog.rejections());
        publisher.answerer.stats.store(Arc::new(publisher.catalog.stats()));
        Published { changed, hosts, bridge, checks, lease_checks, released, wake }
    }
}

/// Runs `other` in a second thread, if one can be started, while this one runs `own`.
fn beside<A: Send, B>(other: impl Fn() -> A + Sync, own: impl FnOnce() -> B) -> (A, B) {
    thread::scope(|scope| {
        let started = thread::Builder::new().name("beside".to_owned()).spawn_scoped(scope, &other);
        let own = own();
        (started.ok().and_then(|started| started.join().ok()).unwrap_or_else(&other), own)
    })
}

/// Appends the node of `owner`, or nothing if the name does not exist.
///
/// The node is a CNAME record for the alias of an outside name, and a marker if the full path must
/// answer. The result depends on the whole model, because a service other than the changed one may
/// own the name. `hint` is the changed service if it still exists.
fn compile_node(
    snapshot: &Snapshot,
    settings: &Settings,
    owner: &[u8],
    hint: Option<&Arc<Service>>,
    builder: &mut NodeBuilder,
    out: &mut Vec<u8>,
) {
    if let Some(target) = settings.aliases.outside(owner) {
        return put_alias(target.as_wire(), out);
    }
    let labels: Vec<&[u8]> = owner_labels(owner).collect();
    if let NameLookup::Selection(selection) =
        full::resolve_hinted(snapshot, settings, &labels, hint, |_| {})
        && selection.form == NameForm::Service
    {
        // Targets are named after the owner. A node exists only for the shortest name in each
        // scope, because only those names are recompiled when the service changes.
        let is_shortest = |group: &Arc<Group>| {
            service_owner(settings, selection.service.base(), group)
                .is_some_and(|name| name == owner)
        };
        let mut groups = selection.instances.iter().map(|instance| instance.key.group());
        if selection.service.visible_groups().any(is_shortest) && groups.all(is_shortest) {
            compile::node(settings, &snapshot.hosts, Some(owner), &selection, builder);
            builder.set_bridge(bridging::address(snapshot, settings, &labels, &selection));
            builder.build(out);
            return;
        }
    }
    let mut text = String::new();
    if full::join_labels(&labels, &mut text)
        && (snapshot.has_names_below(&text) || snapshot.service(&text).is_some())
    {
        put_marker(out);
    }
}

/// Returns the addresses of a service's selectable instances, sorted and unique.
///
/// An alias has none: the PTR records of an address have registered names only.
fn selectable_addresses(service: Option<&Service>) -> Vec<IpAddr> {
    let registered = service.filter(|service| service.alias_target().is_none());
    let selectable = registered.into_iter().flat_map(Service::selectable);
    let mut addresses: Vec<_> =
        selectable.filter_map(|instance| instance.endpoint.host.address()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Returns the addresses in only one of two sorted lists; `true` means in `after`.
fn difference(before: &[IpAddr], after: &[IpAddr]) -> Vec<(IpAddr, bool)> {
    let gone = before
        .iter()
        .filter(|address| after.binary_search(address).is_err())
        .map(|address| (*address, false));
    gone.chain(
        after
            .iter()
            .filter(|address| before.binary_search(address).is_err())
            .map(|address| (*address, true)),
    )
    .collect()
}

/// Returns how the counts of the names above the changed services' names change.
///
/// Names are texts in front of the zone. `a.b` in namespace `n` of deployment `d` is below `b`; its
/// longer names `a.b.n` and `a.b.n.d` are below `b.n`, `n`, `b.n.d`, `n.d` and `d`.
fn ancestor_changes(changed: &[ServiceChange]) -> Vec<(Box<str>, i32)> {
    let mut counts: BTreeMap<String, i32> = BTreeMap::new();
    // Names share few scopes: the names above a scope are counted once for it, not per service.
    let mut of_scopes: BTreeMap<(&str, &str), i32> = BTreeMap::new();
    let mut full = String::new();
    for change in changed {
        let (base, ServiceChange { before, after }) = (change.base(), change);
        // A typical change concerns instances only and leaves the names alone.
        if let (Some(before), Some(after)) = (before, after)
            && scopes(before).eq(scopes(after))
        {
            continue;
        }
        for (service, delta) in [(before, -1), (after, 1)] {
            let mut last = None;
            // The scopes are sorted, so duplicates are adjacent.
            for (deployment, namespace) in service.iter().flat_map(|service| scopes(service)) {
                if last.replace((deployment, namespace)) == Some((deployment, namespace)) {
                    continue;
                }
                *of_scopes.entry((deployment, namespace)).or_default() += delta;
                let Some((_, above)) = base.split_once('.') else { continue };
                for tail in tails(deployment, namespace, &mut full) {
                    let mut above = Some(above);
                    while let Some(name) = above {
                        if tail.is_empty() {
                            add_count(&mut counts, name, delta);
                        } else {
                            add_count(&mut counts, &format!("{name}.{tail}"), delta);
                        }
                        above = name.split_once('.').map(|(_, above)| above);
                    }
                }
            }
        }
    }
    for ((deployment, namespace), delta) in of_scopes {
        for tail in tails(deployment, namespace, &mut full) {
            let mut above = Some(tail).filter(|tail| !tail.is_empty());
            while let Some(name) = above {
                add_count(&mut counts, name, delta);
                above = name.split_once('.').map(|(_, above)| above);
            }
        }
    }
    counts
        .into_iter()
        .filter(|(_, delta)| *delta != 0)
        .map(|(name, delta)| (name.into(), delta))
        .collect()
}

/// Returns what may follow the base in a name: nothing, the namespace, and `full`: both.
///
/// A namespace or deployment that cannot be a label is not part of any name.
fn tails<'n>(
    deployment: &str,
    namespace: &'n str,
    full: &'n mut String,
) -> impl Iterator<Item = &'n str> {
    full.clear();
    full.extend([namespace, ".", deployment]);
    let labels = [namespace, deployment].map(is_label);
    let tails = [("", true), (namespace, labels[0]), (full, labels[0] && labels[1])];
    tails.into_iter().filter(|(_, can_be)| *can_be).map(|(tail, _)| tail)
}

/// Returns the deployments and namespaces of a service's names, sorted.
fn scopes(service: &Service) -> impl Iterator<Item = (&str, &str)> {
    service.visible_groups().map(|group| group.scope())
}

/// Adds `delta` to the count of a name.
fn add_count(counts: &mut BTreeMap<String, i32>, name: &str, delta: i32) {
    match counts.get_mut(name) {
        Some(known) => *known += delta,
        None => drop(counts.insert(name.to_owned(), delta)),
    }
}

/// Returns the addresses that a service gained (`true`) and lost (`false`).
fn address_changes(changed: &ServiceChange) -> impl Iterator<Item = (IpAddr, &str, bool)> {
    let [before, after] =
        [&changed.before, &changed.after].map(|service| selectable_addresses(service.as_deref()));
    difference(&before, &after).into_iter().map(|(address, there)| (address, changed.base(), there))
}
