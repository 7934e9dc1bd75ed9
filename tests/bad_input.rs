//! Hostile and broken input to the real program.
//!
//! The input is registry content, packets, connections and settings. The server skips or refuses
//! the bad part alone, and serves the rest.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::dns::{Prober, code_of, exchange, query, query_with_opt, receive_tcp, send_tcp};
use support::etcd::Etcd;
use support::files::Files;
use support::process::Process;
use support::svcdns::Svcdns;
use support::{SOON, dns, eventually, seconds, svcdns};

const GOOD: &str = "/service/default/default/good.svc/latest/10.0.0.1:80";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Starts an etcd with `good.svc`, and a server on it.
fn serve_good() -> (Etcd, Svcdns) {
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

/// Keys of the flood: twice the limit for one service.
const FLOOD_KEYS: u32 = 20_000;

#[test]
fn usable_endpoints_are_served_beside_unusable_ones() {
    let (etcd, mut server) = serve_good();
    let put = |rest: &str, value: &str| {
        etcd.put(&format!("/service/default/default/{rest}"), value);
    };
    put("slash/es/latest/10.0.0.2:80", "{}");
    put("notjson/latest/10.0.0.2:80", "not json");
    for (name, endpoint) in [("port0", "10.0.0.2:0"), ("v6broken", "[:0"), ("own", "good.svc:80")] {
        put(&format!("{name}/latest/{endpoint}"), "{}");
    }
    // An empty value is one without metadata.
    put("mixed/latest/10.0.0.3:80,10.0.0.4:0,[fd00,10.0.0.5:81", "");
    server.wait_for("mixed.svc", &["10.0.0.3", "10.0.0.5"]);
    expect_good(&mut server);
    for name in ["es.svc", "slash.svc", "notjson.svc"] {
        assert_eq!(dns::code(server.address, name, dns::A), "NXDOMAIN", "{name}");
    }
    for name in ["port0.svc", "v6broken.svc", "own.svc"] {
        assert_eq!(
            dns::addresses(server.address, name),
            Ok(vec![]),
            "{name} exists and has no usable endpoint"
        );
    }
    let rejected =
        || String::from_utf8_lossy(&server.run(&["ls", "--rejected"]).stdout).into_owned();
    assert!(rejected().contains("notjson"), "{}", rejected());
    // A corrected key is served and no longer listed.
    put("notjson/latest/10.0.0.2:80", "{}");
    server.wait_for("notjson.svc", &["10.0.0.2"]);
    assert!(!rejected().contains("notjson"), "{}", rejected());
}

/// Longest time for a new service to become visible during a flood.
///
/// A debug build on a busy machine only shows that the service does not wait for the flood's end.
const MAX_VISIBILITY_DELAY: Duration =
    if cfg!(debug_assertions) { seconds(30) } else { seconds(1) };

/// Registers a new service every 100 ms until `stop`.
///
/// Returns the longest time from etcd's acknowledgement to the service's answer, and the number of
/// services.
fn register_new_services(etcd: &Etcd, server: SocketAddr, stop: &AtomicBool) -> (Duration, u32) {
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

/// Runs `act` while new services are registered; each must become visible in time.
#[expect(clippy::print_stderr, reason = "measured values, shown with --nocapture")]
fn with_new_services(what: &str, etcd: &Etcd, server: &Svcdns, act: impl FnOnce()) {
    let (stop, address, began) = (AtomicBool::new(false), server.address, Instant::now());
    thread::scope(|scope| {
        let services = scope.spawn(|| register_new_services(etcd, address, &stop));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        let took = began.elapsed();
        stop.store(true, Ordering::Relaxed);
        let (longest, count) = services.join().unwrap();
        let resident = server.resident_kib();
        eprintln!(
            "{what}: {took:.1?}; {count} new services meanwhile, \
             the slowest visible after {longest:.0?}; {resident} KiB resident"
        );
        done.unwrap();
        assert!(
            longest < MAX_VISIBILITY_DELAY,
            "{what}: a new service was visible only after {longest:?}"
        );
    });
}

fn flood_key(number: u32) -> String {
    let [_, a, b, c] = number.to_be_bytes();
    format!("/service/default/default/flood/latest/10.{a}.{b}.{c}:80")
}

#[test]
fn a_flood_of_keys_under_one_service_affects_no_other_service() {
    // `make flood` puts a million keys, with a release build.
    let flooded = std::env::var("FLOOD").map_or(FLOOD_KEYS, |count| count.parse().unwrap());
    let (etcd, mut server) = serve_good();
    let prober = Prober::start(server.address, "good.svc");
    let flood = |part: u32| {
        let keys = (part * (flooded / 4)..(part + 1) * (flooded / 4))
            .map(|number| (flood_key(number), String::from("{}")));
        etcd.put_many(keys)
    };
    with_new_services(&format!("{flooded} keys put"), &etcd, &server, || {
        runtime().block_on(async { tokio::join!(flood(0), flood(1), flood(2), flood(3)) });
        etcd.put("/service/default/default/marker/latest/10.0.0.9:80", "{}");
        server.wait_for("marker.svc", &["10.0.0.9"]);
    });
    let resident = server.resident_kib();
    assert!(resident < 500_000, "{resident} KiB resident");
    // The service is served up to the limit, and the keys above it are counted.
    let flood = dns::dig(server.address, &["+tcp", "flood.svc"]);
    assert!(
        flood.contains("status: NOERROR") && !flood.contains("ANSWER: 0,"),
        "{}",
        &flood[..flood.len().min(600)]
    );
    let status = String::from_utf8_lossy(&server.run(&["status"]).stdout).into_owned();
    let rejected = format!("{} rejected keys and endpoints", flooded - 10_000);
    assert!(status.contains(&rejected), "not {rejected}:\n{status}");
    let listed = server.run(&["ls", "--rejected"]);
    assert!(listed.stdout.len() < 4 << 20, "ls --rejected prints {} bytes", listed.stdout.len());
    assert!(String::from_utf8_lossy(&listed.stdout).contains("flood"), "no key of the flood");
    expect_good(&mut server);
    // All keys are deleted: 16 per revision, and some thousand before the next wait, because the
    // time of etcd 3.4 to send events grows with the square of both numbers.
    with_new_services(&format!("{flooded} keys deleted"), &etcd, &server, || {
        runtime().block_on(async {
            let mut client = etcd.client().await;
            for first in (0..flooded).step_by(16) {
                if first % 4096 == 0 {
                    let name = format!("pause-{first}.svc");
                    client
                        .put(
                            format!("/service/default/default/{name}/latest/10.0.0.9:80"),
                            "{}",
                            None,
                        )
                        .await
                        .unwrap();
                    let visible = || {
                        dns::addresses(server.address, &name)
                            .is_ok_and(|found| found.len() == 1)
                            .then_some(())
                    };
                    eventually(&name, SOON, visible);
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

/// Sends a datagram and returns the code of the response, or `silence`.
fn code_or_silence(server: SocketAddr, message: &[u8], within: Duration) -> &'static str {
    match exchange(server, message, within) {
        None => "silence",
        Some(response) => {
            assert_eq!(response[..2], message[..2], "the id");
            assert_ne!(response[2] & 0x80, 0, "a response has QR set");
            code_of(&response)
        }
    }
}

#[test]
fn malformed_packets_get_an_error_code_or_no_response() {
    let (_etcd, mut server) = serve_good();
    let plain = query(7, "good.svc", dns::A);
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
    let opt = query_with_opt(7, "good.svc", dns::A, 1232);
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
        ("the unchanged query", plain.clone(), "NOERROR"),
        ("a response (QR set)", with(&|m| m[2] |= 0x80), "silence"),
        (
            "a malformed response",
            with(&|m| {
                m[2] |= 0x80;
                m.truncate(14);
            }),
            "silence",
        ),
        ("11 bytes", plain[..11].to_vec(), "silence"),
        ("2 bytes", plain[..2].to_vec(), "silence"),
        (
            "a header alone",
            with(&|m| {
                m[5] = 0;
                m.truncate(12);
            }),
            "FORMERR",
        ),
        ("a question count without a question", plain[..12].to_vec(), "FORMERR"),
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
        ("a question truncated in its name", plain[..16].to_vec(), "FORMERR"),
        ("a question truncated in its class", plain[..plain.len() - 1].to_vec(), "FORMERR"),
        ("a compression pointer to itself", raw_name(&[0xC0, 12]), "FORMERR"),
        ("a compression pointer past the end", raw_name(&[0xFF, 0xFF]), "FORMERR"),
        ("a label of the reserved type 01", raw_name(&[0x41, b'a', 0]), "FORMERR"),
        ("a label of the reserved type 10", raw_name(&[0x81, b'a', 0]), "FORMERR"),
        ("a name of 321 bytes", raw_name(&far_too_long), "FORMERR"),
        ("an answer count without answers", with(&|m| m[7] = 1), "FORMERR"),
        ("two OPT records", two_opts, "FORMERR"),
        ("a truncated OPT record", cut_opt, "FORMERR"),
        ("an OPT record longer than the message", long_option, "FORMERR"),
        ("IQUERY", with(&|m| m[2] = 1 << 3), "NOTIMP"),
        ("STATUS", with(&|m| m[2] = 2 << 3), "NOTIMP"),
        ("NOTIFY", with(&|m| m[2] = 4 << 3), "NOTIMP"),
        ("UPDATE", with(&|m| m[2] = 5 << 3), "NOTIMP"),
        ("opcode 15", with(&|m| m[2] = 15 << 3), "NOTIMP"),
        ("QTYPE 0", query(7, "good.svc", 0), "FORMERR"),
        ("QTYPE OPT", query(7, "good.svc", 41), "FORMERR"),
        ("AXFR over UDP", query(7, "svc", 252), "REFUSED"),
        ("IXFR", query(7, "svc", 251), "REFUSED"),
        ("class CH", with(&|m| *m.last_mut().unwrap() = 3), "REFUSED"),
        ("class 254", with(&|m| *m.last_mut().unwrap() = 254), "REFUSED"),
        ("a name in no zone", query(7, "example.com", dns::A), "REFUSED"),
        ("the root", query(7, "", dns::A), "REFUSED"),
        (
            "a dot inside a label",
            raw_name(&[8, b'g', b'o', b'o', b'd', b'.', b's', b'v', b'c', 0]),
            "REFUSED",
        ),
        (
            "bytes that are not printable",
            raw_name(&[3, 0, 0xFF, b'"', 3, b's', b'v', b'c', 0]),
            "NXDOMAIN",
        ),
    ];
    let mut faults = Vec::new();
    for (what, message, expected) in &cases {
        let found = code_or_silence(
            server.address,
            message,
            if *expected == "silence" { Duration::from_millis(500) } else { seconds(20) },
        );
        if found != *expected {
            faults.push(format!("{what}: {found}, not {expected}"));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    // EDNS version 1 gets BADVERS, 16: the header has its lower four bits, the OPT record the rest.
    let mut version = opt;
    let at = plain.len();
    version[at + 6] = 1;
    let response = exchange(server.address, &version, seconds(20)).unwrap();
    assert_eq!((code_of(&response), response[11]), ("NOERROR", 1));
    assert_eq!(response[response.len() - 11..][5], 1, "BADVERS: {response:?}");
    // The largest possible datagram, and an empty one.
    let mut large = plain.clone();
    large.resize(65_507, 0xA5);
    let _ = exchange(server.address, &large, Duration::from_millis(200));
    let _ = exchange(server.address, &[], Duration::from_millis(200));
    expect_good(&mut server);
}

#[test]
fn random_packets_neither_stop_the_server_nor_grow_its_memory() {
    let (_etcd, mut server) = serve_good();
    let before = server.resident_kib();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server.address).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut draw = fastrand::Rng::with_seed(20);
    let seeds = [
        query(1, "good.svc", dns::A),
        query_with_opt(2, "10-0-0-1.v1._version.good.svc", dns::SRV, 4096),
        query_with_opt(3, "1.0.0.10.in-addr.arpa", 12, 1232),
        query(4, "_http._tcp.good.default.default.svc", dns::TXT),
    ];
    let mut response = vec![0; 65_535];
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
        while let Ok(length) = socket.recv(&mut response) {
            assert!(
                length >= 12 && response[2] & 0x80 != 0,
                "not a response: {:?}",
                &response[..length]
            );
        }
    }
    expect_good(&mut server);
    let after = server.resident_kib();
    assert!(after < before + 50_000, "memory grew from {before} to {after} KiB");
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

#[test]
fn bad_tcp_clients_affect_only_themselves() {
    let (_etcd, mut server) = serve_good();
    let prober = Prober::start(server.address, "good.svc");
    let good = query(7, "good.svc", dns::A);

    // Many queries at once: the server answers all, in any order
    let mut pipelined = connect(server.address);
    for id in 0..200 {
        send_tcp(
            &mut pipelined,
            &query(id, if id % 2 == 0 { "good.svc" } else { "nothing.svc" }, dns::A),
        );
    }
    let mut seen: Vec<u16> = (0..200)
        .map(|_| receive_tcp(&mut pipelined).map(|m| u16::from_be_bytes([m[0], m[1]])).unwrap())
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..200).collect::<Vec<u16>>());

    // An empty message, messages shorter than a header or than their length, a response: the
    // server may close the connection, and must not answer
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
    // A malformed query over TCP gets FORMERR.
    let mut stream = connect(server.address);
    send_tcp(&mut stream, &good[..14]);
    assert_eq!(code_of(&receive_tcp(&mut stream).unwrap()), "FORMERR");

    // Half a message, and no message at all: the server closes the connection at its deadline
    let mut half = connect(server.address);
    half.write_all(&[0, 40, 1, 2, 3]).unwrap();
    let mut idle = connect(server.address);
    for stream in [&mut half, &mut idle] {
        assert_eq!(stream.read_to_end(&mut Vec::new()).ok(), Some(0), "not closed within {SOON:?}");
    }

    // A client that sends queries and never reads
    let mut never_reads = connect(server.address);
    never_reads.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let before = server.resident_kib();
    let framed =
        [&u16::try_from(good.len()).unwrap().to_be_bytes()[..], &good].concat().repeat(1000);
    for _ in 0..2000 {
        if never_reads.write_all(&framed).is_err() {
            break;
        }
    }
    assert!(
        server.resident_kib() < before + 50_000,
        "memory grew from {before} to {} KiB",
        server.resident_kib()
    );

    expect_good(&mut server);
    prober.expect_no_loss();
}

#[test]
fn connections_above_the_limit_do_not_block_new_clients() {
    let etcd = Etcd::start();
    etcd.put(GOOD, "{}");
    let server = Svcdns::serve(&[
        "--registry",
        &etcd.url(),
        "--tcp-connections",
        "50",
        "--tcp-idle-timeout",
        "1h",
    ]);
    server.wait_for("good.svc", &["10.0.0.1"]);
    let prober = Prober::start(server.address, "good.svc");
    let crowd: Vec<TcpStream> = (0..200).map(|_| connect(server.address)).collect();
    let start = Instant::now();
    while start.elapsed() < seconds(1) {
        let mut stream = connect(server.address);
        let message = query(7, "good.svc", dns::A);
        let length = u16::try_from(message.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length[..], &message].concat()).unwrap();
        let response = receive_tcp(&mut stream).expect("an answer beside 200 idle connections");
        assert_eq!(code_of(&response), "NOERROR");
    }
    prober.expect_no_loss();
    drop(crowd);
}

#[test]
fn a_registry_unreachable_at_startup_causes_servfail_until_it_is_read() {
    let mut etcd = Etcd::builder().stopped();
    let server = Svcdns::serve(&["--registry", &etcd.url()]);
    for query in [&["good.svc"][..], &["good.svc", "SRV"], &["anything.at.all.svc", "AAAA"]] {
        let text = dns::dig(server.address, query);
        assert!(text.contains("status: SERVFAIL") && text.contains("EDE: 14 "), "{text}");
    }
    // The zone's own names need no registry, and names outside the zone are still refused.
    assert_eq!(dns::dig_short(server.address, &["ns.svc"]), ["127.0.0.1"]);
    assert_eq!(dns::code(server.address, "example.com", dns::A), "REFUSED");
    thread::sleep(seconds(3));
    etcd.start_all();
    server.wait_for_code("good.svc", "NXDOMAIN");
    etcd.put(GOOD, "{}");
    server.wait_for("good.svc", &["10.0.0.1"]);
    server.stop();
}

/// Runs `svcdns` and returns its exit code and output.
fn run(arguments: &[&str]) -> (i32, String) {
    let mut process = Process::start(svcdns::command().args(arguments));
    let status = process.wait(SOON);
    (status.code().unwrap_or(-1), process.log())
}

#[test]
fn a_server_that_cannot_start_reports_the_reason() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let (code, output) =
        run(&["serve", "--state-dir", state, "--admin-listen", "off", "--listen", "0.0.0.0:0"]);
    assert!(
        code != 0 && output.contains("0.0.0.0") && output.contains("allow"),
        "{code}: {output}"
    );

    let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let (code, output) =
        run(&["serve", "--state-dir", state, "--admin-listen", "off", "--listen", &taken]);
    assert!(code != 0 && output.contains(&taken) && output.contains("in use"), "{code}: {output}");

    let (code, output) =
        run(&["serve", "--state-dir", state, "--registry", "etdc://127.0.0.1:2379"]);
    assert!(code != 0 && output.contains("etdc") && output.contains("etcd"), "{code}: {output}");

    let (code, output) = run(&["serve", "--state-dir", state, "--upstream", "one.one.one.one"]);
    assert!(
        code != 0 && output.contains("upstream") && output.contains("is not an IP address"),
        "{code}: {output}"
    );

    let long = format!("{state}/{}", "d".repeat(120));
    let (code, output) =
        run(&["serve", "--state-dir", &long, "--admin-listen", "off", "--listen", "127.0.0.1:0"]);
    assert!(code != 0 && output.contains("dddd"), "{code}: {output}");
    assert!(!Path::new(&long).exists(), "nothing is made for a socket that cannot be");
}

/// Runs `svcdns check` on a file; returns its exit code, stdout and stderr.
fn check(file: &Path) -> (i32, String, String) {
    let output = svcdns::command().arg("check").arg("--config").arg(file).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn check_and_serve_report_errors_in_registry_sections() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("svcdns.toml");
    let main = "[registry.main]\nurl = \"etcd://127.0.0.1:1\"\n";
    let sections = (0..17).map(|n| format!("[registry.r{n}]\nurl = \"file:///{n}\"\n"));
    let too_many = sections.collect::<Vec<_>>().concat();
    // Content of the file, position of the error, and a part of the message.
    for (text, position, part) in [
        (format!("{main}{main}"), "3:11", "the section [registry.main] exists already"),
        (
            format!("{main}[registry.other]\nurl = \"etcd://127.0.0.1:1/\"\n"),
            "4:7",
            "remove one of the two sections",
        ),
        (
            format!("registry = []\n{main}"),
            "2:2",
            "a section cannot be combined with the list in line 1",
        ),
        (
            "[registry.main]\nusername = \"u\"\n".to_owned(),
            "1:11",
            "a registry needs a URL: add url =",
        ),
        (
            "[registry.main]\nurl = \"etdc://a\"\n".to_owned(),
            "2:7",
            "unknown kind of registry \"etdc\"",
        ),
        (
            "[registry.dev]\nurl = \"file:///x\"\nusername = \"u\"\n".to_owned(),
            "3:1",
            "this key is for registries of kind etcd",
        ),
        (
            format!("{main}pasword-file = \"/p\"\n"),
            "3:1",
            "did you mean `registry.main.password-file`?",
        ),
        (
            format!("{main}password = \"hunter2\"\n"),
            "3:1",
            "a file named by registry.main.password-file",
        ),
        ("[registy.main]\nurl = \"etcd://a\"\n".to_owned(), "1:2", "did you mean [registry.main]?"),
        ("[registry]\nurl = \"etcd://a\"\n".to_owned(), "2:1", "such as [registry.main]"),
        (
            "[registry.our-main]\nurl = \"etcd://a\"\n".to_owned(),
            "1:11",
            "use 1 to 16 characters of a-z and 0-9",
        ),
        (too_many, "34:7", "at most 16 registries"),
    ] {
        std::fs::write(&file, &text).unwrap();
        let (code, output, error) = check(&file);
        let start = format!("svcdns: {}:{position}: ", file.display());
        assert!(code == 1 && output.is_empty(), "{text}\n{code}: {output}{error}");
        assert!(error.starts_with(&start) && error.contains(part), "{text}\n{error}");
        assert!(!error.contains("hunter2"), "{error}");
        let (code, served) = run(&["serve", "--config", file.to_str().unwrap()]);
        assert_eq!((code, served), (1, error), "{text}");
    }
}

#[test]
fn unreadable_and_world_readable_secret_files_cause_warnings() {
    let files = Files::new(&[("default/default/good.svc/latest/10.0.0.1:80", "{}")]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("svcdns.toml");
    let (open, missing) = (folder.path().join("open"), folder.path().join("missing"));
    std::fs::write(&open, "hunter2").unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let section = |name: &str, port: u16, password: &Path| {
        format!(
            "[registry.{name}]\nurl = \"etcd://127.0.0.1:{port}\"\nusername = \"u\"\n\
             password-file = \"{}\"\n",
            password.display()
        )
    };
    let dev = format!("[registry.dev]\nurl = \"{}\"\n", files.url());
    let sections = [section("main", 1, &open), section("other", 2, &missing), dev];
    std::fs::write(&file, sections.concat()).unwrap();

    let (code, output, error) = check(&file);
    let warning = |line: usize, registry: &str, why: &str| {
        format!("{}:{line}:17: registry.{registry}.password-file: {why}", file.display())
    };
    let (open, missing) = (open.display(), missing.display());
    let readable =
        format!("every user of this machine can read {open} (mode 0644): run `chmod o-r");
    let readable = warning(4, "main", &readable);
    let unreadable = warning(8, "other", &format!("cannot read {missing}: No such file"));
    assert_eq!((code, error.lines().count()), (0, 2), "{error}");
    for warning in [&readable, &unreadable] {
        assert!(error.contains(&format!("svcdns: warning: {warning}")), "{error}");
    }
    let password = format!("The password of registry main is set in the file {open}.");
    assert!(output.contains(&password), "{output}");
    let line = |key: &str| {
        output.lines().find(|line| line.split_whitespace().next() == Some(key)).unwrap_or_default()
    };
    let origin = format!("{}:10:1", file.display());
    assert!(line("registry.dev.url").ends_with(&origin), "{output}");
    let grace = line("registry.other.removal-grace");
    assert!(grace.contains("12s") && grace.ends_with("default"), "{output}");

    // The readable registry is served nevertheless.
    let server = Svcdns::serve(&["--config", file.to_str().unwrap()]);
    server.wait_for("good.svc", &["10.0.0.1"]);
    let log = server.log();
    assert!(log.contains("WARN") && log.contains(&readable), "{log}");
    assert!(log.contains(&unreadable), "{log}");
    for text in [&log, &output, &error] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    server.stop();
}

#[test]
fn two_servers_on_one_machine_are_independent() {
    let (etcd, first) = serve_good();
    // For this server `svc` is not the zone's suffix, but part of the registered name.
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
