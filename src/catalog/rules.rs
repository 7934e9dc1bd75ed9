//! Rules for which of the known instances of a name are served.

use crate::service::RegistrySet;

/// Combination of the registries' instances of one name.
///
/// A name here is a base in a deployment and namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Merge {
    /// The instances of all registries are served.
    #[default]
    Union,
    /// Only the instances of the first registry with a usable endpoint of the name are served.
    First,
}

/// The layer of registrations that precede those of every registry.
pub(super) const OVERRIDE_LAYER: u8 = 0;

impl Merge {
    /// Returns the layer of each registry, given in the order of the configuration.
    ///
    /// Of the registries that hold a name, those of the lowest layer are served. A registry without
    /// a usable endpoint holds a name only if no other has one. The argument says for each registry
    /// whether it is a fallback, which every other registry precedes.
    pub fn layers(self, fallbacks: impl IntoIterator<Item = bool>) -> Vec<u8> {
        let layer = |(index, fallback): (u8, bool)| match self {
            Self::Union => OVERRIDE_LAYER + 1 + u8::from(fallback),
            Self::First if fallback => u8::MAX,
            Self::First => index,
        };
        (OVERRIDE_LAYER + 1..u8::MAX).zip(fallbacks).map(layer).collect()
    }
}

/// Treatment of endpoints at 172.17.0.1, which GoFrame registers on Docker hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Docker0 {
    /// Exclude them if the service has the same port at another address.
    #[default]
    Drop,
    /// Serve them like any other endpoint.
    Keep,
}

/// The rules for building services from keys.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServiceRules {
    /// Treatment of endpoints at Docker's default bridge address.
    pub docker0: Docker0,
    /// The registries that have never completed a list.
    ///
    /// They hide no key of another registry: most of their instances may still be unread.
    pub unsynced: RegistrySet,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_registry_precedes_a_fallback() {
        let kinds = [false, true, false];
        assert_eq!(Merge::Union.layers(kinds), [1, 2, 1]);
        assert_eq!(Merge::First.layers(kinds), [1, u8::MAX, 3]);
    }
}
