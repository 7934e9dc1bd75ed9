//! The server when connections run short: which one it closes, and whom it serves.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use svcdns::descriptors;
use svcdns::server::{Counters, Limits, Settings, bind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use support::counters;
use support::echo::Echo;

/// Time limit for everything that must happen; only a failing test reaches it.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest time to the response for a new client.
const NEW_CLIENT_TIMEOUT: Duration = Duration::from_secs(1);

struct Server {
    address: SocketAddr,
    counters: Arc<Counters>,
    echo: Echo,
    _stop: tokio_util::sync::DropGuard,
}

/// Starts a server on a free loopback port; its timeouts do not end while a test runs.
fn start(mut limits: Limits) -> Server {
    let long = Duration::from_secs(600);
    limits.idle_timeout = long;
    limits.message_timeout = long;
    limits.write_timeout = long;
    limits.response_timeout = long;
    start_as_is(limits)
}

fn start_as_is(limits: Limits) -> Server {
    // Both ends of every connection are in this process.
    descriptors::raise_limit();
    let settings =
        Settings { listen: vec!["127.0.0.1:0".parse().unwrap()], limits, ..Settings::default() };
    let bound = bind(&settings).unwrap();
    let (address, counters, stop) =
        (bound.addresses()[0], bound.counters(), CancellationToken::new());
    let echo = Echo::default();
    tokio::spawn(bound.serve(echo.clone(), |_, error| panic!("{error}"), stop.clone()));
    Server { address, counters, echo, _stop: stop.drop_guard() }
}

impl Server {
    async fn connect_from(&self, source: &str) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
        Client(socket.connect(self.address).await.unwrap())
    }

    async fn connect(&self) -> Client {
        self.connect_from("127.0.0.1").await
    }

    /// Opens a connection that sends `bytes`, and waits until it is open.
    async fn hold(&self, source: &str, bytes: &[u8]) -> Client {
        let opened = self.counters.tcp.connections.get();
        let mut client = self.connect_from(source).await;
        client.0.write_all(bytes).await.unwrap();
        self.until("the connection is open", |c| c.tcp.connections.get() > opened).await;
        client
    }

    /// Opens a connection with a query that is in progress until [`Echo::release`].
    async fn hold_in_progress(&self, source: &str) -> Client {
        let queries = self.counters.tcp.queries.get();
        let client = self.hold(source, &framed(b"hold")).await;
        self.until("the query is read", |c| c.tcp.queries.get() > queries).await;
        client
    }

    /// Asserts that a new client from `source` gets its response in time.
    async fn serves(&self, source: &str) {
        let start = Instant::now();
        let response = async {
            let mut client = self.connect_from(source).await;
            client.0.write_all(&framed(b"hello")).await?;
            client.next().await
        };
        let response = timeout(NEW_CLIENT_TIMEOUT, response).await;
        assert!(
            matches!(&response, Ok(Ok(bytes)) if bytes == b"tcp hello"),
            "{source}: {response:?} after {:?}; {:?}",
            start.elapsed(),
            self.counters
        );
    }

    /// Waits until the counters satisfy `holds`.
    async fn until(&self, what: &str, holds: impl Fn(&Counters) -> bool) {
        counters::until(&self.counters, TEST_TIMEOUT, what, holds).await;
    }

    /// Returns the idle, stalled and rejected connections so far.
    fn closed(&self) -> [u64; 3] {
        let tcp = &self.counters.tcp;
        [tcp.evicted_idle.get(), tcp.evicted_stalled.get(), tcp.rejected.get()]
    }
}

struct Client(TcpStream);

impl Client {
    async fn next(&mut self) -> io::Result<Vec<u8>> {
        let length = self.0.read_u16().await?;
        let mut response = vec![0; length.into()];
        self.0.read_exact(&mut response).await?;
        Ok(response)
    }

    async fn ask(&mut self, query: &[u8]) -> io::Result<Vec<u8>> {
        self.0.write_all(&framed(query)).await?;
        timeout(TEST_TIMEOUT, self.next()).await.expect("a response or an end in time")
    }

    /// Waits for the server to close the connection without a further response.
    async fn ends(&mut self) {
        let next = timeout(TEST_TIMEOUT, self.next()).await.expect("the connection should end");
        let end = next.expect_err("the connection should end without a response").kind();
        assert!(matches!(end, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{end}");
    }

    /// Returns whether the server has neither sent anything nor closed the connection.
    fn is_open(&self) -> bool {
        self.0.try_read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

fn framed(query: &[u8]) -> Vec<u8> {
    [&u16::try_from(query.len()).unwrap().to_be_bytes()[..], query].concat()
}

/// First bytes of a message of 32 bytes.
const HALF_MESSAGE: &[u8] = b"\0\x20half";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_clients_are_served_despite_thousands_of_stalled_or_idle_ones() {
    // With the default limits there is room for all, with the others for half of them.
    let few =
        Limits { connections: 1_200, connections_per_loopback_source: 1_000, ..Limits::default() };
    for limits in [Limits::default(), few] {
        let room = limits.connections_per_loopback_source.min(2_000) as u64;
        let server = start(limits);
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        udp.connect(server.address).await.unwrap();
        let mut held = Vec::new();
        for count in 0..2_000_u32 {
            let bytes = if count < 1_000 { HALF_MESSAGE } else { b"" };
            held.push(server.hold("127.0.0.1", bytes).await);
            if count % 100 == 0 {
                let start = Instant::now();
                udp.send(b"hello").await.unwrap();
                let mut response = [0; 16];
                let length = timeout(NEW_CLIENT_TIMEOUT, udp.recv(&mut response)).await;
                assert_eq!(&response[..length.unwrap().unwrap()], b"udp hello");
                assert!(start.elapsed() < Duration::from_millis(200), "{:?}", start.elapsed());
            }
        }
        for _ in 0..20 {
            server.serves("127.0.0.1").await;
            server.serves("127.0.0.2").await;
        }
        let [idle, stalled, rejected] = server.closed();
        assert_eq!(rejected, 0);
        let from_loopback = 2_000 + 20;
        let needless = room + 20 >= from_loopback;
        assert_eq!(idle + stalled > 0, !needless, "{:?}", server.counters);
        assert!(server.counters.tcp.open.get() <= room + 20, "{:?}", server.counters);
    }
}

#[tokio::test]
async fn the_longest_idle_connection_is_evicted_then_the_longest_stalled() {
    let server = start(Limits { connections_per_loopback_source: 4, ..Limits::default() });
    let mut stalled_first = server.hold("127.0.0.1", HALF_MESSAGE).await;
    let mut stalled_second = server.hold("127.0.0.1", HALF_MESSAGE).await;
    let mut idle_first = server.hold("127.0.0.1", b"").await;
    let mut idle_second = server.hold("127.0.0.1", b"").await;
    // Activity counts, not age. Activity soon after the last changes nothing.
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(idle_first.ask(b"hello").await.unwrap(), b"tcp hello");
    // Those that have just become idle would be kept.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut newer = vec![server.hold_in_progress("127.0.0.1").await];
    idle_second.ends().await;
    assert_eq!(server.closed(), [1, 0, 0]);
    newer.push(server.hold_in_progress("127.0.0.1").await);
    idle_first.ends().await;
    assert_eq!(server.closed(), [2, 0, 0]);
    newer.push(server.hold_in_progress("127.0.0.1").await);
    stalled_first.ends().await;
    assert!(stalled_second.is_open());
    newer.push(server.hold_in_progress("127.0.0.1").await);
    stalled_second.ends().await;
    assert_eq!(server.closed(), [2, 2, 0]);
    // A stalled message that is completed in time is answered.
    assert!(newer.iter().all(Client::is_open));
}

#[tokio::test]
async fn a_client_that_has_just_connected_is_kept_while_others_stall() {
    let server = start(Limits { connections_per_loopback_source: 20, ..Limits::default() });
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(server.hold("127.0.0.1", HALF_MESSAGE).await);
    }
    // Time to read the half messages.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut new = Vec::new();
    for _ in 0..10 {
        new.push(server.hold("127.0.0.1", b"").await);
    }
    // Their queries come after all have connected.
    for client in &mut new {
        assert_eq!(client.ask(b"hello").await.unwrap(), b"tcp hello");
    }
    assert_eq!(server.closed(), [0, 10, 0]);
}

#[tokio::test]
async fn a_connection_with_a_query_in_progress_is_never_evicted() {
    let server = start(Limits { connections_per_loopback_source: 2, ..Limits::default() });
    let mut in_progress =
        [server.hold_in_progress("127.0.0.1").await, server.hold_in_progress("127.0.0.1").await];
    // The half message that follows does not end the query's protection.
    in_progress[0].0.write_all(HALF_MESSAGE).await.unwrap();
    server.connect().await.ends().await;
    assert_eq!(server.closed(), [0, 0, 1]);
    for client in &mut in_progress {
        server.echo.release();
        assert_eq!(client.next().await.unwrap(), b"tcp hold, at last");
    }
    // Both wait now, the first in the middle of a message and for longer.
    server.serves("127.0.0.1").await;
    in_progress[0].ends().await;
    assert_eq!(server.closed()[2], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_evicted_for_a_new_one() {
    let server = start(Limits { connections_per_loopback_source: 2, ..Limits::default() });
    let mut in_progress = server.hold_in_progress("127.0.0.1").await;
    let mut blocked = server.connect().await;
    // A query in progress does not protect the connection: its response could not be sent.
    let queries = [framed(b"hold"), framed(b"big").repeat(100)].concat();
    blocked.0.write_all(&queries).await.unwrap();
    let start = Instant::now();
    let mut sent = 0;
    while server.counters.tcp.queries.get() > sent {
        assert!(start.elapsed() < TEST_TIMEOUT);
        sent = server.counters.tcp.queries.get();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    server.serves("127.0.0.1").await;
    assert_eq!(server.closed(), [0, 1, 0]);
    assert!(in_progress.is_open());
    server.echo.release();
    assert_eq!(in_progress.next().await.unwrap(), b"tcp hold, at last");
    // The responses in the kernel's buffers, and then the end.
    let mut rest = Vec::new();
    let end = timeout(TEST_TIMEOUT, blocked.0.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.len() < 100 * 60_000 && end.is_ok(), "{end:?}, {} bytes", rest.len());
}

#[tokio::test]
async fn a_flood_from_one_source_evicts_only_its_own_connections() {
    let server = start(Limits { connections: 20, ..Limits::default() });
    let mut others = Vec::new();
    for source in ["127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3"] {
        // Idle for longer than every connection of the flood.
        others.push(server.hold(source, b"").await);
    }
    let mut flood = Vec::new();
    for count in 0..60 {
        flood.push(server.hold("127.0.0.1", if count % 2 == 0 { HALF_MESSAGE } else { b"" }).await);
    }
    server.until("the flood closed its own connections", |c| c.tcp.open.get() == 20).await;
    assert!(others.iter().all(Client::is_open));
    // New clients cost the flood its connections, too.
    for source in ["127.0.0.2", "127.0.0.4", "127.0.0.5"] {
        others.push(server.hold(source, b"").await);
    }
    assert!(others.iter().all(Client::is_open));
    assert_eq!(server.closed()[2], 0);
    // Once the flood has no waiting connection, the next largest source gives one up.
    drop(flood);
    server.until("the flood is gone", |c| c.tcp.open.get() == others.len() as u64).await;
    let mut busy = Vec::new();
    for _ in 0..14 {
        busy.push(server.hold_in_progress("127.0.0.1").await);
    }
    others[0].ends().await;
    assert!(others[1..].iter().all(Client::is_open) && busy.iter().all(Client::is_open));
    assert_eq!(server.closed()[2], 0);
}

#[tokio::test]
async fn clients_without_access_do_not_evict_other_connections() {
    let settings = Settings {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        allow: vec!["127.0.0.1/32".parse().unwrap()],
        allow_loopback: false,
        limits: Limits {
            connections: 6,
            connections_without_access: 3,
            idle_timeout: Duration::from_secs(600),
            message_timeout: Duration::from_secs(600),
            ..Limits::default()
        },
        ..Settings::default()
    };
    let bound = bind(&settings).unwrap();
    let (address, counters, stop) =
        (bound.addresses()[0], bound.counters(), CancellationToken::new());
    tokio::spawn(bound.serve(Echo::default(), |_, error| panic!("{error}"), stop.clone()));
    let server = Server { address, counters, echo: Echo::default(), _stop: stop.drop_guard() };
    let mut allowed = vec![server.hold("127.0.0.1", b"").await];
    let mut denied = Vec::new();
    for _ in 0..10 {
        denied.push(server.hold("127.0.0.2", HALF_MESSAGE).await);
    }
    server.until("three of them are open", |c| c.tcp.open.get() == 4).await;
    // A new one is refused in time, although the others stall.
    let mut client = server.connect_from("127.0.0.3").await;
    assert_eq!(client.ask(b"hello").await.unwrap(), b"refused hello");
    for _ in 0..5 {
        allowed.push(server.hold("127.0.0.1", b"").await);
    }
    assert!(allowed.iter().all(Client::is_open), "those without access go first");
    server.until("the server is full", |c| c.tcp.open.get() == 6).await;
    server.connect_from("127.0.0.3").await.ends().await;
    assert!(allowed.iter().all(Client::is_open));
}

#[tokio::test]
async fn timeouts_shorten_above_half_of_the_connection_limit() {
    let limits = Limits {
        connections: 40,
        idle_timeout: Duration::from_secs(20),
        message_timeout: Duration::from_secs(20),
        ..Limits::default()
    };
    let server = start_as_is(limits);
    let mut held = Vec::new();
    for count in 0..20 {
        held.push(server.hold("127.0.0.1", if count < 10 { HALF_MESSAGE } else { b"" }).await);
    }
    // Longer than the shortest deadline.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(held.iter().all(Client::is_open), "half of the connections may wait");
    let start = Instant::now();
    for _ in 0..20 {
        held.push(server.hold("127.0.0.1", b"").await);
    }
    // The oldest first, also those that waited before the others came.
    server.until("a part is closed", |c| c.tcp.open.get() <= 36).await;
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    assert_eq!(server.counters.tcp.idle_timeouts.get(), 0);
    let [idle, _, rejected] = server.closed();
    assert!(idle >= 1 && rejected == 0, "{:?}", server.counters);
    for client in &mut held[10..11] {
        client.ends().await;
    }
    assert!(held[39].is_open());
    // Never fewer than half.
    assert!(server.counters.tcp.open.get() >= 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_share_a_memory_limit() {
    let server = start(Limits { unread_bytes: 1024 * 1024, ..Limits::default() });
    let mut blocked = Vec::new();
    for _ in 0..20 {
        let mut client = server.connect().await;
        client.0.write_all(&framed(b"big").repeat(40)).await.unwrap();
        blocked.push(client);
    }
    server.until("some are closed", |c| c.tcp.evicted_stalled.get() >= 5).await;
    server.serves("127.0.0.1").await;
    assert_eq!(server.closed()[2], 0);
}
