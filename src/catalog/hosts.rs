//! Host names that endpoints are registered under, and their known addresses.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::ServiceChange;
use super::model::{Instance, Service};
use crate::service::{Addresses, Host, HostChange};

/// Maximum host names whose addresses are looked up.
///
/// The limit keeps a flood of registrations from becoming a flood of queries. Further host names
/// have no addresses.
const MAX_HOST_NAMES: usize = 10_000;

/// The known addresses of host names. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct HostAddresses(Arc<HashMap<Box<str>, Addresses>>);

impl HostAddresses {
    /// Returns the addresses of a host name, or `None` if no endpoint has it.
    pub fn get(&self, host: &str) -> Option<&Addresses> {
        self.0.get(host)
    }
}

/// Maps each host name to the services that have an endpoint under it.
#[derive(Debug, Default)]
pub(super) struct HostIndex {
    bases: HashMap<Box<str>, BTreeSet<Box<str>>>,
    pub(super) addresses: HostAddresses,
}

impl HostIndex {
    /// Indexes the hosts of changed services; returns host names to look up or drop.
    pub(super) fn update(&mut self, changed: &[ServiceChange]) -> Vec<HostChange> {
        let mut changes = Vec::new();
        for changed in changed {
            // Nearly all services have addresses only.
            let services = changed.before.iter().chain(&changed.after);
            if !services.flat_map(|service| service.keys()).any(|key| key.has_host_names()) {
                continue;
            }
            let base = changed.base();
            let [before, after] = [&changed.before, &changed.after]
                .map(|service| service.as_deref().map(hosts_of).unwrap_or_default());
            for host in before.difference(&after) {
                let Some(bases) = self.bases.get_mut(*host) else { continue };
                bases.remove(base);
                if bases.is_empty() {
                    self.bases.remove(*host);
                    Arc::make_mut(&mut self.addresses.0).remove(*host);
                    changes.push(HostChange::Unwanted((*host).into()));
                }
            }
            for host in after.difference(&before) {
                let room = self.bases.len() < MAX_HOST_NAMES;
                if let Some(bases) = self.bases.get_mut(*host) {
                    bases.insert(base.into());
                } else if room {
                    self.bases.insert((*host).into(), BTreeSet::from([base.into()]));
                    Arc::make_mut(&mut self.addresses.0).insert((*host).into(), Addresses::Pending);
                    changes.push(HostChange::Wanted((*host).into()));
                }
            }
        }
        changes
    }

    /// Stores looked-up addresses; returns the bases of the affected services.
    ///
    /// Host names without an endpoint are ignored.
    pub(super) fn set_addresses(
        &mut self,
        found: Vec<(Box<str>, Addresses)>,
    ) -> BTreeSet<Box<str>> {
        let mut affected = BTreeSet::new();
        for (host, addresses) in found {
            let Some(bases) = self.bases.get(&host) else { continue };
            if self.addresses.get(&host) != Some(&addresses) {
                Arc::make_mut(&mut self.addresses.0).insert(host, addresses);
                affected.extend(bases.iter().cloned());
            }
        }
        affected
    }
}

impl<'a> Instance<'a> {
    /// Returns the host name whose addresses to look up, if the endpoint has one.
    ///
    /// `localhost` needs no lookup (RFC 6761, Section 6.3).
    pub fn host_name(&self) -> Option<&'a str> {
        match &self.endpoint.host {
            Host::Name(name) if &**name != "localhost" => Some(name),
            _ => None,
        }
    }
}

fn hosts_of(service: &Service) -> BTreeSet<&str> {
    service.served().filter_map(|instance| instance.host_name()).collect()
}
