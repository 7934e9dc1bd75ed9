//! The names that are bridged: follows their changes, and gives them addresses.

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};

use tokio::time::Instant;

use super::bound::BoundListeners;
use super::counters::ServiceCounters;
use super::instance::InstanceState;
use super::pool::{AddressPool, PoolClock};
use super::requests::ChangedNames;
use super::routes::Routes;
use super::saving::SavedNames;
use super::shared::{BridgedService, Shared};
use super::waiting::{Refusal, WaitingNames};
use super::workers::Workers;
use crate::service::{BridgeCandidate, BridgeChange, BridgedName};

/// Number of forgotten instances at which the table of instances is cleaned up.
const MAX_FORGOTTEN_INSTANCES: usize = 1024;

/// The names with addresses, and the state of their instances.
#[derive(Debug)]
pub(super) struct Assignments {
    pool: AddressPool,
    clock: PoolClock,
    shared: Arc<Shared>,
    names: HashMap<Box<str>, KnownName>,
    /// Names that are withdrawn, by the time until which their connections are served.
    lingering: BTreeSet<(Instant, Box<str>)>,
    waiting: WaitingNames,
    instances: HashMap<SocketAddr, Weak<InstanceState>>,
    /// Size of `instances` after its last cleanup.
    cleaned: usize,
    bound: Option<BoundListeners>,
    /// Whether addresses have to be in the file before clients learn them.
    has_file: bool,
    /// Whether no client may get an address, because connections do not arrive.
    is_suspended: bool,
    /// Whether the log says that an endpoint is in the pool.
    said_loop: bool,
    outcome: Outcome,
}

/// A name that has an address, or had one until recently.
#[derive(Debug)]
struct KnownName {
    address: Ipv4Addr,
    counters: Arc<ServiceCounters>,
    phase: Phase,
    /// Whether clients may learn the address: it is in the file, or does not have to be.
    is_saved: bool,
    /// Whether clients were told the address.
    is_announced: bool,
}

/// What connections to a name's address find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Instances.
    Served,
    /// A name that exists, but has no instance: it keeps its address.
    Empty,
    /// What was there last, until clients have forgotten the address.
    Withdrawn(Instant),
}

/// What changes of names lead to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Names whose announcement may have changed.
    touched: BTreeSet<Box<str>>,
    /// Names that the file does not contain.
    pub(super) new: Vec<Box<str>>,
    /// Whether the file has to be written.
    pub(super) is_file_outdated: bool,
}

impl Assignments {
    /// Creates an empty set of bridged names; `bound` opens listeners for each of them.
    pub(super) fn new(
        pool: AddressPool,
        clock: PoolClock,
        shared: Arc<Shared>,
        bound: Option<BoundListeners>,
        has_file: bool,
    ) -> Self {
        Self {
            pool,
            clock,
            shared,
            names: HashMap::new(),
            lingering: BTreeSet::new(),
            waiting: WaitingNames::default(),
            instances: HashMap::new(),
            cleaned: 0,
            bound,
            has_file,
            is_suspended: false,
            said_loop: false,
            outcome: Outcome::default(),
        }
    }

    /// Applies changes of names. Connections reach the new instances from now on.
    pub(super) fn apply(&mut self, changes: ChangedNames, now: Instant, workers: &Workers) {
        let mut services = Vec::new();
        for (name, change) in changes {
            self.waiting.remove(&name);
            match change {
                BridgeChange::Put(candidate) => services.extend(self.put(candidate, now, workers)),
                BridgeChange::Removed(_) => {
                    self.withdraw(&name, now);
                    // It has no instance: what is left of its listener resets connections.
                    let known = self.names.get(&name).map(|known| (known.address, None));
                    services.extend(known);
                }
            }
        }
        self.publish(services);
    }

    /// Makes these services those that connections reach.
    fn publish(&self, services: Vec<(Ipv4Addr, Option<BridgedService>)>) {
        // Every new connection needs the lock.
        if !services.is_empty() {
            self.shared.update(services);
        }
    }

    /// Returns when [`Self::run_due`] has to be called.
    pub(super) fn due(&self) -> Option<Instant> {
        let lingering = self.lingering.first().map(|(until, _)| *until);
        [lingering, self.waiting.due()].into_iter().flatten().min()
    }

    /// Ends what lingers, and tries names again that could not get an address.
    pub(super) fn run_due(&mut self, now: Instant, workers: &Workers) {
        let mut services = Vec::new();
        while self.lingering.first().is_some_and(|(until, _)| *until <= now)
            && let Some((_, name)) = self.lingering.pop_first()
        {
            let Some(known) = self.names.remove(&name) else { continue };
            services.push((known.address, None));
            if let Some(bound) = &mut self.bound {
                bound.close(known.address);
            }
        }
        if self.waiting.due().is_some_and(|due| due <= now) {
            self.waiting.begin();
            while let Some(candidate) = self.waiting.next() {
                services.extend(self.put(candidate, now, workers));
            }
            self.waiting.end(now);
        }
        self.publish(services);
    }

    /// Sets whether no client may get an address, because connections do not arrive.
    pub(super) fn suspend(&mut self, is_suspended: bool) {
        if std::mem::replace(&mut self.is_suspended, is_suspended) != is_suspended {
            self.outcome.touched.extend(self.names.keys().cloned());
        }
    }

    /// Takes note that clients may learn the addresses of these names.
    pub(super) fn note_saved(&mut self, names: Vec<Box<str>>) {
        for name in names {
            if let Some(known) = self.names.get_mut(&name) {
                known.is_saved = true;
                self.outcome.touched.insert(name);
            }
        }
    }

    /// Returns what clients have to be told, and what has to be written.
    pub(super) fn take_outcome(&mut self) -> (Vec<BridgedName>, Outcome) {
        let mut outcome = std::mem::take(&mut self.outcome);
        let announcements = std::mem::take(&mut outcome.touched).into_iter().filter_map(|name| {
            let known = self.names.get_mut(&name)?;
            let is_announced = known.phase == Phase::Served && known.is_saved && !self.is_suspended;
            if std::mem::replace(&mut known.is_announced, is_announced) == is_announced {
                return None;
            }
            Some(BridgedName { name, address: is_announced.then_some(known.address) })
        });
        (announcements.collect(), outcome)
    }

    /// Returns all names with their addresses, for the file.
    pub(super) fn saved(&mut self) -> SavedNames {
        self.pool.forget(self.clock.now());
        self.pool.assignments().collect()
    }

    /// Bridges a name, or changes its instances; returns the service behind its address, if any.
    fn put(
        &mut self,
        candidate: BridgeCandidate,
        now: Instant,
        workers: &Workers,
    ) -> Option<(Ipv4Addr, Option<BridgedService>)> {
        let BridgeCandidate { name, namespace, registrations } = &candidate;
        let shared = Arc::clone(&self.shared);
        let settings = &shared.settings;
        let protocols = registrations.iter().map(|one| one.protocol.as_deref());
        let is_refused = settings.policy.refusal(name, namespace, protocols).is_some();
        let phase = self.names.get(name).map(|known| known.phase);
        if is_refused && phase.is_none() {
            return None;
        }
        let instances = &mut self.instances;
        let routes = Routes::new(registrations, &settings.ports, settings.pool, |address| {
            instance(instances, address)
        });
        self.clean_up();
        if let [endpoint, ..] = routes.loops()
            && !std::mem::replace(&mut self.said_loop, true)
        {
            tracing::warn!(
                service = &**name,
                %endpoint,
                "an endpoint is in the bridge's own pool, and is left out; `svcdns explain` shows \
                 others"
            );
        }
        if is_refused {
            // Clients that remember the address still reach the instances.
            self.withdraw(name, now);
        } else if !routes.is_empty() || matches!(phase, Some(Phase::Served | Phase::Empty)) {
            // A name without instances gets no address, but keeps the one it has: a client that
            // remembers it is refused at once.
            let phase = if routes.is_empty() { Phase::Empty } else { Phase::Served };
            if let Err(refusal) = self.assign(name, phase, workers) {
                self.waiting.add(candidate, &refusal, now);
                return None;
            }
        }
        let known = self.names.get(name)?;
        let (address, counters) = (known.address, Arc::clone(&known.counters));
        Some((address, Some(BridgedService { routes, counters })))
    }

    /// Gives a name an address and puts it in this phase.
    fn assign(&mut self, name: &str, phase: Phase, workers: &Workers) -> Result<(), Refusal> {
        let now = self.clock.now();
        let Some(assigned) = self.pool.assign(name, now) else {
            return Err(Refusal::Full(self.pool.network()));
        };
        let opened = self.bound.as_mut().map(|bound| bound.open(assigned.address, workers));
        if let Some(Err(failure)) = opened {
            self.pool.release(name, now);
            return Err(Refusal::Bind(failure));
        }
        let outcome = &mut self.outcome;
        let known = self.names.entry(name.into()).or_insert_with(|| {
            let is_saved = !assigned.is_new || !self.has_file;
            if !is_saved {
                outcome.new.push(name.into());
            }
            outcome.is_file_outdated = true;
            KnownName {
                address: assigned.address,
                counters: self.shared.with_counters(|table| table.of(name)),
                phase,
                is_saved,
                is_announced: false,
            }
        });
        if let Phase::Withdrawn(until) = known.phase {
            self.lingering.remove(&(until, name.into()));
            outcome.is_file_outdated = true;
        }
        known.phase = phase;
        outcome.touched.insert(name.into());
        Ok(())
    }

    /// Stops announcing a name. Its open connections go on.
    fn withdraw(&mut self, name: &str, now: Instant) {
        let Some(known) = self.names.get_mut(name) else { return };
        if matches!(known.phase, Phase::Served | Phase::Empty) {
            self.pool.release(name, self.clock.now());
            let until = now + self.shared.settings.linger();
            known.phase = Phase::Withdrawn(until);
            self.lingering.insert((until, name.into()));
            self.outcome.is_file_outdated = true;
            self.outcome.touched.insert(name.into());
        }
    }

    /// Forgets instances that no service has any more, once there are many.
    fn clean_up(&mut self) {
        if self.instances.len() > 2 * self.cleaned + MAX_FORGOTTEN_INSTANCES {
            self.instances.retain(|_, state| state.strong_count() > 0);
            self.cleaned = self.instances.len();
        }
    }
}

/// Returns the state of an instance, which all names that lead to it share.
fn instance(
    instances: &mut HashMap<SocketAddr, Weak<InstanceState>>,
    address: SocketAddr,
) -> Arc<InstanceState> {
    if let Some(state) = instances.get(&address).and_then(Weak::upgrade) {
        return state;
    }
    let state = Arc::new(InstanceState::new(address));
    instances.insert(address, Arc::downgrade(&state));
    state
}
