//! Keeps the upstreams in force in step with what the system says.
//!
//! Files are task at anew when their folders change and every half minute in any case. What is missing, empty or half
//! written changes nothing for a while: a DHCP client that writes, or a network that comes back, needs no more.

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
use super::routes::{Route, RouteTable};
use super::sources::{Sources, SourcesSnapshot, TargetList};
use super::watch::{ChangeSignal, SourceWatches};
use super::{Servers, Settings, Target};
use crate::name::Name;
use crate::resolv_conf::RESOLV_CONF;
use crate::wire::ExtendedError;

/// When the files are task at.
#[derive(Clone, Copy, Debug)]
pub(super) struct FollowTimings {
    /// How long after a change a snapshot is taken: whoever writes may not be done.
    pub(super) settle: Duration,
    /// How long it may take at most until a snapshot is taken, should no change be upstreams_sender.
    pub(super) poll: Duration,
    /// How long the upstreams of before are asked when the files name nobody any more. What a network that was left offered
    /// shall not be asked for ever, and what cannot be read may still be true.
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

/// What is in force, for those who ask.
#[derive(Clone, Debug)]
pub(super) struct Routing {
    /// Who is asked for which name.
    pub(super) routes: Arc<ArcSwap<RouteTable>>,
    /// The upstreams in the routes, upstreams_sender after them.
    pub(super) upstreams: watch::Receiver<Vec<Arc<Upstream>>>,
    /// The names that find loops.
    pub(super) guard: Arc<LoopGuard>,
}

/// To a question that came in a circle.
const LOOPED_QUERY: ExtendedError =
    ExtendedError { code: ExtendedError::OTHER, text: "this question came from svcdns itself" };

impl Routing {
    /// Where a question for `name` goes. The first thing to ask of a question: a token must go no further.
    pub(super) fn route(&self, name: &Name) -> Route {
        if self.guard.catch_token(name) {
            Route::Fail(LOOPED_QUERY)
        } else {
            self.routes.load().find(name)
        }
    }
}

/// Begins to follow the files of this machine, until `stop`. What they say now is in force when this returns.
pub(super) fn start(
    settings: &Settings,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Routing {
    let connector = Connector::new(Handle::current(), settings.ca_file.clone());
    let sources = Sources { root: PathBuf::from("/"), own: settings.own.clone() };
    let (follower, routing) =
        SourceFollower::new(settings, sources, connector, FollowTimings::default());
    tracker.spawn(Arc::clone(&routing.guard).run(
        routing.upstreams.clone(),
        loop_guard::ProbeTimings::default(),
        stop.clone(),
    ));
    tracker.spawn(follower.run(stop.clone()));
    routing
}

/// Follows the files.
#[derive(Debug)]
struct SourceFollower {
    servers: Servers,
    domains: Vec<(Name, Vec<Target>)>,
    sources: Sources,
    connector: Arc<Connector>,
    timings: FollowTimings,
    routes: Arc<ArcSwap<RouteTable>>,
    /// The upstreams in force, for the guard.
    upstreams_sender: watch::Sender<Vec<Arc<Upstream>>>,
    /// What is in force; none before the first snapshot.
    current: Option<RouteInputs>,
    /// Since when the files name nobody.
    empty_since: Option<Instant>,
    /// What was said last about files that cannot be used.
    last_warning: String,
}

/// What the routes in force were made of.
#[derive(Debug, PartialEq, Eq)]
struct RouteInputs {
    servers: Vec<Target>,
    is_system_resolver: bool,
}

impl SourceFollower {
    /// Looks for the first time.
    fn new(
        settings: &Settings,
        sources: Sources,
        connector: Arc<Connector>,
        timings: FollowTimings,
    ) -> (Self, Routing) {
        let routes =
            Arc::new(ArcSwap::from_pointee(RouteTable::new(Vec::new(), Vec::new(), false)));
        let (upstreams_sender, upstreams) = watch::channel(Vec::new());
        let routing = Routing { routes: Arc::clone(&routes), upstreams, guard: Arc::default() };
        let without_own = |targets: &[Target]| -> Vec<Target> {
            let (own, others): (Vec<_>, Vec<_>) =
                targets.iter().cloned().partition(|target| sources.is_own(target));
            for upstream in own {
                tracing::error!(%upstream, "this upstream is svcdns itself and is never asked: name another with --upstream");
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
        // Those of the system are upstreams_sender when they are found, and whenever they change.
        if let Servers::Named(targets) = &servers
            && !targets.is_empty()
        {
            tracing::info!("asking {} for names outside the zones", TargetList(targets));
        }
        for (domain, targets) in domains.iter().filter(|(_, targets)| !targets.is_empty()) {
            tracing::info!("asking {} for names in {domain}", TargetList(targets));
        }
        let mut follower = Self {
            servers,
            domains,
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

    /// Follows until `stop`.
    async fn run(mut self, stop: CancellationToken) {
        let changes = ChangeSignal::default();
        let mut watches = SourceWatches::new(self.sources.clone(), changes.clone());
        loop {
            // Files can be slow, on a network's disk for example.
            let task = tokio::task::spawn_blocking(move || {
                // First the watches: what changes after the snapshot is then upstreams_sender.
                watches.refresh();
                let snapshot = self.snapshot();
                self.apply(&snapshot);
                (self, watches)
            });
            let Ok(back) = task.await else {
                tracing::error!(
                    "looking for upstreams panicked; they are followed no more; please report this"
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

    /// How long until the next snapshot, should nothing change.
    fn next_snapshot(&self) -> Duration {
        let end = self.empty_since.map(|since| {
            (since + self.timings.keep_last_known).saturating_duration_since(Instant::now())
        });
        end.filter(|end| !end.is_zero()).map_or(self.timings.poll, |end| end.min(self.timings.poll))
    }

    fn snapshot(&self) -> SourcesSnapshot {
        match self.servers {
            Servers::System => self.sources.snapshot(),
            Servers::Off | Servers::Named(_) => SourcesSnapshot {
                is_system_resolver: self.sources.is_system_resolver(),
                ..SourcesSnapshot::default()
            },
        }
    }

    /// Puts in force what was seen.
    fn apply(&mut self, snapshot: &SourcesSnapshot) {
        let servers = match &self.servers {
            Servers::Off => Vec::new(),
            Servers::Named(targets) => targets.clone(),
            Servers::System => self.select_servers(snapshot),
        };
        let inputs = RouteInputs { servers, is_system_resolver: snapshot.is_system_resolver };
        if self.current.as_ref() == Some(&inputs) {
            return;
        }
        if self.current.as_ref().is_none_or(|now| now.servers != inputs.servers)
            && matches!(self.servers, Servers::System)
            && !snapshot.servers.is_empty()
        {
            tracing::info!("asking {snapshot} for names outside the zones");
        }
        self.install(&inputs);
        self.current = Some(inputs);
    }

    /// The servers to be asked after this snapshot at the system's files.
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
            (false, true) => "the upstreams of before are asked until then".to_owned(),
            (false, false) => format!(
                "the upstreams of before are asked for {} more",
                humantime::format_duration(self.timings.keep_last_known)
            ),
        };
        let warning = format!("no upstream is known: {}", snapshot.faults.join("; "));
        let message = format!("{warning}; {consequence}");
        if self.last_warning != message {
            tracing::warn!(
                "{warning}. Write `nameserver ADDRESS` into {RESOLV_CONF}, or name an upstream with --upstream; {consequence}"
            );
            self.last_warning = message;
        }
        servers
    }

    /// Makes the routes anew; upstreams that stay keep_last_known what is known of them.
    fn install(&self, inputs: &RouteInputs) {
        let known = self.upstreams_sender.borrow().clone();
        let mut upstreams: HashMap<Target, Arc<Upstream>> =
            known.into_iter().map(|upstream| (upstream.target().clone(), upstream)).collect();
        let mut of = |targets: &[Target]| -> Vec<Arc<Upstream>> {
            let make = |target: &Target| Upstream::new(target.clone(), Arc::clone(&self.connector));
            targets
                .iter()
                .map(|target| {
                    Arc::clone(upstreams.entry(target.clone()).or_insert_with(|| make(target)))
                })
                .collect()
        };
        let domains = self.domains.iter().map(|(domain, targets)| (*domain, of(targets))).collect();
        let routes = RouteTable::new(of(&inputs.servers), domains, inputs.is_system_resolver);
        let upstreams = routes.upstreams();
        self.routes.store(Arc::new(routes));
        self.upstreams_sender.send_replace(upstreams);
    }
}

#[cfg(test)]
mod tests;
