//! Resolution of a query: from the cache, by a shared exchange with upstreams, or stale.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout_at;

use super::cache::{Cache, CacheEntry, CacheKey, CacheLookup, EMPTY_KEY_BUFFER};
use super::counters::Counters;
use super::in_flight::{FlightLeader, InFlight, Joined, WaitSlot};
use super::message::{
    Age, StoredResponse, UpstreamMessage, is_shareable, response_limit, shareable_upstream_query,
    truncate_to, upstream_query,
};
use super::now;
use super::special::put_failure;
use crate::wire::{ExtendedError, Query, Transport, flags};

/// Time limit for answering a client; most stub resolvers wait 5 s.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(4);
/// Time to wait for upstreams before a stale answer is served.
///
/// This is the client response timer of RFC 8767 section 5.
const CLIENT_RESPONSE_TIMER: Duration = Duration::from_millis(1800);

/// EDE: too many clients are waiting.
const OVERLOADED: ExtendedError<'static> =
    ExtendedError { code: ExtendedError::OTHER, text: "too many queries are waiting" };
/// EDE: the response, or the query itself, is malformed.
pub(super) const MALFORMED: ExtendedError<'static> = ExtendedError {
    code: ExtendedError::NETWORK_ERROR,
    text: "the upstream's response is malformed",
};
/// EDE: the only response is truncated, which must not be sent over TCP.
const TRUNCATED: ExtendedError<'static> = ExtendedError {
    code: ExtendedError::NETWORK_ERROR,
    text: "the upstream truncates its response, also over TCP",
};
/// EDE: no upstream answered within [`QUERY_TIMEOUT`].
const TOO_LATE: ExtendedError<'static> = ExtendedError {
    code: ExtendedError::NO_REACHABLE_AUTHORITY,
    text: "no upstream answered in time",
};
/// EDE: the task that sent the query panicked.
const INTERNAL_FAILURE: ExtendedError<'static> =
    ExtendedError { code: ExtendedError::OTHER, text: "internal failure: see the log of svcdns" };

/// Sends queries to the upstreams of their names.
pub(super) trait Exchange: Send + Sync + 'static {
    /// Returns whether all upstreams of the name in `key` are dead.
    fn is_down(&self, key: CacheKey<'_>) -> bool;

    /// Sends `message`, whose ID is 0, to the upstreams of the name in `key`.
    ///
    /// The result is the response to that message, with any ID. The future ends by `deadline`. If
    /// `interrupt` is notified, the upstreams are selected again.
    fn query(
        &self,
        key: CacheKey<'_>,
        message: Vec<u8>,
        deadline: Instant,
        interrupt: &Notify,
    ) -> impl Future<Output = Result<UpstreamMessage, ExchangeError>> + Send;
}

/// Reason why there is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExchangeError {
    /// EDE for the client (RFC 8914).
    pub(super) error: ExtendedError<'static>,
    /// Whether the query was sent; if it was, the failure is cached (RFC 9520).
    pub(super) sent: bool,
}

/// Result of answering from the cache alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImmediateAnswer {
    /// The response has been written.
    Written,
    /// Only a stale answer is cached; the caller waits for upstreams before serving it.
    StaleOnly,
    /// An alias whose target is resolved elsewhere is cached, and may be served.
    Alias,
    /// No usable entry is cached.
    NotCached,
}

/// The first step of resolving a shareable query.
enum QueryStart {
    /// Answer from this entry.
    Cached(Arc<CacheEntry>, Age),
    /// Wait for the query in flight, with a stale answer to fall back to.
    Joined(Joined, WaitSlot, Option<Arc<CacheEntry>>),
}

/// The result of resolving a query.
#[derive(Debug)]
pub(super) enum ResolvedQuery {
    /// The response to the client.
    Response(Vec<u8>),
    /// An alias whose target is resolved elsewhere.
    Alias {
        /// The response so far, of any size, with the chain of aliases.
        response: Vec<u8>,
        /// The target in wire form.
        target: Vec<u8>,
    },
}

/// The cache and the queries in flight, shared by all lanes.
#[derive(Debug)]
pub(super) struct Resolver {
    pub(super) cache: Cache,
    pub(super) counters: Arc<Counters>,
    in_flight: Arc<InFlight>,
}

/// Writes the response built from `entry` into the empty `out`.
fn write_entry(
    entry: &CacheEntry,
    query: &Query<'_>,
    transport: Transport,
    age: Age,
    out: &mut Vec<u8>,
) {
    // Over TCP, some clients ignore TC and would take missing records for nonexistent ones.
    if transport == Transport::Tcp && entry.stored.is_truncated() {
        put_failure(query, TRUNCATED, out);
    } else {
        entry.stored.write(query, transport, age, out);
    }
}

/// Builds the result of `query` from the entry that was found.
fn resolved(
    found: Result<(Arc<CacheEntry>, Age), ExtendedError<'static>>,
    query: &Query<'_>,
    transport: Transport,
) -> ResolvedQuery {
    let mut out = Vec::with_capacity(512);
    match found {
        Ok((entry, age)) => match entry.stored.alias_target() {
            Some(target) => {
                // The transport's limit applies only to the whole response, which is built later.
                entry.stored.write(query, Transport::Tcp, age, &mut out);
                return ResolvedQuery::Alias { response: out, target };
            }
            None => write_entry(&entry, query, transport, age, &mut out),
        },
        Err(error) => put_failure(query, error, &mut out),
    }
    ResolvedQuery::Response(out)
}

/// Returns whether all upstreams of the query's name are dead.
fn is_down<E: Exchange>(exchange: &E, query: &Query<'_>) -> bool {
    let mut buffer = EMPTY_KEY_BUFFER;
    CacheKey::new(query, &mut buffer).is_some_and(|key| exchange.is_down(key))
}

/// Returns whether a stale entry is served without waiting for the upstreams.
fn serves_stale<E: Exchange>(
    exchange: &E,
    key: CacheKey<'_>,
    entry: &CacheEntry,
    now: Instant,
) -> bool {
    entry.is_recheck_deferred(now) || exchange.is_down(key)
}

impl Resolver {
    /// Creates a resolver with a cache of at most `cache_bytes` bytes.
    ///
    /// Expired answers can be served for `stale`.
    pub(super) fn new(cache_bytes: usize, stale: Duration, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            cache: Cache::new(cache_bytes, stale),
            counters,
            in_flight: Arc::default(),
        })
    }

    /// Returns the queries in flight.
    pub(super) fn in_flight(&self) -> &Arc<InFlight> {
        &self.in_flight
    }

    /// Returns the number of waiting clients plus refreshes in progress.
    pub(super) fn waiting(&self) -> u64 {
        self.in_flight.waiting()
    }

    /// Writes the response from the cache, if there is one, into the empty `out`.
    pub(super) fn answer_from_cache<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        query: &Query<'_>,
        transport: Transport,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> ImmediateAnswer {
        let mut buffer = EMPTY_KEY_BUFFER;
        let Some(key) = CacheKey::new(query, &mut buffer).filter(|_| is_shareable(query)) else {
            return ImmediateAnswer::NotCached;
        };
        match self.cache.find(key, now) {
            CacheLookup::Fresh { entry, age, prefetch } => {
                if prefetch {
                    self.prefetch(exchange, query);
                }
                if entry.stored.has_alias_target() {
                    return ImmediateAnswer::Alias;
                }
                self.counters.hits.increment();
                write_entry(&entry, query, transport, age, out);
            }
            CacheLookup::Stale(entry) if !serves_stale(&**exchange, key, &entry, now) => {
                return ImmediateAnswer::StaleOnly;
            }
            CacheLookup::Stale(entry) if entry.stored.has_alias_target() => {
                return ImmediateAnswer::Alias;
            }
            CacheLookup::Stale(entry) if entry.is_recheck_deferred(now) => {
                self.counters.stale.increment();
                write_entry(&entry, query, transport, Age::Stale, out);
            }
            CacheLookup::Stale(entry) => {
                self.counters.stale.increment();
                write_entry(&entry, query, transport, Age::Stale, out);
                // The refresh waits until an upstream comes back to life.
                self.prefetch(exchange, query);
            }
            CacheLookup::Miss => return ImmediateAnswer::NotCached,
        }
        ImmediateAnswer::Written
    }

    /// Refreshes an expiring or stale entry in the background.
    #[cold]
    fn prefetch<E: Exchange>(self: &Arc<Self>, exchange: &Arc<E>, query: &Query<'_>) {
        // A response to a query without RD is not cached, so it could not refresh the entry.
        let query = Query { flags: query.flags | flags::RD, ..*query };
        let mut buffer = EMPTY_KEY_BUFFER;
        let (Some(key), Ok(runtime)) =
            (CacheKey::new(&query, &mut buffer), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let Some(slot) = self.in_flight.acquire_slot() else { return };
        if let Joined::Leader(leader) = self.in_flight.join(key, None) {
            self.counters.prefetches.increment();
            let refresh = Arc::clone(self).exchange_in_background(
                Arc::clone(exchange),
                leader,
                slot,
                shareable_upstream_query(&query),
                now() + QUERY_TIMEOUT,
            );
            runtime.spawn(refresh);
        }
    }

    /// Resolves the query of `request` within [`QUERY_TIMEOUT`].
    ///
    /// `suspect` is the client's address if an upstream has the same address.
    pub(super) async fn resolve<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        request: &[u8],
        query: &Query<'_>,
        transport: Transport,
        suspect: Option<IpAddr>,
    ) -> ResolvedQuery {
        let found = if is_shareable(query) {
            self.resolve_entry(exchange, query, now(), transport == Transport::Udp, suspect).await
        } else {
            // Boxed because it is rare: other queries must not reserve room for its future.
            Box::pin(self.resolve_uncached(exchange, request, query, now(), suspect)).await
        };
        resolved(found, query, transport)
    }

    /// Resolves a query from the cache alone, without waiting.
    pub(super) fn resolve_cached<E: Exchange>(
        &self,
        exchange: &E,
        query: &Query<'_>,
        transport: Transport,
    ) -> Option<ResolvedQuery> {
        let (mut buffer, now) = (EMPTY_KEY_BUFFER, now());
        let key = CacheKey::new(query, &mut buffer).filter(|_| is_shareable(query))?;
        let found = match self.cache.find(key, now) {
            CacheLookup::Fresh { entry, age, .. } => {
                self.counters.hits.increment();
                (entry, age)
            }
            CacheLookup::Stale(entry) if serves_stale(exchange, key, &entry, now) => {
                self.counters.stale.increment();
                (entry, Age::Stale)
            }
            CacheLookup::Stale(_) | CacheLookup::Miss => return None,
        };
        Some(resolved(Ok(found), query, transport))
    }

    /// Resolves the query for an alias's target; the client has waited since `began`.
    pub(super) async fn resolve_alias<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        request: &[u8],
        query: &Query<'_>,
        transport: Transport,
        began: Instant,
    ) -> ResolvedQuery {
        let found = if is_shareable(query) {
            self.resolve_entry(exchange, query, began, false, None).await
        } else {
            self.resolve_uncached(exchange, request, query, began, None).await
        };
        resolved(found, query, transport)
    }

    /// Forwards a message with another opcode, unchanged except for its ID.
    pub(super) async fn relay<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        request: &[u8],
        query: &Query<'_>,
        transport: Transport,
    ) -> Vec<u8> {
        self.counters.passed.increment();
        match self.try_relay(exchange, request, query, response_limit(request, transport)).await {
            Ok(response) => response,
            Err(error) => {
                let mut out = Vec::new();
                put_failure(query, error, &mut out);
                out
            }
        }
    }

    /// Forwards the message; returns the response, truncated to `limit` bytes.
    async fn try_relay<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        request: &[u8],
        query: &Query<'_>,
        limit: usize,
    ) -> Result<Vec<u8>, ExtendedError<'static>> {
        let mut buffer = EMPTY_KEY_BUFFER;
        let key = CacheKey::new(query, &mut buffer).ok_or(MALFORMED)?;
        let _slot = self.acquire_slot()?;
        let mut message = request.to_vec();
        message[..2].fill(0);
        let mut response = exchange
            .query(key, message, now() + QUERY_TIMEOUT, &Notify::const_new())
            .await
            .map_err(|failure| self.count_failure(failure).error)?
            .bytes;
        truncate_to(limit, &mut response).map_err(|_| MALFORMED)?;
        response[..2].copy_from_slice(&query.id.to_be_bytes());
        Ok(response)
    }

    /// Resolves a shareable query to a cache entry; its client has waited since `began`.
    ///
    /// With `uncancelled`, the caller promises to poll the returned future to its end, even if the
    /// client disconnects.
    ///
    /// # Errors
    /// Returns an EDE if there is neither a response nor a stale answer.
    pub(super) async fn resolve_entry<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        query: &Query<'_>,
        began: Instant,
        uncancelled: bool,
        suspect: Option<IpAddr>,
    ) -> Result<(Arc<CacheEntry>, Age), ExtendedError<'static>> {
        let started = now();
        let (joined, slot, stale) = match self.start(exchange, query, started, suspect)? {
            QueryStart::Cached(entry, age) => return Ok((entry, age)),
            QueryStart::Joined(joined, slot, stale) => (joined, slot, stale),
        };
        // The upstreams get the whole time, even if this client cannot wait that long.
        let deadline = started + QUERY_TIMEOUT;
        let flight = match joined {
            Joined::Leader(leader) => {
                self.counters.misses.increment();
                if uncancelled && stale.is_none() {
                    let _slot = slot;
                    return Ok((
                        self.exchange_and_cache(
                            &**exchange,
                            leader,
                            shareable_upstream_query(query),
                            deadline,
                        )
                        .await,
                        Age::Fresh,
                    ));
                }
                let flight = leader.flight();
                // A separate task, because followers wait for the result even if this client
                // disconnects.
                tokio::spawn(Arc::clone(self).exchange_in_background(
                    Arc::clone(exchange),
                    leader,
                    slot,
                    shareable_upstream_query(query),
                    deadline,
                ));
                flight
            }
            Joined::Follower(flight) => {
                self.counters.merged.increment();
                flight
            }
        };
        let give_stale = |entry| {
            self.counters.stale.increment();
            Ok((entry, Age::Stale))
        };
        let patience = if stale.is_some() { CLIENT_RESPONSE_TIMER } else { QUERY_TIMEOUT };
        let give_up_at = began + patience;
        let outcome = timeout_at(give_up_at.into(), flight.wait()).await;
        match (outcome, stale) {
            (Ok(Some(entry)), None) => Ok((entry, Age::Fresh)),
            (Ok(Some(entry)), Some(_)) if !entry.is_failure() => Ok((entry, Age::Fresh)),
            (outcome, Some(entry)) => {
                // While all upstreams are dead, no client waits for them anyway.
                if outcome.is_err() && !is_down(&**exchange, query) {
                    // Later queries need not wait this long. A late response still replaces the
                    // entry.
                    entry.defer_recheck(now());
                }
                give_stale(entry)
            }
            (Ok(None), None) => Err(INTERNAL_FAILURE),
            (Err(_), None) => Err(TOO_LATE),
        }
    }

    /// Starts to resolve a shareable query, without waiting.
    ///
    /// A separate function, so that the key takes no room in the future that waits.
    fn start<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        query: &Query<'_>,
        now: Instant,
        suspect: Option<IpAddr>,
    ) -> Result<QueryStart, ExtendedError<'static>> {
        let mut buffer = EMPTY_KEY_BUFFER;
        let key = CacheKey::new(query, &mut buffer).ok_or(MALFORMED)?;
        // The entry may have arrived since the caller checked.
        let stale = match self.cache.find(key, now) {
            CacheLookup::Fresh { entry, age, .. } => {
                self.counters.hits.increment();
                return Ok(QueryStart::Cached(entry, age));
            }
            CacheLookup::Stale(entry) if exchange.is_down(key) => {
                self.counters.stale.increment();
                self.prefetch(exchange, query);
                return Ok(QueryStart::Cached(entry, Age::Stale));
            }
            CacheLookup::Stale(entry) => Some(entry),
            CacheLookup::Miss => None,
        };
        let slot = if stale.as_ref().is_some_and(|entry| entry.is_recheck_deferred(now)) {
            Err(OVERLOADED)
        } else {
            self.acquire_slot()
        };
        match (slot, stale) {
            (Ok(slot), stale) => {
                Ok(QueryStart::Joined(self.in_flight.join(key, suspect), slot, stale))
            }
            (Err(_), Some(entry)) => {
                self.counters.stale.increment();
                Ok(QueryStart::Cached(entry, Age::Stale))
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Resolves a query whose response is only for this client.
    async fn resolve_uncached<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        request: &[u8],
        query: &Query<'_>,
        began: Instant,
        suspect: Option<IpAddr>,
    ) -> Result<(Arc<CacheEntry>, Age), ExtendedError<'static>> {
        let mut buffer = EMPTY_KEY_BUFFER;
        let key = CacheKey::new(query, &mut buffer).ok_or(MALFORMED)?;
        let _slot = self.acquire_slot()?;
        self.counters.misses.increment();
        let message = upstream_query(request, query).map_err(|_| MALFORMED)?;
        let flight = self.in_flight.start_alone(key, suspect);
        let response = exchange
            .query(key, message, began + QUERY_TIMEOUT, flight.interrupt())
            .await
            .map_err(|failure| self.count_failure(failure).error)?;
        let stored = StoredResponse::from_upstream(&response, false).map_err(|_| MALFORMED)?;
        Ok((CacheEntry::uncached(stored, now()), Age::Fresh))
    }

    /// Exchanges the query, stores the result and wakes all followers.
    async fn exchange_and_cache<E: Exchange>(
        &self,
        exchange: &E,
        leader: FlightLeader,
        message: Vec<u8>,
        deadline: Instant,
    ) -> Arc<CacheEntry> {
        let epoch = self.cache.epoch();
        let key = leader.key();
        // Boxed, so that both allocations are small enough for glibc's thread cache (at most 1,032
        // bytes).
        let response = Box::pin(exchange.query(key, message, deadline, leader.interrupt())).await;
        let response = response.and_then(|response| {
            StoredResponse::from_upstream(&response, true)
                .map_err(|_| ExchangeError { error: MALFORMED, sent: true })
        });
        let (stored, sent) = match response {
            Ok(stored) => (stored, true),
            Err(failure) => {
                // A refresh that failed because all upstreams are dead must not defer the next one.
                let keeps_answer = exchange.is_down(key)
                    && !matches!(self.cache.find(key, now()), CacheLookup::Miss);
                (
                    StoredResponse::failure(key.question(), failure.error),
                    self.count_failure(failure).sent && !keeps_answer,
                )
            }
        };
        let entry = self.cache.insert(key, stored, sent, epoch, now());
        leader.complete(Arc::clone(&entry));
        entry
    }

    /// Runs [`Self::exchange_and_cache`] in a task that outlives the client.
    async fn exchange_in_background<E: Exchange>(
        self: Arc<Self>,
        exchange: Arc<E>,
        leader: FlightLeader,
        slot: WaitSlot,
        message: Vec<u8>,
        deadline: Instant,
    ) {
        let _slot = slot;
        self.exchange_and_cache(&*exchange, leader, message, deadline).await;
    }

    /// Returns a permit to wait, or counts the rejected query.
    fn acquire_slot(&self) -> Result<WaitSlot, ExtendedError<'static>> {
        self.in_flight.acquire_slot().ok_or_else(|| {
            self.counters.overloaded.increment();
            OVERLOADED
        })
    }

    /// Counts a query that no upstream answered.
    fn count_failure(&self, failure: ExchangeError) -> ExchangeError {
        self.counters.failures.increment();
        failure
    }
}

#[cfg(test)]
mod tests;
