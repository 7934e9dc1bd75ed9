//! The secrets of the registries that are followed, and where they come from.

use std::fmt;
use std::path::PathBuf;

use super::key::SecretKey;
use super::registry::ConfiguredRegistry;
use super::values::path;
use crate::service::RegistryName;

/// A secret of a registry, without the secret itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenSecret {
    /// The registry.
    pub registry: RegistryName,
    /// What it is.
    pub key: &'static SecretKey,
    /// The key for its file in the registry's own section: `registry.main.password-file`.
    pub file_key: String,
    /// Where it is.
    pub place: SecretPlace,
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretPlace {
    /// In this variable of the environment.
    Variable(String),
    /// In this file.
    File(PathBuf),
}

impl GivenSecret {
    /// Lists the secrets of a registry.
    pub(super) fn of(registry: &ConfiguredRegistry) -> Vec<Self> {
        let given = |key: &&'static SecretKey| {
            let place = match registry.layers.secret(key) {
                Some(variable) => SecretPlace::Variable(variable.name.clone()),
                None => SecretPlace::File(path(&registry.layers, key.file)?),
            };
            Some(Self { registry: registry.source.name.clone(), key, file_key: registry.path(key.file), place })
        };
        registry.kind.secrets.iter().filter_map(given).collect()
    }
}

impl fmt::Display for SecretPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "the variable {name}"),
            Self::File(path) => write!(f, "the file {}", path.display()),
        }
    }
}
