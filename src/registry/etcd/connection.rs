//! A client of one cluster member.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, Identity, KvClient,
    LeaseClient, TlsOptions, Txn, TxnOp, TxnResponse, WatchClient,
};
use tokio::time::timeout;

use super::Settings;
use super::change::revision;
use super::failure;
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::gsvc::GOFRAME_HEADS;
use crate::registry::tls::MAX_PEM_FILE_BYTES;
use crate::registry::{Credential, Secret, Tls};
use crate::regular_file;

/// Maximum size of an accepted message, in bytes.
///
/// The library's default of 4 MiB always fails at about 43,000 listed keys. It also fails at the
/// events of 1,000 revisions, regardless of size, because etcd sends them as one message.
pub(super) const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// A connection to one member.
///
/// There is only one, because the library's load balancer keeps using a member that is down.
/// Failures come from the methods of the connection, which hide the password in them.
#[derive(Clone)]
pub(super) struct Connection {
    /// Shared because it is large, and several tasks and futures hold the connection.
    client: Arc<Client>,
    login: Option<Arc<Login>>,
    dial_timeout: Duration,
    request_timeout: Duration,
}

/// The user of a connection.
struct Login {
    user: String,
    credential: Credential,
    /// Where both are configured.
    keys: Option<String>,
    /// The password as last read; empty before.
    password: Mutex<Secret>,
}

/// The identity and revision of a store, from a read that a quorum agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoreStatus {
    /// The cluster's id.
    ///
    /// A wiped store has a new id, unless it was created with the same flags.
    pub(super) cluster: u64,
    /// The store's revision.
    pub(super) revision: u64,
}

impl Connection {
    /// Connects to a member and logs in if a user is configured.
    pub(super) async fn open(settings: &Settings, endpoint: &str) -> Result<Self, Failure> {
        let connection = Self::new(settings, endpoint).await?;
        connection.log_in().await?;
        Ok(connection)
    }

    /// Creates a connection without logging in.
    async fn new(settings: &Settings, endpoint: &str) -> Result<Self, Failure> {
        // Boxed: the library's future takes 17 KB.
        let client = Box::pin(connect(settings, endpoint)).await?;
        let login = settings.username.clone().zip(settings.password.clone());
        let login = login.map(|(user, credential)| {
            let keys = settings.login_keys.clone();
            Arc::new(Login { user, credential, keys, password: Secret::from("").into() })
        });
        Ok(Self {
            client: Arc::new(client),
            login,
            dial_timeout: settings.tuning.connection.dial_timeout,
            request_timeout: settings.tuning.connection.request_timeout,
        })
    }

    /// Logs in with the current password, if a user is configured.
    async fn log_in(&self) -> Result<(), Failure> {
        let Some(login) = &self.login else { return Ok(()) };
        let password = login.credential.read().await?;
        login.password.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&password);
        let user = Some((login.user.clone(), password.expose().to_owned()));
        let mut client = Client::clone(&self.client);
        let update = Box::pin(client.update_user(user));
        match self.within("log in", self.dial_timeout, update).await {
            // The store has authentication turned off and needs no login.
            Err(failure) if failure.kind == FailureKind::AuthOff => Ok(()),
            Err(mut failure) if failure.kind == FailureKind::Login => {
                if let Some(keys) = &login.keys {
                    failure.text = format!("{}: check {keys}", failure.text);
                }
                Err(failure)
            }
            result => result,
        }
    }

    /// Makes a call; if the login has become invalid, logs in and calls once more.
    ///
    /// The library's own token renewal uses only the old password. It also fails with JWTs, which
    /// become invalid with every change to any user.
    pub(super) async fn call<T, F>(&self, action: &str, call: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        match self.within(action, self.request_timeout, call()).await {
            Err(failure) if failure.kind == FailureKind::Login && self.login.is_some() => {
                self.log_in().await?;
                self.within(action, self.request_timeout, call()).await
            }
            result => result,
        }
    }

    /// Runs a transaction like [`Connection::call`].
    pub(super) async fn txn(&self, action: &str, txn: &Txn) -> Result<TxnResponse, Failure> {
        let call = || {
            let (mut kv, txn) = (self.kv(), txn.clone());
            async move { kv.txn(txn).await }
        };
        self.call(action, call).await
    }

    /// Awaits a call of the client library for at most `limit`.
    pub(super) async fn within<T>(
        &self,
        action: &str,
        limit: Duration,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Failure> {
        match timeout(limit, call).await {
            Ok(result) => result.map_err(|error| self.hide(failure::of_error(action, &error))),
            Err(_) => Err(self.hide(Failure::timeout(limit).of(action))),
        }
    }

    /// Hides the password in a failure, in case etcd or a proxy has echoed it.
    pub(super) fn hide(&self, failure: Failure) -> Failure {
        let Some(login) = &self.login else { return failure };
        let password = login.password.lock().unwrap_or_else(PoisonError::into_inner);
        failure.hiding(&password)
    }

    /// Returns the library's client for keys.
    pub(super) fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Returns the library's client for leases.
    pub(super) fn lease(&self) -> LeaseClient {
        self.client.lease_client()
    }

    /// Returns the library's client for watches.
    pub(super) fn watch(&self) -> WatchClient {
        self.client.watch_client().max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Returns the store's status, after a check that every prefix may be read.
    ///
    /// The check prevents lists that begin and then break off because a permission is missing. It
    /// uses a transaction that would read the prefix if a key had a negative version. etcd checks
    /// the permissions of all operations in a transaction, and reads nothing here. Reading just the
    /// first key instead would make etcd visit all keys of the prefix.
    pub(super) async fn probe(&self, prefixes: &[Prefix]) -> Result<StoreStatus, Failure> {
        let mut status = StoreStatus { cluster: 0, revision: 0 };
        for prefix in prefixes {
            let action = format!("read {}", prefix.start());
            let never = Compare::version(prefix.start(), CompareOp::Less, 0);
            let options = GetOptions::new().with_range(prefix.end());
            let read = TxnOp::get(prefix.start(), Some(options));
            let txn = Txn::new().when([never]).and_then([read]);
            let response = self.txn(&action, &txn).await?;
            let no_header = || {
                let text = format!("cannot {action}: the response has no header");
                self.hide(Failure::new(FailureKind::Connection, text))
            };
            let header = response.header().ok_or_else(no_header)?;
            let (cluster, revision) = (header.cluster_id(), revision(header.revision()));
            status = StoreStatus { cluster, revision };
        }
        Ok(status)
    }
}

/// Creates a client of one member that is neither connected nor logged in yet.
async fn connect(settings: &Settings, endpoint: &str) -> Result<Client, Failure> {
    if endpoint.contains(['/', '@']) {
        let text = "an endpoint is host:port, without a scheme, a user or a path";
        return Err(Failure::new(FailureKind::Settings, text));
    }
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let options = connect_options(settings).await?;
    let client = Client::connect([format!("{scheme}://{endpoint}")], Some(options)).await;
    client.map_err(|error| failure::of_error("connect", &error))
}

async fn connect_options(settings: &Settings) -> Result<ConnectOptions, Failure> {
    let tuning = &settings.tuning;
    let options = ConnectOptions::new()
        .with_connect_timeout(tuning.connection.dial_timeout)
        .with_keep_alive(tuning.keepalive_interval, tuning.keepalive_timeout)
        .with_keep_alive_while_idle(true)
        // A member that lost its leader returns an error instead of falling silent.
        .with_require_leader(true);
    Ok(match &settings.tls {
        Some(tls) => options.with_tls(tls_options(tls).await?),
        None => options,
    })
}

async fn tls_options(tls: &Tls) -> Result<TlsOptions, Failure> {
    let Tls { ca_file, cert_file, key_file, server_name } = tls;
    let mut options = match ca_file {
        Some(file) => TlsOptions::new().ca_certificate(Certificate::from_pem(read(file).await?)),
        None => TlsOptions::new().with_enabled_roots(),
    };
    match (cert_file, key_file) {
        (Some(cert), Some(key)) => {
            options = options.identity(Identity::from_pem(read(cert).await?, read(key).await?));
        }
        (None, None) => {}
        _ => {
            let text = "a client certificate and its key must be configured together";
            return Err(Failure::new(FailureKind::Settings, text));
        }
    }
    Ok(match server_name {
        Some(name) => options.domain_name(name),
        None => options,
    })
}

async fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    regular_file::read(file, MAX_PEM_FILE_BYTES).await.map_err(|error| {
        let text = format!("cannot read {}: {error}", file.display());
        Failure::new(FailureKind::Settings, text)
    })
}

/// The common prefix of all keys with one head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefix(String);

impl Prefix {
    /// Returns the distinct prefixes of these heads, or of GoFrame's heads if empty.
    pub(super) fn of_heads(heads: &[String]) -> Vec<Self> {
        let mut prefixes: Vec<Self> = Vec::with_capacity(heads.len().max(GOFRAME_HEADS.len()));
        let trimmed = heads.iter().map(|head| head.trim_matches('/'));
        for head in trimmed.filter(|head| !head.is_empty()) {
            let prefix = Self(format!("/{head}/"));
            if !prefixes.contains(&prefix) {
                prefixes.push(prefix);
            }
        }
        if prefixes.is_empty() {
            prefixes.extend(GOFRAME_HEADS.map(|head| Self(format!("/{head}/"))));
        }
        prefixes
    }

    /// Returns the start of the key range: `/service/`.
    pub(super) fn start(&self) -> &str {
        &self.0
    }

    /// Returns the exclusive end of the key range: `/service0`.
    ///
    /// In ASCII, `0` follows `/`.
    pub(super) fn end(&self) -> String {
        format!("{}0", self.0.trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_covers_exactly_the_keys_with_its_head() {
        let heads = ["service", "/services/", "service"].map(str::to_owned);
        let prefixes = Prefix::of_heads(&heads);
        let ranges: Vec<_> =
            prefixes.iter().map(|prefix| (prefix.start().to_owned(), prefix.end())).collect();
        assert_eq!(
            ranges,
            [("/service/", "/service0"), ("/services/", "/services0")]
                .map(|(start, end)| (start.to_owned(), end.to_owned()))
        );
        assert_eq!(Prefix::of_heads(&[]), prefixes);
    }

    #[tokio::test]
    async fn echoed_passwords_are_hidden_in_every_failure() {
        let mut settings = Settings::new(vec!["127.0.0.1:1".to_owned()]);
        settings.username = Some("reader".to_owned());
        settings.password = Some(Credential::Given(Secret::from("hunter2")));
        let connection = Connection::new(&settings, "127.0.0.1:1").await.unwrap();
        let failure = connection.log_in().await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Connection, "nothing listens on port 1");
        let echo =
            async || Err::<(), _>(etcd_client::Error::WatchError("hunter2 is wrong".to_owned()));
        let echoed =
            connection.within("try hunter2", Duration::from_secs(60), echo()).await.unwrap_err();
        assert_eq!(echoed.text, "cannot try ***: watch error: *** is wrong");
        let echoed = connection.call("try hunter2", echo).await.unwrap_err();
        assert_eq!(echoed.text, "cannot try ***: watch error: *** is wrong");
        let never = std::future::pending::<Result<(), _>>();
        let late = connection.within("try hunter2", Duration::ZERO, never).await;
        assert_eq!(late.unwrap_err().text, "cannot try ***: no response within 0 s");
    }
}
