//! DNS over HTTPS (RFC 8484): each question a POST with the message's octets, all of them on one HTTP/2 connection.
//!
//! hyper carries the octets; where to connect is said by the upstream's address, so that no name is ever looked up.

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

use super::question::{Fit, Packet};
use super::stream::{CONNECT, tcp};
use super::{Miss, Upstream};
use crate::upstream::Protocol;
use crate::wire::MAX_TCP_BYTES;

/// The media type of messages (RFC 8484 section 6).
const MESSAGE: &str = "application/dns-message";

/// Questions under way to one upstream.
const MOST: usize = 1024;

/// One question, a new connection included; nobody waits so long.
const LIMIT: Duration = Duration::from_secs(5);

/// A connection that was not used for so long is given up: what lies between may have forgotten it.
const IDLE: Duration = Duration::from_secs(30);

/// How often a connection in use is asked whether it still lives, and how long it may take to say so.
const ALIVE: Duration = Duration::from_secs(3);

/// The connection to one upstream, while there is one.
#[derive(Debug)]
pub(super) struct Https {
    held: Mutex<Option<Held>>,
    room: Arc<Semaphore>,
}

impl Default for Https {
    fn default() -> Self {
        Self { held: Mutex::new(None), room: Arc::new(Semaphore::new(MOST)) }
    }
}

#[derive(Debug)]
struct Held {
    sender: SendRequest<Full<Bytes>>,
    /// When it was made: tells it from others.
    made: Instant,
    used: Instant,
}

/// Asks on the upstream's connection; makes one where there is none. Its id is 0 (RFC 8484 section 4.1).
///
/// # Errors
/// When there is no connection or no answer.
pub(super) async fn exchange(upstream: &Arc<Upstream>, packet: Packet) -> Result<Vec<u8>, Miss> {
    let room = Arc::clone(&upstream.https.room).try_acquire_owned().map_err(|_| Miss::Busy)?;
    // A task on the connections' runtime, which outlives a question that has its answer from somebody else: a late one, too,
    // tells how fast this upstream is.
    let task = {
        let upstream = Arc::clone(upstream);
        async move {
            let _room = room;
            let late = || Miss::Unreachable(format!("no answer over HTTPS within {} s", LIMIT.as_secs()));
            timeout(LIMIT, ask(&upstream, &packet)).await.unwrap_or_else(|_| Err(late()))
        }
    };
    let task = upstream.connector.runtime.spawn(task);
    task.await.unwrap_or_else(|_| Err(Miss::Unreachable("the connection was closed".to_owned())))
}

async fn ask(upstream: &Arc<Upstream>, packet: &Packet) -> Result<Vec<u8>, Miss> {
    let sent = Instant::now();
    upstream.health.asked(sent);
    let body = Bytes::copy_from_slice(&packet.octets);
    let (mut sender, made) = sender(upstream).await?;
    let response = match sender.send_request(request(upstream, body.clone())?).await {
        Ok(response) => response,
        // Its end and our question met. Other questions that met it, too, may have made the next one already.
        Err(_) if made < sent => {
            upstream.https.held.lock().await.take_if(|held| held.made == made);
            let (mut sender, _) = self::sender(upstream).await?;
            sender.send_request(request(upstream, body)?).await.map_err(|error| broken(&error))?
        }
        Err(error) => return Err(broken(&error)),
    };
    if response.status() != StatusCode::OK {
        return Err(Miss::Bad(format!("it answers HTTP {}", response.status()).into()));
    }
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(MESSAGE) {
        return Err(Miss::Bad(format!("it answers with {kind:?} instead of {MESSAGE}").into()));
    }
    let body = Limited::new(response.into_body(), MAX_TCP_BYTES).collect().await;
    let message = body.map_err(|error| Miss::Bad(format!("its answer breaks off or is too long: {error}").into()))?.to_bytes();
    let now = Instant::now();
    upstream.health.answered(now.saturating_duration_since(sent), now);
    match packet.fits(&message) {
        // Nobody can guess his way into a connection; letters do not matter.
        Fit::Answer | Fit::OtherCase => Ok(message.into()),
        Fit::Stray => Err(Miss::Bad("it answers what nobody asked".into())),
    }
}

fn broken(error: &hyper::Error) -> Miss {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    Miss::Unreachable(format!("the HTTPS connection broke: {error}{cause}"))
}

fn request(upstream: &Upstream, body: Bytes) -> Result<Request<Full<Bytes>>, Miss> {
    let Protocol::Https { name, path } = &upstream.target.protocol else {
        return Err(Miss::Unreachable("it is not spoken to over HTTPS".to_owned()));
    };
    let address = upstream.target.address;
    let host = match (name, address.ip()) {
        (Some(name), _) => name.to_string(),
        (None, IpAddr::V4(address)) => address.to_string(),
        (None, IpAddr::V6(address)) => format!("[{address}]"),
    };
    let port = if address.port() == 443 { String::new() } else { format!(":{}", address.port()) };
    let request = Request::post(format!("https://{host}{port}{path}")).header(CONTENT_TYPE, MESSAGE).header(ACCEPT, MESSAGE);
    request.body(Full::new(body)).map_err(|error| Miss::Unreachable(format!("no request can be made for it: {error}")))
}

/// The way into the connection in force, and when that was made.
async fn sender(upstream: &Arc<Upstream>) -> Result<(SendRequest<Full<Bytes>>, Instant), Miss> {
    // Held while connecting: others wait for the same connection.
    let mut held = upstream.https.held.lock().await;
    if let Some(held) = held.as_mut().filter(|held| !held.sender.is_closed() && held.used.elapsed() < IDLE) {
        held.used = Instant::now();
        return Ok((held.sender.clone(), held.made));
    }
    *held = None;
    let late = || format!("no connection within {} s", CONNECT.as_secs());
    let connected = timeout(CONNECT, connect(upstream)).await.unwrap_or_else(|_| Err(late()));
    let sender = connected.map_err(Miss::Unreachable)?;
    let made = Instant::now();
    *held = Some(Held { sender: sender.clone(), made, used: made });
    Ok((sender, made))
}

async fn connect(upstream: &Upstream) -> Result<SendRequest<Full<Bytes>>, String> {
    let Protocol::Https { name, .. } = &upstream.target.protocol else {
        return Err("it is not spoken to over HTTPS".to_owned());
    };
    let stream = tcp(upstream).await?;
    let stream = upstream.connector.trust.handshake(stream, name.as_deref(), upstream.target.address.ip(), true).await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("it does not speak HTTP/2, which DNS over HTTPS needs".to_owned());
    }
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(ALIVE).keep_alive_timeout(ALIVE);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|error| format!("HTTP/2: {error}"))?;
    // On the runtime of the connections, as we are here.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection of DNS over HTTPS ended");
        }
    });
    Ok(sender)
}
