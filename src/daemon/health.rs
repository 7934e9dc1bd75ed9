//! What the daemon knows of the health of the DNS sockets.

use std::time::Duration;

use crate::admin::SocketReport;
use crate::server::{Heartbeats, ListenReport, SilentWorker};

/// Silence after which a worker counts as hanging; even an idle one moves every 250 ms.
const MAX_SILENCE: Duration = Duration::from_secs(10);

/// Reports on the listeners and the workers.
pub(super) fn socket_report(listening: ListenReport, heartbeats: &Heartbeats) -> SocketReport {
    let ListenReport { open, missing } = listening;
    let hanging = heartbeats.silent(MAX_SILENCE).iter().map(SilentWorker::to_string).collect();
    SocketReport { open, missing, hanging }
}
