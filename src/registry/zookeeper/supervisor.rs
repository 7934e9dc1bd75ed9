//! The sessions with one server after another, and the kinds of their lists.

use std::convert::Infallible;

use super::Settings;
use super::connection::ZooKeeperConnection;
use super::failure::{ErrorCode, malformed};
use super::follower::Follower;
use super::wire::{Creation, Session, ZooKeeperRequest};
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::session::{SessionEnd, StoreLink, Supervisor};
use crate::service::ListKind;

/// Follows one ensemble through all failures.
pub(super) struct ZooKeeperSupervisor {
    pub(super) link: StoreLink,
    pub(super) settings: Settings,
    /// The store as the last complete list and later messages have shown it.
    position: Option<StorePosition>,
    /// The kind of the next list, if nothing worse is found.
    ///
    /// Set for the first list, and after a list that broke off.
    required_list: Option<ListKind>,
}

/// How far a store has come: its last transaction, and which root it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StorePosition {
    /// The last transaction that was seen.
    pub(super) zxid: i64,
    /// The creation of the root; `None` if there is none.
    pub(super) root: Option<Creation>,
}

impl ZooKeeperSupervisor {
    pub(super) fn new(settings: Settings, first: ListKind, link: StoreLink) -> Self {
        Self { link, settings, position: None, required_list: Some(first) }
    }

    /// Opens a session with a server that has the latest state.
    async fn connect(&self, endpoint: &str) -> Result<ZooKeeperConnection, Failure> {
        let session = Session::new(self.settings.tuning.session_timeout);
        let opened = ZooKeeperConnection::open(&self.settings, endpoint, session).await;
        let opened = opened.map_err(|failure| match failure.kind {
            // A server that was read before is merely stalled: no need to find out what it is.
            FailureKind::Protocol if self.position.is_some() => Failure::connection(failure.text),
            _ => failure,
        })?;
        let mut connection = opened.ok_or_else(malformed)?;
        // Another server of the ensemble may lag behind the last one.
        let synced = connection.call(ZooKeeperRequest::Sync).await?;
        synced.map_err(|code| self.failed(code).of("read the latest state"))?;
        Ok(connection)
    }

    /// Sets the recursive watch; returns whether the server has such watches.
    async fn watch_below(&self, connection: &mut ZooKeeperConnection) -> Result<bool, Failure> {
        let Settings { root, tuning, .. } = &self.settings;
        if tuning.one_shot_watches {
            return Ok(false);
        }
        match connection.call(ZooKeeperRequest::AddRecursiveWatch { path: root }).await? {
            Ok(_) => Ok(true),
            Err(ErrorCode::UNIMPLEMENTED) => Ok(false),
            Err(code) => Err(self.failed(code).of(&format!("watch {root}"))),
        }
    }

    fn failed(&self, code: ErrorCode) -> Failure {
        code.of_node(self.settings.login_keys())
    }

    /// Begins the first list of a session; returns its kind.
    ///
    /// A store that went back in time has a lower transaction. One that has since grown past the
    /// last one seen has another root, or none.
    pub(super) fn begin_first_list(&mut self, found: StorePosition) -> ListKind {
        let is_older = |last: &StorePosition| {
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
    pub(super) fn end_list(&mut self, position: StorePosition) {
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
        let mut connection = self.connect(endpoint).await?;
        let is_recursive = self.watch_below(&mut connection).await?;
        if !is_recursive && !self.settings.tuning.one_shot_watches {
            // A server before 3.6 closes the connection after the request for the watch.
            connection = self.connect(endpoint).await?;
        }
        self.link.drain_commands();
        Follower::new(self, connection, is_recursive).run().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;
    use crate::registry::{Feed, RegistryState};
    use crate::service::RegistryId;

    #[test]
    fn a_store_that_went_back_or_has_another_root_is_restored() {
        let (sender, _receiver) = mpsc::channel(1);
        let (name, grace) = ("zk".parse().unwrap(), Duration::from_secs(12));
        let state = Arc::new(RegistryState::new(name, String::new(), grace));
        let feed = Feed::new(RegistryId::FIRST, sender, state);
        let (_commands, commands) = mpsc::channel(1);
        let settings = Settings::new(vec!["127.0.0.1:2181".to_owned()]);
        let link = StoreLink::new(settings.attempts(), feed, commands);
        let mut supervisor = ZooKeeperSupervisor::new(settings, ListKind::Routine, link);
        let root = |time| Some(Creation { zxid: 2, time });
        for (zxid, root, is_complete, kind) in [
            (10, root(1), true, ListKind::Routine),
            (20, root(1), true, ListKind::Reconnect),
            (19, root(1), false, ListKind::Restored),
            // The list broke off, and the store has grown meanwhile.
            (30, root(1), true, ListKind::Restored),
            (40, root(2), true, ListKind::Restored),
            (50, None, true, ListKind::Restored),
            (60, root(3), true, ListKind::Reconnect),
        ] {
            let position = StorePosition { zxid, root };
            assert_eq!(supervisor.begin_first_list(position), kind, "{position:?}");
            if is_complete {
                supervisor.end_list(position);
            }
        }
        supervisor.advance(90);
        let older = StorePosition { zxid: 89, root: root(3) };
        assert_eq!(supervisor.begin_first_list(older), ListKind::Restored);
    }
}
