//! Answers as an independent decoder reads them.

mod messages;
mod naming;
mod properties;

use std::collections::BTreeMap;
use std::iter;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsCode;
use hickory_proto::rr::{RData, Record as Decoded};

use super::{Answerer, Answers, Disposition, Published, Publisher, Settings};
use crate::catalog;
use crate::name::{Name, Zones};
use crate::service::{
    Addresses, Change, Endpoint, Host, HostChange, ListKind, Metadata, Put, Registration,
    RegistryId, Removal, ServiceId, Update,
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
    });
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
        publisher.services_per_step = 2;
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

    fn ask_with(
        &self,
        name: &str,
        rtype: u16,
        payload: Option<u16>,
        transport: Transport,
        draw: u64,
    ) -> Message {
        let bytes = respond(&self.answerer, &query(name, rtype, payload), transport, draw)
            .expect("silence");
        Message::from_vec(&bytes)
            .unwrap_or_else(|error| panic!("{name} {rtype}: {error}: {bytes:02x?}"))
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
    assert_eq!(outcome == Disposition::Silent, out.is_empty());
    (outcome == Disposition::Answered).then_some(out)
}

fn extended_error(message: &Message) -> Option<u16> {
    let octets =
        <Vec<u8>>::try_from(message.edns.as_ref()?.option(EdnsCode::Unknown(15))?).unwrap();
    Some(u16::from_be_bytes([octets[0], octets[1]]))
}

const HTTP: &str = r#"{"insecure":true,"protocol":"http"}"#;
const HELLO: (&str, &str) = ("/service/default/default/hello.svc/latest/10.0.0.1:8000", HTTP);

#[test]
fn a_large_publication_is_made_in_parts_and_seen_as_a_whole() {
    let House { mut publisher, answerer, now } = House::empty(settings());
    let a = |name: String| {
        short(
            &Message::from_vec(
                &respond(&answerer, &query(&name, rtype::A, None), Transport::Udp, 0).unwrap(),
            )
            .unwrap(),
        )
    };
    let key = |n: usize| format!("/service/default/default/s{n}.a/latest/10.0.0.{n}:80");
    let mut list = vec![Change::Connected(true), Change::ListBegin(ListKind::Routine)];
    list.extend((1..10).map(|n| put(&key(n), "{}")));
    list.push(Change::ListEnd { revision: 0 });
    let mut publication = publisher.begin([update(list)], now);
    let mut parts = 1;
    while publication.compile_next() {
        parts += 1;
        assert!((0..10).all(|n| a(format!("s{n}.a.svc")) == "SERVFAIL"));
    }
    assert!(parts > 1, "not in parts");
    assert_eq!(publication.publish().changed.len(), 9);
    assert!((1..10).all(|n| a(format!("s{n}.a.svc")) == format!("10.0.0.{n}")));
    assert_eq!((a("s0.a.svc".into()), a("a.svc".into())), ("NXDOMAIN".into(), "NODATA".into()));

    // All go, and another name comes where they were: nothing of it shows before all of it.
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
fn hosts_are_targets_but_never_aliases() {
    let house = House::of(&[(
        "/service/default/default/web/latest/web-1.example:9000,localhost:9001",
        "{}",
    )]);
    assert_eq!(house.short("web.svc", rtype::SRV), "0 1 9000 web-1.example. | 0 1 9001 localhost.");
    assert_eq!(
        (house.a("web.svc"), house.short("web.svc", rtype::AAAA)),
        ("127.0.0.1".to_owned(), "::1".to_owned())
    );
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
        (
            Box::from(host),
            Addresses::Known(addresses.iter().map(|address| address.parse().unwrap()).collect()),
        )
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

    let changed = house.resolve(vec![
        known("a.example", &["192.0.2.1", "10.0.0.7"]),
        (Box::from("b.example"), Addresses::Failed),
    ]);
    assert_eq!(
        changed.changed.iter().map(|changed| changed.base().to_owned()).collect::<Vec<_>>(),
        ["other", "web"]
    );
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
    let house = House::of(&[(
        "/service/default/default/hello.svc/latest/10.0.0.1:80,172.17.0.1:80,[fd00::5]:80",
        "{}",
    )]);
    assert_eq!(
        (house.a("hello.svc"), house.short("hello.svc", rtype::AAAA)),
        ("10.0.0.1".to_owned(), "fd00::5".to_owned())
    );
    assert_eq!(
        house.short("hello.svc", rtype::SRV),
        "0 1 80 10-0-0-1.hello.svc. | 0 1 80 fd00-0-0-0-0-0-0-5.hello.svc."
    );
    assert_eq!(house.short("fd00--5.hello.svc", rtype::AAAA), "fd00::5");
    assert_eq!(house.a("fd00-0-0-0-0-0-0-5.hello.svc"), "NODATA");
    let ptr = house.short(
        "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
        rtype::PTR,
    );
    assert_eq!(ptr, "fd00-0-0-0-0-0-0-5.hello.svc. | hello.svc.");
}

#[test]
fn before_the_first_list_the_zone_cannot_answer() {
    let house = House::empty(settings());
    let answer = house.ask("hello.svc", rtype::A);
    assert_eq!(
        (answer.metadata.response_code, extended_error(&answer)),
        (ResponseCode::ServFail, Some(14))
    );
    assert_eq!(house.short("svc", rtype::NS), "ns.svc.");
    assert_eq!(house.short("1.0.0.10.in-addr.arpa", rtype::PTR), "REFUSED");
}

#[test]
fn a_registry_that_is_away_makes_only_what_it_holds_stale() {
    let now = Instant::now();
    let settings = settings();
    let (mut publisher, answerer) =
        Publisher::new(catalog::Settings::new(settings.zones.clone()), settings, 2, now);
    let key = |name: &str, version: &str, n: u8| {
        put(&format!("/service/default/default/{name}/{version}/10.0.0.{n}:80"), HTTP)
    };
    let list = |puts: Vec<Change>| {
        let mut changes = vec![Change::Connected(true), Change::ListBegin(ListKind::Routine)];
        changes.extend(puts);
        changes.push(Change::ListEnd { revision: 0 });
        changes
    };
    let [first, second] = [0, 1].map(|place| RegistryId::new(place).unwrap());
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
    let house = House { publisher, answerer, now };
    let error = |house: &House, name: &str, rtype: u16| extended_error(&house.ask(name, rtype));
    let names = [
        "here.svc",
        "both.svc",
        "there.svc",
        "one.svc",
        "10-0-0-1.here.svc",
        "10-0-0-4.one.svc",
        "10-0-0-5.one.svc",
    ];
    let errors = |house: &House| names.map(|name| error(house, name, rtype::A));
    assert_eq!(errors(&house), [None; 7]);

    let mut house = house;
    let disconnect =
        |registry, connected| Update::Registry(registry, vec![Change::Connected(connected)]);
    house.publisher.apply([disconnect(second, false)], now);
    // An instance is held by every registry that has it in any version.
    assert_eq!(errors(&house), [None, Some(3), Some(3), None, None, Some(3), Some(3)]);
    assert_eq!(
        [rtype::SRV, rtype::TXT, rtype::ANY].map(|rtype| error(&house, "here.svc", rtype)),
        [None; 3]
    );
    assert_eq!(
        [rtype::SRV, rtype::TXT, rtype::ANY].map(|rtype| error(&house, "there.svc", rtype)),
        [Some(3); 3]
    );
    assert_eq!(error(&house, "http._protocol.here.svc", rtype::A), None);
    assert_eq!(error(&house, "http._protocol.there.svc", rtype::A), Some(3));
    assert_eq!(error(&house, "1.0.0.10.in-addr.arpa", rtype::PTR), None);
    assert_eq!(
        [2, 3, 4].map(|n| error(&house, &format!("{n}.0.0.10.in-addr.arpa"), rtype::PTR)),
        [Some(3); 3]
    );
    // What is not there might be in the registry that is away; what svcdns knows of itself is not.
    assert_eq!(
        (error(&house, "here.svc", rtype::AAAA), error(&house, "nobody.svc", rtype::A)),
        (Some(3), Some(19))
    );
    assert_eq!(
        (error(&house, "svc", rtype::SOA), error(&house, "ns.svc", rtype::AAAA)),
        (None, None)
    );

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
fn an_explanation_names_what_was_dropped_and_why() {
    let house = House::of(&[
        HELLO,
        ("/service/default/default/hello.svc/latest/172.17.0.1:8000", HTTP),
        ("/service/default/default/hello.svc/v2/10.0.0.2:8000", HTTP),
    ]);
    let explanation =
        house.answerer.explain(&Name::from_text("hello.svc").unwrap(), rtype::A, Some(1232), 0);
    let one = House::with(
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
    let elsewhere =
        house.answerer.explain(&Name::from_text("hello.eu.svc").unwrap(), rtype::A, Some(1232), 0);
    assert_eq!((elsewhere.rcode.as_str(), elsewhere.considered.len()), ("NXDOMAIN", 3));
    assert!(elsewhere.considered.iter().all(|considered| considered.dropped.is_some()));
    let dropped: Vec<_> =
        explanation.considered.iter().map(|c| (c.endpoint.as_str(), c.dropped.is_some())).collect();
    assert_eq!(
        dropped,
        [("10.0.0.1:8000", false), ("172.17.0.1:8000", true), ("10.0.0.2:8000", true)]
    );
    assert_eq!(house.answerer.counters().responses(0), 0, "an explanation is no answer");
    assert_eq!(
        (explanation.rcode.as_str(), explanation.answers.len(), explanation.ready_made),
        ("NOERROR", 1, true)
    );
}

#[test]
fn holding_removals_is_told() {
    let keys: Vec<_> =
        (0..20).map(|n| format!("/service/default/default/h{n}/latest/10.0.0.{n}:80")).collect();
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
    let (mut publisher, answerer) =
        Publisher::new(catalog::Settings::new(settings.zones.clone()), settings, 2, now);
    let list =
        [Change::ListBegin(ListKind::Routine), put(HELLO.0, HTTP), Change::ListEnd { revision: 1 }];
    publisher.apply([update(list)], now);
    let mut house = House { publisher, answerer, now };
    assert_eq!(
        (house.a("hello.svc").as_str(), house.short("hello.svc", rtype::AAAA).as_str()),
        ("10.0.0.1", "NODATA")
    );
    let unknown = house.ask("other.svc", rtype::A);
    assert_eq!((short(&unknown).as_str(), extended_error(&unknown)), ("SERVFAIL", Some(14)));
    house.now += Duration::from_secs(11);
    house.apply([]);
    assert_eq!(house.a("other.svc"), "NXDOMAIN");
}
