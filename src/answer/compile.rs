//! Instances made into RRsets: the ready-made octets of the table, and the rarer types on demand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Settings;
use super::record::{RecordBuilder, SetBuilder};
use crate::catalog::{Group, Instance, Service};
use crate::name::{Name, instance_label};
use crate::service::Host;
use crate::wire::{OWNER, put_u16, put_u32, rtype};

/// Most octets of one TXT record's data: so that one always fits a UDP answer.
const TXT_MAX: usize = 1024;

/// Most names in the answer for one address: BIND's default for records of a type at a name.
const PTR_MAX: usize = 100;

/// The A, AAAA and SRV RRsets of these instances, sorted by endpoint and without equal ones.
pub(super) fn record(settings: &Settings, service: &Service, instances: &[Instance<'_>]) -> RecordBuilder {
    let mut builder = RecordBuilder::default();
    for same_host in instances.chunk_by(|a, b| a.endpoint.host == b.endpoint.host) {
        let weight = same_host.iter().map(|instance| u32::from(instance.key.weight)).sum();
        for address in addresses(&same_host[0].endpoint.host) {
            put_address(settings, &mut builder, weight, address);
        }
        let mut target = None;
        for instance in same_host {
            // Instances of one address in several namespaces have several names.
            if target.as_ref().is_none_or(|(group, _)| *group != &instance.key.group) {
                target = Some((&instance.key.group, srv_target(settings, service.base(), instance)));
            }
            if let Some((_, Some(target))) = &target {
                put_srv(settings, &mut builder.srv, instance, target);
            }
        }
    }
    builder.hosts_only = !instances.is_empty() && builder.a.units.is_empty() && builder.aaaa.units.is_empty();
    builder
}

/// The addresses that a host has without asking anyone: `localhost` has two (RFC 6761 section 6.3).
fn addresses(host: &Host) -> Vec<IpAddr> {
    match host {
        Host::V4(address) => vec![(*address).into()],
        Host::V6(address) => vec![(*address).into()],
        Host::Name(name) if &**name == "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        Host::Name(_) => Vec::new(),
    }
}

fn put_address(settings: &Settings, builder: &mut RecordBuilder, weight: u32, address: IpAddr) {
    let set = match address {
        IpAddr::V4(_) => &mut builder.a,
        IpAddr::V6(_) => &mut builder.aaaa,
    };
    let mut record = Vec::with_capacity(28);
    address_record(&mut record, &OWNER, settings.ttl, address);
    // `localhost` may stand beside its own addresses.
    if let Some((sum, ..)) = set.units.iter_mut().find(|(_, unit, _)| *unit == record) {
        *sum += weight;
    } else {
        set.units.push((weight, record, Vec::new()));
    }
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
    out.extend_from_slice(owner);
    put_u16(out, rtype);
    put_u16(out, rtype::IN);
    put_u32(out, ttl);
    // Data is at most a name, a few strings or an address: far below 64 KiB.
    put_u16(out, u16::try_from(data.len()).unwrap_or(u16::MAX));
    out.extend_from_slice(data);
}

/// The name that an instance's SRV record points at: the instance's own in the first zone, or the host itself. None where
/// it would not fit a DNS name.
fn srv_target(settings: &Settings, base: &str, instance: &Instance<'_>) -> Option<Name> {
    match (&instance.endpoint.host, instance.endpoint.host.address()) {
        (Host::Name(host), _) => Name::from_text(host).ok(),
        (_, Some(address)) => {
            let owner = instance_owner(address, &service_owner(settings, base, &instance.key.group)?)?;
            in_zone(settings, &owner)
        }
        _ => None,
    }
}

fn put_srv(settings: &Settings, set: &mut SetBuilder, instance: &Instance<'_>, target: &Name) {
    let mut data = Vec::with_capacity(6 + target.as_wire().len());
    // RFC 2782: priority, weight, port, target.
    put_u16(&mut data, 0);
    put_u16(&mut data, instance.key.weight);
    put_u16(&mut data, instance.endpoint.port);
    data.extend_from_slice(target.as_wire());
    let mut record = Vec::with_capacity(12 + data.len());
    put_record(&mut record, &OWNER, rtype::SRV, settings.ttl, &data);
    let mut glue = Vec::new();
    if let Some(address) = instance.endpoint.host.address() {
        address_record(&mut glue, target.as_wire(), settings.ttl, address);
    }
    set.units.push((u32::from(instance.key.weight), record, glue));
}

/// The TXT RRset: one record an instance with all its metadata as `key=value` (RFC 6763 section 6.3), strings cut at 255
/// octets, a record at [`TXT_MAX`]; an instance without metadata has one empty string (RFC 6763 section 6.1).
pub(super) fn txt(settings: &Settings, instances: &[Instance<'_>]) -> SetBuilder {
    let mut set = SetBuilder::default();
    for instance in instances {
        let mut data = Vec::new();
        for (key, value) in instance.key.metadata.iter() {
            let string = format!("{key}={value}");
            if data.len() + 1 + string.len().min(255) > TXT_MAX {
                break;
            }
            put_string(&mut data, &string);
        }
        if data.is_empty() {
            data.push(0);
        }
        push_unweighted(&mut set, rtype::TXT, settings.ttl, &data);
    }
    set
}

/// Appends a character string, cut at 255 octets (RFC 1035 section 3.3).
pub(super) fn put_string(out: &mut Vec<u8>, string: &str) {
    let length = u8::try_from(string.len()).unwrap_or(u8::MAX);
    out.push(length);
    out.extend_from_slice(&string.as_bytes()[..usize::from(length)]);
}

/// Adds a record of the question's owner, unless the same is there.
pub(super) fn push_unweighted(set: &mut SetBuilder, rtype: u16, ttl: u32, data: &[u8]) {
    let mut record = Vec::with_capacity(12 + data.len());
    put_record(&mut record, &OWNER, rtype, ttl, data);
    if !set.units.iter().any(|(_, unit, _)| *unit == record) {
        set.units.push((1, record, Vec::new()));
    }
}

/// The PTR RRset of an address: the names of the instances there, then those of their services.
pub(super) fn ptr<'s>(settings: &Settings, address: IpAddr, services: impl Iterator<Item = &'s std::sync::Arc<Service>>) -> SetBuilder {
    let mut owners = Vec::new();
    for service in services {
        for instance in service.served().filter(|instance| instance.endpoint.host.address() == Some(address)) {
            owners.extend(service_owner(settings, service.base(), &instance.key.group));
        }
    }
    owners.sort();
    owners.dedup();
    let instances = owners.iter().filter_map(|owner| instance_owner(address, owner));
    let mut set = SetBuilder::default();
    for owner in instances.chain(owners.iter().cloned()).filter_map(|owner| in_zone(settings, &owner)).take(PTR_MAX) {
        push_unweighted(&mut set, rtype::PTR, settings.ttl, owner.as_wire());
    }
    set
}

/// The shortest name of a service in this deployment and namespace: wire labels in front of the zone. None where it would
/// not fit a DNS name.
pub(super) fn service_owner(settings: &Settings, base: &str, group: &Group) -> Option<Vec<u8>> {
    let mut owner = Vec::with_capacity(base.len() + 1);
    base.split('.').try_for_each(|label| put_label(&mut owner, label))?;
    let elsewhere = *group.deployment != *settings.deployment;
    if elsewhere || *group.namespace != *settings.namespace {
        put_label(&mut owner, &group.namespace)?;
    }
    if elsewhere {
        put_label(&mut owner, &group.deployment)?;
    }
    Some(owner)
}

/// The name of the instance at `address` of the service with this name: wire labels in front of the zone.
pub(super) fn instance_owner(address: IpAddr, service: &[u8]) -> Option<Vec<u8>> {
    let mut owner = Vec::with_capacity(service.len() + 16);
    put_label(&mut owner, &instance_label(address))?;
    owner.extend_from_slice(service);
    Some(owner)
}

/// A name in the first zone.
fn in_zone(settings: &Settings, owner: &[u8]) -> Option<Name> {
    let wire = [owner, settings.zones.first().name().as_wire()].concat();
    Name::from_wire(&wire).ok().map(|(name, _)| name)
}

/// A label that can be written as it is: a dot in it would look like two.
fn put_label(out: &mut Vec<u8>, label: &str) -> Option<()> {
    if label.is_empty() || label.len() > 63 || label.contains('.') {
        return None;
    }
    out.push(u8::try_from(label.len()).ok()?);
    out.extend_from_slice(label.as_bytes());
    Some(())
}
