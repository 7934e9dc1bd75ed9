//! The questions under way on one socket or connection.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use rand::Rng;
use tokio::sync::oneshot;

use super::question::{Fit, Packet};

/// What a question that is under way comes to.
#[derive(Debug)]
pub(super) enum Reply {
    /// Its answer, whole.
    Message(Vec<u8>),
    /// Its answer, whole, but for the letters' case.
    OtherCase(Vec<u8>),
    /// Somebody sends what nobody asked for, or more than can be taken: better ask where nobody can guess.
    Doubtful,
    /// It cannot be reached, or hung up; why, for people.
    Unreachable(String),
}

/// How long a question that nobody waits for any more is still known: its answer tells that the upstream lives.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// The questions under way, by id.
#[derive(Debug)]
pub(super) struct Pending {
    entries: Mutex<Entries>,
}

#[derive(Debug)]
pub(super) struct Entries {
    most: usize,
    /// Nothing is taken any more.
    closed: bool,
    by_id: HashMap<u16, Entry, foldhash::fast::RandomState>,
}

#[derive(Debug)]
struct Entry {
    packet: Packet,
    sent: Instant,
    reply: oneshot::Sender<Reply>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It was an answer, after this time.
    Answer(Duration),
    /// Nobody asked for it.
    Stray,
}

impl Pending {
    /// A table of at most `most` questions.
    pub(super) fn new(most: usize) -> Self {
        Self { entries: Mutex::new(Entries { most, closed: false, by_id: HashMap::default() }) }
    }

    /// The table, to be changed: whoever holds it holds up the reader.
    pub(super) fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `message` to whom it answers.
    pub(super) fn take(&self, message: &[u8], now: Instant) -> Taken {
        let mut entries = self.lock();
        let Some(id) = message.first_chunk().map(|id| u16::from_be_bytes(*id)) else { return Taken::Stray };
        let fit = entries.by_id.get(&id).map_or(Fit::Stray, |entry| entry.packet.fits(message));
        if fit == Fit::Stray {
            return Taken::Stray;
        }
        let Some(entry) = entries.by_id.remove(&id) else { return Taken::Stray };
        drop(entries);
        let reply = if fit == Fit::OtherCase { Reply::OtherCase(message.to_vec()) } else { Reply::Message(message.to_vec()) };
        // Nobody waits any more: it came late, and told all the same that the upstream lives.
        let _ = entry.reply.send(reply);
        Taken::Answer(now.saturating_duration_since(entry.sent))
    }

    /// Ends all that is under way, and takes nothing any more.
    pub(super) fn close(&self, mut reply: impl FnMut() -> Reply) {
        let mut entries = self.lock();
        entries.closed = true;
        let by_id = std::mem::take(&mut entries.by_id);
        drop(entries);
        for (_, entry) in by_id {
            let _ = entry.reply.send(reply());
        }
    }

    /// Whether nothing is taken any more.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// When the oldest question that is under way was sent.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.lock().by_id.values().map(|entry| entry.sent).min()
    }
}

impl Entries {
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
        if self.by_id.len() >= self.most {
            self.by_id.retain(|_, entry| !entry.reply.is_closed() || now.saturating_duration_since(entry.sent) < LINGER);
            if self.by_id.len() >= self.most {
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
    pub(super) fn insert(&mut self, id: u16, packet: Packet, now: Instant) -> oneshot::Receiver<Reply> {
        let (reply, receiver) = oneshot::channel();
        self.by_id.insert(id, Entry { packet, sent: now, reply });
        receiver
    }
}
