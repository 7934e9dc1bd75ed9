//! Hashes of keys and base names, and the short form of them that the mirror's indexes store.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use crate::service::RegistryId;

/// Hashes keys and base names, seeded so that registrants cannot provoke collisions.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyHasher(RandomState);

impl KeyHasher {
    /// Returns the hash of a key.
    pub(super) fn key(&self, registry: RegistryId, text: &str) -> u64 {
        self.0.hash_one((registry, text))
    }

    /// Returns the hash of a base name.
    pub(super) fn base(&self, name: &str) -> u64 {
        self.0.hash_one(name)
    }
}

/// Returns the part of a hash that an index stores to grow without rehashing.
pub(super) fn short_hash(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// Expands a short hash to the bits that a hash table uses.
pub(super) fn widen(short: u32) -> u64 {
    u64::from(short) << 32 | u64::from(short)
}
