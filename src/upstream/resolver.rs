//! From a question to what it comes to: cache, then an exchange that equal questions share, then what is past its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use super::cache::{Cache, CacheEntry, CacheKey, CacheLookup, EMPTY_KEY_BUFFER};
use super::counters::Counters;
use super::in_flight::{FlightLeader, InFlight, Joined, WaitSlot};
use super::message::{
    Age, StoredResponse, is_plain, plain_upstream_query, response_limit, truncate_to,
    upstream_query,
};
use super::special::put_failure;
use crate::wire::{ExtendedError, Query, Transport, flags};

/// How long a client waits at most: those that ask us mostly wait 5 s.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a client waits for something better than what is past its end (RFC 8767 section 5).
const CLIENT_RESPONSE_TIMER: Duration = Duration::from_millis(1800);

const OVERLOADED: ExtendedError =
    ExtendedError { code: ExtendedError::OTHER, text: "too many questions are waiting" };
const MALFORMED: ExtendedError = ExtendedError {
    code: ExtendedError::NETWORK_ERROR,
    text: "the upstream's answer is malformed",
};
const TRUNCATED: ExtendedError = ExtendedError {
    code: ExtendedError::NETWORK_ERROR,
    text: "the upstream truncates its answer and gives no whole one over TCP",
};
const TOO_LATE: ExtendedError = ExtendedError {
    code: ExtendedError::NO_REACHABLE_AUTHORITY,
    text: "no upstream answered in time",
};
const INTERNAL_FAILURE: ExtendedError =
    ExtendedError { code: ExtendedError::OTHER, text: "leader failed here; see the server's log" };

/// Brings a message to whoever is to be asked for its name, and brings the answer.
pub(super) trait Exchange: Send + Sync + 'static {
    /// Asks; `message` has id 0 and a question about `key`'s name. The answer is a response to that question, its id any.
    /// Ends by `deadline`.
    fn query(
        &self,
        key: CacheKey<'_>,
        message: Vec<u8>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Vec<u8>, ExchangeError>> + Send;
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExchangeError {
    /// What the client is told.
    pub(super) error: ExtendedError,
    /// Whether the question went out, so that it need not go out again at once (RFC 9520).
    pub(super) sent: bool,
}

/// What can be said of a question without leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImmediateAnswer {
    /// The answer is written.
    Written,
    /// There is something past its end: should nothing better come in time, it is the answer.
    StaleOnly,
    /// Nothing.
    NotCached,
}

/// What can be done about a plain query.
enum QueryStart {
    /// Give this.
    Cached(Arc<CacheEntry>, Age),
    /// Ask or wait, in this slot; should nothing better come in time, there is what is past its end.
    Joined(Joined, WaitSlot, Option<Arc<CacheEntry>>),
}

/// What all lanes share.
#[derive(Debug)]
pub(super) struct Resolver {
    pub(super) cache: Cache,
    pub(super) counters: Counters,
    in_flight: Arc<InFlight>,
}

/// Writes an entry into `out`, which is empty.
fn write_entry(
    entry: &CacheEntry,
    query: &Query<'_>,
    transport: Transport,
    age: Age,
    out: &mut Vec<u8>,
) {
    // Some clients do not look at TC over TCP: they would take what is missing for what does not exist.
    if transport == Transport::Tcp && entry.stored.is_truncated() {
        put_failure(query, TRUNCATED, out);
    } else {
        entry.stored.write(query, transport, age, out);
    }
}

/// The time, as timers have it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Resolver {
    /// With a cache of so many bytes, which keeps answers for so long past their end.
    pub(super) fn new(cache_bytes: usize, stale: Duration) -> Arc<Self> {
        Arc::new(Self {
            cache: Cache::new(cache_bytes, stale),
            counters: Counters::default(),
            in_flight: Arc::default(),
        })
    }

    /// Clients that wait, and refreshes under way.
    pub(super) fn waiting(&self) -> u64 {
        self.in_flight.waiting()
    }

    /// Writes the answer into `out`, which is empty, where it is known.
    pub(super) fn answer_from_cache<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        query: &Query<'_>,
        transport: Transport,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> ImmediateAnswer {
        let mut buffer = EMPTY_KEY_BUFFER;
        let Some(key) = CacheKey::new(query, &mut buffer).filter(|_| is_plain(query)) else {
            return ImmediateAnswer::NotCached;
        };
        match self.cache.find(key, now) {
            CacheLookup::Fresh { entry, age, prefetch } => {
                self.counters.hits.increment();
                write_entry(&entry, query, transport, age, out);
                if prefetch {
                    self.prefetch(exchange, query);
                }
            }
            CacheLookup::Stale(entry) if entry.is_recheck_deferred(now) => {
                self.counters.stale.increment();
                write_entry(&entry, query, transport, Age::Stale, out);
            }
            CacheLookup::Stale(_) => return ImmediateAnswer::StaleOnly,
            CacheLookup::Miss => return ImmediateAnswer::NotCached,
        }
        ImmediateAnswer::Written
    }

    /// Asks anew, in the background, for an entry that is about to end.
    #[cold]
    fn prefetch<E: Exchange>(self: &Arc<Self>, exchange: &Arc<E>, query: &Query<'_>) {
        // An answer to somebody who did not want recursion is not kept: it prolongs nothing.
        let query = Query { flags: query.flags | flags::RD, ..*query };
        let mut buffer = EMPTY_KEY_BUFFER;
        let (Some(key), Ok(runtime)) =
            (CacheKey::new(&query, &mut buffer), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let Some(slot) = self.in_flight.acquire_slot() else { return };
        if let Joined::Leader(leader) = self.in_flight.join(key) {
            self.counters.prefetches.increment();
            let asked = Arc::clone(self).exchange_in_background(
                Arc::clone(exchange),
                leader,
                slot,
                plain_upstream_query(&query),
                now() + QUERY_TIMEOUT,
            );
            runtime.spawn(asked);
        }
    }

    /// Answers a query that came as `request`, within [`QUERY_TIMEOUT`].
    pub(super) async fn resolve<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        request: &[u8],
        query: &Query<'_>,
        transport: Transport,
    ) -> Vec<u8> {
        let found = if is_plain(query) {
            self.resolve_entry(exchange, query, transport == Transport::Udp).await
        } else {
            // Rare, so that its buffer is taken only then.
            Box::pin(self.resolve_uncached(exchange, request, query)).await
        };
        let mut out = Vec::with_capacity(512);
        match found {
            Ok((entry, age)) => write_entry(&entry, query, transport, age, &mut out),
            Err(error) => put_failure(query, error, &mut out),
        }
        out
    }

    /// Passes a message with another opcode on as it is, but for the id, and the answer back.
    pub(super) async fn relay<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        request: &[u8],
        query: &Query<'_>,
        transport: Transport,
    ) -> Vec<u8> {
        self.counters.passed.increment();
        match self.try_relay(exchange, request, query, response_limit(request, transport)).await {
            Ok(answer) => answer,
            Err(error) => {
                let mut out = Vec::new();
                put_failure(query, error, &mut out);
                out
            }
        }
    }

    async fn try_relay<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        request: &[u8],
        query: &Query<'_>,
        limit: usize,
    ) -> Result<Vec<u8>, ExtendedError> {
        let mut buffer = EMPTY_KEY_BUFFER;
        let key = CacheKey::new(query, &mut buffer).ok_or(MALFORMED)?;
        let _slot = self.acquire_slot()?;
        let mut message = request.to_vec();
        message[..2].fill(0);
        let mut answer = exchange
            .query(key, message, now() + QUERY_TIMEOUT)
            .await
            .map_err(|failure| self.count_failure(failure).error)?;
        truncate_to(limit, &mut answer).map_err(|_| MALFORMED)?;
        answer[..2].copy_from_slice(&query.id.to_be_bytes());
        Ok(answer)
    }

    /// What a plain query comes to. `uncancelled`: whoever waits for this goes on waiting whatever becomes of the client.
    ///
    /// # Errors
    /// When there is nothing at all to say but this.
    pub(super) async fn resolve_entry<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        query: &Query<'_>,
        uncancelled: bool,
    ) -> Result<(Arc<CacheEntry>, Age), ExtendedError> {
        let began = now();
        let (joined, slot, stale) = match self.start(query, began)? {
            QueryStart::Cached(entry, age) => return Ok((entry, age)),
            QueryStart::Joined(joined, slot, stale) => (joined, slot, stale),
        };
        let deadline = began + QUERY_TIMEOUT;
        let flight = match joined {
            Joined::Leader(leader) => {
                self.counters.misses.increment();
                if uncancelled && stale.is_none() {
                    let _slot = slot;
                    return Ok((
                        self.exchange_and_cache(
                            &**exchange,
                            leader,
                            plain_upstream_query(query),
                            deadline,
                        )
                        .await,
                        Age::Fresh,
                    ));
                }
                let flight = leader.flight();
                // A task of its own: others wait for it, too, when this client is gone or has something else.
                tokio::spawn(Arc::clone(self).exchange_in_background(
                    Arc::clone(exchange),
                    leader,
                    slot,
                    plain_upstream_query(query),
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
        let give_up_at = if stale.is_some() { began + CLIENT_RESPONSE_TIMER } else { deadline };
        let outcome = timeout_at(give_up_at.into(), flight.wait()).await;
        match (outcome, stale) {
            (Ok(Some(entry)), None) => Ok((entry, Age::Fresh)),
            (Ok(Some(entry)), Some(_)) if !entry.is_failure() => Ok((entry, Age::Fresh)),
            (outcome, Some(entry)) => {
                if outcome.is_err() {
                    // The next ones need not wait as long; should the answer come yet, it takes this one's slot.
                    entry.defer_recheck(now());
                }
                give_stale(entry)
            }
            (Ok(None), None) => Err(INTERNAL_FAILURE),
            (Err(_), None) => Err(TOO_LATE),
        }
    }

    /// What can be done about a plain query without waiting. Apart from the waiting, so that the key takes no buffer in it.
    fn start(&self, query: &Query<'_>, now: Instant) -> Result<QueryStart, ExtendedError> {
        let mut buffer = EMPTY_KEY_BUFFER;
        let key = CacheKey::new(query, &mut buffer).ok_or(MALFORMED)?;
        // It may have come since the caller looked.
        let stale = match self.cache.find(key, now) {
            CacheLookup::Fresh { entry, age, .. } => {
                self.counters.hits.increment();
                return Ok(QueryStart::Cached(entry, age));
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
            (Ok(slot), stale) => Ok(QueryStart::Joined(self.in_flight.join(key), slot, stale)),
            (Err(_), Some(entry)) => {
                self.counters.stale.increment();
                Ok(QueryStart::Cached(entry, Age::Stale))
            }
            (Err(error), None) => Err(error),
        }
    }

    /// What a query comes to whose answer is for its client alone.
    async fn resolve_uncached<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        request: &[u8],
        query: &Query<'_>,
    ) -> Result<(Arc<CacheEntry>, Age), ExtendedError> {
        let mut buffer = EMPTY_KEY_BUFFER;
        let key = CacheKey::new(query, &mut buffer).ok_or(MALFORMED)?;
        let _slot = self.acquire_slot()?;
        self.counters.misses.increment();
        let message = upstream_query(request, query).map_err(|_| MALFORMED)?;
        let answer = exchange
            .query(key, message, now() + QUERY_TIMEOUT)
            .await
            .map_err(|failure| self.count_failure(failure).error)?;
        let stored = StoredResponse::new(&answer, false).map_err(|_| MALFORMED)?;
        Ok((CacheEntry::uncached(stored, now()), Age::Fresh))
    }

    /// Asks, keeps what it came to, and tells everybody who waits.
    async fn exchange_and_cache<E: Exchange>(
        &self,
        exchange: &E,
        leader: FlightLeader,
        message: Vec<u8>,
        deadline: Instant,
    ) -> Arc<CacheEntry> {
        let epoch = self.cache.epoch();
        let key = leader.key();
        // Two pieces of memory, each of a size that the allocator has at hand: glibc keeps none above 1,032 bytes.
        let answer = Box::pin(exchange.query(key, message, deadline)).await;
        let answer = answer.and_then(|answer| {
            StoredResponse::new(&answer, true)
                .map_err(|_| ExchangeError { error: MALFORMED, sent: true })
        });
        let (stored, sent) = match answer {
            Ok(stored) => (stored, true),
            Err(failure) => (
                StoredResponse::failure(key.question(), failure.error),
                self.count_failure(failure).sent,
            ),
        };
        let entry = self.cache.insert(key, stored, sent, epoch, now());
        leader.complete(Arc::clone(&entry));
        entry
    }

    /// The same whatever becomes of whoever began it.
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

    fn acquire_slot(&self) -> Result<WaitSlot, ExtendedError> {
        self.in_flight.acquire_slot().ok_or_else(|| {
            self.counters.overloaded.increment();
            OVERLOADED
        })
    }

    fn count_failure(&self, failure: ExchangeError) -> ExchangeError {
        self.counters.failures.increment();
        failure
    }
}

#[cfg(test)]
mod tests;
