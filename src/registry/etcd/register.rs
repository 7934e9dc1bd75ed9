//! Registration of a service, the only code that writes to etcd.

use std::convert::Infallible;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::connection::Connection;
use super::failure::{EtcdFailure, FailureKind};
use crate::registry::backoff::Backoff;
use crate::registry::members::Members;
use crate::registry::{RegisterError, RegisterEvent, Registrant, gsvc};

/// Maximum attempts to remove the key; together they take one request timeout.
const REMOVAL_ATTEMPTS: u32 = 3;

/// Maximum TTL that etcd grants, in seconds.
const MAX_TTL_SECONDS: u64 = 9_000_000_000;

/// Registers a service on a lease until `stop` is cancelled, then deletes its key.
///
/// The time to live is rounded up to whole seconds, and etcd may grant more. The key is put again
/// if its lease was lost or the key is missing: after an outage, a wipe, a restore, or a manual
/// deletion. A key that another client has put since is not changed.
///
/// At the end, the key is deleted while its lease still exists, and the lease is left to expire,
/// as in GoFrame: followers can thus tell the deletion from an expiry.
///
/// # Errors
/// Returns an error if the first attempt is refused for good, or if the key could not be deleted
/// at the end.
pub async fn register(
    settings: &Settings,
    registrant: &Registrant,
    stop: CancellationToken,
    events: impl Fn(RegisterEvent),
) -> Result<(), RegisterError> {
    let settings = &settings.clone().bounded();
    let Registrant { head, id, endpoints, metadata, ttl } = registrant;
    let ttl_seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    let mut keeper = RegistrationKeeper {
        settings,
        key: gsvc::key(head, id, endpoints),
        value: gsvc::value(metadata),
        ttl_seconds: ttl_seconds.clamp(1, MAX_TTL_SECONDS),
        lease: None,
        endpoints: Members::new(&settings.endpoints),
        events,
        failing: false,
    };
    let tuning = &settings.tuning;
    let mut backoff = Backoff::new(tuning.backoff_min, tuning.backoff_max);
    let mut ever_registered = false;
    loop {
        let mut working_since = None;
        let ended = tokio::select! {
            () = stop.cancelled() => None,
            Err(failure) = keeper.keep(&mut working_since) => Some(failure),
        };
        let Some(failure) = ended else { return keeper.remove().await };
        ever_registered |= working_since.is_some();
        if !ever_registered && failure.kind.is_refusal() {
            return Err(RegisterError::Refused { key: keeper.key.clone(), reason: failure.text });
        }
        keeper.report(RegisterEvent::Failed(failure.text));
        if working_since.is_some_and(|since: Instant| since.elapsed() >= tuning.healthy_after) {
            backoff.reset();
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(backoff.next()) => {}
        }
    }
}

/// Maintains one key in the store.
struct RegistrationKeeper<'a, F> {
    settings: &'a Settings,
    key: String,
    value: String,
    ttl_seconds: u64,
    /// The lease of the key; `None` before the first and after it was lost.
    lease: Option<i64>,
    endpoints: Members,
    events: F,
    /// Whether the last event was a failure.
    failing: bool,
}

impl<F: Fn(RegisterEvent)> RegistrationKeeper<'_, F> {
    fn report(&mut self, event: RegisterEvent) {
        self.failing = matches!(event, RegisterEvent::Failed(_));
        (self.events)(event);
    }

    /// Connects to a member and keeps the key in the store until something fails.
    async fn keep(
        &mut self,
        working_since: &mut Option<Instant>,
    ) -> Result<Infallible, EtcdFailure> {
        let no_endpoint = || EtcdFailure::new(FailureKind::Settings, "no endpoint is configured");
        let endpoint = self.endpoints.choose().ok_or_else(no_endpoint)?;
        let Err(failure) = self.keep_at(&endpoint, working_since).await;
        self.endpoints.set_failed(&endpoint, Some(Instant::now()));
        let failure = match working_since {
            Some(_) => failure,
            None => Box::pin(failure.identified(self.settings, &endpoint)).await,
        };
        Err(failure.at(&endpoint))
    }

    async fn keep_at(
        &mut self,
        endpoint: &str,
        working_since: &mut Option<Instant>,
    ) -> Result<Infallible, EtcdFailure> {
        let connection = Connection::open(self.settings, endpoint).await?;
        loop {
            let lease = match self.lease {
                Some(lease) => lease,
                None => self.put(&connection).await?,
            };
            working_since.get_or_insert_with(Instant::now);
            self.endpoints.set_failed(endpoint, None);
            // Returns without an error if the lease is lost while the connection still works.
            self.keep_alive(&connection, endpoint, lease).await?;
            self.lease = None;
        }
    }

    /// Puts the key with a new lease, and returns the lease.
    async fn put(&mut self, connection: &Connection) -> Result<i64, EtcdFailure> {
        let ttl = i64::try_from(self.ttl_seconds).unwrap_or(i64::MAX);
        let grant = || {
            let mut client = connection.lease();
            async move { client.grant(ttl, None).await }
        };
        let granted = connection.call("get a lease", grant).await?;
        let lease = granted.id();
        // Stored before the put: if its response is lost, the key is still checked, and deleted
        // at the end.
        self.lease = Some(lease);
        let put = Txn::new().and_then([self.put_with(lease)]);
        connection.txn(&format!("put {}", self.key), &put).await?;
        self.report(RegisterEvent::Registered);
        Ok(lease)
    }

    fn put_with(&self, lease: i64) -> TxnOp {
        TxnOp::put(&*self.key, &*self.value, Some(PutOptions::new().with_lease(lease)))
    }

    /// Renews the lease and checks the key, three times per time to live.
    ///
    /// Returns when the lease is lost.
    async fn keep_alive(
        &mut self,
        connection: &Connection,
        endpoint: &str,
        lease: i64,
    ) -> Result<(), EtcdFailure> {
        let ttl = Duration::from_secs(self.ttl_seconds);
        let limit = ttl.min(self.settings.tuning.request_timeout);
        let Some((mut keeper, mut responses)) = start_renewal(connection, lease).await? else {
            return Ok(());
        };
        loop {
            let next = Instant::now() + ttl / 3;
            match self.restore_key(connection, lease).await {
                // etcd renews leases without a login, so the key survives a changed password.
                Err(failure) if failure.kind.is_refusal() => {
                    self.report(RegisterEvent::Failed(failure.at(endpoint).text));
                }
                result => result?,
            }
            sleep_until(next).await;
            let renewed = connection.within("renew the lease", limit, async {
                keeper.keep_alive().await?;
                responses.message().await
            });
            match renewed.await? {
                None => {
                    let text = "cannot renew the lease: the member closed the stream";
                    return Err(EtcdFailure::new(FailureKind::Connection, text));
                }
                Some(response) if response.ttl() > 0 => {}
                Some(_) => return Ok(()),
            }
        }
    }

    /// Puts the key again if it is missing.
    async fn restore_key(
        &mut self,
        connection: &Connection,
        lease: i64,
    ) -> Result<(), EtcdFailure> {
        let missing = Compare::version(&*self.key, CompareOp::Equal, 0);
        let txn = Txn::new().when([missing]).and_then([self.put_with(lease)]);
        let response = connection.txn(&format!("check {}", self.key), &txn).await?;
        if response.succeeded() {
            self.report(RegisterEvent::Registered);
        } else if self.failing {
            self.report(RegisterEvent::Recovered);
        }
        Ok(())
    }

    /// Deletes the key if it still has this lease, and leaves the lease to expire.
    async fn remove(&mut self) -> Result<(), RegisterError> {
        let Some(lease) = self.lease else { return Ok(()) };
        let limit = self.settings.tuning.request_timeout / REMOVAL_ATTEMPTS;
        let mut reason = String::new();
        for _ in 0..REMOVAL_ATTEMPTS {
            let Some(endpoint) = self.endpoints.choose() else { break };
            let removed = timeout(limit, self.remove_at(&endpoint, lease)).await;
            match removed.unwrap_or_else(|_| Err(EtcdFailure::timeout("delete the key", limit))) {
                Ok(()) => {
                    self.report(RegisterEvent::Removed);
                    return Ok(());
                }
                Err(failure) => {
                    reason = failure.at(&endpoint).text;
                    self.endpoints.set_failed(&endpoint, Some(Instant::now()));
                }
            }
            sleep(self.settings.tuning.backoff_min).await;
        }
        Err(RegisterError::NotRemoved { key: self.key.clone(), reason, seconds: self.ttl_seconds })
    }

    async fn remove_at(&self, endpoint: &str, lease: i64) -> Result<(), EtcdFailure> {
        let connection = Connection::open(self.settings, endpoint).await?;
        let ours = Compare::lease(&*self.key, CompareOp::Equal, lease);
        let txn = Txn::new().when([ours]).and_then([TxnOp::delete(&*self.key, None)]);
        connection.txn(&format!("delete {}", self.key), &txn).await.map(drop)
    }
}

/// Opens the stream that renews a lease; `None` if the lease no longer exists.
async fn start_renewal(
    connection: &Connection,
    lease: i64,
) -> Result<Option<(LeaseKeeper, LeaseKeepAliveStream)>, EtcdFailure> {
    let start = || {
        let mut client = connection.lease();
        async move {
            match client.keep_alive(lease).await {
                // The library reports a response without a TTL as this error.
                Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(None),
                result => result.map(Some),
            }
        }
    };
    connection.call("renew the lease", start).await
}
