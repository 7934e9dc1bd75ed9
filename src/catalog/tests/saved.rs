//! Tests of saved keys: what is restored, and what the first list makes of it.

use proptest::prelude::*;

use super::*;

const KEYS: [&str; 9] = [
    "/service/d/n/hello.svc/latest/10.0.0.1:80",
    "/service/d/n/hello.svc/latest/10.0.0.2:80,[fd00::5]:81,web.example:82",
    "/service/D/n/HELLO/v1.2/10.0.0.3:80",
    "/service/d/n/other.internal/latest/172.17.0.1:80",
    "/services/d/n/a.b.c/latest/10.0.0.4:65535",
    "/service/d/n/empty/latest/",
    "/service/d/n/hosts/latest/one.example:1,two.example:2",
    "/service/d/n/café/latest/10.0.0.5:80",
    "/service/x/y/hello/latest/10.0.0.6:80",
];

/// Returns puts of all keys, with revisions, leases and metadata.
fn puts() -> Vec<Put> {
    let puts = KEYS.iter().zip(1..);
    puts.map(|(text, n)| {
        let json = format!(r#"{{"weight":{n},"protocol":"http","list":[1,"ü"]}}"#);
        let metadata = Arc::new(Metadata::new(serde_json::from_str(&json).unwrap()));
        let content = Ok(Registration { metadata, ..registration(text) });
        let lease = if n % 2 == 0 { 0 } else { i64::MAX - i64::from(n) };
        Put { key: (*text).into(), revision: 1 << (n * 6), lease, content }
    })
    .collect()
}

fn list(test: &mut TestCatalog, registry: u8, kind: ListKind, puts: Vec<Put>) -> Settled {
    test.apply(registry, Change::list_begin(kind));
    for put in puts {
        test.apply(registry, Change::Put(put));
    }
    test.apply(registry, Change::ListEnd { revision: 0 });
    test.apply(registry, Change::Connected(true));
    test.settle()
}

fn save(test: &TestCatalog, registry: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    save_keys(test.catalog.services(), id(registry), &test.catalog.settings.zones, &mut bytes)
        .unwrap();
    bytes
}

fn restore(test: &mut TestCatalog, registry: u8, bytes: &[u8]) -> Result<(), MalformedKeys> {
    let restored = test.catalog.restore(id(registry), bytes, test.now);
    test.settle();
    restored
}

/// Returns text, revision, lease, metadata and layer of every key, sorted.
fn contents(test: &TestCatalog) -> Vec<String> {
    let services = test.catalog.services();
    let keys = services.flat_map(|service| service.keys().iter().map(move |key| (service, key)));
    let mut all: Vec<String> = keys
        .map(|(service, key)| {
            let metadata = serde_json::to_string(&*key.metadata).unwrap();
            let (text, base) = (service.text(key), service.base());
            let endpoints: Vec<_> = key.endpoints.iter().map(ToString::to_string).collect();
            format!("{base} {text} {endpoints:?} {key:?} {metadata}")
        })
        .collect();
    all.sort();
    all
}

#[test]
fn restored_keys_equal_saved_ones() {
    let mut test = TestCatalog::new();
    list(&mut test, 0, ListKind::Routine, puts());
    let bytes = save(&test, 0);
    let mut again = TestCatalog::new();
    restore(&mut again, 0, &bytes).unwrap();
    assert_eq!(contents(&again), contents(&test));
    // One name is not a DNS name.
    assert_eq!(contents(&again).len(), KEYS.len() - 1);
    let mut third = TestCatalog::new();
    restore(&mut third, 0, &save(&again, 0)).unwrap();
    assert_eq!(contents(&third), contents(&test));
}

#[test]
fn a_restored_registry_is_known_and_disconnected_until_its_first_list() {
    let mut test = TestCatalog::new();
    list(&mut test, 0, ListKind::Routine, puts());
    let bytes = save(&test, 0);
    let mut again = TestCatalog::new();
    restore(&mut again, 0, &bytes).unwrap();
    let status = again.catalog.registry_status(again.now);
    assert!(status.synced && status.known.contains(id(0)));
    assert!(status.disconnected.contains(id(0)) && status.unread.is_empty());
    // An equal list changes no service, so it costs no compilation.
    let settled = list(&mut again, 0, ListKind::Reconnect, puts());
    assert_eq!(settled.changed, Vec::<Box<str>>::new());
    let status = again.catalog.registry_status(again.now);
    assert!(status.synced && status.disconnected.is_empty());
    assert_eq!(again.catalog.stats().registries[0].differences, 0);
}

#[test]
fn the_first_list_after_a_restore_holds_a_mass_removal() {
    for (left, held) in [(0, 100), (30, 70), (95, 0)] {
        let mut test = TestCatalog::new();
        test.list(ListKind::Routine, &hello_keys(0..100));
        let bytes = save(&test, 0);
        let mut again = TestCatalog::new();
        restore(&mut again, 0, &bytes).unwrap();
        again.list(ListKind::Reconnect, &hello_keys(0..left));
        assert_eq!(again.held_keys(), held, "{left} left");
        assert_eq!(again.served("hello"), left as usize + held);
        again.advance(12 * SECOND);
        assert_eq!((again.served("hello"), again.held_keys()), (left as usize, 0));
    }
}

#[test]
fn all_removals_are_held_if_the_first_list_is_older_than_the_restored_keys() {
    for (revision, held) in [(99, 2), (100, 0), (0, 0)] {
        let mut test = TestCatalog::new();
        test.apply(0, Change::list_begin(ListKind::Routine));
        for n in 1..=100 {
            let text = format!("/service/d/n/hello/latest/10.0.0.{n}:80");
            test.apply(0, Change::Put(put(&text, n, 0)));
        }
        test.apply(0, Change::ListEnd { revision: 100 });
        test.settle();
        let bytes = save(&test, 0);
        let mut again = TestCatalog::new();
        restore(&mut again, 0, &bytes).unwrap();
        // Two of a hundred keys are missing, which is no mass removal.
        again.apply(0, Change::list_begin(ListKind::Reconnect));
        for n in 1..=98 {
            let text = format!("/service/d/n/hello/latest/10.0.0.{n}:80");
            again.apply(0, Change::Put(put(&text, n, 0)));
        }
        again.apply(0, Change::ListEnd { revision });
        again.settle();
        assert_eq!((again.served("hello"), again.held_keys()), (98 + held, held), "{revision}");
        // A later list at an old revision is judged by its kind alone.
        again.advance(12 * SECOND);
        again.apply(0, Change::list_begin(ListKind::Reconnect));
        for n in 1..=97 {
            let text = format!("/service/d/n/hello/latest/10.0.0.{n}:80");
            again.apply(0, Change::Put(put(&text, n, 0)));
        }
        again.apply(0, Change::ListEnd { revision: 50 });
        again.settle();
        assert_eq!((again.served("hello"), again.held_keys()), (97, 0));
    }
}

#[test]
fn per_service_lists_replace_restored_keys() {
    let text = |name: &str, last: u8| format!("{name}/10.0.0.{last}:80");
    let put = |name: &str, last| {
        let full = format!("/service/d/n/{name}/latest/10.0.0.{last}:80");
        let content = Ok(registration(&full));
        Put { key: text(name, last).into(), revision: 0, lease: 0, content }
    };
    let mut test = TestCatalog::new();
    let all = ["a", "b", "c"].map(|name| put(name, 1));
    list(&mut test, 0, ListKind::Routine, all.to_vec());
    let bytes = save(&test, 0);
    let mut again = TestCatalog::new();
    restore(&mut again, 0, &bytes).unwrap();
    let names = Box::new(["a".into(), "b".into()]);
    again.apply(0, Change::ServiceNames { kind: ListKind::Reconnect, names });
    for name in ["a", "b"] {
        let scope = ListScope::Service(name.into());
        again.apply(0, Change::ListBegin { kind: ListKind::Reconnect, scope });
        again.apply(0, Change::Put(put(name, 2)));
        again.apply(0, Change::ListEnd { revision: 0 });
    }
    again.apply(0, Change::Connected(true));
    again.advance(60 * SECOND);
    assert_eq!(["a", "b", "c"].map(|name| again.served(name)), [1, 1, 0]);
    assert!(contents(&again).iter().all(|key| key.contains("10.0.0.2:80")));
}

#[test]
fn each_registry_is_saved_by_itself() {
    let mut test = TestCatalog::with(|_| {}, 2);
    list(&mut test, 0, ListKind::Routine, vec![put(HELLO, 1, 0)]);
    let second = "/service/d/n/hello.svc/latest/10.9.0.1:80";
    list(&mut test, 1, ListKind::Routine, vec![put(second, 1, 0)]);
    let mut again = TestCatalog::with(|_| {}, 2);
    restore(&mut again, 1, &save(&test, 1)).unwrap();
    assert_eq!(again.served("hello"), 1);
    let status = again.catalog.registry_status(again.now);
    assert!(!status.synced, "the first registry may know other names");
    assert_eq!(status.known.iter().collect::<Vec<_>>(), [id(1)]);
}

#[test]
fn restored_keys_follow_the_zones_and_limits_of_now() {
    let mut test = TestCatalog::new();
    list(&mut test, 0, ListKind::Routine, puts());
    let bytes = save(&test, 0);
    let other = Zones::new(&["internal".to_owned()]).unwrap();
    let mut again = TestCatalog::with(|settings| settings.zones = other, 1);
    restore(&mut again, 0, &bytes).unwrap();
    assert!(again.catalog.service("hello.svc").is_some() && again.served("other") == 1);
    let mut small = TestCatalog::with(|settings| settings.max_keys = 2, 1);
    restore(&mut small, 0, &bytes).unwrap();
    assert_eq!(contents(&small).len(), 2);
}

/// Returns puts of the saved keys of a registry, in the order in which they are saved.
fn saved_puts(test: &TestCatalog, registry: u8) -> Vec<Put> {
    let mut services: Vec<_> = test.catalog.services().collect();
    services.sort_by_key(|service| Arc::as_ptr(service).addr());
    let of_service = |service: &Arc<Service>| -> Vec<Put> {
        let own = service.keys().iter().filter(|key| key.registry() == id(registry));
        let put = |key: &Arc<RegistryKey>| {
            let zone = test.catalog.settings.zones.get(key.rank().into());
            let suffix = zone.map(|zone| format!(".{}", zone.relative_text()));
            let Group { deployment, namespace, version } = &**key.group();
            let id = ServiceId {
                deployment: (&**deployment).into(),
                namespace: (&**namespace).into(),
                name: format!("{}{}", service.base(), suffix.unwrap_or_default()).into(),
                version: (&**version).into(),
            };
            let content = Registration {
                id,
                endpoints: key.endpoints.to_vec(),
                rejected: Vec::new(),
                metadata: Arc::clone(&key.metadata),
                overrides: key.layer() == 0,
            };
            let (revision, lease) = (key.revision, key.lease);
            Put { key: service.text(key).into(), revision, lease, content: Ok(content) }
        };
        own.map(put).collect()
    };
    services.into_iter().flat_map(of_service).collect()
}

/// Describes what a catalog knows, except how it lays out the texts of keys.
fn describe(test: &mut TestCatalog) -> (BTreeMap<String, Vec<String>>, String) {
    let of_service = |service: &Arc<Service>| {
        let mut all: Vec<String> = service
            .instances()
            .map(|instance| format!("{} {:?}", instance.endpoint, instance.excluded))
            .collect();
        all.extend(service.keys().iter().map(|key| {
            format!(
                "{} {} {} {} {:?} {:?} {:?} {}",
                service.text(key),
                key.revision,
                key.lease,
                key.layer(),
                key.group(),
                key.endpoints,
                key.rejected(),
                serde_json::to_string(&*key.metadata).unwrap()
            )
        }));
        all.sort();
        (service.base().to_owned(), all)
    };
    let services = test.catalog.services().map(of_service).collect();
    let (stats, rejections) = (test.catalog.stats(), test.catalog.rejections());
    (services, format!("{stats:?} {rejections:?}"))
}

/// A put of one of some keys: with layouts of their text or without, for one name or several.
fn any_put() -> impl Strategy<Value = Put> {
    let names = ["hello.svc", "hello", "Hello.internal", "a.b", "shop.svc.internal", "x", "bad!"];
    let endpoints = [
        "10.0.0.1:80",
        "10.0.0.2:80,10.0.0.3:81",
        "172.17.0.1:80",
        "[fd00::5]:80,web.example:80",
        "web.svc:80",
        "",
    ];
    let layout = prop_oneof![4 => Just(None), 1 => (0..20_u8).prop_map(Some)];
    let metadata = 0..4_u8;
    let (name, endpoints) =
        (prop::sample::select(names.to_vec()), prop::sample::select(endpoints.to_vec()));
    (name, endpoints, 0..4_u8, layout, (metadata, any::<bool>()), any::<(u32, u16)>()).prop_map(
        |(name, endpoints, group, opaque, (weight, overrides), (revision, lease))| {
            let (namespace, version) = (["n", "N2"][usize::from(group / 2)], group % 2);
            let text = format!("/service/d/{namespace}/{name}/v{version}/{endpoints}");
            let entries = serde_json::from_str(&format!(r#"{{"weight":{weight}}}"#)).unwrap();
            let content = Registration {
                metadata: Arc::new(Metadata::new(entries)),
                overrides: overrides && weight == 0,
                ..registration(&text)
            };
            let key = opaque.map_or(text, |number| format!("opaque-{number}"));
            let (revision, lease) = (revision.into(), lease.into());
            Put { key: key.into(), revision, lease, content: Ok(content) }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn a_restored_catalog_equals_one_loaded_by_puts(
        puts in prop::collection::vec(any_put(), 0..60),
        others in prop::collection::vec(any_put(), 0..6),
        zones in prop::sample::select(vec![vec!["svc", "internal"], vec!["internal"], vec!["b"]]),
        (max_keys, max_instances) in (prop_oneof![Just(5_usize), Just(1000)], 2..12_usize),
        pool in prop::option::of(Just("10.0.0.0/30")),
    ) {
        let mut test = TestCatalog::with(|_| {}, 2);
        list(&mut test, 0, ListKind::Routine, puts);
        let bytes = save(&test, 0);
        let settings = |settings: &mut Settings| {
            let zones: Vec<String> = zones.iter().map(ToString::to_string).collect();
            settings.zones = Zones::new(&zones).unwrap();
            (settings.max_keys, settings.max_instances_per_service) = (max_keys, max_instances);
            settings.bridge_pool = pool.map(|pool| pool.parse().unwrap());
        };
        let mut by_puts = TestCatalog::with(settings, 2);
        let mut restored = TestCatalog::with(settings, 2);
        let saved = saved_puts(&test, 0);
        for test in [&mut by_puts, &mut restored] {
            list(test, 1, ListKind::Routine, others.clone());
        }
        list(&mut by_puts, 0, ListKind::Routine, saved.clone());
        restore(&mut restored, 0, &bytes).unwrap();
        prop_assert_eq!(describe(&mut restored), describe(&mut by_puts));
        // The first list finds each restored key.
        list(&mut restored, 0, ListKind::Reconnect, saved.clone());
        prop_assert_eq!(describe(&mut restored), describe(&mut by_puts));
        for test in [&mut by_puts, &mut restored] {
            let half = saved[saved.len() / 2..].to_vec();
            list(test, 0, ListKind::Routine, half);
        }
        prop_assert_eq!(describe(&mut restored), describe(&mut by_puts));
    }
}

#[test]
fn malformed_keys_restore_nothing_and_never_panic() {
    let mut test = TestCatalog::new();
    list(&mut test, 0, ListKind::Routine, puts());
    let bytes = save(&test, 0);
    for length in 0..bytes.len() {
        let mut again = TestCatalog::new();
        assert_eq!(restore(&mut again, 0, &bytes[..length]), Err(MalformedKeys), "{length}");
        assert_eq!(contents(&again), Vec::<String>::new(), "{length}");
        assert!(!again.catalog.registry_status(again.now).synced);
        // The first list works as usual.
        list(&mut again, 0, ListKind::Routine, puts());
        assert_eq!(contents(&again), contents(&test), "{length}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        // The digest of the file finds these; here they must only do no harm.
        let _ = restore(&mut TestCatalog::new(), 0, &flipped);
    }
}

#[test]
fn the_numbering_starts_again_when_many_keys_have_metadata_of_their_own() {
    let count = 70_000;
    let puts = (0..count).map(|n| {
        let key = format!("/service/d/n/s{n}/latest/10.0.0.1:80");
        let entries = serde_json::from_str(&format!(r#"{{"n":{n}}}"#)).unwrap();
        let content =
            Registration { metadata: Arc::new(Metadata::new(entries)), ..registration(&key) };
        Put { key: key.into(), revision: 0, lease: 0, content: Ok(content) }
    });
    let mut test = TestCatalog::new();
    list(&mut test, 0, ListKind::Routine, puts.collect());
    let mut again = TestCatalog::new();
    restore(&mut again, 0, &save(&test, 0)).unwrap();
    assert_eq!(contents(&again), contents(&test));
}
