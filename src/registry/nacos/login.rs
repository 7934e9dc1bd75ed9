//! Access tokens: logging in, and renewing the token before its end.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::failure::{self, explained};
use super::{NacosTuning, Settings};
use crate::percent;
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::http::{self, HttpClient, HttpRequest};
use crate::registry::identify::ServerKind;
use crate::registry::{Credential, Secret};

/// Paths of the login: of Nacos 1.2 to 3.1, and of versions without the first one.
const LOGIN_PATHS: [&str; 2] = ["/nacos/v1/auth/login", "/nacos/v3/auth/user/login"];

/// Life of a token whose answer does not say it: Nacos's default, in seconds.
const DEFAULT_LIFE_SECONDS: u64 = 18_000;

/// Longest life of a token that is believed: a year, in seconds.
const MAX_LIFE_SECONDS: u64 = 365 * 24 * 3600;

/// Shortest time between two logins that renew a valid token.
const MIN_RENEWAL_WAIT: Duration = Duration::from_secs(1);

/// The content type of a form.
pub(super) const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");

/// A user's login at one server, shared by all requests of a session.
#[derive(Clone)]
pub(super) struct NacosLogin(Arc<LoginState>);

struct LoginState {
    http: HttpClient,
    username: String,
    password: Credential,
    keys: String,
    request_timeout: Duration,
    token: Mutex<Option<AccessToken>>,
}

/// An access token.
#[derive(Clone)]
pub(super) struct AccessToken {
    pub(super) secret: Secret,
    /// The header `Authorization`.
    pub(super) header: HeaderValue,
    renew_at: Instant,
    expires_at: Instant,
}

/// The answer to a login.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LoginAnswer {
    access_token: String,
    token_ttl: Option<u64>,
}

impl NacosLogin {
    /// Creates the login of these settings; `None` if they have no user.
    pub(super) fn new(settings: &Settings, http: &HttpClient) -> Option<Self> {
        let NacosTuning { connection, .. } = &settings.tuning;
        Some(Self(Arc::new(LoginState {
            http: http.clone(),
            username: settings.username.clone()?,
            password: settings.password.clone()?,
            keys: settings.login_keys.clone().unwrap_or_else(|| "user and password".to_owned()),
            request_timeout: connection.request_timeout,
            token: Mutex::default(),
        })))
    }

    /// Returns where user and password are configured.
    pub(super) fn keys(&self) -> &str {
        &self.0.keys
    }

    /// Returns a valid token; logs in if there is none, or if it ends soon.
    ///
    /// A token that is still valid is kept if the login fails.
    pub(super) async fn token(&self) -> Result<AccessToken, Failure> {
        let mut token = self.0.token.lock().await;
        let now = Instant::now();
        let valid = token.as_mut().filter(|token| now < token.expires_at);
        match valid {
            Some(valid) if now < valid.renew_at => return Ok(valid.clone()),
            Some(valid) => match self.0.log_in().await {
                Ok(renewed) => *valid = renewed,
                Err(failure) => {
                    tracing::debug!(reason = failure.text, "the access token is not renewed yet");
                    let left = valid.expires_at.saturating_duration_since(now);
                    valid.renew_at = now + (left / 2).max(MIN_RENEWAL_WAIT);
                }
            },
            None => *token = Some(self.0.log_in().await?),
        }
        token.clone().ok_or_else(|| Failure::new(FailureKind::Login, "no access token"))
    }

    /// Discards a token that the server has refused, unless another has replaced it.
    pub(super) async fn discard(&self, refused: &AccessToken) {
        let mut token = self.0.token.lock().await;
        if token.as_ref().is_some_and(|token| token.secret == refused.secret) {
            *token = None;
        }
    }
}

impl LoginState {
    /// Logs in with the current password.
    async fn log_in(&self) -> Result<AccessToken, Failure> {
        let password = self.password.read().await;
        let password =
            password.map_err(|error| Failure::new(FailureKind::Settings, error.to_string()))?;
        let mut found = self.log_in_at(LOGIN_PATHS[0], &password).await;
        if found.as_ref().is_err_and(|failure| failure.kind == FailureKind::Missing) {
            found = self.log_in_at(LOGIN_PATHS[1], &password).await;
        }
        found.map_err(|failure| failure.hiding(&password))
    }

    async fn log_in_at(&self, path: &str, password: &Secret) -> Result<AccessToken, Failure> {
        let form = format!(
            "username={}&password={}",
            percent::encode(&self.username),
            percent::encode(password.expose())
        );
        let request = HttpRequest {
            headers: HeaderMap::from_iter([(CONTENT_TYPE, FORM)]),
            body: form.into(),
            ..HttpRequest::new(Method::POST, path.to_owned())
        };
        let now = Instant::now();
        let action = "log in";
        let response = self.http.send(&request, self.request_timeout).await;
        let response = response.map_err(|failure| explained(failure).of(action))?;
        if !response.status.is_success() {
            return Err(failure::of_login(response.status, &response.body, &self.keys));
        }
        let answer: LoginAnswer =
            http::parse_json(ServerKind::Nacos, &response.body).map_err(|found| {
                // The quotation might show a token.
                let text = "cannot log in: the answer is not the one of a login";
                Failure { text: text.to_owned(), ..found }
            })?;
        let unusable = |_| {
            let text = "cannot log in: the access token has characters that no header can hold";
            Failure::new(FailureKind::Answer, text)
        };
        let mut header =
            HeaderValue::from_str(&format!("Bearer {}", answer.access_token)).map_err(unusable)?;
        header.set_sensitive(true);
        let life = answer.token_ttl.unwrap_or(DEFAULT_LIFE_SECONDS).min(MAX_LIFE_SECONDS);
        let life = Duration::from_secs(life);
        Ok(AccessToken {
            secret: Secret::from(answer.access_token),
            header,
            renew_at: now + life * 4 / 5,
            expires_at: now + life,
        })
    }
}

impl AccessToken {
    /// Returns the headers of a request with this token.
    pub(super) fn headers(&self) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, self.header.clone())])
    }
}
