//! The source that each response is counted under.

use super::*;

const HELLO: (&str, &str) = ("/service/default/default/hello/latest/10.0.0.1:80", "{}");

/// Returns the source of the response to a query, on the fast and the full path.
fn source(harness: &Harness, name: &str, rtype: u16) -> ResponseSource {
    let (answerer, query) = (&harness.answerer, query(name, rtype, Some(1232)));
    let (parsed, mut out) = (Query::parse(&query), Vec::new());
    let ahead = answerer.look_ahead(iter::once(&*query));
    let fast = answerer.respond(&parsed, (&ahead, 0), Transport::Udp, 0, &mut out);
    let full = answerer.respond_in_full(&parsed, Transport::Udp, 0, &mut out);
    assert_eq!(fast, full, "{name} {rtype}");
    let AnswerOutcome::Answered(source) = fast else { panic!("{name} {rtype}: {fast:?}") };
    source
}

#[test]
fn responses_name_their_source() {
    let mut harness = Harness::of(&[HELLO]);
    let data = [
        ("hello.svc", rtype::A),
        ("hello.svc", rtype::AAAA),
        ("hello.svc", rtype::TXT),
        ("hello.svc", rtype::SRV),
        ("10-0-0-1.hello.svc", rtype::A),
        ("nothing.internal", rtype::A),
        ("1.0.0.10.in-addr.arpa", rtype::PTR),
    ];
    let own = [
        ("svc", rtype::SOA),
        ("svc", rtype::TXT),
        ("ns.svc", rtype::A),
        ("dns-version.svc", rtype::TXT),
        ("1.0.0.127.in-addr.arpa", rtype::PTR),
        ("2.0.0.127.in-addr.arpa", rtype::PTR),
    ];
    for (name, rtype) in data {
        assert_eq!(source(&harness, name, rtype), ResponseSource::Registry, "{name} {rtype}");
    }
    harness.apply([Change::Connected(false)]);
    for (name, rtype) in data {
        assert_eq!(source(&harness, name, rtype), ResponseSource::Stale, "{name} {rtype}");
    }
    for (name, rtype) in own {
        assert_eq!(source(&harness, name, rtype), ResponseSource::Local, "{name} {rtype}");
    }
    for (name, rtype) in [("www.example", rtype::A), ("hello.svc", rtype::AXFR)] {
        assert_eq!(source(&harness, name, rtype), ResponseSource::Refused, "{name} {rtype}");
    }
    let unread = Harness::empty(settings());
    assert_eq!(source(&unread, "hello.svc", rtype::A), ResponseSource::Local, "not ready");
}

#[test]
fn static_services_are_a_source_of_their_own() {
    let static_registries = [RegistryId::FIRST].into_iter().collect();
    let harness = Harness::with(Settings { static_registries, ..settings() }, &[HELLO]);
    for (name, rtype) in [
        ("hello.svc", rtype::A),
        ("hello.svc", rtype::AAAA),
        ("hello.svc", rtype::TXT),
        ("1.0.0.10.in-addr.arpa", rtype::PTR),
    ] {
        assert_eq!(source(&harness, name, rtype), ResponseSource::Static, "{name} {rtype}");
    }
    assert_eq!(source(&harness, "nothing.svc", rtype::A), ResponseSource::Registry);
}
