//! Names for queries: every row of the naming grammar, and variations.
//!
//! Most names are those of registered services.

use svcdns::answer::Settings;
use svcdns::name::{Zones, instance_label, reverse_name};
use svcdns::service::{Host, Put, Registration, ServiceId};

use super::choices::Choices;

/// Labels without meaning, or with a meaning only in some places of a name.
const WORDS: [&[u8]; 32] = [
    b"a",
    b"b",
    b"hello",
    b"prod",
    b"default",
    b"blue",
    b"v1",
    b"2",
    b"0",
    b"latest",
    b"10-0-0-1",
    b"10-0-0-2",
    b"fd00--5",
    b"_tcp",
    b"_http",
    b"_80",
    b"_env",
    b"_version",
    b"_namespace",
    b"_deployment",
    b"_instance",
    b"_port",
    b"_",
    b"80",
    b"ns",
    b"dns-version",
    b"nothing",
    b"a.b",
    b"\0",
    b"\xFF\xFE",
    b"_udp",
    b"lllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllll",
];

/// The labels of a name without the root.
type Labels = Vec<Vec<u8>>;

/// Returns a name in wire form, in mixed case.
pub fn name(choices: &mut Choices<'_>, settings: &Settings, registered: &[Put]) -> Vec<u8> {
    let zones = &settings.zones;
    let mut labels = match choices.below(16) {
        // Few names of aliases are NXDOMAIN on the fast path: more random names make up for them.
        0 | 2 if !settings.aliases.is_empty() && !choices.one_in(3) => {
            [random(choices), zone(choices, zones)].concat()
        }
        // Likewise for SRV records without glue, which only instances with a host name have.
        7 if !settings.aliases.is_empty() => match pick_with_host_name(choices, registered) {
            Some(registration) => {
                [row(choices, settings, registration), zone(choices, zones)].concat()
            }
            None => [random(choices), zone(choices, zones)].concat(),
        },
        0 => elsewhere(choices, registered),
        3..=5 if !settings.aliases.is_empty() => {
            [row_of_alias(choices, settings, registered), zone(choices, zones)].concat()
        }
        1 => [random(choices), zone(choices, zones)].concat(),
        2 => [special(choices), zone(choices, zones)].concat(),
        _ => match pick(choices, registered) {
            Some(registration) => {
                [row(choices, settings, registration), zone(choices, zones)].concat()
            }
            None => [random(choices), zone(choices, zones)].concat(),
        },
    };
    match choices.below(20) {
        0 if labels.len() > 1 => drop(labels.remove(0)),
        1 => labels.insert(0, word(choices)),
        2 if !labels.is_empty() => {
            let at = choices.below(labels.len());
            labels[at] = word(choices);
        }
        3 if labels.len() > 1 => {
            let at = choices.below(labels.len() - 1);
            labels.swap(at, at + 1);
        }
        4 if !labels.is_empty() => labels.insert(0, labels[0].clone()),
        _ => {}
    }
    let upper = choices.byte();
    wire(&labels, if upper > 127 { upper } else { 0 })
}

/// Encodes a name, within the length limits of DNS.
///
/// Labels are truncated to 63 bytes, and the first ones left out if the name exceeds 255 bytes. The
/// bits of `upper` choose the letters that become upper case.
fn wire(labels: &[Vec<u8>], upper: u8) -> Vec<u8> {
    let mut first = labels.len();
    let mut length = 1;
    while first > 0 && length + 1 + labels[first - 1].len().min(63) <= 255 {
        first -= 1;
        length += 1 + labels[first].len().min(63);
    }
    let mut name = Vec::with_capacity(length);
    for label in labels[first..].iter().filter(|label| !label.is_empty()) {
        let label = &label[..label.len().min(63)];
        name.push(u8::try_from(label.len()).unwrap());
        let cased = label.iter().enumerate().map(|(at, byte)| {
            if upper >> (at % 8) & 1 == 1 { byte.to_ascii_uppercase() } else { *byte }
        });
        name.extend(cased);
    }
    name.push(0);
    name
}

fn pick<'a>(choices: &mut Choices<'_>, registered: &'a [Put]) -> Option<&'a Registration> {
    let at = choices.below(256);
    registered.get(at % registered.len().max(1))?.content.as_ref().ok()
}

/// Returns a registration with an endpoint at a host name.
fn pick_with_host_name<'a>(
    choices: &mut Choices<'_>,
    registered: &'a [Put],
) -> Option<&'a Registration> {
    let (before, from) = registered.split_at(choices.below(256) % registered.len().max(1));
    let has_host_name = |registration: &&Registration| {
        registration.endpoints.iter().any(|endpoint| matches!(endpoint.host, Host::Name(_)))
    };
    let mut registrations = from.iter().chain(before).filter_map(|put| put.content.as_ref().ok());
    registrations.find(has_host_name)
}

/// Returns a name of a service by some row of the naming grammar.
fn row(choices: &mut Choices<'_>, settings: &Settings, registration: &Registration) -> Labels {
    let id = &registration.id;
    let base = base(&id.name.to_lowercase(), &settings.zones);
    let (namespace, deployment) = (split(&id.namespace), split(&id.deployment));
    let here = [*settings.namespace == *id.namespace, *settings.deployment == *id.deployment];
    let scope = match (choices.below(8), here) {
        (0..=4, [true, true]) => Vec::new(),
        (0..=6, [_, true]) => namespace,
        _ => [namespace, deployment].concat(),
    };
    let front: Labels = match choices.below(16) {
        0..=5 => Vec::new(),
        6 => split(&id.version),
        7 => vec![instance(choices, registration)],
        8 => [vec![instance(choices, registration)], split(&id.version)].concat(),
        9 => vec![protocol(choices), b"_tcp".to_vec()],
        10 => {
            // `_base._tcp`, directly before the zone.
            let mut base = base;
            base[0].insert(0, b'_');
            base.push(b"_tcp".to_vec());
            return base;
        }
        11 => vec![choices.of(&[&b"_tcp"[..], b"_env", b"_version"]).to_vec()],
        12 => [vec![protocol(choices), b"_tcp".to_vec()], selector(choices, registration)].concat(),
        13 => [selector(choices, registration), selector(choices, registration)].concat(),
        _ => selector(choices, registration),
    };
    [front, base, scope].concat()
}

/// Returns a name of an alias by some row of the naming grammar.
fn row_of_alias(choices: &mut Choices<'_>, settings: &Settings, registered: &[Put]) -> Labels {
    let at = choices.below(settings.aliases.iter().count());
    let base = settings.aliases.iter().nth(at).map_or("", |(base, _)| base);
    match pick(choices, registered) {
        Some(registration) if !choices.one_in(4) => {
            let id = ServiceId { name: base.into(), ..registration.id.clone() };
            row(choices, settings, &Registration { id, ..registration.clone() })
        }
        _ => split(base),
    }
}

fn selector(choices: &mut Choices<'_>, registration: &Registration) -> Labels {
    let id = &registration.id;
    let endpoint = registration.endpoints.first();
    let (value, key) = match choices.below(8) {
        0 => (id.version.to_string(), "_version"),
        1 => (id.namespace.to_string(), "_namespace"),
        2 => (id.deployment.to_string(), "_deployment"),
        3 => (
            endpoint.map_or_else(|| "80".to_owned(), |endpoint| endpoint.port.to_string()),
            "_port",
        ),
        4 => return vec![instance(choices, registration), b"_instance".to_vec()],
        5 => (
            endpoint.map_or_else(|| "x".to_owned(), |endpoint| endpoint.host.to_string()),
            "_instance",
        ),
        6 => (registration.metadata.text("env").map_or_else(|| "a".to_owned(), Into::into), "_env"),
        _ => (
            registration.metadata.text("protocol").map_or_else(|| "http".to_owned(), Into::into),
            "_protocol",
        ),
    };
    [split(&value), split(key)].concat()
}

fn protocol(choices: &mut Choices<'_>) -> Vec<u8> {
    choices.of(&[&b"_http"[..], b"_80", b"_81", b"_8000", b"_grpc", b"_080", b"_65535"]).to_vec()
}

fn instance(choices: &mut Choices<'_>, registration: &Registration) -> Vec<u8> {
    let at = choices.below(256) % registration.endpoints.len().max(1);
    match registration.endpoints.get(at).and_then(|endpoint| endpoint.host.address()) {
        Some(address) if choices.one_in(4) => address.to_string().replace([':', '.'], "-").into(),
        Some(address) => instance_label(address).into(),
        None => word(choices),
    }
}

/// Returns the registered name without a zone's suffix, if it has one.
fn base(registered: &str, zones: &Zones) -> Labels {
    let stripped = zones.iter().filter_map(|zone| {
        registered.strip_suffix(zone.text().trim_end_matches('.'))?.strip_suffix('.')
    });
    split(stripped.min_by_key(|base| base.len()).unwrap_or(registered))
}

fn split(text: &str) -> Labels {
    text.to_lowercase().split('.').map(|label| label.as_bytes().to_vec()).collect()
}

fn zone(choices: &mut Choices<'_>, zones: &Zones) -> Labels {
    let zone = zones.iter().nth(choices.below(zones.len())).unwrap();
    zone.name().labels().map(<[u8]>::to_vec).collect()
}

/// Returns one of the zone's own names.
fn special(choices: &mut Choices<'_>) -> Labels {
    match choices.below(4) {
        0 => Vec::new(),
        1 => vec![b"ns".to_vec()],
        2 => vec![b"dns-version".to_vec()],
        _ => vec![b"_tcp".to_vec()],
    }
}

/// Returns a name outside the zones, often a reverse name or a name above or below it.
fn elsewhere(choices: &mut Choices<'_>, registered: &[Put]) -> Labels {
    let address = pick(choices, registered)
        .and_then(|registration| registration.endpoints.first())
        .and_then(|e| e.host.address());
    match (choices.below(4), address) {
        (0, _) => vec![b"example".to_vec(), b"com".to_vec()],
        (1, None) => Vec::new(),
        (2, None) => vec![
            b"1".to_vec(),
            b"0".to_vec(),
            b"0".to_vec(),
            b"10".to_vec(),
            b"in-addr".to_vec(),
            b"arpa".to_vec(),
        ],
        (_, Some(address)) => {
            let mut labels: Labels = reverse_name(address).labels().map(<[u8]>::to_vec).collect();
            match choices.below(4) {
                0 => drop(labels.drain(..choices.below(labels.len() - 1))),
                1 => labels.insert(0, word(choices)),
                2 => labels[0] = word(choices),
                _ => {}
            }
            labels
        }
        (_, None) => vec![b"web".to_vec(), b"example".to_vec()],
    }
}

fn random(choices: &mut Choices<'_>) -> Labels {
    (0..choices.below(6)).map(|_| word(choices)).collect()
}

fn word(choices: &mut Choices<'_>) -> Vec<u8> {
    choices.of(&WORDS).to_vec()
}
