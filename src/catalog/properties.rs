//! Property test: an incrementally updated catalog equals one built at once.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::Index;

use super::key::{KeyLayout, SharedKeyFields, UncommonFields};
use super::tests::{JUNK, id, registration, zones};
use super::*;
use crate::service::{
    LeaseReply, ListKind, ListScope, Metadata, Put, Reason, Rejected, Release, Removal, key_prefix,
};

const NAMES: [&str; 8] =
    ["hello.svc", "hello", "Hello.internal", "v1.hello", "other", "bad name", "ns", "_x"];
const ENDPOINTS: [&str; 5] = [
    "10.0.0.1:80",
    "10.0.0.1:80,10.0.0.2:80,172.17.0.1:80",
    "172.17.0.1:80",
    "web.svc:80,web.example:81",
    "",
];
const KEYS: usize = NAMES.len() * ENDPOINTS.len();
const REGISTRIES: u8 = 3;
/// The registry that also sends per-service lists, but no events.
const SERVICES: u8 = 2;

/// Returns the name that the key with this number registers.
fn name(key: usize) -> &'static str {
    NAMES[key % NAMES.len()]
}

/// Returns the layers of the registries, of which the last is a fallback.
fn layers(merge: Merge) -> Vec<u8> {
    merge.layers((1..=REGISTRIES).map(|registry| registry == REGISTRIES))
}

fn merge() -> impl Strategy<Value = Merge> {
    prop_oneof![Just(Merge::Union), Just(Merge::First)]
}

/// Returns the text of the key with this number, in one of several groups.
fn text(registry: u8, key: usize) -> String {
    let (name, endpoints) = (name(key), ENDPOINTS[key / NAMES.len()]);
    let (namespace, version) = (key % 3 / 2, ["v1", "V2"][key % 2]);
    if registry == SERVICES {
        format!("{}n{namespace}/{version}/{endpoints}", key_prefix(name))
    } else {
        format!("/service/d/n{namespace}/{name}/{version}/{endpoints}")
    }
}

/// A step of the model.
#[derive(Clone, Debug)]
enum ModelStep {
    /// Puts keys into a store.
    Put {
        registry: u8,
        keys: Vec<usize>,
        /// The content for [`CatalogModel::put`].
        content: u8,
    },
    /// Deletes keys from a store, explicitly or perhaps with their leases.
    Delete { registry: u8, keys: Vec<usize>, lease: bool },
    /// Sends an earlier event of this epoch again.
    Replay { registry: u8, which: Index },
    /// Restores an older state of a store and removes keys, without any event.
    RollBack { registry: u8, keys: Vec<usize> },
    /// Lists a store.
    ///
    /// The list may break off after some keys; no event is sent from then until the next list.
    List { registry: u8, kind: ListKind, cut: Option<Index> },
    /// Lists the names of [`SERVICES`], then each service; may break off at a service.
    ListServices { kind: ListKind, cut: Option<Index> },
    /// Lists one service of [`SERVICES`].
    ListService { name: usize, kind: ListKind },
    /// Lists the names of [`SERVICES`], perhaps right after one of them is gone from the store.
    ListNames { kind: ListKind, gone: Option<usize> },
    /// Reports the state of the connection.
    Connected { registry: u8, connected: bool },
    /// Replies to all lease checks.
    ///
    /// One bit of each number says whether a lease is gone, alive or unknown.
    LeaseReply { gone: u8, alive: u8 },
    /// Ends the holds of the registries whose bit is set.
    Release { registries: u16 },
    /// Advances the time.
    Advance { milliseconds: u64 },
    /// Settles the catalog.
    Settle,
}

fn step() -> impl Strategy<Value = ModelStep> {
    let registry = || 0..REGISTRIES;
    let keys = || {
        prop_oneof![
            3 => prop::collection::vec(0..KEYS, 1..4),
            1 => prop::collection::vec(0..KEYS, 10..60),
        ]
    };
    let kind = || {
        prop_oneof![
            Just(ListKind::Routine),
            Just(ListKind::Reconnect),
            Just(ListKind::Doubted),
            Just(ListKind::Restored),
        ]
    };
    prop_oneof![
        6 => (registry(), keys(), 0..5_u8)
            .prop_map(|(registry, keys, content)| ModelStep::Put { registry, keys, content }),
        4 => (registry(), keys(), any::<bool>())
            .prop_map(|(registry, keys, lease)| ModelStep::Delete { registry, keys, lease }),
        2 => (registry(), any::<Index>())
            .prop_map(|(registry, which)| ModelStep::Replay { registry, which }),
        1 => (registry(), keys())
            .prop_map(|(registry, keys)| ModelStep::RollBack { registry, keys }),
        4 => (registry(), kind(), prop::option::weighted(0.3, any::<Index>()))
            .prop_map(|(registry, kind, cut)| ModelStep::List { registry, kind, cut }),
        2 => (kind(), prop::option::weighted(0.3, any::<Index>()))
            .prop_map(|(kind, cut)| ModelStep::ListServices { kind, cut }),
        4 => (0..NAMES.len(), kind())
            .prop_map(|(name, kind)| ModelStep::ListService { name, kind }),
        3 => (kind(), prop::option::of(0..NAMES.len()))
            .prop_map(|(kind, gone)| ModelStep::ListNames { kind, gone }),
        1 => (registry(), any::<bool>())
            .prop_map(|(registry, connected)| ModelStep::Connected { registry, connected }),
        2 => any::<(u8, u8)>().prop_map(|(gone, alive)| ModelStep::LeaseReply { gone, alive }),
        1 => (0..8_u16).prop_map(|registries| ModelStep::Release { registries }),
        3 => (0..7_000_u64).prop_map(|milliseconds| ModelStep::Advance { milliseconds }),
        6 => Just(ModelStep::Settle),
    ]
}

/// The store of a registry, and the changes that the catalog has received from it.
#[derive(Default)]
struct Store {
    keys: BTreeMap<usize, Put>,
    /// Keys whose check has failed, which per-service lists report as expired.
    expired: BTreeSet<usize>,
    revision: u64,
    /// Events since the last list.
    events: Vec<Change>,
    /// Whether the store sends events; it does not after an incomplete list.
    watching: bool,
    /// The keys as reported to the catalog.
    reported: BTreeMap<usize, Put>,
    /// Times at which removals of keys were reported.
    removed: BTreeMap<usize, Instant>,
}

impl Store {
    /// Notes that the keys in this scope that the store lacks were reported as removed.
    fn report_missing(&mut self, in_scope: impl Fn(&usize) -> bool, now: Instant) {
        let Self { reported, keys, removed, .. } = self;
        reported.retain(|key, _| {
            let stays = keys.contains_key(key) || !in_scope(key);
            if !stays {
                removed.insert(*key, now);
            }
            stays
        });
    }
}

/// A catalog and the stores that it follows.
struct CatalogModel {
    catalog: Catalog,
    now: Instant,
    /// The removal grace of each registry.
    graces: [Duration; REGISTRIES as usize],
    merge: Merge,
    stores: Vec<Store>,
    lease_checks: Vec<(RegistryId, Vec<i64>)>,
    /// Descriptions of all services as of the last [`Self::settle`].
    described: BTreeMap<String, String>,
}

impl CatalogModel {
    fn new(graces: [Duration; REGISTRIES as usize], merge: Merge) -> Self {
        let mut settings = Settings::new(zones(), graces.len());
        settings.removal_graces = graces.to_vec();
        settings.layers = layers(merge);
        let stores =
            (0..REGISTRIES).map(|_| Store { watching: true, ..Store::default() }).collect();
        let catalog = Catalog::new(settings);
        Self {
            catalog,
            now: Instant::now(),
            graces,
            merge,
            stores,
            lease_checks: Vec::new(),
            described: BTreeMap::new(),
        }
    }

    fn run(&mut self, step: ModelStep) {
        match step {
            ModelStep::Put { registry, keys, content } => {
                for key in keys {
                    self.put(registry, key, content);
                }
            }
            ModelStep::Delete { registry, keys, lease } => {
                for key in keys {
                    self.delete(registry, key, lease);
                }
            }
            ModelStep::Replay { registry, which } => {
                let store = &self.stores[usize::from(registry)];
                if store.watching && !store.events.is_empty() {
                    let event = which.get(&store.events).clone();
                    self.catalog.apply_change(id(registry), event, self.now);
                }
            }
            ModelStep::RollBack { registry, keys } => {
                let store = &mut self.stores[usize::from(registry)];
                store.keys.retain(|key, _| !keys.contains(key));
                for put in store.keys.values_mut() {
                    put.revision = put.revision.min(1);
                }
                store.revision = store.revision.min(1);
                store.watching = false;
            }
            ModelStep::ListServices { kind, cut } => {
                let names = self.list_names(kind);
                let names = names.into_iter().map(|name| NAMES.iter().position(|n| *n == name));
                let names: Vec<usize> = names.flatten().collect();
                let cut = cut.map_or(names.len(), |cut| cut.index(names.len() + 1));
                for (at, name) in names.into_iter().enumerate().take(cut + 1) {
                    self.list_service(name, kind, at == cut);
                }
            }
            ModelStep::List { registry, kind, cut } => self.list(registry, kind, cut),
            ModelStep::ListService { name, kind } => self.list_service(name, kind, false),
            ModelStep::ListNames { kind, gone } => {
                let store = &mut self.stores[usize::from(SERVICES)];
                let stays = |key: &usize| gone.is_none_or(|gone| name(*key) != NAMES[gone]);
                store.keys.retain(|key, _| stays(key));
                store.expired.retain(stays);
                self.list_names(kind);
            }
            ModelStep::Connected { registry, connected } => {
                self.catalog.apply_change(id(registry), Change::Connected(connected), self.now);
            }
            ModelStep::LeaseReply { gone, alive } => {
                for (registry, leases) in std::mem::take(&mut self.lease_checks) {
                    let of = |bits: u8| {
                        let is_set = |lease: &&i64| bits >> (**lease % 8) & 1 == 1;
                        leases.iter().filter(is_set).copied().collect()
                    };
                    let (gone, alive) = (of(gone), of(alive & !gone));
                    let reply = LeaseReply { revision: 0, gone, alive };
                    self.catalog.apply_change(registry, Change::LeasesChecked(reply), self.now);
                }
            }
            ModelStep::Release { registries } => self.release(RegistrySet::from_bits(registries)),
            ModelStep::Advance { milliseconds } => self.now += Duration::from_millis(milliseconds),
            ModelStep::Settle => self.settle(),
        }
    }

    /// Puts a key with one of five contents.
    ///
    /// The content is plain (0), with metadata (1), with a rejected endpoint (2) or junk (3). With
    /// a failed check (4), the key is in the store of [`SERVICES`] but out of service.
    fn put(&mut self, registry: u8, key: usize, content: u8) {
        let text = text(registry, key);
        let store = &mut self.stores[usize::from(registry)];
        store.revision += 1;
        store.expired.remove(&key);
        if registry == SERVICES && content == 4 {
            store.keys.remove(&key);
            store.expired.insert(key);
            return;
        }
        let content = if content == 3 {
            Err(Rejected::new(&text, JUNK))
        } else {
            let mut registration = registration(&self::text(0, key));
            if content == 1 {
                registration.metadata = Arc::new(Metadata::new(BTreeMap::from([(
                    "weight".into(),
                    serde_json::Value::from(7),
                )])));
            }
            if content == 2 {
                registration.rejected.push(Rejected::new("10.0.0.1:0", Reason::PORT_OUT_OF_RANGE));
            }
            Ok(registration)
        };
        let revision = if registry == 1 { 0 } else { store.revision };
        let put =
            Put { key: text.into(), revision, lease: i64::try_from(key).unwrap() + 1, content };
        store.keys.insert(key, put.clone());
        if store.watching && registry != SERVICES {
            store.reported.insert(key, put.clone());
            store.removed.remove(&key);
            self.event(registry, Change::Put(put));
        }
    }

    fn delete(&mut self, registry: u8, key: usize, lease: bool) {
        let store = &mut self.stores[usize::from(registry)];
        store.expired.remove(&key);
        let Some(put) = store.keys.remove(&key) else { return };
        store.revision += 1;
        if store.watching && registry != SERVICES {
            store.reported.remove(&key);
            store.removed.insert(key, self.now);
            let removal = if lease { Removal::Unknown } else { Removal::Explicit };
            let revision = if registry == 1 { 0 } else { store.revision };
            self.event(registry, Change::Delete { key: put.key, revision, removal });
        }
    }

    fn event(&mut self, registry: u8, event: Change) {
        // Without revisions, the catalog cannot detect a replayed event.
        if registry != 1 {
            self.stores[usize::from(registry)].events.push(event.clone());
        }
        self.catalog.apply_change(id(registry), event, self.now);
    }

    fn list(&mut self, registry: u8, kind: ListKind, cut: Option<Index>) {
        let store = &mut self.stores[usize::from(registry)];
        let named = cut.map_or(store.keys.len(), |cut| cut.index(store.keys.len() + 1));
        store.events.clear();
        store.watching = cut.is_none();
        self.catalog.apply_change(id(registry), Change::list_begin(kind), self.now);
        for (key, put) in store.keys.iter().take(named) {
            store.reported.insert(*key, put.clone());
            store.removed.remove(key);
            self.catalog.apply_change(id(registry), Change::Put(put.clone()), self.now);
        }
        if cut.is_none() {
            store.report_missing(|_| true, self.now);
            self.catalog.apply_change(
                id(registry),
                Change::ListEnd { revision: store.revision },
                self.now,
            );
        }
    }

    /// Lists the service with this name; the list may break off before its end.
    fn list_service(&mut self, at: usize, kind: ListKind, cut: bool) {
        let store = &mut self.stores[usize::from(SERVICES)];
        store.watching = !cut;
        let of_name = |key: &usize| name(*key) == NAMES[at];
        let scope = ListScope::Service(NAMES[at].into());
        let mut changes = vec![Change::ListBegin { kind, scope }];
        for (key, put) in store.keys.iter().filter(|(key, _)| of_name(key)) {
            store.reported.insert(*key, put.clone());
            store.removed.remove(key);
            changes.push(Change::Put(put.clone()));
        }
        if !cut {
            changes.extend(store.expired.iter().filter(|key| of_name(key)).map(|key| {
                let key = text(SERVICES, *key).into();
                Change::Delete { key, revision: 0, removal: Removal::Unknown }
            }));
            changes.push(Change::ListEnd { revision: 0 });
            store.report_missing(of_name, self.now);
        }
        self.catalog.apply(Update::Registry(id(SERVICES), changes), self.now);
    }

    /// Lists the names of the services, and returns them.
    fn list_names(&mut self, kind: ListKind) -> BTreeSet<&'static str> {
        let store = &mut self.stores[usize::from(SERVICES)];
        let names: BTreeSet<_> =
            store.keys.keys().chain(&store.expired).map(|key| name(*key)).collect();
        store.report_missing(|key| !names.contains(name(*key)), self.now);
        let boxed = names.iter().map(|name| (*name).into()).collect();
        let change = Change::ServiceNames { kind, names: boxed };
        self.catalog.apply_change(id(SERVICES), change, self.now);
        names
    }

    /// Ends the holds of registries; only they end.
    fn release(&mut self, registries: RegistrySet) {
        let before = self.catalog.holds();
        self.catalog.apply(Update::Release(Release { ticket: 1, registries }), self.now);
        let (ended, left): (Vec<_>, Vec<_>) =
            before.into_iter().partition(|hold| registries.contains(hold.registry));
        assert_eq!(self.catalog.holds(), left);
        assert_eq!(self.catalog.released.pop(), Some(Released { ticket: 1, holds: ended }));
    }

    fn settle(&mut self) {
        let outcome = self.catalog.settle(self.now);
        self.lease_checks.extend(outcome.lease_checks);
        let descriptions = describe(self.catalog.services());
        let changed: BTreeSet<&str> = outcome.changed.iter().map(ServiceChange::base).collect();
        assert!(
            outcome.changed.is_sorted_by_key(ServiceChange::base)
                && changed.len() == outcome.changed.len()
        );
        for base in descriptions.keys().chain(self.described.keys()) {
            assert!(
                descriptions.get(base) == self.described.get(base) || changed.contains(&**base),
                "{base} changed without being reported"
            );
        }
        self.described = descriptions;
        assert!(outcome.wake.is_none_or(|wake| wake > self.now), "a wake-up in the past");
        // The puts of an incomplete list become visible only after the next list.
        if self.stores.iter().all(|store| store.watching) {
            self.compare();
        }
    }

    fn compare(&mut self) {
        let (services, rejections) = self.rebuilt();
        if self.graces.iter().all(Duration::is_zero) {
            assert_eq!(self.described, describe(&services));
            assert_eq!(self.catalog.rejections().counts, rejections);
        }
        // A held key, unknown to a new catalog, may keep an unsynced registry from being served.
        let has_held_keys = self.catalog.registry_status(self.now).held_keys > 0;
        if has_held_keys && !self.catalog.unsynced.is_empty() {
            return;
        }
        // With a grace, every reported key is present. Other keys are held, up to the grace.
        let all =
            |services: &mut dyn Iterator<Item = &Arc<Service>>| -> BTreeMap<(usize, String), bool> {
                let keys = services
                    .flat_map(|service| service.keys().iter().map(|key| (service.text(key), key)));
                keys.map(|(text, key)| ((key.registry().index(), text), key.held())).collect()
            };
        let mut kept = all(&mut self.catalog.services());
        for (key, _) in all(&mut services.iter()) {
            assert_eq!(kept.remove(&key), Some(false), "{key:?}");
        }
        assert_eq!(self.catalog.registry_status(self.now).held_keys, kept.len());
        let holds = self.catalog.holds();
        assert_eq!(holds.iter().map(|hold| hold.keys).sum::<usize>(), kept.len());
        for Hold { registry, since, until, .. } in holds {
            let grace = self.graces[registry.index()];
            assert!(since <= self.now && self.now < until && until <= self.now + grace);
        }
        for ((registry, kept), held) in kept {
            let mut removed = self.stores[registry].removed.iter();
            let removed =
                removed.find(|(key, _)| text(u8::try_from(registry).unwrap(), **key) == kept);
            assert!(
                held && removed.is_some_and(|(_, since)| self.now < *since + self.graces[registry]),
                "{kept}"
            );
        }
    }

    /// Builds the services and the rejection counts at once from the reported keys.
    fn rebuilt(&self) -> (Vec<Arc<Service>>, BTreeMap<Reason, u64>) {
        let mut bases: BTreeMap<String, Vec<Arc<RegistryKey>>> = BTreeMap::new();
        let mut rejections: BTreeMap<Reason, u64> = BTreeMap::new();
        for (registry, store) in (0..).zip(&self.stores) {
            for put in store.reported.values() {
                match expected_key(registry, self.merge, put) {
                    Ok((base, key)) => {
                        for rejected in key.rejected() {
                            *rejections.entry(rejected.reason).or_default() += 1;
                        }
                        bases.entry(base).or_default().push(Arc::new(key));
                    }
                    Err(reason) => *rejections.entry(reason).or_default() += 1,
                }
            }
        }
        let rules = ServiceRules { docker0: Docker0::Drop, unsynced: self.catalog.unsynced };
        let services =
            bases.into_iter().map(|(base, keys)| Arc::new(Service::new(&base, keys, rules)));
        (services.collect(), rejections)
    }
}

/// Builds a key without the code under test, for the names that this test uses.
fn expected_key(registry: u8, merge: Merge, put: &Put) -> Result<(String, RegistryKey), Reason> {
    let registration = put.content.clone().map_err(|rejected| rejected.reason)?;
    let name = registration.id.name.to_lowercase();
    let (base, rank) = match name.rsplit_once('.') {
        Some((base, "svc")) => (base, 0),
        Some((base, "internal")) => (base, 1),
        _ => (&*name, 2),
    };
    match base {
        "bad name" | "_x" => return Err(Reason::NAME_NOT_DNS),
        "ns" => return Err(Reason::NAME_RESERVED),
        _ => {}
    }
    let (inside, endpoints): (Vec<_>, Vec<_>) = registration
        .endpoints
        .into_iter()
        .partition(|endpoint| endpoint.host.to_string() == "web.svc");
    let mut rejected = registration.rejected;
    rejected.extend(
        inside.iter().map(|endpoint| Rejected::new(&endpoint.to_string(), Reason::HOST_IN_ZONE)),
    );
    let layout = KeyLayout::split(&put.key, base, &endpoints);
    let text = layout.is_none().then(|| put.key.clone());
    let uncommon = (text.is_some() || !rejected.is_empty())
        .then(|| Box::new(UncommonFields { text, rejected: rejected.into() }));
    let group = Group {
        deployment: registration.id.deployment.to_lowercase().into(),
        namespace: registration.id.namespace.to_lowercase().into(),
        version: registration.id.version.to_lowercase().into(),
    };
    let shared = SharedKeyFields {
        group: Arc::new(group),
        registry: id(registry),
        layer: layers(merge)[usize::from(registry)],
        rank,
        hold: None,
        layout: layout.unwrap_or_default(),
    };
    let key = RegistryKey {
        revision: put.revision,
        lease: put.lease,
        endpoints: endpoints.into(),
        metadata: registration.metadata,
        shared: Arc::new(shared),
        uncommon,
    };
    Ok((base.to_owned(), key))
}

/// Describes services completely: all fields of their keys, and all instances.
fn describe<'a>(services: impl IntoIterator<Item = &'a Arc<Service>>) -> BTreeMap<String, String> {
    let description = |service: &Service| {
        let instances = service
            .instances()
            .map(|instance| (instance.text(), instance.endpoint, instance.excluded));
        format!("{:?} {:?}", service.keys(), instances.collect::<Vec<_>>())
    };
    services.into_iter().map(|service| (service.base().to_owned(), description(service))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn without_grace_the_catalog_equals_one_built_from_scratch(
        steps in prop::collection::vec(step(), 1..60),
        merge in merge(),
    ) {
        let mut model = CatalogModel::new([Duration::ZERO; REGISTRIES as usize], merge);
        for step in steps {
            model.run(step);
        }
        for registry in 0..REGISTRIES {
            model.run(ModelStep::List { registry, kind: ListKind::Restored, cut: None });
        }
        model.run(ModelStep::ListServices { kind: ListKind::Restored, cut: None });
        model.settle();
    }

    #[test]
    fn after_the_grace_the_catalog_equals_one_built_from_scratch(
        steps in prop::collection::vec(step(), 1..60),
        graces in prop::array::uniform3(prop_oneof![Just(0), Just(12_000), 1..20_000_u64]),
        merge in merge(),
    ) {
        let graces = graces.map(Duration::from_millis);
        let mut model = CatalogModel::new(graces, merge);
        for step in steps {
            model.run(step);
        }
        for registry in 0..REGISTRIES {
            model.run(ModelStep::List { registry, kind: ListKind::Restored, cut: None });
        }
        model.run(ModelStep::ListServices { kind: ListKind::Restored, cut: None });
        model.settle();
        model.now += graces.into_iter().max().unwrap_or_default();
        model.settle();
        let (services, rejections) = model.rebuilt();
        prop_assert_eq!(&model.described, &describe(&services));
        prop_assert_eq!(&model.catalog.rejections().counts, &rejections);
        prop_assert_eq!(model.catalog.registry_status(model.now).held_keys, 0);
        // No tombstone outlives the burst window, and no round the wait for its next list.
        model.now += expiry::BURST_WINDOW.max(grace::MAX_LIST_WAIT);
        model.settle();
        let SettleOutcome { changed, lease_checks, wake, .. } = model.catalog.settle(model.now);
        prop_assert!(changed.is_empty() && lease_checks.is_empty() && wake.is_none());
        let tallies = (0..REGISTRIES).map(|registry| model.catalog.mirror.tally(id(registry)));
        let known: usize = tallies.map(|tally| tally.keys).sum();
        prop_assert_eq!(known, services.iter().map(|service| service.keys().len()).sum::<usize>());
        let Stats { registries, .. } = model.catalog.stats();
        for (registry, stats) in RegistryId::first(usize::from(REGISTRIES)).zip(registries) {
            let has_keys = |service: &&Arc<Service>| {
                service.keys().iter().any(|key| key.registry() == registry)
            };
            prop_assert_eq!(stats.services, services.iter().filter(has_keys).count());
        }
    }
}
