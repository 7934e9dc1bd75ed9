//! The registries that hold the instances of an answer.

use crate::service::RegistrySet;
use crate::wire::{put_u16, u16_at};

/// Size of a set of registries, in bytes.
pub(super) const REGISTRY_SET_BYTES: usize = 2;

/// The sets of registries that hold the instances of an answer: one set per instance.
///
/// Decides whether the answer is stale. Equal sets are kept once; the order does not matter. Nearly
/// always, each instance is in one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HolderSets {
    /// The registries of the instances, if each instance is in one registry only.
    single: RegistrySet,
    /// Otherwise, the set of each instance, packed.
    packed: Vec<u8>,
}

/// View of [`HolderSets`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Holders<'a> {
    /// The registries of the instances, if each instance is in one registry only.
    pub(super) single: RegistrySet,
    /// Otherwise, the set of each instance, packed.
    pub(super) packed: &'a [u8],
}

impl HolderSets {
    /// Creates the sets of instances that are each in one of these registries only.
    pub(super) fn single(registries: RegistrySet) -> Self {
        Self { single: registries, packed: Vec::new() }
    }

    /// Returns the view.
    pub(super) fn view(&self) -> Holders<'_> {
        Holders { single: self.single, packed: &self.packed }
    }
}

impl FromIterator<RegistrySet> for HolderSets {
    fn from_iter<I: IntoIterator<Item = RegistrySet>>(sets: I) -> Self {
        let mut sets: Vec<u16> = sets.into_iter().map(RegistrySet::bits).collect();
        sets.sort_unstable();
        sets.dedup();
        if sets.iter().all(|bits| bits.is_power_of_two()) {
            let all = sets.into_iter().fold(0, |all, bits| all | bits);
            return Self::single(RegistrySet::from_bits(all));
        }
        let mut packed = Vec::with_capacity(sets.len() * REGISTRY_SET_BYTES);
        for bits in sets {
            put_u16(&mut packed, bits);
        }
        Self { single: RegistrySet::EMPTY, packed }
    }
}

impl<'a> Holders<'a> {
    /// The view without any set.
    pub(super) const NONE: Self = Self { single: RegistrySet::EMPTY, packed: &[] };

    /// Returns whether there is no instance.
    pub(super) fn is_empty(self) -> bool {
        self.single.is_empty() && self.packed.is_empty()
    }

    /// Returns whether every instance is in these registries only.
    pub(super) fn are_within(self, registries: RegistrySet) -> bool {
        self.single.is_subset_of(registries)
            && (self.packed.is_empty() || self.iter().all(|set| set.is_subset_of(registries)))
    }

    /// Returns each distinct set.
    pub(super) fn iter(self) -> impl Iterator<Item = RegistrySet> + 'a {
        let single = self.single.iter().map(|registry| [registry].into_iter().collect());
        let packed = self.packed.chunks_exact(REGISTRY_SET_BYTES);
        single.chain(packed.map(|set| RegistrySet::from_bits(u16_at(set, 0).unwrap_or(0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::RegistryId;

    fn sets(instances: &[&[usize]]) -> HolderSets {
        let set = |registries: &&[usize]| {
            registries.iter().filter_map(|index| RegistryId::new(*index)).collect()
        };
        instances.iter().map(set).collect()
    }

    fn bits(sets: &HolderSets) -> Vec<u16> {
        sets.view().iter().map(RegistrySet::bits).collect()
    }

    #[test]
    fn each_distinct_set_is_returned_once() {
        assert!(bits(&sets(&[])).is_empty());
        assert_eq!(bits(&sets(&[&[3], &[0], &[3]])), [1, 8]);
        assert_eq!(bits(&sets(&[&[0], &[0, 1], &[1, 0], &[2]])), [1, 3, 4]);
        assert!(sets(&[]).view().is_empty() && !sets(&[&[0, 15]]).view().is_empty());
    }

    #[test]
    fn sets_of_one_registry_need_no_memory() {
        assert_eq!(sets(&[&[3], &[0]]), HolderSets::single(RegistrySet::from_bits(9)));
    }
}
