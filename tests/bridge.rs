//! The port bridge through its public interface, with real sockets on loopback.
//!
//! The bridge binds one port at each address, because redirection needs a network namespace
//! (`tests/bridge_redirect.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use support::{SOON, eventually};
use svcdns::bridge::{Bridge, BridgedView, Settings};
use svcdns::descriptors;
use svcdns::service::{BridgeCandidate, BridgeChange, ReachableRegistration, Update};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A running bridge, and the addresses that it announced.
struct Bridged {
    runtime: Runtime,
    bridge: Bridge,
    updates: mpsc::Receiver<Update>,
    announced: HashMap<Box<str>, Option<Ipv4Addr>>,
    tracker: TaskTracker,
    stop: CancellationToken,
    /// The port that is bound at each address.
    port: u16,
}

impl Bridged {
    fn start() -> Self {
        Self::start_with(None, |_| {})
    }

    fn start_with(state: Option<&Path>, change: impl FnOnce(&mut Settings)) -> Self {
        // Each bridge has a pool and a port of its own: tests run at the same time.
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let network = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = u8::try_from(std::process::id() % 100).unwrap();
        let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let mut settings = Settings {
            pool: format!("127.{}.{network}.0/24", 100 + process).parse().unwrap(),
            ports: vec![port],
            bind: true,
            drain: Duration::from_millis(300),
            ..Settings::default()
        };
        change(&mut settings);
        let port = settings.ports[0];
        let runtime = Runtime::new().unwrap();
        let (sender, updates) = mpsc::channel(64);
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let start = Bridge::start(settings, state, &[], sender, &tracker, stop.clone());
        let bridge = runtime.block_on(start).unwrap();
        let announced = HashMap::new();
        Self { runtime, bridge, updates, announced, tracker, stop, port }
    }

    /// Sets the instances of a service, with protocol `http`.
    fn put(&mut self, name: &str, endpoints: &[SocketAddr]) {
        let registrations = endpoints.iter().map(|endpoint| ReachableRegistration {
            protocol: Some("http".into()),
            weight: 1,
            first_port: Some(endpoint.port()),
            endpoints: vec![*endpoint],
        });
        let candidate = BridgeCandidate {
            name: name.into(),
            namespace: "default".into(),
            registrations: registrations.collect(),
        };
        self.bridge.requests().update(vec![BridgeChange::Put(candidate)]);
    }

    fn remove(&mut self, name: &str) {
        self.bridge.requests().update(vec![BridgeChange::Removed(name.into())]);
    }

    /// Waits until clients get an address for the name, or none.
    fn announcement(&mut self, name: &str) -> Option<Ipv4Addr> {
        while !self.announced.contains_key(name) {
            let updates = &mut self.updates;
            let next = async { tokio::time::timeout(SOON, updates.recv()).await };
            let Ok(Some(Update::Bridged(names))) = self.runtime.block_on(next) else {
                panic!("no announcement of {name}")
            };
            self.announced.extend(names.into_iter().map(|one| (one.name, one.address)));
        }
        self.announced.remove(name).flatten()
    }

    /// Bridges a service; returns the address for its clients.
    fn serve(&mut self, name: &str, endpoints: &[SocketAddr]) -> SocketAddrV4 {
        self.put(name, endpoints);
        SocketAddrV4::new(self.announcement(name).expect("an address"), self.port)
    }

    fn view(&self, name: &str) -> Option<BridgedView> {
        self.bridge.services().into_iter().find(|service| &*service.name == name)
    }

    /// Stops the bridge and waits for its end.
    fn stop(self) {
        self.stop.cancel();
        self.tracker.close();
        let end = async { tokio::time::timeout(SOON, self.tracker.wait()).await };
        self.runtime.block_on(end).unwrap();
    }
}

/// Accepts connections and serves each one in a thread.
fn listen(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// An instance that sends back what it receives, and ends when the client does.
fn echo() -> SocketAddr {
    listen(|mut stream| {
        let mut reader = stream.try_clone().unwrap();
        let _ = io::copy(&mut reader, &mut stream);
        let _ = stream.shutdown(Shutdown::Write);
    })
}

/// An instance that sends its name to each client.
fn named(name: &'static str) -> SocketAddr {
    listen(move |mut stream| drop(stream.write_all(name.as_bytes())))
}

fn connect(address: SocketAddrV4) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn read_all(mut stream: TcpStream) -> io::Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text).map(|_| text)
}

/// Returns the bytes at these positions of an endless text that does not repeat soon.
fn pattern(start: usize, length: usize) -> Vec<u8> {
    let byte = |at: usize| at.wrapping_mul(0x9E37_79B9).to_le_bytes()[2];
    (start..start + length).map(byte).collect()
}

/// Returns an address on which nothing listens.
fn unused() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

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
    let mut bridge = Bridged::start();
    let counting = listen(|mut stream| {
        let mut request = Vec::new();
        stream.read_to_end(&mut request).unwrap();
        stream.write_all(format!("got {} bytes", request.len()).as_bytes()).unwrap();
    });
    let address = bridge.serve("count", &[counting]);
    let mut client = connect(address);
    client.write_all(&pattern(0, 300_000)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(client).unwrap(), "got 300000 bytes");
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
    let mut bridge = Bridged::start();
    let resetting = listen(|mut stream| {
        let _ = stream.read(&mut [0; 16]);
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let (sender, ended) = std::sync::mpsc::channel();
    let waiting = listen(move |mut stream| {
        let _ = sender.send(stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind()));
    });
    let address = bridge.serve("resetting", &[resetting]);
    let mut client = connect(address);
    client.write_all(b"hello").unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let address = bridge.serve("waiting", &[waiting]);
    let mut client = connect(address);
    client.write_all(b"hello").unwrap();
    eventually("the connection to be forwarded", SOON, || {
        (bridge.view("waiting").unwrap().counts.request_bytes == 5).then_some(())
    });
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(ended.recv_timeout(SOON).unwrap(), Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_slow_reader_stops_its_sender_and_gets_every_byte() {
    const BYTES: usize = 64 << 20;
    let mut bridge = Bridged::start();
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let sending = listen(move |mut stream| {
        for start in (0..BYTES).step_by(1 << 16) {
            if stream.write_all(&pattern(start, 1 << 16)).is_err() {
                return;
            }
            counter.fetch_add(1 << 16, Ordering::Relaxed);
        }
    });
    let address = bridge.serve("sending", &[sending]);
    let mut client = connect(address);
    // Until the sender is stopped, it makes progress.
    let mut before = usize::MAX;
    let stopped = eventually("the sender to be stopped", SOON, || {
        thread::sleep(Duration::from_millis(500));
        let now = sent.load(Ordering::Relaxed);
        (std::mem::replace(&mut before, now) == now && now > 0).then_some(now)
    });
    assert!(stopped < BYTES / 2, "{stopped} bytes are on their way");
    let mut received = vec![0; 1 << 16];
    for start in (0..BYTES).step_by(1 << 16) {
        client.read_exact(&mut received).unwrap();
        assert!(received == pattern(start, 1 << 16), "the bytes from {start} on differ");
    }
    assert_eq!(client.read(&mut received).unwrap(), 0);
}

#[test]
fn connections_that_lead_nowhere_are_reset_at_once() {
    let mut bridge = Bridged::start();
    // Only the named port is bound, and it leads to no instance that runs.
    let address = bridge.serve("dead", &[unused(), unused(), unused(), unused()]);
    let start = Instant::now();
    let mut client = connect(address);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    eprintln!("reset after {:?}", start.elapsed());
    let counts = bridge.view("dead").unwrap().counts;
    assert_eq!((counts.connections, counts.failures, counts.retries), (0, 1, 3));
    // The service is removed: its listener is closed.
    bridge.remove("dead");
    assert_eq!(bridge.announcement("dead"), None);
    eventually("connections to be refused", SOON, || {
        TcpStream::connect(address).is_err().then_some(())
    });
    assert!(bridge.view("dead").is_none());
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
fn ten_thousand_idle_connections_are_open_at_once() {
    // Each has two ends at the bridge, one at its client and one at its instance.
    let count = (descriptors::raise_limit().saturating_sub(1000) / 8).min(10_000);
    let mut bridge = Bridged::start_with(None, |settings| {
        settings.connections = 20_000;
        settings.connections_per_service = 20_000;
    });
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
    let mut clients = Vec::new();
    while clients.len() < count {
        clients.extend((0..1000.min(count - clients.len())).map(|_| connect(address)));
        eventually("all connections to be open", SOON, || {
            let counts = bridge.view("idle").unwrap().counts;
            (counts.connections == clients.len() as u64 && counts.open == clients.len())
                .then_some(())
        });
    }
    drop(clients);
    accepted.lock().unwrap().clear();
    eventually("all connections to end", SOON, || {
        (bridge.bridge.counters().open() == 0).then_some(())
    });
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
fn services_without_an_address_or_a_port_stay_direct() {
    let port = unused().port();
    let mut bridge = Bridged::start_with(None, |settings| {
        settings.pool = format!("{}/28", settings.pool.network()).parse().unwrap();
        settings.ports = vec![port];
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
fn shutdown_lets_connections_finish_and_then_resets_them() {
    let mut bridge = Bridged::start_with(None, |settings| {
        settings.drain = Duration::from_secs(3);
    });
    let address = bridge.serve("echo", &[echo()]);
    let [mut finishing, mut staying] = [(); 2].map(|()| connect(address));
    for client in [&mut finishing, &mut staying] {
        client.write_all(b"x").unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 1);
    }
    let stopping = thread::spawn(move || bridge.stop());
    eventually("new connections to be refused", SOON, || {
        TcpStream::connect(address).is_err().then_some(())
    });
    finishing.write_all(b"bye").unwrap();
    finishing.shutdown(Shutdown::Write).unwrap();
    let finished = read_all(finishing);
    let reset = staying.read(&mut [0]).unwrap_err().kind();
    assert_eq!(reset, ErrorKind::ConnectionReset);
    assert_eq!(finished.unwrap(), "bye");
    stopping.join().unwrap();
}
