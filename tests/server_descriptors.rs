//! The server without free file descriptors.
//!
//! Runs in its own process, because the limit applies to the whole process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use svcdns::server::{Counters, Limits, Settings, bind};
use tokio::runtime::Runtime;
use tokio_util::sync::{CancellationToken, DropGuard};

use support::echo::Echo;
use support::files::Files;
use support::svcdns::Svcdns;

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

/// The limit applies to the whole process: one test at a time.
static LIMIT: Mutex<()> = Mutex::new(());

fn start(runtime: &Runtime) -> (SocketAddr, Arc<Counters>, DropGuard) {
    // Its worker may wait for a datagram for a moment, and then frees descriptors.
    until("the server of the test before has ended", || udp_workers() == 0);
    let long = Duration::from_secs(600);
    // With a single worker, its first response shows that no thread is still starting.
    let limits =
        Limits { udp_workers: 1, idle_timeout: long, message_timeout: long, ..Limits::default() };
    let settings =
        Settings { listen: vec!["127.0.0.1:0".parse().unwrap()], limits, ..Settings::default() };
    let bound = bind(&settings).unwrap();
    let (address, counters) = (bound.addresses()[0], bound.counters());
    let stop = CancellationToken::new();
    runtime.spawn(bound.serve(Echo::default(), |_, error| panic!("{error}"), stop.clone()));
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    ask_udp(&udp, address);
    (address, counters, stop.drop_guard())
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn ask_udp(udp: &UdpSocket, server: SocketAddr) {
    udp.send_to(b"hello", server).unwrap();
    let mut response = [0; 16];
    let length = udp.recv(&mut response).unwrap();
    assert_eq!(&response[..length], b"udp hello");
}

/// Sends a query and reads the response.
fn ask(client: &mut TcpStream) {
    client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    client.write_all(b"\0\x05hello").unwrap();
    let mut response = [0; 11];
    client.read_exact(&mut response).unwrap();
    assert_eq!(&response, b"\0\x09tcp hello");
}

/// Opens sockets in advance: connecting needs no descriptor in the client, but one in the server.
fn sockets(count: usize) -> Vec<Socket> {
    let new = |_| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    (0..count).map(new).collect()
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Returns the number of UDP workers of this process.
fn udp_workers() -> usize {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let names =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("udp-")).count()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < TEST_TIMEOUT, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn waiting_connections_are_evicted_when_descriptors_run_out() {
    let _limit = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    limit_descriptors(1000);
    let runtime = runtime();
    let (address, counters, _stop) = start(&runtime);
    let connected =
        |socket: Socket| socket.connect(&address.into()).map(|()| TcpStream::from(socket)).unwrap();
    let (waiting, new) = (sockets(40), sockets(10));
    let waiting: Vec<TcpStream> = waiting.into_iter().map(connected).collect();
    for client in waiting.iter().take(20) {
        (&*client).write_all(b"\0\x20half").unwrap();
    }
    until("all are accepted", || counters.tcp.open.get() == 40);
    limit_descriptors(open_descriptors());
    let mut served = Vec::new();
    for mut client in new.into_iter().map(connected) {
        ask(&mut client);
        served.push(client);
    }
    let evicted = counters.tcp.evicted_idle.get() + counters.tcp.evicted_stalled.get();
    assert!(evicted >= 5, "{evicted} for ten new clients");
    assert_eq!(counters.tcp.rejected.get(), 0);
    limit_descriptors(1000);
}

#[test]
fn connections_take_at_most_half_of_the_descriptors() {
    let _limit = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    limit_descriptors(400);
    let runtime = runtime();
    // 200 in total, 150 of them from one loopback address.
    let (address, counters, _stop) = start(&runtime);
    let mut clients: Vec<TcpStream> = Vec::new();
    for socket in sockets(180) {
        socket.connect(&address.into()).unwrap();
        clients.push(socket.into());
        let count = clients.len() as u64;
        until("it is accepted", || counters.tcp.connections.get() == count);
    }
    ask(clients.last_mut().unwrap());
    until("the others are closed", || counters.tcp.open.get() == 150);
    assert_eq!(counters.tcp.evicted_idle.get(), 30);
    assert_eq!(counters.tcp.accept_errors.get(), 0);
    limit_descriptors(1000);
}

#[test]
fn the_server_raises_its_descriptor_limit() {
    let _limit = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    limit_descriptors(256);
    let files = Files::new(&[]);
    let server = Svcdns::serve(&["--registry", &files.url()]);
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers[0], numbers[1], "{line}");
    server.stop();
    limit_descriptors(1000);
}

#[test]
fn the_server_survives_running_out_of_descriptors() {
    let _limit = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    limit_descriptors(1000);
    let runtime = runtime();
    let (address, counters, _stop) = start(&runtime);
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let sockets = sockets(20);
    let open = open_descriptors();
    // Starting `prlimit` takes a few descriptors; its limit is then below the number in use.
    limit_descriptors(open.saturating_sub(5));
    let connected =
        |socket: Socket| socket.connect(&address.into()).map(|()| TcpStream::from(socket)).unwrap();
    let mut clients: Vec<TcpStream> = sockets.into_iter().map(connected).collect();
    let start = Instant::now();
    until("accepting should fail", || counters.tcp.accept_errors.get() >= 3);
    // UDP needs no descriptor per query.
    ask_udp(&udp, address);
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
        ask(client);
    }
}
