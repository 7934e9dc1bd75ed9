//! A port bridge in the test's own process, and instances behind it.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use socket2::SockRef;
use svcdns::bridge::{Bridge, BridgedView, Settings};
use svcdns::service::{BridgeCandidate, BridgeChange, ReachableRegistration, Update};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{SOON, eventually};

/// A running bridge, and the addresses that it announced.
pub(crate) struct Bridged {
    runtime: Runtime,
    pub(crate) bridge: Bridge,
    updates: mpsc::Receiver<Update>,
    announced: HashMap<Box<str>, Option<Ipv4Addr>>,
    tracker: TaskTracker,
    stop: CancellationToken,
    /// The port that is bound at each address.
    port: u16,
}

impl Bridged {
    pub(crate) fn start() -> Self {
        Self::start_with(None, |_| {})
    }

    pub(crate) fn start_with(state: Option<&Path>, change: impl FnOnce(&mut Settings)) -> Self {
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
    pub(crate) fn put(&mut self, name: &str, endpoints: &[SocketAddr]) {
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

    pub(crate) fn remove(&mut self, name: &str) {
        self.bridge.requests().update(vec![BridgeChange::Removed(name.into())]);
    }

    /// Waits until clients get an address for the name, or none.
    pub(crate) fn announcement(&mut self, name: &str) -> Option<Ipv4Addr> {
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
    pub(crate) fn serve(&mut self, name: &str, endpoints: &[SocketAddr]) -> SocketAddrV4 {
        self.put(name, endpoints);
        SocketAddrV4::new(self.announcement(name).expect("an address"), self.port)
    }

    /// Returns the bytes that reached the instances of a name.
    pub(crate) fn request_bytes(&self, name: &str) -> u64 {
        self.view(name).map_or(0, |view| view.counts.request_bytes)
    }

    /// Waits until no connection is open.
    pub(crate) fn wait_for_the_end_of_all_connections(&self) {
        eventually("all connections to end", SOON, || {
            (self.bridge.counters().open() == 0).then_some(())
        });
    }

    pub(crate) fn view(&self, name: &str) -> Option<BridgedView> {
        self.bridge.services().into_iter().find(|service| &*service.name == name)
    }

    /// Stops the bridge and waits for its end.
    pub(crate) fn stop(self) {
        self.stop.cancel();
        self.tracker.close();
        let end = async { tokio::time::timeout(SOON, self.tracker.wait()).await };
        self.runtime.block_on(end).unwrap();
    }
}

/// Accepts connections and serves each one in a thread.
pub(crate) fn listen(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
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
pub(crate) fn echo() -> SocketAddr {
    listen(|mut stream| {
        let mut reader = stream.try_clone().unwrap();
        let _ = io::copy(&mut reader, &mut stream);
        let _ = stream.shutdown(Shutdown::Write);
    })
}

/// An instance that sends its name to each client.
pub(crate) fn named(name: &'static str) -> SocketAddr {
    listen(move |mut stream| drop(stream.write_all(name.as_bytes())))
}

pub(crate) fn connect(address: SocketAddrV4) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

pub(crate) fn read_all(mut stream: TcpStream) -> io::Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text).map(|_| text)
}

/// Returns the bytes at these positions of an endless text that does not repeat soon.
pub(crate) fn pattern(start: usize, length: usize) -> Vec<u8> {
    let byte = |at: usize| at.wrapping_mul(0x9E37_79B9).to_le_bytes()[2];
    (start..start + length).map(byte).collect()
}

/// Returns an address on which nothing listens.
pub(crate) fn unused() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Shows that a client which ends its side still gets the response.
pub(crate) fn a_client_that_ends_its_side_gets_the_response(bridge: &mut Bridged) {
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

/// Shows that a reset of one side is a reset for the other one.
pub(crate) fn resets_pass_in_both_directions(bridge: &mut Bridged) {
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
    eventually("the request to arrive", SOON, || {
        (bridge.request_bytes("waiting") == 5).then_some(())
    });
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(ended.recv_timeout(SOON).unwrap(), Err(ErrorKind::ConnectionReset));
}

/// Shows that a slow reader stops its sender, and gets every byte in the end.
pub(crate) fn a_slow_reader_stops_its_sender(bridge: &mut Bridged) {
    const BYTES: usize = 64 << 20;
    let (stopping, stopped) = std::sync::mpsc::channel();
    let sending = listen(move |mut stream| {
        // A write that waits for so long waits for the reader.
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        let bytes = pattern(0, BYTES);
        let mut sent = 0;
        while sent < BYTES {
            match stream.write(&bytes[sent..]) {
                Ok(more) => sent += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let _ = stopping.send(sent);
                }
                Err(_) => return,
            }
        }
        let _ = stopping.send(sent);
    });
    let address = bridge.serve("sending", &[sending]);
    let mut client = connect(address);
    let on_their_way = stopped.recv_timeout(SOON).unwrap();
    assert!(on_their_way < BYTES / 2, "{on_their_way} bytes are on their way");
    let mut received = vec![0; 1 << 16];
    for start in (0..BYTES).step_by(1 << 16) {
        client.read_exact(&mut received).unwrap();
        assert!(received == pattern(start, 1 << 16), "the bytes from {start} on differ");
    }
    assert_eq!(client.read(&mut received).unwrap(), 0);
}
