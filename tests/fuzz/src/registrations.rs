//! Registrations with few different words, whose names often conflict.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use svcdns::service::{Endpoint, Host, Metadata, Put, Registration, ServiceId};

use super::choices::Choices;

/// Labels of bases.
///
/// Many are also namespaces, deployments, versions or instance labels.
const LABELS: [&str; 16] = [
    "a",
    "b",
    "hello",
    "prod",
    "default",
    "blue",
    "v1",
    "2",
    "0",
    "latest",
    "10-0-0-1",
    "10-0-0-2",
    "fd00--5",
    "fd00-0-0-0-0-0-0-5",
    "ns",
    "web",
];
/// Namespaces and deployments other than the default; some are not valid labels.
const SCOPES: [&str; 8] = ["prod", "prod", "blue", "a", "b", "Prod", "x.y", LONG];
const VERSIONS: [&str; 14] = [
    "latest",
    "latest",
    "latest",
    "v1",
    "v1.2.0",
    "2.0",
    "V1",
    "a",
    "b.a",
    "10-0-0-1",
    "10-0-0-2.v1",
    "hello",
    "x y",
    LONG,
];
/// Suffixes of names; some are zones in some settings.
const SUFFIXES: [&str; 6] = ["", "", ".svc", ".internal", ".a.b.svc", ".SVC"];
const HOSTS: [&str; 12] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.9",
    "172.17.0.1",
    "fd00::5",
    "::ffff:10.0.0.1",
    "2001:db8::1",
    "web.example",
    "other.example",
    "localhost",
    "127.0.0.1",
];
const VALUES: [&str; 12] = [
    "{}",
    "{}",
    r#"{"protocol":"http","insecure":true}"#,
    r#"{"weight":0}"#,
    r#"{"weight":2,"env":"a.b"}"#,
    r#"{"weight":3}"#,
    r#"{"weight":100,"protocol":"http"}"#,
    r#"{"weight":65535}"#,
    r#"{"weight":1}"#,
    r#"{"env":"a","Env":"B","port":"81","gray":"x"}"#,
    r#"{"env":"v1.2.0","version":"v1"}"#,
    "long",
];
/// A text that is longer than a label may be.
const LONG: &str = "llllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllll";

/// Returns a key with its parsed content.
pub fn put(choices: &mut Choices<'_>) -> Put {
    let id = id(choices);
    let count = match choices.below(16) {
        // More than fit into any message.
        15 if choices.one_in(16) => 5_000,
        15 => usize::from(choices.byte()) + 20,
        few => few % 5,
    };
    let endpoints =
        (0..count).map(|at| if count < 5 { endpoint(choices) } else { numbered(at) }).collect();
    registered(id, endpoints, choices)
}

/// Returns a key with one instance of a service that may have many.
pub fn one_of_many(choices: &mut Choices<'_>, at: usize) -> Put {
    let name = choices.of(&["hello", "many", "many.a"]);
    let id = ServiceId {
        deployment: "default".into(),
        namespace: "default".into(),
        name: name.into(),
        version: "latest".into(),
    };
    registered(id, vec![numbered(at)], choices)
}

/// Returns the same key with other metadata.
pub fn with_other_metadata(put: &Put, choices: &mut Choices<'_>) -> Put {
    let Ok(registration) = &put.content else { return put.clone() };
    let metadata = metadata(choices);
    Put { content: Ok(Registration { metadata, ..registration.clone() }), ..put.clone() }
}

fn registered(id: ServiceId, endpoints: Vec<Endpoint>, choices: &mut Choices<'_>) -> Put {
    let key = svcdns::registry::gsvc::key("service", &id, &endpoints).into();
    let metadata = metadata(choices);
    let byte = choices.byte();
    // Few registrations precede those of the other registry.
    let overrides = byte >= 240;
    let content = Ok(Registration { id, endpoints, rejected: Vec::new(), metadata, overrides });
    Put { key, revision: 0, lease: i64::from(byte % 4), content }
}

fn id(choices: &mut Choices<'_>) -> ServiceId {
    let labels: Vec<&str> =
        (0..[1, 1, 2, 1, 2, 3, 1, 4][choices.below(8)]).map(|_| choices.of(&LABELS)).collect();
    ServiceId {
        name: (labels.join(".") + choices.of(&SUFFIXES)).into(),
        version: choices.of(&VERSIONS).into(),
        namespace: scope(choices).into(),
        deployment: scope(choices).into(),
    }
}

fn scope(choices: &mut Choices<'_>) -> &'static str {
    if choices.one_in(3) { choices.of(&SCOPES) } else { "default" }
}

fn endpoint(choices: &mut Choices<'_>) -> Endpoint {
    let host = choices.of(&HOSTS);
    let host = host
        .parse()
        .map_or_else(|_| Host::Name(host.into()), |address: std::net::IpAddr| Host::from(address));
    Endpoint { host, port: choices.of(&[80, 81, 82, 65535]) }
}

fn numbered(at: usize) -> Endpoint {
    let [high, low] = u16::try_from(at).unwrap().to_be_bytes();
    Endpoint { host: Host::V4(Ipv4Addr::new(10, 1, high, low)), port: 8000 }
}

fn metadata(choices: &mut Choices<'_>) -> Arc<Metadata> {
    let value = choices.of(&VALUES);
    let entries: BTreeMap<_, _> = match value {
        "long" => (0..8).map(|at| (format!("key{at}").into(), "v".repeat(400).into())).collect(),
        value => serde_json::from_str(value).unwrap(),
    };
    Arc::new(Metadata::new(entries))
}
