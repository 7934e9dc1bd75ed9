//! RRsets of the rarer types, composed per response instead of precompiled.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::owner::{MAX_NAME_BYTES, put_instance_owner, service_owner};
use super::rrset::{ComposedRecords, record_head};
use super::settings::Settings;
use crate::catalog::{Instance, Service};
use crate::service::Metadata;
use crate::wire::{OWNER_POINTER, rtype};

/// Maximum data of a TXT record, in bytes.
///
/// A record of this size fits a UDP response to clients with EDNS, unless names are very long.
const MAX_TXT_DATA_BYTES: usize = 1024;

/// Maximum PTR records for one address (BIND's default limit for an RRset).
const MAX_PTR_RECORDS: usize = 100;

/// Appends an A or AAAA record for the name in the question section.
pub(super) fn put_address(out: &mut Vec<u8>, ttl: u32, address: IpAddr) {
    match address {
        IpAddr::V4(address) => put_record(out, rtype::A, ttl, &address.octets()),
        IpAddr::V6(address) => put_record(out, rtype::AAAA, ttl, &address.octets()),
    }
}

/// Appends a record for the name in the question section.
pub(super) fn put_record(out: &mut Vec<u8>, rtype: u16, ttl: u32, data: &[u8]) {
    // The data is a name, an address or a few strings, so it is far below 64 KiB.
    out.extend_from_slice(&record_head(OWNER_POINTER, rtype, ttl, data.len()));
    out.extend_from_slice(data);
}

/// Composes the TXT RRset of instances: a record for each distinct metadata.
///
/// A record has one `key=value` string per entry (RFC 6763 section 6.3). Strings are cut at 255
/// bytes and records at [`MAX_TXT_DATA_BYTES`]. Empty metadata gives one empty string (RFC 6763
/// section 6.1).
pub(super) fn txt(settings: &Settings, instances: &[Instance<'_>]) -> ComposedRecords {
    let mut texts: Vec<Vec<u8>> =
        distinct_metadata(instances).into_iter().map(|metadata| text(metadata, |_| {})).collect();
    texts.sort_unstable();
    texts.dedup();
    let mut set = ComposedRecords::default();
    for text in texts {
        set.put(|out| put_record(out, rtype::TXT, settings.ttl, &text));
    }
    set
}

/// Describes the metadata of instances that their TXT RRset omits.
pub(super) fn txt_omissions(instances: &[Instance<'_>]) -> Vec<String> {
    let mut omissions = Vec::new();
    for metadata in distinct_metadata(instances) {
        text(metadata, |omission| omissions.push(omission.to_string()));
    }
    omissions.sort_unstable();
    omissions.dedup();
    omissions
}

/// Returns the distinct metadata of instances.
///
/// Instances with equal metadata usually share it.
fn distinct_metadata<'a>(instances: &[Instance<'a>]) -> Vec<&'a Arc<Metadata>> {
    let mut metadata: Vec<_> = instances.iter().map(|instance| &instance.key.metadata).collect();
    metadata.sort_by_key(|metadata| Arc::as_ptr(metadata));
    metadata.dedup_by_key(|metadata| Arc::as_ptr(metadata));
    metadata
}

/// A part of the metadata that a TXT record omits.
#[derive(Clone, Copy, Debug)]
enum TxtOmission<'a> {
    /// The end of a string that is cut: `bytes` is its full length.
    End { key: &'a str, bytes: usize },
    /// `count` entries, in order, of which `first` is the first.
    Entries { count: usize, first: &'a str },
}

impl fmt::Display for TxtOmission<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End { key, bytes } => {
                write!(f, "TXT: the string of {key:?} is cut at 255 of {bytes} bytes")
            }
            Self::Entries { count: 1, first } => {
                write!(
                    f,
                    "TXT: {first:?} is left out: records have at most {MAX_TXT_DATA_BYTES} bytes"
                )
            }
            Self::Entries { count, first } => write!(
                f,
                "TXT: {count} entries from {first:?} on are left out: records have at most \
                 {MAX_TXT_DATA_BYTES} bytes"
            ),
        }
    }
}

/// Composes the data of a TXT record and reports the omitted parts of the metadata.
fn text<'a>(metadata: &'a Metadata, mut report: impl FnMut(TxtOmission<'a>)) -> Vec<u8> {
    let mut data = Vec::new();
    for (index, (key, value)) in metadata.iter().enumerate() {
        let string = format!("{key}={value}");
        if data.len() + 1 + string.len().min(255) > MAX_TXT_DATA_BYTES {
            report(TxtOmission::Entries { count: metadata.len() - index, first: key });
            break;
        }
        if string.len() > 255 {
            report(TxtOmission::End { key, bytes: string.len() });
        }
        put_string(&mut data, &string);
    }
    if data.is_empty() {
        data.push(0);
    }
    data
}

/// Appends a character string (RFC 1035 section 3.3), cut at 255 bytes.
pub(super) fn put_string(out: &mut Vec<u8>, string: &str) {
    let length = u8::try_from(string.len()).unwrap_or(u8::MAX);
    out.push(length);
    out.extend_from_slice(&string.as_bytes()[..usize::from(length)]);
}

/// Composes the PTR RRset of an address: instance names first, then service names.
pub(super) fn ptr<'s>(
    settings: &Settings,
    address: IpAddr,
    services: impl Iterator<Item = &'s Arc<Service>>,
) -> ComposedRecords {
    let mut owners = Vec::new();
    // The answer is full after this many services.
    for service in services.take(MAX_PTR_RECORDS) {
        for instance in service.selectable().filter(|instance| instance.is_at(address)) {
            owners.extend(service_owner(settings, service.base(), instance.key.group()));
        }
    }
    owners.sort();
    owners.dedup();
    let zone = settings.zones.first().name().as_wire();
    let instances: Vec<Vec<u8>> = owners
        .iter()
        .map(|service| {
            let mut owner = Vec::new();
            put_instance_owner(address, service, &mut owner);
            owner
        })
        .collect();
    // A base such as `10-0-0-1.hello` is also the name of an instance of `hello`.
    let others = owners.iter().filter(|owner| !instances.contains(owner));
    let names =
        instances.iter().chain(others).filter(|owner| owner.len() + zone.len() <= MAX_NAME_BYTES);
    let mut set = ComposedRecords::default();
    for owner in names.take(MAX_PTR_RECORDS) {
        set.put(|out| {
            out.extend_from_slice(&record_head(
                OWNER_POINTER,
                rtype::PTR,
                settings.ttl,
                owner.len() + zone.len(),
            ));
            out.extend_from_slice(owner);
            out.extend_from_slice(zone);
        });
    }
    set
}
