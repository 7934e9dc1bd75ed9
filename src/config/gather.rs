//! Merges the sources: flags override the environment, then the file, then the defaults.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::aliases::ConfiguredAlias;
use super::error::{ConfigError, Origin, nearest};
use super::file::FileContent;
use super::flags::Flags;
use super::key::{Key, REGISTRY_PREFIX};
use super::layers::{Layer, Layers, RawValue, SecretVariable, Setting};
use super::registry::{RegistryEntry, RegistryVariables, secrets, split_urls};
use super::static_services::StaticEntry;
use super::table::KEYS;
use super::{DEFAULT_FILE, file, keys, registry};
use crate::registry::Secret;

/// Environment variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "SVCDNS_CONFIG";

/// The values of all sources, merged by precedence.
#[derive(Debug)]
pub(super) struct MergedSources {
    /// A setting for every key.
    pub(super) layers: Layers,
    /// The registries to follow; empty for the default registry.
    pub(super) registries: Vec<RegistryEntry>,
    /// The static services.
    pub(super) statics: Vec<StaticEntry>,
    /// Environment variables with the secrets of single registries.
    pub(super) variables: RegistryVariables,
    /// The aliases of the file.
    pub(super) aliases: Vec<ConfiguredAlias>,
}

/// Reads the file and merges all sources.
pub(super) fn gather(
    path: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &Flags,
) -> Result<MergedSources, ConfigError> {
    let mut from_environment = EnvironmentVariables::default();
    for (name, value) in environment {
        from_environment.add(name, value)?;
    }
    let EnvironmentVariables { layer: mut variables, secrets, mut of_registries, file } =
        from_environment;
    let FileContent { layer: mut file, registries: sections, statics, aliases } =
        read_file(path.map(Path::to_owned).or(file))?;
    let mut given = Layer::new();
    for (key, values) in &flags.given {
        let origin = Origin::Flag(key.flag());
        given.insert(key, setting(key, values.iter().map(String::as_str), &origin));
    }
    let mut defaults = file::read(Path::new("the defaults"), &defaults_as_toml())?.layer;
    let registries = {
        // A list from a flag or variable replaces the sections and the lists of other sources.
        let lists = [&given, &variables, &file].map(|layer| layer.get(keys::REGISTRY));
        let lists = lists.into_iter().flatten().map(|list| registry::listed(&list.items));
        let sections = (!sections.is_empty()).then_some(Ok(sections));
        let mut by_precedence = lists.chain(sections);
        let registries = by_precedence.next().transpose()?.unwrap_or_default();
        by_precedence.flatten().for_each(|replaced| of_registries.replace(replaced));
        registries
    };
    let settings = KEYS
        .iter()
        .filter_map(|key| {
            let setting =
                given.take(key).or_else(|| variables.take(key)).or_else(|| file.take(key));
            let setting = setting.or_else(|| defaults.take(key).map(as_default))?;
            Some((key.path(), setting))
        })
        .collect();
    Ok(MergedSources {
        layers: Layers::new(settings, secrets),
        registries,
        statics,
        variables: of_registries,
        aliases,
    })
}

/// Settings and secrets of the environment.
#[derive(Debug, Default)]
struct EnvironmentVariables {
    layer: Layer,
    /// Secrets of a kind of registry, by their variable.
    secrets: HashMap<&'static str, SecretVariable>,
    of_registries: RegistryVariables,
    /// The configuration file.
    file: Option<PathBuf>,
}

impl EnvironmentVariables {
    /// Adds an environment variable; ignores those without the prefix `SVCDNS_`.
    fn add(&mut self, name: String, value: String) -> Result<(), ConfigError> {
        if let Some(secret) = secrets().find(|secret| secret.variable == name) {
            if !value.is_empty() {
                let variable = SecretVariable { name, secret: Secret::from(value) };
                self.secrets.insert(secret.variable, variable);
            }
        } else if name == CONFIG_VARIABLE {
            self.file = Some(value).filter(|path| !path.is_empty()).map(PathBuf::from);
        } else if let Some(key) = KEYS.iter().find(|key| key.variable() == name) {
            self.layer.insert(key, setting(key, [value.as_str()], &Origin::Variable(name)));
        } else if name.starts_with(REGISTRY_PREFIX) {
            self.of_registries.add(SecretVariable { name, secret: Secret::from(value) });
        } else if name.starts_with("SVCDNS_") {
            let others = secrets().map(|secret| secret.variable).chain([CONFIG_VARIABLE]);
            let known = KEYS.iter().map(|key| key.variable()).chain(others.map(str::to_owned));
            let suggestion = nearest(&name, known);
            return Err(ConfigError::UnknownVariable { name, reason: None, suggestion });
        }
        Ok(())
    }
}

/// Returns the setting from the values of a flag or environment variable.
///
/// Commas or white space separate the items of a list.
fn setting<'a>(key: &Key, values: impl IntoIterator<Item = &'a str>, origin: &Origin) -> Setting {
    let raw =
        |text: &str| RawValue { key: key.path(), text: text.to_owned(), origin: origin.clone() };
    let values = values.into_iter();
    let items = if key == keys::REGISTRY {
        values.flat_map(split_urls).map(raw).collect()
    } else if key.form.is_list() {
        let items = values.flat_map(|text| text.split([',', ' ', '\t', '\n']));
        items.filter(|text| !text.is_empty()).map(raw).collect()
    } else {
        values.map(|text| raw(text.trim())).collect()
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

/// Returns the defaults of the table as a configuration file.
fn defaults_as_toml() -> String {
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

/// Reads a file; by default, [`DEFAULT_FILE`] if it exists.
fn read_file(path: Option<PathBuf>) -> Result<FileContent, ConfigError> {
    let implicit = path.is_none();
    let path = path.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    match std::fs::read_to_string(&path) {
        Ok(text) => file::read(&path, &text),
        Err(error) if implicit && error.kind() == std::io::ErrorKind::NotFound => {
            Ok(FileContent::default())
        }
        Err(error) => Err(ConfigError::Unreadable { path, error, implicit }),
    }
}
