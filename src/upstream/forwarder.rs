//! The forwarder: its settings, its lanes, and lookups of its own.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwapOption, Guard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::addresses::addresses;
use super::alias::MAX_BORDERS;
use super::counters::Counters;
use super::domain_loops::DomainLoops;
use super::follow;
use super::hosts::{LookupFailed, LookupResult};
use super::lane::{ForwarderShared, Lane};
use super::order::{UpstreamList, UpstreamOrder};
use super::rebinding::RebindingGuard;
use super::resolver::Resolver;
use super::{Settings, UpstreamReport, now};
use crate::name::Name;
use crate::wire::{Parsed, Query, flags, put_u16, rtype};

/// TTL of a host's addresses if only one of the A and AAAA lookups succeeded.
const PARTIAL_ANSWER_TTL: Duration = Duration::from_secs(30);

/// Forwards queries for names outside the zones; one instance for the whole server.
///
/// Its settings can be replaced while it runs; without settings, forwarding is off.
#[derive(Debug)]
pub struct Forwarder {
    counters: Arc<Counters>,
    state: Arc<Mutex<ForwarderState>>,
    /// The lane of the server's own lookups.
    own: LaneSlot,
    /// Whether forwarding is on.
    is_on: watch::Sender<bool>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// A worker's place for its lane, which is replaced together with the settings.
///
/// It is empty while forwarding is off.
#[derive(Debug)]
pub struct LaneSlot {
    lane: Arc<ArcSwapOption<Lane>>,
    state: Arc<Mutex<ForwarderState>>,
}

/// The current settings in operation, and the lanes that use them.
#[derive(Debug, Default)]
struct ForwarderState {
    current: Option<Arc<ForwarderShared>>,
    /// Ends the tasks of the current settings.
    stop: CancellationToken,
    lanes: Vec<Weak<ArcSwapOption<Lane>>>,
}

/// Snapshot of the forwarder's state for status output.
#[derive(Clone, Debug)]
pub struct ForwardingReport {
    /// Number of cache entries, including expired ones.
    pub entries: usize,
    /// Size of all cache entries in bytes.
    pub bytes: u64,
    /// Limit on the size of the cache in bytes; 0 without a cache.
    pub capacity: u64,
    /// Number of waiting clients and refreshes in progress.
    pub waiting: u64,
    /// All upstreams of the current routes.
    pub upstreams: Vec<UpstreamReport>,
    /// The lists of upstreams, starting with the general one.
    pub lists: Vec<ListReport>,
}

/// A list of upstreams for status output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListReport {
    /// The domain that the upstreams resolve; the root for all other names.
    pub domain: Name,
    /// The upstreams as the configuration writes them.
    pub upstreams: Vec<String>,
    /// Order in which svcdns queries the upstreams.
    pub order: UpstreamOrder,
}

impl Forwarder {
    /// Starts forwarding until `stop` is cancelled; must be called within a Tokio runtime.
    ///
    /// Without settings, forwarding is off.
    pub fn start(
        settings: Option<Settings>,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let state = Arc::<Mutex<ForwarderState>>::default();
        let forwarder = Self {
            counters: Arc::default(),
            own: LaneSlot::new(&state),
            state,
            is_on: watch::Sender::new(false),
            tracker: tracker.clone(),
            stop: stop.clone(),
        };
        forwarder.replace(settings);
        forwarder
    }

    /// Replaces the settings; must be called within a Tokio runtime.
    ///
    /// Equal settings change nothing. Queries in progress end with the old settings. The cache is
    /// kept unless other settings could have led to other answers.
    pub fn replace(&self, settings: Option<Settings>) {
        let mut state = lock(&self.state);
        let before = state.current.as_deref().map(|shared| &shared.settings);
        if before == settings.as_ref() {
            return;
        }
        let stop = self.stop.child_token();
        let current = settings.map(|settings| self.run(settings, state.current.as_deref(), &stop));
        state.stop.cancel();
        state.stop = stop;
        state.current = current;
        let lanes = std::mem::take(&mut state.lanes);
        let in_use = |lane: &Weak<ArcSwapOption<Lane>>| match lane.upgrade() {
            Some(slot) => {
                slot.store(state.current.as_ref().map(|shared| Arc::new(Lane::new(shared))));
                true
            }
            None => false,
        };
        state.lanes = lanes.into_iter().filter(in_use).collect();
        self.is_on.send_replace(state.current.is_some());
    }

    /// Starts the tasks of these settings; what is still valid of the old ones is kept.
    fn run(
        &self,
        settings: Settings,
        old: Option<&ForwarderShared>,
        stop: &CancellationToken,
    ) -> Arc<ForwarderShared> {
        let known = old.filter(|old| old.settings.has_same_connections(&settings));
        let known = known.map(|old| old.routing.upstreams.borrow().clone());
        let routing = follow::start(&settings, known.unwrap_or_default(), &self.tracker, stop);
        let rebinding = RebindingGuard::of(&settings);
        let kept = old.filter(|old| old.settings.has_same_answers(&settings));
        let new =
            || Resolver::new(settings.cache_bytes, settings.stale, Arc::clone(&self.counters));
        let resolver = kept.map_or_else(new, |old| Arc::clone(&old.resolver));
        let loops = DomainLoops::new(routing.clone(), Arc::clone(resolver.in_flight()));
        self.tracker.spawn(loops.run(stop.clone()));
        let shared = Arc::new(ForwarderShared { settings, routing, rebinding, resolver });
        self.tracker.spawn(Arc::clone(&shared).clear_cache_on_change(stop.clone()));
        shared
    }

    /// Creates the place of one worker's lane.
    pub fn lane(&self) -> LaneSlot {
        LaneSlot::new(&self.state)
    }

    /// Describes the route of a query for `name` in words; `None` if forwarding is off.
    pub fn describe(&self, name: &Name, qtype: u16) -> Option<String> {
        Some(self.current()?.routing.routes.load().describe(name, qtype))
    }

    /// Returns the counters since startup.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns the current state; `None` if forwarding is off.
    pub fn report(&self) -> Option<ForwardingReport> {
        let current = self.current()?;
        let ForwarderShared { resolver, routing, .. } = &*current;
        let routes = routing.routes.load();
        let list_report = |(domain, list): (Name, UpstreamList)| ListReport {
            domain,
            upstreams: list.iter().map(|upstream| upstream.target().to_string()).collect(),
            order: list.order(),
        };
        Some(ForwardingReport {
            entries: resolver.cache.len(),
            bytes: resolver.cache.bytes(),
            capacity: resolver.cache.capacity(),
            waiting: resolver.waiting(),
            upstreams: routes.upstreams().iter().map(|upstream| upstream.report()).collect(),
            lists: routes.lists().into_iter().map(list_report).collect(),
        })
    }

    /// Looks up the addresses of a host outside the served zones, within 4 s.
    ///
    /// The lookup is cached like those of clients. A host without addresses yields an empty list
    /// and the TTL of the negative answer. While forwarding is off, waits until it is on.
    ///
    /// # Errors
    /// Returns an error if no upstream answers, the host is inside a served zone, or its name is
    /// special.
    pub async fn addresses(&self, host: &Name) -> LookupResult {
        let lane = loop {
            // The sender is dropped only with the forwarder.
            let _ = self.is_on.subscribe().wait_for(|is_on| *is_on).await;
            if let Some(lane) = self.own.load_full() {
                break lane;
            }
        };
        if lane.serves(host) {
            return Err(LookupFailed);
        }
        let (v4, v6) = tokio::join!(
            addresses_of(&lane, host, rtype::A),
            addresses_of(&lane, host, rtype::AAAA)
        );
        match (v4, v6) {
            (Ok((mut v4, a)), Ok((v6, b))) => {
                v4.extend(v6);
                Ok((v4, a.min(b)))
            }
            (Ok((found, ttl)), Err(_)) | (Err(_), Ok((found, ttl))) if !found.is_empty() => {
                Ok((found, ttl.min(PARTIAL_ANSWER_TTL)))
            }
            _ => Err(LookupFailed),
        }
    }

    fn current(&self) -> Option<Arc<ForwarderShared>> {
        lock(&self.state).current.clone()
    }
}

fn lock(state: &Mutex<ForwarderState>) -> MutexGuard<'_, ForwarderState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LaneSlot {
    fn new(state: &Arc<Mutex<ForwarderState>>) -> Self {
        let mut locked = lock(state);
        let lane = locked.current.as_ref().map(|shared| Arc::new(Lane::new(shared)));
        let lane = Arc::new(ArcSwapOption::new(lane));
        // Workers come and go with the listeners.
        locked.lanes.retain(|lane| lane.strong_count() > 0);
        locked.lanes.push(Arc::downgrade(&lane));
        Self { lane, state: Arc::clone(state) }
    }

    /// Creates the place of another worker's lane.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self::new(&self.state)
    }

    /// Returns the lane for a short use; `None` if forwarding is off.
    pub fn load(&self) -> Guard<Option<Arc<Lane>>> {
        self.lane.load()
    }

    /// Returns the lane for a long use; `None` if forwarding is off.
    pub fn load_full(&self) -> Option<Arc<Lane>> {
        self.lane.load_full()
    }
}

/// Looks up the addresses of one type.
async fn addresses_of(
    lane: &Lane,
    host: &Name,
    qtype: u16,
) -> Result<(Vec<IpAddr>, Duration), LookupFailed> {
    let began = now();
    let (mut name, mut min_ttl) = (*host, Duration::MAX);
    for _ in 0..=MAX_BORDERS {
        let request = address_query(&name, qtype);
        let Parsed::Query(query) = Query::parse(&request) else { return Err(LookupFailed) };
        let (entry, age) = lane.entry(&query, began).await.ok_or(LookupFailed)?;
        if entry.is_failure() {
            return Err(LookupFailed);
        }
        min_ttl = min_ttl.min(entry.remaining_ttl(age));
        let Some(target) = entry.stored.alias_target() else {
            return Ok((addresses(entry.stored.message(), &name, qtype), min_ttl));
        };
        (name, _) = Name::from_wire(&target).map_err(|_| LookupFailed)?;
        if lane.serves(&name) {
            return Err(LookupFailed);
        }
    }
    Err(LookupFailed)
}

/// Builds a query for the addresses of a host.
fn address_query(host: &Name, qtype: u16) -> Vec<u8> {
    let mut request = vec![0, 0];
    put_u16(&mut request, flags::RD);
    request.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    request.extend_from_slice(host.as_wire());
    put_u16(&mut request, qtype);
    put_u16(&mut request, rtype::IN);
    request
}
