//! Registrations over a small alphabet, so that their names meet in every way that the grammar allows.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use svcdns::service::{Endpoint, Host, Metadata, Put, Registration, ServiceId};

use super::choices::Choices;

/// Labels of bases: words that are also namespaces, deployments and versions, parts of versions, and labels of instances.
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
/// Namespaces and deployments besides the default; some that no label can be.
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
/// What a zone's suffix may be, and is not always.
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
/// Longer than a label can be.
const LONG: &str = "llllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllll";

/// A key of a store and what it says.
pub fn put(choices: &mut Choices<'_>) -> Put {
    let id = id(choices);
    let count = match choices.below(16) {
        // More than any message has room for.
        15 if choices.one_in(16) => 5_000,
        15 => usize::from(choices.octet()) + 20,
        few => few % 5,
    };
    let endpoints =
        (0..count).map(|at| if count < 5 { endpoint(choices) } else { one_of_many(at) }).collect();
    registered(id, endpoints, choices)
}

/// One instance of many, each in a key of its own.
pub fn one(choices: &mut Choices<'_>, at: usize) -> Put {
    let name = choices.of(&["hello", "many", "many.a"]);
    let id = ServiceId {
        deployment: "default".into(),
        namespace: "default".into(),
        name: name.into(),
        version: "latest".into(),
    };
    registered(id, vec![one_of_many(at)], choices)
}

/// The same key with something else in it.
pub fn again(put: &Put, choices: &mut Choices<'_>) -> Put {
    let Ok(registration) = &put.content else { return put.clone() };
    let metadata = metadata(choices);
    Put { content: Ok(Registration { metadata, ..registration.clone() }), ..put.clone() }
}

fn registered(id: ServiceId, endpoints: Vec<Endpoint>, choices: &mut Choices<'_>) -> Put {
    let key = svcdns::registry::gsvc::key("service", &id, &endpoints).into();
    let content =
        Ok(Registration { id, endpoints, rejected: Vec::new(), metadata: metadata(choices) });
    Put { key, revision: 0, lease: i64::from(choices.octet() % 4), content }
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

fn one_of_many(at: usize) -> Endpoint {
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
