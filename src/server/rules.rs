//! What a reload changes for all clients and listeners at once.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::own_addresses::OwnAddresses;
use super::query_log::QueryLog;
use super::sink::Tap;
use super::{Access, Limits, Settings};
use crate::descriptors;

/// Rules of one configuration, and the addresses that are served with it.
#[derive(Clone, Debug)]
pub(super) struct ServingRules {
    /// All listening addresses of this server.
    pub(super) own_addresses: OwnAddresses,
    pub(super) access: Access,
    pub(super) tap: Tap,
    pub(super) limits: Limits,
}

impl ServingRules {
    /// Returns the rules of `settings`, with no address yet.
    pub(super) fn new(settings: &Settings) -> Self {
        let limits = settings.limits.clone().within(descriptors::limit());
        if limits.connections < settings.limits.connections {
            tracing::warn!(
                tcp_connections = settings.limits.connections,
                allowed = limits.connections,
                "the limit on open files (ulimit -Hn) allows fewer connections than configured"
            );
        }
        Self {
            own_addresses: OwnAddresses::default(),
            access: settings.access(),
            tap: QueryLog::new(settings.log_queries).map_or_else(Tap::default, Tap::new),
            limits,
        }
    }
}

/// The rules in operation, which all threads share; replaced as one.
///
/// One load gives a query rules of a single configuration.
#[derive(Clone, Debug)]
pub(super) struct SharedRules(Arc<ArcSwap<ServingRules>>);

impl SharedRules {
    /// Puts rules into operation.
    pub(super) fn new(rules: ServingRules) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(rules)))
    }

    /// Returns the rules; not to be kept across a wait.
    pub(super) fn load(&self) -> Guard<Arc<ServingRules>> {
        self.0.load()
    }

    /// Returns one of the limits.
    pub(super) fn limit<T>(&self, of: impl FnOnce(&Limits) -> T) -> T {
        of(&self.load().limits)
    }

    /// Replaces the rules, except for the addresses.
    pub(super) fn replace(&self, rules: &ServingRules) {
        self.0.rcu(|current| ServingRules {
            own_addresses: current.own_addresses.clone(),
            ..rules.clone()
        });
    }

    /// Replaces the addresses.
    pub(super) fn set_own_addresses(&self, own_addresses: &OwnAddresses) {
        self.0.rcu(|current| ServingRules {
            own_addresses: own_addresses.clone(),
            ..ServingRules::clone(current)
        });
    }

    /// Returns rules for loopback clients with these limits.
    #[cfg(test)]
    pub(super) fn of(limits: Limits) -> Self {
        let rules = ServingRules::new(&Settings::default());
        Self::new(ServingRules { limits, ..rules })
    }
}
