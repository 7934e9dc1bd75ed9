//! DNS over TLS and DNS over QUIC, with well-behaved and misbehaving clients.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod support;

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, Endpoint, TransportConfig, VarInt};
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use svcdns::server::{CertificateFiles, Counters, EncryptedSettings, Limits, Settings, bind};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;

use support::counters;
use support::echo::Echo;
use support::files::Files;
use support::svcdns::Svcdns;
use support::{SOON, eventually};

/// Time limit for everything that must happen; only a failing test reaches it.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A certificate for `localhost`, with its files in a temporary directory.
struct Pair {
    folder: TempDir,
    made: CertifiedKey<KeyPair>,
}

impl Pair {
    fn new() -> Self {
        let pair = Self { folder: tempfile::tempdir().unwrap(), made: generate() };
        write(pair.folder.path(), &pair.made);
        pair
    }

    fn files(&self) -> CertificateFiles {
        CertificateFiles {
            certificate: self.folder.path().join("cert.pem"),
            key: self.folder.path().join("key.pem"),
        }
    }
}

fn generate() -> CertifiedKey<KeyPair> {
    generate_simple_self_signed(["localhost".to_owned()]).unwrap()
}

fn write(folder: &Path, made: &CertifiedKey<KeyPair>) {
    fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
}

struct Server {
    tls: SocketAddr,
    quic: SocketAddr,
    counters: Arc<Counters>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    pair: Pair,
}

fn settings(pair: &Pair, limits: Limits) -> Settings {
    let any = || vec!["127.0.0.1:0".parse().unwrap()];
    Settings {
        listen: any(),
        encrypted: EncryptedSettings { tls: any(), quic: any(), certificate: Some(pair.files()) },
        limits,
        ..Settings::default()
    }
}

fn start_with(limits: Limits) -> Server {
    let pair = Pair::new();
    let settings = settings(&pair, limits);
    start(&settings, pair)
}

fn start(settings: &Settings, pair: Pair) -> Server {
    let bound = bind(settings).unwrap();
    let (tls, quic, counters) =
        (bound.tls_addresses()[0], bound.quic_addresses()[0], bound.counters());
    let stop = CancellationToken::new();
    let serving = bound.serve(Echo::default(), |_, error| panic!("{error}"), stop.clone());
    let task = tokio::spawn(async move { serving.await.unwrap() });
    Server { tls, quic, counters, stop, task, pair }
}

/// Returns a client configuration with this trust anchor and ALPN protocol.
fn client_config(trusted: &CertificateDer<'static>, protocol: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols =
        if protocol.is_empty() { vec![] } else { vec![protocol.as_bytes().to_vec()] };
    config
}

fn framed(id: [u8; 2], word: &[u8]) -> Vec<u8> {
    let length = u16::try_from(word.len() + 2).unwrap().to_be_bytes();
    [length.as_slice(), &id, word].concat()
}

impl Server {
    fn certificate(&self) -> &CertificateDer<'static> {
        self.pair.made.cert.der()
    }

    async fn tls_with(
        &self,
        stream: TcpStream,
        trusted: &CertificateDer<'static>,
        protocol: &str,
    ) -> std::io::Result<TlsClient> {
        let connector = TlsConnector::from(Arc::new(client_config(trusted, protocol)));
        let name = ServerName::try_from("localhost").unwrap();
        timeout(TEST_TIMEOUT, connector.connect(name, stream))
            .await
            .expect("the handshake to end in time")
            .map(TlsClient)
    }

    async fn tls(&self) -> TlsClient {
        let stream = TcpStream::connect(self.tls).await.unwrap();
        self.tls_with(stream, self.certificate(), "dot").await.unwrap()
    }

    async fn quic(&self) -> Result<quinn::Connection, ConnectionError> {
        self.quic_with("127.0.0.1", self.certificate(), "doq").await
    }

    async fn quic_with(
        &self,
        from: &str,
        trusted: &CertificateDer<'static>,
        protocol: &str,
    ) -> Result<quinn::Connection, ConnectionError> {
        self.quic_through(self.quic, from, trusted, protocol).await
    }

    /// Connects to the server, or to what is between.
    async fn quic_through(
        &self,
        to: SocketAddr,
        from: &str,
        trusted: &CertificateDer<'static>,
        protocol: &str,
    ) -> Result<quinn::Connection, ConnectionError> {
        let endpoint = Endpoint::client(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        let crypto = QuicClientConfig::try_from(client_config(trusted, protocol)).unwrap();
        let mut transport = TransportConfig::default();
        // Only the server gives up.
        transport.max_idle_timeout(None);
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        let connecting = endpoint.connect_with(config, to, "localhost").unwrap();
        timeout(TEST_TIMEOUT, connecting).await.expect("the handshake to end in time")
    }

    async fn until(&self, what: &str, holds: impl Fn(&Counters) -> bool) {
        counters::until(&self.counters, TEST_TIMEOUT, what, holds).await;
    }
}

struct TlsClient(TlsStream<TcpStream>);

impl TlsClient {
    async fn send(&mut self, words: &[&[u8]]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| framed([1, 2], word)).collect();
        self.0.write_all(&bytes).await.unwrap();
        self.0.flush().await.unwrap();
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

    async fn ask(&mut self, word: &[u8]) -> Vec<u8> {
        self.send(&[word]).await;
        self.next().await.unwrap()
    }
}

/// Sends `bytes` on a new stream and returns the data received.
async fn exchange(
    connection: &quinn::Connection,
    bytes: &[u8],
) -> Result<Vec<u8>, quinn::ReadToEndError> {
    let (mut send, mut receive) =
        connection.open_bi().await.map_err(|error| quinn::ReadToEndError::Read(error.into()))?;
    // Writing fails if the server has already closed; reading then returns the reason.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    timeout(TEST_TIMEOUT, receive.read_to_end(70_000)).await.expect("a response or an end in time")
}

async fn ask(connection: &quinn::Connection, word: &[u8]) -> Vec<u8> {
    let response = exchange(connection, &framed([0, 0], word)).await.unwrap();
    let (length, response) = response.split_first_chunk::<2>().unwrap();
    assert_eq!(usize::from(u16::from_be_bytes(*length)), response.len());
    response.to_vec()
}

/// Returns the error code with which the server closed the connection.
async fn closed(connection: &quinn::Connection) -> VarInt {
    match timeout(TEST_TIMEOUT, connection.closed()).await.expect("an end in time") {
        ConnectionError::ApplicationClosed(close) => close.error_code,
        other => panic!("the server should close the connection, not {other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wildcard_listener_passes_client_and_destination_to_the_responder() {
    let pair = Pair::new();
    let any = || vec!["0.0.0.0:0".parse().unwrap()];
    let settings = settings(&pair, Limits::default());
    let encrypted = EncryptedSettings { tls: any(), quic: any(), ..settings.encrypted };
    let mut server = start(
        &Settings { allow: vec!["127.0.0.0/8".parse().unwrap()], encrypted, ..settings },
        pair,
    );
    // Differs from the address of the listener and from the default loopback address.
    server.tls.set_ip([127, 0, 0, 7].into());
    server.quic.set_ip([127, 0, 0, 7].into());
    let mut client = server.tls().await;
    let source = client.0.get_ref().0.local_addr().unwrap();
    assert_eq!(client.ask(b"client").await, format!("{source} {}", server.tls).into_bytes());
    let connection = server.quic_with("127.0.0.2", server.certificate(), "doq").await.unwrap();
    let told = String::from_utf8(ask(&connection, b"client").await).unwrap();
    assert!(
        told.starts_with("127.0.0.2:") && told.ends_with(&format!(" {}", server.quic)),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_tls_queries_are_answered_as_responses_become_ready() {
    let server = start_with(Limits::default());
    let mut client = server.tls().await;
    assert_eq!(client.0.get_ref().1.alpn_protocol(), Some(&b"dot"[..]));
    client.send(&[b"slow", b"one", b"silent", b"two", b"big"]).await;
    assert_eq!(client.next().await.unwrap(), b"tls one");
    assert_eq!(client.next().await.unwrap(), b"tls two");
    assert_eq!(client.next().await.unwrap().len(), 60_000);
    assert_eq!(client.next().await.unwrap(), b"tls slow, at last");
    server
        .until("all are counted", |c| c.tls.queries.get() == 5 && c.tls.responses.get() == 4)
        .await;
    assert_eq!(server.counters.tcp.connections.get(), 0);
    // ALPN is optional for clients.
    let stream = TcpStream::connect(server.tls).await.unwrap();
    assert_eq!(
        server.tls_with(stream, server.certificate(), "").await.unwrap().ask(b"hello").await,
        b"tls hello"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_tls_handshakes_do_not_affect_other_connections() {
    let server =
        start_with(Limits { handshake_timeout: Duration::from_millis(300), ..Limits::default() });
    let mut bystander = server.tls().await;
    // Another protocol, plain DNS, nothing at all, a partial handshake, and a reset.
    let stream = TcpStream::connect(server.tls).await.unwrap();
    assert!(server.tls_with(stream, server.certificate(), "h2").await.is_err());
    let mut clients = Vec::new();
    for bytes in [&b"\0\x07\x01\x02plain"[..], b"", b"\x16\x03\x01\x02\0\x01"] {
        let mut client = TcpStream::connect(server.tls).await.unwrap();
        client.write_all(bytes).await.unwrap();
        clients.push(client);
    }
    let reset = TcpStream::connect(server.tls).await.unwrap();
    reset.set_zero_linger().unwrap();
    drop(reset);
    for mut client in clients {
        let mut rest = Vec::new();
        let end = timeout(TEST_TIMEOUT, client.read_to_end(&mut rest))
            .await
            .expect("the server should close");
        assert!(end.is_ok() || end.unwrap_err().kind() == ErrorKind::ConnectionReset);
    }
    server
        .until("all of them are closed", |c| {
            c.tls.failed_handshakes.get() == 5 && c.tls.open.get() == 1
        })
        .await;
    assert_eq!(bystander.ask(b"hello").await, b"tls hello");
    server.until("the event is counted", |c| c.tls.queries.get() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_tls_connections_end_with_close_notify() {
    let server = start_with(Limits { idle_timeout: Duration::from_secs(1), ..Limits::default() });
    let mut client = server.tls().await;
    assert_eq!(client.ask(b"hello").await, b"tls hello");
    let end =
        timeout(TEST_TIMEOUT, client.0.read(&mut [0])).await.expect("the server should close");
    assert_eq!(end.expect("close_notify, not a truncation"), 0);
    server.until("the event is counted", |c| c.tls.idle_timeouts.get() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_connections_use_a_replaced_certificate() {
    let server = start_with(Limits { idle_timeout: Duration::from_secs(300), ..Limits::default() });
    let second = generate();
    let (mut tls, quic) = (server.tls().await, server.quic().await.unwrap());
    let trusting = |protocol| (second.cert.der().clone(), protocol);
    let (trusted, protocol) = trusting("dot");
    let stream = TcpStream::connect(server.tls).await.unwrap();
    assert!(
        server.tls_with(stream, &trusted, protocol).await.is_err(),
        "the new certificate is not in use yet"
    );
    // Half of the new pair changes nothing; then the complete pair.
    fs::write(server.pair.files().certificate, second.cert.pem()).unwrap();
    assert_eq!(server.tls().await.ask(b"hello").await, b"tls hello");
    write(server.pair.folder.path(), &second);
    let start = Instant::now();
    loop {
        let stream = TcpStream::connect(server.tls).await.unwrap();
        if let Ok(mut client) = server.tls_with(stream, &trusted, protocol).await {
            assert_eq!(client.ask(b"hello").await, b"tls hello");
            break;
        }
        assert!(start.elapsed() < TEST_TIMEOUT, "the new certificate is not in use");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (trusted, protocol) = trusting("doq");
    assert_eq!(
        ask(&server.quic_with("127.0.0.1", &trusted, protocol).await.unwrap(), b"hello").await,
        b"quic hello"
    );
    // Open connections are not affected.
    assert_eq!(tls.ask(b"still").await, b"tls still");
    assert_eq!(ask(&quic, b"still").await, b"quic still");
}

#[test]
fn unusable_certificates_are_reported_at_startup() {
    let pair = Pair::new();
    let settings = settings(&pair, Limits::default());
    let fails = |words: &str| {
        // With its cause, as the commands print it.
        let message = format!("{:#}", anyhow::Error::new(bind(&settings).unwrap_err()));
        assert!(
            message.contains("certificate") && message.matches(words).count() == 1,
            "{message}"
        );
    };
    fs::write(pair.files().key, generate().signing_key.serialize_pem()).unwrap();
    fails("key.pem does not match the certificate");
    fs::write(pair.files().key, vec![b'#'; 1_048_577]).unwrap();
    fails("key.pem: it has more than 1048576 bytes (a fixed limit)");
    fs::remove_file(pair.files().key).unwrap();
    fails("key.pem: No such file");
    let without = Settings {
        encrypted: EncryptedSettings { certificate: None, ..settings.encrypted.clone() },
        ..settings.clone()
    };
    assert!(bind(&without).unwrap_err().to_string().contains("--tls-cert-file"));
    let exposed =
        EncryptedSettings { tls: vec!["0.0.0.0:0".parse().unwrap()], ..settings.encrypted.clone() };
    let message =
        bind(&Settings { encrypted: exposed, ..settings.clone() }).unwrap_err().to_string();
    assert!(message.contains("0.0.0.0:0") && message.contains("--allow"), "{message}");
    let same: SocketAddr = "127.0.0.1:8853".parse().unwrap();
    let conflict = Settings {
        listen: vec![same],
        encrypted: EncryptedSettings { tls: vec![same], ..settings.encrypted.clone() },
        ..settings.clone()
    };
    assert!(bind(&conflict).unwrap_err().to_string().contains("127.0.0.1:8853 is set for both"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_limit_covers_all_kinds_of_connections() {
    let server = start_with(Limits {
        connections_per_loopback_source: 3,
        connections: 20,
        response_timeout: TEST_TIMEOUT,
        ..Limits::default()
    });
    let mut tls = server.tls().await;
    let (one, two) = (server.quic().await.unwrap(), server.quic().await.unwrap());
    let mut in_progress = tokio::task::JoinSet::new();
    for connection in [&one, &two] {
        let connection = connection.clone();
        in_progress.spawn(async move { exchange(&connection, &framed([0, 0], b"never")).await });
    }
    tls.send(&[b"never"]).await;
    server
        .until("three queries are in progress", |c| c.tls.queries.get() + c.quic.queries.get() == 3)
        .await;
    let refused = server.quic().await.unwrap_err();
    assert!(matches!(refused, ConnectionError::ConnectionClosed(_)), "{refused}");
    let stream = TcpStream::connect(server.tls).await.unwrap();
    assert!(server.tls_with(stream, server.certificate(), "dot").await.is_err());
    server
        .until("the event is counted", |c| (c.tls.rejected.get(), c.quic.rejected.get()) == (1, 1))
        .await;
    // Another source has its own limit.
    assert_eq!(
        ask(&server.quic_with("127.0.0.2", server.certificate(), "doq").await.unwrap(), b"hello")
            .await,
        b"quic hello"
    );
    two.close(VarInt::from_u32(0), b"");
    let start = Instant::now();
    while server.quic().await.is_err() {
        assert!(start.elapsed() < TEST_TIMEOUT, "the permit is not free again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_and_stalled_connections_of_every_kind_are_evicted() {
    let long = Duration::from_secs(600);
    let server = start_with(Limits {
        connections_per_loopback_source: 3,
        idle_timeout: long,
        handshake_timeout: long,
        message_timeout: long,
        ..Limits::default()
    });
    // A handshake and a query that never end, beside an idle connection.
    let mut handshake = TcpStream::connect(server.tls).await.unwrap();
    server.until("it is open", |c| c.tls.open.get() == 1).await;
    let idle = server.quic().await.unwrap();
    assert_eq!(ask(&idle, b"hello").await, b"quic hello");
    let half = server.quic().await.unwrap();
    let (mut send, _receive) = half.open_bi().await.unwrap();
    send.write_all(&[0, 9, 0]).await.unwrap();
    // The second of two streams: the first one is read when its response arrives.
    assert_eq!(ask(&half, b"hello").await, b"quic hello");
    // Those that have just become idle would be kept.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut client = server.tls().await;
    assert_eq!(client.ask(b"hello").await, b"tls hello");
    assert_eq!(closed(&idle).await, VarInt::from_u32(4), "DOQ_EXCESSIVE_LOAD");
    client.send(&[b"slow"]).await;
    server.until("the query is read", |c| c.tls.queries.get() == 2).await;
    let other = server.quic().await.unwrap();
    assert_eq!(ask(&other, b"hello").await, b"quic hello");
    let end = timeout(TEST_TIMEOUT, handshake.read(&mut [0])).await.expect("an end in time");
    assert!(end.is_ok_and(|read| read == 0), "the handshake was stalled longest");
    assert_eq!(client.next().await.unwrap(), b"tls slow, at last", "a query in progress is kept");
    let [tls, quic] = [&server.counters.tls, &server.counters.quic]
        .map(|kind| (kind.evicted_idle.get(), kind.evicted_stalled.get(), kind.rejected.get()));
    assert_eq!((tls, quic), ((0, 1, 0), (1, 0, 0)));
    // An idle TLS connection ends in an orderly way.
    let others = [server.tls().await, server.tls().await, server.tls().await];
    let end = timeout(TEST_TIMEOUT, client.0.read(&mut [0])).await.expect("an end in time");
    assert_eq!(end.expect("close_notify, not a truncation"), 0);
    drop(others);
}

/// Forwards datagrams between one client and a server, as long as it is told to.
struct Relay {
    address: SocketAddr,
    /// Whether datagrams of the client are lost.
    loses: Arc<AtomicBool>,
}

impl Relay {
    async fn to(server: SocketAddr) -> Self {
        let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        far.connect(server).await.unwrap();
        let (address, loses) = (near.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let is_lost = Arc::clone(&loses);
        tokio::spawn(async move {
            let (mut query, mut response) = (vec![0; 65_536], vec![0; 65_536]);
            let mut client = None;
            loop {
                tokio::select! {
                    received = near.recv_from(&mut query) => {
                        let (length, from) = received.unwrap();
                        client = Some(from);
                        if !is_lost.load(Ordering::Relaxed) {
                            let _ = far.send(&query[..length]).await;
                        }
                    }
                    received = far.recv(&mut response) => {
                        // An error when the server has ended (ICMP).
                        let Ok(length) = received else { continue };
                        let _ = near.send_to(&response[..length], client.unwrap()).await;
                    }
                }
            }
        });
        Self { address, loses }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answered_quic_connection_is_idle_before_its_client_acknowledges() {
    let long = Duration::from_secs(1200);
    let server = start_with(Limits {
        connections: 5,
        idle_timeout: long,
        handshake_timeout: long,
        write_timeout: long,
        // With four of five connections open, a third of it.
        message_timeout: Duration::from_secs(6),
        ..Limits::default()
    });
    let relay = Relay::to(server.quic).await;
    let (from, trusted) = ("127.0.0.1", server.certificate());
    let answered = server.quic_through(relay.address, from, trusted, "doq").await.unwrap();
    let asked = answered.clone();
    let response = tokio::spawn(async move { ask(&asked, b"slow").await });
    server.until("the query is read", |c| c.quic.queries.get() == 1).await;
    relay.loses.store(true, Ordering::Relaxed);
    assert_eq!(response.await.unwrap(), b"quic slow, at last");

    // A client that does not finish its query: stalled for a shorter time.
    let stalled = server.quic().await.unwrap();
    let (mut send, _receive) = stalled.open_bi().await.unwrap();
    send.write_all(&[0, 9, 0]).await.unwrap();
    let _others = [server.quic().await.unwrap(), server.quic().await.unwrap()];
    server.until("a stalled connection is closed", |c| c.quic.evicted_stalled.get() == 1).await;
    assert_eq!(closed(&stalled).await, VarInt::from_u32(4), "DOQ_EXCESSIVE_LOAD");
    relay.loses.store(false, Ordering::Relaxed);
    assert_eq!(ask(&answered, b"hello").await, b"quic hello");
    assert_eq!(server.counters.quic.evicted_stalled.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_quic_addresses_evict_no_connection() {
    // Below half of all connections, but with half of those of the source.
    let server = start_with(Limits { connections_per_loopback_source: 4, ..Limits::default() });
    let held = [server.quic().await.unwrap(), server.quic().await.unwrap()];
    assert_eq!(server.counters.quic_retries.get(), 0);
    let third = server.quic().await.unwrap();
    assert_eq!(server.counters.quic_retries.get(), 1, "the address must be validated");
    for connection in held.iter().chain([&third]) {
        assert_eq!(ask(connection, b"hello").await, b"quic hello");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_server_asks_quic_clients_for_address_validation() {
    let server = start_with(Limits { connections: 4, ..Limits::default() });
    let connections =
        [server.quic().await.unwrap(), server.quic().await.unwrap(), server.quic().await.unwrap()];
    for connection in &connections {
        assert_eq!(ask(connection, b"hello").await, b"quic hello");
    }
    // With half of the connections taken, the next client must validate its address.
    server.until("the event is counted", |c| c.quic_retries.get() == 1).await;
    assert_eq!(ask(&server.quic().await.unwrap(), b"hello").await, b"quic hello");
    server
        .until("the event is counted", |c| {
            (c.quic_retries.get(), c.quic.connections.get()) == (2, 4)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_quic_stream_carries_one_query() {
    let server = start_with(Limits { in_flight: 8, ..Limits::default() });
    let connection = server.quic().await.unwrap();
    let query = framed([0, 0], b"slow");
    let slow = exchange(&connection, &query);
    let others = async {
        // More than 100 streams in total, and more than may be in flight.
        for number in 0..300 {
            let word = format!("query {number}");
            assert_eq!(
                ask(&connection, word.as_bytes()).await,
                format!("quic {word}").into_bytes()
            );
        }
        assert_eq!(ask(&connection, b"big").await.len(), 60_000);
    };
    let (slow, ()) = tokio::join!(slow, others);
    assert_eq!(slow.unwrap(), b"\0\x12quic slow, at last");
    let words: Vec<String> = (0..50).map(|number| format!("together {number}")).collect();
    let mut together = tokio::task::JoinSet::new();
    for word in words {
        let connection = connection.clone();
        together.spawn(async move {
            assert_eq!(
                ask(&connection, word.as_bytes()).await,
                format!("quic {word}").into_bytes()
            );
        });
    }
    while let Some(ended) = together.join_next().await {
        ended.unwrap();
    }
    // Without a response or after a panic, the stream ends and the connection stays open.
    for word in ["silent", "panic"] {
        assert!(exchange(&connection, &framed([0, 0], word.as_bytes())).await.is_err(), "{word}");
    }
    assert_eq!(ask(&connection, b"hello").await, b"quic hello");
    server.until("the panic is counted", |c| c.panics.get() == 1).await;
    server.until("all are counted", |c| c.quic.responses.get() == 353).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_protocol_violations_close_the_connection() {
    let server = start_with(Limits::default());
    let bystander = server.quic().await.unwrap();
    let too_long = vec![0; 65_538];
    let malformed: [&[u8]; 6] = [
        &framed([0, 1], b"hello"),
        &[&framed([0, 0], b"one")[..], &framed([0, 0], b"two")].concat(),
        &too_long,
        &[0, 9, 0, 0],
        &[0],
        &[],
    ];
    for (at, bytes) in malformed.into_iter().enumerate() {
        let connection = server.quic().await.unwrap();
        assert!(exchange(&connection, bytes).await.is_err(), "{at}");
        assert_eq!(closed(&connection).await, VarInt::from_u32(2), "{at}");
    }
    // The server grants no unidirectional streams.
    let connection = server.quic().await.unwrap();
    assert!(timeout(Duration::from_millis(100), connection.open_uni()).await.is_err());
    assert!(server.quic_with("127.0.0.1", server.certificate(), "h3").await.is_err());
    assert!(server.quic_with("127.0.0.1", server.certificate(), "").await.is_err());
    assert_eq!(ask(&bystander, b"hello").await, b"quic hello");
    server
        .until("they are counted", |c| {
            c.quic.broken.get() == 6 && c.quic.failed_handshakes.get() == 2
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stage_of_a_quic_query_has_a_timeout() {
    let limits = Limits {
        message_timeout: Duration::from_millis(200),
        response_timeout: Duration::from_millis(200),
        idle_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    let server = start_with(limits);
    let connection = server.quic().await.unwrap();
    // An incomplete query, a cancelled one, and one whose response never comes.
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&[0, 9, 0]).await.unwrap();
    assert!(timeout(TEST_TIMEOUT, receive.read_to_end(10)).await.expect("an end in time").is_err());
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&[0, 9, 0]).await.unwrap();
    send.reset(VarInt::from_u32(3)).unwrap();
    assert!(exchange(&connection, &framed([0, 0], b"never")).await.is_err());
    assert_eq!(ask(&connection, b"hello").await, b"quic hello");
    server
        .until("the event is counted", |c| {
            (c.quic.message_timeouts.get(), c.quic.response_timeouts.get()) == (1, 1)
        })
        .await;
    // The server or QUIC's own timer closes the idle connection, which frees its permit.
    timeout(TEST_TIMEOUT, connection.closed()).await.expect("an idle connection should be closed");
    server.until("its permit is free", |c| c.quic.open.get() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_without_access_get_no_handshake() {
    let pair = Pair::new();
    let settings = Settings {
        allow: vec!["127.0.0.1/32".parse().unwrap()],
        allow_loopback: false,
        ..settings(&pair, Limits::default())
    };
    let server = start(&settings, pair);
    let refused = server.quic_with("127.0.0.2", server.certificate(), "doq").await.unwrap_err();
    assert!(matches!(refused, ConnectionError::ConnectionClosed(_)), "{refused}");
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = socket.connect(server.tls).await.unwrap();
    assert!(server.tls_with(stream, server.certificate(), "dot").await.is_err());
    server
        .until("the event is counted", |c| (c.quic.refused.get(), c.tls.refused.get()) == (1, 1))
        .await;
    assert_eq!(
        (server.counters.quic.connections.get(), server.counters.tls.connections.get()),
        (0, 0)
    );
    assert_eq!(server.tls().await.ask(b"hello").await, b"tls hello");
    assert_eq!(ask(&server.quic().await.unwrap(), b"hello").await, b"quic hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_in_flight_are_sent_on_shutdown() {
    let server = start_with(Limits { drain_timeout: TEST_TIMEOUT, ..Limits::default() });
    let (mut tls, quic) = (server.tls().await, server.quic().await.unwrap());
    tls.send(&[b"slow"]).await;
    let asked = quic.clone();
    let slow = tokio::spawn(async move { ask(&asked, b"slow").await });
    server
        .until("both queries have arrived", |c| {
            c.tls.queries.get() == 1 && c.quic.queries.get() == 1
        })
        .await;
    server.stop.cancel();
    assert_eq!(tls.next().await.unwrap(), b"tls slow, at last");
    assert_eq!(slow.await.unwrap(), b"quic slow, at last");
    assert_eq!(
        tls.next().await.unwrap_err().kind(),
        ErrorKind::UnexpectedEof,
        "closed in an orderly way"
    );
    assert_eq!(closed(&quic).await, VarInt::from_u32(0));
    timeout(TEST_TIMEOUT, server.task).await.unwrap().unwrap();
}

/// Returns the output of kdig.
fn kdig(arguments: &[&str]) -> String {
    let output = Command::new("kdig")
        .args(arguments)
        .arg("+timeout=15")
        .output()
        .expect("kdig should be installed: tests/setup.sh test");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn kdig_queries_over_tls_and_quic() {
    let files = Files::new(&[("default/default/hello.svc/latest/10.0.0.1:80", "{}")]);
    let pair = Pair::new();
    let path = |name: &str| pair.folder.path().join(name).display().to_string();
    let (certificate, key) = (path("cert.pem"), path("key.pem"));
    let flags = [
        "--upstream",
        "off",
        "--registry",
        &files.url(),
        "--tls-listen",
        "127.0.0.1:0",
        "--tls-quic-listen",
        "127.0.0.1:0",
    ];
    let more = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--log-queries", "1"];
    let server = Svcdns::serve(&[&flags[..], &more].concat());
    server.wait_for("hello.svc", &["10.0.0.1"]);
    let status = server.run(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    for (kind, transport) in [("tls", "+tls"), ("quic", "+quic")] {
        let address: SocketAddr = status[kind][0].as_str().unwrap().parse().unwrap();
        let port = address.port().to_string();
        let ask = |name: &str| {
            let trust = [format!("+tls-ca={certificate}"), "+tls-hostname=localhost".to_owned()];
            // The order matters: in kdig 3.2, a TLS option after `+quic` turns QUIC off.
            kdig(&["@127.0.0.1", "-p", &port, &trust[0], &trust[1], transport, name, "A"])
        };
        let response = ask("hello.svc");
        assert!(
            response.contains("NOERROR") && response.contains("10.0.0.1"),
            "{kind}: {response}"
        );
        let response = ask("example.com");
        assert!(response.contains("REFUSED"), "{kind}: {response}");
        let named = if kind == "tls" { "DNS over TLS" } else { "DNS over QUIC" };
        let line = format!(
            " destination={address} transport=\"{named}\" name=hello.svc qtype=A \
             rcode=\"NOERROR\" bytes="
        );
        eventually("the query in the log", SOON, || server.log().contains(&line).then_some(()));
    }
    let text = String::from_utf8(server.run(&["status"]).stdout).unwrap();
    assert!(
        text.contains("\nlistens over TLS on 127.0.0.1:")
            && text.contains("\nlistens over QUIC on 127.0.0.1:"),
        "{text}"
    );
    server.stop();
}
