//! Conversion of Consul's answers to [`crate::service`].
//!
//! GoFrame (`contrib/registry/consul`) stores its metadata as one JSON text. Entries of other
//! programs have their `Meta` as metadata, and their tags as the entry `tag` of it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::client::{Answer, ConsulClient, parse_body};
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::gsvc;
use crate::registry::identify::excerpt;
use crate::service::{
    Change, Endpoint, Metadata, Put, Reason, Registration, Rejected, Removal, ServiceId, key_prefix,
};

/// The entry has no port.
///
/// Consul leaves out the port 0. What GoFrame registers for a server on `[::]` also has the address
/// `[`, and is rejected for that.
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
/// whether it was deregistered or its check is critical, so all instances can share one lease.
pub(super) const CHECK_LEASE: i64 = 1;

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
    weights: Option<EntryWeights>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check<'a> {
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EntryWeights {
    passing: Option<i64>,
    warning: Option<i64>,
}

/// Reads and parses the instances of a service, after a change since `index`.
///
/// Returns the index of the answer with the changes of the list.
pub(super) async fn read(
    client: &ConsulClient,
    name: &str,
    index: u64,
    wait: Duration,
) -> Result<(u64, Vec<Change>), Failure> {
    let answer = client.instances(name, index, wait).await?;
    let instances = parse(name, &answer)
        .map_err(|failure| client.hide(failure.of(&format!("read the service {name:?}"))))?;
    if answer.is_filtered && instances.is_empty() {
        let text = format!(
            "cannot read the service {name:?}: the token may not read its nodes; it needs \
             node_prefix \"\" with read"
        );
        return Err(Failure::new(FailureKind::Permission, text));
    }
    Ok((answer.index, instances))
}

/// Parses the answer about the instances of `name`: the changes of a list.
///
/// An instance with a critical check is a delete, all others are puts.
/// An entry that cannot be served is rejected and affects no other.
///
/// # Errors
/// If the answer is not a list.
fn parse(name: &str, answer: &Answer) -> Result<Vec<Change>, Failure> {
    let entries: Option<Vec<&RawValue>> = parse_body(&answer.body)?;
    let mut changes = Vec::new();
    let (mut served, mut critical) = (false, false);
    let prefix = key_prefix(name);
    for (position, raw) in entries.unwrap_or_default().into_iter().enumerate() {
        let Ok(entry) = serde_json::from_str::<Entry<'_>>(raw.get()) else {
            let rejected = Rejected::new(&excerpt(raw.get().as_bytes()), ENTRY_NOT_JSON);
            let key = format!("{prefix}/{position}");
            changes.push(put(key, Err(rejected)));
            continue;
        };
        let status = entry.status();
        let node = entry.node.unwrap_or_default();
        let service = entry.service.unwrap_or_default();
        // Consul compares names ignoring case: the entries of `Web` are also listed for `web`.
        if service.service.as_deref().is_some_and(|service| service != name) {
            continue;
        }
        // The node is encoded as a prefix, like the name, so that the ID after it is unambiguous.
        let node_prefix = key_prefix(node.node.as_deref().unwrap_or_default());
        let key = format!("{prefix}{node_prefix}{}", service.id.as_deref().unwrap_or_default());
        if status == Status::Critical {
            critical = true;
            let key = key.into_boxed_str();
            let removal = Removal::Unknown;
            changes.push(Change::Delete { key, revision: 0, removal });
        } else {
            let content = registration(name, &service, &node, status);
            served |= content.is_ok();
            changes.push(put(key, content));
        }
    }
    if critical && !served {
        // The service exists, without an instance.
        let nothing = Registration::without_endpoints(service_id(name, ""));
        changes.push(put(prefix, Ok(nothing)));
    }
    Ok(changes)
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
        overrides: false,
    })
}

/// Returns where the instance can be reached: at the service's address, else at the node's.
fn endpoint(service: &ServiceEntry<'_>, node: &NodeEntry<'_>) -> Result<Endpoint, Rejected> {
    let id = service.id.as_deref().unwrap_or_default();
    let given = |address: &&Cow<'_, str>| !address.trim().is_empty();
    let address = service.address.as_ref().filter(given);
    let address = address.or_else(|| node.address.as_ref().filter(given));
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Returns the lines `+KEY version metadata` or `-KEY` for the entries of `hello.svc`.
    fn parsed(entries: &Value) -> Vec<String> {
        let answer = Answer::of_body(entries.to_string().into_bytes());
        let line = |change: Change| match change {
            Change::Put(Put { key, content: Ok(found), .. }) => {
                let metadata = serde_json::to_string(&*found.metadata).unwrap();
                let endpoints: Vec<_> = found.endpoints.iter().map(Endpoint::to_string).collect();
                format!("+{key} {} {} {metadata}", found.id.version, endpoints.join(","))
            }
            Change::Put(Put { key, content: Err(rejected), .. }) => {
                format!("!{key} {}", rejected.reason.code())
            }
            Change::Delete { key, .. } => format!("-{key}"),
            other => format!("{other:?}"),
        };
        parse("hello.svc", &answer).unwrap().into_iter().map(line).collect()
    }

    /// Returns an entry of the node `n/1` with these fields of the service and statuses.
    fn entry(mut service: Value, statuses: &[&str]) -> Value {
        service["Service"] = "hello.svc".into();
        let checks: Vec<_> = statuses.iter().map(|status| json!({ "Status": status })).collect();
        let node = json!({ "Node": "n/1", "Address": "10.0.0.9" });
        json!({ "Node": node, "Service": service, "Checks": checks })
    }

    #[test]
    fn entries_of_goframe_have_their_version_and_metadata() {
        let found = parsed(&json!([
            entry(
                json!({
                    "ID": "hello.svc--10.0.0.1:80", "Tags": [""], "Address": "10.0.0.1",
                    "Port": 80, "Weights": { "Passing": 9, "Warning": 9 },
                    "Meta": { "metadata": r#"{"weight":5,"a":true}"#, "version": "" },
                }),
                &["passing", "passing"],
            ),
            entry(
                json!({
                    "ID": "hello.svc-v2-10.0.0.1:80", "Tags": ["v2"], "Address": "10.0.0.1",
                    "Port": 80, "Meta": { "metadata": "null" },
                }),
                &[],
            ),
        ]));
        let at = "+hello.svc/n%2F1/";
        assert_eq!(
            found,
            [
                format!(r#"{at}hello.svc--10.0.0.1:80 latest 10.0.0.1:80 {{"a":true,"weight":5}}"#),
                format!("{at}hello.svc-v2-10.0.0.1:80 v2 10.0.0.1:80 {{}}"),
            ]
        );
    }

    #[test]
    fn metadata_of_foreign_entries_is_meta_plus_tags_plus_weight() {
        let service = |weights: Value, tags: Value| {
            json!({
                "ID": "x", "Tags": tags, "Port": 80, "Weights": weights, "Meta": { "weight": "3" },
            })
        };
        let weights = json!({ "Passing": 7, "Warning": 2 });
        let found = parsed(&json!([
            entry(service(weights.clone(), json!(["a", "b"])), &["passing"]),
            entry(service(weights, json!(["a"])), &["passing", "warning"]),
            entry(service(json!({ "Passing": 1, "Warning": 1 }), json!(null)), &["passing"]),
        ]));
        let at = "+hello.svc/n%2F1/x latest 10.0.0.9:80";
        assert_eq!(
            found,
            [
                format!(r#"{at} {{"tag":["a","b"],"weight":7}}"#),
                format!(r#"{at} {{"tag":"a","weight":2}}"#),
                format!(r#"{at} {{"weight":"3"}}"#),
            ]
        );
    }

    #[test]
    fn critical_instances_expire_but_their_service_stays_known() {
        let service = json!({ "ID": "x", "Port": 80 });
        let critical = entry(service.clone(), &["passing", "critical"]);
        assert_eq!(
            parsed(&json!([critical])),
            ["-hello.svc/n%2F1/x", "+hello.svc/ latest  {}"],
            "known without an instance"
        );
        let unknown = entry(service.clone(), &["maintenance"]);
        let alive = entry(json!({ "ID": "y", "Port": 81 }), &["warning"]);
        assert_eq!(
            parsed(&json!([unknown, alive])),
            ["-hello.svc/n%2F1/x", "+hello.svc/n%2F1/y latest 10.0.0.9:81 {}"]
        );
        assert!(parsed(&json!(null)).is_empty());
    }
}
