//! Queries in flight: equal ones are sent once, and the number of waiting clients is limited.

use std::collections::HashMap;
use std::collections::hash_map;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use tokio::sync::SetOnce;

use super::cache::{CacheEntry, CacheKey};
use crate::metrics::Gauge;

/// Limit on waiting clients plus refreshes in progress.
const MAX_WAITING: u64 = 4096;

/// The queries in flight, shared by all threads.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    flights: Mutex<HashMap<Arc<[u8]>, Arc<Flight>, RandomState>>,
    slots: Gauge,
}

/// A query in flight, and then its result; `None` if its leader gave up.
#[derive(Debug, Default)]
pub(super) struct Flight(SetOnce<Option<Arc<CacheEntry>>>);

impl Flight {
    /// Waits for the result. Ends when the leader ends.
    pub(super) async fn wait(&self) -> Option<Arc<CacheEntry>> {
        self.0.wait().await.clone()
    }
}

/// The caller's part in a query in flight.
#[derive(Debug)]
pub(super) enum Joined {
    /// The caller must send the query and complete the flight.
    Leader(FlightLeader),
    /// Another caller has sent the query: wait for its result.
    Follower(Arc<Flight>),
}

/// Duty to send a query and publish its result.
///
/// If dropped without [`FlightLeader::complete`], even by a panic, it wakes all followers.
#[derive(Debug)]
pub(super) struct FlightLeader {
    all: Arc<InFlight>,
    key: Arc<[u8]>,
    flight: Arc<Flight>,
}

impl FlightLeader {
    /// Returns the key of the query.
    pub(super) fn key(&self) -> CacheKey<'_> {
        CacheKey::from_flight_bytes(&self.key)
    }

    /// Returns the flight, for the leader's own client to wait on.
    pub(super) fn flight(&self) -> Arc<Flight> {
        Arc::clone(&self.flight)
    }

    /// Publishes the result to all followers.
    pub(super) fn complete(self, entry: Arc<CacheEntry>) {
        // Only the leader sets the result.
        let _ = self.flight.0.set(Some(entry));
    }
}

impl Drop for FlightLeader {
    fn drop(&mut self) {
        self.all.lock().remove(&self.key);
        let _ = self.flight.0.set(None);
    }
}

/// Permit for one waiting client or refresh.
#[derive(Debug)]
pub(super) struct WaitSlot(Arc<InFlight>);

impl Drop for WaitSlot {
    fn drop(&mut self) {
        self.0.slots.decrement();
    }
}

impl InFlight {
    /// Returns a permit to wait, or `None` if too many are waiting.
    pub(super) fn acquire_slot(self: &Arc<Self>) -> Option<WaitSlot> {
        let slot = (self.slots.increment(), WaitSlot(Arc::clone(self)));
        (slot.0 <= MAX_WAITING).then_some(slot.1)
    }

    /// Joins the query in flight with this key, or starts one.
    pub(super) fn join(self: &Arc<Self>, key: CacheKey<'_>) -> Joined {
        match self.lock().entry(key.flight_bytes().into()) {
            hash_map::Entry::Occupied(flight) => Joined::Follower(Arc::clone(flight.get())),
            hash_map::Entry::Vacant(free) => {
                let key = Arc::clone(free.key());
                let flight = Arc::clone(free.insert(Arc::default()));
                Joined::Leader(FlightLeader { all: Arc::clone(self), key, flight })
            }
        }
    }

    /// Returns the number of waiting clients plus refreshes in progress.
    pub(super) fn waiting(&self) -> u64 {
        self.slots.get()
    }

    /// Locks the table. A poisoned lock is harmless: no code under it can panic.
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<[u8]>, Arc<Flight>, RandomState>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::EMPTY_KEY_BUFFER;
    use super::*;
    use crate::wire::{Parsed, Query};

    fn join(all: &Arc<InFlight>, name: &[u8]) -> Joined {
        let packet = [b"\0\x01\x01\0\0\x01\0\0\0\0\0\0", name, b"\0\x01\0\x01"].concat();
        let Parsed::Query(query) = Query::parse(&packet) else { panic!("no query") };
        all.join(CacheKey::new(&query, &mut EMPTY_KEY_BUFFER.clone()).unwrap())
    }

    #[tokio::test]
    async fn followers_wake_when_the_leader_panics() {
        let all = Arc::new(InFlight::default());
        let Joined::Leader(leader) = join(&all, b"\x01a\0") else {
            panic!("the query must not be in flight yet")
        };
        let Joined::Follower(flight) = join(&all, b"\x01A\0") else {
            panic!("case makes no difference")
        };
        assert!(matches!(join(&all, b"\x01b\0"), Joined::Leader(_)));
        let waiting = tokio::spawn(async move { flight.wait().await.is_none() });
        let asker = tokio::spawn(async move {
            let _asking = leader;
            panic!("on purpose");
        });
        assert!(asker.await.is_err());
        assert!(waiting.await.unwrap());
        assert!(all.lock().is_empty());
        assert!(matches!(join(&all, b"\x01a\0"), Joined::Leader(_)));
    }

    #[test]
    fn slots_are_limited_and_released() {
        let all = Arc::new(InFlight::default());
        let slots: Vec<_> = (0..MAX_WAITING).map(|_| all.acquire_slot().unwrap()).collect();
        assert!(all.acquire_slot().is_none());
        assert_eq!(all.waiting(), MAX_WAITING);
        drop(slots);
        assert_eq!(all.waiting(), 0);
        assert!(all.acquire_slot().is_some());
    }
}
