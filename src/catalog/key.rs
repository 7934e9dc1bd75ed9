//! One key of one registry, and what it shares with others.

use std::cmp::Ordering;
use std::fmt::{self, Write};
use std::net::Ipv4Addr;
use std::str;
use std::sync::Arc;

use serde::Serialize;

use super::model::Few;
use crate::name::ipv4_label;
use crate::service::{Endpoint, Host, Metadata, Rejected, ServiceId};

/// One deployment, namespace and version, all lower-cased. Shared by all keys that have them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Group {
    /// GoFrame's deployment.
    pub deployment: Box<str>,
    /// GoFrame's namespace.
    pub namespace: Box<str>,
    /// The version.
    pub version: Box<str>,
}

impl Group {
    /// The group of an identity.
    pub(super) fn of(id: &ServiceId) -> Self {
        let [deployment, namespace, version] = [&id.deployment, &id.namespace, &id.version].map(|text| text.to_ascii_lowercase().into());
        Self { deployment, namespace, version }
    }

    /// Whether it is the group of this identity.
    pub(super) fn is_of(&self, id: &ServiceId) -> bool {
        let same = |own: &str, other: &str| own.eq_ignore_ascii_case(other);
        same(&self.version, &id.version) && same(&self.namespace, &id.namespace) && same(&self.deployment, &id.deployment)
    }

    /// Deployment and namespace.
    pub fn scope(&self) -> (&str, &str) {
        (&self.deployment, &self.namespace)
    }
}

/// What is alike in many keys. Shared by all keys in which it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Frame {
    /// Deployment, namespace and version.
    pub(super) group: Arc<Group>,
    /// The registry's place in the configuration.
    pub(super) registry: u8,
    /// Which spelling of the base is registered.
    pub(super) rank: u8,
    /// Whether the registry says that the key is gone.
    pub(super) held: bool,
    /// What stands around the base and the endpoints in the text of the key.
    pub(super) around: Around,
}

/// What stands in front of the base (`/service/default/default/`) and between it and the endpoints (`.svc/latest/`) in the
/// text of a key. Together with those it is the whole text, so that this need not be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Around {
    pub(super) front: Box<str>,
    pub(super) back: Box<str>,
}

impl Around {
    /// What stands around the base and the endpoints in a text of GoFrame's layout; none where the text is not made of them
    /// (letters of another case, endpoints spelled in another way or left out).
    pub(super) fn of(text: &str, base: &str, endpoints: &[Endpoint]) -> Option<Self> {
        // The base stands behind head, deployment and namespace.
        let (slash, _) = text.match_indices('/').nth(3)?;
        let (front, rest) = text.split_at(slash + 1);
        let rest = rest.strip_prefix(base)?;
        let back = rest.rfind('/').map(|slash| &rest[..=slash])?;
        let around = Self { front: front.into(), back: back.into() };
        around.make(text, base, endpoints).then_some(around)
    }

    /// Whether this text is made of these.
    pub(super) fn make(&self, text: &str, base: &str, endpoints: &[Endpoint]) -> bool {
        let within =
            text.strip_prefix(&*self.front).and_then(|rest| rest.strip_prefix(base)).and_then(|rest| rest.strip_prefix(&*self.back));
        within.is_some_and(|rest| {
            let mut rest = Rest(rest);
            put_endpoints(&mut rest, endpoints).is_ok() && rest.0.is_empty()
        })
    }
}

/// What is left of a text that is written once more.
struct Rest<'a>(&'a str);

impl Write for Rest<'_> {
    fn write_str(&mut self, written: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(written).ok_or(fmt::Error)?;
        Ok(())
    }
}

fn put_endpoints(out: &mut impl Write, endpoints: &[Endpoint]) -> fmt::Result {
    for (place, endpoint) in endpoints.iter().enumerate() {
        if place > 0 {
            out.write_char(',')?;
        }
        match endpoint.host {
            Host::V4(address) => put_ipv4_endpoint(out, address, endpoint.port)?,
            Host::V6(_) | Host::Name(_) => write!(out, "{endpoint}")?,
        }
    }
    Ok(())
}

/// What the endpoint's `Display` writes, in a fifth of the time: it is compared with each key of a list.
fn put_ipv4_endpoint(out: &mut impl Write, address: Ipv4Addr, port: u16) -> fmt::Result {
    let (mut label, length) = ipv4_label(address.octets());
    for octet in &mut label {
        *octet = if *octet == b'-' { b'.' } else { *octet };
    }
    out.write_str(str::from_utf8(&label[..length]).map_err(|_| fmt::Error)?)?;
    out.write_char(':')?;
    out.write_str(itoa::Buffer::new().format(port))
}

/// One registry key, understood: the catalog's mirror and the model share it.
///
/// Laid out for many keys: what many have in common is held once, and the text is made of the rest when it is asked for
/// ([`super::Service::text`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// The revision of its last change.
    pub revision: u64,
    /// Its lease, 0 for none.
    pub lease: i64,
    /// The usable endpoints, at most 65,535.
    pub endpoints: Few<Endpoint>,
    /// What the registrant says about itself. Shared by all keys that say the same.
    pub metadata: Arc<Metadata>,
    pub(super) frame: Arc<Frame>,
    pub(super) odd: Option<Box<Odd>>,
}

/// What few keys have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Odd {
    /// The text where the frame does not make it.
    pub(super) text: Option<Box<str>>,
    /// The endpoints that cannot be served.
    pub(super) rejected: Box<[Rejected]>,
}

impl Key {
    /// Deployment, namespace and version.
    pub fn group(&self) -> &Arc<Group> {
        &self.frame.group
    }

    /// Deployment and namespace.
    pub fn scope(&self) -> (&str, &str) {
        self.frame.group.scope()
    }

    /// The weight, 0-65535: the metadata's.
    pub fn weight(&self) -> u16 {
        self.metadata.weight()
    }

    /// The registry's place in the configuration, from 0.
    pub fn registry(&self) -> u8 {
        self.frame.registry
    }

    /// Which spelling of the base is registered; the lowest in a deployment and namespace wins (`name::Base`).
    pub fn rank(&self) -> u8 {
        self.frame.rank
    }

    /// Whether the registry says that it is gone, and the removal is not believed yet.
    pub fn held(&self) -> bool {
        self.frame.held
    }

    /// The endpoints that cannot be served.
    pub fn rejected(&self) -> &[Rejected] {
        self.odd.as_ref().map_or(&[], |odd| &odd.rejected)
    }

    /// The key as the store has it, for one of a service of this base.
    pub(super) fn text(&self, base: &str) -> String {
        if let Some(text) = self.odd_text() {
            return text.to_owned();
        }
        let Around { front, back } = &self.frame.around;
        let mut text = [&**front, base, &**back].concat();
        // A `String` takes all that is written.
        let _ = put_endpoints(&mut text, &self.endpoints);
        text
    }

    /// Whether this is the text of the key, for one of a service of this base.
    pub(super) fn has_text(&self, base: &str, text: &str) -> bool {
        match self.odd_text() {
            Some(odd) => odd == text,
            None => self.frame.around.make(text, base, &self.endpoints),
        }
    }

    fn odd_text(&self) -> Option<&str> {
        self.odd.as_ref()?.text.as_deref()
    }

    /// The order of the keys of a service. Equal only for one key of one registry.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        let same = Arc::ptr_eq(&self.frame, &other.frame);
        let frames = if same { Ordering::Equal } else { self.frame.order(&other.frame) };
        frames
            .then_with(|| self.odd_text().cmp(&other.odd_text()))
            .then_with(|| self.endpoints.cmp(&other.endpoints))
            .then_with(|| self.registry().cmp(&other.registry()))
    }
}

impl Frame {
    fn order(&self, other: &Self) -> Ordering {
        self.group
            .scope()
            .cmp(&other.group.scope())
            .then_with(|| self.rank.cmp(&other.rank))
            .then_with(|| self.group.version.cmp(&other.group.version))
            .then_with(|| self.around.cmp(&other.around))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_written_as_it_is_displayed() {
        for (address, port) in [([0, 0, 0, 0], 0), ([10, 0, 0, 1], 8), ([192, 168, 99, 100], 80), ([255, 255, 255, 255], 65535)] {
            let endpoints = [Endpoint { host: Host::V4(address.into()), port }, Endpoint { host: Host::Name("a.b".into()), port }];
            let mut text = String::new();
            put_endpoints(&mut text, &endpoints).unwrap();
            assert_eq!(text, format!("{},{}", endpoints[0], endpoints[1]));
        }
    }

    #[test]
    fn a_text_is_made_of_what_stands_around_or_not_at_all() {
        let endpoints = |hosts: &[&str]| -> Vec<Endpoint> {
            let host = |host: &&str| host.parse::<std::net::IpAddr>().map_or_else(|_| Host::Name((*host).into()), Host::from);
            hosts.iter().map(|text| Endpoint { host: host(text), port: 80 }).collect()
        };
        for (text, base, hosts, around) in [
            ("/service/d/n/hello.svc/latest/10.0.0.1:80", "hello", &["10.0.0.1"][..], Some(("/service/d/n/", ".svc/latest/"))),
            ("/s/d/n/a/latest/10.0.0.1:80,[fd00::5]:80", "a", &["10.0.0.1", "fd00::5"], Some(("/s/d/n/", "/latest/"))),
            ("/s///s//web.example:80", "s", &["web.example"], Some(("/s///", "//"))),
            ("/s/d/n/a/v/", "a", &[], Some(("/s/d/n/", "/v/"))),
            ("/s/d/n/A/v/10.0.0.1:80", "a", &["10.0.0.1"], None),
            ("/s/d/n/a/v/10.0.0.1:080", "a", &["10.0.0.1"], None),
            ("/s/d/n/a/v/10.0.0.1:80,10.0.0.1:0", "a", &["10.0.0.1"], None),
            ("/s/d/n/a/v/10.0.0.1:80/", "a", &["10.0.0.1"], None),
            ("/s/d/n/a/v/10.0.0.1:80 ", "a", &["10.0.0.1"], None),
            ("s/d/n/a/v/10.0.0.1:80", "a", &["10.0.0.1"], None),
            ("s#d#n#a#v#10.0.0.1-80", "a", &["10.0.0.1"], None),
        ] {
            let endpoints = endpoints(hosts);
            let found = Around::of(text, base, &endpoints);
            assert_eq!(found.as_ref().map(|around| (&*around.front, &*around.back)), around, "{text}");
            assert!(found.is_none_or(|around| !around.make(&format!("{text} "), base, &endpoints)));
        }
    }
}
