//! The port bridge through its public interface, with real sockets on loopback.
//!
//! The bridge binds one port at each address, because redirection needs a network namespace
//! (`tests/bridge_redirect.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use support::bridged::{Bridged, connect, echo, listen, named, pattern, read_all, unused};
use support::{SOON, eventually, skip};
use svcdns::bridge::Settings;
use svcdns::descriptors;

#[test]
fn downloads_and_uploads_arrive_unchanged() {
    const BYTES: usize = if cfg!(debug_assertions) { 64 << 20 } else { 1 << 30 };
    let mut bridge = Bridged::start();
    let address = bridge.serve("echo", &[echo()]);
    let mut client = connect(address);
    let mut writer = client.try_clone().unwrap();
    let sending = thread::spawn(move || {
        for start in (0..BYTES).step_by(1 << 20) {
            writer.write_all(&pattern(start, 1 << 20)).unwrap();
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = vec![0; 1 << 20];
    for start in (0..BYTES).step_by(1 << 20) {
        client.read_exact(&mut received).unwrap();
        assert!(received == pattern(start, 1 << 20), "the bytes from {start} on differ");
    }
    assert_eq!(client.read(&mut received).unwrap(), 0, "the end is passed on");
    sending.join().unwrap();
    let counts = bridge.view("echo").unwrap().counts;
    assert_eq!((counts.request_bytes, counts.response_bytes), (BYTES as u64, BYTES as u64));
    assert_eq!((counts.connections, counts.failures, counts.retries), (1, 0, 0));
    eventually("the connection to end", SOON, || {
        (bridge.view("echo").unwrap().counts.open == 0).then_some(())
    });
}

#[test]
fn a_client_that_ends_its_side_gets_the_whole_response() {
    support::bridged::a_client_that_ends_its_side_gets_the_response(&mut Bridged::start());
}

#[test]
fn an_instance_that_ends_its_side_still_receives() {
    let mut bridge = Bridged::start();
    let (sender, received) = std::sync::mpsc::channel();
    let ending = listen(move |mut stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        let mut request = Vec::new();
        let _ = sender.send(stream.read_to_end(&mut request).map(|_| request));
    });
    let address = bridge.serve("ending", &[ending]);
    let mut client = connect(address);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    client.write_all(b"late").unwrap();
    drop(client);
    assert_eq!(received.recv_timeout(SOON).unwrap().unwrap(), b"late");
}

#[test]
fn resets_pass_in_both_directions() {
    support::bridged::resets_pass_in_both_directions(&mut Bridged::start());
}

#[test]
fn a_slow_reader_stops_its_sender_and_gets_every_byte() {
    support::bridged::a_slow_reader_stops_its_sender(&mut Bridged::start());
}

#[test]
fn connections_that_lead_nowhere_are_reset_at_once() {
    let mut bridge = Bridged::start();
    // Only the named port is bound, and it leads to no instance that runs.
    let address = bridge.serve("dead", &[unused(), unused(), unused(), unused()]);
    let reset = || {
        let start = Instant::now();
        let mut client = connect(address);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        start.elapsed()
    };
    let fastest = (0..20).map(|_| reset()).min().unwrap();
    // Not the end of the time for all attempts, and not that of a race.
    assert!(fastest < Duration::from_millis(200), "{fastest:?}");
    let counts = bridge.view("dead").unwrap().counts;
    assert_eq!((counts.connections, counts.failures, counts.retries), (0, 20, 20 * 4));
    // The service is removed: its listener is closed.
    bridge.remove("dead");
    assert_eq!(bridge.announcement("dead"), None);
    eventually("connections to lead nowhere", SOON, || {
        TcpStream::connect(address).map_or(true, |client| read_all(client).is_err()).then_some(())
    });
    assert!(bridge.view("dead").is_none());
    assert_eq!(bridge.bridge.total().failures, 20, "what happened is not forgotten");
}

#[test]
fn no_new_connection_fails_after_an_instance_dies_and_traffic_returns_to_it() {
    let mut bridge = Bridged::start();
    let stable = named("stable");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mortal = listener.local_addr().unwrap();
    let is_dead = Arc::new(AtomicBool::new(false));
    let serve = |listener: TcpListener, is_dead: Arc<AtomicBool>| {
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if is_dead.load(Ordering::SeqCst) {
                    break;
                }
                let mut stream = stream;
                let _ = stream.write_all(b"mortal");
            }
        })
    };
    let serving = serve(listener, Arc::clone(&is_dead));
    let address = bridge.serve("pair", &[stable, mortal]);
    let ask = || read_all(connect(address)).unwrap();
    eventually("both instances to be used", SOON, || {
        let names: Vec<_> = (0..20).map(|_| ask()).collect();
        ["stable", "mortal"].iter().all(|name| names.iter().any(|n| n == name)).then_some(())
    });
    // Once the thread has ended, its listener is closed.
    is_dead.store(true, Ordering::SeqCst);
    let _ = TcpStream::connect(mortal);
    serving.join().unwrap();
    for _ in 0..500 {
        assert_eq!(ask(), "stable");
    }
    let counts = bridge.view("pair").unwrap().counts;
    assert_eq!(counts.failures, 0);
    assert!((1..50).contains(&counts.retries), "the dead instance is set aside: {counts:?}");
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&mortal.into()).unwrap();
    socket.listen(128).unwrap();
    let _serving = serve(socket.into(), Arc::new(AtomicBool::new(false)));
    eventually("traffic to return", SOON, || (ask() == "mortal").then_some(()));
}

#[test]
fn no_connection_fails_while_most_instances_are_dead() {
    let mut bridge = Bridged::start();
    let alive = [echo(), echo()];
    let address = bridge.serve("most", &alive);
    let is_served = |mut client: &TcpStream| {
        client.write_all(b"x").is_ok() && client.read(&mut [0]).is_ok_and(|bytes| bytes == 1)
    };
    // With open connections at the others, the dead ones are the first choices.
    let held = [(); 8].map(|()| connect(address));
    assert!(held.iter().all(is_served));
    let dead = [(); 5].map(|()| unused());
    bridge.put("most", &[&dead[..], &alive].concat());
    // Their pauses end several times meanwhile.
    let start = Instant::now();
    let mut asked = 0;
    while asked < 200 || start.elapsed() < Duration::from_secs(2) {
        let clients = [(); 8].map(|()| connect(address));
        assert!(clients.iter().all(is_served), "after {asked} connections");
        asked += clients.len();
    }
    let counts = bridge.bridge.total();
    assert_eq!(counts.failures, 0);
    assert!(counts.retries >= 5, "{counts:?}");
}

#[test]
fn a_service_that_comes_back_continues_with_its_counters() {
    let mut bridge = Bridged::start_with(None, |settings| settings.connections_per_service = 2);
    let instance = echo();
    let address = bridge.serve("again", &[instance]);
    let is_served = |client: &mut TcpStream| {
        client.write_all(b"x").is_ok() && client.read(&mut [0]).is_ok_and(|bytes| bytes == 1)
    };
    let mut clients = [(); 2].map(|()| connect(address));
    assert!(clients.iter_mut().all(is_served));
    bridge.remove("again");
    assert_eq!(bridge.announcement("again"), None);
    assert_eq!(bridge.bridge.total().connections, 2);
    assert_eq!(&*bridge.bridge.counts_by_label()[0].0, "again");
    let address = eventually("the address", SOON, || {
        bridge.put("again", &[instance]);
        bridge.announcement("again").map(|ip| SocketAddrV4::new(ip, address.port()))
    });
    let counts = bridge.view("again").unwrap().counts;
    assert_eq!((counts.connections, counts.open), (2, 2));
    assert!(!is_served(&mut connect(address)), "the old connections count for the limit");
    drop(clients);
    eventually("room for a new connection", SOON, || {
        is_served(&mut connect(address)).then_some(())
    });
}

#[test]
fn an_added_instance_is_used_and_a_removed_one_finishes_its_connections() {
    let mut bridge = Bridged::start();
    let (first, second) = (echo(), named("second"));
    let address = bridge.serve("moving", &[first]);
    let mut client = connect(address);
    client.write_all(b"one").unwrap();
    let mut received = [0; 3];
    client.read_exact(&mut received).unwrap();
    bridge.put("moving", &[second]);
    eventually("the added instance to be used", SOON, || {
        let other = connect(address);
        other.shutdown(Shutdown::Write).unwrap();
        (read_all(other).unwrap() == "second").then_some(())
    });
    client.write_all(b"two").unwrap();
    client.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"two", "the open connection goes on");
}

#[test]
fn connections_above_a_limit_are_reset() {
    let mut bridge = Bridged::start_with(None, |settings| {
        settings.connections = 8;
        settings.connections_per_service = 5;
    });
    let (one, other) = (echo(), echo());
    let addresses = [bridge.serve("one", &[one]), bridge.serve("other", &[other])];
    let is_served = |client: &mut TcpStream| {
        client.write_all(b"x").is_ok() && client.read(&mut [0]).is_ok_and(|bytes| bytes == 1)
    };
    let open = |address| {
        let mut clients: Vec<_> = (0..6).map(|_| connect(address)).collect();
        clients.retain_mut(is_served);
        clients
    };
    let held = [open(addresses[0]), open(addresses[1])];
    assert_eq!(held.each_ref().map(Vec::len), [5, 3]);
    assert_eq!(bridge.bridge.counters().open(), 8);
    drop(held);
    eventually("room for new connections", SOON, || {
        is_served(&mut connect(addresses[1])).then_some(())
    });
}

#[test]
fn thousands_of_idle_connections_are_open_at_once() {
    let descriptors = descriptors::raise_limit();
    let mut bridge = Bridged::start_with(None, |settings| {
        settings.connections = 10_000;
        settings.connections_per_service = 10_000;
    });
    // Each has two ends at the bridge, one at its client and one at its instance.
    let count = bridge.bridge.settings().connections.min(descriptors.saturating_sub(1000) / 4);
    if count < 1000 {
        let reason = format!("{descriptors} descriptors allow only {count} connections");
        return skip("thousands_of_idle_connections_are_open_at_once", &reason);
    }
    // One thread accepts all of them, and the queue of the kernel holds as many as come at once.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(4096).unwrap();
    let listener = TcpListener::from(listener);
    let instance = listener.local_addr().unwrap();
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let held = Arc::clone(&accepted);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            held.lock().unwrap().push(stream);
        }
    });
    let address = bridge.serve("idle", &[instance]);
    let clients: Vec<_> = (0..count).map(|_| connect(address)).collect();
    eventually("all connections to be open", SOON, || {
        let counts = bridge.view("idle").unwrap().counts;
        (counts.connections == count as u64 && counts.open == count).then_some(())
    });
    assert_eq!(bridge.bridge.total().failures, 0);
    drop(clients);
    accepted.lock().unwrap().clear();
    bridge.wait_for_the_end_of_all_connections();
}

#[test]
fn idle_connections_are_reset_only_if_configured() {
    let mut bridge = Bridged::start_with(None, |settings| {
        settings.idle_timeout = Some(Duration::from_millis(200));
    });
    let address = bridge.serve("echo", &[echo()]);
    let mut client = connect(address);
    client.write_all(b"x").unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 1);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(Settings::default().idle_timeout, None);
}

#[test]
fn a_proxy_header_precedes_the_bytes_of_the_client() {
    let mut bridge = Bridged::start_with(None, |settings| settings.proxy_protocol = true);
    let address = bridge.serve("echo", &[echo()]);
    let mut client = connect(address);
    client.write_all(b"hello").unwrap();
    let mut received = [0; 28 + 5];
    client.read_exact(&mut received).unwrap();
    let SocketAddr::V4(own) = client.local_addr().unwrap() else { panic!("IPv4") };
    assert_eq!(received[..13], *b"\r\n\r\n\0\r\nQUIT\n\x21");
    assert_eq!(received[16..24], [own.ip().octets(), address.ip().octets()].concat());
    assert_eq!(received[24..28], [own.port().to_be_bytes(), address.port().to_be_bytes()].concat());
    assert_eq!(received[28..], *b"hello");
}

#[test]
fn addresses_survive_a_restart_and_are_given_to_no_other_service() {
    let state = tempfile::tempdir().unwrap();
    let mut settings = None;
    let mut first = Bridged::start_with(Some(state.path()), |chosen| {
        settings = Some(chosen.clone());
    });
    let instance = echo();
    let names = ["a", "b", "c"];
    let given = names.map(|name| *first.serve(name, &[instance]).ip());
    first.remove("b");
    assert_eq!(first.announcement("b"), None);
    first.stop();
    let settings = settings.unwrap();
    let mut second = Bridged::start_with(Some(state.path()), |chosen| *chosen = settings);
    // In another order, and beside new names.
    for n in 0..100 {
        let address = *second.serve(&format!("new-{n}"), &[instance]).ip();
        assert!(!given.contains(&address), "{address}");
    }
    let again = ["c", "b", "a"].map(|name| *second.serve(name, &[instance]).ip());
    assert_eq!(again, [given[2], given[1], given[0]]);
}

#[test]
fn services_without_an_address_stay_direct() {
    let mut bridge = Bridged::start_with(None, |settings| {
        settings.pool = format!("{}/28", settings.pool.network()).parse().unwrap();
    });
    let instance = echo();
    for n in 0..14 {
        bridge.serve(&format!("s{n}"), &[instance]);
    }
    // The pool has 14 addresses; the surplus is not announced.
    bridge.put("surplus", &[instance]);
    bridge.put("s0", &[]);
    assert_eq!(bridge.announcement("s0"), None, "without an instance, there is no address");
    assert!(bridge.view("surplus").is_none());
    // An endpoint in the pool itself is a loop.
    let inside = SocketAddr::from((bridge.view("s1").unwrap().address, 1));
    bridge.put("s1", &[inside, instance]);
    eventually("the loop to be found", SOON, || {
        (bridge.view("s1").unwrap().loops == [inside]).then_some(())
    });
}

#[test]
fn a_service_whose_port_is_taken_stays_direct_and_the_others_go_on() {
    let mut settings = None;
    let mut first = Bridged::start_with(None, |chosen| settings = Some(chosen.clone()));
    let instance = named("instance");
    let taken = first.serve("taken", &[instance]);
    first.stop();
    let settings = settings.unwrap();
    let mut second = Bridged::start_with(None, |chosen| *chosen = settings);
    let other_program = eventually("the port", SOON, || TcpListener::bind(taken).ok());
    second.put("taken", &[instance]);
    let address = second.serve("unrelated", &[instance]);
    assert!(second.view("taken").is_none());
    assert_eq!(read_all(connect(address)).unwrap(), "instance");
    // Once the port is free, the service is bridged although nothing about it has changed.
    drop(other_program);
    assert_eq!(second.announcement("taken"), Some(*taken.ip()));
    assert_eq!(read_all(connect(taken)).unwrap(), "instance");
}

#[test]
fn a_service_that_restarts_keeps_its_address_and_listener() {
    let mut bridge = Bridged::start();
    let instance = named("instance");
    let address = bridge.serve("restarting", &[instance]);
    for _ in 0..20 {
        bridge.remove("restarting");
        assert_eq!(bridge.announcement("restarting"), None);
        assert_eq!(bridge.serve("restarting", &[instance]), address);
        assert_eq!(read_all(connect(address)).unwrap(), "instance");
    }
}

#[test]
fn only_new_names_are_written_to_the_file_at_once() {
    let state = tempfile::tempdir().unwrap();
    let mut bridge = Bridged::start_with(Some(state.path()), |_| {});
    let instance = named("instance");
    let taken = {
        let address = bridge.serve("taken", &[instance]);
        bridge.remove("taken");
        assert_eq!(bridge.announcement("taken"), None);
        address
    };
    let file = state.path().join("bridge-addresses");
    // A replaced file has another number.
    let number = || fs::metadata(&file).unwrap().ino();
    let (before, start) = (number(), Instant::now());
    for _ in 0..30 {
        assert_eq!(bridge.serve("taken", &[instance]), taken);
        bridge.remove("taken");
        assert_eq!(bridge.announcement("taken"), None);
    }
    if start.elapsed() < Duration::from_secs(5) {
        assert_eq!(number(), before, "releases are not written at once");
    }
    bridge.serve("new", &[instance]);
    assert_ne!(number(), before, "clients learn a new address once it is in the file");
    bridge.remove("new");
    assert_eq!(bridge.announcement("new"), None);
    bridge.stop();
    let written: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert!(written["names"]["new"]["released"].is_u64(), "written at the end: {written}");
}

#[test]
fn a_state_directory_that_is_gone_keeps_no_service_from_being_bridged() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join("state");
    fs::create_dir(&path).unwrap();
    let mut bridge = Bridged::start_with(Some(&path), |_| {});
    fs::remove_dir(&path).unwrap();
    let address = bridge.serve("hello", &[named("first")]);
    assert_eq!(read_all(connect(address)).unwrap(), "first");
    bridge.put("hello", &[named("second")]);
    eventually("the new instance", SOON, || {
        (read_all(connect(address)).unwrap() == "second").then_some(())
    });
}

#[test]
fn shutdown_lets_connections_finish() {
    let mut bridge = Bridged::start_with(None, |settings| settings.drain = SOON);
    let address = bridge.serve("echo", &[echo()]);
    let mut client = connect(address);
    client.write_all(b"x").unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 1);
    let stopping = thread::spawn(move || bridge.stop());
    eventually("new connections to lead nowhere", SOON, || {
        let Ok(other) = TcpStream::connect(address) else { return Some(()) };
        // While the bridge still accepts, the instance ends the connection as the client does.
        let _ = other.shutdown(Shutdown::Write);
        read_all(other).is_err().then_some(())
    });
    client.write_all(b"bye").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(client).unwrap(), "bye");
    // Without an open connection, the bridge does not wait for the end of the drain.
    stopping.join().unwrap();
}

#[test]
fn after_the_drain_open_connections_are_reset() {
    let mut bridge = Bridged::start();
    let address = bridge.serve("echo", &[echo()]);
    let mut client = connect(address);
    client.write_all(b"x").unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 1);
    bridge.stop();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}
