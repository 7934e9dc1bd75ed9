//! The registration that `svcdns register` keeps in a registry.

use std::time::Duration;

use crate::service::{Endpoint, Metadata, ServiceId};

/// A service to register.
#[derive(Clone, Debug)]
pub struct Registrant {
    /// The first segment of the key, such as `service`.
    pub head: String,
    /// The identity of the service.
    pub id: ServiceId,
    /// The endpoints; at least one.
    pub endpoints: Vec<Endpoint>,
    /// The metadata to publish.
    pub metadata: Metadata,
    /// Lease TTL, after which the registration of a killed registrant expires.
    ///
    /// Registries with a fixed time to live ignore it.
    pub ttl: Duration,
}

/// A change in the state of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterEvent {
    /// The registration was written, for the first time or again.
    Registered,
    /// The registration is still there, and can be refreshed again after a failure.
    Recovered,
    /// An attempt failed and will be retried; the text holds no secret.
    Failed(String),
    /// The registration was removed at the end.
    Removed,
    /// The registration stays at the end, because another program also writes it.
    Left,
}

/// Reason why a registration was not written, or not removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The registry's layout cannot hold the registration; the text gives the reason.
    #[error("{0}")]
    NotWritable(String),
    /// The registry was not configured, and belongs to another user.
    #[error("{0} belongs to another user; to register there anyway, name it with --registry")]
    Foreign(String),
    /// The first attempt was refused, and so would be every retry.
    #[error("cannot register {key}: {reason}")]
    Refused {
        /// The key or file.
        key: String,
        /// The error of the registry.
        reason: String,
    },
    /// The registration could not be removed at the end and will expire.
    #[error("cannot remove {key} ({reason}); it expires within {seconds} s")]
    NotRemoved {
        /// The key or file.
        key: String,
        /// The last error.
        reason: String,
        /// Maximum time until the registration expires, in seconds.
        seconds: u64,
    },
}
