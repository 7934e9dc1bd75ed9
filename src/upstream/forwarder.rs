//! The way from a question to what the upstreams say: cache first, then an exchange that equal questions share.

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Settings;
use crate::wire::{Query, Transport};

/// Answers questions about other names. One for the whole server.
#[derive(Debug)]
pub struct Forwarder {
    settings: Settings,
}

/// The way of one thread to the upstreams: its sockets are its own, the rest is the forwarder's.
#[derive(Debug)]
pub struct Lane {
    forwarder: Arc<Forwarder>,
}

impl Forwarder {
    /// Begins to forward, until `stop`.
    pub fn start(settings: Settings, tracker: &TaskTracker, stop: CancellationToken) -> Arc<Self> {
        let _ = (tracker, stop);
        Arc::new(Self { settings })
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
        let _ = (query, transport, now, out);
        false
    }

    /// Answers `request` in its own time, within 4 s. None: stay silent.
    pub async fn resolve(&self, request: Vec<u8>, transport: Transport) -> Option<Vec<u8>> {
        let _ = (request, transport);
        None
    }
}
