//! Counters of the bridge, in total and for each service.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::metrics::Counter;

/// Counters over all services.
#[derive(Debug, Default)]
pub struct Counters {
    /// Accepted connections.
    pub accepted: Counter,
    /// Connections reset because their address belongs to no service.
    pub unknown: Counter,
    /// Connections reset because a limit on open connections was reached.
    pub over_limit: Counter,
    /// Connections reset because the process ran out of descriptors, ports or memory.
    pub local_failures: Counter,
    /// Failures to accept a connection; the listener continues after each.
    pub accept_errors: Counter,
    /// Open connections, including those that wait for an instance.
    pub(super) open: AtomicUsize,
}

impl Counters {
    /// Returns the number of open connections.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// Counters of one service. They are kept while its registrations change.
#[derive(Debug, Default)]
pub(super) struct ServiceCounters {
    pub(super) open: AtomicUsize,
    pub(super) connections: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) request_bytes: AtomicU64,
    pub(super) response_bytes: AtomicU64,
    connect_micros: AtomicU64,
}

/// The counts of one service at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounts {
    /// Open connections, including those that wait for an instance.
    pub open: usize,
    /// Connections that reached an instance.
    pub connections: u64,
    /// Connections reset because no instance could be reached.
    pub failures: u64,
    /// Attempts that failed or were too slow, although the connection may have succeeded.
    pub retries: u64,
    /// Bytes from clients to instances.
    pub request_bytes: u64,
    /// Bytes from instances to clients.
    pub response_bytes: u64,
    /// Total time until connections reached an instance.
    pub connect_time: Duration,
}

impl ServiceCounters {
    /// Counts a connection that reached an instance after this time.
    pub(super) fn record_connection(&self, took: Duration) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.connect_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Returns the current counts.
    pub(super) fn read(&self) -> ServiceCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ServiceCounts {
            open: self.open.load(Ordering::Relaxed),
            connections: of(&self.connections),
            failures: of(&self.failures),
            retries: of(&self.retries),
            request_bytes: of(&self.request_bytes),
            response_bytes: of(&self.response_bytes),
            connect_time: Duration::from_micros(of(&self.connect_micros)),
        }
    }
}

/// An open connection, counted in total and at its service until it is dropped.
#[derive(Debug)]
pub(super) struct CountedConnection<'c> {
    total: &'c AtomicUsize,
    service: &'c AtomicUsize,
}

impl<'c> CountedConnection<'c> {
    /// Counts a connection, unless that would exceed one of the limits.
    pub(super) fn new(
        (total, max_total): (&'c AtomicUsize, usize),
        (service, max_of_service): (&'c AtomicUsize, usize),
    ) -> Option<Self> {
        if total.fetch_add(1, Ordering::Relaxed) >= max_total {
            total.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        if service.fetch_add(1, Ordering::Relaxed) >= max_of_service {
            total.fetch_sub(1, Ordering::Relaxed);
            service.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self { total, service })
    }
}

impl Drop for CountedConnection<'_> {
    fn drop(&mut self) {
        self.total.fetch_sub(1, Ordering::Relaxed);
        self.service.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_admitted_up_to_both_limits() {
        let (total, [first, second]) = (AtomicUsize::new(0), [(); 2].map(|()| AtomicUsize::new(0)));
        let admit = |service| CountedConnection::new((&total, 3), (service, 2));
        let held = [admit(&first).unwrap(), admit(&first).unwrap()];
        assert!(admit(&first).is_none(), "the limit of the service");
        let other = admit(&second).unwrap();
        assert!(admit(&second).is_none(), "the limit in total");
        drop(held);
        assert_eq!((total.load(Ordering::Relaxed), first.load(Ordering::Relaxed)), (1, 0));
        drop(other);
        assert!(admit(&first).is_some());
    }
}
