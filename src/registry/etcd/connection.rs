//! One client of one endpoint, and which endpoint is next.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, Identity, KvClient, LeaseClient, TlsOptions, Txn, TxnOp,
    TxnResponse, WatchClient,
};
use tokio::time::{Instant, timeout};

use super::change::revision;
use super::failure::{Failure, Kind};
use super::{HEADS, Settings, Tls};
use crate::registry::{Credential, Secret, contents};

/// Largest message that is accepted, in octets. The library's 4 MiB fail for good at some 43,000 listed keys, and at a
/// catch-up of 1,000 revisions of any size, since etcd sends those as one message.
pub(super) const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// Largest PEM file that is read, in bytes: the authorities of a whole machine are some 250 KiB.
const MAX_PEM_FILE: u64 = 4 * 1024 * 1024;

/// A connection to one member.
///
/// One member only: the library's balancer goes on sending calls to a member that is down. Every
/// failure of a connection is made by its methods, which hide its password.
#[derive(Clone)]
pub(super) struct Connection {
    /// Shared, since it is large: tasks and futures hold a connection each.
    client: Arc<Client>,
    login: Option<Arc<Login>>,
    dial_timeout: Duration,
    request_timeout: Duration,
}

/// The user of a connection.
struct Login {
    user: String,
    credential: Credential,
    /// The password as it was read last; empty before.
    password: Mutex<Secret>,
}

/// Where a store stands, by a read that a quorum agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// The cluster's id. A wiped store has another one, unless it was made with the same flags.
    pub(super) cluster: u64,
    /// The store's revision.
    pub(super) revision: u64,
}

impl Connection {
    /// Connects to one endpoint and, where there is a user, logs in.
    pub(super) async fn open(settings: &Settings, endpoint: &str) -> Result<Self, Failure> {
        let connection = Self::new(settings, endpoint).await?;
        connection.log_in().await?;
        Ok(connection)
    }

    /// Makes a connection that is not logged in.
    async fn new(settings: &Settings, endpoint: &str) -> Result<Self, Failure> {
        // Boxed: the library's future is 17 KB.
        let client = Box::pin(connect(settings, endpoint)).await?;
        let login = settings.username.clone().zip(settings.password.clone());
        let login = login.map(|(user, credential)| Login { user, credential, password: Secret::from("").into() });
        Ok(Self {
            client: Arc::new(client),
            login: login.map(Arc::new),
            dial_timeout: settings.timings.dial_timeout,
            request_timeout: settings.timings.request_timeout,
        })
    }

    /// Logs in, if there is a user, with the password as it is now.
    async fn log_in(&self) -> Result<(), Failure> {
        let Some(login) = &self.login else { return Ok(()) };
        let password = login.credential.read().await.map_err(|error| Failure::new(Kind::Settings, error.to_string()))?;
        login.password.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&password);
        let user = Some((login.user.clone(), password.expose().to_owned()));
        let mut client = Client::clone(&self.client);
        match self.within("log in", self.dial_timeout, Box::pin(client.update_user(user))).await {
            // The store asks nobody who they are.
            Err(failure) if failure.kind == Kind::AuthOff => Ok(()),
            result => result,
        }
    }

    /// Makes a call. Where the login is no longer good, logs in again and calls once more.
    ///
    /// The library could do so, but only with the password of before, and not where the tokens are
    /// JWT: those end with every change to any user.
    pub(super) async fn call<T, F>(&self, doing: &str, call: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        match self.within(doing, self.request_timeout, call()).await {
            Err(failure) if failure.kind == Kind::Login && self.login.is_some() => {
                self.log_in().await?;
                self.within(doing, self.request_timeout, call()).await
            }
            result => result,
        }
    }

    /// Makes a transaction, as [`Connection::call`] does.
    pub(super) async fn txn(&self, doing: &str, txn: &Txn) -> Result<TxnResponse, Failure> {
        let call = || {
            let (mut kv, txn) = (self.kv(), txn.clone());
            async move { kv.txn(txn).await }
        };
        self.call(doing, call).await
    }

    /// Waits for a call of the client library, but not for ever.
    pub(super) async fn within<T>(
        &self,
        doing: &str,
        limit: Duration,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Failure> {
        match timeout(limit, call).await {
            Ok(result) => result.map_err(|error| self.hide(Failure::of(doing, &error))),
            Err(_) => Err(self.hide(Failure::late(doing, limit))),
        }
    }

    /// Hides the password in a failure: etcd, or whatever is in between, might have echoed it.
    pub(super) fn hide(&self, failure: Failure) -> Failure {
        let Some(login) = &self.login else { return failure };
        let password = login.password.lock().unwrap_or_else(PoisonError::into_inner);
        Failure { text: password.hide_in(&failure.text), ..failure }
    }

    /// Returns the library's client for keys.
    pub(super) fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(MAX_MESSAGE)
    }

    /// Returns the library's client for leases.
    pub(super) fn lease(&self) -> LeaseClient {
        self.client.lease_client()
    }

    /// Returns the library's client for watches.
    pub(super) fn watch(&self) -> WatchClient {
        self.client.watch_client().max_decoding_message_size(MAX_MESSAGE)
    }

    /// Asks where the store stands, and whether every prefix may be read: a list that breaks off for want of permission
    /// would be begun in vain.
    ///
    /// Asked by a transaction that would read a prefix if a key had a negative version: permission is asked for all that it
    /// might do, and nothing is read. To read even the first key of a prefix takes etcd a walk over all of its keys.
    pub(super) async fn probe(&self, prefixes: &[Prefix]) -> Result<Standing, Failure> {
        let mut standing = Standing { cluster: 0, revision: 0 };
        for prefix in prefixes {
            let doing = format!("read {}", prefix.start());
            let never = Compare::version(prefix.start(), CompareOp::Less, 0);
            let read = TxnOp::get(prefix.start(), Some(GetOptions::new().with_range(prefix.end())));
            let txn = Txn::new().when([never]).and_then([read]);
            let answer = self.txn(&doing, &txn).await?;
            let no_header = || self.hide(Failure::new(Kind::Connection, format!("cannot {doing}: no header")));
            let header = answer.header().ok_or_else(no_header)?;
            standing = Standing { cluster: header.cluster_id(), revision: revision(header.revision()) };
        }
        Ok(standing)
    }
}

/// Returns a client of one endpoint that is not logged in; this does not touch the network yet.
async fn connect(settings: &Settings, endpoint: &str) -> Result<Client, Failure> {
    if endpoint.contains(['/', '@']) {
        let text = "an endpoint is host:port, without a scheme, a user or a path".to_owned();
        return Err(Failure::new(Kind::Settings, text));
    }
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let options = options(settings).await?;
    let client = Client::connect([format!("{scheme}://{endpoint}")], Some(options)).await;
    client.map_err(|error| Failure::of("connect", &error))
}

async fn options(settings: &Settings) -> Result<ConnectOptions, Failure> {
    let timings = &settings.timings;
    let options = ConnectOptions::new()
        .with_connect_timeout(timings.dial_timeout)
        .with_keep_alive(timings.keepalive_interval, timings.keepalive_timeout)
        .with_keep_alive_while_idle(true)
        // A member that lost its cluster says so instead of falling silent.
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
        (Some(cert), Some(key)) => options = options.identity(Identity::from_pem(read(cert).await?, read(key).await?)),
        (None, None) => {}
        _ => return Err(Failure::new(Kind::Settings, "a client certificate needs its key, and a key its certificate: name both files")),
    }
    Ok(match server_name {
        Some(name) => options.domain_name(name),
        None => options,
    })
}

async fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    contents::read(file, MAX_PEM_FILE)
        .await
        .map_err(|error| Failure::new(Kind::Settings, format!("cannot read {}: {error}", file.display())))
}

/// All keys below one head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefix(String);

impl Prefix {
    /// Prefixes of these heads, or of GoFrame's own where none is named; each once.
    pub(super) fn of(heads: &[String]) -> Vec<Self> {
        let mut prefixes: Vec<Self> = Vec::with_capacity(heads.len().max(HEADS.len()));
        let named = heads.iter().map(|head| head.trim_matches('/')).filter(|head| !head.is_empty());
        for head in named {
            let prefix = Self(format!("/{head}/"));
            if !prefixes.contains(&prefix) {
                prefixes.push(prefix);
            }
        }
        if prefixes.is_empty() {
            prefixes.extend(HEADS.map(|head| Self(format!("/{head}/"))));
        }
        prefixes
    }

    /// The first key that could stand below the head, `/service/`.
    pub(super) fn start(&self) -> &str {
        &self.0
    }

    /// The first key behind them, `/service0`: `0` follows `/`.
    pub(super) fn end(&self) -> String {
        format!("{}0", self.0.trim_end_matches('/'))
    }
}

/// The members, and when each failed last.
#[derive(Debug)]
pub(super) struct Endpoints {
    members: Vec<(String, Option<Instant>)>,
}

impl Endpoints {
    /// In random order, so that many followers spread over the members.
    pub(super) fn new(endpoints: &[String]) -> Self {
        let mut members: Vec<_> = endpoints.iter().map(|endpoint| (endpoint.clone(), None)).collect();
        fastrand::shuffle(&mut members);
        Self { members }
    }

    /// The next to try: one that has not failed, or else the one whose failure is longest ago.
    pub(super) fn choose(&self) -> Option<String> {
        self.members.iter().min_by_key(|(_, failed)| *failed).map(|(endpoint, _)| endpoint.clone())
    }

    /// Remembers that this one is fine, or failed just now.
    pub(super) fn note(&mut self, endpoint: &str, failed: Option<Instant>) {
        for (member, last) in &mut self.members {
            if member == endpoint {
                *last = failed;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_covers_its_head_and_no_other() {
        let prefixes = Prefix::of(&["service".to_owned(), "/services/".to_owned(), "service".to_owned()]);
        let ranges: Vec<_> = prefixes.iter().map(|prefix| (prefix.start().to_owned(), prefix.end())).collect();
        let own = |text: &str| text.to_owned();
        assert_eq!(ranges, [(own("/service/"), own("/service0")), (own("/services/"), own("/services0"))]);
        assert_eq!(Prefix::of(&[]), prefixes);
    }

    #[tokio::test]
    async fn what_echoes_the_password_is_hidden_in_every_failure() {
        let mut settings = Settings::new(vec!["127.0.0.1:1".to_owned()]);
        settings.username = Some("reader".to_owned());
        settings.password = Some(Credential::Given(Secret::from("hunter2")));
        let connection = Connection::new(&settings, "127.0.0.1:1").await.unwrap();
        assert_eq!(connection.log_in().await.unwrap_err().kind, Kind::Connection, "nobody listens there");
        let echo = async || Err::<(), _>(etcd_client::Error::WatchError("hunter2 is wrong".to_owned()));
        let echoed = connection.within("try hunter2", Duration::from_secs(60), echo()).await.unwrap_err();
        assert_eq!(echoed.text, "cannot try ***: watch error: *** is wrong");
        let echoed = connection.call("try hunter2", echo).await.unwrap_err();
        assert_eq!(echoed.text, "cannot try ***: watch error: *** is wrong");
        let late = connection.within("try hunter2", Duration::ZERO, std::future::pending::<Result<(), _>>()).await;
        assert_eq!(late.unwrap_err().text, "cannot try ***: no answer within 0 s");
    }

    #[test]
    fn the_member_whose_failure_is_longest_ago_is_next() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let mut endpoints = Endpoints::new(&names);
        let start = Instant::now();
        let mut tried = Vec::new();
        for second in 0..3 {
            let next = endpoints.choose().unwrap();
            endpoints.note(&next, Some(start + Duration::from_secs(second)));
            tried.push(next);
        }
        let mut all = tried.clone();
        all.sort();
        assert_eq!(all, names);
        assert_eq!(endpoints.choose().as_ref(), Some(&tried[0]));
        endpoints.note(&tried[2], None);
        assert_eq!(endpoints.choose().as_ref(), Some(&tried[2]));
        assert_eq!(Endpoints::new(&[]).choose(), None);
    }
}
