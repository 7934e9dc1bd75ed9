//! A map in many small immutable parts: a publication copies those it touches and shares all others with the generation
//! before.

use std::sync::Arc;

/// Rows of a sharded map, and shards of a row.
const WIDTH: usize = 64;

/// 4,096 immutable shards in two levels, chosen by the high bits of a hash. What a shard is stands in its row: it is found
/// without a step in between. A clone copies 64 pointers.
#[derive(Clone, Debug)]
pub(super) struct Sharded<T> {
    rows: Box<[Arc<[T]>]>,
}

impl<T: Clone + Default> Default for Sharded<T> {
    fn default() -> Self {
        let row: Arc<[T]> = vec![T::default(); WIDTH].into();
        Self { rows: vec![row; WIDTH].into() }
    }
}

impl<T: Clone> Sharded<T> {
    /// The shard that `hash` falls into.
    pub(super) fn shard(&self, hash: u64) -> &T {
        let index = index(hash);
        &self.rows[index / WIDTH][index % WIDTH]
    }

    /// All shards.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.rows.iter().flat_map(|row| row.iter())
    }

    /// Applies changes, each with its hash, one new shard for all that fall into one. `merge` makes a shard from the old
    /// one and its changes, in no order.
    pub(super) fn update<C>(&mut self, mut changes: Vec<(u64, C)>, mut merge: impl FnMut(&T, &mut [(u64, C)]) -> T) {
        // In place: there may be a million.
        changes.sort_unstable_by_key(|(hash, _)| index(*hash));
        for chunk in changes.chunk_by_mut(|a, b| index(a.0) == index(b.0)) {
            let index = index(chunk[0].0);
            let shard = merge(self.shard(chunk[0].0), chunk);
            Arc::make_mut(&mut self.rows[index / WIDTH])[index % WIDTH] = shard;
        }
    }
}

/// The number of the shard that a hash falls into, 0-4095.
fn index(hash: u64) -> usize {
    usize::from((hash >> 52) as u16)
}

/// The part of a hash that tells what falls into one shard apart.
#[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
pub(super) fn tag(hash: u64) -> u32 {
    hash as u32
}
