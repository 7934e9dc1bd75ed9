//! Log lines about holds, which may be over before anybody looks at the status.

use std::sync::Arc;

use tracing::{info, warn};

use crate::catalog::Hold;
use crate::registry::RegistryState;
use crate::service::WallClock;

/// Logs the beginning and the end of each certain hold.
#[derive(Debug)]
pub(super) struct HoldLog {
    registries: Vec<Arc<RegistryState>>,
    /// The certain holds of the last publication, each with its largest number of keys.
    known: Vec<Hold>,
}

impl HoldLog {
    /// Creates the log of a server with these registries.
    pub(super) fn new(registries: Vec<Arc<RegistryState>>) -> Self {
        Self { registries, known: Vec::new() }
    }

    /// Takes the holds of a new publication.
    pub(super) fn update(&mut self, holds: &[Hold]) {
        let is_same = |a: &Hold, b: &Hold| (a.registry, a.cause) == (b.registry, b.cause);
        for hold in self.known.iter().filter(|known| !holds.iter().any(|hold| is_same(known, hold)))
        {
            if let Some(registry) = self.registries.get(hold.registry.index()) {
                info!(
                    %registry, keys = hold.keys, cause = hold.cause.code(),
                    "removals are no longer on hold"
                );
            }
        }
        let mut now: Vec<Hold> = holds.iter().filter(|hold| hold.is_certain).copied().collect();
        for hold in &mut now {
            if let Some(known) = self.known.iter().find(|known| is_same(known, hold)) {
                hold.keys = hold.keys.max(known.keys);
            } else if let Some(registry) = self.registries.get(hold.registry.index()) {
                let until = WallClock::now().time_of(hold.until);
                warn!(
                    %registry, keys = hold.keys, cause = hold.cause.code(), %until,
                    "removals are on hold: {}; `svcdns release {registry}` applies them at once",
                    hold.cause
                );
            }
        }
        self.known = now;
    }
}
