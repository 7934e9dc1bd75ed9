//! Fast answers do not allocate: neither precompiled ones nor those from the cache.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Instant;

use allocation_counter::measure;
use svcdns::answer::{AliasTarget, Aliases, AnswerOutcome, Answerer, Answers, Publisher, Settings};
use svcdns::catalog;
use svcdns::name::{Name, Zones};
use svcdns::registry::gsvc;
use svcdns::service::{Addresses, Change, ListKind, Put, RegistryId, Update};
use svcdns::upstream::{self, Forwarder, LaneOutcome, Resolution, Servers};
use svcdns::wire::{Parsed, Query, Transport, put_u16, rtype};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use support::upstream::{Record, Upstream};

/// Number of queries of each kind.
const QUERIES: u64 = 1_000;

fn zones() -> Zones {
    Zones::new(&["svc".to_owned()]).unwrap()
}

fn settings() -> Settings {
    let outside = AliasTarget::Outside(Box::new(Name::from_text("db.example").unwrap()));
    let aliases =
        [("www".into(), AliasTarget::Base("three".into())), ("db".into(), outside)].into();
    Settings {
        listen: vec![[127, 0, 0, 1].into()],
        forwarding: true,
        aliases: Aliases::new(&aliases).unwrap(),
        ..Settings::new(zones())
    }
}

fn put(key: &str, value: &str) -> Change {
    let content = gsvc::parse(key.as_bytes(), value.as_bytes());
    Change::Put(Put { key: key.into(), revision: 0, lease: 0, content })
}

/// Creates an answerer with services of each kind, then applies more changes.
fn answerer(
    settings: Settings,
    then: impl IntoIterator<Item = Change>,
) -> std::sync::Arc<Answerer> {
    let now = Instant::now();
    let (mut publisher, answerer) =
        Publisher::new(catalog::Settings::new(zones(), 1), settings, now);
    let mut changes = vec![Change::list_begin(ListKind::Routine)];
    for (key, value) in [
        ("one/latest/10.0.0.1:80", "{}"),
        ("three/latest/10.0.0.1:80,10.0.0.2:80,10.0.0.3:80", "{}"),
        ("both/latest/10.0.0.1:80,[fd00::5]:80", "{}"),
        ("weights/latest/10.0.0.1:80", r#"{"weight":3}"#),
        ("weights/latest/10.0.0.2:80", r#"{"weight":1}"#),
        ("weights/latest/10.0.0.3:80", r#"{"weight":0}"#),
        ("ports/latest/10.0.0.1:80,10.0.0.1:81", "{}"),
        ("hosts/latest/web.example:80", "{}"),
        ("versions/v1/10.0.0.1:80", "{}"),
        ("a.b.c/latest/10.0.0.1:80", "{}"),
    ] {
        changes.push(put(&format!("/service/default/default/{key}"), value));
    }
    // Labels of equal length, so that the same number of records fits whichever are drawn.
    for at in 10..100 {
        changes.push(put(&format!("/service/default/default/many/latest/10.1.0.{at}:80"), "{}"));
        changes.push(put(
            &format!("/service/default/default/heavy/latest/10.1.0.{at}:80"),
            &format!(r#"{{"weight":{}}}"#, at % 5),
        ));
    }
    changes.push(put("/service/default/prod/else/latest/10.0.0.9:80", "{}"));
    changes.push(Change::ListEnd { revision: 1 });
    changes.extend(then);
    publisher.apply([Update::Registry(RegistryId::FIRST, changes)], now);
    publisher.apply(
        [Update::Hosts(vec![(
            "web.example".into(),
            Addresses::Known([[192, 0, 2, 1].into()].into()),
        )])],
        now,
    );
    answerer
}

fn query_bytes(name: &str, rtype: u16, payload: Option<u16>) -> Vec<u8> {
    let mut packet = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    packet.extend_from_slice(Name::from_text(name).unwrap().as_wire());
    put_u16(&mut packet, rtype);
    put_u16(&mut packet, rtype::IN);
    if let Some(payload) = payload {
        packet[11] = 1;
        packet.extend_from_slice(&[0, 0, 41]);
        put_u16(&mut packet, payload);
        packet.extend_from_slice(&[0; 6]);
    }
    packet
}

/// Counts allocations of `answer` over [`QUERIES`] draws, after a warm-up.
fn allocations(mut answer: impl FnMut(u64)) -> u64 {
    (0..64).for_each(&mut answer);
    measure(|| (0..QUERIES).for_each(&mut answer)).count_total
}

/// Name, type, EDNS size and transport of a query, and the expected response.
///
/// The response is given by its code, its number of answer records, and TC.
type ExpectedResponse<'a> = (&'a str, u16, Option<u16>, Transport, (u8, u16, bool));

/// Returns a line for each query whose response allocates.
fn find_allocations(answerer: &Answerer, queries: &[ExpectedResponse<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    let mut out = Vec::with_capacity(65_535);
    for (name, rtype, payload, transport, expected) in queries {
        let packet = query_bytes(name, *rtype, *payload);
        let tally = answerer.tallies().worker("udp");
        let ask = |draw: u64, out: &mut Vec<u8>| {
            let (ahead, parsed) =
                (answerer.look_ahead([&packet[..]; 2].into_iter()), Query::parse(&packet));
            tally.count_question(ahead.zone_slot(&parsed, 1), parsed.qtype());
            let outcome = answerer.respond(&parsed, (&ahead, 1), *transport, draw, out);
            if let AnswerOutcome::Answered(source) = outcome {
                tally.count_response(source, out);
            }
            outcome
        };
        assert!(matches!(ask(1, &mut out), AnswerOutcome::Answered(_)), "{name} {rtype}");
        assert_eq!(
            (out[3] & 0xF, u16::from_be_bytes([out[6], out[7]]), out[2] & 2 != 0),
            *expected,
            "{name} {rtype} {payload:?}"
        );
        let count = allocations(|draw| {
            ask(draw, &mut out);
        });
        if count > 0 {
            found.push(format!(
                "{name} type {rtype} EDNS {payload:?} {transport:?}: {count} in {QUERIES} responses"
            ));
        }
    }
    found
}

/// Usual queries: names, types and EDNS sizes that the fast path must answer.
const USUAL_QUERIES: [ExpectedResponse<'static>; 36] = [
    ("one.svc", rtype::A, None, Transport::Udp, (0, 1, false)),
    ("ONE.svc", rtype::A, Some(1232), Transport::Udp, (0, 1, false)),
    ("one.svc", rtype::A, Some(1232), Transport::Tcp, (0, 1, false)),
    ("one.svc", rtype::SRV, Some(1232), Transport::Udp, (0, 1, false)),
    ("one.svc", rtype::ANY, None, Transport::Udp, (0, 1, false)),
    ("three.svc", rtype::A, None, Transport::Udp, (0, 3, false)),
    ("three.svc", rtype::SRV, None, Transport::Udp, (0, 3, false)),
    ("three.svc", rtype::SRV, Some(4096), Transport::Udp, (0, 3, false)),
    ("both.svc", rtype::AAAA, None, Transport::Udp, (0, 1, false)),
    ("both.svc", rtype::SRV, Some(1232), Transport::Udp, (0, 2, false)),
    ("ports.svc", rtype::SRV, Some(1232), Transport::Udp, (0, 2, false)),
    ("weights.svc", rtype::A, Some(1232), Transport::Udp, (0, 3, false)),
    ("weights.svc", rtype::SRV, Some(1232), Transport::Udp, (0, 3, false)),
    ("hosts.svc", rtype::A, None, Transport::Udp, (0, 1, false)),
    ("hosts.svc", rtype::SRV, None, Transport::Udp, (0, 1, false)),
    ("many.svc", rtype::A, None, Transport::Udp, (0, 30, true)),
    ("many.svc", rtype::A, Some(1232), Transport::Udp, (0, 74, true)),
    ("many.svc", rtype::A, Some(1232), Transport::Tcp, (0, 90, false)),
    ("many.svc", rtype::SRV, Some(1232), Transport::Udp, (0, 31, true)),
    ("many.svc", rtype::SRV, None, Transport::Tcp, (0, 90, false)),
    ("heavy.svc", rtype::A, None, Transport::Udp, (0, 30, true)),
    ("heavy.svc", rtype::A, Some(1232), Transport::Udp, (0, 74, true)),
    ("heavy.svc", rtype::SRV, Some(1232), Transport::Udp, (0, 30, true)),
    ("else.prod.svc", rtype::A, Some(1232), Transport::Udp, (0, 1, false)),
    ("10-0-0-1.three.svc", rtype::A, Some(1232), Transport::Udp, (0, 1, false)),
    ("10-0-0-1.three.svc", rtype::AAAA, Some(1232), Transport::Udp, (0, 0, false)),
    ("one.svc", rtype::AAAA, Some(1232), Transport::Udp, (0, 0, false)),
    ("one.svc", 65, None, Transport::Udp, (0, 0, false)),
    ("nothing.svc", rtype::A, Some(1232), Transport::Udp, (3, 0, false)),
    ("nothing.nowhere.svc", rtype::AAAA, None, Transport::Udp, (3, 0, false)),
    ("c.svc", rtype::A, Some(1232), Transport::Udp, (0, 0, false)),
    ("www.svc", rtype::A, Some(1232), Transport::Udp, (0, 3, false)),
    ("www.svc", rtype::SRV, Some(1232), Transport::Udp, (0, 3, false)),
    ("www.svc", rtype::AAAA, Some(1232), Transport::Udp, (0, 0, false)),
    ("10-0-0-1.www.svc", rtype::A, Some(1232), Transport::Udp, (0, 1, false)),
    ("db.svc", rtype::CNAME, Some(1232), Transport::Udp, (0, 1, false)),
];

#[test]
fn precompiled_answers_do_not_allocate() {
    let found = find_allocations(&answerer(settings(), []), &USUAL_QUERIES);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn stale_answers_do_not_allocate() {
    let found =
        find_allocations(&answerer(settings(), [Change::Connected(false)]), &USUAL_QUERIES[..2]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn answers_with_a_record_limit_do_not_allocate() {
    let queries = [
        ("many.svc", rtype::A, Some(1232), Transport::Udp, (0, 2, false)),
        ("heavy.svc", rtype::A, Some(1232), Transport::Udp, (0, 2, false)),
        ("heavy.svc", rtype::SRV, Some(1232), Transport::Udp, (0, 2, false)),
    ];
    let found = find_allocations(
        &answerer(Settings { answers: Answers::Count(2.try_into().unwrap()), ..settings() }, []),
        &queries,
    );
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn cached_answers_of_upstreams_do_not_allocate() {
    let upstream = Upstream::start();
    upstream.put([
        Record::soa("example.test", 300, 300),
        Record::a("www.example.test", 300, "192.0.2.1"),
        Record::cname("alias.example.test", 300, "www.example.test"),
    ]);
    let settings = upstream::Settings {
        servers: Servers::Named(vec![upstream.flag().parse().unwrap()]),
        domains: Vec::new(),
        order: None,
        own: Vec::new(),
        zones: zones(),
        ca_file: None,
        random_case: false,
        rebinding: None,
        cache_bytes: 1 << 20,
        stale: std::time::Duration::ZERO,
        negative_ttl: 1,
        forward_single_labels: false,
        other_opcodes: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
    let mut out = Vec::with_capacity(65_535);
    let mut found = Vec::new();
    runtime.block_on(async {
        let forwarder = Forwarder::start(Some(settings), &tracker, &stop);
        let lane = forwarder.lane().load_full().unwrap();
        for (name, rtype, payload) in [
            ("www.example.test", rtype::A, None),
            ("www.example.test", rtype::A, Some(1232)),
            ("WWW.example.test", rtype::AAAA, Some(1232)),
            ("alias.example.test", rtype::A, Some(1232)),
            ("nothing.example.test", rtype::A, None),
        ] {
            let packet = query_bytes(name, rtype, payload);
            let client = std::net::Ipv4Addr::LOCALHOST.into();
            let resolution = lane.resolve(&packet, Transport::Udp, client).await;
            let Some(Resolution::Response(answer)) = resolution else {
                panic!("{name}: {resolution:?}")
            };
            assert!(matches!(answer[3] & 0xF, 0 | 3), "{name}: {answer:02x?}");
            let Parsed::Query(query) = Query::parse(&packet) else {
                panic!("{name} is not a query")
            };
            let now = Instant::now();
            let count = allocations(|_| {
                out.clear();
                assert_eq!(
                    lane.respond(&query, Transport::Udp, now, &mut out),
                    LaneOutcome::Cached
                );
            });
            if count > 0 {
                found.push(format!(
                    "{name} type {rtype} EDNS {payload:?}: {count} in {QUERIES} responses"
                ));
            }
        }
    });
    stop.cancel();
    assert!(found.is_empty(), "{found:#?}");
}
