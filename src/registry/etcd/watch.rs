//! The watch of every head, on a connection of its own.

use std::time::Duration;

use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::time::Instant;

use super::change;
use super::connection::{Connection, Prefix};
use super::failure;
use super::{EtcdTuning, Settings};
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::gsvc::KeyParser;
use crate::service::Change;

/// A stream with one watch per prefix; it reopens nothing, so any error ends it.
///
/// The stream has its own connection because etcd starves a watch that shares one with reads over
/// TLS (etcd#15402).
pub(super) struct EtcdWatch {
    stream: WatchStream,
    connection: Connection,
    /// Number of watches that etcd has not confirmed yet.
    unconfirmed: usize,
    /// The revision after which each watch begins.
    begin_after: Vec<u64>,
    /// Arrival time of the last message of any kind.
    last_message: Instant,
    /// Whether a progress notification was requested since the last message.
    progress_requested: bool,
}

/// A message of the watch.
#[derive(Debug, PartialEq)]
pub(super) enum WatchEvent {
    /// Events below the prefix of this index, the newest at this revision.
    Changes { prefix: usize, revision: u64, changes: Vec<Change> },
    /// All watches are confirmed: from now on, silence means that nothing changes.
    Confirmed,
    /// A message without events.
    Alive,
}

impl EtcdWatch {
    /// Watches each prefix from after the revision at the same index of `positions`.
    pub(super) async fn open(
        settings: &Settings,
        endpoint: &str,
        prefixes: &[Prefix],
        positions: &[u64],
    ) -> Result<Self, Failure> {
        let limit = settings.tuning.connection.request_timeout;
        let connection = Connection::open(settings, endpoint).await?;
        let mut stream = None;
        for (index, (prefix, position)) in (1_i64..).zip(prefixes.iter().zip(positions)) {
            let action = format!("watch {}", prefix.start());
            let options = WatchOptions::new()
                .with_range(prefix.end())
                .with_start_revision(i64::try_from(position.saturating_add(1)).unwrap_or(i64::MAX))
                .with_watch_id(index)
                .with_progress_notify();
            match &mut stream {
                None => {
                    let mut watch = connection.watch();
                    let opened = watch.watch(prefix.start(), Some(options));
                    stream = Some(connection.within(&action, limit, opened).await?);
                }
                Some(stream) => {
                    let added = stream.watch(prefix.start(), Some(options));
                    connection.within(&action, limit, added).await?;
                }
            }
        }
        let no_heads = || Failure::new(FailureKind::Settings, "no heads are configured");
        Ok(Self {
            stream: stream.ok_or_else(no_heads)?,
            connection,
            unconfirmed: prefixes.len(),
            begin_after: positions.to_vec(),
            last_message: Instant::now(),
            progress_requested: false,
        })
    }

    /// Waits for the next message; cancel safe.
    ///
    /// Leaves out events at or before `positions`, which were sent already: etcd before 3.4.24
    /// repeats some events, and before 3.4.38 sends some from before the requested revision.
    ///
    /// # Errors
    /// Returns an error if the stream broke, etcd canceled a watch, or the member was silent for
    /// too long.
    pub(super) async fn next(
        &mut self,
        tuning: &EtcdTuning,
        positions: &[u64],
    ) -> Result<WatchEvent, Failure> {
        let message =
            self.receive(tuning).await.map_err(|failure| self.connection.hide(failure))?;
        self.restart_silence();
        self.convert(&message, positions).map_err(|failure| self.connection.hide(failure))
    }

    async fn receive(&mut self, tuning: &EtcdTuning) -> Result<WatchResponse, Failure> {
        loop {
            let grace =
                if self.progress_requested { tuning.progress_deadline } else { Duration::ZERO };
            let wait = tuning.progress_interval + grace;
            match tokio::time::timeout_at(self.last_message + wait, self.stream.message()).await {
                Ok(Ok(Some(message))) => return Ok(message),
                Ok(Ok(None)) => {
                    let text = "the watch ended: the member closed it";
                    return Err(Failure::new(FailureKind::Connection, text));
                }
                Ok(Err(error)) => return Err(failure::of_error("continue the watch", &error)),
                Err(_) if self.progress_requested => {
                    return Err(Failure::timeout(wait).of("watch"));
                }
                Err(_) => {
                    let request = self.stream.request_progress();
                    self.connection
                        .within("request progress", tuning.connection.request_timeout, request)
                        .await?;
                    self.progress_requested = true;
                }
            }
        }
    }

    /// Returns the watch's connection, for a call that the same member must execute.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Restarts measuring silence after a pause in which the stream was not read.
    pub(super) fn restart_silence(&mut self) {
        self.last_message = Instant::now();
        self.progress_requested = false;
    }

    fn convert(
        &mut self,
        message: &WatchResponse,
        positions: &[u64],
    ) -> Result<WatchEvent, Failure> {
        // A canceled watch leaves the stream open and silent. The message that confirms a watch
        // may also cancel it.
        if message.canceled() {
            return Err(match message.compact_revision() {
                0 => failure::canceled(message.cancel_reason()),
                revision => {
                    let text = format!("the history before revision {revision} is compacted");
                    Failure::new(FailureKind::Compacted, text)
                }
            });
        }
        let prefix = usize::try_from(message.watch_id()).ok().and_then(|id| id.checked_sub(1));
        if message.created() {
            let revision = message.header().map_or(0, |header| change::revision(header.revision()));
            let begin_after = prefix.and_then(|prefix| self.begin_after.get(prefix));
            if begin_after.is_some_and(|begin_after| revision < *begin_after) {
                let text = format!(
                    "the store is at revision {revision}, older than what was read before: it \
                     went back in time, or this member lags behind"
                );
                return Err(Failure::new(FailureKind::Connection, text));
            }
            self.unconfirmed = self.unconfirmed.saturating_sub(1);
            return Ok(if self.unconfirmed == 0 {
                WatchEvent::Confirmed
            } else {
                WatchEvent::Alive
            });
        }
        let Some((prefix, position)) =
            prefix.and_then(|prefix| positions.get(prefix).map(|position| (prefix, *position)))
        else {
            return Ok(WatchEvent::Alive);
        };
        let mut newest = position;
        let mut changes = Vec::with_capacity(message.events().len());
        let mut parser = KeyParser::default();
        for event in message.events() {
            if let Some((revision, change)) = change::event(event, &mut parser)
                && revision > position
            {
                newest = newest.max(revision);
                changes.push(change);
            }
        }
        Ok(if changes.is_empty() {
            WatchEvent::Alive
        } else {
            WatchEvent::Changes { prefix, revision: newest, changes }
        })
    }
}
