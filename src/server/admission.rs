//! Limits open connections: in total, per source, and for sources without access.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Counters, Limits, StreamKind};

/// The open connections of all listening addresses and kinds.
#[derive(Debug)]
pub(super) struct Admission {
    limits: Limits,
    counters: Arc<Counters>,
    open: Mutex<OpenConnections>,
}

/// Numbers of open connections.
#[derive(Debug, Default)]
struct OpenConnections {
    total: usize,
    /// Connections of sources without access.
    denied: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// Permit of an admitted connection; dropping it frees its share of the limits.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    admission: Arc<Admission>,
    kind: StreamKind,
    source: IpAddr,
    denied: bool,
}

impl Admission {
    /// Returns an admission control without open connections.
    pub(super) fn new(limits: Limits, counters: Arc<Counters>) -> Self {
        Self { limits, counters, open: Mutex::default() }
    }

    /// Returns whether half of the connection limit is used.
    ///
    /// From then on, a QUIC client must validate its address first.
    pub(super) fn is_busy(&self) -> bool {
        self.lock().total >= self.limits.connections / 2
    }

    /// Admits a connection from `source`; returns `None` if a limit is reached.
    ///
    /// A `denied` source has no access; its connection stays open only for the refusal.
    pub(super) fn admit(
        self: &Arc<Self>,
        kind: StreamKind,
        source: IpAddr,
        denied: bool,
    ) -> Option<ConnectionPermit> {
        let source = source.to_canonical();
        let by_source_limit = if source.is_loopback() {
            self.limits.connections_per_loopback_source
        } else {
            self.limits.connections_per_source
        };
        let mut open = self.lock();
        let by_source = open.by_source.get(&source).copied().unwrap_or_default();
        let full = open.total >= self.limits.connections
            || by_source >= by_source_limit
            || (denied && open.denied >= self.limits.connections_without_access);
        if full {
            self.counters.of(kind).rejected.increment();
            return None;
        }
        open.total += 1;
        open.denied += usize::from(denied);
        open.by_source.insert(source, by_source + 1);
        drop(open);
        self.counters.of(kind).connections.increment();
        self.counters.of(kind).open.increment();
        Some(ConnectionPermit { admission: Arc::clone(self), kind, source, denied })
    }

    /// Locks the numbers; they stay valid if a thread panicked.
    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let Self { admission, kind, source, denied } = self;
        if std::thread::panicking() {
            admission.counters.panics.increment();
        }
        admission.counters.of(*kind).open.decrement();
        let mut open = admission.lock();
        open.total = open.total.saturating_sub(1);
        open.denied = open.denied.saturating_sub(usize::from(*denied));
        // Remove a source without connections, else the map grows with every address ever seen.
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
    fn each_source_has_its_own_limit() {
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
    fn loopback_sources_have_a_higher_limit() {
        let admission = admission(100);
        let held: Vec<_> =
            std::iter::from_fn(|| admission.admit(StreamKind::Tcp, address("127.0.0.1"), false))
                .take(50)
                .collect();
        assert_eq!(held.len(), 3);
    }

    #[test]
    fn the_total_limit_covers_all_sources() {
        let admission = admission(4);
        let held: Vec<_> = (0..9)
            .filter_map(|host| {
                admission.admit(StreamKind::Tcp, address(&format!("10.0.0.{host}")), false)
            })
            .collect();
        assert_eq!(held.len(), 4);
        assert_eq!(admission.counters.tcp.open.get(), 4);
    }

    #[test]
    fn limits_are_shared_by_all_kinds_of_connections() {
        let admission = admission(4);
        let source = address("10.0.0.1");
        let _tcp = admission.admit(StreamKind::Tcp, source, false).unwrap();
        assert!(!admission.is_busy());
        let _tls = admission.admit(StreamKind::Tls, source, false).unwrap();
        assert!(admission.is_busy());
        assert!(admission.admit(StreamKind::Quic, source, false).is_none());
        let counters = &admission.counters;
        assert_eq!(
            [&counters.tcp, &counters.tls, &counters.quic]
                .map(|kind| (kind.open.get(), kind.rejected.get())),
            [(1, 0), (1, 0), (0, 1)]
        );
    }

    #[test]
    fn sources_without_access_have_a_limit_of_their_own() {
        let admission = admission(100);
        let _denied = admission.admit(StreamKind::Tcp, address("10.0.0.1"), true).unwrap();
        assert!(admission.admit(StreamKind::Tcp, address("10.0.0.2"), true).is_none());
        assert!(admission.admit(StreamKind::Tcp, address("10.0.0.2"), false).is_some());
    }

    #[test]
    fn closed_connections_leave_no_state_behind() {
        let admission = admission(100);
        drop(
            (0..50)
                .filter_map(|host| {
                    admission.admit(StreamKind::Tcp, address(&format!("10.0.0.{host}")), false)
                })
                .collect::<Vec<_>>(),
        );
        let open = admission.lock();
        assert_eq!((open.total, open.denied, open.by_source.len()), (0, 0, 0));
        assert_eq!(admission.counters.tcp.open.get(), 0);
    }
}
