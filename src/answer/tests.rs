//! Answers as an independent decoder reads them.

use std::collections::BTreeMap;
use std::iter;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsCode;
use hickory_proto::rr::{RData, Record as Decoded};
use proptest::prelude::*;

use super::{Answerer, Answers, Outcome, Published, Publisher, Settings};
use crate::catalog;
use crate::name::{Name, Zones};
use crate::service::{
    Addresses, Change, Endpoint, Host, HostChange, ListKind, Metadata, Put, Registration, RegistryId, Removal, ServiceId, Update,
};
use crate::wire::{Query, Transport, rcode_name, rtype};

/// A publisher and its answerer, and the time they are told.
struct House {
    publisher: Publisher,
    answerer: Arc<Answerer>,
    now: Instant,
}

fn settings() -> Settings {
    let zones = Zones::new(&["svc".to_owned(), "internal".to_owned()]).unwrap();
    Settings { listen: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)], ..Settings::new(zones) }
}

/// `/service/<deployment>/<namespace>/<name>/<version>/<endpoints>` and its JSON.
fn put(key: &str, value: &str) -> Change {
    let parts: Vec<&str> = key.trim_matches('/').split('/').collect();
    let endpoints = parts[5]
        .split(',')
        .map(|endpoint| {
            let (host, port) = endpoint.rsplit_once(':').unwrap();
            let host = host.trim_matches(['[', ']']);
            Endpoint { host: host.parse::<IpAddr>().map_or_else(|_| Host::Name(host.into()), Host::from), port: port.parse().unwrap() }
        })
        .collect();
    let metadata: BTreeMap<_, _> = serde_json::from_str(value).unwrap();
    let id = ServiceId { deployment: parts[1].into(), namespace: parts[2].into(), name: parts[3].into(), version: parts[4].into() };
    let content = Ok(Registration { id, endpoints, rejected: Vec::new(), metadata: Arc::new(Metadata::new(metadata)) });
    Change::Put(Put { key: key.into(), revision: 0, lease: 0, content })
}

/// Changes of the first registry.
fn update(changes: impl IntoIterator<Item = Change>) -> Update {
    Update::Registry(RegistryId::FIRST, changes.into_iter().collect())
}

impl House {
    fn empty(settings: Settings) -> Self {
        let now = Instant::now();
        let catalog = catalog::Settings::new(settings.zones.clone());
        let (mut publisher, answerer) = Publisher::new(catalog, settings, 1, now);
        // Tests have few services, and try many slices.
        publisher.slice = 2;
        Self { publisher, answerer, now }
    }

    fn with(settings: Settings, keys: &[(&str, &str)]) -> Self {
        let mut house = Self::empty(settings);
        house.list(keys);
        house
    }

    fn of(keys: &[(&str, &str)]) -> Self {
        Self::with(settings(), keys)
    }

    fn list(&mut self, keys: &[(&str, &str)]) {
        let mut changes = vec![Change::Connected(true), Change::ListBegin(ListKind::Routine)];
        changes.extend(keys.iter().map(|(key, value)| put(key, value)));
        changes.push(Change::ListEnd { revision: 0 });
        self.apply(changes);
    }

    fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Published {
        self.publisher.apply([update(changes)], self.now)
    }

    /// Tells what addresses host names have.
    fn resolve(&mut self, found: Vec<(Box<str>, Addresses)>) -> Published {
        self.publisher.apply([Update::Hosts(found)], self.now)
    }

    fn ask(&self, name: &str, rtype: u16) -> Message {
        self.ask_with(name, rtype, Some(1232), Transport::Udp, 0)
    }

    fn ask_with(&self, name: &str, rtype: u16, payload: Option<u16>, transport: Transport, draw: u64) -> Message {
        let bytes = respond(&self.answerer, &query(name, rtype, payload), transport, draw).expect("silence");
        Message::from_vec(&bytes).unwrap_or_else(|error| panic!("{name} {rtype}: {error}: {bytes:02x?}"))
    }

    /// The answer section in short: code, then each record's data.
    fn short(&self, name: &str, rtype: u16) -> String {
        short(&self.ask(name, rtype))
    }

    fn a(&self, name: &str) -> String {
        self.short(name, rtype::A)
    }
}

fn short(message: &Message) -> String {
    let mut data: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
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
    let outcome = answerer.respond(&Query::parse(query), (&answerer.look_ahead(iter::once(query)), 0), transport, draw, &mut out);
    assert_eq!(outcome == Outcome::Silent, out.is_empty());
    (outcome == Outcome::Answered).then_some(out)
}

fn extended_error(message: &Message) -> Option<u16> {
    let octets = <Vec<u8>>::try_from(message.edns.as_ref()?.option(EdnsCode::Unknown(15))?).unwrap();
    Some(u16::from_be_bytes([octets[0], octets[1]]))
}

const HTTP: &str = r#"{"insecure":true,"protocol":"http"}"#;
const HELLO: (&str, &str) = ("/service/default/default/hello.svc/latest/10.0.0.1:8000", HTTP);

#[test]
fn a_large_publication_is_made_in_parts_and_seen_as_a_whole() {
    let House { mut publisher, answerer, now } = House::empty(settings());
    let a =
        |name: String| short(&Message::from_vec(&respond(&answerer, &query(&name, rtype::A, None), Transport::Udp, 0).unwrap()).unwrap());
    let key = |n: usize| format!("/service/default/default/s{n}.a/latest/10.0.0.{n}:80");
    let mut list = vec![Change::Connected(true), Change::ListBegin(ListKind::Routine)];
    list.extend((1..10).map(|n| put(&key(n), "{}")));
    list.push(Change::ListEnd { revision: 0 });
    let mut publication = publisher.begin([update(list)], now);
    let mut parts = 1;
    while publication.go_on() {
        parts += 1;
        assert!((0..10).all(|n| a(format!("s{n}.a.svc")) == "SERVFAIL"));
    }
    assert!(parts > 1, "not in parts");
    assert_eq!(publication.publish().changed.len(), 9);
    assert!((1..10).all(|n| a(format!("s{n}.a.svc")) == format!("10.0.0.{n}")));
    assert_eq!((a("s0.a.svc".into()), a("a.svc".into())), ("NXDOMAIN".into(), "NODATA".into()));

    // All go, and another name comes where they were: nothing of it shows before all of it.
    let delete = |n: usize| Change::Delete { key: key(n).into(), revision: 0, removal: Removal::Explicit };
    let changes = (1..10).map(delete).chain([put("/service/default/default/b.a/latest/10.0.0.1:80", "{}")]);
    let generation = answerer.snapshot.load().generation();
    let mut publication = publisher.begin([update(changes)], now);
    while publication.go_on() {
        assert_eq!((a("s1.a.svc".into()), a("b.a.svc".into())), ("10.0.0.1".into(), "NXDOMAIN".into()));
    }
    assert_eq!(publication.publish().changed.len(), 10);
    assert_eq!((a("s1.a.svc".into()), a("b.a.svc".into())), ("NXDOMAIN".into(), "10.0.0.1".into()));
    assert_eq!((a("a.svc".into()), answerer.snapshot.load().generation()), ("NODATA".into(), generation + 1));
}

#[test]
fn the_naming_table() {
    let house = House::of(&[
        HELLO,
        ("/service/default/default/hello.svc/latest/10.0.0.2:8000", r#"{"gray":"x","env":"Gray.Two"}"#),
        ("/service/default/default/hello.svc/v1.2.0/10.0.0.3:9000", "{}"),
        ("/service/default/prod/hello.svc/latest/10.0.1.1:80", "{}"),
        ("/service/blue/prod/hello.svc/latest/10.0.2.1:80", "{}"),
        ("/service/default/prod/prodonly/latest/10.0.1.9:80", "{}"),
        ("/service/default/default/a.b.c/latest/10.0.3.1:80", "{}"),
    ]);
    for (name, answer) in [
        ("hello.svc", "10.0.0.1 | 10.0.0.2"),
        ("HELLO.SVC", "10.0.0.1 | 10.0.0.2"),
        ("hello.internal", "10.0.0.1 | 10.0.0.2"),
        ("hello.default.svc", "10.0.0.1 | 10.0.0.2"),
        ("hello.default.default.svc", "10.0.0.1 | 10.0.0.2"),
        ("hello.prod.svc", "10.0.1.1"),
        ("hello.prod.default.svc", "10.0.1.1"),
        ("hello.prod.blue.svc", "10.0.2.1"),
        ("hello.nowhere.svc", "NXDOMAIN"),
        ("v1.2.0.hello.svc", "10.0.0.3"),
        ("v1.2.0.hello.default.default.svc", "10.0.0.3"),
        ("2.0.hello.svc", "NODATA"),
        ("0.hello.svc", "NODATA"),
        ("1.0.hello.svc", "NXDOMAIN"),
        ("v9.hello.svc", "NXDOMAIN"),
        ("10-0-0-2.hello.svc", "10.0.0.2"),
        ("10-0-0-3.hello.svc", "10.0.0.3"),
        ("10-0-0-3.v1.2.0.hello.svc", "10.0.0.3"),
        ("10-0-0-1.v1.2.0.hello.svc", "NXDOMAIN"),
        ("10-0-1-1.hello.prod.svc", "10.0.1.1"),
        ("10-0-0-9.hello.svc", "NXDOMAIN"),
        ("gray.two._env.hello.svc", "10.0.0.2"),
        ("gray.two._env.x._gray.hello.svc", "10.0.0.2"),
        ("gray.two._env.y._gray.hello.svc", "NODATA"),
        ("true._insecure.hello.svc", "10.0.0.1"),
        ("latest._version.hello.svc", "10.0.0.1 | 10.0.0.2"),
        ("v1.2.0._version.hello.svc", "10.0.0.3"),
        ("v7._version.hello.svc", "NODATA"),
        ("prod._namespace.hello.svc", "10.0.1.1"),
        ("prod._namespace.blue._deployment.hello.svc", "10.0.2.1"),
        ("prod._namespace.hello.default.svc", "NODATA"),
        ("10-0-0-3._instance.hello.svc", "10.0.0.3"),
        ("8000._port.hello.svc", "10.0.0.1 | 10.0.0.2"),
        ("9000._port.v1.2.0.hello.svc", "10.0.0.3"),
        ("two._env.hello.svc", "NODATA"),
        ("_env.hello.svc", "NODATA"),
        ("_tcp.hello.svc", "NODATA"),
        ("x._env.unknown.svc", "NXDOMAIN"),
        ("_http._tcp.hello.svc", "NODATA"),
        ("_tcp.svc", "NODATA"),
        ("_hello._tcp.svc", "NODATA"),
        ("_zzz._tcp.svc", "NXDOMAIN"),
        ("prodonly.svc", "NODATA"),
        ("prod._namespace.prodonly.svc", "10.0.1.9"),
        ("prodonly.prod.svc", "10.0.1.9"),
        ("prod.svc", "NODATA"),
        ("default.svc", "NODATA"),
        ("default.default.svc", "NODATA"),
        ("blue.svc", "NODATA"),
        ("a.b.c.svc", "10.0.3.1"),
        ("b.c.svc", "NODATA"),
        ("c.svc", "NODATA"),
        ("x.b.c.svc", "NXDOMAIN"),
        ("unknown.svc", "NXDOMAIN"),
        ("x.hello.svc", "NXDOMAIN"),
        ("svc", "NODATA"),
        ("ns.svc", "127.0.0.1"),
        ("example.com", "REFUSED"),
        ("xsvc", "REFUSED"),
    ] {
        assert_eq!(house.a(name), answer, "{name}");
    }
    assert_eq!(house.short("hello.svc", rtype::SRV), "0 1 8000 10-0-0-1.hello.svc. | 0 1 8000 10-0-0-2.hello.svc.");
    assert_eq!(house.short("hello.internal", rtype::SRV), "0 1 8000 10-0-0-1.hello.svc. | 0 1 8000 10-0-0-2.hello.svc.");
    assert_eq!(house.short("hello.prod.blue.svc", rtype::SRV), "0 1 80 10-0-2-1.hello.prod.blue.svc.");
    assert_eq!(house.short("_http._tcp.hello.svc", rtype::SRV), "0 1 8000 10-0-0-1.hello.svc.");
    assert_eq!(house.short("_8000._tcp.hello.svc", rtype::SRV), "0 1 8000 10-0-0-1.hello.svc. | 0 1 8000 10-0-0-2.hello.svc.");
    assert_eq!(house.short("_grpc._tcp.hello.svc", rtype::SRV), "NODATA");
    assert_eq!(house.short("_hello._tcp.svc", rtype::SRV), house.short("hello.svc", rtype::SRV));
    assert_eq!(house.short("_a.b.c._tcp.svc", rtype::SRV), "0 1 80 10-0-3-1.a.b.c.svc.");
    assert_eq!(house.short("10-0-0-1.hello.svc", rtype::SRV), "0 1 8000 10-0-0-1.hello.svc.");
    assert_eq!(house.short("v1.2.0.hello.svc", rtype::SRV), "0 1 9000 10-0-0-3.hello.svc.");
    assert_eq!(house.short("hello.svc", rtype::AAAA), "NODATA");
    assert_eq!(house.short("hello.svc", 15), "NODATA");
    assert_eq!(house.short("svc", rtype::NS), "ns.svc.");
    assert_eq!(house.short("internal", rtype::NS), "ns.internal.");
    assert!(house.short("dns-version.svc", rtype::TXT).starts_with("svcdns "));
    assert_eq!(house.short("1.0.0.10.in-addr.arpa", rtype::PTR), "10-0-0-1.hello.svc. | hello.svc.");
    for draw in 0..5 {
        let answer = house.ask_with("1.0.0.10.in-addr.arpa", rtype::PTR, None, Transport::Udp, draw);
        assert_eq!(answer.answers[0].data.to_string(), "10-0-0-1.hello.svc.");
    }
    assert_eq!(house.short("1.0.0.10.in-addr.arpa", rtype::A), "NODATA");
    assert_eq!(house.short("9.9.9.9.in-addr.arpa", rtype::PTR), "REFUSED");
    assert_eq!(house.short("hello.svc", rtype::AXFR), "REFUSED");
}

#[test]
fn versions_fall_back_only_without_latest() {
    let keys = [("/service/default/default/ver/v1/10.0.0.1:80", "{}"), ("/service/default/default/ver/v2/10.0.0.2:80", "{}")];
    assert_eq!(House::of(&keys).a("ver.svc"), "10.0.0.1 | 10.0.0.2");
    let strict = House::with(Settings { version_fallback: false, ..settings() }, &keys);
    assert_eq!((strict.a("ver.svc"), strict.a("v1.ver.svc")), ("NODATA".to_owned(), "10.0.0.1".to_owned()));
    let canary = House::of(&[HELLO, ("/service/default/default/hello.svc/latest-canary/10.0.0.7:80", "{}")]);
    assert_eq!((canary.a("hello.svc"), canary.a("latest-canary.hello.svc")), ("10.0.0.1".to_owned(), "10.0.0.7".to_owned()));
}

#[test]
fn a_name_that_went_is_gone_and_one_of_unusable_endpoints_is_known() {
    let mut house = House::of(&[HELLO]);
    house.apply([Change::Delete { key: HELLO.0.into(), revision: 0, removal: Removal::Explicit }]);
    assert_eq!((house.a("hello.svc"), house.a("10-0-0-1.hello.svc")), ("NXDOMAIN".to_owned(), "NXDOMAIN".to_owned()));
    assert_eq!(house.short("1.0.0.10.in-addr.arpa", rtype::PTR), "REFUSED");
    let Change::Put(mut known) = put(HELLO.0, HTTP) else { unreachable!() };
    known.content.as_mut().unwrap().endpoints.clear();
    house.apply([Change::Put(known)]);
    assert_eq!((house.a("hello.svc"), house.a("10-0-0-1.hello.svc")), ("NODATA".to_owned(), "NXDOMAIN".to_owned()));
}

#[test]
fn hosts_are_targets_but_never_aliases() {
    let house = House::of(&[("/service/default/default/web/latest/web-1.example:9000,localhost:9001", "{}")]);
    assert_eq!(house.short("web.svc", rtype::SRV), "0 1 9000 web-1.example. | 0 1 9001 localhost.");
    assert_eq!((house.a("web.svc"), house.short("web.svc", rtype::AAAA)), ("127.0.0.1".to_owned(), "::1".to_owned()));
    let hosts = House::of(&[("/service/default/default/web/latest/web-1.example:9000", "{}")]);
    let answer = hosts.ask("web.svc", rtype::A);
    assert_eq!((short(&answer).as_str(), extended_error(&answer)), ("NODATA", Some(0)));
}

#[test]
fn hosts_have_the_addresses_that_were_looked_up() {
    const WEB: &str = "/service/default/default/web/latest/a.example:9000,b.example:9000";
    const OTHER: &str = "/service/default/prod/other/v1/a.example:80,10.0.0.7:80";
    let wanted = |host: &str| HostChange::Wanted(host.into());
    let known = |host: &str, addresses: &[&str]| {
        (Box::from(host), Addresses::Known(addresses.iter().map(|address| address.parse().unwrap()).collect()))
    };
    let mut house = House::with(Settings { forwarding: true, ..settings() }, &[]);
    let hosts = house.apply([put(WEB, "{}"), put(OTHER, "{}")]).hosts;
    assert_eq!(hosts, [wanted("a.example"), wanted("b.example")]);
    // While the first lookup runs; what is known otherwise is answered.
    let answer = house.ask("web.svc", rtype::A);
    assert_eq!((short(&answer).as_str(), extended_error(&answer)), ("SERVFAIL", Some(23)));
    assert_eq!(house.a("v1.other.prod.svc"), "10.0.0.7");
    assert_eq!(house.short("web.svc", rtype::SRV), "0 1 9000 a.example. | 0 1 9000 b.example.");
    assert_eq!(house.ask("web.svc", rtype::TXT).answers.len(), 1);

    let changed = house.resolve(vec![known("a.example", &["192.0.2.1", "10.0.0.7"]), (Box::from("b.example"), Addresses::Failed)]);
    assert_eq!(changed.changed.iter().map(|changed| changed.base().to_owned()).collect::<Vec<_>>(), ["other", "web"]);
    assert_eq!(house.a("web.svc"), "10.0.0.7 | 192.0.2.1");
    assert_eq!(house.short("web.svc", rtype::AAAA), "NODATA");
    assert_eq!(house.a("v1.other.prod.svc"), "10.0.0.7 | 192.0.2.1");
    assert_eq!(house.short("web.svc", rtype::SRV), "0 1 9000 a.example. | 0 1 9000 b.example.");

    // Nothing of a host that is registered no more remains.
    let gone = Change::Delete { key: WEB.into(), revision: 0, removal: Removal::Explicit };
    assert_eq!(house.apply([gone]).hosts, [HostChange::Unwanted("b.example".into())]);
    assert!(house.resolve(vec![known("b.example", &["192.0.2.9"])]).changed.is_empty());
    assert_eq!(house.apply([put(WEB, "{}")]).hosts, [wanted("b.example")]);
    house.resolve(vec![known("a.example", &[]), known("b.example", &[])]);
    let answer = house.ask("web.svc", rtype::A);
    assert_eq!((short(&answer).as_str(), extended_error(&answer)), ("NODATA", Some(0)));
}

#[test]
fn addresses_of_both_families_and_docker_bridges() {
    let house = House::of(&[("/service/default/default/hello.svc/latest/10.0.0.1:80,172.17.0.1:80,[fd00::5]:80", "{}")]);
    assert_eq!((house.a("hello.svc"), house.short("hello.svc", rtype::AAAA)), ("10.0.0.1".to_owned(), "fd00::5".to_owned()));
    assert_eq!(house.short("hello.svc", rtype::SRV), "0 1 80 10-0-0-1.hello.svc. | 0 1 80 fd00-0-0-0-0-0-0-5.hello.svc.");
    assert_eq!(house.short("fd00--5.hello.svc", rtype::AAAA), "fd00::5");
    assert_eq!(house.a("fd00-0-0-0-0-0-0-5.hello.svc"), "NODATA");
    let ptr = house.short("5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa", rtype::PTR);
    assert_eq!(ptr, "fd00-0-0-0-0-0-0-5.hello.svc. | hello.svc.");
}

#[test]
fn before_the_first_list_the_zone_cannot_answer() {
    let house = House::empty(settings());
    let answer = house.ask("hello.svc", rtype::A);
    assert_eq!((answer.metadata.response_code, extended_error(&answer)), (ResponseCode::ServFail, Some(14)));
    assert_eq!(house.short("svc", rtype::NS), "ns.svc.");
    assert_eq!(house.short("1.0.0.10.in-addr.arpa", rtype::PTR), "REFUSED");
}

#[test]
fn a_registry_that_is_away_makes_only_what_it_holds_stale() {
    let now = Instant::now();
    let settings = settings();
    let (mut publisher, answerer) = Publisher::new(catalog::Settings::new(settings.zones.clone()), settings, 2, now);
    let key = |name: &str, version: &str, n: u8| put(&format!("/service/default/default/{name}/{version}/10.0.0.{n}:80"), HTTP);
    let list = |puts: Vec<Change>| {
        let mut changes = vec![Change::Connected(true), Change::ListBegin(ListKind::Routine)];
        changes.extend(puts);
        changes.push(Change::ListEnd { revision: 0 });
        changes
    };
    let [first, second] = [0, 1].map(|place| RegistryId::new(place).unwrap());
    let own = vec![key("here.svc", "latest", 1), key("both.svc", "latest", 2), key("one.svc", "latest", 4)];
    let others = vec![key("there.svc", "latest", 3), key("both.svc", "latest", 2), key("one.svc", "v1", 4), key("one.svc", "v2", 5)];
    publisher.apply([Update::Registry(first, list(own)), Update::Registry(second, list(others))], now);
    let house = House { publisher, answerer, now };
    let error = |house: &House, name: &str, rtype: u16| extended_error(&house.ask(name, rtype));
    let names = ["here.svc", "both.svc", "there.svc", "one.svc", "10-0-0-1.here.svc", "10-0-0-4.one.svc", "10-0-0-5.one.svc"];
    let errors = |house: &House| names.map(|name| error(house, name, rtype::A));
    assert_eq!(errors(&house), [None; 7]);

    let mut house = house;
    let disconnect = |registry, connected| Update::Registry(registry, vec![Change::Connected(connected)]);
    house.publisher.apply([disconnect(second, false)], now);
    // An instance is held by every registry that has it in any version.
    assert_eq!(errors(&house), [None, Some(3), Some(3), None, None, Some(3), Some(3)]);
    assert_eq!([rtype::SRV, rtype::TXT, rtype::ANY].map(|rtype| error(&house, "here.svc", rtype)), [None; 3]);
    assert_eq!([rtype::SRV, rtype::TXT, rtype::ANY].map(|rtype| error(&house, "there.svc", rtype)), [Some(3); 3]);
    assert_eq!(error(&house, "http._protocol.here.svc", rtype::A), None);
    assert_eq!(error(&house, "http._protocol.there.svc", rtype::A), Some(3));
    assert_eq!(error(&house, "1.0.0.10.in-addr.arpa", rtype::PTR), None);
    assert_eq!([2, 3, 4].map(|n| error(&house, &format!("{n}.0.0.10.in-addr.arpa"), rtype::PTR)), [Some(3); 3]);
    // What is not there might be in the registry that is away; what svcdns knows of itself is not.
    assert_eq!((error(&house, "here.svc", rtype::AAAA), error(&house, "nobody.svc", rtype::A)), (Some(3), Some(19)));
    assert_eq!((error(&house, "svc", rtype::SOA), error(&house, "ns.svc", rtype::AAAA)), (None, None));

    house.publisher.apply([disconnect(first, false), disconnect(second, true)], now);
    assert_eq!(errors(&house), [Some(3), Some(3), None, Some(3), Some(3), Some(3), None]);
    house.publisher.apply([disconnect(first, true)], now);
    assert_eq!((errors(&house), error(&house, "nobody.svc", rtype::A)), ([None; 7], None));
}

#[test]
fn a_registry_that_is_away_makes_answers_stale_not_empty() {
    let mut house = House::of(&[HELLO]);
    house.apply([Change::Connected(false)]);
    let (known, unknown) = (house.ask("hello.svc", rtype::A), house.ask("other.svc", rtype::A));
    assert_eq!((short(&known).as_str(), extended_error(&known)), ("10.0.0.1", Some(3)));
    assert_eq!((short(&unknown).as_str(), extended_error(&unknown)), ("NXDOMAIN", Some(19)));
    house.apply([Change::Connected(true)]);
    assert_eq!(extended_error(&house.ask("hello.svc", rtype::A)), None);
}

#[test]
fn negative_answers_carry_the_soa_with_small_times() {
    let house = House::of(&[HELLO]);
    for (name, rtype) in [("hello.svc", rtype::AAAA), ("unknown.svc", rtype::A), ("svc", rtype::A)] {
        let answer = house.ask(name, rtype);
        let [Decoded { ttl, data: RData::SOA(soa), name: owner, .. }] = &answer.authorities[..] else { panic!("{answer}") };
        assert_eq!((*ttl, soa.minimum, owner.to_string().as_str()), (1, 1, "svc."));
        assert!(answer.metadata.authoritative);
    }
    let reverse = house.ask("1.0.0.10.in-addr.arpa", rtype::A);
    assert_eq!(reverse.authorities[0].name.to_string(), "1.0.0.10.in-addr.arpa.");
}

fn many(count: u8) -> House {
    let keys: Vec<_> = (0..count).map(|n| format!("/service/default/default/many/latest/10.0.0.{n}:80")).collect();
    House::of(&keys.iter().map(|key| (&**key, "{}")).collect::<Vec<_>>())
}

#[test]
fn as_many_as_fit() {
    // 30 A records in 512 octets, 29 beside an OPT, 74 in 1,232.
    let house = many(100);
    for (payload, fit) in [(None, 30), (Some(0), 29), (Some(512), 29), (Some(1232), 74), (Some(65535), 74)] {
        let answer = house.ask_with("many.svc", rtype::A, payload, Transport::Udp, 7);
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (fit, true), "{payload:?}");
        assert_eq!(answer.edns.is_some(), payload.is_some());
    }
    let whole = house.ask_with("many.svc", rtype::A, None, Transport::Tcp, 7);
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (100, false));
    let left_out = [30, 29, 29, 74, 74].map(|fit| 100 - fit).into_iter().sum();
    assert_eq!((house.answerer.counters().truncated(), house.answerer.counters().left_out()), (5, left_out));
    let few = many(30).ask_with("many.svc", rtype::A, None, Transport::Udp, 7);
    assert_eq!((few.answers.len(), few.metadata.truncation), (30, false));
}

#[test]
fn glue_takes_what_room_is_left_and_never_truncates() {
    // Header, question and OPT take 37 octets; a record has 37 or 38, its glue 33 or 34.
    let answer = many(33).ask_with("many.svc", rtype::SRV, Some(1232), Transport::Udp, 3);
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (31, true));
    let answer = many(30).ask_with("many.svc", rtype::SRV, Some(1232), Transport::Udp, 3);
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (30, false));
    assert!(answer.additionals.len() < 30);
    let answer = many(3).ask("many.svc", rtype::SRV);
    assert_eq!((answer.answers.len(), answer.additionals.len()), (3, 3));
}

#[test]
fn the_settings_for_answers_that_do_not_fit() {
    let keys: Vec<_> = (0..100).map(|n| format!("/service/default/default/many/latest/10.0.0.{n}:80")).collect();
    let keys: Vec<_> = keys.iter().map(|key| (&**key, "{}")).collect();
    let fit = House::with(Settings { answers: Answers::Fit, ..settings() }, &keys);
    let answer = fit.ask("many.svc", rtype::A);
    assert_eq!((answer.answers.len(), answer.metadata.truncation), (74, false));
    let counters = fit.answerer.counters();
    assert_eq!((counters.truncated(), counters.left_out()), (0, 26));
    // Where not one record fits, TC says so whatever the setting.
    let large = format!(r#"{{"a":"{0}","b":"{0}","c":"{0}"}}"#, "x".repeat(250));
    let large = House::with(Settings { answers: Answers::Fit, ..settings() }, &[(HELLO.0, &large)]);
    assert!(large.ask_with("hello.svc", rtype::TXT, None, Transport::Udp, 0).metadata.truncation);
    assert_eq!((large.answerer.counters().truncated(), large.answerer.counters().left_out()), (1, 1));
    let one = House::with(Settings { answers: Answers::Count(NonZeroU16::MIN), ..settings() }, &keys);
    for transport in [Transport::Udp, Transport::Tcp] {
        let answer = one.ask_with("many.svc", rtype::A, None, transport, 11);
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (1, false));
    }
    assert_eq!((one.answerer.counters().truncated(), one.answerer.counters().left_out()), (0, 198));
}

#[test]
fn any_is_one_rrset() {
    let house = House::of(&[("/service/default/default/hello.svc/latest/10.0.0.1:80,[fd00::5]:80", HTTP)]);
    assert_eq!(house.short("hello.svc", rtype::ANY), "10.0.0.1");
    assert_eq!(house.short("_http._tcp.hello.svc", rtype::ANY).split(" | ").count(), 2);
}

#[test]
fn text_is_the_metadata() {
    let long = "x".repeat(400);
    let house = House::of(&[
        ("/service/default/default/t/latest/10.0.0.1:80", &format!(r#"{{"a":"b","long":"{long}","n":5}}"#)),
        ("/service/default/default/t/latest/10.0.0.2:80", "{}"),
        ("/service/default/default/t/latest/10.0.0.3:80", "{}"),
    ]);
    let answer = house.ask("t.svc", rtype::TXT);
    let mut records: Vec<Vec<usize>> = answer
        .answers
        .iter()
        .map(|record| match &record.data {
            RData::TXT(txt) => txt.txt_data.iter().map(|string| string.len()).collect(),
            other => panic!("{other}"),
        })
        .collect();
    records.sort();
    assert_eq!(records, [vec![0], vec![3, 255, 3]]);
}

#[test]
fn the_first_place_goes_by_weight() {
    let house = House::of(&[
        ("/service/default/default/w/latest/10.0.0.1:80", r#"{"weight":3}"#),
        ("/service/default/default/w/latest/10.0.0.2:80", r#"{"weight":"1"}"#),
        ("/service/default/default/w/latest/10.0.0.3:80", r#"{"weight":0}"#),
    ]);
    let mut first = BTreeMap::new();
    for draw in 0..400 {
        let answer = house.ask_with("w.svc", rtype::A, None, Transport::Udp, draw * (u64::MAX / 400 + 1));
        assert_eq!(answer.answers.len(), 3);
        assert_eq!(answer.answers[2].data.to_string(), "10.0.0.3");
        *first.entry(answer.answers[0].data.to_string()).or_insert(0) += 1;
    }
    assert_eq!(first, BTreeMap::from([("10.0.0.1".to_owned(), 300), ("10.0.0.2".to_owned(), 100)]));
}

#[test]
fn a_sample_prefers_the_heavy_and_takes_none_without_weight_before_others() {
    let key = |n: u8, weight: u32| (format!("/service/default/default/w/latest/10.0.0.{n}:80"), format!(r#"{{"weight":{weight}}}"#));
    let keys: Vec<_> = (0..60).map(|n| key(n, if n < 20 { 100 } else { u32::from(n < 40) })).collect();
    let house = House::of(&keys.iter().map(|(key, value)| (&**key, &**value)).collect::<Vec<_>>());
    let mut heavy = 0;
    for draw in 0..100 {
        let answer = house.ask_with("w.svc", rtype::A, None, Transport::Udp, draw);
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (30, true));
        for record in &answer.answers {
            let RData::A(address) = &record.data else { panic!("{record}") };
            assert!(address.octets()[3] < 40, "an instance without weight came before others");
            heavy += usize::from(address.octets()[3] < 20);
        }
    }
    assert_eq!(heavy, 100 * 20, "all heavy ones fit, so all are in nearly every sample");
}

#[test]
fn equal_weights_rotate() {
    let house = many(3);
    let first = |draw| house.ask_with("many.svc", rtype::A, None, Transport::Udp, draw).answers[0].data.to_string();
    let firsts = [0, u64::MAX / 2, u64::MAX].map(first);
    assert_eq!(firsts, ["10.0.0.0", "10.0.0.1", "10.0.0.2"]);
}

#[test]
fn two_processes_at_one_address_are_one_a_and_two_srv() {
    let house = House::of(&[
        ("/service/default/default/p/latest/10.0.0.1:80", r#"{"weight":2}"#),
        ("/service/default/default/p/latest/10.0.0.1:81", r#"{"weight":3}"#),
        ("/services/default/default/p/latest/10.0.0.1:80", r#"{"weight":9}"#),
    ]);
    assert_eq!(house.a("p.svc"), "10.0.0.1");
    assert_eq!(house.short("p.svc", rtype::SRV), "0 2 80 10-0-0-1.p.svc. | 0 3 81 10-0-0-1.p.svc.");
    assert_eq!(house.ask("p.svc", rtype::SRV).additionals.len(), 1);
}

#[test]
fn what_is_no_query_of_ours() {
    let house = House::of(&[HELLO]);
    let mut chaos = query("hello.svc", rtype::A, None);
    let last = chaos.len() - 1;
    chaos[last] = 3;
    let answer = Message::from_vec(&respond(&house.answerer, &chaos, Transport::Udp, 0).unwrap()).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    let mut response = query("hello.svc", rtype::A, None);
    response[2] |= 0x80;
    assert_eq!(respond(&house.answerer, &response, Transport::Udp, 0), None);
    let mut notify = query("hello.svc", rtype::SOA, None);
    notify[2] |= 0x20;
    let answer = Message::from_vec(&respond(&house.answerer, &notify, Transport::Udp, 0).unwrap()).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NotImp);
    let mut version = query("hello.svc", rtype::A, Some(1232));
    let at = version.len() - 5;
    version[at] = 1;
    let answer = Message::from_vec(&respond(&house.answerer, &version, Transport::Udp, 0).unwrap()).unwrap();
    assert_eq!(u16::from(answer.metadata.response_code), 16);
    let mut out = Vec::new();
    assert!(house.answerer.refuse(&query("hello.svc", rtype::A, Some(1232)), &mut out));
    let answer = Message::from_vec(&out).unwrap();
    assert_eq!((answer.metadata.response_code, extended_error(&answer)), (ResponseCode::Refused, Some(18)));
}

#[test]
fn the_question_is_echoed_octet_for_octet() {
    let house = House::of(&[HELLO]);
    let mut asked = query("hello.svc", rtype::A, None);
    asked[13] = b'H';
    asked[20] = b'V';
    let answer = respond(&house.answerer, &asked, Transport::Udp, 0).unwrap();
    assert_eq!(answer[12..asked.len()], asked[12..]);
    assert_eq!(answer[7], 1);
}

#[test]
fn one_service_has_another_ones_name_until_it_goes() {
    let mut house = House::of(&[
        ("/service/default/prod/hello/latest/10.0.1.1:80", "{}"),
        ("/service/default/default/hello.prod/latest/10.0.0.9:80", "{}"),
    ]);
    assert_eq!(house.a("hello.prod.svc"), "10.0.0.9");
    // Within a row of the grammar the longest registered base wins.
    assert_eq!(house.a("hello.prod.default.svc"), "10.0.0.9");
    assert_eq!(house.a("prod._namespace.hello.svc"), "10.0.1.1");
    let key = "/service/default/default/hello.prod/latest/10.0.0.9:80";
    house.apply([Change::Delete { key: key.into(), revision: 0, removal: Removal::Explicit }]);
    assert_eq!(house.a("hello.prod.svc"), "10.0.1.1");
}

#[test]
fn an_explanation_names_what_was_dropped_and_why() {
    let house = House::of(&[
        HELLO,
        ("/service/default/default/hello.svc/latest/172.17.0.1:8000", HTTP),
        ("/service/default/default/hello.svc/v2/10.0.0.2:8000", HTTP),
    ]);
    let explanation = house.answerer.explain(&Name::from_text("hello.svc").unwrap(), rtype::A, Some(1232), 0);
    let one = House::with(
        Settings { answers: Answers::Count(NonZeroU16::MIN), ..settings() },
        &[HELLO, ("/service/default/default/hello/v9/10.0.0.9:1", "{}"), ("/service/default/default/hello.svc/latest/10.0.0.8:1", "{}")],
    );
    assert_eq!(one.answerer.explain(&Name::from_text("hello.svc").unwrap(), rtype::A, Some(1232), 0).left_out, 1);
    let elsewhere = house.answerer.explain(&Name::from_text("hello.eu.svc").unwrap(), rtype::A, Some(1232), 0);
    assert_eq!((elsewhere.rcode.as_str(), elsewhere.considered.len()), ("NXDOMAIN", 3));
    assert!(elsewhere.considered.iter().all(|considered| considered.dropped.is_some()));
    let dropped: Vec<_> = explanation.considered.iter().map(|c| (c.endpoint.as_str(), c.dropped.is_some())).collect();
    assert_eq!(dropped, [("10.0.0.1:8000", false), ("172.17.0.1:8000", true), ("10.0.0.2:8000", true)]);
    assert_eq!(house.answerer.counters().answers(0), 0, "an explanation is no answer");
    assert_eq!((explanation.rcode.as_str(), explanation.answers.len(), explanation.ready_made), ("NOERROR", 1, true));
}

/// A few labels that meet each other often.
fn label() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["hello", "prod", "v1", "a", "b", "latest", "default", "blue", "2", "0", "10-0-0-1"])
}

fn key() -> impl Strategy<Value = (String, String)> {
    let name = (prop::collection::vec(label(), 1..3), prop::sample::select(vec!["", ".svc", ".internal"]));
    let version = prop::sample::select(vec!["latest", "v1", "v1.2.0", "hello", "10-0-0-2"]);
    let endpoint = (prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "172.17.0.1", "[fd00::5]", "web.example", "localhost"]), 80u16..83);
    let scope = prop::sample::select(vec!["default/default", "default/prod", "blue/prod", "blue/default"]);
    let value = prop::sample::select(vec!["{}", HTTP, r#"{"weight":2,"env":"a.b"}"#, r#"{"weight":0}"#]);
    (scope, name, version, prop::collection::vec(endpoint, 0..4), value).prop_map(|(scope, (labels, suffix), version, endpoints, value)| {
        let endpoints: Vec<_> = endpoints.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        let endpoints = if endpoints.is_empty() { "10.0.0.9:9".to_owned() } else { endpoints.join(",") };
        (format!("/service/{scope}/{}{suffix}/{version}/{endpoints}", labels.join(".")), value.to_owned())
    })
}

fn asked_name() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "hello",
        "prod",
        "v1",
        "a",
        "b",
        "latest",
        "default",
        "blue",
        "2",
        "0",
        "10-0-0-1",
        "10-0-0-2",
        "fd00--5",
        "_tcp",
        "_http",
        "_env",
        "_version",
        "_namespace",
        "_port",
        "80",
        "_hello",
        "ns",
        "_80",
    ]);
    (prop::collection::vec(word, 0..5), prop::sample::select(vec!["svc", "internal"])).prop_map(|(labels, zone)| {
        let mut labels = labels;
        labels.push(zone);
        labels.join(".")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The ready-made records say what the naming grammar says, after any sequence of changes; and both say what a house
    /// says that was built at once.
    #[test]
    fn ready_made_answers_equal_full_ones(
        steps in prop::collection::vec((key(), any::<bool>()), 1..25),
        names in prop::collection::vec((asked_name(), prop::sample::select(vec![1u16, 28, 33, 16, 255, 6, 15]), any::<u64>()), 30),
    ) {
        let mut house = House::of(&[]);
        let mut held = BTreeMap::new();
        for ((key, value), there) in &steps {
            if *there {
                held.insert(key.clone(), value.clone());
                house.apply([put(key, value)]);
            } else if held.remove(key).is_some() {
                house.apply([Change::Delete { key: key.as_str().into(), revision: 0, removal: Removal::Explicit }]);
            }
        }
        let fresh = House::of(&held.iter().map(|(key, value)| (&**key, &**value)).collect::<Vec<_>>());
        let ready: Vec<_> = names.iter().map(|(name, rtype, draw)| short_bytes(&house, name, *rtype, *draw)).collect();
        let rebuilt: Vec<_> = names.iter().map(|(name, rtype, draw)| short_bytes(&fresh, name, *rtype, *draw)).collect();
        prop_assert_eq!(&ready, &rebuilt);
        for ((name, rtype, draw), ready) in names.iter().zip(&ready) {
            let mut full = Vec::new();
            let bytes = query(name, *rtype, Some(1232));
            house.answerer.respond_in_full(&Query::parse(&bytes), Transport::Udp, *draw, &mut full);
            prop_assert_eq!(ready, &decoded(&full), "{:?}", name);
        }
    }

    /// RFC 8020: a name below which another exists is never NXDOMAIN.
    #[test]
    fn what_has_names_below_it_exists(keys in prop::collection::vec(key(), 1..12), name in asked_name()) {
        let house = House::of(&keys.iter().map(|(key, value)| (&**key, &**value)).collect::<Vec<_>>());
        let mut name = name.as_str();
        let mut exists = false;
        while let Some((_, above)) = name.split_once('.') {
            let here = house.a(name);
            prop_assert!(!(exists && here == "NXDOMAIN"), "{} is above a name that exists", name);
            exists |= here != "NXDOMAIN";
            name = above;
        }
    }

    #[test]
    fn no_packet_panics(bytes in prop::collection::vec(any::<u8>(), 0..120), draw: u64) {
        let house = House::of(&[HELLO]);
        let _ = respond(&house.answerer, &bytes, Transport::Udp, draw);
        let mut tail = query("hello.svc", rtype::A, None)[..12].to_vec();
        tail.extend(bytes);
        let _ = respond(&house.answerer, &tail, Transport::Tcp, draw);
    }
}

/// A response without what differs between houses: the serial.
fn short_bytes(house: &House, name: &str, rtype: u16, draw: u64) -> String {
    decoded(&respond(&house.answerer, &query(name, rtype, Some(1232)), Transport::Udp, draw).unwrap())
}

/// What a message says, but for the serial.
fn decoded(message: &[u8]) -> String {
    let mut message = Message::from_vec(message).unwrap();
    for record in message.answers.iter_mut().chain(&mut message.authorities) {
        if let RData::SOA(soa) = &mut record.data {
            soa.serial = 0;
        }
    }
    format!("{message:?}")
}

#[test]
fn holding_removals_is_told() {
    let keys: Vec<_> = (0..20).map(|n| format!("/service/default/default/h{n}/latest/10.0.0.{n}:80")).collect();
    let mut house = House::of(&keys.iter().map(|key| (&**key, "{}")).collect::<Vec<_>>());
    house.apply([Change::ListBegin(ListKind::Restored), Change::ListEnd { revision: 1 }]);
    let answer = house.ask("h3.svc", rtype::A);
    assert_eq!((short(&answer).as_str(), extended_error(&answer)), ("10.0.0.3", Some(3)));
    house.now += Duration::from_secs(13);
    house.apply([]);
    assert_eq!(house.a("h3.svc"), "NXDOMAIN");
}

#[test]
fn of_two_registries_one_that_was_read_is_answered_from() {
    let now = Instant::now();
    let settings = settings();
    let (mut publisher, answerer) = Publisher::new(catalog::Settings::new(settings.zones.clone()), settings, 2, now);
    let list = [Change::ListBegin(ListKind::Routine), put(HELLO.0, HTTP), Change::ListEnd { revision: 1 }];
    publisher.apply([update(list)], now);
    let mut house = House { publisher, answerer, now };
    assert_eq!((house.a("hello.svc").as_str(), house.short("hello.svc", rtype::AAAA).as_str()), ("10.0.0.1", "NODATA"));
    let unknown = house.ask("other.svc", rtype::A);
    assert_eq!((short(&unknown).as_str(), extended_error(&unknown)), ("SERVFAIL", Some(14)));
    house.now += Duration::from_secs(11);
    house.apply([]);
    assert_eq!(house.a("other.svc"), "NXDOMAIN");
}

#[test]
fn a_name_above_another_zone_exists() {
    let zones = Zones::new(&["svc".to_owned(), "a.b.svc".to_owned()]).unwrap();
    let house = House::with(Settings { zones, ..settings() }, &[HELLO]);
    assert_eq!((house.a("b.svc"), house.a("hello.a.b.svc")), ("NODATA".to_owned(), "10.0.0.1".to_owned()));
    assert_eq!(house.a("c.svc"), "NXDOMAIN");
}

#[test]
fn the_soa_fits_whatever_the_zone() {
    let zone = ["z".repeat(63), "y".repeat(63), "x".repeat(63)].join(".");
    let house = House::with(Settings { zones: Zones::new(std::slice::from_ref(&zone)).unwrap(), ..settings() }, &[HELLO]);
    for name in [format!("unknown.{zone}"), format!("hello.{zone}"), zone.clone()] {
        let answer = house.ask_with(&name, rtype::AAAA, None, Transport::Udp, 0);
        assert_eq!(answer.authorities[0].name.to_string(), format!("{zone}."), "{name}");
    }
}

#[test]
fn a_namespace_that_is_no_label_makes_no_names() {
    let house = House::of(&[("/service/default/x.y/hello/latest/10.0.0.1:80", "{}")]);
    for (name, answer) in [("y.svc", "NXDOMAIN"), ("x.y.svc", "NXDOMAIN"), ("hello.x.y.svc", "NXDOMAIN"), ("hello.svc", "NODATA")] {
        assert_eq!(house.a(name), answer, "{name}");
    }
    assert_eq!(house.a("x.y._namespace.hello.svc"), "10.0.0.1");
    assert_eq!(house.short("x.y._namespace.hello.svc", rtype::SRV), "NODATA");
}

#[test]
fn a_label_like_an_instance_is_no_version() {
    let house = House::of(&[
        ("/service/default/prod/hello/latest/10.0.0.1:80", "{}"),
        ("/service/default/default/hello.prod/10-0-0-1/10.0.0.7:80", "{}"),
    ]);
    assert_eq!(house.a("10-0-0-1.hello.prod.svc"), "10.0.0.1");
    assert_eq!(house.a("10-0-0-1._version.hello.prod.svc"), "10.0.0.7");
}
