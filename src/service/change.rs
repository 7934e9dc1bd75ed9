//! The events that a registry sends to the catalog.

use super::{Registration, Rejected};

/// An event of a registry, sent in order through one channel.
///
/// A list consists of `ListBegin`, any number of `Put`s and `ListEnd`. Keys that the list does not
/// name are removed, subject to the removal grace. Outside a list, `Put` and `Delete` are single
/// events.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A full list begins, and with it a new epoch.
    ///
    /// Revisions are comparable only within one epoch.
    ListBegin(ListKind),
    /// A key was added or changed, or the list in progress has it.
    Put(Put),
    /// A key was deleted.
    Delete {
        /// The key as in its `Put`.
        key: Box<str>,
        /// The store's revision of the removal; 0 if the registry has no revisions.
        revision: u64,
        /// Kind of the removal, if known.
        removal: Removal,
    },
    /// The list is complete as of this revision.
    ListEnd {
        /// The store's revision; 0 if the registry has no revisions.
        revision: u64,
    },
    /// The registry became unreachable (`false`) or reachable again (`true`).
    ///
    /// The catalog keeps the registry's data and marks it as stale.
    Connected(bool),
    /// The reply to a lease check: the checked leases that no longer exist.
    LeasesGone(Vec<i64>),
}

/// Reason for a list; decides which of its removals apply at once.
///
/// Ordered from the most to the least trusted kind; of two reasons, the less trusted counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListKind {
    /// The first list, or a routine check of a connection that never broke.
    Routine,
    /// A list of the same store after a reconnect, a compaction or a panic.
    Reconnect,
    /// A list of a store that went back in time or was replaced: restored from a backup, or wiped.
    Restored,
}

/// A key with its content.
#[derive(Clone, Debug, PartialEq)]
pub struct Put {
    /// The key as stored in the registry, where it is unique.
    pub key: Box<str>,
    /// The revision of the key's last change; 0 if the registry has no revisions.
    pub revision: u64,
    /// The ID of the key's lease; 0 for none.
    pub lease: i64,
    /// The parsed registration, or the reason why it cannot be served.
    pub content: Result<Registration, Rejected>,
}

/// Kind of the removal of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The key had no lease, or its lease has certainly expired. Applies at once.
    Explicit,
    /// The key was deleted while it had this lease, which may or may not have expired.
    Lease(i64),
}
