//! Settings as they were written: those of one source, and those of all sources merged.

use std::collections::HashMap;

use super::error::Origin;
use super::key::{Key, SecretKey};
use crate::registry::Secret;

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

    pub(super) fn take(&mut self, key: &Key) -> Option<Setting> {
        self.0.remove(&key.path())
    }
}

impl Layers {
    /// Joins a setting for every key, and the secrets of the environment by their variables.
    pub(super) fn new(settings: HashMap<String, Setting>, secrets: HashMap<&'static str, Secret>) -> Self {
        Self { settings, secrets }
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

    /// Whether the secret was given, in its variable or in its file.
    pub(super) fn has(&self, secret: &SecretKey) -> bool {
        self.secret(secret).is_some() || !self.one(secret.file).text.is_empty()
    }

    /// Where the key was written.
    pub(super) fn origin(&self, key: &Key) -> Origin {
        self.settings.get(&key.path()).map_or(Origin::Default, |setting| setting.origin.clone())
    }
}
