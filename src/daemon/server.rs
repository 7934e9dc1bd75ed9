//! The running server, and its end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use super::ServerError;
use super::directories::Directories;
use super::hand_over::Successor;
use super::parts::{Parts, Stops};
use super::reload::Reloader;
use crate::admin::{ReloadRequest, SocketFile};
use crate::answer::Answerer;
use crate::config::{Config, ConfigSource};
use crate::server::BindError;

/// Maximum time from the stop until the DNS server and its tasks have ended.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time from the stop until it is known whether there is a successor.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(1);

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
    pub(super) dns: tokio::task::JoinHandle<Result<(), BindError>>,
    pub(super) publisher: oneshot::Receiver<()>,
    pub(super) tracker: TaskTracker,
    /// The task that writes the snapshots, the last time after the stop.
    pub(super) snapshots: Option<tokio::task::JoinHandle<()>>,
    /// The task of the port bridge, which ends once its connections have drained.
    pub(super) bridge_tasks: TaskTracker,
    /// The longest time that the connections of the port bridge may take.
    pub(super) bridge_drain: Duration,
    pub(super) stops: Stops,
    /// The running parts that a reload may change.
    pub(super) parts: Parts,
    /// The requests to reload the configuration.
    pub(super) reloads: mpsc::Receiver<ReloadRequest>,
    /// Receives the successor that has taken over.
    pub(super) successor: oneshot::Receiver<Successor>,
    /// Dropped before the directories: the sockets are removed while they are locked.
    pub(super) files: Vec<SocketFile>,
    pub(super) directories: Directories,
}

impl Server {
    /// Reads the configuration again at each signal and request, from the sources of `config`.
    ///
    /// Without this call, requests are refused.
    pub fn reload_from(&mut self, source: ConfigSource, config: Config, signals: Arc<Notify>) {
        let (_, none) = mpsc::channel(1);
        let requests = std::mem::replace(&mut self.reloads, none);
        let reloader = Reloader::new(source, config, self.parts.clone());
        self.tracker.spawn(reloader.run(requests, signals, self.stops.stop.clone()));
    }

    /// Waits until the server is told to stop or has a successor, and until its parts have ended.
    ///
    /// Returns the process ID of the successor, if there is one.
    ///
    /// # Errors
    /// If the server ended without being told to stop.
    pub async fn finish(mut self) -> Result<Option<u32>, ServerError> {
        // Requests that nobody serves are refused.
        self.reloads.close();
        // The successor waits until its end of the channel is closed, after all other parts.
        let mut successor = None;
        let ended = tokio::select! {
            // A successor that serves owns the files, even if this server is stopped meanwhile.
            biased;
            Ok(serving) = &mut self.successor => {
                successor = Some(serving);
                Ok(())
            }
            () = self.stops.stop.cancelled() => Ok(()),
            ended = &mut self.dns => {
                ended.map_err(ServerError::Panicked).and_then(|ended| Ok(ended?))
            }
            _ = &mut self.publisher, if !self.stops.stop.is_cancelled() => {
                let is_stopping = self.stops.stop.is_cancelled();
                if is_stopping { Ok(()) } else { Err(ServerError::PublisherEnded) }
            }
        };
        self.parts.notifier.stopping();
        self.stops.stop.cancel();
        // One that began to serve meanwhile; the wait is short, as the offer ends with the stop.
        if successor.is_none() && !self.successor.is_terminated() {
            let last = timeout(SUCCESSOR_TIMEOUT, &mut self.successor).await;
            successor = last.ok().and_then(Result::ok);
        }
        if successor.is_some() {
            for file in &mut self.files {
                file.hand_over();
            }
            self.directories.hand_over();
        }
        if successor.is_some() || ended.is_err() {
            // Another process receives, or nothing can be answered any more.
            self.stops.last.cancel();
        }
        let stopped = Instant::now();
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
        // Clients over UDP are answered until here.
        self.stops.last.cancel();
        let limit = Instant::now() + SHUTDOWN_TIMEOUT;
        if !self.dns.is_finished() {
            let _ = timeout_at(limit, &mut self.dns).await;
        }
        self.stops.end.cancel();
        self.tracker.close();
        if timeout_at(limit, self.tracker.wait()).await.is_err() {
            tracing::warn!(tasks = self.tracker.len(), "some tasks did not end in time");
        }
        ended.map(|()| successor.as_ref().map(|successor| successor.process))
    }
}
