//! The layers that are merged: flags over environment over file over defaults.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, Origin, nearest};
use super::file;
use super::flags::Flags;
use super::keys::{KEYS, Key, Kind};
use super::registry::{SecretKey, secrets, split_urls, without_user};
use super::{DEFAULT_FILE, keys};
use crate::registry::Secret;

/// The variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "SVCDNS_CONFIG";

/// One value of one key, as text.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// What was written for one key: one item, or any number for a list.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) origin: Origin,
    pub(super) items: Vec<Written>,
}

/// What one source says.
#[derive(Debug, Default)]
pub(super) struct Layer(HashMap<String, Setting>);

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

/// All sources, merged: every key has a setting.
#[derive(Debug)]
pub(super) struct Layers {
    settings: HashMap<String, Setting>,
    /// The secrets of the environment, by their variables.
    secrets: HashMap<&'static str, Secret>,
}

impl Layer {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn insert(&mut self, key: &Key, setting: Setting) {
        self.0.insert(key.path(), setting);
    }

    fn take(&mut self, key: &Key) -> Option<Setting> {
        self.0.remove(&key.path())
    }
}

impl Layers {
    pub(super) fn gather(
        named: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &Flags,
    ) -> Result<Self, ConfigError> {
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
        Ok(Self { settings, secrets: given_secrets })
    }

    /// What was written for a list.
    pub(super) fn list(&self, key: &Key) -> &[Written] {
        self.settings.get(&key.path()).map_or(&[], |setting| &setting.items)
    }

    /// What was written for a single value.
    pub(super) fn one(&self, key: &Key) -> Written {
        let last = self.list(key).last().cloned();
        last.unwrap_or_else(|| Written { text: String::new(), origin: self.origin(key) })
    }

    /// A secret that stands in the environment.
    pub(super) fn secret(&self, secret: &SecretKey) -> Option<&Secret> {
        self.secrets.get(secret.variable)
    }

    /// Where the key was written.
    pub(super) fn origin(&self, key: &Key) -> Origin {
        self.settings.get(&key.path()).map_or(Origin::Default, |setting| setting.origin.clone())
    }

    /// Every key with its value as it stands.
    pub(super) fn effective(&self) -> Vec<Effective> {
        KEYS.iter().map(|key| Effective { key, value: self.value(key), origin: self.origin(key) }).collect()
    }

    fn value(&self, key: &Key) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        match key.kind {
            Kind::List => {
                let shown = |item: &Written| if key == keys::REGISTRY { without_user(&item.text) } else { item.text.clone() };
                let items: Vec<String> = self.list(key).iter().map(|item| quoted(&shown(item))).collect();
                format!("[{}]", items.join(", "))
            }
            Kind::Bool | Kind::Number => self.one(key).text,
            Kind::TextOrNumber if self.one(key).text.parse::<i64>().is_ok() => self.one(key).text,
            Kind::Text | Kind::Duration | Kind::Size | Kind::TextOrNumber => quoted(&self.one(key).text),
        }
    }
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
