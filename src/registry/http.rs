//! HTTP/1.1 requests to one server of a store, over TCP or TLS.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::failure::{Failure, FailureKind};
use super::identify::{ServerKind, excerpt};
use super::tls::{TlsTarget, describe_connect_error, describe_handshake_error, is_plain_server};
use super::{ConnectionTuning, Secret, Tls};

/// Limit on the size of one answer, in bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Maximum size of an answer that needs no permit, in bytes.
///
/// Larger answers are read one at a time, so that together they cannot exhaust the memory.
const MAX_SMALL_ANSWER_BYTES: usize = 1024 * 1024;

/// Limit on connections that are kept for later requests.
const MAX_IDLE_CONNECTIONS: usize = 8;

/// Maximum time in which a server closes a new connection that it refuses.
///
/// The end of a server also closes connections, on which queries have usually waited for longer.
const MAX_REFUSAL_TIME: Duration = Duration::from_secs(1);

/// A connection that is ready for a request.
type HttpConnection = SendRequest<Full<Bytes>>;

/// A request; it may be sent twice.
#[derive(Clone, Debug)]
pub(super) struct HttpRequest {
    pub(super) method: Method,
    /// The path with the query, both percent-encoded.
    pub(super) path: String,
    /// Headers besides `Host`, `User-Agent` and `Accept`.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl HttpRequest {
    /// Creates a request without headers and body.
    pub(super) fn new(method: Method, path: String) -> Self {
        Self { method, path, headers: HeaderMap::new(), body: Bytes::new() }
    }
}

/// A complete answer, of any status.
#[derive(Debug)]
pub(super) struct HttpResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    /// Keeps other large answers away while this one is in memory.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

impl HttpResponse {
    /// Returns the value of a header, if it is one and a text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A client of one server, shared by all requests of a session.
#[derive(Clone)]
pub(super) struct HttpClient(Arc<HttpClientState>);

struct HttpClientState {
    server: ServerKind,
    /// The server as `host:port`.
    endpoint: String,
    tls: Option<TlsTarget>,
    dial_timeout: Duration,
    /// Maximum time for reading a large answer.
    request_timeout: Duration,
    /// Connections that wait for their next request.
    idle: Mutex<Vec<HttpConnection>>,
    large_answers: Arc<Semaphore>,
}

impl HttpClient {
    /// Creates the client of a server; reads the TLS files now, and connects later.
    pub(super) async fn new(
        server: ServerKind,
        endpoint: &str,
        tls: Option<&Tls>,
        tuning: &ConnectionTuning,
    ) -> Result<Self, Failure> {
        let invalid = |text: String| Failure::new(FailureKind::Settings, text);
        let tls = match tls {
            Some(tls) => Some(tls.target(endpoint).await.map_err(invalid)?),
            None => None,
        };
        Ok(Self(Arc::new(HttpClientState {
            server,
            endpoint: endpoint.to_owned(),
            tls,
            dial_timeout: tuning.dial_timeout,
            request_timeout: tuning.request_timeout,
            idle: Mutex::default(),
            large_answers: Arc::new(Semaphore::new(1)),
        })))
    }

    /// Sends a request and reads the complete answer.
    ///
    /// Takes at most `limit`, and as long as a connection may take.
    ///
    /// # Errors
    /// If there is no complete answer; an answer of any status is none.
    pub(super) async fn send(
        &self,
        request: &HttpRequest,
        limit: Duration,
    ) -> Result<HttpResponse, Failure> {
        let limit = limit + self.0.dial_timeout;
        timeout(limit, self.exchange(request)).await.unwrap_or_else(|_| Err(incomplete(limit)))
    }

    async fn exchange(&self, request: &HttpRequest) -> Result<HttpResponse, Failure> {
        let (response, connection) = self.respond(request).await?;
        let (head, body) = response.into_parts();
        let (body, permit) = self.read_body(&head.headers, body).await?;
        // A server that has too many connections needs this one for others.
        if head.status != StatusCode::TOO_MANY_REQUESTS {
            self.keep(connection);
        }
        Ok(HttpResponse { status: head.status, headers: head.headers, body, permit })
    }

    /// Sends a request, on a kept connection if there is one.
    ///
    /// The server may have closed a kept connection: the request is then sent again.
    async fn respond(
        &self,
        request: &HttpRequest,
    ) -> Result<(Response<Incoming>, HttpConnection), Failure> {
        while let Some(mut connection) = self.take_idle() {
            if connection.ready().await.is_err() {
                continue;
            }
            if let Ok(response) = connection.send_request(self.message(request)?).await {
                return Ok((response, connection));
            }
        }
        self.respond_on_new(request).await
    }

    /// Sends a request on this number of new connections, which are open at the same time.
    ///
    /// Returns the status of each response.
    ///
    /// # Errors
    /// If one of the connections cannot be opened, or gets no response within `limit`.
    pub(super) async fn send_at_once(
        &self,
        request: &HttpRequest,
        connections: usize,
        limit: Duration,
    ) -> Result<Vec<StatusCode>, Failure> {
        let respond = |client: Self, request: HttpRequest| async move {
            client.respond_on_new(&request).await
        };
        let mut sent: JoinSet<_> =
            (0..connections).map(|_| respond(self.clone(), request.clone())).collect();
        let receive_all = async {
            // With its response unread, a connection stays open.
            let mut open = Vec::with_capacity(connections);
            while let Some(response) = sent.join_next().await {
                open.push(response.map_err(|error| Failure::connection(error.to_string()))??);
            }
            Ok(open.iter().map(|(response, _)| response.status()).collect())
        };
        timeout(limit, receive_all).await.unwrap_or_else(|_| Err(incomplete(limit)))
    }

    /// Sends a request on a new connection.
    async fn respond_on_new(
        &self,
        request: &HttpRequest,
    ) -> Result<(Response<Incoming>, HttpConnection), Failure> {
        let mut connection = self.connect().await?;
        let sent = Instant::now();
        let response = connection.send_request(self.message(request)?).await;
        match response {
            Ok(response) => Ok((response, connection)),
            Err(error) if error.is_parse() => {
                Err(Failure::new(FailureKind::OtherServer, "it does not answer in HTTP"))
            }
            // A refusal reaches the client before the request does, or as a reset.
            Err(_) if sent.elapsed() < MAX_REFUSAL_TIME => {
                let text = "the server closed the connection without an answer";
                Err(Failure::new(FailureKind::Closed, text))
            }
            Err(error) => Err(Failure::connection(error.to_string())),
        }
    }

    /// Returns a request as it is sent.
    fn message(&self, request: &HttpRequest) -> Result<Request<Full<Bytes>>, Failure> {
        let HttpRequest { method, path, headers, body } = request;
        let mut message = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.0.endpoint)
            .header(USER_AGENT, concat!("svcdns/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json")
            .body(Full::new(body.clone()))
            .map_err(|error| Failure::new(FailureKind::Settings, error.to_string()))?;
        message.headers_mut().extend(headers.clone());
        Ok(message)
    }

    /// Reads a body up to the limit on its size.
    async fn read_body(
        &self,
        headers: &HeaderMap,
        mut body: Incoming,
    ) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Failure> {
        let request_timeout = self.0.request_timeout;
        let too_large = || {
            let text = format!("the answer has more than {MAX_ANSWER_BYTES} bytes (a fixed limit)");
            Failure::new(FailureKind::TooLarge, text)
        };
        let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        if announced
            .and_then(|length| length.parse().ok())
            .is_some_and(|length: u64| length > MAX_ANSWER_BYTES as u64)
        {
            return Err(too_large());
        }
        let (mut bytes, mut permit) = (Vec::new(), None);
        let mut deadline = None;
        loop {
            let frame = match deadline {
                None => body.frame().await,
                Some(deadline) => timeout_at(deadline, body.frame())
                    .await
                    .map_err(|_| incomplete(request_timeout))?,
            };
            let Some(frame) = frame else { break };
            let cut_short = |error: hyper::Error| {
                Failure::connection(format!("the answer was cut short: {error}"))
            };
            let Ok(data) = frame.map_err(cut_short)?.into_data() else { continue };
            let length = bytes.len() + data.len();
            if length > MAX_ANSWER_BYTES {
                return Err(too_large());
            }
            if length > MAX_SMALL_ANSWER_BYTES && permit.is_none() {
                permit = Arc::clone(&self.0.large_answers).acquire_owned().await.ok();
                // A slow answer must not keep other large ones away for the whole wait.
                deadline = Some(Instant::now() + request_timeout);
            }
            bytes.extend_from_slice(&data);
        }
        Ok((bytes, permit))
    }

    fn take_idle(&self) -> Option<HttpConnection> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps a connection whose answer was read.
    fn keep(&self, connection: HttpConnection) {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.is_closed());
        if idle.len() < MAX_IDLE_CONNECTIONS {
            idle.push(connection);
        }
    }

    /// Opens a connection.
    async fn connect(&self) -> Result<HttpConnection, Failure> {
        let connect = async {
            let stream = self.connect_tcp().await?;
            match &self.0.tls {
                None => handshake(stream).await,
                Some((connector, name)) => {
                    let stream = connector.connect(name.clone(), stream).await;
                    let stream = stream.map_err(|error| {
                        if is_plain_server(&error) {
                            let text = self.0.server.no_tls();
                            return Failure::new(FailureKind::OtherServer, text);
                        }
                        let text = describe_handshake_error(&error);
                        Failure::connection(format!("TLS: {text}"))
                    })?;
                    handshake(stream).await
                }
            }
        };
        timeout(self.0.dial_timeout, connect).await.unwrap_or_else(|_| {
            let limit = self.0.dial_timeout.as_secs_f64();
            Err(Failure::connection(format!("no connection within {limit} s")))
        })
    }

    /// Opens a plain TCP connection.
    async fn connect_tcp(&self) -> Result<TcpStream, Failure> {
        let stream = TcpStream::connect(&self.0.endpoint).await;
        let stream = stream.map_err(|error| Failure::connection(describe_connect_error(&error)))?;
        // Without effect on success: requests are written at once.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<HttpConnection, Failure> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Failure::connection(error.to_string()))?;
    // The task ends once the sender is dropped, or the server closes the connection; the request
    // in flight has the error.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// Creates the failure of an answer that took too long.
fn incomplete(limit: Duration) -> Failure {
    Failure::connection(format!("no complete answer within {} s", limit.as_secs_f64()))
}

/// Returns a token as the value of a header.
///
/// # Errors
/// If it has characters that no header can hold.
pub(super) fn token_header(token: &Secret) -> Result<HeaderValue, Failure> {
    let mut header = HeaderValue::from_str(token.expose().trim()).map_err(|_| {
        let text = "the token has characters that an HTTP header cannot hold";
        Failure::new(FailureKind::Settings, text)
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// Parses the JSON of an answer.
///
/// # Errors
/// If it is not what this kind of server sends.
pub(super) fn parse_json<'de, T: Deserialize<'de>>(
    server: ServerKind,
    body: &'de [u8],
) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        let server = server.name();
        let text = format!("the answer is not {server}'s JSON ({error}): {:?}", excerpt(body));
        Failure::new(FailureKind::Answer, text)
    })
}

/// Parses the entries of a list; one that is malformed affects no other.
pub(super) fn valid_entries<'a, T: Deserialize<'a>>(
    entries: &[&'a RawValue],
) -> impl Iterator<Item = T> {
    entries.iter().filter_map(|entry| serde_json::from_str(entry.get()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::test_server::{HttpTestServer, response};

    #[tokio::test]
    async fn connections_are_kept_after_errors_but_not_after_a_refusal_for_their_number() {
        for (status, expected) in [(200, 1), (400, 1), (500, 1), (429, 3)] {
            let respond = move |_| (response(status, "{}"), Duration::ZERO);
            let server = HttpTestServer::start(respond).await;
            let tuning = ConnectionTuning::default();
            let client = HttpClient::new(ServerKind::Polaris, &server.endpoint, None, &tuning);
            let client = client.await.unwrap();
            for _ in 0..3 {
                let request = HttpRequest::new(Method::GET, "/".to_owned());
                let found = client.send(&request, Duration::from_secs(60)).await.unwrap();
                assert_eq!(found.status.as_u16(), status);
            }
            assert_eq!(server.connection_count(), expected, "{status}");
        }
    }
}
