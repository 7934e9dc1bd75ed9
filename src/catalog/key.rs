//! One key of one registry, and what it shares with others.

use std::cmp::Ordering;
use std::fmt::{self, Write};
use std::net::Ipv4Addr;
use std::str;
use std::sync::Arc;

use serde::Serialize;

use super::one_or_many::OneOrMany;
use crate::name::ipv4_label;
use crate::service::{Endpoint, Host, Metadata, RegistryId, Rejected, ServiceId};

/// One deployment, namespace and version, all lower-cased. Shared by all keys that have them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Group {
    /// The deployment.
    pub deployment: Box<str>,
    /// The namespace.
    pub namespace: Box<str>,
    /// The version.
    pub version: Box<str>,
}

impl Group {
    /// The group of an identity.
    pub(super) fn of(id: &ServiceId) -> Self {
        let [deployment, namespace, version] = [&id.deployment, &id.namespace, &id.version]
            .map(|text| text.to_ascii_lowercase().into());
        Self { deployment, namespace, version }
    }

    /// Whether it is the group of this identity.
    pub(super) fn matches_id(&self, id: &ServiceId) -> bool {
        let same = |own: &str, other: &str| own.eq_ignore_ascii_case(other);
        same(&self.version, &id.version)
            && same(&self.namespace, &id.namespace)
            && same(&self.deployment, &id.deployment)
    }

    /// Deployment and namespace.
    pub fn scope(&self) -> (&str, &str) {
        (&self.deployment, &self.namespace)
    }
}

/// What is alike in many keys. Shared by all keys in which it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SharedKeyFields {
    /// Deployment, namespace and version.
    pub(super) group: Arc<Group>,
    /// The registry.
    pub(super) registry: RegistryId,
    /// Which spelling of the base is registered.
    pub(super) rank: u8,
    /// Whether the registry says that the key is gone.
    pub(super) held: bool,
    /// What the text of the key has besides base and endpoints.
    pub(super) layout: KeyLayout,
}

/// What a key's text has besides its base and its endpoints, whatever the layout: together with those it makes the whole text,
/// so that the text itself need not be kept.
///
/// | text | before | between | after |
/// |---|---|---|---|
/// | `/service/default/default/hello.svc/latest/10.0.0.1:80` | `/service/default/default/` | `.svc/latest/` | |
/// | `10.0.0.1#80#DEFAULT#hello` | | `#DEFAULT#` | |
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct KeyLayout {
    before: Box<str>,
    between: Box<str>,
    after: Box<str>,
    endpoints_first: bool,
    /// The character between a host and its port.
    port_separator: char,
}

/// What may stand between a host and its port, the usual one first.
const PORT_SEPARATORS: [char; 3] = [':', '-', '#'];

impl KeyLayout {
    /// Splits a key's text into base, endpoints and the rest.
    ///
    /// Returns `None` if the text does not contain both as they would be written: the registrant used capitals,
    /// spelled an endpoint otherwise, or listed one that was rejected.
    pub(super) fn split(text: &str, base: &str, endpoints: &[Endpoint]) -> Option<Self> {
        PORT_SEPARATORS.into_iter().find_map(|port_separator| {
            let mut written = String::new();
            write_endpoints(&mut written, endpoints, port_separator).ok()?;
            let start = text.rfind(&written)?;
            let end = start + written.len();
            // Of several places the one next to the endpoints: further off are a head or a namespace that many bases share.
            let in_front = word_positions(&text[..start], base).last();
            let layout = |before: &str, between: &str, after: &str, endpoints_first| Self {
                before: before.into(),
                between: between.into(),
                after: after.into(),
                endpoints_first,
                port_separator,
            };
            let layout = if let Some(at) = in_front {
                layout(&text[..at], &text[at + base.len()..start], &text[end..], false)
            } else {
                let at = end + word_positions(&text[end..], base).next()?;
                layout(&text[..start], &text[end..at], &text[at + base.len()..], true)
            };
            layout.matches(text, base, endpoints).then_some(layout)
        })
    }

    /// Whether this text is made of these.
    pub(super) fn matches(&self, text: &str, base: &str, endpoints: &[Endpoint]) -> bool {
        let mut rest = RemainingText(text);
        self.write(&mut rest, base, endpoints).is_ok() && rest.0.is_empty()
    }

    fn write(&self, out: &mut impl Write, base: &str, endpoints: &[Endpoint]) -> fmt::Result {
        out.write_str(&self.before)?;
        if self.endpoints_first {
            write_endpoints(out, endpoints, self.port_separator)?;
            out.write_str(&self.between)?;
            out.write_str(base)?;
        } else {
            out.write_str(base)?;
            out.write_str(&self.between)?;
            write_endpoints(out, endpoints, self.port_separator)?;
        }
        out.write_str(&self.after)
    }
}

/// Returns the positions of a word in a text, except inside longer word_positions.
fn word_positions<'t>(text: &'t str, word: &'t str) -> impl Iterator<Item = usize> + 't {
    let is_edge = |neighbour: Option<char>| neighbour.is_none_or(|c| !c.is_alphanumeric());
    let found = text.match_indices(word).map(|(at, _)| at);
    found.filter(move |at| {
        is_edge(text[..*at].chars().next_back()) && is_edge(text[at + word.len()..].chars().next())
    })
}

/// What is left of a text that is written once more.
struct RemainingText<'a>(&'a str);

impl Write for RemainingText<'_> {
    fn write_str(&mut self, written: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(written).ok_or(fmt::Error)?;
        Ok(())
    }
}

/// Writes endpoints as the text of a key holds them, with this mark for each `:`.
fn write_endpoints(
    out: &mut impl Write,
    endpoints: &[Endpoint],
    port_separator: char,
) -> fmt::Result {
    for (place, endpoint) in endpoints.iter().enumerate() {
        if place > 0 {
            out.write_char(',')?;
        }
        match endpoint.host {
            Host::V4(address) => write_ipv4_endpoint(out, address, endpoint.port, port_separator)?,
            Host::V6(_) | Host::Name(_) if port_separator == ':' => write!(out, "{endpoint}")?,
            Host::V6(_) | Host::Name(_) => out.write_str(
                &endpoint.to_string().replace(':', port_separator.encode_utf8(&mut [0; 4])),
            )?,
        }
    }
    Ok(())
}

/// Writes what the endpoint's `Display` writes, in a fifth of the time: it is compared with each key of a list.
fn write_ipv4_endpoint(
    out: &mut impl Write,
    address: Ipv4Addr,
    port: u16,
    port_separator: char,
) -> fmt::Result {
    let (mut label, length) = ipv4_label(address.octets());
    for octet in &mut label {
        *octet = if *octet == b'-' { b'.' } else { *octet };
    }
    out.write_str(str::from_utf8(&label[..length]).map_err(|_| fmt::Error)?)?;
    out.write_char(port_separator)?;
    out.write_str(itoa::Buffer::new().format(port))
}

/// One registry key, understood: the catalog's mirror and the model share it.
///
/// Laid out for many keys: what many have in common is held once, and the text is made of the rest when it is asked for
/// ([`super::Service::text`]).
#[derive(Clone, Debug, PartialEq)]
pub struct RegistryKey {
    /// The revision of its last change.
    pub revision: u64,
    /// Its lease, 0 for none.
    pub lease: i64,
    /// The usable endpoints, at most 65,535.
    pub endpoints: OneOrMany<Endpoint>,
    /// What the registrant says about itself. Shared by all keys that say the same.
    pub metadata: Arc<Metadata>,
    pub(super) shared: Arc<SharedKeyFields>,
    pub(super) uncommon: Option<Box<UncommonFields>>,
}

/// What one_or_many keys have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct UncommonFields {
    /// The text where the shared does not make it.
    pub(super) text: Option<Box<str>>,
    /// The endpoints that cannot be served.
    pub(super) rejected: Box<[Rejected]>,
}

impl RegistryKey {
    /// Deployment, namespace and version.
    pub fn group(&self) -> &Arc<Group> {
        &self.shared.group
    }

    /// Deployment and namespace.
    pub fn scope(&self) -> (&str, &str) {
        self.shared.group.scope()
    }

    /// The weight, 0-65535: the metadata's.
    pub fn weight(&self) -> u16 {
        self.metadata.weight()
    }

    /// The registry that holds it.
    pub fn registry(&self) -> RegistryId {
        self.shared.registry
    }

    /// Which spelling of the base is registered; the lowest in a deployment and namespace wins (`name::Base`).
    pub fn rank(&self) -> u8 {
        self.shared.rank
    }

    /// Whether the registry says that it is gone, and the removal is not believed yet.
    pub fn held(&self) -> bool {
        self.shared.held
    }

    /// The endpoints that cannot be served.
    pub fn rejected(&self) -> &[Rejected] {
        self.uncommon.as_ref().map_or(&[], |uncommon| &uncommon.rejected)
    }

    /// The key as the store has it, for one of a service of this base.
    pub(super) fn text(&self, base: &str) -> String {
        if let Some(text) = self.own_text() {
            return text.to_owned();
        }
        let mut text = String::new();
        // A `String` takes all that is written.
        let _ = self.shared.layout.write(&mut text, base, &self.endpoints);
        text
    }

    /// Whether this is the text of the key, for one of a service of this base.
    pub(super) fn has_text(&self, base: &str, text: &str) -> bool {
        match self.own_text() {
            Some(uncommon) => uncommon == text,
            None => self.shared.layout.matches(text, base, &self.endpoints),
        }
    }

    fn own_text(&self) -> Option<&str> {
        self.uncommon.as_ref()?.text.as_deref()
    }

    /// The order of the keys of a service. Equal only for one key of one registry.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        let same = Arc::ptr_eq(&self.shared, &other.shared);
        let shared_fields = if same { Ordering::Equal } else { self.shared.order(&other.shared) };
        shared_fields
            .then_with(|| self.own_text().cmp(&other.own_text()))
            .then_with(|| self.endpoints.cmp(&other.endpoints))
            .then_with(|| self.registry().cmp(&other.registry()))
    }
}

impl SharedKeyFields {
    fn order(&self, other: &Self) -> Ordering {
        self.group
            .scope()
            .cmp(&other.group.scope())
            .then_with(|| self.rank.cmp(&other.rank))
            .then_with(|| self.group.version.cmp(&other.group.version))
            .then_with(|| self.layout.cmp(&other.layout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_written_as_it_is_displayed() {
        for (address, port) in [
            ([0, 0, 0, 0], 0),
            ([10, 0, 0, 1], 8),
            ([192, 168, 99, 100], 80),
            ([255, 255, 255, 255], 65535),
        ] {
            let endpoints = [
                Endpoint { host: Host::V4(address.into()), port },
                Endpoint { host: Host::Name("a.b".into()), port },
            ];
            let mut text = String::new();
            write_endpoints(&mut text, &endpoints, ':').unwrap();
            assert_eq!(text, format!("{},{}", endpoints[0], endpoints[1]));
            let mut text = String::new();
            write_endpoints(&mut text, &endpoints, '#').unwrap();
            assert_eq!(text, format!("{},{}", endpoints[0], endpoints[1]).replace(':', "#"));
        }
    }

    fn endpoints(hosts: &[&str]) -> Vec<Endpoint> {
        let host = |host: &&str| {
            host.parse::<std::net::IpAddr>().map_or_else(|_| Host::Name((*host).into()), Host::from)
        };
        hosts.iter().map(|text| Endpoint { host: host(text), port: 80 }).collect()
    }

    #[test]
    fn a_text_is_made_of_base_endpoints_and_what_stands_around_or_not_at_all() {
        for (text, base, hosts, layout) in [
            (
                "/service/d/n/hello.svc/latest/10.0.0.1:80",
                "hello",
                &["10.0.0.1"][..],
                Some(("/service/d/n/", ".svc/latest/", "")),
            ),
            (
                "/s/d/n/b/latest/10.0.0.1:80,[fd00::5]:80",
                "b",
                &["10.0.0.1", "fd00::5"],
                Some(("/s/d/n/", "/latest/", "")),
            ),
            ("/s///t//web.example:80", "t", &["web.example"], Some(("/s///", "//", ""))),
            ("/s/d/n/b/v/", "b", &[], Some(("/s/d/n/", "/v/", ""))),
            ("/s/d/n/b/v/10.0.0.1:80/", "b", &["10.0.0.1"], Some(("/s/d/n/", "/v/", "/"))),
            ("s#d#n#b#v#10.0.0.1-80", "b", &["10.0.0.1"], Some(("s#d#n#", "#v#", ""))),
            (
                "s#d#n#b#v#[fd00--5]-80,10.0.0.1-80",
                "b",
                &["fd00::5", "10.0.0.1"],
                Some(("s#d#n#", "#v#", "")),
            ),
            ("shop.svc-v1.2.0-10.0.0.1:80", "shop", &["10.0.0.1"], Some(("", ".svc-v1.2.0-", ""))),
            (
                "10.0.0.1#80#DEFAULT#G@@hello.svc",
                "hello",
                &["10.0.0.1"],
                Some(("", "#DEFAULT#G@@", ".svc")),
            ),
            // The base is also a namespace, a head, a part of another word.
            ("/b/d/b/b/v/10.0.0.1:80", "b", &["10.0.0.1"], Some(("/b/d/b/", "/v/", ""))),
            (
                "/s/d/n/er/latest/10.0.0.1:80",
                "er",
                &["10.0.0.1"],
                Some(("/s/d/n/", "/latest/", "")),
            ),
            (
                "/s/d/n/late/latest/10.0.0.1:80",
                "late",
                &["10.0.0.1"],
                Some(("/s/d/n/", "/latest/", "")),
            ),
            ("/s/d/n/B/v/10.0.0.1:80", "b", &["10.0.0.1"], None),
            ("/s/d/n/b/v/10.0.0.1:080", "b", &["10.0.0.1"], None),
            ("/s/d/n/bc/v/10.0.0.1:80", "b", &["10.0.0.1"], None),
            ("a8292e80", "b", &["10.0.0.1"], None),
        ] {
            let endpoints = endpoints(hosts);
            let found = KeyLayout::split(text, base, &endpoints);
            let parts =
                found.as_ref().map(|layout| (&*layout.before, &*layout.between, &*layout.after));
            assert_eq!(parts, layout, "{text}");
            assert!(found.is_none_or(|layout| !layout.matches(
                &format!("{text} "),
                base,
                &endpoints
            )));
        }
    }
}
