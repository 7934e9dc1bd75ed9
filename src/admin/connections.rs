//! The open connections of a listener: a new one replaces the one that has been idle longest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

/// The open connections of a listener, up to a limit.
#[derive(Debug)]
pub(super) struct AdminConnections {
    limit: usize,
    open: Mutex<OpenAdminConnections>,
}

#[derive(Debug, Default)]
struct OpenAdminConnections {
    last_number: u64,
    by_number: HashMap<u64, Occupancy>,
}

/// What one connection is doing.
#[derive(Debug)]
struct Occupancy {
    /// Requests whose response is not made yet, and open change streams.
    busy: usize,
    /// Since when `busy` is 0, if it is.
    idle_since: Instant,
    /// Cancelled to close the connection.
    close: CancellationToken,
}

/// One open connection; dropping the last clone gives its place back.
#[derive(Clone, Debug)]
pub(super) struct AdminConnection(Arc<ConnectionPlace>);

/// The place of a connection in the limit.
#[derive(Debug)]
struct ConnectionPlace {
    number: u64,
    connections: Arc<AdminConnections>,
    close: CancellationToken,
}

/// Guard of a request or change stream: its connection is not idle until the guard is dropped.
#[derive(Debug)]
pub(super) struct BusyGuard(AdminConnection);

impl AdminConnections {
    /// Creates room for `limit` connections.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, open: Mutex::default() })
    }

    /// Admits a connection; at the limit, the one that has been idle longest is closed for it.
    ///
    /// Returns `None` if all connections are busy.
    pub(super) fn admit(self: &Arc<Self>) -> Option<AdminConnection> {
        let mut open = self.lock();
        if open.by_number.len() >= self.limit {
            let idle = open.by_number.iter().filter(|(_, connection)| connection.busy == 0);
            let (&longest, _) = idle.min_by_key(|(_, connection)| connection.idle_since)?;
            if let Some(closed) = open.by_number.remove(&longest) {
                closed.close.cancel();
            }
        }
        open.last_number += 1;
        let (number, close) = (open.last_number, CancellationToken::new());
        let occupancy = Occupancy { busy: 0, idle_since: Instant::now(), close: close.clone() };
        open.by_number.insert(number, occupancy);
        Some(AdminConnection(Arc::new(ConnectionPlace {
            number,
            connections: Arc::clone(self),
            close,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, OpenAdminConnections> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AdminConnection {
    /// Waits until the connection must give way to another one.
    pub(super) async fn replaced(&self) {
        self.0.close.cancelled().await;
    }

    /// Marks the connection as busy until the returned guard is dropped.
    pub(super) fn begin(&self) -> BusyGuard {
        self.update(|connection| connection.busy += 1);
        BusyGuard(self.clone())
    }

    /// Returns whether a response is being made, or a change stream is open.
    pub(super) fn is_busy(&self) -> bool {
        let open = self.0.connections.lock();
        open.by_number.get(&self.0.number).is_some_and(|connection| connection.busy > 0)
    }

    /// Changes the state of the connection, unless it was replaced.
    fn update(&self, change: impl FnOnce(&mut Occupancy)) {
        if let Some(connection) = self.0.connections.lock().by_number.get_mut(&self.0.number) {
            change(connection);
        }
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.update(|connection| {
            connection.busy -= 1;
            connection.idle_since = Instant::now();
        });
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.connections.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_connection_replaces_the_one_idle_longest_but_none_that_is_busy() {
        let connections = AdminConnections::new(2);
        let (first, second) = (connections.admit().unwrap(), connections.admit().unwrap());
        let request = first.begin();
        let third = connections.admit().unwrap();
        assert!(second.0.close.is_cancelled() && !first.0.close.is_cancelled());
        drop(second);
        let stream = third.begin();
        assert!(connections.admit().is_none(), "all are busy");
        drop((request, stream));
        // The first one has been idle longer.
        let _fourth = connections.admit().unwrap();
        assert!(first.0.close.is_cancelled() && !third.0.close.is_cancelled());
    }

    #[test]
    fn connections_that_end_give_their_place_back() {
        let connections = AdminConnections::new(1);
        for _ in 0..3 {
            let connection = connections.admit().unwrap();
            let busy = connection.begin();
            drop(connection);
            assert!(connections.admit().is_none(), "the guard keeps the place");
            drop(busy);
        }
        assert!(connections.lock().by_number.is_empty());
    }
}
