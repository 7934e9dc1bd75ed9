//! Tests of the catalog's rules, and the fixture that they share.

use std::collections::BTreeMap;

use super::key::{KeyLayout, UncommonFields};
use super::*;
use crate::name::base_of;
use crate::service::{
    Addresses, Endpoint, Host, LeaseReply, ListKind, Put, Reason, Registration, RegistrySet,
    Rejected, Removal, ServiceId,
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
    }
}

/// Builds the catalog's key from a key text, with the zones of [`zones`].
pub(super) fn key(text: &str) -> RegistryKey {
    let Registration { id, endpoints, rejected, metadata } = registration(text);
    let base = base_of(&id.name, &zones()).unwrap();
    let layout = KeyLayout::split(text, &base.text, &endpoints);
    let own_text = layout.is_none().then(|| text.into());
    let uncommon = (own_text.is_some() || !rejected.is_empty())
        .then(|| Box::new(UncommonFields { text: own_text, rejected: rejected.into() }));
    let group = Arc::new(Group::of(&id));
    let shared = SharedKeyFields {
        group,
        registry: RegistryId::FIRST,
        rank: base.rank,
        held: false,
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
        self.apply(0, Change::ListBegin(kind));
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
fn groups_are_lower_case_and_shared() {
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
    test.apply(0, Change::ListBegin(ListKind::Restored));
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
fn a_list_becomes_visible_at_its_end() {
    let mut test = TestCatalog::new();
    test.apply(0, Change::ListBegin(ListKind::Routine));
    test.put(HELLO, 1, 0);
    assert_eq!(test.settle().changed, []);
    assert!(test.catalog.service("hello").is_none());
    assert!(!test.catalog.registry_status(test.now).synced);
    test.apply(0, Change::ListEnd { revision: 1 });
    assert_eq!(test.settle().changed, ["hello".into()]);
    assert!(test.catalog.registry_status(test.now).synced);
}

#[test]
fn a_routine_list_removes_keys_it_does_not_name() {
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
    test.apply(0, Change::ListBegin(ListKind::Reconnect));
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
fn removals_by_a_restored_store_are_held() {
    let mut test = TestCatalog::new();
    test.list(ListKind::Routine, &hello_keys(0..100));
    test.list(ListKind::Restored, &hello_keys(1..100));
    assert_eq!((test.served("hello"), test.held_keys()), (100, 1));
    let held: Vec<bool> =
        test.catalog.service("hello").unwrap().keys().iter().map(|key| key.held()).collect();
    assert_eq!(held.iter().filter(|held| **held).count(), 1);
    // A routine list of the restored store does not end the hold.
    let wake = test.list(ListKind::Routine, &hello_keys(1..100)).wake.unwrap();
    assert_eq!(wake, test.now + 12 * SECOND);
    test.advance(Duration::from_millis(11_999));
    assert_eq!(test.served("hello"), 100);
    let outcome = test.advance(Duration::from_millis(1));
    assert_eq!((outcome.changed, outcome.wake), (vec!["hello".into()], None));
    assert_eq!((test.served("hello"), test.held_keys()), (99, 0));
}

#[test]
fn a_list_after_an_abandoned_one_has_the_stricter_kind_of_both() {
    let mut test = TestCatalog::new();
    test.list(ListKind::Routine, &hello_keys(0..100));
    test.apply(0, Change::ListBegin(ListKind::Restored));
    test.list(ListKind::Routine, &hello_keys(1..100));
    assert_eq!(test.held_keys(), 1);
}

#[test]
fn a_reconnect_holds_only_mass_removals() {
    for (before, after, held) in [
        (100, 70, 30),
        (100, 71, 0),
        (10, 0, 10),
        (3, 0, 3),
        (12, 3, 0),
        (20, 10, 10),
        (1000, 991, 0),
    ] {
        let mut test = TestCatalog::new();
        test.list(ListKind::Routine, &hello_keys(0..before));
        test.list(ListKind::Reconnect, &hello_keys(0..after));
        assert_eq!(test.held_keys(), held, "{before} → {after}");
        assert_eq!(test.served("hello"), after as usize + held);
    }
}

#[test]
fn mass_removals_count_instances_not_keys() {
    let mut test = TestCatalog::new();
    let large = format!(
        "/service/d/n/large/latest/{}",
        (0..30).map(|n| format!("10.1.0.{n}:80")).collect::<Vec<_>>().join(",")
    );
    let mut keys = hello_keys(0..40);
    keys.push(large);
    test.list(ListKind::Routine, &keys);
    test.list(ListKind::Reconnect, &keys[..40]);
    assert_eq!(test.held_keys(), 1);
    assert_eq!(test.served("large"), 30);
}

#[test]
fn a_put_ends_the_hold_of_its_key() {
    let mut test = TestCatalog::new();
    test.list(ListKind::Routine, &hello_keys(0..20));
    test.list(ListKind::Restored, &[]);
    assert_eq!(test.held_keys(), 20);
    test.put(HELLO, 1, 7);
    test.settle();
    assert_eq!((test.served("hello"), test.held_keys()), (20, 19));
    // An explicit delete also ends the hold: the key does not come back, and a later put stays.
    test.delete(HELLO, 2, Removal::Explicit);
    test.put(HELLO, 3, 8);
    test.advance(12 * SECOND);
    assert_eq!((test.served("hello"), test.held_keys()), (1, 0));
    test.delete(&hello_keys(3..4)[0], 9, Removal::Explicit);
    assert_eq!(test.settle().changed, []);
}

#[test]
fn an_explicit_delete_ends_a_hold() {
    let mut test = TestCatalog::new();
    test.list(ListKind::Routine, &hello_keys(0..20));
    test.list(ListKind::Restored, &[]);
    test.delete(HELLO, 2, Removal::Unknown);
    test.settle();
    assert_eq!(test.held_keys(), 20, "the key may have expired");
    test.delete(HELLO, 3, Removal::Explicit);
    test.settle();
    assert_eq!((test.served("hello"), test.held_keys()), (19, 19));
}

/// Lists keys with leases from 1, then removes the first `removed` of them.
fn burst(keys: u32, removed: u32) -> (TestCatalog, Settled) {
    let mut test = TestCatalog::new();
    test.list(ListKind::Routine, &hello_keys(0..keys));
    remove(&mut test, 0..removed);
    let outcome = test.settle();
    (test, outcome)
}

/// Removes keys whose leases may be gone, each at a revision that equals its lease.
fn remove(test: &mut TestCatalog, range: std::ops::Range<u32>) {
    for n in range {
        test.delete(&hello_keys(n..n + 1)[0], u64::from(n) + 1, Removal::Unknown);
    }
}

impl TestCatalog {
    /// Replies to a lease check.
    fn reply(
        &mut self,
        gone: impl IntoIterator<Item = i64>,
        alive: impl IntoIterator<Item = i64>,
    ) -> Settled {
        let (gone, alive) = (gone.into_iter().collect(), alive.into_iter().collect());
        self.apply(0, Change::LeasesChecked(LeaseReply { revision: 0, gone, alive }));
        self.settle()
    }

    /// Returns the number of instances of `hello` that are served, and of those that are held.
    fn hello(&self) -> (usize, usize) {
        (self.served("hello"), self.held_keys())
    }
}

#[test]
fn a_burst_of_leased_deletes_causes_one_lease_check() {
    for (keys, removed, checked) in [
        (20, 9, false),
        (20, 10, true),
        (100, 29, false),
        (100, 30, true),
        (7000, 1999, false),
        (7000, 2000, true),
    ] {
        let (test, outcome) = burst(keys, removed);
        let left = if checked { keys } else { keys - removed };
        assert_eq!(
            test.served("hello"),
            left as usize,
            "deletes apply at once unless a lease check starts at once"
        );
        let all = || (id(0), (1..=i64::from(removed)).collect());
        let expected: Vec<(RegistryId, Vec<i64>)> = checked.then(all).into_iter().collect();
        assert_eq!(outcome.lease_checks, expected, "{removed} of {keys}");
    }
}

#[test]
fn keys_of_one_lease_are_checked_once() {
    let mut test = TestCatalog::new();
    test.apply(0, Change::ListBegin(ListKind::Routine));
    for text in hello_keys(0..20) {
        test.put(&text, 0, 7);
    }
    test.apply(0, Change::ListEnd { revision: 0 });
    remove(&mut test, 0..20);
    assert_eq!(test.settle().lease_checks, [(id(0), vec![7])]);
}

#[test]
fn deletes_five_seconds_apart_are_no_burst() {
    let (mut test, _) = burst(20, 9);
    test.advance(5 * SECOND);
    remove(&mut test, 9..15);
    assert_eq!(test.settle().lease_checks, []);
    test.advance(4 * SECOND);
    remove(&mut test, 15..19);
    assert_eq!(test.settle().lease_checks.len(), 1, "10 of 11 within 5 s");
}

#[test]
fn keys_of_expired_leases_are_held_for_the_grace() {
    let (mut test, _) = burst(20, 12);
    test.now += SECOND;
    assert_eq!(test.reply(1..=12, []).changed, [], "held since the delete");
    assert_eq!(test.hello(), (20, 12));
    // Keys that expire later in the burst stay served throughout.
    test.now += 3 * SECOND;
    remove(&mut test, 12..13);
    assert_eq!(test.settle().lease_checks, [(id(0), vec![13])]);
    test.reply([13], []);
    assert_eq!(test.hello(), (20, 13));
    test.advance(8 * SECOND);
    assert_eq!(test.hello(), (8, 1));
    // The burst ended after 5 s, so a single delete applies at once.
    remove(&mut test, 13..14);
    assert_eq!(test.settle().lease_checks, []);
    assert_eq!(test.hello(), (7, 1));
    test.advance(4 * SECOND);
    assert_eq!(test.hello(), (6, 0));
}

#[test]
fn deletes_published_before_a_mass_expiry_is_known_are_restored() {
    let (mut test, _) = burst(20, 9);
    assert_eq!(test.hello(), (11, 0));
    remove(&mut test, 9..12);
    assert_eq!(test.settle().lease_checks.len(), 1);
    assert_eq!(test.hello(), (11, 3), "unpublished removals wait for the reply");
    remove(&mut test, 12..20);
    assert_eq!(test.settle().lease_checks, [], "one check at a time");
    assert_eq!(test.hello(), (11, 11));
    assert_eq!(test.reply(1..=12, []).changed, ["hello".into()]);
    assert_eq!(test.hello(), (20, 20), "all are in doubt or expired");
}

#[test]
fn deregistrations_are_never_held_with_expired_keys() {
    // 12 deregistrations, and a lease of 25 keys that ended.
    let mut test = TestCatalog::new();
    test.apply(0, Change::ListBegin(ListKind::Routine));
    for (n, text) in (0..60).zip(hello_keys(0..60)) {
        test.put(&text, 0, if (12..37).contains(&n) { 1000 } else { n + 1 });
    }
    test.apply(0, Change::ListEnd { revision: 0 });
    remove(&mut test, 0..12);
    test.settle();
    assert_eq!(test.hello(), (48, 0));
    remove(&mut test, 12..37);
    let leases = test.settle().lease_checks.remove(0).1;
    assert_eq!(leases, (1..=12).chain([1000]).collect::<Vec<_>>());
    test.reply([1000], 1..=12);
    assert_eq!(test.hello(), (48, 25));
    // Meanwhile each deregistration is held until the registry replies, at most four times a
    // second, and prolongs no hold.
    for n in 37..56 {
        test.advance(SECOND / 4);
        remove(&mut test, n..n + 1);
        let lease = i64::from(n) + 1;
        assert_eq!(test.settle().lease_checks, [(id(0), vec![lease])]);
        test.reply([], [lease]);
        assert_eq!(test.hello(), (48 - (n as usize - 36), 25));
    }
    // The mass expiry ended 5 s after the last of its keys.
    test.advance(SECOND / 4);
    remove(&mut test, 56..57);
    assert_eq!(test.settle().lease_checks, []);
    assert_eq!(test.hello(), (28, 25));
    test.advance(7 * SECOND);
    assert_eq!(test.hello(), (3, 0));
}

#[test]
fn few_expired_keys_among_deregistrations_are_not_held() {
    for expired in [9, 10] {
        let (mut test, _) = burst(30, 25);
        assert_eq!(test.hello(), (30, 25));
        test.reply(1..=expired, expired + 1..=25);
        let held = if expired == 10 { 10 } else { 0 };
        assert_eq!(test.hello(), (5 + held, held), "{expired} expired");
    }
}

#[test]
fn expired_keys_count_until_they_are_five_seconds_old() {
    let (mut test, _) = burst(30, 12);
    test.reply(1..=9, 10..=12);
    assert_eq!(test.hello(), (18, 0), "9 expired");
    test.advance(4 * SECOND);
    remove(&mut test, 12..13);
    assert_eq!(test.settle().lease_checks.len(), 1, "10 may have expired");
    assert_eq!(test.hello(), (18, 1));
    test.reply([13], []);
    assert_eq!(test.hello(), (27, 10), "10 of 30 expired within 5 s");
}

#[test]
fn keys_stay_held_while_their_leases_are_unknown() {
    // No reply: asked again every 4 s, at most until the end of the grace.
    let (mut test, _) = burst(20, 12);
    for seconds in 1..12 {
        let checks = test.advance(SECOND).lease_checks.len();
        assert_eq!(checks, usize::from(seconds % 4 == 0), "after {seconds} s");
        assert_eq!(test.hello(), (20, 12));
    }
    assert_eq!(test.advance(SECOND).lease_checks, []);
    assert_eq!(test.hello(), (8, 0));
    // They belong to no burst after 5 s.
    let (mut test, _) = burst(20, 12);
    test.advance(6 * SECOND);
    remove(&mut test, 12..14);
    test.settle();
    assert_eq!(test.hello(), (18, 12));
    // A late reply still decides.
    test.reply([], 1..=12);
    assert_eq!(test.hello(), (6, 0));
    // After a reconnect, the registry is asked at once.
    let (mut test, _) = burst(20, 12);
    test.apply(0, Change::Connected(false));
    test.apply(0, Change::Connected(true));
    assert_eq!(test.settle().lease_checks, [], "too early");
    assert_eq!(test.advance(SECOND / 4).lease_checks.len(), 1);
}

#[test]
fn leases_that_a_reply_leaves_open_are_checked_again() {
    let (mut test, _) = burst(20, 20);
    assert_eq!(test.reply([], 1..=5).lease_checks, []);
    assert_eq!(test.hello(), (15, 15));
    assert_eq!(test.advance(SECOND / 4).lease_checks, [(id(0), (6..=20).collect())]);
    test.reply([20], 6..=15);
    assert_eq!(test.hello(), (0, 0), "few are in doubt");
}

#[test]
fn slow_replies_make_checks_rare() {
    let (mut test, _) = burst(20, 20);
    test.now += SECOND;
    test.reply([], 1..=5);
    let checks = |test: &mut TestCatalog| test.advance(SECOND).lease_checks.len();
    assert_eq!([0; 4].map(|_| checks(&mut test)), [0, 0, 1, 0]);
}

#[test]
fn a_reply_from_before_a_delete_says_nothing_about_it() {
    let (mut test, _) = burst(20, 20);
    let reply = |revision| LeaseReply { revision, gone: Vec::new(), alive: (1..=20).collect() };
    test.apply(0, Change::LeasesChecked(reply(7)));
    test.settle();
    assert_eq!(test.hello(), (13, 13));
    test.apply(0, Change::LeasesChecked(reply(20)));
    test.settle();
    assert_eq!(test.hello(), (0, 0));
}

#[test]
fn a_lease_check_ignores_keys_changed_since() {
    for gone in [true, false] {
        let (mut test, _) = burst(20, 20);
        assert_eq!(test.served("hello"), 20);
        let texts = hello_keys(0..3);
        test.put(&texts[0], 100, 50);
        test.put(&texts[1], 101, 51);
        test.delete(&texts[1], 102, Removal::Explicit);
        test.delete(&texts[2], 103, Removal::Explicit);
        let (expired, alive) = if gone { (20, 0) } else { (0, 20) };
        test.reply(1..=expired, 1..=alive);
        assert_eq!(test.hello(), if gone { (18, 17) } else { (1, 0) });
        test.advance(12 * SECOND);
        assert_eq!(test.hello(), (1, 0));
    }
}

#[test]
fn keys_with_living_leases_count_as_deregistered() {
    let (mut test, _) = burst(100, 40);
    test.reply([], 1..=40);
    assert_eq!(test.hello(), (60, 0));
    test.now += SECOND;
    remove(&mut test, 40..57);
    assert_eq!(test.settle().lease_checks, [], "less than 30 % of what was left");
    remove(&mut test, 57..58);
    assert_eq!(test.settle().lease_checks, [(id(0), (41..=58).collect())]);
    test.reply(41..=58, []);
    assert_eq!(test.hello(), (60, 18));
}

#[test]
fn unexpected_lease_replies_are_harmless() {
    let (mut test, _) = burst(100, 20);
    test.reply([], []);
    test.reply([1, 2, 77], [3, 99]);
    assert_eq!(test.hello(), (80, 0));
    let (mut test, _) = burst(100, 50);
    test.reply([77], [99]);
    assert_eq!(test.hello(), (100, 50), "the leases are still unknown");
    test.advance(12 * SECOND);
    test.reply(1..=50, []);
    assert_eq!(test.hello(), (50, 0), "the burst is over");
}

#[test]
fn leased_keys_removed_explicitly_are_never_in_doubt() {
    let (mut test, _) = burst(40, 20);
    test.reply(1..=20, []);
    assert_eq!(test.hello(), (40, 20));
    for text in hello_keys(20..30) {
        test.delete(&text, 50, Removal::Explicit);
    }
    // The registry need not know that a key without a lease cannot have expired.
    test.put(&hello_keys(30..31)[0], 60, 0);
    test.delete(&hello_keys(30..31)[0], 61, Removal::Unknown);
    assert_eq!(test.settle().lease_checks, []);
    assert_eq!(test.hello(), (29, 20));
}

#[test]
fn explicit_deletes_apply_at_once_in_any_number() {
    let mut test = TestCatalog::new();
    test.list(ListKind::Routine, &hello_keys(0..3000));
    for text in hello_keys(0..3000) {
        test.delete(&text, 1, Removal::Explicit);
    }
    let outcome = test.settle();
    assert_eq!((outcome.lease_checks, test.served("hello"), test.held_keys()), (vec![], 0, 0));
}

#[test]
fn without_grace_all_removals_apply_at_once() {
    let mut test = TestCatalog::with(|settings| settings.removal_graces = vec![Duration::ZERO], 1);
    test.list(ListKind::Routine, &hello_keys(0..100));
    remove(&mut test, 0..50);
    assert_eq!(test.settle().lease_checks, []);
    test.list(ListKind::Restored, &[]);
    assert_eq!((test.served("hello"), test.held_keys()), (0, 0));
}

#[test]
fn each_registry_has_its_own_removal_grace() {
    let mut test = TestCatalog::with(
        |settings| settings.removal_graces = vec![Duration::ZERO, 20 * SECOND],
        2,
    );
    let keys = |registry: usize| {
        (0..40).map(move |n| format!("/service/d/n/{}/latest/10.0.0.{n}:80", ["a", "b"][registry]))
    };
    for registry in [0, 1] {
        test.apply(registry, Change::ListBegin(ListKind::Routine));
        for (text, lease) in keys(registry.into()).zip(1..) {
            test.apply(registry, Change::Put(put(&text, 0, lease)));
        }
        test.apply(registry, Change::ListEnd { revision: 0 });
    }
    test.settle();
    let served = |test: &TestCatalog| [test.served("a"), test.served("b")];
    assert_eq!(served(&test), [40, 40]);
    // Leases expire in both registries; only the registry with a grace checks and holds.
    for registry in [0, 1] {
        for key in keys(registry.into()).take(20) {
            let removal = Removal::Unknown;
            test.apply(registry, Change::Delete { key: key.into(), revision: 0, removal });
        }
    }
    let lease_checks = test.settle().lease_checks;
    assert_eq!(lease_checks.iter().map(|(registry, _)| *registry).collect::<Vec<_>>(), [id(1)]);
    let gone = lease_checks[0].1.clone();
    test.apply(1, Change::LeasesChecked(LeaseReply { gone, ..LeaseReply::default() }));
    test.settle();
    assert_eq!(served(&test), [20, 40]);
    assert_eq!(
        test.catalog.registry_status(test.now).with_held_keys,
        RegistrySet::from_iter([id(1)])
    );
    // Both stores are wiped.
    test.now += SECOND;
    for registry in [0, 1] {
        test.apply(registry, Change::ListBegin(ListKind::Restored));
        test.apply(registry, Change::ListEnd { revision: 0 });
    }
    test.settle();
    assert_eq!((served(&test), test.held_keys()), ([0, 40], 40));
    test.advance(19 * SECOND);
    assert_eq!(
        (served(&test), test.held_keys()),
        ([0, 20], 20),
        "the grace of the expired leases is over"
    );
    test.advance(SECOND);
    assert_eq!((served(&test), test.held_keys()), ([0, 0], 0));
}

#[test]
fn an_endless_grace_does_not_overflow() {
    let mut test = TestCatalog::with(|settings| settings.removal_graces = vec![Duration::MAX], 1);
    test.list(ListKind::Routine, &hello_keys(0..10));
    test.list(ListKind::Restored, &[]);
    assert_eq!(test.held_keys(), 10);
}

#[test]
fn slow_registries_delay_sync_by_ten_seconds() {
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
fn registries_are_independent() {
    let mut test = TestCatalog::with(|_| {}, 2);
    test.list(ListKind::Routine, &hello_keys(0..2));
    test.apply(1, Change::ListBegin(ListKind::Routine));
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
    test.apply(0, Change::ListBegin(ListKind::Routine));
    test.put("/service/d/n/a/latest/10.0.0.1:80", 1, 0);
    test.apply(1, Change::Put(put("/service/d/n/b/latest/10.0.0.1:80", 1, 0)));
    assert_eq!(test.settle().changed, ["b".into()]);
    test.apply(0, Change::ListEnd { revision: 1 });
    assert_eq!(test.settle().changed, ["a".into()]);
}

#[test]
fn invalid_names_are_rejected_with_their_reason() {
    let mut test = TestCatalog::new();
    let long =
        format!("/service/d/n/{}/latest/10.0.0.1:80", ["a".repeat(63).as_str(); 4].join("."));
    for (text, reason) in [
        ("/service/d/n/he llo/latest/10.0.0.1:80", Reason::NAME_NOT_DNS),
        ("/service/d/n/_hello/latest/10.0.0.1:80", Reason::NAME_NOT_DNS),
        ("/service/d/n/svc/latest/10.0.0.1:80", Reason::NAME_RESERVED),
        ("/service/d/n/ns.svc/latest/10.0.0.1:80", Reason::NAME_RESERVED),
        (&*long, Reason::NAME_TOO_LONG),
    ] {
        test.put(text, 0, 0);
        assert_eq!(test.rejection_counts(), BTreeMap::from([(reason, 1)]), "{text}");
        let rejections = test.catalog.rejections();
        assert_eq!(
            (&*rejections.listed[0].key, rejections.listed[0].rejected.reason),
            (text, reason)
        );
        test.delete(text, 0, Removal::Explicit);
    }
    assert_eq!(test.rejection_counts(), BTreeMap::new());
    assert_eq!(test.settle().changed, []);
}

#[test]
fn a_host_in_a_served_zone_rejects_only_its_endpoint() {
    let mut test = TestCatalog::new();
    let text = "/service/d/n/hello/latest/\
        web.svc:80,10.0.0.1:80,web.example:80,a.b.internal:80,localhost:80";
    test.put(text, 0, 0);
    test.settle();
    let service = test.catalog.service("hello").unwrap();
    let served: Vec<String> =
        service.served().map(|instance| instance.endpoint.to_string()).collect();
    assert_eq!(served, ["10.0.0.1:80", "localhost:80", "web.example:80"]);
    let rejections = test.catalog.rejections();
    assert_eq!(rejections.counts, BTreeMap::from([(Reason::HOST_IN_ZONE, 2)]));
    let listed: Vec<(&str, bool)> = rejections
        .listed
        .iter()
        .map(|listed| (&*listed.rejected.found, listed.endpoint_only))
        .collect();
    assert_eq!(listed, [("web.svc:80", true), ("a.b.internal:80", true)]);
    test.put("/service/d/n/other/latest/web.svc:80", 0, 0);
    test.settle();
    assert_eq!(
        test.catalog.service("other").map(|service| service.instances().len()),
        Some(0),
        "known, but without an instance"
    );
    test.delete(text, 0, Removal::Explicit);
    assert_eq!(test.rejection_counts(), BTreeMap::from([(Reason::HOST_IN_ZONE, 1)]));
}

#[test]
fn invalid_content_removes_a_key_and_valid_content_its_rejection() {
    let mut test = TestCatalog::new();
    test.put(HELLO, 0, 0);
    test.settle();
    test.apply(0, Change::Put(invalid_put(HELLO)));
    assert_eq!(test.settle().changed, ["hello".into()]);
    assert_eq!((test.served("hello"), test.rejection_counts().len()), (0, 1));
    test.apply(0, Change::Put(invalid_put(HELLO)));
    assert_eq!(test.rejection_counts(), BTreeMap::from([(JUNK, 1)]), "a repeated key counts once");
    test.put(HELLO, 0, 0);
    test.settle();
    assert_eq!((test.served("hello"), test.rejection_counts().len()), (1, 0));
}

#[test]
fn a_key_rejection_may_become_an_endpoint_rejection() {
    let mut test = TestCatalog::new();
    let text = "/service/d/n/hello/latest/web.svc:80,10.0.0.1:80";
    test.apply(0, Change::Put(invalid_put(text)));
    test.put(text, 0, 0);
    assert_eq!(test.rejection_counts(), BTreeMap::from([(Reason::HOST_IN_ZONE, 1)]));
    test.apply(0, Change::Put(invalid_put(text)));
    assert_eq!(test.rejection_counts(), BTreeMap::from([(JUNK, 1)]));
    test.delete(text, 0, Removal::Explicit);
    assert_eq!(test.rejection_counts(), BTreeMap::new());
    assert_eq!(test.catalog.rejections().listed.len(), 0);
}

#[test]
fn a_list_removes_rejections_it_does_not_name() {
    let mut test = TestCatalog::new();
    test.apply(0, Change::Put(invalid_put("/a")));
    test.apply(0, Change::Put(invalid_put("/b")));
    test.apply(0, Change::ListBegin(ListKind::Routine));
    test.apply(0, Change::Put(invalid_put("/b")));
    assert_eq!(test.rejection_counts(), BTreeMap::from([(JUNK, 2)]));
    test.apply(0, Change::ListEnd { revision: 0 });
    assert_eq!(
        test.catalog.rejections().listed.iter().map(|listed| &*listed.key).collect::<Vec<_>>(),
        ["/b"]
    );
    assert_eq!(test.rejection_counts(), BTreeMap::from([(JUNK, 1)]));
}

#[test]
fn rejected_keys_take_bounded_memory() {
    let mut test = TestCatalog::new();
    for round in 0..2 {
        test.apply(0, Change::ListBegin(ListKind::Routine));
        for n in 0..5_000 {
            test.apply(0, Change::Put(invalid_put(&format!("/junk{n}"))));
        }
        test.apply(0, Change::ListEnd { revision: 0 });
        let rejections = test.catalog.rejections();
        assert_eq!(rejections.counts, BTreeMap::from([(JUNK, 5_000)]), "round {round}");
        assert_eq!((rejections.listed.len(), rejections.unlisted), (MAX_LISTED_REJECTIONS, 4_000));
    }
    test.apply(0, Change::ListBegin(ListKind::Routine));
    test.apply(0, Change::Put(invalid_put(&"x\n".repeat(500_000))));
    test.apply(0, Change::ListEnd { revision: 0 });
    let rejections = test.catalog.rejections();
    assert_eq!((rejections.unlisted, rejections.counts[&JUNK]), (1, 1), "the list was full");
    test.apply(0, Change::Put(invalid_put(&"x\n".repeat(500_000))));
    let key = Arc::clone(&test.catalog.rejections().listed[0].key);
    assert!(key.len() < 10_000 && key.starts_with("x\\nx"), "{} bytes", key.len());
}

#[test]
fn instances_beyond_the_limit_are_rejected_until_there_is_room() {
    let mut test = TestCatalog::with(|settings| settings.max_instances_per_service = 10, 1);
    test.list(ListKind::Routine, &hello_keys(0..8));
    test.put("/service/d/n/hello/latest/10.9.0.1:80,10.9.0.2:80,10.9.0.3:80", 0, 0);
    test.settle();
    assert_eq!(test.catalog.service("hello").unwrap().instances().len(), 8);
    assert_eq!(test.rejection_counts(), BTreeMap::from([(Reason::TOO_MANY_INSTANCES, 1)]));
    test.put("/service/d/n/hello/latest/10.9.0.4:80,10.9.0.5:80", 0, 0);
    test.put("/service/d/n/other/latest/10.9.0.4:80", 0, 0);
    test.settle();
    assert_eq!(test.catalog.service("hello").unwrap().instances().len(), 10, "up to the limit");
    assert!(test.catalog.service("other").is_some());
    test.delete(HELLO, 0, Removal::Explicit);
    test.put("/service/d/n/hello/latest/10.9.0.1:80,10.9.0.2:80,10.9.0.3:80", 0, 0);
    test.put("/service/d/n/hello/latest/10.9.0.9:80", 0, 0);
    test.settle();
    assert_eq!(test.catalog.service("hello").unwrap().instances().len(), 10, "room for one");
    // Keys without an endpoint count as one instance.
    test.put("/service/d/n/hello/latest/", 0, 0);
    assert_eq!(test.rejection_counts(), BTreeMap::from([(Reason::TOO_MANY_INSTANCES, 2)]));
}

#[test]
fn a_replaced_key_does_not_count_twice() {
    let mut test = TestCatalog::with(|settings| settings.max_instances_per_service = 3, 1);
    let text = "/service/d/n/hello/latest/10.0.0.1:80,10.0.0.2:80";
    for revision in 1..5 {
        test.put(text, revision, 0);
        test.settle();
        assert_eq!(test.served("hello"), 2);
    }
    assert!(test.rejection_counts().is_empty());
}

#[test]
fn keys_of_one_service_stop_at_the_instance_limit() {
    let mut test = TestCatalog::with(|settings| settings.max_instances_per_service = 100, 1);
    test.apply(0, Change::ListBegin(ListKind::Routine));
    for n in 0..100_000 {
        test.put(
            &format!("/service/d/n/hello/latest/10.0.0.1:{}", n % 65_535 + 1)
                .replace("/service", &format!("/s{n}")),
            n + 1,
            0,
        );
    }
    test.apply(0, Change::ListEnd { revision: 100_000 });
    test.settle();
    assert_eq!(test.catalog.service("hello").unwrap().keys().len(), 100);
    assert_eq!(test.rejection_counts(), BTreeMap::from([(Reason::TOO_MANY_INSTANCES, 99_900)]));
    assert_eq!(test.catalog.rejections().listed.len(), MAX_LISTED_REJECTIONS);
}

#[test]
fn keys_beyond_the_limit_are_rejected() {
    let mut test = TestCatalog::with(|settings| settings.max_keys = 3, 2);
    for text in hello_keys(0..5) {
        test.put(&text, 0, 0);
    }
    test.apply(1, Change::Put(put("/service/d/n/other/latest/10.0.0.1:80", 0, 0)));
    test.put(HELLO, 0, 9);
    test.settle();
    assert_eq!(test.served("hello"), 3);
    assert_eq!(test.served("other"), 1, "the limit is per registry");
    assert_eq!(test.rejection_counts(), BTreeMap::from([(Reason::TOO_MANY_KEYS, 2)]));
    test.delete(HELLO, 0, Removal::Explicit);
    test.put(&hello_keys(4..5)[0], 0, 0);
    test.settle();
    assert_eq!((test.served("hello"), test.rejection_counts()[&Reason::TOO_MANY_KEYS]), (3, 1));
}

#[test]
fn removed_keys_free_their_memory() {
    let mut test = TestCatalog::new();
    for round in 0..3 {
        test.apply(0, Change::ListBegin(ListKind::Routine));
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
        (test.catalog.shared_fields.len(), test.catalog.groups.len(), test.catalog.metadata.len()),
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

fn conflicts_of(keys: &[&str]) -> Vec<(String, ConflictKind, String, String)> {
    let mut test = TestCatalog::new();
    for text in keys {
        test.put(text, 0, 0);
    }
    test.settle();
    let catalog = &test.catalog;
    conflicts(catalog.services(), |base| catalog.service(base).cloned(), &zones(), "d", "n")
        .into_iter()
        .map(|conflict| (conflict.name, conflict.kind, conflict.winner, conflict.loser))
        .collect()
}

#[test]
fn shadowed_spellings_are_conflicts() {
    let keys = [
        "/s/d/n/hello/v1/10.0.0.1:80",
        "/s/d/n/hello/v2/10.0.0.1:80",
        "/s/d/n/Hello.SVC/v1/10.0.0.1:80",
        "/s/d/n/hello.internal/v1/10.0.0.1:80",
        "/s/d/m/hello/v1/10.0.0.1:80",
    ];
    let shadowed = |winner: &str, loser: &str| {
        ("hello".to_owned(), ConflictKind::Shadowed, winner.to_owned(), loser.to_owned())
    };
    assert_eq!(
        conflicts_of(&keys),
        [shadowed("hello.svc", "hello"), shadowed("hello.svc", "hello.internal")]
    );
}

#[test]
fn names_with_a_preferred_interpretation_are_conflicts() {
    let hidden = |name: &str, winner: &str, loser: &str| {
        (name.to_owned(), ConflictKind::Hidden, winner.to_owned(), loser.to_owned())
    };
    assert_eq!(
        conflicts_of(&["/s/d/n/hello/v1/10.0.0.1:80", "/s/d/prod/hello/v1/10.0.0.1:80"]),
        []
    );
    assert_eq!(
        conflicts_of(&["/s/d/prod/hello/v1/10.0.0.1:80", "/s/d/n/hello.prod/v2/10.0.0.2:80"]),
        [hidden("hello.prod", "service hello.prod", "service hello in namespace prod")]
    );
    assert_eq!(
        conflicts_of(&["/s/d/n/hello/v1.2/10.0.0.1:80", "/s/d/n/v1.2.hello/v2/10.0.0.2:80"]),
        [hidden("v1.2.hello", "service v1.2.hello", "version v1.2 of service hello")]
    );
    assert_eq!(
        conflicts_of(&["/s/d/prod/v1/x/10.0.0.1:80", "/s/d/n/prod/v1/10.0.0.2:80"]),
        [hidden("v1.prod", "service v1 in namespace prod", "version v1 of service prod")]
    );
    assert_eq!(
        conflicts_of(&["/s/d/n/hello/10-0-0-1/10.0.0.1:80"]),
        [hidden(
            "10-0-0-1.hello",
            "instance 10-0-0-1 of service hello",
            "version 10-0-0-1 of service hello"
        )]
    );
    assert_eq!(
        conflicts_of(&["/s/d/n/hello/v1/10.0.0.1:80", "/s/d/n/10-0-0-1.hello/v2/10.0.0.2:80"]),
        [hidden("10-0-0-1.hello", "service 10-0-0-1.hello", "instance 10-0-0-1 of service hello")]
    );
    assert_eq!(
        conflicts_of(&["/s/d/n/hello/a.b/10.0.0.1:80", "/s/d/n/b.hello/a/10.0.0.2:80"]),
        [hidden("a.b.hello", "version a of service b.hello", "version a.b of service hello")]
    );
    assert_eq!(
        conflicts_of(&["/s/d/has.dot/hello/v 1/10.0.0.1:80", "/s/e//hello/_v/10.0.0.1:80"]),
        [],
        "no query can have such names"
    );
}

#[test]
fn differences_found_by_routine_lists_are_counted() {
    let mut test = TestCatalog::with(|_| {}, 1);
    let differences = |test: &TestCatalog| test.catalog.stats().registries[0].differences;
    let list = |test: &mut TestCatalog, kind, keys: &[(&str, u64)]| {
        test.apply(0, Change::ListBegin(kind));
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
fn a_disconnected_registry_makes_only_its_data_stale() {
    let mut test = TestCatalog::with(|_| {}, 3);
    for registry in 0..3 {
        test.apply(registry, Change::ListBegin(ListKind::Routine));
        test.apply(registry, Change::ListEnd { revision: 0 });
    }
    let set = |ids: &[u8]| ids.iter().map(|index| id(*index)).collect::<RegistrySet>();
    let staleness = |test: &TestCatalog, registries: &[u8]| {
        test.catalog.registry_status(test.now).staleness_of(set(registries))
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
        [None, Some(Staleness::Disconnected), Some(Staleness::Disconnected), None]
    );
    // Another registry is wiped, and its keys are held.
    test.apply(2, Change::Put(put("/service/d/n/other/latest/10.0.0.9:80", 0, 0)));
    test.settle();
    test.apply(2, Change::ListBegin(ListKind::Restored));
    test.apply(2, Change::ListEnd { revision: 0 });
    test.settle();
    let status = test.catalog.registry_status(test.now);
    assert_eq!((status.with_held_keys, status.held_keys), (set(&[2]), 1));
    assert_eq!(
        [&[0][..], &[2], &[1, 2]].map(|registries| staleness(&test, registries)),
        [None, Some(Staleness::Held), Some(Staleness::Disconnected)]
    );
    test.apply(1, Change::Connected(true));
    assert_eq!(test.catalog.registry_status(test.now).staleness(), Some(Staleness::Held));
}

#[test]
fn keys_of_any_layout_share_their_common_fields() {
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
        assert_eq!(test.catalog.shared_fields.len(), 1, "{}", texts[0]);
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
fn host_names_are_looked_up_while_endpoints_have_them() {
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
