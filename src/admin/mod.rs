//! HTTP for people and programs that look after the server: health, metrics, and what is known, as JSON.
//!
//! The same on the socket in the runtime directory, which the commands use, and on a loopback port. Reads only: nothing
//! here changes anything. Not on the way of a question.

mod changes;
mod forwarding;
mod http;
mod page;
mod routes;
mod socket;
mod views;
mod watching;

pub use changes::Changes;
pub use forwarding::{CacheView, ForwardingView, UpstreamListView, UpstreamView};
pub use http::{Listener, serve};
pub use socket::{SocketError, SocketFile, listen, socket_path};
pub use views::{
    ConflictView, EndpointView, EventView, InstanceView, KeyView, RegistryView, RejectionCount, RejectionView, RejectionsView, ServiceView,
    Status,
};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::sync::Semaphore;
use tracing_appender::non_blocking::ErrorCounter;

use crate::answer::Answerer;
use crate::metrics::DurationHistogram;
use crate::registry::State;
use crate::server::Counters;
use crate::upstream::Forwarder;

/// Most readers of live changes at a time.
const WATCHERS: usize = 32;

/// Everything that can be looked at.
#[derive(Debug)]
pub struct Site {
    /// The server's own circumstances.
    pub about: About,
    /// What is known and answered.
    pub answerer: Arc<Answerer>,
    /// The registries' own reports, in the order of the configuration.
    pub registries: Vec<Arc<State>>,
    /// What the sockets count.
    pub server: Arc<Counters>,
    /// How other names are resolved, where they are.
    pub forwarder: Option<Arc<Forwarder>>,
    /// How long publications took.
    pub publications: DurationHistogram,
    /// Lines of the log that nobody read fast enough.
    pub lost_log_lines: ErrorCounter,
    /// Live changes.
    pub changes: Changes,
    watchers: Arc<Semaphore>,
}

/// A server's circumstances.
#[derive(Clone, Debug)]
pub struct About {
    /// Where it answers.
    pub listen: Vec<SocketAddr>,
    /// Where it answers over TLS.
    pub tls: Vec<SocketAddr>,
    /// Where it answers over QUIC.
    pub quic: Vec<SocketAddr>,
    /// Where this interface is served besides the socket.
    pub admin: Option<SocketAddr>,
    /// Its runtime directory.
    pub runtime_dir: PathBuf,
    /// Its state directory, if it has one.
    pub state_dir: Option<PathBuf>,
    /// When it started.
    pub started: SystemTime,
    /// The same, for durations.
    pub began: Instant,
}

impl Site {
    /// Puts together what is to be looked at.
    pub fn new(
        about: About,
        answerer: Arc<Answerer>,
        registries: Vec<Arc<State>>,
        server: Arc<Counters>,
        forwarder: Option<Arc<Forwarder>>,
        lost_log_lines: ErrorCounter,
    ) -> Self {
        Self {
            about,
            answerer,
            registries,
            server,
            forwarder,
            publications: DurationHistogram::new(),
            lost_log_lines,
            changes: Changes::default(),
            watchers: Arc::new(Semaphore::new(WATCHERS)),
        }
    }
}
