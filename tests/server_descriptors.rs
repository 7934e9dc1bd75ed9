//! The server without file descriptors left. In a process of its own, because the limit holds for all of it.

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

/// Longest wait for what must happen.
const SOON: Duration = Duration::from_secs(60);

/// Sets the soft limit of this process.
fn limit_descriptors(soft: usize) {
    let process = std::process::id().to_string();
    let status = Command::new("prlimit").args(["--pid", &process, &format!("--nofile={soft}:")]).status().unwrap();
    assert!(status.success());
}

#[test]
fn no_descriptors_left_means_waiting_not_dying() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // One worker: its first response tells that no other thread is still to start.
    let limits = Limits { udp_workers: 1, ..Limits::default() };
    let settings = Settings { listen: vec!["127.0.0.1:0".parse().unwrap()], limits, ..Settings::default() };
    let bound = bind(&settings).unwrap();
    let (address, counters) = (bound.addresses()[0], bound.counters());
    let stop = CancellationToken::new();
    runtime.spawn(bound.serve(Echo::default(), |_, error| panic!("{error}"), stop.clone()));
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(SOON)).unwrap();
    let mut answer = [0; 16];
    udp.send_to(b"ready?", address).unwrap();
    let length = udp.recv(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"udp ready?", "all of the server has started");
    // They are sockets already: to connect needs no descriptor here, and one in the server.
    let new = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    let sockets: Vec<Socket> = (0..20).map(|_| new()).collect();
    let open = fs::read_dir("/proc/self/fd").unwrap().count();
    // `prlimit` itself needs a pipe or two while it is started; only then the limit is below what is open.
    limit_descriptors(open.saturating_sub(5));
    let connected = |socket: Socket| socket.connect(&address.into()).map(|()| TcpStream::from(socket)).unwrap();
    let mut clients: Vec<TcpStream> = sockets.into_iter().map(connected).collect();
    let begun = Instant::now();
    while counters.tcp.accept_errors.get() < 3 {
        assert!(begun.elapsed() < SOON, "accepting should fail: {counters:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    udp.send_to(b"hello", address).unwrap();
    let length = udp.recv(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"udp hello", "UDP needs no descriptor a query");
    std::thread::sleep(Duration::from_millis(300));
    let (errors, elapsed) = (counters.tcp.accept_errors.get(), begun.elapsed());
    assert!(errors < 100 * (1 + elapsed.as_secs()), "{errors} attempts in {elapsed:?} are a busy loop");

    // Room for starting `prlimit` again: the clients that have not been accepted give theirs back.
    clients.truncate(5);
    limit_descriptors(1000);
    for client in &mut clients {
        client.set_read_timeout(Some(SOON)).unwrap();
        client.write_all(b"\0\x05hello").unwrap();
        let mut answer = [0; 11];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"\0\x09tcp hello");
    }
}
