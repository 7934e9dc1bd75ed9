//! The port bridge under load, with redirected connections to instances that come and go.
//!
//! `make bridge` also runs the long tests: the same with more bytes and more requests.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::bridge_server::{inside, web_address};
use support::etcd::Etcd;
use support::load::{Load, fetch};
use support::process::Process;
use support::{SOON, bridge_server, eventually, netns};

/// Bytes that a download is compared in.
const BLOCK: usize = 1 << 20;

/// An instance of a service, in a process of its own.
struct Instance {
    process: Process,
    port: u16,
}

impl Instance {
    /// Starts an instance on a port, 0 for a free one.
    fn start(port: u16) -> Self {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/instance.py");
        let mut command = Command::new("python3");
        let process = Process::start(command.args([program, netns::ADDRESS, &port.to_string()]));
        let port = eventually("the port of an instance", SOON, || {
            process.log().strip_suffix('\n')?.parse().ok()
        });
        Self { process, port }
    }
}

#[test]
fn no_new_connection_fails_when_half_of_the_instances_are_killed() {
    inside("no_new_connection_fails_when_half_of_the_instances_are_killed", || {
        let mut instances: Vec<_> = (0..6).map(|_| Instance::start(0)).collect();
        let ports: Vec<_> = instances.iter().map(|instance| instance.port).collect();
        let files = bridge_server::registered(&ports);
        let server = bridge_server::start(&files.url(), &[]);
        let load = Load::start(web_address(&server, "hello.svc"), 8);
        let start = Instant::now();
        for port in &ports {
            load.expect_instance(start, &port.to_string());
        }
        // All at the same moment, as when their machine dies. The registry still has them.
        let (dying, staying) = instances.split_at_mut(3);
        for instance in &mut *dying {
            instance.process.signal(nix::sys::signal::Signal::SIGKILL);
        }
        for instance in &mut *dying {
            instance.process.wait(SOON);
        }
        let killed = Instant::now();
        let exchanges = load.expect_success(killed, 3000);
        let used: BTreeSet<_> = exchanges.iter().flat_map(|one| one.instance.clone()).collect();
        let left: BTreeSet<_> = staying.iter().map(|one| one.port.to_string()).collect();
        assert_eq!(used, left);
        // The dead ones are set aside, and tried again now and then.
        let bridge = bridge_server::status(&server);
        assert_eq!(bridge["failures"], 0, "{bridge}");
        let again: Vec<_> = dying.iter().map(|one| Instance::start(one.port)).collect();
        let back = Instant::now();
        for instance in &again {
            load.expect_instance(back, &instance.port.to_string());
        }
        let total = load.expect_success(back, 100).len() + exchanges.len();
        eprintln!("{total} exchanges since the kill, none failed");
        load.stop();
        server.stop();
    });
}

#[test]
fn an_added_instance_is_used_at_once() {
    inside("an_added_instance_is_used_at_once", || {
        const ROUNDS: usize = 20;
        let [first, second] = [Instance::start(0), Instance::start(0)];
        let etcd = Etcd::start();
        let key = |instance: &Instance| format!("/service/{}", bridge_server::key(instance.port));
        etcd.put(&key(&first), bridge_server::HTTP);
        let server = bridge_server::start(&etcd.url(), &[]);
        let (address, added) = (web_address(&server, "hello.svc"), second.port.to_string());
        let uses = |instance: &str| fetch(address).unwrap() == instance;
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut client = runtime.block_on(etcd.client());
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            runtime.block_on(client.put(key(&second), bridge_server::HTTP, None)).unwrap();
            let start = Instant::now();
            while !uses(&added) {
                assert!(start.elapsed() < SOON, "the added instance is not used");
            }
            times.push(start.elapsed());
            runtime.block_on(client.delete(key(&second), None)).unwrap();
            eventually("the removed instance to be out of use", SOON, || {
                (0..10).all(|_| !uses(&added)).then_some(())
            });
        }
        times.sort();
        let [median, longest] = [times[ROUNDS / 2], times[ROUNDS - 1]];
        eprintln!("an added instance is used after {median:?} (median), {longest:?} (longest)");
        server.stop();
    });
}

/// Downloads this many blocks with curl through the bridge, and compares each byte.
fn download(blocks: usize) {
    let block: Vec<u8> = (0..BLOCK).map(|_| fastrand::u8(..)).collect();
    let numbered = |number: usize| {
        let mut numbered = block.clone();
        numbered[..8].copy_from_slice(&number.to_be_bytes());
        numbered
    };
    let listener = TcpListener::bind((netns::ADDRESS, 0)).unwrap();
    let files = bridge_server::registered(&[listener.local_addr().unwrap().port()]);
    let server = bridge_server::start(&files.url(), &[]);
    bridge_server::address(&server, "hello.svc");
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            read_request(&mut stream).unwrap();
            let head = "HTTP/1.1 200 OK\r\nContent-Length";
            write!(stream, "{head}: {}\r\n\r\n", blocks * BLOCK).unwrap();
            for number in 0..blocks {
                stream.write_all(&numbered(number)).unwrap();
            }
        });
        let mut curl = Command::new("curl");
        curl.args(["-sS", "http://hello.svc/"]).stdout(Stdio::piped());
        let start = Instant::now();
        let mut curl = curl.spawn().unwrap();
        let mut page = curl.stdout.take().unwrap();
        let mut received = vec![0; BLOCK];
        for number in 0..blocks {
            page.read_exact(&mut received).unwrap();
            assert!(received == numbered(number), "block {number} differs");
        }
        assert_eq!(page.read(&mut received).unwrap(), 0);
        assert!(curl.wait().unwrap().success());
        let took = start.elapsed();
        eprintln!("{blocks} MiB, every byte compared, in {took:?}");
    });
    server.stop();
}

/// Reads the head of a request.
fn read_request(stream: &mut TcpStream) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    lines.find(|line| line.as_ref().map_or(true, String::is_empty))?.ok().map(drop)
}

#[test]
fn downloads_through_redirection_are_unchanged() {
    inside("downloads_through_redirection_are_unchanged", || download(64));
}

#[test]
#[ignore = "long: make bridge"]
fn a_download_of_a_gib_through_redirection_is_unchanged() {
    inside("a_download_of_a_gib_through_redirection_is_unchanged", || download(1024));
}

/// Sends this many requests with numbers and compares their responses.
///
/// Half of them have a connection each; the others share one per client.
fn small_requests(count: usize) {
    const CLIENTS: usize = 8;
    // Otherwise a minute has only 28,000 connections to one instance, as without the bridge: the
    // kernel keeps the local port of each for 60 s.
    netns::set_sysctl("net.ipv4.tcp_tw_reuse", "1");
    let instance = listen_and_echo();
    let files = bridge_server::registered(&[instance.port()]);
    let server = bridge_server::start(&files.url(), &[]);
    let address = web_address(&server, "hello.svc");
    let start = Instant::now();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let mut kept = connect(address);
                for number in 0..count / CLIENTS / 2 {
                    exchange(&mut kept, client, number);
                    exchange(&mut connect(address), client, number);
                }
            });
        }
    });
    let took = start.elapsed();
    let bridge = bridge_server::status(&server);
    let connections = (CLIENTS + count / CLIENTS / 2 * CLIENTS) as u64;
    assert_eq!((&bridge["connections"], &bridge["failures"]), (&connections.into(), &0.into()));
    eprintln!("{count} requests, every response compared, in {took:?}");
    server.stop();
}

/// Returns the address of an instance that sends back what it receives.
fn listen_and_echo() -> SocketAddr {
    let listener = TcpListener::bind((netns::ADDRESS, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut reader = stream.try_clone().unwrap();
                std::io::copy(&mut reader, &mut stream)
            });
        }
    });
    address
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// Sends a request that no other client sends, and compares the response.
fn exchange(stream: &mut TcpStream, client: usize, number: usize) {
    let request = format!("request {number} of client {client}; {:0>90}", number * 7919);
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = vec![0; request.len()];
    stream.read_exact(&mut response).unwrap();
    assert_eq!(String::from_utf8(response).unwrap(), request);
}

#[test]
fn small_requests_through_redirection_get_their_own_responses() {
    let test = "small_requests_through_redirection_get_their_own_responses";
    inside(test, || small_requests(4_000));
}

#[test]
#[ignore = "long: make bridge"]
fn a_hundred_thousand_small_requests_get_their_own_responses() {
    let test = "a_hundred_thousand_small_requests_get_their_own_responses";
    inside(test, || small_requests(100_000));
}

#[test]
fn a_service_whose_ports_change_all_the_time_loses_no_request() {
    inside("a_service_whose_ports_change_all_the_time_loses_no_request", || {
        // Each instance lives a little longer than its registration, as after a graceful stop.
        const INTERVAL: Duration = Duration::from_secs(1);
        let mut current = Instance::start(0);
        let files = bridge_server::registered(&[current.port]);
        let server = bridge_server::start(&files.url(), &[]);
        let load = Load::start(web_address(&server, "hello.svc"), 4);
        let start = Instant::now();
        for _ in 0..8 {
            let next = Instance::start(0);
            files.put(&bridge_server::key(next.port), bridge_server::HTTP);
            files.delete(&bridge_server::key(current.port));
            let moved = Instant::now();
            load.expect_instance(moved, &next.port.to_string());
            // Requests that the old instance had are answered before it ends.
            let old = std::mem::replace(&mut current, next).port.to_string();
            eventually("the old instance to be out of use", SOON, || {
                let now = Instant::now();
                let since = load.expect_success(now, 8);
                let is_used = since.iter().any(|one| one.instance.as_deref() == Ok(&*old));
                (!is_used).then_some(())
            });
            thread::sleep(INTERVAL.saturating_sub(moved.elapsed()));
        }
        load.expect_success(start, 100);
        load.stop();
        server.stop();
    });
}
