//! What changes between two configurations, and what of it needs a restart.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;

use super::error::Origin;
use super::key::Key;
use super::keys;
use super::secret::SecretPlace;
use super::table::KEYS;
use super::{Config, EffectiveValue};
use crate::regular_file;

/// Sections whose keys need a restart.
const RESTART_SECTIONS: [&str; 2] = ["bridge", "checks"];

/// Keys outside these sections that need a restart.
const RESTART_KEYS: [&Key; 2] = [keys::RUNTIME_DIR, keys::STATE_DIR];

/// Maximum size of a file with a secret, in bytes.
const MAX_SECRET_FILE_BYTES: u64 = 64 * 1024;

/// The effect of a changed value on a running server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A reload applies it.
    Applied,
    /// The server keeps the old value until it is started again.
    NeedsRestart,
}

/// A difference between two configurations; it contains no secret text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    /// Path of the key: `ttl`, `registry.main.url`, `alias.www`.
    pub path: String,
    /// The old value as the file writes it; `None` if it was not set.
    pub before: Option<String>,
    /// The new value as the file writes it; `None` if it is no longer set.
    pub after: Option<String>,
    /// Source of the new value; that of the old one if there is no new one.
    pub source: String,
    /// Whether a reload applies the change.
    pub effect: Effect,
}

/// A value of a configuration, for the comparison with another one.
struct Value<'a> {
    path: &'a str,
    text: String,
    origin: &'a Origin,
    effect: Effect,
}

impl Key {
    /// Returns whether a change of this key needs a restart.
    pub fn needs_restart(&self) -> bool {
        RESTART_SECTIONS.contains(&self.section) || RESTART_KEYS.contains(&self)
    }
}

impl Config {
    /// Returns what changes if `new` replaces this configuration.
    ///
    /// The changes are in the order of the documentation; values that `new` no longer sets come
    /// last. The content of files with secrets is not compared ([`SecretDigests`]).
    pub fn changes_to(&self, new: &Self) -> Vec<ConfigChange> {
        let (before, after) = (self.values(), new.values());
        let (old, now) = (by_path(&before), by_path(&after));
        let mut changes: Vec<ConfigChange> = Vec::new();
        for (value, other) in after.iter().map(|value| (value, old.get(value.path))) {
            let (text, before) = (now.get(value.path), other);
            if text == before || changes.iter().any(|change| change.path == value.path) {
                continue;
            }
            changes.push(value.change(before.cloned(), text.cloned()));
        }
        for value in before.iter().filter(|value| !now.contains_key(value.path)) {
            if changes.iter().all(|change| change.path != value.path) {
                changes.push(value.change(old.get(value.path).cloned(), None));
            }
        }
        changes.extend(self.changed_order(new));
        changes
    }

    /// Returns this configuration with the old values of the keys that need a restart.
    #[must_use]
    pub fn keeping_restart_keys(self, old: &Self) -> Self {
        let mut effective = self.effective;
        for value in effective.iter_mut().filter(|value| value.key.needs_restart()) {
            if let Some(kept) = old.effective.iter().find(|kept| kept.path == value.path) {
                *value = kept.clone();
            }
        }
        Self {
            bridge: old.bridge.clone(),
            checks: old.checks.clone(),
            runtime_dir: old.runtime_dir.clone(),
            state_dir: old.state_dir.clone(),
            effective,
            ..self
        }
    }

    /// Returns all values, without those that the section of a registry only inherits.
    fn values(&self) -> Vec<Value<'_>> {
        let is_own = |(at, value): &(usize, &EffectiveValue)| *at < KEYS.len() || value.written;
        let values = self.effective.iter().enumerate().filter(is_own).map(|(_, value)| Value {
            path: &value.path,
            text: value.value.clone(),
            origin: &value.origin,
            effect: if value.key.needs_restart() { Effect::NeedsRestart } else { Effect::Applied },
        });
        let aliases = self.aliases.iter().map(|alias| Value {
            path: &alias.path,
            text: alias.quoted_target(),
            origin: &alias.origin,
            effect: Effect::Applied,
        });
        values.chain(aliases).collect()
    }

    /// Returns the change of the order of the registries that both configurations have, if any.
    ///
    /// With `merge = "first"`, the order decides which instances are served.
    fn changed_order(&self, new: &Self) -> Option<ConfigChange> {
        let names = |config: &Self, other: &Self| -> Vec<String> {
            let names = config.registries.iter().map(|registry| registry.name.to_string());
            let other: Vec<_> = other.registries.iter().map(|of| of.name.to_string()).collect();
            names.filter(|name| other.contains(name)).collect()
        };
        let (before, after) = (names(self, new), names(new, self));
        (before != after).then(|| ConfigChange {
            path: "order of the registries".to_owned(),
            before: Some(before.join(", ")),
            after: Some(after.join(", ")),
            source: new.origin_of(keys::REGISTRY).to_string(),
            effect: Effect::Applied,
        })
    }

    /// Returns the source of the value of a key, with the key, as messages begin.
    pub fn place_of(&self, path: &str) -> String {
        let value = self.effective.iter().find(|value| value.path == path);
        format!("{}: {path}", value.map_or(&Origin::Default, |value| &value.origin))
    }

    /// Returns the source of the value of a key.
    fn origin_of(&self, key: &Key) -> Origin {
        let mut values = self.effective.iter();
        let value = values.find(|value| value.path == key.path());
        value.map_or(Origin::Default, |value| value.origin.clone())
    }
}

impl Value<'_> {
    fn change(&self, before: Option<String>, after: Option<String>) -> ConfigChange {
        ConfigChange {
            path: self.path.to_owned(),
            before,
            after,
            source: self.origin.to_string(),
            effect: self.effect,
        }
    }
}

/// Returns the text of each path; that of static services with one name is joined.
fn by_path<'a>(values: &'a [Value<'a>]) -> HashMap<&'a str, String> {
    let mut texts = HashMap::<&str, String>::new();
    for Value { path, text, .. } in values {
        let known = texts.entry(path).or_default();
        if !known.is_empty() {
            known.push_str(", ");
        }
        known.push_str(text);
    }
    texts
}

/// Digests of the files with the secrets of the registries.
///
/// They show that a secret was changed. They are keyed at random and never leave the process.
#[derive(Clone, Debug, Default)]
pub struct SecretDigests {
    hasher: RandomState,
    /// Each file with its digest, by its key; `None` if it cannot be read.
    files: BTreeMap<String, (PathBuf, Option<u64>)>,
}

impl SecretDigests {
    /// Reads the files of a configuration, with the key of these digests.
    #[must_use]
    pub fn of(&self, config: &Config) -> Self {
        let digest = |path: &PathBuf| {
            let content = regular_file::read_blocking(path, MAX_SECRET_FILE_BYTES);
            content.ok().map(|content| self.hasher.hash_one(content))
        };
        let files = config.secrets.iter().filter_map(|secret| match &secret.place {
            SecretPlace::File(path) => {
                Some((secret.file_key.clone(), (path.clone(), digest(path))))
            }
            SecretPlace::Variable(_) => None,
        });
        Self { hasher: self.hasher.clone(), files: files.collect() }
    }

    /// Returns the files whose content is another one in `new`.
    pub fn changes_to(&self, new: &Self) -> Vec<ConfigChange> {
        let is_changed = |(key, (path, digest)): &(&String, &(PathBuf, Option<u64>))| {
            self.files.get(*key).is_some_and(|(old, known)| old == path && known != digest)
        };
        let change = |(key, (path, _)): (&String, &(PathBuf, _))| ConfigChange {
            path: key.clone(),
            before: Some("the old secret".to_owned()),
            after: Some("another one".to_owned()),
            source: path.display().to_string(),
            effect: Effect::Applied,
        };
        new.files.iter().filter(is_changed).map(change).collect()
    }
}
