//! Requests to one agent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderMap;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::sync::OwnedSemaphorePermit;

use super::failure::{self, no_leader};
use super::{Reads, Settings};
use crate::percent;
use crate::registry::Secret;
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::http::{self, HttpClient, HttpRequest, HttpResponse};
use crate::registry::identify::{ServerKind, excerpt};

/// The service that Consul's own servers register.
const OWN_SERVICE: &str = "consul";

/// A client of one agent, shared by all queries of a session.
#[derive(Clone)]
pub(super) struct ConsulClient(Arc<ClientState>);

struct ClientState {
    http: HttpClient,
    token: Option<Secret>,
    /// The headers of every request: the token.
    headers: HeaderMap,
    token_keys: Option<String>,
    /// Parameters of all reads: datacenter, namespace and consistency.
    read_parameters: Vec<String>,
    /// Parameters of registrations: the namespace.
    write_parameters: String,
    request_timeout: Duration,
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
    pub(super) async fn new(settings: &Settings, endpoint: &str) -> Result<Self, Failure> {
        let (tls, tuning) = (settings.tls.as_ref(), &settings.tuning.connection);
        let http = HttpClient::new(ServerKind::Consul, endpoint, tls, tuning).await?;
        let token = match &settings.token {
            Some(token) => Some(token.read().await?),
            None => None,
        };
        let mut headers = HeaderMap::new();
        if let Some(token) = &token {
            headers.insert("x-consul-token", http::token_header(token)?);
        }
        let parameter = |name: &str, value: Option<&String>| {
            value.map(|value| format!("{name}={}", percent::encode(value)))
        };
        let namespace = parameter("ns", settings.namespace.as_ref());
        let reads = (settings.reads != Reads::Default).then(|| settings.reads.name().to_owned());
        let read_parameters =
            [parameter("dc", settings.datacenter.as_ref()), namespace.clone(), reads];
        Ok(Self(Arc::new(ClientState {
            http,
            token,
            headers,
            token_keys: settings.token_keys.clone(),
            read_parameters: read_parameters.into_iter().flatten().collect(),
            write_parameters: namespace.unwrap_or_default(),
            request_timeout: tuning.request_timeout,
        })))
    }

    /// Reads the names of all services, after a change since `index` or a wait of `wait`.
    ///
    /// Index 0 does not wait.
    pub(super) async fn names(&self, index: u64, wait: Duration) -> Result<NameList, Failure> {
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
            return Err(Failure::new(FailureKind::Permission, text));
        }
        let mut names = names.0;
        names.remove(OWN_SERVICE);
        Ok(NameList { index: answer.index, names })
    }

    /// Reads the instances of a service with their checks, after a change since `index`.
    pub(super) async fn instances(
        &self,
        name: &str,
        index: u64,
        wait: Duration,
    ) -> Result<Answer, Failure> {
        let action = format!("read the service {name:?}");
        let path = format!("/v1/health/service/{}", percent::encode(name));
        self.read(&action, &path, index, wait).await
    }

    /// Reads the index of all checks, after a change since `index` or a wait of `wait`.
    ///
    /// Index 0 does not wait. The filter matches no check, which keeps the answer small.
    pub(super) async fn checks_index(&self, index: u64, wait: Duration) -> Result<u64, Failure> {
        let path = format!("/v1/health/state/any?filter={}", percent::encode("Status == \"\""));
        Ok(self.read("follow the checks", &path, index, wait).await?.index)
    }

    /// Checks that the agent answers and its cluster has a leader.
    pub(super) async fn check_leader(&self, limit: Duration) -> Result<(), Failure> {
        let action = "check the agent";
        let answer =
            self.send(Method::GET, "/v1/status/leader".to_owned(), String::new(), limit).await;
        let leader: String = answer
            .and_then(|answer| parse_body(&answer.body))
            .map_err(|failure| self.hide(failure.of(action)))?;
        if leader.is_empty() {
            return Err(no_leader().of(action));
        }
        Ok(())
    }

    /// Checks that the agent accepts this number of further connections, open at the same time.
    ///
    /// # Errors
    /// Only if the agent refuses one: the check of the leader notices all other failures.
    pub(super) async fn check_room(
        &self,
        connections: usize,
        limit: Duration,
    ) -> Result<(), Failure> {
        let request = HttpRequest::new(Method::GET, "/v1/status/leader".to_owned());
        let refusal = match self.0.http.send_at_once(&request, connections, limit).await {
            Ok(statuses) if statuses.contains(&StatusCode::TOO_MANY_REQUESTS) => {
                failure::of_status(StatusCode::TOO_MANY_REQUESTS, b"", None)
            }
            Err(failure) if failure.kind.is_crowded() => failure::explained(failure),
            _ => return Ok(()),
        };
        Err(refusal.of("open further connections"))
    }

    /// Sends a request that changes the agent's state.
    pub(super) async fn write(
        &self,
        action: &str,
        path: &str,
        body: String,
    ) -> Result<(), Failure> {
        let path = format!("{path}?{}", self.0.write_parameters);
        let sent = self.send(Method::PUT, path, body, self.0.request_timeout).await;
        sent.map(drop).map_err(|failure| self.hide(failure.of(action)))
    }

    async fn read(
        &self,
        action: &str,
        path: &str,
        index: u64,
        wait: Duration,
    ) -> Result<Answer, Failure> {
        let mut parameters = self.0.read_parameters.clone();
        let mut limit = self.0.request_timeout;
        if index > 0 {
            parameters.push(format!("index={index}&wait={}ms", wait.as_millis()));
            // Consul adds up to a sixteenth, so that not all queries end together.
            limit += wait + wait / 16;
        }
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}{}", parameters.join("&"));
        let answer = self.send(Method::GET, path, String::new(), limit).await;
        let answer = answer.and_then(|answer| {
            if answer.has_index {
                return Ok(answer);
            }
            let text = format!("the answer has no X-Consul-Index: {:?}", excerpt(&answer.body));
            Err(Failure::new(FailureKind::Answer, text))
        });
        answer.map_err(|failure| self.hide(failure.of(action)))
    }

    /// Sends a request and reads the complete answer within `limit`.
    async fn send(
        &self,
        method: Method,
        path: String,
        body: String,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let (headers, body) = (self.0.headers.clone(), body.into());
        let request = HttpRequest { headers, body, ..HttpRequest::new(method, path) };
        let response = self.0.http.send(&request, limit).await.map_err(failure::explained)?;
        self.accept(response)
    }

    /// Returns a response as an answer, if it is one.
    fn accept(&self, response: HttpResponse) -> Result<Answer, Failure> {
        if response.status != StatusCode::OK {
            let keys = self.0.token_keys.as_deref();
            return Err(failure::of_status(response.status, &response.body, keys));
        }
        let header = |name: &str| response.header(name);
        // Answers of the agent's streaming backend always say `false` (Consul 1.20); the supervisor
        // checks anyway whether there is a leader.
        let is_streaming = header("x-consul-query-backend") == Some("streaming");
        if header("x-consul-knownleader") == Some("false") && !is_streaming {
            return Err(no_leader());
        }
        Ok(Answer {
            has_index: header("x-consul-index").is_some(),
            index: header("x-consul-index").and_then(|index| index.parse().ok()).unwrap_or(0),
            is_filtered: header("x-consul-results-filtered-by-acls") == Some("true"),
            denies_by_default: header("x-consul-default-acl-policy") == Some("deny"),
            body: response.body,
            _permit: response.permit,
        })
    }

    /// Hides the token in a failure, in case a server or a proxy has echoed it.
    pub(super) fn hide(&self, failure: Failure) -> Failure {
        let Some(token) = &self.0.token else { return failure };
        failure.hiding(token)
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
fn parse<'de, T: Deserialize<'de>>(action: &str, body: &'de [u8]) -> Result<T, Failure> {
    parse_body(body).map_err(|failure| failure.of(action))
}

/// Parses the JSON of an answer.
pub(super) fn parse_body<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, Failure> {
    http::parse_json(ServerKind::Consul, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_keys_of_an_object() {
        let names: NameSet = parse_body(br#"{"b":[""],"a":null,"b":{"x":[1]}}"#).unwrap();
        assert_eq!(names.0.iter().map(|name| &**name).collect::<Vec<_>>(), ["a", "b"]);
        for bad in [&b"[]"[..], b"<html>", b"{\"a\":", b"", b"\xff"] {
            let failure = parse_body::<NameSet>(bad).err().unwrap();
            assert_eq!(failure.kind, FailureKind::Answer);
        }
    }
}
