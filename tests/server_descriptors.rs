//! The server without free file descriptors.
//!
//! Runs in its own process, because the limit applies to the whole process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use svcdns::server::{Limits, Settings, bind};
use tokio_util::sync::CancellationToken;

use support::echo::Echo;

/// Time limit for everything that must happen; only a failing test reaches it.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Sets the soft limit on file descriptors for this process.
fn limit_descriptors(soft: usize) {
    let process = std::process::id().to_string();
    let status = Command::new("prlimit")
        .args(["--pid", &process, &format!("--nofile={soft}:")])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn the_server_survives_running_out_of_descriptors() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // With a single worker, its first response shows that no thread is still starting.
    let limits = Limits { udp_workers: 1, ..Limits::default() };
    let settings =
        Settings { listen: vec!["127.0.0.1:0".parse().unwrap()], limits, ..Settings::default() };
    let bound = bind(&settings).unwrap();
    let (address, counters) = (bound.addresses()[0], bound.counters());
    let stop = CancellationToken::new();
    runtime.spawn(bound.serve(Echo::default(), |_, error| panic!("{error}"), stop.clone()));
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let mut response = [0; 16];
    udp.send_to(b"ready?", address).unwrap();
    let length = udp.recv(&mut response).unwrap();
    assert_eq!(&response[..length], b"udp ready?", "the server has started completely");
    // Opened in advance: connecting needs no descriptor in the client, but one in the server.
    let new = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    let sockets: Vec<Socket> = (0..20).map(|_| new()).collect();
    let open = fs::read_dir("/proc/self/fd").unwrap().count();
    // Starting `prlimit` takes a few descriptors; its limit is then below the number in use.
    limit_descriptors(open.saturating_sub(5));
    let connected =
        |socket: Socket| socket.connect(&address.into()).map(|()| TcpStream::from(socket)).unwrap();
    let mut clients: Vec<TcpStream> = sockets.into_iter().map(connected).collect();
    let start = Instant::now();
    while counters.tcp.accept_errors.get() < 3 {
        assert!(start.elapsed() < TEST_TIMEOUT, "accepting should fail: {counters:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    udp.send_to(b"hello", address).unwrap();
    let length = udp.recv(&mut response).unwrap();
    assert_eq!(&response[..length], b"udp hello", "UDP needs no descriptor per query");
    std::thread::sleep(Duration::from_millis(300));
    let (errors, elapsed) = (counters.tcp.accept_errors.get(), start.elapsed());
    assert!(
        errors < 100 * (1 + elapsed.as_secs()),
        "{errors} attempts in {elapsed:?} are a busy loop"
    );

    // Free descriptors for the next `prlimit`: close the clients that were not accepted.
    clients.truncate(5);
    limit_descriptors(1000);
    for client in &mut clients {
        client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        client.write_all(b"\0\x05hello").unwrap();
        let mut response = [0; 11];
        client.read_exact(&mut response).unwrap();
        assert_eq!(&response, b"\0\x09tcp hello");
    }
}
