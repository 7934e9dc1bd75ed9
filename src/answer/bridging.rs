//! Names and the port bridge: which names it is told about, and which get its addresses.
//!
//! The bridge knows a service or version by its shortest name, as text in front of the zone. What
//! the name selects is decided by the full path, as for every query.

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::compile::addresses_of;
use super::full::{self, NameForm, NameLookup, Selection, join_labels};
use super::owner::{owner_labels, service_owner};
use super::settings::Settings;
use super::table::Snapshot;
use crate::catalog::{Group, RegistryKey, Service, ServiceChange};
use crate::service::{BridgeCandidate, BridgeChange, Host, ReachableRegistration};

/// Returns the address of the port bridge for what these labels select, if it has one.
pub(super) fn address(
    snapshot: &Snapshot,
    settings: &Settings,
    labels: &[&[u8]],
    selection: &Selection<'_>,
) -> Option<Ipv4Addr> {
    let name = selection.plain_name.as_deref().filter(|_| !selection.is_direct)?;
    let address = snapshot.bridged.address(name).filter(|_| !selection.instances.is_empty())?;
    let mut text = String::new();
    if join_labels(labels, &mut text) && text == name {
        return Some(address);
    }
    // The shortest name may belong to another service, such as `a.b` to `a.b` rather than to `a`
    // in namespace `b`.
    let same = resolve(snapshot, settings, name)?;
    let is_same =
        same.service.base() == selection.service.base() && same.plain_name.as_deref() == Some(name);
    is_same.then_some(address)
}

/// Returns what changed for the bridge about these owners, and about versions of these services.
pub(super) fn changes<'o>(
    snapshot: &Snapshot,
    settings: &Settings,
    owners: impl Iterator<Item = &'o [u8]>,
    changed: &[ServiceChange],
) -> Vec<BridgeChange> {
    let mut names: BTreeSet<String> = owners.filter_map(text_of).collect();
    for service in changed.iter().flat_map(|change| change.before.iter().chain(&change.after)) {
        names.extend(versions(settings, service));
    }
    names.into_iter().map(|name| change_of(snapshot, settings, &name)).collect()
}

/// Returns what changed for the bridge about names that services had with the former settings.
pub(super) fn former_names(
    snapshot: &Snapshot,
    former: &Settings,
    changed: &[ServiceChange],
) -> Vec<BridgeChange> {
    let services = changed.iter().filter_map(|change| change.before.as_deref());
    let names: BTreeSet<String> = services.flat_map(|service| names_of(former, service)).collect();
    names.into_iter().map(|name| change_of(snapshot, snapshot.settings(), &name)).collect()
}

/// Returns the names that the bridge may know a service by: the shortest, and those of versions.
pub(super) fn names_of(settings: &Settings, service: &Service) -> BTreeSet<String> {
    let own = |group: &Arc<Group>| text_of(&service_owner(settings, service.base(), group)?);
    let mut names: BTreeSet<_> = service.visible_groups().filter_map(own).collect();
    names.extend(versions(settings, service));
    names
}

/// Returns the names of a service's versions, except `latest`, which is the service's own name.
pub(super) fn versions(settings: &Settings, service: &Service) -> impl Iterator<Item = String> {
    let others = service.visible_groups().filter(|group| &*group.version != "latest");
    others.filter_map(|group| {
        let name = text_of(&service_owner(settings, service.base(), group)?)?;
        Some(format!("{}.{name}", group.version))
    })
}

/// Returns what the bridge has to know about a name.
pub(super) fn change_of(snapshot: &Snapshot, settings: &Settings, name: &str) -> BridgeChange {
    let selection =
        resolve(snapshot, settings, name).filter(|one| one.plain_name.as_deref() == Some(name));
    let Some(selection) = selection.filter(|one| !one.instances.is_empty()) else {
        return BridgeChange::Removed(name.into());
    };
    let namespace = selection.instances[0].key.group().namespace.to_ascii_lowercase();
    let mut registrations: Vec<ReachableRegistration> = Vec::new();
    // Instances are sorted by endpoint: those of one registration may be far apart.
    let mut positions: HashMap<*const RegistryKey, usize> = HashMap::new();
    for instance in selection.instances.iter().chain(&selection.duplicates) {
        let key = instance.key;
        let at = *positions.entry(Arc::as_ptr(key)).or_insert_with(|| {
            let protocol = key.metadata.text("protocol");
            registrations.push(ReachableRegistration {
                protocol: protocol.map(|text| text.to_ascii_lowercase().into()),
                weight: key.weight(),
                first_port: key.endpoints.first().map(|endpoint| endpoint.port),
                endpoints: Vec::new(),
            });
            registrations.len() - 1
        });
        let endpoints = &mut registrations[at].endpoints;
        let port = instance.endpoint.port;
        match &instance.endpoint.host {
            Host::V4(address) => endpoints.push(SocketAddr::new((*address).into(), port)),
            Host::V6(address) => endpoints.push(SocketAddr::new((*address).into(), port)),
            Host::Name(host) => endpoints.extend(
                addresses_of(host, &snapshot.hosts)
                    .iter()
                    .map(|address| SocketAddr::new(*address, port)),
            ),
        }
    }
    BridgeChange::Put(BridgeCandidate {
        name: name.into(),
        namespace: namespace.into(),
        registrations,
    })
}

/// Resolves a name in front of the zone to a service or version.
pub(super) fn resolve<'s>(
    snapshot: &'s Snapshot,
    settings: &Settings,
    name: &str,
) -> Option<Selection<'s>> {
    let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
    match full::resolve(snapshot, settings, &labels, |_| {}) {
        NameLookup::Selection(selection) if selection.form == NameForm::Service => Some(selection),
        _ => None,
    }
}

/// Returns an owner as text.
pub(super) fn text_of(owner: &[u8]) -> Option<String> {
    let labels: Vec<&[u8]> = owner_labels(owner).collect();
    let mut text = String::new();
    join_labels(&labels, &mut text).then_some(text)
}
