//! `svcdns diff`: compares the services of two registries.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use serde::{Serialize, Serializer};

use super::arguments::DiffArgs;
use super::registries::{self, RegistryReading};
use super::{DIFF_FAILED, DIFFERENT, ServerLocation, output};
use crate::catalog::{Instance, MAX_INSTANCES_PER_SERVICE, Service, spelling};
use crate::config::{Config, ConfigError, Origin};
use crate::name::Zones;
use crate::service::Endpoint;

pub(super) async fn run(location: &ServerLocation, command: DiffArgs) -> ExitCode {
    let json = command.json;
    let compared = compare(location, command).await.and_then(|difference| {
        let text =
            if json { serde_json::to_string(&difference)? + "\n" } else { text(&difference) };
        output::print(&text)?;
        Ok(if difference.is_empty() { ExitCode::SUCCESS } else { DIFFERENT.into() })
    });
    // As with diff(1), exit code 1 says that the registries differ.
    compared.unwrap_or_else(|error| {
        output::complain(&format!("{error:#}"));
        DIFF_FAILED.into()
    })
}

/// The difference between two registries.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct RegistryDifference {
    a: ComparedRegistry,
    b: ComparedRegistry,
    /// Number of instances that both have, with the same metadata.
    equal: usize,
    /// Instances that the first registry has and the second lacks.
    only_in_a: Vec<OwnedInstance>,
    /// Instances that the second registry has and the first lacks.
    only_in_b: Vec<OwnedInstance>,
    /// Instances that both have, with different metadata.
    metadata: Vec<ChangedInstance>,
}

/// One of the two registries.
#[derive(Debug, Serialize)]
struct ComparedRegistry {
    /// The name or URL on the command line, without secrets.
    name: String,
    url: String,
}

/// Metadata as text, by key.
type TextMetadata = BTreeMap<String, String>;

/// The instances of a registry, each with its metadata.
type Instances = BTreeMap<InstanceIdentity, TextMetadata>;

/// Identity of an instance; instances with equal identities are the same instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct InstanceIdentity {
    /// The registered name in lower case, such as `hello.svc`.
    service: String,
    deployment: String,
    namespace: String,
    version: String,
    #[serde(serialize_with = "as_text")]
    endpoint: Endpoint,
}

/// An instance that only one registry has.
#[derive(Debug, Serialize)]
struct OwnedInstance {
    #[serde(flatten)]
    identity: InstanceIdentity,
    metadata: TextMetadata,
}

/// An instance that both registries have, with the metadata in each.
#[derive(Debug, Serialize)]
struct ChangedInstance {
    #[serde(flatten)]
    identity: InstanceIdentity,
    a: TextMetadata,
    b: TextMetadata,
}

impl RegistryDifference {
    /// Compares the instances of two registries.
    fn new([(a, in_a), (b, mut in_b)]: [(ComparedRegistry, Instances); 2]) -> Self {
        let (mut equal, mut only_in_a, mut changed) = (0, Vec::new(), Vec::new());
        for (identity, a) in in_a {
            match in_b.remove(&identity) {
                Some(b) if a == b => equal += 1,
                Some(b) => changed.push(ChangedInstance { identity, a, b }),
                None => only_in_a.push(OwnedInstance { identity, metadata: a }),
            }
        }
        let only_in_b = in_b.into_iter();
        let only_in_b =
            only_in_b.map(|(identity, metadata)| OwnedInstance { identity, metadata }).collect();
        Self { a, b, equal, only_in_a, only_in_b, metadata: changed }
    }

    fn is_empty(&self) -> bool {
        self.only_in_a.is_empty() && self.only_in_b.is_empty() && self.metadata.is_empty()
    }
}

/// Reads both registries and compares them.
async fn compare(
    location: &ServerLocation,
    command: DiffArgs,
) -> anyhow::Result<RegistryDifference> {
    let [a, b] =
        [configured(location, &command, &command.a)?, configured(location, &command, &command.b)?];
    let (in_a, in_b) = tokio::try_join!(instances(&a), instances(&b))?;
    Ok(RegistryDifference::new([(a.registry, in_a), (b.registry, in_b)]))
}

/// A registry with the configuration to read it.
struct RegistryToRead {
    registry: ComparedRegistry,
    config: Config,
}

/// Returns the registry for an argument: a configured name or a URL.
fn configured(
    location: &ServerLocation,
    command: &DiffArgs,
    argument: &str,
) -> anyhow::Result<RegistryToRead> {
    let is_url = argument.contains("://");
    let flags = command.flags.0.clone();
    let flags = if is_url { flags.with("registry", argument) } else { flags };
    let configured = location.configure(command.file.config.as_deref(), flags);
    let mut config = configured.map_err(|error| match error {
        // The argument takes the place of a flag that the user did not give.
        ConfigError::Invalid { origin: Origin::Flag(flag), why, .. }
            if is_url && flag == "registry" =>
        {
            anyhow!("{argument}: {why}")
        }
        error => error.into(),
    })?;
    let named = |name: &str| name == argument;
    let mut registries = config.registries.iter();
    let found = registries.find(|registry| is_url || named(registry.name.as_str()));
    let Some(registry) = found.cloned() else {
        let names: Vec<_> =
            config.registries.iter().map(|registry| registry.name.to_string()).collect();
        bail!(
            "no registry is named {argument}; the configuration has {}; or give a URL",
            names.join(", ")
        );
    };
    let url = registry.source.to_string();
    let name = if is_url { url.clone() } else { argument.to_owned() };
    config.registries = vec![registry];
    // The services are compared as the registry holds them, under their own names.
    config.remove_aliases();
    config.max_instances_per_service = MAX_INSTANCES_PER_SERVICE;
    Ok(RegistryToRead { registry: ComparedRegistry { name, url }, config })
}

/// Reads the instances of a registry.
async fn instances(read: &RegistryToRead) -> anyhow::Result<Instances> {
    let RegistryReading { answerer, states } = registries::read(&read.config).await?;
    if let Some(error) = states.iter().find_map(|state| state.report().error) {
        bail!("{} could not be read completely: {error}", read.registry.name);
    }
    let rejected: u64 = answerer.rejections().counts.values().sum();
    if rejected > 0 {
        let rejected = output::counted(rejected, "key or endpoint", "keys and endpoints");
        output::complain(&format!(
            "{rejected} of {} cannot be served and {} not compared",
            read.registry.name,
            if rejected.starts_with("1 ") { "was" } else { "were" }
        ));
    }
    let mut instances = Instances::new();
    for service in answerer.snapshot().services() {
        add_instances(service, &read.config.zones, &mut instances);
    }
    Ok(instances)
}

/// Adds the instances of a service, whether they are served or not.
fn add_instances(service: &Service, zones: &Zones, instances: &mut Instances) {
    for Instance { key, endpoint, .. } in service.instances() {
        let group = key.group();
        let identity = InstanceIdentity {
            service: spelling(service.base(), key.rank(), zones),
            deployment: group.deployment.to_string(),
            namespace: group.namespace.to_string(),
            version: group.version.to_string(),
            endpoint: endpoint.clone(),
        };
        // Of equal endpoints, the served one comes first.
        instances.entry(identity).or_insert_with(|| {
            let entries = key.metadata.iter();
            entries.map(|(name, value)| (name.to_owned(), value.into_owned())).collect()
        });
    }
}

/// Formats the difference as a table and a summary.
fn text(difference: &RegistryDifference) -> String {
    let RegistryDifference { a, b, equal, only_in_a, only_in_b, metadata } = difference;
    let (a, b) = (&a.name, &b.name);
    let only = |instances: &[OwnedInstance], name: &str| {
        let row = |instance: &OwnedInstance| row(&instance.identity, format!("only in {name}"));
        instances.iter().map(row).collect::<Vec<_>>()
    };
    let changed = metadata.iter().map(|instance| {
        let differences = metadata_differences([(a, &instance.a), (b, &instance.b)]);
        row(&instance.identity, differences)
    });
    let mut rows = [only(only_in_a, a), only(only_in_b, b), changed.collect()].concat();
    rows.sort_by(|(one, _), (other, _)| one.cmp(other));
    let instances = |count: usize| output::counted(count as u64, "instance", "instances");
    if rows.is_empty() {
        return format!("{a} and {b} are equal: {}\n", instances(*equal));
    }
    let headings = ["SERVICE", "ENDPOINT", "DEPLOYMENT/NAMESPACE", "VERSION", "DIFFERENCE"];
    let mut text = output::columns(headings, rows.into_iter().map(|(_, row)| row));
    let _ = writeln!(
        text,
        "\n{} only in {a}, {} only in {b}, {} with other metadata, {equal} equal",
        instances(only_in_a.len()),
        only_in_b.len(),
        metadata.len()
    );
    text
}

/// Returns a row of the table, with the instance by which it is sorted.
fn row(identity: &InstanceIdentity, difference: String) -> (InstanceIdentity, [String; 5]) {
    let InstanceIdentity { service, deployment, namespace, version, endpoint } = identity;
    let scope = format!("{deployment}/{namespace}");
    let row = [service.clone(), endpoint.to_string(), scope, version.clone(), difference];
    (identity.clone(), row.map(|text| output::escape_controls(&text)))
}

/// Describes the entries that differ: `weight=5 in a, weight=7 in b`.
fn metadata_differences([(a, in_a), (b, in_b)]: [(&str, &TextMetadata); 2]) -> String {
    let mut parts = Vec::new();
    let mut keys: Vec<&String> = in_a.keys().chain(in_b.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys.into_iter().filter(|key| in_a.get(*key) != in_b.get(*key)) {
        for (name, metadata) in [(a, in_a), (b, in_b)] {
            parts.extend(metadata.get(key).map(|value| format!("{key}={value} in {name}")));
        }
    }
    parts.join(", ")
}

fn as_text<S: Serializer>(endpoint: &Endpoint, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(endpoint)
}
