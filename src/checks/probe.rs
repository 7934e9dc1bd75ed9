//! A single check of an endpoint.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig};

use super::tls::CertificateRequest;
use super::{CheckFailure, Settings, tls};
use crate::service::{CheckTarget, Probe};
use crate::tls_error;

/// Limit on the headers of a response, in bytes.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Limit on the body that a check reads, in bytes.
///
/// The body is read so that the server can send all of it and reports no broken connection.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// Name under which requests appear in the logs of servers.
const AGENT: &str = concat!("svcdns/", env!("CARGO_PKG_VERSION"), " (check)");

/// The scheme of an HTTP check.
///
/// Registrations do not tell it reliably: a server of GoFrame that has its certificate from files
/// registers as `http`. A check therefore tries the other scheme if a response suggests it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum HttpScheme {
    /// HTTP over TCP.
    #[default]
    Http,
    /// HTTP over TLS.
    Https,
}

impl HttpScheme {
    fn other(self) -> Self {
        match self {
            Self::Http => Self::Https,
            Self::Https => Self::Http,
        }
    }
}

/// Performs checks.
#[derive(Debug)]
pub(super) struct Prober {
    settings: Settings,
    tls: Option<Arc<ClientConfig>>,
}

impl Prober {
    /// Creates a prober with these settings.
    pub(super) fn new(settings: Settings) -> Self {
        let tls = tls::config().inspect_err(|error| {
            tracing::error!(%error, "cannot use TLS: no check uses it");
        });
        Self { settings, tls: tls.ok().map(Arc::new) }
    }

    /// Checks an endpoint once, within the timeout; an HTTP check begins with this scheme.
    ///
    /// Also returns the scheme that the server speaks, as far as is known.
    pub(super) async fn probe(
        &self,
        target: CheckTarget,
        scheme: HttpScheme,
    ) -> (HttpScheme, Result<(), CheckFailure>) {
        let deadline = Instant::now() + self.settings.timeout;
        let address = target.socket_address();
        match target.probe {
            Probe::Tcp => (scheme, connect(address, deadline).await.map(drop)),
            Probe::Http => {
                let result = self.request(address, scheme, deadline).await;
                if !suggests_other_scheme(scheme, result) {
                    // A server that has given up TLS may wait for more than the start of a
                    // handshake.
                    let silent = result == Err(CheckFailure::NoResponse);
                    return (if silent { HttpScheme::Http } else { scheme }, result);
                }
                let other = self.request(address, scheme.other(), deadline).await;
                let is_response = matches!(other, Ok(()) | Err(CheckFailure::Status(_)));
                if is_response && !suggests_other_scheme(scheme.other(), other) {
                    (scheme.other(), other)
                } else {
                    (scheme, result)
                }
            }
        }
    }

    /// Requests the path with a scheme.
    async fn request(
        &self,
        address: SocketAddr,
        scheme: HttpScheme,
        deadline: Instant,
    ) -> Result<(), CheckFailure> {
        let stream = connect(address, deadline).await?;
        let path = &self.settings.path;
        let status = match scheme {
            HttpScheme::Http => get(stream, address, path, deadline).await,
            HttpScheme::Https => {
                let tls = self.tls.clone();
                let tls = tls.ok_or(CheckFailure::Local(ErrorKind::Unsupported))?;
                let certificate = Arc::<CertificateRequest>::default();
                let tls = Arc::new(tls::noting_request(&tls, Arc::clone(&certificate)));
                let handshake =
                    TlsConnector::from(tls).connect(ServerName::from(address.ip()), stream);
                let status = match timeout_at(deadline, handshake).await {
                    Ok(Ok(stream)) => get(stream, address, path, deadline).await,
                    Ok(Err(error)) => Err(failure_of_tls(&error)),
                    Err(_) => Err(NoStatus::Check(CheckFailure::NoResponse)),
                };
                match status {
                    // The server closes after its alert, and the reset that the unread request
                    // causes may overtake the alert.
                    Err(NoStatus::Check(CheckFailure::Closed)) if certificate.was_received() => {
                        Err(NoStatus::RefusedByTls)
                    }
                    status => status,
                }
            }
        };
        match status {
            Ok(status) if status.is_success() || status.is_redirection() => Ok(()),
            Ok(status) => Err(CheckFailure::Status(status.as_u16())),
            Err(NoStatus::RefusedByTls) => Ok(()),
            Err(NoStatus::Check(failure)) => Err(failure),
        }
    }
}

/// Reason why a request has no response.
enum NoStatus {
    /// The check fails.
    Check(CheckFailure),
    /// The server works, but accepts no client like this one: it demands a certificate, perhaps.
    RefusedByTls,
}

/// Returns whether the result may be that of a server that speaks the other scheme.
///
/// A server of TLS closes a connection without TLS, sends an alert, or responds with status 400, as
/// those of Go and nginx do.
fn suggests_other_scheme(scheme: HttpScheme, result: Result<(), CheckFailure>) -> bool {
    match result {
        Err(CheckFailure::Closed | CheckFailure::NotHttp) => true,
        Err(CheckFailure::Status(400)) => scheme == HttpScheme::Http,
        _ => false,
    }
}

async fn connect(address: SocketAddr, deadline: Instant) -> Result<TcpStream, CheckFailure> {
    let connected = timeout_at(deadline, TcpStream::connect(address)).await;
    let stream = connected
        .map_err(|_| CheckFailure::NoConnection)?
        .map_err(|error| CheckFailure::of_connect(&error))?;
    // TCP connects a socket to itself if the kernel picks the target as its own port: nobody
    // listens there, and the connection must not keep the port from a program that starts.
    if stream.local_addr().is_ok_and(|own| own == address) {
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        return Err(CheckFailure::Refused);
    }
    Ok(stream)
}

/// Requests a path, and returns the status of the final response; follows no redirect.
async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    address: SocketAddr,
    path: &str,
    deadline: Instant,
) -> Result<StatusCode, NoStatus> {
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, AGENT)
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| NoStatus::Check(CheckFailure::NotHttp))?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEADER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failure_of(&error))?;
    let mut connection = std::pin::pin!(connection);
    let mut connection_ended = false;
    let exchange = async {
        let mut response =
            sender.send_request(request).await.map_err(|error| failure_of(&error))?;
        let _ = timeout_at(deadline, drain(&mut response)).await;
        Ok(response.status())
    };
    let mut exchange = std::pin::pin!(timeout_at(deadline, exchange));
    loop {
        tokio::select! {
            result = &mut exchange => {
                return result.unwrap_or(Err(NoStatus::Check(CheckFailure::NoResponse)));
            }
            _ = &mut connection, if !connection_ended => connection_ended = true,
        }
    }
}

/// Reads the body up to its limit; its content does not matter, nor does an error.
async fn drain(response: &mut Response<hyper::body::Incoming>) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = response.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > MAX_BODY_BYTES {
            return;
        }
    }
}

/// Returns why there is no response.
fn failure_of(error: &hyper::Error) -> NoStatus {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match io {
        Some(io) => failure_of_tls(io),
        None if error.is_parse() => NoStatus::Check(CheckFailure::NotHttp),
        None => NoStatus::Check(CheckFailure::Closed),
    }
}

/// Returns why a stream, perhaps over TLS, has failed.
fn failure_of_tls(error: &io::Error) -> NoStatus {
    match tls_error::inside(error) {
        None => NoStatus::Check(CheckFailure::Closed),
        Some(rustls::Error::InvalidMessage(_)) => NoStatus::Check(CheckFailure::NotHttp),
        Some(_) => NoStatus::RefusedByTls,
    }
}
