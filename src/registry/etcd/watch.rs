//! The watch of every head, on a connection of its own.

use std::time::Duration;

use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::time::Instant;

use super::change;
use super::connection::{Connection, Prefix};
use super::failure::{Failure, Kind};
use super::{Settings, Timings};
use crate::registry::gsvc;
use crate::service::Change;

/// One stream with a watch for each prefix. It never re-opens anything: any error ends it.
///
/// Its connection is its own because etcd starves a watch that shares one with reads over TLS (etcd#15402).
pub(super) struct Watch {
    stream: WatchStream,
    connection: Connection,
    /// Watches that etcd has not confirmed yet.
    unconfirmed: usize,
    /// What each watch was asked to begin behind.
    begun: Vec<u64>,
    /// When the member was last heard of, by a message of any kind.
    heard: Instant,
    /// Whether it was asked for its progress since.
    asked: bool,
}

/// What a message of the watch says.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    /// Events below the prefix of this index, the newest with this revision.
    Changes { prefix: usize, revision: u64, changes: Vec<Change> },
    /// All watches are confirmed: from now on silence means that nothing happens.
    Confirmed,
    /// The member lives.
    Alive,
}

impl Watch {
    /// Watches each prefix behind the revision that stands at its place in `positions`.
    pub(super) async fn open(settings: &Settings, endpoint: &str, prefixes: &[Prefix], positions: &[u64]) -> Result<Self, Failure> {
        let limit = settings.timings.request_timeout;
        let connection = Connection::open(settings, endpoint).await?;
        let mut stream = None;
        for (index, (prefix, position)) in (1_i64..).zip(prefixes.iter().zip(positions)) {
            let doing = format!("watch {}", prefix.start());
            let options = WatchOptions::new()
                .with_range(prefix.end())
                .with_start_revision(i64::try_from(position.saturating_add(1)).unwrap_or(i64::MAX))
                .with_watch_id(index)
                .with_prev_key()
                .with_progress_notify();
            match &mut stream {
                None => {
                    let mut watch = connection.watch();
                    let opened = connection.within(&doing, limit, watch.watch(prefix.start(), Some(options)));
                    stream = Some(opened.await?);
                }
                Some(stream) => connection.within(&doing, limit, stream.watch(prefix.start(), Some(options))).await?,
            }
        }
        let stream = stream.ok_or_else(|| Failure::new(Kind::Settings, "there is no head to watch"))?;
        let begun = positions.to_vec();
        Ok(Self { stream, connection, unconfirmed: prefixes.len(), begun, heard: Instant::now(), asked: false })
    }

    /// The next message, read: events at or below `positions` are left out, since they were said already (etcd below 3.4.24
    /// sends some twice, below 3.4.38 some from before the beginning). Can be dropped while it waits.
    ///
    /// # Errors
    /// When the stream broke, the watch was canceled, or the member was silent for too long.
    pub(super) async fn next(&mut self, timings: &Timings, positions: &[u64]) -> Result<News, Failure> {
        let message = self.message(timings).await.map_err(|failure| self.connection.hide(failure))?;
        self.pause_over();
        self.read(&message, positions).map_err(|failure| self.connection.hide(failure))
    }

    async fn message(&mut self, timings: &Timings) -> Result<WatchResponse, Failure> {
        loop {
            let wait = timings.progress_interval + if self.asked { timings.progress_deadline } else { Duration::ZERO };
            match tokio::time::timeout_at(self.heard + wait, self.stream.message()).await {
                Ok(Ok(Some(message))) => return Ok(message),
                Ok(Ok(None)) => return Err(Failure::new(Kind::Connection, "the watch ended: the member closed it")),
                Ok(Err(error)) => return Err(Failure::of("go on watching", &error)),
                Err(_) if self.asked => return Err(Failure::late("watch", wait)),
                Err(_) => {
                    let asked = self.stream.request_progress();
                    self.connection.within("ask for progress", timings.request_timeout, asked).await?;
                    self.asked = true;
                }
            }
        }
    }

    /// The stream was not read for a while, for a reason of ours: silence counts from now.
    pub(super) fn pause_over(&mut self) {
        self.heard = Instant::now();
        self.asked = false;
    }

    fn read(&mut self, message: &WatchResponse, positions: &[u64]) -> Result<News, Failure> {
        // A canceled watch leaves the stream open and silent, and may say so in the very message that confirms it.
        if message.canceled() {
            return Err(match message.compact_revision() {
                0 => Failure::canceled(message.cancel_reason()),
                revision => Failure::new(Kind::Compacted, format!("the history before revision {revision} is compacted")),
            });
        }
        let prefix = usize::try_from(message.watch_id()).ok().and_then(|id| id.checked_sub(1));
        if message.created() {
            let at = message.header().map_or(0, |header| change::revision(header.revision()));
            if prefix.and_then(|prefix| self.begun.get(prefix)).is_some_and(|begun| at < *begun) {
                let text = format!("the store is at revision {at}, behind what was read before: it went back, or this member lags");
                return Err(Failure::new(Kind::Connection, text));
            }
            self.unconfirmed = self.unconfirmed.saturating_sub(1);
            return Ok(if self.unconfirmed == 0 { News::Confirmed } else { News::Alive });
        }
        let Some((prefix, position)) = prefix.and_then(|prefix| positions.get(prefix).map(|position| (prefix, *position))) else {
            return Ok(News::Alive);
        };
        let mut revision = position;
        let mut changes = Vec::with_capacity(message.events().len());
        let mut reader = gsvc::Reader::default();
        for event in message.events() {
            if let Some((at, change)) = change::event(event, &mut reader)
                && at > position
            {
                revision = revision.max(at);
                changes.push(change);
            }
        }
        Ok(if changes.is_empty() { News::Alive } else { News::Changes { prefix, revision, changes } })
    }
}
