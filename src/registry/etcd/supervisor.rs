//! The state machine that follows one cluster through its failures.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::connection::{Connection, Prefix, StoreStatus};
use super::watch::{EtcdWatch, WatchEvent};
use super::{Settings, leases, list};
use crate::registry::RegistryCommand;
use crate::registry::backoff::random_up_to;
use crate::registry::session::{SessionEnd, StoreLink, Supervisor};
use crate::service::{Change, ListKind};

/// Maximum lists in one session that only replace a broken watch.
///
/// Beyond this limit the member seems faulty, so the supervisor leaves it.
const MAX_RELISTS_PER_SESSION: u32 = 3;

/// Time without lists of all leases after such a list has failed.
///
/// They are costly with very many leases, and may be refused.
const LEASE_LIST_PAUSE: Duration = Duration::from_secs(60);

/// Follows one cluster through all failures.
///
/// The supervisor keeps no copy of the keys, only the revisions it has read.
pub(super) struct EtcdSupervisor {
    settings: Settings,
    prefixes: Vec<Prefix>,
    link: StoreLink,
    /// Revisions up to which changes were sent; `None` before the first list.
    position: Option<Position>,
    /// The list that must come before any event.
    ///
    /// Set for the first list, after a list that broke off, and if events were missed.
    required_list: Option<ListKind>,
}

/// Revisions up to which changes were sent.
#[derive(Clone, Debug)]
struct Position {
    cluster: u64,
    /// Per prefix, the newer of the revisions of the last list and the last event.
    ///
    /// The revisions differ because the watches of a stream advance independently. Progress
    /// notifications do not count: before etcd 3.4.25 they run ahead of the events.
    revisions: Vec<u64>,
}

impl Position {
    fn newest(&self) -> u64 {
        self.revisions.iter().copied().max().unwrap_or(0)
    }
}

impl EtcdSupervisor {
    pub(super) fn new(settings: Settings, first: ListKind, link: StoreLink) -> Self {
        Self {
            prefixes: Prefix::of_heads(&settings.heads),
            link,
            position: None,
            required_list: Some(first),
            settings,
        }
    }

    /// Returns `Restored` if the store went back in time, otherwise `otherwise`.
    fn kind_of_list(&self, status: StoreStatus, otherwise: Option<ListKind>) -> Option<ListKind> {
        match &self.position {
            Some(position)
                if position.cluster != status.cluster || status.revision < position.newest() =>
            {
                Some(ListKind::Restored)
            }
            _ => otherwise,
        }
    }

    /// Requires a list, of the stricter kind if one is required already.
    fn require_list(&mut self, kind: ListKind) {
        self.required_list = self.required_list.max(Some(kind));
    }

    /// Returns the time of the next routine list.
    fn next_routine_list(&self) -> Instant {
        let interval = self.settings.tuning.relist_interval;
        Instant::now() + interval.mul_f64(0.8) + random_up_to(interval.mul_f64(0.4))
    }

    fn revisions(&self) -> Vec<u64> {
        self.position.as_ref().map(|position| position.revisions.clone()).unwrap_or_default()
    }

    /// Sends a full list as of `status`.
    ///
    /// The list includes every event sent before, because `status` was read after them.
    async fn list(
        &mut self,
        connection: &Connection,
        kind: ListKind,
        status: StoreStatus,
    ) -> Result<(), SessionEnd> {
        if kind == ListKind::Restored {
            let last_revision = self.position.as_ref().map_or(0, Position::newest);
            tracing::warn!(
                registry = %self.link.feed.state(),
                revision = status.revision,
                last_revision,
                cluster = status.cluster,
                "the store went back in time or was replaced: restored from a backup, or wiped"
            );
        }
        let start = Instant::now();
        self.link.feed.send(vec![Change::list_begin(kind)]).await?;
        // If the list breaks off, only a complete list may follow.
        self.require_list(kind);
        let (prefixes, tuning) = (&self.prefixes, &self.settings.tuning);
        list::send_all(connection, prefixes, status.revision, tuning, &self.link.feed).await?;
        let end = Change::ListEnd { revision: status.revision };
        self.link.send_connected(vec![end]).await?;
        self.required_list = None;
        self.position = Some(Position {
            cluster: status.cluster,
            revisions: vec![status.revision; self.prefixes.len()],
        });
        self.link.feed.state().update(|report| {
            report.connected = true;
            report.revision = status.revision;
            report.last_event = Some(SystemTime::now());
            report.error = None;
            report.note_list();
        });
        let registry = self.link.feed.state();
        let duration_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(%registry, ?kind, revision = status.revision, duration_ms, "listed");
        Ok(())
    }

    /// Sends the events of the watch until it fails.
    ///
    /// Meanwhile runs commands and lists at the time and of the kind in `check`. Returns the
    /// store's status if such a list finds that the store went back in time.
    async fn watch(
        &mut self,
        mut watch: EtcdWatch,
        connection: &Connection,
        check: &mut (Instant, ListKind),
    ) -> Result<StoreStatus, SessionEnd> {
        let mut lease_check = JoinSet::new();
        let mut list_leases_after = Instant::now();
        let tuning = self.settings.tuning.clone();
        loop {
            let positions = self.revisions();
            tokio::select! {
                event = watch.next(&tuning, &positions) => match event? {
                    WatchEvent::Alive => {
                        let now = SystemTime::now();
                        self.link.feed.state().update(|report| report.last_event = Some(now));
                    }
                    WatchEvent::Confirmed => {
                        self.link.following(|_| {}).await?;
                    }
                    WatchEvent::Changes { prefix, revision, changes } => {
                        self.link.feed.send(changes).await?;
                        watch.restart_silence();
                        self.advance(prefix, revision);
                    }
                },
                () = sleep_until(check.0) => {
                    // The watch is not read meanwhile. Its events are newer than the list, or the
                    // new position excludes them.
                    let result = self.check(connection, check.1).await?;
                    watch.restart_silence();
                    match result {
                        CheckResult::Listed => {
                            *check = (self.next_routine_list(), ListKind::Routine);
                        }
                        CheckResult::Refused => {
                            check.0 = Instant::now() + tuning.connection.backoff_max;
                        }
                        CheckResult::Restored(status) => return Ok(status),
                    }
                }
                Some(RegistryCommand::CheckLeases(checked)) = self.link.commands.recv(),
                    if lease_check.is_empty() =>
                {
                    let (connection, feed) = (watch.connection().clone(), self.link.feed.clone());
                    let may_list = list_leases_after <= Instant::now();
                    lease_check.spawn(leases::check(connection, checked, may_list, feed));
                }
                Some(ended) = lease_check.join_next(), if !lease_check.is_empty() => {
                    if matches!(ended, Ok(true)) {
                        list_leases_after = Instant::now() + LEASE_LIST_PAUSE;
                    }
                }
            }
        }
    }

    /// Lists while the watch works.
    async fn check(
        &mut self,
        connection: &Connection,
        kind: ListKind,
    ) -> Result<CheckResult, SessionEnd> {
        let status = match connection.probe(&self.prefixes).await {
            Ok(status) => status,
            // The watch keeps the permission and password it began with, which is better than
            // nothing.
            Err(failure) if failure.kind.is_refusal() => {
                let text = failure.text;
                let registry = self.link.feed.state();
                if registry.report().error.as_ref() != Some(&text) {
                    tracing::warn!(
                        %registry,
                        reason = text,
                        "a routine list was refused; events still arrive"
                    );
                }
                registry.update(|report| report.error = Some(text));
                return Ok(CheckResult::Refused);
            }
            Err(failure) => return Err(failure.into()),
        };
        match self.kind_of_list(status, Some(kind)) {
            Some(ListKind::Restored) => Ok(CheckResult::Restored(status)),
            _ => self.list(connection, kind, status).await.map(|()| CheckResult::Listed),
        }
    }

    /// Advances the position of one prefix to this revision.
    fn advance(&mut self, prefix: usize, revision: u64) {
        let position = self.position.as_mut();
        if let Some(last) = position.and_then(|position| position.revisions.get_mut(prefix)) {
            *last = revision.max(*last);
        }
        let newest = self.position.as_ref().map_or(0, Position::newest);
        self.link.feed.state().update(|report| {
            report.revision = newest;
            report.last_event = Some(SystemTime::now());
        });
    }
}

impl Supervisor for EtcdSupervisor {
    fn link(&mut self) -> &mut StoreLink {
        &mut self.link
    }

    /// Runs one connection to a member until it fails.
    async fn session(&mut self, endpoint: &str) -> Result<Infallible, SessionEnd> {
        let connection = Connection::open(&self.settings, endpoint).await?;
        let status = connection.probe(&self.prefixes).await?;
        self.link.drain_commands();
        // A restored store that has grown past the last read revision looks unchanged: verify soon.
        let verify_within = random_up_to(self.settings.tuning.verify_within);
        let mut check = (Instant::now() + verify_within, ListKind::Reconnect);
        let mut relists = MAX_RELISTS_PER_SESSION;
        let mut next_list =
            self.kind_of_list(status, self.required_list).map(|kind| (kind, status));
        loop {
            if let Some((kind, status)) = next_list.take() {
                self.list(&connection, kind, status).await?;
                check = (self.next_routine_list(), ListKind::Routine);
            }
            let watch =
                EtcdWatch::open(&self.settings, endpoint, &self.prefixes, &self.revisions())
                    .await?;
            let watched = self.watch(watch, &connection, &mut check).await;
            let (kind, status) = match watched {
                Err(SessionEnd::Failed(failure))
                    if relists > 0 && failure.kind.is_cured_by_list() =>
                {
                    relists -= 1;
                    let registry = self.link.feed.state();
                    tracing::info!(%registry, reason = failure.text, "listing again");
                    self.require_list(ListKind::Reconnect);
                    let status = connection.probe(&self.prefixes).await?;
                    (self.kind_of_list(status, self.required_list), status)
                }
                Err(end) => return Err(end),
                Ok(restored) => (Some(ListKind::Restored), restored),
            };
            next_list = kind.map(|kind| (kind, status));
        }
    }
}

/// The result of a list during a working watch.
enum CheckResult {
    /// The list was sent.
    Listed,
    /// The store refused the list.
    Refused,
    /// The store went back in time: nothing was sent yet, and the watch is obsolete.
    Restored(StoreStatus),
}
