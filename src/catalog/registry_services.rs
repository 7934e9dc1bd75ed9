//! The number of services of each registry.

use super::model::{Service, ServiceChange};
use crate::service::{MAX_REGISTRIES, RegistryId, RegistrySet};

/// The services with keys in each registry, in the order of the configuration.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RegistryServices([usize; MAX_REGISTRIES]);

impl RegistryServices {
    /// Applies changes of services. O(their keys).
    pub(super) fn update(&mut self, changed: &[ServiceChange]) {
        for ServiceChange { before, after } in changed {
            let [before, after] = [before, after]
                .map(|service| service.as_deref().map_or(RegistrySet::EMPTY, holders));
            for registry in before.iter() {
                self.0[registry.index()] -= 1;
            }
            for registry in after.iter() {
                self.0[registry.index()] += 1;
            }
        }
    }

    /// Returns the number of services with keys in a registry.
    pub(super) fn get(&self, registry: RegistryId) -> usize {
        self.0[registry.index()]
    }
}

/// Returns the registries that have keys of a service.
fn holders(service: &Service) -> RegistrySet {
    service.keys().iter().map(|key| key.registry()).collect()
}
