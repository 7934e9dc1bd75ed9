//! Instances made into RRsets: the ready-made octets of the table, and the rarer types on demand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Settings;
use super::record::{RecordBuilder, Target};
use super::rrset::Records;
use crate::catalog::{Group, HostAddresses, Instance, Service};
use crate::name::{MAX_INSTANCE_LABEL, Name, instance_label, put_instance_label};
use crate::service::{Addresses, Host, Metadata};
use crate::wire::{OWNER, put_u16, put_u32, rtype};

/// Most octets of a DNS name (RFC 1035 section 2.3.4).
pub(super) const MAX_NAME: usize = 255;

/// Most octets of one TXT record's data: so that one fits a UDP answer to those who speak EDNS, unless names are very long.
const TXT_MAX: usize = 1024;

/// Most names in the answer for one address: BIND's default for records of a type at a name.
const PTR_MAX: usize = 100;

/// Puts the A, AAAA and SRV RRsets of these instances into an empty builder: sorted by endpoint, without equal ones, all of
/// one deployment and namespace, whose service has this `owner` there.
pub(super) fn record(
    settings: &Settings,
    hosts: &HostAddresses,
    owner: Option<&[u8]>,
    instances: &[Instance<'_>],
    builder: &mut RecordBuilder,
) {
    let zone = settings.zones.first().name().as_wire();
    for same_host in instances.chunk_by(|a, b| a.endpoint.host == b.endpoint.host) {
        let weight = same_host.iter().map(|instance| u32::from(instance.key.weight())).fold(0, u32::saturating_add);
        let target = match &same_host[0].endpoint.host {
            Host::V4(address) => put_address(builder, weight, (*address).into(), owner, zone),
            Host::V6(address) => put_address(builder, weight, (*address).into(), owner, zone),
            Host::Name(name) => {
                for address in addresses_of(name, hosts) {
                    // Names are sorted behind addresses: it may be there already.
                    if !builder.grow(*address, weight) {
                        builder.put_address(*address, weight);
                    }
                }
                Name::from_text(name).ok().map(|name| builder.put_name(name.as_wire()))
            }
        };
        let Some(target) = target else { continue };
        for instance in same_host {
            builder.put_service(instance.key.weight(), instance.endpoint.port, target);
        }
    }
}

/// The addresses that are known of a host name. What `localhost` is needs no asking (RFC 6761 section 6.3).
fn addresses_of<'h>(name: &str, hosts: &'h HostAddresses) -> &'h [IpAddr] {
    const LOCALHOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    match hosts.get(name) {
        _ if name == "localhost" => &LOCALHOST,
        Some(Addresses::Known(addresses)) => addresses,
        Some(Addresses::Pending | Addresses::Failed) | None => &[],
    }
}

/// Puts an address; returns what services there have as their target. None where the instance's name would not fit DNS.
fn put_address(builder: &mut RecordBuilder, weight: u32, address: IpAddr, owner: Option<&[u8]>, zone: &[u8]) -> Option<Target> {
    let target = builder.put_address(address, weight);
    let rest = owner?.len() + zone.len();
    // The label is looked at only where it matters.
    let fits = rest + 1 + MAX_INSTANCE_LABEL <= MAX_NAME || rest + 1 + instance_label(address).len() <= MAX_NAME;
    fits.then_some(target)
}

/// Appends one A or AAAA record.
pub(super) fn address_record(out: &mut Vec<u8>, owner: &[u8], ttl: u32, address: IpAddr) {
    match address {
        IpAddr::V4(address) => put_record(out, owner, rtype::A, ttl, &address.octets()),
        IpAddr::V6(address) => put_record(out, owner, rtype::AAAA, ttl, &address.octets()),
    }
}

/// Appends one record of class IN.
pub(super) fn put_record(out: &mut Vec<u8>, owner: &[u8], rtype: u16, ttl: u32, data: &[u8]) {
    put_record_head(out, owner, rtype, ttl, data.len());
    out.extend_from_slice(data);
}

pub(super) fn put_record_head(out: &mut Vec<u8>, owner: &[u8], rtype: u16, ttl: u32, octets: usize) {
    out.extend_from_slice(owner);
    put_u16(out, rtype);
    put_u16(out, rtype::IN);
    put_u32(out, ttl);
    // Data is at most a name, a few strings or an address: far below 64 KiB.
    put_u16(out, u16::try_from(octets).unwrap_or(u16::MAX));
}

/// The TXT RRset: one record an instance with all its metadata as `key=value` (RFC 6763 section 6.3), strings cut at 255
/// octets, a record at [`TXT_MAX`]; an instance without metadata has one empty string (RFC 6763 section 6.1). What two
/// instances say alike stands once.
pub(super) fn txt(settings: &Settings, instances: &[Instance<'_>]) -> Records {
    // Most instances of a service say the same, and share it.
    let mut metadata: Vec<_> = instances.iter().map(|instance| &instance.key.metadata).collect();
    metadata.sort_by_key(|metadata| std::sync::Arc::as_ptr(metadata));
    metadata.dedup_by_key(|metadata| std::sync::Arc::as_ptr(metadata));
    let mut texts: Vec<Vec<u8>> = metadata.into_iter().map(|metadata| text(metadata)).collect();
    texts.sort_unstable();
    texts.dedup();
    let mut set = Records::default();
    for text in texts {
        set.put(|out| put_record(out, &OWNER, rtype::TXT, settings.ttl, &text));
    }
    set
}

fn text(metadata: &Metadata) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in metadata.iter() {
        let string = format!("{key}={value}");
        if data.len() + 1 + string.len().min(255) > TXT_MAX {
            break;
        }
        put_string(&mut data, &string);
    }
    if data.is_empty() {
        data.push(0);
    }
    data
}

/// Appends a character string, cut at 255 octets (RFC 1035 section 3.3).
pub(super) fn put_string(out: &mut Vec<u8>, string: &str) {
    let length = u8::try_from(string.len()).unwrap_or(u8::MAX);
    out.push(length);
    out.extend_from_slice(&string.as_bytes()[..usize::from(length)]);
}

/// The PTR RRset of an address: the names of the instances there, then those of their services.
pub(super) fn ptr<'s>(settings: &Settings, address: IpAddr, services: impl Iterator<Item = &'s std::sync::Arc<Service>>) -> Records {
    let mut owners = Vec::new();
    // However many there are: more names than are given are of no use.
    for service in services.take(PTR_MAX) {
        for instance in service.served().filter(|instance| instance.endpoint.host.address() == Some(address)) {
            owners.extend(service_owner(settings, service.base(), instance.key.group()));
        }
    }
    owners.sort();
    owners.dedup();
    let zone = settings.zones.first().name().as_wire();
    let instances = owners.iter().map(|service| {
        let mut owner = Vec::new();
        put_instance_owner(address, service, &mut owner);
        owner
    });
    let names = instances.chain(owners.iter().cloned()).filter(|owner| owner.len() + zone.len() <= MAX_NAME);
    let mut set = Records::default();
    for owner in names.take(PTR_MAX) {
        set.put(|out| {
            put_record_head(out, &OWNER, rtype::PTR, settings.ttl, owner.len() + zone.len());
            out.extend_from_slice(&owner);
            out.extend_from_slice(zone);
        });
    }
    set
}

/// The shortest name of a service in this deployment and namespace: wire labels in front of the zone. None where a part of
/// it cannot be a label.
pub(super) fn service_owner(settings: &Settings, base: &str, group: &Group) -> Option<Vec<u8>> {
    let mut owner = owner(base)?;
    let elsewhere = *group.deployment != *settings.deployment;
    if elsewhere || *group.namespace != *settings.namespace {
        put_label(&mut owner, &group.namespace)?;
    }
    if elsewhere {
        put_label(&mut owner, &group.deployment)?;
    }
    Some(owner)
}

/// Whether this is the deployment and namespace of names that spell none out.
pub(super) fn is_configured(settings: &Settings, group: &Group) -> bool {
    *group.deployment == *settings.deployment && *group.namespace == *settings.namespace
}

/// Labels of a text with dots, in wire form. None where a part of it cannot be a label.
pub(super) fn owner(text: &str) -> Option<Vec<u8>> {
    let mut owner = Vec::with_capacity(text.len() + 16);
    text.split('.').try_for_each(|label| put_label(&mut owner, label))?;
    Some(owner)
}

/// Appends the name of the instance at `address` of the service with this name: wire labels in front of the zone.
pub(super) fn put_instance_owner(address: IpAddr, service: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.push(0);
    put_instance_label(address, out);
    // At most 39 octets.
    out[start] = u8::try_from(out.len() - start - 1).unwrap_or(63);
    out.extend_from_slice(service);
}

/// Whether a text can be a label as it is: a dot in it would look like two.
pub(super) fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len()) && !text.contains('.')
}

fn put_label(out: &mut Vec<u8>, label: &str) -> Option<()> {
    if !is_label(label) {
        return None;
    }
    out.push(u8::try_from(label.len()).ok()?);
    out.extend_from_slice(label.as_bytes());
    Some(())
}
