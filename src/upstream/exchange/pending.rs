//! The questions under way on one socket or connection.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use rand::Rng;
use tokio::sync::oneshot;

use super::packet::{Packet, ResponseMatch};

/// What a question that is under way comes to.
#[derive(Debug)]
pub(super) enum PendingOutcome {
    /// Its answer, whole.
    Response(Vec<u8>),
    /// Its answer, whole, but for the letters' case.
    CaseMismatch(Vec<u8>),
    /// Somebody sends what nobody asked for, or more than can be taken: better ask where nobody can guess.
    Suspicious,
    /// It cannot be reached, or hung up; why, for people.
    Unreachable(String),
}

/// How long a question that nobody waits for any more is still known: its answer tells that the upstream lives.
pub(super) const ABANDONED_QUERY_LIFETIME: Duration = Duration::from_secs(5);

/// The questions under way, by id.
#[derive(Debug)]
pub(super) struct Pending {
    table: Mutex<PendingTable>,
}

#[derive(Debug)]
pub(super) struct PendingTable {
    limit: usize,
    /// Nothing is taken any more.
    closed: bool,
    by_id: HashMap<u16, PendingQuery, foldhash::fast::RandomState>,
}

#[derive(Debug)]
struct PendingQuery {
    packet: Packet,
    sent: Instant,
    reply: oneshot::Sender<PendingOutcome>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// It was an answer, after this time.
    Response(Duration),
    /// Nobody asked for it.
    Stray,
}

impl Pending {
    /// A table of at limit `limit` questions.
    pub(super) fn new(limit: usize) -> Self {
        Self { table: Mutex::new(PendingTable { limit, closed: false, by_id: HashMap::default() }) }
    }

    /// The table, to be changed: whoever holds it holds up the reader.
    pub(super) fn lock(&self) -> MutexGuard<'_, PendingTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `message` to whom it answers.
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
        let reply = if fit == ResponseMatch::ExceptCase {
            PendingOutcome::CaseMismatch(message.to_vec())
        } else {
            PendingOutcome::Response(message.to_vec())
        };
        // Nobody waits any more: it came late, and told all the same that the upstream lives.
        let _ = entry.reply.send(reply);
        Delivery::Response(now.saturating_duration_since(entry.sent))
    }

    /// Ends all that is under way, and takes nothing any more.
    pub(super) fn close(&self, mut reply: impl FnMut() -> PendingOutcome) {
        let mut table = self.lock();
        table.closed = true;
        let by_id = std::mem::take(&mut table.by_id);
        drop(table);
        for (_, entry) in by_id {
            let _ = entry.reply.send(reply());
        }
    }

    /// Whether nothing is taken any more.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// When the oldest_sent question that is under way was sent.
    pub(super) fn oldest_sent(&self) -> Option<Instant> {
        self.lock().by_id.values().map(|entry| entry.sent).min()
    }
}

impl PendingTable {
    /// Whether nothing is taken any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// A random id that is free; none when too much is under way.
    pub(super) fn free_id(&mut self, now: Instant) -> Option<u16> {
        if self.by_id.len() >= self.limit {
            self.by_id.retain(|_, entry| {
                !entry.reply.is_closed()
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

    /// Waits for the answer to `packet`, whose id is a free one.
    pub(super) fn insert(
        &mut self,
        id: u16,
        packet: Packet,
        now: Instant,
    ) -> oneshot::Receiver<PendingOutcome> {
        let (reply, receiver) = oneshot::channel();
        self.by_id.insert(id, PendingQuery { packet, sent: now, reply });
        receiver
    }
}
