//! The variables of single registries: a secret for each, `SVCDNS_REGISTRY_<NAME>_<SECRET>`.

use super::{ConfiguredRegistry, RegistryEntry, RegistryKind, section_path};
use crate::config::error::{ConfigError, nearest};
use crate::config::key::{REGISTRY_PREFIX, SecretKey};
use crate::config::layers::SecretVariable;
use crate::service::RegistryName;

/// The secrets that the environment holds for single registries.
#[derive(Debug, Default)]
pub(in crate::config) struct RegistryVariables {
    given: Vec<SecretVariable>,
    /// Registries that a flag or a variable has replaced: their variables are no mistake.
    replaced: Vec<RegistryEntry>,
}

impl RegistryVariables {
    /// Adds a variable that begins with the prefix.
    pub(in crate::config) fn give(&mut self, variable: SecretVariable) {
        self.given.push(variable);
    }

    /// Adds registries that are not followed because others were named in their place.
    pub(in crate::config) fn replace(&mut self, entries: Vec<RegistryEntry>) {
        self.replaced.extend(entries);
    }

    /// Whether a registry of this kind has been replaced.
    pub(super) fn replaced(&self, kind: &RegistryKind) -> bool {
        self.replaced.iter().any(|entry| entry.kind == kind)
    }

    /// Returns the variable that holds the secret of this registry; an empty one counts as not set.
    pub(super) fn of(&self, registry: &RegistryName, secret: &SecretKey) -> Option<SecretVariable> {
        let name = secret.variable_of(registry.as_str());
        self.given.iter().find(|variable| variable.name == name && !variable.secret.expose().is_empty()).cloned()
    }

    /// Refuses variables of registries that do not exist, and of secrets that they do not have.
    pub(super) fn check(&self, registries: &[ConfiguredRegistry]) -> Result<(), ConfigError> {
        let followed = registries.iter().map(|registry| (&registry.source.name, registry.kind));
        let known: Vec<_> = followed.chain(self.replaced.iter().map(|entry| (&entry.name, entry.kind))).collect();
        let variables = |(name, kind): &(&RegistryName, &RegistryKind)| {
            let name = name.as_str().to_owned();
            kind.secrets.iter().map(move |secret| secret.variable_of(&name)).collect::<Vec<_>>()
        };
        let valid: Vec<String> = known.iter().flat_map(variables).collect();
        let Some(SecretVariable { name, .. }) = self.given.iter().find(|variable| !valid.contains(&variable.name)) else { return Ok(()) };
        let rest = name.strip_prefix(REGISTRY_PREFIX).unwrap_or(name);
        let (upper, word) = rest.split_once('_').unwrap_or((rest, ""));
        let (registry, key) = (upper.to_lowercase(), word.to_lowercase().replace('_', "-"));
        let (missing, suggestion) = match known.iter().find(|(known, _)| known.as_str() == registry) {
            _ if word.is_empty() || upper != upper.to_uppercase() => ("no such setting".to_owned(), nearest(name, valid)),
            None => (format!("no registry {registry:?}"), nearest(name, valid)),
            Some((_, kind)) if kind.section_key(&key).is_some() => {
                let path = section_path(&registry, &key);
                (format!("no variable for {path}, which can only be set in the configuration file"), None)
            }
            Some(known) => {
                let missing = format!("no {key} of the registry {registry}, which is of kind {}", known.1.name);
                (missing, nearest(name, variables(known)))
            }
        };
        Err(ConfigError::UnknownVariable { name: name.clone(), missing, suggestion })
    }
}
