//! The events that a registry sends to the catalog.

use super::{Registration, Rejected};

/// An event of a registry, sent in order through one channel.
///
/// A list consists of `ListBegin`, any number of `Put`s and `ListEnd`. Keys in its scope that the
/// list does not name are removed, subject to the removal grace, unless they are `Unreadable`. In a
/// routine list, those keys were removed on purpose; a per-service list reports expired keys as
/// `Delete`s. Outside a list, `Put` and `Delete` are single events.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A complete list of the scope begins, and with it a new epoch.
    ///
    /// Revisions are comparable only within one epoch. At most one list of a registry is in
    /// progress.
    ListBegin {
        /// Reason for the list.
        kind: ListKind,
        /// The keys that the list covers.
        scope: ListScope,
    },
    /// The complete list of the registered names.
    ///
    /// Removes the keys of all other names, as a list would. Abandons a list in progress.
    ServiceNames {
        /// Reason for the list.
        kind: ListKind,
        /// The names as the store spells them.
        names: Box<[Box<str>]>,
    },
    /// A key was added or changed, or the list in progress has it.
    Put(Put),
    /// A key was deleted, or the list in progress reports that it expired.
    Delete {
        /// The key as in its `Put`.
        key: Box<str>,
        /// The store's revision of the removal; 0 if the registry has no revisions.
        revision: u64,
        /// Reason for the removal, if known.
        removal: Removal,
    },
    /// The list in progress cannot tell which keys the store has at this key and below it.
    ///
    /// Below it are the keys that begin with it and a slash. The catalog keeps all of them.
    Unreadable {
        /// The key.
        key: Box<str>,
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
    /// The reply to a lease check.
    LeasesChecked(LeaseReply),
}

impl Change {
    /// Begins a list of the whole registry.
    pub fn list_begin(kind: ListKind) -> Self {
        Self::ListBegin { kind, scope: ListScope::Registry }
    }
}

/// The keys that a list covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListScope {
    /// Every key of the registry. Costs the catalog O(all keys).
    Registry,
    /// The keys of one registered name, as the store spells it. Costs O(keys of the service).
    ///
    /// The keys begin with the [`key_prefix`] of the name. Accepted keys usually register that
    /// name; those of a store whose names have more parts register one of the parts. Outside
    /// lists, only keys of names that were listed are put.
    Service(Box<str>),
}

/// Returns the beginning of the keys of a registered name, for per-service lists.
///
/// The prefix is the name, with `/` and `%` percent-encoded, and a slash.
pub fn key_prefix(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F") + "/"
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
    /// A list that may lack instances for a moment only: all its removals are held.
    ///
    /// Unlike the kinds beside it, a per-service list of this kind says nothing about other lists.
    Doubted,
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
    /// The lease, or session, without which the registry drops the key; 0 for none.
    pub lease: i64,
    /// The parsed registration, or the reason why it cannot be served.
    pub content: Result<Registration, Rejected>,
}

/// Reason for the removal of a key, if the registry knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// A program or a person removed the key. Applies at once.
    Explicit,
    /// The key was removed explicitly, or it expired with its lease.
    ///
    /// Explicit if the key had no lease. Otherwise it may be part of a mass expiry: the catalog
    /// then asks whether the lease still exists, and holds the key until it knows.
    ///
    /// In a per-service list, the key expired, with or without a lease: the store still has it,
    /// but its session has ended or its check has failed.
    Unknown,
}

/// The reply to a lease check.
///
/// A lease in neither list is unknown: its keys stay in doubt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseReply {
    /// The store's revision when it replied; 0 if the registry has no revisions.
    ///
    /// The reply says nothing about removals after this revision.
    pub revision: u64,
    /// Checked leases that no longer exist: their keys expired.
    pub gone: Vec<i64>,
    /// Checked leases that still exist: their keys were removed explicitly.
    pub alive: Vec<i64>,
}
