//! The registries as a person names them: a URL for each, and a section of keys for each kind. A registry that needs
//! settings of its own has a section, too: the same keys, for it alone.
//!
//! A kind is one table ([`RegistryKind`]) in a file of its own; what the rest of this room knows of a kind is its table.

mod etcd;
mod file;
mod url;
mod variables;

pub(super) use url::{split_urls, without_user};
pub(super) use variables::RegistryVariables;

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use super::error::{ConfigError, Origin};
use super::key::{Key, SecretKey, keys};
use super::keys;
use super::layers::{Layer, Layers, Setting, Written};
use super::values::{invalid, key_segment, list, removal_grace};
use crate::registry::{NamedSource, Source};
use crate::service::{InvalidRegistryName, MAX_REGISTRIES, RegistryName};

keys! { OWN:
    URL = "registry.NAME" "url" Text "URL" "`etcd://host:port[,host:port]` or `file:///dir`" r#""""#
        "Where the registry is. Every section needs it.";
}

/// A kind of registry, as a person writes it.
pub(super) struct RegistryKind {
    /// The scheme of its URLs, which is also the section of its keys.
    pub(super) name: &'static str,
    /// The form of its URLs, for messages.
    form: &'static str,
    /// A URL, for the documentation.
    pub(super) example: &'static str,
    /// The keys of its section, in the order of the documentation.
    pub(super) keys: &'static [&'static Key],
    /// What it logs in with that nobody may see.
    pub(super) secrets: &'static [&'static SecretKey],
    /// The keys that name files of private keys.
    pub(super) private_keys: &'static [&'static Key],
    /// Reads the keys of the section, and returns what makes a source of a URL.
    read: fn(&Layers) -> Result<Reader, ConfigError>,
}

/// Makes a source of the part of a URL behind `://`, or says what is wrong with it.
type Reader = Box<dyn Fn(&str) -> Result<Source, String>>;

/// Every kind, in the order of messages and documentation.
pub(super) static KINDS: &[&RegistryKind] = &[&etcd::KIND, &file::KIND];

/// Kinds that GoFrame has and svcdns does not support yet.
const NOT_YET: &[&str] = &["zookeeper", "consul", "nacos", "polaris"];

/// A registry as it was named: by a section, or by a list.
#[derive(Debug)]
pub(super) struct RegistryEntry {
    /// What people call it.
    pub(super) name: RegistryName,
    /// The kind that its URL names.
    pub(super) kind: &'static RegistryKind,
    /// Where it is.
    pub(super) url: Written,
    /// What its section says; none for a member of a list. Keys are found as in the section of the kind.
    pub(super) section: Option<Layer>,
}

/// A registry that is followed, with its settings as they were written.
pub(super) struct ConfiguredRegistry {
    /// Its kind.
    pub(super) kind: &'static RegistryKind,
    /// The settings as they are for this registry.
    pub(super) layers: Layers,
    /// What they mean.
    pub(super) source: NamedSource,
}

impl RegistryKind {
    /// Returns the keys that a registry's own section can have, in the order of the documentation.
    pub(super) fn section_keys(&self) -> impl Iterator<Item = &'static Key> {
        OWN.iter().chain(self.keys).copied().chain([keys::HEADS, keys::REMOVAL_GRACE])
    }

    /// Returns the key of this name in a registry's own section.
    pub(super) fn section_key(&self, name: &str) -> Option<&'static Key> {
        self.section_keys().find(|key| key.name == name)
    }
}

impl PartialEq for RegistryKind {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for RegistryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl RegistryEntry {
    /// Reads the registry with the settings that are its own: a more specific one counts before a more general one.
    fn configured(&self, general: &Layers, variables: &RegistryVariables) -> Result<ConfiguredRegistry, ConfigError> {
        let mut layers = match &self.section {
            Some(section) => general.with_section(&self.name, section),
            None => general.with(URL, Setting::single(self.url.clone())),
        };
        for secret in self.kind.secrets {
            let variable = variables.of(&self.name, secret);
            // The section's own file comes before the variable for all registries of the kind.
            if variable.is_some() || self.section.as_ref().is_some_and(|section| section.get(secret.file).is_some()) {
                layers.set_secret(secret, variable);
            }
        }
        let source = if self.url.origin == Origin::Default {
            file::implicit(&layers)?
        } else {
            let reader = (self.kind.read)(&layers)?;
            let source = kind_of_url(&self.url.text).and_then(|(_, rest)| reader(rest));
            source.map_err(|why| invalid(&self.url, why))?
        };
        let source = NamedSource { name: self.name.clone(), source, removal_grace: removal_grace(&layers)? };
        Ok(ConfiguredRegistry { kind: self.kind, layers, source })
    }
}

impl ConfiguredRegistry {
    /// The path under which a section of this registry has a key: `registry.main.username`.
    pub(super) fn path(&self, key: &Key) -> String {
        section_path(self.source.name.as_str(), key.name)
    }
}

/// The path of a key in the section of a registry.
pub(super) fn section_path(registry: &str, key: &str) -> String {
    format!("registry.{registry}.{key}")
}

/// The secrets of all kinds of registry.
pub(super) fn secrets() -> impl Iterator<Item = &'static SecretKey> {
    KINDS.iter().flat_map(|kind| kind.secrets).copied()
}

/// The kind in whose section a key is, if any.
pub(super) fn kind_of(key: &Key) -> Option<&'static RegistryKind> {
    KINDS.iter().copied().find(|kind| kind.keys.contains(&key))
}

/// Splits a URL into its kind of registry and the rest, or says what is wrong with it.
pub(super) fn kind_of_url(url: &str) -> Result<(&'static RegistryKind, &str), String> {
    let forms = || KINDS.iter().map(|kind| kind.form).collect::<Vec<_>>().join(" or ");
    let (scheme, rest) = url.trim().split_once("://").ok_or_else(|| format!("a registry is written as {}", forms()))?;
    let scheme = scheme.to_ascii_lowercase();
    if let Some(kind) = KINDS.iter().find(|kind| kind.name == scheme) {
        return Ok((kind, rest));
    }
    if NOT_YET.contains(&&*scheme) {
        let schemes: Vec<_> = KINDS.iter().map(|kind| format!("{}://", kind.name)).collect();
        return Err(format!("registries of kind {scheme} are not supported yet: there are {}", schemes.join(" and ")));
    }
    Err(format!("there is no kind of registry {scheme:?}: a registry is written as {}", forms()))
}

/// Makes an entry of each URL of a list. Its name is that of its kind, numbered from the second on (`etcd`, `etcd2`).
pub(super) fn listed(urls: &[Written]) -> Result<Vec<RegistryEntry>, ConfigError> {
    let mut counts = HashMap::<&str, usize>::new();
    let mut entry = |url: &Written| {
        let (kind, _) = kind_of_url(&url.text)?;
        let count = counts.entry(kind.name).or_default();
        *count += 1;
        let name = if *count == 1 { kind.name.to_owned() } else { format!("{}{count}", kind.name) };
        let name = name.parse().map_err(|error: InvalidRegistryName| error.to_string())?;
        Ok(RegistryEntry { name, kind, url: url.clone(), section: None })
    };
    urls.iter().map(|url| entry(url).map_err(|why| invalid(url, why))).collect()
}

/// Reads the registries to follow; without entries, GoFrame's default: the directory `gsvc` in the temp directory.
pub(super) fn read(
    layers: &Layers,
    entries: &[RegistryEntry],
    variables: &RegistryVariables,
) -> Result<Vec<ConfiguredRegistry>, ConfigError> {
    if let Some(surplus) = entries.get(MAX_REGISTRIES) {
        let why = format!("at most {MAX_REGISTRIES} registries can be followed (a fixed limit)");
        return Err(invalid(&surplus.url, why));
    }
    let implicit = if entries.is_empty() { listed(&[file::implicit_url()])? } else { Vec::new() };
    let mut registries = Vec::<ConfiguredRegistry>::new();
    for entry in entries.iter().chain(&implicit) {
        let registry = entry.configured(layers, variables)?;
        let same = |other: &&ConfiguredRegistry| same_store(&other.source.source, &registry.source.source);
        if let Some(other) = registries.iter().find(same) {
            let why = match entry.section {
                Some(_) => format!("{} is the same: remove one of the two sections", other.path(URL)),
                None => format!("{} is named twice", registry.source.source),
            };
            return Err(invalid(&entry.url, why));
        }
        registries.push(registry);
    }
    // A mistake in the section of a kind is found even if no registry of that kind is named.
    let named = |kind: &RegistryKind| registries.iter().any(|registry| registry.kind == kind) || variables.replaced(kind);
    for kind in KINDS.iter().filter(|kind| !named(kind)) {
        (kind.read)(layers).map(drop)?;
    }
    variables.check(&registries)?;
    Ok(registries)
}

/// Whether two URLs name one registry: members of a cluster in another order, or a slash at the end.
fn same_store(one: &Source, other: &Source) -> bool {
    fn members(endpoints: &[String]) -> BTreeSet<String> {
        endpoints.iter().map(|endpoint| endpoint.to_ascii_lowercase()).collect()
    }
    match (one, other) {
        (Source::Etcd(one), Source::Etcd(other)) => members(&one.endpoints) == members(&other.endpoints),
        // Paths are compared by their parts.
        (Source::File(one), Source::File(other)) => one.directory == other.directory,
        (Source::Etcd(_) | Source::File(_), _) => false,
    }
}

/// The first segments of GoFrame's keys, at least one.
fn heads(layers: &Layers) -> Result<Vec<String>, ConfigError> {
    let heads = list(layers, keys::HEADS, key_segment)?;
    if heads.is_empty() {
        return Err(invalid(&layers.one(keys::HEADS), "at least one must be named".to_owned()));
    }
    Ok(heads)
}
