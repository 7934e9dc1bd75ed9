//! From a question to what it comes to: cache, then an exchange that equal questions share, then what is past its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use super::cache::{Cache, Entry, Found, Key, ROOM};
use super::counters::Counters;
use super::in_flight::{Asking, InFlight, Joined, Place};
use super::message::{Age, Stored, cut_to, is_plain, limit, outgoing, outgoing_plain};
use super::special::put_failure;
use crate::wire::{ExtendedError, Query, Transport, flags};

/// How long a client waits at most: those that ask us mostly wait 5 s.
pub(super) const BUDGET: Duration = Duration::from_secs(4);
/// How long a client waits for something better than what is past its end (RFC 8767 section 5).
const CLIENT_TIMER: Duration = Duration::from_millis(1800);

const OVERLOADED: ExtendedError = ExtendedError { code: ExtendedError::OTHER, text: "too many questions are waiting" };
const MALFORMED: ExtendedError = ExtendedError { code: ExtendedError::NETWORK_ERROR, text: "the upstream's answer is malformed" };
const TRUNCATED: ExtendedError =
    ExtendedError { code: ExtendedError::NETWORK_ERROR, text: "the upstream truncates its answer and gives no whole one over TCP" };
const TOO_LATE: ExtendedError = ExtendedError { code: ExtendedError::NO_REACHABLE_AUTHORITY, text: "no upstream answered in time" };
const GIVEN_UP: ExtendedError = ExtendedError { code: ExtendedError::OTHER, text: "asking failed here; see the server's log" };

/// Brings a message to whoever is to be asked for its name, and brings the answer.
pub(super) trait Exchange: Send + Sync + 'static {
    /// Asks; `message` has id 0 and a question about `key`'s name. The answer is a response to that question, its id any.
    /// Ends by `deadline`.
    fn ask(&self, key: Key<'_>, message: Vec<u8>, deadline: Instant) -> impl Future<Output = Result<Vec<u8>, Unanswered>> + Send;
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unanswered {
    /// What the client is told.
    pub(super) error: ExtendedError,
    /// Whether the question went out, so that it need not go out again at once (RFC 9520).
    pub(super) asked: bool,
}

/// What can be said of a question without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtOnce {
    /// The answer is written.
    Written,
    /// There is something past its end: should nothing better come in time, it is the answer.
    Waiting,
    /// Nothing.
    Unknown,
}

/// What can be done about a plain query.
enum Begun {
    /// Give this.
    Known(Arc<Entry>, Age),
    /// Ask or wait, in this place; should nothing better come in time, there is what is past its end.
    Joined(Joined, Place, Option<Arc<Entry>>),
}

/// What all lanes share.
#[derive(Debug)]
pub(super) struct Resolver {
    pub(super) cache: Cache,
    pub(super) counters: Counters,
    in_flight: Arc<InFlight>,
}

/// Writes an entry into `out`, which is empty.
fn write(entry: &Entry, query: &Query<'_>, transport: Transport, age: Age, out: &mut Vec<u8>) {
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
    /// With a cache of so many octets, which keeps answers for so long past their end.
    pub(super) fn new(cache_octets: usize, stale: Duration) -> Arc<Self> {
        Arc::new(Self { cache: Cache::new(cache_octets, stale), counters: Counters::default(), in_flight: Arc::default() })
    }

    /// Clients that wait, and refreshes under way.
    pub(super) fn waiting(&self) -> u64 {
        self.in_flight.waiting()
    }

    /// Writes the answer into `out`, which is empty, where it is known.
    pub(super) fn at_once<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        query: &Query<'_>,
        transport: Transport,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> AtOnce {
        let mut room = ROOM;
        let Some(key) = Key::new(query, &mut room).filter(|_| is_plain(query)) else { return AtOnce::Unknown };
        match self.cache.find(key, now) {
            Found::Fresh { entry, age, prolong } => {
                self.counters.hits.increment();
                write(&entry, query, transport, age, out);
                if prolong {
                    self.prolong(exchange, query);
                }
            }
            Found::Stale(entry) if entry.is_put_off(now) => {
                self.counters.stale.increment();
                write(&entry, query, transport, Age::Stale, out);
            }
            Found::Stale(_) => return AtOnce::Waiting,
            Found::Nothing => return AtOnce::Unknown,
        }
        AtOnce::Written
    }

    /// Asks anew, in the background, for an entry that is about to end.
    #[cold]
    fn prolong<E: Exchange>(self: &Arc<Self>, exchange: &Arc<E>, query: &Query<'_>) {
        // An answer to somebody who did not want recursion is not kept: it prolongs nothing.
        let query = Query { flags: query.flags | flags::RD, ..*query };
        let mut room = ROOM;
        let (Some(key), Ok(runtime)) = (Key::new(&query, &mut room), tokio::runtime::Handle::try_current()) else { return };
        let Some(place) = self.in_flight.place() else { return };
        if let Joined::First(asking) = self.in_flight.join(key) {
            self.counters.prefetches.increment();
            let asked = Arc::clone(self).ask_for_all(Arc::clone(exchange), asking, place, outgoing_plain(&query), now() + BUDGET);
            runtime.spawn(asked);
        }
    }

    /// Answers a query that came as `request`, within [`BUDGET`].
    pub(super) async fn resolve<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        request: &[u8],
        query: &Query<'_>,
        transport: Transport,
    ) -> Vec<u8> {
        let found = if is_plain(query) {
            self.find(exchange, query, transport == Transport::Udp).await
        } else {
            // Rare, so that its room is taken only then.
            Box::pin(self.ask_alone(exchange, request, query)).await
        };
        let mut out = Vec::with_capacity(512);
        match found {
            Ok((entry, age)) => write(&entry, query, transport, age, &mut out),
            Err(error) => put_failure(query, error, &mut out),
        }
        out
    }

    /// Passes a message with another opcode on as it is, but for the id, and the answer back.
    pub(super) async fn pass<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        request: &[u8],
        query: &Query<'_>,
        transport: Transport,
    ) -> Vec<u8> {
        self.counters.passed.increment();
        match self.pass_on(exchange, request, query, limit(request, transport)).await {
            Ok(answer) => answer,
            Err(error) => {
                let mut out = Vec::new();
                put_failure(query, error, &mut out);
                out
            }
        }
    }

    async fn pass_on<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        request: &[u8],
        query: &Query<'_>,
        limit: usize,
    ) -> Result<Vec<u8>, ExtendedError> {
        let mut room = ROOM;
        let key = Key::new(query, &mut room).ok_or(MALFORMED)?;
        let _place = self.place()?;
        let mut message = request.to_vec();
        message[..2].fill(0);
        let mut answer = exchange.ask(key, message, now() + BUDGET).await.map_err(|unanswered| self.count(unanswered).error)?;
        cut_to(limit, &mut answer).map_err(|_| MALFORMED)?;
        answer[..2].copy_from_slice(&query.id.to_be_bytes());
        Ok(answer)
    }

    /// What a plain query comes to. `stays`: whoever waits for this goes on waiting whatever becomes of the client.
    ///
    /// # Errors
    /// When there is nothing at all to say but this.
    pub(super) async fn find<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        query: &Query<'_>,
        stays: bool,
    ) -> Result<(Arc<Entry>, Age), ExtendedError> {
        let began = now();
        let (joined, place, stale) = match self.begin(query, began)? {
            Begun::Known(entry, age) => return Ok((entry, age)),
            Begun::Joined(joined, place, stale) => (joined, place, stale),
        };
        let deadline = began + BUDGET;
        let flight = match joined {
            Joined::First(asking) => {
                self.counters.misses.increment();
                if stays && stale.is_none() {
                    let _place = place;
                    return Ok((self.ask(&**exchange, asking, outgoing_plain(query), deadline).await, Age::Fresh));
                }
                let flight = asking.flight();
                // A task of its own: others wait for it, too, when this client is gone or has something else.
                tokio::spawn(Arc::clone(self).ask_for_all(Arc::clone(exchange), asking, place, outgoing_plain(query), deadline));
                flight
            }
            Joined::Other(flight) => {
                self.counters.merged.increment();
                flight
            }
        };
        let give_stale = |entry| {
            self.counters.stale.increment();
            Ok((entry, Age::Stale))
        };
        let patience = if stale.is_some() { began + CLIENT_TIMER } else { deadline };
        let outcome = timeout_at(patience.into(), flight.outcome()).await;
        match (outcome, stale) {
            (Ok(Some(entry)), None) => Ok((entry, Age::Fresh)),
            (Ok(Some(entry)), Some(_)) if !entry.is_failure() => Ok((entry, Age::Fresh)),
            (outcome, Some(entry)) => {
                if outcome.is_err() {
                    // The next ones need not wait as long; should the answer come yet, it takes this one's place.
                    entry.put_off(now());
                }
                give_stale(entry)
            }
            (Ok(None), None) => Err(GIVEN_UP),
            (Err(_), None) => Err(TOO_LATE),
        }
    }

    /// What can be done about a plain query without waiting. Apart from the waiting, so that the key takes no room in it.
    fn begin(&self, query: &Query<'_>, now: Instant) -> Result<Begun, ExtendedError> {
        let mut room = ROOM;
        let key = Key::new(query, &mut room).ok_or(MALFORMED)?;
        // It may have come since the caller looked.
        let stale = match self.cache.find(key, now) {
            Found::Fresh { entry, age, .. } => {
                self.counters.hits.increment();
                return Ok(Begun::Known(entry, age));
            }
            Found::Stale(entry) => Some(entry),
            Found::Nothing => None,
        };
        let place = if stale.as_ref().is_some_and(|entry| entry.is_put_off(now)) { Err(OVERLOADED) } else { self.place() };
        match (place, stale) {
            (Ok(place), stale) => Ok(Begun::Joined(self.in_flight.join(key), place, stale)),
            (Err(_), Some(entry)) => {
                self.counters.stale.increment();
                Ok(Begun::Known(entry, Age::Stale))
            }
            (Err(error), None) => Err(error),
        }
    }

    /// What a query comes to whose answer is for its client alone.
    async fn ask_alone<E: Exchange>(
        self: &Arc<Self>,
        exchange: &Arc<E>,
        request: &[u8],
        query: &Query<'_>,
    ) -> Result<(Arc<Entry>, Age), ExtendedError> {
        let mut room = ROOM;
        let key = Key::new(query, &mut room).ok_or(MALFORMED)?;
        let _place = self.place()?;
        self.counters.misses.increment();
        let message = outgoing(request, query).map_err(|_| MALFORMED)?;
        let answer = exchange.ask(key, message, now() + BUDGET).await.map_err(|unanswered| self.count(unanswered).error)?;
        let stored = Stored::new(&answer, false).map_err(|_| MALFORMED)?;
        Ok((Entry::loose(stored, now()), Age::Fresh))
    }

    /// Asks, keeps what it came to, and tells everybody who waits.
    async fn ask<E: Exchange>(&self, exchange: &E, asking: Asking, message: Vec<u8>, deadline: Instant) -> Arc<Entry> {
        let generation = self.cache.generation();
        let key = asking.key();
        // Two pieces of memory, each of a size that the allocator has at hand: glibc keeps none above 1,032 octets.
        let answer = Box::pin(exchange.ask(key, message, deadline)).await;
        let answer = answer.and_then(|answer| Stored::new(&answer, true).map_err(|_| Unanswered { error: MALFORMED, asked: true }));
        let (stored, asked) = match answer {
            Ok(stored) => (stored, true),
            Err(unanswered) => (Stored::failure(key.question(), unanswered.error), self.count(unanswered).asked),
        };
        let entry = self.cache.take(key, stored, asked, generation, now());
        asking.tell(Arc::clone(&entry));
        entry
    }

    /// The same whatever becomes of whoever began it.
    async fn ask_for_all<E: Exchange>(
        self: Arc<Self>,
        exchange: Arc<E>,
        asking: Asking,
        place: Place,
        message: Vec<u8>,
        deadline: Instant,
    ) {
        let _place = place;
        self.ask(&*exchange, asking, message, deadline).await;
    }

    fn place(&self) -> Result<Place, ExtendedError> {
        self.in_flight.place().ok_or_else(|| {
            self.counters.overloaded.increment();
            OVERLOADED
        })
    }

    fn count(&self, unanswered: Unanswered) -> Unanswered {
        self.counters.failures.increment();
        unanswered
    }
}

#[cfg(test)]
mod tests;
