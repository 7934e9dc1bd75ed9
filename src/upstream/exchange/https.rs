//! DNS over HTTPS (RFC 8484): one HTTP/2 connection for each upstream, one POST for each query.
//!
//! The connection is opened to the upstream's configured address, so no name needs to be looked up.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
use super::reconnect::{Answered, ConnectError, LostConnections, MAX_EXCLUSIVE_CONNECTIONS};
use super::stream::{CONNECT_TIMEOUT, connect_tcp};
use super::{AttemptError, Upstream};
use crate::upstream::Protocol;
use crate::wire::MAX_TCP_BYTES;

/// Media type of DNS messages (RFC 8484 section 6).
const DNS_MESSAGE: &str = "application/dns-message";

/// Limit on queries in flight to one upstream.
const MAX_IN_FLIGHT: usize = 1024;

/// Time limit for one query, including a new connection.
///
/// The limit exceeds the longest wait of a client, so that a slow response still counts for the
/// upstream's health.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Age after which an unused connection is replaced.
///
/// A firewall or NAT on the path may have dropped the idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Interval of HTTP/2 pings on a connection in use, and time limit for the reply.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// The HTTP/2 connections to one upstream.
#[derive(Debug)]
pub(super) struct HttpsLink {
    /// The connection that queries share, if it is open.
    shared: Mutex<Option<HttpsConnection>>,
    slots: Arc<Semaphore>,
    /// One permit for each connection that carries a single query.
    exclusive_permits: Semaphore,
    /// Number of responses that have arrived on all connections.
    responses: AtomicUsize,
}

impl Default for HttpsLink {
    fn default() -> Self {
        Self {
            shared: Mutex::new(None),
            slots: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            exclusive_permits: Semaphore::new(MAX_EXCLUSIVE_CONNECTIONS),
            responses: AtomicUsize::new(0),
        }
    }
}

/// An open HTTP/2 connection.
#[derive(Clone, Debug)]
struct HttpsConnection {
    sender: SendRequest<Full<Bytes>>,
    /// Number of responses received on this connection; also identifies the connection.
    responses: Arc<AtomicUsize>,
    last_used: Instant,
}

impl HttpsConnection {
    /// Returns the numbers of responses on this connection and on all connections.
    fn responses(&self, upstream: &Upstream) -> [usize; 2] {
        [&*self.responses, &upstream.https.responses].map(|count| count.load(Ordering::Relaxed))
    }
}

/// Reason why one request gave no response.
enum RequestError {
    /// The connection ended before the response was complete, with the reason.
    Disconnected(String),
    /// The request failed, and another connection would not help.
    Failed(AttemptError),
}

/// Sends a query with ID 0 (RFC 8484 section 4.1) and returns the response message.
///
/// Opens a connection if there is none. If the connection ends, the query is sent again on the next
/// one. An `exclusive` query gets its own connection if possible.
///
/// # Errors
/// Returns an error if the upstream cannot be reached or gives no valid response.
pub(super) async fn exchange(
    upstream: &Arc<Upstream>,
    packet: Packet,
    exclusive: bool,
) -> Result<Vec<u8>, AttemptError> {
    let slot =
        Arc::clone(&upstream.https.slots).try_acquire_owned().map_err(|_| AttemptError::Busy)?;
    // The task outlives a query that another upstream answered first, because even a late response
    // shows how fast this upstream is.
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
            timeout(QUERY_TIMEOUT, send_query(&upstream, &packet, exclusive))
                .await
                .unwrap_or_else(|_| Err(late()))
        }
    };
    let task = upstream.connector.runtime.spawn(task);
    task.await
        .unwrap_or_else(|_| Err(AttemptError::Unreachable("the connection was closed".to_owned())))
}

/// Sends one query; repeats it on a new connection if the server closes one.
async fn send_query(
    upstream: &Arc<Upstream>,
    packet: &Packet,
    exclusive: bool,
) -> Result<Vec<u8>, AttemptError> {
    let body = Bytes::copy_from_slice(&packet.bytes);
    let mut lost = LostConnections::default();
    loop {
        let request = request(upstream, body.clone())?;
        let sent = Instant::now();
        upstream.health.record_query(sent);
        let all_before = upstream.https.responses.load(Ordering::Relaxed);
        let permit = (exclusive || lost.need_exclusive())
            .then(|| upstream.https.exclusive_permits.try_acquire().ok())
            .flatten();
        let connection =
            if permit.is_some() { open(upstream).await } else { shared(upstream).await };
        let (reason, answered) = match connection {
            Ok(mut connection) => {
                let before = connection.responses(upstream);
                match send_request(&mut connection.sender, request).await {
                    Ok(message) => {
                        connection.responses.fetch_add(1, Ordering::Relaxed);
                        upstream.https.responses.fetch_add(1, Ordering::Relaxed);
                        return accept(upstream, packet, sent, message);
                    }
                    Err(RequestError::Failed(error)) => return Err(error),
                    Err(RequestError::Disconnected(reason)) => {
                        forget(upstream, &connection).await;
                        (reason, Answered::between(before, connection.responses(upstream)))
                    }
                }
            }
            Err(ConnectError { reason, closed: true }) => {
                let after = upstream.https.responses.load(Ordering::Relaxed);
                (reason, Answered::between([0, all_before], [0, after]))
            }
            Err(ConnectError { reason, closed: false }) => {
                return Err(AttemptError::Unreachable(reason));
            }
        };
        match lost.record(answered) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(AttemptError::Unreachable(reason)),
        }
    }
}

/// Sends a request and reads the whole response.
async fn send_request(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<Bytes, RequestError> {
    let bad = |reason: String| RequestError::Failed(AttemptError::BadResponse(reason.into()));
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| RequestError::Disconnected(connection_error(&error)))?;
    if response.status() != StatusCode::OK {
        return Err(bad(format!("it responds with HTTP {}", response.status())));
    }
    let kind = response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(DNS_MESSAGE) {
        return Err(bad(format!("its response has the type {kind:?} instead of {DNS_MESSAGE}")));
    }
    match Limited::new(response.into_body(), MAX_TCP_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(match error.downcast_ref::<hyper::Error>() {
            Some(error) => RequestError::Disconnected(connection_error(error)),
            None => bad(format!("its response is too long: {error}")),
        }),
    }
}

/// Checks the response to a query that was sent at `sent`.
fn accept(
    upstream: &Upstream,
    packet: &Packet,
    sent: Instant,
    message: Bytes,
) -> Result<Vec<u8>, AttemptError> {
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
fn connection_error(error: &hyper::Error) -> String {
    let cause =
        std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("the HTTPS connection broke: {error}{cause}")
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

/// Returns the shared connection, and opens it if necessary.
async fn shared(upstream: &Arc<Upstream>) -> Result<HttpsConnection, ConnectError> {
    // The lock is held while connecting, so that other queries wait for the same connection.
    let mut shared = upstream.https.shared.lock().await;
    if let Some(connection) = shared.as_mut().filter(|connection| {
        !connection.sender.is_closed() && connection.last_used.elapsed() < IDLE_TIMEOUT
    }) {
        connection.last_used = Instant::now();
        return Ok(connection.clone());
    }
    *shared = None;
    Ok(shared.insert(open(upstream).await?).clone())
}

/// Stops sharing a connection that has ended, unless another one has replaced it.
async fn forget(upstream: &Upstream, ended: &HttpsConnection) {
    let mut shared = upstream.https.shared.lock().await;
    shared.take_if(|connection| Arc::ptr_eq(&connection.responses, &ended.responses));
}

/// Opens a connection within [`CONNECT_TIMEOUT`].
async fn open(upstream: &Upstream) -> Result<HttpsConnection, ConnectError> {
    let late = || format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
    let sender =
        timeout(CONNECT_TIMEOUT, connect(upstream)).await.unwrap_or_else(|_| Err(late().into()))?;
    Ok(HttpsConnection { sender, responses: Arc::default(), last_used: Instant::now() })
}

/// Opens an HTTP/2 connection to the upstream.
async fn connect(upstream: &Upstream) -> Result<SendRequest<Full<Bytes>>, ConnectError> {
    let Protocol::Https { name, .. } = &upstream.target.protocol else {
        return Err("it is not configured for HTTPS".to_owned().into());
    };
    let stream = connect_tcp(upstream).await?;
    let stream = upstream
        .connector
        .trust_anchors
        .handshake(stream, name.as_deref(), upstream.target.address.ip(), true)
        .await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("it does not offer HTTP/2, which DNS over HTTPS requires".to_owned().into());
    }
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
    let (sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("HTTP/2: {error}"))?;
    // This code runs on the runtime of the connections, and so does the spawned task.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a DNS over HTTPS connection ended");
        }
    });
    Ok(sender)
}
