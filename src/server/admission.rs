//! Limits open connections, and closes waiting ones to make room for new clients.
//!
//! A new client is served as long as some connection is idle or stalled: one of its own source, or
//! any one if the server is full. `connection_table` defines the order in which they are closed. If
//! there is none, the client is rejected: a query in progress protects its connection while the
//! client reads.

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
use super::rules::SharedRules;
use super::{Counters, StreamKind};

/// Minimum interval between updates of a connection's place in the eviction order.
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
    rules: SharedRules,
    counters: Arc<Counters>,
    table: Mutex<ConnectionTable>,
    /// Connections with a permit, evicted ones included.
    open: AtomicUsize,
    /// Bytes of responses to clients that do not read.
    unread_bytes: AtomicUsize,
    /// Notified when more than half of the limit is used.
    half_full: Notify,
}

impl Admission {
    /// Returns an admission control without open connections.
    pub(super) fn new(rules: SharedRules, counters: Arc<Counters>) -> Self {
        Self {
            rules,
            counters,
            table: Mutex::default(),
            open: AtomicUsize::new(0),
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
        if open > self.rules.limit(|limits| limits.connections) / 2 {
            self.half_full.notify_one();
        }
        self.counters.of(kind).connections.increment();
        self.counters.of(kind).open.increment();
        self.open.fetch_add(1, Ordering::Relaxed);
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

    /// Returns whether evicted connections are still open.
    pub(super) fn has_evicted(&self) -> bool {
        self.open.load(Ordering::Relaxed) > self.lock().len()
    }

    /// Evicts one connection, because a resource other than the limit is exhausted.
    pub(super) fn make_room(&self) {
        let evicted = self.lock().evict_first(Instant::now());
        if let Some(evicted) = evicted {
            self.finish(&evicted);
        }
    }

    /// Evicts overdue connections while more than half of the limit is used, until `stop`.
    ///
    /// This also shortens the deadlines of connections that already wait, with one task for all.
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
        let (now, rules) = (Instant::now(), self.rules.load());
        let limits = &rules.limits;
        loop {
            let mut table = self.lock();
            let open = table.len();
            if open <= limits.connections / 2 {
                return false;
            }
            let shortened = |timeout| limits.shortened(timeout, open, MIN_DEADLINE);
            let (idle, stalled) = (limits.idle_timeout, limits.message_timeout);
            let evicted = table.evict_overdue(now, shortened(idle), shortened(stalled));
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
        let rules = self.rules.load();
        let limits = &rules.limits;
        let source = match source {
            ConnectionSource::Address(address) if address.is_loopback() => {
                limits.connections_per_loopback_source
            }
            ConnectionSource::Address(_) => limits.connections_per_source,
            ConnectionSource::WithoutAccess => limits.connections_without_access,
        };
        TableLimits { total: limits.connections, source }
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
    /// Last update of this connection's place in the eviction order, in ms since it was admitted.
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
            std::future::pending::<()>().await;
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
    /// Meanwhile, the connection is stalled, and the response counts as unread in the memory limit.
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
        if total > self.admission.rules.limit(|limits| limits.unread_bytes) {
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
        admission.open.fetch_sub(1, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Limits;

    fn admission(connections: usize) -> Arc<Admission> {
        let limits = Limits {
            connections,
            connections_per_source: 2,
            connections_per_loopback_source: 3,
            connections_without_access: 1,
            ..Limits::default()
        };
        Arc::new(Admission::new(SharedRules::of(limits), Arc::default()))
    }

    /// A connection with a query in progress, which cannot be evicted.
    #[derive(Debug)]
    struct BusyConnection {
        _query: UseGuard,
        _permit: Arc<ConnectionPermit>,
    }

    impl Admission {
        fn admit_from(
            self: &Arc<Self>,
            source: &str,
            denied: bool,
        ) -> Option<Arc<ConnectionPermit>> {
            let source = source.parse().unwrap();
            self.admit(StreamKind::Tcp, source, denied, CancellationToken::new())
        }

        fn admit_busy(self: &Arc<Self>, source: &str, denied: bool) -> Option<BusyConnection> {
            let permit = self.admit_from(source, denied)?;
            Some(BusyConnection { _query: permit.begin(ConnectionUse::Query), _permit: permit })
        }
    }

    #[test]
    fn each_source_has_its_own_limit() {
        let admission = admission(100);
        let first = admission.admit_busy("10.0.0.1", false).unwrap();
        let _second = admission.admit_busy("::ffff:10.0.0.1", false).unwrap();
        assert!(admission.admit_busy("10.0.0.1", false).is_none());
        assert!(admission.admit_busy("10.0.0.2", false).is_some());
        drop(first);
        assert!(admission.admit_busy("10.0.0.1", false).is_some());
        assert_eq!(admission.counters.tcp.rejected.get(), 1);
    }

    #[test]
    fn loopback_sources_have_a_higher_limit() {
        let admission = admission(100);
        let held: Vec<_> =
            std::iter::from_fn(|| admission.admit_busy("127.0.0.1", false)).take(50).collect();
        assert_eq!(held.len(), 3);
    }

    #[test]
    fn the_total_limit_applies_to_all_sources_together() {
        let admission = admission(4);
        let held: Vec<_> = (0..9)
            .filter_map(|host| admission.admit_busy(&format!("10.0.0.{host}"), false))
            .collect();
        assert_eq!(held.len(), 4);
        assert_eq!(admission.counters.tcp.open.get(), 4);
    }

    #[test]
    fn connections_of_all_kinds_share_the_limits() {
        let admission = admission(4);
        let source: IpAddr = "10.0.0.1".parse().unwrap();
        let admit = |kind| {
            let permit = admission.admit(kind, source, false, CancellationToken::new())?;
            Some((permit.begin(ConnectionUse::Query), permit))
        };
        let other = "10.0.0.2".parse().unwrap();
        assert!(!admission.is_busy(source) && !admission.is_busy(other));
        let _tcp = admit(StreamKind::Tcp).unwrap();
        assert!(admission.is_busy(source), "half of the source's limit is used");
        assert!(!admission.is_busy(other));
        let _tls = admit(StreamKind::Tls).unwrap();
        assert!(admission.is_busy(other), "half of the total limit is used");
        assert!(admit(StreamKind::Quic).is_none());
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
        let _denied = admission.admit_busy("10.0.0.1", true).unwrap();
        assert!(admission.admit_busy("10.0.0.2", true).is_none());
        assert!(admission.admit_busy("10.0.0.2", false).is_some());
    }

    #[test]
    fn an_evicted_connection_is_closed_and_frees_its_permit_once() {
        let admission = admission(100);
        let first = admission.admit_from("10.0.0.1", false).unwrap();
        let second = admission.admit_from("10.0.0.1", false).unwrap();
        let third = admission.admit_from("10.0.0.1", false).unwrap();
        assert!(first.close.is_cancelled() && first.is_evicted());
        assert!(!second.close.is_cancelled() && !second.is_evicted());
        // Its socket is open until its task ends.
        assert_eq!(admission.counters.tcp.open.get(), 3);
        let late = first.begin(ConnectionUse::Query);
        drop((late, first));
        assert_eq!((admission.counters.tcp.open.get(), admission.lock().len()), (2, 2));
        assert_eq!(admission.counters.tcp.evicted_idle.get(), 1);
        let stalled = [second.begin(ConnectionUse::Remainder), third.begin(ConnectionUse::Query)];
        admission.make_room();
        assert_eq!(admission.counters.tcp.evicted_stalled.get(), 1);
        admission.make_room();
        assert!(second.is_evicted() && !third.is_evicted(), "a query in progress is kept");
        drop(stalled);
    }

    #[test]
    fn closed_connections_leave_no_state_behind() {
        let admission = admission(100);
        drop(
            (0..50)
                .filter_map(|host| admission.admit_busy(&format!("10.0.0.{host}"), false))
                .collect::<Vec<_>>(),
        );
        assert_eq!(admission.lock().len(), 0);
        assert_eq!(admission.counters.tcp.open.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn timeouts_are_shorter_while_more_than_half_of_the_limit_is_open() {
        let limits = Limits {
            connections: 10,
            idle_timeout: Duration::from_secs(10),
            message_timeout: Duration::from_secs(4),
            ..Limits::default()
        };
        let admission = Arc::new(Admission::new(SharedRules::of(limits), Arc::default()));
        let stop = CancellationToken::new();
        let task = tokio::spawn(Arc::clone(&admission).shorten_deadlines(stop.clone()));
        let admit = || admission.admit_from("10.0.0.1", false).unwrap();
        let (mut held, start) = (vec![admit(), admit()], Instant::now());
        let mut stalled = vec![held[1].begin(ConnectionUse::Remainder)];
        held.extend([admit(), admit(), admit()]);
        let evicted = |held: &[Arc<ConnectionPermit>]| -> Vec<usize> {
            (0..held.len()).filter(|at| held[*at].is_evicted()).collect()
        };
        sleep(Duration::from_secs(30)).await;
        assert_eq!(evicted(&held), [0; 0], "half of the limit may wait");
        // With six connections, idle ones have 8 s and stalled ones 3.2 s: all but the sixth are
        // overdue, but half of the limit may stay.
        held.push(admit());
        sleep(Duration::from_millis(200)).await;
        assert_eq!(evicted(&held), [0], "the connection that is idle longest");
        // Those with a query in progress have no deadline.
        stalled.extend(held[2..].iter().map(|permit| permit.begin(ConnectionUse::Query)));
        held.push(admit());
        sleep(Duration::from_millis(200)).await;
        assert_eq!(evicted(&held), [0, 1], "the one that is stalled");
        held.push(admit());
        stalled.push(held[6].begin(ConnectionUse::Query));
        let open = Instant::now();
        while !held[7].is_evicted() {
            sleep(Duration::from_millis(100)).await;
        }
        // Six are open, so an idle one has eight of its ten seconds.
        let left = open.elapsed().as_secs_f32();
        assert!((7.9..8.3).contains(&left), "{left} s, {:?} in all", start.elapsed());
        stop.cancel();
        task.await.unwrap();
    }
}
