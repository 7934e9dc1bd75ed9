//! The kinds of registry, each with its settings.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::consul::{self, ConsulRegistry};
use super::etcd::{self, EtcdRegistry};
use super::file::{self, FileRegistry};
use super::nacos::{self, NacosRegistry};
use super::polaris::{self, PolarisRegistry};
use super::static_services::{self, StaticRegistry};
use super::store_identity::StoreIdentity;
#[cfg(feature = "zookeeper")]
use super::zookeeper::{self, ZooKeeperRegistry};
use super::{Feed, RegisterError, RegisterEvent, Registrant, Registry, RegistryCommand};
use crate::service::{ListKind, RegistryName};

/// A registry to follow or to register in.
///
/// Displays as its URL, without secrets.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// An etcd cluster.
    Etcd(Box<etcd::Settings>),
    /// A directory in the format of GoFrame's file registry.
    File(file::Settings),
    /// A Consul datacenter.
    Consul(Box<consul::Settings>),
    /// A ZooKeeper ensemble.
    #[cfg(feature = "zookeeper")]
    ZooKeeper(Box<zookeeper::Settings>),
    /// A group of services in a Nacos namespace.
    Nacos(Box<nacos::Settings>),
    /// A namespace of a Polaris server.
    Polaris(Box<polaris::Settings>),
    /// The static services of the configuration file.
    Static(static_services::Settings),
}

/// A configured registry with its name.
///
/// Displays as `main (etcd://host:port)`.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedSource {
    /// The configured name.
    pub name: RegistryName,
    /// The kind of registry, with the settings for reaching it.
    pub source: Source,
    /// Removal grace: how long a mass removal is held. Zero applies it at once.
    pub removal_grace: Duration,
}

impl Source {
    /// Registers a service until `stop` is cancelled, then removes the registration.
    ///
    /// `events` receives the failures until the end; they are retried.
    ///
    /// # Errors
    /// Returns an error if the first attempt is refused for good, or if the final removal fails.
    pub async fn register(
        &self,
        registrant: &Registrant,
        stop: CancellationToken,
        events: impl Fn(RegisterEvent),
    ) -> Result<(), RegisterError> {
        match self {
            Self::Etcd(settings) => etcd::register(settings, registrant, stop, events).await,
            Self::File(settings) => file::register(settings, registrant, stop, events).await,
            Self::Consul(settings) => consul::register(settings, registrant, stop, events).await,
            #[cfg(feature = "zookeeper")]
            Self::ZooKeeper(settings) => {
                zookeeper::register(settings, registrant, stop, events).await
            }
            Self::Nacos(settings) => nacos::register(settings, registrant, stop, events).await,
            Self::Polaris(settings) => polaris::register(settings, registrant, stop, events).await,
            Self::Static(_) => {
                let why = "static services are written in the configuration file";
                Err(RegisterError::NotWritable(why.to_owned()))
            }
        }
    }

    /// Returns whether services can be registered.
    pub fn is_writable(&self) -> bool {
        !matches!(self, Self::Static(_))
    }

    /// Returns whether every other registry precedes this one.
    pub fn is_fallback(&self) -> bool {
        matches!(self, Self::Static(_))
    }

    /// Returns the kind of registry, which is also the scheme of its URL.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Etcd(_) => "etcd",
            Self::File(_) => "file",
            Self::Consul(_) => "consul",
            #[cfg(feature = "zookeeper")]
            Self::ZooKeeper(_) => "zookeeper",
            Self::Nacos(_) => "nacos",
            Self::Polaris(_) => "polaris",
            Self::Static(_) => "static",
        }
    }

    /// Returns the registry's servers as `host:port`.
    pub fn endpoints(&self) -> &[String] {
        match self {
            Self::Etcd(settings) => &settings.endpoints,
            Self::File(_) | Self::Static(_) => &[],
            Self::Consul(settings) => &settings.endpoints,
            #[cfg(feature = "zookeeper")]
            Self::ZooKeeper(settings) => &settings.endpoints,
            Self::Nacos(settings) => &settings.endpoints,
            Self::Polaris(settings) => &settings.endpoints,
        }
    }

    /// Returns which data the registry has; `None` if it has no servers.
    pub fn store_identity(&self) -> Option<StoreIdentity> {
        let mut part = Vec::new();
        match self {
            Self::File(_) | Self::Static(_) => return None,
            // The first segments of the keys are those of GoFrame.
            Self::Etcd(_) => {}
            Self::Consul(settings) => {
                part.extend(settings.datacenter.iter().map(|name| ("datacenter", &**name)));
                part.extend(settings.namespace.iter().map(|name| ("namespace", &**name)));
            }
            #[cfg(feature = "zookeeper")]
            Self::ZooKeeper(settings) => part.push(("root", &settings.root)),
            Self::Nacos(settings) => {
                part.extend(settings.namespace.iter().map(|id| ("namespace", &**id)));
                part.push(("group", &settings.group));
                part.extend(settings.clusters.iter().map(|name| ("cluster", &**name)));
            }
            Self::Polaris(settings) => part.push(("namespace", &settings.namespace)),
        }
        Some(StoreIdentity::new(self.kind(), self.endpoints(), part))
    }

    /// Returns the hosts of the registry's servers, as names or addresses.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.endpoints()
            .iter()
            .filter_map(|endpoint| Some(endpoint.rsplit_once(':')?.0.trim_matches(['[', ']'])))
    }

    /// Returns the local directory of the registry, if it has one.
    ///
    /// A process that follows the registry must be able to see it.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::File(settings) => Some(&settings.directory),
            _ => None,
        }
    }
}

impl Registry for Source {
    async fn follow(
        self,
        first: ListKind,
        feed: Feed,
        commands: mpsc::Receiver<RegistryCommand>,
        stop: CancellationToken,
    ) {
        match self {
            // Boxed: otherwise the large etcd future sets the size for every kind of registry.
            Self::Etcd(settings) => {
                let registry = EtcdRegistry::new(*settings);
                Box::pin(registry.follow(first, feed, commands, stop)).await;
            }
            Self::File(settings) => {
                FileRegistry::new(settings).follow(first, feed, commands, stop).await;
            }
            Self::Consul(settings) => {
                let registry = ConsulRegistry::new(*settings);
                Box::pin(registry.follow(first, feed, commands, stop)).await;
            }
            #[cfg(feature = "zookeeper")]
            Self::ZooKeeper(settings) => {
                let registry = ZooKeeperRegistry::new(*settings);
                Box::pin(registry.follow(first, feed, commands, stop)).await;
            }
            Self::Nacos(settings) => {
                let registry = NacosRegistry::new(*settings);
                Box::pin(registry.follow(first, feed, commands, stop)).await;
            }
            Self::Polaris(settings) => {
                let registry = PolarisRegistry::new(*settings);
                Box::pin(registry.follow(first, feed, commands, stop)).await;
            }
            Self::Static(settings) => {
                StaticRegistry::new(settings).follow(first, feed, commands, stop).await;
            }
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
            Self::Consul(settings) => settings.fmt(f),
            #[cfg(feature = "zookeeper")]
            Self::ZooKeeper(settings) => settings.fmt(f),
            Self::Nacos(settings) => settings.fmt(f),
            Self::Polaris(settings) => settings.fmt(f),
            Self::Static(settings) => settings.fmt(f),
        }
    }
}
