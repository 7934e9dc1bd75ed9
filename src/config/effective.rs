//! The settings in effect, for people to see.

use super::error::Origin;
use super::key::{Key, Kind};
use super::keys;
use super::layers::{Layers, Written};
use super::registry::{ConfiguredRegistry, URL, without_user};
use super::table::KEYS;

/// A key, its value in effect, and where that came from.
#[derive(Clone, Debug)]
pub struct Effective {
    /// The key.
    pub key: &'static Key,
    /// The key as people write it: `etcd.username`, and for one registry `registry.main.username`.
    pub path: String,
    /// The value, as it would be written in the file.
    pub value: String,
    /// Where it was written.
    pub origin: Origin,
    /// Whether it was written under this path: else it is the default, or that of a more general key.
    pub written: bool,
}

impl Effective {
    /// Lists every key in the order of the table, then the keys of each registry.
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
        Self { key, path, value: value(layers, key), origin, written }
    }
}

/// Shows a value as it would be written in the file.
fn value(layers: &Layers, key: &Key) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let shown = |item: &Written| if key == keys::REGISTRY || key == URL { without_user(&item.text) } else { item.text.clone() };
    match key.kind {
        Kind::List => {
            let items: Vec<String> = layers.list(key).iter().map(|item| quoted(&shown(item))).collect();
            format!("[{}]", items.join(", "))
        }
        Kind::Bool | Kind::Number => layers.one(key).text,
        Kind::TextOrNumber if layers.one(key).text.parse::<i64>().is_ok() => layers.one(key).text,
        Kind::Text | Kind::Duration | Kind::Size | Kind::TextOrNumber => quoted(&shown(&layers.one(key))),
    }
}
