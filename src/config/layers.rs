//! Values before parsing: those of one source, and those of all sources merged.

use std::collections::HashMap;

use super::error::Origin;
use super::key::{Key, SecretKey, section_path};
use crate::registry::Secret;
use crate::service::RegistryName;

/// A value before it is parsed.
#[derive(Clone, Debug)]
pub(super) struct RawValue {
    /// The key as written, with its section: `etcd.username`, `registry.main.username`.
    pub(super) key: String,
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// The values of one key: any number for a list, otherwise one.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// The key as written, with its section.
    pub(super) key: String,
    pub(super) origin: Origin,
    pub(super) items: Vec<RawValue>,
}

/// The settings of one source, by the path of their key.
#[derive(Debug, Default)]
pub(super) struct Layer(HashMap<String, Setting>);

/// A secret in an environment variable.
#[derive(Clone, Debug)]
pub(super) struct SecretVariable {
    pub(super) name: String,
    pub(super) secret: Secret,
}

/// The merged settings of all sources: one for every key.
#[derive(Clone, Debug)]
pub(super) struct Layers {
    settings: HashMap<String, Setting>,
    /// Secrets for all registries of a kind, by the environment variable.
    secrets: HashMap<&'static str, SecretVariable>,
    /// Registry whose section overrides the general settings, if any.
    section: Option<RegistryName>,
}

impl Setting {
    /// Creates a setting with a single value.
    pub(super) fn single(value: RawValue) -> Self {
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
    /// Combines a setting for every key, and the secrets by their general variable.
    pub(super) fn new(
        settings: HashMap<String, Setting>,
        secrets: HashMap<&'static str, SecretVariable>,
    ) -> Self {
        Self { settings, secrets, section: None }
    }

    /// Returns a copy in which the section of a registry overrides the settings.
    #[must_use]
    pub(super) fn with_section(&self, name: &RegistryName, section: &Layer) -> Self {
        let mut layers = Self { section: Some(name.clone()), ..self.clone() };
        let own = section.0.iter().map(|(path, setting)| (path.clone(), setting.clone()));
        layers.settings.extend(own);
        layers
    }

    /// Returns a copy in which a key has another setting.
    #[must_use]
    pub(super) fn with(&self, key: &Key, setting: Setting) -> Self {
        let mut layers = self.clone();
        layers.settings.insert(key.path(), setting);
        layers
    }

    /// Sets or removes the variable that holds a secret.
    pub(super) fn set_secret(&mut self, secret: &SecretKey, variable: Option<SecretVariable>) {
        match variable {
            Some(variable) => self.secrets.insert(secret.variable, variable),
            None => self.secrets.remove(secret.variable),
        };
    }

    /// Returns the values of a list.
    pub(super) fn list(&self, key: &Key) -> &[RawValue] {
        self.settings.get(&key.path()).map_or(&[], |setting| &setting.items)
    }

    /// Returns the value of a key that is not a list; if several are given, the last.
    pub(super) fn one(&self, key: &Key) -> RawValue {
        self.list(key).last().cloned().unwrap_or_else(|| RawValue {
            key: self.written_as(key),
            text: String::new(),
            origin: self.origin(key),
        })
    }

    /// Returns the variable that holds a secret, if it is set.
    pub(super) fn secret(&self, secret: &SecretKey) -> Option<&SecretVariable> {
        self.secrets.get(secret.variable)
    }

    /// Returns the variable or the key that holds a secret or names its file, for messages.
    pub(super) fn place_of(&self, secret: &SecretKey) -> String {
        match self.secret(secret) {
            Some(variable) => format!("the environment variable {}", variable.name),
            None => self.written_as(secret.file),
        }
    }

    /// Returns the key and the variable to recommend for a secret, for messages.
    pub(super) fn recommended_places(&self, secret: &SecretKey) -> String {
        format!(
            "{} or the environment variable {}",
            self.recommended_key(secret.file),
            self.recommended_variable(secret)
        )
    }

    /// Returns the origin of a key's value.
    pub(super) fn origin(&self, key: &Key) -> Origin {
        self.settings.get(&key.path()).map_or(Origin::Default, |setting| setting.origin.clone())
    }

    /// Returns the key as written, with its section.
    pub(super) fn written_as(&self, key: &Key) -> String {
        self.settings.get(&key.path()).map_or_else(|| key.path(), |setting| setting.key.clone())
    }

    /// Returns whether the registry's own section sets the key.
    pub(super) fn in_section(&self, key: &Key) -> bool {
        self.written_as(key) != key.path()
    }

    /// Returns the key to recommend: the registry's own if it has a section.
    pub(super) fn recommended_key(&self, key: &Key) -> String {
        match &self.section {
            Some(name) => section_path(name.as_str(), key.name),
            None => key.path(),
        }
    }

    /// Returns the variable to recommend: the registry's own if it has a section.
    pub(super) fn recommended_variable(&self, secret: &SecretKey) -> String {
        match &self.section {
            Some(name) => secret.variable_of(name.as_str()),
            None => secret.variable.to_owned(),
        }
    }
}
