//! Requests to one agent.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::{AgentConnector, HttpConnection};
use super::failure::{ConsulFailure, ConsulFailureKind};
use super::{Reads, Settings};
use crate::registry::Secret;
use crate::registry::identify::excerpt;

/// Maximum size of an answer that needs no permit, in bytes.
///
/// Larger answers are read one at a time, so that together they cannot exhaust the memory.
const MAX_SMALL_ANSWER_BYTES: usize = 1024 * 1024;

/// Limit on connections that are kept for later requests.
const MAX_IDLE_CONNECTIONS: usize = 8;

/// Maximum time in which a server closes a new connection that it refuses.
///
/// The end of an agent also closes connections, on which queries have usually waited for longer.
const MAX_REFUSAL_TIME: Duration = Duration::from_secs(1);

/// The service that Consul's own servers register.
const OWN_SERVICE: &str = "consul";

/// A client of one agent, shared by all queries of a session.
#[derive(Clone)]
pub(super) struct ConsulClient(Arc<ClientState>);

struct ClientState {
    connector: AgentConnector,
    token: Option<Secret>,
    token_header: Option<HeaderValue>,
    token_keys: Option<String>,
    /// Parameters of all reads: datacenter, namespace and consistency.
    read_parameters: Vec<String>,
    /// Parameters of registrations: the namespace.
    write_parameters: String,
    max_answer_bytes: usize,
    dial_timeout: Duration,
    request_timeout: Duration,
    /// Connections that wait for their next request.
    idle: Mutex<Vec<HttpConnection>>,
    large_answers: Arc<Semaphore>,
}

/// A response with status 200.
pub(super) struct Answer {
    /// The index of the state that the answer shows; 0 if it is missing or malformed.
    pub(super) index: u64,
    has_index: bool,
    /// Whether the agent left out what the token may not read.
    pub(super) is_filtered: bool,
    /// Whether Consul denies what no policy of the token allows.
    denies_by_default: bool,
    pub(super) body: Vec<u8>,
    /// Keeps other large answers away while this one is in memory.
    _permit: Option<OwnedSemaphorePermit>,
}

#[cfg(test)]
impl Answer {
    /// Creates an answer with this body.
    pub(super) fn of_body(body: Vec<u8>) -> Self {
        let (index, has_index, is_filtered, denies_by_default) = (1, true, false, false);
        Self { index, has_index, is_filtered, denies_by_default, body, _permit: None }
    }
}

/// The names of all services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NameList {
    pub(super) index: u64,
    pub(super) names: BTreeSet<Box<str>>,
}

impl ConsulClient {
    /// Creates the client of an agent, with the current token; connects later.
    pub(super) async fn new(settings: &Settings, endpoint: &str) -> Result<Self, ConsulFailure> {
        let invalid = |text: String| ConsulFailure::new(ConsulFailureKind::Settings, text);
        let connector = AgentConnector::new(settings, endpoint).await?;
        let token = match &settings.token {
            Some(token) => Some(token.read().await.map_err(|error| invalid(error.to_string()))?),
            None => None,
        };
        let token_header = match &token {
            Some(token) => {
                let mut header = HeaderValue::from_str(token.expose().trim()).map_err(|_| {
                    invalid(
                        "the ACL token has characters that an HTTP header cannot hold".to_owned(),
                    )
                })?;
                header.set_sensitive(true);
                Some(header)
            }
            None => None,
        };
        let parameter = |name: &str, value: Option<&String>| {
            value.map(|value| format!("{name}={}", encode(value)))
        };
        let namespace = parameter("ns", settings.namespace.as_ref());
        let reads = (settings.reads != Reads::Default).then(|| settings.reads.name().to_owned());
        let read_parameters =
            [parameter("dc", settings.datacenter.as_ref()), namespace.clone(), reads];
        Ok(Self(Arc::new(ClientState {
            connector,
            token,
            token_header,
            token_keys: settings.token_keys.clone(),
            read_parameters: read_parameters.into_iter().flatten().collect(),
            write_parameters: namespace.unwrap_or_default(),
            max_answer_bytes: settings.tuning.max_answer_bytes,
            dial_timeout: settings.tuning.dial_timeout,
            request_timeout: settings.tuning.request_timeout,
            idle: Mutex::default(),
            large_answers: Arc::new(Semaphore::new(1)),
        })))
    }

    /// Reads the names of all services, after a change since `index` or a wait of `wait`.
    ///
    /// Index 0 does not wait.
    pub(super) async fn names(
        &self,
        index: u64,
        wait: Duration,
    ) -> Result<NameList, ConsulFailure> {
        let action = "list the services";
        let answer = self.read(action, "/v1/catalog/services", index, wait).await?;
        // Unlike a map, a set takes no memory for the tags.
        let names: NameSet = parse(action, &answer.body)?;
        if names.0.is_empty() && (answer.denies_by_default || answer.is_filtered) {
            // Consul filters what the token may not read, its own service included.
            let remedy = match &self.0.token_keys {
                Some(keys) => format!("check the policies of the token in {keys}"),
                None => "configure an ACL token (token-file)".to_owned(),
            };
            let text = format!(
                "cannot {action}: the ACL default policy is deny, and no policy allows reading any \
                 service: {remedy}; it needs service_prefix \"\" and node_prefix \"\" with read"
            );
            return Err(ConsulFailure::new(ConsulFailureKind::Permission, text));
        }
        let mut names = names.0;
        names.remove(OWN_SERVICE);
        Ok(NameList { index: answer.index, names })
    }

    /// Reads the names like [`ConsulClient::names`] without waiting, and identifies other servers.
    pub(super) async fn probe(&self) -> Result<NameList, ConsulFailure> {
        let result = self.names(0, Duration::ZERO).await;
        let Err(failure) = result else { return result };
        let is_suspect = matches!(
            failure.kind,
            ConsulFailureKind::OtherServer
                | ConsulFailureKind::Closed
                | ConsulFailureKind::Missing
                | ConsulFailureKind::Answer
        );
        if !is_suspect {
            return Err(failure);
        }
        let found = self.0.connector.describe_server().await;
        Err(match found {
            Some(found) => self.hide(ConsulFailure::new(ConsulFailureKind::OtherServer, found)),
            None => failure,
        })
    }

    /// Reads the instances of a service with their checks, after a change since `index`.
    pub(super) async fn instances(
        &self,
        name: &str,
        index: u64,
        wait: Duration,
    ) -> Result<Answer, ConsulFailure> {
        let action = format!("read the service {name:?}");
        let path = format!("/v1/health/service/{}", encode(name));
        self.read(&action, &path, index, wait).await
    }

    /// Checks that the agent answers and its cluster has a leader.
    pub(super) async fn check_leader(&self, limit: Duration) -> Result<(), ConsulFailure> {
        let action = "check the agent";
        let answer = self.send(Method::GET, "/v1/status/leader", String::new(), limit).await;
        let leader: String = answer
            .and_then(|answer| parse_body(&answer.body))
            .map_err(|failure| self.hide(failure.of(action)))?;
        if leader.is_empty() {
            return Err(ConsulFailure::no_leader().of(action));
        }
        Ok(())
    }

    /// Checks that the agent accepts this number of further connections, open at the same time.
    ///
    /// All but a refusal of a connection counts as room; the check of the leader notices failures.
    pub(super) async fn check_room(
        &self,
        connections: usize,
        limit: Duration,
    ) -> Result<(), ConsulFailure> {
        let open = |client: Self| async move {
            let path = "/v1/status/leader";
            let (response, connection) =
                client.respond_on_new(&Method::GET, path, &Bytes::new()).await?;
            match response.status() {
                status @ StatusCode::TOO_MANY_REQUESTS => {
                    Err(ConsulFailure::of_status(status, b"", None))
                }
                // With its response unread, the connection stays open.
                _ => Ok((response, connection)),
            }
        };
        let mut opening: JoinSet<_> = (0..connections).map(|_| open(self.clone())).collect();
        let open_all = async {
            let mut opened = Vec::with_capacity(connections);
            while let Some(result) = opening.join_next().await {
                match result.map_err(|error| ConsulFailure::connection(error.to_string()))? {
                    Err(failure) if failure.kind.is_crowded() => return Err(failure),
                    result => opened.extend(result),
                }
            }
            Ok(())
        };
        let result = timeout(limit, open_all).await.unwrap_or(Ok(()));
        result.map_err(|failure| self.hide(failure.of("open more connections")))
    }

    /// Sends a request that changes the agent's state.
    pub(super) async fn write(
        &self,
        action: &str,
        path: &str,
        body: String,
    ) -> Result<(), ConsulFailure> {
        let path = format!("{path}?{}", self.0.write_parameters);
        let sent = self.send(Method::PUT, &path, body, self.0.request_timeout).await;
        sent.map(drop).map_err(|failure| self.hide(failure.of(action)))
    }

    async fn read(
        &self,
        action: &str,
        path: &str,
        index: u64,
        wait: Duration,
    ) -> Result<Answer, ConsulFailure> {
        let mut parameters = self.0.read_parameters.clone();
        let mut limit = self.0.request_timeout;
        if index > 0 {
            parameters.push(format!("index={index}&wait={}ms", wait.as_millis()));
            // Consul adds up to a sixteenth, so that not all queries end together.
            limit += wait + wait / 16;
        }
        let path = format!("{path}?{}", parameters.join("&"));
        let answer = self.send(Method::GET, &path, String::new(), limit).await;
        let answer = answer.and_then(|answer| {
            if answer.has_index {
                return Ok(answer);
            }
            let text = format!("the answer has no X-Consul-Index: {:?}", excerpt(&answer.body));
            Err(ConsulFailure::new(ConsulFailureKind::Answer, text))
        });
        answer.map_err(|failure| self.hide(failure.of(action)))
    }

    /// Sends a request and reads the complete answer within `limit`.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: String,
        limit: Duration,
    ) -> Result<Answer, ConsulFailure> {
        let limit = limit + self.0.dial_timeout;
        timeout(limit, self.exchange(&method, path, body))
            .await
            .unwrap_or_else(|_| Err(ConsulFailure::timeout(limit)))
    }

    async fn exchange(
        &self,
        method: &Method,
        path: &str,
        body: String,
    ) -> Result<Answer, ConsulFailure> {
        let body = Bytes::from(body);
        let (response, connection) = self.respond(method, path, &body).await?;
        let (head, body) = response.into_parts();
        let (body, permit) = self.read_body(&head.headers, body).await?;
        if head.status == StatusCode::OK {
            self.keep(connection);
        } else {
            let keys = self.0.token_keys.as_deref();
            return Err(ConsulFailure::of_status(head.status, &body, keys));
        }
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        // Answers of the agent's streaming backend always say `false` (Consul 1.20); the supervisor
        // checks anyway whether there is a leader.
        let is_streaming = header("x-consul-query-backend") == Some("streaming");
        if header("x-consul-knownleader") == Some("false") && !is_streaming {
            return Err(ConsulFailure::no_leader());
        }
        Ok(Answer {
            has_index: header("x-consul-index").is_some(),
            index: header("x-consul-index").and_then(|index| index.parse().ok()).unwrap_or(0),
            is_filtered: header("x-consul-results-filtered-by-acls") == Some("true"),
            denies_by_default: header("x-consul-default-acl-policy") == Some("deny"),
            body,
            _permit: permit,
        })
    }

    /// Sends a request, on a kept connection if there is one.
    ///
    /// The agent may have closed a kept connection; all requests may be sent again.
    async fn respond(
        &self,
        method: &Method,
        path: &str,
        body: &Bytes,
    ) -> Result<(Response<Incoming>, HttpConnection), ConsulFailure> {
        while let Some(mut connection) = self.take_idle() {
            if connection.ready().await.is_err() {
                continue;
            }
            if let Ok(response) = connection.send_request(self.request(method, path, body)?).await {
                return Ok((response, connection));
            }
        }
        self.respond_on_new(method, path, body).await
    }

    /// Sends a request on a new connection.
    async fn respond_on_new(
        &self,
        method: &Method,
        path: &str,
        body: &Bytes,
    ) -> Result<(Response<Incoming>, HttpConnection), ConsulFailure> {
        let mut connection = self.0.connector.connect().await?;
        let sent = Instant::now();
        let response = connection.send_request(self.request(method, path, body)?).await;
        match response {
            Ok(response) => Ok((response, connection)),
            Err(error) if error.is_parse() => Err(ConsulFailure::new(
                ConsulFailureKind::OtherServer,
                "it does not answer in HTTP",
            )),
            // A refusal reaches the client before the request does, or as a reset.
            Err(_) if sent.elapsed() < MAX_REFUSAL_TIME => Err(ConsulFailure::closed()),
            Err(error) => Err(ConsulFailure::connection(error.to_string())),
        }
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        body: &Bytes,
    ) -> Result<Request<Full<Bytes>>, ConsulFailure> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.0.connector.endpoint)
            .header(USER_AGENT, concat!("svcdns/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json");
        if let Some(token) = &self.0.token_header {
            request = request.header("X-Consul-Token", token);
        }
        request
            .body(Full::new(body.clone()))
            .map_err(|error| ConsulFailure::new(ConsulFailureKind::Settings, error.to_string()))
    }

    /// Reads a body up to the limit on its size.
    async fn read_body(
        &self,
        headers: &HeaderMap,
        mut body: Incoming,
    ) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), ConsulFailure> {
        let max = self.0.max_answer_bytes;
        let too_large = || {
            let text = format!("the answer has more than {max} bytes (a fixed limit)");
            ConsulFailure::new(ConsulFailureKind::TooLarge, text)
        };
        let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        if announced
            .and_then(|length| length.parse().ok())
            .is_some_and(|length: u64| length > max as u64)
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
                    .map_err(|_| ConsulFailure::timeout(self.0.request_timeout))?,
            };
            let Some(frame) = frame else { break };
            let cut_short = |error: hyper::Error| {
                ConsulFailure::connection(format!("the answer was cut short: {error}"))
            };
            let Ok(data) = frame.map_err(cut_short)?.into_data() else { continue };
            let length = bytes.len() + data.len();
            if length > max {
                return Err(too_large());
            }
            if length > MAX_SMALL_ANSWER_BYTES && permit.is_none() {
                permit = Arc::clone(&self.0.large_answers).acquire_owned().await.ok();
                // A slow answer must not keep other large ones away for the whole wait.
                deadline = Some(Instant::now() + self.0.request_timeout);
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

    /// Hides the token in a failure, in case a server or a proxy has echoed it.
    pub(super) fn hide(&self, failure: ConsulFailure) -> ConsulFailure {
        let Some(token) = &self.0.token else { return failure };
        ConsulFailure { text: token.hide_in(&failure.text), ..failure }
    }
}

/// The keys of a JSON object; a repeated key counts once.
#[derive(Default)]
struct NameSet(BTreeSet<Box<str>>);

impl<'de> Deserialize<'de> for NameSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = NameSet;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object with the names of services")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<NameSet, A::Error> {
                let mut names = BTreeSet::new();
                while let Some((name, IgnoredAny)) = map.next_entry::<Box<str>, IgnoredAny>()? {
                    names.insert(name);
                }
                Ok(NameSet(names))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Parses the JSON of an answer.
fn parse<'de, T: Deserialize<'de>>(action: &str, body: &'de [u8]) -> Result<T, ConsulFailure> {
    parse_body(body).map_err(|failure| failure.of(action))
}

/// Parses the JSON of an answer.
pub(super) fn parse_body<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, ConsulFailure> {
    serde_json::from_slice(body).map_err(|error| {
        let text = format!("the answer is not Consul's JSON ({error}): {:?}", excerpt(body));
        ConsulFailure::new(ConsulFailureKind::Answer, text)
    })
}

/// Percent-encodes a text for a path segment or a parameter (RFC 3986 section 2.1).
pub(super) fn encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_for_paths() {
        assert_eq!(encode("hello.svc"), "hello.svc");
        assert_eq!(encode("shop/api_x"), "shop%2Fapi_x");
        assert_eq!(encode("a b?c#d%é"), "a%20b%3Fc%23d%25%C3%A9");
    }

    #[test]
    fn names_are_the_keys_of_an_object() {
        let names: NameSet = parse_body(br#"{"b":[""],"a":null,"b":{"x":[1]}}"#).unwrap();
        assert_eq!(names.0.iter().map(|name| &**name).collect::<Vec<_>>(), ["a", "b"]);
        for bad in [&b"[]"[..], b"<html>", b"{\"a\":", b"", b"\xff"] {
            let failure = parse_body::<NameSet>(bad).err().unwrap();
            assert_eq!(failure.kind, ConsulFailureKind::Answer);
        }
    }
}
