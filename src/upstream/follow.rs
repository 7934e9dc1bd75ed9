//! Keeps the routes up to date with the system's resolver configuration.
//!
//! The files are read again when their directories change, and at least every 30 s. A missing,
//! empty or incomplete file has no effect for a while: a DHCP client may still be writing, or the
//! network may come back.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exchange::{Connector, Upstream};
use super::loop_guard::{self, LoopGuard};
use super::order::UpstreamOrder;
use super::routes::{Route, RouteQuery, RouteRules, RouteTable};
use super::sources::{Sources, SourcesSnapshot, TargetList};
use super::special::{Special, SpecialAnswer};
use super::{Servers, Settings, Target};
use crate::name::Name;
use crate::path_watch::{ChangeSignal, PathWatches};
use crate::resolv_conf::RESOLV_CONF;

/// Time limits for reading the files.
#[derive(Clone, Copy, Debug)]
pub(super) struct FollowTimings {
    /// Delay between a change and the reading, because the writer may not be done yet.
    pub(super) settle: Duration,
    /// Maximum time between two readings if no change is reported.
    pub(super) poll: Duration,
    /// Lifetime of the last known upstreams after the files no longer list any.
    ///
    /// The name servers of a network that the machine has left must not be queried forever. A file
    /// that cannot be read keeps the upstreams without this limit, because its content may be
    /// unchanged.
    pub(super) keep_last_known: Duration,
}

impl Default for FollowTimings {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(200),
            poll: Duration::from_secs(30),
            keep_last_known: Duration::from_secs(60),
        }
    }
}

/// The current routes, as used by queries and the loop guard.
#[derive(Clone, Debug)]
pub(super) struct Routing {
    /// The route table in use.
    pub(super) routes: Arc<ArcSwap<RouteTable>>,
    /// All upstreams of the route table; updated after the table.
    pub(super) upstreams: watch::Receiver<Vec<Arc<Upstream>>>,
    /// The guard that detects forwarding loops.
    pub(super) guard: Arc<LoopGuard>,
}

impl Routing {
    /// Returns the route of a query for `name`.
    ///
    /// Every query must be routed by this function, because it detects loops.
    pub(super) fn route(&self, name: &Name, query: RouteQuery) -> Route {
        if self.guard.catch_token(name) {
            Route::Local(SpecialAnswer { special: Special::LoopToken, zone_offset: 0 })
        } else {
            self.routes.load().find(name, query)
        }
    }
}

/// Starts to follow the system's files until `stop` is cancelled.
///
/// The first routes are in use when this function returns. Their upstreams are those of `known`
/// where it has them.
pub(super) fn start(
    settings: &Settings,
    known: Vec<Arc<Upstream>>,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Routing {
    let connector = Connector::new(Handle::current(), settings.ca_file.clone());
    let sources = Sources { root: PathBuf::from("/"), own: settings.own.clone() };
    let (follower, routing) =
        SourceFollower::new(settings, sources, (connector, known), FollowTimings::default());
    tracker.spawn(Arc::clone(&routing.guard).run(
        routing.upstreams.clone(),
        loop_guard::ProbeTimings::default(),
        stop.clone(),
    ));
    tracker.spawn(follower.run(stop.clone()));
    routing
}

/// Follows the system's files and replaces the routes when they change.
#[derive(Debug)]
struct SourceFollower {
    servers: Servers,
    domains: Vec<(Name, Vec<Target>)>,
    /// Order of all lists; `None` leaves it to their origin.
    order: Option<UpstreamOrder>,
    forward_single_labels: bool,
    sources: Sources,
    connector: Arc<Connector>,
    timings: FollowTimings,
    routes: Arc<ArcSwap<RouteTable>>,
    /// Announces all upstreams of a new route table to the loop guard and the cache.
    upstreams_sender: watch::Sender<Vec<Arc<Upstream>>>,
    /// Inputs of the current routes; `None` before the first reading.
    current: Option<RouteInputs>,
    /// Time since which the files have named no server; `None` while they name one.
    empty_since: Option<Instant>,
    /// The last logged warning about unusable files.
    last_warning: String,
}

/// Inputs of a route table, apart from the settings.
#[derive(Debug, PartialEq, Eq)]
struct RouteInputs {
    servers: Vec<Target>,
    order: UpstreamOrder,
    is_system_resolver: bool,
}

impl SourceFollower {
    /// Creates a follower and reads the files for the first time.
    fn new(
        settings: &Settings,
        sources: Sources,
        (connector, known): (Arc<Connector>, Vec<Arc<Upstream>>),
        timings: FollowTimings,
    ) -> (Self, Routing) {
        let no_routes = RouteTable::new(Vec::new(), Vec::new(), RouteRules::default());
        let routes = Arc::new(ArcSwap::from_pointee(no_routes));
        let (upstreams_sender, upstreams) = watch::channel(known);
        let routing = Routing { routes: Arc::clone(&routes), upstreams, guard: Arc::default() };
        let without_own = |targets: &[Target]| -> Vec<Target> {
            let (own, others): (Vec<_>, Vec<_>) =
                targets.iter().cloned().partition(|target| sources.is_own(target));
            for upstream in own {
                tracing::error!(
                    %upstream,
                    "this upstream is svcdns itself and is never queried: set another with \
                     --upstream"
                );
            }
            others
        };
        let servers = match &settings.servers {
            Servers::Named(targets) => Servers::Named(without_own(targets)),
            other => other.clone(),
        };
        let domains: Vec<_> = settings
            .domains
            .iter()
            .map(|(domain, targets)| (*domain, without_own(targets)))
            .collect();
        // Upstreams from the system's files are logged when they are found and when they change.
        if let Servers::Named(targets) = &servers
            && !targets.is_empty()
        {
            let order = settings.order.unwrap_or(UpstreamOrder::Fastest);
            let order = order.suffix(targets.len());
            tracing::info!("forwarding names outside the zones to {}{order}", TargetList(targets));
        }
        for (domain, targets) in domains.iter().filter(|(_, targets)| !targets.is_empty()) {
            let order = settings.order.unwrap_or(UpstreamOrder::Strict);
            let order = order.suffix(targets.len());
            tracing::info!("forwarding names in {domain} to {}{order}", TargetList(targets));
        }
        let mut follower = Self {
            servers,
            domains,
            order: settings.order,
            forward_single_labels: settings.forward_single_labels,
            sources,
            connector,
            timings,
            routes,
            upstreams_sender,
            current: None,
            empty_since: None,
            last_warning: String::new(),
        };
        let snapshot = follower.snapshot();
        follower.apply(&snapshot);
        (follower, routing)
    }

    /// Reads the files at each change and applies them, until `stop` is cancelled.
    async fn run(mut self, stop: CancellationToken) {
        let changes = ChangeSignal::default();
        let mut watches = PathWatches::new(self.sources.paths().collect(), changes.clone());
        loop {
            // Reading can block, for example on a network file system.
            let task = tokio::task::spawn_blocking(move || {
                // The watches are renewed first, so that a change during the reading is reported.
                watches.refresh();
                let snapshot = self.snapshot();
                self.apply(&snapshot);
                (self, watches)
            });
            let Ok(back) = task.await else {
                tracing::error!(
                    "reading the system's name servers panicked, and changes are no longer \
                     followed; please report this"
                );
                return;
            };
            (self, watches) = back;
            tokio::select! {
                () = stop.cancelled() => return,
                () = changes.changed() => tokio::time::sleep(self.timings.settle).await,
                () = tokio::time::sleep(self.next_snapshot()) => {}
            }
        }
    }

    /// Returns the maximum time until the next reading.
    fn next_snapshot(&self) -> Duration {
        let end = self.empty_since.map(|since| {
            (since + self.timings.keep_last_known).saturating_duration_since(Instant::now())
        });
        end.filter(|end| !end.is_zero()).map_or(self.timings.poll, |end| end.min(self.timings.poll))
    }

    /// Reads the system's resolver configuration.
    fn snapshot(&self) -> SourcesSnapshot {
        match self.servers {
            Servers::System => self.sources.snapshot(),
            Servers::Off | Servers::Named(_) => SourcesSnapshot {
                is_system_resolver: self.sources.is_system_resolver(),
                ..SourcesSnapshot::default()
            },
        }
    }

    /// Replaces the routes if the files name different servers.
    fn apply(&mut self, snapshot: &SourcesSnapshot) {
        let servers = match &self.servers {
            Servers::Off => Vec::new(),
            Servers::Named(targets) => targets.clone(),
            Servers::System => self.select_servers(snapshot),
        };
        let order = self.default_order(&servers, snapshot);
        let is_system_resolver = snapshot.is_system_resolver;
        let inputs = RouteInputs { servers, order, is_system_resolver };
        if self.current.as_ref() == Some(&inputs) {
            return;
        }
        let same = |now: &RouteInputs| now.servers == inputs.servers && now.order == inputs.order;
        if !self.current.as_ref().is_some_and(same)
            && matches!(self.servers, Servers::System)
            && !snapshot.servers.is_empty()
        {
            let order = order.suffix(snapshot.servers.len());
            tracing::info!("forwarding names outside the zones to {snapshot}{order}");
        }
        self.install(&inputs);
        self.current = Some(inputs);
    }

    /// Returns the order of the upstreams for names without a domain route.
    fn default_order(&self, servers: &[Target], snapshot: &SourcesSnapshot) -> UpstreamOrder {
        let by_origin = match &self.servers {
            // The last known servers keep their order.
            Servers::System if snapshot.servers.is_empty() && !servers.is_empty() => {
                self.current.as_ref().map_or(UpstreamOrder::Strict, |now| now.order)
            }
            Servers::System if !snapshot.rotate => UpstreamOrder::Strict,
            Servers::Off | Servers::System | Servers::Named(_) => UpstreamOrder::Fastest,
        };
        self.order.unwrap_or(by_origin)
    }

    /// Returns the servers to use; warns if the files name none.
    fn select_servers(&mut self, snapshot: &SourcesSnapshot) -> Vec<Target> {
        let before = self.current.as_ref().map(|now| now.servers.as_slice()).unwrap_or_default();
        if !snapshot.servers.is_empty() {
            self.empty_since = None;
            let warning = snapshot.faults.join("; ");
            if !warning.is_empty() && warning != self.last_warning {
                tracing::warn!("{warning}");
            }
            self.last_warning = warning;
            return snapshot.servers.clone();
        }
        let since = *self.empty_since.get_or_insert_with(Instant::now);
        let keeps_last_known =
            snapshot.unreadable || since.elapsed() < self.timings.keep_last_known;
        let servers = if keeps_last_known { before.to_vec() } else { Vec::new() };
        let consequence = match (servers.is_empty(), snapshot.unreadable) {
            (true, _) => "names outside the zones cannot be resolved until then".to_owned(),
            (false, true) => "the previous upstreams are used until then".to_owned(),
            (false, false) => format!(
                "the previous upstreams are used for another {}",
                humantime::format_duration(self.timings.keep_last_known)
            ),
        };
        let warning = format!("no upstream is known: {}", snapshot.faults.join("; "));
        let message = format!("{warning}; {consequence}");
        if self.last_warning != message {
            tracing::warn!(
                "{warning}. Write `nameserver ADDRESS` into {RESOLV_CONF}, or set an upstream with \
                 --upstream; {consequence}"
            );
            self.last_warning = message;
        }
        servers
    }

    /// Installs new routes; upstreams that remain keep their health and connections.
    fn install(&self, inputs: &RouteInputs) {
        let known = self.upstreams_sender.borrow().clone();
        let mut upstreams: HashMap<Target, Arc<Upstream>> =
            known.into_iter().map(|upstream| (upstream.target().clone(), upstream)).collect();
        let mut of = |targets: &[Target], domain: &Name| -> Vec<Arc<Upstream>> {
            let make = |target: &Target| {
                Upstream::for_domain(target.clone(), Arc::clone(&self.connector), domain)
            };
            targets
                .iter()
                .map(|target| {
                    Arc::clone(upstreams.entry(target.clone()).or_insert_with(|| make(target)))
                })
                .collect()
        };
        // The upstreams for all names come first.
        let servers = of(&inputs.servers, &Name::ROOT);
        let domains =
            self.domains.iter().map(|(domain, targets)| (*domain, of(targets, domain))).collect();
        let rules = RouteRules {
            is_system_resolver: inputs.is_system_resolver,
            forward_single_labels: self.forward_single_labels,
        };
        let routes = RouteTable::new(servers, domains, rules)
            .with_orders(inputs.order, self.order.unwrap_or(UpstreamOrder::Strict));
        let upstreams = routes.upstreams();
        self.routes.store(Arc::new(routes));
        self.upstreams_sender.send_replace(upstreams);
    }
}

#[cfg(test)]
mod tests;
