//! One session: lists, events, and the reads that they require.
//!
//! The server sends replies and events in one order, in which the follower takes them. A change is
//! therefore never sent before an older one of the same node.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::mem;
use std::time::SystemTime;

use tokio::time::{Instant, sleep_until};

use super::connection::{Reply, ServerMessage, ZooKeeperConnection};
use super::failure::{ErrorCode, malformed};
use super::parse::LeafParser;
use super::paths::{Place, child, name};
use super::reads::{Aim, PendingReads, Read};
use super::supervisor::{StorePosition, ZooKeeperSupervisor};
use super::wire::{Creation, EventKind, NodeEvent, Stat, parse_children, parse_data};
use crate::registry::backoff::random_up_to;
use crate::registry::failure::Failure;
use crate::registry::session::SessionEnd;
use crate::registry::{FeedClosed, RegistryCommand, RegistryReport};
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
    /// When the next routine list is due.
    list_due: Instant,
    /// Whether a list is needed now.
    needs_list: bool,
    /// Whether the first list is complete.
    is_following: bool,
    /// Events that arrived during the list.
    deferred: Vec<NodeEvent>,
    /// Leaves that were deleted while their folder was being read for others.
    ///
    /// They are looked up together: a folder may have very many leaves, all of which may go.
    deleted_leaves: HashMap<Box<str>, Vec<Box<str>>>,
    /// Nodes that cannot be read, with the reason.
    unreadable: BTreeMap<Box<str>, String>,
    /// When the unreadable nodes are tried again.
    retry_due: Instant,
}

/// The progress of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListState {
    None,
    /// The names of the folders are on their way.
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
            needs_list: true,
            is_following: false,
            deferred: Vec::new(),
            deleted_leaves: HashMap::new(),
            unreadable: BTreeMap::new(),
            retry_due: now,
            supervisor,
            connection,
        }
    }

    /// Follows the store until the session fails.
    pub(super) async fn run(mut self) -> Result<Infallible, SessionEnd> {
        loop {
            let is_idle = self.list == ListState::None && self.reads.is_empty();
            let now = Instant::now();
            if is_idle && (self.needs_list || self.list_due <= now) {
                self.request_list();
            } else if is_idle && !self.unreadable.is_empty() && self.retry_due <= now {
                self.retry().await;
            }
            self.reads.send(&mut self.connection);
            let is_idle = self.list == ListState::None && self.reads.is_empty();
            let retry_due = (!self.unreadable.is_empty()).then_some(self.retry_due);
            let wake = retry_due.into_iter().fold(self.list_due, Instant::min);
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
                () = sleep_until(wake), if is_idle => {}
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
            ServerMessage::Event(event) if self.deferred.len() < MAX_WAITING_EVENTS => {
                self.deferred.push(event);
            }
            ServerMessage::Event(_) => self.needs_list = true,
            ServerMessage::Reply(reply) => self.take_reply(reply)?,
        }
        Ok(())
    }

    /// Sends the changes so far, and ends a list whose last reply has arrived.
    async fn settle(&mut self) -> Result<(), FeedClosed> {
        if let ListState::Begun { root } = self.list
            && self.reads.is_empty()
        {
            return self.end_list(root).await;
        }
        let is_listing = self.list != ListState::None;
        // An update of a list is large, because the catalog does some work for each.
        if !is_listing || self.changes.len() >= self.supervisor.settings.tuning.batch_size {
            self.supervisor.link.feed.send(mem::take(&mut self.changes)).await?;
        }
        let zxid = self.connection.last_zxid();
        if !is_listing {
            self.supervisor.advance(zxid);
        }
        let is_current = !is_listing && self.is_following;
        self.supervisor.link.feed.state().update(|report| {
            report.last_event = Some(SystemTime::now());
            if is_current {
                report.revision = revision(zxid);
            }
        });
        Ok(())
    }

    // Lists

    fn request_list(&mut self) {
        self.needs_list = false;
        self.list = ListState::Requested;
        self.reads.push(&*self.supervisor.settings.root, Aim::List);
    }

    /// Begins the list with the names of all folders, or with the lack of a root.
    fn begin_list(&mut self, result: &Result<Vec<u8>, ErrorCode>) -> Result<(), Failure> {
        let root = &self.supervisor.settings.root;
        let mut unreadable = BTreeMap::new();
        let (folders, creation): (Vec<(Box<str>, Box<str>)>, _) = match result {
            Ok(body) => {
                let (names, stat) = parse_children(body).map_err(|_| malformed())?;
                let folders = names.into_iter().map(|name| (name.into(), child(root, name)));
                (folders.collect(), Some(stat.creation))
            }
            Err(ErrorCode::NO_NODE) => {
                let text = format!(
                    "there is no node {root}: no program has registered yet, or the URL has the \
                     wrong root"
                );
                unreadable.insert((&**root).into(), self.located(Failure::connection(text)));
                if self.watched_folders.is_some() {
                    self.reads.push(&**root, Aim::AwaitRoot);
                }
                (Vec::new(), None)
            }
            Err(code) => {
                let failure = code.of_node(self.supervisor.settings.login_keys());
                return Err(failure.of(&format!("list {root}")));
            }
        };
        self.unreadable = unreadable;
        self.list = ListState::Begun { root: creation };
        let kind = if self.is_following {
            ListKind::Routine
        } else {
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

    /// Ends the list, and takes the events that arrived meanwhile.
    async fn end_list(&mut self, root: Option<Creation>) -> Result<(), FeedClosed> {
        let zxid = self.connection.last_zxid();
        let mut changes = mem::take(&mut self.changes);
        changes.push(Change::ListEnd { revision: revision(zxid) });
        self.list = ListState::None;
        self.supervisor.end_list(StorePosition { zxid, root });
        let error = self.error();
        self.warn(error.as_deref());
        let update = |report: &mut RegistryReport| {
            report.synced = true;
            report.revision = revision(zxid);
            report.last_event = Some(SystemTime::now());
            report.error = error;
            report.lists += 1;
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
        self.list_due = now + interval.mul_f64(0.8) + random_up_to(interval.mul_f64(0.4));
        self.retry_due = now + tuning.retry_interval;
        for event in mem::take(&mut self.deferred) {
            self.take_event(&event);
        }
        Ok(())
    }

    // Events

    /// Takes an event: reads what it concerns.
    fn take_event(&mut self, event: &NodeEvent) {
        let NodeEvent { kind, path } = event;
        if self.reads.len() >= MAX_WAITING_EVENTS {
            self.needs_list = true;
            return;
        }
        match (Place::of(path, &self.supervisor.settings.root), kind) {
            (Place::Root, EventKind::Created | EventKind::Deleted) => self.needs_list = true,
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
                    Some(_) => self.needs_list = true,
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
            Aim::NewFolders => self.take_new_folders(&path, result)?,
            Aim::AwaitRoot => self.needs_list |= result.is_ok(),
            Aim::Folder => self.take_folder(&path, result)?,
            Aim::Deleted { leaves } => self.take_folder_of_deleted(&path, leaves, result)?,
            Aim::Leaf { is_first } => self.take_leaf(path, is_first, result)?,
            // Whatever happened to the node while it could not be read, a list finds it.
            Aim::Retry { .. } => {
                self.needs_list |= matches!(result, Ok(_) | Err(ErrorCode::NO_NODE));
            }
        }
        Ok(())
    }

    /// Reads the folders that have no one-shot watch yet.
    fn take_new_folders(
        &mut self,
        root: &str,
        result: Result<Vec<u8>, ErrorCode>,
    ) -> Result<(), Failure> {
        let body = match result {
            Ok(body) => body,
            Err(ErrorCode::NO_NODE) => {
                self.needs_list = true;
                return Ok(());
            }
            Err(code) => {
                let failure = code.of_node(self.supervisor.settings.login_keys());
                return Err(failure.of(&format!("list {root}")));
            }
        };
        let (names, _) = parse_children(&body).map_err(|_| malformed())?;
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
            Ok(body) => {
                let (leaves, _) = parse_children(&body).map_err(|_| malformed())?;
                self.note_empty(path, &leaves);
                for leaf in leaves {
                    self.reads.push_next(child(path, leaf), Aim::Leaf { is_first: true });
                }
            }
            Err(ErrorCode::NO_NODE) => self.delete_folder(path),
            Err(code) => self.note_unreadable(path, code),
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
                        self.delete(leaf);
                    }
                }
                self.note_empty(path, &leaves);
            }
            Err(ErrorCode::NO_NODE) => {
                for leaf in deleted {
                    self.delete(leaf);
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
        match result {
            Ok(body) => {
                let (data, stat) = parse_data(&body).map_err(|_| malformed())?;
                if is_first
                    && let Place::Leaf { folder } = Place::of(&path, &self.supervisor.settings.root)
                {
                    self.delete(folder.into());
                }
                match self.parser.parse(data) {
                    Some(content) => self.put(path, stat, content),
                    None => self.delete(path),
                }
            }
            Err(ErrorCode::NO_NODE) => self.delete(path),
            Err(code) => self.note_unreadable(&path, code),
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
        if self.list == ListState::None {
            let removal = Removal::Unknown;
            self.changes.push(Change::Delete { key, revision: 0, removal });
        }
    }

    fn delete_folder(&mut self, path: &str) {
        if let Some(watched) = &mut self.watched_folders {
            watched.remove(name(path));
        }
        self.delete(path.into());
    }

    /// Puts a registration without an endpoint for a folder without leaves.
    fn note_empty(&mut self, path: &str, leaves: &[&str]) {
        if !leaves.is_empty() {
            return;
        }
        if let Some(service) = self.parser.empty_service(name(path)) {
            let (key, content) = (path.into(), Ok(service));
            self.changes.push(Change::Put(Put { key, revision: 0, lease: 0, content }));
        }
    }

    // Unreadable nodes

    /// Records that a node cannot be read; its keys, and those below it, stay as they are.
    fn note_unreadable(&mut self, path: &str, code: ErrorCode) {
        let failure = code.of_node(self.supervisor.settings.login_keys());
        let text = self.located(failure.of(&format!("read {path}")));
        self.unreadable.insert(path.into(), text);
        if self.list == ListState::None {
            let error = self.error();
            self.warn(error.as_deref());
            self.supervisor.link.feed.state().update(|report| report.error = error);
        } else {
            self.changes.push(Change::Unreadable { key: path.into() });
        }
    }

    /// Tries to read the unreadable nodes, with the current password.
    async fn retry(&mut self) {
        let ZooKeeperSupervisor { settings, .. } = &*self.supervisor;
        self.retry_due = Instant::now() + settings.tuning.retry_interval;
        if let Some(login) = &settings.login
            && let Err(failure) = self.connection.log_in(login).await
        {
            let registry = self.supervisor.link.feed.state();
            tracing::debug!(%registry, reason = failure.text, "not logged in again");
        }
        for path in self.unreadable.keys().take(MAX_RETRIED_NODES) {
            // A watch tells when the root is created.
            let is_leaf = match Place::of(path, &settings.root) {
                Place::Root => continue,
                place => place != Place::Folder,
            };
            self.reads.push(path.clone(), Aim::Retry { is_leaf });
        }
    }

    /// Returns the reason of the first unreadable node, and the number of the others.
    fn error(&self) -> Option<String> {
        let first = self.unreadable.values().next()?;
        Some(match self.unreadable.len() {
            1 => first.clone(),
            count => format!("{first} (and {} more nodes)", count - 1),
        })
    }

    /// Logs the unreadable nodes, unless the report has the reason of the first one already.
    fn warn(&self, error: Option<&str>) {
        let registry = self.supervisor.link.feed.state();
        let Some((reason, first)) = error.zip(self.unreadable.values().next()) else { return };
        if !registry.report().error.is_some_and(|known| known.starts_with(first)) {
            tracing::warn!(%registry, reason, "nodes cannot be read, trying again");
        }
    }

    fn located(&self, failure: Failure) -> String {
        self.supervisor.link.locate(failure).text
    }
}

fn revision(zxid: i64) -> u64 {
    u64::try_from(zxid).unwrap_or(0)
}
