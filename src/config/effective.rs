//! The effective value of each key, with its origin.

use super::error::Origin;
use super::key::{Key, ValueForm};
use super::keys;
use super::layers::{Layers, RawValue};
use super::registry::{ConfiguredRegistry, URL, without_user};
use super::table::KEYS;

/// The effective value of a key, and its origin.
#[derive(Clone, Debug)]
pub struct EffectiveValue {
    /// The key.
    pub key: &'static Key,
    /// Path of the key: `etcd.username`, or `registry.main.username` in a section.
    pub path: String,
    /// The value, as it would be written in the file.
    pub value: String,
    /// Source of the value.
    pub origin: Origin,
    /// Whether the value was set under `path`, not by default or by a general key.
    pub written: bool,
}

impl EffectiveValue {
    /// Returns the values of all keys, then the values of each registry's section.
    pub(super) fn all(layers: &Layers, registries: &[ConfiguredRegistry]) -> Vec<Self> {
        let general = KEYS.iter().map(|key| Self::new(layers, key, key.path()));
        let keys_of = |registry: &'_ ConfiguredRegistry| {
            let keys = registry.kind.section_keys();
            keys.map(|key| Self::new(&registry.layers, key, registry.path(key))).collect::<Vec<_>>()
        };
        general.chain(registries.iter().flat_map(keys_of)).collect()
    }

    fn new(layers: &Layers, key: &'static Key, path: String) -> Self {
        let origin = layers.origin(key);
        let written = origin != Origin::Default && layers.written_as(key) == path;
        Self { key, path, value: format_value(layers, key), origin, written }
    }
}

/// Formats a value as it would be written in the file, without the user of a URL.
fn format_value(layers: &Layers, key: &Key) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let is_url = key == keys::REGISTRY || key == URL;
    let shown = |value: &RawValue| {
        if is_url { without_user(&value.text) } else { value.text.clone() }
    };
    match key.form {
        ValueForm::NumberList => {
            let items = layers.list(key).iter().map(|value| value.text.clone());
            format!("[{}]", items.collect::<Vec<_>>().join(", "))
        }
        ValueForm::List => {
            let items = layers.list(key).iter().map(|value| quoted(&shown(value)));
            format!("[{}]", items.collect::<Vec<_>>().join(", "))
        }
        ValueForm::Bool | ValueForm::Number => layers.one(key).text,
        ValueForm::TextOrNumber if layers.one(key).text.parse::<i64>().is_ok() => {
            layers.one(key).text
        }
        ValueForm::Text
        | ValueForm::Duration
        | ValueForm::Size
        | ValueForm::TextOrNumber
        | ValueForm::Table => quoted(&shown(&layers.one(key))),
    }
}
