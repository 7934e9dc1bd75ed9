//! End-to-end tests of special names and of an upstream that loops.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, OnceLock};

use support::files::Files;
use support::svcdns::{self, Svcdns};
use support::{dns, eventually, seconds};

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
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let (question, answers) = (buffer[..length].to_vec(), socket.try_clone().unwrap());
            let Some(server) = target.get().copied() else { continue };
            std::thread::spawn(move || {
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
