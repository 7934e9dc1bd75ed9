//! A persistent index from registered addresses to services, ordered by address.
//!
//! Because of the order, one search tells whether a network has a registered address, and so
//! whether the reverse name of that network exists (RFC 8020).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::slice;
use std::sync::Arc;

/// Maximum entries of a chunk. A change copies every chunk that it affects.
const MAX_CHUNK_ENTRIES: usize = 1024;
/// A chunk with fewer entries is merged with its neighbour if both fit one chunk.
const MIN_CHUNK_ENTRIES: usize = MAX_CHUNK_ENTRIES / 4;

/// Pairs of an address and the hash of a base registered at it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct AddressIndex {
    v4: SortedChunks<(u32, u64)>,
    v6: SortedChunks<(u128, u64)>,
}

impl AddressIndex {
    /// Returns the hashes of the bases of the services registered at an address.
    pub(super) fn bases_at(&self, address: IpAddr) -> impl Iterator<Item = u64> {
        let (v4, v6) = match address {
            IpAddr::V4(address) => (Some(address.to_bits()), None),
            IpAddr::V6(address) => (None, Some(address.to_bits())),
        };
        let v4 = v4.into_iter().flat_map(|bits| {
            let entries = self.v4.from((bits, 0));
            entries.take_while(move |entry| entry.0 == bits).map(|entry| entry.1)
        });
        let v6 = v6.into_iter().flat_map(|bits| {
            let entries = self.v6.from((bits, 0));
            entries.take_while(move |entry| entry.0 == bits).map(|entry| entry.1)
        });
        v4.chain(v6)
    }

    /// Returns whether any address in a range is registered.
    ///
    /// Both ends of the range are of the same family.
    pub(super) fn has_any(&self, addresses: &RangeInclusive<IpAddr>) -> bool {
        match (*addresses.start(), *addresses.end()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => self
                .v4
                .from((first.to_bits(), 0))
                .next()
                .is_some_and(|entry| entry.0 <= last.to_bits()),
            (IpAddr::V6(first), IpAddr::V6(last)) => self
                .v6
                .from((first.to_bits(), 0))
                .next()
                .is_some_and(|entry| entry.0 <= last.to_bits()),
            _ => false,
        }
    }

    /// Adds and removes pairs of an address and a hash.
    pub(super) fn update(&mut self, changes: &AddressIndexChanges) {
        self.v4.update(&changes.v4);
        self.v6.update(&changes.v6);
    }
}

/// Sorted changes of an [`AddressIndex`].
#[derive(Debug)]
pub(super) struct AddressIndexChanges {
    v4: Vec<((u32, u64), bool)>,
    v6: Vec<((u128, u64), bool)>,
}

impl AddressIndexChanges {
    /// Sorts pairs of an address and a hash, to be added (`true`) or removed (`false`).
    pub(super) fn sorted(changes: impl Iterator<Item = (IpAddr, u64, bool)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (address, base, add) in changes {
            match address {
                IpAddr::V4(address) => v4.push(((Ipv4Addr::to_bits(address), base), add)),
                IpAddr::V6(address) => v6.push(((Ipv6Addr::to_bits(address), base), add)),
            }
        }
        v4.sort_unstable();
        v6.sort_unstable();
        Self { v4, v6 }
    }
}

/// A sorted set, as immutable chunks of neighbouring entries.
///
/// A clone copies one pointer. A change copies the list of chunks and the chunks it affects.
#[derive(Clone, Debug)]
struct SortedChunks<T> {
    /// Non-empty chunks in ascending order.
    chunks: Arc<[Arc<[T]>]>,
}

impl<T> Default for SortedChunks<T> {
    fn default() -> Self {
        Self { chunks: Arc::default() }
    }
}

impl<T: Copy + Ord> SortedChunks<T> {
    /// Iterates over the entries from `bound` onwards, in ascending order.
    fn from(&self, bound: T) -> impl Iterator<Item = T> {
        let chunk =
            self.chunks.partition_point(|chunk| chunk.last().is_none_or(|last| *last < bound));
        let chunks = self.chunks.get(chunk..).unwrap_or_default();
        let first = chunks.first().map_or(0, |chunk| chunk.partition_point(|at| *at < bound));
        chunks.iter().flat_map(|chunk| chunk.iter()).skip(first).copied()
    }

    /// Applies sorted changes: `true` adds the entry, `false` removes it.
    fn update(&mut self, changes: &[(T, bool)]) {
        if changes.is_empty() {
            return;
        }
        let mut next = ChunkList { chunks: Vec::with_capacity(self.chunks.len() + 1) };
        let mut rest = changes;
        for (at, chunk) in self.chunks.iter().enumerate() {
            // A chunk takes the changes up to the first entry of its successor.
            let end = self.chunks.get(at + 1).and_then(|chunk| chunk.first());
            let count =
                end.map_or(rest.len(), |end| rest.partition_point(|(entry, _)| entry < end));
            let (here, after) = rest.split_at(count);
            rest = after;
            if here.is_empty() {
                next.push(Arc::clone(chunk));
            } else {
                next.push_all(&merged(chunk, here));
            }
        }
        next.push_all(&merged(&[], rest));
        self.chunks = next.chunks.into();
    }
}

/// Returns the entries with the changes applied; both are sorted.
fn merged<T: Copy + Ord>(entries: &[T], changes: &[(T, bool)]) -> Vec<T> {
    let mut next = Vec::with_capacity(entries.len() + changes.len());
    // Whole runs are copied: a typical change concerns one entry of a long chunk.
    let mut rest = entries;
    for (entry, add) in changes {
        let (lower, from) = rest.split_at(rest.partition_point(|old| old < entry));
        next.extend_from_slice(lower);
        rest = from.strip_prefix(slice::from_ref(entry)).unwrap_or(from);
        // Two bases may have the same hash.
        if *add && next.last() != Some(entry) {
            next.push(*entry);
        }
    }
    next.extend_from_slice(rest);
    next
}

/// Builder of a list of chunks; they are added in ascending order.
struct ChunkList<T> {
    chunks: Vec<Arc<[T]>>,
}

impl<T: Copy> ChunkList<T> {
    /// Appends a chunk, or merges it with the last one if either is small.
    fn push(&mut self, chunk: Arc<[T]>) {
        if let Some(last) = self.chunks.last_mut()
            && last.len().min(chunk.len()) < MIN_CHUNK_ENTRIES
            && last.len() + chunk.len() <= MAX_CHUNK_ENTRIES
        {
            *last = last.iter().chain(chunk.iter()).copied().collect();
        } else {
            self.chunks.push(chunk);
        }
    }

    /// Appends entries as chunks of equal size.
    fn push_all(&mut self, entries: &[T]) {
        let count = entries.len().div_ceil(MAX_CHUNK_ENTRIES);
        if count > 0 {
            entries.chunks(entries.len().div_ceil(count)).for_each(|chunk| self.push(chunk.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(first: &str, last: &str) -> RangeInclusive<IpAddr> {
        first.parse().unwrap()..=last.parse().unwrap()
    }

    #[test]
    fn networks_with_a_registered_address_are_found() {
        let mut index = AddressIndex::default();
        let change = |address: &str, base, add| (address.parse().unwrap(), base, add);
        let update = |index: &mut AddressIndex, changes: &[(IpAddr, u64, bool)]| {
            index.update(&AddressIndexChanges::sorted(changes.iter().copied()));
        };
        update(
            &mut index,
            &[change("10.9.0.5", 2, true), change("fd00::5", 1, true), change("10.9.0.5", 1, true)],
        );
        let bases = |index: &AddressIndex, address: &str| -> Vec<_> {
            index.bases_at(address.parse().unwrap()).collect()
        };
        assert_eq!(bases(&index, "10.9.0.5"), [1, 2]);
        assert_eq!(bases(&index, "10.9.0.4"), [0; 0]);
        assert_eq!(bases(&index, "::10.9.0.5"), [0; 0]);
        assert_eq!(bases(&index, "fd00::5"), [1]);
        for (first, last, found) in [
            ("10.9.0.0", "10.9.0.255", true),
            ("10.9.0.5", "10.9.0.5", true),
            ("10.9.0.6", "10.9.0.255", false),
            ("10.9.0.0", "10.9.0.4", false),
            ("0.0.0.0", "255.255.255.255", true),
            ("fd00::", "fd00::f", true),
            ("fd00::6", "fd00::f", false),
            ("::", "fcff:ffff::", false),
        ] {
            assert_eq!(index.has_any(&range(first, last)), found, "{first}-{last}");
        }
        update(&mut index, &[change("10.9.0.5", 1, false)]);
        assert_eq!(bases(&index, "10.9.0.5"), [2]);
        update(&mut index, &[change("10.9.0.5", 2, false)]);
        assert!(!index.has_any(&range("0.0.0.0", "255.255.255.255")));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn sorted_chunks_behave_like_a_btree_set(steps in prop::collection::vec(
            (any::<bool>(), 0_u32..6_000, 0_u32..4_000, 1_usize..7), 1..24,
        )) {
            let (mut expected, mut chunks) = (BTreeSet::new(), SortedChunks::default());
            for (add, first, count, step) in steps {
                let entries: Vec<u32> = (first..first + count).step_by(step).collect();
                for entry in &entries {
                    if add { expected.insert(*entry) } else { expected.remove(entry) };
                }
                let changes: Vec<_> = entries.iter().map(|entry| (*entry, add)).collect();
                chunks.update(&changes);
                prop_assert!(chunks.from(0).eq(expected.iter().copied()));
                for bound in [first, first + count / 2, first + count] {
                    let found = chunks.from(bound).next();
                    prop_assert_eq!(found, expected.range(bound..).next().copied());
                }
                let sizes: Vec<_> = chunks.chunks.iter().map(|chunk| chunk.len()).collect();
                prop_assert!(sizes.iter().all(|size| (1..=MAX_CHUNK_ENTRIES).contains(size)));
                prop_assert!(sizes.windows(2).all(|pair| {
                    pair.iter().min() >= Some(&MIN_CHUNK_ENTRIES)
                        || pair.iter().sum::<usize>() > MAX_CHUNK_ENTRIES
                }), "{:?}", sizes);
            }
        }
    }
}
