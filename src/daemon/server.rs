//! The whole server: what `serve` and `demo` run.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::directories::Directories;
use super::follow::{Followed, Following};
use super::listen_error::{ListenError, report_not_listening};
use super::{Log, Responder, ServerError, StartError};
use crate::admin::{About, Listener, Site, SocketFile};
use crate::answer::Answerer;
use crate::config::Config;
use crate::name::Name;
use crate::server::BindError;
use crate::service::Update;
use crate::upstream::{Forwarder, HostRequests, LookupFailed, follow_hosts};
use crate::{admin, server};

/// How long all that is running may take to end.
const END: Duration = Duration::from_secs(5);

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Where it answers.
    pub addresses: Vec<SocketAddr>,
    /// Where it answers over TLS.
    pub tls: Vec<SocketAddr>,
    /// Where it answers over QUIC.
    pub quic: Vec<SocketAddr>,
    /// Where HTTP is served besides the socket.
    pub admin: Option<SocketAddr>,
    /// Its runtime directory.
    pub runtime_dir: PathBuf,
    /// Its state directory, if it has one.
    pub state_dir: Option<PathBuf>,
    /// The way in for questions.
    pub answerer: Arc<Answerer>,
    dns: tokio::task::JoinHandle<Result<(), BindError>>,
    publisher: oneshot::Receiver<()>,
    tracker: TaskTracker,
    stop: CancellationToken,
    /// Removed at the end, and only then are the directories given back.
    _socket: SocketFile,
    _directories: Directories,
}

impl Server {
    /// Takes its directories, opens all sockets and begins to follow the registries. What happens goes to `log`.
    ///
    /// # Errors
    /// When one of these cannot be had.
    pub async fn start(config: &Config, log: &Log, stop: CancellationToken) -> Result<Self, StartError> {
        // Before anything is made in a place where no socket can be.
        admin::socket_path(&config.runtime_directory().path)?;
        let directories = Directories::take(config)?;
        let (socket, socket_file) = admin::listen(directories.runtime())?;
        let runtime_dir = directories.runtime().path().to_owned();
        let state_dir = directories.state_path().map(Path::to_owned);
        let bound = server::bind(&config.server()).map_err(ListenError::with_holder)?;
        let (addresses, counters) = (bound.addresses(), bound.counters());
        let (tls, quic) = (bound.tls_addresses(), bound.quic_addresses());
        let port = admin_port(config.admin_listen).await;
        let admin = port.as_ref().and_then(Listener::address);

        let tracker = TaskTracker::new();
        let upstream = config.upstream(&addresses);
        if let Some(settings) = &upstream {
            settings.check()?;
        }
        let forwarder = upstream.map(|settings| Arc::new(Forwarder::start(settings, &tracker, &stop)));
        let wanted = forwarder.is_some().then(Arc::<HostRequests>::default);
        let (following, Followed { answerer, states, inlet }) = Following::new(config, &addresses, wanted.clone());
        if let Some((forwarder, wanted)) = forwarder.clone().zip(wanted) {
            tracker.spawn(look_up_hosts(forwarder, wanted, inlet, stop.clone()));
        }
        let about = About {
            listen: addresses.clone(),
            tls: tls.clone(),
            quic: quic.clone(),
            admin,
            runtime_dir: runtime_dir.clone(),
            state_dir: state_dir.clone(),
            started: SystemTime::now(),
            began: Instant::now(),
        };
        let site = Arc::new(Site::new(about, Arc::clone(&answerer), states, counters, forwarder.clone(), log.lost_lines()));
        for listener in [Some(Listener::Socket(socket)), port].into_iter().flatten() {
            tracker.spawn(admin::serve(listener, Arc::clone(&site), stop.clone()));
        }
        let publisher = follow(following, site, tracker.clone(), stop.clone())?;
        let lane = forwarder.map(|forwarder| forwarder.lane());
        let dns = tokio::spawn(bound.serve(Responder::new(Arc::clone(&answerer), lane), report_not_listening, stop.clone()));
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
            stop,
            _socket: socket_file,
            _directories: directories,
        })
    }

    /// Waits until it is told to stop, then until all have ended.
    ///
    /// # Errors
    /// When it ended without being told.
    pub async fn finish(mut self) -> Result<(), ServerError> {
        let ended = tokio::select! {
            ended = &mut self.dns => ended.map_err(ServerError::Panicked).and_then(|ended| Ok(ended?)),
            _ = &mut self.publisher, if !self.stop.is_cancelled() => {
                if self.stop.is_cancelled() { Ok(()) } else { Err(ServerError::PublisherEnded) }
            }
        };
        self.stop.cancel();
        if !self.dns.is_finished() {
            let _ = tokio::time::timeout(END, &mut self.dns).await;
        }
        self.tracker.close();
        if tokio::time::timeout(END, self.tracker.wait()).await.is_err() {
            tracing::warn!(tasks = self.tracker.len(), "not everything ended in time; leaving it behind");
        }
        ended
    }
}

/// Looks up the addresses of the host names that are wanted, until `stop`.
async fn look_up_hosts(forwarder: Arc<Forwarder>, wanted: Arc<HostRequests>, inlet: mpsc::Sender<Update>, stop: CancellationToken) {
    let lookup = |host: Box<str>| {
        let forwarder = Arc::clone(&forwarder);
        async move { forwarder.addresses(&Name::from_text(&host).map_err(|_| LookupFailed)?).await }
    };
    follow_hosts(&wanted, lookup, inlet, stop).await;
}

/// Opens the port of the HTTP interface. One that cannot be had is no reason not to serve names.
async fn admin_port(address: Option<SocketAddr>) -> Option<Listener> {
    let address = address?;
    match tokio::net::TcpListener::bind(address).await {
        Ok(listener) => Some(Listener::Port(listener)),
        Err(error) => {
            tracing::warn!(%address, %error, "metrics and health are not served on this port; name another with --admin-listen, or off");
            None
        }
    }
}

/// Follows the registries and publishes in a thread of its own, so that a large change holds up no answer. The receiver
/// hears when it has ended.
fn follow(
    mut following: Following,
    site: Arc<Site>,
    tracker: TaskTracker,
    stop: CancellationToken,
) -> Result<oneshot::Receiver<()>, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
    let (ending, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("registries".to_owned()).spawn(move || {
        // Dropped at the end, and by a panic, too.
        let _ending: oneshot::Sender<()> = ending;
        runtime.block_on(async {
            following.begin(&tracker, &stop);
            loop {
                let next = tokio::select! {
                    () = stop.cancelled() => return,
                    next = following.next() => next,
                };
                let Some((published, took)) = next else { return };
                site.publications.observe(took);
                site.changes.tell(&published.changed);
                tracing::debug!(services = published.changed.len(), duration_us = took.as_micros(), "published");
            }
        });
        // A folder that hangs keeps nobody.
        runtime.shutdown_background();
    });
    thread.map_err(StartError::Thread)?;
    Ok(ended)
}
