//! The query log: off, on, and over both plain transports.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use support::svcdns::Svcdns;
use support::upstream::{Behaviour, Record, Upstream};
use support::{SOON, dns};

/// Starts a server with an empty registry, and returns the registry's directory.
fn serve(flags: &[&str]) -> (Svcdns, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let registry = format!("file://{}", directory.path().display());
    let server = Svcdns::serve(&[&["--registry", &registry], flags].concat());
    server.wait_for_code("nothing.svc", "NXDOMAIN");
    (server, directory)
}

fn ask_over_tcp(server: &Svcdns, query: &[u8]) {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    dns::send_tcp(&mut stream, query);
    assert!(dns::receive_tcp(&mut stream).is_some());
}

/// Returns the log lines about queries to this server, from the transport on.
fn logged_queries(server: &Svcdns) -> Vec<String> {
    let log = server.log();
    let lines = log
        .lines()
        .filter_map(|line| line.split_once("query source=127.0.0.1:")?.1.split_once(' '));
    let destination = format!("destination={} ", server.address);
    lines
        .map(|(_, rest)| {
            rest.strip_prefix(&destination)
                .unwrap_or_else(|| panic!("{destination}in {rest}"))
                .to_owned()
        })
        .collect()
}

/// Returns the duration in a log line.
fn duration(line: &str) -> Duration {
    let (_, micros) =
        line.split_once(" duration_us=").unwrap_or_else(|| panic!("no duration in {line}"));
    Duration::from_micros(micros.parse().unwrap())
}

#[test]
fn queries_are_logged_on_request() {
    let (server, _directory) = serve(&["--log-queries", "1"]);
    let mut query = dns::query(7, "Hello.x.svc", 65);
    ask_over_tcp(&server, &query);
    // A label with an escape sequence that clears a terminal.
    query[13..18].copy_from_slice(b"\x1b[2J.");
    ask_over_tcp(&server, &query);
    assert_eq!(dns::code(server.address, "other.example", dns::A), "REFUSED");
    let found = support::eventually("three queries in the log", SOON, || {
        let found = logged_queries(&server);
        (found.iter().filter(|line| line.contains("TCP") || line.contains("other")).count() == 3)
            .then_some(found)
    });
    for prefix in [
        r#"transport="UDP" name=nothing.svc qtype=A rcode="NXDOMAIN" bytes="#,
        r#"transport="TCP" name=Hello.x.svc qtype=HTTPS rcode="NXDOMAIN" bytes="#,
        r#"transport="TCP" name=\027[2J\..x.svc qtype=HTTPS rcode="NXDOMAIN" bytes="#,
        r#"transport="UDP" name=other.example qtype=A rcode="REFUSED" bytes="#,
    ] {
        assert!(found.iter().any(|line| line.starts_with(prefix)), "{prefix} in {found:#?}");
    }
    server.stop();
}

#[test]
fn the_duration_of_queries_is_logged() {
    let upstream = Upstream::start();
    let delay = Duration::from_secs(1);
    for transport in ["udp", "tcp"] {
        let name = format!("{transport}.slow.test");
        upstream.put([Record::a(&name, 300, "192.0.2.1")]);
        upstream.on(&name, Behaviour { delay, ..Behaviour::default() });
    }
    let (server, _directory) = serve(&["--log-queries", "1", "--upstream", &upstream.flag()]);
    assert_eq!(dns::code(server.address, "udp.slow.test", dns::A), "NOERROR");
    ask_over_tcp(&server, &dns::query(7, "tcp.slow.test", dns::A));
    // From the cache, without delay.
    assert_eq!(dns::code(server.address, "tcp.slow.test", dns::A), "NOERROR");
    let found = support::eventually("three queries in the log", SOON, || {
        let found: Vec<_> =
            logged_queries(&server).into_iter().filter(|line| line.contains("slow.test")).collect();
        (found.len() == 3).then_some(found)
    });
    for (line, prefix) in found.iter().zip([
        r#"transport="UDP" name=udp.slow.test qtype=A rcode="NOERROR" bytes="#,
        r#"transport="TCP" name=tcp.slow.test qtype=A rcode="NOERROR" bytes="#,
        r#"transport="UDP" name=tcp.slow.test qtype=A rcode="NOERROR" bytes="#,
    ]) {
        assert!(line.starts_with(prefix), "{prefix} in {found:#?}");
    }
    let [udp, tcp, cached] = [0, 1, 2].map(|at| duration(&found[at]));
    assert!(udp >= delay && tcp >= delay && cached < delay, "{found:#?}");
    server.stop();
}

#[test]
fn no_query_is_logged_by_default() {
    let (server, _directory) = serve(&[]);
    ask_over_tcp(&server, &dns::query(7, "hello.svc", dns::A));
    assert_eq!(logged_queries(&server), [""; 0]);
    server.stop();
}

/// Returns a value from the metrics page.
fn metric(server: &Svcdns, name: &str) -> f64 {
    let mut stream =
        UnixStream::connect(svcdns::admin::socket_path(server.state_dir()).unwrap()).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: svcdns\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let number = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    number.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
}

#[test]
fn a_blocked_log_reader_delays_neither_responses_nor_shutdown() {
    let directory = tempfile::tempdir().unwrap();
    let registry = format!("file://{}", directory.path().display());
    let (_reader, writer) = std::io::pipe().unwrap();
    let flags = ["--registry", &registry, "--log-queries", "1"];
    let server = Svcdns::serve_with((Ipv4Addr::LOCALHOST, 0).into(), &flags, |command| {
        command.stderr(writer);
    });
    server.wait_for_code("nothing.svc", "NXDOMAIN");
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(server.address).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    // More lines than fit into the pipe (64 KiB) and the queue of the log.
    for id in 0..10_000 {
        socket.send(&dns::query(id, "nothing.svc", dns::A)).unwrap();
        socket.recv(&mut [0; 512]).unwrap_or_else(|error| panic!("query {id}: {error}"));
    }
    assert!(metric(&server, "svcdns_lost_log_lines_total") > 1_000.0);
    server.stop();
}
