//! Environment variables of single registries: `SVCDNS_REGISTRY_<NAME>_<SECRET>`.

use super::{ConfiguredRegistry, RegistryEntry, RegistryKind};
use crate::config::error::{ConfigError, nearest};
use crate::config::key::{REGISTRY_PREFIX, SecretKey, section_path};
use crate::config::layers::SecretVariable;
use crate::service::RegistryName;

/// The variables of single registries.
#[derive(Debug, Default)]
pub(in crate::config) struct RegistryVariables {
    given: Vec<SecretVariable>,
    /// Registries that a flag or variable replaced; their secrets are not used.
    replaced: Vec<RegistryEntry>,
}

impl RegistryVariables {
    /// Adds an environment variable that begins with [`REGISTRY_PREFIX`].
    pub(in crate::config) fn add(&mut self, variable: SecretVariable) {
        self.given.push(variable);
    }

    /// Adds registries that a source with higher precedence replaced.
    pub(in crate::config) fn replace(&mut self, entries: Vec<RegistryEntry>) {
        self.replaced.extend(entries);
    }

    /// Returns whether a registry of this kind was replaced.
    pub(super) fn has_replaced(&self, kind: &RegistryKind) -> bool {
        self.replaced.iter().any(|entry| entry.kind == kind)
    }

    /// Returns the variable with a secret of this registry; ignores an empty one.
    pub(super) fn of(&self, registry: &RegistryName, secret: &SecretKey) -> Option<SecretVariable> {
        let name = secret.variable_of(registry.as_str());
        let mut given = self.given.iter();
        given
            .find(|variable| variable.name == name && !variable.secret.expose().is_empty())
            .cloned()
    }

    /// Rejects variables of unknown registries and of unknown secrets.
    pub(super) fn check(&self, registries: &[ConfiguredRegistry]) -> Result<(), ConfigError> {
        let followed = registries.iter().map(|registry| (&registry.source.name, registry.kind));
        let replaced = self.replaced.iter().map(|entry| (&entry.name, entry.kind));
        let known: Vec<_> = followed.chain(replaced).collect();
        let variables = |(name, kind): &(&RegistryName, &RegistryKind)| {
            let name = name.as_str().to_owned();
            let secrets = kind.secrets.iter();
            secrets.map(move |secret| secret.variable_of(&name)).collect::<Vec<_>>()
        };
        let valid: Vec<String> = known.iter().flat_map(variables).collect();
        let invalid = self.given.iter().find(|variable| !valid.contains(&variable.name));
        let Some(SecretVariable { name, .. }) = invalid else { return Ok(()) };
        let rest = name.strip_prefix(REGISTRY_PREFIX).unwrap_or(name);
        let (upper, word) = rest.split_once('_').unwrap_or((rest, ""));
        let (registry, key) = (upper.to_lowercase(), word.to_lowercase().replace('_', "-"));
        let (reason, suggestion) = match known.iter().find(|(known, _)| known.as_str() == registry)
        {
            _ if word.is_empty() || upper != upper.to_uppercase() => (None, nearest(name, valid)),
            None => (Some(format!("there is no registry {registry:?}")), nearest(name, valid)),
            Some((_, kind)) if kind.section_key(&key).is_some() => {
                let path = section_path(&registry, &key);
                (Some(format!("{path} can only be set in the configuration file")), None)
            }
            Some(known) => {
                let kind = known.1.name;
                let reason = format!("the registry {registry} is of kind {kind} and has no {key}");
                (Some(reason), nearest(name, variables(known)))
            }
        };
        Err(ConfigError::UnknownVariable { name: name.clone(), reason, suggestion })
    }
}
