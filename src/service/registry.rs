//! Identifiers, names and sets of registries.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Maximum registries of one server: a [`RegistrySet`] has one bit for each.
pub const MAX_REGISTRIES: usize = 16;

/// The index of a registry in the configuration, below [`MAX_REGISTRIES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RegistryId(u8);

impl RegistryId {
    /// The first registry.
    pub const FIRST: Self = Self(0);

    /// Returns the ID for an index, or `None` from [`MAX_REGISTRIES`] on.
    pub fn new(index: usize) -> Option<Self> {
        u8::try_from(index).ok().filter(|_| index < MAX_REGISTRIES).map(Self)
    }

    /// Returns the IDs of the first `count` registries, at most [`MAX_REGISTRIES`].
    pub fn first(count: usize) -> impl Iterator<Item = Self> + use<> {
        (0..count).map_while(Self::new)
    }

    /// Returns the index in the configuration, from 0.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for RegistryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The configured name of a registry.
///
/// 1 to [`Self::MAX_LENGTH`] characters of `a-z` and `0-9`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RegistryName(Box<str>);

/// Error: a text is not a valid name of a registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot name a registry: use 1 to {max} characters of a-z and 0-9",
    max = RegistryName::MAX_LENGTH
)]
pub struct InvalidRegistryName(String);

impl RegistryName {
    /// Maximum length of a name, in characters.
    pub const MAX_LENGTH: usize = 16;

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegistryName {
    type Err = InvalidRegistryName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = (1..=Self::MAX_LENGTH).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if valid { Ok(Self(text.into())) } else { Err(InvalidRegistryName(text.to_owned())) }
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of registries, with one bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RegistrySet(u16);

impl RegistrySet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// Returns whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns whether the set contains a registry.
    pub fn contains(self, registry: RegistryId) -> bool {
        self.0 & 1 << registry.0 != 0
    }

    /// Returns whether the sets have a registry in common.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Returns the registries in the set, in the order of the configuration.
    pub fn iter(self) -> impl Iterator<Item = RegistryId> {
        RegistryId::first(MAX_REGISTRIES).filter(move |registry| self.contains(*registry))
    }

    /// Returns whether the set contains exactly one registry.
    pub fn is_single(self) -> bool {
        self.0.is_power_of_two()
    }

    /// Returns the first registry in the set, in the order of the configuration.
    pub fn first(self) -> Option<RegistryId> {
        self.iter().next()
    }

    /// Returns the registries that are in both sets.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns the registries that are in either set.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns whether every registry in this set is also in the other set.
    pub fn is_subset_of(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Adds a registry.
    pub fn insert(&mut self, registry: RegistryId) {
        self.0 |= 1 << registry.0;
    }

    /// Removes a registry.
    pub fn remove(&mut self, registry: RegistryId) {
        self.0 &= !(1 << registry.0);
    }

    /// Returns the set as bits; the lowest is [`RegistryId::FIRST`].
    pub fn bits(self) -> u16 {
        self.0
    }

    /// Creates a set from the result of [`Self::bits`].
    pub fn from_bits(bits: u16) -> Self {
        Self(bits)
    }
}

impl FromIterator<RegistryId> for RegistrySet {
    fn from_iter<I: IntoIterator<Item = RegistryId>>(registries: I) -> Self {
        let mut set = Self::EMPTY;
        registries.into_iter().for_each(|registry| set.insert(registry));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_registry_ids_is_limited_to_the_bits_of_a_set() {
        assert_eq!(RegistryId::new(0), Some(RegistryId::FIRST));
        assert_eq!(RegistryId::new(15).map(RegistryId::index), Some(15));
        assert_eq!((RegistryId::new(16), RegistryId::new(256)), (None, None));
        assert_eq!(RegistryId::first(3).map(RegistryId::index).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(RegistryId::first(300).count(), MAX_REGISTRIES);
    }

    #[test]
    fn registry_names_are_short_lower_case_and_alphanumeric() {
        for name in ["a", "etcd2", "0123456789abcdef"] {
            assert_eq!(
                name.parse::<RegistryName>().map(|name| name.to_string()),
                Ok(name.to_owned())
            );
        }
        for name in ["", "Main", "a-b", "a.b", "a b", "é", "0123456789abcdefg"] {
            let error = name.parse::<RegistryName>().unwrap_err().to_string();
            assert!(
                error.contains(&format!("{name:?}")) && error.contains("1 to 16 characters"),
                "{error}"
            );
        }
    }

    #[test]
    fn sets_contain_exactly_the_inserted_registries() {
        let some: RegistrySet = [1, 15].into_iter().filter_map(RegistryId::new).collect();
        let held: Vec<_> =
            RegistryId::first(MAX_REGISTRIES).filter(|registry| some.contains(*registry)).collect();
        assert_eq!(held.iter().map(|registry| registry.index()).collect::<Vec<_>>(), [1, 15]);
        assert_eq!(RegistrySet::from_bits(some.bits()), some);
        let other: RegistrySet = [RegistryId::FIRST].into_iter().collect();
        assert!(
            some.intersects(some)
                && !some.intersects(other)
                && !some.intersects(RegistrySet::EMPTY)
        );
        assert!(
            RegistrySet::EMPTY.is_subset_of(other)
                && some.is_subset_of(some)
                && !some.is_subset_of(other)
        );
        assert!(RegistrySet::EMPTY.is_empty() && !other.is_empty());
        assert_eq!(
            [some, other, RegistrySet::EMPTY].map(RegistrySet::is_single),
            [false, true, false]
        );
        assert!(some.is_subset_of(some.union(other)) && other.is_subset_of(some.union(other)));
    }
}
