//! The state machine that follows one cluster through its failures.

use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::backoff::Backoff;
use super::connection::{Connection, Endpoints, Prefix, Standing};
use super::failure::{Failure, Kind};
use super::watch::{News, Watch};
use super::{Settings, list, part_of};
use crate::registry::{Command, Feed, FollowerGone};
use crate::service::{Change, ListKind};

/// Lists in one session because the watch cannot go on from where it was. One more, and the member is left: something is
/// wrong with it.
const RELISTS: u32 = 3;

/// Follows one cluster. Keeps no copy of what it read, only up to where it read.
pub(super) struct Supervisor {
    settings: Settings,
    prefixes: Vec<Prefix>,
    feed: Feed,
    commands: mpsc::Receiver<Command>,
    endpoints: Endpoints,
    backoff: Backoff,
    /// Up to where everything was sent; none before the first list.
    position: Option<Position>,
    /// A list that must be sent before anything else: the first, one that was begun and broke off, or events are missing.
    owed: Option<ListKind>,
    /// Whether the follower was told that the store is reachable.
    connected: bool,
}

/// Up to where everything was sent.
#[derive(Clone, Debug)]
struct Position {
    cluster: u64,
    /// For each prefix the larger of the last list's revision and that of its last event. One for each, since the watches
    /// of one stream do not wait for each other. Progress replies do not count: on etcd below 3.4.25 they run ahead.
    revisions: Vec<u64>,
}

impl Position {
    fn newest(&self) -> u64 {
        self.revisions.iter().copied().max().unwrap_or(0)
    }
}

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// Nobody listens any more.
    Gone,
    /// Something broke; the next session may do better.
    Failed(Failure),
}

impl From<FollowerGone> for End {
    fn from(_: FollowerGone) -> Self {
        Self::Gone
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Supervisor {
    pub(super) fn new(settings: Settings, first: ListKind, feed: Feed, commands: mpsc::Receiver<Command>) -> Self {
        let timings = &settings.timings;
        Self {
            prefixes: Prefix::of(&settings.heads),
            endpoints: Endpoints::new(&settings.endpoints),
            backoff: Backoff::new(timings.backoff_min, timings.backoff_max),
            position: None,
            owed: Some(first),
            connected: false,
            settings,
            feed,
            commands,
        }
    }

    /// Follows until the follower has gone.
    pub(super) async fn run(mut self) -> FollowerGone {
        loop {
            let failure = match self.endpoints.choose() {
                None => Failure::new(Kind::Settings, "no endpoint is configured"),
                Some(endpoint) => {
                    let mut good_since = None;
                    let Err(end) = self.session(&endpoint, &mut good_since).await;
                    let End::Failed(mut failure) = end else { return FollowerGone };
                    if good_since.is_some_and(|since: Instant| since.elapsed() >= self.settings.timings.healthy_after) {
                        self.backoff.reset();
                    }
                    self.endpoints.note(&endpoint, Some(Instant::now()));
                    failure.text = format!("etcd at {endpoint}: {}", failure.text);
                    failure
                }
            };
            if self.disconnected(failure).await.is_err() {
                return FollowerGone;
            }
            let until = Instant::now() + self.backoff.next();
            while tokio::time::timeout_at(until, self.unanswerable()).await.is_ok() {}
        }
    }

    /// Takes a command that nobody can answer now.
    async fn unanswerable(&mut self) {
        if self.commands.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// One connection, from its beginning to its failure. `good_since` is when it began to work.
    async fn session(&mut self, endpoint: &str, good_since: &mut Option<Instant>) -> Result<std::convert::Infallible, End> {
        let connection = Connection::open(&self.settings, endpoint).await?;
        let standing = connection.probe(&self.prefixes).await?;
        while self.commands.try_recv().is_ok() {}
        // A store that was restored and has grown past us passes for one that went on: verify soon.
        let mut check = (Instant::now() + part_of(self.settings.timings.verify_within), ListKind::Reconnect);
        let mut relists = RELISTS;
        let mut due = self.due(standing, self.owed).map(|kind| (kind, standing));
        loop {
            if let Some((kind, standing)) = due.take() {
                self.list(&connection, kind, standing).await?;
                check = (self.routine(), ListKind::Routine);
            }
            let watch = Watch::open(&self.settings, endpoint, &self.prefixes, &self.revisions()).await?;
            let (kind, next) = match self.watch(watch, &connection, endpoint, &mut check, good_since).await {
                Err(End::Failed(failure)) if relists > 0 && matches!(failure.kind, Kind::Compacted | Kind::TooLarge) => {
                    relists -= 1;
                    tracing::info!(registry = %self.feed.state(), reason = failure.text, "listing again");
                    self.owe(ListKind::Reconnect);
                    let next = connection.probe(&self.prefixes).await?;
                    (self.due(next, self.owed), next)
                }
                Err(end) => return Err(end),
                Ok(restored) => (Some(ListKind::Restored), restored),
            };
            due = kind.map(|kind| (kind, next));
        }
    }

    /// The list that is due where the store stands so, and at least `least`.
    fn due(&self, standing: Standing, least: Option<ListKind>) -> Option<ListKind> {
        match &self.position {
            Some(position) if position.cluster != standing.cluster || standing.revision < position.newest() => Some(ListKind::Restored),
            _ => least,
        }
    }

    /// Owes a list of this kind, or the one that is owed where that is believed less.
    fn owe(&mut self, kind: ListKind) {
        self.owed = match (self.owed, kind) {
            (Some(ListKind::Restored), _) | (_, ListKind::Restored) => Some(ListKind::Restored),
            (Some(ListKind::Reconnect), _) | (_, ListKind::Reconnect) => Some(ListKind::Reconnect),
            (_, ListKind::Routine) => Some(ListKind::Routine),
        };
    }

    /// When the next list is made although nothing is wrong.
    fn routine(&self) -> Instant {
        let every = self.settings.timings.relist_every;
        Instant::now() + every.mul_f64(0.8) + part_of(every.mul_f64(0.4))
    }

    fn revisions(&self) -> Vec<u64> {
        self.position.as_ref().map(|position| position.revisions.clone()).unwrap_or_default()
    }

    /// Sends a full list as of where the store stands. It is at or past every event sent before, since those were read
    /// before the store was asked.
    async fn list(&mut self, connection: &Connection, kind: ListKind, standing: Standing) -> Result<(), End> {
        if kind == ListKind::Restored {
            let ours = self.position.as_ref().map_or(0, Position::newest);
            tracing::warn!(
                registry = %self.feed.state(), revision = standing.revision, ours, cluster = standing.cluster,
                "the store went back or is another one: restored from a backup, or wiped"
            );
        }
        let begun = Instant::now();
        self.feed.send(vec![Change::ListBegin(kind)]).await?;
        // Whatever happens from here on, only a complete list may follow.
        self.owe(kind);
        list::send_all(connection, &self.prefixes, standing.revision, &self.settings.timings, &self.feed).await?;
        self.feed.send(vec![Change::ListEnd { revision: standing.revision }, Change::Connected(true)]).await?;
        self.owed = None;
        self.connected = true;
        self.position = Some(Position { cluster: standing.cluster, revisions: vec![standing.revision; self.prefixes.len()] });
        self.feed.state().update(|report| {
            report.connected = true;
            report.synced = true;
            report.revision = standing.revision;
            report.last_event = Some(SystemTime::now());
            report.error = None;
            report.lists += 1;
        });
        let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(registry = %self.feed.state(), ?kind, revision = standing.revision, duration_ms, "listed");
        Ok(())
    }

    /// Passes events on until the watch fails; meanwhile answers commands and makes the lists that are due. Returns where
    /// the store stands when it went back under a living connection.
    async fn watch(
        &mut self,
        mut watch: Watch,
        connection: &Connection,
        endpoint: &str,
        check: &mut (Instant, ListKind),
        good_since: &mut Option<Instant>,
    ) -> Result<Standing, End> {
        let mut asking = JoinSet::new();
        let timings = self.settings.timings.clone();
        loop {
            let positions = self.revisions();
            tokio::select! {
                news = watch.next(&timings, &positions) => match news? {
                    News::Alive => self.feed.state().update(|report| report.last_event = Some(SystemTime::now())),
                    News::Confirmed => {
                        good_since.get_or_insert_with(Instant::now);
                        self.endpoints.note(endpoint, None);
                        self.confirmed().await?;
                    }
                    News::Changes { prefix, revision, changes } => {
                        self.feed.send(changes).await?;
                        watch.pause_over();
                        self.moved(prefix, revision);
                    }
                },
                () = sleep_until(check.0) => {
                    // The watch is not read meanwhile: what it brings is newer than the list, or is left out after it.
                    let checked = self.check(connection, check.1).await?;
                    watch.pause_over();
                    match checked {
                        Checked::Same => *check = (self.routine(), ListKind::Routine),
                        Checked::Refused => check.0 = Instant::now() + timings.backoff_max,
                        Checked::Restored(standing) => return Ok(standing),
                    }
                }
                Some(Command::AskLeases(leases)) = self.commands.recv(), if asking.is_empty() => {
                    asking.spawn(ask_leases(connection.clone(), leases, self.feed.clone(), timings.request_timeout));
                }
                Some(_) = asking.join_next(), if !asking.is_empty() => {}
            }
        }
    }

    /// Lists although the watch is fine.
    async fn check(&mut self, connection: &Connection, kind: ListKind) -> Result<Checked, End> {
        let standing = match connection.probe(&self.prefixes).await {
            Ok(standing) => standing,
            // The watch goes on without the permission or password it began with: better than nothing.
            Err(failure) if failure.kind.is_refusal() => {
                let text = failure.text;
                let known = self.feed.state().report().error.as_ref() == Some(&text);
                if !known {
                    tracing::warn!(registry = %self.feed.state(), reason = text, "a check by a full list failed, events still arrive");
                }
                self.feed.state().update(|report| report.error = Some(text));
                return Ok(Checked::Refused);
            }
            Err(failure) => return Err(failure.into()),
        };
        match self.due(standing, Some(kind)) {
            Some(ListKind::Restored) => Ok(Checked::Restored(standing)),
            _ => self.list(connection, kind, standing).await.map(|()| Checked::Same),
        }
    }

    /// Everything up to this revision was sent below one prefix.
    fn moved(&mut self, prefix: usize, revision: u64) {
        if let Some(place) = self.position.as_mut().and_then(|position| position.revisions.get_mut(prefix)) {
            *place = revision.max(*place);
        }
        let newest = self.position.as_ref().map_or(0, Position::newest);
        self.feed.state().update(|report| {
            report.revision = newest;
            report.last_event = Some(SystemTime::now());
        });
    }

    /// The watch runs: the store is reachable.
    async fn confirmed(&mut self) -> Result<(), FollowerGone> {
        if !self.connected {
            self.connected = true;
            self.feed.send(vec![Change::Connected(true)]).await?;
        }
        let state = self.feed.state();
        tracing::info!(registry = %state, url = %state.url, "following");
        self.feed.state().update(|report| {
            report.connected = true;
            report.last_event = Some(SystemTime::now());
            report.error = None;
        });
        Ok(())
    }

    /// The session failed: says so where that is news.
    async fn disconnected(&mut self, failure: Failure) -> Result<(), FollowerGone> {
        let text = failure.text;
        let was_connected = std::mem::take(&mut self.connected);
        let mut known = false;
        self.feed.state().update(|report| {
            report.connected = false;
            report.disconnects += u64::from(was_connected);
            known = report.error.as_ref() == Some(&text);
            report.error = Some(text.clone());
        });
        if known {
            tracing::debug!(registry = %self.feed.state(), reason = text, "still not connected");
        } else {
            let state = self.feed.state();
            tracing::warn!(
                registry = %state, url = %state.url, reason = text, "not connected, trying again"
            );
        }
        if was_connected {
            self.feed.send(vec![Change::Connected(false)]).await?;
        }
        Ok(())
    }
}

/// What a list beside a living watch came to.
enum Checked {
    /// It was made.
    Same,
    /// The user may not list any more.
    Refused,
    /// The store went back: it was not made yet, and the watch is worth nothing.
    Restored(Standing),
}

/// Asks which leases are gone, and answers on the feed; not at all where the store does not say.
async fn ask_leases(connection: Connection, leases: Vec<i64>, feed: Feed, limit: Duration) {
    let deadline = Instant::now() + limit;
    let asked = leases.len();
    let mut there = 0;
    let mut gone = Vec::new();
    for lease in leases {
        let time_to_live = || {
            let mut client = connection.lease();
            async move { client.time_to_live(lease, None).await }
        };
        match tokio::time::timeout_at(deadline, connection.call("ask for a lease", time_to_live)).await {
            Ok(Ok(answer)) => {
                if answer.ttl() < 0 {
                    gone.push(lease);
                } else {
                    there += 1;
                }
            }
            Ok(Err(failure)) if failure.kind.is_refusal() => break,
            Ok(Err(_)) => {}
            Err(_) => break,
        }
    }
    if is_answer(asked, there, gone.len()) {
        // Nobody to tell is nobody to ask for.
        let _ = feed.send(vec![Change::LeasesGone(gone)]).await;
    }
}

/// Whether so many leases that are there and that are gone, of those asked about, are an answer. One that is gone is enough to
/// know of an expiry. That it was none takes them all: a store that falls silent in between may be why leases expire.
fn is_answer(asked: usize, there: usize, gone: usize) -> bool {
    gone > 0 || there == asked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_no_lease_is_gone_is_said_only_when_all_are_known_to_be_there() {
        assert!(is_answer(3, 3, 0));
        assert!(is_answer(3, 0, 1));
        assert!(!is_answer(3, 1, 0), "two were not spoken of");
        assert!(!is_answer(3, 0, 0));
    }
}
