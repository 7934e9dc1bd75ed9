//! The start of the server: sockets, then registries, then answers.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admin_port::{AdminPort, PreparedPort};
use super::directories::Directories;
use super::follow::{PipelineHandles, RegistryPipeline, UpdateChannel};
use super::hand_over::HandoverOffer;
use super::health::socket_report;
use super::listen_error::{ListenError, report_not_listening};
use super::parts::{Launch, Parts, Stops};
use super::publisher::start_publisher;
use super::resolv_conf::follow_line;
use super::snapshots::Snapshots;
use super::take_over::{PassedFiles, Predecessor, TakeOverError};
use super::{Log, Notifier, Responder, Server, StartError};
use crate::admin::{AdminContext, AdminListener, BridgeState, ServerInfo, SocketError, SocketFile};
use crate::answer::Answerer;
use crate::bridge::Bridge;
use crate::checks::CheckMonitor;
use crate::config::Config;
use crate::directory::OwnDirectory;
use crate::inherited::SocketName;
use crate::name::Name;
use crate::server::StopOrder;
use crate::service::Update;
use crate::upstream::{Forwarder, HostRequests, LookupFailed, follow_hosts};
use crate::{admin, checks, descriptors, server};

/// Interval at which the start looks whether all sockets are read.
const SERVED_INTERVAL: Duration = Duration::from_millis(2);

/// Longest time in which queries wait in sockets that systemd holds, until the registries are read.
///
/// It is shorter than the patience of most clients, which ask again after 5 s.
const HELD_TIMEOUT: Duration = Duration::from_secs(3);

/// Interval of looks at the registries.
const REGISTRIES_INTERVAL: Duration = Duration::from_millis(5);

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
        let Launch { notifier, mut inherited, predecessor } = launch;
        let is_held = !inherited.sockets.is_empty();
        let (mut succession, passed) =
            predecessor.map(|Predecessor { succession, files }| (succession, files)).unzip();
        // The limit is raised before server, forwarder and bridge divide the descriptors.
        descriptors::raise_limit();
        // Check the length of the path before anything is created.
        admin::socket_path(&config.runtime_directory().path)?;
        let (passed, mut locks) = passed
            .map(|PassedFiles { commands, take_over, locks }| ((commands, take_over), locks))
            .unzip();
        let mut directories = Directories::take(config, locks.get_or_insert_default())?;
        let RuntimeSockets { commands, successors, mut files } =
            RuntimeSockets::open(directories.runtime(), passed)?;
        let runtime_dir = directories.runtime().path().to_owned();
        let state_dir = directories.state_path().map(Path::to_owned);
        let passed_port = inherited.take(SocketName::Admin);
        let bound = server::bind_or_inherit(&config.server(), inherited)
            .map_err(ListenError::with_holder)?;
        let (addresses, counters) = (bound.addresses(), bound.counters());
        let (tls, quic) = (bound.tls_addresses(), bound.quic_addresses());
        let (open_sockets, quic_is_free) = (bound.open_sockets(), bound.quic_is_free());
        let (tracker, stops) = (TaskTracker::new(), Stops::new(stop));
        let Stops { stop, end, .. } = &stops;
        let port = AdminPort::new(&tracker, stop, passed_port, open_sockets.clone());
        let prepared_port = open_port(&port, config.admin_listen).await;
        let admin = prepared_port.address();
        if succession.is_none() {
            port.warn_of_unserved(config.admin_listen);
        }

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
            dns: bound.handle(),
            pipeline: handle,
            forwarder,
            admin: Arc::new(context),
            port: Arc::new(port),
            log: log.filter().clone(),
            notifier,
        };
        let context = &parts.admin;
        let (successor_sender, successor) = oneshot::channel();
        let offer = successors.map(|listener| {
            Ok::<_, io::Error>(HandoverOffer {
                listener,
                sockets: open_sockets,
                commands: commands.as_fd().try_clone_to_owned()?,
                locks: directories.shared_locks()?,
                refusal: reason_against_successors(config),
                answerer: Arc::clone(&answerer),
            })
        });
        let offer = offer.transpose().map_err(StartError::Offer)?;
        let socket = AdminListener::Socket(commands);
        let serve_commands = || {
            tracker.spawn(admin::serve(socket, Arc::clone(context), stop.clone()));
            parts.port.commit(prepared_port, context);
        };
        // Until a server that takes over knows all, only the running one gives information.
        let serve_commands = if succession.is_some() {
            Some(serve_commands)
        } else {
            serve_commands();
            None
        };
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
        if let Some(succession) = &mut succession {
            succession.wait_for_registries(context, stop).await?;
        } else if is_held {
            wait_for_registries(&answerer, stop).await;
        }
        let (handle, heartbeats) = (bound.handle(), bound.heartbeats());
        let watched = handle.clone();
        parts.admin.sockets.watch(move || socket_report(watched.listening(), &heartbeats));
        let lane = parts.forwarder.lane();
        let dns = tokio::spawn(bound.serve(
            Responder::new(Arc::clone(&answerer), lane),
            report_not_listening,
            StopOrder { stop: stop.clone(), last: stops.last.clone() },
        ));
        while !handle.is_serving() && !dns.is_finished() {
            sleep(SERVED_INTERVAL).await;
        }
        if let Some(serve_commands) = serve_commands {
            serve_commands();
        }
        // If serving has failed, the running server goes on, and `finish` reports the failure.
        if let Some(succession) = succession.as_mut().filter(|_| !dns.is_finished()) {
            // The stop may have come since the registries were read.
            if stop.is_cancelled() {
                return Err(TakeOverError::Stopped.into());
            }
            succession.serving().await?;
            parts.port.close_passed();
            directories.take_over();
            files.iter_mut().for_each(SocketFile::take_over);
        }
        if let Some(offer) = offer {
            tracker.spawn(offer.run(successor_sender, stop.clone()));
        }
        // What two servers cannot do at the same time: read the sockets for QUIC, and write
        // snapshots.
        let alone = quic_is_free.clone();
        match succession {
            Some(succession) => drop(tracker.spawn(succession.end(alone))),
            None => alone.cancel(),
        }
        let snapshots = snapshots.map(|snapshots| {
            let (answerer, stop) = (Arc::clone(&answerer), stop.clone());
            tokio::spawn(async move {
                quic_is_free.cancelled().await;
                snapshots.keep(answerer, stop).await;
            })
        });
        parts.notifier.ready();
        let health = Arc::clone(&parts.admin);
        tracker.spawn(parts.notifier.clone().follow(move || health.health(), stop.clone()));
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
            bridge_tasks,
            bridge_drain,
            stops,
            parts,
            reloads,
            successor,
            files,
            directories,
        })
    }
}

/// Waits until the data of every registry is known, at most for [`HELD_TIMEOUT`].
async fn wait_for_registries(answerer: &Answerer, stop: &CancellationToken) {
    let known = async {
        while !answerer.registry_status().is_complete() {
            sleep(REGISTRIES_INTERVAL).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        _ = timeout(HELD_TIMEOUT, known) => {}
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

/// Returns why no successor can take over from a server with this configuration.
fn reason_against_successors(config: &Config) -> Option<&'static str> {
    if Notifier::has_service_manager() {
        return Some(
            "the running server was started by a service manager, which would start another one: \
             use `systemctl restart svcdns`",
        );
    }
    config.bridge.as_ref().map(|_| {
        "the running server has a port bridge, whose connections cannot move: stop it, then \
         start this one without --take-over"
    })
}

/// The sockets in the runtime directory.
struct RuntimeSockets {
    /// For commands.
    commands: UnixListener,
    /// For successors, unless it cannot be opened.
    successors: Option<UnixListener>,
    files: Vec<SocketFile>,
}

impl RuntimeSockets {
    /// Opens the sockets, or takes those that the running server has passed.
    ///
    /// # Errors
    /// If the socket for commands cannot be opened.
    fn open(
        directory: &OwnDirectory,
        passed: Option<(UnixListener, UnixListener)>,
    ) -> Result<Self, SocketError> {
        if let Some((commands, successors)) = passed {
            let path = directory.path();
            let paths = [admin::socket_path(path)?, admin::take_over_path(path)?];
            let files = paths.map(SocketFile::shared).into();
            return Ok(Self { commands, successors: Some(successors), files });
        }
        let (commands, file) = admin::listen(directory)?;
        let mut files = vec![file];
        let successors = match admin::listen_for_successor(directory) {
            Ok((listener, file)) => {
                files.push(file);
                Some(listener)
            }
            Err(error) => {
                tracing::warn!(%error, "no successor can take over (`svcdns serve --take-over`)");
                None
            }
        };
        Ok(Self { commands, successors, files })
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
