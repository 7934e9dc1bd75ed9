//! End-to-end tests of forwarding: svcdns, a misbehaving test upstream, and dig.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use support::files::Files;
use support::svcdns::Svcdns;
use support::upstream::{
    Behaviour, Closing, Damage, Edns, Forged, Message, Record, Tcp, Transport, Upstream, rtype,
};
use support::{dns, eventually, netns, seconds};

/// Returns the records of the test upstreams.
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

/// svcdns with one service, configured by flags.
struct Server {
    program: Svcdns,
    _files: Files,
}

impl Server {
    fn start(flags: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", flags)
    }

    fn start_at(listen: &str, flags: &[&str]) -> Self {
        let files = Files::new(&[("default/default/hello.svc/latest/10.0.0.1:80", "{}")]);
        let program = Svcdns::serve_at(
            listen.parse().unwrap(),
            &[&["--registry", &files.url()], flags].concat(),
        );
        program.wait_for("hello.svc", &["10.0.0.1"]);
        Self { program, _files: files }
    }

    /// Starts svcdns with these upstreams.
    fn over(upstreams: &[&Upstream]) -> Self {
        let upstreams: Vec<_> = upstreams.iter().map(|upstream| upstream.flag()).collect();
        Self::start(
            &upstreams.iter().flat_map(|upstream| ["--upstream", upstream]).collect::<Vec<_>>(),
        )
    }

    fn address(&self) -> SocketAddr {
        self.program.address
    }

    /// Runs dig with a timeout long enough for a busy machine.
    fn dig(&self, arguments: &[&str]) -> Seen {
        Seen::of(dns::dig(self.address(), &[&["+timeout=25"], arguments].concat()))
    }
}

/// A response as dig prints it.
#[derive(Debug)]
struct Seen {
    status: String,
    flags: String,
    /// Codes of Extended DNS Errors.
    errors: Vec<u16>,
    /// Name, TTL, class, type and data of the records in all sections.
    records: Vec<Vec<String>>,
    text: String,
}

impl Seen {
    fn of(text: String) -> Self {
        let after = |before: &str| {
            text.split(before)
                .nth(1)
                .and_then(|rest| rest.split([',', ';', '\n']).next())
                .unwrap_or_default()
        };
        let errors = text
            .lines()
            .filter_map(|line| line.strip_prefix("; EDE: ")?.split(' ').next()?.parse().ok());
        let records = text.lines().filter(|line| !line.is_empty() && !line.starts_with(';'));
        Self {
            status: after("status: ").to_owned(),
            flags: after(";; flags: ").to_owned(),
            errors: errors.collect(),
            records: records
                .map(|line| line.split_whitespace().map(str::to_owned).collect())
                .collect(),
            text,
        }
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.split(' ').any(|set| set == flag)
    }

    /// Returns the data of all records of a type.
    fn data(&self, rtype: &str) -> Vec<String> {
        self.records
            .iter()
            .filter(|record| record[3] == rtype)
            .map(|record| record[4..].join(" "))
            .collect()
    }

    fn ttl(&self) -> u32 {
        self.records.first().unwrap_or_else(|| panic!("no records: {}", self.text))[1]
            .parse()
            .unwrap()
    }

    /// Checks for SERVFAIL with an EDE code of unreachable upstreams.
    ///
    /// The EDE code is 22, No Reachable Authority, or 23, Network Error (RFC 8914).
    fn expect_unreachable(&self, what: &str) {
        assert_eq!(self.status, "SERVFAIL", "{what}: {}", self.text);
        assert!(self.errors.iter().any(|code| [22, 23].contains(code)), "{what}: {}", self.text);
        assert_eq!(self.records.len(), 0, "{what}: {}", self.text);
    }
}

/// Checks the test upstream itself before the other tests rely on it.
#[test]
fn the_test_upstream_behaves_as_configured() {
    let upstream = upstream();
    let at = upstream.address;
    let short = |arguments: &[&str]| dns::dig_short(at, arguments);
    assert_eq!(short(&["alias.example.test", "A"]), ["192.0.2.1", "www.example.test."]);
    assert_eq!(short(&["+tcp", "www.example.test", "AAAA"]), ["2001:db8::1"]);
    assert_eq!(short(&["text.example.test", "TXT"]), ["\"some text\""]);
    assert_eq!(short(&["strange.example.test", "TYPE65280"]), ["\\# 3 010203"]);
    let absent = dns::dig(at, &["nothing.example.test", "A"]);
    assert!(
        absent.contains("status: NXDOMAIN")
            && absent.contains("example.test.\t\t300\tIN\tSOA\tns.test."),
        "{absent}"
    );
    let no_data = dns::dig(at, &["text.example.test", "A"]);
    assert!(
        no_data.contains("status: NOERROR") && no_data.contains("ANSWER: 0, AUTHORITY: 1"),
        "{no_data}"
    );

    upstream
        .on("www.example.test", Behaviour::reply(Message::code(2).with_error(23, "no network")));
    let failed = dns::dig(at, &["www.example.test", "A"]);
    assert!(
        failed.contains("status: SERVFAIL")
            && failed.contains("EDE: 23 (Network Error): (no network)"),
        "{failed}"
    );
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
        assert!(
            hickory_proto::op::Message::from_vec(&octets).is_err(),
            "{damage:?} should not parse: {octets:02x?}"
        );
    }
    upstream.on("www.example.test", Behaviour::describe());
    assert_eq!(
        short(&[
            "+norec",
            "+adflag",
            "+cdflag",
            "+dnssec",
            "+nocookie",
            "+ednsopt=65001:aa",
            "+bufsize=1400",
            "www.example.test",
            "TXT"
        ]),
        ["\"rd=0 ad=1 cd=1 edns=0 size=1400 do=1 options=65001\""]
    );

    // An unconnected socket receives forged packets, too.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(seconds(10))).unwrap();
    for forged in [Forged::OtherPort, Forged::OtherAddress, Forged::Ids(1)] {
        upstream.on("www.example.test", Behaviour::forged(forged));
        socket.send_to(&dns::query(7, "www.example.test", dns::A), at).unwrap();
        let receive = || {
            let mut buffer = [0; 512];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            (from, buffer[1], buffer[length - 1])
        };
        let (from, id, last) = receive();
        assert_eq!(
            (from == at, id == 7, last),
            (forged == Forged::Ids(1), forged != Forged::Ids(1), 66)
        );
        assert_eq!(receive(), (at, 7, 1));
    }

    upstream.forget();
    upstream.on(
        "www.example.test",
        Behaviour::default().dropping(2).delayed(Duration::from_millis(100)),
    );
    for _ in 0..2 {
        assert_eq!(
            dns::exchange(
                at,
                &dns::query(1, "www.example.test", dns::A),
                Duration::from_millis(150)
            ),
            None
        );
    }
    let started = Instant::now();
    assert_eq!(short(&["WWW.example.test", "A"]), ["192.0.2.1"]);
    assert!(started.elapsed() >= Duration::from_millis(100));
    let received = upstream.queries_for("www.example.test");
    assert_eq!(received.len(), 3);
    assert_eq!(
        (received[2].query.name.as_str(), received[2].transport),
        ("WWW.example.test", Transport::Udp)
    );

    // Forwarding to another upstream
    let behind = Upstream::start();
    behind.put([Record::a("far.test", 60, "192.0.2.9")]);
    upstream.behave(Behaviour::forward(behind.address));
    assert_eq!(short(&["far.test", "A"]), ["192.0.2.9"]);
    assert_eq!(behind.queries().len(), 1);
}

#[test]
fn flags_types_and_options_are_forwarded() {
    let upstream = upstream();
    let server = Server::over(&[&upstream]);
    for name in ["one.example.test", "two.example.test"] {
        upstream.on(name, Behaviour::describe());
    }
    let said = |arguments: &[&str]| {
        server
            .dig(&[arguments, &["+nocookie", "one.example.test", "TXT"]].concat())
            .data("TXT")
            .concat()
    };
    assert!(
        said(&["+noadflag", "+bufsize=4096"]).contains("cd=0 edns=0 size=1232 do=0 options=\""),
        "our own OPT"
    );
    // A cache entry of its own, although the name is the same
    assert!(said(&["+cdflag"]).contains("cd=1 edns=0 size=1232 do=0"));
    assert!(said(&["+dnssec"]).contains("cd=0 edns=0 size=1232 do=1"));
    assert!(said(&["+dnssec", "+cdflag"]).contains("cd=1 edns=0 size=1232 do=1"));
    // Hop-by-hop options end here, all others are forwarded (RFC 7873, RFC 7828, RFC 7830)
    let both = server.dig(&[
        "+cookie",
        "+keepalive",
        "+padding=64",
        "+ednsopt=65001:aa",
        "two.example.test",
        "TXT",
    ]);
    assert!(both.data("TXT").concat().contains("options=65001\""), "{}", both.text);
    // A client without EDNS gets no OPT record
    let bare = server.dig(&["+noedns", "text.example.test", "TXT"]);
    assert_eq!(
        (bare.data("TXT"), bare.text.contains("OPT PSEUDOSECTION")),
        (vec!["\"some text\"".to_owned()], false)
    );

    assert_eq!(
        server.dig(&["strange.example.test", "TYPE65280"]).data("TYPE65280"),
        ["\\# 3 010203"]
    );
    assert_eq!(server.dig(&["alias.example.test", "AAAA"]).data("AAAA"), ["2001:db8::1"]);
    assert_eq!(server.dig(&["+tcp", "www.example.test", "A"]).data("A"), ["192.0.2.1"]);
    let absent = server.dig(&["nothing.example.test", "A"]);
    assert_eq!((&*absent.status, absent.data("SOA").len()), ("NXDOMAIN", 1), "{}", absent.text);
    let no_data = server.dig(&["text.example.test", "A"]);
    assert_eq!((&*no_data.status, no_data.data("SOA").len()), ("NOERROR", 1), "{}", no_data.text);
    // The service is still served
    assert_eq!(server.dig(&["hello.svc", "A"]).data("A"), ["10.0.0.1"]);
    server.program.stop();
}

#[test]
fn all_sections_codes_and_extended_errors_are_forwarded() {
    let upstream = upstream();
    let server = Server::over(&[&upstream]);
    let whole = Message {
        authoritative: true,
        authentic_data: true,
        answers: vec![
            Record::a("whole.test", 300, "192.0.2.7"),
            Record::new("whole.test", rtype::RRSIG, 300, [0; 40]),
        ],
        authority: vec![Record::ns("test", 300, "ns.whole.test")],
        additional: vec![Record::a("ns.whole.test", 300, "192.0.2.53")],
        options: vec![(65_002, vec![1, 2])],
        ..Message::default()
    };
    upstream.on("whole.test", Behaviour::reply(whole));
    let seen = server.dig(&["+dnssec", "+nocookie", "whole.test", "A"]);
    assert_eq!((&*seen.status, seen.records.len()), ("NOERROR", 4), "{}", seen.text);
    assert_eq!(
        (seen.data("A"), seen.data("NS")),
        (vec!["192.0.2.7".to_owned(), "192.0.2.53".to_owned()], vec!["ns.whole.test.".to_owned()])
    );
    assert!(seen.has("aa") && seen.has("ad") && seen.has("ra") && seen.has("rd"), "{}", seen.text);
    // From the cache, hence without AA
    let again = server.dig(&["+dnssec", "+nocookie", "whole.test", "A"]);
    assert!(!again.has("aa") && again.has("ad") && again.records.len() == 4, "{}", again.text);
    // AD is only for clients that set AD or DO (RFC 6840 section 5.8)
    let plain = server.dig(&["+noadflag", "+nocookie", "whole.test", "A"]);
    assert!(!plain.has("ad") && plain.data("A").len() == 2, "{}", plain.text);

    upstream.on("refused.test", Behaviour::reply(Message::code(5).with_error(18, "not for you")));
    let refused = server.dig(&["refused.test", "A"]);
    assert!(
        refused.status == "REFUSED"
            && refused.errors.contains(&18)
            && refused.text.contains("not for you"),
        "{}",
        refused.text
    );
    upstream
        .on("bogus.test", Behaviour::reply(Message::code(2).with_error(6, "signature expired")));
    let bogus = server.dig(&["bogus.test", "A"]);
    assert!(
        bogus.status == "SERVFAIL"
            && bogus.errors.contains(&6)
            && bogus.text.contains("signature expired"),
        "{}",
        bogus.text
    );
    for (name, code, status) in [("six.test", 6, "YXDOMAIN"), ("large.test", 23, "BADCOOKIE")] {
        upstream.on(name, Behaviour::code(code));
        assert_eq!(server.dig(&[name, "A"]).status, status);
    }
    upstream.on(
        "warned.test",
        Behaviour::reply(
            Message::of([Record::a("warned.test", 60, "192.0.2.8")]).with_error(3, "old"),
        ),
    );
    let warned = server.dig(&["warned.test", "A"]);
    assert_eq!(
        (&*warned.status, &*warned.errors, warned.data("A").len()),
        ("NOERROR", &[3][..], 1),
        "{}",
        warned.text
    );
}

/// Invalid responses never reach a client, and the client always gets a response.
#[test]
fn invalid_responses_do_not_reach_clients() {
    let damages = [
        Damage::Id,
        Damage::QuestionType,
        Damage::QuestionName,
        Damage::NoQuestion,
        Damage::NoResponse,
        Damage::Cut(5),
        Damage::Cut(20),
        Damage::Cut(40),
        Damage::PointerLoop,
        Damage::Garbage,
        Damage::Counts,
        Damage::DataLength,
    ];
    thread::scope(|scope| {
        for damage in damages {
            scope.spawn(move || {
                let upstream = upstream();
                upstream.on("www.example.test", Behaviour::damaged(damage));
                let server = Server::over(&[&upstream]);
                server.dig(&["www.example.test", "A"]).expect_unreachable(&format!("{damage:?}"));
                assert!(!upstream.queries_for("www.example.test").is_empty(), "{damage:?}");
                // The upstream remains in use
                eventually("the same upstream to be queried again", seconds(60), || {
                    (server.dig(&["text.example.test", "TXT"]).status == "NOERROR").then_some(())
                });
                server.program.stop();
            });
        }
    });
}

#[test]
fn forged_responses_are_ignored() {
    let upstream = upstream();
    let server = Server::over(&[&upstream]);
    let forgeries = [
        (Forged::OtherPort, "a.test"),
        (Forged::OtherAddress, "b.test"),
        (Forged::Ids(2), "c.test"),
        (Forged::Ids(200), "d.test"),
    ];
    for (forged, name) in forgeries {
        upstream.put([Record::a(name, 60, "192.0.2.1")]);
        upstream.on(name, Behaviour::forged(forged));
        assert_eq!(server.dig(&[name, "A"]).data("A"), ["192.0.2.1"], "{forged:?}");
        assert_eq!(server.dig(&[name, "A"]).data("A"), ["192.0.2.1"], "{forged:?} was kept");
    }
    upstream.on("e.test", Behaviour::forged(Forged::OnlyOtherPort).over_tcp(Tcp::Closes));
    server.dig(&["e.test", "A"]).expect_unreachable("forged responses only");
}

#[test]
fn truncated_responses_are_retried_over_tcp() {
    let upstream = upstream();
    let server = Server::over(&[&upstream]);
    upstream.on("www.example.test", Behaviour::truncating());
    assert_eq!(server.dig(&["www.example.test", "A"]).data("A"), ["192.0.2.1"]);
    let transports: Vec<_> = upstream
        .queries_for("www.example.test")
        .iter()
        .map(|received| received.transport)
        .collect();
    assert!(transports.contains(&Transport::Tcp), "{transports:?}");

    // 100 addresses do not fit into a datagram, but into a TCP response
    upstream.put((1..=100).map(|last| Record::a("many.test", 300, &format!("192.0.2.{last}"))));
    upstream.on("many.test", Behaviour::truncating());
    let short = server.dig(&["+ignore", "+bufsize=1232", "many.test", "A"]);
    assert!(short.has("tc") && short.status == "NOERROR", "{}", short.text);
    assert_eq!(server.dig(&["+bufsize=1232", "many.test", "A"]).data("A").len(), 100);

    // A datagram larger than the advertised size
    upstream.on("big.test", Behaviour::damaged(Damage::Oversized(5000)));
    let big = server.dig(&["+tcp", "big.test", "TXT"]);
    assert!(big.status == "NOERROR" && big.data("TXT").len() >= 15, "{}", big.text);

    // If TCP fails, a truncated response must not look complete
    for (tcp, name) in [(Tcp::Closes, "f.test"), (Tcp::Silent, "g.test"), (Tcp::Half, "h.test")] {
        upstream.on(name, Behaviour::truncating().over_tcp(tcp));
        let seen = server.dig(&[name, "A"]);
        assert!(seen.status == "SERVFAIL" || seen.has("tc"), "{tcp:?}: {}", seen.text);
    }
}

#[test]
fn silent_upstreams_cause_servfail_in_time() {
    let (late, never) = (upstream(), upstream());
    late.behave(Behaviour::default().delayed(seconds(6)));
    never.behave(Behaviour::never().over_tcp(Tcp::Silent));
    for (what, upstream) in [("late", &late), ("never", &never)] {
        let server = Server::over(&[upstream]);
        let started = Instant::now();
        server.dig(&["www.example.test", "A"]).expect_unreachable(what);
        // 4 s, and an allowance for a busy machine
        assert!(started.elapsed() < seconds(15), "{what}: {:?}", started.elapsed());
        // The failure is cached (RFC 9520): ten more queries do not wait ten times
        let (received, started) = (upstream.queries_for("www.example.test").len(), Instant::now());
        for _ in 0..10 {
            assert_eq!(server.dig(&["www.example.test", "A"]).status, "SERVFAIL");
        }
        let more = upstream.queries_for("www.example.test").len() - received;
        assert!(more < 10, "{what}: {more} more queries in {:?}", started.elapsed());
        upstream.behave(Behaviour::default());
        eventually("the upstream to be queried again", seconds(60), || {
            (server.dig(&["text.example.test", "TXT"]).status == "NOERROR").then_some(())
        });
        server.program.stop();
    }
    // A closed port
    let gone = upstream();
    let server = Server::over(&[&gone]);
    drop(gone);
    server.dig(&["www.example.test", "A"]).expect_unreachable("nobody listens");
}

#[test]
fn lost_queries_are_retransmitted() {
    let upstream = upstream();
    let server = Server::over(&[&upstream]);
    upstream.on("www.example.test", Behaviour::default().dropping(1));
    assert_eq!(server.dig(&["www.example.test", "A"]).data("A"), ["192.0.2.1"]);
    assert!(upstream.queries_for("www.example.test").len() >= 2);
}

#[test]
fn upstreams_without_edns_are_queried_without_it() {
    let upstream = upstream();
    upstream.behave(Behaviour::edns(Edns::FormErr));
    let server = Server::over(&[&upstream]);
    assert_eq!(server.dig(&["www.example.test", "A"]).data("A"), ["192.0.2.1"]);
    let received = upstream.queries_for("www.example.test");
    assert!(
        received.first().unwrap().query.opt.is_some()
            && received.last().unwrap().query.opt.is_none(),
        "{received:?}"
    );
    // The upstream is remembered to lack EDNS, once a query of our own has confirmed it
    let number = std::cell::Cell::new(0);
    eventually("queries without EDNS", seconds(30), || {
        number.set(number.get() + 1);
        let name = format!("n{}.example.test", number.get());
        assert_eq!(server.dig(&[&name, "A"]).status, "NXDOMAIN");
        let received = upstream.queries_for(&name);
        received.iter().all(|received| received.query.opt.is_none()).then_some(())
    });
    assert_eq!(server.dig(&["text.example.test", "TXT"]).data("TXT"), ["\"some text\""]);
    assert!(
        upstream
            .queries_for("text.example.test")
            .iter()
            .all(|received| received.query.opt.is_none())
    );

    upstream.behave(Behaviour::edns(Edns::Ignored));
    let server = Server::over(&[&upstream]);
    let seen = server.dig(&["+dnssec", "www.example.test", "A"]);
    assert_eq!(
        (seen.data("A"), seen.text.contains("OPT PSEUDOSECTION")),
        (vec!["192.0.2.1".to_owned()], true),
        "{}",
        seen.text
    );
}

#[test]
fn identical_queries_are_sent_once() {
    let upstream = upstream();
    upstream.behave(Behaviour::default().delayed(seconds(1)));
    let server = Server::over(&[&upstream]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server.address()).unwrap();
    socket.set_read_timeout(Some(seconds(30))).unwrap();
    for id in 0..50 {
        socket.send(&dns::query(id, "www.example.test", dns::A)).unwrap();
    }
    let mut ids = BTreeSet::new();
    while ids.len() < 50 {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        assert!(
            dns::code_of(&buffer[..length]) == "NOERROR"
                && buffer[..length].ends_with(&[192, 0, 2, 1])
        );
        assert!(ids.insert(buffer[1]), "an id twice");
    }
    // One query, and a retransmission for each second that it took
    let received = upstream.queries_for("www.example.test").len();
    assert!(received <= 5, "{received} queries for 50 clients");
}

/// Off-path attackers have to guess ids and source ports (RFC 5452).
#[test]
fn ids_and_ports_are_random() {
    let upstream = upstream();
    let server = Server::over(&[&upstream]);
    for number in 0..400 {
        let _ =
            dns::ask(server.address(), &format!("number{number}.with.some.letters.test"), dns::A);
    }
    let received: Vec<_> =
        upstream.queries().into_iter().filter(|received| received.query.name.len() > 20).collect();
    assert!(received.len() >= 400);
    let ids: Vec<u16> = received.iter().map(|received| received.query.id).collect();
    let distinct: BTreeSet<_> = ids.iter().collect();
    assert!(distinct.len() > 380, "{} ids of {}", distinct.len(), ids.len());
    let in_order = ids.windows(2).filter(|pair| pair[1].wrapping_sub(pair[0]) < 16).count();
    assert!(in_order < 10, "{in_order} ids follow one another");
    let ports: BTreeSet<_> = received.iter().map(|received| received.source.port()).collect();
    assert!(ports.len() > 380, "{} ports of {}", ports.len(), received.len());
}

#[test]
fn cached_answers_age_and_expire() {
    let upstream = upstream();
    upstream.put([
        Record::a("brief.test", 2, "192.0.2.3"),
        Record::a("never-kept.test", 0, "192.0.2.4"),
    ]);
    let server = Server::over(&[&upstream]);
    assert_eq!(server.dig(&["www.example.test", "A"]).ttl(), 300);
    eventually("its TTL to count down", seconds(30), || {
        (server.dig(&["www.example.test", "A"]).ttl() <= 298).then_some(())
    });
    assert_eq!(upstream.queries_for("www.example.test").len(), 1);
    // The letter case does not matter to the cache; the response echoes the client's
    let shouted = server.dig(&["WWW.Example.TEST", "A"]);
    assert!(
        shouted.text.contains(";WWW.Example.TEST.") && shouted.data("A") == ["192.0.2.1"],
        "{}",
        shouted.text
    );
    assert_eq!(upstream.queries_for("www.example.test").len(), 1);
    // Another type is another cache entry
    assert_eq!(server.dig(&["www.example.test", "AAAA"]).data("AAAA"), ["2001:db8::1"]);
    assert_eq!(upstream.queries_for("www.example.test").len(), 2);

    // NXDOMAIN is cached for the SOA minimum (RFC 2308)
    assert_eq!(server.dig(&["nothing.example.test", "A"]).status, "NXDOMAIN");
    for _ in 0..5 {
        let absent = server.dig(&["nothing.example.test", "A"]);
        assert!(absent.status == "NXDOMAIN" && absent.ttl() <= 30, "{}", absent.text);
    }
    assert_eq!(upstream.queries_for("nothing.example.test").len(), 1);

    // Expired entries are resolved again, with new data
    assert_eq!(server.dig(&["brief.test", "A"]).data("A"), ["192.0.2.3"]);
    upstream.replace([Record::a("brief.test", 2, "192.0.2.33")]);
    eventually("the new address", seconds(30), || {
        (server.dig(&["brief.test", "A"]).data("A") == ["192.0.2.33"]).then_some(())
    });
    upstream.put([Record::a("never-kept.test", 0, "192.0.2.4")]);
    for _ in 0..3 {
        assert_eq!(server.dig(&["never-kept.test", "A"]).data("A"), ["192.0.2.4"]);
    }
    assert!(upstream.queries_for("never-kept.test").len() >= 3, "TTL 0 is not cached");
}

#[test]
fn stale_answers_are_served_during_an_outage() {
    let upstream = upstream();
    upstream.put([Record::a("old.test", 1, "192.0.2.5")]);
    let server = Server::over(&[&upstream]);
    assert_eq!(server.dig(&["old.test", "A"]).data("A"), ["192.0.2.5"]);
    upstream.behave(Behaviour::never().over_tcp(Tcp::Closes));
    // EDE 3, Stale Answer
    let stale = eventually("a stale answer", seconds(60), || {
        let seen = server.dig(&["old.test", "A"]);
        assert_eq!(seen.data("A"), ["192.0.2.5"], "{}", seen.text);
        seen.errors.contains(&3).then_some(seen)
    });
    assert!(stale.ttl() <= 30, "{}", stale.text);
    upstream.replace([Record::a("old.test", 60, "192.0.2.55")]);
    upstream.behave(Behaviour::default());
    eventually("the new address", seconds(60), || {
        (server.dig(&["old.test", "A"]).data("A") == ["192.0.2.55"]).then_some(())
    });
}

#[test]
fn live_upstreams_replace_failing_ones() {
    let (dead, good) = (upstream(), upstream());
    dead.behave(Behaviour::never().over_tcp(Tcp::Closes));
    good.put((0..20).map(|number| Record::a(&format!("n{number}.test"), 60, "192.0.2.6")));
    let server = Server::over(&[&dead, &good]);
    for number in 0..20 {
        assert_eq!(
            server.dig(&[&format!("n{number}.test"), "A"]).data("A"),
            ["192.0.2.6"],
            "query {number}"
        );
    }
    // Probes for the root's NS records are svcdns's own.
    let in_vain =
        dead.queries().iter().filter(|received| received.query.name.ends_with("test")).count();
    assert!(in_vain <= 10, "{in_vain} queries were sent to the dead upstream");

    // An upstream that answers with a failure is replaced as well
    for code in [2, 5] {
        let failing = upstream();
        failing.behave(Behaviour::code(code));
        let server = Server::over(&[&failing, &good]);
        for number in 0..5 {
            assert_eq!(
                server.dig(&[&format!("n{number}.test"), "A"]).data("A"),
                ["192.0.2.6"],
                "rcode {code}, query {number}"
            );
        }
    }
}

#[test]
fn domains_can_have_upstreams_of_their_own() {
    let (company, rest) = (upstream(), upstream());
    company.put([Record::a("host.corp.example", 60, "192.0.2.10")]);
    let server = Server::start(&[
        "--upstream",
        &rest.flag(),
        "--upstream",
        &format!("corp.example={}", company.flag()),
    ]);
    assert_eq!(server.dig(&["host.corp.example", "A"]).data("A"), ["192.0.2.10"]);
    assert_eq!(server.dig(&["www.example.test", "A"]).data("A"), ["192.0.2.1"]);
    assert_eq!(server.dig(&["xcorp.example", "A"]).status, "NXDOMAIN");
    assert_eq!(company.names().into_iter().collect::<Vec<_>>(), ["host.corp.example"]);
    assert!(rest.names().iter().all(|name| !name.ends_with(".corp.example")), "{:?}", rest.names());
}

#[test]
fn tcp_upstreams_are_queried_over_tcp_only() {
    let upstream = upstream();
    let server = Server::start(&["--upstream", &format!("tcp://{}", upstream.flag())]);
    for name in ["www.example.test", "alias.example.test"] {
        assert_eq!(server.dig(&[name, "A"]).data("A"), ["192.0.2.1"]);
    }
    let check = eventually("the loop check", seconds(20), || {
        upstream.queries().into_iter().find(|received| received.query.name.starts_with("svcdns-"))
    });
    let queries = upstream.queries();
    assert!(queries.iter().all(|received| received.transport == Transport::Tcp));
    let mut sources: Vec<_> = queries.iter().map(|received| received.source).collect();
    sources.retain(|source| *source != check.source);
    assert_eq!(sources.len(), 2, "the loop check does not use the connection of clients");
    assert_eq!(sources[0], sources[1], "one connection for both");
}

/// Queries that are lost with an upstream's connection are sent again on the next one.
#[test]
fn queries_are_repeated_when_upstreams_close_connections() {
    for udp in [false, true] {
        for closing in [
            Closing { unanswered: 1, after: None },
            Closing { unanswered: 3, after: None },
            Closing { unanswered: 0, after: Some(1) },
            Closing { unanswered: 0, after: Some(2) },
            Closing { unanswered: 1, after: Some(4) },
        ] {
            let upstream = Upstream::start();
            let names: Vec<_> = (0..18).map(|number| format!("n{number}.closing.test")).collect();
            upstream.put(names.iter().map(|name| Record::a(name, 60, "192.0.2.1")));
            // Over UDP, every query comes to TCP because its response is truncated.
            upstream.behave(if udp { Behaviour::truncating() } else { Behaviour::default() });
            upstream.close_connections(closing);
            let scheme = if udp { "" } else { "tcp://" };
            let server = Server::start(&["--upstream", &format!("{scheme}{}", upstream.flag())]);
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(server.address()).unwrap();
            socket.set_read_timeout(Some(seconds(10))).unwrap();
            for round in names.chunks(6) {
                for (id, name) in (0..).zip(round) {
                    socket.send(&dns::query(id, name, dns::A)).unwrap();
                }
                for _ in round {
                    let mut buffer = [0; 512];
                    let length = socket.recv(&mut buffer).unwrap();
                    let response = &buffer[..length];
                    assert!(
                        dns::code_of(response) == "NOERROR" && response.ends_with(&[192, 0, 2, 1]),
                        "UDP {udp}, {closing:?}: {}",
                        dns::code_of(response)
                    );
                }
            }
        }
    }
}

#[test]
fn looping_upstreams_are_skipped_until_the_loop_ends() {
    let upstream = upstream();
    let server = Server::over(&[&upstream]);
    upstream.behave(Behaviour::forward(server.address()));
    let seen = server.dig(&["round.test", "A"]);
    assert_eq!(seen.status, "SERVFAIL", "{}", seen.text);
    assert!(upstream.queries().len() < 100, "{} queries in the loop", upstream.queries().len());
    // The zone is not affected
    assert_eq!(server.dig(&["hello.svc", "A"]).data("A"), ["10.0.0.1"]);
    upstream.behave(Behaviour::default());
    eventually("the upstream to be taken back", seconds(90), || {
        (server.dig(&["www.example.test", "A"]).data("A") == ["192.0.2.1"]).then_some(())
    });
    server.program.stop();
}

#[test]
fn names_outside_the_zones_are_refused_if_forwarding_is_off() {
    let server = Server::start(&["--upstream", "off"]);
    assert_eq!(server.dig(&["www.example.test", "A"]).status, "REFUSED");
    assert_eq!(server.dig(&["hello.svc", "A"]).data("A"), ["10.0.0.1"]);
}

/// Served zones and special names are never forwarded.
///
/// Private reverse zones are not forwarded to public upstreams. See RFC 6761, RFC 7686 and
/// RFC 6303.
#[test]
fn zones_and_special_names_are_never_forwarded() {
    netns::inside("zones_and_special_names_are_never_forwarded", "127.0.0.1", || {
        let public = "9.9.9.9";
        netns::add_address(&format!("{public}/32"));
        let upstream =
            Upstream::start_at((public.parse::<std::net::Ipv4Addr>().unwrap(), 0).into());
        upstream.behave(Behaviour::reply(Message::of([Record::a(
            "leaked.test",
            60,
            "192.0.2.66",
        )])));
        let server = Server::over(&[&upstream]);
        for name in ["localhost", "some.localhost"] {
            assert_eq!(server.dig(&[name, "A"]).data("A"), ["127.0.0.1"], "{name}");
            assert_eq!(server.dig(&[name, "AAAA"]).data("AAAA"), ["::1"], "{name}");
        }
        let nobodys = [
            "invalid",
            "some.invalid",
            "some.onion",
            "nothing.svc",
            "a.b.c.svc",
            "2.0.0.10.in-addr.arpa",
            "9.1.168.192.in-addr.arpa",
        ];
        for name in nobodys.into_iter().chain([
            "1.0.16.172.in-addr.arpa",
            "1.0.254.169.in-addr.arpa",
            "1.8.b.d.0.1.0.0.2.ip6.arpa",
            "0.0.d.f.ip6.arpa",
        ]) {
            let qtype = if name.ends_with("arpa") { "PTR" } else { "A" };
            let seen = server.dig(&[name, qtype]);
            assert_eq!(seen.status, "NXDOMAIN", "{name}: {}", seen.text);
        }
        assert_eq!(upstream.names(), BTreeSet::new(), "leaked");

        // A resolver with a private address may know the names of private addresses
        let company = Upstream::start();
        company.put([Record::ptr("2.0.0.10.in-addr.arpa", 60, "printer.corp.example")]);
        let server = Server::over(&[&company]);
        assert_eq!(
            server.dig(&["2.0.0.10.in-addr.arpa", "PTR"]).data("PTR"),
            ["printer.corp.example."]
        );
    });
}

/// Responses must echo the random letter case (draft-vixie-dnsext-dns0x20).
#[test]
fn random_letter_case_must_be_echoed() {
    let upstream = upstream();
    let server = Server::start(&["--upstream", &upstream.flag(), "--upstream-random-case", "true"]);
    let seen = server.dig(&["www.example.test", "A"]);
    assert_eq!(seen.data("A"), ["192.0.2.1"]);
    assert!(seen.text.contains("\nwww.example.test.\t"), "the client's own case: {}", seen.text);
    for number in 0..20 {
        let _ = server.dig(&[&format!("number-{number}.example.test"), "A"]);
    }
    let mixed = upstream
        .queries()
        .iter()
        .filter(|received| received.query.name != received.query.name.to_lowercase())
        .count();
    assert!(mixed >= 20, "{mixed} of {} with capitals", upstream.queries().len());
    // An upstream that does not echo the case is queried over TCP, which off-path attackers cannot
    // forge
    upstream.put([Record::a("a-name-with-many-letters.test", 60, "192.0.2.11")]);
    upstream.on("a-name-with-many-letters.test", Behaviour::damaged(Damage::LowerCase));
    assert_eq!(server.dig(&["a-name-with-many-letters.test", "A"]).data("A"), ["192.0.2.11"]);
    assert!(
        upstream
            .queries_for("a-name-with-many-letters.test")
            .iter()
            .any(|received| received.transport == Transport::Tcp)
    );
}

#[test]
fn the_rebinding_guard_withholds_private_addresses() {
    let upstream = upstream();
    let private = ["10.1.2.3", "192.168.1.1", "127.0.0.1", "169.254.0.1"];
    upstream.put(
        private
            .iter()
            .enumerate()
            .map(|(number, address)| Record::a(&format!("p{number}.test"), 60, address)),
    );
    upstream
        .put([Record::a("p0.corp.test", 60, "10.1.2.3"), Record::aaaa("six.test", 60, "fd00::1")]);
    let guarded = Server::start(&[
        "--upstream",
        &upstream.flag(),
        "--rebinding-guard",
        "true",
        "--rebinding-allow",
        "corp.test",
    ]);
    for number in 0..private.len() {
        let seen = guarded.dig(&[&format!("p{number}.test"), "A"]);
        assert_eq!(seen.data("A"), [] as [&str; 0], "{}", seen.text);
    }
    assert_eq!(guarded.dig(&["six.test", "AAAA"]).data("AAAA"), [] as [&str; 0]);
    assert_eq!(guarded.dig(&["p0.corp.test", "A"]).data("A"), ["10.1.2.3"]);
    assert_eq!(guarded.dig(&["www.example.test", "A"]).data("A"), ["192.0.2.1"]);
    let server = Server::over(&[&upstream]);
    assert_eq!(server.dig(&["p0.test", "A"]).data("A"), ["10.1.2.3"]);
}

#[test]
fn other_opcodes_are_forwarded_if_allowed() {
    let upstream = upstream();
    let server = Server::over(&[&upstream]);
    let notify = ["+opcode=notify", "www.example.test", "SOA"];
    assert_eq!(server.dig(&notify).status, "NOTIMP");
    let server = Server::start(&["--upstream", &upstream.flag(), "--forward-opcodes", "true"]);
    let seen = server.dig(&notify);
    assert!(seen.status == "NOERROR" && seen.text.contains("opcode: NOTIFY"), "{}", seen.text);
    let passed = upstream.queries().iter().any(|received| received.query.flags & 0x7800 == 4 << 11);
    assert!(passed, "{:?}", upstream.queries());
}

/// The upstreams follow resolv.conf and never include svcdns itself.
#[test]
fn changes_of_resolv_conf_are_followed() {
    netns::inside("changes_of_resolv_conf_are_followed", "127.0.0.1", || {
        let first = Upstream::start_at(SocketAddr::new(netns::ADDRESS.parse().unwrap(), 53));
        let second = Upstream::start_at(SocketAddr::new(netns::ADDRESS_V6.parse().unwrap(), 53));
        first.put([Record::a("who.test", 0, "192.0.2.1")]);
        second.put([Record::a("who.test", 0, "192.0.2.2")]);
        let server = Server::start_at("127.0.0.1:53", &["--upstream", "system"]);
        let who = || server.dig(&["who.test", "A"]).data("A").concat();
        let say = |text: &str| std::fs::write("/etc/resolv.conf", text).unwrap();
        say(&format!("nameserver 127.0.0.1\nnameserver {}\n", netns::ADDRESS));
        eventually("the first one", seconds(60), || (who() == "192.0.2.1").then_some(()));
        say(&format!("# another network\nnameserver {}\n", netns::ADDRESS_V6));
        eventually("the second one", seconds(60), || (who() == "192.0.2.2").then_some(()));
        say("nameserver 127.0.0.1\n");
        thread::sleep(Duration::from_millis(500));
        assert_eq!(server.dig(&["hello.svc", "A"]).data("A"), ["10.0.0.1"], "with nobody to ask");
        say(&format!("nameserver {}\n", netns::ADDRESS));
        eventually("the first one again", seconds(60), || (who() == "192.0.2.1").then_some(()));
        server.program.stop();
    });
}

/// A host name registered as an endpoint has the addresses that the upstream gives.
#[test]
fn addresses_of_registered_host_names_are_followed() {
    let upstream = Upstream::start();
    upstream.put([Record::a("backend.example.test", 1, "192.0.2.1")]);
    let files =
        Files::new(&[("default/default/hosted.svc/latest/backend.example.test:8080", "{}")]);
    let program = Svcdns::serve(&["--registry", &files.url(), "--upstream", &upstream.flag()]);
    let expect_target = || {
        let targets = dns::dig_short(program.address, &["hosted.svc", "SRV"]);
        assert!(
            targets.len() == 1 && targets[0].ends_with(" 8080 backend.example.test."),
            "{targets:?}"
        );
    };
    program.wait_for("hosted.svc", &["192.0.2.1"]);
    expect_target();
    upstream.replace([
        Record::a("backend.example.test", 1, "192.0.2.2"),
        Record::a("backend.example.test", 1, "192.0.2.3"),
    ]);
    program.wait_for("hosted.svc", &["192.0.2.2", "192.0.2.3"]);
    expect_target();
    // A SERVFAIL keeps the last known addresses.
    upstream.behave(Behaviour::code(2));
    let received = upstream.queries_for("backend.example.test").len();
    upstream.wait_for("backend.example.test", received + 2, seconds(60));
    program.wait_for("hosted.svc", &["192.0.2.2", "192.0.2.3"]);
    expect_target();
    assert_eq!(
        upstream.names(),
        ["backend.example.test".to_owned()].into(),
        "no name of the zone was forwarded"
    );
}

/// Death and recovery are logged once each; the status shows unanswered queries.
#[test]
fn the_log_reports_dead_and_recovered_upstreams() {
    let upstream = upstream();
    let server = Server::over(&[&upstream]);
    let address = upstream.flag();
    let told = |words: &str| {
        server.program.log().matches(&format!("the upstream {address} {words}")).count()
    };
    assert!(
        server.program.log().contains(&format!("forwarding names outside the zones to {address}")),
        "{}",
        server.program.log()
    );
    assert_eq!(server.dig(&["www.example.test", "A"]).data("A"), ["192.0.2.1"]);
    upstream.behave(Behaviour::never());
    for number in 0..3 {
        server.dig(&[&format!("n{number}.example.test"), "A"]);
    }
    eventually("the death to be logged", seconds(60), || {
        (told("has not answered for ") >= 1).then_some(())
    });
    let status = server.program.run(&["status"]);
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains(" unanswered, ") && !status.contains(" 0 unanswered, "), "{status}");
    upstream.behave(Behaviour::default());
    eventually("a response", seconds(60), || {
        (server.dig(&["text.example.test", "TXT"]).status == "NOERROR").then_some(())
    });
    eventually("the recovery to be logged", seconds(60), || {
        (told("answers again, after ") >= 1).then_some(())
    });
    // Not with every query: at most twice, if the machine has stalled for a minute.
    assert!(told("has not answered for ") <= 2, "{}", server.program.log());
}
