//! Tests of removals: holds, bursts of expired leases and the removal grace.

use super::*;

#[test]
fn keys_missing_from_a_restored_store_are_held() {
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
fn a_routine_list_after_an_abandoned_restored_list_holds_removals() {
    let mut test = TestCatalog::new();
    test.list(ListKind::Routine, &hello_keys(0..100));
    test.apply(0, Change::list_begin(ListKind::Restored));
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
fn keys_that_a_list_cannot_read_stay() {
    let mut test = TestCatalog::new();
    let of = |name: &str| format!("/service/d/n/{name}/latest/10.0.0.1:80");
    test.list(ListKind::Routine, &["hello.svc", "hello.svc2", "shop", "shop2"].map(of));
    test.apply(0, Change::list_begin(ListKind::Routine));
    test.apply(0, Change::Unreadable { key: "/service/d/n/hello.svc".into() });
    test.apply(0, Change::Unreadable { key: of("shop2").into() });
    test.apply(0, Change::ListEnd { revision: 0 });
    test.settle();
    let served = ["hello", "hello.svc2", "shop", "shop2"].map(|name| test.served(name));
    assert_eq!(served, [1, 0, 0, 1]);
    test.list(ListKind::Routine, &[]);
    assert_eq!((test.served("hello"), test.served("shop2")), (0, 0), "the list could read all");
}

#[test]
fn a_put_or_an_explicit_delete_ends_the_hold_of_a_key() {
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
pub(super) fn burst(keys: u32, removed: u32) -> (TestCatalog, Settled) {
    let mut test = TestCatalog::new();
    test.list(ListKind::Routine, &hello_keys(0..keys));
    remove(&mut test, 0..removed);
    let outcome = test.settle();
    (test, outcome)
}

/// Removes keys whose leases may be gone, each at a revision that equals its lease.
pub(super) fn remove(test: &mut TestCatalog, range: std::ops::Range<u32>) {
    for n in range {
        test.delete(&hello_keys(n..n + 1)[0], u64::from(n) + 1, Removal::Unknown);
    }
}

impl TestCatalog {
    /// Replies to a lease check.
    pub(super) fn reply(
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
fn mass_deletes_of_leased_keys_cause_one_lease_check() {
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
fn a_lease_of_many_keys_is_checked_once() {
    let mut test = TestCatalog::new();
    test.apply(0, Change::list_begin(ListKind::Routine));
    for text in hello_keys(0..20) {
        test.put(&text, 0, 7);
    }
    test.apply(0, Change::ListEnd { revision: 0 });
    remove(&mut test, 0..20);
    assert_eq!(test.settle().lease_checks, [(id(0), vec![7])]);
}

#[test]
fn deletes_five_seconds_apart_do_not_form_a_burst() {
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
fn deregistrations_are_not_held_during_a_mass_expiry() {
    // 12 deregistrations, and a lease of 25 keys that ended.
    let mut test = TestCatalog::new();
    test.apply(0, Change::list_begin(ListKind::Routine));
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
fn expired_keys_count_as_part_of_a_burst_for_five_seconds() {
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
fn leases_missing_from_a_reply_are_checked_again() {
    let (mut test, _) = burst(20, 20);
    assert_eq!(test.reply([], 1..=5).lease_checks, []);
    assert_eq!(test.hello(), (15, 15));
    assert_eq!(test.advance(SECOND / 4).lease_checks, [(id(0), (6..=20).collect())]);
    test.reply([20], 6..=15);
    assert_eq!(test.hello(), (0, 0), "few are in doubt");
}

#[test]
fn slow_replies_make_lease_checks_less_frequent() {
    let (mut test, _) = burst(20, 20);
    test.now += SECOND;
    test.reply([], 1..=5);
    let checks = |test: &mut TestCatalog| test.advance(SECOND).lease_checks.len();
    assert_eq!([0; 4].map(|_| checks(&mut test)), [0, 0, 1, 0]);
}

#[test]
fn a_lease_reply_older_than_a_delete_does_not_apply_to_it() {
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
fn a_lease_reply_does_not_affect_keys_changed_since_the_check() {
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
fn deleted_keys_whose_leases_are_alive_count_as_deregistered() {
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
fn explicit_deletes_of_leased_keys_cause_no_lease_check() {
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
fn any_number_of_explicit_deletes_applies_at_once() {
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
        test.apply(registry, Change::list_begin(ListKind::Routine));
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
        test.apply(registry, Change::list_begin(ListKind::Restored));
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
fn a_maximal_removal_grace_does_not_overflow() {
    let mut test = TestCatalog::with(|settings| settings.removal_graces = vec![Duration::MAX], 1);
    test.list(ListKind::Routine, &hello_keys(0..10));
    test.list(ListKind::Restored, &[]);
    assert_eq!(test.held_keys(), 10);
}
