//! The one way in which svcdns writes to a registry: a person asked for it.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::backoff::Backoff;
use super::connection::{Connection, Endpoints};
use super::failure::{Failure, Kind};
use crate::registry::{RegisterError, RegisterEvent, Registrant, gsvc};

/// Attempts to remove the key at the end, over the members in turn; together they take one request's time.
const REMOVALS: u32 = 3;

/// The longest time to live that etcd grants, in seconds.
const LONGEST_TTL: u64 = 9_000_000_000;

/// Puts the registration's key on a lease of its `ttl` (rounded up to whole seconds; the store may grant longer) and keeps
/// it alive until `stop`; then removes the key. It is put again when the lease was lost, or the key is missing: after an
/// outage, a wipe, a restore, or a deletion by hand. A key that someone else has put since is left alone.
///
/// The key is deleted while its lease still exists, and the lease left to lapse, as GoFrame does: so followers can tell
/// it from an expiry.
///
/// # Errors
/// When the first attempt is refused for good, or the key could not be removed at the end.
pub async fn register(
    settings: &Settings,
    registrant: &Registrant,
    stop: CancellationToken,
    events: impl Fn(RegisterEvent),
) -> Result<(), RegisterError> {
    let settings = &settings.clone().bounded();
    let Registrant { head, id, endpoints, metadata, ttl } = registrant;
    let mut keeper = Keeper {
        settings,
        key: gsvc::key(head, id, endpoints),
        value: gsvc::value(metadata),
        ttl: ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)).clamp(1, LONGEST_TTL),
        lease: None,
        endpoints: Endpoints::new(&settings.endpoints),
        events,
    };
    let mut backoff = Backoff::new(settings.timings.backoff_min, settings.timings.backoff_max);
    let mut ever = false;
    loop {
        let mut good_since = None;
        let ended = tokio::select! {
            () = stop.cancelled() => None,
            Err(failure) = keeper.keep(&mut good_since) => Some(failure),
        };
        let Some(failure) = ended else { return keeper.remove().await };
        ever |= good_since.is_some();
        if !ever && failure.kind.is_refusal() {
            return Err(RegisterError::Refused { key: keeper.key.clone(), reason: failure.text });
        }
        (keeper.events)(RegisterEvent::Failed(failure.text));
        if good_since.is_some_and(|since: Instant| since.elapsed() >= settings.timings.healthy_after) {
            backoff.reset();
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(backoff.next()) => {}
        }
    }
}

/// Keeps one key in the store.
struct Keeper<'a, F> {
    settings: &'a Settings,
    key: String,
    value: String,
    /// Time to live, in seconds.
    ttl: u64,
    /// The lease that the key hangs on; none before the first, and after it was lost.
    lease: Option<i64>,
    endpoints: Endpoints,
    events: F,
}

impl<F: Fn(RegisterEvent)> Keeper<'_, F> {
    /// Connects, and keeps the key in the store until something fails.
    async fn keep(&mut self, good_since: &mut Option<Instant>) -> Result<std::convert::Infallible, Failure> {
        let endpoint = self.endpoints.choose().ok_or_else(|| Failure::new(Kind::Settings, "no endpoint is configured"))?;
        let Err(mut failure) = self.keep_at(&endpoint, good_since).await;
        failure.text = at(&endpoint, &failure);
        self.endpoints.note(&endpoint, Some(Instant::now()));
        Err(failure)
    }

    async fn keep_at(&mut self, endpoint: &str, good_since: &mut Option<Instant>) -> Result<std::convert::Infallible, Failure> {
        let connection = Connection::open(self.settings, endpoint).await?;
        loop {
            let lease = match self.lease {
                Some(lease) => lease,
                None => self.put(&connection).await?,
            };
            good_since.get_or_insert_with(Instant::now);
            self.endpoints.note(endpoint, None);
            // Returns where the lease is lost, with the connection still good.
            self.keep_alive(&connection, endpoint, lease).await?;
            self.lease = None;
        }
    }

    /// Puts the key on a new lease.
    async fn put(&mut self, connection: &Connection) -> Result<i64, Failure> {
        let ttl = i64::try_from(self.ttl).unwrap_or(i64::MAX);
        let grant = || {
            let mut client = connection.lease();
            async move { client.grant(ttl, None).await }
        };
        let granted = connection.call("get a lease", grant).await?;
        let lease = granted.id();
        // Known before the put: should its answer get lost, the key is still looked after, and removed at the end.
        self.lease = Some(lease);
        let put = Txn::new().and_then([self.put_on(lease)]);
        connection.txn(&format!("put {}", self.key), &put).await?;
        (self.events)(RegisterEvent::Registered);
        Ok(lease)
    }

    fn put_on(&self, lease: i64) -> TxnOp {
        TxnOp::put(&*self.key, &*self.value, Some(PutOptions::new().with_lease(lease)))
    }

    /// Renews the lease three times in its life, and looks after the key each time; returns when the lease is lost.
    async fn keep_alive(&mut self, connection: &Connection, endpoint: &str, lease: i64) -> Result<(), Failure> {
        let ttl = Duration::from_secs(self.ttl);
        let limit = ttl.min(self.settings.timings.request_timeout);
        let Some((mut keeper, mut answers)) = renewal(connection, lease).await? else { return Ok(()) };
        loop {
            let next = Instant::now() + ttl / 3;
            match self.look_after(connection, lease).await {
                // etcd renews a lease whoever asks: the key outlives a password that was changed.
                Err(failure) if failure.kind.is_refusal() => (self.events)(RegisterEvent::Failed(at(endpoint, &failure))),
                looked_after => looked_after?,
            }
            sleep_until(next).await;
            let renewed = connection.within("renew the lease", limit, async {
                keeper.keep_alive().await?;
                answers.message().await
            });
            match renewed.await? {
                None => return Err(Failure::new(Kind::Connection, "cannot renew the lease: the member closed the stream")),
                Some(answer) if answer.ttl() > 0 => {}
                Some(_) => return Ok(()),
            }
        }
    }

    /// Puts the key again where it is missing.
    async fn look_after(&self, connection: &Connection, lease: i64) -> Result<(), Failure> {
        let missing = Compare::version(&*self.key, CompareOp::Equal, 0);
        let txn = Txn::new().when([missing]).and_then([self.put_on(lease)]);
        let done = connection.txn(&format!("look after {}", self.key), &txn).await?;
        if done.succeeded() {
            (self.events)(RegisterEvent::Registered);
        }
        Ok(())
    }

    /// Deletes the key where it is still ours, and leaves the lease to lapse.
    async fn remove(&mut self) -> Result<(), RegisterError> {
        let Some(lease) = self.lease else { return Ok(()) };
        let limit = self.settings.timings.request_timeout / REMOVALS;
        let mut reason = String::new();
        for _ in 0..REMOVALS {
            let Some(endpoint) = self.endpoints.choose() else { break };
            let removed = timeout(limit, self.remove_at(&endpoint, lease)).await;
            match removed.unwrap_or_else(|_| Err(Failure::late("delete the key", limit))) {
                Ok(()) => {
                    (self.events)(RegisterEvent::Removed);
                    return Ok(());
                }
                Err(failure) => {
                    reason = at(&endpoint, &failure);
                    self.endpoints.note(&endpoint, Some(Instant::now()));
                }
            }
            sleep(self.settings.timings.backoff_min).await;
        }
        Err(RegisterError::NotRemoved { key: self.key.clone(), reason, seconds: self.ttl })
    }

    async fn remove_at(&self, endpoint: &str, lease: i64) -> Result<(), Failure> {
        let connection = Connection::open(self.settings, endpoint).await?;
        let ours = Compare::lease(&*self.key, CompareOp::Equal, lease);
        let txn = Txn::new().when([ours]).and_then([TxnOp::delete(&*self.key, None)]);
        connection.txn(&format!("delete {}", self.key), &txn).await.map(drop)
    }
}

/// Begins to renew a lease; none where it no longer exists.
async fn renewal(connection: &Connection, lease: i64) -> Result<Option<(LeaseKeeper, LeaseKeepAliveStream)>, Failure> {
    let begin = || {
        let mut client = connection.lease();
        async move {
            match client.keep_alive(lease).await {
                // The library's own word for an answer with no time to live.
                Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(None),
                result => result.map(Some),
            }
        }
    };
    connection.call("renew the lease", begin).await
}

/// Says where a failure was.
fn at(endpoint: &str, failure: &Failure) -> String {
    format!("etcd at {endpoint}: {}", failure.text)
}
