//! Conversion of etcd's keys and events to changes.

use std::hash::{DefaultHasher, Hash, Hasher};

use etcd_client::{Event, KeyValue};

use crate::registry::gsvc::{KeyParser, MAX_KEY_BYTES};
use crate::service::{Change, Put, Removal};

/// Converts a key of a list, or of a put event.
pub(super) fn put(kv: KeyValue, parser: &mut KeyParser) -> Change {
    let (revision, lease) = (revision(kv.mod_revision()), kv.lease());
    let content = parser.parse(kv.key(), kv.value());
    let (key, _) = kv.into_key_value();
    Change::Put(Put { key: key_text(key), revision, lease, content })
}

/// Converts an event of a watch, with its revision; `None` if the event has no key.
pub(super) fn event(event: &Event, parser: &mut KeyParser) -> Option<(u64, Change)> {
    let kv = event.kv()?;
    let event_revision = revision(kv.mod_revision());
    // `event_type()` would panic on unknown types. Only a deleted key has version 0.
    if kv.version() != 0 {
        return Some((event_revision, put(kv.clone(), parser)));
    }
    // The expiry of a lease causes the same event as a delete. The watch does not request the
    // previous key: its lease is that of the last put, and etcd may have compacted it.
    let key = key_text(kv.key().to_vec());
    let delete = Change::Delete { key, revision: event_revision, removal: Removal::Unknown };
    Some((event_revision, delete))
}

/// Converts a revision; etcd's are never negative.
pub(super) fn revision(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

/// Returns a text for a key that is unique in this registry.
///
/// A key is unchanged if it is UTF-8 and at most [`MAX_KEY_BYTES`] long. Other keys are escaped
/// and, if too long, replaced by an excerpt with a hash; `gsvc` rejects them, so they are only
/// shown.
fn key_text(key: Vec<u8>) -> Box<str> {
    if key.len() > MAX_KEY_BYTES {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let (excerpt, length, hash) = (key[..256].escape_ascii(), key.len(), hasher.finish());
        return format!("{excerpt}… ({length} bytes, {hash:016x})").into();
    }
    match String::from_utf8(key) {
        Ok(text) => text.into(),
        Err(error) => error.as_bytes().escape_ascii().to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_keys_are_unchanged_and_invalid_keys_remain_distinct() {
        assert_eq!(&*key_text("/service/d/n/hé/v/1.2.3.4:5".into()), "/service/d/n/hé/v/1.2.3.4:5");
        assert_eq!(&*key_text(b"/service/\xff\\".to_vec()), r"/service/\xff\\");
        let long = vec![b'a'; MAX_KEY_BYTES + 1];
        let longer = vec![b'a'; MAX_KEY_BYTES + 2];
        assert!(key_text(long.clone()).len() < 400);
        assert_ne!(key_text(long.clone()), key_text(longer));
        assert_eq!(key_text(long.clone()), key_text(long.clone()));
        assert_eq!(key_text(long[1..].to_vec()).len(), MAX_KEY_BYTES);
    }
}
