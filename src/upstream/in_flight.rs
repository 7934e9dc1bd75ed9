//! Queries in flight: identical ones are sent once, and waiting clients are limited.

use std::collections::HashMap;
use std::collections::hash_map;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use foldhash::fast::RandomState;
use tokio::sync::{Notify, SetOnce};

use super::cache::{CacheEntry, CacheKey};
use crate::metrics::Gauge;
use crate::name::Name;

/// Limit on waiting clients plus refreshes in progress.
const MAX_WAITING: u64 = 4096;

/// The queries in flight, shared by all threads.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    flights: Mutex<HashMap<Arc<[u8]>, Arc<Flight>, RandomState>>,
    slots: Gauge,
    /// Number of flights that cannot be joined; makes their keys unique.
    lone_flights: AtomicU64,
    /// Whether a flight may be suspicious; set by queries, cleared by scans.
    has_suspects: AtomicBool,
    /// Notified when `has_suspects` is set.
    suspected: Notify,
}

/// A query in flight, and then its result.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// The result; `None` if the leader gave up.
    result: SetOnce<Option<Arc<CacheEntry>>>,
    /// The address of an upstream that sent the same query to svcdns.
    suspect: OnceLock<IpAddr>,
    /// Number of scans that saw the suspicious flight, up to [`SCANS_BEFORE_CHECK`].
    scans: AtomicU8,
    /// Notified when a loop was found that may concern the query.
    interrupt: Notify,
}

/// Number of scans that see a suspicious flight before it is checked for a loop.
const SCANS_BEFORE_CHECK: u8 = 2;

/// A query in flight that an upstream may have sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SuspectedLoop {
    /// Name of the query.
    pub(super) name: Name,
    /// Address of the upstream.
    pub(super) address: IpAddr,
}

impl Flight {
    /// Waits for the result; ends at the latest when the leader ends.
    pub(super) async fn wait(&self) -> Option<Arc<CacheEntry>> {
        self.result.wait().await.clone()
    }
}

/// The caller's role in a query in flight.
#[derive(Debug)]
pub(super) enum Joined {
    /// The caller must send the query and complete the flight.
    Leader(FlightLeader),
    /// Another caller has sent the query; the caller waits for its result.
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

    /// Returns the notification that the query must be routed again.
    pub(super) fn interrupt(&self) -> &Notify {
        &self.flight.interrupt
    }

    /// Publishes the result to all followers.
    pub(super) fn complete(self, entry: Arc<CacheEntry>) {
        // Only the leader sets the result.
        let _ = self.flight.result.set(Some(entry));
    }
}

impl Drop for FlightLeader {
    fn drop(&mut self) {
        self.all.lock().remove(&self.key);
        let _ = self.flight.result.set(None);
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

    /// Joins the query in flight with this key, or starts it.
    ///
    /// `suspect` is the client's address if an upstream has the same address.
    pub(super) fn join(self: &Arc<Self>, key: CacheKey<'_>, suspect: Option<IpAddr>) -> Joined {
        let joined = match self.lock().entry(key.flight_bytes().into()) {
            hash_map::Entry::Occupied(flight) => Joined::Follower(Arc::clone(flight.get())),
            hash_map::Entry::Vacant(free) => {
                let key = Arc::clone(free.key());
                let flight = Arc::clone(free.insert(Arc::default()));
                Joined::Leader(FlightLeader { all: Arc::clone(self), key, flight })
            }
        };
        if let Some(address) = suspect {
            match &joined {
                Joined::Leader(leader) => self.suspect(&leader.flight, address),
                Joined::Follower(flight) => self.suspect(flight, address),
            }
        }
        joined
    }

    /// Starts a flight of its own for a query whose response cannot be shared.
    ///
    /// See [`super::message::is_shareable`].
    pub(super) fn start_alone(
        self: &Arc<Self>,
        key: CacheKey<'_>,
        suspect: Option<IpAddr>,
    ) -> FlightLeader {
        let serial = self.lone_flights.fetch_add(1, Ordering::Relaxed);
        // This key is longer than that of any other flight for the same name.
        let key: Arc<[u8]> = [key.flight_bytes(), &serial.to_be_bytes()].concat().into();
        let flight = Arc::<Flight>::default();
        self.lock().insert(Arc::clone(&key), Arc::clone(&flight));
        if let Some(address) = suspect {
            self.suspect(&flight, address);
        }
        FlightLeader { all: Arc::clone(self), key, flight }
    }

    /// Records that an upstream's address has sent the query of a flight.
    fn suspect(&self, flight: &Flight, address: IpAddr) {
        // If there are several addresses, the first one suffices.
        let _ = flight.suspect.set(address);
        if !self.has_suspects.load(Ordering::Relaxed)
            && !self.has_suspects.swap(true, Ordering::AcqRel)
        {
            self.suspected.notify_one();
        }
    }

    /// Waits until there may be a suspicious flight.
    pub(super) async fn suspected(&self) {
        self.suspected.notified().await;
    }

    /// Scans for suspicious flights, and returns those due for a check.
    ///
    /// A flight is due from the second scan that sees it, and is returned once. At most one is
    /// returned for each address, and none for `busy` addresses. Returns `None` if there is no
    /// suspicious flight; [`InFlight::suspected`] then waits for the next one.
    pub(super) fn scan(&self, busy: &[IpAddr]) -> Option<Vec<SuspectedLoop>> {
        self.has_suspects.store(false, Ordering::Release);
        let (mut any, mut due) = (false, Vec::<SuspectedLoop>::new());
        for (key, flight) in self.lock().iter() {
            let Some(address) = flight.suspect.get() else { continue };
            any = true;
            match flight.scans.load(Ordering::Relaxed) {
                SCANS_BEFORE_CHECK => {}
                scans if scans + 1 < SCANS_BEFORE_CHECK => {
                    flight.scans.store(scans + 1, Ordering::Relaxed);
                }
                _ if !busy.contains(address)
                    && !due.iter().any(|other| other.address == *address) =>
                {
                    flight.scans.store(SCANS_BEFORE_CHECK, Ordering::Relaxed);
                    if let Ok((name, _)) = Name::from_wire(key) {
                        due.push(SuspectedLoop { name, address: *address });
                    }
                }
                _ => {}
            }
        }
        if any {
            self.has_suspects.store(true, Ordering::Release);
        }
        any.then_some(due)
    }

    /// Interrupts all queries for names in a domain, so that they are routed again.
    pub(super) fn interrupt(&self, domain: &Name) {
        for (key, flight) in self.lock().iter() {
            if Name::from_wire(key).is_ok_and(|(name, _)| name.ends_with(domain)) {
                flight.interrupt.notify_one();
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
        all.join(CacheKey::new(&query, &mut EMPTY_KEY_BUFFER.clone()).unwrap(), None)
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

    #[tokio::test]
    async fn suspected_loops_are_checked_at_the_second_scan() {
        let all = Arc::new(InFlight::default());
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let name = |text: &str| Name::from_text(text).unwrap();
        let packet = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01c\x01b\0\0\x01\0\x01";
        let Parsed::Query(query) = Query::parse(packet) else { panic!("no query") };
        let mut buffer = EMPTY_KEY_BUFFER;
        let key = CacheKey::new(&query, &mut buffer).unwrap();
        let _other = join(&all, b"\x01a\x01b\0");
        assert_eq!(all.scan(&[]), None, "no flight is suspicious");
        let leader = all.join(key, None);
        assert!(matches!(all.join(key, Some(address)), Joined::Follower(_)));
        all.suspected().await;
        let lone = all.start_alone(key, Some(address));
        assert_eq!(all.scan(&[]), Some(Vec::new()));
        let due = SuspectedLoop { name: name("c.b"), address };
        assert_eq!(all.scan(&[address]), Some(Vec::new()), "another check is in progress");
        assert_eq!(all.scan(&[]), Some(vec![due]));
        assert_eq!(all.scan(&[]), Some(vec![due]), "one at a time");
        assert_eq!(all.scan(&[]), Some(Vec::new()), "each is checked once");
        let Joined::Leader(leader) = leader else { panic!("the query must not be in flight yet") };
        all.interrupt(&name("b"));
        leader.interrupt().notified().await;
        lone.interrupt().notified().await;
        drop((leader, lone));
        assert_eq!(all.scan(&[]), None);
        assert_eq!(all.lock().len(), 1);
    }

    #[test]
    fn the_number_of_waiting_clients_is_limited() {
        let all = Arc::new(InFlight::default());
        let slots: Vec<_> = (0..MAX_WAITING).map(|_| all.acquire_slot().unwrap()).collect();
        assert!(all.acquire_slot().is_none());
        assert_eq!(all.waiting(), MAX_WAITING);
        drop(slots);
        assert_eq!(all.waiting(), 0);
        assert!(all.acquire_slot().is_some());
    }
}
