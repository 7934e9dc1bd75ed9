//! The secrets of the configured registries, given by where they are stored.

use std::fmt;
use std::path::PathBuf;

use super::key::SecretKey;
use super::registry::ConfiguredRegistry;
use super::values::path;
use crate::service::RegistryName;

/// A secret that is set for a registry; the value contains no secret text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfiguredSecret {
    /// The registry.
    pub registry: RegistryName,
    /// The kind of secret.
    pub key: &'static SecretKey,
    /// Key for its file in the registry's own section: `registry.main.password-file`.
    pub file_key: String,
    /// Location of the secret.
    pub place: SecretPlace,
}

/// Location of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretPlace {
    /// The secret is in this environment variable.
    Variable(String),
    /// The secret is in this file.
    File(PathBuf),
}

impl ConfiguredSecret {
    /// Returns the secrets that are set for a registry.
    pub(super) fn of(registry: &ConfiguredRegistry) -> Vec<Self> {
        let configured = |key: &&'static SecretKey| {
            let place = match registry.layers.secret(key) {
                Some(variable) => SecretPlace::Variable(variable.name.clone()),
                None => SecretPlace::File(path(&registry.layers, key.file)?),
            };
            Some(Self {
                registry: registry.source.name.clone(),
                key,
                file_key: registry.path(key.file),
                place,
            })
        };
        registry.kind.secrets.iter().filter_map(configured).collect()
    }
}

impl fmt::Display for SecretPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "the environment variable {name}"),
            Self::File(path) => write!(f, "the file {}", path.display()),
        }
    }
}
