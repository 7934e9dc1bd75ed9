//! End-to-end tests of the order of upstreams, and of upstreams that are all dead.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use support::files::Files;
use support::svcdns::Svcdns;
use support::upstream::{Behaviour, Edns, Record, Tcp, Upstream};
use support::{dns, eventually, free_address, netns, seconds};

/// Address that the first upstream has for internal names.
const INTERNAL: &str = "192.0.2.10";

/// Number of internal names.
const INTERNAL_NAMES: usize = 40;

/// Number of failed attempts that a busy machine may cause.
const ALLOWANCE: usize = 4;

/// Name number `number` that only the first upstream knows.
fn internal(number: usize) -> String {
    format!("n{number}.intra.corp")
}

/// Makes this upstream slower than another one, and lets it alone know the internal names.
fn make_slow_and_internal(upstream: &Upstream) {
    upstream.put((0..INTERNAL_NAMES).map(|number| Record::a(&internal(number), 60, INTERNAL)));
    upstream.behave(Behaviour::default().delayed(Duration::from_millis(20)));
}

/// A slow upstream that knows internal names, and a fast one that denies them.
fn internal_and_public() -> (Upstream, Upstream) {
    let (first, second) = (Upstream::start(), Upstream::start());
    make_slow_and_internal(&first);
    (first, second)
}

/// Starts svcdns with an empty registry.
fn serve(files: &Files, flags: &[&str]) -> Svcdns {
    Svcdns::serve(&[&["--registry", &files.url()], flags].concat())
}

/// Counts the internal names that resolve.
fn resolved(server: SocketAddr) -> usize {
    let found = |number: &usize| dns::code(server, &internal(*number), dns::A) == "NOERROR";
    (0..INTERNAL_NAMES).filter(found).count()
}

fn text_of(server: &Svcdns, arguments: &[&str]) -> String {
    String::from_utf8(server.run(arguments).stdout).unwrap()
}

/// Asks for a name; returns the code, the address's last byte, and the time it took.
fn timed(server: &Svcdns, name: &str) -> (&'static str, u8, Duration) {
    let began = Instant::now();
    let message = dns::query_with_opt(7, name, dns::A, 1232);
    let response = dns::exchange(server.address, &message, seconds(20)).unwrap();
    let end = 12 + name.len() + 2 + 4;
    let last = response.get(end + 15).copied().unwrap_or_default();
    (dns::code_of(&response), last, began.elapsed())
}

#[test]
fn strict_order_prefers_the_first_upstream() {
    let files = Files::new(&[]);
    let (first, second) = internal_and_public();
    let (one, other) = (first.flag(), second.flag());
    let server =
        serve(&files, &["--upstream", &one, "--upstream", &other, "--upstream-order", "strict"]);
    assert!(resolved(server.address) >= INTERNAL_NAMES - ALLOWANCE);
    let asked = second.names().len();
    assert!(asked <= ALLOWANCE, "the second upstream was asked for {asked} names");
    assert_eq!(dns::code(server.address, "nobody.intra.corp", dns::A), "NXDOMAIN");
    let explained = text_of(&server, &["explain", "example.com."]);
    assert!(
        explained.contains(&format!("forwarded to {one} and {other}, in this order")),
        "{explained}"
    );
    let status = text_of(&server, &["status"]);
    assert!(status.contains(&format!("order: strict: {one}, {other}")), "{status}");
}

#[test]
fn upstreams_are_fastest_first_by_default_and_strict_for_domains() {
    let files = Files::new(&[]);
    let (first, second) = internal_and_public();
    first.behave(Behaviour::default().delayed(Duration::from_millis(100)));
    let (one, other) = (first.flag(), second.flag());
    let server = serve(&files, &["--upstream", &one, "--upstream", &other]);
    assert!(resolved(server.address) <= INTERNAL_NAMES / 2, "the second upstream is faster");
    let explained = text_of(&server, &["explain", "example.com."]);
    assert!(explained.contains(&format!("{one} and {other}, the fastest first")), "{explained}");

    let (first, second) = internal_and_public();
    let (one, other) = (first.flag(), second.flag());
    let domains = [format!("corp={one}"), format!("corp={other}")];
    let server = serve(&files, &["--upstream", &domains[0], "--upstream", &domains[1]]);
    assert!(resolved(server.address) >= INTERNAL_NAMES - ALLOWANCE);
    let explained = text_of(&server, &["explain", "a.corp."]);
    assert!(explained.contains(&format!("{one} and {other}, in this order")), "{explained}");
    let status = text_of(&server, &["status"]);
    assert!(status.contains(&format!("corp.: strict: {one}, {other}")), "{status}");
}

/// The C library's order is that of resolv.conf, so ours is, too.
#[test]
fn options_rotate_in_resolv_conf_determines_the_order() {
    netns::inside("options_rotate_in_resolv_conf_determines_the_order", "127.0.0.1", || {
        let at = |address: &str| Upstream::start_at(format!("{address}:53").parse().unwrap());
        let (first, _second) = (at("127.0.1.1"), at("127.0.1.2"));
        make_slow_and_internal(&first);
        let two = "nameserver 127.0.1.1\nnameserver 127.0.1.2\n";
        for (text, is_strict) in [(two.to_owned(), true), (format!("options rotate\n{two}"), false)]
        {
            std::fs::write("/etc/resolv.conf", text).unwrap();
            let delay = Duration::from_millis(if is_strict { 20 } else { 100 });
            first.behave(Behaviour::default().delayed(delay));
            let files = Files::new(&[]);
            let server = serve(&files, &["--upstream", "system"]);
            let found = resolved(server.address);
            let order = if is_strict { "in this order" } else { "the fastest first" };
            assert!(server.log().contains(order), "{}", server.log());
            if is_strict {
                assert!(found >= INTERNAL_NAMES - ALLOWANCE, "{found}");
                // While the first one is away, the second one answers; then the first does again.
                first.behave(Behaviour::never());
                eventually("answers of the second", seconds(20), || {
                    let (code, _, took) = timed(&server, "away.intra.corp");
                    (code == "NXDOMAIN" && took < Duration::from_millis(400)).then_some(())
                });
                first.behave(Behaviour::default());
                first.put([Record::a("back.intra.corp", 0, INTERNAL)]);
                first.forget();
                eventually("the return of the first", seconds(20), || {
                    let name = format!("{}.intra.corp", fastrand::u32(..));
                    first.put([Record::a(&name, 0, INTERNAL)]);
                    (timed(&server, &name).0 == "NOERROR").then_some(())
                });
            } else {
                assert!(found <= INTERNAL_NAMES / 2, "{found}");
            }
            server.stop();
        }
    });
}

#[test]
fn dead_upstreams_delay_no_client_by_more_than_1_s() {
    let files = Files::new(&[]);
    let upstreams = [Upstream::start(), Upstream::start()];
    for upstream in &upstreams {
        upstream.put((0..200).map(|number| Record::a(&format!("n{number}.test"), 60, "192.0.2.6")));
        upstream.put([Record::a("old.test", 1, "192.0.2.5")]);
    }
    let flags = upstreams.each_ref().map(Upstream::flag);
    let server = serve(&files, &["--upstream", &flags[0], "--upstream", &flags[1]]);
    assert_eq!(timed(&server, "old.test").0, "NOERROR");
    thread::sleep(seconds(2));
    for upstream in &upstreams {
        upstream.behave(Behaviour::never().over_tcp(Tcp::Silent));
    }
    // The first query finds out.
    assert_eq!(timed(&server, "n0.test").0, "SERVFAIL");
    upstreams.iter().for_each(Upstream::forget);
    for number in 1..6 {
        let (code, _, took) = timed(&server, &format!("n{number}.test"));
        assert!(code == "SERVFAIL" && took < seconds(1), "{code} {took:?}");
        let (code, last, took) = timed(&server, "old.test");
        assert!(code == "NOERROR" && last == 5 && took < Duration::from_millis(200), "{took:?}");
    }
    for upstream in &upstreams {
        // The first name that an upstream answered serves as a probe; no client's query does.
        let probed_with: Vec<_> = upstream.names().into_iter().collect();
        assert!(probed_with.is_empty() || probed_with == ["old.test"], "{probed_with:?}");
        assert!(!upstream.probes().is_empty());
    }
    // One of them returns.
    upstreams[1].behave(Behaviour::default());
    upstreams[1].replace([
        Record::a("n6.test", 60, "192.0.2.6"),
        Record::a("n1.test", 60, "192.0.2.6"),
        Record::a("old.test", 1, "192.0.2.55"),
    ]);
    let returned = Instant::now();
    for name in ["n6.test", "n1.test"] {
        let (code, last, took) = timed(&server, name);
        assert!(code == "NOERROR" && last == 6, "{name}: {code} {took:?}");
    }
    eventually("the new address", seconds(10), || {
        (timed(&server, "old.test").1 == 55).then_some(())
    });
    assert!(returned.elapsed() < seconds(1), "{:?}", returned.elapsed());
    server.stop();
}

/// Nothing listens at the port: the machine or the program is restarting.
#[test]
fn unreachable_upstreams_are_used_again_within_1_s_of_their_return() {
    let files = Files::new(&[]);
    // Reserved: while the upstream is stopped, no other socket gets the port.
    let address = free_address();
    let upstream = Upstream::start_at(address);
    let server = serve(&files, &["--upstream", &upstream.flag()]);
    drop(upstream);
    eventually("the closed port", seconds(10), || {
        let (code, _, took) = timed(&server, "a.test");
        assert!(took < seconds(1), "{took:?}");
        (code == "SERVFAIL").then_some(())
    });
    // No failure of this name may be cached.
    let upstream = Upstream::start_at(address);
    upstream.put([Record::a("a.test", 60, "192.0.2.6")]);
    let began = Instant::now();
    while timed(&server, "a.test").0 != "NOERROR" {
        assert!(began.elapsed() < seconds(1));
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn upstreams_without_edns_support_answer_in_time() {
    thread::scope(|scope| {
        for edns in [Edns::Silent, Edns::Misplaced, Edns::Trailing, Edns::Code(2), Edns::Code(5)] {
            scope.spawn(move || {
                let files = Files::new(&[]);
                let upstream = Upstream::start();
                upstream.put(
                    (0..200).map(|number| Record::a(&format!("n{number}.test"), 60, "192.0.2.6")),
                );
                upstream.behave(Behaviour::edns(edns));
                let server = serve(&files, &["--upstream", &upstream.flag()]);
                let (code, last, took) = timed(&server, "n0.test");
                assert!(code == "NOERROR" && last == 6, "{edns:?}: {code}");
                assert!(took < seconds(2), "{edns:?}: {took:?}");
                let mut number = 0;
                eventually("queries without EDNS", seconds(20), || {
                    number += 1;
                    let name = format!("n{number}.test");
                    let (code, _, took) = timed(&server, &name);
                    assert!(code == "NOERROR" && took < seconds(2), "{edns:?}: {code} {took:?}");
                    let received = upstream.queries_for(&name);
                    received.iter().all(|received| received.query.opt.is_none()).then_some(())
                });
                eventually("the log to say so", seconds(20), || {
                    server.log().contains("fails queries with EDNS").then_some(())
                });
                server.stop();
            });
        }
    });
}
