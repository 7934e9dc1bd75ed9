//! Queries that await their responses on one socket or connection.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use rand::Rng;
use tokio::sync::oneshot;

use super::packet::{Packet, ResponseMatch};

/// Outcome of a pending query.
#[derive(Debug)]
pub(super) enum PendingOutcome {
    /// The response arrived.
    Response(Vec<u8>),
    /// The response arrived, but does not echo the query's letter case.
    CaseMismatch(Vec<u8>),
    /// Too many unexpected packets: an attacker may be guessing, so retry over TCP.
    Suspicious,
    /// The upstream cannot be reached; the text gives the reason.
    Unreachable(String),
    /// The connection ended before the response arrived; the text gives the reason.
    ///
    /// The query can be sent again on another connection.
    Disconnected(String),
}

/// Time for which an abandoned query remains in the table.
///
/// A late response still shows that the upstream is alive.
pub(super) const ABANDONED_QUERY_LIFETIME: Duration = Duration::from_secs(5);

/// Unexpected packets after which the pending queries are retried over TCP.
pub(super) const MAX_STRAYS: u32 = 3;

/// The pending queries by message ID, shared by their senders and the reader.
#[derive(Debug)]
pub(super) struct Pending {
    table: Mutex<PendingTable>,
}

/// The table behind the lock of [`Pending`].
#[derive(Debug)]
pub(super) struct PendingTable {
    limit: usize,
    /// Whether the table accepts no more queries.
    closed: bool,
    by_id: HashMap<u16, PendingQuery, foldhash::fast::RandomState>,
}

/// A query that waits for its response.
#[derive(Debug)]
struct PendingQuery {
    packet: Packet,
    sent: Instant,
    outcome: oneshot::Sender<PendingOutcome>,
}

/// Result of [`Pending::deliver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The message answered a query that was sent this long ago.
    Response(Duration),
    /// The message answered no pending query.
    Stray,
}

impl Pending {
    /// Creates a table of at most `limit` queries.
    pub(super) fn new(limit: usize) -> Self {
        Self { table: Mutex::new(PendingTable { limit, closed: false, by_id: HashMap::default() }) }
    }

    /// Locks the table, which blocks the reader of the socket or connection.
    pub(super) fn lock(&self) -> MutexGuard<'_, PendingTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivers `message` to the query that it answers.
    pub(super) fn deliver(&self, message: &[u8], now: Instant) -> Delivery {
        let mut table = self.lock();
        let Some(id) = message.first_chunk().map(|id| u16::from_be_bytes(*id)) else {
            return Delivery::Stray;
        };
        let fit = table
            .by_id
            .get(&id)
            .map_or(ResponseMatch::Stray, |entry| entry.packet.match_response(message));
        if fit == ResponseMatch::Stray {
            return Delivery::Stray;
        }
        let Some(entry) = table.by_id.remove(&id) else { return Delivery::Stray };
        drop(table);
        let outcome = if fit == ResponseMatch::ExceptCase {
            PendingOutcome::CaseMismatch(message.to_vec())
        } else {
            PendingOutcome::Response(message.to_vec())
        };
        // The receiver may have given up, but the response still counts for the upstream's health.
        let _ = entry.outcome.send(outcome);
        Delivery::Response(now.saturating_duration_since(entry.sent))
    }

    /// Ends all pending queries; later ones are refused.
    pub(super) fn close(&self, mut outcome: impl FnMut() -> PendingOutcome) {
        let mut table = self.lock();
        table.closed = true;
        let by_id = std::mem::take(&mut table.by_id);
        drop(table);
        for (_, entry) in by_id {
            let _ = entry.outcome.send(outcome());
        }
    }

    /// Returns whether the table refuses new queries.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Returns the send time of the oldest pending query.
    pub(super) fn oldest_sent(&self) -> Option<Instant> {
        self.lock().by_id.values().map(|entry| entry.sent).min()
    }
}

impl PendingTable {
    /// Returns whether the table refuses new queries.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Returns whether no query is pending.
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Returns a random unused ID, or `None` if the table is full.
    pub(super) fn free_id(&mut self, now: Instant) -> Option<u16> {
        if self.by_id.len() >= self.limit {
            self.by_id.retain(|_, entry| {
                !entry.outcome.is_closed()
                    || now.saturating_duration_since(entry.sent) < ABANDONED_QUERY_LIFETIME
            });
            if self.by_id.len() >= self.limit {
                return None;
            }
        }
        let mut random = rand::rng();
        loop {
            let [low, high, ..] = random.next_u32().to_be_bytes();
            let id = u16::from_be_bytes([low, high]);
            if !self.by_id.contains_key(&id) {
                return Some(id);
            }
        }
    }

    /// Adds a query under `id`, which must be a result of [`Self::free_id`].
    ///
    /// The returned receiver gets the outcome.
    pub(super) fn insert(
        &mut self,
        id: u16,
        packet: Packet,
        now: Instant,
    ) -> oneshot::Receiver<PendingOutcome> {
        let (outcome, receiver) = oneshot::channel();
        self.by_id.insert(id, PendingQuery { packet, sent: now, outcome });
        receiver
    }
}
