//! The ready-made records of one shard: one immutable piece of memory, in which a probe finds an owner.
//!
//! Octets: the slots, each a tag and the place of its entry; the entries, each the length of the owner, the owner (wire labels
//! in front of the zone, lower-cased), the length of the record, the record. The slots are a hash table with linear probing in
//! which tags ascend: an owner stands at the place that its tag points at or a few behind, and one that is not there is soon
//! passed by. So a question costs the memory of a slot and that of its record, however many names there are.

use std::sync::Arc;

use super::sharded::tag;
use crate::wire::{put_u32, u32_at};

/// Octets of a slot.
const SLOT: usize = 8;
/// The largest length of a record that takes one octet; a longer one takes five.
const SHORT: usize = 0x7F;
/// Octets of a usual entry, to begin with.
const USUAL: usize = 64;

/// The records of a shard. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Shard {
    /// Slots that tags point at.
    count: u32,
    /// All slots: some more, for those that found theirs taken, and an empty one.
    all: u32,
    octets: Arc<[u8]>,
}

/// The hash of an owner, the owner, and its record or none.
type Change<'a> = (u64, (&'a [u8], Option<&'a [u8]>));

impl Shard {
    /// Finds the record of `owner`, in any case, whose hash this is; with the owner as it is kept.
    pub(super) fn find(&self, hash: u64, owner: &[u8]) -> Option<(&[u8], &[u8])> {
        let tag = tag(hash);
        // The last slot is empty.
        for (found, start) in self.slots(place(tag, self.count)).map_while(|slot| slot) {
            if found > tag {
                return None;
            }
            if found == tag
                && let Some((kept, record)) = entry(&self.octets, start)
                // Most are asked for as they are kept. Length octets are at most 63, below 'A': only letters have a case.
                && (kept == owner || kept.eq_ignore_ascii_case(owner))
            {
                return Some((kept, record));
            }
        }
        None
    }

    /// This shard with other records of some owners, or none of them any more. Of an owner that comes twice one is taken.
    pub(super) fn with(&self, changes: &mut [Change<'_>]) -> Self {
        fn of<'a>((hash, (owner, _)): &Change<'a>) -> (u32, &'a [u8]) {
            (tag(*hash), owner)
        }
        changes.sort_unstable_by(|a, b| of(a).cmp(&of(b)));
        let mut next = Next::default();
        next.slots.reserve(self.all as usize + changes.len());
        next.entries.reserve(self.octets.len() + changes.len() * USUAL);
        let mut old = self.entries().peekable();
        for same in changes.chunk_by(|a, b| of(a) == of(b)) {
            let (here, (_, (owner, record))) = (of(&same[0]), same[0]);
            while let Some((tag, owner, record)) = old.next_if(|(tag, owner, _)| (*tag, *owner) < here) {
                next.put(tag, owner, record);
            }
            let _replaced = old.next_if(|(tag, owner, _)| (*tag, *owner) == here);
            if let Some(record) = record {
                next.put(here.0, owner, record);
            }
        }
        for (tag, owner, record) in old {
            next.put(tag, owner, record);
        }
        next.finish()
    }

    /// The octets from the slot on that a hash points at.
    pub(super) fn at_slot(&self, hash: u64) -> &[u8] {
        self.octets.get(SLOT * place(tag(hash), self.count)..).unwrap_or_default()
    }

    /// The octets from the entry on that stands in the first of these slots.
    pub(super) fn at_entry(&self, slot: &[u8]) -> &[u8] {
        u32_at(slot, 4).and_then(|start| self.octets.get(start as usize..)).unwrap_or_default()
    }

    /// The slots from one on: tag and place of the entry, or empty.
    fn slots(&self, from: usize) -> impl Iterator<Item = Option<(u32, usize)>> {
        let octets = self.octets.get(SLOT * from..SLOT * self.all as usize).unwrap_or_default();
        octets.chunks_exact(SLOT).map(|slot| {
            let (tag, start) = (u32_at(slot, 0)?, u32_at(slot, 4)?);
            // No entry stands at the beginning.
            (start > 0).then_some((tag, start as usize))
        })
    }

    /// Tag, owner and record of all entries, sorted by tag and owner.
    fn entries(&self) -> impl Iterator<Item = (u32, &[u8], &[u8])> {
        self.slots(0).flatten().filter_map(|(tag, start)| {
            let (owner, record) = entry(&self.octets, start)?;
            Some((tag, owner, record))
        })
    }
}

/// The slot that a tag points at: tags are spread evenly over all 32-bit numbers.
fn place(tag: u32, count: u32) -> usize {
    // Below `count`.
    ((u64::from(tag) * u64::from(count)) >> 32) as usize
}

/// The owner and the record of the entry at `start`.
fn entry(shard: &[u8], start: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = shard.get(start..)?.split_first()?;
    let (owner, rest) = rest.split_at_checked(usize::from(*length))?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match usize::from(*length) {
        short @ ..=SHORT => (short, rest),
        _ => (u32_at(rest, 0)? as usize, rest.get(4..)?),
    };
    Some((owner, rest.get(..length)?))
}

/// A shard on the way.
#[derive(Default)]
struct Next {
    /// Of each entry its tag and its place among the entries, in the order of both.
    slots: Vec<(u32, usize)>,
    entries: Vec<u8>,
}

impl Next {
    fn put(&mut self, tag: u32, owner: &[u8], record: &[u8]) {
        self.slots.push((tag, self.entries.len()));
        // An owner is a part of a name: at most 254 octets.
        self.entries.push(u8::try_from(owner.len()).unwrap_or(u8::MAX));
        self.entries.extend_from_slice(owner);
        match u8::try_from(record.len()) {
            Ok(length) if record.len() <= SHORT => self.entries.push(length),
            _ => {
                self.entries.push(u8::MAX);
                put_u32(&mut self.entries, u32::try_from(record.len()).unwrap_or(u32::MAX));
            }
        }
        self.entries.extend_from_slice(record);
    }

    fn finish(self) -> Shard {
        if self.slots.is_empty() {
            return Shard::default();
        }
        // A quarter more than are taken: then most stand at their place or right behind it. A shard of 4 GiB cannot be: there
        // are 4,096, and an owner's record has some 100 KiB at most.
        let count = u32::try_from(self.slots.len() * 5 / 4 + 1).unwrap_or(u32::MAX);
        let mut places = Vec::with_capacity(self.slots.len());
        let mut free = 0;
        for (tag, _) in &self.slots {
            let at = place(*tag, count).max(free);
            places.push(at);
            free = at + 1;
        }
        // A probe ends at an empty slot, at the latest at the last.
        let all = free.max(count as usize) + 1;
        let first = SLOT * all;
        let mut octets = Vec::with_capacity(first + self.entries.len());
        octets.resize(first, 0);
        for ((tag, start), at) in self.slots.iter().zip(places) {
            let slot = &mut octets[SLOT * at..][..SLOT];
            slot[..4].copy_from_slice(&tag.to_be_bytes());
            slot[4..].copy_from_slice(&u32::try_from(first + start).unwrap_or(u32::MAX).to_be_bytes());
        }
        octets.extend_from_slice(&self.entries);
        Shard { count, all: u32::try_from(all).unwrap_or(u32::MAX), octets: octets.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_shard_is_a_map(steps in prop::collection::vec(
            prop::collection::vec((0u64..40, prop::option::of(0usize..300)), 1..20), 1..12,
        )) {
            let mut expected: BTreeMap<u64, usize> = BTreeMap::new();
            let mut shard = Shard::default();
            // Many owners under each tag, tags at both ends and in between.
            let hash = |owner: u64| [0, 1, u64::from(u32::MAX), 1 << 31][usize::try_from(owner % 4).unwrap()];
            for step in steps {
                let owners: Vec<_> = step.iter().map(|(owner, _)| owner.to_be_bytes()).collect();
                let mut changes: HashMap<u64, (&[u8], Option<Vec<u8>>)> = HashMap::new();
                for ((owner, length), octets) in step.iter().zip(&owners) {
                    changes.insert(*owner, (octets, length.map(|length| vec![octets[7]; length])));
                    match length {
                        Some(length) => expected.insert(*owner, *length),
                        None => expected.remove(owner),
                    };
                }
                let mut changes: Vec<Change<'_>> =
                    changes.iter().map(|(owner, (octets, record))| (hash(*owner), (*octets, record.as_deref()))).collect();
                // Again, which changes nothing.
                changes.extend_from_within(..);
                shard = shard.with(&mut changes);
                for owner in 0..40u64 {
                    let octets = owner.to_be_bytes();
                    let record = expected.get(&owner).map(|length| vec![octets[7]; *length]);
                    prop_assert_eq!(shard.find(hash(owner), &octets), record.as_deref().map(|record| (&octets[..], record)));
                }
                prop_assert_eq!(shard.entries().count(), expected.len());
            }
        }
    }
}
