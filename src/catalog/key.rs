//! The keys of the registries, stored compactly.

use std::cmp::Ordering;
use std::fmt::{self, Write};
use std::net::Ipv4Addr;
use std::str;
use std::sync::Arc;

use serde::Serialize;

use super::holds::HoldCause;
use super::one_or_many::OneOrMany;
use super::rules::OVERRIDE_LAYER;
use crate::name::ipv4_label;
use crate::service::{Endpoint, Host, Metadata, RegistryId, Rejected, ServiceId};

/// A deployment, namespace and version in lower case, shared by all keys that have them.
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
    /// Returns the group of a service identity.
    pub(super) fn of(id: &ServiceId) -> Self {
        let [deployment, namespace, version] = [&id.deployment, &id.namespace, &id.version]
            .map(|text| text.to_ascii_lowercase().into());
        Self { deployment, namespace, version }
    }

    /// Returns whether a service identity belongs to this group, without allocating.
    pub(super) fn matches_id(&self, id: &ServiceId) -> bool {
        let same = |own: &str, other: &str| own.eq_ignore_ascii_case(other);
        same(&self.version, &id.version)
            && same(&self.namespace, &id.namespace)
            && same(&self.deployment, &id.deployment)
    }

    /// Returns the deployment and the namespace.
    pub fn scope(&self) -> (&str, &str) {
        (&self.deployment, &self.namespace)
    }
}

/// The fields that many keys have in common, interned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SharedKeyFields {
    /// The deployment, namespace and version.
    pub(super) group: Arc<Group>,
    /// The registry that has the key.
    pub(super) registry: RegistryId,
    /// The layer of the registry, or of its registration ([`RegistryKey::layer`]).
    pub(super) layer: u8,
    /// The rank of the registered spelling ([`RegistryKey::rank`]).
    pub(super) rank: u8,
    /// Why the key is held: served although its registry has removed it.
    pub(super) hold: Option<HoldCause>,
    /// The key's text apart from its base and endpoints.
    pub(super) layout: KeyLayout,
}

/// The parts of a key's text around its base name and its endpoints.
///
/// Base and endpoints are stored separately, so a layout saves storing the text of each key.
///
/// | text | before | between | after |
/// |---|---|---|---|
/// | `/service/d/n/hello.svc/latest/10.0.0.1:80` | `/service/d/n/` | `.svc/latest/` | |
/// | `10.0.0.1#80#DEFAULT#hello` | | `#DEFAULT#` | |
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct KeyLayout {
    /// Text before whichever of base and endpoints comes first.
    pub(super) before: Box<str>,
    /// Text between the base and the endpoints.
    pub(super) between: Box<str>,
    /// Text after whichever of base and endpoints comes last.
    pub(super) after: Box<str>,
    /// Whether the endpoints come before the base.
    pub(super) endpoints_first: bool,
    /// The character between host and port, and for each `:` of an IPv6 address.
    pub(super) port_separator: char,
}

/// Characters that may separate a host from its port, the most common first.
const PORT_SEPARATORS: [char; 3] = [':', '-', '#'];

impl KeyLayout {
    /// Splits a key's text around its base and its endpoints.
    ///
    /// Returns `None` if the text does not contain both in canonical spelling: it has capitals,
    /// another spelling of an endpoint, or a rejected endpoint.
    pub(super) fn split(text: &str, base: &str, endpoints: &[Endpoint]) -> Option<Self> {
        PORT_SEPARATORS.into_iter().find_map(|port_separator| {
            let mut written = String::new();
            write_endpoints(&mut written, endpoints, port_separator).ok()?;
            let start = text.rfind(&written)?;
            let end = start + written.len();
            // If the base occurs more than once, take the one next to the endpoints: the others
            // belong to a prefix or a namespace, which many bases share.
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

    /// Returns whether layout, base and endpoints make up the text.
    pub(super) fn matches(&self, text: &str, base: &str, endpoints: &[Endpoint]) -> bool {
        let mut rest = RemainingText(text);
        self.write(&mut rest, base, endpoints).is_ok() && rest.0.is_empty()
    }

    /// Writes the key's text.
    pub(super) fn write(
        &self,
        out: &mut impl Write,
        base: &str,
        endpoints: &[Endpoint],
    ) -> fmt::Result {
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

/// Returns the positions of a word in a text, except inside longer words.
fn word_positions<'t>(text: &'t str, word: &'t str) -> impl Iterator<Item = usize> + 't {
    let is_edge = |neighbour: Option<char>| neighbour.is_none_or(|c| !c.is_alphanumeric());
    let found = text.match_indices(word).map(|(at, _)| at);
    found.filter(move |at| {
        is_edge(text[..*at].chars().next_back()) && is_edge(text[at + word.len()..].chars().next())
    })
}

/// A writer that fails unless exactly the remaining text is written to it.
struct RemainingText<'a>(&'a str);

impl Write for RemainingText<'_> {
    fn write_str(&mut self, written: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(written).ok_or(fmt::Error)?;
        Ok(())
    }
}

/// Writes endpoints as in a key's text; `separator` replaces each `:`.
fn write_endpoints(
    out: &mut impl Write,
    endpoints: &[Endpoint],
    port_separator: char,
) -> fmt::Result {
    for (at, endpoint) in endpoints.iter().enumerate() {
        if at > 0 {
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

/// Writes an IPv4 endpoint as its `Display` does, but five times as fast.
///
/// A list compares every key by its text, so this function is hot.
fn write_ipv4_endpoint(
    out: &mut impl Write,
    address: Ipv4Addr,
    port: u16,
    port_separator: char,
) -> fmt::Result {
    let (mut label, length) = ipv4_label(address.octets());
    for byte in &mut label {
        *byte = if *byte == b'-' { b'.' } else { *byte };
    }
    out.write_str(str::from_utf8(&label[..length]).map_err(|_| fmt::Error)?)?;
    out.write_char(port_separator)?;
    out.write_str(itoa::Buffer::new().format(port))
}

/// A parsed key of a registry, shared by the mirror and the services.
///
/// The memory layout favours many keys: common fields are interned, and the text is assembled on
/// demand ([`super::Service::text`]).
#[derive(Clone, Debug, PartialEq)]
pub struct RegistryKey {
    /// The revision of the last change; 0 if the registry has no revisions.
    pub revision: u64,
    /// The ID of the key's lease, 0 for none.
    pub lease: i64,
    /// The usable endpoints, at most 65,535.
    pub endpoints: OneOrMany<Endpoint>,
    /// The registrant's metadata, shared by all keys with equal metadata.
    pub metadata: Arc<Metadata>,
    /// The fields that many keys have in common.
    pub(super) shared: Arc<SharedKeyFields>,
    /// The fields that few keys have.
    pub(super) uncommon: Option<Box<UncommonFields>>,
}

/// Fields that few keys have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct UncommonFields {
    /// The key's text, if no [`KeyLayout`] can express it.
    pub(super) text: Option<Box<str>>,
    /// The endpoints that cannot be served.
    pub(super) rejected: Box<[Rejected]>,
}

impl RegistryKey {
    /// Returns the deployment, namespace and version.
    pub fn group(&self) -> &Arc<Group> {
        &self.shared.group
    }

    /// Returns the deployment and the namespace.
    pub fn scope(&self) -> (&str, &str) {
        self.shared.group.scope()
    }

    /// Returns the weight from the metadata, 0-65535.
    pub fn weight(&self) -> u16 {
        self.metadata.weight()
    }

    /// Returns whether an endpoint has a host name, not an address.
    pub(super) fn has_host_names(&self) -> bool {
        self.endpoints.iter().any(|endpoint| matches!(endpoint.host, Host::Name(_)))
    }

    /// Returns the registry that has the key.
    pub fn registry(&self) -> RegistryId {
        self.shared.registry
    }

    /// Returns the layer of the key.
    ///
    /// Within a deployment and namespace, the lowest layer with a usable endpoint wins
    /// ([`super::Merge`]).
    pub fn layer(&self) -> u8 {
        self.shared.layer
    }

    /// Returns whether the key's layer may precede others.
    ///
    /// A key without a usable endpoint hides no other, such as one whose check failed. An
    /// overriding one always does.
    pub(super) fn holds_name(&self) -> bool {
        !self.endpoints.is_empty() || self.layer() == OVERRIDE_LAYER
    }

    /// Returns the rank of the registered spelling of the base.
    ///
    /// Within a deployment, a namespace and a layer, the lowest rank with a usable endpoint wins
    /// ([`crate::name::Base`]).
    pub fn rank(&self) -> u8 {
        self.shared.rank
    }

    /// Returns the layer and the rank.
    ///
    /// The keys with the lowest layer that holds the name, and in it with the lowest rank that has
    /// a usable endpoint, are served.
    pub fn precedence(&self) -> (u8, u8) {
        (self.shared.layer, self.shared.rank)
    }

    /// Returns whether the key is held: served although its registry has removed it.
    pub fn held(&self) -> bool {
        self.hold().is_some()
    }

    /// Returns why the key is held, if it is.
    pub fn hold(&self) -> Option<HoldCause> {
        self.shared.hold
    }

    /// Returns the endpoints that cannot be served.
    pub fn rejected(&self) -> &[Rejected] {
        self.uncommon.as_ref().map_or(&[], |uncommon| &uncommon.rejected)
    }

    /// Returns the key as stored in the registry, given the base name of its service.
    pub(super) fn text(&self, base: &str) -> String {
        if let Some(text) = self.own_text() {
            return text.to_owned();
        }
        let mut text = String::new();
        // Writing to a `String` cannot fail.
        let _ = self.shared.layout.write(&mut text, base, &self.endpoints);
        text
    }

    /// Returns whether this is the key's text, given the base name of its service.
    pub(super) fn has_text(&self, base: &str, text: &str) -> bool {
        match self.own_text() {
            Some(own) => own == text,
            None => self.shared.layout.matches(text, base, &self.endpoints),
        }
    }

    /// Returns the key's text if it is stored with the key rather than as a layout.
    pub(super) fn own_text(&self) -> Option<&str> {
        self.uncommon.as_ref()?.text.as_deref()
    }

    /// Compares keys in the order of [`super::Service::keys`].
    ///
    /// Equal only for the same key of the same registry.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        let same = Arc::ptr_eq(&self.shared, &other.shared);
        let by_shared = if same { Ordering::Equal } else { self.shared.order(&other.shared) };
        by_shared
            .then_with(|| self.own_text().cmp(&other.own_text()))
            .then_with(|| self.endpoints.cmp(&other.endpoints))
    }
}

impl SharedKeyFields {
    /// Compares the fields that [`RegistryKey::order`] compares first.
    fn order(&self, other: &Self) -> Ordering {
        self.group
            .scope()
            .cmp(&other.group.scope())
            .then_with(|| (self.layer, self.rank).cmp(&(other.layer, other.rank)))
            .then_with(|| self.group.version.cmp(&other.group.version))
            .then_with(|| self.registry.cmp(&other.registry))
            .then_with(|| self.layout.cmp(&other.layout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_displayed_endpoints_are_equal() {
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
    fn key_texts_are_rebuilt_from_layout_base_and_endpoints() {
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
            // The base also occurs as a namespace, as the prefix or within another word.
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
