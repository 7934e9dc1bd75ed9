//! The start of the server: sockets, then registries, then answers.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admin_port::{AdminPort, PreparedPort};
use super::directories::Directories;
use super::follow::{PipelineHandles, RegistryPipeline, UpdateChannel};
use super::listen_error::{ListenError, report_not_listening};
use super::parts::{Launch, Parts, Stops};
use super::publisher::start_publisher;
use super::resolv_conf::follow_line;
use super::snapshots::Snapshots;
use super::{Log, Responder, Server, StartError};
use crate::admin::{AdminContext, AdminListener, BridgeState, ServerInfo, SocketReport};
use crate::bridge::Bridge;
use crate::checks::CheckMonitor;
use crate::config::Config;
use crate::name::Name;
use crate::service::Update;
use crate::upstream::{Forwarder, HostRequests, LookupFailed, follow_hosts};
use crate::{admin, checks, descriptors, server};

impl Server {
    /// Locks the directories, opens all sockets and starts to follow the registries.
    ///
    /// # Errors
    /// If a directory or socket cannot be used, or a setting is invalid.
    pub async fn start(
        config: &Config,
        log: &Log,
        launch: Launch,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let Launch { notifier } = launch;
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
        let (tracker, stops) = (TaskTracker::new(), Stops::new(stop));
        let Stops { stop, end } = &stops;
        let port = AdminPort::new(&tracker, stop);
        let prepared_port = open_port(&port, config.admin_listen).await;
        let admin = prepared_port.address();

        let upstream = config.upstream(&addresses);
        if let Some(settings) = &upstream {
            settings.check()?;
        }
        let forwarder = Arc::new(Forwarder::start(upstream, &tracker, end));
        let requests = Arc::<HostRequests>::default();
        let (bridge_tasks, channel) = (TaskTracker::new(), UpdateChannel::default());
        let own: Vec<SocketAddr> =
            [&addresses, &tls, &quic].into_iter().flatten().copied().chain(admin).collect();
        let (updates, directory) = (channel.sender(), state_dir.as_deref());
        let bridge = start_bridge(config, directory, &own, &updates, &bridge_tasks, stop).await;
        let running = bridge.running();
        let bridge_requests = running.map(|bridge| Arc::clone(bridge.requests()));
        let bridge_drain = running.map_or(Duration::ZERO, |bridge| bridge.settings().drain);
        let (mut pipeline, PipelineHandles { answerer, states, updates, handle }) =
            RegistryPipeline::new(
                config,
                &addresses,
                channel,
                Some(requests.clone()),
                bridge_requests,
            );
        let checks = config.checks.as_ref().map(|checks| {
            let settings = checks.settings.clone().within_descriptors();
            let monitor = Arc::<CheckMonitor>::default();
            let (requests, updates) = (pipeline.check_requests(), updates.clone());
            let stop = stop.clone();
            tracker.spawn(checks::follow(settings, requests, Arc::clone(&monitor), updates, stop));
            monitor
        });
        let lookups = look_up_hosts(Arc::clone(&forwarder), requests, updates.clone(), end.clone());
        tracker.spawn(lookups);
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
        let snapshots =
            state_dir.as_deref().map(|directory| Snapshots::new(directory, config, &states.load()));
        let (mut context, reloads) = AdminContext::new(
            info,
            (Arc::clone(&answerer), updates),
            states,
            counters,
            Arc::clone(&forwarder),
            checks,
            log.lost_lines(),
        );
        context.bridge = bridge;
        let parts = Parts {
            pipeline: handle,
            forwarder,
            admin: Arc::new(context),
            port: Arc::new(port),
            log: log.filter().clone(),
            notifier,
        };
        let context = &parts.admin;
        let socket = AdminListener::Socket(socket);
        tracker.spawn(admin::serve(socket, Arc::clone(context), stop.clone()));
        parts.port.commit(prepared_port, context);
        tracker.spawn(follow_line(Arc::clone(context), stop.clone()));
        let (publisher, loaded) = start_publisher(
            pipeline,
            Arc::clone(context),
            snapshots,
            tracker.clone(),
            end.clone(),
        )?;
        // No query is answered before the snapshots are. An error means that the thread has ended,
        // which `finish` reports.
        let snapshots = loaded.await.ok().flatten();
        let snapshots = snapshots
            .map(|snapshots| tokio::spawn(snapshots.keep(Arc::clone(&answerer), stop.clone())));
        let open = addresses.len() + tls.len() + quic.len();
        let report = move || SocketReport { open, ..SocketReport::default() };
        parts.admin.sockets.watch(report);
        tracker.spawn(Arc::clone(&parts.admin).watch_health(stop.clone()));
        let lane = parts.forwarder.lane();
        let dns = tokio::spawn(bound.serve(
            Responder::new(Arc::clone(&answerer), lane),
            report_not_listening,
            stop.clone(),
        ));
        parts.notifier.ready();
        let status = Arc::clone(&parts.admin);
        let status = move || status_line(&status);
        tracker.spawn(parts.notifier.clone().follow(status, || true, stop.clone()));
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
            stops,
            parts,
            reloads,
            _socket: socket_file,
            _directories: directories,
        })
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

/// Opens the port of the HTTP interface; the server also runs without it.
async fn open_port(port: &AdminPort, address: Option<SocketAddr>) -> PreparedPort {
    port.prepare(address).await.unwrap_or_else(|(address, error)| {
        tracing::warn!(
            %address,
            %error,
            "cannot serve health and metrics on this port; choose another with \
             --admin-listen, or off"
        );
        PreparedPort::Unchanged
    })
}

/// Returns what the service manager shows of the server.
fn status_line(context: &AdminContext) -> String {
    if context.answerer.registry_status().synced {
        "ready".to_owned()
    } else {
        "not every registry was read yet".to_owned()
    }
}
