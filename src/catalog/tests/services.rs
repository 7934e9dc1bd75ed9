//! Tests of per-service lists, and of lists of the registered names.

use super::*;
use crate::service::key_prefix;

/// Returns the key of an instance as a registry with per-service lists writes it.
fn service_put(name: &str, instance: u32) -> Put {
    let endpoint = format!("10.0.{}.{}:80", instance >> 8, instance & 255);
    let content = registration(&format!("/service/default/default/-/latest/{endpoint}"));
    let id = ServiceId { name: name.into(), ..content.id };
    Put {
        key: (key_prefix(name) + &endpoint).into(),
        revision: 0,
        lease: 0,
        content: Ok(Registration { id, ..content }),
    }
}

impl TestCatalog {
    /// Sends a complete per-service list with these instances.
    fn list_service(
        &mut self,
        kind: ListKind,
        name: &str,
        instances: impl IntoIterator<Item = u32>,
    ) -> Settled {
        self.apply(0, Change::ListBegin { kind, scope: ListScope::Service(name.into()) });
        for instance in instances {
            self.apply(0, Change::Put(service_put(name, instance)));
        }
        self.apply(0, Change::ListEnd { revision: 0 });
        self.settle()
    }

    /// Sends a routine per-service list whose only instance has a failed check.
    fn list_expired(&mut self, kind: ListKind, name: &str) -> Settled {
        let key = service_put(name, 0).key;
        self.apply(0, Change::ListBegin { kind, scope: ListScope::Service(name.into()) });
        self.apply(0, Change::Delete { key, revision: 0, removal: Removal::Unknown });
        self.apply(0, Change::ListEnd { revision: 0 });
        self.settle()
    }

    /// Sends a complete list of the registered names.
    fn list_names<N: AsRef<str>>(&mut self, kind: ListKind, names: &[N]) -> Settled {
        let names = names.iter().map(|name| name.as_ref().into()).collect();
        self.apply(0, Change::ServiceNames { kind, names });
        self.settle()
    }
}

#[test]
fn a_per_service_list_removes_only_keys_of_that_name() {
    let mut test = TestCatalog::new();
    let names = ["hello.svc", "hello", "Hello", "other"];
    test.list_names(ListKind::Routine, &names);
    for (name, first) in names.into_iter().zip([0, 10, 20, 30]) {
        test.list_service(ListKind::Routine, name, first..first + 3);
    }
    let keys = |test: &TestCatalog| {
        let keys = test.catalog.services().flat_map(|service| {
            service.keys().iter().map(|key| service.text(key)).collect::<Vec<_>>()
        });
        keys.collect::<BTreeSet<_>>()
    };
    assert_eq!(keys(&test).len(), 12);
    let changed = test.list_service(ListKind::Routine, "hello", [11]).changed;
    assert_eq!(changed, ["hello".into()]);
    let left = keys(&test);
    assert_eq!(left.iter().filter(|key| key.starts_with("hello/")).count(), 1);
    assert_eq!(left.len(), 10, "the other spellings and services keep their keys");
}

#[test]
fn a_list_of_names_removes_the_keys_of_all_other_names() {
    let mut test = TestCatalog::new();
    test.list_names(ListKind::Routine, &["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        test.list_service(ListKind::Routine, name, 0..2);
    }
    let changed = test.list_names(ListKind::Routine, &["new", "b"]).changed;
    assert_eq!(changed, ["a".into(), "c".into()]);
    assert_eq!(test.served("b"), 2);
    assert!(test.catalog.service("new").is_none(), "a name alone creates no service");
}

#[test]
fn a_registry_listed_by_service_is_synced_once_each_service_was_listed() {
    let mut test = TestCatalog::new();
    let synced = |test: &TestCatalog| test.catalog.registry_status(test.now).synced;
    test.list_service(ListKind::Routine, "early", [1]);
    assert!(!synced(&test), "there may be other names");
    test.list_names(ListKind::Routine, &["early", "a", "b"]);
    test.list_service(ListKind::Routine, "a", []);
    assert!(!synced(&test));
    // The last name that was not listed is gone.
    test.list_names(ListKind::Routine, &["early", "a"]);
    assert!(synced(&test));
    test.list_names(ListKind::Routine, &["early", "a", "later"]);
    assert!(synced(&test));
}

#[test]
fn an_empty_list_of_names_is_complete() {
    let mut test = TestCatalog::new();
    test.list_names::<&str>(ListKind::Routine, &[]);
    assert!(test.catalog.registry_status(test.now).synced);
}

#[test]
fn rejections_are_replaced_by_the_list_of_their_service() {
    let mut test = TestCatalog::new();
    let junk = |name: &str, n: u32| invalid_put(&format!("{}{n}", key_prefix(name)));
    let list = |test: &mut TestCatalog, name: &str, count: u32| {
        let scope = ListScope::Service(name.into());
        test.apply(0, Change::ListBegin { kind: ListKind::Routine, scope });
        for n in 0..count {
            test.apply(0, Change::Put(junk(name, n)));
        }
        test.apply(0, Change::ListEnd { revision: 0 });
    };
    let names = ["a/b", "a%2Fb", "many", "few"];
    test.list_names(ListKind::Routine, &names);
    let total = |test: &mut TestCatalog| test.rejection_counts().get(&JUNK).copied();
    for _ in 0..2 {
        for (name, count) in names.into_iter().zip([1, 2, 3000, 5]) {
            list(&mut test, name, count);
        }
        assert_eq!(total(&mut test), Some(3008), "a repeated list counts no key twice");
    }
    list(&mut test, "a/b", 0);
    assert_eq!(total(&mut test), Some(3007));
    list(&mut test, "many", 10);
    assert_eq!(total(&mut test), Some(17));
    test.list_names(ListKind::Routine, &["a%2Fb", "few"]);
    assert_eq!(total(&mut test), Some(7));
}

/// Returns a registry with this many services of one instance each, and their names.
fn services(count: u32) -> (TestCatalog, Vec<String>) {
    let names: Vec<String> = (0..count).map(|n| format!("s{n}")).collect();
    let mut test = TestCatalog::new();
    test.list_names(ListKind::Routine, &names);
    for name in &names {
        test.list_service(ListKind::Routine, name, [0]);
    }
    (test, names)
}

impl TestCatalog {
    /// Returns the number of services that are served, and of the keys that are held.
    fn services(&self) -> (usize, usize) {
        (self.catalog.services().count(), self.held_keys())
    }
}

#[test]
fn removals_by_routine_per_service_lists_apply_at_once() {
    let (mut test, names) = services(100);
    test.list_service(ListKind::Routine, "s0", []);
    assert_eq!(test.services(), (99, 0), "a single instance");
    for name in &names[1..60] {
        test.list_service(ListKind::Routine, name, []);
    }
    assert_eq!(test.services(), (40, 0), "deregistrations in any number");
    test.list_names(ListKind::Routine, &names[70..]);
    assert_eq!(test.services(), (30, 0));
}

#[test]
fn a_doubted_list_holds_what_it_lacks_and_says_nothing_about_others() {
    let (mut test, _) = services(100);
    test.list_service(ListKind::Routine, "s0", 0..3);
    test.list_service(ListKind::Doubted, "s0", []);
    assert_eq!((test.services(), test.served("s0")), ((100, 3), 3));
    let hold = test.catalog.holds()[0];
    assert_eq!((hold.cause, hold.keys, hold.is_certain), (HoldCause::Doubt, 3, false));
    test.list_service(ListKind::Routine, "s1", []);
    assert_eq!(test.services(), (99, 3), "another service has lost its instance");
    test.advance(11 * SECOND);
    test.list_service(ListKind::Routine, "s0", [1]);
    assert_eq!((test.services(), test.served("s0")), ((99, 2), 3));
    assert_eq!(test.advance(SECOND).wake, None);
    assert_eq!((test.services(), test.served("s0")), ((99, 0), 1));
    // A name that vanishes meanwhile does not end the hold.
    test.list_service(ListKind::Doubted, "s0", []);
    test.list_names::<&str>(ListKind::Routine, &[]);
    assert_eq!(test.services(), (1, 1));
    test.advance(12 * SECOND);
    assert_eq!(test.services(), (0, 0));
}

#[test]
fn a_thousand_services_wiped_and_listed_one_by_one_are_held() {
    for kind in [ListKind::Reconnect, ListKind::Restored] {
        let (mut test, names) = services(1000);
        // Only the first list after the reconnect need have its kind.
        let kinds = std::iter::once(kind).chain(std::iter::repeat(ListKind::Routine));
        for (at, (name, kind)) in names.iter().zip(kinds).enumerate() {
            test.list_service(kind, name, []);
            assert_eq!(test.services(), (1000, at + 1));
        }
        test.list_names::<&str>(ListKind::Routine, &[]);
        assert_eq!(test.services(), (1000, 1000));
        test.advance(11 * SECOND);
        // Programs register again.
        for name in &names[..100] {
            test.list_service(ListKind::Routine, name, [0]);
        }
        assert_eq!(test.services(), (1000, 900));
        assert_eq!(test.advance(SECOND).wake, None);
        assert_eq!(test.services(), (100, 0));
    }
}

#[test]
fn services_missing_from_the_names_of_a_wiped_registry_are_held() {
    let (mut test, names) = services(1000);
    test.list_names::<&str>(ListKind::Restored, &[]);
    assert_eq!(test.services(), (1000, 1000));
    // The names come first, and then the lists of the services that remain.
    let (mut test, _) = services(1000);
    test.list_names(ListKind::Reconnect, &names[600..]);
    assert_eq!(test.services(), (1000, 600));
    for name in &names[600..] {
        test.list_service(ListKind::Reconnect, name, [0]);
    }
    assert_eq!(test.services(), (1000, 600));
    test.advance(12 * SECOND);
    assert_eq!(test.services(), (400, 0));
}

#[test]
fn removals_of_a_listing_round_count_together_toward_a_mass_removal() {
    for (before, gone, held) in
        [(100, 29, 0), (100, 30, 30), (12, 9, 0), (12, 10, 10), (3, 2, 0), (3, 3, 3), (1, 1, 1)]
    {
        let (mut test, names) = services(before);
        let (wiped, left) = names.split_at(gone);
        for name in wiped {
            test.list_service(ListKind::Reconnect, name, []);
        }
        assert_eq!(test.services().0, before as usize, "each may be part of a mass removal");
        for name in left {
            test.list_service(ListKind::Reconnect, name, [0]);
        }
        assert_eq!(test.services(), (left.len() + held, held), "{gone} of {before}");
        // The round is over.
        if let Some(name) = left.last() {
            test.list_service(ListKind::Routine, name, []);
            assert_eq!(test.services(), (left.len() - 1 + held, held));
        }
    }
}

#[test]
fn names_that_vanish_during_a_round_count_as_listed() {
    let (mut test, names) = services(20);
    test.list_names(ListKind::Reconnect, &names);
    for name in &names[..10] {
        test.list_service(ListKind::Reconnect, name, [0]);
    }
    // A listed service is deregistered, and services that the round awaits are gone.
    test.list_names(ListKind::Routine, &names[1..15]);
    assert_eq!(test.services(), (19, 5));
    for name in &names[10..15] {
        test.list_service(ListKind::Routine, name, [0]);
    }
    assert_eq!(test.services(), (14, 0), "5 of 20 are no mass removal");
}

#[test]
fn a_round_ends_ten_seconds_after_its_last_progress() {
    let (mut test, names) = services(20);
    test.list_names(ListKind::Reconnect, &names);
    test.list_service(ListKind::Reconnect, "s0", []);
    test.advance(9 * SECOND);
    test.list_service(ListKind::Reconnect, "s1", []);
    test.advance(2 * SECOND);
    assert_eq!(test.services(), (20, 2));
    test.advance(SECOND);
    assert_eq!(test.services(), (19, 1), "no hold is longer than the grace");
    // The lists of the other services never come.
    let wake = test.settle().wake.unwrap();
    assert_eq!(wake, test.now + 7 * SECOND);
    test.advance(7 * SECOND);
    assert_eq!(test.services(), (18, 0));
    test.list_service(ListKind::Routine, "s2", []);
    assert_eq!(test.services(), (17, 0));
    // At startup, the registry then counts as synced.
    let mut test = TestCatalog::new();
    test.list_names(ListKind::Routine, &["a", "b"]);
    test.list_service(ListKind::Routine, "a", [0]);
    test.advance(9 * SECOND);
    assert!(!test.catalog.registry_status(test.now).synced);
    test.advance(SECOND);
    assert!(test.catalog.registry_status(test.now).synced);
}

#[test]
fn a_second_reconnect_restarts_the_round() {
    let (mut test, names) = services(20);
    for _ in 0..2 {
        for name in &names[..5] {
            test.list_service(ListKind::Reconnect, name, []);
        }
    }
    assert_eq!(test.services(), (20, 5));
    for name in &names[5..19] {
        test.list_service(ListKind::Reconnect, name, [0]);
    }
    assert_eq!(test.services(), (20, 5));
    test.list_service(ListKind::Reconnect, "s19", [0]);
    assert_eq!(test.services(), (15, 0));
}

#[test]
fn a_new_name_does_not_restart_the_round() {
    let (mut test, mut names) = services(20);
    names.push("new".to_owned());
    test.list_service(ListKind::Reconnect, "s0", []);
    test.list_names(ListKind::Reconnect, &names);
    for name in names[1..].iter().rev() {
        test.list_service(ListKind::Reconnect, name, [0]);
    }
    assert_eq!(test.services(), (20, 0));
}

/// Sends one list of the registry with these services of one instance.
fn list_registry(test: &mut TestCatalog, kind: ListKind, names: &[String]) {
    test.apply(0, Change::list_begin(kind));
    for name in names {
        test.apply(0, Change::Put(service_put(name, 0)));
    }
    test.apply(0, Change::ListEnd { revision: 0 });
    test.settle();
}

#[test]
fn a_list_of_the_registry_ends_a_round() {
    for (wiped, held) in [(5, 0), (12, 12)] {
        let (mut test, names) = services(20);
        for name in &names[..wiped] {
            test.list_service(ListKind::Reconnect, name, []);
        }
        list_registry(&mut test, ListKind::Routine, &names[wiped..]);
        assert_eq!(test.services(), (20 - wiped + held, held));
        test.list_service(ListKind::Routine, "s19", []);
        assert_eq!(test.services(), (19 - wiped + held, held), "the round is over");
    }
}

#[test]
fn a_list_of_names_removes_services_from_an_earlier_full_list() {
    for kind in [ListKind::Routine, ListKind::Reconnect] {
        let mut test = TestCatalog::new();
        let names: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
        list_registry(&mut test, ListKind::Routine, &names);
        test.apply(0, Change::Put(invalid_put("s3/junk")));
        test.list_names(kind, &names[4..]);
        assert_eq!(test.rejection_counts().get(&JUNK), None);
        for name in &names[4..] {
            assert_eq!(test.services(), if kind == ListKind::Routine { (16, 0) } else { (20, 4) });
            test.list_service(kind, name, [0]);
        }
        assert_eq!(test.services(), (16, 0));
    }
}

#[test]
fn a_list_of_names_abandons_a_list_in_progress() {
    let (mut test, names) = services(20);
    test.apply(0, Change::list_begin(ListKind::Reconnect));
    test.list_names(ListKind::Routine, &names[1..]);
    test.apply(0, Change::ListEnd { revision: 0 });
    test.settle();
    assert_eq!(test.services().0, 19 + test.held_keys(), "only the names count");
    test.advance(12 * SECOND);
    assert_eq!(test.services(), (19, 0));
}

#[test]
fn without_grace_a_round_holds_nothing() {
    let mut test = TestCatalog::with(|settings| settings.removal_graces = vec![Duration::ZERO], 1);
    test.list_names(ListKind::Routine, &["a", "b"]);
    for name in ["a", "b"] {
        test.list_service(ListKind::Routine, name, [0]);
    }
    test.list_service(ListKind::Restored, "a", []);
    assert_eq!(test.services(), (1, 0));
    test.list_expired(ListKind::Restored, "b");
    assert_eq!(test.services(), (0, 0));
}

#[test]
fn keys_that_lists_report_as_expired_are_held_if_many_expire_together() {
    for (before, expired, held) in [(40, 11, 0), (40, 12, 12), (20, 9, 0), (12, 12, 12)] {
        let (mut test, names) = services(before);
        for name in &names[..expired] {
            assert_eq!(test.list_expired(ListKind::Routine, name).lease_checks, []);
        }
        let left = before as usize - expired + held;
        assert_eq!(test.services(), (left, held), "{expired} of {before}");
    }
    // So are later ones, as long as the burst lasts.
    let (mut test, names) = services(40);
    for (seconds, name) in [0; 12].into_iter().chain([2, 2, 5]).zip(&names) {
        test.advance(seconds * SECOND);
        test.list_expired(ListKind::Routine, name);
    }
    assert_eq!(test.services(), (39, 14), "the burst was over for the last");
    // A program whose check passes again ends the hold.
    test.list_service(ListKind::Routine, "s12", [0]);
    assert_eq!(test.services(), (39, 13));
}

#[test]
fn expired_and_deregistered_keys_of_one_list_are_distinguished() {
    let mut test = TestCatalog::new();
    test.list_names(ListKind::Routine, &["hello"]);
    test.list_service(ListKind::Routine, "hello", 0..40);
    let scope = ListScope::Service("hello".into());
    test.apply(0, Change::ListBegin { kind: ListKind::Routine, scope });
    for n in 0..40 {
        let put = service_put("hello", n);
        match n {
            0..15 => {}
            15..30 => test
                .apply(0, Change::Delete { key: put.key, revision: 0, removal: Removal::Unknown }),
            _ => test.apply(0, Change::Put(put)),
        }
    }
    test.apply(0, Change::ListEnd { revision: 0 });
    test.settle();
    assert_eq!((test.served("hello"), test.held_keys()), (25, 15));
}

#[test]
fn after_a_reconnect_expired_keys_are_held_until_their_number_is_known() {
    for (before, expired, held) in [(40, 11, 0), (40, 12, 12), (3, 2, 0), (3, 3, 3)] {
        let (mut test, names) = services(before);
        // The agent was away: at first each check passes, within a second many fail.
        for name in &names {
            test.list_service(ListKind::Reconnect, name, [0]);
        }
        test.advance(SECOND);
        for name in &names[..expired] {
            test.list_expired(ListKind::Routine, name);
            assert_eq!(test.services().0, before as usize);
        }
        test.advance(5 * SECOND);
        let left = before as usize - expired + held;
        assert_eq!(test.services(), (left, held), "{expired} of {before}");
        test.advance(7 * SECOND);
        assert_eq!(test.services(), (before as usize - expired, 0));
    }
}

#[test]
fn expired_keys_of_a_restored_store_are_held() {
    let (mut test, names) = services(100);
    test.list_names(ListKind::Restored, &names);
    test.list_expired(ListKind::Restored, "s0");
    for name in &names[1..] {
        test.list_service(ListKind::Restored, name, [0]);
    }
    test.advance(11 * SECOND);
    assert_eq!(test.services(), (100, 1));
    test.advance(SECOND);
    assert_eq!(test.services(), (99, 0));
}

/// Returns the key of an instance that is listed under one name and registers another.
fn composed_put(listed: &str, registered: &str, instance: u32) -> Put {
    let Put { content, .. } = service_put(registered, instance);
    let key = service_put(listed, instance).key;
    Put { key, revision: 0, lease: 0, content }
}

impl TestCatalog {
    /// Sends a complete per-service list of keys that register another name.
    fn list_composed(&mut self, listed: &str, registered: &[(&str, u32)]) -> Settled {
        let scope = ListScope::Service(listed.into());
        self.apply(0, Change::ListBegin { kind: ListKind::Routine, scope });
        for (registered, instance) in registered {
            self.apply(0, Change::Put(composed_put(listed, registered, *instance)));
        }
        self.apply(0, Change::ListEnd { revision: 0 });
        self.settle()
    }
}

#[test]
fn keys_may_register_another_name_than_the_one_they_are_listed_under() {
    let mut test = TestCatalog::new();
    let [old, new, other] = ["service-d-n-hello-v1", "service-d-n-hello-v2", "other"];
    test.list_names(ListKind::Routine, &[old, new, other]);
    test.list_composed(old, &[("hello", 1), ("hello", 2)]);
    test.list_composed(new, &[("hello", 3)]);
    test.list_composed(other, &[("other", 4), ("hello", 5)]);
    assert_eq!((test.served("hello"), test.served("other")), (4, 1));
    test.list_composed(old, &[("hello", 2)]);
    assert_eq!(test.served("hello"), 3, "the list removes only keys under its own name");
    test.list_composed(old, &[("moved", 2)]);
    assert_eq!((test.served("hello"), test.served("moved")), (2, 1));
    test.list_composed(other, &[("other", 4)]);
    assert_eq!((test.served("hello"), test.served("other")), (1, 1));
    let changed = test.list_names(ListKind::Routine, &[other]).changed;
    assert_eq!(changed, ["hello".into(), "moved".into()]);
    assert_eq!(test.served("other"), 1);
}

#[test]
fn an_abandoned_list_leaves_no_key_that_registers_another_name() {
    let mut test = TestCatalog::new();
    test.list_names(ListKind::Routine, &["composed"]);
    let scope = || ListScope::Service("composed".into());
    test.apply(0, Change::ListBegin { kind: ListKind::Routine, scope: scope() });
    test.apply(0, Change::Put(composed_put("composed", "hello", 1)));
    test.list_composed("composed", &[("other", 2)]);
    assert!(test.catalog.service("hello").is_none());
    assert_eq!(test.served("other"), 1);
}
