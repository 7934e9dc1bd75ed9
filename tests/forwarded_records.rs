//! End-to-end tests of what a forwarded response may contain.
//!
//! The subjects are aliases to names that other servers resolve, records outside the upstream's
//! authority, and answers that a later response contradicts.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use support::files::Files;
use support::svcdns::Svcdns;
use support::upstream::{Behaviour, Message, Record, Tcp, Upstream, rtype};
use support::{dns, seconds};

/// Number of instances of `many.svc`.
const MANY: usize = 60;

/// A running svcdns with a few services.
struct Fixture {
    program: Svcdns,
    _files: Files,
}

/// A response as dig prints it.
#[derive(Debug)]
struct Shown {
    status: String,
    flags: Vec<String>,
    /// Name, type and data of the records of the answer section.
    answers: Vec<String>,
    /// The same of the authority and additional sections.
    others: Vec<String>,
    text: String,
}

impl Fixture {
    fn start(flags: &[&str]) -> Self {
        let files = Files::new(&[
            ("default/default/hello.svc/latest/10.0.0.1:80", "{}"),
            ("default/default/hosted.svc/latest/backend.example.test:8080", "{}"),
        ]);
        for last in 1..=MANY {
            files.put(&format!("default/default/many.svc/latest/10.0.9.{last}:80"), "{}");
        }
        let program = Svcdns::serve(&[&["--registry", &files.url()], flags].concat());
        program.wait_for("hello.svc", &["10.0.0.1"]);
        Self { program, _files: files }
    }

    /// Starts over an upstream for all names and one for `corp.test`.
    fn over(rest: &Upstream, corp: &Upstream, flags: &[&str]) -> Self {
        let (rest, corp) = (rest.flag(), format!("corp.test={}", corp.flag()));
        Self::start(&[&["--upstream", &rest, "--upstream", &corp], flags].concat())
    }

    fn dig(&self, arguments: &[&str]) -> Shown {
        let text =
            dns::dig(self.program.address, &[&["+timeout=25", "+nocookie"], arguments].concat());
        let after = |before: &str, end: char| {
            let rest = text.split(before).nth(1).unwrap_or_default();
            rest.split(end).next().unwrap_or_default().to_owned()
        };
        let section = |heading: &str| -> Vec<String> {
            let rest = text.split(&format!(";; {heading} SECTION:\n")).nth(1).unwrap_or_default();
            rest.lines()
                .take_while(|line| !line.is_empty())
                .map(|line| {
                    let fields: Vec<_> = line.split_whitespace().collect();
                    [&[fields[0]], &fields[3..]].concat().join(" ")
                })
                .collect()
        };
        Shown {
            status: after("status: ", ','),
            flags: after(";; flags: ", ';').split(' ').map(str::to_owned).collect(),
            answers: section("ANSWER"),
            others: [section("AUTHORITY"), section("ADDITIONAL")].concat(),
            text,
        }
    }
}

impl Shown {
    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|set| set == flag)
    }
}

/// An upstream for all names, one for `corp.test`, and svcdns over both.
fn over_two(flags: &[&str]) -> (Upstream, Upstream, Fixture) {
    let (rest, corp) = (Upstream::start(), Upstream::start());
    let fixture = Fixture::over(&rest, &corp, flags);
    (rest, corp, fixture)
}

#[test]
fn aliases_into_a_served_zone_are_followed() {
    let upstream = Upstream::start();
    upstream.put([
        Record::soa("example.test", 300, 30),
        Record::cname("api.example.test", 60, "Hello.svc"),
        Record::cname("www.example.test", 60, "api.example.test"),
        Record::cname("lost.example.test", 60, "nothing.svc"),
        Record::cname("many.example.test", 60, "many.svc"),
    ]);
    let fixture = Fixture::start(&["--upstream", &upstream.flag()]);
    for round in ["from the upstream", "from the cache"] {
        for transport in ["+notcp", "+tcp"] {
            let seen = fixture.dig(&[transport, "WWW.example.test", "A"]);
            assert_eq!(
                (&*seen.status, &*seen.answers.join(", ")),
                (
                    "NOERROR",
                    "WWW.example.test. CNAME api.example.test., \
                     api.example.test. CNAME Hello.svc., Hello.svc. A 10.0.0.1"
                ),
                "{round}: {}",
                seen.text
            );
            assert!(seen.has("ra") && !seen.has("aa") && !seen.has("tc"), "{}", seen.text);
            assert_eq!(seen.others, [""; 0], "{}", seen.text);
        }
        let srv = fixture.dig(&["api.example.test", "SRV"]);
        assert_eq!(
            (&*srv.answers.join(", "), &*srv.others.join(", ")),
            (
                "api.example.test. CNAME Hello.svc., \
                 Hello.svc. SRV 0 1 80 10-0-0-1.hello.svc.",
                "10-0-0-1.hello.svc. A 10.0.0.1"
            ),
            "{round}: {}",
            srv.text
        );
        // NODATA and NXDOMAIN have the SOA record of the served zone (RFC 2308, RFC 6604).
        for (name, qtype, status) in
            [("api.example.test", "AAAA", "NOERROR"), ("lost.example.test", "A", "NXDOMAIN")]
        {
            let seen = fixture.dig(&[name, qtype]);
            assert_eq!((&*seen.status, seen.answers.len()), (status, 1), "{}", seen.text);
            assert!(seen.others.concat().starts_with("svc. SOA ns.svc."), "{}", seen.text);
        }
        // A CNAME or ANY query asks for the alias itself.
        for qtype in ["CNAME", "ANY"] {
            let mut seen = fixture.dig(&["api.example.test", qtype]);
            // The test upstream answers ANY with the alias and, following it, once more.
            seen.answers.dedup();
            assert_eq!(seen.answers, ["api.example.test. CNAME Hello.svc."], "{}", seen.text);
        }
    }
    // A client's EDNS options do not matter.
    let subnet = fixture.dig(&["+subnet=192.0.2.0/24", "api.example.test", "A"]);
    assert_eq!(subnet.answers.len(), 2, "{}", subnet.text);
    // A response that does not fit into a datagram has TC, and is complete over TCP.
    let cut = fixture.dig(&["+ignore", "+noedns", "many.example.test", "SRV"]);
    assert!(
        cut.has("tc") && cut.answers[0] == "many.example.test. CNAME many.svc.",
        "{}",
        cut.text
    );
    let whole = fixture.dig(&["+tcp", "+noedns", "many.example.test", "SRV"]);
    assert_eq!((whole.answers.len(), whole.others.len()), (MANY + 1, MANY), "{}", whole.text);
    assert!(!upstream.names().iter().any(|name| name.ends_with("svc")), "{:?}", upstream.names());
}

#[test]
fn aliases_into_a_domain_with_its_own_upstream_are_followed() {
    let (rest, corp, fixture) = over_two(&[]);
    rest.put([
        Record::cname("www.example.test", 60, "host.corp.test"),
        Record::cname("zone.example.test", 60, "zone.corp.test"),
        // The first upstream's own records of the domain do not count.
        Record::a("host.corp.test", 60, "192.0.2.66"),
    ]);
    corp.put([
        Record::a("host.corp.test", 60, "192.0.2.1"),
        Record::cname("zone.corp.test", 60, "hello.svc"),
        Record::cname("back.corp.test", 60, "plain.example.test"),
    ]);
    rest.put([Record::a("plain.example.test", 60, "192.0.2.2")]);
    for _ in 0..2 {
        for (name, answers) in [
            (
                "www.example.test",
                "www.example.test. CNAME host.corp.test., host.corp.test. A 192.0.2.1",
            ),
            (
                "zone.example.test",
                "zone.example.test. CNAME zone.corp.test., zone.corp.test. CNAME hello.svc., \
                 hello.svc. A 10.0.0.1",
            ),
            (
                "back.corp.test",
                "back.corp.test. CNAME plain.example.test., plain.example.test. A 192.0.2.2",
            ),
        ] {
            let seen = fixture.dig(&[name, "A"]);
            assert_eq!(seen.answers.join(", "), answers, "{}", seen.text);
        }
    }
    assert!(rest.queries_for("host.corp.test").is_empty());
}

#[test]
fn aliases_to_special_names_are_followed() {
    let upstream = Upstream::start();
    upstream.behave(Behaviour::made(|query| {
        let target = if query.name.starts_with("me") { "localhost" } else { "some.onion" };
        let answers = [Record::cname(&query.name, 60, target), Record::a(target, 60, "192.0.2.66")];
        Message::of(answers).to_bytes(query)
    }));
    let fixture = Fixture::start(&["--upstream", &upstream.flag()]);
    let seen = fixture.dig(&["me.test", "A"]);
    assert_eq!(seen.answers, ["me.test. CNAME localhost.", "localhost. A 127.0.0.1"]);
    let seen = fixture.dig(&["hidden.test", "A"]);
    assert_eq!(
        (&*seen.status, seen.answers.concat()),
        ("NXDOMAIN", "hidden.test. CNAME some.onion.".to_owned()),
        "{}",
        seen.text
    );
}

/// AA belongs to the first owner (RFC 1035 section 4.1.1), AD to all data (RFC 4035 section 3.2.3).
#[test]
fn aa_and_ad_of_a_joined_response_depend_on_all_its_parts() {
    let (rest, corp, fixture) = over_two(&[]);
    let alias = |name: &str, target: &str, authentic_data| Message {
        authoritative: true,
        authentic_data,
        ..Message::of([Record::cname(name, 60, target)])
    };
    rest.on("zone.test", Behaviour::reply(alias("zone.test", "hello.svc", true)));
    rest.on("both.test", Behaviour::reply(alias("both.test", "both.corp.test", true)));
    rest.on("last.test", Behaviour::reply(alias("last.test", "both.corp.test", false)));
    rest.on("first.test", Behaviour::reply(alias("first.test", "first.corp.test", true)));
    for (name, authentic_data) in [("both.corp.test", true), ("first.corp.test", false)] {
        let answer = Message::of([Record::a(name, 60, "192.0.2.1")]);
        corp.on(name, Behaviour::reply(Message { authentic_data, ..answer }));
    }
    for (name, authentic_data) in
        [("zone.test", false), ("both.test", true), ("last.test", false), ("first.test", false)]
    {
        for authoritative in [true, false] {
            let seen = fixture.dig(&["+adflag", name, "A"]);
            assert_eq!(seen.answers.len(), 2, "{}", seen.text);
            assert_eq!(
                (seen.has("aa"), seen.has("ad")),
                (authoritative, authentic_data),
                "{}",
                seen.text
            );
        }
    }
}

#[test]
fn without_rd_aliases_are_followed_only_in_the_cache() {
    let (rest, corp, fixture) = over_two(&[]);
    rest.put([
        Record::cname("api.example.test", 60, "hello.svc"),
        Record::cname("web.example.test", 60, "www.corp.test"),
    ]);
    corp.put([Record::a("www.corp.test", 1, "192.0.2.80")]);
    let dig = |options: &[&str], name: &str| fixture.dig(&[options, &[name, "A"]].concat());
    for name in ["api.example.test", "web.example.test"] {
        assert_eq!(dig(&["+norec"], name).status, "REFUSED", "{name}");
        assert!(rest.queries_for(name).is_empty(), "{name}");
    }
    for (name, target) in [
        ("api.example.test", ["hello.svc. A 10.0.0.1", "CNAME hello.svc."]),
        ("web.example.test", ["www.corp.test. A 192.0.2.80", "CNAME www.corp.test."]),
    ] {
        let expected = vec![format!("{name}. {}", target[1]), target[0].to_owned()];
        for options in [&[][..], &["+norec"], &["+norec", "+tcp"]] {
            let seen = dig(options, name);
            assert_eq!((&*seen.status, &seen.answers), ("NOERROR", &expected), "{seen:?}");
        }
    }
    // The target expires before the alias.
    std::thread::sleep(Duration::from_millis(1200));
    let before = corp.queries_for("www.corp.test").len();
    let seen = dig(&["+norec"], "web.example.test");
    let alias = ["web.example.test. CNAME www.corp.test."];
    assert_eq!((&*seen.status, &*seen.answers), ("NOERROR", &alias.map(str::to_owned)[..]));
    assert_eq!(corp.queries_for("www.corp.test").len(), before);
}

#[test]
fn aliases_into_the_local_reverse_tree_are_followed() {
    let upstream = Upstream::start();
    upstream.put([Record::cname("loop.example.test", 60, "1.0.0.127.in-addr.arpa")]);
    let fixture = Fixture::start(&["--upstream", &upstream.flag()]);
    let seen = fixture.dig(&["loop.example.test", "PTR"]);
    let answers = [
        "loop.example.test. CNAME 1.0.0.127.in-addr.arpa.",
        "1.0.0.127.in-addr.arpa. PTR localhost.",
    ];
    assert_eq!((&*seen.status, &*seen.answers), ("NOERROR", &answers.map(str::to_owned)[..]));
}

#[test]
fn looping_and_endless_aliases_are_servfail() {
    let (rest, corp, fixture) = over_two(&[]);
    rest.put([Record::cname("round.test", 60, "round.corp.test")]);
    corp.put([Record::cname("round.corp.test", 60, "round.test")]);
    // A chain of 8 borders, and one of 9.
    for (name, length) in [("eight", 8), ("nine", 9)] {
        let owner = |at: usize| format!("{name}{at}.{}test", ["", "corp."][at % 2]);
        for at in 0..length {
            let upstream = [&rest, &corp][at % 2];
            upstream.put([Record::cname(&owner(at), 60, &owner(at + 1))]);
        }
        [&rest, &corp][length % 2].put([Record::a(&owner(length), 60, "192.0.2.1")]);
    }
    for _ in 0..2 {
        let seen = fixture.dig(&["eight0.test", "A"]);
        assert_eq!((&*seen.status, seen.answers.len()), ("NOERROR", 9), "{}", seen.text);
        for name in ["round.test", "nine0.test"] {
            let began = Instant::now();
            let seen = fixture.dig(&[name, "A"]);
            assert_eq!((&*seen.status, seen.answers.len()), ("SERVFAIL", 0), "{}", seen.text);
            assert!(seen.text.contains("EDE: 0"), "{}", seen.text);
            assert!(began.elapsed() < seconds(3), "{:?}", began.elapsed());
        }
    }
}

#[test]
fn silent_upstreams_behind_aliases_cause_servfail_in_time() {
    let (rest, corp, fixture) = over_two(&[]);
    rest.behave(
        Behaviour::made(|query| {
            Message::of([Record::cname(&query.name, 60, "host.corp.test")]).to_bytes(query)
        })
        .delayed(seconds(1)),
    );
    corp.behave(Behaviour::never().over_tcp(Tcp::Silent));
    for name in ["a.test", "b.test"] {
        let began = Instant::now();
        let seen = fixture.dig(&[name, "A"]);
        assert_eq!((&*seen.status, seen.answers.len()), ("SERVFAIL", 0), "{}", seen.text);
        // 4 s for the whole chain, and an allowance for a busy machine.
        assert!(began.elapsed() < Duration::from_millis(4900), "{:?}", began.elapsed());
    }
    // A failure of the domain's upstream does not count as one of the first upstream.
    corp.behave(Behaviour::default());
    corp.put([Record::a("host.corp.test", 60, "192.0.2.1")]);
    support::eventually("the alias to resolve", seconds(60), || {
        (fixture.dig(&["a.test", "A"]).answers.len() == 2).then_some(())
    });
}

/// An alias must not lead programs to addresses that its own name could not have.
#[test]
fn the_rebinding_guard_checks_addresses_behind_aliases() {
    let flags = ["--rebinding-guard", "true", "--rebinding-allow", "allowed.test"];
    let (rest, corp, fixture) = over_two(&flags);
    for (name, target) in [
        ("zone.test", "hello.svc"),
        ("me.test", "localhost"),
        ("host.test", "host.corp.test"),
        ("zone.allowed.test", "hello.svc"),
        ("public.test", "public.corp.test"),
    ] {
        rest.put([Record::cname(name, 60, target)]);
    }
    corp.put([
        Record::a("host.corp.test", 60, "10.1.2.3"),
        Record::a("public.corp.test", 60, "192.0.2.1"),
    ]);
    for _ in 0..2 {
        for name in ["zone.test", "me.test", "host.test"] {
            let seen = fixture.dig(&[name, "A"]);
            assert_eq!((&*seen.status, seen.answers.len()), ("NOERROR", 0), "{}", seen.text);
            assert!(seen.text.contains("EDE: 15"), "{}", seen.text);
        }
        for name in ["zone.allowed.test", "public.test", "host.corp.test"] {
            let seen = fixture.dig(&[name, "A"]);
            assert!(!seen.answers.is_empty(), "{}", seen.text);
        }
    }
}

/// A registered host name may be an alias that leads to another upstream, never to a served zone.
#[test]
fn registered_host_names_may_be_aliases_into_other_domains() {
    let (rest, corp) = (Upstream::start(), Upstream::start());
    rest.put([Record::cname("backend.example.test", 1, "host.corp.test")]);
    corp.put([Record::a("host.corp.test", 1, "192.0.2.9")]);
    let fixture = Fixture::over(&rest, &corp, &[]);
    fixture.program.wait_for("hosted.svc", &["192.0.2.9"]);
    rest.replace([Record::cname("backend.example.test", 1, "hello.svc")]);
    let received = rest.queries_for("backend.example.test").len();
    rest.wait_for("backend.example.test", received + 2, seconds(60));
    // A lookup that cannot be made removes no address.
    fixture.program.wait_for("hosted.svc", &["192.0.2.9"]);
}

/// A signature of the addresses of a name (RFC 4034 section 3.1).
fn signature(name: &str) -> Record {
    let fields = b"\0\x01\x08\x02\0\0\0\x3C\x7F\0\0\0\x60\0\0\0\x12\x34\x04test\0";
    Record::new(name, rtype::RRSIG, 60, [&fields[..], &[7; 64]].concat())
}

#[test]
fn records_that_do_not_belong_to_a_response_are_dropped() {
    let upstream = Upstream::start();
    let fixture = Fixture::start(&["--upstream", &upstream.flag()]);
    let poison = |name: &str| Record::a(name, 3600, "192.0.2.66");
    let message = Message {
        answers: vec![
            poison("other.test"),
            Record::aaaa("other.test", 3600, "2001:db8::66"),
            Record::cname("www.test", 60, "web.test"),
            Record::a("web.test", 60, "192.0.2.1"),
            poison("hello.svc"),
            Record::txt("hello.svc", 3600, "mine"),
            signature("web.test"),
            signature("other.test"),
        ],
        authority: vec![
            Record::ns("test", 300, "ns.test"),
            Record::ns("svc", 300, "ns.test"),
            Record::soa("deep.hello.svc", 300, 60),
        ],
        additional: vec![Record::a("ns.test", 300, "192.0.2.53"), poison("a.hello.svc")],
        ..Message::default()
    };
    upstream.on("www.test", Behaviour::reply(message));
    for _ in 0..2 {
        for transport in ["+notcp", "+tcp"] {
            let seen = fixture.dig(&[transport, "+dnssec", "www.test", "A"]);
            let records = [&seen.answers[..], &seen.others].concat().join(", ");
            assert!(!records.contains(".66") && !records.contains("svc"), "{}", seen.text);
            assert_eq!(
                (seen.answers.len(), seen.others.join(", ")),
                (3, "test. NS ns.test., ns.test. A 192.0.2.53".to_owned()),
                "{}",
                seen.text
            );
        }
    }
    // Nothing but smuggled records: an empty answer, which is not cached.
    upstream
        .on("only.test", Behaviour::reply(Message::of([poison("hello.svc"), poison("b.test")])));
    for asked in 1..3 {
        let seen = fixture.dig(&["only.test", "A"]);
        assert_eq!((&*seen.status, seen.answers.len()), ("NOERROR", 0), "{}", seen.text);
        assert_eq!(upstream.queries_for("only.test").len(), asked);
    }
    // Chains in any order, and the data of other types, pass.
    let backwards = Message::of([
        Record::a("c.test", 60, "192.0.2.3"),
        Record::cname("b.test", 60, "c.test"),
        Record::cname("a.test", 60, "b.test"),
        Record::new("test", 39, 60, b"\x07example\0".to_vec()),
    ]);
    upstream.on("a.test", Behaviour::reply(backwards));
    assert_eq!(fixture.dig(&["a.test", "A"]).answers.len(), 4);
    // A target that the same upstream resolves is not queried again: the upstream may filter by
    // name.
    assert!(upstream.queries_for("b.test").is_empty() && upstream.queries_for("c.test").is_empty());
}

/// An outage must not bring back what the upstream has since contradicted.
#[test]
fn answers_contradicted_by_a_later_response_are_not_served_stale() {
    let upstream = Upstream::start();
    let fixture = Fixture::start(&["--upstream", &upstream.flag()]);
    let address = |ttl| Behaviour::reply(Message::of([Record::a("x.test", ttl, "192.0.2.1")]));
    let absent = Behaviour::reply(Message {
        authority: vec![Record::soa("test", 1, 1)],
        ..Message::code(3)
    });
    for (before, then) in [
        (&absent, address(0)),
        (&address(1), address(0)),
        (&address(1), Behaviour::code(3)),
        (&address(1), Behaviour::code(0)),
    ] {
        upstream.on("x.test", before.clone());
        let first = fixture.dig(&["x.test", "A"]);
        upstream.on("x.test", then);
        support::eventually("the next answer", seconds(20), || {
            let next = fixture.dig(&["x.test", "A"]);
            ((&next.status, &next.answers) != (&first.status, &first.answers)
                || next.text.contains("\t0\tIN\tA"))
            .then_some(())
        });
        upstream.on("x.test", Behaviour::never().over_tcp(Tcp::Closes));
        let seen = fixture.dig(&["x.test", "A"]);
        assert_eq!(seen.status, "SERVFAIL", "{}", seen.text);
        // The failure is cached for a moment.
        upstream.on("x.test", before.clone());
        support::eventually("the failure to end", seconds(20), || {
            (fixture.dig(&["x.test", "A"]).status != "SERVFAIL").then_some(())
        });
    }
}
