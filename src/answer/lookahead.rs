//! Lookahead over a batch of queries, so that their memory accesses overlap.
//!
//! Answering a query waits for memory two or three times in a row: for its shard, a slot, and the
//! node. The lookahead does each of these steps for the whole batch before the next, so the
//! processor can wait for many addresses at once.

use std::hint::black_box;
use std::sync::Arc;

use arc_swap::Guard;

use super::table::{Snapshot, to_lower_case};
use super::tally::ZoneSlot;
use crate::name::{Zones, may_be_reverse};
use crate::wire::{Parsed, question_name};

/// Maximum queries in one lookahead.
const MAX_KEYS: usize = 32;
/// Bytes of an entry to prefetch, enough for a typical answer.
const PREFETCH_BYTES: usize = 56;

/// A batch of queries: their owner keys, and the generation that answers them.
#[derive(Debug)]
pub struct Lookahead {
    pub(super) snapshot: Guard<Arc<Snapshot>>,
    keys: [Option<OwnerKey>; MAX_KEYS],
}

/// The name of a query in a served zone, as the fast path looks it up.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnerKey {
    /// Hash of the labels in front of the zone.
    pub(super) hash: u64,
    /// Length of these labels in wire form, in bytes.
    pub(super) owner_length: u8,
    /// Index of the zone in the list of zones.
    pub(super) zone_index: u8,
}

impl Lookahead {
    /// Looks up the first 32 messages of a batch in this generation.
    pub(super) fn new<'r>(
        snapshot: Guard<Arc<Snapshot>>,
        requests: impl Iterator<Item = &'r [u8]>,
    ) -> Self {
        let zones = &snapshot.settings().zones;
        let mut keys = [None; MAX_KEYS];
        let mut count = 0;
        for (key, request) in keys.iter_mut().zip(requests) {
            *key = question_name(request).and_then(|name| OwnerKey::of(zones, &snapshot, name));
            count += 1;
        }
        // A single query gains nothing from a prefetch.
        if count > 1 {
            prefetch(&snapshot, &keys[..count]);
        }
        Self { snapshot, keys }
    }

    /// Returns the key of a message, or `None` if the full path must answer it.
    pub(super) fn key(&self, number: usize) -> Option<OwnerKey> {
        self.keys.get(number).copied().flatten()
    }

    /// Returns the place of a message in the counts of questions.
    ///
    /// `parsed` and `number` are as in [`super::Answerer::respond`].
    pub fn zone_slot(&self, parsed: &Parsed<'_>, number: usize) -> ZoneSlot {
        match (parsed, self.key(number)) {
            (Parsed::Query(_), Some(key)) => self.snapshot.zone_slots.get(key.zone_index),
            (Parsed::Query(query), None) if may_be_reverse(query.name()) => ZoneSlot::REVERSE,
            (Parsed::Query(_), None) => ZoneSlot::OTHER,
            _ => ZoneSlot::MALFORMED,
        }
    }
}

impl OwnerKey {
    /// Returns the key of a valid name in wire form, if it is in a served zone.
    pub(super) fn of(zones: &Zones, snapshot: &Snapshot, name: &[u8]) -> Option<Self> {
        let mut buffer = [0; 256];
        let name = to_lower_case(name, &mut buffer)?;
        let (zone, owner) = zones.split(name)?;
        Some(Self {
            hash: snapshot.hash(owner),
            owner_length: u8::try_from(owner.len()).ok()?,
            zone_index: u8::try_from(zone).ok()?,
        })
    }
}

/// Reads the memory that the probe for each key will read.
///
/// No iteration depends on an earlier one, so the processor overlaps their memory accesses.
fn prefetch(snapshot: &Snapshot, keys: &[Option<OwnerKey>]) {
    let hashes = || keys.iter().flatten().map(|key| key.hash);
    let mut slots: [&[u8]; MAX_KEYS] = [&[]; MAX_KEYS];
    let mut entries = slots;
    for (slot, hash) in slots.iter_mut().zip(hashes()) {
        *slot = snapshot.nodes.shard(hash).bytes_from_slot(hash);
    }
    for ((entry, slot), hash) in entries.iter_mut().zip(slots).zip(hashes()) {
        *entry = snapshot.nodes.shard(hash).bytes_from_entry(slot);
    }
    // A typical entry ends in the cache line after the one it begins in.
    let ends = |entry: &[u8]| {
        [0, PREFETCH_BYTES.min(entry.len().saturating_sub(1))]
            .map(|at| entry.get(at).copied().unwrap_or(0))
    };
    let read =
        entries.iter().map(|entry| ends(entry)).fold(0, |read, [first, last]| read ^ first ^ last);
    black_box(read);
}
