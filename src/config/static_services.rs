//! Static services in the configuration file: one table `[[static]]` for each.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Number, Value};
use toml::Spanned;
use toml::de::{DeString, DeValue};

use super::effective::EffectiveValue;
use super::error::{ConfigError, Origin, nearest};
use super::key::{Key, STATIC, keys};
use super::keys::{DEPLOYMENT, NAMESPACE};
use super::layers::{Layer, Layers, RawValue, Setting};
use super::registry::{ConfiguredRegistry, URL};
use super::toml_file::{ConfigFile, in_order};
use super::values::{invalid, key_segment};
use crate::catalog;
use crate::name::{Zones, base_of};
use crate::registry::static_services::Settings;
use crate::registry::{NamedSource, Source, gsvc};
use crate::service::{
    Endpoint, InvalidRegistryName, MAX_REGISTRIES, Metadata, Registration, ServiceId,
};

keys! { STATIC_KEYS:
    NAME = "static" "name" Text "NAME" "" r#""legacy""#
        "Registered name of the service, as a GoFrame program would write it.";
    ENDPOINTS = "static" "endpoints" List "HOST:PORT" "endpoints" r#"["10.0.0.7:8080"]"#
        "Instances of the service.";
    STATIC_VERSION = "static" "version" Text "VERSION" "" r#""latest""# "Version of the service.";
    STATIC_NAMESPACE = "static" "namespace" Text "NAME" "" r#""""# => "`namespace`"
        "GoFrame namespace of the service.";
    STATIC_DEPLOYMENT = "static" "deployment" Text "NAME" "" r#""""# => "`deployment`"
        "GoFrame deployment of the service.";
    METADATA = "static" "metadata" Table "TABLE" "strings, numbers, `true` and `false`" "{}"
        "Metadata of the instances, such as `{ weight = 5, protocol = \"http\" }`.";
    OVERRIDE = "static" "override" Bool "BOOL" "" "false"
        "Serve only these instances of the name in this deployment and namespace, even if a \
         registry has others. If off, serve them only while no registry has a usable endpoint of \
         the name there.";
}

/// The keys without a default.
pub(super) const REQUIRED: [&Key; 2] = [NAME, ENDPOINTS];

/// A table `[[static]]` as written.
#[derive(Debug)]
pub(super) struct StaticEntry {
    /// Location of the table.
    origin: Origin,
    file: PathBuf,
    layer: Layer,
    metadata: BTreeMap<Box<str>, Value>,
}

impl StaticEntry {
    /// Reads all tables.
    pub(super) fn all(
        file: &ConfigFile<'_>,
        name: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<Self>, ConfigError> {
        match value.get_ref() {
            DeValue::Array(items) if items.iter().all(|item| item.get_ref().is_table()) => {
                items.iter().map(|item| Self::read(file, item)).collect()
            }
            _ => {
                let origin = file.origin(name.span().start);
                let why = "each static service is a table in a list: write [[static]]".to_owned();
                Err(ConfigError::Invalid { origin, key: STATIC.to_owned(), why })
            }
        }
    }

    fn read(file: &ConfigFile<'_>, item: &Spanned<DeValue<'_>>) -> Result<Self, ConfigError> {
        let mut entry = Self {
            origin: file.origin(item.span().start),
            file: file.path.to_owned(),
            layer: Layer::new(),
            metadata: BTreeMap::new(),
        };
        let DeValue::Table(table) = item.get_ref() else { return Ok(entry) };
        for (name, value) in in_order(table) {
            let origin = file.origin(name.span().start);
            let path = format!("{STATIC}.{}", name.get_ref());
            let Some(key) = STATIC_KEYS.iter().find(|key| key.name == name.get_ref().as_ref())
            else {
                let suggestion = nearest(&path, STATIC_KEYS.iter().map(|key| key.path()));
                let suggestion = suggestion.map(|path| format!("`{path}`"));
                return Err(ConfigError::UnknownKey { origin, key: path, suggestion });
            };
            let items = match value.get_ref() {
                DeValue::Table(values) if *key == METADATA => {
                    for (name, value) in in_order(values) {
                        let read = entry_of_metadata(file, &path, name, value)?;
                        entry.metadata.insert(name.get_ref().as_ref().into(), read);
                    }
                    Vec::new()
                }
                _ => file.items(key, &path, value)?,
            };
            entry.layer.insert(key, Setting { key: path, origin, items });
        }
        for required in REQUIRED {
            if entry.items(required).is_empty() {
                let why = format!(
                    "a static service needs this key: add {} = {}, for example",
                    required.name, required.default
                );
                let origin = entry.origin.clone();
                return Err(ConfigError::Invalid { origin, key: required.path(), why });
            }
        }
        Ok(entry)
    }

    fn items(&self, key: &Key) -> &[RawValue] {
        self.layer.get(key).map_or(&[], |setting| &setting.items)
    }

    /// Returns the value of a key, or `default` if the table lacks the key.
    fn value(&self, key: &Key, default: &str) -> RawValue {
        self.items(key).last().cloned().unwrap_or_else(|| RawValue {
            key: key.path(),
            text: default.to_owned(),
            origin: self.origin.clone(),
        })
    }

    /// Parses the registration with the parser of registries.
    fn registration(&self, layers: &Layers, zones: &Zones) -> Result<Registration, ConfigError> {
        let segment = |key: &Key, default: &str| {
            let value = self.value(key, default);
            key_segment(&value.text).map_err(|why| invalid(&value, why))
        };
        let name = segment(NAME, "")?;
        let id = ServiceId {
            deployment: segment(STATIC_DEPLOYMENT, &layers.one(DEPLOYMENT).text)?.into(),
            namespace: segment(STATIC_NAMESPACE, &layers.one(NAMESPACE).text)?.into(),
            name: name.as_str().into(),
            version: segment(STATIC_VERSION, "latest")?.into(),
        };
        base_of(&name, zones).map_err(|error| {
            invalid(&self.value(NAME, ""), format!("{name:?} cannot be served: {error}"))
        })?;
        let endpoints = self.items(ENDPOINTS).iter();
        let endpoints = endpoints.map(|item| endpoint(item, zones)).collect::<Result<_, _>>()?;
        let metadata = Metadata::new(self.metadata.clone()).into();
        let overrides = self.value(OVERRIDE, OVERRIDE.default).text == "true";
        Ok(Registration { id, endpoints, rejected: Vec::new(), metadata, overrides })
    }

    /// Returns the keys of the table except the name, each with its value.
    fn effective(&self) -> Vec<EffectiveValue> {
        let quoted = |text: &str| Value::from(text).to_string();
        let value = |key: &Key, items: &[RawValue]| match key {
            key if *key == *METADATA => toml::Value::try_from(&self.metadata)
                .map_or_else(|error| error.to_string(), |table| table.to_string()),
            key if *key == *ENDPOINTS => {
                let items: Vec<_> = items.iter().map(|item| quoted(&item.text)).collect();
                format!("[{}]", items.join(", "))
            }
            key if *key == *OVERRIDE => items.iter().map(|item| item.text.as_str()).collect(),
            _ => items.iter().map(|item| quoted(&item.text)).collect(),
        };
        let name = self.value(NAME, "").text;
        let keys = STATIC_KEYS.iter().copied().filter(|key| *key != NAME);
        keys.filter_map(|key| {
            let setting = self.layer.get(key)?;
            Some(EffectiveValue {
                key,
                path: format!("{STATIC}.{name}.{}", key.name),
                value: value(key, &setting.items),
                origin: setting.origin.clone(),
                written: true,
            })
        })
        .collect()
    }
}

/// Reads a value of the metadata.
fn entry_of_metadata(
    file: &ConfigFile<'_>,
    path: &str,
    name: &Spanned<DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
) -> Result<Value, ConfigError> {
    let read = match value.get_ref() {
        DeValue::String(text) => Some(Value::from(text.as_ref())),
        DeValue::Boolean(value) => Some(Value::from(*value)),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(Value::from)
        }
        DeValue::Float(number) => {
            let number = number.as_str().parse().ok().and_then(Number::from_f64);
            number.map(Value::Number)
        }
        _ => None,
    };
    read.ok_or_else(|| {
        let why = format!(
            "expected a string, a finite number, true or false, found a value of type {}",
            value.get_ref().type_str()
        );
        let (origin, key) = (file.origin(value.span().start), format!("{path}.{}", name.get_ref()));
        ConfigError::Invalid { origin, key, why }
    })
}

/// Parses an endpoint with the parser of registries, which only skips an invalid one.
fn endpoint(item: &RawValue, zones: &Zones) -> Result<Endpoint, ConfigError> {
    let key = format!("/{STATIC}/d/n/name/v/{}", item.text);
    let parsed = gsvc::parse(key.as_bytes(), b"").map_err(|rejected| rejected.reason);
    let mut registration = parsed.map_err(|reason| invalid(item, reason.to_string()))?;
    if let Some(rejected) = registration.rejected.first() {
        return Err(invalid(item, format!("{:?}: {}", item.text, rejected.reason)));
    }
    let endpoint = registration.endpoints.pop().filter(|_| registration.endpoints.is_empty());
    let Some(endpoint) = endpoint else {
        let why = format!("{:?} is not one endpoint, such as 10.0.0.7:8080", item.text);
        return Err(invalid(item, why));
    };
    match catalog::reject_host(&endpoint.host, zones) {
        Some(reason) => Err(invalid(item, format!("{:?}: {reason}", item.text))),
        None => Ok(endpoint),
    }
}

/// Returns the registry of the static services, and their effective values.
///
/// It is the last of the registries. `None` if there is no static service.
pub(super) fn read(
    entries: &[StaticEntry],
    layers: &Layers,
    zones: &Zones,
    registries: &[ConfiguredRegistry],
) -> Result<(Option<NamedSource>, Vec<EffectiveValue>), ConfigError> {
    let Some(first) = entries.first() else { return Ok((None, Vec::new())) };
    let at_first = |why: String| {
        let (origin, key) = (first.origin.clone(), STATIC.to_owned());
        ConfigError::Invalid { origin, key, why }
    };
    if registries.len() == MAX_REGISTRIES {
        return Err(at_first(format!(
            "the static services count as a registry, and at most {MAX_REGISTRIES} can be \
             followed (a fixed limit): remove a registry"
        )));
    }
    let of_that_name = |registry: &&ConfiguredRegistry| registry.source.name.as_str() == STATIC;
    if let Some(registry) = registries.iter().find(of_that_name) {
        let why = "the registry of the static services has this name: choose another".to_owned();
        let key = registry.path(URL);
        return Err(ConfigError::Invalid { origin: registry.url.origin.clone(), key, why });
    }
    let mut registrations = Vec::new();
    let (mut endpoints, mut overrides) = (HashMap::new(), HashMap::new());
    for entry in entries {
        let registration = entry.registration(layers, zones)?;
        check_against_others(entry, &registration, zones, &mut endpoints, &mut overrides)?;
        registrations.push(registration);
    }
    let name = STATIC.parse().map_err(|error: InvalidRegistryName| at_first(error.to_string()))?;
    let source = Source::Static(Settings { file: absolute(&first.file), registrations });
    let registry = NamedSource { name, source, removal_grace: Duration::ZERO };
    Ok((Some(registry), entries.iter().flat_map(StaticEntry::effective).collect()))
}

/// Checks a static service against the ones before it.
///
/// No endpoint occurs twice in one version of a service, and `override` holds for the whole name.
fn check_against_others(
    entry: &StaticEntry,
    registration: &Registration,
    zones: &Zones,
    endpoints: &mut HashMap<([String; 4], Endpoint), Origin>,
    overrides: &mut HashMap<[String; 3], (bool, Origin)>,
) -> Result<(), ConfigError> {
    let Registration { id, .. } = registration;
    let base = base_of(&id.name, zones).map_or_else(|_| id.name.to_string(), |base| base.text);
    let name = [&*id.deployment, &*id.namespace, &base].map(str::to_ascii_lowercase);
    let [deployment, namespace, base] = name.clone();
    let group = [deployment, namespace, base, id.version.to_ascii_lowercase()];
    for (endpoint, item) in registration.endpoints.iter().zip(entry.items(ENDPOINTS)) {
        let other = endpoints.insert((group.clone(), endpoint.clone()), item.origin.clone());
        if let Some(other) = other {
            let why = format!("{endpoint} is listed for {} already, at {other}", id.name);
            return Err(invalid(item, why));
        }
    }
    let value = entry.value(OVERRIDE, OVERRIDE.default);
    let (other, origin) =
        overrides.entry(name).or_insert_with(|| (registration.overrides, entry.origin.clone()));
    if *other != registration.overrides {
        let why = format!(
            "override counts for all instances of {}, and the table at {origin} has another value",
            id.name
        );
        return Err(invalid(&value, why));
    }
    Ok(())
}

/// Returns the file as an absolute path: the reader of a message may not know our directory.
fn absolute(file: &Path) -> PathBuf {
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned())
}
