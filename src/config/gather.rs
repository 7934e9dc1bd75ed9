//! Gathers what file, environment and flags say into one setting for every key.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, Origin, nearest};
use super::flags::Flags;
use super::key::{Key, Kind};
use super::layers::{Layer, Layers, Setting, Written};
use super::registry::{secrets, split_urls};
use super::table::KEYS;
use super::{DEFAULT_FILE, file, keys};
use crate::registry::Secret;

/// The variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "SVCDNS_CONFIG";

/// Merges all sources: flags over environment over file over defaults.
pub(super) fn gather(
    named: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &Flags,
) -> Result<Layers, ConfigError> {
    let (mut variables, mut given_secrets, mut configured) = (Layer::new(), HashMap::new(), None);
    for (name, value) in environment {
        if let Some(secret) = secrets().find(|secret| secret.variable == name) {
            if !value.is_empty() {
                given_secrets.insert(secret.variable, Secret::from(value));
            }
        } else if name == CONFIG_VARIABLE {
            configured = Some(value);
        } else if name.starts_with("SVCDNS_") {
            let Some(key) = KEYS.iter().find(|key| key.variable() == name) else {
                let others = secrets().map(|secret| secret.variable).chain([CONFIG_VARIABLE]).map(str::to_owned);
                let suggestion = nearest(&name, KEYS.iter().map(|key| key.variable()).chain(others));
                return Err(ConfigError::UnknownVariable { name, suggestion });
            };
            variables.insert(key, setting(key, [value.as_str()], &Origin::Variable(name)));
        }
    }
    let configured = configured.filter(|path| !path.is_empty());
    let mut file = read_file(named.map(Path::to_owned).or_else(|| configured.map(PathBuf::from)))?;
    let mut given = Layer::new();
    for (key, values) in &flags.given {
        given.insert(key, setting(key, values.iter().map(String::as_str), &Origin::Flag(key.flag())));
    }
    let mut defaults = file::read(Path::new("the defaults"), &defaults_text())?;
    let settings = KEYS
        .iter()
        .filter_map(|key| {
            let setting = given.take(key).or_else(|| variables.take(key)).or_else(|| file.take(key));
            let setting = setting.or_else(|| defaults.take(key).map(as_default))?;
            Some((key.path(), setting))
        })
        .collect();
    Ok(Layers::new(settings, given_secrets))
}

/// The setting that flags or a variable make: lists may be separated by commas or spaces.
fn setting<'a>(key: &Key, values: impl IntoIterator<Item = &'a str>, origin: &Origin) -> Setting {
    let written = |text: &str| Written { text: text.to_owned(), origin: origin.clone() };
    let items = values.into_iter();
    let items = if key == keys::REGISTRY {
        items.flat_map(split_urls).map(written).collect()
    } else if key.kind == Kind::List {
        items.flat_map(|text| text.split([',', ' ', '\t', '\n'])).filter(|text| !text.is_empty()).map(written).collect()
    } else {
        items.map(|text| written(text.trim())).collect()
    };
    Setting { origin: origin.clone(), items }
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

fn read_file(named: Option<PathBuf>) -> Result<Layer, ConfigError> {
    let implicit = named.is_none();
    let path = named.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    match std::fs::read_to_string(&path) {
        Ok(text) => file::read(&path, &text),
        Err(error) if implicit && error.kind() == std::io::ErrorKind::NotFound => Ok(Layer::new()),
        Err(error) => Err(ConfigError::Unreadable { path, error, implicit }),
    }
}
