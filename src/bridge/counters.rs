//! Counters of the bridge, in total and for each service.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::metrics::Counter;

/// Limit on the services with a label of their own in metrics; all others share the empty one.
const MAX_LABELS: usize = 100;
/// Number of forgotten services at which the table of counters is cleaned up.
const MAX_FORGOTTEN_SERVICES: usize = 1024;

/// Counters over all services.
#[derive(Debug, Default)]
pub struct Counters {
    /// Accepted connections.
    pub accepted: Counter,
    /// Connections reset because their address belongs to no service.
    pub unknown: Counter,
    /// Connections reset because their port leads to no instance.
    pub without_instance: Counter,
    /// Connections reset because their client is on another machine.
    pub foreign: Counter,
    /// Connections reset because a limit on open connections was reached.
    pub over_limit: Counter,
    /// Connections reset because the process ran out of descriptors or memory.
    pub local_failures: Counter,
    /// Failures to accept a connection; the listener continues after each.
    pub accept_errors: Counter,
    /// Times that the rules of the kernel were lost and added again.
    pub restored: Counter,
    /// Open connections, including those that wait for an instance.
    pub(super) open: AtomicUsize,
    /// Services with a label of their own.
    labels: AtomicUsize,
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
    /// The name of the service in front of the zone.
    pub(super) name: Box<str>,
    /// Whether metrics have a label for the service; decided once, by its first connection.
    has_label: OnceLock<bool>,
    pub(super) open: AtomicUsize,
    pub(super) connections: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) request_bytes: AtomicU64,
    pub(super) response_bytes: AtomicU64,
    connect_micros: AtomicU64,
}

/// The counts of one or more services at a moment.
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

impl ServiceCounts {
    fn add(&mut self, more: Self) {
        let Self {
            open,
            connections,
            failures,
            retries,
            request_bytes,
            response_bytes,
            connect_time,
        } = more;
        self.open += open;
        self.connections += connections;
        self.failures += failures;
        self.retries += retries;
        self.request_bytes += request_bytes;
        self.response_bytes += response_bytes;
        self.connect_time = self.connect_time.saturating_add(connect_time);
    }
}

impl ServiceCounters {
    /// Creates the counters of a service.
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Gives the service a label in metrics, if there are few enough.
    ///
    /// The decision is final: were the service to get its label later, the sum of all others
    /// would go down.
    pub(super) fn label(&self, counters: &Counters) {
        self.has_label.get_or_init(|| counters.labels.fetch_add(1, Ordering::Relaxed) < MAX_LABELS);
    }

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

/// The counters of all services since the start, whose sums never go down.
///
/// A service that comes back continues with its counters: its old connections may still be open.
#[derive(Debug, Default)]
pub(super) struct CounterTable {
    by_name: HashMap<Box<str>, Arc<ServiceCounters>>,
    /// Size of `by_name` after its last cleanup.
    cleaned: usize,
    /// The counts of services that the table has forgotten.
    forgotten: ServiceCounts,
}

impl CounterTable {
    /// Returns the counters of a service.
    pub(super) fn of(&mut self, name: &str) -> Arc<ServiceCounters> {
        if let Some(known) = self.by_name.get(name) {
            return Arc::clone(known);
        }
        self.clean_up();
        let counters = Arc::new(ServiceCounters::new(name));
        self.by_name.insert(name.into(), Arc::clone(&counters));
        counters
    }

    /// Returns the counts of all services together.
    pub(super) fn sum(&self) -> ServiceCounts {
        let mut sum = self.forgotten;
        self.by_name.values().for_each(|service| sum.add(service.read()));
        sum
    }

    /// Returns the counts by label, the empty one last, if services share it.
    pub(super) fn by_label(&self) -> Vec<(Box<str>, ServiceCounts)> {
        let mut rest = self.forgotten;
        let mut labelled = Vec::new();
        for (name, service) in &self.by_name {
            match service.has_label.get() {
                Some(true) => labelled.push((name.clone(), service.read())),
                Some(false) => rest.add(service.read()),
                // No connection yet.
                None => {}
            }
        }
        labelled.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        labelled.extend((rest != ServiceCounts::default()).then_some((Box::default(), rest)));
        labelled
    }

    /// Forgets services without address, connection and label, once there are many.
    fn clean_up(&mut self) {
        if self.by_name.len() <= 2 * self.cleaned + MAX_FORGOTTEN_SERVICES {
            return;
        }
        let forgotten = &mut self.forgotten;
        self.by_name.retain(|_, service| {
            let is_used = Arc::strong_count(service) > 1 || service.has_label.get() == Some(&true);
            if !is_used {
                forgotten.add(service.read());
            }
            is_used
        });
        self.cleaned = self.by_name.len();
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

    #[test]
    fn the_labels_of_metrics_are_bounded_and_final() {
        let (mut table, counters) = (CounterTable::default(), Counters::default());
        let services: Vec<_> = (0..250).map(|n| table.of(&format!("s{n}"))).collect();
        for service in &services {
            service.label(&counters);
            service.record_connection(Duration::from_millis(2));
        }
        // However many connections another one has by now.
        (0..9).for_each(|_| services[249].record_connection(Duration::ZERO));
        let by_label = table.by_label();
        assert_eq!(by_label.len(), MAX_LABELS + 1);
        assert!(
            by_label.iter().any(|(label, counts)| &**label == "s99" && counts.connections == 1)
        );
        let (label, rest) = by_label.last().unwrap();
        assert_eq!((&**label, rest.connections), ("", 159));
        assert_eq!(rest.connect_time, Duration::from_millis(300));
        assert_eq!(CounterTable::default().by_label(), []);
    }

    #[test]
    fn sums_survive_services_that_come_and_go() {
        let (mut table, counters) = (CounterTable::default(), Counters::default());
        let open = table.of("stays");
        open.label(&counters);
        let again = table.of("stays");
        assert!(Arc::ptr_eq(&open, &again), "the same service continues with its counters");
        let mut before = (0, 0);
        for n in 0_u64..5000 {
            let service = table.of(&format!("s{n}"));
            service.label(&counters);
            service.record_connection(Duration::ZERO);
            let sums = (table.sum().connections, table.by_label().last().unwrap().1.connections);
            assert_eq!(sums.0, n + 1);
            assert!(sums.1 >= before.1, "the sum of the empty label went down");
            before = sums;
        }
        assert!(table.by_name.len() < 2 * MAX_FORGOTTEN_SERVICES, "{}", table.by_name.len());
    }
}
