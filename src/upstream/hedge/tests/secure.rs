//! Tests of TLS and HTTPS, with their own CA.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming as Body};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{HandshakeKind, ServerConfig};
use tokio_rustls::server::TlsStream;

use super::upstream::{Message, Query};
use super::*;

/// A CA and a file with its certificate.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: tempfile::NamedTempFile,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), issuer.pem()).unwrap();
        Self { issuer, file }
    }

    /// Returns a TLS acceptor with a certificate for this name or address.
    fn acceptor(&self, name: &str, expired: bool, protocols: &[&[u8]]) -> TlsAcceptor {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if expired {
            (params.not_before, params.not_after) =
                (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self::acceptor_with(certificate.der().clone(), &key, protocols)
    }

    /// Returns a TLS acceptor with the authority's own certificate.
    fn acceptor_as_server(&self) -> TlsAcceptor {
        Self::acceptor_with(self.issuer.der().clone(), self.issuer.key(), &[])
    }

    fn acceptor_with(
        certificate: CertificateDer<'static>,
        key: &KeyPair,
        protocols: &[&[u8]],
    ) -> TlsAcceptor {
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config =
            builder.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    fn upstream(&self, target: Target) -> Arc<Upstream> {
        Upstream::new(
            target,
            Connector::new(tokio::runtime::Handle::current(), Some(self.file.path().to_owned())),
        )
    }
}

/// A server's handshakes, and the sizes and hosts of its queries.
#[derive(Debug, Default)]
struct ServerLog {
    handshakes: Mutex<Vec<HandshakeKind>>,
    sizes: Mutex<Vec<usize>>,
    hosts: Mutex<Vec<String>>,
}

/// Builds the correct response.
fn correct_response(bytes: &[u8]) -> Vec<u8> {
    let query = Query::parse(bytes).unwrap();
    Message::of([Record::a(&query.name, 60, "192.0.2.1")]).to_bytes(&query)
}

async fn accept<F>(
    acceptor: TlsAcceptor,
    serve: impl Fn(TlsStream<TcpStream>, Arc<ServerLog>) -> F + Send + 'static,
) -> (SocketAddr, Arc<ServerLog>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let log = Arc::new(ServerLog::default());
    let shared = Arc::clone(&log);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            log.handshakes.lock().unwrap().extend(stream.get_ref().1.handshake_kind());
            tokio::spawn(serve(stream, Arc::clone(&log)));
        }
    });
    (address, shared)
}

/// Starts a DoT server that answers `limit` queries on each connection.
async fn over_tls(acceptor: TlsAcceptor, limit: usize) -> (SocketAddr, Arc<ServerLog>) {
    over_tls_that_ends(acceptor, move |_| limit).await
}

/// Starts a DoT server whose connections end after a number of answers each.
///
/// `limit` returns the number for a connection, counted from 0. With 0, the connection ends with
/// its first query.
async fn over_tls_that_ends(
    acceptor: TlsAcceptor,
    limit: impl Fn(usize) -> usize + Copy + Send + 'static,
) -> (SocketAddr, Arc<ServerLog>) {
    accept(acceptor, move |mut stream, log| async move {
        let limit = limit(log.handshakes.lock().unwrap().len() - 1);
        if limit == 0 {
            let _ = stream.read_u16().await;
            return;
        }
        for _ in 0..limit {
            let Ok(length) = stream.read_u16().await else { return };
            let mut bytes = vec![0; length.into()];
            stream.read_exact(&mut bytes).await.unwrap();
            log.sizes.lock().unwrap().push(bytes.len());
            let answer = correct_response(&bytes);
            stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
            stream.flush().await.unwrap();
        }
        let _ = stream.shutdown().await;
    })
    .await
}

/// Builds the HTTPS response to a query.
type MakeResponse = fn(&[u8]) -> Response<Full<Bytes>>;

fn respond(bytes: &[u8]) -> Response<Full<Bytes>> {
    Response::builder()
        .header("content-type", "application/dns-message")
        .body(Full::new(correct_response(bytes).into()))
        .unwrap()
}

async fn over_https(acceptor: TlsAcceptor, make: MakeResponse) -> (SocketAddr, Arc<ServerLog>) {
    accept(acceptor, move |stream, log| async move {
        let service = service_fn(move |request: Request<Body>| {
            let log = Arc::clone(&log);
            async move {
                assert_eq!(
                    (request.method().as_str(), request.uri().path()),
                    ("POST", "/dns-query")
                );
                assert_eq!(request.headers()["content-type"], "application/dns-message");
                log.hosts.lock().unwrap().push(request.uri().authority().unwrap().to_string());
                let bytes = request.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(bytes[..2], [0, 0], "the id");
                log.sizes.lock().unwrap().push(bytes.len());
                Ok::<_, Infallible>(make(&bytes))
            }
        });
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    })
    .await
}

fn tls(address: SocketAddr, name: Option<&str>) -> Target {
    Target { address, protocol: Protocol::Tls { name: name.map(Into::into) } }
}

fn https(address: SocketAddr, name: Option<&str>) -> Target {
    Target {
        address,
        protocol: Protocol::Https { name: name.map(Into::into), path: "/dns-query".into() },
    }
}

#[tokio::test]
async fn tls_queries_are_padded_and_sessions_resumed() {
    let authority = Authority::new();
    for (certificate, name) in [("dns.example", Some("dns.example")), ("127.0.0.1", None)] {
        let (address, log) = over_tls(authority.acceptor(certificate, false, &[]), 3).await;
        let upstream = [authority.upstream(tls(address, name))];
        let sockets = Sockets::default();
        for _ in 0..9 {
            assert_correct(&sockets.query(&upstream, &outgoing(), long()).await.unwrap());
        }
        let sizes = log.sizes.lock().unwrap().clone();
        assert!(sizes.iter().all(|size| size % 128 == 0), "{sizes:?}");
        let handshakes = log.handshakes.lock().unwrap().clone();
        assert!(handshakes.len() >= 3 && handshakes[0] == HandshakeKind::Full, "{handshakes:?}");
        assert!(handshakes[1..].contains(&HandshakeKind::Resumed), "{handshakes:?}");
    }
}

#[tokio::test]
async fn https_queries_share_one_connection() {
    let authority = Authority::new();
    for (certificate, name) in [("dns.example", Some("dns.example")), ("127.0.0.1", None)] {
        let (address, log) =
            over_https(authority.acceptor(certificate, false, &[b"h2"]), respond).await;
        let upstream = authority.upstream(https(address, name));
        let sockets = Arc::new(Sockets::default());
        let many: Vec<_> = (0..20)
            .map(|_| {
                let (sockets, upstream) = (Arc::clone(&sockets), Arc::clone(&upstream));
                tokio::spawn(async move { sockets.query(&[upstream], &outgoing(), long()).await })
            })
            .collect();
        for one in many {
            assert_correct(&one.await.unwrap().unwrap());
        }
        assert_eq!(log.handshakes.lock().unwrap().len(), 1);
        assert!(log.sizes.lock().unwrap().iter().all(|size| size % 128 == 0));
        let host = format!("{certificate}:{}", address.port());
        assert!(log.hosts.lock().unwrap().iter().all(|log| *log == host));
    }
}

/// The point at which a connection of a DoH server breaks.
#[derive(Clone, Copy, Debug)]
struct Break {
    /// Number of queries that the connection answers.
    answers: usize,
    /// Number of queries at which the connection breaks.
    queries: usize,
}

/// Starts a DoH server whose connections break as `script` says for their number.
async fn over_https_that_breaks(
    acceptor: TlsAcceptor,
    script: impl Fn(usize) -> Option<Break> + Copy + Send + 'static,
) -> (SocketAddr, Arc<ServerLog>) {
    accept(acceptor, move |stream, log| async move {
        let end = script(log.handshakes.lock().unwrap().len() - 1);
        let (asked, enough) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let told = Arc::clone(&enough);
        let service = service_fn(move |request: Request<Body>| {
            let (asked, told) = (Arc::clone(&asked), Arc::clone(&told));
            async move {
                let bytes = request.into_body().collect().await.unwrap().to_bytes();
                let before = asked.fetch_add(1, Ordering::SeqCst);
                if let Some(Break { answers, queries }) = end {
                    if before + 1 >= queries {
                        told.notify_one();
                    }
                    if before >= answers {
                        std::future::pending::<()>().await;
                    }
                }
                Ok::<_, Infallible>(respond(&bytes))
            }
        });
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            _ = serving => {}
            // An answer may still be on its way.
            () = async { enough.notified().await; tokio::time::sleep(SOON).await } => {}
        }
    })
    .await
}

/// Time within which an answer has left the server.
const SOON: Duration = Duration::from_millis(10);

/// Sends rounds of six queries at once; all must be answered.
async fn assert_rounds_are_answered(upstream: &Arc<Upstream>) {
    let sockets = Arc::new(Sockets::default());
    for _ in 0..3 {
        let round: Vec<_> = (0..6)
            .map(|_| {
                let (sockets, upstream) = (Arc::clone(&sockets), Arc::clone(upstream));
                tokio::spawn(async move { sockets.query(&[upstream], &outgoing(), long()).await })
            })
            .collect();
        for one in round {
            match one.await.unwrap() {
                Ok(incoming) => assert_correct(&incoming),
                Err(failure) => panic!("{failure}: {:?}", upstream.report()),
            }
        }
    }
}

#[tokio::test]
async fn queries_are_repeated_when_tls_connections_end() {
    let authority = Authority::new();
    let scripts: [fn(usize) -> usize; 5] = [
        |_| 1,
        |_| 2,
        |_| 4,
        |connection| if connection == 0 { 0 } else { 100 },
        |connection| connection % 2,
    ];
    for (number, script) in scripts.into_iter().enumerate() {
        let acceptor = authority.acceptor("dns.example", false, &[]);
        let (address, _) = over_tls_that_ends(acceptor, script).await;
        // The first connection even ends before its handshake.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = listener.local_addr().unwrap();
        tokio::spawn(async move {
            drop(listener.accept().await.unwrap());
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(address).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        let upstream = authority.upstream(tls(front, Some("dns.example")));
        assert_rounds_are_answered(&upstream).await;
        assert_eq!(upstream.report().failed, 0, "script {number}");
    }
}

#[tokio::test]
async fn queries_are_repeated_when_https_connections_end() {
    let authority = Authority::new();
    let scripts: [fn(usize) -> Option<Break>; 5] = [
        |_| Some(Break { answers: 1, queries: 1 }),
        |_| Some(Break { answers: 2, queries: 2 }),
        |_| Some(Break { answers: 4, queries: 4 }),
        |connection| (connection == 0).then_some(Break { answers: 0, queries: 1 }),
        |connection| Some(Break { answers: connection % 2, queries: 1 }),
    ];
    for (number, script) in scripts.into_iter().enumerate() {
        let acceptor = authority.acceptor("dns.example", false, &[b"h2"]);
        let (address, _) = over_https_that_breaks(acceptor, script).await;
        let upstream = authority.upstream(https(address, Some("dns.example")));
        assert_rounds_are_answered(&upstream).await;
        assert_eq!(upstream.report().failed, 0, "script {number}");
    }
}

#[tokio::test]
async fn upstreams_that_only_close_connections_are_unreachable() {
    let authority = Authority::new();
    let dns = over_tls_that_ends(authority.acceptor("dns.example", false, &[]), |_| 0).await;
    let acceptor = authority.acceptor("dns.example", false, &[b"h2"]);
    let web = over_https_that_breaks(acceptor, |_| Some(Break { answers: 0, queries: 1 })).await;
    let sockets = Sockets::default();
    for (target, log) in
        [(tls(dns.0, Some("dns.example")), dns.1), (https(web.0, Some("dns.example")), web.1)]
    {
        let upstream = authority.upstream(target);
        let began = Instant::now();
        assert_eq!(
            sockets.query_one(&upstream, &outgoing(), long()).await.unwrap_err(),
            QueryFailure::Unreachable
        );
        // Five for an attempt; another attempt begins each second that a busy machine takes.
        let attempts = 1 + usize::try_from(began.elapsed().as_secs()).unwrap();
        let connections = log.handshakes.lock().unwrap().len();
        assert!((5..=5 * attempts).contains(&connections), "{connections} in {attempts}");
    }
}

#[tokio::test]
async fn broken_https_connections_are_reopened_once() {
    let authority = Authority::new();
    let (address, log) =
        over_https_that_breaks(authority.acceptor("dns.example", false, &[b"h2"]), |connection| {
            (connection == 0).then_some(Break { answers: 1, queries: 21 })
        })
        .await;
    let upstream = authority.upstream(https(address, Some("dns.example")));
    let sockets = Arc::new(Sockets::default());
    assert_correct(&sockets.query(&[Arc::clone(&upstream)], &outgoing(), long()).await.unwrap());
    let many: Vec<_> = (0..20)
        .map(|_| {
            let (sockets, upstream) = (Arc::clone(&sockets), Arc::clone(&upstream));
            tokio::spawn(async move { sockets.query(&[upstream], &outgoing(), long()).await })
        })
        .collect();
    for one in many {
        assert_correct(&one.await.unwrap().unwrap());
    }
    assert_eq!(log.handshakes.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn invalid_certificates_are_rejected() {
    let (authority, other) = (Authority::new(), Authority::new());
    let sockets = Sockets::default();
    for (issuer, certificate, expired, reason) in [
        (&authority, "dns.example", true, "expired"),
        (&authority, "other.example", false, "is for other.example, not for dns.example: append #"),
        (&authority, "127.0.0.1", false, "is for 127.0.0.1, not for dns.example: append #"),
        (&other, "dns.example", false, "not signed by a trusted CA (set upstream-ca-file)"),
    ] {
        let dns = over_tls(issuer.acceptor(certificate, expired, &[]), 9).await.0;
        let web = over_https(issuer.acceptor(certificate, expired, &[b"h2"]), respond).await.0;
        for target in [tls(dns, Some("dns.example")), https(web, Some("dns.example"))] {
            let upstream = [authority.upstream(target)];
            assert_eq!(
                sockets.query(&upstream, &outgoing(), long()).await.unwrap_err(),
                QueryFailure::Unreachable
            );
            let error = upstream[0].report().last_error.unwrap();
            assert!(error.contains("dns.example") && error.contains(reason), "{error}");
        }
    }
    // Without a name, the certificate must contain the address.
    let address = over_tls(authority.acceptor("dns.example", false, &[]), 9).await.0;
    let upstream = [authority.upstream(tls(address, None))];
    assert_eq!(
        sockets.query(&upstream, &outgoing(), long()).await.unwrap_err(),
        QueryFailure::Unreachable
    );
}

#[tokio::test]
async fn the_certificate_of_a_ca_as_that_of_a_server_is_explained() {
    let authority = Authority::new();
    let address = over_tls(authority.acceptor_as_server(), 9).await.0;
    let upstream = [authority.upstream(tls(address, Some("dns.example")))];
    Sockets::default().query(&upstream, &outgoing(), long()).await.unwrap_err();
    let error = upstream[0].report().last_error.unwrap();
    let expected = "TLS with dns.example: its certificate is that of a CA (issue a server \
                    certificate from that CA";
    assert!(error.contains(expected), "{error}");
}

#[tokio::test]
async fn changed_ca_files_are_read_again() {
    let authority = Authority::new();
    let (address, _) = over_tls(authority.acceptor("dns.example", false, &[]), 1).await;
    let upstream = [authority.upstream(tls(address, Some("dns.example")))];
    let sockets = Sockets::default();
    let file = authority.file.path().display().to_string();
    let right = std::fs::read(authority.file.path()).unwrap();
    for (bytes, reason) in [
        (&b""[..], format!("there is no certificate in {file}")),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            format!("{file} holds an invalid certificate"),
        ),
    ] {
        std::fs::write(authority.file.path(), bytes).unwrap();
        assert_eq!(
            sockets.query(&upstream, &outgoing(), long()).await.unwrap_err(),
            QueryFailure::Unreachable
        );
        let error = upstream[0].report().last_error.unwrap();
        assert!(error.starts_with(&reason), "{error}");
    }
    std::fs::write(authority.file.path(), right).unwrap();
    assert_correct(&sockets.query(&upstream, &outgoing(), long()).await.unwrap());
}

#[tokio::test]
async fn invalid_https_responses_are_rejected() {
    let authority = Authority::new();
    let sockets = Sockets::default();
    let wrong: [(MakeResponse, &str); 4] = [
        (|_| Response::builder().status(503).body(Full::default()).unwrap(), "HTTP 503"),
        (
            |bytes| Response::new(Full::new(correct_response(bytes).into())),
            "instead of application/dns-message",
        ),
        (
            |_| {
                Response::builder()
                    .header("content-type", "application/dns-message")
                    .body(Full::new(vec![0; 65_536].into()))
                    .unwrap()
            },
            "too long",
        ),
        (
            |_| {
                Response::builder()
                    .header("content-type", "application/dns-message")
                    .body(Full::new(vec![0; 5].into()))
                    .unwrap()
            },
            "does not match the query",
        ),
    ];
    for (make, reason) in wrong {
        let (address, _) =
            over_https(authority.acceptor("dns.example", false, &[b"h2"]), make).await;
        let upstream = [authority.upstream(https(address, Some("dns.example")))];
        assert_eq!(
            sockets.query(&upstream, &outgoing(), long()).await.unwrap_err(),
            QueryFailure::BadResponse
        );
        let error = upstream[0].report().last_error.unwrap();
        assert!(error.contains(reason), "{error}");
    }
    let (address, _) =
        over_https(authority.acceptor("dns.example", false, &[b"http/1.1"]), respond).await;
    let upstream = [authority.upstream(https(address, Some("dns.example")))];
    assert_eq!(
        sockets.query(&upstream, &outgoing(), long()).await.unwrap_err(),
        QueryFailure::Unreachable
    );
}
