//! Cache of upstream responses and failures, with stale answers for upstream outages (RFC 8767).

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

/// Upper bound of any answer's TTL, because longer TTLs are usually mistakes.
const MAX_POSITIVE_TTL_SECONDS: u32 = 24 * 3600;
/// Upper bound of the time that an upstream's failure is cached.
///
/// RFC 9520 section 3.2 requires at least 1 s, at most 300 s, and longer times for repeated
/// failures.
const MAX_FAILURE_TTL_SECONDS: u32 = 30;
/// Upper bound of the time that a missing response is cached.
///
/// It is short because the usual cause is the local network, which may recover at any moment.
/// Querying dead upstreams again costs little.
const MAX_NO_RESPONSE_TTL_SECONDS: u32 = 5;
/// Maximum pause between two failures that count as consecutive.
const FAILURE_STREAK_GAP: Duration = Duration::from_secs(60);
/// Time after a failed refresh during which a stale answer is served at once.
///
/// RFC 8767 section 5 recommends it.
const STALE_RECHECK_SECONDS: u32 = 30;
/// Minimum TTL of a prefetched entry; shorter ones would be prefetched constantly.
const MIN_PREFETCH_TTL_SECONDS: u32 = 10;
/// Hits that an entry needs before it is prefetched.
const MIN_PREFETCH_HITS: u32 = 2;
/// Size of a cache shard.
///
/// The largest message has 65,535 bytes, which must remain a small share of a shard.
const SHARD_BYTES: usize = 512 * 1024;
/// Estimated size of an entry, which decides how many evicted keys are remembered.
const TYPICAL_ENTRY_BYTES: usize = 400;
/// Memory of an entry in addition to the bytes of its message and key.
///
/// It consists of the value with its two reference counts, its slots in the eviction queue (one
/// more for a remembered key) and in the hash table, and the allocator's overhead for three
/// allocations.
const ENTRY_OVERHEAD_BYTES: usize = size_of::<CacheEntry>() + 16 + 2 * 72 + 16 + 3 * 16;

/// Cache key of a query: lower-case name, type, class, DO and CD, followed by RD.
///
/// Cache entries ignore RD. Queries in flight are shared only if their RD is equal.
#[derive(Clone, Copy)]
pub(super) struct CacheKey<'a>(&'a [u8]);

/// Buffer for a cache key: name, type, class, one byte for DO and CD, one for RD.
pub(super) type KeyBuffer = [u8; 255 + 4 + 2];

/// Bit of a key for DO.
const KEY_DNSSEC_OK: u8 = 1;
/// Bit of a key for CD.
const KEY_CHECKING_DISABLED: u8 = 2;

/// An empty buffer for [`CacheKey::new`].
pub(super) const EMPTY_KEY_BUFFER: KeyBuffer = [0; 255 + 4 + 2];

impl<'a> CacheKey<'a> {
    /// Writes the key of `query` into `bytes`; `None` if it has no question.
    pub(super) fn new(query: &Query<'_>, bytes: &'a mut KeyBuffer) -> Option<Self> {
        let question = query.question.len();
        bytes.get_mut(..question)?.copy_from_slice(query.question);
        // Type and class are not changed, and length bytes are below `A`.
        bytes.get_mut(..question.checked_sub(4)?)?.make_ascii_lowercase();
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        *bytes.get_mut(question)? =
            bit(query.edns.is_some_and(|edns| edns.dnssec_ok), KEY_DNSSEC_OK)
                | bit(query.flags & flags::CD != 0, KEY_CHECKING_DISABLED);
        *bytes.get_mut(question + 1)? = bit(query.flags & flags::RD != 0, 1);
        Some(Self(&bytes[..question + 2]))
    }

    /// Returns the question: name, type and class.
    pub(super) fn question(self) -> &'a [u8] {
        &self.0[..self.0.len() - 2]
    }

    /// Returns the key of the cache entry.
    fn entry_bytes(self) -> &'a [u8] {
        &self.0[..self.0.len() - 1]
    }

    /// Returns the key of the query in flight.
    pub(super) fn flight_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Restores a key from the bytes of [`Self::flight_bytes`].
    pub(super) fn from_flight_bytes(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Returns whether RD is set.
    fn recursion_desired(self) -> bool {
        self.0.last().is_some_and(|rd| *rd != 0)
    }
}

impl fmt::Debug for CacheKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheKey({})", self.flight_bytes().escape_ascii())
    }
}

/// A cached response or failure, with its time of receipt.
#[derive(Debug)]
pub(super) struct CacheEntry {
    pub(super) stored: StoredResponse,
    received: Instant,
    /// TTL; 0 for a response that only the waiting clients get.
    ttl_seconds: u32,
    /// Number of consecutive failures up to this entry; 0 if the entry is not a failure.
    failures: u8,
    /// Cache hits, counted up to [`MIN_PREFETCH_HITS`].
    hits: AtomicU32,
    /// Whether this entry has already been prefetched.
    prefetching: AtomicBool,
    /// Age in seconds at which to query upstreams again; 0 if no refresh has failed.
    recheck_age: AtomicU32,
}

impl CacheEntry {
    /// Creates an entry without hits.
    fn new(stored: StoredResponse, received: Instant, ttl_seconds: u32, failures: u8) -> Self {
        let (hits, prefetching, recheck_age) =
            (AtomicU32::new(0), AtomicBool::new(false), AtomicU32::new(0));
        Self { stored, received, ttl_seconds, failures, hits, prefetching, recheck_age }
    }

    /// Creates an entry that is not stored in the cache.
    pub(super) fn uncached(stored: StoredResponse, now: Instant) -> Arc<Self> {
        let failures =
            u8::from(matches!(stored.kind(), ResponseKind::Failure | ResponseKind::NoResponse));
        Arc::new(Self::new(stored, now, 0, failures))
    }

    /// Returns the age in seconds.
    fn age(&self, now: Instant) -> u32 {
        // TTLs and stale times are far below 2^32 s, so saturation does no harm.
        u32::try_from(now.saturating_duration_since(self.received).as_secs()).unwrap_or(u32::MAX)
    }

    /// Returns whether this entry is an upstream failure.
    pub(super) fn is_failure(&self) -> bool {
        self.failures > 0
    }

    /// Returns the TTL for a response built from this entry at `age`.
    pub(super) fn remaining_ttl(&self, age: Age) -> Duration {
        let seconds = match age {
            Age::Fresh => self.ttl_seconds,
            Age::Cached(age) => self.ttl_seconds.saturating_sub(age),
            Age::Stale => STALE_TTL_SECONDS,
        };
        Duration::from_secs(seconds.into())
    }

    /// Returns whether this entry is an answer that contradicts an `older` entry.
    ///
    /// A truncated answer is incomplete, so with the same code it does not contradict.
    fn contradicts(&self, older: &Self) -> bool {
        !self.stored.is_truncated() || self.stored.rcode() != older.stored.rcode()
    }

    /// Records a failed refresh: for a while, clients do not wait for another one.
    ///
    /// The time is [`STALE_RECHECK_SECONDS`].
    pub(super) fn defer_recheck(&self, now: Instant) {
        self.recheck_age
            .store(self.age(now).saturating_add(STALE_RECHECK_SECONDS), Ordering::Relaxed);
    }

    /// Returns whether a refresh failed less than [`STALE_RECHECK_SECONDS`] ago.
    pub(super) fn is_recheck_deferred(&self, now: Instant) -> bool {
        self.age(now) < self.recheck_age.load(Ordering::Relaxed)
    }

    /// Counts a hit; returns `true` once if the entry is popular and expires soon.
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

/// Result of a cache lookup.
#[derive(Debug)]
pub(super) enum CacheLookup {
    /// An answer, or a cached failure, whose TTL has not expired.
    Fresh {
        /// The entry.
        entry: Arc<CacheEntry>,
        /// The entry's age.
        age: Age,
        /// Whether the caller must prefetch the entry; set for one caller only.
        prefetch: bool,
    },
    /// An answer whose TTL has expired.
    Stale(Arc<CacheEntry>),
    /// No usable entry.
    Miss,
}

/// The cache of responses, shared by all threads.
pub(super) struct Cache {
    entries: Option<EntryMap>,
    stale_seconds: u32,
    /// Number of calls of [`Cache::clear`] so far.
    epoch: AtomicU64,
}

/// The entries by key, within the size limit.
type EntryMap = quick_cache::sync::Cache<Box<[u8]>, Arc<CacheEntry>, Weigher, RandomState>;

impl Cache {
    /// Creates a cache of at most `bytes` bytes that keeps expired answers for `stale`.
    ///
    /// With 0 bytes, nothing is cached.
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
            // The builder fails only if a capacity is missing; both are set.
            entries: options.ok().filter(|_| bytes > 0).map(with),
            stale_seconds: u32::try_from(stale.as_secs()).unwrap_or(u32::MAX / 2).min(u32::MAX / 2),
            epoch: AtomicU64::new(0),
        }
    }

    /// Looks up the entry of `key`.
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

    /// Returns the cache epoch, which each [`Cache::clear`] increments.
    ///
    /// A response to a query of an earlier epoch is not stored.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Creates an entry for a response, and stores it if it is cacheable.
    ///
    /// `sent` is whether the query was sent; a failure before that is not cached. A failure does
    /// not replace an answer that can still be served stale. Every other response replaces or
    /// removes the entries that it contradicts.
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
            Some(usable) if sent => usable.defer_recheck(now),
            None if ttl_seconds > 0 => {
                entries.insert(key.entry_bytes().into(), Arc::clone(&entry));
                // The cache may have been cleared between the check above and the insertion.
                if epoch != self.epoch() {
                    entries.remove(key.entry_bytes());
                }
            }
            // An answer that may not be cached must not leave an older answer behind as stale.
            None if failures == 0 => {
                entries.remove_if(key.entry_bytes(), |older| entry.contradicts(older));
            }
            Some(_) | None => {}
        }
        if failures == 0 {
            forget_expired_siblings(entries, key, &entry);
        }
        entry
    }

    /// Removes all entries, because new upstreams may give other answers.
    pub(super) fn clear(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        if let Some(entries) = &self.entries {
            entries.clear();
        }
    }

    /// Returns the number of entries, including expired ones.
    pub(super) fn len(&self) -> usize {
        self.entries.as_ref().map_or(0, EntryMap::len)
    }

    /// Returns the size of all entries in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.entries.as_ref().map_or(0, EntryMap::weight)
    }

    /// Returns the size limit in bytes.
    pub(super) fn capacity(&self) -> u64 {
        self.entries.as_ref().map_or(0, EntryMap::capacity)
    }
}

/// Removes expired entries for other DO or CD that `entry` contradicts.
///
/// Otherwise, an outage could bring them back as stale answers. An answer to a query with CD may be
/// forged, so it contradicts only entries with CD.
fn forget_expired_siblings(entries: &EntryMap, key: CacheKey<'_>, entry: &CacheEntry) {
    let mut buffer = EMPTY_KEY_BUFFER;
    let own = key.entry_bytes();
    let Some(sibling) = buffer.get_mut(..own.len()) else { return };
    sibling.copy_from_slice(own);
    let Some(own_flags) = own.last() else { return };
    for flags in 0..=(KEY_DNSSEC_OK | KEY_CHECKING_DISABLED) {
        if flags == *own_flags || flags & KEY_CHECKING_DISABLED < own_flags & KEY_CHECKING_DISABLED
        {
            continue;
        }
        if let Some(last) = sibling.last_mut() {
            *last = flags;
        }
        // Such an entry is rare, and this check needs only a shared lock.
        if entries.contains_key(&*sibling) {
            entries.remove_if(&*sibling, |older| {
                !older.is_failure()
                    && older.age(entry.received) >= older.ttl_seconds
                    && entry.contradicts(older)
            });
        }
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

/// Weighs entries by their size in bytes.
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
    fn the_entry_overhead_covers_the_memory_of_the_cache_index() {
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
