//! The running parts of a server that a reload may change, and the order of their end.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::admin_port::AdminPort;
use super::log::LogFilter;
use super::{Notifier, PipelineHandle, Predecessor};
use crate::admin::AdminContext;
use crate::inherited::InheritedSockets;
use crate::server::ServerHandle;
use crate::upstream::Forwarder;

/// What the process that started this one gave it.
#[derive(Debug, Default)]
pub struct Launch {
    /// Tells the service manager about the server.
    pub notifier: Notifier,
    /// Sockets that the service manager or the running server passed.
    pub inherited: InheritedSockets,
    /// The running server, if this one takes over from it.
    pub predecessor: Option<Predecessor>,
}

/// The steps of a stop, in their order.
#[derive(Clone, Debug)]
pub(super) struct Stops {
    /// Ends the acceptance of new work.
    pub(super) stop: CancellationToken,
    /// Ends receiving over UDP.
    pub(super) last: CancellationToken,
    /// Ends what answers still need: the publisher and the forwarder.
    pub(super) end: CancellationToken,
}

impl Stops {
    /// Begins with `stop`; the others are taken by [`Server::finish`](super::Server::finish).
    pub(super) fn new(stop: CancellationToken) -> Self {
        Self { stop, last: CancellationToken::new(), end: CancellationToken::new() }
    }
}

/// The running parts that a reload may change.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    /// The registries and their services.
    pub(super) pipeline: PipelineHandle,
    /// The listeners, access rules and limits of DNS.
    pub(super) dns: ServerHandle,
    /// The forwarder, which may be off.
    pub(super) forwarder: Arc<Forwarder>,
    /// What the HTTP interface shows.
    pub(super) admin: Arc<AdminContext>,
    /// The port of the HTTP interface.
    pub(super) port: Arc<AdminPort>,
    /// The filter of the log.
    pub(super) log: LogFilter,
    /// Tells the service manager about the server.
    pub(super) notifier: Notifier,
}
