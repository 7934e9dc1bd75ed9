//! Counts of questions and responses, cheap enough for every query.
//!
//! Each worker counts in cells of its own, without a locked instruction and without waiting for a
//! cache line that another core has. A reader sums the cells of all workers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::name::{Zone, Zones};
use crate::wire::rtype;

/// Limit on the zones that have counts of their own, over the life of the process.
const MAX_COUNTED_ZONES: u8 = 16;

/// Number of slots of zones: those of served zones, then the three of [`ZoneSlot`].
const ZONE_SLOTS: usize = MAX_COUNTED_ZONES as usize + 3;

/// The query types that have counts of their own, each with its name.
const COUNTED_TYPES: [(u16, &str); 10] = [
    (rtype::A, "A"),
    (rtype::AAAA, "AAAA"),
    (rtype::SRV, "SRV"),
    (rtype::PTR, "PTR"),
    (rtype::TXT, "TXT"),
    (rtype::CNAME, "CNAME"),
    (rtype::SOA, "SOA"),
    (rtype::NS, "NS"),
    (rtype::HTTPS, "HTTPS"),
    (rtype::ANY, "ANY"),
];

/// Number of slots of types: the last one is for all other types.
const TYPE_SLOTS: usize = COUNTED_TYPES.len() + 1;

/// Number of response codes in a header.
const RCODES: usize = 16;

/// The slot of each query type below 256.
#[expect(clippy::cast_possible_truncation, reason = "there are few slots")]
const SLOTS_OF_TYPES: [u8; 256] = {
    let mut slots = [COUNTED_TYPES.len() as u8; 256];
    let mut slot = 0;
    while slot < COUNTED_TYPES.len() {
        slots[COUNTED_TYPES[slot].0 as usize] = slot as u8;
        slot += 1;
    }
    slots
};

/// Label of questions for names outside the served zones.
const OTHER: &str = "other";

/// Where the content of a response comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResponseSource {
    /// The registries, including the absence of a name or record.
    Registry,
    /// The last known data of a registry that may have changed since.
    Stale,
    /// Static services.
    Static,
    /// The cache of upstream responses.
    Cache,
    /// An upstream, or the failure to get a response of one.
    Upstream,
    /// svcdns itself: the zone apex, special names, errors.
    Local,
    /// Nothing: the query was refused.
    Refused,
}

impl ResponseSource {
    /// All sources, in the order of their declaration.
    const ALL: [Self; 7] = [
        Self::Registry,
        Self::Stale,
        Self::Static,
        Self::Cache,
        Self::Upstream,
        Self::Local,
        Self::Refused,
    ];

    /// Returns the name of the source, for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Stale => "stale",
            Self::Static => "static",
            Self::Cache => "cache",
            Self::Upstream => "upstream",
            Self::Local => "local",
            Self::Refused => "refused",
        }
    }
}

/// The place of a zone in the counts of questions; the same for the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneSlot(u8);

impl ZoneSlot {
    /// Names below `arpa.` outside the served zones.
    pub(super) const REVERSE: Self = Self(MAX_COUNTED_ZONES);
    /// Other names outside the served zones, and zones beyond [`MAX_COUNTED_ZONES`].
    pub(super) const OTHER: Self = Self(MAX_COUNTED_ZONES + 1);
    /// Messages that are no valid query.
    pub(super) const MALFORMED: Self = Self(MAX_COUNTED_ZONES + 2);
}

/// The slot of each served zone, in the order of the zones.
#[derive(Clone, Debug, Default)]
pub(super) struct ZoneSlots(Box<[ZoneSlot]>);

impl ZoneSlots {
    /// Returns the slot of the zone at this index.
    pub(super) fn get(&self, index: u8) -> ZoneSlot {
        self.0.get(usize::from(index)).copied().unwrap_or(ZoneSlot::OTHER)
    }
}

/// The cells of one worker, apart from those of others.
#[derive(Debug, Default)]
#[repr(align(128))]
struct TallyCells {
    questions: [[AtomicU64; TYPE_SLOTS]; ZONE_SLOTS],
    responses: [[AtomicU64; RCODES]; ResponseSource::ALL.len()],
}

/// A handle of a worker that counts its questions and responses.
#[derive(Debug)]
pub struct QueryTally {
    cells: Arc<TallyCells>,
    is_shared: bool,
}

impl QueryTally {
    /// Counts a question; `qtype` is 0 for a message without one.
    pub fn count_question(&self, zone: ZoneSlot, qtype: u16) {
        let others = COUNTED_TYPES.len();
        let slot = SLOTS_OF_TYPES.get(usize::from(qtype)).map_or(others, |slot| (*slot).into());
        let cells = self.cells.questions.get(usize::from(zone.0));
        if let Some(cell) = cells.and_then(|cells| cells.get(slot)) {
            self.increment(cell);
        }
    }

    /// Counts a response with the code of its header.
    pub fn count_response(&self, source: ResponseSource, response: &[u8]) {
        let rcode = response.get(3).map_or(0, |flags| usize::from(flags & 0xF));
        self.increment(&self.cells.responses[source as usize][rcode]);
    }

    fn increment(&self, cell: &AtomicU64) {
        if self.is_shared {
            cell.fetch_add(1, Ordering::Relaxed);
        } else {
            // No other thread writes, so that nothing is lost in between.
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }
}

/// The counts of all workers, including those that have ended.
#[derive(Debug, Default)]
pub struct QueryTallies {
    /// The served zones that have slots, in the order of their slots.
    zones: Mutex<Vec<Box<str>>>,
    workers: Mutex<TallyList>,
}

#[derive(Debug, Default)]
struct TallyList {
    running: Vec<(&'static str, Arc<TallyCells>)>,
    /// What the ended ones have counted, by transport.
    ended: BTreeMap<&'static str, QueryCounts>,
}

/// Sums of the counts over all workers of a transport.
#[derive(Clone, Debug, Default)]
pub struct QueryCounts {
    questions: [[u64; TYPE_SLOTS]; ZONE_SLOTS],
    responses: [[u64; RCODES]; ResponseSource::ALL.len()],
}

impl QueryTallies {
    /// Returns a tally of questions over a transport, for a single thread.
    pub fn worker(&self, transport: &'static str) -> QueryTally {
        self.add(transport, false)
    }

    /// Returns a tally of questions over a transport, for any threads.
    pub fn shared(&self, transport: &'static str) -> QueryTally {
        self.add(transport, true)
    }

    fn add(&self, transport: &'static str, is_shared: bool) -> QueryTally {
        let cells = Arc::<TallyCells>::default();
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.collect_ended();
        workers.running.push((transport, Arc::clone(&cells)));
        QueryTally { cells, is_shared }
    }

    /// Returns the slots of these zones; a zone that is served again gets the same slot.
    pub(super) fn slots(&self, zones: &Zones) -> ZoneSlots {
        let mut known = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = |zone: &str| {
            let index = known.iter().position(|known| **known == *zone).unwrap_or_else(|| {
                known.push(zone.into());
                known.len() - 1
            });
            let slot = u8::try_from(index).ok().filter(|slot| *slot < MAX_COUNTED_ZONES);
            slot.map_or(ZoneSlot::OTHER, ZoneSlot)
        };
        ZoneSlots(zones.iter().map(Zone::text).map(slot).collect())
    }

    /// Returns the sums by transport.
    pub fn counts(&self) -> BTreeMap<&'static str, QueryCounts> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.collect_ended();
        let mut counts = workers.ended.clone();
        for (transport, cells) in &workers.running {
            counts.entry(transport).or_default().add(cells);
        }
        counts
    }

    /// Returns the counts of questions by zone and type, without zeros.
    ///
    /// Zones that are no longer served are left out.
    pub fn questions(&self, counts: &QueryCounts, zones: &Zones) -> Vec<QuestionCount> {
        let known = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        for (slot, types) in counts.questions.iter().enumerate() {
            let zone: Box<str> = match known.get(slot) {
                Some(zone) if slot < usize::from(MAX_COUNTED_ZONES) => {
                    if !zones.iter().any(|served| served.text() == &**zone) {
                        continue;
                    }
                    zone.clone()
                }
                _ if slot == usize::from(ZoneSlot::REVERSE.0) => "reverse".into(),
                _ if slot == usize::from(ZoneSlot::MALFORMED.0) => "none".into(),
                _ => OTHER.into(),
            };
            let names = COUNTED_TYPES.iter().map(|(_, name)| *name).chain([OTHER]);
            let seen = names.zip(types).filter(|(_, count)| **count > 0);
            found.extend(seen.map(|(rtype, count)| QuestionCount {
                zone: zone.clone(),
                rtype,
                count: *count,
            }));
        }
        found
    }
}

/// The number of questions for names in a zone, of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuestionCount {
    /// The zone with a final dot; or `reverse`, `other`, or `none` for malformed messages.
    pub zone: Box<str>,
    /// The type, or `other`.
    pub rtype: &'static str,
    /// The number.
    pub count: u64,
}

impl TallyList {
    /// Adds the counts of ended workers to `ended`, and forgets their cells.
    fn collect_ended(&mut self) {
        let Self { running, ended } = self;
        running.retain_mut(|(transport, cells)| {
            // The only handle left is this one: nobody counts in the cells any more.
            let Some(cells) = Arc::get_mut(cells) else { return true };
            ended.entry(transport).or_default().add(cells);
            false
        });
    }
}

impl QueryCounts {
    fn add(&mut self, cells: &TallyCells) {
        fn add<const N: usize>(sums: &mut [[u64; N]], cells: &[[AtomicU64; N]]) {
            let cells = cells.iter().flatten();
            for (sum, cell) in sums.iter_mut().flatten().zip(cells) {
                *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
            }
        }
        add(&mut self.questions, &cells.questions);
        add(&mut self.responses, &cells.responses);
    }

    /// Returns the number of responses from a source with a code, 0-15.
    pub fn responses(&self) -> impl Iterator<Item = (ResponseSource, u16, u64)> + '_ {
        ResponseSource::ALL.into_iter().zip(&self.responses).flat_map(|(source, counts)| {
            (0..).zip(counts).map(move |(rcode, count)| (source, rcode, *count))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(names: &[&str]) -> Zones {
        Zones::new(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn ended_workers_leave_their_counts_behind() {
        let (tallies, threads, each) = (QueryTallies::default(), 4, 1000_u64);
        let served = zones(&["svc"]);
        let slot = tallies.slots(&served).get(0);
        let shared = tallies.shared("tcp");
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let (tally, shared) = (tallies.worker("udp"), &shared);
                scope.spawn(move || {
                    for _ in 0..each {
                        tally.count_question(slot, rtype::A);
                        tally.count_response(ResponseSource::Registry, &[0, 0, 0, 3]);
                        shared.count_question(ZoneSlot::MALFORMED, 0);
                    }
                });
            }
        });
        for _ in 0..2 {
            let counts = tallies.counts();
            let count =
                |zone: &str, rtype, count| QuestionCount { zone: zone.into(), rtype, count };
            let questions = tallies.questions(&counts["udp"], &served);
            assert_eq!(questions, [count("svc.", "A", threads * each)]);
            let questions = tallies.questions(&counts["tcp"], &served);
            assert_eq!(questions, [count("none", "other", threads * each)]);
            let responses: Vec<_> =
                counts["udp"].responses().filter(|(_, _, count)| *count > 0).collect();
            assert_eq!(responses, [(ResponseSource::Registry, 3, threads * each)]);
        }
        let workers = tallies.workers.lock().unwrap();
        assert_eq!(workers.running.len(), 1, "the cells of ended workers are forgotten");
    }

    #[test]
    fn a_zone_keeps_its_slot() {
        let tallies = QueryTallies::default();
        let first = tallies.slots(&zones(&["a", "b"]));
        let second = tallies.slots(&zones(&["c", "b", "a"]));
        assert_eq!((second.get(1), second.get(2)), (first.get(1), first.get(0)));
        assert_ne!(second.get(0), first.get(0));
        let tally = tallies.worker("udp");
        tally.count_question(first.get(1), rtype::SRV);
        let counts = &tallies.counts()["udp"];
        assert_eq!(tallies.questions(counts, &zones(&["b"])).len(), 1);
        assert!(tallies.questions(counts, &zones(&["a"])).is_empty(), "b is not served");
        // Zones beyond the limit share a slot.
        let many: Vec<String> = (0..20).map(|number| format!("z{number}")).collect();
        let slots = tallies.slots(&Zones::new(&many).unwrap());
        assert_eq!(slots.get(19), ZoneSlot::OTHER);
        assert_eq!(slots.get(200), ZoneSlot::OTHER, "no such zone");
    }

    #[test]
    fn types_without_a_name_count_as_other() {
        let (tallies, served) = (QueryTallies::default(), zones(&["svc"]));
        let tally = tallies.worker("udp");
        for qtype in [1, 28, 33, 12, 16, 5, 6, 2, 65, 255, 0, 15, 64, 256, 65_535] {
            tally.count_question(ZoneSlot::OTHER, qtype);
        }
        let found = tallies.questions(&tallies.counts()["udp"], &served);
        let found: Vec<_> = found.iter().map(|count| (count.rtype, count.count)).collect();
        let named = COUNTED_TYPES.map(|(_, name)| (name, 1));
        assert_eq!(found, [&named[..], &[("other", 5)]].concat());
    }
}
