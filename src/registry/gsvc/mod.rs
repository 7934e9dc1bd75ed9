//! GoFrame's keys and values: parsing and formatting.
//!
//! A registration has the key `/<head>/<deployment>/<namespace>/<name>/<version>/<endpoints>` and
//! a JSON object as its value (GoFrame's `net/gsvc`).
//!
//! GoFrame escapes nothing, and its own reader fails a whole search, or panics, at one invalid
//! entry. This parser rejects only the invalid key or the invalid endpoint. The catalog checks
//! whether a name is a valid DNS name.

mod endpoint;
mod format;

pub use endpoint::parse_bare_host;
#[cfg(feature = "zookeeper")]
pub(super) use format::escape_html;
pub use format::{file_content, file_name, key, value};

use std::collections::BTreeMap;
use std::str;
use std::sync::Arc;

use serde_json::Value;

use self::endpoint::{parse_endpoint, parse_file_endpoint, parse_list};
use self::format::UPDATE_AT;
use crate::service::{Metadata, Reason, Registration, Rejected, ServiceId};

/// The first segments of GoFrame's keys: `service` since v2.3.3, `services` before.
pub const GOFRAME_HEADS: [&str; 2] = ["service", "services"];

/// Maximum length of a parsed key, in bytes.
pub const MAX_KEY_BYTES: usize = 4096;

/// Maximum length of a parsed value, in bytes (64 KiB).
///
/// The length is checked before any JSON is parsed.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;

/// The key exceeds [`MAX_KEY_BYTES`].
pub const KEY_TOO_LONG: Reason =
    Reason::new("key-too-long", "the key is longer than 4096 bytes (a fixed limit)");

/// The key is not UTF-8.
pub const KEY_NOT_TEXT: Reason = Reason::new("key-not-text", "the key is not valid UTF-8");

/// The value exceeds [`MAX_VALUE_BYTES`].
pub const VALUE_TOO_LONG: Reason =
    Reason::new("value-too-long", "the value is larger than 64 KiB (a fixed limit)");

/// The value is neither a JSON object nor empty.
pub const VALUE_NOT_JSON: Reason = Reason::new("value-not-json", "the value is not a JSON object");

/// The key has fewer than the six segments of the layout.
pub const TOO_FEW_SEGMENTS: Reason = Reason::new(
    "too-few-segments",
    "the key has fewer than six segments: /head/deployment/namespace/name/version/endpoints",
);

/// The key has too many segments: GoFrame does not escape a `/` in a name.
pub const TOO_MANY_SEGMENTS: Reason = Reason::new(
    "too-many-segments",
    "the key has too many segments: a name cannot contain '/' ('#' in a file name)",
);

/// Parses a key and its value.
///
/// Follows GoFrame's reader: `/` and white space at both ends of the key are ignored, and so are
/// segments after the sixth. An empty deployment or namespace is read as `default`, an empty
/// version as `latest`. An empty value or `null` means no metadata.
///
/// The head is not checked: the caller chose it when it requested the prefix.
///
/// # Errors
/// Returns an error if the key as a whole cannot be served. An invalid endpoint is only added to
/// [`Registration::rejected`]. A key with more than six segments and no valid endpoint in the
/// sixth is an error, because a `/` in the name must have shifted its segments.
pub fn parse(key: &[u8], value: &[u8]) -> Result<Registration, Rejected> {
    KeyParser::default().parse(key, value)
}

/// Parses consecutive keys and shares their common fields.
///
/// Parts of the identity and the metadata share their allocation with the previous key if they
/// are equal. Stores list the instances of a service in sequence, and most have equal metadata.
#[derive(Debug, Default)]
pub struct KeyParser {
    /// The identity of the previous key.
    id: Option<ServiceId>,
    /// The previous value and its metadata.
    metadata: Option<(Box<[u8]>, Arc<Metadata>)>,
}

impl KeyParser {
    /// Parses a key and its value.
    ///
    /// # Errors
    /// The errors are those of [`parse`].
    pub fn parse(&mut self, key: &[u8], value: &[u8]) -> Result<Registration, Rejected> {
        let key = key_text(key)?;
        let segments = Segments::split(key, '/')?;
        let (endpoints, rejected) = parse_list(segments.endpoints, parse_endpoint);
        if segments.more && endpoints.is_empty() {
            return Err(Rejected::new(key, TOO_MANY_SEGMENTS));
        }
        let metadata = self.metadata(value)?;
        let id = self.id(&segments, key)?;
        Ok(Registration { id, endpoints, rejected, metadata, overrides: false })
    }

    fn id(&mut self, segments: &Segments<'_>, key: &str) -> Result<ServiceId, Rejected> {
        let id = segments.id(key, self.id.as_ref())?;
        self.id = Some(id.clone());
        Ok(id)
    }

    fn metadata(&mut self, value: &[u8]) -> Result<Arc<Metadata>, Rejected> {
        if let Some((_, metadata)) = self.metadata.as_ref().filter(|(last, _)| **last == *value) {
            return Ok(Arc::clone(metadata));
        }
        let metadata = Arc::new(Metadata::new(parse_metadata(value)?));
        self.metadata = Some((value.into(), Arc::clone(&metadata)));
        Ok(metadata)
    }
}

/// Parses the name and content of a file in GoFrame's file registry.
///
/// The name is the key with `#` for `/` and, since GoFrame v2.4.1, `-` for `:`. GoFrame's reader
/// replaces every `-` by `:` and so loses host names that contain one. This parser takes only the
/// last `-` or `:` of an endpoint as the separator of its port.
///
/// The entry `UpdateAt` is removed from the metadata. Empty content means no metadata; only the
/// caller can know whether a write is in progress.
///
/// # Errors
/// The errors are those of [`parse`], but any seventh segment is an error: a sixth segment like
/// `v1-2`, which is a version, would look like an endpoint.
pub fn parse_file_name(name: &[u8], content: &[u8]) -> Result<Registration, Rejected> {
    let name = key_text(name)?;
    let segments = Segments::split(name, '#')?;
    if segments.more {
        return Err(Rejected::new(name, TOO_MANY_SEGMENTS));
    }
    let (endpoints, rejected) = parse_list(segments.endpoints, parse_file_endpoint);
    let mut metadata = parse_metadata(content)?;
    metadata.remove(UPDATE_AT);
    Ok(Registration {
        id: segments.id(name, None)?,
        endpoints,
        rejected,
        metadata: Arc::new(Metadata::new(metadata)),
        overrides: false,
    })
}

/// The segments of a key, unchecked.
struct Segments<'a> {
    deployment: &'a str,
    namespace: &'a str,
    name: &'a str,
    version: &'a str,
    endpoints: &'a str,
    /// Whether the key has segments after the sixth.
    more: bool,
}

impl<'a> Segments<'a> {
    /// Splits a key at `separator`; fails if there are fewer than six segments.
    fn split(key: &'a str, separator: char) -> Result<Self, Rejected> {
        let mut segments =
            key.trim_matches(|c: char| c == separator || c.is_whitespace()).split(separator);
        let mut next = || segments.next().ok_or_else(|| Rejected::new(key, TOO_FEW_SEGMENTS));
        let _head = next()?;
        let (deployment, namespace, name, version, endpoints) =
            (next()?, next()?, next()?, next()?, next()?);
        let more = segments.next().is_some();
        Ok(Self { deployment, namespace, name, version, endpoints, more })
    }

    /// Returns the identity, with GoFrame's defaults for empty segments.
    ///
    /// Segments equal to those of `last` share its allocations.
    fn id(&self, key: &str, last: Option<&ServiceId>) -> Result<ServiceId, Rejected> {
        if self.name.is_empty() {
            return Err(Rejected::new(key, Reason::NAME_NOT_DNS));
        }
        let shared = |segment: &str, default: &str, last: Option<&Arc<str>>| {
            let text = if segment.is_empty() { default } else { segment };
            last.filter(|last| ***last == *text).map_or_else(|| Arc::from(text), Arc::clone)
        };
        Ok(ServiceId {
            deployment: shared(self.deployment, "default", last.map(|last| &last.deployment)),
            namespace: shared(self.namespace, "default", last.map(|last| &last.namespace)),
            name: shared(self.name, "", last.map(|last| &last.name)),
            version: shared(self.version, "latest", last.map(|last| &last.version)),
        })
    }
}

/// Returns a key as text; fails if it is too long or not UTF-8.
fn key_text(key: &[u8]) -> Result<&str, Rejected> {
    if key.len() > MAX_KEY_BYTES {
        return Err(Rejected::new(&excerpt(key), KEY_TOO_LONG));
    }
    str::from_utf8(key).map_err(|_| Rejected::new(&excerpt(key), KEY_NOT_TEXT))
}

/// Parses a value: a JSON object, `null`, or nothing.
pub(super) fn parse_metadata(value: &[u8]) -> Result<BTreeMap<Box<str>, Value>, Rejected> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(Rejected::new(&excerpt(value), VALUE_TOO_LONG));
    }
    if value.trim_ascii().is_empty() {
        return Ok(BTreeMap::new());
    }
    // The parser refuses nesting deeper than 128 levels.
    let object: Option<BTreeMap<Box<str>, Value>> = serde_json::from_slice(value)
        .map_err(|_| Rejected::new(&excerpt(value), VALUE_NOT_JSON))?;
    Ok(object.unwrap_or_default())
}

/// Returns the start of a text of any length and encoding, for a [`Rejected`].
fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(2048)]).into_owned()
}

#[cfg(test)]
mod tests;
