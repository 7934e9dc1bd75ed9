//! The registries as a person names them: a URL for each, and a section of keys for each kind.
//!
//! A kind is one table ([`RegistryKind`]) in a file of its own; what the rest of this room knows of a kind is its table.

mod etcd;
mod file;
mod url;

pub(super) use url::{split_urls, without_user};

use std::collections::HashMap;
use std::time::Duration;

use super::error::ConfigError;
use super::key::{Key, SecretKey};
use super::keys;
use super::layers::Layers;
use super::values::{invalid, key_segment, list};
use crate::registry::{NamedSource, Source};
use crate::service::MAX_REGISTRIES;

/// A kind of registry, as a person writes it.
pub(super) struct RegistryKind {
    /// The scheme of its URLs, which is also the section of its keys.
    pub(super) name: &'static str,
    /// The form of its URLs, for messages.
    form: &'static str,
    /// The keys of its section, in the order of the documentation.
    pub(super) keys: &'static [&'static Key],
    /// What it logs in with that nobody may see, if anything.
    secret: Option<&'static SecretKey>,
    /// Reads the keys of the section, and returns what makes a source of a URL.
    read: fn(&Layers) -> Result<Reader, ConfigError>,
}

/// Makes a source of the part of a URL behind `://`, or says what is wrong with it.
type Reader = Box<dyn Fn(&str) -> Result<Source, String>>;

/// Every kind, in the order of messages and documentation.
pub(super) static KINDS: &[&RegistryKind] = &[&etcd::KIND, &file::KIND];

/// Kinds that GoFrame has and svcdns does not support yet.
const NOT_YET: &[&str] = &["zookeeper", "consul", "nacos", "polaris"];

/// The secrets of all kinds of registry.
pub fn secrets() -> impl Iterator<Item = &'static SecretKey> {
    KINDS.iter().filter_map(|kind| kind.secret)
}

/// The kind in whose section a key is, if any.
pub(super) fn kind_of(key: &Key) -> Option<&'static RegistryKind> {
    KINDS.iter().copied().find(|kind| kind.keys.contains(&key))
}

/// The registries named, or else GoFrame's default: the directory `gsvc` in the temp directory.
pub(super) fn read(layers: &Layers, removal_grace: Duration) -> Result<Vec<NamedSource>, ConfigError> {
    // All of them, so that a mistake in a section is found whichever registries are named.
    let readers = KINDS.iter().map(|kind| Ok((kind.name, (kind.read)(layers)?))).collect::<Result<_, ConfigError>>()?;
    let sources = list(layers, keys::REGISTRY, |url| source(&readers, url))?;
    for (at, source) in sources.iter().enumerate() {
        if sources[..at].contains(source) {
            return Err(invalid(keys::REGISTRY, &layers.list(keys::REGISTRY)[at], format!("{source} is named twice")));
        }
    }
    if sources.len() > MAX_REGISTRIES {
        return Err(invalid(
            keys::REGISTRY,
            &layers.one(keys::REGISTRY),
            format!("at most {MAX_REGISTRIES} registries can be followed (a fixed limit)"),
        ));
    }
    Ok(named(if sources.is_empty() { vec![file::implicit(layers)?] } else { sources }, removal_grace))
}

/// Gives each registry of a list a name: that of its kind, numbered from the second on (`etcd`, `etcd2`).
fn named(sources: Vec<Source>, removal_grace: Duration) -> Vec<NamedSource> {
    let mut counts = HashMap::<&str, usize>::new();
    let name = |source: Source| {
        let kind = source.kind();
        let count = counts.entry(kind).or_default();
        *count += 1;
        let name = if *count == 1 { kind.to_owned() } else { format!("{kind}{count}") };
        Some(NamedSource { name: name.parse().ok()?, source, removal_grace })
    };
    sources.into_iter().filter_map(name).collect()
}

/// The registry of a URL.
fn source(readers: &HashMap<&str, Reader>, url: &str) -> Result<Source, String> {
    let forms = || KINDS.iter().map(|kind| kind.form).collect::<Vec<_>>().join(" or ");
    let (scheme, rest) = url.trim().split_once("://").ok_or_else(|| format!("a registry is written as {}", forms()))?;
    let scheme = scheme.to_ascii_lowercase();
    if let Some(reader) = readers.get(&*scheme) {
        return reader(rest);
    }
    if NOT_YET.contains(&&*scheme) {
        let schemes: Vec<_> = KINDS.iter().map(|kind| format!("{}://", kind.name)).collect();
        return Err(format!("registries of kind {scheme} are not supported yet: there are {}", schemes.join(" and ")));
    }
    Err(format!("there is no kind of registry {scheme:?}: a registry is written as {}", forms()))
}

/// The first segments of GoFrame's keys, at least one.
fn heads(layers: &Layers) -> Result<Vec<String>, ConfigError> {
    let heads = list(layers, keys::HEADS, key_segment)?;
    if heads.is_empty() {
        return Err(invalid(keys::HEADS, &layers.one(keys::HEADS), "at least one must be named".to_owned()));
    }
    Ok(heads)
}
