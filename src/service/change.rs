//! What a registry tells its follower.

use super::{Registration, Rejected};

/// One thing a registry tells its follower. A registry sends these in order down one channel.
///
/// A list is `ListBegin`, any number of `Put`s, `ListEnd`; what the list does not name is gone (subject to the
/// follower's removal grace). Between lists, `Put` and `Delete` are single events.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A full list follows. Events are compared by revision only within one list epoch: every list begins a new one.
    ListBegin(ListKind),
    /// A key has this content.
    Put(Put),
    /// A key is gone.
    Delete {
        /// The key, as in its `Put`.
        key: Box<str>,
        /// The store's revision of the removal; 0 where the registry counts none.
        revision: u64,
        /// How it went, as far as known.
        removal: Removal,
    },
    /// The list is complete as of `revision`.
    ListEnd {
        /// The store's revision; 0 where the registry counts none.
        revision: u64,
    },
    /// The registry cannot be reached, or can again. Data stays; answers say that it may be stale.
    Connected(bool),
    /// The answer to a doubt: of the leases asked about, these no longer exist in the store.
    LeasesGone(Vec<i64>),
}

/// Why a list is made: decides how far its removals are believed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// The first list of a registry of which nothing is known yet, or a routine check of a connection that never broke.
    Routine,
    /// After a reconnect, a compaction or a panic, the same store.
    Reconnect,
    /// The store went back in time, or is another one: restored from a backup, or wiped.
    Restored,
}

/// A key's content.
#[derive(Clone, Debug, PartialEq)]
pub struct Put {
    /// The key as the store has it; unique within one registry.
    pub key: Box<str>,
    /// The revision of the key's last change; 0 where the registry counts none.
    pub revision: u64,
    /// The lease the key hangs on; 0 for none.
    pub lease: i64,
    /// The key understood, or why it cannot be served.
    pub content: Result<Registration, Rejected>,
}

/// How a key went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Nobody's lease: deleted on purpose, or expired in a registry that is sure of it. Applies at once.
    Explicit,
    /// The key hung on this lease: deleted on purpose or expired with the lease, only the registry can tell.
    Lease(i64),
}
