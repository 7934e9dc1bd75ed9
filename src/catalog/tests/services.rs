//! Tests of lists of one service, and of lists of the registered names.

use super::*;
use crate::service::key_prefix;

/// Returns the key of an instance as a registry writes it that lists each service by itself.
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
    /// Sends a complete list of one service with these instances.
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

    /// Sends a complete list of the registered names.
    fn list_names(&mut self, kind: ListKind, names: &[&str]) -> Settled {
        let names = names.iter().map(|name| (*name).into()).collect();
        self.apply(0, Change::ServiceNames { kind, names });
        self.settle()
    }
}

#[test]
fn a_list_of_one_service_removes_only_keys_of_that_name() {
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
        keys.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(keys(&test).len(), 12);
    let changed = test.list_service(ListKind::Routine, "hello", [11]).changed;
    assert_eq!(changed, ["hello".into()]);
    let left = keys(&test);
    assert_eq!(left.iter().filter(|key| key.starts_with("hello/")).count(), 1);
    assert_eq!(left.len(), 10, "the other spellings and services keep their keys");
}

#[test]
fn a_list_of_names_removes_the_keys_of_all_others() {
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
fn a_registry_that_lists_services_is_synced_when_each_was_listed() {
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
    test.list_names(ListKind::Routine, &[]);
    assert!(test.catalog.registry_status(test.now).synced);
}

#[test]
fn rejected_keys_follow_the_lists_of_their_names() {
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
