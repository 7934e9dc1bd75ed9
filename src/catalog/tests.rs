//! One test for each rule of the catalog, and the little world they share.

use std::collections::BTreeMap;

use super::key::{Around, Odd};
use super::*;
use crate::name::base_of;
use crate::service::{
    Addresses, Endpoint, Host, ListKind, Put, Reason, Registration, RegistrySet, Rejected, Removal, ServiceId,
};

pub(super) fn zones() -> Zones {
    Zones::new(&["svc".to_owned(), "internal".to_owned()]).unwrap()
}

/// The registration that a key of GoFrame's layout says, read in the simplest way.
pub(super) fn registration(text: &str) -> Registration {
    let segments: Vec<&str> = text.split('/').collect();
    let [_, _, deployment, namespace, name, version, endpoints] = segments[..] else { panic!("{text}") };
    let endpoints = endpoints.split(',').filter(|endpoint| !endpoint.is_empty()).map(|endpoint| {
        let (host, port) = endpoint.rsplit_once(':').unwrap();
        let host = host.parse::<std::net::IpAddr>().map_or_else(|_| Host::Name(host.into()), Host::from);
        Endpoint { host, port: port.parse().unwrap() }
    });
    let id = ServiceId { deployment: deployment.into(), namespace: namespace.into(), name: name.into(), version: version.into() };
    Registration { id, endpoints: endpoints.collect(), rejected: Vec::new(), metadata: Arc::default() }
}

/// The model's key of a text, whose name is as in the zones `svc` and `internal`.
pub(super) fn key(text: &str) -> Key {
    let Registration { id, endpoints, rejected, metadata } = registration(text);
    let base = base_of(&id.name, &zones()).unwrap();
    let around = Around::of(text, &base.text, &endpoints);
    let odd_text = around.is_none().then(|| text.into());
    let odd = (odd_text.is_some() || !rejected.is_empty()).then(|| Box::new(Odd { text: odd_text, rejected: rejected.into() }));
    let group = Arc::new(Group::of(&id));
    let frame = Frame { group, registry: RegistryId::FIRST, rank: base.rank, held: false, around: around.unwrap_or_default() };
    Key { revision: 0, lease: 0, endpoints: endpoints.into(), metadata, frame: Arc::new(frame), odd }
}

/// What came of a [`Catalog::settle`], the services that changed by their base.
#[derive(Debug, Default, PartialEq)]
struct Settled {
    changed: Vec<Box<str>>,
    doubts: Vec<(RegistryId, Vec<i64>)>,
    wake: Option<Instant>,
}

impl From<Outcome> for Settled {
    fn from(Outcome { changed, doubts, wake, .. }: Outcome) -> Self {
        Self { changed: changed.iter().map(|changed| changed.base().into()).collect(), doubts, wake }
    }
}

pub(super) fn put(text: &str, revision: u64, lease: i64) -> Put {
    Put { key: text.into(), revision, lease, content: Ok(registration(text)) }
}

/// A reason that only one layout of keys has.
pub(super) const JUNK: Reason = Reason::new("junk", "no key of this layout");

fn bad(text: &str) -> Put {
    Put { key: text.into(), revision: 0, lease: 0, content: Err(Rejected::new(text, JUNK)) }
}

/// The number of the registry at this place.
pub(super) fn id(place: u8) -> RegistryId {
    RegistryId::new(place.into()).unwrap()
}

/// A catalog and its time.
struct World {
    catalog: Catalog,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self::with(|_| {}, 1)
    }

    fn with(set: impl FnOnce(&mut Settings), registries: usize) -> Self {
        let mut settings = Settings::new(zones(), registries);
        set(&mut settings);
        Self { catalog: Catalog::new(settings), now: Instant::now() }
    }

    fn of(&mut self, registry: u8, change: Change) {
        self.catalog.apply(id(registry), change, self.now);
    }

    fn put(&mut self, text: &str, revision: u64, lease: i64) {
        self.of(0, Change::Put(put(text, revision, lease)));
    }

    fn delete(&mut self, text: &str, revision: u64, removal: Removal) {
        self.of(0, Change::Delete { key: text.into(), revision, removal });
    }

    /// A whole list of keys, whose lease is their place from 1.
    fn list(&mut self, kind: ListKind, keys: &[String]) -> Settled {
        self.of(0, Change::ListBegin(kind));
        for (text, lease) in keys.iter().zip(1..) {
            self.put(text, 0, lease);
        }
        self.of(0, Change::ListEnd { revision: 0 });
        self.settle()
    }

    fn settle(&mut self) -> Settled {
        self.catalog.settle(self.now).into()
    }

    fn pass(&mut self, time: Duration) -> Settled {
        self.now += time;
        self.settle()
    }

    fn served(&self, base: &str) -> usize {
        self.catalog.service(base).map_or(0, |service| service.served().count())
    }

    fn holding(&self) -> usize {
        self.catalog.condition(self.now).holding
    }

    fn counts(&mut self) -> BTreeMap<Reason, u64> {
        self.catalog.rejections().counts.clone()
    }
}

/// Keys of the service `hello` with one endpoint each.
fn hellos(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("/service/d/n/hello.svc/latest/10.0.{}.{}:80", n >> 8, n & 255)).collect()
}

const SECOND: Duration = Duration::from_secs(1);
const HELLO: &str = "/service/d/n/hello.svc/latest/10.0.0.0:80";

#[test]
fn a_put_makes_a_service_and_a_delete_ends_it() {
    let mut world = World::new();
    world.put(HELLO, 1, 0);
    world.put("/service/d/n/HELLO/latest/10.0.0.1:80", 2, 0);
    assert_eq!(world.settle().changed, ["hello".into()]);
    assert_eq!(world.catalog.service("hello").unwrap().keys().len(), 2, "keys that differ by case are one service");
    assert_eq!(world.served("hello"), 1, "the bare spelling is shadowed");
    world.delete(HELLO, 3, Removal::Explicit);
    assert_eq!(world.settle().changed, ["hello".into()]);
    assert_eq!(world.served("hello"), 1);
    world.delete("/service/d/n/HELLO/latest/10.0.0.1:80", 4, Removal::Explicit);
    assert_eq!(world.settle().changed, ["hello".into()]);
    assert!(world.catalog.service("hello").is_none());
    assert_eq!(world.catalog.services().count(), 0);
    assert_eq!(world.settle(), Settled::default());
}

#[test]
fn group_texts_are_lower_case_and_shared() {
    let mut world = World::new();
    world.put("/service/Dev/NS/a/V1/10.0.0.1:80", 0, 0);
    world.put("/service/dev/ns/b/v1/10.0.0.1:80", 0, 0);
    world.settle();
    let group = |base: &str| Arc::clone(world.catalog.service(base).unwrap().keys()[0].group());
    assert!(Arc::ptr_eq(&group("a"), &group("b")));
    assert_eq!(*group("a"), Group { deployment: "dev".into(), namespace: "ns".into(), version: "v1".into() });
    assert_eq!(world.catalog.service("a").unwrap().keys()[0].metadata.len(), 0);
}

#[test]
fn other_services_are_not_touched() {
    let mut world = World::new();
    for n in 0..100 {
        world.put(&format!("/service/d/n/s{n}/latest/10.0.0.1:80"), n + 1, 0);
    }
    world.settle();
    let before: Vec<_> = (0..100).map(|n| Arc::clone(world.catalog.service(&format!("s{n}")).unwrap())).collect();
    world.put("/service/d/n/s7/latest/10.0.0.2:80", 200, 0);
    world.put("/service/d/n/s7/latest/10.0.0.3:80", 201, 0);
    assert_eq!(world.settle().changed, ["s7".into()]);
    for (n, before) in before.iter().enumerate() {
        let same = Arc::ptr_eq(before, world.catalog.service(&format!("s{n}")).unwrap());
        assert_eq!(same, n != 7, "s{n}");
    }
}

#[test]
fn the_same_again_changes_nothing() {
    let mut world = World::new();
    world.list(ListKind::Routine, &hellos(0..3));
    let before = Arc::clone(world.catalog.service("hello").unwrap());
    assert_eq!(world.list(ListKind::Routine, &hellos(0..3)).changed, []);
    world.put(HELLO, 0, 1);
    assert_eq!(world.settle().changed, []);
    assert!(Arc::ptr_eq(&before, world.catalog.service("hello").unwrap()));
    // A new lease shows in the model.
    world.put(HELLO, 7, 99);
    world.settle();
    let keys = world.catalog.service("hello").unwrap().keys();
    assert!(keys.iter().any(|key| key.revision == 7 && key.lease == 99));
    assert_eq!(keys.len(), 3);
}

#[test]
fn older_events_of_one_epoch_are_ignored() {
    let mut world = World::new();
    let versions = |world: &World| world.catalog.service("hello").map_or(0, |service| service.keys()[0].revision);
    world.put(HELLO, 10, 1);
    world.put(HELLO, 9, 2);
    world.settle();
    assert_eq!(versions(&world), 10);
    world.delete(HELLO, 8, Removal::Explicit);
    world.settle();
    assert_eq!(versions(&world), 10, "an older delete");
    world.delete(HELLO, 11, Removal::Explicit);
    world.put(HELLO, 10, 1);
    world.settle();
    assert_eq!(world.served("hello"), 0, "an older put replayed after the delete");
    world.put(HELLO, 12, 1);
    world.delete(HELLO, 11, Removal::Explicit);
    world.settle();
    assert_eq!(versions(&world), 12, "the delete replayed after the next put");
    // After a list of a restored store every revision is lower.
    world.of(0, Change::ListBegin(ListKind::Restored));
    world.put(HELLO, 3, 1);
    world.of(0, Change::ListEnd { revision: 4 });
    world.put(HELLO, 5, 1);
    world.settle();
    assert_eq!(versions(&world), 5);
}

#[test]
fn an_older_good_content_does_not_replace_a_bad_one() {
    let mut world = World::new();
    world.of(0, Change::Put(Put { revision: 10, ..bad(HELLO) }));
    world.put(HELLO, 9, 0);
    world.settle();
    assert_eq!(world.served("hello"), 0);
    world.put(HELLO, 11, 0);
    world.settle();
    assert_eq!(world.served("hello"), 1);
    assert!(world.counts().is_empty());
}

#[test]
fn a_list_is_seen_when_it_is_complete() {
    let mut world = World::new();
    world.of(0, Change::ListBegin(ListKind::Routine));
    world.put(HELLO, 1, 0);
    assert_eq!(world.settle().changed, []);
    assert!(world.catalog.service("hello").is_none());
    assert!(!world.catalog.condition(world.now).synced);
    world.of(0, Change::ListEnd { revision: 1 });
    assert_eq!(world.settle().changed, ["hello".into()]);
    assert!(world.catalog.condition(world.now).synced);
}

#[test]
fn a_routine_list_sweeps_what_it_does_not_name() {
    let mut world = World::new();
    world.list(ListKind::Routine, &hellos(0..100));
    assert_eq!(world.list(ListKind::Routine, &hellos(99..101)).changed, ["hello".into()]);
    assert_eq!(world.served("hello"), 2);
    assert_eq!(world.holding(), 0);
    world.list(ListKind::Routine, &[]);
    assert!(world.catalog.service("hello").is_none());
}

#[test]
fn an_abandoned_list_sweeps_nothing() {
    let mut world = World::with(|settings| settings.removal_graces = vec![Duration::ZERO], 1);
    world.list(ListKind::Routine, &hellos(0..20));
    world.of(0, Change::ListBegin(ListKind::Reconnect));
    world.put(HELLO, 0, 1);
    world.of(0, Change::Connected(false));
    world.settle();
    assert_eq!(world.served("hello"), 20);
    assert!(world.catalog.condition(world.now).away.contains(id(0)));
    world.of(0, Change::Connected(true));
    world.list(ListKind::Reconnect, &hellos(0..19));
    assert_eq!(world.served("hello"), 19);
    assert!(world.catalog.condition(world.now).away.is_empty());
    // An end without a beginning is no list.
    world.of(0, Change::ListEnd { revision: 0 });
    assert_eq!(world.settle().changed, []);
}

#[test]
fn a_restored_store_removes_nothing_at_once() {
    let mut world = World::new();
    world.list(ListKind::Routine, &hellos(0..100));
    world.list(ListKind::Restored, &hellos(1..100));
    assert_eq!((world.served("hello"), world.holding()), (100, 1));
    let held: Vec<bool> = world.catalog.service("hello").unwrap().keys().iter().map(|key| key.held()).collect();
    assert_eq!(held.iter().filter(|held| **held).count(), 1);
    // A check of the store, which never broke since, does not end the hold.
    let wake = world.list(ListKind::Routine, &hellos(1..100)).wake.unwrap();
    assert_eq!(wake, world.now + 12 * SECOND);
    world.pass(Duration::from_millis(11_999));
    assert_eq!(world.served("hello"), 100);
    let outcome = world.pass(Duration::from_millis(1));
    assert_eq!((outcome.changed, outcome.wake), (vec!["hello".into()], None));
    assert_eq!((world.served("hello"), world.holding()), (99, 0));
}

#[test]
fn an_abandoned_list_of_a_restored_store_is_not_forgotten() {
    let mut world = World::new();
    world.list(ListKind::Routine, &hellos(0..100));
    world.of(0, Change::ListBegin(ListKind::Restored));
    world.list(ListKind::Routine, &hellos(1..100));
    assert_eq!(world.holding(), 1);
}

#[test]
fn a_reconnect_that_takes_much_is_held_and_little_is_not() {
    for (before, after, held) in [(100, 70, 30), (100, 71, 0), (10, 0, 10), (3, 0, 3), (12, 3, 0), (20, 10, 10), (1000, 991, 0)] {
        let mut world = World::new();
        world.list(ListKind::Routine, &hellos(0..before));
        world.list(ListKind::Reconnect, &hellos(0..after));
        assert_eq!(world.holding(), held, "{before} → {after}");
        assert_eq!(world.served("hello"), after as usize + held);
    }
}

#[test]
fn shares_count_instances_not_keys() {
    let mut world = World::new();
    let large = format!("/service/d/n/large/latest/{}", (0..30).map(|n| format!("10.1.0.{n}:80")).collect::<Vec<_>>().join(","));
    let mut keys = hellos(0..40);
    keys.push(large);
    world.list(ListKind::Routine, &keys);
    world.list(ListKind::Reconnect, &keys[..40]);
    assert_eq!(world.holding(), 1);
    assert_eq!(world.served("large"), 30);
}

#[test]
fn a_key_put_again_ends_its_hold() {
    let mut world = World::new();
    world.list(ListKind::Routine, &hellos(0..20));
    world.list(ListKind::Restored, &[]);
    assert_eq!(world.holding(), 20);
    world.put(HELLO, 1, 7);
    world.settle();
    assert_eq!((world.served("hello"), world.holding()), (20, 19));
    // Gone again on purpose, a moment later: the old hold does not bring it back, nor take a later one.
    world.delete(HELLO, 2, Removal::Explicit);
    world.put(HELLO, 3, 8);
    world.pass(12 * SECOND);
    assert_eq!((world.served("hello"), world.holding()), (1, 0));
    world.delete(&hellos(3..4)[0], 9, Removal::Explicit);
    assert_eq!(world.settle().changed, []);
}

#[test]
fn an_explicit_delete_ends_a_hold() {
    let mut world = World::new();
    world.list(ListKind::Routine, &hellos(0..20));
    world.list(ListKind::Restored, &[]);
    world.delete(HELLO, 2, Removal::Lease(1));
    world.settle();
    assert_eq!(world.holding(), 20, "that the lease is gone is no news");
    world.delete(HELLO, 3, Removal::Explicit);
    world.settle();
    assert_eq!((world.served("hello"), world.holding()), (19, 19));
}

/// A world of so many hellos on their leases, of which the first so many go with their leases at once.
fn storm(keys: u32, gone: u32) -> (World, Settled) {
    let mut world = World::new();
    world.list(ListKind::Routine, &hellos(0..keys));
    expire(&mut world, 0..gone);
    let outcome = world.settle();
    (world, outcome)
}

fn expire(world: &mut World, range: std::ops::Range<u32>) {
    for n in range {
        world.delete(&hellos(n..n + 1)[0], u64::from(n) + 1, Removal::Lease(i64::from(n) + 1));
    }
}

#[test]
fn many_leases_at_once_are_a_doubt() {
    for (keys, gone, doubtful) in
        [(20, 9, false), (20, 10, true), (100, 29, false), (100, 30, true), (7000, 1999, false), (7000, 2000, true)]
    {
        let (world, outcome) = storm(keys, gone);
        assert_eq!(outcome.doubts.len(), usize::from(doubtful), "{gone} of {keys}");
        let left = if doubtful { keys } else { keys - gone };
        assert_eq!(world.served("hello"), left as usize, "deletes apply at once, unless they are in doubt at once");
        if let [(registry, leases)] = &outcome.doubts[..] {
            assert_eq!(*registry, id(0));
            assert!((10..=32).contains(&leases.len()), "{leases:?}");
            assert!(leases.iter().all(|lease| (1..=i64::from(gone)).contains(lease)));
        }
    }
}

#[test]
fn deletes_more_than_five_seconds_apart_are_no_storm() {
    let (mut world, _) = storm(20, 9);
    world.pass(5 * SECOND);
    expire(&mut world, 9..15);
    assert_eq!(world.settle().doubts, []);
    world.pass(4 * SECOND);
    expire(&mut world, 15..19);
    assert_eq!(world.settle().doubts.len(), 1, "10 of 11 within 5 s");
}

#[test]
fn expired_leases_bring_their_keys_back_until_the_grace_ends() {
    let (mut world, outcome) = storm(20, 12);
    let leases = outcome.doubts[0].1.clone();
    world.now += SECOND;
    world.of(0, Change::LeasesGone(leases[..1].to_vec()));
    assert_eq!(world.settle().changed, ["hello".into()]);
    assert_eq!((world.served("hello"), world.holding()), (20, 12));
    // Later deletes of the storm never leave the answers.
    world.now += 3 * SECOND;
    expire(&mut world, 12..13);
    world.settle();
    assert_eq!((world.served("hello"), world.holding()), (20, 13));
    world.pass(8 * SECOND);
    assert_eq!((world.served("hello"), world.holding()), (8, 1));
    // 5 s have passed without one: a single delete is believed.
    expire(&mut world, 13..14);
    world.settle();
    assert_eq!((world.served("hello"), world.holding()), (7, 1));
    world.pass(4 * SECOND);
    assert_eq!((world.served("hello"), world.holding()), (6, 0));
}

#[test]
fn what_a_doubt_is_about_is_served_until_the_answer_comes() {
    let doubtful = || {
        let (mut world, _) = storm(20, 9);
        assert_eq!((world.served("hello"), world.holding()), (11, 0));
        expire(&mut world, 9..12);
        let leases = world.settle().doubts.remove(0).1;
        assert_eq!((world.served("hello"), world.holding()), (11, 3), "what was seen to be missing waits for the answer");
        expire(&mut world, 12..20);
        world.settle();
        assert_eq!((world.served("hello"), world.holding()), (11, 11));
        (world, leases)
    };
    let (mut world, leases) = doubtful();
    world.of(0, Change::LeasesGone(leases));
    world.settle();
    assert_eq!((world.served("hello"), world.holding()), (20, 20));
    let (mut world, _) = doubtful();
    world.of(0, Change::LeasesGone(vec![]));
    world.settle();
    assert_eq!((world.served("hello"), world.holding()), (0, 0));
    // No answer for 2 s: gone, and back should it still come.
    let (mut world, leases) = doubtful();
    let wake = world.settle().wake;
    assert_eq!(wake, Some(world.now + 2 * SECOND));
    assert_eq!(world.pass(2 * SECOND).changed, ["hello".into()]);
    assert_eq!((world.served("hello"), world.holding()), (0, 0));
    world.of(0, Change::LeasesGone(leases));
    world.settle();
    assert_eq!((world.served("hello"), world.holding()), (20, 20));
    world.pass(10 * SECOND);
    assert_eq!((world.served("hello"), world.holding()), (0, 0));
}

#[test]
fn a_key_put_again_or_deleted_in_doubt_is_not_touched_by_the_answer() {
    for gone in [true, false] {
        let (mut world, outcome) = storm(20, 20);
        assert_eq!(world.served("hello"), 20);
        let texts = hellos(0..2);
        world.put(&texts[0], 100, 50);
        world.delete(&texts[1], 102, Removal::Explicit);
        world.of(0, Change::LeasesGone(if gone { outcome.doubts[0].1.clone() } else { Vec::new() }));
        world.settle();
        assert_eq!((world.served("hello"), world.holding()), if gone { (19, 18) } else { (1, 0) });
    }
}

#[test]
fn leases_that_live_mean_that_it_was_on_purpose() {
    let (mut world, _) = storm(100, 40);
    world.of(0, Change::LeasesGone(vec![]));
    world.settle();
    assert_eq!((world.served("hello"), world.holding()), (60, 0));
    expire(&mut world, 40..57);
    assert_eq!(world.settle().doubts, [], "fewer than 30 % of what was left");
    expire(&mut world, 57..58);
    let outcome = world.settle();
    assert_eq!(outcome.doubts.len(), 1, "30 % of what was left");
    world.of(0, Change::LeasesGone(outcome.doubts[0].1.clone()));
    world.settle();
    assert_eq!((world.served("hello"), world.holding()), (60, 18));
}

#[test]
fn answers_that_nobody_asked_for_are_ignored() {
    let (mut world, _) = storm(100, 20);
    world.of(0, Change::LeasesGone(vec![1, 2]));
    world.of(0, Change::LeasesGone(vec![]));
    world.settle();
    assert_eq!(world.holding(), 0);
    let (mut world, _) = storm(100, 50);
    world.of(0, Change::LeasesGone(vec![77]));
    world.settle();
    assert_eq!(world.holding(), 50, "not a lease asked about: still in doubt");
    world.pass(5 * SECOND);
    world.of(0, Change::LeasesGone(vec![1]));
    world.settle();
    assert_eq!((world.served("hello"), world.holding()), (50, 0), "the storm is over");
}

#[test]
fn an_unanswered_doubt_is_asked_again_while_the_storm_lasts() {
    let mut world = World::new();
    world.list(ListKind::Routine, &hellos(0..100));
    let mut doubts = 0;
    for second in 0..8 {
        expire(&mut world, second * 12..(second + 1) * 12);
        doubts += world.settle().doubts.len();
        world.now += SECOND;
    }
    assert_eq!(doubts, 2, "after 3 s, and 5 s later");
}

#[test]
fn a_key_put_again_is_not_brought_back() {
    let (mut world, outcome) = storm(20, 20);
    let texts = hellos(0..2);
    world.put(&texts[0], 100, 50);
    world.put(&texts[1], 101, 51);
    world.delete(&texts[1], 102, Removal::Explicit);
    world.of(0, Change::LeasesGone(outcome.doubts[0].1.clone()));
    world.settle();
    assert_eq!((world.served("hello"), world.holding()), (19, 18));
    world.pass(12 * SECOND);
    assert_eq!((world.served("hello"), world.holding()), (1, 0));
}

#[test]
fn explicit_deletes_are_believed_at_any_number() {
    let mut world = World::new();
    world.list(ListKind::Routine, &hellos(0..3000));
    for text in hellos(0..3000) {
        world.delete(&text, 1, Removal::Explicit);
    }
    let outcome = world.settle();
    assert_eq!((outcome.doubts, world.served("hello"), world.holding()), (vec![], 0, 0));
}

#[test]
fn without_grace_everything_is_believed() {
    let mut world = World::with(|settings| settings.removal_graces = vec![Duration::ZERO], 1);
    world.list(ListKind::Routine, &hellos(0..100));
    expire(&mut world, 0..50);
    assert_eq!(world.settle().doubts, []);
    world.list(ListKind::Restored, &[]);
    assert_eq!((world.served("hello"), world.holding()), (0, 0));
}

#[test]
fn each_registry_has_its_own_removal_grace() {
    let mut world = World::with(|settings| settings.removal_graces = vec![Duration::ZERO, 20 * SECOND], 2);
    let keys = |registry: usize| (0..40).map(move |n| format!("/service/d/n/{}/latest/10.0.0.{n}:80", ["a", "b"][registry]));
    for registry in [0, 1] {
        world.of(registry, Change::ListBegin(ListKind::Routine));
        for (text, lease) in keys(registry.into()).zip(1..) {
            world.of(registry, Change::Put(put(&text, 0, lease)));
        }
        world.of(registry, Change::ListEnd { revision: 0 });
    }
    world.settle();
    let served = |world: &World| [world.served("a"), world.served("b")];
    assert_eq!(served(&world), [40, 40]);
    // Leases expire in both: one registry is believed, the other is asked, and holds.
    for registry in [0, 1] {
        for (key, lease) in keys(registry.into()).zip(1..=20) {
            world.of(registry, Change::Delete { key: key.into(), revision: 0, removal: Removal::Lease(lease) });
        }
    }
    let doubts = world.settle().doubts;
    assert_eq!(doubts.iter().map(|(registry, _)| *registry).collect::<Vec<_>>(), [id(1)]);
    world.of(1, Change::LeasesGone(doubts[0].1.clone()));
    world.settle();
    assert_eq!(served(&world), [20, 40]);
    assert_eq!(world.catalog.condition(world.now).held, RegistrySet::from_iter([id(1)]));
    // Both stores are wiped.
    world.now += SECOND;
    for registry in [0, 1] {
        world.of(registry, Change::ListBegin(ListKind::Restored));
        world.of(registry, Change::ListEnd { revision: 0 });
    }
    world.settle();
    assert_eq!((served(&world), world.holding()), ([0, 40], 40));
    world.pass(19 * SECOND);
    assert_eq!((served(&world), world.holding()), ([0, 20], 20), "the expired leases' time is over");
    world.pass(SECOND);
    assert_eq!((served(&world), world.holding()), ([0, 0], 0));
}

#[test]
fn an_endless_grace_does_not_overflow() {
    let mut world = World::with(|settings| settings.removal_graces = vec![Duration::MAX], 1);
    world.list(ListKind::Routine, &hellos(0..10));
    world.list(ListKind::Restored, &[]);
    assert_eq!(world.holding(), 10);
}

#[test]
fn several_registries_are_waited_for_ten_seconds() {
    let mut world = World::with(|_| {}, 2);
    world.settle();
    world.now += 3 * SECOND;
    let outcome = world.list(ListKind::Routine, &hellos(0..1));
    assert!(!world.catalog.condition(world.now).synced);
    assert_eq!(outcome.wake, Some(world.now + 7 * SECOND));
    world.pass(7 * SECOND);
    assert!(world.catalog.condition(world.now).synced);
    let mut world = World::with(|_| {}, 2);
    world.settle();
    world.pass(60 * SECOND);
    assert!(!world.catalog.condition(world.now).synced, "nobody has completed a list");
}

#[test]
fn registries_do_not_disturb_each_other() {
    let mut world = World::with(|_| {}, 2);
    world.list(ListKind::Routine, &hellos(0..2));
    world.of(1, Change::ListBegin(ListKind::Routine));
    world.of(1, Change::Put(put(HELLO, 0, 0)));
    world.of(1, Change::ListEnd { revision: 0 });
    world.settle();
    assert_eq!(world.catalog.service("hello").unwrap().keys().len(), 3);
    assert_eq!(world.served("hello"), 2, "equal endpoints once");
    world.list(ListKind::Routine, &[]);
    assert_eq!(world.served("hello"), 1);
    // A registry that nobody configured.
    world.of(9, Change::Put(put(HELLO, 0, 0)));
    assert_eq!(world.settle().changed, []);
}

#[test]
fn a_running_list_does_not_hold_up_another_registry() {
    let mut world = World::with(|_| {}, 2);
    world.of(0, Change::ListBegin(ListKind::Routine));
    world.put("/service/d/n/a/latest/10.0.0.1:80", 1, 0);
    world.of(1, Change::Put(put("/service/d/n/b/latest/10.0.0.1:80", 1, 0)));
    assert_eq!(world.settle().changed, ["b".into()]);
    world.of(0, Change::ListEnd { revision: 1 });
    assert_eq!(world.settle().changed, ["a".into()]);
}

#[test]
fn names_that_cannot_be_served_are_rejected_with_their_reason() {
    let mut world = World::new();
    let long = format!("/service/d/n/{}/latest/10.0.0.1:80", ["a".repeat(63).as_str(); 4].join("."));
    for (text, reason) in [
        ("/service/d/n/he llo/latest/10.0.0.1:80", Reason::NAME_NOT_DNS),
        ("/service/d/n/_hello/latest/10.0.0.1:80", Reason::NAME_NOT_DNS),
        ("/service/d/n/svc/latest/10.0.0.1:80", Reason::NAME_RESERVED),
        ("/service/d/n/ns.svc/latest/10.0.0.1:80", Reason::NAME_RESERVED),
        (&*long, Reason::NAME_TOO_LONG),
    ] {
        world.put(text, 0, 0);
        assert_eq!(world.counts(), BTreeMap::from([(reason, 1)]), "{text}");
        let rejections = world.catalog.rejections();
        assert_eq!((&*rejections.listed[0].key, rejections.listed[0].rejected.reason), (text, reason));
        world.delete(text, 0, Removal::Explicit);
    }
    assert_eq!(world.counts(), BTreeMap::new());
    assert_eq!(world.settle().changed, []);
}

#[test]
fn a_host_in_a_served_zone_is_rejected_and_its_neighbours_are_not() {
    let mut world = World::new();
    let text = "/service/d/n/hello/latest/web.svc:80,10.0.0.1:80,web.example:80,a.b.internal:80,localhost:80";
    world.put(text, 0, 0);
    world.settle();
    let service = world.catalog.service("hello").unwrap();
    let served: Vec<String> = service.served().map(|instance| instance.endpoint.to_string()).collect();
    assert_eq!(served, ["10.0.0.1:80", "localhost:80", "web.example:80"]);
    let rejections = world.catalog.rejections();
    assert_eq!(rejections.counts, BTreeMap::from([(Reason::HOST_IN_ZONE, 2)]));
    let listed: Vec<(&str, bool)> = rejections.listed.iter().map(|listed| (&*listed.rejected.found, listed.endpoint_only)).collect();
    assert_eq!(listed, [("web.svc:80", true), ("a.b.internal:80", true)]);
    world.put("/service/d/n/other/latest/web.svc:80", 0, 0);
    world.settle();
    assert_eq!(world.catalog.service("other").map(|service| service.instances().len()), Some(0), "known, without an instance");
    world.delete(text, 0, Removal::Explicit);
    assert_eq!(world.counts(), BTreeMap::from([(Reason::HOST_IN_ZONE, 1)]));
}

#[test]
fn a_bad_content_ends_a_key_and_a_good_one_ends_the_rejection() {
    let mut world = World::new();
    world.put(HELLO, 0, 0);
    world.settle();
    world.of(0, Change::Put(bad(HELLO)));
    assert_eq!(world.settle().changed, ["hello".into()]);
    assert_eq!((world.served("hello"), world.counts().len()), (0, 1));
    world.of(0, Change::Put(bad(HELLO)));
    assert_eq!(world.counts(), BTreeMap::from([(JUNK, 1)]), "the same key again counts once");
    world.put(HELLO, 0, 0);
    world.settle();
    assert_eq!((world.served("hello"), world.counts().len()), (1, 0));
}

#[test]
fn a_rejected_key_that_becomes_good_but_for_an_endpoint_counts_as_that() {
    let mut world = World::new();
    let text = "/service/d/n/hello/latest/web.svc:80,10.0.0.1:80";
    world.of(0, Change::Put(bad(text)));
    world.put(text, 0, 0);
    assert_eq!(world.counts(), BTreeMap::from([(Reason::HOST_IN_ZONE, 1)]));
    world.of(0, Change::Put(bad(text)));
    assert_eq!(world.counts(), BTreeMap::from([(JUNK, 1)]));
    world.delete(text, 0, Removal::Explicit);
    assert_eq!(world.counts(), BTreeMap::new());
    assert_eq!(world.catalog.rejections().listed.len(), 0);
}

#[test]
fn a_list_forgets_rejections_that_it_does_not_name() {
    let mut world = World::new();
    world.of(0, Change::Put(bad("/a")));
    world.of(0, Change::Put(bad("/b")));
    world.of(0, Change::ListBegin(ListKind::Routine));
    world.of(0, Change::Put(bad("/b")));
    assert_eq!(world.counts(), BTreeMap::from([(JUNK, 2)]));
    world.of(0, Change::ListEnd { revision: 0 });
    assert_eq!(world.catalog.rejections().listed.iter().map(|listed| &*listed.key).collect::<Vec<_>>(), ["/b"]);
    assert_eq!(world.counts(), BTreeMap::from([(JUNK, 1)]));
}

#[test]
fn rejected_keys_of_any_number_and_size_take_bounded_memory() {
    let mut world = World::new();
    for round in 0..2 {
        world.of(0, Change::ListBegin(ListKind::Routine));
        for n in 0..5_000 {
            world.of(0, Change::Put(bad(&format!("/junk{n}"))));
        }
        world.of(0, Change::ListEnd { revision: 0 });
        let rejections = world.catalog.rejections();
        assert_eq!(rejections.counts, BTreeMap::from([(JUNK, 5_000)]), "round {round}");
        assert_eq!((rejections.listed.len(), rejections.unlisted), (LISTED, 4_000));
    }
    world.of(0, Change::ListBegin(ListKind::Routine));
    world.of(0, Change::Put(bad(&"x\n".repeat(500_000))));
    world.of(0, Change::ListEnd { revision: 0 });
    let rejections = world.catalog.rejections();
    assert_eq!((rejections.unlisted, rejections.counts[&JUNK]), (1, 1), "there was no room during the list");
    world.of(0, Change::Put(bad(&"x\n".repeat(500_000))));
    let key = Arc::clone(&world.catalog.rejections().listed[0].key);
    assert!(key.len() < 10_000 && key.starts_with("x\\nx"), "{} octets", key.len());
}

#[test]
fn the_surplus_of_instances_is_rejected_and_may_come_later() {
    let mut world = World::with(|settings| settings.max_instances_per_service = 10, 1);
    world.list(ListKind::Routine, &hellos(0..8));
    world.put("/service/d/n/hello/latest/10.9.0.1:80,10.9.0.2:80,10.9.0.3:80", 0, 0);
    world.settle();
    assert_eq!(world.catalog.service("hello").unwrap().instances().len(), 8);
    assert_eq!(world.counts(), BTreeMap::from([(Reason::TOO_MANY_INSTANCES, 1)]));
    world.put("/service/d/n/hello/latest/10.9.0.4:80,10.9.0.5:80", 0, 0);
    world.put("/service/d/n/other/latest/10.9.0.4:80", 0, 0);
    world.settle();
    assert_eq!(world.catalog.service("hello").unwrap().instances().len(), 10, "up to the cap");
    assert!(world.catalog.service("other").is_some());
    world.delete(HELLO, 0, Removal::Explicit);
    world.put("/service/d/n/hello/latest/10.9.0.1:80,10.9.0.2:80,10.9.0.3:80", 0, 0);
    world.put("/service/d/n/hello/latest/10.9.0.9:80", 0, 0);
    world.settle();
    assert_eq!(world.catalog.service("hello").unwrap().instances().len(), 10, "room for one");
    // Keys without an endpoint count too.
    world.put("/service/d/n/hello/latest/", 0, 0);
    assert_eq!(world.counts(), BTreeMap::from([(Reason::TOO_MANY_INSTANCES, 2)]));
}

#[test]
fn a_replaced_key_does_not_count_twice() {
    let mut world = World::with(|settings| settings.max_instances_per_service = 3, 1);
    let text = "/service/d/n/hello/latest/10.0.0.1:80,10.0.0.2:80";
    for revision in 1..5 {
        world.put(text, revision, 0);
        world.settle();
        assert_eq!(world.served("hello"), 2);
    }
    assert!(world.counts().is_empty());
}

#[test]
fn a_million_keys_of_one_service_end_at_the_cap() {
    let mut world = World::with(|settings| settings.max_instances_per_service = 100, 1);
    world.of(0, Change::ListBegin(ListKind::Routine));
    for n in 0..100_000 {
        world.put(&format!("/service/d/n/hello/latest/10.0.0.1:{}", n % 65_535 + 1).replace("/service", &format!("/s{n}")), n + 1, 0);
    }
    world.of(0, Change::ListEnd { revision: 100_000 });
    world.settle();
    assert_eq!(world.catalog.service("hello").unwrap().keys().len(), 100);
    assert_eq!(world.counts(), BTreeMap::from([(Reason::TOO_MANY_INSTANCES, 99_900)]));
    assert_eq!(world.catalog.rejections().listed.len(), LISTED);
}

#[test]
fn the_surplus_of_keys_is_rejected() {
    let mut world = World::with(|settings| settings.max_keys = 3, 2);
    for text in hellos(0..5) {
        world.put(&text, 0, 0);
    }
    world.of(1, Change::Put(put("/service/d/n/other/latest/10.0.0.1:80", 0, 0)));
    world.put(HELLO, 0, 9);
    world.settle();
    assert_eq!(world.served("hello"), 3);
    assert_eq!(world.served("other"), 1, "each registry by itself");
    assert_eq!(world.counts(), BTreeMap::from([(Reason::TOO_MANY_KEYS, 2)]));
    world.delete(HELLO, 0, Removal::Explicit);
    world.put(&hellos(4..5)[0], 0, 0);
    world.settle();
    assert_eq!((world.served("hello"), world.counts()[&Reason::TOO_MANY_KEYS]), (3, 1));
}

#[test]
fn what_is_gone_leaves_nothing_behind() {
    let mut world = World::new();
    for round in 0..3 {
        world.of(0, Change::ListBegin(ListKind::Routine));
        for n in 0..5_000 {
            let mut put = put(&format!("/service/d{n}/r{round}/s{n}-{round}/latest/10.0.0.1:80"), 0, 0);
            let metadata = BTreeMap::from([("n".into(), serde_json::Value::from(n + round * 5_000))]);
            put.content.as_mut().unwrap().metadata = Arc::new(Metadata::new(metadata));
            world.of(0, Change::Put(put));
        }
        world.of(0, Change::ListEnd { revision: 0 });
        world.settle();
        let RegistryStats { keys, instances, held, .. } = world.catalog.stats().registries[0];
        assert_eq!((keys, instances, held), (5_000, 5_000, 0));
    }
    world.list(ListKind::Routine, &[]);
    world.settle();
    assert_eq!((world.catalog.frames.len(), world.catalog.groups.len(), world.catalog.metadata.len()), (0, 0, 0));
    assert_eq!(world.catalog.services().count(), 0);
    // Places of what is gone are used again.
    assert!(world.catalog.mirror.places() <= (10_000, 10_000), "{:?}", world.catalog.mirror.places());
}

fn conflicts_of(keys: &[&str]) -> Vec<(String, ConflictKind, String, String)> {
    let mut world = World::new();
    for text in keys {
        world.put(text, 0, 0);
    }
    world.settle();
    let catalog = &world.catalog;
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
    let shadowed = |winner: &str, loser: &str| ("hello".to_owned(), ConflictKind::Shadowed, winner.to_owned(), loser.to_owned());
    assert_eq!(conflicts_of(&keys), [shadowed("hello.svc", "hello"), shadowed("hello.svc", "hello.internal")]);
}

#[test]
fn names_that_read_as_something_else_are_conflicts() {
    let hidden = |name: &str, winner: &str, loser: &str| (name.to_owned(), ConflictKind::Hidden, winner.to_owned(), loser.to_owned());
    assert_eq!(conflicts_of(&["/s/d/n/hello/v1/10.0.0.1:80", "/s/d/prod/hello/v1/10.0.0.1:80"]), []);
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
        [hidden("10-0-0-1.hello", "instance 10-0-0-1 of service hello", "version 10-0-0-1 of service hello")]
    );
    assert_eq!(
        conflicts_of(&["/s/d/n/hello/v1/10.0.0.1:80", "/s/d/n/10-0-0-1.hello/v2/10.0.0.2:80"]),
        [hidden("10-0-0-1.hello", "service 10-0-0-1.hello", "instance 10-0-0-1 of service hello")]
    );
    assert_eq!(
        conflicts_of(&["/s/d/n/hello/a.b/10.0.0.1:80", "/s/d/n/b.hello/a/10.0.0.2:80"]),
        [hidden("a.b.hello", "version a of service b.hello", "version a.b of service hello")]
    );
    assert_eq!(conflicts_of(&["/s/d/has.dot/hello/v 1/10.0.0.1:80", "/s/e//hello/_v/10.0.0.1:80"]), [], "not askable by such names");
}

#[test]
fn what_a_routine_list_finds_that_no_event_told_is_counted() {
    let mut world = World::with(|_| {}, 1);
    let differences = |world: &World| world.catalog.stats().registries[0].differences;
    let list = |world: &mut World, kind, keys: &[(&str, u64)]| {
        world.of(0, Change::ListBegin(kind));
        for (key, revision) in keys {
            world.put(key, *revision, 0);
        }
        world.of(0, Change::ListEnd { revision: 9 });
        world.settle();
    };
    let [one, two] = ["/service/d/n/hello/latest/10.0.0.1:80", "/service/d/n/hello/latest/10.0.0.2:80"];
    list(&mut world, ListKind::Routine, &[(one, 1), (two, 2)]);
    list(&mut world, ListKind::Routine, &[(one, 1), (two, 2)]);
    assert_eq!(differences(&world), 0, "nothing was missed");
    list(&mut world, ListKind::Routine, &[(two, 5)]);
    assert_eq!(differences(&world), 2, "one key went, one changed");
    list(&mut world, ListKind::Reconnect, &[(one, 6)]);
    assert_eq!(differences(&world), 2, "after a reconnect differences are to be expected");
}

#[test]
fn a_registry_that_is_away_makes_only_what_it_holds_stale() {
    let mut world = World::with(|_| {}, 3);
    for registry in 0..3 {
        world.of(registry, Change::ListBegin(ListKind::Routine));
        world.of(registry, Change::ListEnd { revision: 0 });
    }
    let of = |places: &[u8]| places.iter().map(|place| id(*place)).collect::<RegistrySet>();
    let staleness = |world: &World, holders: &[u8]| world.catalog.condition(world.now).staleness_of(of(holders));
    assert_eq!(world.catalog.condition(world.now).staleness(), None);
    world.of(1, Change::Connected(false));
    let condition = world.catalog.condition(world.now);
    assert_eq!((condition.away, condition.held, condition.staleness()), (of(&[1]), of(&[]), Some(Staleness::Away)));
    assert_eq!(
        [&[0][..], &[1], &[0, 1], &[0, 2]].map(|holders| staleness(&world, holders)),
        [None, Some(Staleness::Away), Some(Staleness::Away), None]
    );
    // Another one says that its keys are gone, which is not believed.
    world.of(2, Change::Put(put("/service/d/n/other/latest/10.0.0.9:80", 0, 0)));
    world.settle();
    world.of(2, Change::ListBegin(ListKind::Restored));
    world.of(2, Change::ListEnd { revision: 0 });
    world.settle();
    let condition = world.catalog.condition(world.now);
    assert_eq!((condition.held, condition.holding), (of(&[2]), 1));
    assert_eq!([&[0][..], &[2], &[1, 2]].map(|holders| staleness(&world, holders)), [None, Some(Staleness::Held), Some(Staleness::Away)]);
    world.of(1, Change::Connected(true));
    assert_eq!(world.catalog.condition(world.now).staleness(), Some(Staleness::Held));
}

#[test]
fn keys_of_any_layout_share_what_is_alike_in_them() {
    let layouts: [fn(u32, u32) -> String; 4] = [
        |service, n| format!("/service/default/default/s{service}.svc/latest/10.{service}.0.{n}:80"),
        |service, n| format!("service#default#default#s{service}.svc#latest#10.{service}.0.{n}-80"),
        |service, n| format!("s{service}.svc--10.{service}.0.{n}:80"),
        |service, n| format!("10.{service}.0.{n}#80#DEFAULT#DEFAULT_GROUP@@s{service}.svc"),
    ];
    for layout in layouts {
        let mut world = World::new();
        let mut texts = Vec::new();
        for (service, n) in (0..20).flat_map(|service| (1..20).map(move |n| (service, n))) {
            let gsvc = format!("/service/default/default/s{service}.svc/latest/10.{service}.0.{n}:80");
            let text = layout(service, n);
            let key = text.clone().into();
            world.of(0, Change::Put(Put { key, revision: 0, lease: 0, content: Ok(registration(&gsvc)) }));
            texts.push(text);
        }
        world.settle();
        let keys = || world.catalog.services().flat_map(|service| service.keys().iter().map(move |key| (service, key)));
        assert!(keys().all(|(_, key)| key.odd.is_none()), "{}: a key keeps its text", texts[0]);
        assert_eq!(world.catalog.frames.len(), 1, "{}", texts[0]);
        let mut kept: Vec<String> = keys().map(|(service, key)| service.text(key)).collect();
        kept.sort_unstable();
        texts.sort_unstable();
        assert_eq!(kept, texts);
        // Each is found again by its text.
        for text in &texts {
            world.delete(text, 0, Removal::Explicit);
        }
        world.settle();
        assert_eq!(world.catalog.services().count(), 0);
    }
}

#[test]
fn host_names_are_wanted_while_endpoints_are_registered_under_them() {
    let mut world = World::new();
    let key = |n: u32| format!("/service/d/n/s{n}/latest/web.example:80");
    world.put(&key(1), 0, 0);
    world.put("/service/d/n/local/latest/localhost:80", 0, 0);
    let outcome = world.catalog.settle(world.now);
    assert_eq!(outcome.hosts, [HostChange::Wanted("web.example".into())]);
    assert_eq!(world.catalog.hosts().get("web.example"), Some(&Addresses::Pending));
    world.put(&key(2), 0, 0);
    assert_eq!(world.catalog.settle(world.now).hosts, []);

    let known = Addresses::Known([[192, 0, 2, 1].into()].into());
    let found = |host: &str| Update::Hosts(vec![(host.into(), known.clone())]);
    world.catalog.take(found("web.example"), world.now);
    assert_eq!(world.settle().changed, ["s1".into(), "s2".into()], "its services change with its addresses");
    assert_eq!(world.catalog.hosts().get("web.example"), Some(&known));
    world.catalog.take(found("web.example"), world.now);
    world.catalog.take(found("nobody.example"), world.now);
    assert_eq!(world.settle().changed, [] as [Box<str>; 0], "nothing new, or nobody wants it");

    world.delete(&key(1), 0, Removal::Explicit);
    assert_eq!(world.catalog.settle(world.now).hosts, []);
    world.delete(&key(2), 0, Removal::Explicit);
    assert_eq!(world.catalog.settle(world.now).hosts, [HostChange::Unwanted("web.example".into())]);
    assert_eq!(world.catalog.hosts().get("web.example"), None);
}
