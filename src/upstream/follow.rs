//! Keeps the upstreams in force in step with what the system says.
//!
//! Files are looked at anew when their folders change and every half minute in any case. What is missing, empty or half
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
use super::guard::{self, Guard};
use super::routes::{Route, Routes};
use super::sources::{List, Look, Sources};
use super::watch::{Inbox, Watches};
use super::{Servers, Settings, Target};
use crate::name::Name;
use crate::resolv_conf::RESOLV_CONF;
use crate::wire::ExtendedError;

/// When the files are looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timings {
    /// How long after a change a look is taken: whoever writes may not be done.
    pub(super) settle: Duration,
    /// How long it may take at most until a look is taken, should no change be told.
    pub(super) poll: Duration,
    /// How long the upstreams of before are asked when the files name nobody any more. What a network that was left offered
    /// shall not be asked for ever, and what cannot be read may still be true.
    pub(super) keep: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self { settle: Duration::from_millis(200), poll: Duration::from_secs(30), keep: Duration::from_secs(60) }
    }
}

/// What is in force, for those who ask.
#[derive(Clone, Debug)]
pub(super) struct InForce {
    /// Who is asked for which name.
    pub(super) routes: Arc<ArcSwap<Routes>>,
    /// The upstreams in the routes, told after them.
    pub(super) upstreams: watch::Receiver<Vec<Arc<Upstream>>>,
    /// The names that find loops.
    pub(super) guard: Arc<Guard>,
}

/// To a question that came in a circle.
const CIRCLE: ExtendedError = ExtendedError { code: ExtendedError::OTHER, text: "this question came from svcdns itself" };

impl InForce {
    /// Where a question for `name` goes. The first thing to ask of a question: a token must go no further.
    pub(super) fn route(&self, name: &Name) -> Route {
        if self.guard.is_token(name) { Route::Nobody(CIRCLE) } else { self.routes.load().find(name) }
    }
}

/// Begins to follow the files of this machine, until `stop`. What they say now is in force when this returns.
pub(super) fn start(settings: &Settings, tracker: &TaskTracker, stop: &CancellationToken) -> InForce {
    let connector = Connector::new(Handle::current(), settings.ca_file.clone());
    let sources = Sources { root: PathBuf::from("/"), own: settings.own.clone() };
    let (follower, in_force) = Follower::new(settings, sources, connector, Timings::default());
    tracker.spawn(Arc::clone(&in_force.guard).run(in_force.upstreams.clone(), guard::Timings::default(), stop.clone()));
    tracker.spawn(follower.run(stop.clone()));
    in_force
}

/// Follows the files.
#[derive(Debug)]
struct Follower {
    servers: Servers,
    domains: Vec<(Name, Vec<Target>)>,
    sources: Sources,
    connector: Arc<Connector>,
    timings: Timings,
    routes: Arc<ArcSwap<Routes>>,
    /// The upstreams in force, for the guard.
    told: watch::Sender<Vec<Arc<Upstream>>>,
    /// What is in force; none before the first look.
    now: Option<State>,
    /// Since when the files name nobody.
    nobody_since: Option<Instant>,
    /// What was said last about files that cannot be used.
    trouble: String,
}

/// What the routes in force were made of.
#[derive(Debug, PartialEq, Eq)]
struct State {
    servers: Vec<Target>,
    asked_by_system: bool,
}

impl Follower {
    /// Looks for the first time.
    fn new(settings: &Settings, sources: Sources, connector: Arc<Connector>, timings: Timings) -> (Self, InForce) {
        let routes = Arc::new(ArcSwap::from_pointee(Routes::new(Vec::new(), Vec::new(), false)));
        let (told, upstreams) = watch::channel(Vec::new());
        let in_force = InForce { routes: Arc::clone(&routes), upstreams, guard: Arc::default() };
        let not_ours = |targets: &[Target]| -> Vec<Target> {
            let (own, others): (Vec<_>, Vec<_>) = targets.iter().cloned().partition(|target| sources.is_own(target));
            for upstream in own {
                tracing::error!(%upstream, "this upstream is svcdns itself and is never asked: name another with --upstream");
            }
            others
        };
        let servers = match &settings.servers {
            Servers::Named(targets) => Servers::Named(not_ours(targets)),
            other => other.clone(),
        };
        let domains: Vec<_> = settings.domains.iter().map(|(domain, targets)| (*domain, not_ours(targets))).collect();
        // Those of the system are told when they are found, and whenever they change.
        if let Servers::Named(targets) = &servers
            && !targets.is_empty()
        {
            tracing::info!("asking {} for names outside the zones", List(targets));
        }
        for (domain, targets) in domains.iter().filter(|(_, targets)| !targets.is_empty()) {
            tracing::info!("asking {} for names in {domain}", List(targets));
        }
        let mut follower =
            Self { servers, domains, sources, connector, timings, routes, told, now: None, nobody_since: None, trouble: String::new() };
        let look = follower.look();
        follower.take(&look);
        (follower, in_force)
    }

    /// Follows until `stop`.
    async fn run(mut self, stop: CancellationToken) {
        let inbox = Inbox::default();
        let mut watches = Watches::new(self.sources.clone(), inbox.clone());
        loop {
            // Files can be slow, on a network's disk for example.
            let looked = tokio::task::spawn_blocking(move || {
                // First the watches: what changes after the look is then told.
                watches.renew();
                let look = self.look();
                self.take(&look);
                (self, watches)
            });
            let Ok(back) = looked.await else {
                tracing::error!("looking for upstreams panicked; they are followed no more; please report this");
                return;
            };
            (self, watches) = back;
            tokio::select! {
                () = stop.cancelled() => return,
                () = inbox.arrived() => tokio::time::sleep(self.timings.settle).await,
                () = tokio::time::sleep(self.next_look()) => {}
            }
        }
    }

    /// How long until the next look, should nothing change.
    fn next_look(&self) -> Duration {
        let end = self.nobody_since.map(|since| (since + self.timings.keep).saturating_duration_since(Instant::now()));
        end.filter(|end| !end.is_zero()).map_or(self.timings.poll, |end| end.min(self.timings.poll))
    }

    fn look(&self) -> Look {
        match self.servers {
            Servers::System => self.sources.look(),
            Servers::Off | Servers::Named(_) => Look { asked_by_system: self.sources.is_asked_by_system(), ..Look::default() },
        }
    }

    /// Puts in force what was seen.
    fn take(&mut self, look: &Look) {
        let servers = match &self.servers {
            Servers::Off => Vec::new(),
            Servers::Named(targets) => targets.clone(),
            Servers::System => self.servers_of(look),
        };
        let state = State { servers, asked_by_system: look.asked_by_system };
        if self.now.as_ref() == Some(&state) {
            return;
        }
        if self.now.as_ref().is_none_or(|now| now.servers != state.servers)
            && matches!(self.servers, Servers::System)
            && !look.servers.is_empty()
        {
            tracing::info!("asking {look} for names outside the zones");
        }
        self.put_in_force(&state);
        self.now = Some(state);
    }

    /// The servers to be asked after this look at the system's files.
    fn servers_of(&mut self, look: &Look) -> Vec<Target> {
        let before = self.now.as_ref().map(|now| now.servers.as_slice()).unwrap_or_default();
        if !look.servers.is_empty() {
            self.nobody_since = None;
            let trouble = look.faults.join("; ");
            if !trouble.is_empty() && trouble != self.trouble {
                tracing::warn!("{trouble}");
            }
            self.trouble = trouble;
            return look.servers.clone();
        }
        let since = *self.nobody_since.get_or_insert_with(Instant::now);
        let kept = look.unreadable || since.elapsed() < self.timings.keep;
        let servers = if kept { before.to_vec() } else { Vec::new() };
        let goes_on = match (servers.is_empty(), look.unreadable) {
            (true, _) => "names outside the zones cannot be resolved until then".to_owned(),
            (false, true) => "the upstreams of before are asked until then".to_owned(),
            (false, false) => format!("the upstreams of before are asked for {} more", humantime::format_duration(self.timings.keep)),
        };
        let trouble = format!("no upstream is known: {}", look.faults.join("; "));
        let told = format!("{trouble}; {goes_on}");
        if self.trouble != told {
            tracing::warn!("{trouble}. Write `nameserver ADDRESS` into {RESOLV_CONF}, or name an upstream with --upstream; {goes_on}");
            self.trouble = told;
        }
        servers
    }

    /// Makes the routes anew; upstreams that stay keep what is known of them.
    fn put_in_force(&self, state: &State) {
        let known = self.told.borrow().clone();
        let mut upstreams: HashMap<Target, Arc<Upstream>> =
            known.into_iter().map(|upstream| (upstream.target().clone(), upstream)).collect();
        let mut of = |targets: &[Target]| -> Vec<Arc<Upstream>> {
            let make = |target: &Target| Upstream::new(target.clone(), Arc::clone(&self.connector));
            targets.iter().map(|target| Arc::clone(upstreams.entry(target.clone()).or_insert_with(|| make(target)))).collect()
        };
        let domains = self.domains.iter().map(|(domain, targets)| (*domain, of(targets))).collect();
        let routes = Routes::new(of(&state.servers), domains, state.asked_by_system);
        let upstreams = routes.upstreams();
        self.routes.store(Arc::new(routes));
        self.told.send_replace(upstreams);
    }
}

#[cfg(test)]
mod tests;
