//! The running bridge.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;

use ipnet::Ipv4Net;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::assignments::{Assignments, unix_seconds};
use super::bound::BoundListeners;
use super::counters::{Counters, ServiceCounts};
use super::in_use::listening_in;
use super::pool::AddressPool;
use super::pool_file::PoolFile;
use super::redirect::{Redirect, RedirectError};
use super::requests::BridgeRequests;
use super::settings::{InvalidPool, Settings, check_pool};
use super::shared::{BridgedView, Shared};
use super::sockets::listen;
use super::workers::{Destination, Workers, WorkersEnd};
use crate::descriptors::DescriptorShare;
use crate::service::Update;

/// A running bridge; cheap to clone.
#[derive(Clone, Debug)]
pub struct Bridge {
    shared: Arc<Shared>,
    requests: Arc<BridgeRequests>,
}

/// Reason why the bridge stays off.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The pool cannot be used.
    #[error(transparent)]
    Pool(#[from] InvalidPool),
    /// Connections to the pool cannot be redirected.
    #[error("{0}; or set bridge.bind = true, to bind the ports of each service instead")]
    Redirect(#[from] RedirectError),
    /// The listener or the threads cannot be started.
    #[error("cannot start the bridge: {0}")]
    Io(#[from] io::Error),
}

impl Bridge {
    /// Starts the bridge. It runs until `stop` is cancelled and its connections have drained.
    ///
    /// `own` are the addresses of this server's own listeners; `updates` receives the addresses of
    /// names. Without a state directory, names get the addresses of their hash.
    ///
    /// # Errors
    /// If the pool cannot be used, or connections to it cannot be accepted.
    pub async fn start(
        settings: Settings,
        state_dir: Option<&Path>,
        own: &[SocketAddr],
        updates: mpsc::Sender<Update>,
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, BridgeError> {
        let pool = settings.pool;
        check_pool(pool)?;
        if let Some(address) = own_in(pool, own).or_else(|| listening_in(pool)) {
            return Err(InvalidPool::InUse { pool, address }.into());
        }
        let shared = Arc::new(Shared::new(settings.within_descriptors()));
        let settings = &shared.settings;
        let (workers, ended) = Workers::start(&shared, &stop)?;
        let (bound, redirect) = if settings.bind {
            let limit = DescriptorShare::BridgeListeners.current() / settings.ports.len().max(1);
            (Some(BoundListeners::new(settings.ports.clone(), limit, stop.clone())), None)
        } else {
            (None, Some(redirect(pool, &workers, &stop).await?))
        };
        let file = state_dir.map(PoolFile::new);
        let addresses = AddressPool::new(pool, read(file.as_ref()), unix_seconds());
        let bridge = Self { shared: Arc::clone(&shared), requests: Arc::default() };
        let following = Following {
            assignments: Assignments::new(addresses, shared, bound),
            requests: Arc::clone(&bridge.requests),
            workers,
            file,
            updates,
        };
        tracker.spawn(following.run(stop, redirect, ended));
        Ok(bridge)
    }

    /// Returns the queue that receives changes of names.
    pub fn requests(&self) -> &Arc<BridgeRequests> {
        &self.requests
    }

    /// Returns the settings, with limits that the process can keep.
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Returns the counters over all services.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Returns the number of bridged services.
    pub fn names(&self) -> usize {
        self.shared.len()
    }

    /// Returns the counts of all services since the start, those that are gone included.
    pub fn total(&self) -> ServiceCounts {
        self.shared.with_counters(|table| table.sum())
    }

    /// Returns the counts by label: a bounded number of services, and the sum of all others.
    ///
    /// The label of the others is empty. A service keeps its label, so no count goes down.
    pub fn counts_by_label(&self) -> Vec<(Box<str>, ServiceCounts)> {
        self.shared.with_counters(|table| table.by_label())
    }

    /// Returns the bridged services, in no particular order.
    pub fn services(&self) -> Vec<BridgedView> {
        self.shared.views()
    }
}

/// The task that follows changes of names.
#[derive(Debug)]
struct Following {
    assignments: Assignments,
    requests: Arc<BridgeRequests>,
    workers: Workers,
    file: Option<PoolFile>,
    updates: mpsc::Sender<Update>,
}

impl Following {
    /// Follows changes until `stop`, waits for the connections, and removes the redirection.
    async fn run(mut self, stop: CancellationToken, redirect: Option<Redirect>, ended: WorkersEnd) {
        while let Some(changes) = stop.run_until_cancelled(self.requests.take()).await {
            let mut applied = self.assignments.apply(changes, &self.workers);
            if applied.is_file_outdated {
                self.write().await;
            }
            self.assignments.publish(&mut applied);
            let announcements = applied.announcements;
            if !announcements.is_empty()
                && self.updates.send(Update::Bridged(announcements)).await.is_err()
            {
                break;
            }
        }
        stop.cancelled().await;
        // Once the last NAT rule is gone, the kernel no longer translates open connections either.
        ended.wait().await;
        if let Some(redirect) = redirect
            && let Err(error) = redirect.remove().await
        {
            tracing::warn!(%error, "the bridge's table stays in the kernel until the next start");
        }
    }

    /// Writes the file, before any client learns an address in it.
    async fn write(&mut self) {
        let Some(file) = self.file.take() else { return };
        let saved = self.assignments.saved();
        let written = tokio::task::spawn_blocking(move || {
            let written = file.replace(saved);
            (file, written)
        });
        // A panic in the write loses the file's path: the bridge goes on without it.
        let Ok((file, written)) = written.await else { return };
        if let Err(error) = written {
            tracing::warn!(
                path = %file.path().display(),
                %error,
                "the addresses of bridged services may change at a restart"
            );
        }
        self.file = Some(file);
    }
}

/// Listens for redirected connections, and redirects those to the pool.
async fn redirect(
    pool: Ipv4Net,
    workers: &Workers,
    stop: &CancellationToken,
) -> Result<Redirect, BridgeError> {
    // No service has this address of the pool.
    let mut address = SocketAddrV4::new(pool.network(), 0);
    for _ in 0..workers.count() {
        let listener = listen(address, true)?;
        if let SocketAddr::V4(bound) = listener.local_addr()? {
            address = bound;
        }
        workers.accept(listener, Destination::Redirected, stop.child_token());
    }
    Ok(Redirect::install(pool, address).await?)
}

/// Returns the own address that is in the pool, if there is one.
fn own_in(pool: Ipv4Net, own: &[SocketAddr]) -> Option<SocketAddr> {
    own.iter()
        .copied()
        .find(|address| matches!(address.ip(), IpAddr::V4(address) if pool.contains(&address)))
}

/// Reads the addresses of an earlier run; sets an unusable file aside.
fn read(
    file: Option<&PoolFile>,
) -> impl IntoIterator<Item = (Box<str>, super::pool::Assignment)> + use<> {
    let Some(file) = file else { return std::collections::BTreeMap::new() };
    match file.read() {
        Ok(names) => names,
        Err(error) => {
            let aside = file.set_aside();
            tracing::warn!(
                path = %file.path().display(),
                %error,
                kept_as = ?aside.ok(),
                "cannot read the addresses of bridged services: some may change"
            );
            std::collections::BTreeMap::new()
        }
    }
}
