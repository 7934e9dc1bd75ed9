//! Registration of a service, the only code that writes to etcd.

use std::convert::Infallible;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::connection::Connection;
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::register::{RegistrationProgress, StoreRegistration, keep_registered};
use crate::registry::{RegisterError, RegisterEvent, Registrant, gsvc};

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
    let registration = EtcdRegistration {
        settings,
        key: gsvc::key(head, id, endpoints),
        value: gsvc::value(metadata),
        ttl_seconds: ttl_seconds.clamp(1, MAX_TTL_SECONDS),
        lease: None,
    };
    keep_registered(registration, settings.attempts(), stop, events).await
}

/// One key in the store.
struct EtcdRegistration<'a> {
    settings: &'a Settings,
    key: String,
    value: String,
    ttl_seconds: u64,
    /// The lease of the key; `None` before the first and after it was lost.
    lease: Option<i64>,
}

impl StoreRegistration for EtcdRegistration<'_> {
    fn key(&self) -> &str {
        &self.key
    }

    fn expiry_seconds(&self) -> u64 {
        self.ttl_seconds
    }

    async fn keep(
        &mut self,
        endpoint: &str,
        progress: &mut RegistrationProgress<impl Fn(RegisterEvent)>,
    ) -> Result<Infallible, Failure> {
        let connection = Connection::open(self.settings, endpoint).await?;
        loop {
            let lease = match self.lease {
                Some(lease) => lease,
                None => self.put(&connection, progress).await?,
            };
            progress.set_working();
            // Returns without an error if the lease is lost while the connection still works.
            self.keep_alive(&connection, lease, progress).await?;
            self.lease = None;
        }
    }

    /// Deletes the key if it still has this lease, and leaves the lease to expire.
    async fn remove(&mut self, endpoint: &str) -> Result<bool, Failure> {
        let Some(lease) = self.lease else { return Ok(false) };
        let connection = Connection::open(self.settings, endpoint).await?;
        let ours = Compare::lease(&*self.key, CompareOp::Equal, lease);
        let txn = Txn::new().when([ours]).and_then([TxnOp::delete(&*self.key, None)]);
        connection.txn(&format!("delete {}", self.key), &txn).await?;
        Ok(true)
    }
}

impl EtcdRegistration<'_> {
    /// Puts the key with a new lease, and returns the lease.
    async fn put(
        &mut self,
        connection: &Connection,
        progress: &mut RegistrationProgress<impl Fn(RegisterEvent)>,
    ) -> Result<i64, Failure> {
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
        progress.registered();
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
        lease: i64,
        progress: &mut RegistrationProgress<impl Fn(RegisterEvent)>,
    ) -> Result<(), Failure> {
        let ttl = Duration::from_secs(self.ttl_seconds);
        let limit = ttl.min(self.settings.tuning.connection.request_timeout);
        let Some((mut keeper, mut responses)) = start_renewal(connection, lease).await? else {
            return Ok(());
        };
        loop {
            let next = Instant::now() + ttl / 3;
            match self.restore_key(connection, lease, progress).await {
                // etcd renews leases without a login, so the key survives a changed password.
                Err(failure) if failure.kind.is_refusal() => progress.failed(failure),
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
                    return Err(Failure::new(FailureKind::Connection, text));
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
        progress: &mut RegistrationProgress<impl Fn(RegisterEvent)>,
    ) -> Result<(), Failure> {
        let missing = Compare::version(&*self.key, CompareOp::Equal, 0);
        let txn = Txn::new().when([missing]).and_then([self.put_with(lease)]);
        let response = connection.txn(&format!("check {}", self.key), &txn).await?;
        if response.succeeded() {
            progress.registered();
        } else {
            progress.refreshed();
        }
        Ok(())
    }
}

/// Opens the stream that renews a lease; `None` if the lease no longer exists.
async fn start_renewal(
    connection: &Connection,
    lease: i64,
) -> Result<Option<(LeaseKeeper, LeaseKeepAliveStream)>, Failure> {
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
