//! Settings as they were written: those of one source, and those of all sources merged.

use std::collections::HashMap;

use super::error::Origin;
use super::key::{Key, SecretKey};
use crate::registry::Secret;
use crate::service::RegistryName;

/// One value of one key, as text.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// The key as it was written, with its section: `etcd.username`, `registry.main.username`.
    pub(super) key: String,
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// What was written for one key: one item, or any number for a list.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// The key as it was written, with its section.
    pub(super) key: String,
    pub(super) origin: Origin,
    pub(super) items: Vec<Written>,
}

/// What one source says.
#[derive(Debug, Default)]
pub(super) struct Layer(HashMap<String, Setting>);

/// A secret that stands in the environment.
#[derive(Clone, Debug)]
pub(super) struct SecretVariable {
    pub(super) name: String,
    pub(super) secret: Secret,
}

/// All sources, merged: every key has a setting.
#[derive(Clone, Debug)]
pub(super) struct Layers {
    settings: HashMap<String, Setting>,
    /// The secrets of the environment, by the variable for all registries of their kind.
    secrets: HashMap<&'static str, SecretVariable>,
    /// The registry whose section has been laid over the general settings, if any.
    section: Option<RegistryName>,
}

impl Setting {
    /// Makes the setting of a key that has this one value.
    pub(super) fn single(value: Written) -> Self {
        Self { key: value.key.clone(), origin: value.origin.clone(), items: vec![value] }
    }
}

impl Layer {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn insert(&mut self, key: &Key, setting: Setting) {
        self.0.insert(key.path(), setting);
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Setting> {
        self.0.get(&key.path())
    }

    pub(super) fn take(&mut self, key: &Key) -> Option<Setting> {
        self.0.remove(&key.path())
    }
}

impl Layers {
    /// Joins a setting for every key, and the secrets of the environment by their variables.
    pub(super) fn new(settings: HashMap<String, Setting>, secrets: HashMap<&'static str, SecretVariable>) -> Self {
        Self { settings, secrets, section: None }
    }

    /// Lays the section of a registry over these settings: its keys replace those of its kind and the general ones.
    #[must_use]
    pub(super) fn with_section(&self, name: &RegistryName, section: &Layer) -> Self {
        let mut layers = Self { section: Some(name.clone()), ..self.clone() };
        layers.settings.extend(section.0.iter().map(|(path, setting)| (path.clone(), setting.clone())));
        layers
    }

    /// Replaces the setting of a key.
    #[must_use]
    pub(super) fn with(&self, key: &Key, setting: Setting) -> Self {
        let mut layers = self.clone();
        layers.settings.insert(key.path(), setting);
        layers
    }

    /// Replaces what the environment says of a secret.
    pub(super) fn set_secret(&mut self, secret: &SecretKey, variable: Option<SecretVariable>) {
        match variable {
            Some(variable) => self.secrets.insert(secret.variable, variable),
            None => self.secrets.remove(secret.variable),
        };
    }

    /// What was written for a list.
    pub(super) fn list(&self, key: &Key) -> &[Written] {
        self.settings.get(&key.path()).map_or(&[], |setting| &setting.items)
    }

    /// What was written for a single value.
    pub(super) fn one(&self, key: &Key) -> Written {
        let last = self.list(key).last().cloned();
        last.unwrap_or_else(|| Written { key: self.written_as(key), text: String::new(), origin: self.origin(key) })
    }

    /// A secret that stands in the environment.
    pub(super) fn secret(&self, secret: &SecretKey) -> Option<&SecretVariable> {
        self.secrets.get(secret.variable)
    }

    /// Where the key was written.
    pub(super) fn origin(&self, key: &Key) -> Origin {
        self.settings.get(&key.path()).map_or(Origin::Default, |setting| setting.origin.clone())
    }

    /// The key as it was written, with its section.
    pub(super) fn written_as(&self, key: &Key) -> String {
        self.settings.get(&key.path()).map_or_else(|| key.path(), |setting| setting.key.clone())
    }

    /// Whether the value comes from the registry's own section.
    pub(super) fn in_section(&self, key: &Key) -> bool {
        self.written_as(key) != key.path()
    }

    /// The key to name in advice: the registry's own where it has a section.
    pub(super) fn advised(&self, key: &Key) -> String {
        self.section.as_ref().map_or_else(|| key.path(), |name| format!("registry.{name}.{}", key.name))
    }

    /// The variable to name in advice: the registry's own where it has a section.
    pub(super) fn advised_variable(&self, secret: &SecretKey) -> String {
        self.section.as_ref().map_or_else(|| secret.variable.to_owned(), |name| secret.variable_of(name.as_str()))
    }
}
