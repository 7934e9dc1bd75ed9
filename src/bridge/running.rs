//! The running bridge.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use ipnet::Ipv4Net;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::assignments::Assignments;
use super::bound::BoundListeners;
use super::counters::{Counters, ServiceCounts};
use super::following::{Following, withdraw_all};
use super::in_use::{addresses_in_use, in_pool};
use super::nft::{Nft, NftError};
use super::pool::{AddressPool, Assignment, PoolClock};
use super::pool_file::PoolFile;
use super::redirect::{Redirect, RedirectError, Rules, remove_stale};
use super::redirect_watch::RedirectWatch;
use super::requests::BridgeRequests;
use super::reserved_port::ReservedPort;
use super::saving::Saving;
use super::settings::{InvalidPool, Settings, check_pool};
use super::shared::{BridgedPort, BridgedView, Shared};
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
    /// No port can be bound to which connections could be redirected.
    #[error(
        "cannot bind a port below 1024 at {address}: {error}; the capability CAP_NET_BIND_SERVICE \
         permits it"
    )]
    Port {
        /// The address.
        address: Ipv4Addr,
        /// The error of the system.
        error: io::Error,
    },
    /// The listener or the threads cannot be started.
    #[error("cannot start the bridge: {0}")]
    Io(#[from] io::Error),
}

impl From<NftError> for BridgeError {
    fn from(error: NftError) -> Self {
        Self::Redirect(error.into())
    }
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
        if let Some(address) = own.iter().find(|address| in_pool(pool, **address).is_some()) {
            return Err(InvalidPool::InUse { pool, address: *address }.into());
        }
        let nft = if settings.bind { None } else { Some(Nft::find()?) };
        if let Some(nft) = &nft {
            // The listener of a killed server must not count as in use.
            remove_stale(nft, pool).await?;
        }
        let file = state_dir.map(PoolFile::new);
        let earlier = read(file.as_ref());
        let mut left_out = left_out(pool);
        if nft.is_some() {
            // The rules come before any listener. Otherwise, another user who listens there could
            // take the address away from its name, and the clients that remember it.
            for assignment in earlier.values() {
                left_out.remove(&assignment.address);
            }
        }
        warn_of_left_out(pool, &left_out);
        let shared = Arc::new(Shared::new(settings.within_descriptors()));
        let settings = &shared.settings;
        let (workers, ended) = Workers::start(&shared, &stop)?;
        let (problem, redirect_problem) = watch::channel(None);
        let (bound, watch) = if let Some(nft) = nft {
            let rules = (pool, left_out.clone());
            (None, Some(redirect(nft, rules, (&shared, problem), &workers, &stop).await?))
        } else {
            let limit = DescriptorShare::BridgeListeners.current() / settings.ports.len().max(1);
            (Some(BoundListeners::new(settings.ports.clone(), limit, stop.clone())), None)
        };
        let clock = PoolClock::start();
        let addresses = AddressPool::new(pool, &left_out, earlier, clock.now());
        let bridge = Self { shared: Arc::clone(&shared), requests: Arc::default() };
        let following = Following {
            assignments: Assignments::new(
                addresses,
                clock,
                Arc::clone(&shared),
                bound,
                file.is_some(),
            ),
            requests: Arc::clone(&bridge.requests),
            workers,
            shared,
            saving: file.map(Saving::new),
            redirect_problem,
            updates,
        };
        tracker.spawn(supervise(following, watch, ended, stop));
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

    /// Returns the bridged services, by address.
    pub fn services(&self) -> Vec<BridgedView> {
        self.shared.views()
    }

    /// Returns where connections to an address lead, by port; empty if no service has it.
    pub fn ports(&self, address: Ipv4Addr) -> Vec<BridgedPort> {
        self.shared.ports(address)
    }

    /// Returns the endpoints in the pool, which the service with this address leaves out.
    pub fn loops(&self, address: Ipv4Addr) -> Vec<SocketAddr> {
        self.shared.loops(address)
    }

    /// Returns why no client gets an address at the moment, if so.
    pub fn problem(&self) -> Option<String> {
        self.shared.problem()
    }
}

/// Runs the parts of a bridge until its end.
async fn supervise(
    following: Following,
    mut watch: Option<RedirectWatch>,
    ended: WorkersEnd,
    stop: CancellationToken,
) {
    let (shared, updates) = (Arc::clone(&following.shared), following.updates.clone());
    let ended = Arc::new(ended);
    let task = {
        let (ended, stop) = (Arc::clone(&ended), stop.clone());
        tokio::spawn(async move { following.run(&ended, &stop).await })
    };
    let followed = async {
        if let Err(error) = task.await {
            tracing::error!(%error, "the bridge has failed: restart svcdns");
            withdraw_all(&shared, &updates).await;
        }
    };
    let watched = async {
        if let Some(watch) = &mut watch {
            watch.run(&stop).await;
        }
    };
    tokio::join!(followed, watched);
    stop.cancelled().await;
    ended.all().await;
    if let Some(watch) = watch {
        watch.remove().await;
    }
}

/// Listens for redirected connections, and redirects those to the pool.
async fn redirect(
    nft: Nft,
    (pool, left_out): (Ipv4Net, BTreeSet<Ipv4Addr>),
    (shared, problem): (&Arc<Shared>, watch::Sender<Option<String>>),
    workers: &Workers,
    stop: &CancellationToken,
) -> Result<RedirectWatch, BridgeError> {
    // No service has this address of the pool.
    let address = pool.network();
    let port = ReservedPort::take(address).map_err(|error| BridgeError::Port { address, error })?;
    for _ in 0..workers.count() {
        let listener = listen(port.address(), true)?;
        workers.accept(listener, Destination::Redirected, stop.child_token());
    }
    let rules = Rules { pool, listener: port.address(), left_out };
    let redirect = Redirect::install(nft, rules).await?;
    let shared = Arc::clone(shared);
    let mut watch = RedirectWatch { redirect, port, shared, problem, unclear: 0 };
    watch.check(stop).await;
    Ok(watch)
}

/// Returns the addresses of the pool that other programs use.
///
/// Without the first and the last one, which are the bridge's own.
fn left_out(pool: Ipv4Net) -> BTreeSet<Ipv4Addr> {
    let mut addresses = addresses_in_use(pool).unwrap_or_else(|error| {
        tracing::warn!(
            %error,
            %pool,
            "cannot find out whether other programs use addresses of the bridge's pool"
        );
        BTreeSet::new()
    });
    addresses.retain(|address| *address != pool.network() && *address != pool.broadcast());
    addresses
}

/// Logs which addresses no service gets.
fn warn_of_left_out(pool: Ipv4Net, left_out: &BTreeSet<Ipv4Addr>) {
    if let Some(address) = left_out.first() {
        tracing::warn!(
            %address,
            count = left_out.len(),
            %pool,
            "other programs listen on addresses of the bridge's pool: no service gets these"
        );
    }
}

/// Reads the addresses of an earlier run; sets an unusable file aside.
fn read(file: Option<&PoolFile>) -> BTreeMap<Arc<str>, Assignment> {
    let Some(file) = file else { return BTreeMap::new() };
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
            BTreeMap::new()
        }
    }
}
