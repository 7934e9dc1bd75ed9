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
const MOST: usize = 32;
/// Octets of an entry that most answers are made of.
const USUAL: usize = 56;

/// Messages that came together: what they ask for, and the one publication that they are answered from.
#[derive(Debug)]
pub struct Ahead {
    pub(super) snapshot: Guard<Arc<Snapshot>>,
    places: [Option<Place>; MOST],
}

/// The name of a question in a served zone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The hash of the labels in front of the zone.
    pub(super) hash: u64,
    /// Octets of these labels.
    pub(super) owner: u8,
    /// The zone's place in the list of zones.
    pub(super) zone: u8,
}

impl Ahead {
    /// Looks at the first 32 messages that are to be answered from this publication.
    pub(super) fn new<'r>(zones: &Zones, snapshot: Guard<Arc<Snapshot>>, requests: impl Iterator<Item = &'r [u8]>) -> Self {
        let mut places = [None; MOST];
        let mut count = 0;
        for (place, request) in places.iter_mut().zip(requests) {
            *place = question_name(request).and_then(|name| Place::of(zones, &snapshot, name));
            count += 1;
        }
        // One question alone waits no less for it.
        if count > 1 {
            fetch(&snapshot, &places[..count]);
        }
        Self { snapshot, places }
    }

    /// What the message of this number asks for; none for what is not known, which is no error.
    pub(super) fn place(&self, number: usize) -> Option<Place> {
        self.places.get(number).copied().flatten()
    }
}

impl Place {
    /// What a valid name in wire form asks for, if it lies in a served zone.
    pub(super) fn of(zones: &Zones, snapshot: &Snapshot, name: &[u8]) -> Option<Self> {
        let mut room = [0; 256];
        let name = lower_cased(name, &mut room)?;
        let (zone, owner) = zones.split(name)?;
        Some(Self { hash: snapshot.hash(owner), owner: u8::try_from(owner.len()).ok()?, zone: u8::try_from(zone).ok()? })
    }
}

/// Reads what a probe for each place will read. No turn of a loop depends on the one before.
fn fetch(snapshot: &Snapshot, places: &[Option<Place>]) {
    let hashes = || places.iter().flatten().map(|place| place.hash);
    let mut slots: [&[u8]; MOST] = [&[]; MOST];
    let mut entries = slots;
    for (slot, hash) in slots.iter_mut().zip(hashes()) {
        *slot = snapshot.records.shard(hash).at_slot(hash);
    }
    for ((entry, slot), hash) in entries.iter_mut().zip(slots).zip(hashes()) {
        *entry = snapshot.records.shard(hash).at_entry(slot);
    }
    // A usual entry begins in one line of the processor's cache and ends in the next.
    let ends = |entry: &[u8]| [0, USUAL.min(entry.len().saturating_sub(1))].map(|at| entry.get(at).copied().unwrap_or(0));
    let read = entries.iter().map(|entry| ends(entry)).fold(0, |read, [first, last]| read ^ first ^ last);
    black_box(read);
}
