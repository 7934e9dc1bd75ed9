//! DNS over HTTPS (RFC 8484): one HTTP/2 connection for each upstream, one POST for each query.
//!
//! The connection is opened to the upstream's configured address, so that no name is ever looked
//! up.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

use super::packet::{Packet, ResponseMatch};
use super::stream::{CONNECT_TIMEOUT, connect_tcp};
use super::{AttemptError, Upstream};
use crate::upstream::Protocol;
use crate::wire::MAX_TCP_BYTES;

/// Media type of DNS messages (RFC 8484 section 6).
const DNS_MESSAGE: &str = "application/dns-message";

/// Limit on queries in flight to one upstream.
const MAX_IN_FLIGHT: usize = 1024;

/// Time limit for one query, a new connection included.
///
/// Longer than any client waits, so that a slow response still counts for the upstream's health.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Age after which an unused connection is replaced.
///
/// A firewall or NAT on the path may have dropped the idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Interval of HTTP/2 pings on a connection in use, and time limit for the reply.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// The HTTP/2 connection to one upstream, if it is open.
#[derive(Debug)]
pub(super) struct HttpsLink {
    connection: Mutex<Option<HttpsConnection>>,
    slots: Arc<Semaphore>,
}

impl Default for HttpsLink {
    fn default() -> Self {
        Self { connection: Mutex::new(None), slots: Arc::new(Semaphore::new(MAX_IN_FLIGHT)) }
    }
}

/// An open HTTP/2 connection.
#[derive(Debug)]
struct HttpsConnection {
    sender: SendRequest<Full<Bytes>>,
    /// Opening time of the connection; identifies it.
    opened: Instant,
    last_used: Instant,
}

/// Sends a query with id 0 (RFC 8484 section 4.1) and returns the response message.
///
/// Opens a connection if there is none.
///
/// # Errors
/// Returns an error if the upstream cannot be reached or gives no valid response.
pub(super) async fn exchange(
    upstream: &Arc<Upstream>,
    packet: Packet,
) -> Result<Vec<u8>, AttemptError> {
    let slot =
        Arc::clone(&upstream.https.slots).try_acquire_owned().map_err(|_| AttemptError::Busy)?;
    // The task outlives a query that another upstream answered first: a late response, too, tells
    // how fast this upstream is.
    let task = {
        let upstream = Arc::clone(upstream);
        async move {
            let _slot = slot;
            let late = || {
                AttemptError::Unreachable(format!(
                    "no response over HTTPS within {} s",
                    QUERY_TIMEOUT.as_secs()
                ))
            };
            timeout(QUERY_TIMEOUT, send_query(&upstream, &packet))
                .await
                .unwrap_or_else(|_| Err(late()))
        }
    };
    let task = upstream.connector.runtime.spawn(task);
    task.await
        .unwrap_or_else(|_| Err(AttemptError::Unreachable("the connection was closed".to_owned())))
}

/// Sends one query, again on a new connection if the server closed the old one.
async fn send_query(upstream: &Arc<Upstream>, packet: &Packet) -> Result<Vec<u8>, AttemptError> {
    let sent = Instant::now();
    upstream.health.record_query(sent);
    let body = Bytes::copy_from_slice(&packet.bytes);
    let (mut sender, opened) = sender(upstream).await?;
    let response = match sender.send_request(request(upstream, body.clone())?).await {
        Ok(response) => response,
        // The server closed the connection just as the query was sent. Another query may have
        // opened the next connection already.
        Err(_) if opened < sent => {
            upstream
                .https
                .connection
                .lock()
                .await
                .take_if(|connection| connection.opened == opened);
            let (mut sender, _) = self::sender(upstream).await?;
            sender
                .send_request(request(upstream, body)?)
                .await
                .map_err(|error| connection_error(&error))?
        }
        Err(error) => return Err(connection_error(&error)),
    };
    if response.status() != StatusCode::OK {
        return Err(AttemptError::BadResponse(
            format!("it responds with HTTP {}", response.status()).into(),
        ));
    }
    let kind = response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(DNS_MESSAGE) {
        return Err(AttemptError::BadResponse(
            format!("its response has the type {kind:?} instead of {DNS_MESSAGE}").into(),
        ));
    }
    let body = Limited::new(response.into_body(), MAX_TCP_BYTES).collect().await;
    let message = body
        .map_err(|error| {
            AttemptError::BadResponse(
                format!("its response is incomplete or too long: {error}").into(),
            )
        })?
        .to_bytes();
    let now = Instant::now();
    upstream.health.record_response(now.saturating_duration_since(sent), now);
    match packet.match_response(&message) {
        // An off-path attacker cannot inject into a connection, so the letter case is irrelevant.
        ResponseMatch::Full | ResponseMatch::ExceptCase => Ok(message.into()),
        ResponseMatch::Stray => {
            Err(AttemptError::BadResponse("its response does not match the query".into()))
        }
    }
}

/// Describes a broken HTTP/2 connection with its cause.
fn connection_error(error: &hyper::Error) -> AttemptError {
    let cause =
        std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    AttemptError::Unreachable(format!("the HTTPS connection broke: {error}{cause}"))
}

/// Builds the POST request for a query.
fn request(upstream: &Upstream, body: Bytes) -> Result<Request<Full<Bytes>>, AttemptError> {
    let Protocol::Https { name, path } = &upstream.target.protocol else {
        return Err(AttemptError::Unreachable("it is not configured for HTTPS".to_owned()));
    };
    let address = upstream.target.address;
    let host = match (name, address.ip()) {
        (Some(name), _) => name.to_string(),
        (None, IpAddr::V4(address)) => address.to_string(),
        (None, IpAddr::V6(address)) => format!("[{address}]"),
    };
    let port = if address.port() == 443 { String::new() } else { format!(":{}", address.port()) };
    let request = Request::post(format!("https://{host}{port}{path}"))
        .header(CONTENT_TYPE, DNS_MESSAGE)
        .header(ACCEPT, DNS_MESSAGE);
    request.body(Full::new(body)).map_err(|error| {
        AttemptError::Unreachable(format!("cannot build an HTTP request: {error}"))
    })
}

/// Returns a handle to the open connection and the time when it was opened.
async fn sender(
    upstream: &Arc<Upstream>,
) -> Result<(SendRequest<Full<Bytes>>, Instant), AttemptError> {
    // The lock is held while connecting, so that other queries wait for the same connection.
    let mut connection = upstream.https.connection.lock().await;
    if let Some(connection) = connection.as_mut().filter(|connection| {
        !connection.sender.is_closed() && connection.last_used.elapsed() < IDLE_TIMEOUT
    }) {
        connection.last_used = Instant::now();
        return Ok((connection.sender.clone(), connection.opened));
    }
    *connection = None;
    let late = || format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
    let connected =
        timeout(CONNECT_TIMEOUT, connect(upstream)).await.unwrap_or_else(|_| Err(late()));
    let sender = connected.map_err(AttemptError::Unreachable)?;
    let opened = Instant::now();
    *connection = Some(HttpsConnection { sender: sender.clone(), opened, last_used: opened });
    Ok((sender, opened))
}

/// Opens an HTTP/2 connection to the upstream.
async fn connect(upstream: &Upstream) -> Result<SendRequest<Full<Bytes>>, String> {
    let Protocol::Https { name, .. } = &upstream.target.protocol else {
        return Err("it is not configured for HTTPS".to_owned());
    };
    let stream = connect_tcp(upstream).await?;
    let stream = upstream
        .connector
        .trust_anchors
        .handshake(stream, name.as_deref(), upstream.target.address.ip(), true)
        .await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("it does not offer HTTP/2, which DNS over HTTPS requires".to_owned());
    }
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
    let (sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("HTTP/2: {error}"))?;
    // This code runs on the runtime of the connections, so the spawned task does, too.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a DNS over HTTPS connection ended");
        }
    });
    Ok(sender)
}
