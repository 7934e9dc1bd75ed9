//! Encrypted listeners: DNS over TLS and over QUIC, with clients that behave and clients that do not.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, its helpers too")]

mod support;

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, Endpoint, VarInt};
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use svcdns::server::{CertificateFiles, Counters, EncryptedSettings, Limits, Settings, bind};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;

use support::echo::Echo;
use support::files::Files;
use support::svcdns::Svcdns;
use support::{SOON, eventually};

/// Nothing here takes that long unless it is broken.
const DEADLINE: Duration = Duration::from_secs(30);

/// A certificate for `localhost` in a folder of its own.
struct Pair {
    folder: TempDir,
    made: CertifiedKey<KeyPair>,
}

impl Pair {
    fn new() -> Self {
        let pair = Self { folder: tempfile::tempdir().unwrap(), made: made() };
        write(pair.folder.path(), &pair.made);
        pair
    }

    fn files(&self) -> CertificateFiles {
        CertificateFiles { certificate: self.folder.path().join("cert.pem"), key: self.folder.path().join("key.pem") }
    }
}

fn made() -> CertifiedKey<KeyPair> {
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
    let (tls, quic, counters) = (bound.tls_addresses()[0], bound.quic_addresses()[0], bound.counters());
    let stop = CancellationToken::new();
    let serving = bound.serve(Echo::default(), |_, error| panic!("{error}"), stop.clone());
    let task = tokio::spawn(async move { serving.await.unwrap() });
    Server { tls, quic, counters, stop, task, pair }
}

/// A client's settings that trust this certificate and offer this protocol.
fn client_config(trusted: &CertificateDer<'static>, protocol: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = if protocol.is_empty() { vec![] } else { vec![protocol.as_bytes().to_vec()] };
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

    async fn tls_with(&self, stream: TcpStream, trusted: &CertificateDer<'static>, protocol: &str) -> std::io::Result<Tls> {
        let connector = TlsConnector::from(Arc::new(client_config(trusted, protocol)));
        let name = ServerName::try_from("localhost").unwrap();
        timeout(DEADLINE, connector.connect(name, stream)).await.expect("a handshake or its failure in time").map(Tls)
    }

    async fn tls(&self) -> Tls {
        let stream = TcpStream::connect(self.tls).await.unwrap();
        self.tls_with(stream, self.certificate(), "dot").await.unwrap()
    }

    async fn quic(&self) -> Result<quinn::Connection, ConnectionError> {
        self.quic_with("127.0.0.1", self.certificate(), "doq").await
    }

    async fn quic_with(&self, from: &str, trusted: &CertificateDer<'static>, protocol: &str) -> Result<quinn::Connection, ConnectionError> {
        let endpoint = Endpoint::client(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        let crypto = QuicClientConfig::try_from(client_config(trusted, protocol)).unwrap();
        let connecting = endpoint.connect_with(quinn::ClientConfig::new(Arc::new(crypto)), self.quic, "localhost").unwrap();
        timeout(DEADLINE, connecting).await.expect("a handshake or its failure in time")
    }

    async fn until(&self, what: &str, holds: impl Fn(&Counters) -> bool) {
        let start = Instant::now();
        while !holds(&self.counters) {
            assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}; {:?}", self.counters);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

struct Tls(TlsStream<TcpStream>);

impl Tls {
    async fn send(&mut self, words: &[&[u8]]) {
        let octets: Vec<u8> = words.iter().flat_map(|word| framed([1, 2], word)).collect();
        self.0.write_all(&octets).await.unwrap();
        self.0.flush().await.unwrap();
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

    async fn ask(&mut self, word: &[u8]) -> Vec<u8> {
        self.send(&[word]).await;
        self.next().await.unwrap()
    }
}

/// Sends these octets on a stream of their own; what comes back.
async fn exchange(connection: &quinn::Connection, octets: &[u8]) -> Result<Vec<u8>, quinn::ReadToEndError> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| quinn::ReadToEndError::Read(error.into()))?;
    // Writing may fail where the server has closed already; reading then says why.
    let _ = send.write_all(octets).await;
    let _ = send.finish();
    timeout(DEADLINE, receive.read_to_end(70_000)).await.expect("an answer or an end in time")
}

async fn ask(connection: &quinn::Connection, word: &[u8]) -> Vec<u8> {
    let answer = exchange(connection, &framed([0, 0], word)).await.unwrap();
    let (length, answer) = answer.split_first_chunk::<2>().unwrap();
    assert_eq!(usize::from(u16::from_be_bytes(*length)), answer.len());
    answer.to_vec()
}

/// The code with which the server has closed.
async fn closed(connection: &quinn::Connection) -> VarInt {
    match timeout(DEADLINE, connection.closed()).await.expect("an end in time") {
        ConnectionError::ApplicationClosed(close) => close.error_code,
        other => panic!("the server should close, not {other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_knows_its_client_at_a_wildcard_too() {
    let pair = Pair::new();
    let any = || vec!["0.0.0.0:0".parse().unwrap()];
    let settings = settings(&pair, Limits::default());
    let encrypted = EncryptedSettings { tls: any(), quic: any(), ..settings.encrypted };
    let mut server = start(&Settings { allow: vec!["127.0.0.0/8".parse().unwrap()], encrypted, ..settings }, pair);
    // Another address than that of the listener, and than the usual one.
    server.tls.set_ip([127, 0, 0, 7].into());
    server.quic.set_ip([127, 0, 0, 7].into());
    let mut client = server.tls().await;
    let source = client.0.get_ref().0.local_addr().unwrap();
    assert_eq!(client.ask(b"client").await, format!("{source} {}", server.tls).into_bytes());
    let connection = server.quic_with("127.0.0.2", server.certificate(), "doq").await.unwrap();
    let told = String::from_utf8(ask(&connection, b"client").await).unwrap();
    assert!(told.starts_with("127.0.0.2:") && told.ends_with(&format!(" {}", server.quic)), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_carries_pipelined_messages_and_answers_as_they_are_ready() {
    let server = start_with(Limits::default());
    let mut client = server.tls().await;
    assert_eq!(client.0.get_ref().1.alpn_protocol(), Some(&b"dot"[..]));
    client.send(&[b"slow", b"one", b"silent", b"two", b"big"]).await;
    assert_eq!(client.next().await.unwrap(), b"tls one");
    assert_eq!(client.next().await.unwrap(), b"tls two");
    assert_eq!(client.next().await.unwrap().len(), 60_000);
    assert_eq!(client.next().await.unwrap(), b"tls slow, at last");
    server.until("all are counted", |c| c.tls.queries.get() == 5 && c.tls.responses.get() == 4).await;
    assert_eq!(server.counters.tcp.connections.get(), 0);
    // A client need not name the protocol.
    let stream = TcpStream::connect(server.tls).await.unwrap();
    assert_eq!(server.tls_with(stream, server.certificate(), "").await.unwrap().ask(b"hello").await, b"tls hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_tls_ends_without_harm() {
    let server = start_with(Limits { handshake_timeout: Duration::from_millis(300), ..Limits::default() });
    let mut bystander = server.tls().await;
    // Another protocol, plain DNS, nothing at all, half a handshake, and a reset.
    let stream = TcpStream::connect(server.tls).await.unwrap();
    assert!(server.tls_with(stream, server.certificate(), "h2").await.is_err());
    let mut clients = Vec::new();
    for octets in [&b"\0\x07\x01\x02plain"[..], b"", b"\x16\x03\x01\x02\0\x01"] {
        let mut client = TcpStream::connect(server.tls).await.unwrap();
        client.write_all(octets).await.unwrap();
        clients.push(client);
    }
    let reset = TcpStream::connect(server.tls).await.unwrap();
    reset.set_zero_linger().unwrap();
    drop(reset);
    for mut client in clients {
        let mut rest = Vec::new();
        let end = timeout(DEADLINE, client.read_to_end(&mut rest)).await.expect("the server should close");
        assert!(end.is_ok() || end.unwrap_err().kind() == ErrorKind::ConnectionReset);
    }
    server.until("all of them are gone", |c| c.tls.failed_handshakes.get() == 5 && c.tls.open.get() == 1).await;
    assert_eq!(bystander.ask(b"hello").await, b"tls hello");
    server.until("it is counted", |c| c.tls.queries.get() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_over_tls_ends_with_a_goodbye() {
    let server = start_with(Limits { idle_timeout: Duration::from_secs(1), ..Limits::default() });
    let mut client = server.tls().await;
    assert_eq!(client.ask(b"hello").await, b"tls hello");
    let end = timeout(DEADLINE, client.0.read(&mut [0])).await.expect("the server should close");
    assert_eq!(end.expect("not cut short"), 0);
    server.until("it is counted", |c| c.tls.idle_timeouts.get() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_replaced_is_shown_from_then_on() {
    let server = start_with(Limits { idle_timeout: Duration::from_secs(300), ..Limits::default() });
    let second = made();
    let (mut tls, quic) = (server.tls().await, server.quic().await.unwrap());
    let trusting = |protocol| (second.cert.der().clone(), protocol);
    let (trusted, protocol) = trusting("dot");
    let stream = TcpStream::connect(server.tls).await.unwrap();
    assert!(server.tls_with(stream, &trusted, protocol).await.is_err(), "not the certificate yet");
    // First half of the pair, which changes nothing, then the whole.
    fs::write(server.pair.files().certificate, second.cert.pem()).unwrap();
    assert_eq!(server.tls().await.ask(b"hello").await, b"tls hello");
    write(server.pair.folder.path(), &second);
    let begun = Instant::now();
    loop {
        let stream = TcpStream::connect(server.tls).await.unwrap();
        if let Ok(mut client) = server.tls_with(stream, &trusted, protocol).await {
            assert_eq!(client.ask(b"hello").await, b"tls hello");
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "the new certificate is not shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (trusted, protocol) = trusting("doq");
    assert_eq!(ask(&server.quic_with("127.0.0.1", &trusted, protocol).await.unwrap(), b"hello").await, b"quic hello");
    // Who was connected stays so.
    assert_eq!(tls.ask(b"still").await, b"tls still");
    assert_eq!(ask(&quic, b"still").await, b"quic still");
}

#[test]
fn a_certificate_that_cannot_be_used_is_said_at_the_start() {
    let pair = Pair::new();
    let settings = settings(&pair, Limits::default());
    let says = |words: &str| {
        // With its cause, once: as the commands print it.
        let message = format!("{:#}", anyhow::Error::new(bind(&settings).unwrap_err()));
        assert!(message.contains("certificate") && message.matches(words).count() == 1, "{message}");
    };
    fs::write(pair.files().key, made().signing_key.serialize_pem()).unwrap();
    says("key.pem does not match the certificate");
    fs::remove_file(pair.files().key).unwrap();
    says("key.pem: No such file");
    let without = Settings { encrypted: EncryptedSettings { certificate: None, ..settings.encrypted.clone() }, ..settings.clone() };
    assert!(bind(&without).unwrap_err().to_string().contains("--tls-cert-file"));
    let exposed = EncryptedSettings { tls: vec!["0.0.0.0:0".parse().unwrap()], ..settings.encrypted.clone() };
    let message = bind(&Settings { encrypted: exposed, ..settings.clone() }).unwrap_err().to_string();
    assert!(message.contains("0.0.0.0:0") && message.contains("--allow"), "{message}");
    let same: SocketAddr = "127.0.0.1:8853".parse().unwrap();
    let twice = Settings { listen: vec![same], encrypted: EncryptedSettings { tls: vec![same], ..settings.encrypted.clone() }, ..settings.clone() };
    assert!(bind(&twice).unwrap_err().to_string().contains("127.0.0.1:8853 is set for both"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_places_of_a_source_are_shared_by_all_kinds_of_connections() {
    let server = start_with(Limits { connections_per_loopback_source: 3, connections: 20, ..Limits::default() });
    let mut tls = server.tls().await;
    assert_eq!(tls.ask(b"hello").await, b"tls hello");
    let (one, two) = (server.quic().await.unwrap(), server.quic().await.unwrap());
    assert_eq!(ask(&one, b"hello").await, b"quic hello");
    let refused = server.quic().await.unwrap_err();
    assert!(matches!(refused, ConnectionError::ConnectionClosed(_)), "{refused}");
    let stream = TcpStream::connect(server.tls).await.unwrap();
    assert!(server.tls_with(stream, server.certificate(), "dot").await.is_err());
    server.until("it is counted", |c| (c.tls.rejected.get(), c.quic.rejected.get()) == (1, 1)).await;
    // Another source has a share of its own.
    assert_eq!(ask(&server.quic_with("127.0.0.2", server.certificate(), "doq").await.unwrap(), b"hello").await, b"quic hello");
    two.close(VarInt::from_u32(0), b"");
    let begun = Instant::now();
    while server.quic().await.is_err() {
        assert!(begun.elapsed() < DEADLINE, "the place is not free again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_server_lets_in_who_shows_where_it_is() {
    let server = start_with(Limits { connections: 4, ..Limits::default() });
    let connections = [server.quic().await.unwrap(), server.quic().await.unwrap(), server.quic().await.unwrap()];
    for connection in &connections {
        assert_eq!(ask(connection, b"hello").await, b"quic hello");
    }
    // With half of the places taken, who comes next has to show first that answers reach it.
    server.until("it is counted", |c| c.quic_retries.get() == 1).await;
    assert_eq!(ask(&server.quic().await.unwrap(), b"hello").await, b"quic hello");
    server.until("it is counted", |c| (c.quic_retries.get(), c.quic.connections.get()) == (2, 4)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_carries_a_question_on_each_stream() {
    let server = start_with(Limits { in_flight: 8, ..Limits::default() });
    let connection = server.quic().await.unwrap();
    let question = framed([0, 0], b"slow");
    let slow = exchange(&connection, &question);
    let others = async {
        // Far more than 100, and than may be under way together.
        for number in 0..300 {
            let word = format!("question {number}");
            assert_eq!(ask(&connection, word.as_bytes()).await, format!("quic {word}").into_bytes());
        }
        assert_eq!(ask(&connection, b"big").await.len(), 60_000);
    };
    let (slow, ()) = tokio::join!(slow, others);
    assert_eq!(slow.unwrap(), b"\0\x12quic slow, at last");
    let words: Vec<String> = (0..50).map(|number| format!("together {number}")).collect();
    let mut together = tokio::task::JoinSet::new();
    for word in words {
        let connection = connection.clone();
        together.spawn(async move { assert_eq!(ask(&connection, word.as_bytes()).await, format!("quic {word}").into_bytes()) });
    }
    while let Some(ended) = together.join_next().await {
        ended.unwrap();
    }
    // No answer, and a panic: their streams end, the connection goes on.
    for word in ["silent", "panic"] {
        assert!(exchange(&connection, &framed([0, 0], word.as_bytes())).await.is_err(), "{word}");
    }
    assert_eq!(ask(&connection, b"hello").await, b"quic hello");
    server.until("the panic is counted", |c| c.panics.get() == 1).await;
    server.until("all are counted", |c| c.quic.responses.get() == 353).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_breaks_the_rules_of_quic_is_closed() {
    let server = start_with(Limits::default());
    let bystander = server.quic().await.unwrap();
    let too_long = vec![0; 65_538];
    let malformed: [&[u8]; 6] =
        [&framed([0, 1], b"hello"), &[&framed([0, 0], b"one")[..], &framed([0, 0], b"two")].concat(), &too_long, &[0, 9, 0, 0], &[0], &[]];
    for (at, octets) in malformed.into_iter().enumerate() {
        let connection = server.quic().await.unwrap();
        assert!(exchange(&connection, octets).await.is_err(), "{at}");
        assert_eq!(closed(&connection).await, VarInt::from_u32(2), "{at}");
    }
    // A stream in one direction is not even granted.
    let connection = server.quic().await.unwrap();
    assert!(timeout(Duration::from_millis(100), connection.open_uni()).await.is_err());
    assert!(server.quic_with("127.0.0.1", server.certificate(), "h3").await.is_err());
    assert!(server.quic_with("127.0.0.1", server.certificate(), "").await.is_err());
    assert_eq!(ask(&bystander, b"hello").await, b"quic hello");
    server.until("they are counted", |c| c.quic.broken.get() == 6 && c.quic.failed_handshakes.get() == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_waited_for_without_end_over_quic() {
    let limits = Limits {
        message_timeout: Duration::from_millis(200),
        response_timeout: Duration::from_millis(200),
        idle_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    let server = start_with(limits);
    let connection = server.quic().await.unwrap();
    // A question without its end, one that is taken back, and one whose answer never comes.
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&[0, 9, 0]).await.unwrap();
    assert!(timeout(DEADLINE, receive.read_to_end(10)).await.expect("an end in time").is_err());
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&[0, 9, 0]).await.unwrap();
    send.reset(VarInt::from_u32(3)).unwrap();
    assert!(exchange(&connection, &framed([0, 0], b"never")).await.is_err());
    assert_eq!(ask(&connection, b"hello").await, b"quic hello");
    server.until("it is counted", |c| (c.quic.message_timeouts.get(), c.quic.response_timeouts.get()) == (1, 1)).await;
    // An idle connection is closed, whether by us or by QUIC's own timer, and its place is free.
    timeout(DEADLINE, connection.closed()).await.expect("an idle connection should be closed");
    server.until("its place is free", |c| c.quic.open.get() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_turned_away_before_a_handshake() {
    let pair = Pair::new();
    let settings = Settings { allow: vec!["127.0.0.1/32".parse().unwrap()], allow_loopback: false, ..settings(&pair, Limits::default()) };
    let server = start(&settings, pair);
    let refused = server.quic_with("127.0.0.2", server.certificate(), "doq").await.unwrap_err();
    assert!(matches!(refused, ConnectionError::ConnectionClosed(_)), "{refused}");
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = socket.connect(server.tls).await.unwrap();
    assert!(server.tls_with(stream, server.certificate(), "dot").await.is_err());
    server.until("it is counted", |c| (c.quic.refused.get(), c.tls.refused.get()) == (1, 1)).await;
    assert_eq!((server.counters.quic.connections.get(), server.counters.tls.connections.get()), (0, 0));
    assert_eq!(server.tls().await.ask(b"hello").await, b"tls hello");
    assert_eq!(ask(&server.quic().await.unwrap(), b"hello").await, b"quic hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_in_flight_go_out_when_the_server_stops() {
    let server = start_with(Limits { drain_timeout: DEADLINE, ..Limits::default() });
    let (mut tls, quic) = (server.tls().await, server.quic().await.unwrap());
    tls.send(&[b"slow"]).await;
    let asked = quic.clone();
    let slow = tokio::spawn(async move { ask(&asked, b"slow").await });
    server.until("both are asked", |c| c.tls.queries.get() == 1 && c.quic.queries.get() == 1).await;
    server.stop.cancel();
    assert_eq!(tls.next().await.unwrap(), b"tls slow, at last");
    assert_eq!(slow.await.unwrap(), b"quic slow, at last");
    assert_eq!(tls.next().await.unwrap_err().kind(), ErrorKind::UnexpectedEof, "closed in an orderly way");
    assert_eq!(closed(&quic).await, VarInt::from_u32(0));
    timeout(DEADLINE, server.task).await.unwrap().unwrap();
}

/// What kdig says.
fn kdig(arguments: &[&str]) -> String {
    let output = Command::new("kdig").args(arguments).arg("+timeout=15").output().expect("kdig should be installed: tests/setup.sh test");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn kdig_asks_over_tls_and_quic() {
    let files = Files::new(&[("default/default/hello.svc/latest/10.0.0.1:80", "{}")]);
    let pair = Pair::new();
    let path = |name: &str| pair.folder.path().join(name).display().to_string();
    let (certificate, key) = (path("cert.pem"), path("key.pem"));
    let flags = ["--upstream", "off", "--registry", &files.url(), "--tls-listen", "127.0.0.1:0", "--tls-quic-listen", "127.0.0.1:0"];
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
            // In this order: kdig 3.2 takes a later option about TLS for one to leave QUIC.
            kdig(&["@127.0.0.1", "-p", &port, &trust[0], &trust[1], transport, name, "A"])
        };
        let answer = ask("hello.svc");
        assert!(answer.contains("NOERROR") && answer.contains("10.0.0.1"), "{kind}: {answer}");
        let answer = ask("example.com");
        assert!(answer.contains("REFUSED"), "{kind}: {answer}");
        let named = if kind == "tls" { "DNS over TLS" } else { "DNS over QUIC" };
        let line = format!(r#" destination={address} transport="{named}" name=hello.svc kind=A rcode="NOERROR" octets="#);
        eventually("the query in the log", SOON, || server.log().contains(&line).then_some(()));
    }
    let text = String::from_utf8(server.run(&["status"]).stdout).unwrap();
    assert!(text.contains("answers over TLS on 127.0.0.1:") && text.contains("answers over QUIC on 127.0.0.1:"), "{text}");
    server.stop();
}
