//! Questions in flight: equal ones are asked once, and there is a bound to all.

use std::collections::HashMap;
use std::collections::hash_map;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use tokio::sync::SetOnce;

use super::cache::{Entry, Key};
use crate::metrics::Gauge;

/// Most clients that wait, and refreshes under way, at a time.
const MOST: u64 = 4096;

/// What is being asked now. Shared by all threads.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    flights: Mutex<HashMap<Arc<[u8]>, Arc<Flight>, RandomState>>,
    places: Gauge,
}

/// One question on its way, and then what it came to; none when whoever asked is gone without having said anything.
#[derive(Debug, Default)]
pub(super) struct Flight(SetOnce<Option<Arc<Entry>>>);

impl Flight {
    /// Waits for what it comes to. Has an end, for whoever asks has one.
    pub(super) async fn outcome(&self) -> Option<Arc<Entry>> {
        self.0.wait().await.clone()
    }
}

/// What to do with a question.
#[derive(Debug)]
pub(super) enum Joined {
    /// Ask it, and tell what it came to.
    First(Asking),
    /// Wait: somebody asks it already.
    Other(Arc<Flight>),
}

/// The duty to ask a question. Dropped without [`Asking::tell`], be it by a panic, it leaves nobody waiting.
#[derive(Debug)]
pub(super) struct Asking {
    all: Arc<InFlight>,
    key: Arc<[u8]>,
    flight: Arc<Flight>,
}

impl Asking {
    /// The question.
    pub(super) fn key(&self) -> Key<'_> {
        Key::from_flight(&self.key)
    }

    /// For others, and for its own client, to wait on.
    pub(super) fn flight(&self) -> Arc<Flight> {
        Arc::clone(&self.flight)
    }

    /// Tells everybody.
    pub(super) fn tell(self, entry: Arc<Entry>) {
        // Nobody else can have set it.
        let _ = self.flight.0.set(Some(entry));
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.all.lock().remove(&self.key);
        let _ = self.flight.0.set(None);
    }
}

/// One of a bounded number of places.
#[derive(Debug)]
pub(super) struct Place(Arc<InFlight>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.decrement();
    }
}

impl InFlight {
    /// A place for one who waits, if there is one left.
    pub(super) fn place(self: &Arc<Self>) -> Option<Place> {
        let place = (self.places.increment(), Place(Arc::clone(self)));
        (place.0 <= MOST).then_some(place.1)
    }

    /// Takes part in a question.
    pub(super) fn join(self: &Arc<Self>, key: Key<'_>) -> Joined {
        match self.lock().entry(key.of_flight().into()) {
            hash_map::Entry::Occupied(flight) => Joined::Other(Arc::clone(flight.get())),
            hash_map::Entry::Vacant(free) => {
                let key = Arc::clone(free.key());
                let flight = Arc::clone(free.insert(Arc::default()));
                Joined::First(Asking { all: Arc::clone(self), key, flight })
            }
        }
    }

    /// Clients that wait, and refreshes under way.
    pub(super) fn waiting(&self) -> u64 {
        self.places.get()
    }

    /// No code that can panic runs under the lock, and the table is whole between any two of its calls.
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<[u8]>, Arc<Flight>, RandomState>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::ROOM;
    use super::*;
    use crate::wire::{Parsed, Query};

    fn join(all: &Arc<InFlight>, name: &[u8]) -> Joined {
        let packet = [b"\0\x01\x01\0\0\x01\0\0\0\0\0\0", name, b"\0\x01\0\x01"].concat();
        let Parsed::Query(query) = Query::parse(&packet) else { panic!("no query") };
        all.join(Key::new(&query, &mut ROOM.clone()).unwrap())
    }

    #[tokio::test]
    async fn one_asks_and_whoever_gives_up_leaves_nobody_waiting() {
        let all = Arc::new(InFlight::default());
        let Joined::First(asking) = join(&all, b"\x01a\0") else { panic!("nobody asks yet") };
        let Joined::Other(flight) = join(&all, b"\x01A\0") else { panic!("case makes no difference") };
        assert!(matches!(join(&all, b"\x01b\0"), Joined::First(_)));
        let waiting = tokio::spawn(async move { flight.outcome().await.is_none() });
        let asker = tokio::spawn(async move {
            let _asking = asking;
            panic!("asked to panic");
        });
        assert!(asker.await.is_err());
        assert!(waiting.await.unwrap());
        assert!(all.lock().is_empty());
        assert!(matches!(join(&all, b"\x01a\0"), Joined::First(_)));
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let all = Arc::new(InFlight::default());
        let places: Vec<_> = (0..MOST).map(|_| all.place().unwrap()).collect();
        assert!(all.place().is_none());
        assert_eq!(all.waiting(), MOST);
        drop(places);
        assert_eq!(all.waiting(), 0);
        assert!(all.place().is_some());
    }
}
