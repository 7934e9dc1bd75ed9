//! Limits open connections, and closes waiting ones to make room for new clients.
//!
//! A new client is served while any connection of its source, or of all if the server is full, is
//! idle or stalled. `connection_table` has the order in which they are closed. A connection in the
//! middle of a query is never closed, so a client is rejected once all of them are.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::activity::Activity;
use super::connection_table::{
    ConnectionId, ConnectionSource, ConnectionTable, ConnectionUse, ConnectionWait, Eviction,
    TableLimits,
};
use super::{Counters, Limits, StreamKind};

/// Activity within this time of the last does not change the order of eviction.
///
/// A busy connection therefore seldom takes the lock.
const REORDER_INTERVAL_MS: u64 = 100;
/// Interval of checks for overdue connections while more than half of the limit is used.
const OVERDUE_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Shortest deadline on a full server: room for the round trips of a distant client.
const MIN_DEADLINE: Duration = Duration::from_secs(1);

/// The open connections of all listening addresses and kinds.
#[derive(Debug)]
pub(super) struct Admission {
    limits: Limits,
    counters: Arc<Counters>,
    table: Mutex<ConnectionTable>,
    /// Bytes of responses to clients that do not read.
    unread_bytes: AtomicUsize,
    /// Notified when more than half of the limit is used.
    half_full: Notify,
}

impl Admission {
    /// Returns an admission control without open connections.
    pub(super) fn new(limits: Limits, counters: Arc<Counters>) -> Self {
        Self {
            limits,
            counters,
            table: Mutex::default(),
            unread_bytes: AtomicUsize::new(0),
            half_full: Notify::new(),
        }
    }

    /// Returns whether half of a limit that applies to `source` is used.
    ///
    /// From then on, a QUIC client must validate its address first: with a forged address it could
    /// evict the connections of that address.
    pub(super) fn is_busy(&self, source: IpAddr) -> bool {
        let source = ConnectionSource::Address(source.to_canonical());
        let limits = self.table_limits(source);
        let table = self.lock();
        table.len() >= limits.total / 2 || table.count(source) >= limits.source / 2
    }

    /// Admits a connection from `source`, and evicts another one if a limit is reached.
    ///
    /// Returns `None` if no connection can be evicted. `close` tells the connection's task to end:
    /// the listener stops, or the connection was evicted.
    ///
    /// A `denied` source has no access; its connection stays open only for the refusal.
    pub(super) fn admit(
        self: &Arc<Self>,
        kind: StreamKind,
        source: IpAddr,
        denied: bool,
        close: CancellationToken,
    ) -> Option<Arc<ConnectionPermit>> {
        let address = source.to_canonical();
        let source = if denied {
            ConnectionSource::WithoutAccess
        } else {
            ConnectionSource::Address(address)
        };
        let limits = self.table_limits(source);
        let mut table = self.lock();
        let opened = table.open(source, kind, close.clone(), limits, Instant::now());
        let open = table.len();
        drop(table);
        let Ok((id, evicted)) = opened else {
            if self.counters.of(kind).rejected.increment().is_power_of_two() {
                warn!(
                    source = %address,
                    transport = kind.name(),
                    "rejected a connection: a limit is reached, and all others are in use"
                );
            }
            return None;
        };
        if let Some(evicted) = evicted {
            self.finish(&evicted);
        }
        if open > self.limits.connections / 2 {
            self.half_full.notify_one();
        }
        self.counters.of(kind).connections.increment();
        self.counters.of(kind).open.increment();
        Some(Arc::new(ConnectionPermit {
            admission: Arc::clone(self),
            id,
            kind,
            close,
            activity: Activity::new(),
            reordered: AtomicU64::new(0),
            is_blocked: AtomicBool::new(false),
        }))
    }

    /// Evicts one connection, because a resource other than the limit is exhausted.
    pub(super) fn make_room(&self) {
        let evicted = self.lock().evict_first();
        if let Some(evicted) = evicted {
            self.finish(&evicted);
        }
    }

    /// Evicts overdue connections while more than half of the limit is used, until `stop`.
    ///
    /// The deadlines of connections that waited before are shortened too, at the cost of one task.
    pub(super) async fn shorten_deadlines(self: Arc<Self>, stop: CancellationToken) {
        let shorten = async {
            loop {
                self.half_full.notified().await;
                while self.evict_overdue() {
                    sleep(OVERDUE_CHECK_INTERVAL).await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = shorten => {}
        }
    }

    /// Evicts all overdue connections; returns whether more than half of the limit is used.
    fn evict_overdue(&self) -> bool {
        let now = Instant::now();
        loop {
            let mut table = self.lock();
            let open = table.len();
            if open <= self.limits.connections / 2 {
                return false;
            }
            let began = |timeout: Duration| {
                now.checked_sub(self.limits.shortened(timeout, open, MIN_DEADLINE))
            };
            let deadlines = began(self.limits.idle_timeout).zip(began(self.limits.message_timeout));
            let Some((idle, stalled)) = deadlines else { return true };
            let evicted = table.evict_overdue(idle, stalled);
            drop(table);
            let Some(evicted) = evicted else { return true };
            self.finish(&evicted);
        }
    }

    /// Counts an eviction and tells the connection's task.
    fn finish(&self, evicted: &Eviction) {
        let Eviction { source, kind, wait, close } = evicted;
        let counters = self.counters.of(*kind);
        let (counter, wait) = match wait {
            ConnectionWait::Idle => (&counters.evicted_idle, "idle"),
            ConnectionWait::Stalled => (&counters.evicted_stalled, "stalled"),
        };
        if counter.increment().is_power_of_two() {
            let source = match source {
                ConnectionSource::Address(address) => Some(address),
                ConnectionSource::WithoutAccess => None,
            };
            info!(
                source = source.map(tracing::field::display),
                transport = kind.name(),
                open = self.lock().len(),
                "closed the connection that was {wait} longest, to make room for others"
            );
        }
        close.cancel();
    }

    /// Returns the limits that apply to a new connection from `source`.
    fn table_limits(&self, source: ConnectionSource) -> TableLimits {
        let source = match source {
            ConnectionSource::Address(address) if address.is_loopback() => {
                self.limits.connections_per_loopback_source
            }
            ConnectionSource::Address(_) => self.limits.connections_per_source,
            ConnectionSource::WithoutAccess => self.limits.connections_without_access,
        };
        TableLimits { total: self.limits.connections, source }
    }

    /// Locks the table; it stays valid if a thread panicked.
    fn lock(&self) -> MutexGuard<'_, ConnectionTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Admission of one connection, returned on drop.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    admission: Arc<Admission>,
    id: ConnectionId,
    kind: StreamKind,
    close: CancellationToken,
    activity: Activity,
    /// Time of the last change of the order of eviction, milliseconds since the admission.
    reordered: AtomicU64,
    /// Whether the client does not read.
    is_blocked: AtomicBool,
}

impl ConnectionPermit {
    /// Waits until the listener stops or the connection is evicted.
    pub(super) async fn closed(&self) {
        self.close.cancelled().await;
    }

    /// Waits until the connection is evicted, however long a stop takes.
    pub(super) async fn evicted(&self) {
        self.close.cancelled().await;
        if !self.is_evicted() {
            std::future::pending().await
        }
    }

    /// Returns whether the connection was evicted.
    pub(super) fn is_evicted(&self) -> bool {
        !self.admission.lock().contains(self.id)
    }

    /// Records activity now.
    pub(super) fn touch(&self) {
        let now = self.activity.touch();
        if now.saturating_sub(self.reordered.load(Ordering::Relaxed)) >= REORDER_INTERVAL_MS {
            self.reordered.store(now, Ordering::Relaxed);
            self.admission.lock().touch(self.id, Instant::now());
        }
    }

    /// Returns the time since the last activity.
    pub(super) fn idle_time(&self) -> Duration {
        self.activity.since()
    }

    /// Records a use of the connection until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>, kind: ConnectionUse) -> UseGuard {
        self.admission.lock().begin(self.id, kind, Instant::now());
        if kind == ConnectionUse::FullBuffer {
            self.is_blocked.store(true, Ordering::Relaxed);
        }
        UseGuard { permit: Arc::clone(self), kind }
    }

    /// Awaits a future that depends on the client; the connection is stalled if it does not end
    /// at once.
    pub(super) async fn await_client<F: Future>(self: &Arc<Self>, future: F) -> F::Output {
        await_with(future, || self.begin(ConnectionUse::Remainder)).await
    }

    /// Awaits room for a response of `bytes` bytes in the client's buffer.
    ///
    /// Meanwhile, the connection is stalled, and the response counts towards the memory of all that
    /// is unread.
    pub(super) async fn await_room<F: Future>(
        self: &Arc<Self>,
        bytes: usize,
        blocks: ConnectionUse,
        future: F,
    ) -> F::Output {
        await_with(future, || (self.begin(blocks), self.hold(bytes))).await
    }

    /// Returns whether the client does not read.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
    }

    /// Counts a response that cannot be sent now, until the guard is dropped.
    ///
    /// Evicts the connection if the responses to all clients that do not read take too much memory.
    pub(super) fn hold(self: &Arc<Self>, bytes: usize) -> UnreadBytes {
        let unread = &self.admission.unread_bytes;
        let total = unread.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if total > self.admission.limits.unread_bytes {
            let evicted = self.admission.lock().evict(self.id);
            if let Some(evicted) = evicted {
                self.admission.finish(&evicted);
            }
        }
        UnreadBytes { permit: Arc::clone(self), bytes }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let Self { admission, kind, id, .. } = self;
        if std::thread::panicking() {
            admission.counters.panics.increment();
        }
        admission.counters.of(*kind).open.decrement();
        admission.lock().remove(*id);
    }
}

/// A use of a connection, ended on drop.
#[derive(Debug)]
pub(super) struct UseGuard {
    permit: Arc<ConnectionPermit>,
    kind: ConnectionUse,
}

impl Drop for UseGuard {
    fn drop(&mut self) {
        let Self { permit, kind } = self;
        if *kind == ConnectionUse::FullBuffer {
            permit.is_blocked.store(false, Ordering::Relaxed);
        }
        permit.admission.lock().end(permit.id, *kind, Instant::now());
    }
}

/// Bytes of a response that cannot be sent now, subtracted from the total on drop.
#[derive(Debug)]
pub(super) struct UnreadBytes {
    permit: Arc<ConnectionPermit>,
    bytes: usize,
}

impl Drop for UnreadBytes {
    fn drop(&mut self) {
        self.permit.admission.unread_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Awaits `future`, and holds a guard meanwhile if the future is not ready at once.
async fn await_with<F: Future, G>(future: F, guard: impl FnOnce() -> G) -> F::Output {
    let mut future = pin!(future);
    let first = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
    match first {
        Poll::Ready(output) => output,
        Poll::Pending => {
            let _guard = guard();
            future.await
        }
    }
}
