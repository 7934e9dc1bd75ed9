//! Interning: equal values share one copy.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// A set of shared values.
///
/// [`Self::remove_unused`] drops the values that have no other holder. It also runs whenever the
/// set has doubled.
#[derive(Debug)]
pub(super) struct Interner<T> {
    hasher: RandomState,
    table: HashTable<Arc<T>>,
    /// Number of values at which [`Self::intern`] first removes unused values.
    cleanup_at: usize,
}

/// Minimum number of values for a clean-up.
const MIN_CLEANUP_SIZE: usize = 64;

impl<T> Default for Interner<T> {
    fn default() -> Self {
        let (hasher, table) = (RandomState::default(), HashTable::new());
        Self { hasher, table, cleanup_at: MIN_CLEANUP_SIZE }
    }
}

impl<T: Hash + Eq> Interner<T> {
    /// Returns the shared copy of `value`, which is added if new. Amortised O(1).
    pub(super) fn intern(&mut self, value: Arc<T>) -> Arc<T> {
        let hash = self.hasher.hash_one(&value);
        if let Some(known) = self.table.find(hash, |known| *known == value) {
            return Arc::clone(known);
        }
        if self.table.len() >= self.cleanup_at {
            self.remove_unused();
            self.cleanup_at = (self.table.len() * 2).max(MIN_CLEANUP_SIZE);
        }
        self.table.insert_unique(hash, Arc::clone(&value), |known| self.hasher.hash_one(known));
        value
    }

    /// Drops the values that have no other holder. O(n).
    pub(super) fn remove_unused(&mut self) {
        self.table.retain(|value| Arc::strong_count(value) > 1);
    }

    /// Returns the number of values, including unused ones.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_shared_and_unused_ones_are_dropped() {
        let mut set = Interner::default();
        let first = set.intern(Arc::new("a".to_owned()));
        let second = set.intern(Arc::new("a".to_owned()));
        assert!(Arc::ptr_eq(&first, &second));
        for n in 0..10_000 {
            set.intern(Arc::new(n.to_string()));
        }
        assert!(set.len() <= MIN_CLEANUP_SIZE + 1, "unused values pile up: {}", set.len());
        drop((first, second));
        set.remove_unused();
        assert_eq!(set.len(), 0);
    }
}
