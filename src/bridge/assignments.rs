//! The names that are bridged: follows their changes, and gives them addresses.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use super::bound::BoundListeners;
use super::counters::ServiceCounters;
use super::instance::InstanceState;
use super::pool::{AddressPool, Assignment, UnixSeconds};
use super::routes::Routes;
use super::shared::{BridgedService, Shared};
use super::workers::Workers;
use crate::service::{BridgeCandidate, BridgeChange, BridgedName};

/// Number of forgotten instances at which the table of instances is cleaned up.
const MAX_FORGOTTEN_INSTANCES: usize = 1024;

/// The names with addresses, and the state of their instances.
#[derive(Debug)]
pub(super) struct Assignments {
    pool: AddressPool,
    shared: Arc<Shared>,
    /// The counters of each bridged name, by its name.
    counters: HashMap<Box<str>, (Ipv4Addr, Arc<ServiceCounters>)>,
    /// The names whose clients get the address.
    announced: HashMap<Box<str>, Ipv4Addr>,
    instances: HashMap<SocketAddr, Weak<InstanceState>>,
    /// Size of `instances` after its last cleanup.
    cleaned: usize,
    bound: Option<BoundListeners>,
    /// Whether the log says that the pool is full.
    said_full: bool,
    /// Whether the log says that a port is taken.
    said_taken: bool,
}

/// The result of applying changes.
#[derive(Debug, Default)]
pub(super) struct AppliedChanges {
    /// Names whose clients get another address from now on.
    pub(super) announcements: Vec<BridgedName>,
    /// Changes of the services behind addresses.
    services: Vec<(Ipv4Addr, Option<BridgedService>)>,
    /// Whether the file has to be written first.
    pub(super) is_file_outdated: bool,
}

impl Assignments {
    /// Creates an empty set of bridged names; `bound` opens listeners for each of them.
    pub(super) fn new(
        pool: AddressPool,
        shared: Arc<Shared>,
        bound: Option<BoundListeners>,
    ) -> Self {
        Self {
            pool,
            shared,
            counters: HashMap::new(),
            announced: HashMap::new(),
            instances: HashMap::new(),
            cleaned: 0,
            bound,
            said_full: false,
            said_taken: false,
        }
    }

    /// Applies changes of names; only the last one of each name counts.
    ///
    /// Connections reach the new instances once [`Self::publish`] was called with the result.
    pub(super) fn apply(
        &mut self,
        changes: Vec<BridgeChange>,
        workers: &Workers,
    ) -> AppliedChanges {
        let mut applied = AppliedChanges::default();
        let mut last: BTreeMap<Box<str>, BridgeChange> = BTreeMap::new();
        for change in changes {
            last.insert(change.name().into(), change);
        }
        let now = unix_seconds();
        for (name, change) in last {
            let announced = match change {
                BridgeChange::Put(candidate) => self.put(&candidate, now, workers, &mut applied),
                BridgeChange::Removed(_) => {
                    self.remove(&name, now, &mut applied);
                    None
                }
            };
            let before = match announced {
                Some(address) => self.announced.insert(name.clone(), address),
                None => self.announced.remove(&name),
            };
            if before != announced {
                applied.announcements.push(BridgedName { name, address: announced });
            }
        }
        applied
    }

    /// Makes the new services those that connections reach.
    pub(super) fn publish(&self, applied: &mut AppliedChanges) {
        self.shared.update(applied.services.drain(..));
    }

    /// Returns all names with their addresses, for the file.
    pub(super) fn saved(&self) -> BTreeMap<Box<str>, Assignment> {
        let names = self.pool.assignments();
        names.map(|(name, assignment)| (name.into(), assignment)).collect()
    }

    /// Bridges a name, or changes its instances; returns the address to announce, if any.
    fn put(
        &mut self,
        candidate: &BridgeCandidate,
        now: UnixSeconds,
        workers: &Workers,
        applied: &mut AppliedChanges,
    ) -> Option<Ipv4Addr> {
        let settings = &self.shared.settings;
        let BridgeCandidate { name, namespace, registrations } = candidate;
        let protocols = registrations.iter().map(|one| one.protocol.as_deref());
        if settings.policy.refusal(name, namespace, protocols).is_some() {
            self.remove(name, now, applied);
            return None;
        }
        let instances = &mut self.instances;
        let routes = Routes::new(registrations, &settings.ports, settings.pool, |address| {
            instance(instances, address)
        });
        self.clean_up();
        if !routes.loops().is_empty() && !self.counters.contains_key(name) {
            tracing::warn!(
                service = &**name,
                endpoint = %routes.loops()[0],
                "an endpoint is in the bridge's own pool, and is left out"
            );
        }
        // A name without instances gets no address, but keeps the one it has: a client that
        // remembers it is refused at once.
        if routes.is_empty() && !self.counters.contains_key(name) {
            return None;
        }
        let (address, counters) = self.assign(name, now, workers, applied)?;
        let is_announced = !routes.is_empty();
        applied.services.push((address, Some(BridgedService { routes, counters })));
        is_announced.then_some(address)
    }

    /// Returns the address and the counters of a name; `None` if it has to stay direct.
    fn assign(
        &mut self,
        name: &str,
        now: UnixSeconds,
        workers: &Workers,
        applied: &mut AppliedChanges,
    ) -> Option<(Ipv4Addr, Arc<ServiceCounters>)> {
        if let Some(known) = self.counters.get(name) {
            return Some(known.clone());
        }
        let Some((address, is_new)) = self.pool.assign(name, now) else {
            if !std::mem::replace(&mut self.said_full, true) {
                tracing::warn!(
                    service = name,
                    pool = %self.pool.network(),
                    "the bridge's pool has no free address: this and further services stay \
                     direct; choose a larger bridge.pool"
                );
            }
            return None;
        };
        applied.is_file_outdated |= is_new;
        if let Some(Err(error)) = self.bound.as_mut().map(|bound| bound.open(address, workers)) {
            if !std::mem::replace(&mut self.said_taken, true) {
                tracing::warn!(
                    service = name,
                    %error,
                    "this service stays direct, and so does every other one with this problem"
                );
            }
            self.pool.release(name, now);
            return None;
        }
        let counters = self.shared.with_counters(|table| table.of(name));
        self.counters.insert(name.into(), (address, Arc::clone(&counters)));
        Some((address, counters))
    }

    /// Stops bridging a name. Its open connections go on.
    fn remove(&mut self, name: &str, now: UnixSeconds, applied: &mut AppliedChanges) {
        let Some((address, _)) = self.counters.remove(name) else { return };
        applied.is_file_outdated |= self.pool.release(name, now);
        applied.services.push((address, None));
        if let Some(bound) = &mut self.bound {
            bound.close(address);
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

/// Returns the time for the file.
pub(super) fn unix_seconds() -> UnixSeconds {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
