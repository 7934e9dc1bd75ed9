//! What upstreams said, for as long as it holds, and past that for when no upstream answers.

use std::fmt;
use std::mem::size_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use quick_cache::sync::DefaultLifecycle;
use quick_cache::{OptionsBuilder, Weighter};

use super::message::{Age, ResponseKind, STALE_TTL_SECONDS, StoredResponse};
use crate::wire::{Query, flags};

/// Longest ttl_seconds of any answer, seconds: longer TTLs are mistakes more often than not.
const MAX_POSITIVE_TTL_SECONDS: u32 = 24 * 3600;
/// Longest time for which an upstream's refusal or failure is believed, seconds. RFC 9520 section 3.2 allows 300; it wants at
/// least 1, and longer ones for what goes on failing.
const MAX_FAILURE_TTL_SECONDS: u32 = 30;
/// The same where no upstream answered at all. Short: what is broken is most often our own network, which comes back at any
/// moment, and dead upstreams cost little while they are dead.
const MAX_NO_RESPONSE_TTL_SECONDS: u32 = 5;
/// How long after its end a failure still counts as one in a streak with the next.
const FAILURE_STREAK_GAP: Duration = Duration::from_secs(60);
/// How long after a failed refresh an answer past its end is given at once, seconds (RFC 8767 section 5).
const STALE_RECHECK_SECONDS: u32 = 30;
/// Lives shorter than this are not prolonged ahead of their end, seconds: they would be asked for all the time.
const MIN_PREFETCH_TTL_SECONDS: u32 = 10;
/// How often an entry must have been asked for to be prolonged.
const MIN_PREFETCH_HITS: u32 = 2;
/// Octets of each part of the cache, so that a large message (at most 65,535 bytes) is no large share of one.
const SHARD_BYTES: usize = 512 * 1024;
/// Octets of an entry, some guess: sets how many keys of evicted entries are remembered.
const TYPICAL_ENTRY_BYTES: usize = 400;
/// What an entry takes besides its bytes and its key's: the value with its two counts, its place in the list (with one for a
/// remembered key) and in the table, and what the allocator adds to three pieces.
const ENTRY_OVERHEAD_BYTES: usize = size_of::<CacheEntry>() + 16 + 2 * 72 + 16 + 3 * 16;

/// A question as the cache and the questions in flight know it: name in lower case, type, class, DO and CD; RD apart.
#[derive(Clone, Copy)]
pub(super) struct CacheKey<'a>(&'a [u8]);

/// KeyBuffer for a key: a name of 255 bytes, type, class, bits, RD.
pub(super) type KeyBuffer = [u8; 255 + 4 + 2];

/// KeyBuffer for a key that is yet to be written.
pub(super) const EMPTY_KEY_BUFFER: KeyBuffer = [0; 255 + 4 + 2];

impl<'a> CacheKey<'a> {
    /// The key of a query, written into `bytes`; none without a question.
    pub(super) fn new(query: &Query<'_>, bytes: &'a mut KeyBuffer) -> Option<Self> {
        let question = query.question.len();
        bytes.get_mut(..question)?.copy_from_slice(query.question);
        // Type and class stay as they are; length bytes are below 'A'.
        bytes.get_mut(..question.checked_sub(4)?)?.make_ascii_lowercase();
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        *bytes.get_mut(question)? = bit(query.edns.is_some_and(|edns| edns.dnssec_ok), 1)
            | bit(query.flags & flags::CD != 0, 2);
        *bytes.get_mut(question + 1)? = bit(query.flags & flags::RD != 0, 1);
        Some(Self(&bytes[..question + 2]))
    }

    /// Name, type and class.
    pub(super) fn question(self) -> &'a [u8] {
        &self.0[..self.0.len() - 2]
    }

    /// What entries are found by.
    fn entry_bytes(self) -> &'a [u8] {
        &self.0[..self.0.len() - 1]
    }

    /// What questions in flight are found by.
    pub(super) fn flight_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The key of a question in flight, from what it is found by.
    pub(super) fn from_flight_bytes(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether recursion is desired.
    fn recursion_desired(self) -> bool {
        self.0.last().is_some_and(|rd| *rd != 0)
    }
}

impl fmt::Debug for CacheKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheKey({})", self.flight_bytes().escape_ascii())
    }
}

/// An upstream's message, or the lack of one, and since when we have it.
#[derive(Debug)]
pub(super) struct CacheEntry {
    pub(super) stored: StoredResponse,
    received: Instant,
    /// How long it holds, seconds; 0 for no longer than those who asked together need it.
    ttl_seconds: u32,
    /// Which failure in a streak this is, from 1; 0 for an answer.
    failures: u8,
    /// How often it was asked for since it came, as far as that matters.
    hits: AtomicU32,
    /// Whether it is or was being prolonged.
    prefetching: AtomicBool,
    /// How old, in seconds, it will be when an upstream is next worth waiting for; 0 where none has failed.
    recheck_age: AtomicU32,
}

impl CacheEntry {
    fn new(stored: StoredResponse, received: Instant, ttl_seconds: u32, failures: u8) -> Self {
        let (hits, prefetching, recheck_age) =
            (AtomicU32::new(0), AtomicBool::new(false), AtomicU32::new(0));
        Self { stored, received, ttl_seconds, failures, hits, prefetching, recheck_age }
    }

    /// One that is not kept.
    pub(super) fn uncached(stored: StoredResponse, now: Instant) -> Arc<Self> {
        let failures =
            u8::from(matches!(stored.kind(), ResponseKind::Failure | ResponseKind::NoResponse));
        Arc::new(Self::new(stored, now, 0, failures))
    }

    fn age(&self, now: Instant) -> u32 {
        // Lives and stale times are far below 2^32 s.
        u32::try_from(now.saturating_duration_since(self.received).as_secs()).unwrap_or(u32::MAX)
    }

    /// Whether it says that upstreams failed.
    pub(super) fn is_failure(&self) -> bool {
        self.failures > 0
    }

    /// How long it still holds as given at this age.
    pub(super) fn remaining_ttl(&self, age: Age) -> Duration {
        let seconds = match age {
            Age::Fresh => self.ttl_seconds,
            Age::Cached(age) => self.ttl_seconds.saturating_sub(age),
            Age::Stale => STALE_TTL_SECONDS,
        };
        Duration::from_secs(seconds.into())
    }

    /// Notes that an upstream could not valid it: for some time nobody waits for one again.
    pub(super) fn defer_recheck(&self, now: Instant) {
        self.recheck_age
            .store(self.age(now).saturating_add(STALE_RECHECK_SECONDS), Ordering::Relaxed);
    }

    /// Whether it is past its end and an upstream has just failed to valid it.
    pub(super) fn is_recheck_deferred(&self, now: Instant) -> bool {
        self.age(now) < self.recheck_age.load(Ordering::Relaxed)
    }

    /// Counts that it was asked for; whether it should be prolonged now, which is said once.
    fn count_hit(&self, age: u32) -> bool {
        if self.ttl_seconds < MIN_PREFETCH_TTL_SECONDS || self.is_failure() {
            return false;
        }
        let hits = self.hits.load(Ordering::Relaxed);
        if hits < MIN_PREFETCH_HITS {
            self.hits.store(hits + 1, Ordering::Relaxed);
        }
        hits + 1 >= MIN_PREFETCH_HITS
            && (self.ttl_seconds - age) * 10 < self.ttl_seconds
            && !self.prefetching.swap(true, Ordering::Relaxed)
    }
}

/// What is known of a question.
#[derive(Debug)]
pub(super) enum CacheLookup {
    /// An answer that holds, or a failure that is believed for the moment.
    Fresh {
        /// It.
        entry: Arc<CacheEntry>,
        /// How old it is.
        age: Age,
        /// Whether it is near its end and wanted: to be asked for anew, by the one who is told this.
        prefetch: bool,
    },
    /// An answer past its end.
    Stale(Arc<CacheEntry>),
    /// Nothing.
    Miss,
}

/// The cache. Shared by all threads.
pub(super) struct Cache {
    entries: Option<EntryMap>,
    stale_seconds: u32,
    /// Counts how often all was forgotten.
    epoch: AtomicU64,
}

type EntryMap = quick_cache::sync::Cache<Box<[u8]>, Arc<CacheEntry>, Weigher, RandomState>;

impl Cache {
    /// A cache of at most so many `bytes`, 0 for none, that keeps answers for so long past their end.
    pub(super) fn new(bytes: usize, stale: Duration) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(bytes / TYPICAL_ENTRY_BYTES)
            .weight_capacity(bytes as u64)
            .shards((bytes / SHARD_BYTES).clamp(1, 64).next_power_of_two())
            .build();
        let with = |options| {
            EntryMap::with_options(
                options,
                Weigher,
                RandomState::default(),
                DefaultLifecycle::default(),
            )
        };
        Self {
            // Both numbers it wants are given.
            entries: options.ok().filter(|_| bytes > 0).map(with),
            stale_seconds: u32::try_from(stale.as_secs()).unwrap_or(u32::MAX / 2).min(u32::MAX / 2),
            epoch: AtomicU64::new(0),
        }
    }

    /// What is known of a question.
    pub(super) fn find(&self, key: CacheKey<'_>, now: Instant) -> CacheLookup {
        let Some(entry) = self.entries.as_ref().and_then(|entries| entries.get(key.entry_bytes()))
        else {
            return CacheLookup::Miss;
        };
        let age = entry.age(now);
        if age < entry.ttl_seconds {
            let prefetch = entry.count_hit(age);
            return CacheLookup::Fresh { entry, age: Age::Cached(age), prefetch };
        }
        if entry.is_failure() || age >= entry.ttl_seconds.saturating_add(self.stale_seconds) {
            CacheLookup::Miss
        } else {
            CacheLookup::Stale(entry)
        }
    }

    /// Which of the times between two [`Cache::clear`] this is: an answer is kept only in the one that it was asked for in.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Takes what a question has come to, and keeps it where that is worth anything.
    pub(super) fn insert(
        &self,
        key: CacheKey<'_>,
        stored: StoredResponse,
        sent: bool,
        epoch: u64,
        now: Instant,
    ) -> Arc<CacheEntry> {
        let previous = self.entries.as_ref().and_then(|entries| entries.peek(key.entry_bytes()));
        let (ttl_seconds, failures) = match stored.kind() {
            ResponseKind::Positive(ttl) => (ttl.min(MAX_POSITIVE_TTL_SECONDS), 0),
            ResponseKind::Negative(ttl) => (ttl, 0),
            ResponseKind::Uncacheable => (0, 0),
            kind @ (ResponseKind::Failure | ResponseKind::NoResponse) => {
                let streak = previous.as_ref().filter(|entry| {
                    entry.is_failure()
                        && now
                            < entry.received
                                + FAILURE_STREAK_GAP
                                + Duration::from_secs(entry.ttl_seconds.into())
                });
                let streak = streak.map_or(1, |entry| entry.failures.saturating_add(1));
                let max = if kind == ResponseKind::Failure {
                    MAX_FAILURE_TTL_SECONDS
                } else {
                    MAX_NO_RESPONSE_TTL_SECONDS
                };
                (
                    if sent {
                        1u32.checked_shl(u32::from(streak) - 1).unwrap_or(max).min(max)
                    } else {
                        0
                    },
                    streak,
                )
            }
        };
        let entry = Arc::new(CacheEntry::new(stored, now, ttl_seconds, failures));
        let Some(entries) =
            self.entries.as_ref().filter(|_| key.recursion_desired() && epoch == self.epoch())
        else {
            return entry;
        };
        match previous.filter(|previous| {
            failures > 0
                && !previous.is_failure()
                && previous.age(now) < previous.ttl_seconds.saturating_add(self.stale_seconds)
        }) {
            Some(valid) => valid.defer_recheck(now),
            None if ttl_seconds > 0 => {
                entries.insert(key.entry_bytes().into(), Arc::clone(&entry));
                // Should all have been forgotten meanwhile.
                if epoch != self.epoch() {
                    entries.remove(key.entry_bytes());
                }
            }
            None => {}
        }
        entry
    }

    /// Forgets everything: other upstreams may say something else.
    pub(super) fn clear(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        if let Some(entries) = &self.entries {
            entries.clear();
        }
    }

    /// EntryMap, those past their end included.
    pub(super) fn len(&self) -> usize {
        self.entries.as_ref().map_or(0, EntryMap::len)
    }

    /// Octets they take.
    pub(super) fn bytes(&self) -> u64 {
        self.entries.as_ref().map_or(0, EntryMap::weight)
    }

    /// Octets they may take.
    pub(super) fn capacity(&self) -> u64 {
        self.entries.as_ref().map_or(0, EntryMap::capacity)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("len", &self.len())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// Octets of an entry.
#[derive(Clone, Copy, Debug)]
struct Weigher;

impl Weighter<Box<[u8]>, Arc<CacheEntry>> for Weigher {
    fn weight(&self, key: &Box<[u8]>, entry: &Arc<CacheEntry>) -> u64 {
        (key.len() + entry.stored.bytes() + ENTRY_OVERHEAD_BYTES) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ExtendedError, Parsed, rcode};

    #[test]
    fn what_an_entry_takes_is_counted() {
        let cache = Cache::new(1 << 20, Duration::ZERO);
        let now = Instant::now();
        for n in 0..50_000u32 {
            let name = n.to_be_bytes().map(|byte| byte | 0x80);
            let packet =
                [b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x04", &name[..], b"\0\0\x01\0\x01"].concat();
            let Parsed::Query(query) = Query::parse(&packet) else { panic!("no query") };
            let mut buffer = EMPTY_KEY_BUFFER;
            let key = CacheKey::new(&query, &mut buffer).unwrap();
            let stored = StoredResponse::failure(
                key.question(),
                ExtendedError { code: rcode::SERVFAIL, text: "" },
            );
            cache.insert(key, stored, true, 0, now);
        }
        let entries = cache.entries.as_ref().unwrap();
        let places = entries.memory_used();
        let counted = ENTRY_OVERHEAD_BYTES - size_of::<CacheEntry>() - 16 - 3 * 16;
        assert!(
            places.entries + places.map <= entries.len() * counted,
            "{places:?} for {} entries",
            entries.len()
        );
        assert!(entries.len() > 1000);
    }
}
