//! Following a store with servers: sessions with one server after another.

use std::convert::Infallible;
use std::time::SystemTime;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::attempts::Attempts;
use super::failure::Failure;
use super::{Feed, FeedClosed, RegistryCommand, RegistryReport};
use crate::service::{Change, LeaseReply};

/// Follows one store of some kind through all failures.
///
/// A supervisor keeps no copy of the store, only its position.
pub(super) trait Supervisor: Send {
    /// Returns what the supervisor keeps in every kind of registry.
    fn link(&mut self) -> &mut StoreLink;

    /// Follows the store through one server until that fails.
    ///
    /// Calls [`StoreLink::following`] once everything was read and events arrive.
    fn session(
        &mut self,
        endpoint: &str,
    ) -> impl Future<Output = Result<Infallible, SessionEnd>> + Send;
}

/// Reason for the end of a session.
#[derive(Debug)]
pub(super) enum SessionEnd {
    /// The feed is closed.
    Closed,
    /// A request or the watch failed; the next session may succeed.
    Failed(Failure),
}

impl From<FeedClosed> for SessionEnd {
    fn from(_: FeedClosed) -> Self {
        Self::Closed
    }
}

impl From<Failure> for SessionEnd {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Runs sessions until `stop` is cancelled or the feed is closed.
///
/// Dropping a session at any await point is safe: a supervisor never writes to the store.
pub(super) async fn follow(supervisor: impl Supervisor, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        _closed = run(supervisor) => {}
    }
}

async fn run(mut supervisor: impl Supervisor) -> FeedClosed {
    loop {
        let failure = match supervisor.link().attempts.begin() {
            Err(failure) => failure,
            Ok(endpoint) => {
                let Err(end) = supervisor.session(&endpoint).await;
                let SessionEnd::Failed(failure) = end else { return FeedClosed };
                supervisor.link().attempts.end(failure).await
            }
        };
        let link = supervisor.link();
        if link.report_disconnected(failure).await.is_err() {
            return FeedClosed;
        }
        link.wait().await;
    }
}

/// The link between a store and the receiver of its changes, across sessions.
#[derive(Debug)]
pub(super) struct StoreLink {
    pub(super) feed: Feed,
    pub(super) commands: mpsc::Receiver<RegistryCommand>,
    attempts: Attempts,
    /// Whether the last `Connected` change said that the store is reachable.
    connected: bool,
}

impl StoreLink {
    pub(super) fn new(
        attempts: Attempts,
        feed: Feed,
        commands: mpsc::Receiver<RegistryCommand>,
    ) -> Self {
        Self { feed, commands, attempts, connected: false }
    }

    /// Discards the commands that arrived while the store could not be reached.
    pub(super) fn drain_commands(&mut self) {
        while self.commands.try_recv().is_ok() {}
    }

    /// Sends changes, and after them that the store is reachable.
    pub(super) async fn send_connected(
        &mut self,
        mut changes: Vec<Change>,
    ) -> Result<(), FeedClosed> {
        changes.push(Change::Connected(true));
        self.feed.send(changes).await?;
        self.connected = true;
        Ok(())
    }

    /// Reports that the store is followed: from now on, the session works.
    ///
    /// `update` completes the report, of which readers see no state in between.
    pub(super) async fn following(
        &mut self,
        update: impl FnOnce(&mut RegistryReport) + Send,
    ) -> Result<(), FeedClosed> {
        self.attempts.set_working();
        if !self.connected {
            self.send_connected(Vec::new()).await?;
        }
        let registry = self.feed.state();
        registry.update(|report| {
            report.connected = true;
            report.last_event = Some(SystemTime::now());
            report.error = None;
            update(report);
        });
        tracing::info!(%registry, url = %registry.url, "following");
        Ok(())
    }

    /// Replies that leases are gone, for a store in which the session cannot look them up.
    pub(super) async fn report_all_gone(&self, leases: Vec<i64>) -> Result<(), FeedClosed> {
        let reply = LeaseReply { revision: 0, gone: leases, alive: Vec::new() };
        self.feed.send(vec![Change::LeasesChecked(reply)]).await
    }

    /// Returns a failure with the server of the session, for the report and the log.
    pub(super) fn locate(&self, failure: Failure) -> Failure {
        self.attempts.locate(failure)
    }

    /// Reports that the session failed; logs a lasting failure at `warn` only once.
    async fn report_disconnected(&mut self, failure: Failure) -> Result<(), FeedClosed> {
        let Failure { kind, text } = failure;
        let was_connected = std::mem::take(&mut self.connected);
        let mut known = false;
        let registry = self.feed.state();
        registry.update(|report| {
            report.connected = false;
            report.disconnects += u64::from(was_connected);
            known = report.error.as_ref() == Some(&text);
            report.error = Some(text.clone());
            report.refused = kind.is_lasting();
        });
        if known {
            tracing::debug!(%registry, reason = text, "still not connected");
        } else {
            tracing::warn!(
                %registry, url = %registry.url, reason = text, "not connected, trying again"
            );
        }
        if was_connected {
            self.feed.send(vec![Change::Connected(false)]).await?;
        }
        Ok(())
    }

    /// Waits before the next session, and discards the commands of that time.
    async fn wait(&mut self) {
        let until = Instant::now() + self.attempts.next_wait();
        while timeout_at(until, self.discard_command()).await.is_ok() {}
    }

    /// Discards the next command, since the store cannot be reached now.
    async fn discard_command(&mut self) {
        if self.commands.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
