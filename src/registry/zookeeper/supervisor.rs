//! The sessions with one server after another, and the kinds of their lists.

use std::convert::Infallible;

use tokio::sync::mpsc;

use super::Settings;
use super::connection::Connection;
use super::failure::malformed;
use super::follower::Follower;
use super::wire::{Creation, Session};
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::session::{SessionEnd, StoreLink, Supervisor};
use crate::registry::{Feed, RegistryCommand};
use crate::service::ListKind;

/// Follows one ensemble through all failures.
pub(super) struct ZooKeeperSupervisor {
    pub(super) link: StoreLink,
    pub(super) settings: Settings,
    /// The store as the last complete list and later messages have shown it.
    position: Option<Position>,
    /// The kind of the next list, if nothing worse is found.
    ///
    /// Set for the first list, and after a list that broke off.
    required_list: Option<ListKind>,
}

/// The age of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The last transaction that was seen.
    pub(super) zxid: i64,
    /// The creation of the root; `None` if there is none.
    pub(super) root: Option<Creation>,
}

impl ZooKeeperSupervisor {
    pub(super) fn new(
        settings: Settings,
        first: ListKind,
        feed: Feed,
        commands: mpsc::Receiver<RegistryCommand>,
    ) -> Self {
        let link = StoreLink::new(settings.attempts(), feed, commands);
        Self { link, settings, position: None, required_list: Some(first) }
    }

    /// Begins the first list of a session; returns its kind.
    ///
    /// A store that went back in time has a lower transaction. One that has since grown past the
    /// last one seen has another root, or none.
    pub(super) fn begin_first_list(&mut self, found: Position) -> ListKind {
        let is_older = |last: &Position| {
            found.zxid < last.zxid || (last.root.is_some() && found.root != last.root)
        };
        let kind = match self.position.filter(is_older) {
            Some(last) => {
                tracing::warn!(
                    registry = %self.link.feed.state(),
                    zxid = found.zxid,
                    last_zxid = last.zxid,
                    "the store went back in time or was replaced: restored from a backup, or wiped"
                );
                ListKind::Restored
            }
            None => self.required_list.unwrap_or(ListKind::Reconnect),
        };
        // If the list breaks off, only a complete list may follow.
        self.required_list = self.required_list.max(Some(kind));
        kind
    }

    /// Records that a list is complete.
    pub(super) fn end_list(&mut self, position: Position) {
        self.position = Some(position);
        self.required_list = None;
    }

    /// Records the last transaction seen since the last list.
    pub(super) fn advance(&mut self, zxid: i64) {
        if let Some(position) = &mut self.position {
            position.zxid = zxid.max(position.zxid);
        }
    }
}

impl Supervisor for ZooKeeperSupervisor {
    fn link(&mut self) -> &mut StoreLink {
        &mut self.link
    }

    async fn session(&mut self, endpoint: &str) -> Result<Infallible, SessionEnd> {
        let session = Session::new(self.settings.tuning.session_timeout);
        let connection = Connection::open(&self.settings, endpoint, session).await;
        let connection = connection.map_err(|failure| match failure.kind {
            // A server that was read before is merely stalled: no need to find out what it is.
            FailureKind::Protocol if self.position.is_some() => Failure::connection(failure.text),
            _ => failure,
        })?;
        let connection = connection.ok_or_else(malformed)?;
        self.link.drain_commands();
        Follower::begin(self, connection).await?.run().await
    }
}
