//! Registries in the configuration: a list of URLs, or a section for each registry.
//!
//! Each kind of registry has a table ([`RegistryKind`]) in its own file, and a section of keys for
//! all registries of the kind.

mod consul;
mod endpoints;
mod etcd;
mod file;
mod login;
mod nacos;
mod polaris;
mod polling;
mod tls;
mod url;
mod variables;
mod zookeeper;

use self::tls::TlsKeys;
pub(super) use url::{split_urls, without_user};
pub(super) use variables::RegistryVariables;

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use super::error::{ConfigError, Origin};
use super::key::{Key, STATIC, SecretKey, keys, section_path};
use super::keys;
use super::layers::{Layer, Layers, RawValue, Setting};
use super::values::{invalid, key_segment, list, removal_grace};
use crate::registry::{NamedSource, Source};
use crate::service::{InvalidRegistryName, MAX_REGISTRIES, RegistryName};

keys! { OWN:
    URL = "registry.NAME" "url" Text "URL"
        "`etcd://host:port[,host:port]`, `consul://host:port[,host:port]`, \
         `zookeeper://host:port[,host:port]/root`, `nacos://host:port[,host:port]`, \
         `polaris://host:port[,host:port]` or `file:///dir`" r#""""#
        "URL of the registry; required in every section.";
}

/// A kind of registry.
pub(super) struct RegistryKind {
    /// Scheme of the kind's URLs, and section of its keys.
    pub(super) name: &'static str,
    /// Scheme of URLs whose registries are reached over TLS, if the kind has one.
    tls_scheme: Option<&'static str>,
    /// Form of the kind's URLs, for error messages.
    form: &'static str,
    /// Example of a URL, for the documentation.
    pub(super) example: &'static str,
    /// Keys of the kind's section without those of TLS, in the order of the documentation.
    keys: &'static [&'static Key],
    /// Its keys of TLS, which follow the others.
    tls: Option<&'static TlsKeys>,
    /// Secrets that its registries may need.
    pub(super) secrets: &'static [&'static SecretKey],
    /// What readers of the services of such a registry should know.
    note: Option<&'static str>,
    /// Reads the keys of the kind, and returns the parser of its URLs.
    read: fn(&Layers) -> Result<UrlParser, ConfigError>,
}

/// Creates a source from the scheme of a URL and the part after `://`.
///
/// The error is the reason for a [`ConfigError::Invalid`].
type UrlParser = Box<dyn Fn(&str, &str) -> Result<Source, String>>;

/// All kinds, in the order used in messages and documentation.
pub(super) static KINDS: &[&RegistryKind] =
    &[&etcd::KIND, &consul::KIND, &zookeeper::KIND, &nacos::KIND, &polaris::KIND, &file::KIND];

/// A registry as written, in a section or a list.
#[derive(Debug)]
pub(super) struct RegistryEntry {
    pub(super) name: RegistryName,
    /// The kind of the registry, from its URL.
    pub(super) kind: &'static RegistryKind,
    pub(super) url: RawValue,
    /// The registry's section; `None` for an item of a list.
    pub(super) section: Option<Layer>,
}

/// A registry to follow.
pub(super) struct ConfiguredRegistry {
    pub(super) kind: &'static RegistryKind,
    pub(super) url: RawValue,
    /// Its settings as written.
    pub(super) layers: Layers,
    /// The registry's settings after parsing.
    pub(super) source: NamedSource,
}

impl RegistryKind {
    /// Returns the keys of the kind's section, in the order of the documentation.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'static Key> + use<> {
        self.keys.iter().chain(self.tls.into_iter().flat_map(|tls| tls.all)).copied()
    }

    /// Returns the keys that name files with secrets of a registry, with its variables in force.
    pub(super) fn secret_files(&self, layers: &Layers) -> impl Iterator<Item = &'static Key> {
        let unset = self.secrets.iter().filter(|secret| layers.secret(secret).is_none());
        unset.map(|secret| secret.file).chain(self.tls.map(|tls| tls.key_file))
    }

    /// Returns the keys of a registry's own section, in the order of the documentation.
    pub(super) fn section_keys(&self) -> impl Iterator<Item = &'static Key> {
        OWN.iter().copied().chain(self.keys()).chain([keys::HEADS, keys::REMOVAL_GRACE])
    }

    /// Returns the key with this name in a registry's own section.
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
    /// Parses the registry's settings: its own section overrides the general settings.
    fn configured(
        &self,
        general: &Layers,
        variables: &RegistryVariables,
    ) -> Result<ConfiguredRegistry, ConfigError> {
        let mut layers = match &self.section {
            Some(section) => general.with_section(&self.name, section),
            None => general.with(URL, Setting::single(self.url.clone())),
        };
        for secret in self.kind.secrets {
            let variable = variables.of(&self.name, secret);
            let has_own_file =
                self.section.as_ref().is_some_and(|section| section.get(secret.file).is_some());
            // A file in the registry's section overrides the variable for all registries of the
            // kind.
            if variable.is_some() || has_own_file {
                layers.set_secret(secret, variable);
            }
        }
        let source = if self.url.origin == Origin::Default {
            file::default_source(&layers)?
        } else {
            let parse_url = (self.kind.read)(&layers)?;
            let source = split_url(&self.url.text)
                .and_then(|(scheme, rest)| parse_url(&scheme.to_ascii_lowercase(), rest));
            source.map_err(|why| invalid(&self.url, why))?
        };
        let removal_grace = removal_grace(&layers)?;
        let source = NamedSource { name: self.name.clone(), source, removal_grace };
        Ok(ConfiguredRegistry { kind: self.kind, url: self.url.clone(), layers, source })
    }
}

impl ConfiguredRegistry {
    /// Returns the path of a key in this registry's section: `registry.main.username`.
    pub(super) fn path(&self, key: &Key) -> String {
        section_path(self.source.name.as_str(), key.name)
    }
}

/// Returns the secrets of all kinds.
pub(super) fn secrets() -> impl Iterator<Item = &'static SecretKey> {
    KINDS.iter().flat_map(|kind| kind.secrets).copied()
}

/// Returns the kind that a key belongs to; `None` for a general key.
pub(super) fn kind_of(key: &Key) -> Option<&'static RegistryKind> {
    KINDS.iter().copied().find(|kind| kind.keys().any(|own| own == key))
}

/// Returns the kind of a URL.
///
/// The error is the reason for a [`ConfigError::Invalid`].
pub(super) fn kind_of_url(url: &str) -> Result<&'static RegistryKind, String> {
    let (scheme, _) = split_url(url)?;
    let scheme = scheme.to_ascii_lowercase();
    let is_of = |kind: &&&RegistryKind| kind.name == scheme || kind.tls_scheme == Some(&scheme);
    if let Some(kind) = KINDS.iter().find(is_of) {
        return Ok(kind);
    }
    if scheme == STATIC {
        return Err("static services have no URL: write each as a table [[static]]".to_owned());
    }
    let forms = forms();
    Err(format!("unknown kind of registry {scheme:?}: expected a URL such as {forms}"))
}

/// Returns what readers of a registry's services should know, given its URL.
pub fn registry_note(url: &str) -> Option<&'static str> {
    kind_of_url(url).ok()?.note
}

/// Splits a URL into its scheme and the part after `://`.
fn split_url(url: &str) -> Result<(&str, &str), String> {
    let split = url.trim().split_once("://");
    split.ok_or_else(|| format!("expected a URL such as {}", forms()))
}

/// Lists the forms of URLs.
fn forms() -> String {
    alternatives(&KINDS.iter().map(|kind| kind.form).collect::<Vec<_>>())
}

/// Joins texts as in "a, b or c".
fn alternatives(texts: &[impl AsRef<str>]) -> String {
    let mut joined = String::new();
    for (at, text) in texts.iter().enumerate() {
        let separator = match texts.len() - at {
            _ if at == 0 => "",
            1 => " or ",
            _ => ", ",
        };
        joined.push_str(separator);
        joined.push_str(text.as_ref());
    }
    joined
}

/// Returns an entry for each URL of a list.
///
/// An entry is named after its kind, with a number unless it is the first: `etcd`, `etcd2`.
pub(super) fn listed(urls: &[RawValue]) -> Result<Vec<RegistryEntry>, ConfigError> {
    let mut counts = HashMap::<&str, usize>::new();
    let mut entry = |url: &RawValue| {
        let kind = kind_of_url(&url.text)?;
        let count = counts.entry(kind.name).or_default();
        *count += 1;
        let name = if *count == 1 { kind.name.to_owned() } else { format!("{}{count}", kind.name) };
        let name = name.parse().map_err(|error: InvalidRegistryName| error.to_string())?;
        Ok(RegistryEntry { name, kind, url: url.clone(), section: None })
    };
    urls.iter().map(|url| entry(url).map_err(|why| invalid(url, why))).collect()
}

/// Parses the registries to follow; without entries, GoFrame's default registry.
pub(super) fn read(
    layers: &Layers,
    entries: &[RegistryEntry],
    variables: &RegistryVariables,
) -> Result<Vec<ConfiguredRegistry>, ConfigError> {
    if let Some(surplus) = entries.get(MAX_REGISTRIES) {
        let why = format!("at most {MAX_REGISTRIES} registries can be followed (a fixed limit)");
        return Err(invalid(&surplus.url, why));
    }
    let default = if entries.is_empty() { listed(&[file::default_url()])? } else { Vec::new() };
    let mut registries = Vec::<ConfiguredRegistry>::new();
    for entry in entries.iter().chain(&default) {
        let registry = entry.configured(layers, variables)?;
        let is_same =
            |other: &&ConfiguredRegistry| same_store(&other.source.source, &registry.source.source);
        if let Some(other) = registries.iter().find(is_same) {
            let why = match entry.section {
                Some(_) => format!(
                    "this is the same registry as {}: remove one of the two sections",
                    other.path(URL)
                ),
                None => format!("{} is listed twice", registry.source.source),
            };
            return Err(invalid(&entry.url, why));
        }
        registries.push(registry);
    }
    // Sections of kinds without a registry are checked, too.
    let is_checked = |kind: &RegistryKind| {
        registries.iter().any(|registry| registry.kind == kind) || variables.has_replaced(kind)
    };
    for kind in KINDS.iter().filter(|kind| !is_checked(kind)) {
        (kind.read)(layers).map(drop)?;
    }
    variables.check(&registries)?;
    Ok(registries)
}

/// Returns the servers of a registry, as written in any case and order.
fn members(source: &Source) -> BTreeSet<String> {
    source.endpoints().iter().map(|endpoint| endpoint.to_ascii_lowercase()).collect()
}

/// Returns a server that two registries share, if they share one and its content.
pub(super) fn shared_member(one: &Source, other: &Source) -> Option<String> {
    let shared = || members(one).intersection(&members(other)).next().cloned();
    match (one, other) {
        (Source::Etcd(_), Source::Etcd(_)) => shared(),
        // An agent serves several datacenters and namespaces.
        (Source::Consul(one), Source::Consul(other))
            if one.datacenter == other.datacenter && one.namespace == other.namespace =>
        {
            shared()
        }
        // An ensemble has several roots.
        #[cfg(feature = "zookeeper")]
        (Source::ZooKeeper(one), Source::ZooKeeper(other)) if one.root == other.root => shared(),
        // A server of Nacos serves several namespaces and groups.
        (Source::Nacos(one), Source::Nacos(other))
            if one.namespace == other.namespace && one.group == other.group =>
        {
            shared()
        }
        // A server of Polaris serves several namespaces.
        (Source::Polaris(one), Source::Polaris(other)) if one.namespace == other.namespace => {
            shared()
        }
        _ => None,
    }
}

/// Returns whether two sources are the same registry, even if written differently.
///
/// The members of a cluster may be in another order, and a directory may end with a slash.
fn same_store(one: &Source, other: &Source) -> bool {
    match (one, other) {
        // Comparison of paths ignores repeated and trailing slashes.
        (Source::File(one), Source::File(other)) => one.directory == other.directory,
        _ => shared_member(one, other).is_some() && members(one) == members(other),
    }
}

/// Reads the setting `heads`, the first segments of registry keys; at least one.
fn heads(layers: &Layers) -> Result<Vec<String>, ConfigError> {
    let heads = list(layers, keys::HEADS, key_segment)?;
    if heads.is_empty() {
        return Err(invalid(&layers.one(keys::HEADS), "at least one head is required".to_owned()));
    }
    Ok(heads)
}
