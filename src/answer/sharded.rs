//! A map in many small immutable parts: a publication copies those it touches and shares all others with the generation
//! before.

use std::array::from_fn;
use std::sync::Arc;

/// Branches of a node.
const BRANCHES: usize = 16;

type TreeNode<T> = Arc<[T; BRANCHES]>;

/// 4,096 immutable shards in a tree of three levels, chosen by the high bits of a hash. What a shard is stands in its row: it is
/// found without a step in between. A clone copies one pointer, and a change of one shard three nodes: each pointer copied
/// is a count somewhere in memory.
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
    /// The shard that `hash` falls into.
    pub(super) fn shard(&self, hash: u64) -> &T {
        let [first, second, third] = branches(hash);
        &self.root[first][second][third]
    }

    /// All shards.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.root.iter().flat_map(|rows| rows.iter()).flat_map(|row| row.iter())
    }

    /// Applies changes, each with its hash, one new shard for all that fall into one. `merge` makes a shard from the old
    /// one and its changes, in no order.
    pub(super) fn update<C>(
        &mut self,
        mut changes: Vec<(u64, C)>,
        mut merge: impl FnMut(&T, &mut [(u64, C)]) -> T,
    ) {
        // In place: there may be a million.
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

/// The number of the shard that a hash falls into, 0-4095.
fn shard_number(hash: u64) -> usize {
    usize::from((hash >> 52) as u16)
}

/// The way to it: the branches to take.
fn branches(hash: u64) -> [usize; 3] {
    let number = shard_number(hash);
    [number / BRANCHES / BRANCHES % BRANCHES, number / BRANCHES % BRANCHES, number % BRANCHES]
}

/// The part of a hash that tells what falls into one shard apart.
#[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
pub(super) fn tag(hash: u64) -> u32 {
    hash as u32
}
