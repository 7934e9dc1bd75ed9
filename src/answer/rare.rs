//! RRsets of the rarer types: made when they are asked for, not kept.

use std::net::IpAddr;
use std::sync::Arc;

use super::owner::{MAX_NAME, put_instance_owner, service_owner};
use super::rrset::{Records, record_head};
use super::settings::Settings;
use crate::catalog::{Instance, Service};
use crate::service::Metadata;
use crate::wire::{OWNER_POINTER, rtype};

/// Most octets of one TXT record's data: so that one fits a UDP answer to those who speak EDNS, unless names are very long.
const TXT_MAX: usize = 1024;

/// Most names in the answer for one address: BIND's default for records of a type at a name.
const PTR_MAX: usize = 100;

/// Appends one A or AAAA record of the name in the question.
pub(super) fn put_address(out: &mut Vec<u8>, ttl: u32, address: IpAddr) {
    match address {
        IpAddr::V4(address) => put_record(out, rtype::A, ttl, &address.octets()),
        IpAddr::V6(address) => put_record(out, rtype::AAAA, ttl, &address.octets()),
    }
}

/// Appends one record of the name in the question.
pub(super) fn put_record(out: &mut Vec<u8>, rtype: u16, ttl: u32, data: &[u8]) {
    // Data is at most a name, a few strings or an address: far below 64 KiB.
    out.extend_from_slice(&record_head(OWNER_POINTER, rtype, ttl, data.len()));
    out.extend_from_slice(data);
}

/// The TXT RRset: one record an instance with all its metadata as `key=value` (RFC 6763 section 6.3), strings cut at 255
/// octets, a record at [`TXT_MAX`]; an instance without metadata has one empty string (RFC 6763 section 6.1).
/// Instances with the same metadata share one record.
pub(super) fn txt(settings: &Settings, instances: &[Instance<'_>]) -> Records {
    // Most instances of a service say the same, and share it.
    let mut metadata: Vec<_> = instances.iter().map(|instance| &instance.key.metadata).collect();
    metadata.sort_by_key(|metadata| Arc::as_ptr(metadata));
    metadata.dedup_by_key(|metadata| Arc::as_ptr(metadata));
    let mut texts: Vec<Vec<u8>> = metadata.into_iter().map(|metadata| text(metadata)).collect();
    texts.sort_unstable();
    texts.dedup();
    let mut set = Records::default();
    for text in texts {
        set.put(|out| put_record(out, rtype::TXT, settings.ttl, &text));
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
pub(super) fn ptr<'s>(settings: &Settings, address: IpAddr, services: impl Iterator<Item = &'s Arc<Service>>) -> Records {
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
            out.extend_from_slice(&record_head(OWNER_POINTER, rtype::PTR, settings.ttl, owner.len() + zone.len()));
            out.extend_from_slice(&owner);
            out.extend_from_slice(zone);
        });
    }
    set
}
