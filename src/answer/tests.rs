//! Tests of responses, decoded by an independent library (hickory).

mod aliases;
mod bridging;
mod checks;
mod messages;
mod naming;
mod properties;
mod reconfigure;
mod reverse;
mod sources;

use std::collections::BTreeMap;
use std::iter;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsCode;
use hickory_proto::rr::{RData, Record as Decoded};

use super::{
    AliasTarget, Aliases, AnswerOutcome, Answerer, Answers, Published, Publisher, ResponseSource,
    Settings,
};
use crate::catalog;
use crate::name::{Name, Zones};
use crate::service::{
    Addresses, Change, Endpoint, Host, HostChange, ListKind, Metadata, Put, Registration,
    RegistryId, Removal, ServiceId, Update,
};
use crate::wire::{Query, Transport, rcode_name, rtype};

/// A publisher, its answerer, and the time that the test passes to them.
struct Harness {
    publisher: Publisher,
    answerer: Arc<Answerer>,
    now: Instant,
}

fn settings() -> Settings {
    let zones = Zones::new(&["svc".to_owned(), "internal".to_owned()]).unwrap();
    Settings { listen: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)], ..Settings::new(zones) }
}

/// Registers a key with its JSON value.
///
/// The key is `/service/<deployment>/<namespace>/<name>/<version>/<endpoints>`.
fn put(key: &str, value: &str) -> Change {
    let parts: Vec<&str> = key.trim_matches('/').split('/').collect();
    let endpoints = parts[5]
        .split(',')
        .map(|endpoint| {
            let (host, port) = endpoint.rsplit_once(':').unwrap();
            let host = host.trim_matches(['[', ']']);
            Endpoint {
                host: host.parse::<IpAddr>().map_or_else(|_| Host::Name(host.into()), Host::from),
                port: port.parse().unwrap(),
            }
        })
        .collect();
    let metadata: BTreeMap<_, _> = serde_json::from_str(value).unwrap();
    let id = ServiceId {
        deployment: parts[1].into(),
        namespace: parts[2].into(),
        name: parts[3].into(),
        version: parts[4].into(),
    };
    let content = Ok(Registration {
        id,
        endpoints,
        rejected: Vec::new(),
        metadata: Arc::new(Metadata::new(metadata)),
        overrides: false,
    });
    Change::Put(Put { key: key.into(), revision: 0, lease: 0, content })
}

/// Wraps changes of the first registry.
fn update(changes: impl IntoIterator<Item = Change>) -> Update {
    Update::Registry(RegistryId::FIRST, changes.into_iter().collect())
}

impl Harness {
    fn empty(settings: Settings) -> Self {
        let now = Instant::now();
        let catalog = catalog::Settings::new(settings.zones.clone(), 1);
        let (mut publisher, answerer) = Publisher::new(catalog, settings, now);
        // A small step size, so that the few services of a test take several steps.
        publisher.services_per_step = 2;
        Self { publisher, answerer, now }
    }

    fn with(settings: Settings, keys: &[(&str, &str)]) -> Self {
        let mut harness = Self::empty(settings);
        harness.list(keys);
        harness
    }

    fn of(keys: &[(&str, &str)]) -> Self {
        Self::with(settings(), keys)
    }

    fn of_strings<'k>(keys: impl IntoIterator<Item = (&'k String, &'k String)>) -> Self {
        let keys: Vec<_> = keys.into_iter().map(|(key, value)| (&**key, &**value)).collect();
        Self::of(&keys)
    }

    fn list(&mut self, keys: &[(&str, &str)]) {
        let mut changes = vec![Change::Connected(true), Change::list_begin(ListKind::Routine)];
        changes.extend(keys.iter().map(|(key, value)| put(key, value)));
        changes.push(Change::ListEnd { revision: 0 });
        self.apply(changes);
    }

    fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Published {
        self.publisher.apply([update(changes)], self.now)
    }

    /// Applies the resolved addresses of host names.
    fn resolve(&mut self, found: Vec<(Box<str>, Addresses)>) -> Published {
        self.publisher.apply([Update::Hosts(found)], self.now)
    }

    fn response(&self, name: &str, rtype: u16) -> Message {
        self.response_with(name, rtype, Some(1232), Transport::Udp, 0)
    }

    fn response_with(
        &self,
        name: &str,
        rtype: u16,
        payload: Option<u16>,
        transport: Transport,
        draw: u64,
    ) -> Message {
        let bytes = respond(&self.answerer, &query(name, rtype, payload), transport, draw)
            .expect("no response");
        Message::from_vec(&bytes)
            .unwrap_or_else(|error| panic!("{name} {rtype}: {error}: {bytes:02x?}"))
    }

    /// Summarizes the answer section: the data of each record, or the response code.
    fn short(&self, name: &str, rtype: u16) -> String {
        short(&self.response(name, rtype))
    }

    fn a(&self, name: &str) -> String {
        self.short(name, rtype::A)
    }
}

fn short(message: &Message) -> String {
    let mut data: Vec<String> =
        message.answers.iter().map(|record| record.data.to_string()).collect();
    data.sort();
    match message.metadata.response_code {
        ResponseCode::NoError if data.is_empty() => "NODATA".to_owned(),
        ResponseCode::NoError => data.join(" | "),
        other => rcode_name(other.into()).into_owned(),
    }
}

fn query(name: &str, rtype: u16, payload: Option<u16>) -> Vec<u8> {
    super::explain::query(&Name::from_text(name).unwrap(), rtype, payload)
}

fn respond(answerer: &Answerer, query: &[u8], transport: Transport, draw: u64) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let outcome = answerer.respond(
        &Query::parse(query),
        (&answerer.look_ahead(iter::once(query)), 0),
        transport,
        draw,
        &mut out,
    );
    assert_eq!(outcome == AnswerOutcome::Silent, out.is_empty());
    matches!(outcome, AnswerOutcome::Answered(_)).then_some(out)
}

fn extended_error(message: &Message) -> Option<u16> {
    let bytes = <Vec<u8>>::try_from(message.edns.as_ref()?.option(EdnsCode::Unknown(15))?).unwrap();
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

const HTTP: &str = r#"{"insecure":true,"protocol":"http"}"#;
const HELLO: (&str, &str) = ("/service/default/default/hello.svc/latest/10.0.0.1:8000", HTTP);

#[test]
fn a_publication_is_compiled_in_steps_and_published_atomically() {
    let Harness { mut publisher, answerer, now } = Harness::empty(settings());
    let a = |name: String| {
        short(
            &Message::from_vec(
                &respond(&answerer, &query(&name, rtype::A, None), Transport::Udp, 0).unwrap(),
            )
            .unwrap(),
        )
    };
    let key = |n: usize| format!("/service/default/default/s{n}.a/latest/10.0.0.{n}:80");
    let mut list = vec![Change::Connected(true), Change::list_begin(ListKind::Routine)];
    list.extend((1..10).map(|n| put(&key(n), "{}")));
    list.push(Change::ListEnd { revision: 0 });
    let mut publication = publisher.begin([update(list)], now);
    let mut parts = 1;
    while publication.compile_next() {
        parts += 1;
        assert!((0..10).all(|n| a(format!("s{n}.a.svc")) == "SERVFAIL"));
    }
    assert!(parts > 1, "compiled in one step");
    assert_eq!(publication.publish().changed.len(), 9);
    assert!((1..10).all(|n| a(format!("s{n}.a.svc")) == format!("10.0.0.{n}")));
    assert_eq!((a("s0.a.svc".into()), a("a.svc".into())), ("NXDOMAIN".into(), "NODATA".into()));

    // All services are removed and one is added: readers see neither before the publication.
    let delete =
        |n: usize| Change::Delete { key: key(n).into(), revision: 0, removal: Removal::Explicit };
    let changes =
        (1..10).map(delete).chain([put("/service/default/default/b.a/latest/10.0.0.1:80", "{}")]);
    let generation = answerer.snapshot.load().generation();
    let mut publication = publisher.begin([update(changes)], now);
    while publication.compile_next() {
        assert_eq!(
            (a("s1.a.svc".into()), a("b.a.svc".into())),
            ("10.0.0.1".into(), "NXDOMAIN".into())
        );
    }
    assert_eq!(publication.publish().changed.len(), 10);
    assert_eq!((a("s1.a.svc".into()), a("b.a.svc".into())), ("NXDOMAIN".into(), "10.0.0.1".into()));
    assert_eq!(
        (a("a.svc".into()), answerer.snapshot.load().generation()),
        ("NODATA".into(), generation + 1)
    );
}

#[test]
fn services_published_before_their_nodes_get_the_same_answers() {
    let mut test = Harness::empty(settings());
    test.publisher.services_per_step = 2;
    let keys = [
        ("/service/default/default/hello.svc/latest/10.0.0.1:80", r#"{"env":"gray"}"#),
        ("/service/default/default/hello.svc/v1.2/10.0.0.2:80", "{}"),
        ("/service/default/prod/only/latest/10.0.0.3:80", "{}"),
        ("/service/default/default/a.b.c/latest/10.0.0.4:80,[fd00::4]:81", "{}"),
        ("/service/default/default/host/latest/web.example:80", "{}"),
    ];
    let changes = [Change::list_begin(ListKind::Routine)]
        .into_iter()
        .chain(keys.iter().map(|(key, value)| put(key, value)))
        .chain([Change::ListEnd { revision: 0 }, Change::Connected(true)]);
    let names = [
        "hello.svc",
        "HELLO.internal",
        "v1.2.hello.svc",
        "gray._env.hello.svc",
        "only.svc",
        "only.prod.svc",
        "a.b.c.svc",
        "b.c.svc",
        "c.svc",
        "10-0-0-4.a.b.c.svc",
        "host.svc",
        "absent.svc",
        "absent.hello.svc",
        "svc",
        "ns.svc",
        "prod.svc",
        "default.svc",
        "4.0.0.10.in-addr.arpa",
        "9.0.0.10.in-addr.arpa",
    ];
    let answerer = Arc::clone(&test.answerer);
    let responses = || -> Vec<_> {
        let types = [rtype::A, rtype::AAAA, rtype::SRV, rtype::TXT, rtype::PTR];
        let queries =
            names.iter().flat_map(|name| types.map(|rtype| query(name, rtype, Some(1232))));
        queries.map(|query| respond(&answerer, &query, Transport::Udp, 7)).collect()
    };
    let publication = test.publisher.publish_services([update(changes)], test.now);
    let before = responses();
    assert!(test.answerer.snapshot().is_uncompiled);
    publication.publish();
    assert!(!test.answerer.snapshot().is_uncompiled);
    for (at, (before, after)) in before.iter().zip(responses()).enumerate() {
        // The serial of the SOA record is that of the generation, which is the same.
        assert_eq!(*before, after, "{}", names[at / 5]);
    }
    // Later publications index their changes as usual.
    test.apply([put("/service/default/default/new/latest/10.0.0.9:80", "{}")]);
    assert_eq!(test.a("new.svc"), "10.0.0.9");
}

#[test]
fn host_names_are_srv_targets_but_never_cnames() {
    let harness = Harness::of(&[(
        "/service/default/default/web/latest/web-1.example:9000,localhost:9001",
        "{}",
    )]);
    assert_eq!(
        harness.short("web.svc", rtype::SRV),
        "0 1 9000 web-1.example. | 0 1 9001 localhost."
    );
    assert_eq!(
        (harness.a("web.svc"), harness.short("web.svc", rtype::AAAA)),
        ("127.0.0.1".to_owned(), "::1".to_owned())
    );
    let hosts = Harness::of(&[("/service/default/default/web/latest/web-1.example:9000", "{}")]);
    let answer = hosts.response("web.svc", rtype::A);
    assert_eq!((short(&answer).as_str(), extended_error(&answer)), ("NODATA", Some(0)));
}

#[test]
fn services_registered_by_host_name_have_the_resolved_addresses() {
    const WEB: &str = "/service/default/default/web/latest/a.example:9000,b.example:9000";
    const OTHER: &str = "/service/default/prod/other/v1/a.example:80,10.0.0.7:80";
    let wanted = |host: &str| HostChange::Wanted(host.into());
    let known = |host: &str, addresses: &[&str]| {
        (
            Box::from(host),
            Addresses::Known(addresses.iter().map(|address| address.parse().unwrap()).collect()),
        )
    };
    let mut harness = Harness::with(Settings { forwarding: true, ..settings() }, &[]);
    let hosts = harness.apply([put(WEB, "{}"), put(OTHER, "{}")]).hosts;
    assert_eq!(hosts, [wanted("a.example"), wanted("b.example")]);
    // The first lookup is in progress; names that do not depend on it are answered.
    let answer = harness.response("web.svc", rtype::A);
    assert_eq!((short(&answer).as_str(), extended_error(&answer)), ("SERVFAIL", Some(23)));
    assert_eq!(harness.a("v1.other.prod.svc"), "10.0.0.7");
    assert_eq!(harness.short("web.svc", rtype::SRV), "0 1 9000 a.example. | 0 1 9000 b.example.");
    assert_eq!(harness.response("web.svc", rtype::TXT).answers.len(), 1);

    let changed = harness.resolve(vec![
        known("a.example", &["192.0.2.1", "10.0.0.7"]),
        (Box::from("b.example"), Addresses::Failed),
    ]);
    assert_eq!(
        changed.changed.iter().map(|changed| changed.base().to_owned()).collect::<Vec<_>>(),
        ["other", "web"]
    );
    assert_eq!(harness.a("web.svc"), "10.0.0.7 | 192.0.2.1");
    assert_eq!(harness.short("web.svc", rtype::AAAA), "NODATA");
    assert_eq!(harness.a("v1.other.prod.svc"), "10.0.0.7 | 192.0.2.1");
    assert_eq!(harness.short("web.svc", rtype::SRV), "0 1 9000 a.example. | 0 1 9000 b.example.");

    // Addresses of a host name are dropped once nothing is registered under it.
    let gone = Change::Delete { key: WEB.into(), revision: 0, removal: Removal::Explicit };
    assert_eq!(harness.apply([gone]).hosts, [HostChange::Unwanted("b.example".into())]);
    assert!(harness.resolve(vec![known("b.example", &["192.0.2.9"])]).changed.is_empty());
    assert_eq!(harness.apply([put(WEB, "{}")]).hosts, [wanted("b.example")]);
    harness.resolve(vec![known("a.example", &[]), known("b.example", &[])]);
    let answer = harness.response("web.svc", rtype::A);
    assert_eq!((short(&answer).as_str(), extended_error(&answer)), ("NODATA", Some(0)));
}

#[test]
fn both_address_families_are_served_but_no_docker_bridge() {
    let harness = Harness::of(&[(
        "/service/default/default/hello.svc/latest/10.0.0.1:80,172.17.0.1:80,[fd00::5]:80",
        "{}",
    )]);
    assert_eq!(
        (harness.a("hello.svc"), harness.short("hello.svc", rtype::AAAA)),
        ("10.0.0.1".to_owned(), "fd00::5".to_owned())
    );
    assert_eq!(
        harness.short("hello.svc", rtype::SRV),
        "0 1 80 10-0-0-1.hello.svc. | 0 1 80 fd00-0-0-0-0-0-0-5.hello.svc."
    );
    assert_eq!(harness.short("fd00--5.hello.svc", rtype::AAAA), "fd00::5");
    assert_eq!(harness.a("fd00-0-0-0-0-0-0-5.hello.svc"), "NODATA");
    let ptr = harness.short(
        "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
        rtype::PTR,
    );
    assert_eq!(ptr, "fd00-0-0-0-0-0-0-5.hello.svc. | hello.svc.");
}

#[test]
fn service_names_are_servfail_before_the_first_list() {
    let harness = Harness::empty(settings());
    let answer = harness.response("hello.svc", rtype::A);
    assert_eq!(
        (answer.metadata.response_code, extended_error(&answer)),
        (ResponseCode::ServFail, Some(14))
    );
    assert_eq!(harness.short("svc", rtype::NS), "ns.svc.");
}

#[test]
fn only_answers_from_a_disconnected_registry_are_stale() {
    let now = Instant::now();
    let settings = settings();
    let (mut publisher, answerer) =
        Publisher::new(catalog::Settings::new(settings.zones.clone(), 2), settings, now);
    let key = |name: &str, version: &str, n: u8| {
        put(&format!("/service/default/default/{name}/{version}/10.0.0.{n}:80"), HTTP)
    };
    let list = |puts: Vec<Change>| {
        let mut changes = vec![Change::Connected(true), Change::list_begin(ListKind::Routine)];
        changes.extend(puts);
        changes.push(Change::ListEnd { revision: 0 });
        changes
    };
    let [first, second] = [0, 1].map(|index| RegistryId::new(index).unwrap());
    let own = vec![
        key("here.svc", "latest", 1),
        key("both.svc", "latest", 2),
        key("one.svc", "latest", 4),
    ];
    let others = vec![
        key("there.svc", "latest", 3),
        key("both.svc", "latest", 2),
        key("one.svc", "v1", 4),
        key("one.svc", "v2", 5),
    ];
    publisher
        .apply([Update::Registry(first, list(own)), Update::Registry(second, list(others))], now);
    let harness = Harness { publisher, answerer, now };
    let error =
        |harness: &Harness, name: &str, rtype: u16| extended_error(&harness.response(name, rtype));
    let names = [
        "here.svc",
        "both.svc",
        "there.svc",
        "one.svc",
        "10-0-0-1.here.svc",
        "10-0-0-4.one.svc",
        "10-0-0-5.one.svc",
    ];
    let errors = |harness: &Harness| names.map(|name| error(harness, name, rtype::A));
    assert_eq!(errors(&harness), [None; 7]);

    let mut harness = harness;
    let disconnect =
        |registry, connected| Update::Registry(registry, vec![Change::Connected(connected)]);
    harness.publisher.apply([disconnect(second, false)], now);
    // An instance is fresh if any registry that has it in a matching version is.
    assert_eq!(errors(&harness), [None, None, Some(3), None, None, None, Some(3)]);
    assert_eq!(
        [rtype::SRV, rtype::TXT, rtype::ANY].map(|rtype| error(&harness, "here.svc", rtype)),
        [None; 3]
    );
    assert_eq!(
        [rtype::SRV, rtype::TXT, rtype::ANY].map(|rtype| error(&harness, "there.svc", rtype)),
        [Some(3); 3]
    );
    assert_eq!(error(&harness, "http._protocol.here.svc", rtype::A), None);
    assert_eq!(error(&harness, "http._protocol.there.svc", rtype::A), Some(3));
    assert_eq!(error(&harness, "1.0.0.10.in-addr.arpa", rtype::PTR), None);
    assert_eq!(
        [2, 3, 4].map(|n| error(&harness, &format!("{n}.0.0.10.in-addr.arpa"), rtype::PTR)),
        [None, Some(3), None]
    );
    // The disconnected registry might have a missing name, unless svcdns itself provides it.
    assert_eq!(
        ["here.svc", "both.svc", "10-0-0-1.here.svc", "10-0-0-4.one.svc", "there.svc"]
            .map(|name| error(&harness, name, rtype::AAAA)),
        [None, None, None, None, Some(3)]
    );
    assert_eq!(error(&harness, "nobody.svc", rtype::A), Some(19));
    assert_eq!(error(&harness, "http._protocol.nobody.svc", rtype::A), Some(19));
    assert_eq!(error(&harness, "none._protocol.here.svc", rtype::A), Some(3));
    assert_eq!(
        (error(&harness, "svc", rtype::SOA), error(&harness, "ns.svc", rtype::AAAA)),
        (None, None)
    );

    harness.publisher.apply([disconnect(first, false), disconnect(second, true)], now);
    assert_eq!(errors(&harness), [Some(3), None, None, Some(3), Some(3), None, None]);
    harness.publisher.apply([disconnect(second, false)], now);
    assert_eq!(errors(&harness), [Some(3); 7]);
    harness.publisher.apply([disconnect(second, true)], now);
    harness.publisher.apply([disconnect(first, true)], now);
    assert_eq!((errors(&harness), error(&harness, "nobody.svc", rtype::A)), ([None; 7], None));
}

#[test]
fn names_of_a_disconnected_registry_get_stale_answers() {
    let mut harness = Harness::of(&[HELLO]);
    harness.apply([Change::Connected(false)]);
    let (known, unknown) =
        (harness.response("hello.svc", rtype::A), harness.response("other.svc", rtype::A));
    assert_eq!((short(&known).as_str(), extended_error(&known)), ("10.0.0.1", Some(3)));
    assert_eq!((short(&unknown).as_str(), extended_error(&unknown)), ("NXDOMAIN", Some(19)));
    harness.apply([Change::Connected(true)]);
    assert_eq!(extended_error(&harness.response("hello.svc", rtype::A)), None);
}

#[test]
fn explanations_give_the_reason_for_dropped_instances() {
    let harness = Harness::of(&[
        HELLO,
        ("/service/default/default/hello.svc/latest/172.17.0.1:8000", HTTP),
        ("/service/default/default/hello.svc/v2/10.0.0.2:8000", HTTP),
    ]);
    let explanation =
        harness.answerer.explain(&Name::from_text("hello.svc").unwrap(), rtype::A, Some(1232), 0);
    let one = Harness::with(
        Settings { answers: Answers::Count(NonZeroU16::MIN), ..settings() },
        &[
            HELLO,
            ("/service/default/default/hello/v9/10.0.0.9:1", "{}"),
            ("/service/default/default/hello.svc/latest/10.0.0.8:1", "{}"),
        ],
    );
    assert_eq!(
        one.answerer
            .explain(&Name::from_text("hello.svc").unwrap(), rtype::A, Some(1232), 0)
            .left_out,
        1
    );
    let elsewhere = harness.answerer.explain(
        &Name::from_text("hello.eu.svc").unwrap(),
        rtype::A,
        Some(1232),
        0,
    );
    assert_eq!((elsewhere.rcode.as_str(), elsewhere.instances.len()), ("NXDOMAIN", 3));
    assert!(elsewhere.instances.iter().all(|instance| instance.dropped.is_some()));
    let dropped: Vec<_> =
        explanation.instances.iter().map(|c| (c.endpoint.as_str(), c.dropped.is_some())).collect();
    assert_eq!(
        dropped,
        [("10.0.0.1:8000", false), ("172.17.0.1:8000", true), ("10.0.0.2:8000", true)]
    );
    assert_eq!(
        (explanation.rcode.as_str(), explanation.answers.len(), explanation.precompiled),
        ("NOERROR", 1, true)
    );
}

#[test]
fn explanations_suggest_a_close_name_for_an_unknown_one() {
    let harness = Harness::of(&[
        HELLO,
        ("/service/default/default/help.svc/latest/10.0.0.2:80", "{}"),
        ("/service/default/prod/payments/latest/10.0.0.3:80", "{}"),
    ]);
    let explain = |name: &str| {
        let name = Name::from_text(name).unwrap();
        let explanation = harness.answerer.explain(&name, rtype::A, Some(1232), 0);
        (explanation.reason, explanation.suggestion)
    };
    let unknown = |name: &str| Some(format!("no service {name}"));
    let suggested = |name: &str| Some(name.to_owned());
    assert_eq!(explain("hlelo.svc"), (unknown("hlelo"), suggested("hello")));
    assert_eq!(explain("paymnts.prod.svc"), (unknown("paymnts.prod"), suggested("payments.prod")));
    // Names at equal distance are suggested in alphabetical order.
    assert_eq!(explain("helo.svc"), (unknown("helo"), suggested("hello")));
    assert_eq!(explain("quite-different.svc"), (unknown("quite-different"), None));
    assert_eq!(explain("_a.hello._b.svc"), (Some("the name has no valid form".to_owned()), None));
    let (reason, suggestion) = explain("v9.hello.svc");
    assert!(reason.is_some_and(|reason| reason.starts_with("service hello has no such version")));
    assert_eq!((suggestion, explain("hello.svc")), (None, (None, None)));
}

#[test]
fn answers_with_held_instances_are_stale() {
    let keys: Vec<_> =
        (0..20).map(|n| format!("/service/default/default/h{n}/latest/10.0.0.{n}:80")).collect();
    let mut harness = Harness::of(&keys.iter().map(|key| (&**key, "{}")).collect::<Vec<_>>());
    harness.apply([Change::list_begin(ListKind::Restored), Change::ListEnd { revision: 1 }]);
    let answer = harness.response("h3.svc", rtype::A);
    assert_eq!((short(&answer).as_str(), extended_error(&answer)), ("10.0.0.3", Some(3)));
    harness.now += Duration::from_secs(13);
    harness.apply([]);
    assert_eq!(harness.a("h3.svc"), "NXDOMAIN");
}

#[test]
fn known_names_are_answered_while_another_registry_is_unread() {
    let now = Instant::now();
    let settings = settings();
    let (mut publisher, answerer) =
        Publisher::new(catalog::Settings::new(settings.zones.clone(), 2), settings, now);
    let list = [
        Change::list_begin(ListKind::Routine),
        put(HELLO.0, HTTP),
        Change::ListEnd { revision: 1 },
    ];
    publisher.apply([update(list)], now);
    let mut harness = Harness { publisher, answerer, now };
    assert_eq!(
        (harness.a("hello.svc").as_str(), harness.short("hello.svc", rtype::AAAA).as_str()),
        ("10.0.0.1", "NODATA")
    );
    let unknown = harness.response("other.svc", rtype::A);
    assert_eq!((short(&unknown).as_str(), extended_error(&unknown)), ("SERVFAIL", Some(14)));
    harness.now += Duration::from_secs(11);
    harness.apply([]);
    let unknown = harness.response("other.svc", rtype::A);
    assert_eq!((short(&unknown).as_str(), extended_error(&unknown)), ("NXDOMAIN", Some(19)));
    let known = harness.response("hello.svc", rtype::A);
    assert_eq!((short(&known).as_str(), extended_error(&known)), ("10.0.0.1", None));
}
