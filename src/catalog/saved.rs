//! Saved keys: the content of a registry's snapshot file, without the file.
//!
//! The format is a sequence of records, each with a tag byte. Numbers are LEB128, revisions and
//! leases as differences from the key before, and texts are preceded by their length. A record may
//! refer to earlier ones: [`Tag::Fields`] and [`Tag::Metadata`] are numbered from 0 since the last
//! [`Tag::Reset`], and the keys after a [`Tag::Service`] belong to it. The number of keys follows
//! the last record, in eight bytes. A key takes some 35 bytes.
//!
//! Rejected keys and endpoints are not saved: the first list of the registry brings them back.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::key::RegistryKey;
use super::model::Service;
use super::rules::OVERRIDE_LAYER;
use crate::name::{Zone, Zones};
use crate::service::{Endpoint, Host, RegistryId};

/// Limit on the numbered records of a kind; at the limit, the numbering starts again.
///
/// It bounds the memory for numbering, and for reading, if every key has metadata of its own.
const MAX_NUMBERED: usize = 65_536;

/// Minimum size of a key, in bytes: its tag, five numbers, and no endpoint.
pub(super) const MIN_KEY_BYTES: usize = 6;

/// Size of the buffer at which it is written, in bytes.
const WRITE_BYTES: usize = 256 * 1024;

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tag {
    /// The last record.
    End,
    /// Forgets all numbered records.
    Reset,
    /// Fields that many keys share: identity, suffix of the registered name, layout of the text.
    Fields,
    /// Metadata as a JSON object.
    Metadata,
    /// The base name of the keys that follow.
    Service,
    /// A key whose text its layout expresses.
    Key,
    /// A key with its text.
    KeyWithText,
}

impl Tag {
    pub(super) const ALL: [Self; 7] = [
        Self::End,
        Self::Reset,
        Self::Fields,
        Self::Metadata,
        Self::Service,
        Self::Key,
        Self::KeyWithText,
    ];
}

/// Error: saved keys do not follow the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its content is malformed")]
pub struct MalformedKeys;

/// Writes one registry's keys of these services; aliases are skipped.
///
/// Held keys are saved, too: they are served. The services are written in the order of their
/// addresses in memory, which is about that of the list that brought them: both writing and reading
/// are several times as fast as in the order of a hash table. It takes eight bytes per service.
///
/// # Errors
/// Those of `out`.
pub fn save_keys<'s>(
    services: impl IntoIterator<Item = &'s Arc<Service>>,
    registry: RegistryId,
    zones: &Zones,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut sorted: Vec<&Arc<Service>> = services.into_iter().collect();
    sorted.sort_unstable_by_key(|service| Arc::as_ptr(service).addr());
    let mut writer = KeyWriter::default();
    for service in sorted {
        // An alias has the keys of another service.
        let keys = if service.alias_target().is_some() { &[] } else { service.keys() };
        let mut own = keys.iter().filter(|key| key.registry() == registry).peekable();
        if own.peek().is_some() {
            writer.bytes.push(Tag::Service as u8);
            put_text(&mut writer.bytes, service.base());
        }
        for key in own {
            writer.put_key(key, zones);
        }
        if writer.bytes.len() >= WRITE_BYTES {
            out.write_all(&writer.bytes)?;
            writer.bytes.clear();
        }
    }
    writer.bytes.push(Tag::End as u8);
    writer.bytes.extend(writer.keys.to_be_bytes());
    out.write_all(&writer.bytes)
}

/// Numbers of written records, by the address of what they contain.
type Numbers = HashMap<usize, usize, RandomState>;

/// Encodes keys.
#[derive(Debug, Default)]
struct KeyWriter {
    bytes: Vec<u8>,
    fields: Numbers,
    metadata: Numbers,
    /// Revision and lease of the key before.
    before: (u64, i64),
    /// Number of keys.
    keys: u64,
}

impl KeyWriter {
    fn put_key(&mut self, key: &RegistryKey, zones: &Zones) {
        self.keys += 1;
        if self.fields.len().max(self.metadata.len()) >= MAX_NUMBERED {
            self.bytes.push(Tag::Reset as u8);
            self.fields.clear();
            self.metadata.clear();
        }
        let bytes = &mut self.bytes;
        let (fields, is_new) = number(&mut self.fields, Arc::as_ptr(&key.shared).addr());
        if is_new {
            bytes.push(Tag::Fields as u8);
            let group = key.group();
            put_text(bytes, &group.deployment);
            put_text(bytes, &group.namespace);
            put_text(bytes, &group.version);
            // Saved as a text, since the zones may differ when it is read.
            put_text(bytes, zones.get(usize::from(key.rank())).map_or("", Zone::relative_text));
            bytes.push(u8::from(key.layer() == OVERRIDE_LAYER));
            let layout = &key.shared.layout;
            put_text(bytes, &layout.before);
            put_text(bytes, &layout.between);
            put_text(bytes, &layout.after);
            bytes.push(u8::from(layout.endpoints_first));
            put_number(bytes, u64::from(u32::from(layout.port_separator)));
        }
        let (metadata, is_new) = number(&mut self.metadata, Arc::as_ptr(&key.metadata).addr());
        if is_new {
            bytes.push(Tag::Metadata as u8);
            // JSON values with text as keys can always be written.
            put_text(bytes, &serde_json::to_string(&*key.metadata).unwrap_or_default());
        }
        let text = key.own_text();
        bytes.push(if text.is_some() { Tag::KeyWithText } else { Tag::Key } as u8);
        put_number(bytes, fields as u64);
        put_number(bytes, metadata as u64);
        let (revision, lease) = std::mem::replace(&mut self.before, (key.revision, key.lease));
        put_difference(bytes, key.revision.wrapping_sub(revision).cast_signed());
        put_difference(bytes, key.lease.wrapping_sub(lease));
        put_number(bytes, key.endpoints.len() as u64);
        for Endpoint { host, port } in &key.endpoints {
            match host {
                Host::V4(address) => {
                    bytes.push(4);
                    bytes.extend(address.octets());
                }
                Host::V6(address) => {
                    bytes.push(6);
                    bytes.extend(address.octets());
                }
                Host::Name(name) => {
                    bytes.push(0);
                    put_text(bytes, name);
                }
            }
            bytes.extend(port.to_be_bytes());
        }
        if let Some(text) = text {
            put_text(bytes, text);
        }
    }
}

/// Returns the number of a record, and whether it is not written yet.
fn number(numbers: &mut Numbers, address: usize) -> (usize, bool) {
    let next = numbers.len();
    let number = *numbers.entry(address).or_insert(next);
    (number, number == next)
}

fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7F) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push((number & 0x7F) as u8);
}

/// Writes a difference of either sign, so that small ones take few bytes.
fn put_difference(bytes: &mut Vec<u8>, difference: i64) {
    put_number(bytes, (difference << 1 ^ difference >> 63).cast_unsigned());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_number(bytes, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
}
