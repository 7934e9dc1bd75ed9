//! The running parts of a server that a reload may change, and the order of their end.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Notifier;
use crate::admin::AdminContext;
use crate::upstream::Forwarder;

/// What the process that started this one gave it.
#[derive(Debug, Default)]
pub struct Launch {
    /// Tells the service manager about the server.
    pub notifier: Notifier,
}

/// The two steps of a stop.
#[derive(Clone, Debug)]
pub(super) struct Stops {
    /// Ends the acceptance of new work.
    pub(super) stop: CancellationToken,
    /// Ends what answers still need: the publisher and the forwarder.
    pub(super) end: CancellationToken,
}

impl Stops {
    /// Makes both steps follow `stop`.
    pub(super) fn new(stop: CancellationToken) -> Self {
        Self { end: stop.child_token(), stop }
    }

    /// Takes both steps.
    pub(super) fn cancel(&self) {
        self.stop.cancel();
        self.end.cancel();
    }
}

/// The running parts that a reload may change.
#[derive(Debug)]
pub(super) struct Parts {
    /// The forwarder, unless forwarding is off.
    pub(super) forwarder: Option<Arc<Forwarder>>,
    /// What the HTTP interface shows.
    pub(super) admin: Arc<AdminContext>,
    /// Tells the service manager about the server.
    pub(super) notifier: Notifier,
}
