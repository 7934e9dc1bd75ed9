//! The host names that endpoints are registered under, and the addresses that are known of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::catalog::{Changed, Instance, Service};
use crate::service::{Addresses, Host, HostChange};

/// Most host names whose addresses are looked up: a flood of registrations must not become a flood of questions. Those
/// beyond have none.
const MOST_HOSTS: usize = 10_000;

/// The addresses of host names, for readers: a publication shares it with the one before unless they changed.
pub(super) type Known = Arc<HashMap<Box<str>, Addresses>>;

/// Which services have which hosts.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    bases: HashMap<Box<str>, BTreeSet<Box<str>>>,
}

impl Hosts {
    /// Follows changed services: `known` gets the hosts that are new and loses those that went, as the changes returned say.
    pub(super) fn follow(&mut self, changed: &[Changed], known: &mut Known) -> Vec<HostChange> {
        let mut changes = Vec::new();
        for changed in changed {
            let base = changed.base();
            let [before, after] = [&changed.before, &changed.after].map(|service| service.as_deref().map(hosts_of).unwrap_or_default());
            for host in before.difference(&after) {
                let Some(bases) = self.bases.get_mut(*host) else { continue };
                bases.remove(base);
                if bases.is_empty() {
                    self.bases.remove(*host);
                    Arc::make_mut(known).remove(*host);
                    changes.push(HostChange::Unwanted((*host).into()));
                }
            }
            for host in after.difference(&before) {
                let room = self.bases.len() < MOST_HOSTS;
                if let Some(bases) = self.bases.get_mut(*host) {
                    bases.insert(base.into());
                } else if room {
                    self.bases.insert((*host).into(), BTreeSet::from([base.into()]));
                    Arc::make_mut(known).insert((*host).into(), Addresses::Pending);
                    changes.push(HostChange::Wanted((*host).into()));
                }
            }
        }
        changes
    }

    /// Takes what was found; returns the bases of the services that it changes. What is no longer wanted is passed over.
    pub(super) fn resolve(&self, found: Vec<(Box<str>, Addresses)>, known: &mut Known) -> BTreeSet<Box<str>> {
        let mut touched = BTreeSet::new();
        for (host, addresses) in found {
            let Some(bases) = self.bases.get(&host) else { continue };
            if known.get(&host) != Some(&addresses) {
                Arc::make_mut(known).insert(host, addresses);
                touched.extend(bases.iter().cloned());
            }
        }
        touched
    }
}

/// The host whose addresses are to be looked up; what `localhost` is needs no asking (RFC 6761 section 6.3).
pub(super) fn host_of<'a>(instance: &Instance<'a>) -> Option<&'a str> {
    match &instance.endpoint.host {
        Host::Name(name) if &**name != "localhost" => Some(name),
        _ => None,
    }
}

fn hosts_of(service: &Service) -> BTreeSet<&str> {
    service.served().filter_map(|instance| host_of(&instance)).collect()
}
