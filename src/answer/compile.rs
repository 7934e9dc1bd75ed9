//! Compilation of selected instances into a node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::full::Selection;
use super::node::{NodeBuilder, TargetIndex};
use super::owner::MAX_NAME_BYTES;
use super::settings::Settings;
use crate::catalog::HostAddresses;
use crate::name::{MAX_INSTANCE_LABEL_BYTES, Name, instance_label};
use crate::service::{Addresses, Host};

/// Puts the A, AAAA and SRV sets of the selected instances into an empty builder.
///
/// All instances belong to one deployment and namespace, in which the service has this `owner`. An
/// instance gets no SRV entry if there is no owner or if its name would be too long.
pub(super) fn node(
    settings: &Settings,
    hosts: &HostAddresses,
    owner: Option<&[u8]>,
    Selection { instances, holders, .. }: &Selection<'_>,
    builder: &mut NodeBuilder,
) {
    let zone = settings.zones.first().name().as_wire();
    builder.set_holders(holders);
    for same_host in instances.chunk_by(|a, b| a.endpoint.host == b.endpoint.host) {
        let weight = same_host
            .iter()
            .map(|instance| u32::from(instance.key.weight()))
            .fold(0, u32::saturating_add);
        let target = match &same_host[0].endpoint.host {
            Host::V4(address) => put_address(builder, weight, (*address).into(), owner, zone),
            Host::V6(address) => put_address(builder, weight, (*address).into(), owner, zone),
            Host::Name(name) => {
                for address in addresses_of(name, hosts) {
                    // Host names sort after addresses, so the address may be in the set already.
                    if !builder.add_weight(*address, weight) {
                        builder.put_address(*address, weight);
                    }
                }
                Name::from_text(name).ok().map(|name| builder.put_name(name.as_wire()))
            }
        };
        let Some(target) = target else { continue };
        for instance in same_host {
            builder.put_srv(instance.key.weight(), instance.endpoint.port, target);
        }
    }
}

/// Returns the known addresses of a host name.
///
/// `localhost` always resolves to the loopback addresses (RFC 6761 section 6.3).
pub(super) fn addresses_of<'h>(name: &str, hosts: &'h HostAddresses) -> &'h [IpAddr] {
    const LOCALHOST: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    match hosts.get(name) {
        _ if name == "localhost" => &LOCALHOST,
        Some(Addresses::Known(addresses)) => addresses,
        Some(Addresses::Pending | Addresses::Failed) | None => &[],
    }
}

/// Adds an address to the node and returns the SRV target for it.
///
/// Returns `None` if the instance's name would exceed the limits of DNS.
fn put_address(
    builder: &mut NodeBuilder,
    weight: u32,
    address: IpAddr,
    owner: Option<&[u8]>,
    zone: &[u8],
) -> Option<TargetIndex> {
    let target = builder.put_address(address, weight);
    let rest = owner?.len() + zone.len();
    // The common case: even the longest instance label fits, so the label need not be measured.
    let fits = rest + 1 + MAX_INSTANCE_LABEL_BYTES <= MAX_NAME_BYTES
        || rest + 1 + instance_label(address).len() <= MAX_NAME_BYTES;
    fits.then_some(target)
}
