//! The configuration file: TOML, every value with its place.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin, nearest};
use super::key::{Key, Kind};
use super::layers::{Layer, Setting, Written};
use super::registry::secrets;
use super::table::KEYS;

/// Reads a file's text. `path` is for messages.
pub(super) fn read(path: &Path, text: &str) -> Result<Layer, ConfigError> {
    Reader { path, text }.read()
}

/// Finds line and column (from 1; columns in characters) of an offset in octets.
pub(super) fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
    (line, column)
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn read(&self) -> Result<Layer, ConfigError> {
        let table = DeTable::parse(self.text).map_err(|error| ConfigError::Syntax {
            origin: self.origin(error.span().map_or(0, |span| span.start)),
            message: error.message().trim().replace('\n', ", "),
        })?;
        let mut layer = Layer::new();
        for (name, value) in in_order(table.get_ref()) {
            let section = name.get_ref().as_ref();
            match value.get_ref() {
                DeValue::Table(inner) if KEYS.iter().any(|key| key.section == section) => {
                    for (name, value) in in_order(inner) {
                        self.entry(&mut layer, section, name.get_ref(), name.span().start, value)?;
                    }
                }
                DeValue::Table(_) if KEYS.iter().all(|key| key.name != section) => {
                    let sections = KEYS.iter().map(|key| key.section.to_owned()).filter(|section| !section.is_empty());
                    return Err(ConfigError::UnknownSection {
                        origin: self.origin(name.span().start),
                        section: section.to_owned(),
                        suggestion: nearest(section, sections).map(|section| format!("[{section}]")),
                    });
                }
                _ => self.entry(&mut layer, "", section, name.span().start, value)?,
            }
        }
        Ok(layer)
    }

    fn origin(&self, offset: usize) -> Origin {
        let (line, column) = place(self.text, offset);
        Origin::File { path: self.path.to_owned(), line, column }
    }

    fn entry(&self, layer: &mut Layer, section: &str, name: &str, at: usize, value: &Spanned<DeValue<'_>>) -> Result<(), ConfigError> {
        let origin = self.origin(at);
        let path = if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
        if let Some(secret) = secrets().find(|secret| secret.path() == path) {
            return Err(ConfigError::Invalid {
                origin,
                key: path,
                why: format!(
                    "a {} does not stand here, where many can read it: put it in a file of its own and name that with {}, or in the variable {}",
                    secret.name,
                    secret.file.path(),
                    secret.variable
                ),
            });
        }
        let Some(key) = KEYS.iter().find(|key| key.section == section && key.name == name) else {
            // A key under the wrong section is named whole, one of this section by its name alone.
            let suggestion = nearest(&path, KEYS.iter().map(|key| key.path()))
                .or_else(|| KEYS.iter().find(|key| key.name == name).map(|key| key.path()))
                .map(|path| format!("`{path}`"));
            return Err(ConfigError::UnknownKey { origin, key: path, suggestion });
        };
        let items = self.items(key, value)?;
        layer.insert(key, Setting { origin, items });
        Ok(())
    }

    fn items(&self, key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Vec<Written>, ConfigError> {
        if let (Kind::List, DeValue::Array(array)) = (key.kind, value.get_ref()) {
            return array
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(text) => Ok(self.written(text, item)),
                    other => Err(self.mismatch(key, other, item)),
                })
                .collect();
        }
        let text = match (key.kind, value.get_ref()) {
            (Kind::Text | Kind::Duration | Kind::Size | Kind::TextOrNumber | Kind::List, DeValue::String(text)) => text.to_string(),
            (Kind::Number | Kind::TextOrNumber, DeValue::Integer(number)) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.as_str().to_owned(), |number| number.to_string()),
            (Kind::Bool, DeValue::Boolean(value)) => value.to_string(),
            (_, other) => return Err(self.mismatch(key, other, value)),
        };
        Ok(vec![self.written(&text, value)])
    }

    fn written(&self, text: &str, value: &Spanned<DeValue<'_>>) -> Written {
        Written { text: text.to_owned(), origin: self.origin(value.span().start) }
    }

    fn mismatch(&self, key: &Key, found: &DeValue<'_>, at: &Spanned<DeValue<'_>>) -> ConfigError {
        ConfigError::Invalid {
            origin: self.origin(at.span().start),
            key: key.path(),
            why: format!("{} must stand here, not a value of type {}", key.kind.words(), found.type_str()),
        }
    }
}

/// The entries in the order of the file, so that the first mistake is the one reported.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> impl Iterator<Item = (&'a Spanned<toml::de::DeString<'i>>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries.into_iter()
}
