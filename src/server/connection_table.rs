//! The open connections, and the order in which they are closed to make room.
//!
//! A connection can be evicted while it is idle or stalled; a stalled connection waits for its
//! client in the middle of an exchange. A query in progress protects its connection, unless the
//! client does not read: the response could not be sent.
//!
//! The source with the most connections gives up one first, so that a flood from one source evicts
//! no other connections while its own ones wait. Within a source, the one that has been idle
//! longest goes first, then the one that has been stalled longest (RFC 7766 section 6.2.3). A
//! connection that has been idle for less than a second is kept while another has been stalled for
//! longer: its client has only just connected, and its query is on the way.
//!
//! A source that keeps all its connections busy loses none: the next largest source does.
//!
//! Every operation takes time logarithmic in the number of connections.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::StreamKind;

/// Number of a connection, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ConnectionId(u64);

/// The share of the connections that one limit applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ConnectionSource {
    /// A client's address.
    Address(IpAddr),
    /// All addresses without access together.
    WithoutAccess,
}

/// Reason why a connection can be evicted; the first variant goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ConnectionWait {
    /// The client has sent no further query, and every response was sent.
    Idle,
    /// The client does not finish a handshake or message, or does not read.
    Stalled,
}

/// What a connection is used for; determines whether it can be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionUse {
    /// The responder works on a query.
    Query,
    /// The server waits for the rest of a handshake or message, or for room to send a response over
    /// QUIC.
    Remainder,
    /// The client does not read, so no response can be sent whatever the responder does.
    FullBuffer,
}

/// Number of uses of each kind.
#[derive(Debug, Default)]
struct UseCounts {
    queries: usize,
    remainders: usize,
    full_buffers: usize,
}

impl UseCounts {
    /// Returns the number of uses of one kind.
    fn of(&mut self, kind: ConnectionUse) -> &mut usize {
        match kind {
            ConnectionUse::Query => &mut self.queries,
            ConnectionUse::Remainder => &mut self.remainders,
            ConnectionUse::FullBuffer => &mut self.full_buffers,
        }
    }

    /// Returns why the connection can be evicted, if it can.
    fn wait(&self) -> Option<ConnectionWait> {
        match self {
            Self { full_buffers: 1.., .. } => Some(ConnectionWait::Stalled),
            Self { queries: 1.., .. } => None,
            Self { remainders: 1.., .. } => Some(ConnectionWait::Stalled),
            _ => Some(ConnectionWait::Idle),
        }
    }
}

/// Place of a waiting connection in the eviction order; lower goes first.
///
/// The number grows with the time at which the wait began.
type WaitOrder = (ConnectionWait, u64);

/// Place of a source that has a waiting connection; higher goes first.
///
/// The number of connections, then the number of the oldest wait.
type SourceOrder = (usize, Reverse<u64>);

/// Time for which an idle connection is kept if another has been stalled for longer.
const IDLE_GRACE: Duration = Duration::from_secs(1);

/// A connection.
#[derive(Debug)]
struct ConnectionEntry {
    source: ConnectionSource,
    kind: StreamKind,
    /// Cancelled by the eviction.
    close: CancellationToken,
    uses: UseCounts,
    /// Place in the eviction order, and the time at which the wait began.
    waiting: Option<(WaitOrder, Instant)>,
}

/// The connections of one source.
#[derive(Debug, Default)]
struct SourceEntry {
    count: usize,
    waiting: BTreeMap<WaitOrder, ConnectionId>,
}

impl SourceEntry {
    /// Returns the connections that have been idle and stalled longest, if any.
    fn oldest(&self) -> [Option<(u64, ConnectionId)>; 2] {
        [ConnectionWait::Idle, ConnectionWait::Stalled].map(|wait| oldest(&self.waiting, wait))
    }

    /// Returns the place among the sources, if a connection can be evicted.
    fn order(&self, source: ConnectionSource) -> Option<SourceOrder> {
        let (serial, _) = self.oldest().into_iter().flatten().min()?;
        let rank = match source {
            ConnectionSource::Address(_) => self.count,
            // A client without access gets no answer: its connections go before all others.
            ConnectionSource::WithoutAccess => usize::MAX,
        };
        Some((rank, Reverse(serial)))
    }
}

/// Returns the serial number of the oldest wait of one kind, and its connection.
fn oldest(
    waiting: &BTreeMap<WaitOrder, ConnectionId>,
    wait: ConnectionWait,
) -> Option<(u64, ConnectionId)> {
    let (&(_, serial), &id) = waiting.range((wait, 0)..=(wait, u64::MAX)).next()?;
    Some((serial, id))
}

/// Limits that apply to a new connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableLimits {
    /// Connections in total.
    pub(super) total: usize,
    /// Connections of the new one's source.
    pub(super) source: usize,
}

/// A connection that was removed from the table to make room; its task must be told.
#[derive(Debug)]
#[must_use = "the connection's task still runs"]
pub(super) struct Eviction {
    pub(super) source: ConnectionSource,
    pub(super) kind: StreamKind,
    pub(super) wait: ConnectionWait,
    /// To be cancelled.
    pub(super) close: CancellationToken,
}

/// Error of [`ConnectionTable::open`]: a limit is reached, and no connection can be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// The open connections of all listeners.
#[derive(Debug, Default)]
pub(super) struct ConnectionTable {
    connections: HashMap<ConnectionId, ConnectionEntry>,
    sources: HashMap<ConnectionSource, SourceEntry>,
    /// Every connection that can be evicted, of all sources.
    waiting: BTreeMap<WaitOrder, ConnectionId>,
    /// Every source with a connection that can be evicted.
    candidates: BTreeMap<SourceOrder, ConnectionSource>,
    /// Number of connections and waits so far.
    serial: u64,
}

impl ConnectionTable {
    /// Returns the number of open connections.
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Returns the number of open connections of a source.
    pub(super) fn count(&self, source: ConnectionSource) -> usize {
        self.sources.get(&source).map_or(0, |entry| entry.count)
    }

    /// Returns whether a connection is open and was not evicted.
    pub(super) fn contains(&self, id: ConnectionId) -> bool {
        self.connections.contains_key(&id)
    }

    /// Adds a connection, and evicts another one if a limit requires it.
    ///
    /// # Errors
    /// If a limit is reached and no connection can be evicted.
    pub(super) fn open(
        &mut self,
        source: ConnectionSource,
        kind: StreamKind,
        close: CancellationToken,
        limits: TableLimits,
        now: Instant,
    ) -> Result<(ConnectionId, Option<Eviction>), NoRoom> {
        let evicted = if self.count(source) >= limits.source {
            Some(self.first_of(source, now).ok_or(NoRoom)?)
        } else if self.len() >= limits.total {
            // A client without access must not evict a connection of a client with access.
            let first = match source {
                ConnectionSource::Address(_) => self.first(now),
                ConnectionSource::WithoutAccess => self.first_of(source, now),
            };
            Some(first.ok_or(NoRoom)?)
        } else {
            None
        };
        let evicted = evicted.and_then(|id| self.evict(id));
        let id = ConnectionId(self.next_serial());
        let entry =
            ConnectionEntry { source, kind, close, uses: UseCounts::default(), waiting: None };
        self.connections.insert(id, entry);
        self.change_source(source, |entry| entry.count += 1);
        self.update(id, now);
        Ok((id, evicted))
    }

    /// Removes a connection that has ended; without effect after its eviction.
    pub(super) fn remove(&mut self, id: ConnectionId) {
        let Some(entry) = self.connections.remove(&id) else { return };
        if let Some((order, _)) = entry.waiting {
            self.waiting.remove(&order);
        }
        self.change_source(entry.source, |source| {
            if let Some((order, _)) = entry.waiting {
                source.waiting.remove(&order);
            }
            source.count = source.count.saturating_sub(1);
        });
    }

    /// Records that a use of a connection begins.
    pub(super) fn begin(&mut self, id: ConnectionId, kind: ConnectionUse, now: Instant) {
        let Some(entry) = self.connections.get_mut(&id) else { return };
        *entry.uses.of(kind) += 1;
        self.update(id, now);
    }

    /// Records that a use of a connection has ended.
    pub(super) fn end(&mut self, id: ConnectionId, kind: ConnectionUse, now: Instant) {
        let Some(entry) = self.connections.get_mut(&id) else { return };
        let count = entry.uses.of(kind);
        *count = count.saturating_sub(1);
        self.update(id, now);
    }

    /// Records that a query was answered: an idle connection becomes the last to be evicted.
    pub(super) fn touch(&mut self, id: ConnectionId, now: Instant) {
        let Some(entry) = self.connections.get(&id) else { return };
        if entry.uses.wait() == Some(ConnectionWait::Idle) {
            self.set_wait(id, Some(ConnectionWait::Idle), now);
        }
    }

    /// Evicts the first connection in the eviction order, if any can be evicted.
    pub(super) fn evict_first(&mut self, now: Instant) -> Option<Eviction> {
        self.evict(self.first(now)?)
    }

    /// Evicts a connection that has been idle for `idle` or stalled for `stalled`.
    pub(super) fn evict_overdue(
        &mut self,
        now: Instant,
        idle: Duration,
        stalled: Duration,
    ) -> Option<Eviction> {
        let deadlines = [(ConnectionWait::Idle, idle), (ConnectionWait::Stalled, stalled)];
        let overdue = deadlines.into_iter().find_map(|(wait, deadline)| {
            let (_, id) = oldest(&self.waiting, wait)?;
            let (_, since) = self.connections.get(&id)?.waiting?;
            (now.saturating_duration_since(since) >= deadline).then_some(id)
        });
        self.evict(overdue?)
    }

    /// Evicts a connection, unless it has ended or was evicted.
    pub(super) fn evict(&mut self, id: ConnectionId) -> Option<Eviction> {
        let entry = self.connections.get(&id)?;
        let wait = entry.waiting.map_or(ConnectionWait::Stalled, |((wait, _), _)| wait);
        let (source, kind, close) = (entry.source, entry.kind, entry.close.clone());
        self.remove(id);
        Some(Eviction { source, kind, wait, close })
    }

    /// Returns the first connection in the eviction order.
    fn first(&self, now: Instant) -> Option<ConnectionId> {
        let (_, &source) = self.candidates.last_key_value()?;
        self.first_of(source, now)
    }

    /// Returns the first connection of a source in the eviction order.
    fn first_of(&self, source: ConnectionSource, now: Instant) -> Option<ConnectionId> {
        let [idle, stalled] = self.sources.get(&source)?.oldest();
        let is_recent = |id| {
            let since = self.connections.get(&id).and_then(|entry| Some(entry.waiting?.1));
            since.is_some_and(|since| now.saturating_duration_since(since) < IDLE_GRACE)
        };
        let first = match (idle, stalled) {
            (Some(idle), Some(stalled)) if stalled < idle && is_recent(idle.1) => stalled,
            (Some(first), _) | (None, Some(first)) => first,
            (None, None) => return None,
        };
        Some(first.1)
    }

    /// Moves a connection to the place that its uses require; a lasting wait keeps its place.
    fn update(&mut self, id: ConnectionId, now: Instant) {
        let Some(entry) = self.connections.get(&id) else { return };
        let wait = entry.uses.wait();
        if wait != entry.waiting.map(|((wait, _), _)| wait) {
            self.set_wait(id, wait, now);
        }
    }

    /// Gives a connection a new place at the end of those with the same wait.
    fn set_wait(&mut self, id: ConnectionId, wait: Option<ConnectionWait>, now: Instant) {
        let serial = self.next_serial();
        let Some(entry) = self.connections.get_mut(&id) else { return };
        let source = entry.source;
        let new = wait.map(|wait| (wait, serial));
        let old = entry.waiting.take().map(|(order, _)| order);
        entry.waiting = new.map(|order| (order, now));
        if let Some(order) = old {
            self.waiting.remove(&order);
        }
        if let Some(order) = new {
            self.waiting.insert(order, id);
        }
        self.change_source(source, |source| {
            if let Some(order) = old {
                source.waiting.remove(&order);
            }
            if let Some(order) = new {
                source.waiting.insert(order, id);
            }
        });
    }

    /// Changes a source, and its place among the sources.
    fn change_source(&mut self, source: ConnectionSource, change: impl FnOnce(&mut SourceEntry)) {
        let entry = self.sources.entry(source).or_default();
        let before = entry.order(source);
        change(entry);
        let after = entry.order(source);
        // A source without connections is removed, else the table grows with every address.
        if entry.count == 0 {
            self.sources.remove(&source);
        }
        if before != after {
            if let Some(order) = before {
                self.candidates.remove(&order);
            }
            if let Some(order) = after {
                self.candidates.insert(order, source);
            }
        }
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Steps of a test within [`IDLE_GRACE`].
    const GRACE_STEPS: u64 = 10;

    /// Step of a test: what happens next to which connection.
    #[derive(Clone, Debug)]
    enum TableStep {
        Open(u8),
        Begin(usize, ConnectionUse),
        End(usize, ConnectionUse),
        Touch(usize),
        Remove(usize),
        EvictFirst,
        EvictOverdue(u64, u64),
    }

    /// A connection of the model, which searches all of them.
    #[derive(Clone, Debug)]
    struct ModelConnection {
        id: ConnectionId,
        source: ConnectionSource,
        uses: Vec<ConnectionUse>,
        wait: Option<ConnectionWait>,
        since: u64,
    }

    impl ModelConnection {
        fn update(&mut self, now: u64) {
            let has = |kind| self.uses.contains(&kind);
            let wait = if has(ConnectionUse::FullBuffer) {
                Some(ConnectionWait::Stalled)
            } else if has(ConnectionUse::Query) {
                None
            } else if has(ConnectionUse::Remainder) {
                Some(ConnectionWait::Stalled)
            } else {
                Some(ConnectionWait::Idle)
            };
            if wait != self.wait {
                (self.wait, self.since) = (wait, now);
            }
        }
    }

    /// Returns the connection that the documented order puts first, of `source` or of all.
    fn first(
        model: &[ModelConnection],
        source: Option<ConnectionSource>,
        now: u64,
    ) -> Option<ConnectionId> {
        let rank = |source| match source {
            ConnectionSource::WithoutAccess => usize::MAX,
            ConnectionSource::Address(_) => {
                model.iter().filter(|other| other.source == source).count()
            }
        };
        let waiting = || model.iter().filter(|one| one.wait.is_some());
        let source = source.or_else(|| {
            let first = waiting().min_by_key(|one| (Reverse(rank(one.source)), one.since));
            first.map(|one| one.source)
        })?;
        let oldest = |wait| {
            waiting()
                .filter(|one| one.source == source && one.wait == Some(wait))
                .min_by_key(|one| one.since)
        };
        match (oldest(ConnectionWait::Idle), oldest(ConnectionWait::Stalled)) {
            (Some(idle), Some(stalled))
                if now < idle.since + GRACE_STEPS && stalled.since < idle.since =>
            {
                Some(stalled.id)
            }
            (Some(first), _) | (None, Some(first)) => Some(first.id),
            (None, None) => None,
        }
    }

    fn source(number: u8) -> ConnectionSource {
        match number {
            0 => ConnectionSource::WithoutAccess,
            _ => ConnectionSource::Address(IpAddr::from([10, 0, 0, number])),
        }
    }

    fn step() -> impl Strategy<Value = TableStep> {
        let kind = prop_oneof![
            Just(ConnectionUse::Query),
            Just(ConnectionUse::Remainder),
            Just(ConnectionUse::FullBuffer)
        ];
        prop_oneof![
            4 => (0..5_u8).prop_map(TableStep::Open),
            3 => (0..20_usize, kind.clone()).prop_map(|(at, kind)| TableStep::Begin(at, kind)),
            2 => (0..20_usize, kind).prop_map(|(at, kind)| TableStep::End(at, kind)),
            1 => (0..20_usize).prop_map(TableStep::Touch),
            1 => (0..20_usize).prop_map(TableStep::Remove),
            1 => Just(TableStep::EvictFirst),
            1 => (0..40_u64, 0..40_u64)
                .prop_map(|(idle, stalled)| TableStep::EvictOverdue(idle, stalled)),
        ]
    }

    proptest! {
        #[test]
        fn evictions_follow_the_documented_order(
            steps in prop::collection::vec(step(), 0..120)
        ) {
            let start = Instant::now();
            let step = IDLE_GRACE / u32::try_from(GRACE_STEPS).unwrap();
            let at = |now: u64| start + step * u32::try_from(now).unwrap();
            let (mut table, mut model) = (ConnectionTable::default(), Vec::new());
            for (now, step) in (1..).zip(steps) {
                let chosen = |at: usize, model: &[ModelConnection]| {
                    (!model.is_empty()).then(|| at % model.len())
                };
                match step {
                    TableStep::Open(number) => {
                        let source = source(number);
                        let limits = TableLimits { total: 8, source: 4 };
                        let own = model
                            .iter()
                            .filter(|one: &&ModelConnection| one.source == source)
                            .count();
                        let expected = if own >= 4 {
                            Some(first(&model, Some(source), now))
                        } else if model.len() >= 8 {
                            let denied = source == ConnectionSource::WithoutAccess;
                            Some(first(&model, denied.then_some(source), now))
                        } else {
                            None
                        };
                        let close = CancellationToken::new();
                        let opened =
                            table.open(source, StreamKind::Tcp, close, limits, at(now));
                        match (opened, expected) {
                            (Err(NoRoom), Some(None)) => continue,
                            (Ok((_, None)), None) => {}
                            (Ok((_, Some(_))), Some(Some(evicted))) => {
                                prop_assert!(!table.contains(evicted));
                                model.retain(|one| one.id != evicted);
                            }
                            (opened, expected) => {
                                prop_assert!(false, "{opened:?}, not {expected:?}");
                                unreachable!()
                            }
                        }
                        let mut new = ModelConnection {
                            id: ConnectionId(table.serial - 1),
                            source,
                            uses: Vec::new(),
                            wait: None,
                            since: now,
                        };
                        prop_assert!(table.contains(new.id));
                        new.update(now);
                        model.push(new);
                    }
                    TableStep::Begin(index, kind) => {
                        let Some(index) = chosen(index, &model) else { continue };
                        model[index].uses.push(kind);
                        model[index].update(now);
                        table.begin(model[index].id, kind, at(now));
                    }
                    TableStep::End(index, kind) => {
                        let Some(index) = chosen(index, &model) else { continue };
                        let one = &mut model[index];
                        let Some(used) = one.uses.iter().position(|other| *other == kind) else {
                            continue;
                        };
                        one.uses.remove(used);
                        one.update(now);
                        table.end(one.id, kind, at(now));
                    }
                    TableStep::Touch(index) => {
                        let Some(index) = chosen(index, &model) else { continue };
                        if model[index].wait == Some(ConnectionWait::Idle) {
                            model[index].since = now;
                        }
                        table.touch(model[index].id, at(now));
                    }
                    TableStep::Remove(index) => {
                        let Some(index) = chosen(index, &model) else { continue };
                        table.remove(model.remove(index).id);
                    }
                    TableStep::EvictFirst => {
                        let expected = first(&model, None, now);
                        prop_assert_eq!(table.evict_first(at(now)).is_some(), expected.is_some());
                        prop_assert!(expected.is_none_or(|id| !table.contains(id)));
                        model.retain(|one| Some(one.id) != expected);
                    }
                    TableStep::EvictOverdue(idle, stalled) => {
                        let overdue = |wait, deadline| {
                            model
                                .iter()
                                .filter(|one| one.wait == Some(wait) && one.since + deadline <= now)
                                .min_by_key(|one| one.since)
                                .map(|one| one.id)
                        };
                        let expected = overdue(ConnectionWait::Idle, idle)
                            .or_else(|| overdue(ConnectionWait::Stalled, stalled));
                        let evicted = table.evict_overdue(
                            at(now),
                            at(idle) - start,
                            at(stalled) - start,
                        );
                        prop_assert_eq!(evicted.is_some(), expected.is_some());
                        prop_assert!(expected.is_none_or(|id| !table.contains(id)));
                        model.retain(|one| Some(one.id) != expected);
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                for number in 0..5 {
                    let count =
                        model.iter().filter(|one| one.source == source(number)).count();
                    prop_assert_eq!(table.count(source(number)), count);
                }
            }
            // Nothing is left behind by connections that have ended.
            for one in model {
                table.remove(one.id);
            }
            prop_assert!(table.connections.is_empty() && table.sources.is_empty());
            prop_assert!(table.waiting.is_empty() && table.candidates.is_empty());
        }
    }
}
