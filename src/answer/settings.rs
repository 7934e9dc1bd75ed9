//! Settings of the authoritative side.

use std::net::IpAddr;
use std::num::NonZeroU16;

use super::aliases::Aliases;
use crate::name::{Name, Zones};
use crate::service::{RegistryName, RegistrySet};

/// Settings of the authoritative side.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Served zones. SRV targets, glue and PTR names use the first one.
    pub zones: Zones,
    /// Deployment of names that do not contain one, in lower case.
    pub deployment: Box<str>,
    /// Namespace of names that do not contain one, in lower case.
    pub namespace: Box<str>,
    /// Whether a service without version `latest` is answered with all of its versions.
    pub version_fallback: bool,
    /// Treatment of answers that do not fit the response.
    pub answers: Answers,
    /// TTL of positive answers, in seconds.
    pub ttl: u32,
    /// TTL of negative answers and of the SOA record, in seconds (RFC 2308 section 5).
    pub negative_ttl: u32,
    /// Listen addresses: the address records of `ns.<zone>`.
    pub listen: Vec<IpAddr>,
    /// Whether names outside the zones are forwarded; otherwise they are refused.
    pub forwarding: bool,
    /// Aliases of services and of names outside the zones.
    pub aliases: Aliases,
    /// Whether the port bridge is on, and told about every name.
    pub bridge: bool,
    /// The names of the registries, in the order of the configuration, for EDE texts.
    pub registry_names: Vec<RegistryName>,
    /// The registries of static services.
    pub static_registries: RegistrySet,
}

impl Settings {
    /// Returns the defaults for these zones: no listen address or alias, forwarding off.
    #[must_use]
    pub fn new(zones: Zones) -> Self {
        Self {
            zones,
            deployment: "default".into(),
            namespace: "default".into(),
            version_fallback: true,
            answers: Answers::All,
            ttl: 5,
            negative_ttl: 1,
            listen: Vec::new(),
            forwarding: false,
            aliases: Aliases::default(),
            bridge: false,
            registry_names: Vec::new(),
            static_registries: RegistrySet::EMPTY,
        }
    }

    /// Returns whether the table that these settings need is also the one of `other`.
    pub(super) fn needs_same_table(&self, other: &Self) -> bool {
        let Self {
            zones,
            deployment,
            namespace,
            version_fallback,
            // Responses take these from the settings.
            answers: _,
            ttl: _,
            negative_ttl: _,
            listen: _,
            forwarding: _,
            aliases,
            bridge,
            registry_names,
            static_registries: _,
        } = self;
        *zones == other.zones
            && *deployment == other.deployment
            && *namespace == other.namespace
            && *version_fallback == other.version_fallback
            && *aliases == other.aliases
            && *bridge == other.bridge
            && *registry_names == other.registry_names
    }

    /// Returns the target of this name if it is an alias of a name outside the zones.
    pub fn outside_target(&self, name: &Name) -> Option<&Name> {
        let (_, zone) = self.zones.find(name)?;
        self.aliases.outside(zone.labels_before(name))
    }
}

/// Treatment of answers that do not fit the response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    /// Send all records that fit and set TC, so that the client can retry over TCP.
    #[default]
    All,
    /// Send all records that fit, without TC.
    Fit,
    /// Send at most this many records, over any transport.
    Count(NonZeroU16),
}
