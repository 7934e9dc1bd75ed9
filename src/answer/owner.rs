//! Owner names: of services, of instances, and of the few names every zone has.
//!
//! An owner is a name's wire labels in front of the zone.

use std::net::IpAddr;

use super::settings::Settings;
use crate::catalog::Group;
use crate::name::put_instance_label;

/// Most octets of a DNS name (RFC 1035 section 2.3.4).
pub(super) const MAX_NAME_BYTES: usize = 255;

/// The name server of a zone.
pub(super) const NS_LABEL: &[u8] = b"\x02ns";
/// The name whose TXT record tells the version of this program.
pub(super) const VERSION_LABEL: &[u8] = b"\x0bdns-version";
/// The mailbox in a SOA record.
pub(super) const HOSTMASTER_LABEL: &[u8] = b"\x0ahostmaster";

/// The shortest name of a service in this deployment and namespace. None where a part of it cannot
/// be a label.
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

/// Whether this is the deployment and namespace of names that spell none out.
pub(super) fn is_configured(settings: &Settings, group: &Group) -> bool {
    *group.deployment == *settings.deployment && *group.namespace == *settings.namespace
}

/// Labels of a text with dots, in wire form. None where a part of it cannot be a label.
pub(super) fn owner_of(text: &str) -> Option<Vec<u8>> {
    let mut owner = Vec::with_capacity(text.len() + 16);
    text.split('.').try_for_each(|label| put_label(&mut owner, label))?;
    Some(owner)
}

/// Appends the name of the instance at `address` of the service with this name.
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
