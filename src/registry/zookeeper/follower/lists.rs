//! Lists: when one is required, its kind, and the events that arrive meanwhile.

use std::mem;
use std::time::SystemTime;

use tokio::time::Instant;

use super::super::Settings;
use super::super::failure::{ErrorCode, malformed};
use super::super::paths::{Place, child};
use super::super::reads::Aim;
use super::super::supervisor::StorePosition;
use super::super::wire::{Creation, EventKind, parse_children};
use super::{Follower, ListState, revision};
use crate::registry::backoff::random_up_to;
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::{FeedClosed, RegistryReport};
use crate::service::{Change, ListKind};

impl Follower<'_> {
    /// Requires a list soon, at least of this kind.
    pub(super) fn require_list(&mut self, kind: ListKind) {
        self.required_list = self.required_list.max(Some(kind));
        self.list_due = Instant::now();
    }

    /// Begins the list with the names of all folders, or with the lack of a root.
    pub(super) fn begin_list(
        &mut self,
        result: &Result<Vec<u8>, ErrorCode>,
    ) -> Result<(), Failure> {
        let root = &self.supervisor.settings.root;
        let (folders, creation): (Vec<(Box<str>, Box<str>)>, _) = match result {
            Ok(body) => {
                let (names, stat) = parse_children(body).map_err(|_| malformed())?;
                let folders = names.into_iter().map(|name| (name.into(), child(root, name)));
                self.unreadable.clear();
                (folders.collect(), Some(stat.creation))
            }
            Err(ErrorCode::NO_NODE) => {
                let text = format!(
                    "there is no node {root}: no program has registered yet, or the URL has the \
                     wrong root"
                );
                let reason = self.located(Failure::connection(text));
                self.unreadable.clear();
                self.unreadable.insert(root, reason);
                if self.watched_folders.is_some() {
                    self.reads.push(&**root, Aim::AwaitRoot);
                }
                (Vec::new(), None)
            }
            Err(code) => return self.refuse_list(*code),
        };
        self.list = ListState::Begun { root: creation };
        let kind = if self.is_following {
            self.required_list.take().unwrap_or(ListKind::Routine)
        } else {
            self.required_list = None;
            let position = StorePosition { zxid: self.connection.last_zxid(), root: creation };
            self.supervisor.begin_first_list(position)
        };
        self.changes.push(Change::list_begin(kind));
        if let Some(watched) = &mut self.watched_folders {
            watched.clear();
            watched.extend(folders.iter().map(|(name, _)| name.clone()));
        }
        for (_, path) in folders {
            self.reads.push(path, Aim::Folder);
        }
        Ok(())
    }

    /// Keeps the session although the root may no longer be listed: its events still arrive.
    ///
    /// # Errors
    /// Returns the failure if there was no list yet, or if another server may do better.
    pub(super) fn refuse_list(&mut self, code: ErrorCode) -> Result<(), Failure> {
        let Settings { root, tuning, .. } = &self.supervisor.settings;
        let failure = code.of_node(self.supervisor.settings.login_keys());
        let failure = failure.of(&format!("list {root}"));
        if !self.is_following || failure.kind != FailureKind::Permission {
            return Err(failure);
        }
        let (reason, wait) = (self.located(failure), tuning.connection.backoff_max);
        self.unreadable.insert(root, reason);
        self.list = ListState::None;
        self.report_unreadable();
        self.take_deferred();
        self.list_due = Instant::now() + wait;
        Ok(())
    }

    /// Ends the list, and takes the events that arrived meanwhile.
    ///
    /// The list lacks the leaves that were deleted meanwhile. It must not remove them, since they
    /// may be part of a mass expiry: that is for their events to tell.
    pub(super) async fn end_list(&mut self, root: Option<Creation>) -> Result<(), FeedClosed> {
        let zxid = self.connection.last_zxid();
        let mut changes = mem::take(&mut self.changes);
        let root_path = &self.supervisor.settings.root;
        let deleted = self.deferred.iter().filter(|event| {
            event.kind == EventKind::Deleted
                && matches!(Place::of(&event.path, root_path), Place::Leaf { .. })
        });
        changes.extend(deleted.map(|event| Change::Unreadable { key: event.path.clone() }));
        if self.has_lost_events() {
            changes.push(Change::Unreadable { key: (&**root_path).into() });
        }
        changes.push(Change::ListEnd { revision: revision(zxid) });
        self.list = ListState::None;
        self.supervisor.end_list(StorePosition { zxid, root });
        let error = self.unreadable.summary();
        self.warn(error.as_deref());
        let update = |report: &mut RegistryReport| {
            report.revision = revision(zxid);
            report.last_event = Some(SystemTime::now());
            report.error = error;
            report.note_list();
        };
        let link = &mut self.supervisor.link;
        if mem::replace(&mut self.is_following, true) {
            link.feed.send(changes).await?;
            link.feed.state().update(update);
        } else {
            link.send_connected(changes).await?;
            link.following(update).await?;
        }
        let now = Instant::now();
        let tuning = &self.supervisor.settings.tuning;
        let interval = tuning.relist_interval;
        if self.required_list.is_none() {
            self.list_due = now + interval.mul_f64(0.8) + random_up_to(interval.mul_f64(0.4));
        }
        self.retry_due = now + tuning.retry_interval;
        self.take_deferred();
        Ok(())
    }
}
