//! Queries to one Polaris server.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::failure::{self, SUCCESS, UNCHANGED};
use super::{ServiceNaming, Settings, parse};
use crate::registry::Secret;
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::http::{self, HttpClient, HttpRequest, token_header};
use crate::registry::identify::ServerKind;
use crate::registry::polling::{PolledAnswer, PolledNames, PollingClient, Revision};

/// The path of all queries.
const DISCOVER: &str = "/v1/Discover";

/// The type of a query for the instances of a service.
const INSTANCES: &str = "INSTANCE";

/// The type of a query for the names of the services.
const SERVICES: &str = "SERVICES";

/// A client of one server, shared by all queries of a session.
#[derive(Clone)]
pub(in crate::registry) struct PolarisClient(Arc<PolarisClientState>);

struct PolarisClientState {
    http: HttpClient,
    headers: HeaderMap,
    token: Option<Secret>,
    token_keys: Option<String>,
    namespace: String,
    naming: ServiceNaming,
    request_timeout: Duration,
}

/// The parts of an answer that svcdns reads.
#[derive(Deserialize)]
pub(super) struct DiscoverAnswer<'a> {
    code: u32,
    /// The type of the query, as in the query.
    #[serde(rename = "type", borrow, default)]
    query: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    info: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    service: Option<AnsweredService<'a>>,
    /// The services, each unparsed: a malformed entry must not affect others.
    #[serde(borrow, default)]
    services: Option<Vec<&'a RawValue>>,
    /// The instances, each unparsed.
    #[serde(borrow, default)]
    pub(super) instances: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct AnsweredService<'a> {
    #[serde(borrow, default)]
    revision: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct ListedService<'a> {
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
}

impl DiscoverAnswer<'_> {
    /// Returns the revision of the list, if there is one.
    pub(super) fn revision(&self) -> Option<Revision> {
        let revision = self.service.as_ref()?.revision.as_deref()?;
        (!revision.is_empty()).then(|| revision.into())
    }

    /// Returns the names of the services.
    fn names(&self) -> impl Iterator<Item = Box<str>> {
        let services = self.services.as_deref().unwrap_or_default();
        let services = http::valid_entries::<ListedService<'_>>(services);
        let names = services.filter_map(|service| service.name);
        names.filter(|name| !name.is_empty()).map(Into::into)
    }
}

impl PolarisClient {
    /// Creates the client of a server, with the current token; connects later.
    pub(super) async fn new(settings: &Settings, endpoint: &str) -> Result<Self, Failure> {
        let (tls, tuning) = (settings.tls.as_ref(), &settings.tuning.connection);
        let http = HttpClient::new(ServerKind::Polaris, endpoint, tls, tuning).await?;
        let token = match &settings.token {
            Some(token) => Some(token.read().await?),
            None => None,
        };
        let mut headers = HeaderMap::new();
        // Polaris answers 415 without this type.
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(token) = &token {
            headers.insert("x-polaris-token", token_header(token)?);
        }
        Ok(Self(Arc::new(PolarisClientState {
            http,
            headers,
            token,
            token_keys: settings.token_keys.clone(),
            namespace: settings.namespace.clone(),
            naming: settings.naming.clone(),
            request_timeout: tuning.request_timeout,
        })))
    }

    /// Reads the instances of a service, and passes the answer to `parse`.
    ///
    /// Returns `None` if the answer has no list because nothing has changed since `known`.
    pub(super) async fn instances<T>(
        &self,
        service: &str,
        known: Option<&Revision>,
        parse: impl FnOnce(&DiscoverAnswer<'_>) -> T + Send,
    ) -> Result<Option<T>, Failure> {
        let mut query = json!({ "namespace": self.0.namespace, "name": service });
        if let Some(revision) = known {
            query["revision"] = (**revision).into();
        }
        let action = format!("read the service {service:?}");
        self.discover(&action, INSTANCES, &query, parse).await
    }

    /// Sends a query of this type about a service; `None` if nothing has changed.
    async fn discover<T>(
        &self,
        action: &str,
        query: &str,
        service: &Value,
        take: impl FnOnce(&DiscoverAnswer<'_>) -> T + Send,
    ) -> Result<Option<T>, Failure> {
        let body = json!({ "type": query, "service": service });
        self.exchange(action, DISCOVER, &body, &[], |answer| {
            if answer.code == UNCHANGED {
                return Ok(None);
            }
            let found = answer.query.as_deref().unwrap_or_default();
            if found == query {
                return Ok(Some(take(answer)));
            }
            let text = format!("the answer is of type {found:?}, not {query}");
            Err(Failure::new(FailureKind::Answer, text))
        })
        .await
    }

    /// Sends a request about an instance; an answer with the code `accepted` is a success, too.
    pub(super) async fn write(
        &self,
        action: &str,
        path: &str,
        instance: &Value,
        accepted: u32,
    ) -> Result<(), Failure> {
        self.exchange(action, path, instance, &[accepted], |_| Ok(())).await
    }

    /// Sends a request, and passes the answer to it to `take`.
    async fn exchange<T>(
        &self,
        action: &str,
        path: &str,
        body: &Value,
        accepted: &[u32],
        take: impl FnOnce(&DiscoverAnswer<'_>) -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        let sent = self.send(path, body, accepted, take).await;
        sent.map_err(|failure| {
            let failure = failure.of(action);
            match &self.0.token {
                Some(token) => failure.hiding(token),
                None => failure,
            }
        })
    }

    async fn send<T>(
        &self,
        path: &str,
        body: &Value,
        accepted: &[u32],
        take: impl FnOnce(&DiscoverAnswer<'_>) -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        let request = HttpRequest {
            headers: self.0.headers.clone(),
            body: Bytes::from(body.to_string()),
            ..HttpRequest::new(Method::POST, path.to_owned())
        };
        let response = self.0.http.send(&request, self.0.request_timeout).await?;
        // Polaris's errors are answers like others: the status repeats the code.
        let Ok(answer) = serde_json::from_slice::<DiscoverAnswer<'_>>(&response.body) else {
            return Err(failure::of_status(response.status, &response.body));
        };
        let is_expected =
            matches!(answer.code, SUCCESS | UNCHANGED) || accepted.contains(&answer.code);
        if !is_expected {
            let info = answer.info.as_deref().unwrap_or_default();
            return Err(failure::of_code(answer.code, info, self.0.token_keys.as_deref()));
        }
        take(&answer)
    }
}

impl PollingClient for PolarisClient {
    async fn names(&self, known: Option<&Revision>) -> Result<Option<PolledNames>, Failure> {
        let mut query = json!({ "namespace": self.0.namespace });
        if let Some(revision) = known {
            query["revision"] = (**revision).into();
        }
        let names = |answer: &DiscoverAnswer<'_>| PolledNames {
            revision: answer.revision(),
            pages: 1,
            names: answer.names().collect(),
        };
        self.discover("list the services", SERVICES, &query, names).await
    }

    async fn list(&self, name: &str, known: Option<&Revision>) -> Result<PolledAnswer, Failure> {
        let naming = &self.0.naming;
        let list = self.instances(name, known, |answer| parse::list(name, answer, naming)).await;
        match list {
            Ok(Some(list)) => Ok(PolledAnswer::List(list)),
            Ok(None) => Ok(PolledAnswer::Unchanged),
            Err(failure) if failure.kind == FailureKind::Missing => Ok(PolledAnswer::Missing),
            Err(failure) => Err(failure),
        }
    }
}
