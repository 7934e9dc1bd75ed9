//! The holds of a generation, and the EDE text of each registry that has one.
//!
//! The texts are composed once per publication, so that a response only copies one.

use std::sync::Arc;

use crate::catalog::Hold;
use crate::service::{RegistryId, RegistryName, WallClock};

/// The holds of a generation, with texts about them.
#[derive(Clone, Debug, Default)]
pub(super) struct PublishedHolds {
    /// The holds, in the order of the registries.
    holds: Arc<[Hold]>,
    /// The EDE text of each registry with a hold.
    texts: Arc<[(RegistryId, Box<str>)]>,
}

impl PublishedHolds {
    /// Composes the texts about holds, given the names of all registries.
    pub(super) fn new(holds: Vec<Hold>, names: &[RegistryName], clock: &WallClock) -> Self {
        let of_registry = holds.chunk_by(|a, b| a.registry == b.registry);
        let texts = of_registry.map(|holds| {
            let registry = holds[0].registry;
            (registry, text(names.get(registry.index()), holds, clock).into())
        });
        Self { texts: texts.collect(), holds: holds.into() }
    }

    /// Returns the holds.
    pub(super) fn holds(&self) -> &[Hold] {
        &self.holds
    }

    /// Returns the EDE text of a registry with a hold; empty for any other.
    pub(super) fn text(&self, registry: RegistryId) -> &str {
        let found = self.texts.iter().find(|(known, _)| *known == registry);
        found.map_or("", |(_, text)| text)
    }
}

/// Composes the EDE text of a registry: `etcd: 12 removals on hold until 14:03:05 UTC`.
///
/// The name of a registry is short ([`RegistryName::MAX_LENGTH`]), and so is the text.
fn text(name: Option<&RegistryName>, holds: &[Hold], clock: &WallClock) -> String {
    let name = name.map_or("registry", RegistryName::as_str);
    let keys: usize = holds.iter().map(|hold| hold.keys).sum();
    let removals = if keys == 1 { "removal" } else { "removals" };
    let until = holds.iter().map(|hold| hold.until).max();
    let until = until.map(|until| format!(" until {}", clock.time_of(until)));
    format!("{name}: {keys} {removals} on hold{}", until.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::catalog::HoldCause;

    #[test]
    fn the_text_of_a_registry_adds_up_its_holds_and_is_short() {
        let now = Instant::now();
        let [first, second, third] = [0, 1, 2].map(|index| RegistryId::new(index).unwrap());
        let hold = |registry, cause, keys, seconds| {
            let until = now + Duration::from_secs(seconds);
            Hold { registry, cause, keys, since: now, until, is_certain: true }
        };
        let names = ["etcd", "abcdefghijklmnop"].map(|name| name.parse().unwrap());
        let clock = WallClock::now();
        let holds = vec![
            hold(first, HoldCause::Restored, 10, 12),
            hold(first, HoldCause::Expiry, 2, 3),
            hold(second, HoldCause::Reconnect, 1, 9),
            hold(third, HoldCause::Reconnect, usize::MAX, 1),
        ];
        let published = PublishedHolds::new(holds, &names, &clock);
        let at = |seconds| clock.time_of(now + Duration::from_secs(seconds));
        let text = |registry| published.text(registry);
        assert_eq!(text(first), format!("etcd: 12 removals on hold until {}", at(12)));
        assert_eq!(text(second), format!("abcdefghijklmnop: 1 removal on hold until {}", at(9)));
        assert!(text(third).starts_with("registry: "), "a registry without a name");
        assert!([first, second, third].map(text).iter().all(|text| text.len() <= 80));
        assert_eq!(published.text(RegistryId::new(3).unwrap()), "");
    }
}
