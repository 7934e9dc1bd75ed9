//! Owner names of services, of instances, and of the names that every zone has.
//!
//! In this module and its siblings an owner is the wire form of the labels in front of the zone.

use std::net::IpAddr;

use super::settings::Settings;
use crate::catalog::Group;
use crate::name::put_instance_label;

/// Maximum length of a domain name in wire form, in bytes (RFC 1035 section 2.3.4).
pub(super) const MAX_NAME_BYTES: usize = 255;

/// Label of a zone's name server.
pub(super) const NS_LABEL: &[u8] = b"\x02ns";
/// Label of the TXT record with the version of this program.
pub(super) const VERSION_LABEL: &[u8] = b"\x0bdns-version";
/// Label of the mailbox in a zone's SOA record.
pub(super) const HOSTMASTER_LABEL: &[u8] = b"\x0ahostmaster";

/// Returns the shortest owner of a service in this deployment and namespace.
///
/// Returns `None` if a part of the name cannot be a label.
pub(super) fn service_owner(settings: &Settings, base: &str, group: &Group) -> Option<Vec<u8>> {
    let mut owner = owner_of(base)?;
    let elsewhere = *group.deployment != *settings.deployment;
    if elsewhere || *group.namespace != *settings.namespace {
        put_label(&mut owner, &group.namespace)?;
    }
    if elsewhere {
        put_label(&mut owner, &group.deployment)?;
    }
    Some(owner)
}

/// Returns whether names in this group omit deployment and namespace.
pub(super) fn is_configured(settings: &Settings, group: &Group) -> bool {
    *group.deployment == *settings.deployment && *group.namespace == *settings.namespace
}

/// Converts a dotted text to wire labels; `None` if a part cannot be a label.
pub(super) fn owner_of(text: &str) -> Option<Vec<u8>> {
    let mut owner = Vec::with_capacity(text.len() + 16);
    text.split('.').try_for_each(|label| put_label(&mut owner, label))?;
    Some(owner)
}

/// Returns the labels of an owner, which has no root label.
pub(super) fn owner_labels(mut owner: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = owner.split_first()?;
        let (label, rest) = rest.split_at_checked(usize::from(*length))?;
        owner = rest;
        Some(label)
    })
}

/// Appends the owner of an instance: its label and its service's owner.
pub(super) fn put_instance_owner(address: IpAddr, service: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.push(0);
    put_instance_label(address, out);
    // An instance label has at most 39 bytes.
    out[start] = u8::try_from(out.len() - start - 1).unwrap_or(63);
    out.extend_from_slice(service);
}

/// Returns whether a text can be one label, for example because it has no dot.
pub(super) fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len()) && !text.contains('.')
}

/// Appends a label in wire form; `None` if the text cannot be a label.
fn put_label(out: &mut Vec<u8>, label: &str) -> Option<()> {
    if !is_label(label) {
        return None;
    }
    out.push(u8::try_from(label.len()).ok()?);
    out.extend_from_slice(label.as_bytes());
    Some(())
}
