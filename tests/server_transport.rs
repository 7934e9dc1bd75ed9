//! The server room on real sockets, with a trivial responder: clients that behave, that dawdle, that never read, that reset.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, its helpers too")]

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

use support::echo::Echo;

/// Nothing here takes that long unless it is broken.
const DEADLINE: Duration = Duration::from_secs(60);

struct Server {
    address: SocketAddr,
    counters: Arc<Counters>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn start(settings: &Settings) -> Server {
    let bound = bind(settings).unwrap();
    let (address, counters, stop) = (bound.addresses()[0], bound.counters(), CancellationToken::new());
    let serving = bound.serve(Echo::default(), |_, error| panic!("{error}"), stop.clone());
    let task = tokio::spawn(async move { serving.await.unwrap() });
    Server { address, counters, stop, task }
}

/// Limits of time that nothing here reaches, not even on a machine that stops for a while.
fn patient() -> Limits {
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

/// A server on a free loopback port.
fn start_with(limits: Limits) -> Server {
    start(&Settings { limits, ..on("127.0.0.1:0") })
}

fn on(address: &str) -> Settings {
    Settings { listen: vec![address.parse().unwrap()], limits: patient(), ..Settings::default() }
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

    /// Waits until the counters say so.
    async fn until(&self, what: &str, holds: impl Fn(&Counters) -> bool) {
        let start = Instant::now();
        while !holds(&self.counters) {
            assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}; {:?}", self.counters);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

struct Client(TcpStream);

fn framed(messages: &[&[u8]]) -> Vec<u8> {
    let mut octets = Vec::new();
    for message in messages {
        octets.extend_from_slice(&u16::try_from(message.len()).unwrap().to_be_bytes());
        octets.extend_from_slice(message);
    }
    octets
}

impl Client {
    async fn send(&mut self, messages: &[&[u8]]) {
        self.0.write_all(&framed(messages)).await.unwrap();
    }

    async fn next(&mut self) -> std::io::Result<Vec<u8>> {
        let read = async {
            let length = self.0.read_u16().await?;
            let mut answer = vec![0; length.into()];
            self.0.read_exact(&mut answer).await?;
            Ok(answer)
        };
        timeout(DEADLINE, read).await.expect("an answer or an end in time")
    }

    async fn ask(&mut self, question: &[u8]) -> std::io::Result<Vec<u8>> {
        self.send(&[question]).await;
        self.next().await
    }

    /// Waits for the server to close, which it must without a further answer.
    async fn closed(&mut self) {
        let end = self.next().await.expect_err("the connection should be closed");
        assert!(matches!(end.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{end}");
    }
}

async fn ask_udp(socket: &UdpSocket, server: SocketAddr, question: &[u8]) -> Vec<u8> {
    socket.send_to(question, server).await.unwrap();
    let mut answer = vec![0; 65_535];
    let (length, source) = timeout(DEADLINE, socket.recv_from(&mut answer)).await.expect("an answer in time").unwrap();
    assert_eq!(source, server, "the answer must come from the address asked");
    answer.truncate(length);
    answer
}

fn brief(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_and_tcp_answer_on_both_loopback_families() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let server = start(&on(address));
        let unspecified = if server.address.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        let socket = UdpSocket::bind(unspecified).await.unwrap();
        assert_eq!(ask_udp(&socket, server.address, b"hello").await, b"udp hello");
        assert_eq!(server.connect().await.ask(b"hello").await.unwrap(), b"tcp hello");
        server.until("both answers are counted", |c| c.udp_responses.get() == 1 && c.tcp.responses.get() == 1).await;
    }
}

#[tokio::test]
async fn a_query_knows_its_client() {
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
async fn every_address_of_the_machine_answers_from_itself() {
    let settings = Settings { allow: vec!["0.0.0.0/0".parse().unwrap()], ..on("0.0.0.0:0") };
    let bound = bind(&settings).unwrap();
    let addresses = bound.addresses();
    let stop = CancellationToken::new();
    let task = tokio::spawn(bound.serve(Echo::default(), |_, error| panic!("{error}"), stop.clone()));
    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    for address in addresses {
        assert_eq!(ask_udp(&socket, address, b"hello").await, b"udp hello");
    }
    stop.cancel();
    timeout(DEADLINE, task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn pipelined_messages_are_all_answered() {
    let server = start_with(patient());
    let mut client = server.connect().await;
    let questions: Vec<Vec<u8>> = (0..1000).map(|number| format!("question {number}").into_bytes()).collect();
    client.send(&questions.iter().map(Vec::as_slice).collect::<Vec<_>>()).await;
    // Answers made at once keep their order, though nothing promises it.
    for question in &questions {
        assert_eq!(client.next().await.unwrap(), [b"tcp ", question.as_slice()].concat());
    }
}

#[tokio::test]
async fn a_message_may_come_octet_by_octet() {
    let server = start_with(patient());
    let mut client = server.connect().await;
    client.0.set_nodelay(true).unwrap();
    for octet in framed(&[b"hello"]) {
        client.0.write_all(&[octet]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(client.next().await.unwrap(), b"tcp hello");
}

#[tokio::test]
async fn a_message_without_answer_frees_its_place() {
    let server = start_with(Limits { in_flight: 2, ..patient() });
    let mut client = server.connect().await;
    client.send(&[b"silent", b"silent", b"silent", b"hello"]).await;
    assert_eq!(client.next().await.unwrap(), b"tcp hello");
}

#[tokio::test]
async fn a_message_that_does_not_arrive_in_full_ends_the_connection() {
    // Half a length, a length alone, a part of the message: and the rest dripping in does not buy more time.
    for part in [&[0][..], &[0, 5], &[0, 5, b'h', b'e']] {
        let server = start_with(Limits { message_timeout: brief(150), ..patient() });
        let mut client = server.connect().await;
        assert_eq!(client.ask(b"before").await.unwrap(), b"tcp before");
        client.0.write_all(part).await.unwrap();
        client.closed().await;
        assert_eq!(server.counters.tcp.message_timeouts.get(), 1, "{part:?}");
    }
    let server = start_with(Limits { message_timeout: brief(150), ..patient() });
    let mut client = server.connect().await;
    client.0.write_all(&[1, 0]).await.unwrap();
    let mut dripped = 0;
    while client.0.write_all(b"x").await.is_ok() {
        dripped += 1;
        assert!(dripped < 256, "the whole message was waited for");
        tokio::time::sleep(brief(20)).await;
    }
    assert_eq!(server.counters.tcp.message_timeouts.get(), 1);
}

#[tokio::test]
async fn a_dawdling_client_holds_up_nobody() {
    let server = start_with(patient());
    let mut dawdler = server.connect().await;
    dawdler.0.write_all(&[0]).await.unwrap();
    assert_eq!(server.connect().await.ask(b"hello").await.unwrap(), b"tcp hello");
    assert_eq!(server.counters.tcp.message_timeouts.get(), 0);
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let server = start_with(Limits { idle_timeout: Duration::from_secs(5), ..patient() });
    let mut idle = server.connect().await;
    let mut busy = server.connect().await;
    let begun = Instant::now();
    while server.counters.tcp.idle_timeouts.get() == 0 && begun.elapsed() < DEADLINE {
        assert_eq!(busy.ask(b"hello").await.unwrap(), b"tcp hello");
        tokio::time::sleep(brief(100)).await;
    }
    idle.closed().await;
    assert_eq!(busy.ask(b"hello").await.unwrap(), b"tcp hello");
    assert_eq!(server.counters.tcp.idle_timeouts.get(), 1);
    assert_eq!(server.counters.tcp.open.get(), 1);
    busy.closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_is_dropped_and_costs_little() {
    // Only the octets that may be queued bound this one.
    let server = start_with(Limits { write_timeout: brief(300), in_flight: 10_000, ..patient() });
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(server.address).await.unwrap();
    let questions = framed(&[&b"big"[..]; 1000]);
    // Writing ends with an error once the server has gone.
    let flood = async { while client.write_all(&questions).await.is_ok() {} };
    timeout(DEADLINE, flood).await.expect("the server should drop the client");
    assert_eq!(server.counters.tcp.write_timeouts.get(), 1);
    // What the kernel holds for the connection, what may be queued, and what is being made: not the thousands asked for.
    assert!(server.counters.tcp.queries.get() < 60, "{}", server.counters.tcp.queries.get());
    server.until("the connection is gone", |c| c.tcp.open.get() == 0).await;
}

#[tokio::test]
async fn big_answers_reach_a_client_that_reads() {
    let server = start_with(Limits { queued_bytes: 1000, ..patient() });
    let mut client = server.connect().await;
    client.send(&[&b"big"[..]; 20]).await;
    for _ in 0..20 {
        assert_eq!(client.next().await.unwrap().len(), 60_000);
    }
}

#[tokio::test]
async fn connections_beyond_a_sources_share_are_closed_at_once() {
    let server = start_with(Limits { connections_per_loopback_source: 3, ..patient() });
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut client = server.connect().await;
        assert_eq!(client.ask(b"hello").await.unwrap(), b"tcp hello");
        held.push(client);
    }
    server.connect().await.closed().await;
    assert_eq!(server.counters.tcp.rejected.get(), 1);
    // Another source has a share of its own.
    assert_eq!(server.connect_from("127.0.0.2").await.ask(b"hello").await.unwrap(), b"tcp hello");
    held.pop();
    server.until("the places are free again", |c| c.tcp.open.get() == 2).await;
    assert_eq!(server.connect().await.ask(b"hello").await.unwrap(), b"tcp hello");
}

#[tokio::test]
async fn connections_beyond_the_total_are_closed_at_once() {
    let server = start_with(Limits { connections: 2, ..patient() });
    let mut one = server.connect_from("127.0.0.2").await;
    let mut two = server.connect_from("127.0.0.3").await;
    assert!(one.ask(b"hello").await.is_ok() && two.ask(b"hello").await.is_ok());
    server.connect_from("127.0.0.4").await.closed().await;
    assert!(one.ask(b"hello").await.is_ok() && two.ask(b"hello").await.is_ok());
}

#[tokio::test]
async fn an_empty_message_ends_the_connection() {
    let server = start_with(patient());
    let mut client = server.connect().await;
    client.send(&[b"hello", b"", b"never read"]).await;
    assert_eq!(client.next().await.unwrap(), b"tcp hello");
    client.closed().await;
    assert_eq!((server.counters.tcp.broken.get(), server.counters.tcp.queries.get()), (1, 1));
}

#[tokio::test]
async fn resets_and_half_messages_end_their_connection_only() {
    let server = start_with(patient());
    let mut bystander = server.connect().await;
    assert!(bystander.ask(b"hello").await.is_ok());
    for part in [&[][..], &[0], &[0, 9, 1, 2, 3]] {
        let mut client = server.connect().await;
        assert!(client.ask(b"hello").await.is_ok());
        client.0.write_all(part).await.unwrap();
        // Closed like this, the kernel sends a reset in place of an orderly end.
        client.0.set_zero_linger().unwrap();
    }
    let mut half = server.connect().await;
    half.0.write_all(&[0, 9, 1]).await.unwrap();
    half.0.shutdown().await.unwrap();
    half.closed().await;
    server.until("four broken connections are gone", |c| c.tcp.broken.get() == 4 && c.tcp.open.get() == 1).await;
    assert_eq!(bystander.ask(b"hello").await.unwrap(), b"tcp hello");
}

#[tokio::test]
async fn sources_without_access_are_refused() {
    let settings = Settings { allow: vec!["127.0.0.1/32".parse().unwrap()], allow_loopback: false, ..on("127.0.0.1:0") };
    let server = start(&settings);
    let stranger = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    assert_eq!(ask_udp(&stranger, server.address, b"hello").await, b"refused hello");
    let mut client = server.connect_from("127.0.0.2").await;
    client.send(&[b"hello", b"again"]).await;
    assert_eq!(client.next().await.unwrap(), b"refused hello");
    client.closed().await;
    assert_eq!((server.counters.udp_refused.get(), server.counters.tcp.refused.get()), (1, 1));
    assert_eq!((server.counters.udp_queries.get(), server.counters.tcp.queries.get()), (0, 0));

    let friend = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    assert_eq!(ask_udp(&friend, server.address, b"hello").await, b"udp hello");
    assert_eq!(server.connect().await.ask(b"hello").await.unwrap(), b"tcp hello");
}

#[tokio::test]
async fn a_stranger_that_says_nothing_is_not_waited_for() {
    let settings = Settings {
        allow: vec!["127.0.0.1/32".parse().unwrap()],
        allow_loopback: false,
        limits: Limits { message_timeout: brief(100), ..patient() },
        ..on("127.0.0.1:0")
    };
    let server = start(&settings);
    server.connect_from("127.0.0.2").await.closed().await;
    assert_eq!(server.counters.tcp.message_timeouts.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_garbage_leaves_udp_answering() {
    let server = start_with(patient());
    let mut random = fastrand::Rng::with_seed(7);
    let stormy = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut garbage = vec![0; 6000];
    for _ in 0..20_000 {
        random.fill(&mut garbage);
        let length = random.usize(0..garbage.len());
        // A full buffer is the storm's own trouble.
        let _ = stormy.try_send_to(&garbage[..length], server.address);
    }
    // These clients have gone when their answers come: the kernel reports the closed ports to us.
    for _ in 0..200 {
        UdpSocket::bind("127.0.0.1:0").await.unwrap().send_to(b"big", server.address).await.unwrap();
    }
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut answered = false;
    // The question itself may be lost in a full buffer.
    let begun = Instant::now();
    while begun.elapsed() < DEADLINE {
        client.send_to(b"hello", server.address).await.unwrap();
        let mut answer = [0; 64];
        if let Ok(Ok((length, _))) = timeout(brief(100), client.recv_from(&mut answer)).await {
            assert_eq!(&answer[..length], b"udp hello");
            answered = true;
            break;
        }
    }
    assert!(answered, "{:?}", server.counters);
    assert!(!server.task.is_finished());
}

#[tokio::test]
async fn a_datagram_beyond_the_buffer_is_cut_and_answered() {
    let server = start_with(patient());
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    assert_eq!(ask_udp(&client, server.address, &[b'x'; 9000]).await.len(), 4 + 1344);
    assert_eq!(ask_udp(&client, server.address, b"").await, b"udp ");
}

#[tokio::test]
async fn panics_cost_one_datagram_or_one_connection() {
    let server = start_with(patient());
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
async fn a_stop_closes_everything_and_frees_the_port() {
    // An address of its own: no other test takes the port before it is bound again.
    let server = start(&on("127.77.5.1:0"));
    let mut idle = server.connect().await;
    assert!(idle.ask(b"hello").await.is_ok());
    let mut partial = server.connect().await;
    partial.0.write_all(&[0]).await.unwrap();
    server.until("both are open", |c| c.tcp.open.get() == 2).await;
    server.stop.cancel();
    idle.closed().await;
    partial.closed().await;
    timeout(DEADLINE, server.task).await.unwrap().unwrap();
    // Not the limits of time ended them: they are longer.
    assert_eq!(server.counters.tcp.open.get(), 0);
    let again = bind(&on(&server.address.to_string())).unwrap();
    assert_eq!(again.addresses(), [server.address]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_only_so_long_for_a_client_that_does_not_read() {
    let limits = Limits { drain_timeout: brief(200), ..patient() };
    let server = start_with(limits);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(server.address).await.unwrap();
    client.write_all(&framed(&[&b"big"[..]; 100])).await.unwrap();
    server.until("the answers are stuck", |c| c.tcp.queries.get() > 3).await;
    let begun = Instant::now();
    server.stop.cancel();
    timeout(DEADLINE, server.task).await.unwrap().unwrap();
    assert!(begun.elapsed() >= brief(200), "{:?}", begun.elapsed());
    assert_eq!(server.counters.tcp.open.get(), 0);
}

#[tokio::test]
async fn dropping_the_server_ends_its_loops() {
    let server = start_with(patient());
    let mut client = server.connect().await;
    assert!(client.ask(b"hello").await.is_ok());
    server.task.abort();
    client.closed().await;
    server.until("the connection is gone", |c| c.tcp.open.get() == 0).await;
}

#[tokio::test]
async fn what_has_to_be_waited_for_is_answered_later() {
    let server = start_with(Limits::default());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    assert_eq!(ask_udp(&socket, server.address, b"later").await, b"udp later, at last");
    assert_eq!(server.connect().await.ask(b"later").await.unwrap(), b"tcp later, at last");
}

#[tokio::test]
async fn every_thread_answers_and_waits_by_itself() {
    let server = start_with(Limits { udp_workers: 3, ..Limits::default() });
    let mut seen = std::collections::BTreeSet::new();
    let begun = Instant::now();
    // The kernel picks a thread by the client's port.
    while seen.len() < 3 {
        assert!(begun.elapsed() < DEADLINE, "not every thread is asked: {seen:?}");
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        seen.insert(String::from_utf8(ask_udp(&socket, server.address, b"thread").await).unwrap());
        assert_eq!(ask_udp(&socket, server.address, b"hello").await, b"udp hello");
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["udp-0", "udp-1", "udp-2"]);
}

#[tokio::test]
async fn only_so_many_answers_over_udp_are_waited_for() {
    let server = start_with(Limits { udp_in_flight: 2, response_timeout: Duration::from_secs(1), ..Limits::default() });
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"never", server.address).await.unwrap();
    socket.send_to(b"never", server.address).await.unwrap();
    server.until("both are waited for", |c| c.udp_queries.get() == 2).await;
    assert_eq!(ask_udp(&socket, server.address, b"later").await, b"too many");
    assert_eq!(server.counters.udp_overloads.get(), 1);
    // What is ready needs no place.
    assert_eq!(ask_udp(&socket, server.address, b"hello").await, b"udp hello");
    server.until("both were given up", |c| c.udp_response_timeouts.get() == 2).await;
    // One panics, and its place is free all the same.
    for _ in 0..3 {
        let panics = server.counters.panics.get();
        socket.send_to(b"panic-later", server.address).await.unwrap();
        server.until("the panic is counted", |c| c.panics.get() == panics + 1).await;
    }
    let begun = Instant::now();
    while ask_udp(&socket, server.address, b"later").await != b"udp later, at last" {
        assert!(begun.elapsed() < DEADLINE, "the places are not free again");
    }
}

#[tokio::test]
async fn answers_over_udp_in_flight_go_out_when_the_server_stops() {
    let server = start_with(Limits { drain_timeout: DEADLINE, ..Limits::default() });
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"slow", server.address).await.unwrap();
    server.until("it is waited for", |c| c.udp_queries.get() == 1).await;
    server.stop.cancel();
    let mut answer = [0; 64];
    let length = timeout(DEADLINE, socket.recv(&mut answer)).await.expect("an answer in time").unwrap();
    assert_eq!(&answer[..length], b"udp slow, at last");
    timeout(DEADLINE, server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stop_waits_only_so_long_for_an_answer_over_udp() {
    let server = start_with(Limits { drain_timeout: brief(200), response_timeout: Duration::from_secs(600), ..Limits::default() });
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"never", server.address).await.unwrap();
    server.until("it is waited for", |c| c.udp_queries.get() == 1).await;
    server.stop.cancel();
    timeout(DEADLINE, server.task).await.unwrap().unwrap();
    assert_eq!(server.counters.panics.get(), 0);
}

#[tokio::test]
async fn a_flood_over_udp_leaves_later_answers_their_turn() {
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
    let begun = Instant::now();
    let mut answers = 0;
    // The question itself may be lost in a full buffer.
    while answers < 5 {
        assert!(begun.elapsed() < DEADLINE, "{:?}", server.counters);
        client.send_to(b"later", address).await.unwrap();
        let mut answer = [0; 64];
        if let Ok(Ok(length)) = timeout(brief(200), client.recv(&mut answer)).await {
            assert_eq!(&answer[..length], b"udp later, at last");
            answers += 1;
        }
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    flooding.join().unwrap();
}
