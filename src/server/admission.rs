//! How many connections may be open: in all, by source, and by sources that are only turned away.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Counters, Limits, StreamKind};

/// The connections that are open now, over all listening addresses and kinds of connections.
#[derive(Debug)]
pub(super) struct Admission {
    limits: Limits,
    counters: Arc<Counters>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    strangers: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// One connection's place; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    admission: Arc<Admission>,
    kind: StreamKind,
    source: IpAddr,
    stranger: bool,
}

impl Admission {
    pub(super) fn new(limits: Limits, counters: Arc<Counters>) -> Self {
        Self { limits, counters, open: Mutex::default() }
    }

    /// Whether so many places are taken that a source should prove that it is where it says before it gets one.
    pub(super) fn is_busy(&self) -> bool {
        self.open().total >= self.limits.connections / 2
    }

    /// A place for a connection from `source`; a `stranger` has no access and stays only for its refusal. None when a
    /// limit is reached.
    pub(super) fn admit(self: &Arc<Self>, kind: StreamKind, source: IpAddr, stranger: bool) -> Option<Place> {
        let source = source.to_canonical();
        let by_source_limit =
            if source.is_loopback() { self.limits.connections_per_loopback_source } else { self.limits.connections_per_source };
        let mut open = self.open();
        let by_source = open.by_source.get(&source).copied().unwrap_or_default();
        let full = open.total >= self.limits.connections
            || by_source >= by_source_limit
            || (stranger && open.strangers >= self.limits.connections_without_access);
        if full {
            self.counters.of(kind).rejected.increment();
            return None;
        }
        open.total += 1;
        open.strangers += usize::from(stranger);
        open.by_source.insert(source, by_source + 1);
        drop(open);
        self.counters.of(kind).connections.increment();
        self.counters.of(kind).open.increment();
        Some(Place { admission: Arc::clone(self), kind, source, stranger })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Self { admission, kind, source, stranger } = self;
        if std::thread::panicking() {
            admission.counters.panics.increment();
        }
        admission.counters.of(*kind).open.decrement();
        let mut open = admission.open();
        open.total = open.total.saturating_sub(1);
        open.strangers = open.strangers.saturating_sub(usize::from(*stranger));
        // Sources that have gone leave nothing behind, else the map would grow with every address ever seen.
        match open.by_source.get_mut(source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                open.by_source.remove(source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(connections: usize) -> Arc<Admission> {
        let limits = Limits {
            connections,
            connections_per_source: 2,
            connections_per_loopback_source: 3,
            connections_without_access: 1,
            ..Limits::default()
        };
        Arc::new(Admission::new(limits, Arc::default()))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_source_has_its_share() {
        let admission = admission(100);
        let source = address("10.0.0.1");
        let first = admission.admit(StreamKind::Tcp, source, false).unwrap();
        let _second = admission.admit(StreamKind::Tcp, address("::ffff:10.0.0.1"), false).unwrap();
        assert!(admission.admit(StreamKind::Tcp, source, false).is_none());
        assert!(admission.admit(StreamKind::Tcp, address("10.0.0.2"), false).is_some());
        drop(first);
        assert!(admission.admit(StreamKind::Tcp, source, false).is_some());
        assert_eq!(admission.counters.tcp.rejected.get(), 1);
    }

    #[test]
    fn loopback_has_a_larger_share() {
        let admission = admission(100);
        let held: Vec<_> = std::iter::from_fn(|| admission.admit(StreamKind::Tcp, address("127.0.0.1"), false)).take(50).collect();
        assert_eq!(held.len(), 3);
    }

    #[test]
    fn the_total_holds_over_all_sources() {
        let admission = admission(4);
        let held: Vec<_> = (0..9).filter_map(|host| admission.admit(StreamKind::Tcp, address(&format!("10.0.0.{host}")), false)).collect();
        assert_eq!(held.len(), 4);
        assert_eq!(admission.counters.tcp.open.get(), 4);
    }

    #[test]
    fn the_limits_hold_over_all_kinds_together() {
        let admission = admission(4);
        let source = address("10.0.0.1");
        let _tcp = admission.admit(StreamKind::Tcp, source, false).unwrap();
        assert!(!admission.is_busy());
        let _tls = admission.admit(StreamKind::Tls, source, false).unwrap();
        assert!(admission.is_busy());
        assert!(admission.admit(StreamKind::Quic, source, false).is_none());
        let counters = &admission.counters;
        assert_eq!(
            [&counters.tcp, &counters.tls, &counters.quic].map(|kind| (kind.open.get(), kind.rejected.get())),
            [(1, 0), (1, 0), (0, 1)]
        );
    }

    #[test]
    fn strangers_cannot_take_the_places_of_others() {
        let admission = admission(100);
        let _stranger = admission.admit(StreamKind::Tcp, address("10.0.0.1"), true).unwrap();
        assert!(admission.admit(StreamKind::Tcp, address("10.0.0.2"), true).is_none());
        assert!(admission.admit(StreamKind::Tcp, address("10.0.0.2"), false).is_some());
    }

    #[test]
    fn nothing_is_kept_of_a_source_that_has_gone() {
        let admission = admission(100);
        drop((0..50).filter_map(|host| admission.admit(StreamKind::Tcp, address(&format!("10.0.0.{host}")), false)).collect::<Vec<_>>());
        let open = admission.open();
        assert_eq!((open.total, open.strangers, open.by_source.len()), (0, 0, 0));
        assert_eq!(admission.counters.tcp.open.get(), 0);
    }
}
