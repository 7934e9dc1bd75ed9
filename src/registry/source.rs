//! The kinds of registry: one variant for each, with its settings.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::etcd::{self, Etcd};
use super::file::{self, File};
use super::{Command, Feed, RegisterError, RegisterEvent, Registrant, Registry};
use crate::service::{ListKind, RegistryName};

/// A registry to follow or to write to. Shown as its URL, without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An etcd cluster.
    Etcd(Box<etcd::Settings>),
    /// GoFrame's file registry.
    File(file::Settings),
}

/// A registry of the configuration. Shown as `main (etcd://host:port)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSource {
    /// What people call it.
    pub name: RegistryName,
    /// Where it is, and how it is read.
    pub source: Source,
    /// How long a mass removal in it is not believed; zero for never held.
    pub removal_grace: Duration,
}

impl Source {
    /// Keeps a registration in the registry until `stop`, then removes it.
    ///
    /// # Errors
    /// When the first attempt is refused for good, or the removal at the end fails. What fails in
    /// between goes to `events` and is tried again.
    pub async fn register(
        &self,
        registrant: &Registrant,
        stop: CancellationToken,
        events: impl Fn(RegisterEvent),
    ) -> Result<(), RegisterError> {
        match self {
            Self::Etcd(settings) => etcd::register(settings, registrant, stop, events).await,
            Self::File(settings) => file::register(settings, registrant, stop, events).await,
        }
    }

    /// Returns the kind of registry, which is also the scheme of its URL.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Etcd(_) => "etcd",
            Self::File(_) => "file",
        }
    }

    /// The folder of this machine that must be visible to whoever follows the registry, if any.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Etcd(_) => None,
            Self::File(settings) => Some(&settings.directory),
        }
    }
}

impl Registry for Source {
    async fn follow(self, first: ListKind, feed: Feed, commands: mpsc::Receiver<Command>, stop: CancellationToken) {
        match self {
            // Boxed: its future is large, and would be the size of every other kind's.
            Self::Etcd(settings) => Box::pin(Etcd::new(*settings).follow(first, feed, commands, stop)).await,
            Self::File(settings) => File::new(settings).follow(first, feed, commands, stop).await,
        }
    }
}

impl fmt::Display for NamedSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.source)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Etcd(settings) => settings.fmt(f),
            Self::File(settings) => settings.fmt(f),
        }
    }
}
