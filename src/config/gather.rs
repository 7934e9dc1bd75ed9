//! Gathers what file, environment and flags say into one setting for every key.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, Origin, nearest};
use super::flags::Flags;
use super::key::{Key, Kind, REGISTRY_PREFIX};
use super::layers::{Layer, Layers, SecretVariable, Setting, Written};
use super::registry::{RegistryEntry, RegistryVariables, secrets, split_urls};
use super::table::KEYS;
use super::{DEFAULT_FILE, file, keys, registry};
use crate::registry::Secret;

/// The variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "SVCDNS_CONFIG";

/// Everything that was written, merged.
#[derive(Debug)]
pub(super) struct Gathered {
    /// A setting for every key.
    pub(super) layers: Layers,
    /// The registries to follow; none where nobody named one.
    pub(super) registries: Vec<RegistryEntry>,
    /// The secrets of single registries.
    pub(super) variables: RegistryVariables,
}

/// Merges all sources: flags over environment over file over defaults.
pub(super) fn gather(
    named: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &Flags,
) -> Result<Gathered, ConfigError> {
    let (mut variables, mut given_secrets, mut configured) = (Layer::new(), HashMap::new(), None);
    let mut of_registries = RegistryVariables::default();
    for (name, value) in environment {
        if let Some(secret) = secrets().find(|secret| secret.variable == name) {
            if !value.is_empty() {
                given_secrets.insert(secret.variable, SecretVariable { name, secret: Secret::from(value) });
            }
        } else if name == CONFIG_VARIABLE {
            configured = Some(value);
        } else if let Some(key) = KEYS.iter().find(|key| key.variable() == name) {
            variables.insert(key, setting(key, [value.as_str()], &Origin::Variable(name)));
        } else if name.starts_with(REGISTRY_PREFIX) {
            of_registries.give(SecretVariable { name, secret: Secret::from(value) });
        } else if name.starts_with("SVCDNS_") {
            let others = secrets().map(|secret| secret.variable).chain([CONFIG_VARIABLE]).map(str::to_owned);
            let suggestion = nearest(&name, KEYS.iter().map(|key| key.variable()).chain(others));
            return Err(ConfigError::UnknownVariable { name, missing: "no such setting".to_owned(), suggestion });
        }
    }
    let configured = configured.filter(|path| !path.is_empty());
    let (mut file, sections) = read_file(named.map(Path::to_owned).or_else(|| configured.map(PathBuf::from)))?;
    let mut given = Layer::new();
    for (key, values) in &flags.given {
        given.insert(key, setting(key, values.iter().map(String::as_str), &Origin::Flag(key.flag())));
    }
    let (mut defaults, _) = file::read(Path::new("the defaults"), &defaults_text())?;
    let registries = {
        // A list from a flag or a variable replaces those below it, and the sections of the file.
        let lists = [&given, &variables, &file].map(|layer| layer.get(keys::REGISTRY)).into_iter().flatten();
        let sections = (!sections.is_empty()).then_some(Ok(sections));
        let mut named = lists.map(|list| registry::listed(&list.items)).chain(sections);
        let registries = named.next().transpose()?.unwrap_or_default();
        named.flatten().for_each(|replaced| of_registries.replace(replaced));
        registries
    };
    let settings = KEYS
        .iter()
        .filter_map(|key| {
            let setting = given.take(key).or_else(|| variables.take(key)).or_else(|| file.take(key));
            let setting = setting.or_else(|| defaults.take(key).map(as_default))?;
            Some((key.path(), setting))
        })
        .collect();
    Ok(Gathered { layers: Layers::new(settings, given_secrets), registries, variables: of_registries })
}

/// The setting that flags or a variable make: lists may be separated by commas or spaces.
fn setting<'a>(key: &Key, values: impl IntoIterator<Item = &'a str>, origin: &Origin) -> Setting {
    let written = |text: &str| Written { key: key.path(), text: text.to_owned(), origin: origin.clone() };
    let items = values.into_iter();
    let items = if key == keys::REGISTRY {
        items.flat_map(split_urls).map(written).collect()
    } else if key.kind == Kind::List {
        items.flat_map(|text| text.split([',', ' ', '\t', '\n'])).filter(|text| !text.is_empty()).map(written).collect()
    } else {
        items.map(|text| written(text.trim())).collect()
    };
    Setting { key: key.path(), origin: origin.clone(), items }
}

fn as_default(mut setting: Setting) -> Setting {
    setting.origin = Origin::Default;
    for item in &mut setting.items {
        item.origin = Origin::Default;
    }
    setting
}

/// The table's defaults as a configuration file.
fn defaults_text() -> String {
    let mut text = String::new();
    let mut section = "";
    for key in KEYS.iter() {
        if key.section != section {
            section = key.section;
            let _ = writeln!(text, "[{section}]");
        }
        let _ = writeln!(text, "{} = {}", key.name, key.default);
    }
    text
}

/// Reads the file named, or the default one: its keys, and the sections of registries.
fn read_file(named: Option<PathBuf>) -> Result<(Layer, Vec<RegistryEntry>), ConfigError> {
    let implicit = named.is_none();
    let path = named.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    match std::fs::read_to_string(&path) {
        Ok(text) => file::read(&path, &text),
        Err(error) if implicit && error.kind() == std::io::ErrorKind::NotFound => Ok((Layer::new(), Vec::new())),
        Err(error) => Err(ConfigError::Unreadable { path, error, implicit }),
    }
}
