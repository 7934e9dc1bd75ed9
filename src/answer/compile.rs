//! Instances made into the ready-made octets of the table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::full::Selection;
use super::node::{NodeBuilder, TargetIndex};
use super::owner::MAX_NAME_BYTES;
use super::settings::Settings;
use crate::catalog::HostAddresses;
use crate::name::{MAX_INSTANCE_LABEL_BYTES, Name, instance_label};
use crate::service::{Addresses, Host};

/// Puts the A, AAAA and SRV RRsets of the instances selected into an empty builder: all of one deployment and namespace, whose
/// service has this `owner` there.
pub(super) fn node(
    settings: &Settings,
    hosts: &HostAddresses,
    owner: Option<&[u8]>,
    Selection { instances, registries, .. }: &Selection<'_>,
    builder: &mut NodeBuilder,
) {
    let zone = settings.zones.first().name().as_wire();
    builder.set_registries(*registries);
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
                    // Names are sorted behind addresses: it may be there already.
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

/// The addresses that are known of a host name. What `localhost` is needs no asking (RFC 6761 section 6.3).
fn addresses_of<'h>(name: &str, hosts: &'h HostAddresses) -> &'h [IpAddr] {
    const LOCALHOST: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    match hosts.get(name) {
        _ if name == "localhost" => &LOCALHOST,
        Some(Addresses::Known(addresses)) => addresses,
        Some(Addresses::Pending | Addresses::Failed) | None => &[],
    }
}

/// Puts an address; returns what services there have as their target. None where the instance's name would not fit DNS.
fn put_address(
    builder: &mut NodeBuilder,
    weight: u32,
    address: IpAddr,
    owner: Option<&[u8]>,
    zone: &[u8],
) -> Option<TargetIndex> {
    let target = builder.put_address(address, weight);
    let rest = owner?.len() + zone.len();
    // The label is looked at only where it matters.
    let fits = rest + 1 + MAX_INSTANCE_LABEL_BYTES <= MAX_NAME_BYTES
        || rest + 1 + instance_label(address).len() <= MAX_NAME_BYTES;
    fits.then_some(target)
}
