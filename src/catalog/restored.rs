//! Restored keys: decodes what [`super::save_keys`] wrote, and builds the keys in a second thread.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use super::build::{BuiltKey, KeyBuilder, RefusedKey};
use super::hash::KeyHasher;
use super::key::{Group, KeyLayout, RegistryKey, SharedKeyFields, UncommonFields};
use super::one_or_many::OneOrMany;
use super::run_ahead::run_ahead;
use super::saved::{MIN_KEY_BYTES, Tag};
use super::{Catalog, MalformedKeys, Settings};
use crate::name::base_of_lower_case;
use crate::service::{
    Endpoint, Host, ListKind, ListScope, Metadata, Registration, RegistryId, ServiceId,
};

/// Number of keys that one thread passes to the other together.
const BATCH_KEYS: usize = 1024;

impl Catalog {
    /// Takes the keys that a registry had in an earlier run, before its first list.
    ///
    /// `saved` is the result of [`super::save_keys`]. The registry then counts as read and
    /// unreachable, until it reports that it is connected. Its first list should be of the kind
    /// [`ListKind::Reconnect`], so that the removal grace applies. If that list is older than one
    /// of the keys, it is of a restored store.
    ///
    /// # Errors
    /// If the keys are malformed. None of them is then served, and the registry counts as unread.
    pub fn restore(
        &mut self,
        registry: RegistryId,
        saved: &[u8],
        now: Instant,
    ) -> Result<(), MalformedKeys> {
        self.started.get_or_insert(now);
        if registry.index() >= self.trackers.len() {
            return Ok(());
        }
        self.begin_list(registry, ListKind::Routine, ListScope::Registry, now);
        // The other thread has the builder meanwhile.
        let mut builder = std::mem::take(&mut self.builder);
        let (settings, hasher) = (Arc::clone(&self.settings), self.mirror.hasher());
        let keys = RestoredKeys::new(saved, registry, &settings, hasher, &mut builder);
        let expected = keys.expected();
        self.mirror.reserve(expected.min(settings.max_keys));
        let stored = if expected > BATCH_KEYS {
            run_ahead(keys, |batches| self.store_all(registry, batches))
        } else {
            self.store_all(registry, keys)
        };
        self.builder = builder;
        // A list without an end changes nothing, and the next list abandons it.
        let newest = stored?;
        self.end_list(registry, 0, now);
        let tracker = &mut self.trackers[registry.index()];
        (tracker.disconnected, tracker.restored_revision) = (true, newest);
        Ok(())
    }

    /// Stores keys of the list in progress; returns their newest revision.
    fn store_all<'b>(
        &mut self,
        registry: RegistryId,
        batches: impl Iterator<Item = Result<Vec<RestoredKey<'b>>, MalformedKeys>>,
    ) -> Result<u64, MalformedKeys> {
        let mut newest = 0;
        for batch in batches {
            let batch = batch?;
            self.mirror.look_ahead(batch.iter().map(|key| {
                (key.hash, key.built.as_ref().map_or(key.hash, |built| built.base_hash))
            }));
            for RestoredKey { hash, revision, built } in batch {
                newest = revision.max(newest);
                let slot = self.mirror.find(hash, registry, || text_of(&built));
                self.store(registry, hash, slot, built);
            }
        }
        Ok(newest)
    }
}

/// A saved key that is ready to be stored.
#[derive(Debug)]
struct RestoredKey<'b> {
    hash: u64,
    revision: u64,
    built: Result<BuiltKey<'b>, RefusedKey>,
}

/// Returns the text of a key.
fn text_of<'k>(built: &'k Result<BuiltKey<'_>, RefusedKey>) -> Cow<'k, str> {
    match built {
        Ok(built) => built.text().into(),
        Err(refused) => Cow::Borrowed(&refused.text),
    }
}

/// Decodes saved keys and builds them, in batches; ends after an error.
#[derive(Debug)]
struct RestoredKeys<'b, 'c> {
    bytes: SavedBytes<'b>,
    registry: RegistryId,
    settings: &'c Settings,
    hasher: KeyHasher,
    builder: &'c mut KeyBuilder,
    fields: Vec<SavedFields<'b>>,
    metadata: Vec<Arc<Metadata>>,
    /// The base name of the keys that follow, and its hash.
    base: (&'b str, u64),
    /// Revision and lease of the key before.
    before: (u64, i64),
    /// Number of keys that are left.
    left: u64,
    has_ended: bool,
    /// Buffer for the text of a key.
    text: String,
    /// Buffer for the registered name of a key.
    name: String,
}

/// A record of the kind [`Tag::Fields`].
#[derive(Debug)]
struct SavedFields<'b> {
    /// The identity without its name.
    id: ServiceId,
    suffix: &'b str,
    overrides: bool,
    layout: KeyLayout,
    /// The fields as the last key with them has them.
    shared: Option<Arc<SharedKeyFields>>,
}

impl SavedFields<'_> {
    /// Returns the shared fields of a key whose registered name has this rank.
    fn share(
        &mut self,
        registry: RegistryId,
        settings: &Settings,
        rank: u8,
        builder: &mut KeyBuilder,
    ) -> &Arc<SharedKeyFields> {
        let last = self.shared.take().filter(|shared| shared.rank == rank);
        self.shared.insert(last.unwrap_or_else(|| {
            let layer = settings.layer(registry, self.overrides);
            builder.share(registry, (layer, rank), Group::of(&self.id), self.layout.clone())
        }))
    }
}

impl<'b, 'c> RestoredKeys<'b, 'c> {
    fn new(
        saved: &'b [u8],
        registry: RegistryId,
        settings: &'c Settings,
        hasher: KeyHasher,
        builder: &'c mut KeyBuilder,
    ) -> Self {
        // Without a number, there is no last record either.
        let (records, number) = saved.split_last_chunk().unwrap_or((&[], &[0; 8]));
        Self {
            bytes: SavedBytes(records),
            registry,
            settings,
            hasher,
            builder,
            fields: Vec::new(),
            metadata: Vec::new(),
            base: ("", 0),
            before: (0, 0),
            left: u64::from_be_bytes(*number),
            has_ended: false,
            text: String::new(),
            name: String::new(),
        }
    }

    /// Returns the number of keys, or fewer if the bytes cannot hold as many.
    fn expected(&self) -> usize {
        let possible = self.bytes.0.len() / MIN_KEY_BYTES;
        usize::try_from(self.left).unwrap_or(usize::MAX).min(possible)
    }

    /// Decodes and builds the next keys; returns fewer than [`BATCH_KEYS`] at the end only.
    fn next_batch(&mut self) -> Result<Vec<RestoredKey<'b>>, MalformedKeys> {
        let mut batch = Vec::with_capacity(BATCH_KEYS.min(self.expected()));
        while batch.len() < BATCH_KEYS {
            let Some(key) = self.next_key()? else { break };
            batch.push(key);
        }
        Ok(batch)
    }

    /// Reads records up to the next key; returns `None` at the end.
    fn next_key(&mut self) -> Result<Option<RestoredKey<'b>>, MalformedKeys> {
        loop {
            let tag = self.bytes.byte()?;
            let tag =
                Tag::ALL.into_iter().find(|known| *known as u8 == tag).ok_or(MalformedKeys)?;
            match tag {
                Tag::End if self.bytes.0.is_empty() && self.left == 0 => {
                    self.has_ended = true;
                    return Ok(None);
                }
                Tag::End => return Err(MalformedKeys),
                Tag::Reset => {
                    self.fields.clear();
                    self.metadata.clear();
                }
                Tag::Fields => self.fields.push(self.bytes.fields()?),
                Tag::Metadata => {
                    let entries: BTreeMap<_, _> =
                        serde_json::from_str(self.bytes.text()?).map_err(|_| MalformedKeys)?;
                    let metadata = Arc::new(Metadata::new(entries));
                    self.metadata.push(self.builder.metadata.intern(metadata));
                }
                Tag::Service => {
                    let base = self.bytes.text()?;
                    self.base = (base, self.hasher.base(base));
                }
                Tag::Key | Tag::KeyWithText => {
                    self.left = self.left.checked_sub(1).ok_or(MalformedKeys)?;
                    return self.key(tag == Tag::KeyWithText).map(Some);
                }
            }
        }
    }

    fn key(&mut self, has_text: bool) -> Result<RestoredKey<'b>, MalformedKeys> {
        let Self { bytes, registry, settings, hasher, builder, base: (base, base_hash), .. } = self;
        let registry = *registry;
        let fields = self.fields.get_mut(bytes.index()?).ok_or(MalformedKeys)?;
        let metadata = self.metadata.get(bytes.index()?).ok_or(MalformedKeys)?;
        let revision = self.before.0.wrapping_add_signed(bytes.difference()?);
        let lease = self.before.1.wrapping_add(bytes.difference()?);
        self.before = (revision, lease);
        let endpoints = bytes.endpoints()?;
        let own_text = if has_text { Some(bytes.text()?) } else { None };
        let text = if let Some(text) = own_text {
            text
        } else {
            self.text.clear();
            let written = fields.layout.write(&mut self.text, base, &endpoints);
            written.map_err(|_| MalformedKeys)?;
            &self.text
        };
        let hash = hasher.key(registry, text);
        self.name.clear();
        self.name.push_str(base);
        if !fields.suffix.is_empty() {
            self.name.extend([".", fields.suffix]);
        }
        let found = base_of_lower_case(&self.name, &settings.zones);
        let is_served = |endpoint: &Endpoint| settings.reject_endpoint(endpoint).is_none();
        let built = match found {
            // As it was saved: neither the zones nor the other settings have changed for it.
            Ok((found, rank))
                if found == *base
                    && endpoints.iter().all(is_served)
                    && u16::try_from(endpoints.len()).is_ok() =>
            {
                let uncommon = own_text.map(|text| {
                    Box::new(UncommonFields { text: Some(text.into()), rejected: Box::default() })
                });
                let shared = Arc::clone(fields.share(registry, settings, rank, builder));
                let metadata = Arc::clone(metadata);
                let key = RegistryKey { revision, lease, endpoints, metadata, shared, uncommon };
                Ok(BuiltKey { base: Cow::Borrowed(base), base_hash: *base_hash, key })
            }
            _ => {
                let id = ServiceId { name: self.name.as_str().into(), ..fields.id.clone() };
                let content = Registration {
                    id,
                    endpoints: endpoints.to_vec(),
                    rejected: Vec::new(),
                    metadata: Arc::clone(metadata),
                    overrides: fields.overrides,
                };
                builder.build(settings, registry, text, (revision, lease), content).map_or_else(
                    |rejected| Err(RefusedKey { text: text.into(), rejected }),
                    |(base, key)| {
                        Ok(BuiltKey { base_hash: hasher.base(&base), base: base.into(), key })
                    },
                )
            }
        };
        Ok(RestoredKey { hash, revision, built })
    }
}

impl<'b> Iterator for RestoredKeys<'b, '_> {
    type Item = Result<Vec<RestoredKey<'b>>, MalformedKeys>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_ended {
            return None;
        }
        let batch = self.next_batch();
        self.has_ended |= batch.is_err();
        Some(batch)
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
            id: ServiceId {
                deployment: self.text()?.into(),
                namespace: self.text()?.into(),
                version: self.text()?.into(),
                name: "".into(),
            },
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
            shared: None,
        })
    }

    fn endpoints(&mut self) -> Result<OneOrMany<Endpoint>, MalformedKeys> {
        let count = self.index()?;
        if count == 1 {
            return Ok(OneOrMany::One([self.endpoint()?]));
        }
        // Not reserved beyond what the bytes can hold: an endpoint takes at least four.
        let mut endpoints = Vec::with_capacity(count.min(self.0.len() / 4));
        for _ in 0..count {
            endpoints.push(self.endpoint()?);
        }
        Ok(OneOrMany::Many(endpoints.into()))
    }

    fn endpoint(&mut self) -> Result<Endpoint, MalformedKeys> {
        let host = match self.byte()? {
            4 => Host::V4(Ipv4Addr::from(self.array::<4>()?)),
            6 => Host::V6(Ipv6Addr::from(self.array::<16>()?)),
            0 => Host::Name(self.text()?.into()),
            _ => return Err(MalformedKeys),
        };
        Ok(Endpoint { host, port: u16::from_be_bytes(self.array()?) })
    }
}
