//! Saved keys: the content of a registry's snapshot file, without the file.
//!
//! The format is a sequence of records, each with a tag byte. Numbers are LEB128, revisions and
//! leases as differences from the key before, and texts are preceded by their length. A record may
//! refer to earlier ones: [`Tag::Fields`] and [`Tag::Metadata`] are numbered from 0 since the last
//! [`Tag::Reset`], and the keys after a [`Tag::Service`] belong to it. The number of keys follows
//! the last record, in eight bytes. A key takes some 35 bytes.
//!
//! Rejected keys and endpoints are not saved: the first list of the registry brings them back.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::RandomState;

use super::Catalog;
use super::key::{KeyLayout, RegistryKey};
use super::model::Service;
use super::rules::OVERRIDE_LAYER;
use crate::name::{Zone, Zones};
use crate::service::{
    Endpoint, Host, ListKind, ListScope, Metadata, Put, Registration, RegistryId, ServiceId,
};

/// Limit on the numbered records of a kind; at the limit, the numbering starts again.
///
/// It bounds the memory for numbering, and for reading, if every key has metadata of its own.
const MAX_NUMBERED: usize = 65_536;

/// Minimum size of a key, in bytes: its tag, five numbers, and no endpoint.
const MIN_KEY_BYTES: usize = 6;

/// Size of the buffer at which it is written, in bytes.
const WRITE_BYTES: usize = 256 * 1024;

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Tag {
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
    const ALL: [Self; 7] = [
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

/// Reads the result of [`save_keys`]; yields each key as a registry would put it.
///
/// After an error, the iterator is to be dropped.
#[derive(Debug)]
pub struct SavedKeys<'b> {
    bytes: SavedBytes<'b>,
    fields: Vec<SavedFields<'b>>,
    metadata: Vec<Arc<Metadata>>,
    base: &'b str,
    /// Revision and lease of the key before.
    before: (u64, i64),
    /// Number of keys that are left.
    left: u64,
    /// Buffer for the text of a key.
    text: String,
}

/// A record of the kind [`Tag::Fields`].
#[derive(Debug)]
struct SavedFields<'b> {
    deployment: Arc<str>,
    namespace: Arc<str>,
    version: Arc<str>,
    suffix: &'b str,
    overrides: bool,
    layout: KeyLayout,
}

impl<'b> SavedKeys<'b> {
    /// Begins to read the bytes.
    pub fn new(bytes: &'b [u8]) -> Self {
        // Without a number, there is no last record either.
        let (records, number) = bytes.split_last_chunk().unwrap_or((&[], &[0; 8]));
        Self {
            bytes: SavedBytes(records),
            fields: Vec::new(),
            metadata: Vec::new(),
            base: "",
            before: (0, 0),
            left: u64::from_be_bytes(*number),
            text: String::new(),
        }
    }

    /// Returns the number of keys that are left, or fewer if the bytes cannot hold as many.
    pub fn expected(&self) -> usize {
        let possible = self.bytes.0.len() / MIN_KEY_BYTES;
        usize::try_from(self.left).unwrap_or(usize::MAX).min(possible)
    }

    /// Reads records up to the next key; returns `None` at the end.
    fn next_key(&mut self) -> Result<Option<Put>, MalformedKeys> {
        loop {
            let tag = self.bytes.byte()?;
            let tag =
                Tag::ALL.into_iter().find(|known| *known as u8 == tag).ok_or(MalformedKeys)?;
            match tag {
                Tag::End if self.bytes.0.is_empty() && self.left == 0 => return Ok(None),
                Tag::End => return Err(MalformedKeys),
                Tag::Reset => {
                    self.fields.clear();
                    self.metadata.clear();
                }
                Tag::Fields => self.fields.push(self.bytes.fields()?),
                Tag::Metadata => {
                    let entries: BTreeMap<_, _> =
                        serde_json::from_str(self.bytes.text()?).map_err(|_| MalformedKeys)?;
                    self.metadata.push(Arc::new(Metadata::new(entries)));
                }
                Tag::Service => self.base = self.bytes.text()?,
                Tag::Key | Tag::KeyWithText => {
                    self.left = self.left.checked_sub(1).ok_or(MalformedKeys)?;
                    return self.key(tag == Tag::KeyWithText).map(Some);
                }
            }
        }
    }

    fn key(&mut self, has_text: bool) -> Result<Put, MalformedKeys> {
        let fields = self.fields.get(self.bytes.index()?).ok_or(MalformedKeys)?;
        let metadata = self.metadata.get(self.bytes.index()?).ok_or(MalformedKeys)?;
        let revision = self.before.0.wrapping_add_signed(self.bytes.difference()?);
        let lease = self.before.1.wrapping_add(self.bytes.difference()?);
        self.before = (revision, lease);
        let endpoints = self.bytes.endpoints()?;
        let key = if has_text {
            self.bytes.text()?.into()
        } else {
            self.text.clear();
            let written = fields.layout.write(&mut self.text, self.base, &endpoints);
            written.map_err(|_| MalformedKeys)?;
            self.text.as_str().into()
        };
        let name = match fields.suffix {
            "" => self.base.into(),
            suffix => [self.base, ".", suffix].concat().into(),
        };
        let content = Registration {
            id: ServiceId {
                deployment: Arc::clone(&fields.deployment),
                namespace: Arc::clone(&fields.namespace),
                name,
                version: Arc::clone(&fields.version),
            },
            endpoints,
            rejected: Vec::new(),
            metadata: Arc::clone(metadata),
            overrides: fields.overrides,
        };
        Ok(Put { key, revision, lease, content: Ok(content) })
    }
}

impl Iterator for SavedKeys<'_> {
    type Item = Result<Put, MalformedKeys>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_key().transpose()
    }
}

/// The rest of saved bytes, which every method shortens.
#[derive(Debug)]
struct SavedBytes<'b>(&'b [u8]);

impl<'b> SavedBytes<'b> {
    fn byte(&mut self) -> Result<u8, MalformedKeys> {
        let (byte, rest) = self.0.split_first().ok_or(MalformedKeys)?;
        self.0 = rest;
        Ok(*byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MalformedKeys> {
        let (array, rest) = self.0.split_first_chunk().ok_or(MalformedKeys)?;
        self.0 = rest;
        Ok(*array)
    }

    fn number(&mut self) -> Result<u64, MalformedKeys> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(MalformedKeys)
    }

    fn index(&mut self) -> Result<usize, MalformedKeys> {
        usize::try_from(self.number()?).map_err(|_| MalformedKeys)
    }

    fn difference(&mut self) -> Result<i64, MalformedKeys> {
        let number = self.number()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    fn text(&mut self) -> Result<&'b str, MalformedKeys> {
        let length = self.index()?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(MalformedKeys)?;
        self.0 = rest;
        str::from_utf8(text).map_err(|_| MalformedKeys)
    }

    fn fields(&mut self) -> Result<SavedFields<'b>, MalformedKeys> {
        Ok(SavedFields {
            deployment: self.text()?.into(),
            namespace: self.text()?.into(),
            version: self.text()?.into(),
            suffix: self.text()?,
            overrides: self.byte()? != 0,
            layout: KeyLayout {
                before: self.text()?.into(),
                between: self.text()?.into(),
                after: self.text()?.into(),
                endpoints_first: self.byte()? != 0,
                port_separator: u32::try_from(self.number()?)
                    .ok()
                    .and_then(char::from_u32)
                    .ok_or(MalformedKeys)?,
            },
        })
    }

    fn endpoints(&mut self) -> Result<Vec<Endpoint>, MalformedKeys> {
        let count = self.index()?;
        // Not reserved beyond what the bytes can hold: an endpoint takes at least four.
        let mut endpoints = Vec::with_capacity(count.min(self.0.len() / 4));
        for _ in 0..count {
            let host = match self.byte()? {
                4 => Host::V4(Ipv4Addr::from(self.array::<4>()?)),
                6 => Host::V6(Ipv6Addr::from(self.array::<16>()?)),
                0 => Host::Name(self.text()?.into()),
                _ => return Err(MalformedKeys),
            };
            endpoints.push(Endpoint { host, port: u16::from_be_bytes(self.array()?) });
        }
        Ok(endpoints)
    }
}

impl Catalog {
    /// Takes the keys that a registry had in an earlier run, before its first list.
    ///
    /// `count` is about their number, for which memory is reserved.
    ///
    /// The registry then counts as read and unreachable, until it reports that it is connected. Its
    /// first list should be of the kind [`ListKind::Reconnect`], so that the removal grace applies.
    /// If that list is older than one of the keys, it is of a restored store.
    ///
    /// # Errors
    /// If the keys are malformed. None of them is then served, and the registry counts as unread.
    pub fn restore(
        &mut self,
        registry: RegistryId,
        count: usize,
        keys: impl IntoIterator<Item = Result<Put, MalformedKeys>>,
        now: Instant,
    ) -> Result<(), MalformedKeys> {
        self.started.get_or_insert(now);
        if registry.index() >= self.trackers.len() {
            return Ok(());
        }
        self.mirror.reserve(count.min(self.settings.max_keys));
        self.begin_list(registry, ListKind::Routine, ListScope::Registry, now);
        let mut newest = 0;
        for key in keys {
            // A list without an end changes nothing, and the next list abandons it.
            let key = key?;
            newest = key.revision.max(newest);
            self.put(registry, key);
        }
        self.end_list(registry, 0, now);
        let tracker = &mut self.trackers[registry.index()];
        (tracker.disconnected, tracker.restored_revision) = (true, newest);
        Ok(())
    }
}
