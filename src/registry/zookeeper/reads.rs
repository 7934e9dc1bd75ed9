//! The reads of a session, in the order in which their replies arrive.

use std::collections::VecDeque;

use super::connection::{Reply, ZooKeeperConnection};
use super::failure::malformed;
use super::wire::ZooKeeperRequest;
use crate::registry::failure::Failure;

/// A read of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) path: Box<str>,
    pub(super) aim: Aim,
}

/// What a read is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    /// Begin a list with the names of all folders.
    List,
    /// Find new folders, after an event of a one-shot watch.
    NewFolders,
    /// Notice that the root is created, without a recursive watch.
    AwaitRoot,
    /// Read the leaves of a folder.
    Folder,
    /// Find out whether deleted leaves are there again, or were the last of their folder.
    Deleted { leaves: Vec<Box<str>> },
    /// Read a leaf.
    Leaf {
        /// Whether the folder may have been empty before.
        is_first: bool,
    },
}

impl Read {
    fn request(&self, has_one_shot_watches: bool) -> ZooKeeperRequest<'_> {
        let (path, watch) = (&*self.path, has_one_shot_watches);
        match self.aim {
            Aim::AwaitRoot => ZooKeeperRequest::Exists { path, watch },
            Aim::Leaf { .. } => ZooKeeperRequest::Data { path, watch },
            Aim::List | Aim::NewFolders | Aim::Folder | Aim::Deleted { .. } => {
                ZooKeeperRequest::Children { path, watch }
            }
        }
    }
}

/// The reads that were sent, and those that wait.
pub(super) struct PendingReads {
    sent: VecDeque<(i32, Read)>,
    waiting: VecDeque<Read>,
    max_sent: usize,
    /// Whether each read of a node sets a watch on it.
    has_one_shot_watches: bool,
}

impl PendingReads {
    pub(super) fn new(max_sent: usize, has_one_shot_watches: bool) -> Self {
        let (sent, waiting) = (VecDeque::new(), VecDeque::new());
        Self { sent, waiting, max_sent: max_sent.max(1), has_one_shot_watches }
    }

    pub(super) fn push(&mut self, path: impl Into<Box<str>>, aim: Aim) {
        self.waiting.push_back(Read { path: path.into(), aim });
    }

    /// Adds a read that comes before all that wait.
    pub(super) fn push_next(&mut self, path: Box<str>, aim: Aim) {
        self.waiting.push_front(Read { path, aim });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.waiting.is_empty()
    }

    /// Returns the number of reads without a reply.
    pub(super) fn len(&self) -> usize {
        self.sent.len() + self.waiting.len()
    }

    /// Sends as many reads as may be in flight.
    pub(super) fn send(&mut self, connection: &mut ZooKeeperConnection) {
        while self.sent.len() < self.max_sent {
            let Some(read) = self.waiting.pop_front() else { return };
            let xid = connection.send(read.request(self.has_one_shot_watches));
            self.sent.push_back((xid, read));
        }
    }

    /// Returns the read that a reply answers.
    pub(super) fn answered(&mut self, reply: &Reply) -> Result<Read, Failure> {
        match self.sent.pop_front() {
            Some((xid, read)) if xid == reply.xid => Ok(read),
            _ => Err(malformed()),
        }
    }
}
