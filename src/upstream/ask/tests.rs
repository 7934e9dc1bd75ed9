//! Real sockets on loopback, and upstreams that misbehave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::exchange::{Connector, Failure, Incoming, Outgoing, Sockets, Upstream};
use super::super::{Protocol, Target};
use crate::wire::u16_at;

/// What the test upstream shares with the tests of whole processes.
#[path = "../../../tests/support/upstream/mod.rs"]
#[allow(dead_code, unused_qualifications, reason = "each test program takes what it needs")]
mod upstream;

use upstream::{Behaviour, Damage, Edns, Forged, Record, Tcp};

type Server = upstream::Upstream;

/// Polls until `check` gives something.
fn eventually<T>(what: &str, within: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(start.elapsed() < within, "waited {within:?} for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const NAME: &str = "www.example.com";

/// `NAME A`, recursion desired, with an OPT.
fn question() -> Vec<u8> {
    b"\0\0\x01\0\0\x01\0\0\0\0\0\x01\x03www\x07example\x03com\0\0\x01\0\x01\0\0\x29\x04\xD0\0\0\0\0\0\0".to_vec()
}

fn outgoing() -> Outgoing {
    Outgoing::new(question(), false).unwrap()
}

fn server() -> Server {
    let server = Server::start();
    server.put([Record::a(NAME, 60, "192.0.2.1")]);
    server
}

fn target(server: &Server) -> Target {
    Target { address: server.address, protocol: Protocol::Plain }
}

fn upstream_of(target: Target) -> Arc<Upstream> {
    Upstream::new(target, Connector::new(tokio::runtime::Handle::current(), None))
}

/// Within the time that a client waits.
fn deadline() -> Instant {
    Instant::now() + seconds(4)
}

/// The answer says 192.0.2.1, and its question is ours.
fn assert_right(incoming: &Incoming) {
    assert_eq!(incoming.message[12..33], question()[12..33]);
    assert!(incoming.message.windows(4).any(|octets| octets == [192, 0, 2, 1]), "{:x?}", incoming.message);
    assert_eq!((incoming.rcode, u16_at(&incoming.message, 6)), (0, Some(1)));
}

#[tokio::test]
async fn one_answers() {
    let server = server();
    let sockets = Sockets::default();
    let upstream = upstream_of(target(&server));
    for _ in 0..20 {
        assert_right(&sockets.ask(&[Arc::clone(&upstream)], &outgoing(), deadline()).await.unwrap());
        assert_right(&sockets.ask_one(&upstream, &outgoing(), deadline()).await.unwrap());
    }
    let report = upstream.report();
    assert_eq!((report.asked, report.answered, report.failed, report.dead), (40, 40, 0, false));
    assert!(report.round_trip.is_some());
}
