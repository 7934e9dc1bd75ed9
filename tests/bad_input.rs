//! Hostile and broken input to the real program: registry content, packets, connections, surroundings. Each is skipped or
//! refused by itself; nothing else is affected.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::dns::{Prober, code_of, exchange, question, question_with_opt, receive_tcp, send_tcp};
use support::etcd::Etcd;
use support::process::Process;
use support::svcdns::Svcdns;
use support::{SOON, dns, eventually, seconds, svcdns};

const GOOD: &str = "/service/default/default/good.svc/latest/10.0.0.1:80";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A server on an etcd that holds `good.svc`.
fn good() -> (Etcd, Svcdns) {
    let etcd = Etcd::start();
    etcd.put(GOOD, "{}");
    let server = Svcdns::serve(&["--registry", &etcd.url()]);
    server.wait_for("good.svc", &["10.0.0.1"]);
    (etcd, server)
}

fn expect_good(server: &mut Svcdns) {
    assert!(server.is_running(), "the server ended:\n{}", server.log());
    server.wait_for("good.svc", &["10.0.0.1"]);
}

/// Keys of the flood: twice the cap on one service.
const FLOOD: u32 = 20_000;

#[test]
fn junk_in_the_registry_is_skipped_and_listed() {
    let (etcd, mut server) = good();
    let long_label = "x".repeat(64);
    let long_name = vec!["y".repeat(60); 5].join(".");
    // Key, value, and what `ls --rejected` must show of it.
    let rejected: Vec<(String, String, &str)> = vec![
        ("/service/default/default/few/latest".into(), "{}".into(), "few"),
        ("/service/few2".into(), "{}".into(), "few2"),
        ("/service/default/default/v6broken/latest/[:0".into(), "{}".into(), "[:0"),
        ("/service/default/default/nohost/latest/:80".into(), "{}".into(), ":80"),
        ("/service/default/default/port0/latest/10.0.0.2:0".into(), "{}".into(), "10.0.0.2:0"),
        (
            "/service/default/default/port70000/latest/10.0.0.2:70000".into(),
            "{}".into(),
            "10.0.0.2:70000",
        ),
        ("/service/default/default/octal/latest/010.0.0.1:80".into(), "{}".into(), "010.0.0.1:80"),
        (
            "/service/default/default/unspecified/latest/0.0.0.0:80".into(),
            "{}".into(),
            "0.0.0.0:80",
        ),
        (
            "/service/default/default/multicast/latest/224.0.0.1:80".into(),
            "{}".into(),
            "224.0.0.1:80",
        ),
        ("/service/default/default/own/latest/good.svc:80".into(), "{}".into(), "good.svc:80"),
        ("/service/default/default/slash/es/latest/10.0.0.2:80".into(), "{}".into(), "slash/es"),
        (
            "/service/default/default/bell\u{7}name/latest/10.0.0.2:80".into(),
            "{}".into(),
            "bell\\u{7}name",
        ),
        ("/service/default/default/*/latest/10.0.0.2:80".into(), "{}".into(), "/*/"),
        ("/service/default/default/..svc/latest/10.0.0.2:80".into(), "{}".into(), "/..svc/"),
        ("/service/default/default/ns.svc/latest/10.0.0.2:80".into(), "{}".into(), "/ns.svc/"),
        ("/service/default/default/svc/latest/10.0.0.2:0".into(), "{}".into(), "/svc/"),
        ("/service/default/default/_tcp/latest/10.0.0.2:80".into(), "{}".into(), "/_tcp/"),
        (
            format!("/service/default/default/{long_label}/latest/10.0.0.2:80"),
            "{}".into(),
            "xxxxxxxx",
        ),
        (
            format!("/service/default/default/{long_name}/latest/10.0.0.2:80"),
            "{}".into(),
            "yyyyyyyy",
        ),
        (
            "/service/default/default/notjson/latest/10.0.0.2:80".into(),
            "not json".into(),
            "notjson",
        ),
        ("/service/default/default/array/latest/10.0.0.2:80".into(), "[1]".into(), "array"),
        (
            "/service/default/default/brackets/latest/10.0.0.2:80".into(),
            "[".repeat(20_000),
            "brackets",
        ),
        (
            "/service/default/default/nested/latest/10.0.0.2:80".into(),
            format!("{}1{}", r#"{"a":"#.repeat(5000), "}".repeat(5000)),
            "nested",
        ),
        (
            "/service/default/default/huge/latest/10.0.0.2:80".into(),
            format!(r#"{{"a":"{}"}}"#, "h".repeat(1 << 20)),
            "huge",
        ),
    ];
    runtime().block_on(async {
        let mut client = etcd.client().await;
        for (key, value, _) in &rejected {
            client.put(key.as_str(), value.as_str(), None).await.unwrap();
        }
        // Keys that are no text
        client
            .put(b"/service/default/default/\xff\xfe/latest/10.0.0.2:80".to_vec(), "{}", None)
            .await
            .unwrap();
        client.put(b"/service/\x00".to_vec(), "{}", None).await.unwrap();
        // One bad endpoint beside good ones, an empty value, slashes too many at the ends: served
        client
            .put(
                "/service/default/default/mixed/latest/10.0.0.3:80,10.0.0.4:0,[fd00,10.0.0.5:81",
                "",
                None,
            )
            .await
            .unwrap();
        client.put("/service/default/default/marker/latest/10.0.0.9:80", "{}", None).await.unwrap();
    });
    server.wait_for("marker.svc", &["10.0.0.9"]);
    server.wait_for("mixed.svc", &["10.0.0.3", "10.0.0.5"]);
    expect_good(&mut server);
    for name in ["few.svc", "es.svc", "slash.svc", "notjson.svc", "huge.svc", "a.huge.svc"] {
        assert_eq!(dns::code(server.address, name, dns::A), "NXDOMAIN", "{name}");
    }
    for name in ["port0.svc", "v6broken.svc", "own.svc"] {
        assert_eq!(
            dns::addresses(server.address, name),
            Ok(vec![]),
            "{name} is known, and has nothing usable"
        );
    }
    // The zone's own names stay ours.
    assert_eq!(dns::dig_short(server.address, &["ns.svc"]), ["127.0.0.1"]);
    let listed = server.run(&["ls", "--rejected"]);
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.status.success(), "{text}{}", String::from_utf8_lossy(&listed.stderr));
    for (key, _, shown) in &rejected {
        assert!(
            text.contains(shown),
            "ls --rejected does not show {shown:?} of {key:.80}:\n{text}"
        );
    }
    assert!(!text.contains('\u{7}'), "control characters reach the terminal");
    assert!(!text.contains("good.svc/"), "a good key is listed as rejected:\n{text}");
    // A bad key that becomes good is served, and is listed no more.
    etcd.put("/service/default/default/notjson/latest/10.0.0.2:80", "{}");
    server.wait_for("notjson.svc", &["10.0.0.2"]);
    let text = String::from_utf8_lossy(&server.run(&["ls", "--rejected"]).stdout).into_owned();
    assert!(!text.contains("notjson"), "{text}");
}

/// How long at most a new service takes to show while the flood goes on. A build for debugging on a busy machine only shows
/// that it does not wait for the flood's end.
const SHOWN: Duration = if cfg!(debug_assertions) { seconds(30) } else { seconds(1) };

/// Registers a new service every 100 ms till `stop`; the longest that one took to show after etcd had it, and their number.
fn newcomers(etcd: &Etcd, server: SocketAddr, stop: &AtomicBool) -> (Duration, u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut client = runtime.block_on(etcd.client());
    let (mut longest, mut count) = (Duration::ZERO, 0);
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        runtime
            .block_on(client.put(
                format!("/service/default/default/new-{count}.svc/latest/10.0.0.9:80"),
                "{}",
                None,
            ))
            .unwrap();
        let put = Instant::now();
        let name = format!("new-{count}.svc");
        eventually(&name, SOON, || {
            dns::addresses(server, &name).is_ok_and(|found| found.len() == 1).then_some(())
        });
        longest = longest.max(put.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    (longest, count)
}

/// Does something while new services come, each of which must show in time.
#[expect(clippy::print_stderr, reason = "measured values, for whoever asks with --nocapture")]
fn among_newcomers(what: &str, etcd: &Etcd, server: &Svcdns, act: impl FnOnce()) {
    let (stop, address, began) = (AtomicBool::new(false), server.address, Instant::now());
    thread::scope(|scope| {
        let newcomers = scope.spawn(|| newcomers(etcd, address, &stop));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        let took = began.elapsed();
        stop.store(true, Ordering::Relaxed);
        let (longest, count) = newcomers.join().unwrap();
        let resident = server.resident_kib();
        eprintln!(
            "{what}: {took:.1?}; {count} new services meanwhile, the slowest shown after {longest:.0?}; {resident} KiB resident"
        );
        done.unwrap();
        assert!(longest < SHOWN, "{what}: a new service took {longest:?} to show");
    });
}

fn flood_key(number: u32) -> String {
    let [_, a, b, c] = number.to_be_bytes();
    format!("/service/default/default/flood/latest/10.{a}.{b}.{c}:80")
}

#[test]
fn a_flood_of_keys_under_one_service_hurts_no_other() {
    // `make flood` tries a million, in release.
    let flooded = std::env::var("FLOOD").map_or(FLOOD, |count| count.parse().unwrap());
    let (etcd, mut server) = good();
    let prober = Prober::start(server.address, "good.svc");
    let flood = |part: u32| {
        let keys = (part * (flooded / 4)..(part + 1) * (flooded / 4))
            .map(|number| (flood_key(number), String::from("{}")));
        etcd.put_many(keys)
    };
    among_newcomers(&format!("{flooded} keys come"), &etcd, &server, || {
        runtime().block_on(async { tokio::join!(flood(0), flood(1), flood(2), flood(3)) });
        etcd.put("/service/default/default/marker/latest/10.0.0.9:80", "{}");
        server.wait_for("marker.svc", &["10.0.0.9"]);
    });
    let resident = server.resident_kib();
    assert!(resident < 500_000, "{resident} KiB resident");
    // The service itself is served up to its cap, and the surplus is counted.
    let flood = dns::dig(server.address, &["+tcp", "flood.svc"]);
    assert!(
        flood.contains("status: NOERROR") && !flood.contains("ANSWER: 0,"),
        "{}",
        &flood[..flood.len().min(600)]
    );
    let status = String::from_utf8_lossy(&server.run(&["status"]).stdout).into_owned();
    let surplus = format!("{} rejected keys and endpoints", flooded - 10_000);
    assert!(status.contains(&surplus), "not {surplus}:\n{status}");
    let listed = server.run(&["ls", "--rejected"]);
    assert!(listed.stdout.len() < 4 << 20, "ls --rejected prints {} octets", listed.stdout.len());
    assert!(String::from_utf8_lossy(&listed.stdout).contains("flood"), "the surplus is not listed");
    expect_good(&mut server);
    // And it can go again: 16 keys at a revision, some thousand at a time, since etcd 3.4 takes time with the square of both
    // to tell.
    among_newcomers(&format!("{flooded} keys go"), &etcd, &server, || {
        runtime().block_on(async {
            let mut client = etcd.client().await;
            for first in (0..flooded).step_by(16) {
                if first % 4096 == 0 {
                    let name = format!("told-{first}.svc");
                    client
                        .put(
                            format!("/service/default/default/{name}/latest/10.0.0.9:80"),
                            "{}",
                            None,
                        )
                        .await
                        .unwrap();
                    let shown = || {
                        dns::addresses(server.address, &name)
                            .is_ok_and(|found| found.len() == 1)
                            .then_some(())
                    };
                    eventually(&name, SOON, shown);
                }
                let keys = (first..flooded.min(first + 16)).map(flood_key);
                let deletes: Vec<_> =
                    keys.map(|key| etcd_client::TxnOp::delete(key, None)).collect();
                client.txn(etcd_client::Txn::new().and_then(deletes)).await.unwrap();
            }
        });
        server.wait_for_code("flood.svc", "NXDOMAIN");
    });
    etcd.put("/service/default/default/flood/latest/10.0.0.8:80", "{}");
    server.wait_for("flood.svc", &["10.0.0.8"]);
    server.wait_for("marker.svc", &["10.0.0.9"]);
    server.wait_for("new-1.svc", &["10.0.0.9"]);
    prober.expect_no_loss();
}

/// What comes back for a datagram within this time: a code, or silence.
fn reply(server: SocketAddr, message: &[u8], within: Duration) -> &'static str {
    match exchange(server, message, within) {
        None => "silence",
        Some(answer) => {
            assert_eq!(answer[..2], message[..2], "the id");
            assert_ne!(answer[2] & 0x80, 0, "an answer has QR set");
            code_of(&answer)
        }
    }
}

#[test]
fn malformed_packets_get_their_code_or_silence() {
    let (_etcd, mut server) = good();
    let plain = question(7, "good.svc", dns::A);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut message = plain.clone();
        change(&mut message);
        message
    };
    let raw_name = |name: &[u8]| {
        let mut message = plain[..12].to_vec();
        message.extend(name);
        message.extend([0, 1, 0, 1]);
        message
    };
    let opt = question_with_opt(7, "good.svc", dns::A, 1232);
    let mut two_opts = opt.clone();
    two_opts[11] = 2;
    two_opts.extend_from_slice(&opt[plain.len()..]);
    let mut cut_opt = opt.clone();
    cut_opt.truncate(opt.len() - 3);
    let mut long_option = opt.clone();
    long_option.splice(opt.len() - 2.., [0xFF, 0xFF]);
    let far_too_long: Vec<u8> =
        [&[63][..], &[b'a'; 63]].concat().repeat(5).into_iter().chain([0]).collect();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("the question itself", plain.clone(), "NOERROR"),
        ("a response (QR set)", with(&|m| m[2] |= 0x80), "silence"),
        (
            "a response that is malformed, too",
            with(&|m| {
                m[2] |= 0x80;
                m.truncate(14);
            }),
            "silence",
        ),
        ("11 octets", plain[..11].to_vec(), "silence"),
        ("2 octets", plain[..2].to_vec(), "silence"),
        (
            "a header alone",
            with(&|m| {
                m[5] = 0;
                m.truncate(12);
            }),
            "FORMERR",
        ),
        ("a header that promises a question", plain[..12].to_vec(), "FORMERR"),
        (
            "two questions",
            with(&|m| {
                m[5] = 2;
                let again = m[12..].to_vec();
                m.extend(again);
            }),
            "FORMERR",
        ),
        (
            "65,535 questions",
            with(&|m| {
                m[4] = 0xFF;
                m[5] = 0xFF;
            }),
            "FORMERR",
        ),
        ("a question cut in its name", plain[..16].to_vec(), "FORMERR"),
        ("a question cut before its class", plain[..plain.len() - 1].to_vec(), "FORMERR"),
        ("a name that points at itself", raw_name(&[0xC0, 12]), "FORMERR"),
        ("a name that points beyond the end", raw_name(&[0xFF, 0xFF]), "FORMERR"),
        ("a label of the reserved type 01", raw_name(&[0x41, b'a', 0]), "FORMERR"),
        ("a label of the reserved type 10", raw_name(&[0x81, b'a', 0]), "FORMERR"),
        ("a name of 321 octets", raw_name(&far_too_long), "FORMERR"),
        ("an answer count without answers", with(&|m| m[7] = 1), "FORMERR"),
        ("two OPT records", two_opts, "FORMERR"),
        ("an OPT record that is cut", cut_opt, "FORMERR"),
        ("an OPT record longer than the message", long_option, "FORMERR"),
        ("IQUERY", with(&|m| m[2] = 1 << 3), "NOTIMP"),
        ("STATUS", with(&|m| m[2] = 2 << 3), "NOTIMP"),
        ("NOTIFY", with(&|m| m[2] = 4 << 3), "NOTIMP"),
        ("UPDATE", with(&|m| m[2] = 5 << 3), "NOTIMP"),
        ("opcode 15", with(&|m| m[2] = 15 << 3), "NOTIMP"),
        ("QTYPE 0", question(7, "good.svc", 0), "FORMERR"),
        ("OPT as the question", question(7, "good.svc", 41), "FORMERR"),
        ("AXFR over UDP", question(7, "svc", 252), "REFUSED"),
        ("IXFR", question(7, "svc", 251), "REFUSED"),
        ("class CH", with(&|m| *m.last_mut().unwrap() = 3), "REFUSED"),
        ("class 254", with(&|m| *m.last_mut().unwrap() = 254), "REFUSED"),
        ("a name in no zone", question(7, "example.com", dns::A), "REFUSED"),
        ("the root", question(7, "", dns::A), "REFUSED"),
        (
            "a dot inside a label",
            raw_name(&[8, b'g', b'o', b'o', b'd', b'.', b's', b'v', b'c', 0]),
            "REFUSED",
        ),
        (
            "octets that are no letters",
            raw_name(&[3, 0, 0xFF, b'"', 3, b's', b'v', b'c', 0]),
            "NXDOMAIN",
        ),
    ];
    let mut faults = Vec::new();
    for (what, message, expected) in &cases {
        let found = reply(
            server.address,
            message,
            if *expected == "silence" { Duration::from_millis(500) } else { seconds(20) },
        );
        if found != *expected {
            faults.push(format!("{what}: {found}, not {expected}"));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    // EDNS version 1: BADVERS is 16, of which the header holds the lower four bits and the OPT record the rest.
    let mut version = opt;
    let at = plain.len();
    version[at + 6] = 1;
    let answer = exchange(server.address, &version, seconds(20)).unwrap();
    assert_eq!((code_of(&answer), answer[11]), ("NOERROR", 1));
    assert_eq!(answer[answer.len() - 11..][5], 1, "BADVERS: {answer:?}");
    // As large as a datagram can be, and empty.
    let mut large = plain.clone();
    large.resize(65_507, 0xA5);
    let _ = exchange(server.address, &large, Duration::from_millis(200));
    let _ = exchange(server.address, &[], Duration::from_millis(200));
    expect_good(&mut server);
}

#[test]
fn a_storm_of_random_packets_leaves_the_server_as_it_was() {
    let (_etcd, mut server) = good();
    let before = server.resident_kib();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server.address).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut draw = fastrand::Rng::with_seed(20);
    let seeds = [
        question(1, "good.svc", dns::A),
        question_with_opt(2, "10-0-0-1.v1._version.good.svc", dns::SRV, 4096),
        question_with_opt(3, "1.0.0.10.in-addr.arpa", 12, 1232),
        question(4, "_http._tcp.good.default.default.svc", dns::TXT),
    ];
    let mut answer = vec![0; 65_535];
    for _ in 0..50_000 {
        let mut message = draw.choice(&seeds).unwrap().clone();
        for _ in 0..draw.usize(1..6) {
            let at = draw.usize(..message.len());
            match draw.u8(..4) {
                0 => message[at] = draw.u8(..),
                1 => message[at] ^= 1 << draw.u8(..8),
                2 => message.truncate(at.max(2)),
                _ => message.insert(at, draw.u8(..)),
            }
        }
        let _ = socket.send(&message);
        while let Ok(length) = socket.recv(&mut answer) {
            assert!(
                length >= 12 && answer[2] & 0x80 != 0,
                "not an answer: {:?}",
                &answer[..length]
            );
        }
    }
    expect_good(&mut server);
    let after = server.resident_kib();
    assert!(after < before + 50_000, "memory went from {before} to {after} KiB");
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

#[test]
fn bad_tcp_clients_hurt_themselves_only() {
    let (_etcd, mut server) = good();
    let prober = Prober::start(server.address, "good.svc");
    let good = question(7, "good.svc", dns::A);

    // Many questions at once, answered all, in any order
    let mut pipelined = connect(server.address);
    for id in 0..200 {
        send_tcp(
            &mut pipelined,
            &question(id, if id % 2 == 0 { "good.svc" } else { "nothing.svc" }, dns::A),
        );
    }
    let mut seen: Vec<u16> = (0..200)
        .map(|_| receive_tcp(&mut pipelined).map(|m| u16::from_be_bytes([m[0], m[1]])).unwrap())
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..200).collect::<Vec<u16>>());

    // A message of no octets, one too short for a header, a response: the connection may end, the server may not
    for junk in [
        &[0, 0][..],
        &[0, 3, 1, 2, 3],
        &[0xFF, 0xFF, 1],
        &[0, 12, 0, 7, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let mut stream = connect(server.address);
        stream.write_all(junk).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{junk:?} was answered {rest:?}");
    }
    // A malformed question over TCP has its FORMERR.
    let mut stream = connect(server.address);
    send_tcp(&mut stream, &good[..14]);
    assert_eq!(code_of(&receive_tcp(&mut stream).unwrap()), "FORMERR");

    // Half a message and silence: closed by the server within its deadlines
    let mut half = connect(server.address);
    half.write_all(&[0, 40, 1, 2, 3]).unwrap();
    let mut idle = connect(server.address);
    for stream in [&mut half, &mut idle] {
        assert_eq!(stream.read_to_end(&mut Vec::new()).ok(), Some(0), "not closed within {SOON:?}");
    }

    // One that asks and never reads
    let mut deaf = connect(server.address);
    deaf.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let before = server.resident_kib();
    let framed =
        [&u16::try_from(good.len()).unwrap().to_be_bytes()[..], &good].concat().repeat(1000);
    for _ in 0..2000 {
        if deaf.write_all(&framed).is_err() {
            break;
        }
    }
    assert!(
        server.resident_kib() < before + 50_000,
        "memory went from {before} to {} KiB",
        server.resident_kib()
    );

    expect_good(&mut server);
    prober.expect_no_loss();
}

#[test]
fn more_connections_than_allowed_do_not_shut_others_out_for_ever() {
    let etcd = Etcd::start();
    etcd.put(GOOD, "{}");
    let server = Svcdns::serve(&[
        "--registry",
        &etcd.url(),
        "--tcp-connections",
        "50",
        "--tcp-idle-timeout",
        "2s",
    ]);
    server.wait_for("good.svc", &["10.0.0.1"]);
    let prober = Prober::start(server.address, "good.svc");
    let crowd: Vec<TcpStream> = (0..200).map(|_| connect(server.address)).collect();
    eventually("an answer over TCP beside 200 idle connections", SOON, || {
        let mut stream = TcpStream::connect(server.address).ok()?;
        stream.set_read_timeout(Some(seconds(5))).unwrap();
        let message = question(7, "good.svc", dns::A);
        stream
            .write_all(
                &[&u16::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat(),
            )
            .ok()?;
        receive_tcp(&mut stream).filter(|answer| code_of(answer) == "NOERROR")
    });
    prober.expect_no_loss();
    drop(crowd);
}

#[test]
fn a_registry_that_is_not_there_at_the_start_is_waited_for() {
    let mut etcd = Etcd::builder().stopped();
    let server = Svcdns::serve(&["--registry", &etcd.url()]);
    for question in [&["good.svc"][..], &["good.svc", "SRV"], &["anything.at.all.svc", "AAAA"]] {
        let text = dns::dig(server.address, question);
        assert!(text.contains("status: SERVFAIL") && text.contains("EDE: 14 "), "{text}");
    }
    // The zone itself is known without a registry, and what is outside is still nobody's.
    assert_eq!(dns::dig_short(server.address, &["ns.svc"]), ["127.0.0.1"]);
    assert_eq!(dns::code(server.address, "example.com", dns::A), "REFUSED");
    thread::sleep(seconds(3));
    etcd.start_all();
    server.wait_for_code("good.svc", "NXDOMAIN");
    etcd.put(GOOD, "{}");
    server.wait_for("good.svc", &["10.0.0.1"]);
    server.stop();
}

/// Runs `svcdns` to its end and gives its exit code and what it wrote to standard error.
fn fails(arguments: &[&str]) -> (i32, String) {
    let mut process = Process::start(svcdns::command().args(arguments));
    let status = process.wait(SOON);
    (status.code().unwrap_or(-1), process.log())
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let (code, said) =
        fails(&["serve", "--state-dir", state, "--admin-listen", "off", "--listen", "0.0.0.0:0"]);
    assert!(code != 0 && said.contains("0.0.0.0") && said.contains("allow"), "{code}: {said}");

    let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let (code, said) =
        fails(&["serve", "--state-dir", state, "--admin-listen", "off", "--listen", &taken]);
    assert!(code != 0 && said.contains(&taken) && said.contains("taken"), "{code}: {said}");

    let (code, said) =
        fails(&["serve", "--state-dir", state, "--registry", "etdc://127.0.0.1:2379"]);
    assert!(code != 0 && said.contains("etdc") && said.contains("etcd"), "{code}: {said}");

    let (code, said) = fails(&["serve", "--state-dir", state, "--upstream", "one.one.one.one"]);
    assert!(
        code != 0 && said.contains("upstream") && said.contains("is not an IP address"),
        "{code}: {said}"
    );

    let long = format!("{state}/{}", "d".repeat(120));
    let (code, said) =
        fails(&["serve", "--state-dir", &long, "--admin-listen", "off", "--listen", "127.0.0.1:0"]);
    assert!(code != 0 && said.contains("dddd"), "{code}: {said}");
}

#[test]
fn two_servers_on_one_machine_do_not_disturb_each_other() {
    let (etcd, first) = good();
    // There `svc` is no zone's suffix, but part of the registered name.
    let second = Svcdns::serve(&["--registry", &etcd.url(), "--zone", "internal"]);
    second.wait_for("good.svc.internal", &["10.0.0.1"]);
    assert_eq!(dns::code(second.address, "good.svc", dns::A), "REFUSED");
    for (server, name) in [(&first, "good.svc"), (&second, "good.svc.internal")] {
        let shown = server.run(&["resolve", name]);
        assert!(
            shown.status.success() && String::from_utf8_lossy(&shown.stdout).contains("10.0.0.1"),
            "{shown:?}"
        );
    }
    first.stop();
    assert_eq!(dns::code(second.address, "good.svc.internal", dns::A), "NOERROR");
    second.stop();
}
