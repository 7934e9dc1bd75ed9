//! A registration that svcdns keeps in a registry itself, because a person asked for it.

use std::time::Duration;

use crate::service::{Endpoint, Metadata, ServiceId};

/// What is registered.
#[derive(Clone, Debug)]
pub struct Registrant {
    /// The first segment of the key: `service`.
    pub head: String,
    /// Who.
    pub id: ServiceId,
    /// Where; at least one.
    pub endpoints: Vec<Endpoint>,
    /// What is said about it.
    pub metadata: Metadata,
    /// How long it outlives a registrant that is killed; a registry that fixes this itself ignores it.
    pub ttl: Duration,
}

/// What happens to a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterEvent {
    /// It is in the registry; said again whenever it had to be put there again.
    Registered,
    /// The registry cannot be reached or refuses; the registrant tries again. The text is for people and holds no secret.
    Failed(String),
    /// It was removed, on purpose.
    Removed,
    /// It was left in place at the end: another program keeps the same registration.
    Left,
}

/// Why a registration is not made, or not taken back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The registry's layout cannot hold it; why, in words.
    #[error("{0}")]
    NotWritable(String),
    /// Nobody named the registry, and it belongs to somebody else.
    #[error("{0} belongs to another user; name a registry with --registry (or this one, if it is meant)")]
    Foreign(String),
    /// The first attempt was refused in a way that trying again does not help.
    #[error("cannot register {key}: {reason}")]
    Refused {
        /// The key, or the file.
        key: String,
        /// What the registry said.
        reason: String,
    },
    /// The registration could not be removed at the end; it expires.
    #[error("cannot remove {key} now ({reason}); it goes by itself within {seconds} s")]
    NotRemoved {
        /// The key, or the file.
        key: String,
        /// What went wrong.
        reason: String,
        /// The longest time until it expires, in seconds.
        seconds: u64,
    },
}
