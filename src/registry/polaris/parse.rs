//! Conversion of Polaris's answers to [`crate::service`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::client::DiscoverAnswer;
use super::naming::ServiceNaming;
use crate::registry::gsvc;
use crate::registry::identify::excerpt;
use crate::registry::polling::PolledList;
use crate::service::{
    Change, Endpoint, Metadata, Put, Reason, Registration, Rejected, Removal, ServiceId, key_prefix,
};

/// Lease of all instances, in [`Put`] and in replies about leases.
///
/// An instance that turns unhealthy is like a lease that expires. Polaris says for each instance
/// whether it is gone or unhealthy, so all instances can share one lease.
const HEALTH_LEASE: i64 = 1;

/// An instance as Polaris lists it; unset fields are null.
#[derive(Deserialize)]
pub(super) struct ListedInstance<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    host: Option<Cow<'a, str>>,
    #[serde(default)]
    port: Option<i64>,
    #[serde(borrow, default)]
    version: Option<Cow<'a, str>>,
    #[serde(default)]
    healthy: Option<bool>,
    #[serde(default)]
    isolate: Option<bool>,
    #[serde(default)]
    metadata: Option<BTreeMap<Box<str>, Value>>,
}

/// Use of an instance; of two at one endpoint, the greater one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// An operator has isolated it.
    Isolated,
    /// Its heartbeats are missing.
    Unhealthy,
    /// It may be served.
    Healthy,
}

/// Converts the list of a service.
///
/// An unhealthy instance is a delete, like one that has expired; an isolated one is left out, since
/// an operator has decided so. An instance that cannot be served is rejected and affects no other.
/// Instances of different protocols at one endpoint are one key.
pub(super) fn list(
    service: &str,
    answer: &DiscoverAnswer<'_>,
    naming: &ServiceNaming,
) -> PolledList {
    let prefix = key_prefix(service);
    let mut keys = BTreeMap::new();
    let mut changes = Vec::new();
    let instances = answer.instances.as_deref().unwrap_or_default();
    for (position, raw) in instances.iter().enumerate() {
        if let Ok(instance) = serde_json::from_str::<ListedInstance<'_>>(raw.get()) {
            add(&mut keys, &prefix, instance);
        } else {
            let found = excerpt(raw.get().as_bytes());
            let rejected = Rejected::new(&found, Reason::INSTANCE_MALFORMED);
            changes.push(put(format!("{prefix}{position}"), Err(rejected)));
        }
    }
    let mut left_out = None;
    let mut is_served = false;
    for (key, instance) in keys {
        if instance.usage() == Use::Healthy {
            let content = registration(service, &instance, naming);
            is_served |= content.is_ok();
            changes.push(put(key, content));
            continue;
        }
        if instance.usage() == Use::Unhealthy {
            let (key, removal) = (key.into(), Removal::Unknown);
            changes.push(Change::Delete { key, revision: 0, removal });
        }
        left_out.get_or_insert_with(|| instance.service_id(service, naming).0);
    }
    if let Some(id) = left_out.filter(|_| !is_served) {
        // The service exists, without an instance.
        changes.push(put(prefix, Ok(Registration::without_endpoints(id))));
    }
    PolledList { revision: answer.revision(), instances: instances.len(), changes }
}

/// Adds an instance by its key, unless a better one at the same endpoint has the key.
fn add<'a>(
    keys: &mut BTreeMap<String, ListedInstance<'a>>,
    prefix: &str,
    instance: ListedInstance<'a>,
) {
    let host = instance.host.as_deref().unwrap_or_default();
    match keys.entry(format!("{prefix}{host}:{}", instance.port.unwrap_or_default())) {
        Entry::Vacant(entry) => drop(entry.insert(instance)),
        Entry::Occupied(mut entry) => {
            // The order of Polaris's instances changes from answer to answer.
            let rank = |of: &ListedInstance<'a>| (of.usage(), of.id.clone());
            if rank(&instance) > rank(entry.get()) {
                entry.insert(instance);
            }
        }
    }
}

fn put(key: String, content: Result<Registration, Rejected>) -> Change {
    Change::Put(Put { key: key.into(), revision: 0, lease: HEALTH_LEASE, content })
}

impl ListedInstance<'_> {
    fn usage(&self) -> Use {
        if self.isolate == Some(true) {
            Use::Isolated
        } else if self.healthy == Some(false) {
            Use::Unhealthy
        } else {
            Use::Healthy
        }
    }

    /// Returns the version: GoFrame's in the metadata, else Polaris's own field; or an empty text.
    fn version(&self) -> &str {
        let metadata = self.metadata.as_ref().and_then(|metadata| metadata.get("version"));
        let given = metadata.and_then(Value::as_str).filter(|version| !version.is_empty());
        given.or(self.version.as_deref()).unwrap_or_default()
    }

    /// Returns the identity, and whether GoFrame has registered the instance.
    fn service_id(&self, service: &str, naming: &ServiceNaming) -> (ServiceId, bool) {
        match naming.split(service, self.version()) {
            Some(id) => (id, true),
            None => (ServiceNaming::foreign(service, self.version()), false),
        }
    }

    /// Returns whether the instance can be reached at this endpoint.
    pub(super) fn is_at(&self, endpoint: &Endpoint) -> bool {
        self.endpoint().is_ok_and(|found| found == *endpoint)
    }

    /// Returns where the instance can be reached.
    fn endpoint(&self) -> Result<Endpoint, Rejected> {
        let host = self.host.as_deref().unwrap_or_default().trim();
        let port = self.port.unwrap_or_default();
        let rejected = |reason| Rejected::new(&format!("{host}:{port}"), reason);
        let address = gsvc::parse_bare_host(host).map_err(rejected)?;
        let port = u16::try_from(port).ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| rejected(Reason::PORT_OUT_OF_RANGE))?;
        Ok(Endpoint { host: address, port })
    }
}

/// Converts a healthy instance.
fn registration(
    service: &str,
    instance: &ListedInstance<'_>,
    naming: &ServiceNaming,
) -> Result<Registration, Rejected> {
    let endpoint = instance.endpoint()?;
    let (id, is_goframe) = instance.service_id(service, naming);
    let mut metadata = instance.metadata.clone().unwrap_or_default();
    // Polaris's client library sets `region`, `zone` and `campus` to empty texts.
    metadata.retain(|_, value| !value.is_null() && value.as_str() != Some(""));
    if is_goframe {
        remove_additions(&mut metadata, &id.version);
    }
    Ok(Registration {
        id,
        endpoints: vec![endpoint],
        rejected: Vec::new(),
        metadata: Arc::new(Metadata::new(metadata)),
        overrides: false,
    })
}

/// Removes the metadata that GoFrame adds in Polaris only: version and kind.
///
/// The kind is the protocol, or `http`. Without them, the metadata is the same in every registry.
fn remove_additions(metadata: &mut BTreeMap<Box<str>, Value>, version: &str) {
    let text = |key: &str| metadata.get(key).and_then(Value::as_str);
    let is_version = text("version") == Some(version);
    let is_kind = text("kind") == Some(text("protocol").unwrap_or("http"));
    if is_version {
        metadata.remove("version");
    }
    if is_kind {
        metadata.remove("kind");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HELLO: &str = "service-default-default-hello.svc-latest";

    /// Returns the lines `+KEY version metadata`, `-KEY` or `!KEY reason` for these instances.
    fn parsed(service: &str, instances: &Value) -> Vec<String> {
        let text = json!({ "code": 200_000, "instances": instances }).to_string();
        let answer: DiscoverAnswer<'_> = serde_json::from_str(&text).unwrap();
        let line = |change: Change| match change {
            Change::Put(Put { key, content: Ok(found), .. }) => {
                let metadata = serde_json::to_string(&*found.metadata).unwrap();
                let endpoints: Vec<_> = found.endpoints.iter().map(Endpoint::to_string).collect();
                let ServiceId { deployment, namespace, name, version } = &found.id;
                let id = format!("{deployment}/{namespace}/{name}/{version}");
                format!("+{key} {id} {} {metadata}", endpoints.join(","))
            }
            Change::Put(Put { key, content: Err(rejected), .. }) => {
                format!("!{key} {}", rejected.reason.code())
            }
            Change::Delete { key, .. } => format!("-{key}"),
            other => format!("{other:?}"),
        };
        let list = list(service, &answer, &ServiceNaming::default());
        assert_eq!(list.instances, instances.as_array().map_or(0, Vec::len));
        list.changes.into_iter().map(line).collect()
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers make it up")]
    fn instance(host: &str, port: i64, metadata: Value) -> Value {
        json!({
            "id": format!("id-{host}"), "host": host, "port": port, "weight": 100,
            "healthy": true, "isolate": false, "metadata": metadata, "logic_set": null,
        })
    }

    #[test]
    fn instances_of_goframe_have_their_identity_and_metadata() {
        let metadata = json!({
            "campus": "", "region": "", "zone": null, "kind": "grpc", "protocol": "grpc",
            "version": "v1-2", "weight": "5",
        });
        let service = "service-prod-shop-user-svc-v1-2";
        let at = "service-prod-shop-user-svc-v1-2/10.0.0.1:80";
        assert_eq!(
            parsed(service, &json!([instance("10.0.0.1", 80, metadata)])),
            [format!(
                r#"+{at} prod/shop/user-svc/v1-2 10.0.0.1:80 {{"protocol":"grpc","weight":"5"}}"#
            )]
        );
        let own = json!({ "kind": "special", "version": "latest" });
        assert_eq!(
            parsed(HELLO, &json!([instance("::1", 80, own)])),
            [format!(
                r#"+{HELLO}/::1:80 default/default/hello.svc/latest [::1]:80 {{"kind":"special"}}"#
            )]
        );
    }

    #[test]
    fn instances_of_other_programs_keep_name_and_metadata() {
        let mut other = instance("10.0.0.1", 80, json!({ "kind": "http" }));
        other["version"] = "v2".into();
        assert_eq!(
            parsed("web/api", &json!([other])),
            [r#"+web%2Fapi/10.0.0.1:80 default/default/web/api/v2 10.0.0.1:80 {"kind":"http"}"#]
        );
    }

    #[test]
    fn unhealthy_and_isolated_instances_are_left_out() {
        let [mut sick, mut isolated, well] = [1, 2, 3]
            .map(|last| instance(&format!("10.0.0.{last}"), 80, json!({ "version": "latest" })));
        sick["healthy"] = false.into();
        isolated["isolate"] = true.into();
        let known = format!("+{HELLO}/ default/default/hello.svc/latest  {{}}");
        let id = "default/default/hello.svc/latest";
        assert_eq!(parsed(HELLO, &json!([sick])), [format!("-{HELLO}/10.0.0.1:80"), known.clone()]);
        assert_eq!(parsed(HELLO, &json!([isolated])), [known]);
        assert_eq!(
            parsed(HELLO, &json!([isolated, well, sick])),
            [
                format!("-{HELLO}/10.0.0.1:80"),
                format!("+{HELLO}/10.0.0.3:80 {id} 10.0.0.3:80 {{}}")
            ]
        );
        assert!(parsed(HELLO, &json!([])).is_empty() && parsed(HELLO, &json!(null)).is_empty());
    }

    #[test]
    fn the_healthy_one_of_two_instances_at_an_endpoint_counts() {
        let well = instance("10.0.0.1", 80, json!({ "weight": "1" }));
        let mut sick = instance("10.0.0.1", 80, json!({ "weight": "2" }));
        (sick["healthy"], sick["id"]) = (false.into(), "z".into());
        let mut other = well.clone();
        (other["id"], other["metadata"]["weight"]) = ("a".into(), "3".into());
        let expected =
            [r#"+web/10.0.0.1:80 default/default/web/latest 10.0.0.1:80 {"weight":"1"}"#];
        assert_eq!(parsed("web", &json!([sick, well, other])), expected);
        assert_eq!(parsed("web", &json!([other, well, sick])), expected);
    }

    #[test]
    fn invalid_instances_are_rejected_alone() {
        let found = parsed(
            "web",
            &json!([
                instance("", 80, json!({})),
                instance("10.0.0.1", 0, json!({})),
                instance("10.0.0.1", 65_536, json!({})),
                instance("10.0.0.1", -1, json!({})),
                "text",
                { "host": 5 },
                instance("10.0.0.9", 80, json!(null)),
            ]),
        );
        assert_eq!(
            found,
            [
                "!web/4 instance-malformed",
                "!web/5 instance-malformed",
                "!web/10.0.0.1:-1 port-out-of-range",
                "!web/10.0.0.1:0 port-out-of-range",
                "!web/10.0.0.1:65536 port-out-of-range",
                "+web/10.0.0.9:80 default/default/web/latest 10.0.0.9:80 {}",
                "!web/:80 host-malformed",
            ]
        );
    }
}
