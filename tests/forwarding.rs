//! Names outside the zones, end to end: the real program, and an upstream of ours that drops, delays, truncates, spoofs and
//! loops.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use support::upstream::{Behaviour, Damage, Edns, Forged, Message, Record, Transport, Upstream};
use support::{dns, seconds};

/// What the upstream of these tests knows.
fn records() -> Vec<Record> {
    vec![
        Record::soa("example.test", 300, 30),
        Record::a("www.example.test", 300, "192.0.2.1"),
        Record::aaaa("www.example.test", 300, "2001:db8::1"),
        Record::cname("alias.example.test", 60, "www.example.test"),
        Record::txt("text.example.test", 60, "some text"),
        Record::new("strange.example.test", 65_280, 60, [1, 2, 3]),
    ]
}

fn upstream() -> Upstream {
    let upstream = Upstream::start();
    upstream.put(records());
    upstream
}

/// The upstream itself, before it tells us about anything else.
#[test]
fn the_upstream_of_these_tests_does_what_it_is_told() {
    let upstream = upstream();
    let at = upstream.address;
    let short = |arguments: &[&str]| dns::dig_short(at, arguments);
    assert_eq!(short(&["alias.example.test", "A"]), ["192.0.2.1", "www.example.test."]);
    assert_eq!(short(&["+tcp", "www.example.test", "AAAA"]), ["2001:db8::1"]);
    assert_eq!(short(&["text.example.test", "TXT"]), ["\"some text\""]);
    assert_eq!(short(&["strange.example.test", "TYPE65280"]), ["\\# 3 010203"]);
    let absent = dns::dig(at, &["nothing.example.test", "A"]);
    assert!(absent.contains("status: NXDOMAIN") && absent.contains("example.test.\t\t300\tIN\tSOA\tns.test."), "{absent}");
    let no_data = dns::dig(at, &["text.example.test", "A"]);
    assert!(no_data.contains("status: NOERROR") && no_data.contains("ANSWER: 0, AUTHORITY: 1"), "{no_data}");

    upstream.on("www.example.test", Behaviour::reply(Message::code(2).with_error(23, "no network")));
    let failed = dns::dig(at, &["www.example.test", "A"]);
    assert!(failed.contains("status: SERVFAIL") && failed.contains("EDE: 23 (Network Error): (no network)"), "{failed}");
    upstream.on("www.example.test", Behaviour::code(23));
    assert!(dns::dig(at, &["www.example.test", "A"]).contains("status: BADCOOKIE"));
    upstream.on("www.example.test", Behaviour::truncating());
    assert!(dns::dig(at, &["+ignore", "www.example.test", "A"]).contains("flags: qr tc rd ra"));
    assert_eq!(short(&["www.example.test", "A"]), ["192.0.2.1"]);
    upstream.on("www.example.test", Behaviour::edns(Edns::FormErr));
    assert!(dns::dig(at, &["www.example.test", "A"]).contains("status: FORMERR"));
    assert!(dns::dig(at, &["+noedns", "www.example.test", "A"]).contains("status: NOERROR"));
    upstream.on("www.example.test", Behaviour::damaged(Damage::Oversized(5000)));
    let large = dns::dig(at, &["+bufsize=8192", "www.example.test", "A"]);
    assert!(large.contains("MSG SIZE  rcvd: 5") || large.contains("MSG SIZE  rcvd: 50"), "{large}");
    for damage in [Damage::PointerLoop, Damage::Counts, Damage::DataLength, Damage::Cut(20)] {
        upstream.on("www.example.test", Behaviour::damaged(damage));
        let octets = dns::ask(at, "www.example.test", dns::A).unwrap();
        assert!(hickory_proto::op::Message::from_vec(&octets).is_err(), "{damage:?} should not parse: {octets:02x?}");
    }
    upstream.on("www.example.test", Behaviour::describe());
    assert_eq!(
        short(&["+norec", "+adflag", "+cdflag", "+dnssec", "+nocookie", "+ednsopt=65001:aa", "+bufsize=1400", "www.example.test", "TXT"]),
        ["\"rd=0 ad=1 cd=1 edns=0 size=1400 do=1 options=65001\""]
    );

    // A socket that is not connected sees what a forger sends
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(seconds(10))).unwrap();
    for forged in [Forged::OtherPort, Forged::OtherAddress, Forged::Ids(1)] {
        upstream.on("www.example.test", Behaviour::forged(forged));
        socket.send_to(&dns::question(7, "www.example.test", dns::A), at).unwrap();
        let receive = || {
            let mut buffer = [0; 512];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            (from, buffer[1], buffer[length - 1])
        };
        let (from, id, last) = receive();
        assert_eq!((from == at, id == 7, last), (forged == Forged::Ids(1), forged != Forged::Ids(1), 66));
        assert_eq!(receive(), (at, 7, 1));
    }

    upstream.forget();
    upstream.on("www.example.test", Behaviour::default().dropping(2).delayed(Duration::from_millis(100)));
    for _ in 0..2 {
        assert_eq!(dns::exchange(at, &dns::question(1, "www.example.test", dns::A), Duration::from_millis(150)), None);
    }
    let begun = Instant::now();
    assert_eq!(short(&["WWW.example.test", "A"]), ["192.0.2.1"]);
    assert!(begun.elapsed() >= Duration::from_millis(100));
    let asked = upstream.asked_for("www.example.test");
    assert_eq!(asked.len(), 3);
    assert_eq!((asked[2].question.name.as_str(), asked[2].transport), ("WWW.example.test", Transport::Udp));

    // Forwards to another one
    let behind = Upstream::start();
    behind.put([Record::a("far.test", 60, "192.0.2.9")]);
    upstream.behave(Behaviour::forward(behind.address));
    assert_eq!(short(&["far.test", "A"]), ["192.0.2.9"]);
    assert_eq!(behind.asked().len(), 1);
}
