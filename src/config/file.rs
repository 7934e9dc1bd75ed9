//! The configuration file: TOML, every value with its place.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::error::{ConfigError, Origin, nearest};
use super::key::{Key, Kind, SecretKey};
use super::keys;
use super::layers::{Layer, Setting, Written};
use super::registry::{KINDS, RegistryEntry, RegistryKind, URL, kind_of_url, secrets, section_path};
use super::table::KEYS;
use crate::service::InvalidRegistryName;

/// What the sections of registries are called before the dot.
const REGISTRY: &str = "registry";

/// Reads a file's text: its keys, and the sections of registries. `path` is for messages.
pub(super) fn read(path: &Path, text: &str) -> Result<(Layer, Vec<RegistryEntry>), ConfigError> {
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
    fn read(&self) -> Result<(Layer, Vec<RegistryEntry>), ConfigError> {
        let table = DeTable::parse(self.text).map_err(|error| self.syntax(&error))?;
        let (mut layer, mut registries) = (Layer::new(), Vec::new());
        for (name, value) in in_order(table.get_ref()) {
            let section = name.get_ref().as_ref();
            match value.get_ref() {
                DeValue::Table(inner) if section == REGISTRY => registries = self.registries(name, inner)?,
                DeValue::Table(inner) if KEYS.iter().any(|key| key.section == section) => {
                    for (name, value) in in_order(inner) {
                        self.entry(&mut layer, section, name, value)?;
                    }
                }
                DeValue::Table(inner) if KEYS.iter().all(|key| key.name != section) => {
                    return Err(self.unknown_section(name, inner));
                }
                _ => self.entry(&mut layer, "", name, value)?,
            }
        }
        Ok((layer, registries))
    }

    fn origin(&self, offset: usize) -> Origin {
        let (line, column) = place(self.text, offset);
        Origin::File { path: self.path.to_owned(), line, column }
    }

    /// Says what is wrong with text that is no TOML.
    fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        error.span().and_then(|span| self.registries_twice(span)).unwrap_or_else(|| ConfigError::Syntax {
            origin: self.origin(error.span().map_or(0, |span| span.start)),
            message: error.message().trim().replace('\n', ", "),
        })
    }

    /// Says in our words what TOML calls a duplicate key: a list of registries beside sections of registries, or two
    /// sections of one name. `at` is the key that is one too many.
    fn registries_twice(&self, at: Range<usize>) -> Option<ConfigError> {
        let (before, after) = (self.text.get(..at.start)?, self.text.get(at.end..)?);
        let line = before.rsplit('\n').next()?;
        let path: String = line.chars().filter(|c| !c.is_whitespace()).collect();
        let (header, word) = (path.starts_with('['), self.text.get(at.clone())?);
        let invalid = |key: String, why: String| Some(ConfigError::Invalid { origin: self.origin(at.start), key, why });
        if header && path == format!("[{REGISTRY}.") {
            let why = format!("there is another section [{REGISTRY}.{word}] above: each registry has one, with a name of its own");
            return invalid(format!("{REGISTRY}.{word}"), why);
        }
        if word != REGISTRY || !matches!(&*path, "" | "[") {
            return None;
        }
        // What stands above it was no mistake yet.
        let (table, _) = DeTable::parse_recoverable(before.strip_suffix(line)?);
        let (other, value) = table.get_ref().iter().find(|(name, _)| name.get_ref() == REGISTRY)?;
        let section = header || after.trim_start().starts_with('.');
        if section == matches!(value.get_ref(), DeValue::Table(_)) {
            return None;
        }
        let (other, _) = place(self.text, other.span().start);
        let (this, other) =
            if section { ("a section", format!("the list in line {other}")) } else { ("the list", format!("a section in line {other}")) };
        let why = format!("{this} cannot stand beside {other}: name the registries in the list, or each in a section [registry.NAME]");
        invalid(REGISTRY.to_owned(), why)
    }

    /// Says that there is no such section; `inner` is what it holds.
    fn unknown_section(&self, name: &Spanned<DeString<'_>>, inner: &DeTable<'_>) -> ConfigError {
        let (section, origin) = (name.get_ref(), self.origin(name.span().start));
        // `[registy.main]` and `[main]` are what becomes of `[registry.main]`.
        let below = in_order(inner).find(|(_, value)| matches!(value.get_ref(), DeValue::Table(_)));
        if let (Some((below, _)), Some(_)) = (below, nearest(section, [REGISTRY.to_owned()])) {
            let (section, below) = (format!("{section}.{}", below.get_ref()), below.get_ref());
            return ConfigError::UnknownSection { origin, section, suggestion: Some(format!("[{REGISTRY}.{below}]")) };
        }
        let sections = KEYS.iter().map(|key| key.section.to_owned()).filter(|section| !section.is_empty());
        let registry = || inner.contains_key(URL.name).then(|| format!("{REGISTRY}.{section}"));
        let suggestion = nearest(section, sections).or_else(registry).map(|section| format!("[{section}]"));
        ConfigError::UnknownSection { origin, section: section.to_string(), suggestion }
    }

    /// Reads the sections of registries.
    fn registries(&self, header: &Spanned<DeString<'_>>, sections: &DeTable<'_>) -> Result<Vec<RegistryEntry>, ConfigError> {
        let invalid = |at: &Spanned<DeString<'_>>, key: String, why: String| {
            let origin = self.origin(at.span().start);
            ConfigError::Invalid { origin, key, why }
        };
        let advice = format!("each registry has a section with a name of its own, such as [{REGISTRY}.main]");
        if sections.is_empty() {
            return Err(invalid(header, REGISTRY.to_owned(), advice));
        }
        let entry = |(name, value): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
            let path = format!("{REGISTRY}.{}", name.get_ref());
            match value.get_ref() {
                DeValue::Table(section) => self.registry(name, section),
                // `[[registry.main]]`
                DeValue::Array(items) if items.iter().all(|item| item.get_ref().is_table()) => {
                    let why = format!("a name stands for one registry: write [{path}], and other names for others");
                    Err(invalid(name, path, why))
                }
                _ => Err(invalid(name, path, advice.clone())),
            }
        };
        in_order(sections).map(entry).collect()
    }

    /// Reads the section of one registry.
    fn registry(&self, header: &Spanned<DeString<'_>>, section: &DeTable<'_>) -> Result<RegistryEntry, ConfigError> {
        let (text, origin) = (header.get_ref(), self.origin(header.span().start));
        let invalid = |key: String, why: String| ConfigError::Invalid { origin: origin.clone(), key, why };
        let name = text.parse().map_err(|error: InvalidRegistryName| invalid(format!("{REGISTRY}.{text}"), error.to_string()))?;
        let url = section.get(URL.name).and_then(|value| value.get_ref().as_str());
        let kind = url.and_then(|url| kind_of_url(url).ok()).map(|(kind, _)| kind);
        let mut layer = Layer::new();
        for (key, value) in in_order(section) {
            self.entry_of_registry(&mut layer, text, kind, key, value)?;
        }
        let Some(url) = layer.get(URL).and_then(|url| url.items.last()).cloned() else {
            let why = format!("a registry needs a URL: add {} = \"{}\", for example", URL.name, KINDS[0].example);
            return Err(invalid(section_path(text, URL.name), why));
        };
        match kind_of_url(&url.text) {
            Ok((kind, _)) => Ok(RegistryEntry { name, kind, url, section: Some(layer) }),
            Err(why) => Err(ConfigError::Invalid { origin: url.origin, key: url.key, why }),
        }
    }

    /// Reads a key in the section of a registry. Without a kind, the keys of all kinds are let pass.
    fn entry_of_registry(
        &self,
        layer: &mut Layer,
        registry: &str,
        kind: Option<&'static RegistryKind>,
        name: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        let (origin, name) = (self.origin(name.span().start), name.get_ref());
        let path = section_path(registry, name);
        let (own, others): (Vec<_>, Vec<_>) = KINDS.iter().partition(|other| kind.is_none_or(|kind| kind == **other));
        let secret =
            |kinds: &[&&'static RegistryKind]| kinds.iter().flat_map(|kind| kind.secrets).find(|secret| secret.name == name).copied();
        if let Some(key) = own.iter().find_map(|kind: &&&RegistryKind| kind.section_key(name)) {
            let items = self.items(key, &path, value)?;
            layer.insert(key, Setting { key: path, origin, items });
            return Ok(());
        }
        if let Some(secret) = secret(&own) {
            return Err(exposed(origin, path, secret, &section_path(registry, secret.file.name), &secret.variable_of(registry)));
        }
        if let (Some(kind), Some(other)) = (kind, others.iter().find(|kind| kind.section_key(name).is_some() || secret(&[kind]).is_some()))
        {
            let why = format!("this is for {} registries, and the URL of this one is of kind {}", other.name, kind.name);
            return Err(ConfigError::Invalid { origin, key: path, why });
        }
        if let DeValue::Table(_) = value.get_ref() {
            return Err(ConfigError::UnknownSection { origin, section: path, suggestion: None });
        }
        let keys = own.iter().flat_map(|kind| kind.section_keys()).map(|key| section_path(registry, key.name));
        let elsewhere = KEYS.iter().find(|key| key.name == name).map(|key| key.path());
        let suggestion = elsewhere.or_else(|| nearest(&path, keys));
        Err(ConfigError::UnknownKey { origin, key: path, suggestion: suggestion.map(|path| format!("`{path}`")) })
    }

    fn entry(
        &self,
        layer: &mut Layer,
        section: &str,
        name: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        let (origin, name) = (self.origin(name.span().start), name.get_ref().as_ref());
        let path = if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
        if let Some(secret) = secrets().find(|secret| secret.path() == path) {
            return Err(exposed(origin, path, secret, &secret.file.path(), secret.variable));
        }
        let Some(key) = KEYS.iter().find(|key| key.section == section && key.name == name) else {
            if let DeValue::Table(inner) = value.get_ref() {
                // `[etcd.main]` is what becomes of `[registry.main]`.
                let suggestion = inner.contains_key(URL.name).then(|| format!("[{REGISTRY}.{name}]"));
                return Err(ConfigError::UnknownSection { origin, section: path, suggestion });
            }
            // A key under the wrong section is named whole, one of this section by its name alone.
            let suggestion = nearest(&path, KEYS.iter().map(|key| key.path()))
                .or_else(|| KEYS.iter().find(|key| key.name == name).map(|key| key.path()))
                .map(|path| format!("`{path}`"));
            return Err(ConfigError::UnknownKey { origin, key: path, suggestion });
        };
        let items = self.items(key, &path, value)?;
        layer.insert(key, Setting { key: path, origin, items });
        Ok(())
    }

    /// Reads the value of a key; `path` is the key as it was written.
    fn items(&self, key: &Key, path: &str, value: &Spanned<DeValue<'_>>) -> Result<Vec<Written>, ConfigError> {
        if let (Kind::List, DeValue::Array(array)) = (key.kind, value.get_ref()) {
            return array
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(text) => Ok(self.written(path, text, item)),
                    _ => Err(self.mismatch(key, path, item)),
                })
                .collect();
        }
        let text = match (key.kind, value.get_ref()) {
            (Kind::Text | Kind::Duration | Kind::Size | Kind::TextOrNumber | Kind::List, DeValue::String(text)) => text.to_string(),
            (Kind::Number | Kind::TextOrNumber, DeValue::Integer(number)) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.as_str().to_owned(), |number| number.to_string()),
            (Kind::Bool, DeValue::Boolean(value)) => value.to_string(),
            _ => return Err(self.mismatch(key, path, value)),
        };
        Ok(vec![self.written(path, &text, value)])
    }

    fn written(&self, path: &str, text: &str, value: &Spanned<DeValue<'_>>) -> Written {
        Written { key: path.to_owned(), text: text.to_owned(), origin: self.origin(value.span().start) }
    }

    /// Says that a value is of the wrong type.
    fn mismatch(&self, key: &Key, path: &str, value: &Spanned<DeValue<'_>>) -> ConfigError {
        let found = value.get_ref();
        let mut why = format!("{} must stand here, not a value of type {}", key.kind.words(), found.type_str());
        // `[[registry]]`, as in other programs.
        if key == keys::REGISTRY && found.is_table() {
            why = format!("a registry with keys of its own is a section with a name, such as [{REGISTRY}.main]");
        }
        ConfigError::Invalid { origin: self.origin(value.span().start), key: path.to_owned(), why }
    }
}

/// Says that a secret does not belong into the file, and where it does.
fn exposed(origin: Origin, key: String, secret: &SecretKey, file: &str, variable: &str) -> ConfigError {
    let name = secret.name;
    let why = format!(
        "a {name} does not stand here, where many can read it: put it in a file of its own and name that with {file}, or in the variable {variable}"
    );
    ConfigError::Invalid { origin, key, why }
}

/// The entries in the order of the file, so that the first mistake is the one reported.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> impl Iterator<Item = (&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries.into_iter()
}
