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
const SLOT_BYTES: usize = 8;
/// The largest length of a record that takes one octet; a longer one takes five.
const MAX_SHORT_LENGTH: usize = 0x7F;
/// Octets of a usual entry, to begin with.
const TYPICAL_ENTRY_BYTES: usize = 64;

/// The records of a shard. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Shard {
    /// Slots that tags point at.
    home_slots: u32,
    /// All slots: some more, for those that found theirs taken, and an empty one.
    slot_count: u32,
    bytes: Arc<[u8]>,
}

/// The hash of an owner, the owner, and its record or none.
type NodeChange<'a> = (u64, (&'a [u8], Option<&'a [u8]>));

impl Shard {
    /// Finds the record of `owner`, in any case, whose hash this is; with the owner as it is kept.
    pub(super) fn find(&self, hash: u64, owner: &[u8]) -> Option<(&[u8], &[u8])> {
        let tag = tag(hash);
        // The last slot is empty.
        for (found, start) in self.slots(home_slot(tag, self.home_slots)).map_while(|slot| slot) {
            if found > tag {
                return None;
            }
            if found == tag
                && let Some((kept, node)) = entry(&self.bytes, start)
                // Most are asked for as they are kept. Length octets are at most 63, below 'A': only letters have a case.
                && (kept == owner || kept.eq_ignore_ascii_case(owner))
            {
                return Some((kept, node));
            }
        }
        None
    }

    /// This shard with other records of some owners, or none of them any more. Of an owner that comes twice one is taken.
    pub(super) fn with(&self, changes: &mut [NodeChange<'_>]) -> Self {
        fn of<'a>((hash, (owner, _)): &NodeChange<'a>) -> (u32, &'a [u8]) {
            (tag(*hash), owner)
        }
        changes.sort_unstable_by(|a, b| of(a).cmp(&of(b)));
        let mut next = ShardBuilder::default();
        next.slots.reserve(self.slot_count as usize + changes.len());
        next.entries.reserve(self.bytes.len() + changes.len() * TYPICAL_ENTRY_BYTES);
        let mut old = self.entries().peekable();
        for same in changes.chunk_by(|a, b| of(a) == of(b)) {
            let (here, (_, (owner, node))) = (of(&same[0]), same[0]);
            while let Some((tag, owner, node)) =
                old.next_if(|(tag, owner, _)| (*tag, *owner) < here)
            {
                next.put(tag, owner, node);
            }
            let _replaced = old.next_if(|(tag, owner, _)| (*tag, *owner) == here);
            if let Some(node) = node {
                next.put(here.0, owner, node);
            }
        }
        for (tag, owner, node) in old {
            next.put(tag, owner, node);
        }
        next.finish()
    }

    /// The octets from the slot on that a hash points at.
    pub(super) fn at_slot(&self, hash: u64) -> &[u8] {
        self.bytes.get(SLOT_BYTES * home_slot(tag(hash), self.home_slots)..).unwrap_or_default()
    }

    /// The octets from the entry on that stands in the first of these slots.
    pub(super) fn at_entry(&self, slot: &[u8]) -> &[u8] {
        u32_at(slot, 4).and_then(|start| self.bytes.get(start as usize..)).unwrap_or_default()
    }

    /// The slots from one on: tag and place of the entry, or empty.
    fn slots(&self, from: usize) -> impl Iterator<Item = Option<(u32, usize)>> {
        let bytes = self
            .bytes
            .get(SLOT_BYTES * from..SLOT_BYTES * self.slot_count as usize)
            .unwrap_or_default();
        bytes.chunks_exact(SLOT_BYTES).map(|slot| {
            let (tag, start) = (u32_at(slot, 0)?, u32_at(slot, 4)?);
            // No entry stands at the beginning.
            (start > 0).then_some((tag, start as usize))
        })
    }

    /// Tag, owner and record of all entries, sorted by tag and owner.
    fn entries(&self) -> impl Iterator<Item = (u32, &[u8], &[u8])> {
        self.slots(0).flatten().filter_map(|(tag, start)| {
            let (owner, node) = entry(&self.bytes, start)?;
            Some((tag, owner, node))
        })
    }
}

/// The slot that a tag points at: tags are spread evenly over all 32-bit numbers.
fn home_slot(tag: u32, home_slots: u32) -> usize {
    // Below `count`.
    ((u64::from(tag) * u64::from(home_slots)) >> 32) as usize
}

/// The owner and the record of the entry at `start`.
fn entry(shard: &[u8], start: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = shard.get(start..)?.split_first()?;
    let (owner, rest) = rest.split_at_checked(usize::from(*length))?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match usize::from(*length) {
        short @ ..=MAX_SHORT_LENGTH => (short, rest),
        _ => (u32_at(rest, 0)? as usize, rest.get(4..)?),
    };
    Some((owner, rest.get(..length)?))
}

/// A shard on the way.
#[derive(Default)]
struct ShardBuilder {
    /// Of each entry its tag and its place among the entries, in the order of both.
    slots: Vec<(u32, usize)>,
    entries: Vec<u8>,
}

impl ShardBuilder {
    fn put(&mut self, tag: u32, owner: &[u8], node: &[u8]) {
        self.slots.push((tag, self.entries.len()));
        // An owner is a part of a name: at most 254 octets.
        self.entries.push(u8::try_from(owner.len()).unwrap_or(u8::MAX));
        self.entries.extend_from_slice(owner);
        match u8::try_from(node.len()) {
            Ok(length) if node.len() <= MAX_SHORT_LENGTH => self.entries.push(length),
            _ => {
                self.entries.push(u8::MAX);
                put_u32(&mut self.entries, u32::try_from(node.len()).unwrap_or(u32::MAX));
            }
        }
        self.entries.extend_from_slice(node);
    }

    fn finish(self) -> Shard {
        if self.slots.is_empty() {
            return Shard::default();
        }
        // A quarter more than are taken: then most stand at their place or right behind it. A shard of 4 GiB cannot be: there
        // are 4,096, and an owner's record has some 100 KiB at most.
        let home_slots = u32::try_from(self.slots.len() * 5 / 4 + 1).unwrap_or(u32::MAX);
        let mut places = Vec::with_capacity(self.slots.len());
        let mut free = 0;
        for (tag, _) in &self.slots {
            let at = home_slot(*tag, home_slots).max(free);
            places.push(at);
            free = at + 1;
        }
        // A probe ends at an empty slot, at the latest at the last.
        let slot_count = free.max(home_slots as usize) + 1;
        let first = SLOT_BYTES * slot_count;
        let mut bytes = Vec::with_capacity(first + self.entries.len());
        bytes.resize(first, 0);
        for ((tag, start), at) in self.slots.iter().zip(places) {
            let slot = &mut bytes[SLOT_BYTES * at..][..SLOT_BYTES];
            slot[..4].copy_from_slice(&tag.to_be_bytes());
            slot[4..]
                .copy_from_slice(&u32::try_from(first + start).unwrap_or(u32::MAX).to_be_bytes());
        }
        bytes.extend_from_slice(&self.entries);
        Shard {
            home_slots,
            slot_count: u32::try_from(slot_count).unwrap_or(u32::MAX),
            bytes: bytes.into(),
        }
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
                for ((owner, length), bytes) in step.iter().zip(&owners) {
                    changes.insert(*owner, (bytes, length.map(|length| vec![bytes[7]; length])));
                    match length {
                        Some(length) => expected.insert(*owner, *length),
                        None => expected.remove(owner),
                    };
                }
                let mut changes: Vec<NodeChange<'_>> =
                    changes.iter().map(|(owner, (bytes, node))| (hash(*owner), (*bytes, node.as_deref()))).collect();
                // Again, which changes nothing.
                changes.extend_from_within(..);
                shard = shard.with(&mut changes);
                for owner in 0..40u64 {
                    let bytes = owner.to_be_bytes();
                    let node = expected.get(&owner).map(|length| vec![bytes[7]; *length]);
                    prop_assert_eq!(shard.find(hash(owner), &bytes), node.as_deref().map(|node| (&bytes[..], node)));
                }
                prop_assert_eq!(shard.entries().count(), expected.len());
            }
        }
    }
}
