//! What the threads of the bridge share: the bridged services and the counters.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::counters::{CounterTable, Counters, ServiceCounters, ServiceCounts};
use super::instance::PauseClock;
use super::routes::Routes;
use super::settings::Settings;

/// A bridged service, as the connections to its address see it. A change replaces it.
#[derive(Debug)]
pub(super) struct BridgedService {
    /// The instances behind each port.
    pub(super) routes: Routes,
    /// Its name and its counters.
    pub(super) counters: Arc<ServiceCounters>,
}

/// What the threads of the bridge share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) clock: PauseClock,
    pub(super) counters: Counters,
    services: RwLock<BTreeMap<Ipv4Addr, Arc<BridgedService>>>,
    counters_of_services: Mutex<CounterTable>,
    /// Reason why no client gets an address at the moment.
    problem: RwLock<Option<String>>,
}

/// Number of services that a reader of all services copies at a time.
///
/// Every new connection needs the same lock.
const SERVICES_PER_LOCK: usize = 1024;

/// A bridged service at a moment, for people and metrics.
#[derive(Clone, Debug)]
pub struct BridgedView {
    /// The name in front of the zone.
    pub name: Box<str>,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its counts.
    pub counts: ServiceCounts,
    /// Endpoints that were left out because they are in the pool itself.
    pub loops: Vec<SocketAddr>,
}

/// Where the connections to one port of a bridged service lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgedPort {
    /// The port.
    pub port: u16,
    /// The instances behind it.
    pub instances: Vec<BridgedInstance>,
}

/// An instance behind a port of a bridged service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgedInstance {
    /// Where it listens.
    pub address: SocketAddr,
    /// Open connections to it, over all names.
    pub open: u32,
    /// Whether new connections avoid it, because one failed.
    pub is_set_aside: bool,
}

impl Shared {
    /// Creates the state of a bridge without services.
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            clock: PauseClock::start(),
            counters: Counters::default(),
            services: RwLock::default(),
            counters_of_services: Mutex::default(),
            problem: RwLock::default(),
        }
    }

    /// Calls a function with the counters of all services since the start.
    pub(super) fn with_counters<T>(&self, call: impl FnOnce(&mut CounterTable) -> T) -> T {
        call(&mut self.counters_of_services.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the number of services.
    pub(super) fn len(&self) -> usize {
        self.services.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Returns the service with this address.
    pub(super) fn service(&self, address: Ipv4Addr) -> Option<Arc<BridgedService>> {
        self.services.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }

    /// Returns where connections to an address lead, by port; empty if no service has it.
    pub(super) fn ports(&self, address: Ipv4Addr) -> Vec<BridgedPort> {
        let Some(service) = self.service(address) else { return Vec::new() };
        let now = self.clock.now();
        let ports = service.routes.ports().map(|port| {
            let instances = service.routes.instances(port).iter().map(|one| BridgedInstance {
                address: one.state.address,
                open: one.state.open(),
                is_set_aside: one.state.is_set_aside(now),
            });
            BridgedPort { port, instances: instances.collect() }
        });
        ports.collect()
    }

    /// Returns the endpoints that the service with this address leaves out as loops.
    pub(super) fn loops(&self, address: Ipv4Addr) -> Vec<SocketAddr> {
        self.service(address).map_or_else(Vec::new, |service| service.routes.loops().to_vec())
    }

    /// Adds, replaces and removes services.
    pub(super) fn update(
        &self,
        changes: impl IntoIterator<Item = (Ipv4Addr, Option<BridgedService>)>,
    ) {
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        for (address, service) in changes {
            match service {
                Some(service) => services.insert(address, Arc::new(service)),
                None => services.remove(&address),
            };
        }
    }

    /// Returns all services, by address.
    pub(super) fn views(&self) -> Vec<BridgedView> {
        let (mut views, mut after) = (Vec::new(), Unbounded);
        loop {
            let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
            let part: Vec<_> = services
                .range((after, Unbounded))
                .take(SERVICES_PER_LOCK)
                .map(|(address, service)| (*address, Arc::clone(service)))
                .collect();
            drop(services);
            let Some((last, _)) = part.last() else { return views };
            after = Excluded(*last);
            views.extend(part.iter().map(|(address, service)| service.view(*address)));
        }
    }

    /// Returns why no client gets an address at the moment, if so.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets why no client gets an address.
    pub(super) fn set_problem(&self, problem: Option<String>) {
        *self.problem.write().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// Returns whether a connection to this destination only asks whether the kernel redirects it.
    pub(super) fn is_probe(&self, destination: SocketAddrV4) -> bool {
        !self.settings.bind && *destination.ip() == self.settings.pool.broadcast()
    }
}

impl BridgedService {
    /// Returns what people and metrics see.
    fn view(&self, address: Ipv4Addr) -> BridgedView {
        BridgedView {
            name: self.counters.name.clone(),
            address,
            counts: self.counters.read(),
            loops: self.routes.loops().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_services_are_seen_in_parts() {
        let shared = Shared::new(Settings::default());
        let count = 2 * SERVICES_PER_LOCK + 7;
        let address = |n: usize| {
            let n = u32::try_from(n).unwrap();
            Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 83, 0, 1)) + n)
        };
        shared.update((0..count).map(|n| {
            let (routes, counters) = (Routes::default(), Arc::default());
            (address(n), Some(BridgedService { routes, counters }))
        }));
        let views = shared.views();
        assert_eq!(views.len(), count);
        assert!(views.iter().enumerate().all(|(n, view)| view.address == address(n)));
    }
}
