//! What the threads of the bridge share: the bridged services and the counters.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
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
    services: RwLock<HashMap<Ipv4Addr, Arc<BridgedService>>>,
    counters_of_services: Mutex<CounterTable>,
}

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

impl Shared {
    /// Creates the state of a bridge without services.
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            clock: PauseClock::start(),
            counters: Counters::default(),
            services: RwLock::default(),
            counters_of_services: Mutex::default(),
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

    /// Returns all services, in no particular order.
    pub(super) fn views(&self) -> Vec<BridgedView> {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        let view = |(address, service): (&Ipv4Addr, &Arc<BridgedService>)| BridgedView {
            name: service.counters.name.clone(),
            address: *address,
            counts: service.counters.read(),
            loops: service.routes.loops().to_vec(),
        };
        services.iter().map(view).collect()
    }
}
