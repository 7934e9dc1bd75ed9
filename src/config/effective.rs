//! The settings in effect, for people to see.

use super::error::Origin;
use super::key::{Key, Kind};
use super::keys;
use super::layers::{Layers, Written};
use super::registry::without_user;
use super::table::KEYS;

/// A key, its value as it stands, and where that came from.
#[derive(Clone, Debug)]
pub struct Effective {
    /// The key.
    pub key: &'static Key,
    /// The value, as it would be written in the file.
    pub value: String,
    /// Where it was written.
    pub origin: Origin,
}

impl Effective {
    /// Lists every key in the order of the table.
    pub(super) fn all(layers: &Layers) -> Vec<Self> {
        KEYS.iter().map(|key| Self { key, value: value(layers, key), origin: layers.origin(key) }).collect()
    }
}

/// Shows a value as it would be written in the file.
fn value(layers: &Layers, key: &Key) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    match key.kind {
        Kind::List => {
            let shown = |item: &Written| if key == keys::REGISTRY { without_user(&item.text) } else { item.text.clone() };
            let items: Vec<String> = layers.list(key).iter().map(|item| quoted(&shown(item))).collect();
            format!("[{}]", items.join(", "))
        }
        Kind::Bool | Kind::Number => layers.one(key).text,
        Kind::TextOrNumber if layers.one(key).text.parse::<i64>().is_ok() => layers.one(key).text,
        Kind::Text | Kind::Duration | Kind::Size | Kind::TextOrNumber => quoted(&layers.one(key).text),
    }
}
