//! Tests of the catalog's rules, and the fixture that they share.

mod checks;
mod conflicts;
mod holds;
mod rejections;
mod removals;
mod saved;
mod services;

use std::collections::BTreeMap;

use super::key::{KeyLayout, SharedKeyFields, UncommonFields};
use super::*;
use crate::name::base_of;
use crate::service::{
    Addresses, Endpoint, Host, LeaseReply, ListKind, ListScope, Metadata, Put, Reason,
    Registration, RegistrySet, Rejected, Release, Removal, ServiceId,
};

pub(super) fn zones() -> Zones {
    Zones::new(&["svc".to_owned(), "internal".to_owned()]).unwrap()
}

/// Parses a key of GoFrame's layout.
pub(super) fn registration(text: &str) -> Registration {
    let segments: Vec<&str> = text.split('/').collect();
    let [_, _, deployment, namespace, name, version, endpoints] = segments[..] else {
        panic!("{text}")
    };
    let endpoints = endpoints.split(',').filter(|endpoint| !endpoint.is_empty()).map(|endpoint| {
        let (host, port) = endpoint.rsplit_once(':').unwrap();
        let host =
            host.parse::<std::net::IpAddr>().map_or_else(|_| Host::Name(host.into()), Host::from);
        Endpoint { host, port: port.parse().unwrap() }
    });
    let id = ServiceId {
        deployment: deployment.into(),
        namespace: namespace.into(),
        name: name.into(),
        version: version.into(),
    };
    Registration {
        id,
        endpoints: endpoints.collect(),
        rejected: Vec::new(),
        metadata: Arc::default(),
        overrides: false,
    }
}

/// Builds the catalog's key from a key text, with the zones of [`zones`].
pub(super) fn key(text: &str) -> RegistryKey {
    let Registration { id, endpoints, rejected, metadata, overrides: _ } = registration(text);
    let base = base_of(&id.name, &zones()).unwrap();
    let layout = KeyLayout::split(text, &base.text, &endpoints);
    let own_text = layout.is_none().then(|| text.into());
    let uncommon = (own_text.is_some() || !rejected.is_empty())
        .then(|| Box::new(UncommonFields { text: own_text, rejected: rejected.into() }));
    let group = Arc::new(Group::of(&id));
    let shared = SharedKeyFields {
        group,
        registry: RegistryId::FIRST,
        layer: 1,
        rank: base.rank,
        hold: None,
        layout: layout.unwrap_or_default(),
    };
    RegistryKey {
        revision: 0,
        lease: 0,
        endpoints: endpoints.into(),
        metadata,
        shared: Arc::new(shared),
        uncommon,
    }
}

/// A [`SettleOutcome`] with the changed services reduced to their base names.
#[derive(Debug, Default, PartialEq)]
struct Settled {
    changed: Vec<Box<str>>,
    lease_checks: Vec<(RegistryId, Vec<i64>)>,
    wake: Option<Instant>,
}

impl From<SettleOutcome> for Settled {
    fn from(SettleOutcome { changed, lease_checks, wake, .. }: SettleOutcome) -> Self {
        Self {
            changed: changed.iter().map(|changed| changed.base().into()).collect(),
            lease_checks,
            wake,
        }
    }
}

pub(super) fn put(text: &str, revision: u64, lease: i64) -> Put {
    Put { key: text.into(), revision, lease, content: Ok(registration(text)) }
}

/// A reason specific to one key layout.
pub(super) const JUNK: Reason = Reason::new("junk", "no key of this layout");

fn invalid_put(text: &str) -> Put {
    Put { key: text.into(), revision: 0, lease: 0, content: Err(Rejected::new(text, JUNK)) }
}

/// Returns the ID of the registry at an index.
pub(super) fn id(index: u8) -> RegistryId {
    RegistryId::new(index.into()).unwrap()
}

/// A catalog with its current time.
struct TestCatalog {
    catalog: Catalog,
    now: Instant,
}

impl TestCatalog {
    fn new() -> Self {
        Self::with(|_| {}, 1)
    }

    fn with(set: impl FnOnce(&mut Settings), registries: usize) -> Self {
        let mut settings = Settings::new(zones(), registries);
        set(&mut settings);
        Self { catalog: Catalog::new(settings), now: Instant::now() }
    }

    fn apply(&mut self, registry: u8, change: Change) {
        self.catalog.apply_change(id(registry), change, self.now);
    }

    fn put(&mut self, text: &str, revision: u64, lease: i64) {
        self.apply(0, Change::Put(put(text, revision, lease)));
    }

    fn delete(&mut self, text: &str, revision: u64, removal: Removal) {
        self.apply(0, Change::Delete { key: text.into(), revision, removal });
    }

    /// Sends a complete list of keys; their leases are numbered from 1.
    fn list(&mut self, kind: ListKind, keys: &[String]) -> Settled {
        self.apply(0, Change::list_begin(kind));
        for (text, lease) in keys.iter().zip(1..) {
            self.put(text, 0, lease);
        }
        self.apply(0, Change::ListEnd { revision: 0 });
        self.settle()
    }

    fn settle(&mut self) -> Settled {
        self.catalog.settle(self.now).into()
    }

    fn advance(&mut self, time: Duration) -> Settled {
        self.now += time;
        self.settle()
    }

    fn served(&self, base: &str) -> usize {
        self.catalog.service(base).map_or(0, |service| service.served().count())
    }

    fn held_keys(&self) -> usize {
        self.catalog.registry_status(self.now).held_keys
    }

    fn rejection_counts(&mut self) -> BTreeMap<Reason, u64> {
        self.catalog.rejections().counts.clone()
    }
}

/// Returns keys of the service `hello` with one endpoint each.
fn hello_keys(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("/service/d/n/hello.svc/latest/10.0.{}.{}:80", n >> 8, n & 255)).collect()
}

const SECOND: Duration = Duration::from_secs(1);
const HELLO: &str = "/service/d/n/hello.svc/latest/10.0.0.0:80";

#[test]
fn puts_create_services_and_deletes_remove_them() {
    let mut test = TestCatalog::new();
    test.put(HELLO, 1, 0);
    test.put("/service/d/n/HELLO/latest/10.0.0.1:80", 2, 0);
    assert_eq!(test.settle().changed, ["hello".into()]);
    assert_eq!(
        test.catalog.service("hello").unwrap().keys().len(),
        2,
        "names that differ only in case are one service"
    );
    assert_eq!(test.served("hello"), 1, "the bare spelling is shadowed");
    test.delete(HELLO, 3, Removal::Explicit);
    assert_eq!(test.settle().changed, ["hello".into()]);
    assert_eq!(test.served("hello"), 1);
    test.delete("/service/d/n/HELLO/latest/10.0.0.1:80", 4, Removal::Explicit);
    assert_eq!(test.settle().changed, ["hello".into()]);
    assert!(test.catalog.service("hello").is_none());
    assert_eq!(test.catalog.services().count(), 0);
    assert_eq!(test.settle(), Settled::default());
}

#[test]
fn groups_are_lowercased_and_shared() {
    let mut test = TestCatalog::new();
    test.put("/service/Dev/NS/a/V1/10.0.0.1:80", 0, 0);
    test.put("/service/dev/ns/b/v1/10.0.0.1:80", 0, 0);
    test.settle();
    let group = |base: &str| Arc::clone(test.catalog.service(base).unwrap().keys()[0].group());
    assert!(Arc::ptr_eq(&group("a"), &group("b")));
    assert_eq!(
        *group("a"),
        Group { deployment: "dev".into(), namespace: "ns".into(), version: "v1".into() }
    );
    assert_eq!(test.catalog.service("a").unwrap().keys()[0].metadata.len(), 0);
}

#[test]
fn changes_rebuild_only_their_service() {
    let mut test = TestCatalog::new();
    for n in 0..100 {
        test.put(&format!("/service/d/n/s{n}/latest/10.0.0.1:80"), n + 1, 0);
    }
    test.settle();
    let before: Vec<_> =
        (0..100).map(|n| Arc::clone(test.catalog.service(&format!("s{n}")).unwrap())).collect();
    test.put("/service/d/n/s7/latest/10.0.0.2:80", 200, 0);
    test.put("/service/d/n/s7/latest/10.0.0.3:80", 201, 0);
    assert_eq!(test.settle().changed, ["s7".into()]);
    for (n, before) in before.iter().enumerate() {
        let same = Arc::ptr_eq(before, test.catalog.service(&format!("s{n}")).unwrap());
        assert_eq!(same, n != 7, "s{n}");
    }
}

#[test]
fn repeated_puts_change_nothing() {
    let mut test = TestCatalog::new();
    test.list(ListKind::Routine, &hello_keys(0..3));
    let before = Arc::clone(test.catalog.service("hello").unwrap());
    assert_eq!(test.list(ListKind::Routine, &hello_keys(0..3)).changed, []);
    test.put(HELLO, 0, 1);
    assert_eq!(test.settle().changed, []);
    assert!(Arc::ptr_eq(&before, test.catalog.service("hello").unwrap()));
    // A new lease is visible in the service.
    test.put(HELLO, 7, 99);
    test.settle();
    let keys = test.catalog.service("hello").unwrap().keys();
    assert!(keys.iter().any(|key| key.revision == 7 && key.lease == 99));
    assert_eq!(keys.len(), 3);
}

#[test]
fn outdated_events_of_an_epoch_are_ignored() {
    let mut test = TestCatalog::new();
    let revision = |test: &TestCatalog| {
        test.catalog.service("hello").map_or(0, |service| service.keys()[0].revision)
    };
    test.put(HELLO, 10, 1);
    test.put(HELLO, 9, 2);
    test.settle();
    assert_eq!(revision(&test), 10);
    test.delete(HELLO, 8, Removal::Explicit);
    test.settle();
    assert_eq!(revision(&test), 10, "an outdated delete");
    test.delete(HELLO, 11, Removal::Explicit);
    test.put(HELLO, 10, 1);
    test.settle();
    assert_eq!(test.served("hello"), 0, "an outdated put replayed after the delete");
    test.put(HELLO, 12, 1);
    test.delete(HELLO, 11, Removal::Explicit);
    test.settle();
    assert_eq!(revision(&test), 12, "an outdated delete replayed after the next put");
    // All revisions of the restored store are lower.
    test.apply(0, Change::list_begin(ListKind::Restored));
    test.put(HELLO, 3, 1);
    test.apply(0, Change::ListEnd { revision: 4 });
    test.put(HELLO, 5, 1);
    test.settle();
    assert_eq!(revision(&test), 5);
}

#[test]
fn an_outdated_put_does_not_replace_a_rejection() {
    let mut test = TestCatalog::new();
    test.apply(0, Change::Put(Put { revision: 10, ..invalid_put(HELLO) }));
    test.put(HELLO, 9, 0);
    test.settle();
    assert_eq!(test.served("hello"), 0);
    test.put(HELLO, 11, 0);
    test.settle();
    assert_eq!(test.served("hello"), 1);
    assert!(test.rejection_counts().is_empty());
}

#[test]
fn listed_keys_are_published_when_the_list_is_complete() {
    let mut test = TestCatalog::new();
    test.apply(0, Change::list_begin(ListKind::Routine));
    test.put(HELLO, 1, 0);
    assert_eq!(test.settle().changed, []);
    assert!(test.catalog.service("hello").is_none());
    assert!(!test.catalog.registry_status(test.now).synced);
    test.apply(0, Change::ListEnd { revision: 1 });
    assert_eq!(test.settle().changed, ["hello".into()]);
    assert!(test.catalog.registry_status(test.now).synced);
}

#[test]
fn a_routine_list_removes_keys_missing_from_it() {
    let mut test = TestCatalog::new();
    test.list(ListKind::Routine, &hello_keys(0..100));
    assert_eq!(test.list(ListKind::Routine, &hello_keys(99..101)).changed, ["hello".into()]);
    assert_eq!(test.served("hello"), 2);
    assert_eq!(test.held_keys(), 0);
    test.list(ListKind::Routine, &[]);
    assert!(test.catalog.service("hello").is_none());
}

#[test]
fn an_abandoned_list_removes_no_keys() {
    let mut test = TestCatalog::with(|settings| settings.removal_graces = vec![Duration::ZERO], 1);
    test.list(ListKind::Routine, &hello_keys(0..20));
    test.apply(0, Change::list_begin(ListKind::Reconnect));
    test.put(HELLO, 0, 1);
    test.apply(0, Change::Connected(false));
    test.settle();
    assert_eq!(test.served("hello"), 20);
    assert!(test.catalog.registry_status(test.now).disconnected.contains(id(0)));
    test.apply(0, Change::Connected(true));
    test.list(ListKind::Reconnect, &hello_keys(0..19));
    assert_eq!(test.served("hello"), 19);
    assert!(test.catalog.registry_status(test.now).disconnected.is_empty());
    // A `ListEnd` without `ListBegin` is ignored.
    test.apply(0, Change::ListEnd { revision: 0 });
    assert_eq!(test.settle().changed, []);
}

#[test]
fn a_slow_registry_delays_sync_by_at_most_ten_seconds() {
    let mut test = TestCatalog::with(|_| {}, 2);
    test.settle();
    test.now += 3 * SECOND;
    let outcome = test.list(ListKind::Routine, &hello_keys(0..1));
    assert!(!test.catalog.registry_status(test.now).synced);
    assert_eq!(outcome.wake, Some(test.now + 7 * SECOND));
    test.advance(7 * SECOND);
    assert!(test.catalog.registry_status(test.now).synced);
    let mut test = TestCatalog::with(|_| {}, 2);
    test.settle();
    test.advance(60 * SECOND);
    assert!(!test.catalog.registry_status(test.now).synced, "no registry has completed a list");
}

#[test]
fn equal_keys_of_two_registries_are_independent() {
    let mut test = TestCatalog::with(|_| {}, 2);
    test.list(ListKind::Routine, &hello_keys(0..2));
    test.apply(1, Change::list_begin(ListKind::Routine));
    test.apply(1, Change::Put(put(HELLO, 0, 0)));
    test.apply(1, Change::ListEnd { revision: 0 });
    test.settle();
    assert_eq!(test.catalog.service("hello").unwrap().keys().len(), 3);
    assert_eq!(test.served("hello"), 2, "equal endpoints are served once");
    test.list(ListKind::Routine, &[]);
    assert_eq!(test.served("hello"), 1);
    // An unknown registry's changes are ignored.
    test.apply(9, Change::Put(put(HELLO, 0, 0)));
    assert_eq!(test.settle().changed, []);
}

#[test]
fn a_list_in_progress_does_not_delay_other_registries() {
    let mut test = TestCatalog::with(|_| {}, 2);
    test.apply(0, Change::list_begin(ListKind::Routine));
    test.put("/service/d/n/a/latest/10.0.0.1:80", 1, 0);
    test.apply(1, Change::Put(put("/service/d/n/b/latest/10.0.0.1:80", 1, 0)));
    assert_eq!(test.settle().changed, ["b".into()]);
    test.apply(0, Change::ListEnd { revision: 1 });
    assert_eq!(test.settle().changed, ["a".into()]);
}

#[test]
fn removed_keys_free_their_memory() {
    let mut test = TestCatalog::new();
    for round in 0..3 {
        test.apply(0, Change::list_begin(ListKind::Routine));
        for n in 0..5_000 {
            let mut put =
                put(&format!("/service/d{n}/r{round}/s{n}-{round}/latest/10.0.0.1:80"), 0, 0);
            let metadata =
                BTreeMap::from([("n".into(), serde_json::Value::from(n + round * 5_000))]);
            put.content.as_mut().unwrap().metadata = Arc::new(Metadata::new(metadata));
            test.apply(0, Change::Put(put));
        }
        test.apply(0, Change::ListEnd { revision: 0 });
        test.settle();
        let RegistryStats { keys, instances, held, .. } = test.catalog.stats().registries[0];
        assert_eq!((keys, instances, held), (5_000, 5_000, 0));
    }
    test.list(ListKind::Routine, &[]);
    test.settle();
    assert_eq!(
        {
            let builder = &test.catalog.builder;
            (builder.shared_fields.len(), builder.groups.len(), builder.metadata.len())
        },
        (0, 0, 0)
    );
    assert_eq!(test.catalog.services().count(), 0);
    // Freed entries are reused.
    assert!(
        test.catalog.mirror.capacity() <= (10_000, 10_000),
        "{:?}",
        test.catalog.mirror.capacity()
    );
}

#[test]
fn differences_found_by_routine_lists_are_counted() {
    let mut test = TestCatalog::with(|_| {}, 1);
    let differences = |test: &TestCatalog| test.catalog.stats().registries[0].differences;
    let list = |test: &mut TestCatalog, kind, keys: &[(&str, u64)]| {
        test.apply(0, Change::list_begin(kind));
        for (key, revision) in keys {
            test.put(key, *revision, 0);
        }
        test.apply(0, Change::ListEnd { revision: 9 });
        test.settle();
    };
    let [one, two] =
        ["/service/d/n/hello/latest/10.0.0.1:80", "/service/d/n/hello/latest/10.0.0.2:80"];
    list(&mut test, ListKind::Routine, &[(one, 1), (two, 2)]);
    list(&mut test, ListKind::Routine, &[(one, 1), (two, 2)]);
    assert_eq!(differences(&test), 0, "nothing was missed");
    list(&mut test, ListKind::Routine, &[(two, 5)]);
    assert_eq!(differences(&test), 2, "one key was removed, one changed");
    list(&mut test, ListKind::Reconnect, &[(one, 6)]);
    assert_eq!(differences(&test), 2, "differences after a reconnect are expected");
}

#[test]
fn only_the_data_of_a_disconnected_registry_is_stale() {
    let mut test = TestCatalog::with(|_| {}, 3);
    for registry in 0..3 {
        test.apply(registry, Change::list_begin(ListKind::Routine));
        test.apply(registry, Change::ListEnd { revision: 0 });
    }
    let set = |ids: &[u8]| ids.iter().map(|index| id(*index)).collect::<RegistrySet>();
    let staleness = |test: &TestCatalog, registries: &[u8]| {
        test.catalog.registry_status(test.now).staleness_of([set(registries)].into_iter())
    };
    assert_eq!(test.catalog.registry_status(test.now).staleness(), None);
    test.apply(1, Change::Connected(false));
    let status = test.catalog.registry_status(test.now);
    assert_eq!(
        (status.disconnected, status.with_held_keys, status.staleness()),
        (set(&[1]), set(&[]), Some(Staleness::Disconnected))
    );
    assert_eq!(
        [&[0][..], &[1], &[0, 1], &[0, 2]].map(|registries| staleness(&test, registries)),
        [None, Some(Staleness::Disconnected), None, None]
    );
    // Another registry is wiped, and its keys are held.
    test.apply(2, Change::Put(put("/service/d/n/other/latest/10.0.0.9:80", 0, 0)));
    test.settle();
    test.apply(2, Change::list_begin(ListKind::Restored));
    test.apply(2, Change::ListEnd { revision: 0 });
    test.settle();
    let status = test.catalog.registry_status(test.now);
    assert_eq!((status.with_held_keys, status.held_keys), (set(&[2]), 1));
    assert_eq!(
        [&[0][..], &[2], &[1, 2]].map(|registries| staleness(&test, registries)),
        [None, Some(Staleness::Held(id(2))), Some(Staleness::Disconnected)]
    );
    test.apply(1, Change::Connected(true));
    assert_eq!(test.catalog.registry_status(test.now).staleness(), Some(Staleness::Held(id(2))));
}

#[test]
fn keys_share_their_common_fields_in_any_layout() {
    let layouts: [fn(u32, u32) -> String; 4] = [
        |service, n| {
            format!("/service/default/default/s{service}.svc/latest/10.{service}.0.{n}:80")
        },
        |service, n| format!("service#default#default#s{service}.svc#latest#10.{service}.0.{n}-80"),
        |service, n| format!("s{service}.svc--10.{service}.0.{n}:80"),
        |service, n| format!("10.{service}.0.{n}#80#DEFAULT#DEFAULT_GROUP@@s{service}.svc"),
    ];
    for layout in layouts {
        let mut test = TestCatalog::new();
        let mut texts = Vec::new();
        for (service, n) in (0..20).flat_map(|service| (1..20).map(move |n| (service, n))) {
            let gsvc =
                format!("/service/default/default/s{service}.svc/latest/10.{service}.0.{n}:80");
            let text = layout(service, n);
            let key = text.clone().into();
            test.apply(
                0,
                Change::Put(Put { key, revision: 0, lease: 0, content: Ok(registration(&gsvc)) }),
            );
            texts.push(text);
        }
        test.settle();
        let keys = || {
            test.catalog
                .services()
                .flat_map(|service| service.keys().iter().map(move |key| (service, key)))
        };
        assert!(
            keys().all(|(_, key)| key.uncommon.is_none()),
            "{}: a key keeps its text",
            texts[0]
        );
        assert_eq!(test.catalog.builder.shared_fields.len(), 1, "{}", texts[0]);
        let mut kept: Vec<String> = keys().map(|(service, key)| service.text(key)).collect();
        kept.sort_unstable();
        texts.sort_unstable();
        assert_eq!(kept, texts);
        // Every key is found by its text.
        for text in &texts {
            test.delete(text, 0, Removal::Explicit);
        }
        test.settle();
        assert_eq!(test.catalog.services().count(), 0);
    }
}

#[test]
fn host_names_are_looked_up_while_any_endpoint_uses_them() {
    let mut test = TestCatalog::new();
    let key = |n: u32| format!("/service/d/n/s{n}/latest/web.example:80");
    test.put(&key(1), 0, 0);
    test.put("/service/d/n/local/latest/localhost:80", 0, 0);
    let outcome = test.catalog.settle(test.now);
    assert_eq!(outcome.hosts, [HostChange::Wanted("web.example".into())]);
    assert_eq!(test.catalog.hosts().get("web.example"), Some(&Addresses::Pending));
    test.put(&key(2), 0, 0);
    assert_eq!(test.catalog.settle(test.now).hosts, []);

    let known = Addresses::Known([[192, 0, 2, 1].into()].into());
    let found = |host: &str| Update::Hosts(vec![(host.into(), known.clone())]);
    test.catalog.apply(found("web.example"), test.now);
    assert_eq!(
        test.settle().changed,
        ["s1".into(), "s2".into()],
        "services change with the addresses of their hosts"
    );
    assert_eq!(test.catalog.hosts().get("web.example"), Some(&known));
    test.catalog.apply(found("web.example"), test.now);
    test.catalog.apply(found("nobody.example"), test.now);
    assert_eq!(
        test.settle().changed,
        [] as [Box<str>; 0],
        "the addresses are unchanged or not needed"
    );

    test.delete(&key(1), 0, Removal::Explicit);
    assert_eq!(test.catalog.settle(test.now).hosts, []);
    test.delete(&key(2), 0, Removal::Explicit);
    assert_eq!(test.catalog.settle(test.now).hosts, [HostChange::Unwanted("web.example".into())]);
    assert_eq!(test.catalog.hosts().get("web.example"), None);
}
