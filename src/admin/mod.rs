//! The HTTP interface: health, metrics, and the state of the server as JSON.
//!
//! The interface is served on the socket in the runtime directory, which the commands use, and on a
//! loopback port. It is not on the query path, and read-only, except that root and the server's own
//! user may end holds and reload the configuration through the socket.

mod bridge;
mod changes;
mod checks;
mod connections;
mod forwarding;
mod guard;
mod health;
mod http;
mod page;
mod release;
mod reload;
mod reloads;
mod rendering;
mod requester;
mod resolv_conf;
mod routes;
mod socket;
mod views;

pub use bridge::{BridgeState, BridgeView, BridgedNameView};
pub use changes::ChangeFeed;
pub use checks::{CheckFailureView, ChecksView};
pub use forwarding::{CacheView, ForwardingView, UpstreamListView, UpstreamView};
pub use health::{HealthReport, SocketReport, SocketWatch};
pub use http::{AdminListener, serve};
pub use release::ReleasedView;
pub use reload::{ConfigChangeView, ReloadRequest, ReloadView};
pub use reloads::ReloadCounters;
pub use resolv_conf::{ResolvConfState, ResolvConfView};
pub use socket::{
    SocketError, SocketFile, listen, listen_for_successor, socket_path, take_over_path,
};
pub use views::{
    AliasView, ConflictView, EndpointView, EventView, InstanceView, KeyView, RegistryView,
    RejectionCount, RejectionView, RejectionsView, ServerStatus, ServiceView,
};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tracing_appender::non_blocking::ErrorCounter;

use crate::answer::{Answerer, Published};
use crate::checks::CheckMonitor;
use crate::metrics::DurationHistogram;
use crate::registry::RegistryStates;
use crate::server::Counters;
use crate::service::Update;
use crate::upstream::Forwarder;
use release::Releases;
use reload::ReloadRequests;

/// Everything that the HTTP interface shows.
#[derive(Debug)]
pub struct AdminContext {
    /// The server's addresses, directories and start time.
    pub info: ArcSwap<ServerInfo>,
    /// The published services, and counters of responses.
    pub answerer: Arc<Answerer>,
    /// The states of the registries, in the order of the configuration.
    pub registries: RegistryStates,
    /// Counters of the sockets.
    pub server: Arc<Counters>,
    /// The forwarder, which may be off.
    pub forwarder: Arc<Forwarder>,
    /// The port bridge.
    pub bridge: BridgeState,
    /// The checks of endpoints, unless they are off.
    pub checks: Option<Arc<CheckMonitor>>,
    /// Durations of publications.
    pub publications: DurationHistogram,
    /// Counter of log lines lost because the log's reader was too slow.
    pub lost_log_lines: ErrorCounter,
    /// The stream of changes.
    pub changes: ChangeFeed,
    /// Whether the machine's resolv.conf names this server.
    pub resolv_conf: ResolvConfState,
    /// The state of the DNS sockets and their workers.
    pub sockets: SocketWatch,
    /// Outcomes of the reloads of the configuration.
    pub reloads: ReloadCounters,
    releases: Releases,
    reload_requests: ReloadRequests,
}

/// Addresses, directories and start time of a server.
#[derive(Clone, Debug)]
pub struct ServerInfo {
    /// Addresses of the UDP and TCP listeners.
    pub listen: Vec<SocketAddr>,
    /// Addresses of the TLS listeners.
    pub tls: Vec<SocketAddr>,
    /// Addresses of the QUIC listeners.
    pub quic: Vec<SocketAddr>,
    /// Address of the HTTP interface's TCP listener, if it has one.
    pub admin: Option<SocketAddr>,
    /// The runtime directory.
    pub runtime_dir: PathBuf,
    /// The state directory, if there is one.
    pub state_dir: Option<PathBuf>,
    /// Start time.
    pub started: SystemTime,
    /// Start time as an instant, for the uptime.
    pub started_at: Instant,
}

impl AdminContext {
    /// Creates the context of a server without a bridge, and the receiver of its reloads.
    ///
    /// The publisher fills `answerer` and receives `updates`.
    pub fn new(
        info: ServerInfo,
        (answerer, updates): (Arc<Answerer>, mpsc::Sender<Update>),
        registries: RegistryStates,
        server: Arc<Counters>,
        forwarder: Arc<Forwarder>,
        checks: Option<Arc<CheckMonitor>>,
        lost_log_lines: ErrorCounter,
    ) -> (Self, mpsc::Receiver<ReloadRequest>) {
        let (reload_requests, requests) = ReloadRequests::new();
        let context = Self {
            reloads: ReloadCounters::new(info.started),
            sockets: SocketWatch::default(),
            info: ArcSwap::from_pointee(info),
            answerer,
            releases: Releases::new(registries.clone(), updates),
            registries,
            server,
            forwarder,
            bridge: BridgeState::Off,
            checks,
            publications: DurationHistogram::new(),
            lost_log_lines,
            changes: ChangeFeed::default(),
            resolv_conf: ResolvConfState::default(),
            reload_requests,
        };
        (context, requests)
    }

    /// Takes note of a publication: its duration, and what it means for clients that wait.
    pub fn note_publication(&self, published: Published, took: Duration) {
        self.publications.observe(took);
        self.changes.send(&published.changed);
        self.releases.complete(published.released);
    }
}
