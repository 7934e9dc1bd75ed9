//! The whole server, as the commands `serve` and `demo` run it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::directories::Directories;
use super::follow::{PipelineHandles, RegistryPipeline};
use super::hold_log::HoldLog;
use super::listen_error::{ListenError, report_not_listening};
use super::resolv_conf::follow_line;
use super::snapshots::Snapshots;
use super::{Log, Responder, ServerError, StartError};
use crate::admin::{AdminContext, AdminListener, BridgeState, ServerInfo, SocketFile};
use crate::answer::Answerer;
use crate::bridge::Bridge;
use crate::checks::CheckMonitor;
use crate::config::Config;
use crate::name::Name;
use crate::server::BindError;
use crate::service::{MAX_REGISTRIES, RegistryId, Update};
use crate::upstream::{Forwarder, HostRequests, LookupFailed, follow_hosts};
use crate::{admin, checks, descriptors, server};

/// Maximum time from the stop until the DNS server and its tasks have ended.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time from the stop until the snapshots are written.
///
/// A million instances take less than a second, but a disk may be slow. Nobody answers queries in
/// this time, so it has a limit; the previous snapshot is only a little older.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(20);

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Addresses of the UDP and TCP listeners.
    pub addresses: Vec<SocketAddr>,
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
    /// Answers queries from the latest snapshot.
    pub answerer: Arc<Answerer>,
    dns: tokio::task::JoinHandle<Result<(), BindError>>,
    publisher: oneshot::Receiver<()>,
    tracker: TaskTracker,
    /// The task that writes the snapshots, the last time after the stop.
    snapshots: Option<tokio::task::JoinHandle<()>>,
    /// The task of the port bridge, which ends once its connections have drained.
    bridge_tasks: TaskTracker,
    /// The longest time that the connections of the port bridge may take.
    bridge_drain: Duration,
    stop: CancellationToken,
    /// Dropped before the directories: the socket is removed while they are locked.
    _socket: SocketFile,
    _directories: Directories,
}

impl Server {
    /// Locks the directories, opens all sockets and starts to follow the registries.
    ///
    /// # Errors
    /// If a directory or socket cannot be used, or a setting is invalid.
    pub async fn start(
        config: &Config,
        log: &Log,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        // The limit is raised before server, forwarder and bridge divide the descriptors.
        descriptors::raise_limit();
        // Check the length of the path before anything is created.
        admin::socket_path(&config.runtime_directory().path)?;
        let directories = Directories::take(config)?;
        let (socket, socket_file) = admin::listen(directories.runtime())?;
        let runtime_dir = directories.runtime().path().to_owned();
        let state_dir = directories.state_path().map(Path::to_owned);
        let bound = server::bind(&config.server()).map_err(ListenError::with_holder)?;
        let (addresses, counters) = (bound.addresses(), bound.counters());
        let (tls, quic) = (bound.tls_addresses(), bound.quic_addresses());
        let port = admin_port(config.admin_listen).await;
        let admin = port.as_ref().and_then(AdminListener::address);

        let tracker = TaskTracker::new();
        let upstream = config.upstream(&addresses);
        if let Some(settings) = &upstream {
            settings.check()?;
        }
        let forwarder =
            upstream.map(|settings| Arc::new(Forwarder::start(settings, &tracker, &stop)));
        let requests = forwarder.is_some().then(Arc::<HostRequests>::default);
        let (mut pipeline, PipelineHandles { answerer, states, updates }) =
            RegistryPipeline::new(config, &addresses, requests.clone());
        let bridge_tasks = TaskTracker::new();
        let bridge =
            start_bridge(config, state_dir.as_deref(), &addresses, &updates, &bridge_tasks, &stop)
                .await;
        let mut bridge_drain = Duration::ZERO;
        if let BridgeState::Running(bridge) = &bridge {
            pipeline.set_bridge(Arc::clone(bridge.requests()));
            bridge_drain = bridge.settings().drain;
        }
        let checks = config.checks.as_ref().map(|checks| {
            let settings = checks.settings.clone().within_descriptors();
            let monitor = Arc::<CheckMonitor>::default();
            let (requests, updates) = (pipeline.check_requests(), updates.clone());
            let stop = stop.clone();
            tracker.spawn(checks::follow(settings, requests, Arc::clone(&monitor), updates, stop));
            monitor
        });
        if let Some((forwarder, requests)) = forwarder.clone().zip(requests) {
            tracker.spawn(look_up_hosts(forwarder, requests, updates.clone(), stop.clone()));
        }
        let info = ServerInfo {
            listen: addresses.clone(),
            tls: tls.clone(),
            quic: quic.clone(),
            admin,
            runtime_dir: runtime_dir.clone(),
            state_dir: state_dir.clone(),
            started: SystemTime::now(),
            started_at: Instant::now(),
        };
        let snapshots = state_dir.as_deref().filter(|_| config.snapshot).map(|directory| {
            let states = states.iter().cloned().zip(&config.registries);
            let numbered = RegistryId::first(MAX_REGISTRIES).zip(states);
            let with_servers = numbered.filter_map(|(number, (state, registry))| {
                Some((number, state, registry.source.store_identity()?))
            });
            Snapshots::new(directory, config.zones.clone(), config.max_stale, with_servers)
        });
        let mut context = AdminContext::new(
            info,
            (Arc::clone(&answerer), updates),
            states,
            counters,
            forwarder.clone(),
            checks,
            log.lost_lines(),
        );
        context.bridge = bridge;
        let context = Arc::new(context);
        for listener in [Some(AdminListener::Socket(socket)), port].into_iter().flatten() {
            tracker.spawn(admin::serve(listener, Arc::clone(&context), stop.clone()));
        }
        tracker.spawn(follow_line(Arc::clone(&context), addresses.clone(), stop.clone()));
        let (publisher, loaded) =
            start_publisher(pipeline, context, snapshots, tracker.clone(), stop.clone())?;
        // No query is answered before the snapshots are. An error means that the thread has ended,
        // which `finish` reports.
        let snapshots = loaded.await.ok().flatten();
        let snapshots = snapshots
            .map(|snapshots| tokio::spawn(snapshots.keep(Arc::clone(&answerer), stop.clone())));
        let lane = forwarder.map(|forwarder| forwarder.lane());
        let dns = tokio::spawn(bound.serve(
            Responder::new(Arc::clone(&answerer), lane),
            report_not_listening,
            stop.clone(),
        ));
        Ok(Self {
            addresses,
            tls,
            quic,
            admin,
            runtime_dir,
            state_dir,
            answerer,
            dns,
            publisher,
            tracker,
            snapshots,
            bridge_drain,
            bridge_tasks,
            stop,
            _socket: socket_file,
            _directories: directories,
        })
    }

    /// Waits until the server is told to stop, and until all its parts have ended.
    ///
    /// # Errors
    /// If the server ended without being told to stop.
    pub async fn finish(mut self) -> Result<(), ServerError> {
        let ended = tokio::select! {
            ended = &mut self.dns => {
                ended.map_err(ServerError::Panicked).and_then(|ended| Ok(ended?))
            }
            _ = &mut self.publisher, if !self.stop.is_cancelled() => {
                if self.stop.is_cancelled() { Ok(()) } else { Err(ServerError::PublisherEnded) }
            }
        };
        self.stop.cancel();
        let stopped = tokio::time::Instant::now();
        if !self.dns.is_finished() {
            let _ = timeout_at(stopped + SHUTDOWN_TIMEOUT, &mut self.dns).await;
        }
        self.tracker.close();
        if timeout_at(stopped + SHUTDOWN_TIMEOUT, self.tracker.wait()).await.is_err() {
            tracing::warn!(tasks = self.tracker.len(), "some tasks did not end in time");
        }
        if let Some(snapshots) = self.snapshots
            && timeout_at(stopped + SNAPSHOT_TIMEOUT, snapshots).await.is_err()
        {
            tracing::warn!(
                timeout = ?SNAPSHOT_TIMEOUT,
                "the snapshots were not written in time, because the disk is slow: if svcdns \
                 starts without a registry, it has the previous snapshot, if any"
            );
        }
        self.bridge_tasks.close();
        let limit = self.bridge_drain + SHUTDOWN_TIMEOUT;
        if timeout_at(stopped + limit, self.bridge_tasks.wait()).await.is_err() {
            tracing::warn!("the port bridge did not end in time");
        }
        ended
    }
}

/// Looks up the requested host names until `stop` is cancelled.
async fn look_up_hosts(
    forwarder: Arc<Forwarder>,
    requests: Arc<HostRequests>,
    updates: mpsc::Sender<Update>,
    stop: CancellationToken,
) {
    let lookup = |host: Box<str>| {
        let forwarder = Arc::clone(&forwarder);
        async move { forwarder.addresses(&Name::from_text(&host).map_err(|_| LookupFailed)?).await }
    };
    follow_hosts(&requests, lookup, updates, stop).await;
}

/// Starts the port bridge, if it is configured; the server also runs without it.
async fn start_bridge(
    config: &Config,
    state_dir: Option<&Path>,
    own: &[SocketAddr],
    updates: &mpsc::Sender<Update>,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> BridgeState {
    let Some(settings) = config.bridge.clone() else { return BridgeState::Off };
    let (updates, stop) = (updates.clone(), stop.clone());
    match Bridge::start(settings, state_dir, own, updates, tracker, stop).await {
        Ok(bridge) => BridgeState::Running(bridge),
        Err(error) => {
            tracing::warn!(
                %error,
                "the port bridge stays off: clients get the addresses of the instances"
            );
            BridgeState::Failed(error.to_string())
        }
    }
}

/// Opens the TCP listener of the HTTP interface; the server also runs without it.
async fn admin_port(address: Option<SocketAddr>) -> Option<AdminListener> {
    let address = address?;
    match tokio::net::TcpListener::bind(address).await {
        Ok(listener) => Some(AdminListener::Port(listener)),
        Err(error) => {
            tracing::warn!(
                %address,
                %error,
                "cannot serve health and metrics on this port; choose another with \
                 --admin-listen, or off"
            );
            None
        }
    }
}

/// Starts the thread that follows the registries and publishes snapshots.
///
/// The thread is separate, so a large change delays no response. It first reads the snapshots, and
/// gives them back through the second receiver. The first receiver is closed when the thread ends.
fn start_publisher(
    mut pipeline: RegistryPipeline,
    context: Arc<AdminContext>,
    mut snapshots: Option<Snapshots>,
    tracker: TaskTracker,
    stop: CancellationToken,
) -> Result<(oneshot::Receiver<()>, oneshot::Receiver<Option<Snapshots>>), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::Thread)?;
    let mut hold_log = HoldLog::new(context.registries.clone());
    let (ending, ended) = oneshot::channel();
    let (loading, loaded) = oneshot::channel();
    let thread = std::thread::Builder::new().name("registries".to_owned()).spawn(move || {
        // Dropped at the end of the thread, even after a panic.
        let _ending: oneshot::Sender<()> = ending;
        runtime.block_on(async {
            let unsaved = snapshots.as_ref().map(Snapshots::unsaved);
            if let Some(snapshots) = &mut snapshots {
                snapshots.load(&mut pipeline);
            }
            let ready = || drop(loading.send(snapshots));
            context.changes.send(&pipeline.publish_restored(ready).await.changed);
            pipeline.start(&tracker, &stop);
            loop {
                let next = tokio::select! {
                    () = stop.cancelled() => return,
                    next = pipeline.next() => next,
                };
                let Some((published, took)) = next else { return };
                let snapshot = context.answerer.snapshot();
                if let Some(unsaved) = &unsaved {
                    unsaved.add(&published.changed, snapshot.registry_status());
                }
                tracing::debug!(
                    services = published.changed.len(),
                    duration_us = took.as_micros(),
                    "published a snapshot"
                );
                hold_log.update(snapshot.holds());
                context.note_publication(published, took);
            }
        });
        // Shut down without waiting for a blocking call to a hanging file system.
        runtime.shutdown_background();
    });
    thread.map_err(StartError::Thread)?;
    Ok((ended, loaded))
}
