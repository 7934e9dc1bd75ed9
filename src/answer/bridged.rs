//! What the port bridge does with a name, for people.

use std::net::Ipv4Addr;

use super::answerer::Answerer;
use super::bridging::{address, change_of, names_of, resolve};
use super::full::{self, NameLookup};
use crate::catalog::Service;
use crate::name::Name;
use crate::service::{BridgeCandidate, BridgeChange};

impl Answerer {
    /// Returns the names of a service that have an address of the port bridge.
    pub fn bridged_names(&self, service: &Service) -> Vec<(String, Ipv4Addr)> {
        let snapshot = self.snapshot.load();
        let settings = snapshot.settings();
        if snapshot.bridged.is_empty() {
            return Vec::new();
        }
        let names = names_of(settings, service);
        let is_own = |name: &String| {
            resolve(&snapshot, settings, name)
                .is_some_and(|found| found.service.base() == service.base())
        };
        let address = |name: String| snapshot.bridged.address(&name).map(|found| (name, found));
        names.into_iter().filter(is_own).filter_map(address).collect()
    }

    /// Returns the address of the port bridge that clients on this machine get for a name.
    pub fn bridged_address(&self, name: &Name) -> Option<Ipv4Addr> {
        let snapshot = self.snapshot.load();
        let settings = snapshot.settings();
        let (_, zone) = settings.zones.find(name)?;
        let labels: Vec<&[u8]> = zone.relative_labels(name).collect();
        match full::resolve(&snapshot, settings, &labels, |_| {}) {
            NameLookup::Selection(found) => address(&snapshot, settings, &labels, &found),
            NameLookup::NoData | NameLookup::NxDomain => None,
        }
    }

    /// Returns what the port bridge was told about the shortest name of what a name selects.
    pub fn bridge_candidate(&self, name: &Name) -> Option<BridgeCandidate> {
        let snapshot = self.snapshot.load();
        let settings = snapshot.settings();
        let (_, zone) = settings.zones.find(name)?;
        let labels: Vec<&[u8]> = zone.relative_labels(name).collect();
        let NameLookup::Selection(found) = full::resolve(&snapshot, settings, &labels, |_| {})
        else {
            return None;
        };
        match change_of(&snapshot, settings, found.plain_name.as_deref()?) {
            BridgeChange::Put(candidate) => Some(candidate),
            BridgeChange::Removed(_) => None,
        }
    }
}
