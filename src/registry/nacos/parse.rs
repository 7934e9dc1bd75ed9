//! Conversion of Nacos's answers to [`crate::service`].
//!
//! GoFrame (`contrib/registry/nacos`) registers each endpoint of a program as an instance, with its
//! metadata as strings. Neither namespace nor version of the service is stored. The weight of an
//! instance is 100 for every GoFrame program, so only a `weight` in the metadata counts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::client::ApiVersion;
use crate::registry::failure::{Failure, FailureKind};
use crate::registry::gsvc;
use crate::registry::http;
use crate::registry::identify::{ServerKind, excerpt};
use crate::registry::polling::PolledList;
use crate::service::{
    Change, Endpoint, Metadata, Put, Reason, Registration, Rejected, Removal, ServiceId, key_prefix,
};

/// The cluster of instances that name none.
pub(super) const DEFAULT_CLUSTER: &str = "DEFAULT";

/// A page of the list of services.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NamePage {
    /// Number of services on all pages, as the server says.
    pub(super) total: usize,
    /// The names of the page, each with its group if the page has several groups.
    pub(super) names: Vec<(Box<str>, Option<Box<str>>)>,
}

/// The content of an answer in v2 and v3.
#[derive(Deserialize)]
struct Envelope<T> {
    code: i64,
    message: Option<String>,
    data: Option<T>,
}

impl<T> Envelope<T> {
    /// Returns the data of a success.
    fn content(self) -> Result<T, Failure> {
        let Self { code, message, data } = self;
        let text = || {
            let message = excerpt(message.unwrap_or_default().as_bytes());
            format!("the server answers with code {code} ({message})")
        };
        data.filter(|_| code == 0).ok_or_else(|| Failure::new(FailureKind::Answer, text()))
    }
}

#[derive(Deserialize)]
struct NamesV1<'a> {
    count: usize,
    #[serde(borrow)]
    doms: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct NamesV2<'a> {
    count: usize,
    #[serde(borrow)]
    services: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamesV3<'a> {
    total_count: usize,
    #[serde(borrow)]
    page_items: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamedService {
    name: Box<str>,
    group_name: Option<Box<str>>,
}

#[derive(Deserialize)]
struct Hosts<'a> {
    // Required: an answer without a list must not count as an empty one.
    #[serde(borrow)]
    hosts: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InstanceEntry<'a> {
    #[serde(borrow)]
    ip: Cow<'a, str>,
    port: i64,
    weight: Option<f64>,
    healthy: Option<bool>,
    enabled: Option<bool>,
    #[serde(borrow)]
    cluster_name: Option<Cow<'a, str>>,
    metadata: Option<BTreeMap<Box<str>, Value>>,
}

/// Parses a page of the list of services.
pub(super) fn names(api: ApiVersion, body: &[u8]) -> Result<NamePage, Failure> {
    let ungrouped =
        |names: &[&RawValue]| http::valid_entries(names).map(|name| (name, None)).collect();
    Ok(match api {
        ApiVersion::V1 => {
            let NamesV1 { count, doms } = http::parse_json(ServerKind::Nacos, body)?;
            NamePage { total: count, names: ungrouped(&doms) }
        }
        ApiVersion::V2 => {
            let envelope: Envelope<NamesV2<'_>> = http::parse_json(ServerKind::Nacos, body)?;
            let NamesV2 { count, services } = envelope.content()?;
            NamePage { total: count, names: ungrouped(&services) }
        }
        ApiVersion::V3 => {
            let envelope: Envelope<NamesV3<'_>> = http::parse_json(ServerKind::Nacos, body)?;
            let NamesV3 { total_count, page_items } = envelope.content()?;
            let found = http::valid_entries(&page_items);
            let names = found.map(|NamedService { name, group_name }| (name, group_name));
            NamePage { total: total_count, names: names.collect() }
        }
    })
}

/// The instances of a service, not parsed yet.
pub(super) struct InstanceList<'a>(Vec<&'a RawValue>);

impl<'a> InstanceList<'a> {
    /// Finds the instances in an answer.
    pub(super) fn find(api: ApiVersion, body: &'a [u8]) -> Result<Self, Failure> {
        Ok(Self(match api {
            ApiVersion::V1 => {
                let Hosts { hosts } = http::parse_json(ServerKind::Nacos, body)?;
                hosts
            }
            ApiVersion::V2 => {
                let envelope: Envelope<Hosts<'a>> = http::parse_json(ServerKind::Nacos, body)?;
                envelope.content()?.hosts
            }
            ApiVersion::V3 => {
                let envelope: Envelope<Vec<&RawValue>> = http::parse_json(ServerKind::Nacos, body)?;
                envelope.content()?
            }
        }))
    }

    /// Returns a digest that does not depend on the order, which changes from answer to answer.
    pub(super) fn digest(&self, hasher: &RandomState) -> u64 {
        let digests = self.0.iter().map(|raw| hasher.hash_one(raw.get()));
        digests.fold(self.0.len() as u64, u64::wrapping_add)
    }

    /// Returns the list of the service `name`, of the instances in these clusters.
    ///
    /// An instance that is not healthy is a delete, and one that an operator has taken out of
    /// service is left out. One that cannot be served is rejected and affects no other.
    pub(super) fn list(&self, name: &str, clusters: &[String]) -> PolledList {
        let prefix = key_prefix(name);
        let mut instances = 0;
        let mut changes = Vec::with_capacity(self.0.len());
        let (mut served, mut unhealthy) = (false, false);
        for (position, raw) in self.0.iter().enumerate() {
            let Ok(instance) = serde_json::from_str::<InstanceEntry<'_>>(raw.get()) else {
                let found = excerpt(raw.get().as_bytes());
                let rejected = Rejected::new(&found, Reason::INSTANCE_MALFORMED);
                instances += 1;
                changes.push(put(format!("{prefix}{position}"), Err(rejected)));
                continue;
            };
            let cluster = instance.cluster_name.as_deref().unwrap_or(DEFAULT_CLUSTER);
            if !clusters.is_empty() && !clusters.iter().any(|wanted| wanted == cluster) {
                continue;
            }
            instances += 1;
            // GoFrame's readers skip them, too.
            if instance.enabled == Some(false)
                || instance.weight.is_some_and(|weight| weight <= 0.0)
            {
                continue;
            }
            let key = format!("{prefix}{}#{}#{cluster}", instance.ip, instance.port);
            if instance.healthy == Some(false) {
                unhealthy = true;
                let (key, removal) = (key.into_boxed_str(), Removal::Unknown);
                changes.push(Change::Delete { key, revision: 0, removal });
            } else {
                let content = registration(name, instance);
                served |= content.is_ok();
                changes.push(put(key, content));
            }
        }
        if unhealthy && !served {
            // The service exists, without an instance.
            changes.push(put(prefix, Ok(without_endpoints(name))));
        }
        PolledList { revision: None, instances, changes }
    }
}

fn put(key: String, content: Result<Registration, Rejected>) -> Change {
    Change::Put(Put { key: key.into(), revision: 0, lease: 0, content })
}

/// Returns the registration of a service, without endpoints and metadata.
fn without_endpoints(name: &str) -> Registration {
    let id = ServiceId {
        deployment: "default".into(),
        namespace: "default".into(),
        name: name.into(),
        version: "latest".into(),
    };
    Registration::without_endpoints(id)
}

/// Converts an instance that is healthy and enabled.
fn registration(name: &str, instance: InstanceEntry<'_>) -> Result<Registration, Rejected> {
    let InstanceEntry { ip, port, metadata, .. } = instance;
    let host = gsvc::parse_bare_host(&ip).map_err(|reason| Rejected::new(&ip, reason))?;
    let port = u16::try_from(port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| {
        Rejected::new(&format!("{ip}:{}", instance.port), Reason::PORT_OUT_OF_RANGE)
    })?;
    let mut metadata = metadata.unwrap_or_default();
    metadata.retain(|_, value| !value.is_null());
    Ok(Registration {
        endpoints: vec![Endpoint { host, port }],
        metadata: Arc::new(Metadata::new(metadata)),
        ..without_endpoints(name)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Returns the lines `+KEY endpoints metadata`, `-KEY` or `!KEY reason` for these hosts.
    fn parsed(hosts: &Value, clusters: &[&str]) -> Vec<String> {
        let body = json!({ "hosts": hosts, "lastRefTime": 1 }).to_string();
        let list = InstanceList::find(ApiVersion::V1, body.as_bytes()).unwrap();
        let clusters: Vec<_> = clusters.iter().map(ToString::to_string).collect();
        let line = |change: Change| match change {
            Change::Put(Put { key, content: Ok(found), .. }) => {
                let metadata = serde_json::to_string(&*found.metadata).unwrap();
                let endpoints: Vec<_> = found.endpoints.iter().map(Endpoint::to_string).collect();
                format!("+{key} {} {metadata}", endpoints.join(","))
            }
            Change::Put(Put { key, content: Err(rejected), .. }) => {
                format!("!{key} {}", rejected.reason.code())
            }
            Change::Delete { key, .. } => format!("-{key}"),
            other => format!("{other:?}"),
        };
        list.list("a/b", &clusters).changes.into_iter().map(line).collect()
    }

    fn host(last: u8, mut fields: Value) -> Value {
        let mut host = json!({
            "ip": format!("10.0.0.{last}"), "port": 80, "weight": 100.0, "healthy": true,
            "enabled": true, "clusterName": "DEFAULT", "metadata": {}, "future": [1],
        });
        host.as_object_mut().unwrap().append(fields.as_object_mut().unwrap());
        host
    }

    #[test]
    fn only_healthy_and_enabled_instances_are_served() {
        let found = parsed(
            &json!([
                host(1, json!({ "metadata": { "weight": "5", "none": null } })),
                host(2, json!({ "healthy": false })),
                host(3, json!({ "enabled": false })),
                host(4, json!({ "weight": 0.0 })),
                host(5, json!({ "clusterName": "c2", "weight": 0.5 })),
            ]),
            &[],
        );
        assert_eq!(
            found,
            [
                r#"+a%2Fb/10.0.0.1#80#DEFAULT 10.0.0.1:80 {"weight":"5"}"#,
                "-a%2Fb/10.0.0.2#80#DEFAULT",
                "+a%2Fb/10.0.0.5#80#c2 10.0.0.5:80 {}",
            ]
        );
        let unhealthy = json!([host(2, json!({ "healthy": false }))]);
        assert_eq!(parsed(&unhealthy, &[]), ["-a%2Fb/10.0.0.2#80#DEFAULT", "+a%2Fb/  {}"]);
        assert_eq!(parsed(&json!([]), &[]), Vec::<String>::new());
    }

    #[test]
    fn instances_of_other_clusters_are_left_out() {
        let hosts = json!([host(1, json!({})), host(2, json!({ "clusterName": "c2" }))]);
        assert_eq!(parsed(&hosts, &["c2"]), ["+a%2Fb/10.0.0.2#80#c2 10.0.0.2:80 {}"]);
        assert_eq!(parsed(&hosts, &["c2", "DEFAULT"]).len(), 2);
    }

    #[test]
    fn malformed_instances_are_rejected_one_by_one() {
        let found = parsed(
            &json!([
                null,
                { "ip": "10.0.0.1" },
                host(1, json!({ "port": "80" })),
                host(2, json!({ "port": 0 })),
                host(3, json!({ "ip": "[" })),
                host(4, json!({})),
            ]),
            &[],
        );
        assert_eq!(
            found,
            [
                "!a%2Fb/0 instance-malformed",
                "!a%2Fb/1 instance-malformed",
                "!a%2Fb/2 instance-malformed",
                "!a%2Fb/10.0.0.2#0#DEFAULT port-out-of-range",
                "!a%2Fb/[#80#DEFAULT host-malformed",
                "+a%2Fb/10.0.0.4#80#DEFAULT 10.0.0.4:80 {}",
            ]
        );
    }

    #[test]
    fn digests_ignore_the_order_of_instances_and_the_time_of_the_answer() {
        let hasher = RandomState::default();
        let digest = |hosts: Value, time: u64| {
            let body = json!({ "hosts": hosts, "lastRefTime": time }).to_string();
            InstanceList::find(ApiVersion::V1, body.as_bytes()).unwrap().digest(&hasher)
        };
        let (one, two) = (host(1, json!({})), host(2, json!({})));
        let both = digest(json!([one, two]), 1);
        assert_eq!(both, digest(json!([two, one]), 2));
        assert_ne!(both, digest(json!([one]), 1));
        assert_ne!(both, digest(json!([one, two, two]), 1));
        assert_ne!(both, digest(json!([one, host(2, json!({ "healthy": false }))]), 1));
    }

    #[test]
    fn answers_without_a_list_are_failures() {
        for (api, bodies) in [
            (ApiVersion::V1, &["{}", r#"{"hosts":null}"#, r#"{"hosts":{}}"#, "<html>"][..]),
            (ApiVersion::V2, &[r#"{"code":0,"data":null}"#, r#"{"code":0,"data":{}}"#]),
            (ApiVersion::V3, &[r#"{"code":0}"#, r#"{"code":500,"message":"m","data":[]}"#]),
        ] {
            for body in bodies {
                let found = InstanceList::find(api, body.as_bytes());
                let failure = found.err().unwrap();
                assert_eq!(failure.kind, FailureKind::Answer, "{api:?} {body}");
                assert!(names(api, body.as_bytes()).is_err(), "{api:?} {body}");
            }
        }
    }

    #[test]
    fn lists_of_services_are_read_in_every_version() {
        let page = |api, body: Value| names(api, body.to_string().as_bytes());
        let names = |groups: [Option<&str>; 2]| {
            let [one, two] = groups.map(|group| group.map(Into::into));
            NamePage { total: 9, names: vec![("a".into(), one), ("b".into(), two)] }
        };
        let v1 = page(ApiVersion::V1, json!({ "count": 9, "doms": ["a", null, ["b"], "b"] }));
        assert_eq!(v1.unwrap(), names([None, None]), "malformed entries affect no other");
        let data = json!({ "count": 9, "services": ["a", "b"] });
        let v2 = page(ApiVersion::V2, json!({ "code": 0, "data": data }));
        assert_eq!(v2.unwrap(), names([None, None]));
        let items =
            json!([{ "name": "a", "groupName": "g" }, 1, { "name": "b", "groupName": "h" }]);
        let data = json!({ "totalCount": 9, "pageItems": items });
        let v3 = page(ApiVersion::V3, json!({ "code": 0, "data": data }));
        assert_eq!(v3.unwrap(), names([Some("g"), Some("h")]));
    }
}
