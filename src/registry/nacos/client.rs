//! Requests to one server, in the interface of its version.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use tokio::sync::OwnedSemaphorePermit;

use super::failure::{self, explained};
use super::login::{FORM, NacosLogin};
use super::parse::{self, NamePage};
use super::{DEFAULT_GROUP, Settings};
use crate::percent;
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::http::{HttpClient, HttpRequest, HttpResponse};
use crate::registry::identify::ServerKind;

/// Names in one page of the list of services; v2 of the interface has no larger pages.
pub(super) const PAGE_SIZE: usize = 500;

/// Limit on the pages of one list: half a million services.
const MAX_PAGES: usize = 1_000;

/// Nacos's name for the namespace of requests that name none.
const PUBLIC: &str = "public";

/// A version of Nacos's HTTP interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApiVersion {
    /// Of Nacos up to 3.1, unless it is turned off there.
    V1,
    /// Of Nacos 2.
    V2,
    /// Of Nacos 3; its list of services is for administrators.
    V3,
}

impl ApiVersion {
    /// All versions, in the order in which they are tried.
    pub(super) const ALL: [Self; 3] = [Self::V1, Self::V2, Self::V3];

    fn names_path(self) -> &'static str {
        match self {
            Self::V1 => "/nacos/v1/ns/service/list",
            Self::V2 => "/nacos/v2/ns/service/list",
            Self::V3 => "/nacos/v3/admin/ns/service/list",
        }
    }

    fn instances_path(self) -> &'static str {
        match self {
            Self::V1 => "/nacos/v1/ns/instance/list",
            Self::V2 => "/nacos/v2/ns/instance/list",
            Self::V3 => "/nacos/v3/client/ns/instance/list",
        }
    }

    /// Returns the parameter that selects the group of a list of services.
    fn names_group(self) -> &'static str {
        match self {
            Self::V1 | Self::V2 => "groupName",
            // Selects all groups that contain the text.
            Self::V3 => "groupNameParam",
        }
    }
}

/// A client of one server, shared by all requests of a session.
#[derive(Clone)]
pub(super) struct NacosClient(Arc<NacosClientState>);

struct NacosClientState {
    http: HttpClient,
    login: Option<NacosLogin>,
    /// The namespace; `None` for the public one.
    namespace: Option<String>,
    group: String,
    request_timeout: Duration,
}

/// A response with status 200.
pub(super) struct NacosAnswer {
    pub(super) body: Vec<u8>,
    /// Keeps other large answers away while this one is in memory.
    _permit: Option<OwnedSemaphorePermit>,
}

impl NacosClient {
    /// Creates the client of a server; connects and logs in at the first request.
    pub(super) async fn new(settings: &Settings, endpoint: &str) -> Result<Self, Failure> {
        let (tls, tuning) = (settings.tls.as_ref(), &settings.tuning.connection);
        let http = HttpClient::new(ServerKind::Nacos, endpoint, tls, tuning).await?;
        Ok(Self(Arc::new(NacosClientState {
            login: NacosLogin::new(settings, &http),
            http,
            // A user may have the right to read the namespace without its name only.
            namespace: settings.namespace.clone().filter(|namespace| namespace != PUBLIC),
            group: settings.group.clone(),
            request_timeout: tuning.request_timeout,
        })))
    }

    /// Reads the names of all services in the first interface that the server has.
    pub(super) async fn first_names(&self) -> Result<(ApiVersion, BTreeSet<Box<str>>), Failure> {
        let mut missing = None;
        for api in ApiVersion::ALL {
            match self.names(api).await {
                Ok(names) => return Ok((api, names)),
                Err(failure) if failure.kind == FailureKind::Missing => missing = Some(failure),
                Err(failure) if api == ApiVersion::V3 && failure.kind.is_refusal() => {
                    let text = format!(
                        "this server has only v3 of the interface, which lists services for \
                         administrators only: {}",
                        failure.text
                    );
                    return Err(Failure { text, ..failure });
                }
                Err(failure) => return Err(failure),
            }
        }
        let none = || Failure::new(FailureKind::Missing, "the server has no known interface");
        Err(missing.unwrap_or_else(none))
    }

    /// Reads the names of all services of the group, page by page.
    ///
    /// A name may be missing if others appear or vanish between two pages.
    pub(super) async fn names(&self, api: ApiVersion) -> Result<BTreeSet<Box<str>>, Failure> {
        let action = "list the services";
        let (mut names, mut read) = (BTreeSet::new(), 0);
        for page in 1..=MAX_PAGES {
            let mut parameters = format!("pageNo={page}&pageSize={PAGE_SIZE}");
            parameters += &self.scope(api.names_group());
            let path = format!("{}?{parameters}", api.names_path());
            let found = self.get(&path).await;
            let found = found.and_then(|answer| parse::names(api, &answer.body));
            let NamePage { total, names: found } = found.map_err(|failure| failure.of(action))?;
            let (length, before) = (found.len(), names.len());
            read += length;
            let is_of_group = |(_, group): &(_, Option<Box<str>>)| {
                group.as_ref().is_none_or(|group| **group == *self.0.group)
            };
            names.extend(found.into_iter().filter(is_of_group).map(|(name, _)| name));
            // The total of old versions is that of the page, so a full page proves nothing; and
            // after their last page they repeat all names.
            let is_full = length >= PAGE_SIZE;
            let repeats = names.len() == before && api != ApiVersion::V3;
            if length == 0 || repeats || (!is_full && read >= total) {
                break;
            }
        }
        Ok(names)
    }

    /// Reads the instances of a service.
    pub(super) async fn instances(
        &self,
        api: ApiVersion,
        name: &str,
    ) -> Result<NacosAnswer, Failure> {
        let scope = self.scope("groupName");
        let name = percent::encode(name);
        let path = format!("{}?serviceName={name}{scope}", api.instances_path());
        self.get(&path).await
    }

    /// Sends a request with a form that changes the server's state.
    pub(super) async fn write(
        &self,
        method: Method,
        path: &str,
        form: String,
    ) -> Result<NacosAnswer, Failure> {
        let mut request = HttpRequest::new(method, path.to_owned());
        request.headers.insert(CONTENT_TYPE, FORM);
        if request.method == Method::DELETE {
            request.path = format!("{path}?{form}");
        } else {
            request.body = form.into();
        }
        self.send(request).await
    }

    /// Returns the parameter of the namespace after `&`; empty for the public one.
    pub(super) fn namespace(&self) -> String {
        let parameter = |namespace: &String| format!("&namespaceId={}", percent::encode(namespace));
        self.0.namespace.as_ref().map(parameter).unwrap_or_default()
    }

    /// Returns the parameters of namespace and group, each after `&`.
    fn scope(&self, group: &str) -> String {
        let namespace = self.namespace();
        // The group of requests that name none, except for the list of services in v3.
        if self.0.group == DEFAULT_GROUP && group == "groupName" {
            return namespace;
        }
        format!("{namespace}&{group}={}", percent::encode(&self.0.group))
    }

    async fn get(&self, path: &str) -> Result<NacosAnswer, Failure> {
        self.send(HttpRequest::new(Method::GET, path.to_owned())).await
    }

    /// Sends a request with an access token, and again with another if the token is refused.
    async fn send(&self, request: HttpRequest) -> Result<NacosAnswer, Failure> {
        let Some(login) = &self.0.login else {
            return self.exchange(request, None).await;
        };
        let token = login.token().await?;
        let result = self.exchange(with_headers(&request, token.headers()), Some(login)).await;
        let result = match result {
            Err(failure) if failure.kind == FailureKind::Login => {
                // The server has another key since its restart, or another clock.
                login.discard(&token);
                let token = login.token().await?;
                let repeated = with_headers(&request, token.headers());
                let result = self.exchange(repeated, Some(login)).await;
                result.map_err(|failure| failure.hiding(&token.secret))
            }
            result => result,
        };
        result.map_err(|failure| failure.hiding(&token.secret))
    }

    async fn exchange(
        &self,
        request: HttpRequest,
        login: Option<&NacosLogin>,
    ) -> Result<NacosAnswer, Failure> {
        let response = self.0.http.send(&request, self.0.request_timeout).await;
        let HttpResponse { status, body, permit, .. } = response.map_err(explained)?;
        if !status.is_success() {
            return Err(failure::of_status(status, &body, login.map(NacosLogin::keys)));
        }
        Ok(NacosAnswer { body, _permit: permit })
    }
}

/// Returns a request with more headers.
fn with_headers(request: &HttpRequest, headers: HeaderMap) -> HttpRequest {
    let mut request = request.clone();
    request.headers.extend(headers);
    request
}
