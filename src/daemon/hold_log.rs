//! Log lines about holds, which may be over before anybody looks at the status.

use std::sync::Arc;

use tracing::{info, warn};

use crate::catalog::Hold;
use crate::registry::{RegistryState, RegistryStates};
use crate::service::WallClock;

/// Logs the beginning and the end of each certain hold.
#[derive(Debug)]
pub(super) struct HoldLog {
    registries: RegistryStates,
    /// The certain holds of the last publication, each with its largest number of keys.
    known: Vec<KnownHold>,
}

/// A hold that has been logged.
#[derive(Debug)]
struct KnownHold {
    /// The registry, whose number a reload may change.
    registry: Arc<RegistryState>,
    hold: Hold,
}

impl KnownHold {
    fn is_of(&self, registry: &RegistryState, hold: &Hold) -> bool {
        self.registry.name == registry.name && self.hold.cause == hold.cause
    }
}

impl HoldLog {
    /// Creates the log of a server with these registries.
    pub(super) fn new(registries: RegistryStates) -> Self {
        Self { registries, known: Vec::new() }
    }

    /// Takes the holds of a new publication.
    pub(super) fn update(&mut self, holds: &[Hold]) {
        let states = self.registries.load();
        let named = |hold: &Hold| Some((states.get(hold.registry.index())?, *hold));
        let holds: Vec<(&Arc<RegistryState>, Hold)> = holds.iter().filter_map(named).collect();
        let (known, is_over): (Vec<_>, Vec<_>) = std::mem::take(&mut self.known)
            .into_iter()
            .partition(|known| holds.iter().any(|(registry, hold)| known.is_of(registry, hold)));
        for KnownHold { registry, hold } in is_over {
            info!(
                %registry, keys = hold.keys, cause = hold.cause.code(),
                "removals are no longer on hold"
            );
        }
        for (registry, mut hold) in holds.into_iter().filter(|(_, hold)| hold.is_certain) {
            if let Some(known) = known.iter().find(|known| known.is_of(registry, &hold)) {
                hold.keys = hold.keys.max(known.hold.keys);
            } else {
                let until = WallClock::now().time_of(hold.until);
                warn!(
                    %registry, keys = hold.keys, cause = hold.cause.code(), %until,
                    "removals are on hold: {}; `svcdns release {registry}` applies them at once",
                    hold.cause
                );
            }
            self.known.push(KnownHold { registry: Arc::clone(registry), hold });
        }
    }
}
