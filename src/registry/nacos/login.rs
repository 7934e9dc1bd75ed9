//! Access tokens: logging in, and renewing the token before its end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::Method;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard};
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
    /// The failure of the last login, with its time; locked while one is in progress.
    last_failure: AsyncMutex<Option<(Instant, Failure)>>,
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
            last_failure: AsyncMutex::default(),
        })))
    }

    /// Returns where user and password are configured.
    pub(super) fn keys(&self) -> &str {
        &self.0.keys
    }

    /// Returns a valid token; logs in if there is none, or if it ends soon.
    ///
    /// A token that is still valid is used while another request renews it, and kept if that
    /// fails. Requests that wait for the same login share its failure.
    pub(super) async fn token(&self) -> Result<AccessToken, Failure> {
        let asked = Instant::now();
        if let Some(valid) = self.valid() {
            if asked >= valid.renew_at
                && let Ok(last_failure) = self.0.last_failure.try_lock()
            {
                return Ok(self.renew(valid, last_failure).await);
            }
            return Ok(valid);
        }
        let mut last_failure = self.0.last_failure.lock().await;
        if let Some(valid) = self.valid() {
            return Ok(valid);
        }
        if let Some((at, failure)) = &*last_failure
            && *at >= asked
        {
            return Err(failure.clone());
        }
        match self.0.log_in().await {
            Ok(token) => {
                *self.current() = Some(token.clone());
                Ok(token)
            }
            Err(failure) => {
                *last_failure = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Renews a valid token, with the lock of logins; keeps it if the login fails.
    async fn renew(
        &self,
        valid: AccessToken,
        _lock: AsyncMutexGuard<'_, Option<(Instant, Failure)>>,
    ) -> AccessToken {
        let token = self.0.log_in().await.unwrap_or_else(|failure| {
            tracing::debug!(reason = failure.text, "the access token is not renewed yet");
            let now = Instant::now();
            let left = valid.expires_at.saturating_duration_since(now);
            AccessToken { renew_at: now + (left / 2).max(MIN_RENEWAL_WAIT), ..valid }
        });
        *self.current() = Some(token.clone());
        token
    }

    /// Discards a token that the server has refused, unless another has replaced it.
    pub(super) fn discard(&self, refused: &AccessToken) {
        let mut token = self.current();
        if token.as_ref().is_some_and(|token| token.secret == refused.secret) {
            *token = None;
        }
    }

    /// Returns the token unless it has expired.
    fn valid(&self) -> Option<AccessToken> {
        let now = Instant::now();
        self.current().as_ref().filter(|token| now < token.expires_at).cloned()
    }

    fn current(&self) -> MutexGuard<'_, Option<AccessToken>> {
        self.0.token.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::ConnectionTuning;
    use crate::registry::test_server::{HttpTestServer, response};

    /// Creates the login of a user at a server.
    async fn login(server: &HttpTestServer) -> NacosLogin {
        let mut settings = Settings::new(vec![server.endpoint.clone()]);
        settings.username = Some("nacos".to_owned());
        settings.password = Some(Credential::Given(Secret::from("password")));
        settings.tuning.connection.request_timeout = Duration::from_secs(60);
        let tuning = ConnectionTuning::default();
        let http = HttpClient::new(ServerKind::Nacos, &server.endpoint, None, &tuning).await;
        NacosLogin::new(&settings, &http.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn waiting_requests_share_the_failure_of_a_login() {
        let respond = |_| (response(503, "not ready"), Duration::from_millis(500));
        let server = HttpTestServer::start(respond).await;
        let login = login(&server).await;
        let tokens = tokio::join!(login.token(), login.token(), login.token());
        assert!(tokens.0.is_err() && tokens.1.is_err() && tokens.2.is_err());
        assert_eq!(server.request_count(), 1);
        assert!(login.token().await.is_err());
        assert_eq!(server.request_count(), 2, "a later request tries again");
    }

    #[tokio::test]
    async fn a_valid_token_is_used_while_it_is_renewed() {
        const LONG: Duration = Duration::from_secs(3600);
        let respond = |number| {
            let token = r#"{"accessToken":"token","tokenTtl":3600}"#;
            (response(200, token), if number == 0 { Duration::ZERO } else { LONG })
        };
        let server = HttpTestServer::start(respond).await;
        let login = login(&server).await;
        let first = login.token().await.unwrap();
        *login.current() = Some(AccessToken { renew_at: Instant::now(), ..first.clone() });
        let renewal = login.token();
        tokio::pin!(renewal);
        tokio::select! {
            _ = &mut renewal => panic!("the server has not answered"),
            () = async {
                while server.request_count() < 2 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            } => {}
        }
        assert!(login.token().await.unwrap().secret == first.secret);
        assert_eq!(server.request_count(), 2);
    }
}
