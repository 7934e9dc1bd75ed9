//! One session: events, lists, and the reads that they require.
//!
//! The server sends replies and events in one order, in which the follower takes them. A change is
//! therefore never sent before an older one of the same node.

mod lists;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::mem;
use std::time::SystemTime;

use tokio::time::{Instant, sleep_until};

use super::connection::{Reply, ServerMessage, ZooKeeperConnection};
use super::failure::{ErrorCode, malformed};
use super::parse::LeafParser;
use super::paths::{Place, child, name};
use super::reads::{Aim, PendingReads, Read};
use super::supervisor::ZooKeeperSupervisor;
use super::unreadable::UnreadableNodes;
use super::wire::{Creation, EventKind, NodeEvent, Stat, parse_children, parse_data};
use crate::registry::failure::Failure;
use crate::registry::session::SessionEnd;
use crate::registry::{FeedClosed, RegistryCommand};
use crate::service::{Change, ListKind, Put, Registration, Rejected, Removal};

/// Limit on events that wait for the end of a list, and on the reads that events require.
///
/// Beyond it, a list replaces them.
const MAX_WAITING_EVENTS: usize = 100_000;

/// Limit on unreadable nodes that are tried again between two lists.
const MAX_RETRIED_NODES: usize = 100;

/// A session that follows the store.
pub(super) struct Follower<'a> {
    supervisor: &'a mut ZooKeeperSupervisor,
    connection: ZooKeeperConnection,
    reads: PendingReads,
    parser: LeafParser,
    /// Changes to be sent as one update.
    changes: Vec<Change>,
    /// The names of the folders under one-shot watches; `None` with a recursive watch.
    watched_folders: Option<HashSet<Box<str>>>,
    list: ListState,
    /// When the next list is due.
    list_due: Instant,
    /// The kind of the next list, if something requires it.
    required_list: Option<ListKind>,
    /// Whether the first list is complete.
    is_following: bool,
    /// Events that arrived during the list, or while it waited for earlier reads.
    deferred: Vec<NodeEvent>,
    /// Leaves that were deleted while their folder was being read for others.
    ///
    /// They are looked up together: a folder may have very many leaves, all of which may go.
    deleted_leaves: HashMap<Box<str>, Vec<Box<str>>>,
    unreadable: UnreadableNodes,
    /// When the unreadable nodes are tried again.
    retry_due: Instant,
}

/// The progress of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListState {
    None,
    /// A list is due, and waits for the reads in flight. New events wait for its end.
    Due,
    /// The names of the folders are requested.
    Requested,
    /// The folders and leaves are being read, below the root with this creation.
    Begun {
        root: Option<Creation>,
    },
}

impl<'a> Follower<'a> {
    /// Creates a follower whose watches are set.
    ///
    /// Without a recursive watch, each read sets a one-shot watch.
    pub(super) fn new(
        supervisor: &'a mut ZooKeeperSupervisor,
        connection: ZooKeeperConnection,
        is_recursive: bool,
    ) -> Self {
        let settings = &supervisor.settings;
        let tuning = &settings.tuning;
        let now = Instant::now();
        Self {
            reads: PendingReads::new(tuning.max_reads, !is_recursive),
            parser: LeafParser::new(settings.heads.clone()),
            changes: Vec::new(),
            watched_folders: (!is_recursive).then(HashSet::new),
            list: ListState::None,
            list_due: now,
            required_list: None,
            is_following: false,
            deferred: Vec::new(),
            deleted_leaves: HashMap::new(),
            unreadable: UnreadableNodes::default(),
            retry_due: now,
            supervisor,
            connection,
        }
    }

    /// Follows the store until the session fails.
    pub(super) async fn run(mut self) -> Result<Infallible, SessionEnd> {
        loop {
            let now = Instant::now();
            if self.list == ListState::None && self.list_due <= now {
                self.list = ListState::Due;
            }
            if self.list == ListState::Due && self.reads.is_empty() {
                self.list = ListState::Requested;
                self.reads.push(&*self.supervisor.settings.root, Aim::List);
            }
            let may_retry = self.list == ListState::None && !self.unreadable.is_empty();
            if may_retry && self.retry_due <= now {
                self.retry().await;
            }
            self.reads.send(&mut self.connection);
            let has_timer = self.list == ListState::None;
            let wake = if may_retry { self.list_due.min(self.retry_due) } else { self.list_due };
            let link = &mut self.supervisor.link;
            tokio::select! {
                incoming = self.connection.next() => {
                    self.take(incoming?)?;
                    self.take_buffered()?;
                    self.settle().await?;
                }
                Some(RegistryCommand::CheckLeases(leases)) = link.commands.recv() => {
                    // ZooKeeper does not tell which sessions exist.
                    link.report_all_gone(leases).await?;
                }
                () = sleep_until(wake), if has_timer => {}
            }
        }
    }

    /// Takes the messages that were read already, up to the limit on one update.
    fn take_buffered(&mut self) -> Result<(), Failure> {
        let batch_size = self.supervisor.settings.tuning.batch_size;
        while self.changes.len() < batch_size {
            let Some(incoming) = self.connection.buffered()? else { break };
            self.take(incoming)?;
            self.reads.send(&mut self.connection);
        }
        Ok(())
    }

    fn take(&mut self, incoming: ServerMessage) -> Result<(), Failure> {
        match incoming {
            ServerMessage::Alive => {}
            ServerMessage::Event(event) if self.list == ListState::None => self.take_event(&event),
            ServerMessage::Event(event) => self.defer(event),
            ServerMessage::Reply(reply) => self.take_reply(reply)?,
        }
        Ok(())
    }

    /// Keeps an event for the end of the list.
    fn defer(&mut self, event: NodeEvent) {
        if !self.has_lost_events() {
            self.deferred.push(event);
        }
    }

    /// Returns whether events may be missing from the deferred ones.
    fn has_lost_events(&self) -> bool {
        self.deferred.len() >= MAX_WAITING_EVENTS
    }

    fn take_deferred(&mut self) {
        if self.has_lost_events() {
            self.require_list(ListKind::Reconnect);
        }
        for event in mem::take(&mut self.deferred) {
            self.take_event(&event);
        }
    }

    /// Returns whether the changes are those of a list.
    fn is_in_list(&self) -> bool {
        matches!(self.list, ListState::Begun { .. })
    }

    /// Sends the changes so far, and ends a list whose last reply has arrived.
    async fn settle(&mut self) -> Result<(), FeedClosed> {
        if let ListState::Begun { root } = self.list
            && self.reads.is_empty()
        {
            return self.end_list(root).await;
        }
        let is_in_list = self.is_in_list();
        // An update of a list is large, because the catalog does some work for each.
        if !is_in_list || self.changes.len() >= self.supervisor.settings.tuning.batch_size {
            self.supervisor.link.feed.send(mem::take(&mut self.changes)).await?;
        }
        let zxid = self.connection.last_zxid();
        if !is_in_list {
            self.supervisor.advance(zxid);
        }
        let is_current = self.list == ListState::None && self.is_following;
        self.supervisor.link.feed.state().update(|report| {
            report.last_event = Some(SystemTime::now());
            if is_current {
                report.revision = revision(zxid);
            }
        });
        Ok(())
    }

    // Events

    /// Takes an event: reads what it concerns.
    fn take_event(&mut self, event: &NodeEvent) {
        let NodeEvent { kind, path } = event;
        if self.reads.len() >= MAX_WAITING_EVENTS {
            self.require_list(ListKind::Reconnect);
            return;
        }
        match (Place::of(path, &self.supervisor.settings.root), kind) {
            (Place::Root, EventKind::Created | EventKind::Deleted) => {
                self.require_list(ListKind::Routine);
            }
            (Place::Root, EventKind::ChildrenChanged) => {
                self.reads.push(&**path, Aim::NewFolders);
            }
            (Place::Folder, EventKind::Created | EventKind::ChildrenChanged) => {
                self.reads.push(&**path, Aim::Folder);
            }
            (Place::Folder, EventKind::Deleted) => self.delete_folder(path),
            (Place::Leaf { .. }, EventKind::Created | EventKind::DataChanged) => {
                let is_first = *kind == EventKind::Created;
                self.reads.push(&**path, Aim::Leaf { is_first });
            }
            (Place::Leaf { folder }, EventKind::Deleted) => {
                match self.deleted_leaves.get_mut(folder) {
                    None => self.look_up_deleted(folder, vec![path.clone()]),
                    Some(leaves) if leaves.len() < MAX_WAITING_EVENTS => leaves.push(path.clone()),
                    Some(_) => self.require_list(ListKind::Reconnect),
                }
            }
            (Place::Root | Place::Folder, EventKind::DataChanged)
            | (Place::Leaf { .. }, EventKind::ChildrenChanged)
            | (Place::Elsewhere, _) => {}
        }
    }

    // Replies

    fn take_reply(&mut self, reply: Reply) -> Result<(), Failure> {
        let Read { path, aim } = self.reads.answered(&reply)?;
        let result = reply.result;
        match aim {
            Aim::List => return self.begin_list(&result),
            Aim::NewFolders => self.take_new_folders(&path, &result)?,
            Aim::AwaitRoot if result.is_ok() => self.require_list(ListKind::Routine),
            Aim::AwaitRoot => {}
            Aim::Folder => self.take_folder(&path, result)?,
            Aim::Deleted { leaves } => self.take_folder_of_deleted(&path, leaves, result)?,
            Aim::Leaf { is_first } => self.take_leaf(path, is_first, result)?,
        }
        Ok(())
    }

    /// Reads the folders that have no one-shot watch yet.
    fn take_new_folders(
        &mut self,
        root: &str,
        result: &Result<Vec<u8>, ErrorCode>,
    ) -> Result<(), Failure> {
        let body = match result {
            Ok(body) => body,
            Err(ErrorCode::NO_NODE) => {
                self.require_list(ListKind::Routine);
                return Ok(());
            }
            Err(code) => return self.refuse_list(*code),
        };
        let (names, _) = parse_children(body).map_err(|_| malformed())?;
        let watched = self.watched_folders.get_or_insert_default();
        for name in names {
            if watched.insert(name.into()) {
                self.reads.push(child(root, name), Aim::Folder);
            }
        }
        Ok(())
    }

    fn take_folder(
        &mut self,
        path: &str,
        result: Result<Vec<u8>, ErrorCode>,
    ) -> Result<(), Failure> {
        match result {
            // Events below it may not have arrived.
            Ok(_) if self.forget_unreadable(path) => self.require_list(ListKind::Reconnect),
            Ok(body) => {
                let (leaves, _) = parse_children(&body).map_err(|_| malformed())?;
                self.note_empty(path, &leaves);
                for leaf in leaves {
                    self.reads.push_next(child(path, leaf), Aim::Leaf { is_first: true });
                }
            }
            Err(ErrorCode::NO_NODE) => self.delete_folder(path),
            Err(code) => {
                self.note_unreadable(path, code);
                self.put_empty(path);
            }
        }
        Ok(())
    }

    /// Takes the folder of leaves that were deleted, and perhaps created again.
    fn take_folder_of_deleted(
        &mut self,
        path: &str,
        deleted: Vec<Box<str>>,
        result: Result<Vec<u8>, ErrorCode>,
    ) -> Result<(), Failure> {
        match result {
            Ok(body) => {
                let (leaves, _) = parse_children(&body).map_err(|_| malformed())?;
                let present: HashSet<&str> = leaves.iter().copied().collect();
                for leaf in deleted {
                    if present.contains(name(&leaf)) {
                        self.reads.push_next(leaf, Aim::Leaf { is_first: true });
                    } else {
                        self.delete_leaf(leaf);
                    }
                }
                self.note_empty(path, &leaves);
            }
            Err(ErrorCode::NO_NODE) => {
                for leaf in deleted {
                    self.delete_leaf(leaf);
                }
                self.delete_folder(path);
            }
            Err(_) => {
                for leaf in deleted {
                    self.reads.push_next(leaf, Aim::Leaf { is_first: false });
                }
            }
        }
        if let Some(leaves) = self.deleted_leaves.remove(path).filter(|leaves| !leaves.is_empty()) {
            self.look_up_deleted(path, leaves);
        }
        Ok(())
    }

    /// Reads the folder of deleted leaves.
    fn look_up_deleted(&mut self, folder: &str, leaves: Vec<Box<str>>) {
        self.deleted_leaves.insert(folder.into(), Vec::new());
        self.reads.push(folder, Aim::Deleted { leaves });
    }

    fn take_leaf(
        &mut self,
        path: Box<str>,
        is_first: bool,
        result: Result<Vec<u8>, ErrorCode>,
    ) -> Result<(), Failure> {
        let folder = match Place::of(&path, &self.supervisor.settings.root) {
            Place::Leaf { folder } => Box::from(folder),
            _ => return Ok(()),
        };
        match result {
            Ok(body) => {
                let (data, stat) = parse_data(&body).map_err(|_| malformed())?;
                self.forget_unreadable(&path);
                if is_first {
                    self.delete(folder);
                }
                match self.parser.parse(data) {
                    Some(content) => self.put(path, stat, content),
                    None => self.delete(path),
                }
            }
            // An event has told so, except without a recursive watch.
            Err(ErrorCode::NO_NODE) if self.is_in_list() => {
                self.defer(NodeEvent { kind: EventKind::Deleted, path });
            }
            Err(ErrorCode::NO_NODE) => self.delete_leaf(path),
            Err(code) => {
                self.note_unreadable(&path, code);
                self.put_empty(&folder);
            }
        }
        Ok(())
    }

    // Changes

    fn put(&mut self, key: Box<str>, stat: Stat, content: Result<Registration, Rejected>) {
        let (revision, lease) = (revision(stat.modified), stat.owner);
        self.changes.push(Change::Put(Put { key, revision, lease, content }));
    }

    /// Deletes a key, unless a list is in progress, which lacks it.
    ///
    /// The order of the messages alone decides which change is newer: the transaction in a reply
    /// may be later than the state that the reply shows.
    fn delete(&mut self, key: Box<str>) {
        if !self.is_in_list() {
            let removal = Removal::Unknown;
            self.changes.push(Change::Delete { key, revision: 0, removal });
        }
    }

    fn delete_leaf(&mut self, path: Box<str>) {
        self.forget_unreadable(&path);
        self.delete(path);
    }

    fn delete_folder(&mut self, path: &str) {
        if self.forget_unreadable(path) {
            // Events below it may not have arrived.
            self.require_list(ListKind::Reconnect);
        }
        if let Some(watched) = &mut self.watched_folders {
            watched.remove(name(path));
        }
        self.delete(path.into());
    }

    /// Puts a registration without an endpoint for a folder without leaves.
    fn note_empty(&mut self, path: &str, leaves: &[&str]) {
        if leaves.is_empty() {
            self.put_empty(path);
        }
    }

    /// Puts a registration without an endpoint: the service is known, though it has no instance.
    fn put_empty(&mut self, folder: &str) {
        if let Some(service) = self.parser.empty_service(name(folder)) {
            let (key, content) = (folder.into(), Ok(service));
            self.changes.push(Change::Put(Put { key, revision: 0, lease: 0, content }));
        }
    }

    // Unreadable nodes

    /// Records that a node cannot be read; its keys, and those below it, stay as they are.
    fn note_unreadable(&mut self, path: &str, code: ErrorCode) {
        let failure = code.of_node(self.supervisor.settings.login_keys());
        let reason = self.located(failure.of(&format!("read {path}")));
        self.unreadable.insert(path, reason);
        if self.is_in_list() {
            self.changes.push(Change::Unreadable { key: path.into() });
        } else {
            self.report_unreadable();
        }
    }

    /// Records that a node can be read or is gone; returns whether it could not be read before.
    fn forget_unreadable(&mut self, path: &str) -> bool {
        let was_unreadable = self.unreadable.remove(path);
        if was_unreadable && !self.is_in_list() {
            self.report_unreadable();
        }
        was_unreadable
    }

    /// Tries to read unreadable nodes, with the current password.
    async fn retry(&mut self) {
        let ZooKeeperSupervisor { settings, .. } = &*self.supervisor;
        self.retry_due = Instant::now() + settings.tuning.retry_interval;
        if let Some(login) = &settings.login
            && let Err(failure) = self.connection.log_in(login).await
        {
            let registry = self.supervisor.link.feed.state();
            tracing::debug!(%registry, reason = failure.text, "not logged in again");
        }
        for path in self.unreadable.next_retried(MAX_RETRIED_NODES) {
            match Place::of(&path, &settings.root) {
                Place::Folder => self.reads.push(path, Aim::Folder),
                Place::Leaf { .. } => self.reads.push(path, Aim::Leaf { is_first: true }),
                // A watch tells when the root is created, and a list whether it may be read.
                Place::Root | Place::Elsewhere => {}
            }
        }
    }

    fn report_unreadable(&self) {
        let error = self.unreadable.summary();
        self.warn(error.as_deref());
        self.supervisor.link.feed.state().update(|report| report.error = error);
    }

    /// Logs the unreadable nodes, unless the report has the reason of the first one already.
    fn warn(&self, error: Option<&str>) {
        let registry = self.supervisor.link.feed.state();
        let Some((reason, first)) = error.zip(self.unreadable.first_reason()) else { return };
        if !registry.report().error.is_some_and(|known| known.starts_with(first)) {
            tracing::warn!(%registry, reason, "nodes cannot be read, trying again");
        }
    }

    fn located(&self, failure: Failure) -> String {
        self.supervisor.link.locate(failure).text
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        self.connection.close();
    }
}

fn revision(zxid: i64) -> u64 {
    u64::try_from(zxid).unwrap_or(0)
}
