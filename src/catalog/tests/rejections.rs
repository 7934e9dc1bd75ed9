//! Tests of rejections: invalid keys and content, and keys beyond the limits.

use std::ops::Range;

use super::*;

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
fn invalid_content_removes_a_key_until_its_content_is_valid_again() {
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
fn a_key_rejection_and_an_endpoint_rejection_replace_each_other() {
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
fn a_list_removes_rejections_missing_from_it() {
    let mut test = TestCatalog::new();
    test.apply(0, Change::Put(invalid_put("/a")));
    test.apply(0, Change::Put(invalid_put("/b")));
    test.apply(0, Change::list_begin(ListKind::Routine));
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
        test.apply(0, Change::list_begin(ListKind::Routine));
        for n in 0..5_000 {
            test.apply(0, Change::Put(invalid_put(&format!("/junk{n}"))));
        }
        test.apply(0, Change::ListEnd { revision: 0 });
        let rejections = test.catalog.rejections();
        assert_eq!(rejections.counts, BTreeMap::from([(JUNK, 5_000)]), "round {round}");
        assert_eq!((rejections.listed.len(), rejections.unlisted), (MAX_LISTED_REJECTIONS, 4_000));
    }
    test.apply(0, Change::list_begin(ListKind::Routine));
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
fn each_registry_has_the_instance_limit_to_itself() {
    let mut test = TestCatalog::with(|settings| settings.max_instances_per_service = 3, 3);
    let text = |n: usize| format!("/service/d/n/hello/latest/10.0.0.{n}:80");
    let put_all = |test: &mut TestCatalog, registry: u8, numbers: Range<usize>| {
        for n in numbers {
            test.apply(registry, Change::Put(put(&text(n), 0, 0)));
        }
        test.settle();
    };
    let instances_of = |test: &TestCatalog, registry: u8| {
        let service = test.catalog.service("hello").unwrap();
        service.instances().filter(|instance| instance.key.registry() == id(registry)).count()
    };
    // The later registry comes first, and takes no room from the earlier one.
    put_all(&mut test, 1, 0..5);
    put_all(&mut test, 0, 10..15);
    put_all(&mut test, 2, 20..22);
    assert_eq!([0, 1, 2].map(|registry| instances_of(&test, registry)), [3, 3, 2]);
    assert_eq!(test.rejection_counts(), BTreeMap::from([(Reason::TOO_MANY_INSTANCES, 4)]));

    // Removed and replaced keys make room in their own registry only.
    for n in 10..13 {
        test.apply(
            0,
            Change::Delete { key: text(n).into(), revision: 0, removal: Removal::Explicit },
        );
    }
    test.settle();
    assert_eq!(instances_of(&test, 0), 0);
    put_all(&mut test, 1, 30..31);
    put_all(&mut test, 2, 20..22);
    put_all(&mut test, 0, 13..19);
    put_all(&mut test, 2, 22..25);
    assert_eq!([0, 1, 2].map(|registry| instances_of(&test, registry)), [3, 3, 3]);
    let two = "/service/d/n/hello/latest/10.1.0.1:80,10.1.0.2:80";
    test.apply(2, Change::Put(put(two, 0, 0)));
    test.settle();
    assert_eq!(instances_of(&test, 2), 3);
}

#[test]
fn a_replaced_key_counts_once_toward_the_instance_limit() {
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
fn keys_beyond_the_instance_limit_of_a_service_are_rejected() {
    let mut test = TestCatalog::with(|settings| settings.max_instances_per_service = 100, 1);
    test.apply(0, Change::list_begin(ListKind::Routine));
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
