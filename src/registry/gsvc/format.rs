//! Formatting of keys, values and files as GoFrame writes them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::service::{Endpoint, Metadata, ServiceId};

/// Metadata key that GoFrame's file registry adds.
///
/// Its value is the local time of the last refresh.
pub(super) const UPDATE_AT: &str = "UpdateAt";

/// Returns the key of a registration, with a leading `/`.
///
/// Like GoFrame, it escapes nothing: an identity that contains `/` does not parse back. An IPv6
/// endpoint is written as `[fd00::5]:80`, which makes GoFrame's own readers of that service panic.
pub fn key(head: &str, id: &ServiceId, endpoints: &[Endpoint]) -> String {
    let ServiceId { deployment, namespace, name, version } = id;
    format!("/{head}/{deployment}/{namespace}/{name}/{version}/{}", join(endpoints))
}

/// Returns the file name of a registration.
///
/// The name is the key without its leading `/`, with `#` for `/`, and `-` for `:` in the endpoints.
/// An identity that contains `#` or `/` does not parse back.
pub fn file_name(head: &str, id: &ServiceId, endpoints: &[Endpoint]) -> String {
    let ServiceId { deployment, namespace, name, version } = id;
    let endpoints = join(endpoints).replace(':', "-");
    format!("{head}#{deployment}#{namespace}#{name}#{version}#{endpoints}")
}

/// Returns the value of a registration, formatted as by Go's `encoding/json`.
///
/// The value has no spaces, keys in bytewise order, and escapes for `<`, `>`, `&`, U+2028 and
/// U+2029.
pub fn value(metadata: &Metadata) -> String {
    to_json(&object(metadata))
}

/// Returns the content of a registration's file: the metadata and `UpdateAt`.
///
/// `update_at` is the local time as `2006-01-02 15:04:05`.
pub fn file_content(metadata: &Metadata, update_at: &str) -> String {
    let mut object = object(metadata);
    object.insert(UPDATE_AT.into(), update_at.into());
    to_json(&object)
}

fn join(endpoints: &[Endpoint]) -> String {
    endpoints.iter().map(Endpoint::to_string).collect::<Vec<_>>().join(",")
}

/// Returns the metadata sorted by key at every depth, as Go writes maps.
fn object(metadata: &Metadata) -> BTreeMap<String, Value> {
    // The default is never used: metadata always serializes to an object with string keys.
    serde_json::to_value(metadata).and_then(serde_json::from_value).unwrap_or_default()
}

fn to_json(object: &BTreeMap<String, Value>) -> String {
    escape_html(&serde_json::to_string(object).unwrap_or_default())
}

/// Escapes characters of HTML in JSON, as Go does.
pub(in crate::registry) fn escape_html(plain: &str) -> String {
    let mut escaped = String::with_capacity(plain.len());
    for c in plain.chars() {
        // JSON has these characters only inside strings.
        match c {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            c => escaped.push(c),
        }
    }
    escaped
}
