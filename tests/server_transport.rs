//! The server over UDP and TCP on real sockets, with an echo responder.
//!
//! The clients are well-behaved, slow, never reading, or resetting.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use svcdns::server::{Counters, Limits, Settings, bind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use support::counters;
use support::echo::Echo;

/// Time limit for everything that must happen; only a failing test reaches it.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

struct Server {
    address: SocketAddr,
    counters: Arc<Counters>,
    echo: Echo,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn start(settings: &Settings) -> Server {
    let bound = bind(settings).unwrap();
    let (address, counters, stop) =
        (bound.addresses()[0], bound.counters(), CancellationToken::new());
    let echo = Echo::default();
    let serving = bound.serve(echo.clone(), |_, error| panic!("{error}"), stop.clone());
    let task = tokio::spawn(async move { serving.await.unwrap() });
    Server { address, counters, echo, stop, task }
}

/// Returns limits that no test reaches, even on a stalled machine.
fn long_timeouts() -> Limits {
    let long = Duration::from_secs(600);
    Limits {
        idle_timeout: long,
        message_timeout: long,
        write_timeout: long,
        response_timeout: long,
        drain_timeout: long,
        ..Limits::default()
    }
}

/// Starts a server on a free loopback port.
fn start_with(limits: Limits) -> Server {
    start(&Settings { limits, ..on("127.0.0.1:0") })
}

fn on(address: &str) -> Settings {
    Settings {
        listen: vec![address.parse().unwrap()],
        limits: long_timeouts(),
        ..Settings::default()
    }
}

impl Server {
    async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    async fn connect_from(&self, source: &str) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
        Client(socket.connect(self.address).await.unwrap())
    }

    /// Waits until the counters satisfy `holds`.
    async fn until(&self, what: &str, holds: impl Fn(&Counters) -> bool) {
        counters::until(&self.counters, TEST_TIMEOUT, what, holds).await;
    }
}

struct Client(TcpStream);

fn framed(messages: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        bytes.extend_from_slice(&u16::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(message);
    }
    bytes
}

impl Client {
    async fn send(&mut self, messages: &[&[u8]]) {
        self.0.write_all(&framed(messages)).await.unwrap();
    }

    async fn next(&mut self) -> std::io::Result<Vec<u8>> {
        let read = async {
            let length = self.0.read_u16().await?;
            let mut response = vec![0; length.into()];
            self.0.read_exact(&mut response).await?;
            Ok(response)
        };
        timeout(TEST_TIMEOUT, read).await.expect("a response or an end in time")
    }

    async fn ask(&mut self, query: &[u8]) -> std::io::Result<Vec<u8>> {
        self.send(&[query]).await;
        self.next().await
    }

    /// Sends a query that is in progress until [`Echo::release`].
    async fn with_query_in_progress(mut self, server: &Server) -> Self {
        let queries = server.counters.tcp.queries.get();
        self.send(&[b"hold"]).await;
        server.until("the query is read", |c| c.tcp.queries.get() > queries).await;
        self
    }

    /// Waits for the server to close the connection without a further response.
    async fn closed(&mut self) {
        let end = self.next().await.expect_err("the connection should be closed");
        assert!(
            matches!(end.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset),
            "{end}"
        );
    }
}

async fn ask_udp(socket: &UdpSocket, server: SocketAddr, query: &[u8]) -> Vec<u8> {
    socket.send_to(query, server).await.unwrap();
    let mut response = vec![0; 65_535];
    let (length, source) = timeout(TEST_TIMEOUT, socket.recv_from(&mut response))
        .await
        .expect("a response in time")
        .unwrap();
    assert_eq!(source, server, "the response must come from the queried address");
    response.truncate(length);
    response
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_and_tcp_work_over_ipv4_and_ipv6_loopback() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let server = start(&on(address));
        let unspecified = if server.address.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        let socket = UdpSocket::bind(unspecified).await.unwrap();
        assert_eq!(ask_udp(&socket, server.address, b"hello").await, b"udp hello");
        assert_eq!(server.connect().await.ask(b"hello").await.unwrap(), b"tcp hello");
        server
            .until("both responses are counted", |c| {
                c.udp_responses.get() == 1 && c.tcp.responses.get() == 1
            })
            .await;
    }
}

#[tokio::test]
async fn client_and_destination_are_passed_to_the_responder() {
    for address in ["127.0.0.1:0", "127.77.10.1:0", "[::1]:0"] {
        let server = start(&on(address));
        let socket = UdpSocket::bind((server.address.ip(), 0)).await.unwrap();
        let expected = format!("{} {}", socket.local_addr().unwrap(), server.address);
        assert_eq!(ask_udp(&socket, server.address, b"client").await, expected.as_bytes());
        let mut client = server.connect().await;
        let expected = format!("{} {}", client.0.local_addr().unwrap(), server.address);
        assert_eq!(client.ask(b"client").await.unwrap(), expected.as_bytes());
    }
}

#[tokio::test]
async fn responses_come_from_the_queried_address() {
    let settings = Settings { allow: vec!["0.0.0.0/0".parse().unwrap()], ..on("0.0.0.0:0") };
    let bound = bind(&settings).unwrap();
    let addresses = bound.addresses();
    let stop = CancellationToken::new();
    let task =
        tokio::spawn(bound.serve(Echo::default(), |_, error| panic!("{error}"), stop.clone()));
    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    for address in addresses {
        assert_eq!(ask_udp(&socket, address, b"hello").await, b"udp hello");
    }
    stop.cancel();
    timeout(TEST_TIMEOUT, task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn pipelined_queries_are_all_answered() {
    let server = start_with(long_timeouts());
    let mut client = server.connect().await;
    let queries: Vec<Vec<u8>> =
        (0..1000).map(|number| format!("query {number}").into_bytes()).collect();
    client.send(&queries.iter().map(Vec::as_slice).collect::<Vec<_>>()).await;
    // Responses available at once keep their order, although no document promises it.
    for query in &queries {
        assert_eq!(client.next().await.unwrap(), [b"tcp ", query.as_slice()].concat());
    }
}

#[tokio::test]
async fn a_message_may_arrive_byte_by_byte() {
    let server = start_with(long_timeouts());
    let mut client = server.connect().await;
    client.0.set_nodelay(true).unwrap();
    for byte in framed(&[b"hello"]) {
        client.0.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(client.next().await.unwrap(), b"tcp hello");
}

#[tokio::test]
async fn a_query_without_a_response_frees_its_permit() {
    let server = start_with(Limits { in_flight: 2, ..long_timeouts() });
    let mut client = server.connect().await;
    client.send(&[b"silent", b"silent", b"silent", b"hello"]).await;
    assert_eq!(client.next().await.unwrap(), b"tcp hello");
}

#[tokio::test]
async fn an_incomplete_message_closes_the_connection() {
    // Half a length, a length alone, and a partial message. Dripping in the rest buys no more time.
    for part in [&[0][..], &[0, 5], &[0, 5, b'h', b'e']] {
        let server = start_with(Limits { message_timeout: millis(150), ..long_timeouts() });
        let mut client = server.connect().await;
        assert_eq!(client.ask(b"before").await.unwrap(), b"tcp before");
        client.0.write_all(part).await.unwrap();
        client.closed().await;
        assert_eq!(server.counters.tcp.message_timeouts.get(), 1, "{part:?}");
    }
    let server = start_with(Limits { message_timeout: millis(150), ..long_timeouts() });
    let mut client = server.connect().await;
    client.0.write_all(&[1, 0]).await.unwrap();
    let mut dripped = 0;
    while client.0.write_all(b"x").await.is_ok() {
        dripped += 1;
        assert!(dripped < 256, "the server waited for the whole message");
        tokio::time::sleep(millis(20)).await;
    }
    assert_eq!(server.counters.tcp.message_timeouts.get(), 1);
}

#[tokio::test]
async fn a_slow_client_does_not_delay_others() {
    let server = start_with(long_timeouts());
    let mut slow = server.connect().await;
    slow.0.write_all(&[0]).await.unwrap();
    assert_eq!(server.connect().await.ask(b"hello").await.unwrap(), b"tcp hello");
    assert_eq!(server.counters.tcp.message_timeouts.get(), 0);
}

#[tokio::test]
async fn idle_connections_are_closed_and_busy_ones_kept() {
    let server = start_with(Limits { idle_timeout: Duration::from_secs(5), ..long_timeouts() });
    let mut idle = server.connect().await;
    let mut busy = server.connect().await;
    let start = Instant::now();
    while server.counters.tcp.idle_timeouts.get() == 0 && start.elapsed() < TEST_TIMEOUT {
        assert_eq!(busy.ask(b"hello").await.unwrap(), b"tcp hello");
        tokio::time::sleep(millis(100)).await;
    }
    idle.closed().await;
    assert_eq!(busy.ask(b"hello").await.unwrap(), b"tcp hello");
    assert_eq!(server.counters.tcp.idle_timeouts.get(), 1);
    assert_eq!(server.counters.tcp.open.get(), 1);
    busy.closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_never_read_are_disconnected_after_few_queries() {
    // Only the limit on queued bytes applies here.
    let server =
        start_with(Limits { write_timeout: millis(300), in_flight: 10_000, ..long_timeouts() });
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(server.address).await.unwrap();
    let queries = framed(&[&b"big"[..]; 1000]);
    // Writing fails once the server has closed the connection.
    let flood = async { while client.write_all(&queries).await.is_ok() {} };
    timeout(TEST_TIMEOUT, flood).await.expect("the server should drop the client");
    assert_eq!(server.counters.tcp.write_timeouts.get(), 1);
    // The kernel's buffers, the queue and responses in the making, not the thousand queries sent.
    assert!(server.counters.tcp.queries.get() < 60, "{}", server.counters.tcp.queries.get());
    server.until("the connection is gone", |c| c.tcp.open.get() == 0).await;
}

#[tokio::test]
async fn large_responses_reach_a_client_that_reads() {
    let server = start_with(Limits { queued_bytes: 1000, ..long_timeouts() });
    let mut client = server.connect().await;
    client.send(&[&b"big"[..]; 20]).await;
    for _ in 0..20 {
        assert_eq!(client.next().await.unwrap().len(), 60_000);
    }
}

#[tokio::test]
async fn connections_beyond_the_source_limit_are_closed_at_once() {
    let server = start_with(Limits { connections_per_loopback_source: 3, ..long_timeouts() });
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut client = server.connect().await;
        assert_eq!(client.ask(b"hello").await.unwrap(), b"tcp hello");
        held.push(client.with_query_in_progress(&server).await);
    }
    server.connect().await.closed().await;
    assert_eq!(server.counters.tcp.rejected.get(), 1);
    // Another source has its own limit.
    assert_eq!(server.connect_from("127.0.0.2").await.ask(b"hello").await.unwrap(), b"tcp hello");
    server.echo.release();
    assert_eq!(held[0].next().await.unwrap(), b"tcp hold, at last");
    // Idle now, so it gives its place to a new client.
    assert_eq!(server.connect().await.ask(b"hello").await.unwrap(), b"tcp hello");
}

#[tokio::test]
async fn connections_beyond_the_total_limit_are_closed_at_once() {
    let server = start_with(Limits { connections: 2, ..long_timeouts() });
    let mut one = server.connect_from("127.0.0.2").await;
    let mut two = server.connect_from("127.0.0.3").await;
    assert!(one.ask(b"hello").await.is_ok() && two.ask(b"hello").await.is_ok());
    let mut one = one.with_query_in_progress(&server).await;
    let mut two = two.with_query_in_progress(&server).await;
    server.connect_from("127.0.0.4").await.closed().await;
    assert!(one.ask(b"hello").await.is_ok() && two.ask(b"hello").await.is_ok());
}

#[tokio::test]
async fn an_empty_message_closes_the_connection() {
    let server = start_with(long_timeouts());
    let mut client = server.connect().await;
    client.send(&[b"hello", b"", b"never read"]).await;
    assert_eq!(client.next().await.unwrap(), b"tcp hello");
    client.closed().await;
    assert_eq!((server.counters.tcp.broken.get(), server.counters.tcp.queries.get()), (1, 1));
}

#[tokio::test]
async fn resets_and_partial_messages_end_only_their_connection() {
    let server = start_with(long_timeouts());
    let mut bystander = server.connect().await;
    assert!(bystander.ask(b"hello").await.is_ok());
    for part in [&[][..], &[0], &[0, 9, 1, 2, 3]] {
        let mut client = server.connect().await;
        assert!(client.ask(b"hello").await.is_ok());
        client.0.write_all(part).await.unwrap();
        // With linger 0, the kernel sends a reset instead of a FIN.
        client.0.set_zero_linger().unwrap();
    }
    let mut half = server.connect().await;
    half.0.write_all(&[0, 9, 1]).await.unwrap();
    half.0.shutdown().await.unwrap();
    half.closed().await;
    server
        .until("four broken connections are gone", |c| {
            c.tcp.broken.get() == 4 && c.tcp.open.get() == 1
        })
        .await;
    assert_eq!(bystander.ask(b"hello").await.unwrap(), b"tcp hello");
}

#[tokio::test]
async fn sources_without_access_are_refused() {
    let settings = Settings {
        allow: vec!["127.0.0.1/32".parse().unwrap()],
        allow_loopback: false,
        ..on("127.0.0.1:0")
    };
    let server = start(&settings);
    let denied = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    assert_eq!(ask_udp(&denied, server.address, b"hello").await, b"refused hello");
    let mut client = server.connect_from("127.0.0.2").await;
    client.send(&[b"hello", b"again"]).await;
    assert_eq!(client.next().await.unwrap(), b"refused hello");
    client.closed().await;
    assert_eq!((server.counters.udp_refused.get(), server.counters.tcp.refused.get()), (1, 1));
    assert_eq!((server.counters.udp_queries.get(), server.counters.tcp.queries.get()), (0, 0));

    let allowed = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    assert_eq!(ask_udp(&allowed, server.address, b"hello").await, b"udp hello");
    assert_eq!(server.connect().await.ask(b"hello").await.unwrap(), b"tcp hello");
}

#[tokio::test]
async fn silent_sources_without_access_time_out() {
    let settings = Settings {
        allow: vec!["127.0.0.1/32".parse().unwrap()],
        allow_loopback: false,
        limits: Limits { message_timeout: millis(100), ..long_timeouts() },
        ..on("127.0.0.1:0")
    };
    let server = start(&settings);
    server.connect_from("127.0.0.2").await.closed().await;
    assert_eq!(server.counters.tcp.message_timeouts.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_survives_a_flood_of_garbage() {
    let server = start_with(long_timeouts());
    let mut random = fastrand::Rng::with_seed(7);
    let flood = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut garbage = vec![0; 6000];
    for _ in 0..20_000 {
        random.fill(&mut garbage);
        let length = random.usize(0..garbage.len());
        // A full send buffer does not matter here.
        let _ = flood.try_send_to(&garbage[..length], server.address);
    }
    // These clients are gone when their responses arrive, so the kernel reports closed ports.
    for _ in 0..200 {
        UdpSocket::bind("127.0.0.1:0")
            .await
            .unwrap()
            .send_to(b"big", server.address)
            .await
            .unwrap();
    }
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut answered = false;
    // The query itself may be lost in a full buffer.
    let start = Instant::now();
    while start.elapsed() < TEST_TIMEOUT {
        client.send_to(b"hello", server.address).await.unwrap();
        let mut response = [0; 64];
        if let Ok(Ok((length, _))) = timeout(millis(100), client.recv_from(&mut response)).await {
            assert_eq!(&response[..length], b"udp hello");
            answered = true;
            break;
        }
    }
    assert!(answered, "{:?}", server.counters);
    assert!(!server.task.is_finished());
}

#[tokio::test]
async fn oversized_datagrams_are_truncated_and_answered() {
    let server = start_with(long_timeouts());
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    assert_eq!(ask_udp(&client, server.address, &[b'x'; 9000]).await.len(), 4 + 1344);
    assert_eq!(ask_udp(&client, server.address, b"").await, b"udp ");
}

#[tokio::test]
async fn a_panic_loses_one_datagram_or_one_connection() {
    let server = start_with(long_timeouts());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"panic", server.address).await.unwrap();
    assert_eq!(ask_udp(&socket, server.address, b"hello").await, b"udp hello");
    let mut client = server.connect().await;
    client.send(&[b"panic"]).await;
    client.closed().await;
    assert_eq!(server.connect().await.ask(b"hello").await.unwrap(), b"tcp hello");
    server.until("both are counted", |c| c.panics.get() == 2).await;
}

#[tokio::test]
async fn shutdown_closes_everything_and_frees_the_port() {
    // A loopback address that no other test uses, so that the port stays free.
    let server = start(&on("127.77.5.1:0"));
    let mut idle = server.connect().await;
    assert!(idle.ask(b"hello").await.is_ok());
    let mut partial = server.connect().await;
    partial.0.write_all(&[0]).await.unwrap();
    server.until("both are open", |c| c.tcp.open.get() == 2).await;
    server.stop.cancel();
    idle.closed().await;
    partial.closed().await;
    timeout(TEST_TIMEOUT, server.task).await.unwrap().unwrap();
    // No timeout ended the connections: all are longer than this test.
    assert_eq!(server.counters.tcp.open.get(), 0);
    let again = bind(&on(&server.address.to_string())).unwrap();
    assert_eq!(again.addresses(), [server.address]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drain_timeout_limits_the_wait_for_slow_clients() {
    let limits = Limits { drain_timeout: millis(200), ..long_timeouts() };
    let server = start_with(limits);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(server.address).await.unwrap();
    client.write_all(&framed(&[&b"big"[..]; 100])).await.unwrap();
    server.until("the responses are stuck", |c| c.tcp.queries.get() > 3).await;
    let start = Instant::now();
    server.stop.cancel();
    timeout(TEST_TIMEOUT, server.task).await.unwrap().unwrap();
    assert!(start.elapsed() >= millis(200), "{:?}", start.elapsed());
    assert_eq!(server.counters.tcp.open.get(), 0);
}

#[tokio::test]
async fn dropping_the_server_ends_its_loops() {
    let server = start_with(long_timeouts());
    let mut client = server.connect().await;
    assert!(client.ask(b"hello").await.is_ok());
    server.task.abort();
    client.closed().await;
    server.until("the connection is gone", |c| c.tcp.open.get() == 0).await;
}

#[tokio::test]
async fn deferred_responses_are_sent_over_udp_and_tcp() {
    let server = start_with(Limits::default());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    assert_eq!(ask_udp(&socket, server.address, b"later").await, b"udp later, at last");
    assert_eq!(server.connect().await.ask(b"later").await.unwrap(), b"tcp later, at last");
}

#[tokio::test]
async fn every_worker_sends_its_own_deferred_responses() {
    let server = start_with(Limits { udp_workers: 3, ..Limits::default() });
    let mut seen = std::collections::BTreeSet::new();
    let start = Instant::now();
    // The kernel picks a worker by the client's port.
    while seen.len() < 3 {
        assert!(start.elapsed() < TEST_TIMEOUT, "not every worker got a query: {seen:?}");
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        seen.insert(String::from_utf8(ask_udp(&socket, server.address, b"thread").await).unwrap());
        assert_eq!(ask_udp(&socket, server.address, b"hello").await, b"udp hello");
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["udp-0", "udp-1", "udp-2"]);
}

#[tokio::test]
async fn deferred_udp_responses_are_limited() {
    let server = start_with(Limits {
        udp_in_flight: 2,
        response_timeout: Duration::from_secs(1),
        ..Limits::default()
    });
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"never", server.address).await.unwrap();
    socket.send_to(b"never", server.address).await.unwrap();
    server.until("both are deferred", |c| c.udp_queries.get() == 2).await;
    assert_eq!(ask_udp(&socket, server.address, b"later").await, b"too many");
    assert_eq!(server.counters.udp_overloads.get(), 1);
    // A response that is available at once needs no permit.
    assert_eq!(ask_udp(&socket, server.address, b"hello").await, b"udp hello");
    server.until("both timed out", |c| c.udp_response_timeouts.get() == 2).await;
    // A panic frees its permit, too.
    for _ in 0..3 {
        let panics = server.counters.panics.get();
        socket.send_to(b"panic-later", server.address).await.unwrap();
        server.until("the panic is counted", |c| c.panics.get() == panics + 1).await;
    }
    let start = Instant::now();
    while ask_udp(&socket, server.address, b"later").await != b"udp later, at last" {
        assert!(start.elapsed() < TEST_TIMEOUT, "the permits are not free again");
    }
}

#[tokio::test]
async fn udp_responses_in_flight_are_sent_on_shutdown() {
    let server = start_with(Limits { drain_timeout: TEST_TIMEOUT, ..Limits::default() });
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"slow", server.address).await.unwrap();
    server.until("the response is deferred", |c| c.udp_queries.get() == 1).await;
    server.stop.cancel();
    let mut response = [0; 64];
    let length = timeout(TEST_TIMEOUT, socket.recv(&mut response))
        .await
        .expect("a response in time")
        .unwrap();
    assert_eq!(&response[..length], b"udp slow, at last");
    timeout(TEST_TIMEOUT, server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_drain_timeout_limits_the_wait_for_udp_responses() {
    let server = start_with(Limits {
        drain_timeout: millis(200),
        response_timeout: Duration::from_secs(600),
        ..Limits::default()
    });
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"never", server.address).await.unwrap();
    server.until("the response is deferred", |c| c.udp_queries.get() == 1).await;
    server.stop.cancel();
    timeout(TEST_TIMEOUT, server.task).await.unwrap().unwrap();
    assert_eq!(server.counters.panics.get(), 0);
}

#[tokio::test]
async fn a_udp_flood_does_not_starve_deferred_responses() {
    let server = start_with(Limits { udp_workers: 1, ..Limits::default() });
    let flood = UdpSocket::bind("127.0.0.1:0").await.unwrap().into_std().unwrap();
    let (address, done) = (server.address, Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let ended = Arc::clone(&done);
    let flooding = std::thread::spawn(move || {
        while !ended.load(std::sync::atomic::Ordering::Relaxed) {
            let _ = flood.send_to(b"hello", address);
        }
    });
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let start = Instant::now();
    let mut responses = 0;
    // The query itself may be lost in a full buffer.
    while responses < 5 {
        assert!(start.elapsed() < TEST_TIMEOUT, "{:?}", server.counters);
        client.send_to(b"later", address).await.unwrap();
        let mut response = [0; 64];
        if let Ok(Ok(length)) = timeout(millis(200), client.recv(&mut response)).await {
            assert_eq!(&response[..length], b"udp later, at last");
            responses += 1;
        }
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    flooding.join().unwrap();
}
