//! Memory that a batch of questions needs, fetched for all of them at once.
//!
//! An answer waits for memory twice or three times, one after the other: for its shard, for a slot, for the record. Questions
//! that came together need not wait one after the other: where their places in memory are looked up step by step for all, the
//! processor waits for many of them at the same time.

use std::hint::black_box;

use super::Answerer;
use super::compile::MAX_NAME;
use super::fast::lower_cased;
use super::table::Snapshot;
use crate::wire::question_name;

/// Most questions of one look.
const MOST: usize = 32;

impl Answerer {
    /// Looks at messages that [`Self::respond`] is asked next, at most 32: says nothing, but has what they need fetched. Worth
    /// its time for two or more.
    pub fn look_ahead<'r>(&self, requests: impl Iterator<Item = &'r [u8]>) {
        let snapshot = self.snapshot.load();
        let (mut hashes, mut count) = ([0; MOST], 0);
        for hash in requests.filter_map(|request| self.hash_of(&snapshot, request)).take(MOST) {
            hashes[count] = hash;
            count += 1;
        }
        fetch(&snapshot, &hashes[..count]);
    }

    /// The hash of the name that a message asks for, if it lies in a served zone.
    fn hash_of(&self, snapshot: &Snapshot, request: &[u8]) -> Option<u64> {
        let mut room = [0; MAX_NAME];
        let (owner, _) = self.settings.zones.split(lower_cased(question_name(request)?, &mut room)?)?;
        Some(snapshot.hash(owner))
    }
}

/// Reads what a probe for each hash will read. No turn of a loop depends on the one before.
fn fetch(snapshot: &Snapshot, hashes: &[u64]) {
    let mut slots: [&[u8]; MOST] = [&[]; MOST];
    let mut entries = slots;
    for (slot, hash) in slots.iter_mut().zip(hashes) {
        *slot = snapshot.records.shard(*hash).at_slot(*hash);
    }
    for ((entry, slot), hash) in entries.iter_mut().zip(slots).zip(hashes) {
        *entry = snapshot.records.shard(*hash).at_entry(slot);
    }
    let read = entries.iter().fold(0, |read, entry| read ^ entry.first().copied().unwrap_or(0));
    black_box(read);
}
