//! End-to-end tests of routes: special names, loops, and queries without RD.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use support::files::Files;
use support::svcdns::{self, Svcdns};
use support::upstream::{Behaviour, Record, Upstream};
use support::{SOON, dns, eventually, netns, seconds};

/// Record type that the test support does not define.
const PTR: u16 = 12;

/// Starts svcdns with these flags and a registry of its own.
fn serve(files: &Files, flags: &[&str]) -> Svcdns {
    let registry = files.url();
    Svcdns::serve(&[&["--config", "/dev/null", "--registry", &registry], flags].concat())
}

/// Starts a relay that forwards every query to a given address, as dnsmasq would.
fn relay() -> (SocketAddr, Arc<OnceLock<SocketAddr>>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (address, to) = (socket.local_addr().unwrap(), Arc::<OnceLock<SocketAddr>>::default());
    let target = Arc::clone(&to);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let (question, answers) = (buffer[..length].to_vec(), socket.try_clone().unwrap());
            let Some(server) = target.get().copied() else { continue };
            thread::spawn(move || {
                if let Some(answer) = dns::exchange(server, &question, seconds(10)) {
                    let _ = answers.send_to(&answer, from);
                }
            });
        }
    });
    (address, to)
}

#[test]
fn special_names_are_answered_without_an_upstream() {
    let files = Files::new(&[]);
    // A socket that never answers.
    let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let upstream = nobody.local_addr().unwrap().to_string();
    let server = serve(&files, &["--upstream", &upstream]);
    assert_eq!(dns::addresses(server.address, "localhost"), Ok(vec![Ipv4Addr::LOCALHOST.into()]));
    assert_eq!(dns::addresses(server.address, "a.LOCALHOST"), Ok(vec![Ipv4Addr::LOCALHOST.into()]));
    assert_eq!(dns::code(server.address, "a.onion", dns::A), "NXDOMAIN");
    assert_eq!(dns::code(server.address, "a.invalid", dns::A), "NXDOMAIN");
    assert_eq!(dns::code(server.address, "1.0.0.127.in-addr.arpa", PTR), "NOERROR");

    let explained = |name: &str| String::from_utf8(server.run(&["explain", name]).stdout).unwrap();
    assert!(
        explained("example.com.").contains(&format!("forwarded to {upstream}")),
        "{}",
        explained("example.com.")
    );
    assert!(explained("a.onion.").contains("answered locally"), "{}", explained("a.onion."));
    let corp = serve(&files, &["--upstream", "off"]);
    assert_eq!(dns::code(corp.address, "localhost", dns::A), "REFUSED");
    server.stop();
}

#[test]
fn loops_are_detected_and_logged() {
    let files = Files::new(&[("default/default/hello.svc/latest/10.0.0.1:80", "{}")]);
    let (relay, to) = relay();
    let mut server = serve(&files, &["--upstream", &relay.to_string()]);
    to.set(server.address).unwrap();
    // The first probe was sent before the relay had a target; the next one follows in seconds.
    eventually("the loop to be detected", seconds(60), || {
        server.log().contains("sends queries back").then_some(())
    });
    assert!(server.log().contains(&relay.to_string()), "{}", server.log());
    let answer = dns::exchange(
        server.address,
        &dns::query_with_opt(7, "example.com", dns::A, 1232),
        seconds(10),
    )
    .unwrap();
    assert_eq!(dns::code_of(&answer), "SERVFAIL");
    assert!(
        String::from_utf8_lossy(&answer).contains("sends queries back to svcdns"),
        "{answer:x?}"
    );
    server.wait_for("hello.svc", &["10.0.0.1"]);
    assert!(server.is_running());
    server.stop();
}

#[test]
fn an_upstream_that_is_svcdns_itself_is_rejected() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let arguments =
        ["serve", "--config", "/dev/null", "--state-dir", state, "--listen", "127.0.0.1:5399"];
    let output =
        svcdns::command().args(arguments).args(["--upstream", "127.0.0.1:5399"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("svcdns would query itself"), "{said}");
}

/// A registry with one service.
fn hello() -> Files {
    Files::new(&[("default/default/hello.svc/latest/10.9.0.5:80", "{}")])
}

/// Longest time for an answer that no server has to wait for, on a busy machine.
const AT_ONCE: Duration = seconds(2);

/// Returns status, codes of extended errors and answers as dig prints them; no answer is an error.
fn dig(server: SocketAddr, arguments: &[&str]) -> (String, Vec<String>, Vec<String>) {
    let text = dns::dig(server, arguments);
    let status = text.split("status: ").nth(1).unwrap_or_else(|| panic!("{arguments:?}: {text}"));
    let errors = text.lines().filter_map(|line| line.strip_prefix("; EDE: ")?.split(' ').next());
    let answers = text.split(";; ANSWER SECTION:\n").nth(1).unwrap_or_default();
    let answers = answers.lines().take_while(|line| !line.is_empty());
    let data = answers.filter_map(|line| line.split_whitespace().nth(4));
    (
        status.split(',').next().unwrap().to_owned(),
        errors.map(str::to_owned).collect(),
        data.map(str::to_owned).collect(),
    )
}

/// Returns how often the upstream was queried for a token below a domain.
fn tokens_below(upstream: &Upstream, domain: &str) -> usize {
    let queries = upstream.queries();
    let names = queries.iter().map(|received| received.query.name.to_lowercase());
    names.filter(|name| name.starts_with("svcdns-loop-check-") && name.ends_with(domain)).count()
}

/// On loopback every client has the upstream's address.
#[test]
fn identical_client_queries_from_the_address_of_an_upstream_are_no_loop() {
    let files = hello();
    let upstream = Upstream::start();
    let slow = Behaviour::default().delayed(Duration::from_millis(600));
    upstream.put([Record::a("www.example.test", 300, "192.0.2.80")]);
    upstream.on("www.example.test", slow);
    let server = serve(&files, &["--upstream", &upstream.flag()]);
    server.wait_for("hello.svc", &["10.9.0.5"]);
    let address = server.address;
    let ask = move || dns::addresses(address, "www.example.test");
    let others: Vec<_> = (0..7).map(|_| thread::spawn(ask)).collect();
    assert_eq!(ask(), Ok(vec!["192.0.2.80".parse().unwrap()]));
    for other in others {
        assert_eq!(other.join().unwrap(), Ok(vec!["192.0.2.80".parse().unwrap()]));
    }
    // Equal queries are merged; the upstream is slow enough to get a second one, and one without
    // EDNS.
    assert!(upstream.queries_for("www.example.test").len() <= 3, "{:?}", upstream.queries());
    assert_eq!(tokens_below(&upstream, ".www.example.test"), 1, "{:?}", upstream.names());
    assert!(!server.log().contains("back to svcdns"), "{}", server.log());
    // The upstream still gets the domain's queries.
    assert_eq!(dns::code(address, "other.example.test", dns::A), "NXDOMAIN");
    assert_eq!(upstream.queries_for("other.example.test").len(), 1);
}

#[test]
fn queries_for_a_domain_that_loops_are_sent_to_the_next_upstream() {
    let files = hello();
    let (circle, other) = (Upstream::start(), Upstream::start());
    other.put(
        ["a.corp.test", "b.corp.test", "c.corp.test"]
            .map(|name| Record::a(name, 300, "192.0.2.80")),
    );
    other.behave(Behaviour::default().delayed(Duration::from_millis(150)));
    circle.put([Record::a("www.example.test", 300, "192.0.2.81")]);
    let server = serve(&files, &["--upstream", &circle.flag(), "--upstream", &other.flag()]);
    circle.below("corp.test", Behaviour::forward(server.address));
    for name in ["a.corp.test", "b.corp.test", "c.corp.test"] {
        let began = Instant::now();
        let answer = dns::addresses(server.address, name);
        assert_eq!(answer, Ok(vec!["192.0.2.80".parse().unwrap()]), "{}", server.log());
        assert!(began.elapsed() < AT_ONCE, "{name}: {:?}", began.elapsed());
    }
}

#[test]
fn a_domain_that_loops_at_all_upstreams_fails_at_once() {
    let files = hello();
    let circle = Upstream::start();
    circle.put([Record::a("www.example.test", 300, "192.0.2.81")]);
    let server = serve(&files, &["--upstream", &circle.flag()]);
    circle.below("corp.test", Behaviour::forward(server.address));
    for (name, options) in [
        ("a.corp.test", &[][..]),
        // A query with options is for this client only.
        ("b.corp.test", &["+subnet=192.0.2.0/24"]),
        ("c.d.corp.test", &["+tcp"]),
        ("a.corp.test", &[]),
    ] {
        let began = Instant::now();
        let seen = dig(server.address, &[&[name], options].concat());
        let log = server.log();
        assert_eq!(seen, ("SERVFAIL".to_owned(), vec!["22".to_owned()], vec![]), "{name}: {log}");
        assert!(began.elapsed() < AT_ONCE, "{name}: {:?}", began.elapsed());
    }
    // The widest domain is marked, so that further names do not loop.
    eventually("the domain to be marked", SOON, || {
        server.log().contains("domain=corp.test.").then_some(())
    });
    circle.forget();
    assert_eq!(dig(server.address, &["e.corp.test"]).0, "SERVFAIL");
    assert_eq!(circle.names(), BTreeSet::new());
    assert_eq!(dns::addresses(server.address, "www.example.test").map(|found| found.len()), Ok(1));
}

/// Private zones that an upstream sends back are ours to answer (RFC 6303).
#[test]
fn looping_queries_for_private_zones_are_answered_locally() {
    let files = hello();
    let circle = Upstream::start();
    let server = serve(&files, &["--upstream", &circle.flag()]);
    server.wait_for("hello.svc", &["10.9.0.5"]);
    for domain in ["10.in-addr.arpa", "d.f.ip6.arpa", "home.arpa"] {
        circle.below(domain, Behaviour::forward(server.address));
    }
    for (arguments, status) in [
        (&["-x", "10.9.0.97"][..], "NXDOMAIN"),
        (&["-x", "10.8.0.97", "+tcp"], "NXDOMAIN"),
        (&["-x", "fd00::97"], "NXDOMAIN"),
        (&["0.9.10.in-addr.arpa", "PTR"], "NOERROR"),
        (&["nas.home.arpa"], "NXDOMAIN"),
    ] {
        let began = Instant::now();
        let seen = dig(server.address, arguments);
        assert_eq!(seen.0, status, "{arguments:?}: {}", server.log());
        assert!(began.elapsed() < AT_ONCE, "{arguments:?}: {:?}", began.elapsed());
    }
}

#[test]
fn queries_without_rd_are_never_forwarded() {
    let files = hello();
    let upstream = Upstream::start();
    let records =
        ["www.example.test", "other.example.test"].map(|name| Record::a(name, 300, "192.0.2.80"));
    upstream.put(records);
    upstream.put([Record::ptr("77.0.9.10.in-addr.arpa", 300, "printer.corp.test")]);
    let server = serve(&files, &["--upstream", &upstream.flag()]);
    server.wait_for("hello.svc", &["10.9.0.5"]);
    let unasked = |arguments: &[&str], status: &str, answer: &[&str]| {
        for transport in ["+notcp", "+tcp"] {
            let (seen, errors, found) =
                dig(server.address, &[&["+norecurse", transport], arguments].concat());
            assert_eq!(seen, status, "{arguments:?} {transport}");
            assert_eq!(found, answer, "{arguments:?} {transport}");
            let refused = (status == "REFUSED").then_some("20".to_owned());
            assert_eq!(errors, refused.into_iter().collect::<Vec<_>>(), "{arguments:?}");
        }
    };
    unasked(&["hello.svc"], "NOERROR", &["10.9.0.5"]);
    unasked(&["nothing.svc"], "NXDOMAIN", &[]);
    unasked(&["-x", "10.9.0.5"], "NOERROR", &["10-9-0-5.hello.svc.", "hello.svc."]);
    unasked(&["0.9.10.in-addr.arpa", "PTR"], "NOERROR", &[]);
    unasked(&["-x", "10.9.0.77"], "NXDOMAIN", &[]);
    unasked(&["-x", "127.0.0.1"], "NOERROR", &["localhost."]);
    unasked(&["localhost"], "NOERROR", &["127.0.0.1"]);
    unasked(&["nas.home.arpa"], "NXDOMAIN", &[]);
    unasked(&["www.example.test"], "REFUSED", &[]);
    unasked(&["www.example.test", "+subnet=192.0.2.0/24"], "REFUSED", &[]);
    unasked(&["com", "DS"], "REFUSED", &[]);
    unasked(&["com", "A"], "REFUSED", &[]);
    unasked(&["-x", "9.9.9.9"], "REFUSED", &[]);
    assert_eq!(upstream.names(), BTreeSet::new());
    // The cache answers, even if another client's query filled it.
    assert_eq!(dns::addresses(server.address, "www.example.test").map(|found| found.len()), Ok(1));
    let printer = dns::dig_short(server.address, &["-x", "10.9.0.77"]);
    assert_eq!(printer, ["printer.corp.test."]);
    upstream.forget();
    unasked(&["www.example.test"], "NOERROR", &["192.0.2.80"]);
    unasked(&["-x", "10.9.0.77"], "NOERROR", &["printer.corp.test."]);
    unasked(&["other.example.test"], "REFUSED", &[]);
    assert_eq!(upstream.names(), BTreeSet::new());
}

/// A registered address may come and go, so nobody must remember its absence for long.
#[test]
fn negative_reverse_answers_have_the_negative_ttl() {
    let files = hello();
    let company = Upstream::start();
    company
        .put(["9.10.in-addr.arpa", "8.8.8.in-addr.arpa"].map(|zone| Record::soa(zone, 3600, 3600)));
    for (flags, hours) in [
        (&["--upstream", "off"][..], false),
        (&["--upstream", &company.flag()], true),
        (&["--upstream", &company.flag(), "--negative-ttl", "3s"], true),
    ] {
        let server = serve(&files, flags);
        server.wait_for("hello.svc", &["10.9.0.5"]);
        let ttl = |address: &str| {
            let text = dns::dig(server.address, &["-x", address]);
            let soa = text.lines().find(|line| line.contains("\tSOA\t")).unwrap_or_default();
            assert!(text.contains("status: NXDOMAIN"), "{flags:?}: {text}");
            soa.split_whitespace().nth(1).unwrap_or_default().to_owned()
        };
        let short = if flags.len() > 2 { "3" } else { "1" };
        // The second answer is cached.
        assert_eq!([ttl("10.9.0.99"), ttl("10.9.0.99")], [short; 2], "{flags:?}");
        assert_eq!(ttl("192.168.9.9"), if hours { short } else { "1" }, "{flags:?}");
        if hours {
            assert_eq!(ttl("8.8.8.8"), "3600", "a public upstream knows public addresses");
        }
    }
    assert_eq!(company.queries_for("99.0.9.10.in-addr.arpa").len(), 2, "once for each server");
}

#[test]
fn empty_non_terminals_of_the_reverse_tree_exist_whatever_an_upstream_says() {
    let files = hello();
    let company = Upstream::start();
    company.put([Record::soa("10.in-addr.arpa", 3600, 3600)]);
    let server = serve(&files, &["--upstream", &company.flag()]);
    server.wait_for("hello.svc", &["10.9.0.5"]);
    for (name, status) in [
        ("0.9.10.in-addr.arpa", "NOERROR"),
        ("9.10.in-addr.arpa", "NOERROR"),
        ("8.10.in-addr.arpa", "NXDOMAIN"),
        ("1.9.10.in-addr.arpa", "NXDOMAIN"),
    ] {
        for again in 0..2 {
            assert_eq!(dig(server.address, &[name, "NS"]).0, status, "{name} {again}");
        }
    }
}

#[test]
fn missing_reverse_names_are_servfail_before_the_registry_is_read() {
    let upstream = Upstream::start();
    upstream.put([
        Record::soa("10.in-addr.arpa", 3600, 3600),
        Record::ptr("77.0.9.10.in-addr.arpa", 300, "printer.corp.test"),
    ]);
    // Nobody listens there.
    let registry = ["--config", "/dev/null", "--registry", "etcd://127.0.0.1:9"];
    let not_ready = ("SERVFAIL".to_owned(), vec!["14".to_owned()], vec![]);
    let off = Svcdns::serve(&[&registry[..], &["--upstream", "off"]].concat());
    for address in ["10.9.0.5", "fd00::5", "8.8.8.8"] {
        assert_eq!(dig(off.address, &["-x", address]), not_ready, "{address}");
    }
    let server = Svcdns::serve(&[&registry[..], &["--upstream", &upstream.flag()]].concat());
    let text = dns::dig(server.address, &["-x", "10.9.0.5"]);
    assert!(text.contains("status: NXDOMAIN") && text.contains("\t1\tIN\tSOA\t"), "{text}");
    let printer = dns::dig_short(server.address, &["-x", "10.9.0.77"]);
    assert_eq!(printer, ["printer.corp.test."], "the upstream's answer");
    assert_eq!(dig(server.address, &["-x", "10.9.0.6", "+norecurse"]), not_ready);
}

#[test]
fn private_reverse_names_do_not_exist_with_forwarding_off() {
    let files = hello();
    let server = serve(&files, &["--upstream", "off"]);
    server.wait_for("hello.svc", &["10.9.0.5"]);
    for (address, status) in [
        ("10.9.0.99", "NXDOMAIN"),
        ("192.168.0.1", "NXDOMAIN"),
        ("fd00::99", "NXDOMAIN"),
        ("9.9.9.9", "REFUSED"),
    ] {
        assert_eq!(dig(server.address, &["-x", address]).0, status, "{address}");
    }
}

#[test]
fn single_label_address_queries_are_not_sent_to_public_upstreams() {
    netns::inside(
        "single_label_address_queries_are_not_sent_to_public_upstreams",
        "127.0.0.1",
        || {
            let files = hello();
            netns::add_address("9.9.9.9/32");
            let public = Upstream::start_at((Ipv4Addr::new(9, 9, 9, 9), 0).into());
            let private = Upstream::start();
            for upstream in [&public, &private] {
                upstream.put([Record::a("printer", 300, "192.0.2.80"), Record::soa("", 300, 300)]);
            }
            let status =
                |server: &Svcdns, name: &str, qtype: &str| dig(server.address, &[name, qtype]).0;
            let server = serve(&files, &["--upstream", &public.flag()]);
            assert_eq!(status(&server, "printer", "A"), "NXDOMAIN");
            assert_eq!(status(&server, "printer", "AAAA"), "NXDOMAIN");
            assert_eq!(public.names(), BTreeSet::new());
            // A resolver that validates needs these.
            assert_eq!(status(&server, "com", "DS"), "NXDOMAIN");
            assert_eq!(status(&server, "printer", "NS"), "NOERROR");
            assert_eq!(status(&server, ".", "A"), "NOERROR");
            for name in ["com", "printer"] {
                assert_eq!(public.queries_for(name).len(), 1, "{name}");
            }
            assert!(public.queries_for(".").iter().any(|received| received.query.qtype == dns::A));

            let forwarding = ["--upstream", &public.flag(), "--forward-single-label", "true"];
            assert_eq!(status(&serve(&files, &forwarding), "printer", "A"), "NOERROR");
            let domain = format!("printer={}", public.flag());
            let route = ["--upstream", "127.0.0.1:9", "--upstream", &domain];
            assert_eq!(status(&serve(&files, &route), "printer", "A"), "NOERROR");

            let server =
                serve(&files, &["--upstream", &public.flag(), "--upstream", &private.flag()]);
            public.forget();
            assert_eq!(status(&server, "printer", "A"), "NOERROR");
            assert_eq!((public.names().len(), private.queries_for("printer").len()), (0, 1));
        },
    );
}

/// NXDOMAIN makes a program try the next domain of its search list.
#[test]
fn search_lists_work_with_single_label_names() {
    netns::inside("search_lists_work_with_single_label_names", "127.0.0.1", || {
        let files = hello();
        netns::add_address("9.9.9.9/32");
        let public = Upstream::start_at((Ipv4Addr::new(9, 9, 9, 9), 0).into());
        let flags = ["--registry", &files.url(), "--upstream", &public.flag()];
        let server = Svcdns::serve_at((Ipv4Addr::LOCALHOST, 53).into(), &flags);
        server.wait_for("hello.svc", &[netns::ADDRESS]);
        // With ndots:0 the name is looked up as it is first.
        for options in ["ndots:1", "ndots:0", "ndots:5"] {
            let lines = format!("nameserver 127.0.0.1\nsearch corp.test svc\noptions {options}\n");
            netns::mount_file("/etc/resolv.conf", &lines);
            let getent = Command::new("getent").args(["ahostsv4", "hello"]).output().unwrap();
            let found = String::from_utf8_lossy(&getent.stdout).into_owned();
            assert!(found.starts_with(netns::ADDRESS), "{options}: {found:?}");
            // Nobody listens there; curl says which address it tried.
            let curl = Command::new("curl").args(["-sv", "-m", "5", "http://hello:9/"]).output();
            let tried = String::from_utf8_lossy(&curl.unwrap().stderr).into_owned();
            assert!(tried.contains(netns::ADDRESS), "{options}: {tried}");
            let began = Instant::now();
            let none = Command::new("getent").args(["ahosts", "nowhere"]).output().unwrap();
            assert!(!none.status.success() && began.elapsed() < AT_ONCE, "{options}: {none:?}");
        }
        let names = public.names();
        assert!(names.iter().all(|name| name.ends_with(".corp.test")), "{names:?}");
    });
}
