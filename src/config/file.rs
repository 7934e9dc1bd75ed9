//! The configuration file: TOML, each value with its line and column.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::aliases::{ALIAS, ConfiguredAlias};
use super::error::{ConfigError, Origin, nearest};
use super::key::{STATIC, SecretKey, section_path};
use super::layers::{Layer, Setting};
use super::registry::{KINDS, RegistryEntry, RegistryKind, URL, kind_of_url, secrets};
use super::static_services::StaticEntry;
use super::table::KEYS;
use super::toml_file::{ConfigFile, REGISTRY, in_order};
use crate::service::InvalidRegistryName;

/// The content of a file.
#[derive(Debug, Default)]
pub(super) struct FileContent {
    /// The keys outside the sections of registries and the tables of static services.
    pub(super) layer: Layer,
    /// The sections of registries.
    pub(super) registries: Vec<RegistryEntry>,
    /// The tables of static services.
    pub(super) statics: Vec<StaticEntry>,
    /// The entries of the section `[alias]`.
    pub(super) aliases: Vec<ConfiguredAlias>,
}

/// Parses a file. Only messages use `path`.
pub(super) fn read(path: &Path, text: &str) -> Result<FileContent, ConfigError> {
    ConfigFile::new(path, text).read()
}

impl ConfigFile<'_> {
    fn read(&self) -> Result<FileContent, ConfigError> {
        let table = DeTable::parse(self.text).map_err(|error| self.syntax_error(&error))?;
        let mut content = FileContent::default();
        let FileContent { layer, registries, statics, aliases } = &mut content;
        for (name, value) in in_order(table.get_ref()) {
            let section = name.get_ref().as_ref();
            match value.get_ref() {
                DeValue::Table(inner) if section == REGISTRY => {
                    *registries = self.registries(name, inner)?;
                }
                _ if section == STATIC => *statics = StaticEntry::all(self, name, value)?,
                DeValue::Table(inner) if section == ALIAS => {
                    let entry = |(name, value)| {
                        ConfiguredAlias::of_entry(name, value, |at| self.origin(at))
                    };
                    *aliases = in_order(inner).map(entry).collect::<Result<_, _>>()?;
                }
                // `alias = …` or `[[alias]]`
                _ if section == ALIAS => {
                    let why = "expected one section [alias] with lines such as \"www\" = \"hello\"";
                    let (origin, key) = (self.origin(name.span().start), ALIAS.to_owned());
                    return Err(ConfigError::Invalid { origin, key, why: why.to_owned() });
                }
                DeValue::Table(inner) if KEYS.iter().any(|key| key.section == section) => {
                    for (name, value) in in_order(inner) {
                        self.entry(layer, section, name, value)?;
                    }
                }
                DeValue::Table(inner) if KEYS.iter().all(|key| key.name != section) => {
                    return Err(self.unknown_section(name, inner));
                }
                _ => self.entry(layer, "", name, value)?,
            }
        }
        Ok(content)
    }

    /// Returns the error for text that is not valid TOML.
    fn syntax_error(&self, error: &toml::de::Error) -> ConfigError {
        let duplicate = error.span().and_then(|span| self.duplicate_registries(span));
        duplicate.unwrap_or_else(|| ConfigError::Syntax {
            origin: self.origin(error.span().map_or(0, |span| span.start)),
            message: error.message().trim().replace('\n', ", "),
        })
    }

    /// Explains a duplicate TOML key if registries cause it; `at` is the second key.
    ///
    /// The causes are a list of registries in addition to sections, and two sections with one name.
    fn duplicate_registries(&self, at: Range<usize>) -> Option<ConfigError> {
        let (before, after) = (self.text.get(..at.start)?, self.text.get(at.end..)?);
        let line = before.rsplit('\n').next()?;
        let path: String = line.chars().filter(|c| !c.is_whitespace()).collect();
        let (is_header, word) = (path.starts_with('['), self.text.get(at.clone())?);
        let invalid = |key: String, why: String| {
            Some(ConfigError::Invalid { origin: self.origin(at.start), key, why })
        };
        if is_header && path == format!("[{REGISTRY}.") {
            let why = format!(
                "the section [{REGISTRY}.{word}] exists already: give each registry its own name"
            );
            return invalid(format!("{REGISTRY}.{word}"), why);
        }
        if word != REGISTRY || !matches!(&*path, "" | "[") {
            return None;
        }
        // The text before this line is valid.
        let (table, _) = DeTable::parse_recoverable(before.strip_suffix(line)?);
        let mut names = table.get_ref().iter();
        let (first, value) = names.find(|(name, _)| name.get_ref() == REGISTRY)?;
        let is_section = is_header || after.trim_start().starts_with('.');
        if is_section == matches!(value.get_ref(), DeValue::Table(_)) {
            return None;
        }
        let (first, _) = self.line_and_column(first.span().start);
        let (this, other) =
            if is_section { ("a section", "the list") } else { ("the list", "a section") };
        let why = format!(
            "{this} cannot be combined with {other} in line {first}: name all registries in the \
             list, or each in a section [registry.NAME]"
        );
        invalid(REGISTRY.to_owned(), why)
    }

    /// Returns the error for an unknown section with this content.
    fn unknown_section(&self, name: &Spanned<DeString<'_>>, inner: &DeTable<'_>) -> ConfigError {
        let (section, origin) = (name.get_ref(), self.origin(name.span().start));
        // Both `[registy.main]` and `[main]` may be misspellings of `[registry.main]`.
        let subsection =
            in_order(inner).find(|(_, value)| matches!(value.get_ref(), DeValue::Table(_)));
        if let (Some((subsection, _)), Some(_)) =
            (subsection, nearest(section, [REGISTRY.to_owned()]))
        {
            let subsection = subsection.get_ref();
            let suggestion = Some(format!("[{REGISTRY}.{subsection}]"));
            let section = format!("{section}.{subsection}");
            return ConfigError::UnknownSection { origin, section, suggestion };
        }
        let sections = KEYS.iter().map(|key| key.section).chain([ALIAS]);
        let sections = sections.filter(|section| !section.is_empty()).map(str::to_owned);
        let registry = || inner.contains_key(URL.name).then(|| format!("{REGISTRY}.{section}"));
        let suggestion = nearest(section, sections).or_else(registry);
        let suggestion = suggestion.map(|section| format!("[{section}]"));
        ConfigError::UnknownSection { origin, section: section.to_string(), suggestion }
    }

    /// Reads all registry sections.
    fn registries(
        &self,
        header: &Spanned<DeString<'_>>,
        sections: &DeTable<'_>,
    ) -> Result<Vec<RegistryEntry>, ConfigError> {
        let invalid = |at: &Spanned<DeString<'_>>, key: String, why: String| {
            let origin = self.origin(at.span().start);
            ConfigError::Invalid { origin, key, why }
        };
        let advice =
            format!("each registry needs a section with its own name, such as [{REGISTRY}.main]");
        if sections.is_empty() {
            return Err(invalid(header, REGISTRY.to_owned(), advice));
        }
        let entry = |(name, value): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
            let path = format!("{REGISTRY}.{}", name.get_ref());
            match value.get_ref() {
                DeValue::Table(section) => self.registry(name, section),
                // `[[registry.main]]`
                DeValue::Array(items) if items.iter().all(|item| item.get_ref().is_table()) => {
                    let why = format!(
                        "a name identifies one registry: write [{path}], and a section with \
                         another name for each further registry"
                    );
                    Err(invalid(name, path, why))
                }
                _ => Err(invalid(name, path, advice.clone())),
            }
        };
        in_order(sections).map(entry).collect()
    }

    /// Reads the section of one registry.
    fn registry(
        &self,
        header: &Spanned<DeString<'_>>,
        section: &DeTable<'_>,
    ) -> Result<RegistryEntry, ConfigError> {
        let (text, origin) = (header.get_ref(), self.origin(header.span().start));
        let invalid =
            |key: String, why: String| ConfigError::Invalid { origin: origin.clone(), key, why };
        let name = text.parse().map_err(|error: InvalidRegistryName| {
            invalid(format!("{REGISTRY}.{text}"), error.to_string())
        })?;
        let url = section.get(URL.name).and_then(|value| value.get_ref().as_str());
        let kind = url.and_then(|url| kind_of_url(url).ok());
        let mut layer = Layer::new();
        for (key, value) in in_order(section) {
            self.registry_entry(&mut layer, text, kind, key, value)?;
        }
        let Some(url) = layer.get(URL).and_then(|url| url.items.last()).cloned() else {
            let why = format!(
                "a registry needs a URL: add {} = \"{}\", for example",
                URL.name, KINDS[0].example
            );
            return Err(invalid(section_path(text, URL.name), why));
        };
        match kind_of_url(&url.text) {
            Ok(kind) => Ok(RegistryEntry { name, kind, url, section: Some(layer) }),
            Err(why) => Err(ConfigError::Invalid { origin: url.origin, key: url.key, why }),
        }
    }

    /// Reads a key in the section of a registry.
    ///
    /// If the kind is unknown, keys of all kinds are accepted.
    fn registry_entry(
        &self,
        layer: &mut Layer,
        registry: &str,
        kind: Option<&'static RegistryKind>,
        name: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        let (origin, name) = (self.origin(name.span().start), name.get_ref());
        let path = section_path(registry, name);
        let (own, others): (Vec<_>, Vec<_>) =
            KINDS.iter().copied().partition(|other| kind.is_none_or(|kind| kind == *other));
        let secret = |kind: &&'static RegistryKind| {
            kind.secrets.iter().find(|secret| secret.name == name).copied()
        };
        if let Some(key) = own.iter().find_map(|kind| kind.section_key(name)) {
            let items = self.items(key, &path, value)?;
            layer.insert(key, Setting { key: path, origin, items });
            return Ok(());
        }
        if let Some(secret) = own.iter().find_map(secret) {
            let file = section_path(registry, secret.file.name);
            return Err(secret_in_file(origin, path, secret, &file, &secret.variable_of(registry)));
        }
        let has_name = |kind: &&&'static RegistryKind| {
            kind.section_key(name).is_some() || secret(kind).is_some()
        };
        if let (Some(kind), Some(other)) = (kind, others.iter().find(has_name)) {
            let why = format!(
                "this key is for registries of kind {}, but the URL is of kind {}",
                other.name, kind.name
            );
            return Err(ConfigError::Invalid { origin, key: path, why });
        }
        if let DeValue::Table(_) = value.get_ref() {
            return Err(ConfigError::UnknownSection { origin, section: path, suggestion: None });
        }
        let elsewhere = KEYS.iter().find(|key| key.name == name).map(|key| key.path());
        let suggestion = elsewhere.or_else(|| {
            let keys = own.iter().flat_map(|kind| kind.section_keys());
            nearest(&path, keys.map(|key| section_path(registry, key.name)))
        });
        let suggestion = suggestion.map(|path| format!("`{path}`"));
        Err(ConfigError::UnknownKey { origin, key: path, suggestion })
    }

    /// Reads a key that is not in the section of a registry.
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
            let file = secret.file.path();
            return Err(secret_in_file(origin, path, secret, &file, secret.variable));
        }
        let Some(key) = KEYS.iter().find(|key| key.section == section && key.name == name) else {
            if let DeValue::Table(inner) = value.get_ref() {
                // `[etcd.main]` may be a mistake for `[registry.main]`.
                let is_registry = inner.contains_key(URL.name);
                let suggestion = is_registry.then(|| format!("[{REGISTRY}.{name}]"));
                return Err(ConfigError::UnknownSection { origin, section: path, suggestion });
            }
            // The key may be misspelled, or in the wrong section.
            let suggestion = nearest(&path, KEYS.iter().map(|key| key.path()))
                .or_else(|| KEYS.iter().find(|key| key.name == name).map(|key| key.path()))
                .map(|path| format!("`{path}`"));
            return Err(ConfigError::UnknownKey { origin, key: path, suggestion });
        };
        let items = self.items(key, &path, value)?;
        layer.insert(key, Setting { key: path, origin, items });
        Ok(())
    }
}

/// Returns the error for a secret in the configuration file.
///
/// `file` is the key of its file, `variable` its environment variable.
fn secret_in_file(
    origin: Origin,
    key: String,
    secret: &SecretKey,
    file: &str,
    variable: &str,
) -> ConfigError {
    let name = secret.name;
    let why = format!(
        "this file cannot hold a {name}, because other users may read it: put the {name} in a \
         file named by {file}, or in the environment variable {variable}"
    );
    ConfigError::Invalid { origin, key, why }
}
