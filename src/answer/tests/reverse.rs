//! The reverse tree: registered addresses, the names above them, and locally served zones.

use super::*;
use crate::wire::Parsed;

/// TTL of negative answers in these tests, in seconds.
const NEGATIVE_TTL: u32 = 7;

/// Services at a private, a unique-local, a public and a loopback address.
const KEYS: [(&str, &str); 4] = [
    ("/service/default/default/hello.svc/latest/10.9.0.5:80", "{}"),
    ("/service/default/default/six.svc/latest/[fd00:1::5]:80", "{}"),
    ("/service/default/default/public.svc/latest/8.8.4.4:80", "{}"),
    ("/service/default/default/here.svc/latest/127.0.0.9:80", "{}"),
];

fn negative_settings() -> Settings {
    Settings { negative_ttl: NEGATIVE_TTL, ..settings() }
}

fn harness() -> Harness {
    Harness::with(negative_settings(), &KEYS)
}

fn reverse(address: &str) -> String {
    crate::name::reverse_name(address.parse().unwrap()).to_string()
}

/// Returns the owner of the SOA record in the authority section.
///
/// Checks that its TTLs are `negative-ttl`.
fn soa_owner(message: &Message) -> String {
    let [record] = &message.authorities[..] else { return String::new() };
    let RData::SOA(soa) = &record.data else { panic!("{record}") };
    assert_eq!((record.ttl, soa.minimum), (NEGATIVE_TTL, NEGATIVE_TTL));
    record.name.to_string()
}

#[test]
fn reverse_names_above_registered_addresses_exist() {
    let harness = harness();
    let six = reverse("fd00:1::5");
    for (name, short, soa) in [
        ("10.in-addr.arpa", "NODATA", "10.in-addr.arpa."),
        ("9.10.in-addr.arpa", "NODATA", "10.in-addr.arpa."),
        ("0.9.10.IN-ADDR.ARPA", "NODATA", "10.in-addr.arpa."),
        ("1.9.10.in-addr.arpa", "NXDOMAIN", "10.in-addr.arpa."),
        ("8.10.in-addr.arpa", "NXDOMAIN", "10.in-addr.arpa."),
        ("6.0.9.10.in-addr.arpa", "NXDOMAIN", "10.in-addr.arpa."),
        ("1.5.0.9.10.in-addr.arpa", "NXDOMAIN", "10.in-addr.arpa."),
        ("x.9.10.in-addr.arpa", "NXDOMAIN", "10.in-addr.arpa."),
        ("168.192.in-addr.arpa", "NODATA", "168.192.in-addr.arpa."),
        ("d.f.ip6.arpa", "NODATA", "d.f.ip6.arpa."),
        (&six[2..], "NODATA", "d.f.ip6.arpa."),
        (&six[30..], "NODATA", "d.f.ip6.arpa."),
        (&reverse("fd00:1::6"), "NXDOMAIN", "d.f.ip6.arpa."),
        (&reverse("fd00:2::5")[2..], "NXDOMAIN", "d.f.ip6.arpa."),
        // svcdns does not serve the public zone, so the name is an apex, as registered addresses
        // are.
        ("4.8.8.in-addr.arpa", "NODATA", "4.8.8.in-addr.arpa."),
        ("8.8.8.in-addr.arpa", "REFUSED", ""),
    ] {
        let response = harness.response(name, rtype::A);
        let name = name.trim_end_matches('.');
        assert_eq!((&*super::short(&response), &*soa_owner(&response)), (short, soa), "{name}");
        assert_eq!(response.metadata.authoritative, short != "REFUSED", "{name}");
    }
    assert_eq!(harness.short(&reverse("10.9.0.5"), rtype::PTR), "10-9-0-5.hello.svc. | hello.svc.");
    assert_eq!(harness.short(&six, rtype::PTR), "fd00-1-0-0-0-0-0-5.six.svc. | six.svc.");
}

#[test]
fn reverse_names_above_removed_addresses_do_not_exist() {
    let mut harness = harness();
    let second = ("/service/default/default/twin.svc/latest/10.9.0.5:81", "{}");
    harness.apply([put(second.0, second.1)]);
    let remove = |harness: &mut Harness, key: &str| {
        let key = key.into();
        harness.apply([Change::Delete { key, revision: 0, removal: Removal::Explicit }]);
    };
    remove(&mut harness, KEYS[0].0);
    assert_eq!(harness.short("0.9.10.in-addr.arpa", rtype::PTR), "NODATA", "twin.svc is there");
    remove(&mut harness, second.0);
    assert_eq!(harness.short("0.9.10.in-addr.arpa", rtype::PTR), "NXDOMAIN");
    assert_eq!(harness.short("10.in-addr.arpa", rtype::PTR), "NODATA", "a zone has an apex");
}

#[test]
fn locally_served_reverse_zones_have_soa_ns_and_localhost_records() {
    let harness = harness();
    let soa = "10.in-addr.arpa. nobody.invalid. 1 3600 1200 604800 7";
    for (name, qtype, short) in [
        ("10.in-addr.arpa", rtype::SOA, soa),
        ("10.in-addr.arpa", rtype::NS, "10.in-addr.arpa."),
        ("1.0.0.127.in-addr.arpa", rtype::PTR, "localhost."),
        ("1.0.0.127.in-addr.arpa", rtype::ANY, "localhost."),
        ("1.0.0.127.in-addr.arpa", rtype::A, "NODATA"),
        ("0.127.in-addr.arpa", rtype::PTR, "NODATA"),
        ("2.0.0.127.in-addr.arpa", rtype::PTR, "NXDOMAIN"),
        // A registry cannot name a loopback address.
        ("9.0.0.127.in-addr.arpa", rtype::PTR, "NXDOMAIN"),
        (&reverse("::1"), rtype::PTR, "localhost."),
        (&reverse("::"), rtype::PTR, "NODATA"),
        (&reverse("172.16.0.1"), rtype::PTR, "NXDOMAIN"),
        (&reverse("100.64.0.1"), rtype::PTR, "NXDOMAIN"),
        (&reverse("fe80::1"), rtype::PTR, "NXDOMAIN"),
        (&reverse("9.9.9.9"), rtype::PTR, "REFUSED"),
        ("in-addr.arpa", rtype::PTR, "NODATA"),
        ("home.arpa", rtype::PTR, "REFUSED"),
    ] {
        assert_eq!(harness.short(name, qtype), short, "{name} {qtype}");
    }
}

#[test]
fn missing_reverse_names_are_servfail_before_the_first_list() {
    let harness = Harness::empty(negative_settings());
    for (name, short, error) in [
        ("5.0.9.10.in-addr.arpa", "SERVFAIL", Some(14)),
        ("0.9.10.in-addr.arpa", "SERVFAIL", Some(14)),
        ("4.4.8.8.in-addr.arpa", "SERVFAIL", Some(14)),
        (&reverse("fd00::5"), "SERVFAIL", Some(14)),
        ("10.in-addr.arpa", "NODATA", None),
        ("1.0.0.127.in-addr.arpa", "localhost.", None),
        ("2.0.0.127.in-addr.arpa", "NXDOMAIN", None),
        ("www.example", "REFUSED", Some(20)),
    ] {
        let response = harness.response(name, rtype::PTR);
        assert_eq!(
            (&*super::short(&response), extended_error(&response)),
            (short, error),
            "{name}"
        );
    }
}

#[test]
fn missing_reverse_names_are_stale_while_a_registry_is_disconnected() {
    let mut harness = harness();
    harness.apply([Change::Connected(false)]);
    for (name, error) in [("6.0.9.10.in-addr.arpa", 19), ("0.9.10.in-addr.arpa", 3)] {
        assert_eq!(extended_error(&harness.response(name, rtype::PTR)), Some(error), "{name}");
    }
}

/// Queries that must not be forwarded are answered as if forwarding were off.
#[test]
fn queries_that_must_not_be_forwarded_are_answered_locally() {
    let settings = Settings { forwarding: true, ..negative_settings() };
    let harness = Harness::with(settings, &KEYS);
    let outside = |name: &str| {
        let (query, mut out) = (query(name, rtype::PTR, Some(1232)), Vec::new());
        let parsed = Query::parse(&query);
        let ahead = harness.answerer.look_ahead(iter::once(&*query));
        let outcome = harness.answerer.respond(&parsed, (&ahead, 0), Transport::Udp, 0, &mut out);
        assert_eq!(outcome, AnswerOutcome::Forward, "{name}");
        let Parsed::Query(parsed) = parsed else { panic!("{name}") };
        harness.answerer.respond_outside(&parsed, Transport::Udp, &mut out);
        Message::from_vec(&out).unwrap()
    };
    for (name, short) in [
        ("0.9.10.in-addr.arpa", "NODATA"),
        ("6.0.9.10.in-addr.arpa", "NXDOMAIN"),
        ("4.8.8.in-addr.arpa", "NODATA"),
        ("1.0.0.127.in-addr.arpa", "localhost."),
        ("9.9.9.9.in-addr.arpa", "REFUSED"),
        ("www.example", "REFUSED"),
    ] {
        let response = outside(name);
        assert_eq!(super::short(&response), short, "{name}");
        assert!(response.metadata.recursion_available, "{name}");
    }
}

/// Corrects an upstream's negative response whose SOA record has TTLs of one day.
fn corrected(harness: &Harness, name: &str, code: u8) -> (String, u32) {
    let query = query(name, rtype::PTR, None);
    let mut response = query.clone();
    (response[2], response[3], response[9]) = (0x81, 0xA0 | code, 1);
    response.extend_from_slice(b"\xC0\x0C\0\x06\0\x01\0\x01\x51\x80\0\x16\0\0");
    response.extend_from_slice(&[0; 20]);
    let Parsed::Query(parsed) = Query::parse(&query) else { panic!("{name}") };
    harness.answerer.correct_forwarded(&parsed, &mut response);
    let message = Message::from_vec(&response).unwrap();
    assert_eq!(
        message.metadata.authentic_data,
        message.metadata.response_code == ResponseCode::from(0, code),
        "{name}: only the upstream's own words are authentic"
    );
    (short(&message), message.authorities[0].ttl)
}

#[test]
fn negative_upstream_responses_for_reverse_names_are_corrected() {
    let settings = Settings { forwarding: true, ..negative_settings() };
    let harness = Harness::with(settings.clone(), &KEYS);
    for (name, code, short, ttl) in [
        ("6.0.9.10.in-addr.arpa", 3, "NXDOMAIN", NEGATIVE_TTL),
        ("6.0.9.10.in-addr.arpa", 0, "NODATA", NEGATIVE_TTL),
        ("9.168.192.in-addr.arpa", 3, "NXDOMAIN", NEGATIVE_TTL),
        ("0.9.10.in-addr.arpa", 3, "NODATA", NEGATIVE_TTL),
        (&reverse("fd77::1"), 3, "NXDOMAIN", NEGATIVE_TTL),
        // Names in the network of a registered public address, and elsewhere.
        ("9.4.8.8.in-addr.arpa", 3, "NXDOMAIN", NEGATIVE_TTL),
        ("4.8.8.in-addr.arpa", 3, "NODATA", NEGATIVE_TTL),
        ("9.5.8.8.in-addr.arpa", 3, "NXDOMAIN", 86_400),
        (&reverse("2001:db9::1"), 3, "NXDOMAIN", 86_400),
        ("www.example", 3, "NXDOMAIN", 86_400),
    ] {
        assert_eq!(corrected(&harness, name, code), (short.to_owned(), ttl), "{name}");
    }
    // Before the first list, any address might be registered.
    let unread = Harness::empty(settings);
    let (short, ttl) = corrected(&unread, "9.5.8.8.in-addr.arpa", 3);
    assert_eq!((&*short, ttl), ("NXDOMAIN", NEGATIVE_TTL));
}

#[test]
fn positive_failed_and_malformed_upstream_responses_are_not_changed() {
    let harness = harness();
    let query = query("0.9.10.in-addr.arpa", rtype::PTR, None);
    let Parsed::Query(parsed) = Query::parse(&query) else { panic!("no query") };
    let pointer = b"\xC0\x0C\0\x0C\0\x01\0\x01\x51\x80\0\x02\xC0\x0C";
    let alias = b"\xC0\x0C\0\x05\0\x01\0\0\0\x05\0\x02\xC0\x0E";
    for (code, answers, records) in
        [(0, 1, &pointer[..]), (3, 1, &alias[..]), (2, 0, &[]), (5, 0, &[]), (3, 9, b"\xFF\xFF")]
    {
        let mut response = query.clone();
        (response[2], response[3], response[7]) = (0x81, 0x80 | code, answers);
        response.extend_from_slice(records);
        let before = response.clone();
        harness.answerer.correct_forwarded(&parsed, &mut response);
        assert_eq!(response, before, "code {code}");
    }
}
