//! DNS over HTTPS (RFC 8484): each question a POST with the message's bytes, all of them on one HTTP/2 connection.
//!
//! hyper carries the bytes; where to connect is said by the upstream's address, so that no name is ever looked up.

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
use crate::wire::TCP_MAX;

/// The media type of messages (RFC 8484 section 6).
const DNS_MESSAGE: &str = "application/dns-message";

/// Questions under way to one upstream.
const MAX_IN_FLIGHT: usize = 1024;

/// One question, a new connection included; nobody waits so long.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that was not last_used for so long is given up: what lies between may have forgotten it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a connection in use is asked whether it still lives, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// The connection to one upstream, while there is one.
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

#[derive(Debug)]
struct HttpsConnection {
    sender: SendRequest<Full<Bytes>>,
    /// When it was opened: tells it from others.
    opened: Instant,
    last_used: Instant,
}

/// Asks on the upstream's connection; makes one where there is none. Its id is 0 (RFC 8484 section 4.1).
///
/// # Errors
/// When there is no connection or no answer.
pub(super) async fn exchange(
    upstream: &Arc<Upstream>,
    packet: Packet,
) -> Result<Vec<u8>, AttemptError> {
    let slot =
        Arc::clone(&upstream.https.slots).try_acquire_owned().map_err(|_| AttemptError::Busy)?;
    // A task on the connections' runtime, which outlives a question that has its answer from somebody else: a late one, too,
    // tells how fast this upstream is.
    let task = {
        let upstream = Arc::clone(upstream);
        async move {
            let _slot = slot;
            let late = || {
                AttemptError::Unreachable(format!(
                    "no answer over HTTPS within {} s",
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

async fn send_query(upstream: &Arc<Upstream>, packet: &Packet) -> Result<Vec<u8>, AttemptError> {
    let sent = Instant::now();
    upstream.health.record_query(sent);
    let body = Bytes::copy_from_slice(&packet.bytes);
    let (mut sender, opened) = sender(upstream).await?;
    let response = match sender.send_request(request(upstream, body.clone())?).await {
        Ok(response) => response,
        // Its end and our question met. Other questions that met it, too, may have opened the next one already.
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
            format!("it answers HTTP {}", response.status()).into(),
        ));
    }
    let kind = response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(DNS_MESSAGE) {
        return Err(AttemptError::BadResponse(
            format!("it answers with {kind:?} instead of {DNS_MESSAGE}").into(),
        ));
    }
    let body = Limited::new(response.into_body(), TCP_MAX).collect().await;
    let message = body
        .map_err(|error| {
            AttemptError::BadResponse(
                format!("its answer breaks off or is too long: {error}").into(),
            )
        })?
        .to_bytes();
    let now = Instant::now();
    upstream.health.record_response(now.saturating_duration_since(sent), now);
    match packet.match_response(&message) {
        // Nobody can guess his way into a connection; letters do not matter.
        ResponseMatch::Full | ResponseMatch::ExceptCase => Ok(message.into()),
        ResponseMatch::Stray => {
            Err(AttemptError::BadResponse("it answers what nobody asked".into()))
        }
    }
}

fn connection_error(error: &hyper::Error) -> AttemptError {
    let cause =
        std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    AttemptError::Unreachable(format!("the HTTPS connection broke: {error}{cause}"))
}

fn request(upstream: &Upstream, body: Bytes) -> Result<Request<Full<Bytes>>, AttemptError> {
    let Protocol::Https { name, path } = &upstream.target.protocol else {
        return Err(AttemptError::Unreachable("it is not spoken to over HTTPS".to_owned()));
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
        AttemptError::Unreachable(format!("no request can be opened for it: {error}"))
    })
}

/// The way into the connection in force, and when that was opened.
async fn sender(
    upstream: &Arc<Upstream>,
) -> Result<(SendRequest<Full<Bytes>>, Instant), AttemptError> {
    // HttpsConnection while connecting: others wait for the same connection.
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

async fn connect(upstream: &Upstream) -> Result<SendRequest<Full<Bytes>>, String> {
    let Protocol::Https { name, .. } = &upstream.target.protocol else {
        return Err("it is not spoken to over HTTPS".to_owned());
    };
    let stream = connect_tcp(upstream).await?;
    let stream = upstream
        .connector
        .trust_anchors
        .handshake(stream, name.as_deref(), upstream.target.address.ip(), true)
        .await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("it does not speak HTTP/2, which DNS over HTTPS needs".to_owned());
    }
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
    let (sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("HTTP/2: {error}"))?;
    // On the runtime of the connections, as we are here.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection of DNS over HTTPS ended");
        }
    });
    Ok(sender)
}
