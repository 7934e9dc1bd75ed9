//! Tests of saved keys: what is restored, and what the first list makes of it.

use super::*;
use crate::service::Metadata;

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
    let keys = SavedKeys::new(bytes);
    let restored = test.catalog.restore(id(registry), keys.expected(), keys, test.now);
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
