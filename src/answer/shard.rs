//! A shard of precompiled nodes: one immutable block of memory with a hash table.
//!
//! Layout: slots, then entries. A slot holds a tag (part of the owner's hash) and the offset of an
//! entry. An entry holds the length of the owner, the owner (wire labels in front of the zone, in
//! lower case), the length of the node, and the node.
//!
//! The slots form a hash table with linear probing, in ascending order of tags. An owner is in its
//! tag's home slot or a few slots later; the probe for an absent owner ends at a larger tag. A
//! lookup therefore reads one slot and one node, regardless of the number of names.

use std::sync::Arc;

use super::sharded::tag;
use crate::wire::{put_u32, u32_at};

/// Size of a slot, in bytes.
const SLOT_BYTES: usize = 8;
/// Maximum length of a node with a one-byte length field; longer ones have five.
const MAX_SHORT_LENGTH: usize = 0x7F;
/// Initial capacity for a new entry, in bytes.
const TYPICAL_ENTRY_BYTES: usize = 64;

/// Precompiled nodes of one shard. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Shard {
    /// Number of home slots, to which tags are mapped.
    home_slots: u32,
    /// Number of all slots: home slots, overflow and a final empty one.
    slot_count: u32,
    bytes: Arc<[u8]>,
}

/// Hash and wire labels of an owner, and its new node; `None` removes it.
type NodeChange<'a> = (u64, (&'a [u8], Option<&'a [u8]>));

impl Shard {
    /// Returns the stored owner, in lower case, and its node.
    ///
    /// The argument `owner` may have any letter case.
    pub(super) fn find(&self, hash: u64, owner: &[u8]) -> Option<(&[u8], &[u8])> {
        let tag = tag(hash);
        // The last slot is empty, so a probe always ends.
        for (found, start) in self.slots(home_slot(tag, self.home_slots)).map_while(|slot| slot) {
            if found > tag {
                return None;
            }
            if found == tag
                && let Some((kept, node)) = entry(&self.bytes, start)
                // Most queries are in lower case. Length bytes are at most 63, below 'A', so they
                // have no case.
                && (kept == owner || kept.eq_ignore_ascii_case(owner))
            {
                return Some((kept, node));
            }
        }
        None
    }

    /// Returns a copy of the shard with these changes applied.
    ///
    /// If an owner occurs twice, only one of its changes is applied, in no defined order.
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

    /// Returns the bytes from the home slot of a hash onwards.
    pub(super) fn bytes_from_slot(&self, hash: u64) -> &[u8] {
        self.bytes.get(SLOT_BYTES * home_slot(tag(hash), self.home_slots)..).unwrap_or_default()
    }

    /// Returns the bytes from the entry of the first of these slots onwards.
    pub(super) fn bytes_from_entry(&self, slot: &[u8]) -> &[u8] {
        u32_at(slot, 4).and_then(|start| self.bytes.get(start as usize..)).unwrap_or_default()
    }

    /// Returns tag and entry offset of the slots from `from` on; `None` if empty.
    fn slots(&self, from: usize) -> impl Iterator<Item = Option<(u32, usize)>> {
        let bytes = self
            .bytes
            .get(SLOT_BYTES * from..SLOT_BYTES * self.slot_count as usize)
            .unwrap_or_default();
        bytes.chunks_exact(SLOT_BYTES).map(|slot| {
            let (tag, start) = (u32_at(slot, 0)?, u32_at(slot, 4)?);
            // Offset 0 belongs to the slots, so it marks an empty slot.
            (start > 0).then_some((tag, start as usize))
        })
    }

    /// Returns tag, owner and node of all entries, in ascending order of tag and owner.
    fn entries(&self) -> impl Iterator<Item = (u32, &[u8], &[u8])> {
        self.slots(0).flatten().filter_map(|(tag, start)| {
            let (owner, node) = entry(&self.bytes, start)?;
            Some((tag, owner, node))
        })
    }
}

/// Returns the home slot of a tag. Tags are spread evenly over 32 bits.
fn home_slot(tag: u32, home_slots: u32) -> usize {
    // Less than `home_slots`.
    ((u64::from(tag) * u64::from(home_slots)) >> 32) as usize
}

/// Returns owner and node of the entry at offset `start`.
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

/// Builds a shard from entries in ascending order of tag and owner.
#[derive(Default)]
struct ShardBuilder {
    /// Tag of each entry, and its offset in `entries`.
    slots: Vec<(u32, usize)>,
    entries: Vec<u8>,
}

impl ShardBuilder {
    /// Adds an entry.
    fn put(&mut self, tag: u32, owner: &[u8], node: &[u8]) {
        self.slots.push((tag, self.entries.len()));
        // An owner is part of a name, so it has at most 254 bytes.
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

    /// Lays out the slots and returns the shard.
    fn finish(self) -> Shard {
        if self.slots.is_empty() {
            return Shard::default();
        }
        // A quarter more home slots than entries keeps probes short. Offsets fit 32 bits: a node
        // has about 100 KiB at most, and its owner falls into one of 4,096 shards.
        let home_slots = u32::try_from(self.slots.len() * 5 / 4 + 1).unwrap_or(u32::MAX);
        let mut positions = Vec::with_capacity(self.slots.len());
        let mut free = 0;
        for (tag, _) in &self.slots {
            let at = home_slot(*tag, home_slots).max(free);
            positions.push(at);
            free = at + 1;
        }
        // The final empty slot ends every probe.
        let slot_count = free.max(home_slots as usize) + 1;
        let first = SLOT_BYTES * slot_count;
        let mut bytes = Vec::with_capacity(first + self.entries.len());
        bytes.resize(first, 0);
        for ((tag, start), at) in self.slots.iter().zip(positions) {
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
        fn a_shard_and_a_map_find_the_same_nodes(steps in prop::collection::vec(
            prop::collection::vec((0u64..40, prop::option::of(0usize..300)), 1..20), 1..12,
        )) {
            let mut expected: BTreeMap<u64, usize> = BTreeMap::new();
            let mut shard = Shard::default();
            // Many owners share a tag; the tags cover both ends of the range and the middle.
            let tags = [0, 1, u64::from(u32::MAX), 1 << 31];
            let hash = |owner: u64| tags[usize::try_from(owner % 4).unwrap()];
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
                let mut changes: Vec<NodeChange<'_>> = changes
                    .iter()
                    .map(|(owner, (bytes, node))| (hash(*owner), (*bytes, node.as_deref())))
                    .collect();
                // Applying a change a second time makes no difference.
                changes.extend_from_within(..);
                shard = shard.with(&mut changes);
                for owner in 0..40u64 {
                    let bytes = owner.to_be_bytes();
                    let node = expected.get(&owner).map(|length| vec![bytes[7]; *length]);
                    let expected = node.as_deref().map(|node| (&bytes[..], node));
                    prop_assert_eq!(shard.find(hash(owner), &bytes), expected);
                }
                prop_assert_eq!(shard.entries().count(), expected.len());
            }
        }
    }
}
