//! Conversion of Consul's answers to [`crate::service`].
//!
//! GoFrame (`contrib/registry/consul`) stores its metadata as one JSON text. Entries of other
//! programs have their `Meta` as metadata, and their tags as the entry `tag` of it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::client::{Answer, parse_body};
use super::failure::{ConsulFailure, excerpt};
use crate::registry::gsvc;
use crate::service::{
    Change, Endpoint, Metadata, Put, Reason, Registration, Rejected, Removal, ServiceId, key_prefix,
};

/// The entry has no port.
///
/// Consul leaves out the port 0, which GoFrame registers for a server on `[::]`.
pub const NO_PORT: Reason = Reason::new("no-port", "the Consul service has no port");

/// Neither the entry nor its node has an address.
pub const NO_ADDRESS: Reason =
    Reason::new("no-address", "neither the Consul service nor its node has an address");

/// The entry is not an object of the known form.
pub const ENTRY_NOT_JSON: Reason =
    Reason::new("entry-not-json", "the entry is not a service as Consul describes it");

/// Lease of all instances, in [`Put`] and in replies about leases.
///
/// A check that becomes critical is like a lease that expires. Consul says for each instance
/// whether it was deregistered or its check is critical, so no lease has to be told from others.
pub(super) const CHECK_LEASE: i64 = 1;

/// The instances of one service.
#[derive(Debug)]
pub(super) struct Instances {
    /// Deletes of the instances with a critical check.
    pub(super) expired: Vec<Change>,
    /// Puts of the others, and of entries that cannot be served.
    pub(super) listed: Vec<Change>,
}

/// Consul's aggregated status of an instance: the worst of its checks and its node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Status {
    Passing,
    Warning,
    Critical,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(borrow)]
    node: Option<NodeEntry<'a>>,
    #[serde(borrow)]
    service: Option<ServiceEntry<'a>>,
    checks: Option<Vec<Check<'a>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NodeEntry<'a> {
    #[serde(borrow)]
    node: Option<Cow<'a, str>>,
    address: Option<Cow<'a, str>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceEntry<'a> {
    #[serde(rename = "ID", borrow)]
    id: Option<Cow<'a, str>>,
    service: Option<Cow<'a, str>>,
    tags: Option<Vec<Cow<'a, str>>>,
    address: Option<Cow<'a, str>>,
    port: Option<i64>,
    meta: Option<BTreeMap<Box<str>, Cow<'a, str>>>,
    weights: Option<Weights>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check<'a> {
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: Option<i64>,
    warning: Option<i64>,
}

/// Parses the answer about the instances of `name`.
///
/// An entry that cannot be served is rejected and affects no other.
///
/// # Errors
/// If the answer is not a list.
pub(super) fn parse(name: &str, answer: &Answer) -> Result<Instances, ConsulFailure> {
    let entries: Option<Vec<&RawValue>> = parse_body(&answer.body)?;
    let mut instances = Instances { expired: Vec::new(), listed: Vec::new() };
    let (mut served, mut critical) = (false, false);
    let prefix = key_prefix(name);
    for (position, raw) in entries.unwrap_or_default().into_iter().enumerate() {
        let Ok(entry) = serde_json::from_str::<Entry<'_>>(raw.get()) else {
            let rejected = Rejected::new(&excerpt(raw.get().as_bytes()), ENTRY_NOT_JSON);
            let key = format!("{prefix}/{position}");
            instances.listed.push(put(key, Err(rejected)));
            continue;
        };
        let status = entry.status();
        let node = entry.node.unwrap_or_default();
        let service = entry.service.unwrap_or_default();
        // Consul compares names ignoring case: the entries of `Web` are listed for `web`, too.
        if service.service.as_deref().is_some_and(|service| service != name) {
            continue;
        }
        // The prefix of a node's keys, as that of a name, tells it from what follows.
        let node_prefix = key_prefix(node.node.as_deref().unwrap_or_default());
        let key = format!("{prefix}{node_prefix}{}", service.id.as_deref().unwrap_or_default());
        if status == Status::Critical {
            critical = true;
            let key = key.into_boxed_str();
            let removal = Removal::Unknown;
            instances.expired.push(Change::Delete { key, revision: 0, removal });
        } else {
            let content = registration(name, &service, &node, status);
            served |= content.is_ok();
            instances.listed.push(put(key, content));
        }
    }
    if critical && !served {
        // The service exists, without an instance.
        let id = service_id(name, "");
        let nothing = Registration {
            id,
            endpoints: Vec::new(),
            rejected: Vec::new(),
            metadata: Arc::default(),
        };
        instances.listed.push(put(prefix, Ok(nothing)));
    }
    Ok(instances)
}

impl Entry<'_> {
    fn status(&self) -> Status {
        let checks = self.checks.iter().flatten();
        let status = |check: &Check<'_>| match check.status.as_deref() {
            None | Some("passing") => Status::Passing,
            Some("warning") => Status::Warning,
            // `critical`, or `maintenance` in a future version.
            Some(_) => Status::Critical,
        };
        checks.map(status).max().unwrap_or(Status::Passing)
    }
}

fn put(key: String, content: Result<Registration, Rejected>) -> Change {
    Change::Put(Put { key: key.into(), revision: 0, lease: CHECK_LEASE, content })
}

/// Returns the identity of a service; an empty version is GoFrame's default.
fn service_id(name: &str, version: &str) -> ServiceId {
    ServiceId {
        deployment: "default".into(),
        namespace: "default".into(),
        name: name.into(),
        version: if version.is_empty() { "latest".into() } else { version.into() },
    }
}

/// Converts an entry whose check is not critical.
fn registration(
    name: &str,
    service: &ServiceEntry<'_>,
    node: &NodeEntry<'_>,
    status: Status,
) -> Result<Registration, Rejected> {
    let endpoint = endpoint(service, node)?;
    let (version, metadata) = match goframe_version(name, service) {
        Some(version) => (version, goframe_metadata(service)?),
        None => ("", foreign_metadata(service, status)),
    };
    Ok(Registration {
        id: service_id(name, version),
        endpoints: vec![endpoint],
        rejected: Vec::new(),
        metadata: Arc::new(Metadata::new(metadata)),
    })
}

/// Returns where the instance can be reached; the service's address goes before the node's.
fn endpoint(service: &ServiceEntry<'_>, node: &NodeEntry<'_>) -> Result<Endpoint, Rejected> {
    let id = service.id.as_deref().unwrap_or_default();
    let given = |address: &&Cow<'_, str>| !address.trim().is_empty();
    let address = service.address.as_ref().filter(given).or(node.address.as_ref().filter(given));
    let address = address.ok_or_else(|| Rejected::new(id, NO_ADDRESS))?.trim();
    let host = gsvc::parse_bare_host(address).map_err(|reason| Rejected::new(address, reason))?;
    let port = service.port.unwrap_or_default();
    if port == 0 {
        return Err(Rejected::new(id, NO_PORT));
    }
    let port = u16::try_from(port)
        .map_err(|_| Rejected::new(&format!("{address}:{port}"), Reason::PORT_OUT_OF_RANGE))?;
    Ok(Endpoint { host, port })
}

/// Returns the version of an entry that GoFrame wrote; `None` for other entries.
///
/// GoFrame composes the ID of name, version and endpoint; the only tag is the version.
fn goframe_version<'a>(name: &str, service: &'a ServiceEntry<'_>) -> Option<&'a str> {
    let tags = service.tags.as_deref().unwrap_or_default();
    let version = match tags {
        [] => "",
        [version] => version,
        _ => return None,
    };
    let (id, port) = (service.id.as_deref()?, service.port.unwrap_or_default());
    let address = service.address.as_deref()?;
    (id == format!("{name}-{version}-{address}:{port}")).then_some(version)
}

fn goframe_metadata(service: &ServiceEntry<'_>) -> Result<BTreeMap<Box<str>, Value>, Rejected> {
    let metadata = service.meta.as_ref().and_then(|meta| meta.get("metadata"));
    metadata
        .map_or_else(|| Ok(BTreeMap::new()), |metadata| gsvc::parse_metadata(metadata.as_bytes()))
}

/// Returns `Meta`, the tags as `tag`, and Consul's weight as `weight`.
///
/// A `weight` of `Meta` counts if Consul's weights are the default, 1.
fn foreign_metadata(service: &ServiceEntry<'_>, status: Status) -> BTreeMap<Box<str>, Value> {
    let meta = service.meta.iter().flatten();
    let mut metadata: BTreeMap<Box<str>, Value> =
        meta.map(|(key, value)| (key.clone(), Value::from(&**value))).collect();
    let tags = service.tags.as_deref().unwrap_or_default();
    let mut tags: Vec<Value> =
        tags.iter().filter(|tag| !tag.is_empty()).map(|tag| Value::from(&**tag)).collect();
    match tags.len() {
        0 => {}
        1 => drop(metadata.insert("tag".into(), tags.remove(0))),
        _ => drop(metadata.insert("tag".into(), Value::Array(tags))),
    }
    let weight = service.weights.and_then(|weights| match status {
        Status::Warning => weights.warning,
        Status::Passing | Status::Critical => weights.passing,
    });
    if let Some(weight) = weight.filter(|weight| *weight != 1) {
        metadata.insert("weight".into(), weight.into());
    }
    metadata
}
