//! A persistent map of many small immutable shards.
//!
//! A publication copies the shards that it changes and shares all others with the previous
//! generation.

use std::array::from_fn;
use std::sync::Arc;

/// Branches of a tree node.
const BRANCHES: usize = 16;

/// An inner node of the tree.
type TreeNode<T> = Arc<[T; BRANCHES]>;

/// A tree of 4,096 immutable shards, selected by the high bits of a hash.
///
/// The tree has three levels. Shards are stored inline in the lowest level, which saves readers one
/// indirection. A clone copies one pointer; a change of one shard copies three tree nodes. Copying
/// few pointers matters: each copy updates a reference count elsewhere in memory.
#[derive(Clone, Debug)]
pub(super) struct Sharded<T> {
    root: TreeNode<TreeNode<TreeNode<T>>>,
}

impl<T: Default> Default for Sharded<T> {
    fn default() -> Self {
        let row: TreeNode<T> = Arc::new(from_fn(|_| T::default()));
        let rows = Arc::new(from_fn(|_| Arc::clone(&row)));
        Self { root: Arc::new(from_fn(|_| Arc::clone(&rows))) }
    }
}

impl<T: Clone> Sharded<T> {
    /// Returns the shard of a hash.
    pub(super) fn shard(&self, hash: u64) -> &T {
        let [first, second, third] = branches(hash);
        &self.root[first][second][third]
    }

    /// Returns all shards, in the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.root.iter().flat_map(|rows| rows.iter()).flat_map(|row| row.iter())
    }

    /// Applies changes, each with its hash; every affected shard is replaced once.
    ///
    /// `merge` makes a shard from the old one and its changes, given in no particular order.
    pub(super) fn update<C>(
        &mut self,
        mut changes: Vec<(u64, C)>,
        mut merge: impl FnMut(&T, &mut [(u64, C)]) -> T,
    ) {
        // The sort is in place, because there may be a million changes.
        changes.sort_unstable_by_key(|(hash, _)| shard_number(*hash));
        for chunk in changes.chunk_by_mut(|a, b| shard_number(a.0) == shard_number(b.0)) {
            let hash = chunk[0].0;
            let shard = merge(self.shard(hash), chunk);
            let [first, second, third] = branches(hash);
            let rows = &mut Arc::make_mut(&mut self.root)[first];
            Arc::make_mut(&mut Arc::make_mut(rows)[second])[third] = shard;
        }
    }
}

/// Returns the number of the shard of a hash, 0-4095.
fn shard_number(hash: u64) -> usize {
    usize::from((hash >> 52) as u16)
}

/// Returns the branch to take at each level.
fn branches(hash: u64) -> [usize; 3] {
    let number = shard_number(hash);
    [number / BRANCHES / BRANCHES % BRANCHES, number / BRANCHES % BRANCHES, number % BRANCHES]
}

/// Returns the part of a hash that distinguishes entries within a shard.
#[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
pub(super) fn tag(hash: u64) -> u32 {
    hash as u32
}
