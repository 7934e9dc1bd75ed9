//! What upstreams said, for as long as it holds, and past that for when no upstream answers.

use std::fmt;
use std::mem::size_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use quick_cache::sync::DefaultLifecycle;
use quick_cache::{OptionsBuilder, Weighter};

use super::message::{Age, Kind, STALE_TTL, Stored};
use crate::wire::{Query, flags};

/// Longest life of any answer, seconds: longer TTLs are mistakes more often than not.
const MOST_POSITIVE: u32 = 24 * 3600;
/// Longest time for which an upstream's refusal or failure is believed, seconds. RFC 9520 section 3.2 allows 300; it wants at
/// least 1, and longer ones for what goes on failing.
const MOST_FAILURE: u32 = 30;
/// The same where no upstream answered at all. Short: what is broken is most often our own network, which comes back at any
/// moment, and dead upstreams cost little while they are dead.
const MOST_SILENCE: u32 = 5;
/// How long after its end a failure still counts as one in a row with the next.
const ROW: Duration = Duration::from_secs(60);
/// How long after a failed refresh an answer past its end is given at once, seconds (RFC 8767 section 5).
const RECHECK: u32 = 30;
/// Lives shorter than this are not prolonged ahead of their end, seconds: they would be asked for all the time.
const LEAST_PREFETCHED: u32 = 10;
/// How often an entry must have been asked for to be prolonged.
const HOT: u32 = 2;
/// Octets of each part of the cache, so that a large message (at most 65,535 octets) is no large share of one.
const SHARD: usize = 512 * 1024;
/// Octets of an entry, some guess: sets how many keys of evicted entries are remembered.
const TYPICAL: usize = 400;
/// What an entry takes besides its octets and its key's: the value with its two counts, its place in the list (with one for a
/// remembered key) and in the table, and what the allocator adds to three pieces.
const OVERHEAD: usize = size_of::<Entry>() + 16 + 2 * 72 + 16 + 3 * 16;

/// A question as the cache and the questions in flight know it: name in lower case, type, class, DO and CD; RD apart.
#[derive(Clone, Copy)]
pub(super) struct Key<'a>(&'a [u8]);

/// Room for a key: a name of 255 octets, type, class, bits, RD.
pub(super) type Room = [u8; 255 + 4 + 2];

/// Room for a key that is yet to be written.
pub(super) const ROOM: Room = [0; 255 + 4 + 2];

impl<'a> Key<'a> {
    /// The key of a query, written into `octets`; none without a question.
    pub(super) fn new(query: &Query<'_>, octets: &'a mut Room) -> Option<Self> {
        let question = query.question.len();
        octets.get_mut(..question)?.copy_from_slice(query.question);
        // Type and class stay as they are; length octets are below 'A'.
        octets.get_mut(..question.checked_sub(4)?)?.make_ascii_lowercase();
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        *octets.get_mut(question)? = bit(query.edns.is_some_and(|edns| edns.dnssec_ok), 1) | bit(query.flags & flags::CD != 0, 2);
        *octets.get_mut(question + 1)? = bit(query.flags & flags::RD != 0, 1);
        Some(Self(&octets[..question + 2]))
    }

    /// Name, type and class.
    pub(super) fn question(self) -> &'a [u8] {
        &self.0[..self.0.len() - 2]
    }

    /// What entries are found by.
    fn of_entry(self) -> &'a [u8] {
        &self.0[..self.0.len() - 1]
    }

    /// What questions in flight are found by.
    pub(super) fn of_flight(self) -> &'a [u8] {
        self.0
    }

    /// The key of a question in flight, from what it is found by.
    pub(super) fn from_flight(octets: &'a [u8]) -> Self {
        Self(octets)
    }

    /// Whether recursion is desired.
    fn recursive(self) -> bool {
        self.0.last().is_some_and(|rd| *rd != 0)
    }
}

impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.of_flight().escape_ascii())
    }
}

/// An upstream's message, or the lack of one, and since when we have it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) stored: Stored,
    born: Instant,
    /// How long it holds, seconds; 0 for no longer than those who asked together need it.
    life: u32,
    /// Which failure in a row this is, from 1; 0 for an answer.
    failures: u8,
    /// How often it was asked for since it came, as far as that matters.
    asked: AtomicU32,
    /// Whether it is or was being prolonged.
    prolonging: AtomicBool,
    /// How old, in seconds, it will be when an upstream is next worth waiting for; 0 where none has failed.
    recheck: AtomicU32,
}

impl Entry {
    fn new(stored: Stored, born: Instant, life: u32, failures: u8) -> Self {
        let (asked, prolonging, recheck) = (AtomicU32::new(0), AtomicBool::new(false), AtomicU32::new(0));
        Self { stored, born, life, failures, asked, prolonging, recheck }
    }

    /// One that is not kept.
    pub(super) fn loose(stored: Stored, now: Instant) -> Arc<Self> {
        let failures = u8::from(matches!(stored.kind(), Kind::Failure | Kind::Silence));
        Arc::new(Self::new(stored, now, 0, failures))
    }

    fn age(&self, now: Instant) -> u32 {
        // Lives and stale times are far below 2^32 s.
        u32::try_from(now.saturating_duration_since(self.born).as_secs()).unwrap_or(u32::MAX)
    }

    /// Whether it says that upstreams failed.
    pub(super) fn is_failure(&self) -> bool {
        self.failures > 0
    }

    /// How long it still holds as given at this age.
    pub(super) fn left(&self, age: Age) -> Duration {
        let seconds = match age {
            Age::Fresh => self.life,
            Age::Kept(age) => self.life.saturating_sub(age),
            Age::Stale => STALE_TTL,
        };
        Duration::from_secs(seconds.into())
    }

    /// Notes that an upstream could not better it: for some time nobody waits for one again.
    pub(super) fn put_off(&self, now: Instant) {
        self.recheck.store(self.age(now).saturating_add(RECHECK), Ordering::Relaxed);
    }

    /// Whether it is past its end and an upstream has just failed to better it.
    pub(super) fn is_put_off(&self, now: Instant) -> bool {
        self.age(now) < self.recheck.load(Ordering::Relaxed)
    }

    /// Counts that it was asked for; whether it should be prolonged now, which is said once.
    fn wants_prolonging(&self, age: u32) -> bool {
        if self.life < LEAST_PREFETCHED || self.is_failure() {
            return false;
        }
        let asked = self.asked.load(Ordering::Relaxed);
        if asked < HOT {
            self.asked.store(asked + 1, Ordering::Relaxed);
        }
        asked + 1 >= HOT && (self.life - age) * 10 < self.life && !self.prolonging.swap(true, Ordering::Relaxed)
    }
}

/// What is known of a question.
#[derive(Debug)]
pub(super) enum Found {
    /// An answer that holds, or a failure that is believed for the moment.
    Fresh {
        /// It.
        entry: Arc<Entry>,
        /// How old it is.
        age: Age,
        /// Whether it is near its end and wanted: to be asked for anew, by the one who is told this.
        prolong: bool,
    },
    /// An answer past its end.
    Stale(Arc<Entry>),
    /// Nothing.
    Nothing,
}

/// The cache. Shared by all threads.
pub(super) struct Cache {
    entries: Option<Entries>,
    stale: u32,
    /// Counts how often all was forgotten.
    generation: AtomicU64,
}

type Entries = quick_cache::sync::Cache<Box<[u8]>, Arc<Entry>, Weigher, RandomState>;

impl Cache {
    /// A cache of at most so many `octets`, 0 for none, that keeps answers for so long past their end.
    pub(super) fn new(octets: usize, stale: Duration) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(octets / TYPICAL)
            .weight_capacity(octets as u64)
            .shards((octets / SHARD).clamp(1, 64).next_power_of_two())
            .build();
        let with = |options| Entries::with_options(options, Weigher, RandomState::default(), DefaultLifecycle::default());
        Self {
            // Both numbers it wants are given.
            entries: options.ok().filter(|_| octets > 0).map(with),
            stale: u32::try_from(stale.as_secs()).unwrap_or(u32::MAX / 2).min(u32::MAX / 2),
            generation: AtomicU64::new(0),
        }
    }

    /// What is known of a question.
    pub(super) fn find(&self, key: Key<'_>, now: Instant) -> Found {
        let Some(entry) = self.entries.as_ref().and_then(|entries| entries.get(key.of_entry())) else { return Found::Nothing };
        let age = entry.age(now);
        if age < entry.life {
            let prolong = entry.wants_prolonging(age);
            return Found::Fresh { entry, age: Age::Kept(age), prolong };
        }
        if entry.is_failure() || age >= entry.life.saturating_add(self.stale) { Found::Nothing } else { Found::Stale(entry) }
    }

    /// Which of the times between two [`Cache::clear`] this is: an answer is kept only in the one that it was asked for in.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Takes what a question has come to, and keeps it where that is worth anything.
    pub(super) fn take(&self, key: Key<'_>, stored: Stored, asked: bool, generation: u64, now: Instant) -> Arc<Entry> {
        let before = self.entries.as_ref().and_then(|entries| entries.peek(key.of_entry()));
        let (life, failures) = match stored.kind() {
            Kind::Positive(ttl) => (ttl.min(MOST_POSITIVE), 0),
            Kind::Negative(ttl) => (ttl, 0),
            Kind::Passing => (0, 0),
            kind @ (Kind::Failure | Kind::Silence) => {
                let row =
                    before.as_ref().filter(|entry| entry.is_failure() && now < entry.born + ROW + Duration::from_secs(entry.life.into()));
                let row = row.map_or(1, |entry| entry.failures.saturating_add(1));
                let most = if kind == Kind::Failure { MOST_FAILURE } else { MOST_SILENCE };
                (if asked { 1u32.checked_shl(u32::from(row) - 1).unwrap_or(most).min(most) } else { 0 }, row)
            }
        };
        let entry = Arc::new(Entry::new(stored, now, life, failures));
        let Some(entries) = self.entries.as_ref().filter(|_| key.recursive() && generation == self.generation()) else { return entry };
        match before.filter(|before| failures > 0 && !before.is_failure() && before.age(now) < before.life.saturating_add(self.stale)) {
            Some(better) => better.put_off(now),
            None if life > 0 => {
                entries.insert(key.of_entry().into(), Arc::clone(&entry));
                // Should all have been forgotten meanwhile.
                if generation != self.generation() {
                    entries.remove(key.of_entry());
                }
            }
            None => {}
        }
        entry
    }

    /// Forgets everything: other upstreams may say something else.
    pub(super) fn clear(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(entries) = &self.entries {
            entries.clear();
        }
    }

    /// Entries, those past their end included.
    pub(super) fn len(&self) -> usize {
        self.entries.as_ref().map_or(0, Entries::len)
    }

    /// Octets they take.
    pub(super) fn octets(&self) -> u64 {
        self.entries.as_ref().map_or(0, Entries::weight)
    }

    /// Octets they may take.
    pub(super) fn capacity(&self) -> u64 {
        self.entries.as_ref().map_or(0, Entries::capacity)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("len", &self.len()).field("octets", &self.octets()).finish_non_exhaustive()
    }
}

/// Octets of an entry.
#[derive(Clone, Copy, Debug)]
struct Weigher;

impl Weighter<Box<[u8]>, Arc<Entry>> for Weigher {
    fn weight(&self, key: &Box<[u8]>, entry: &Arc<Entry>) -> u64 {
        (key.len() + entry.stored.octets() + OVERHEAD) as u64
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
            let name = n.to_be_bytes().map(|octet| octet | 0x80);
            let packet = [b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x04", &name[..], b"\0\0\x01\0\x01"].concat();
            let Parsed::Query(query) = Query::parse(&packet) else { panic!("no query") };
            let mut room = ROOM;
            let key = Key::new(&query, &mut room).unwrap();
            let stored = Stored::failure(key.question(), ExtendedError { code: rcode::SERVFAIL, text: "" });
            cache.take(key, stored, true, 0, now);
        }
        let entries = cache.entries.as_ref().unwrap();
        let places = entries.memory_used();
        let counted = OVERHEAD - size_of::<Entry>() - 16 - 3 * 16;
        assert!(places.entries + places.map <= entries.len() * counted, "{places:?} for {} entries", entries.len());
        assert!(entries.len() > 1000);
    }
}
