//! What questions ask for, found out for all that came together before the first is answered.
//!
//! An answer waits for memory twice or three times, one after the other: for its shard, for a slot, for the record. Questions
//! that came together need not wait one after the other: where their places in memory are looked up step by step for all, the
//! processor waits for many of them at the same time.

use std::hint::black_box;
use std::sync::Arc;

use arc_swap::Guard;

use super::table::{Snapshot, lower_cased};
use crate::name::Zones;
use crate::wire::question_name;

/// Most questions of one look.
const MAX_KEYS: usize = 32;
/// Octets of an entry that most answers are made of.
const PREFETCH_BYTES: usize = 56;

/// Messages that came together: what they ask for, and the one publication that they are answered from.
#[derive(Debug)]
pub struct Lookahead {
    pub(super) snapshot: Guard<Arc<Snapshot>>,
    keys: [Option<OwnerKey>; MAX_KEYS],
}

/// The name of a question in a served zone.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnerKey {
    /// The hash of the labels in front of the zone.
    pub(super) hash: u64,
    /// Octets of these labels.
    pub(super) owner_length: u8,
    /// The zone's place in the list of zones.
    pub(super) zone_index: u8,
}

impl Lookahead {
    /// Looks at the first 32 messages that are to be answered from this publication.
    pub(super) fn new<'r>(
        zones: &Zones,
        snapshot: Guard<Arc<Snapshot>>,
        requests: impl Iterator<Item = &'r [u8]>,
    ) -> Self {
        let mut keys = [None; MAX_KEYS];
        let mut count = 0;
        for (key, request) in keys.iter_mut().zip(requests) {
            *key = question_name(request).and_then(|name| OwnerKey::of(zones, &snapshot, name));
            count += 1;
        }
        // One question alone waits no less for it.
        if count > 1 {
            prefetch(&snapshot, &keys[..count]);
        }
        Self { snapshot, keys }
    }

    /// What the message of this number asks for; none for what is not known, which is no error.
    pub(super) fn key(&self, number: usize) -> Option<OwnerKey> {
        self.keys.get(number).copied().flatten()
    }
}

impl OwnerKey {
    /// What a valid name in wire form asks for, if it lies in a served zone.
    pub(super) fn of(zones: &Zones, snapshot: &Snapshot, name: &[u8]) -> Option<Self> {
        let mut buffer = [0; 256];
        let name = lower_cased(name, &mut buffer)?;
        let (zone, owner) = zones.split(name)?;
        Some(Self {
            hash: snapshot.hash(owner),
            owner_length: u8::try_from(owner.len()).ok()?,
            zone_index: u8::try_from(zone).ok()?,
        })
    }
}

/// Reads what a probe for each place will read. No turn of a loop depends on the one before.
fn prefetch(snapshot: &Snapshot, keys: &[Option<OwnerKey>]) {
    let hashes = || keys.iter().flatten().map(|key| key.hash);
    let mut slots: [&[u8]; MAX_KEYS] = [&[]; MAX_KEYS];
    let mut entries = slots;
    for (slot, hash) in slots.iter_mut().zip(hashes()) {
        *slot = snapshot.nodes.shard(hash).at_slot(hash);
    }
    for ((entry, slot), hash) in entries.iter_mut().zip(slots).zip(hashes()) {
        *entry = snapshot.nodes.shard(hash).at_entry(slot);
    }
    // A usual entry begins in one line of the processor's cache and ends in the next.
    let ends = |entry: &[u8]| {
        [0, PREFETCH_BYTES.min(entry.len().saturating_sub(1))]
            .map(|at| entry.get(at).copied().unwrap_or(0))
    };
    let read =
        entries.iter().map(|entry| ends(entry)).fold(0, |read, [first, last]| read ^ first ^ last);
    black_box(read);
}
