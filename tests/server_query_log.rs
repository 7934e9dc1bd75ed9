//! Questions in the log: off, all, and over each transport that needs no certificate.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::net::TcpStream;

use support::svcdns::Svcdns;
use support::{SOON, dns};

/// A server of an empty registry, and the directory it is in.
fn serve(flags: &[&str]) -> (Svcdns, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let registry = format!("file://{}", directory.path().display());
    let server = Svcdns::serve(&[&["--registry", &registry], flags].concat());
    server.wait_for_code("nothing.svc", "NXDOMAIN");
    (server, directory)
}

fn ask_over_tcp(server: &Svcdns, question: &[u8]) {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    dns::send_tcp(&mut stream, question);
    assert!(dns::receive_tcp(&mut stream).is_some());
}

/// The lines about questions, from their transport on.
fn questions(server: &Svcdns) -> Vec<String> {
    let log = server.log();
    let lines = log.lines().filter_map(|line| line.split_once("question source=127.0.0.1:")?.1.split_once(' '));
    lines.map(|(_, rest)| rest.to_owned()).collect()
}

#[test]
fn questions_are_logged_where_that_is_wanted() {
    let (server, _directory) = serve(&["--log-queries", "1"]);
    let mut question = dns::question(7, "Hello.x.svc", 65);
    ask_over_tcp(&server, &question);
    // A label that would clear a terminal.
    question[13..18].copy_from_slice(b"\x1b[2J.");
    ask_over_tcp(&server, &question);
    assert_eq!(dns::code(server.address, "other.example", dns::A), "REFUSED");
    let found = support::eventually("three questions in the log", SOON, || {
        let found = questions(&server);
        (found.iter().filter(|line| line.contains("TCP") || line.contains("other")).count() == 3).then_some(found)
    });
    for begin in [
        r#"transport="UDP" name=nothing.svc kind=A rcode="NXDOMAIN" octets="#,
        r#"transport="TCP" name=Hello.x.svc kind=HTTPS rcode="NXDOMAIN" octets="#,
        r#"transport="TCP" name=\027[2J\..x.svc kind=HTTPS rcode="NXDOMAIN" octets="#,
        r#"transport="UDP" name=other.example kind=A rcode="REFUSED" octets="#,
    ] {
        assert!(found.iter().any(|line| line.starts_with(begin)), "{begin} in {found:#?}");
    }
    server.stop();
}

#[test]
fn no_question_is_logged_unless_wanted() {
    let (server, _directory) = serve(&[]);
    ask_over_tcp(&server, &dns::question(7, "hello.svc", dns::A));
    assert_eq!(questions(&server), [""; 0]);
    server.stop();
}
