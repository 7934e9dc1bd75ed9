//! etcd's keys and events in the words of the model.

use std::hash::{DefaultHasher, Hash, Hasher};

use etcd_client::{Event, KeyValue};

use crate::registry::gsvc::{self, MAX_KEY};
use crate::service::{Change, Put, Removal};

/// One key of a list, or the content of a put.
pub(super) fn put(kv: KeyValue, reader: &mut gsvc::Reader) -> Change {
    let (revision, lease) = (revision(kv.mod_revision()), kv.lease());
    let content = reader.parse(kv.key(), kv.value());
    let (key, _) = kv.into_key_value();
    Change::Put(Put { key: key_text(key), revision, lease, content })
}

/// One event of a watch, with its revision; none for an event without a key.
pub(super) fn event(event: &Event, reader: &mut gsvc::Reader) -> Option<(u64, Change)> {
    let kv = event.kv()?;
    let at = revision(kv.mod_revision());
    // Not `event_type()`, which panics on a type it does not know. A key that was deleted has version 0, and no other has.
    if kv.version() != 0 {
        return Some((at, put(kv.clone(), reader)));
    }
    // Without the previous key (compacted meanwhile) nothing says that a lease took it.
    let removal = match event.prev_kv().map_or(0, KeyValue::lease) {
        0 => Removal::Explicit,
        lease => Removal::Lease(lease),
    };
    Some((at, Change::Delete { key: key_text(kv.key().to_vec()), revision: at, removal }))
}

/// A revision as the model counts it. etcd's are never negative.
pub(super) fn revision(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

/// The key as text that is unique in this registry: as it is where it is text of at most [`MAX_KEY`] bytes; otherwise
/// escaped, or cut and told apart by a hash. The latter two are never served (`gsvc::parse` rejects them), only shown.
fn key_text(key: Vec<u8>) -> Box<str> {
    if key.len() > MAX_KEY {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        return format!("{}… ({} octets, {:016x})", key[..256].escape_ascii(), key.len(), hasher.finish()).into();
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
    fn keys_stay_themselves_and_junk_stays_apart() {
        assert_eq!(&*key_text("/service/d/n/hé/v/1.2.3.4:5".into()), "/service/d/n/hé/v/1.2.3.4:5");
        assert_eq!(&*key_text(b"/service/\xff\\".to_vec()), r"/service/\xff\\");
        let long = vec![b'a'; MAX_KEY + 1];
        let longer = vec![b'a'; MAX_KEY + 2];
        assert!(key_text(long.clone()).len() < 400);
        assert_ne!(key_text(long.clone()), key_text(longer));
        assert_eq!(key_text(long.clone()), key_text(long.clone()));
        assert_eq!(key_text(long[1..].to_vec()).len(), MAX_KEY);
    }
}
