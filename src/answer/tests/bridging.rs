//! Addresses of the port bridge: who gets them, and for which names.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::properties::{key, query_name};
use super::*;
use crate::answer::Recipient;
use crate::service::{BridgeCandidate, BridgeChange, BridgedName};

const LOCAL: Recipient = Recipient { transport: Transport::Udp, is_local: true };
const V2: (&str, &str) = ("/service/default/default/hello.svc/v2/10.0.0.2:8000", HTTP);
const PROD: (&str, &str) = ("/service/default/prod/hello.svc/latest/10.0.0.3:8000", HTTP);

/// A stand-in for the bridge: gives every name an address in the order of requests.
#[derive(Default)]
struct Pool(BTreeMap<Box<str>, Ipv4Addr>);

impl Pool {
    /// Answers the requests of a publication with addresses.
    fn answer(&mut self, requests: Vec<BridgeChange>) -> Update {
        let named = |change: BridgeChange| {
            let next = u8::try_from(self.0.len() + 1).unwrap();
            let address = match &change {
                BridgeChange::Put(candidate) => {
                    let fresh = Ipv4Addr::new(127, 83, 0, next);
                    Some(*self.0.entry(candidate.name.clone()).or_insert(fresh))
                }
                BridgeChange::Removed(_) => None,
            };
            BridgedName { name: change.name().into(), address }
        };
        Update::Bridged(requests.into_iter().map(named).collect())
    }
}

/// Returns a harness whose names are all bridged.
fn bridged(keys: &[(&str, &str)]) -> (Harness, Pool) {
    let mut harness = Harness::empty(Settings { bridge: true, ..settings() });
    let mut pool = Pool::default();
    let mut changes = vec![Change::list_begin(ListKind::Routine)];
    changes.extend(keys.iter().map(|(key, value)| put(key, value)));
    changes.push(Change::ListEnd { revision: 0 });
    bridge(&mut harness, &mut pool, changes);
    (harness, pool)
}

/// Applies changes, and then the addresses of the bridge.
fn bridge(harness: &mut Harness, pool: &mut Pool, changes: Vec<Change>) {
    let requests = harness.apply(changes).bridge;
    let again = harness.publisher.apply([pool.answer(requests)], harness.now);
    assert_eq!(again.bridge, [], "the bridge is not told about its own addresses");
}

/// Returns the answer to a client on this machine; both paths must agree.
fn local(harness: &Harness, name: &str, rtype: u16) -> String {
    let bytes = query(name, rtype, Some(1232));
    let parsed = Query::parse(&bytes);
    let (mut fast, mut full) = (Vec::new(), Vec::new());
    let ahead = harness.answerer.look_ahead(iter::once(&*bytes));
    harness.answerer.respond(&parsed, (&ahead, 0), LOCAL, 0, &mut fast);
    harness.answerer.respond_in_full(&parsed, LOCAL, 0, &mut full);
    assert_eq!(fast, full, "{name} {rtype}");
    short(&Message::from_vec(&fast).unwrap())
}

/// Returns the names that exist from now on, or changed.
fn candidates(changes: &[BridgeChange]) -> Vec<BridgeCandidate> {
    let put = |change: &BridgeChange| match change {
        BridgeChange::Put(candidate) => Some(candidate.clone()),
        BridgeChange::Removed(_) => None,
    };
    changes.iter().filter_map(put).collect()
}

fn delete(key: &str) -> Change {
    Change::Delete { key: key.into(), revision: 0, removal: Removal::Explicit }
}

#[test]
fn clients_on_this_machine_get_the_address_of_the_bridge() {
    let (harness, pool) = bridged(&[HELLO]);
    let address = pool.0["hello"].to_string();
    assert_eq!(local(&harness, "hello.svc", rtype::A), address);
    assert_eq!(local(&harness, "HELLO.internal", rtype::A), address);
    assert_eq!(local(&harness, "hello.svc", rtype::AAAA), "NODATA");
    assert_eq!(local(&harness, "hello.svc", rtype::ANY), address);
    let all_others_stay = [
        ("hello.svc", rtype::SRV, "0 1 8000 10-0-0-1.hello.svc."),
        ("10-0-0-1.hello.svc", rtype::A, "10.0.0.1"),
        ("http._protocol.hello.svc", rtype::A, "10.0.0.1"),
        ("_http._tcp.hello.svc", rtype::SRV, "0 1 8000 10-0-0-1.hello.svc."),
    ];
    for (name, rtype, expected) in all_others_stay {
        assert_eq!(local(&harness, name, rtype), expected, "{name}");
    }
    assert_eq!(harness.a("hello.svc"), "10.0.0.1", "a client elsewhere");
    assert_eq!(harness.a("bridge._via.hello.svc"), "10.0.0.1", "a client elsewhere");
}

#[test]
fn a_selector_chooses_between_the_bridge_and_the_instances() {
    let (harness, pool) = bridged(&[HELLO]);
    let address = pool.0["hello"].to_string();
    assert_eq!(local(&harness, "direct._via.hello.svc", rtype::A), "10.0.0.1");
    assert_eq!(local(&harness, "bridge._via.hello.svc", rtype::A), address);
    assert_eq!(local(&harness, "bridge._via.hello.svc", rtype::AAAA), "NODATA");
    assert_eq!(local(&harness, "other._via.hello.svc", rtype::A), "NODATA");
    assert_eq!(local(&harness, "bridge._via.http._protocol.hello.svc", rtype::A), "10.0.0.1");
    // With the bridge off, both give the instances.
    let off = Harness::of(&[HELLO]);
    for name in ["direct._via.hello.svc", "bridge._via.hello.svc"] {
        assert_eq!(local(&off, name, rtype::A), "10.0.0.1");
    }
}

#[test]
fn namespaces_and_versions_have_addresses_of_their_own() {
    let (mut harness, mut pool) = bridged(&[HELLO, V2, PROD]);
    assert_eq!(
        pool.0.keys().map(|name| &**name).collect::<Vec<_>>(),
        ["hello", "hello.prod", "v2.hello"]
    );
    for (name, owner) in [
        ("hello.svc", "hello"),
        ("hello.default.svc", "hello"),
        ("hello.default.default.svc", "hello"),
        ("latest.hello.svc", "hello"),
        ("v2.hello.svc", "v2.hello"),
        ("v2.hello.default.svc", "v2.hello"),
        ("hello.prod.svc", "hello.prod"),
        ("hello.prod.default.svc", "hello.prod"),
    ] {
        assert_eq!(local(&harness, name, rtype::A), pool.0[owner].to_string(), "{name}");
    }
    bridge(&mut harness, &mut pool, vec![delete(HELLO.0), delete(PROD.0)]);
    assert_eq!(local(&harness, "hello.prod.svc", rtype::A), "NXDOMAIN");
    // Without version `latest`, the name stands for all versions.
    assert_eq!(local(&harness, "hello.svc", rtype::A), pool.0["hello"].to_string());
}

#[test]
fn a_name_that_another_service_takes_over_is_bridged_to_that_one() {
    let (mut harness, mut pool) = bridged(&[PROD]);
    let taking = "/service/default/default/hello.prod/latest/10.0.0.9:9000";
    let published = harness.apply([put(taking, HTTP)]);
    let found = candidates(&published.bridge);
    assert_eq!(found.len(), 1);
    assert_eq!(&*found[0].name, "hello.prod");
    assert_eq!(found[0].registrations[0].endpoints, ["10.0.0.9:9000".parse().unwrap()]);
    harness.publisher.apply([pool.answer(published.bridge)], harness.now);
    let address = pool.0["hello.prod"].to_string();
    assert_eq!(local(&harness, "hello.prod.svc", rtype::A), address);
    // The other service has no name without a selector now, and no address.
    assert_eq!(local(&harness, "prod._namespace.hello.svc", rtype::A), "10.0.0.3");
    let found = candidates(&harness.apply([delete(taking)]).bridge);
    assert_eq!(found[0].registrations[0].endpoints, ["10.0.0.3:8000".parse().unwrap()]);
}

#[test]
fn the_bridge_is_told_about_registrations_and_their_addresses() {
    let mut harness = Harness::empty(Settings { bridge: true, ..settings() });
    let json = r#"{"protocol":"HTTP","weight":7}"#;
    let published = harness.apply([
        put("/service/default/default/web/latest/10.0.0.1:8000,[fd00::1]:8443", json),
        put("/service/default/default/web/latest/localhost:9000", "{}"),
    ]);
    let [candidate] = &*candidates(&published.bridge) else { panic!("{published:?}") };
    assert_eq!((&*candidate.name, &*candidate.namespace), ("web", "default"));
    let mut registrations = candidate.registrations.clone();
    registrations.sort_by_key(|one| one.weight);
    let [plain, http] = &*registrations else { panic!("{registrations:?}") };
    assert_eq!((http.protocol.as_deref(), http.weight, http.first_port), {
        (Some("http"), 7, Some(8000))
    });
    assert_eq!(http.endpoints, ["10.0.0.1:8000", "[fd00::1]:8443"].map(|e| e.parse().unwrap()));
    assert_eq!((plain.protocol.as_deref(), plain.first_port), (None, Some(9000)));
    assert_eq!(plain.endpoints, ["127.0.0.1:9000", "[::1]:9000"].map(|e| e.parse().unwrap()));
    // Without a bridge, nobody is told.
    let off = Harness::of(&[]).apply([put(HELLO.0, HTTP)]);
    assert_eq!(off.bridge, []);
}

#[test]
fn registrations_that_share_an_endpoint_all_reach_the_bridge() {
    let mut harness = Harness::empty(Settings { bridge: true, ..settings() });
    let published = harness.apply([
        put("/service/default/default/web/latest/10.0.0.1:8000", r#"{"protocol":"grpc"}"#),
        put("/service/default/default/web/latest/10.0.0.1:8000,10.0.0.1:8001", HTTP),
    ]);
    let [candidate] = &*candidates(&published.bridge) else { panic!("{published:?}") };
    let mut registrations = candidate.registrations.clone();
    registrations.sort_by(|a, b| a.protocol.cmp(&b.protocol));
    let [grpc, http] = &*registrations else { panic!("{registrations:?}") };
    assert_eq!(
        [&grpc.protocol, &http.protocol].map(Option::as_deref),
        [Some("grpc"), Some("http")]
    );
    assert_eq!([grpc.endpoints.len(), http.endpoints.len()], [1, 2], "{registrations:?}");
    assert!(local(&harness, "web.svc.", rtype::A).matches("10.0.0.1").count() == 1);
}

/// Returns the processor time of this thread, in ns.
fn thread_time() -> u64 {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    times.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_work_for_a_candidate_is_proportional_to_its_registrations() {
    // As many registrations in all: the kernel updates the time of a thread only at its ticks.
    let time = |registrations: u32, times: u32| {
        let mut harness = Harness::empty(Settings { bridge: true, ..settings() });
        let keys = (0..registrations).map(|n| {
            let address = Ipv4Addr::from(0x0A00_0000 + n);
            put(&format!("/service/default/default/web/latest/{address}:80"), HTTP)
        });
        harness.apply(keys);
        let name = Name::from_text("web.svc").unwrap();
        let start = thread_time();
        for _ in 0..times {
            let candidate = harness.answerer.bridge_candidate(&name).unwrap();
            assert_eq!(candidate.registrations.len(), registrations as usize);
        }
        thread_time() - start
    };
    let (few, many) = (time(600, 160), time(9600, 10));
    // Comparing each registration with each other one would take many times as long.
    assert!(many < 4 * few, "{few} ns for 600 at a time, {many} ns for 9,600");
}

#[test]
fn reverse_names_of_the_bridge_are_the_names_of_services() {
    let (harness, pool) = bridged(&[HELLO, PROD]);
    let reverse = |address: Ipv4Addr| {
        let [a, b, c, d] = address.octets();
        format!("{d}.{c}.{b}.{a}.in-addr.arpa")
    };
    let name = reverse(pool.0["hello.prod"]);
    assert_eq!(local(&harness, &name, rtype::PTR), "hello.prod.svc.");
    assert_eq!(local(&harness, &name, rtype::A), "NODATA");
    assert_eq!(harness.short(&name, rtype::PTR), "NXDOMAIN", "a client elsewhere");
    assert_eq!(local(&harness, "83.127.in-addr.arpa", rtype::PTR), "NODATA");
    assert_eq!(local(&harness, "84.127.in-addr.arpa", rtype::PTR), "NXDOMAIN");
    assert_eq!(local(&harness, "1.0.0.127.in-addr.arpa", rtype::PTR), "localhost.");
    assert_eq!(local(&harness, "99.0.83.127.in-addr.arpa", rtype::PTR), "NXDOMAIN");
}

#[test]
fn reverse_names_of_the_bridge_are_stale_while_the_registry_is_disconnected() {
    let (mut harness, pool) = bridged(&[HELLO]);
    let [a, b, c, d] = pool.0["hello"].octets();
    let name = format!("{d}.{c}.{b}.{a}.in-addr.arpa");
    let is_stale = |harness: &Harness, name: &str, rtype| {
        let bytes = query(name, rtype, Some(1232));
        let mut out = Vec::new();
        harness.answerer.respond_in_full(&Query::parse(&bytes), LOCAL, 0, &mut out);
        // The option of an extended error has the code 15, and this error the code 3 (RFC 8914).
        out.windows(6).any(|bytes| bytes[..2] == [0, 15] && bytes[4..] == [0, 3])
    };
    for (name, rtype) in [(&*name, rtype::PTR), (&*name, rtype::A), ("hello.svc", rtype::A)] {
        assert!(!is_stale(&harness, name, rtype), "{name} {rtype}");
    }
    harness.apply([Change::Connected(false)]);
    for (name, rtype) in [(&*name, rtype::PTR), (&*name, rtype::A), ("hello.svc", rtype::A)] {
        assert!(is_stale(&harness, name, rtype), "{name} {rtype}");
    }
}

proptest! {
    #[test]
    fn both_paths_agree_on_bridged_names(
        keys in prop::collection::btree_set(key(), 1..20),
        names in prop::collection::vec(query_name(), 1..20),
        removed in any::<prop::sample::Index>(),
    ) {
        let keys: Vec<_> = keys.into_iter().collect();
        let pairs: Vec<_> = keys.iter().map(|(key, value)| (&**key, &**value)).collect();
        let (mut harness, mut pool) = bridged(&pairs);
        let gone = &keys[removed.index(keys.len())].0;
        for round in 0..2 {
            for name in &names {
                for rtype in [rtype::A, rtype::AAAA, rtype::SRV, rtype::ANY] {
                    // Compares the two paths.
                    local(&harness, name, rtype);
                }
            }
            if round == 0 {
                bridge(&mut harness, &mut pool, vec![delete(gone)]);
            }
        }
    }
}
