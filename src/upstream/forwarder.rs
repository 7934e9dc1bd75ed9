//! The way from a question to what the upstreams say: cache first, then an exchange that equal questions share.

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::follow::{self, InForce};
use super::routes::Route;
use super::{Settings, special};
use crate::name::Name;
use crate::wire::{Query, Transport};

/// Answers questions about other names. One for the whole server.
#[derive(Debug)]
pub struct Forwarder {
    settings: Settings,
    in_force: InForce,
}

/// The way of one thread to the upstreams: its sockets are its own, the rest is the forwarder's.
#[derive(Debug)]
pub struct Lane {
    forwarder: Arc<Forwarder>,
}

impl Forwarder {
    /// Begins to forward, until `stop`.
    pub fn start(settings: Settings, tracker: &TaskTracker, stop: CancellationToken) -> Arc<Self> {
        let in_force = follow::start(&settings, tracker, &stop);
        Arc::new(Self { settings, in_force })
    }

    /// Where a question for `name` goes, for people.
    pub fn describe(&self, name: &Name) -> String {
        self.in_force.routes.load().describe(name)
    }

    /// A way in for one thread.
    pub fn lane(self: &Arc<Self>) -> Lane {
        Lane { forwarder: Arc::clone(self) }
    }
}

impl Lane {
    /// Another one, for another thread.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.forwarder.lane()
    }

    /// Whether a message that is no plain question is to be passed on as it is: one with another opcode, where the settings
    /// say so.
    pub fn passes(&self, query: &Query<'_>) -> bool {
        let _ = (query, self.forwarder.settings.other_opcodes);
        false
    }

    /// Writes the answer into `out`, which is empty, where it takes no asking. Else `false`.
    pub fn respond(&self, query: &Query<'_>, transport: Transport, now: Instant, out: &mut Vec<u8>) -> bool {
        let _ = (transport, now);
        let Ok((name, _)) = Name::from_wire(query.name()) else { return false };
        match self.forwarder.in_force.route(&name) {
            Route::Here(answer) => answer.write(query, &name, out),
            Route::Nobody(error) => special::put_failure(query, error, out),
            Route::Ask(_) => return false,
        }
        true
    }

    /// Answers `request` in its own time, within 4 s. None: stay silent.
    pub async fn resolve(&self, request: Vec<u8>, transport: Transport) -> Option<Vec<u8>> {
        let _ = (request, transport);
        None
    }
}
