//! The model made of what the registries hold: what readers of the catalog see.

use std::cmp::Ordering;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;

use crate::service::{Endpoint, Host, Metadata, Rejected};

/// Everything known under one base name, in every deployment, namespace and version. Immutable: a change makes a new one.
///
/// Laid out for many services with few instances: keys are shared with the catalog's mirror, an instance is eight octets.
#[derive(Debug)]
pub struct Service {
    base: Box<str>,
    /// Sorted by (deployment, namespace, rank, version, text, registry): within a deployment and namespace the winning
    /// spelling stands first.
    keys: Few<Arc<Key>>,
    /// Sorted by (deployment, namespace, version, endpoint, position of the key).
    instances: Few<Slot>,
}

/// A slice that needs no allocation of its own for one element: most services have one key, most keys one endpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum Few<T> {
    /// One element, in place.
    One([T; 1]),
    /// None, or several.
    Many(Box<[T]>),
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T> From<Vec<T>> for Few<T> {
    fn from(elements: Vec<T>) -> Self {
        match <[T; 1]>::try_from(elements) {
            Ok(one) => Self::One(one),
            Err(elements) => Self::Many(elements.into()),
        }
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    key: u32,
    endpoint: u16,
    left_out: Option<LeftOut>,
}

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

/// One registry key, understood: the catalog's mirror and the model share it.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// The key as the store has it.
    pub text: Box<str>,
    /// The revision of its last change.
    pub revision: u64,
    /// Its lease, 0 for none.
    pub lease: i64,
    /// Deployment, namespace and version.
    pub group: Arc<Group>,
    /// The usable endpoints, at most 65,535.
    pub endpoints: Few<Endpoint>,
    /// The endpoints that cannot be served.
    pub rejected: Box<[Rejected]>,
    /// What the registrant says about itself. Shared by all keys that say the same.
    pub metadata: Arc<Metadata>,
    /// The weight, 0-65535: the metadata's, read once.
    pub weight: u16,
    /// The registry's place in the configuration, from 0.
    pub registry: u8,
    /// Which spelling of the base is registered; the lowest in a deployment and namespace wins (`name::Base`).
    pub rank: u8,
    /// Whether the registry says that it is gone, and the removal is not believed yet.
    pub held: bool,
}

/// One endpoint of one key, as seen in a service.
#[derive(Clone, Copy, Debug)]
pub struct Instance<'a> {
    /// The key it stands in.
    pub key: &'a Arc<Key>,
    /// Where it is.
    pub endpoint: &'a Endpoint,
    /// Why it is not served, where it is not.
    pub left_out: Option<LeftOut>,
}

/// Why an instance is known but not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum LeftOut {
    /// Another spelling of the name wins.
    #[error("shadowed: another spelling of the name wins in this deployment and namespace")]
    Shadowed,
    /// Docker's bridge address, which means another machine to everyone else.
    #[error("172.17.0.1 is every Docker host's own bridge, and the same port is registered at another address")]
    Docker0,
    /// The same endpoint of the same group stands in another key (old and new head, two registries).
    #[error("the same endpoint is registered by another key")]
    Duplicate,
}

/// What to do with endpoints at 172.17.0.1, which GoFrame registers on every host that has Docker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Docker0 {
    /// Leave it out when the same service has the same port at another address.
    #[default]
    Drop,
    /// Serve it like any other.
    Keep,
}

/// Docker's default bridge address.
const DOCKER0: Host = Host::V4(Ipv4Addr::new(172, 17, 0, 1));

impl Service {
    /// Makes the service of these keys, in any order. O(n log n).
    pub fn new(base: Box<str>, mut keys: Vec<Arc<Key>>, docker0: Docker0) -> Self {
        keys.sort_unstable_by(|a, b| a.order(b));
        let mut slots = Vec::with_capacity(keys.iter().map(|key| key.endpoints.len()).sum());
        let mut first = 0;
        for scope in keys.chunk_by(|a, b| a.scope() == b.scope()) {
            add_scope(&mut slots, scope, first, docker0);
            first += scope.len();
        }
        Self { base, keys: keys.into(), instances: slots.into() }
    }

    /// The registered name in lower case, less a served zone's suffix.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The keys, sorted by (deployment, namespace, rank, version, text, registry).
    pub fn keys(&self) -> &[Arc<Key>] {
        &self.keys
    }

    /// Every instance, those left out included, sorted by (deployment, namespace, version, endpoint).
    pub fn instances(&self) -> impl ExactSizeIterator<Item = Instance<'_>> {
        self.instances.iter().map(|slot| {
            let key = &self.keys[slot.key as usize];
            Instance { key, endpoint: &key.endpoints[usize::from(slot.endpoint)], left_out: slot.left_out }
        })
    }

    /// The instances that are served, in the order of [`Self::instances`].
    pub fn served(&self) -> impl Iterator<Item = Instance<'_>> {
        self.instances().filter(|instance| instance.left_out.is_none())
    }

    /// The keys that no other spelling shadows, whether they have a usable endpoint or not, in the order of [`Self::keys`].
    pub fn visible_keys(&self) -> impl Iterator<Item = &Arc<Key>> {
        self.keys.chunk_by(|a, b| a.scope() == b.scope()).flat_map(|scope| scope.iter().take_while(|key| key.rank == scope[0].rank))
    }
}

impl Key {
    /// Deployment and namespace.
    pub fn scope(&self) -> (&str, &str) {
        (&self.group.deployment, &self.group.namespace)
    }

    fn order(&self, other: &Self) -> Ordering {
        self.scope()
            .cmp(&other.scope())
            .then_with(|| self.rank.cmp(&other.rank))
            .then_with(|| self.group.version.cmp(&other.group.version))
            .then_with(|| self.text.cmp(&other.text))
            .then_with(|| self.registry.cmp(&other.registry))
    }
}

/// Adds the instances of one deployment and namespace, whose keys stand at `first` and after, sorted.
fn add_scope(slots: &mut Vec<Slot>, keys: &[Arc<Key>], first: usize, docker0: Docker0) {
    let winner = keys[0].rank;
    let mut ports: Vec<u16> = Vec::new();
    if docker0 == Docker0::Drop {
        let visible = keys.iter().take_while(|key| key.rank == winner);
        ports.extend(visible.flat_map(|key| key.endpoints.iter()).filter(|e| e.host != DOCKER0).map(|e| e.port));
        ports.sort_unstable();
        ports.dedup();
    }
    let added = slots.len();
    for (offset, key) in keys.iter().enumerate() {
        for (endpoint, at) in key.endpoints.iter().zip(0..=u16::MAX) {
            let left_out = if key.rank != winner {
                Some(LeftOut::Shadowed)
            } else if endpoint.host == DOCKER0 && ports.binary_search(&endpoint.port).is_ok() {
                Some(LeftOut::Docker0)
            } else {
                None
            };
            // A catalog that could hold 2^32 keys of one service would not fit in memory.
            let key = u32::try_from(first + offset).unwrap_or(u32::MAX);
            slots.push(Slot { key, endpoint: at, left_out });
        }
    }
    let of = |slot: &Slot| {
        let key = &keys[slot.key as usize - first];
        (&*key.group.version, &key.endpoints[usize::from(slot.endpoint)])
    };
    // Of equal endpoints the one that a registry still has is served, not the one that is only held.
    let held = |slot: &Slot| keys[slot.key as usize - first].held;
    slots[added..].sort_by(|a, b| of(a).cmp(&of(b)).then(a.left_out.cmp(&b.left_out)).then(held(a).cmp(&held(b))).then(a.key.cmp(&b.key)));
    for at in added + 1..slots.len() {
        let (before, here) = (slots[at - 1], slots[at]);
        let served = |slot: Slot| matches!(slot.left_out, None | Some(LeftOut::Duplicate));
        if served(here) && served(before) && of(&before) == of(&here) {
            slots[at].left_out = Some(LeftOut::Duplicate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::key;

    fn service(keys: &[&str], docker0: Docker0) -> Service {
        Service::new("hello".into(), keys.iter().map(|text| Arc::new(key(text))).collect(), docker0)
    }

    fn instances(service: &Service) -> Vec<String> {
        service
            .instances()
            .map(|Instance { key, endpoint, left_out }| {
                let Group { deployment, namespace, version } = &*key.group;
                let left_out = left_out.map(|left_out| format!(" {left_out:?}")).unwrap_or_default();
                format!("{deployment}/{namespace}/{version} {endpoint}{left_out}")
            })
            .collect()
    }

    #[test]
    fn a_service_of_one_endpoint_is_small() {
        assert!(size_of::<Service>() <= 48);
        assert!(size_of::<Key>() <= 104);
        assert_eq!(size_of::<Slot>(), 8);
    }

    #[test]
    fn instances_are_sorted_by_deployment_namespace_version_and_endpoint() {
        let service = service(
            &["/s/d/prod/hello/v1/10.0.0.9:80,10.0.0.1:80", "/s/d/dev/hello/v2/10.0.0.1:80", "/s/d/dev/hello/v1/10.0.0.7:80,10.0.0.7:9"],
            Docker0::Drop,
        );
        let sorted =
            ["d/dev/v1 10.0.0.7:9", "d/dev/v1 10.0.0.7:80", "d/dev/v2 10.0.0.1:80", "d/prod/v1 10.0.0.1:80", "d/prod/v1 10.0.0.9:80"];
        assert_eq!(instances(&service), sorted);
        assert_eq!(service.served().count(), 5);
        assert_eq!(service.instances().len(), 5);
        let keys: Vec<&str> = service.keys().iter().map(|key| &*key.text).collect();
        assert!(keys[0].starts_with("/s/d/dev/hello/v1") && keys[2].starts_with("/s/d/prod"), "{keys:?}");
    }

    #[test]
    fn the_zone_spelling_shadows_the_bare_one_with_its_versions_in_its_deployment_and_namespace_only() {
        let service = service(
            &[
                "/s/d/dev/hello.svc/v2/10.0.0.2:80",
                "/s/d/dev/hello/v1/10.0.0.1:80",
                "/s/d/dev/hello/v2/10.0.0.2:80",
                "/s/d/prod/hello/v1/10.0.0.3:80",
                "/s/e/dev/hello/v1/10.0.0.4:80",
            ],
            Docker0::Drop,
        );
        let expected = [
            "d/dev/v1 10.0.0.1:80 Shadowed",
            "d/dev/v2 10.0.0.2:80",
            "d/dev/v2 10.0.0.2:80 Shadowed",
            "d/prod/v1 10.0.0.3:80",
            "e/dev/v1 10.0.0.4:80",
        ];
        assert_eq!(instances(&service), expected);
        let visible: Vec<&str> = service.visible_keys().map(|key| &*key.text).collect();
        let expected = ["/s/d/dev/hello.svc/v2/10.0.0.2:80", "/s/d/prod/hello/v1/10.0.0.3:80", "/s/e/dev/hello/v1/10.0.0.4:80"];
        assert_eq!(visible, expected);
    }

    #[test]
    fn a_winner_without_a_usable_endpoint_still_shadows() {
        let service = service(&["/s/d/dev/hello.svc/v1/", "/s/d/dev/hello/v1/10.0.0.1:80"], Docker0::Drop);
        assert_eq!(service.served().count(), 0);
        assert_eq!(service.visible_keys().count(), 1);
    }

    #[test]
    fn dockers_bridge_is_left_out_where_the_port_stands_elsewhere() {
        let keys = [
            "/s/d/n/hello/v1/10.0.0.1:80,172.17.0.1:80",
            "/s/d/n/hello/v2/172.17.0.1:81",
            "/s/d/n/hello/v3/172.17.0.1:80",
            "/s/d/m/hello/v1/172.17.0.1:80",
        ];
        let expected = [
            "d/m/v1 172.17.0.1:80",
            "d/n/v1 10.0.0.1:80",
            "d/n/v1 172.17.0.1:80 Docker0",
            "d/n/v2 172.17.0.1:81",
            "d/n/v3 172.17.0.1:80 Docker0",
        ];
        assert_eq!(instances(&service(&keys, Docker0::Drop)), expected);
        assert_eq!(service(&keys, Docker0::Keep).served().count(), 5);
        // A shadowed spelling does not count as another address.
        let keys = ["/s/d/n/hello.svc/v1/172.17.0.1:80", "/s/d/n/hello/v1/10.0.0.1:80"];
        assert_eq!(instances(&service(&keys, Docker0::Drop)), ["d/n/v1 10.0.0.1:80 Shadowed", "d/n/v1 172.17.0.1:80"]);
    }

    #[test]
    fn equal_endpoints_of_one_version_are_served_once() {
        let service = service(
            &[
                "/service/d/n/hello/v1/10.0.0.1:80",
                "/services/d/n/hello/v1/10.0.0.1:80",
                "/t/d/n/hello/v1/10.0.0.1:80,10.0.0.1:81",
                "/service/d/n/hello/v2/10.0.0.1:80",
            ],
            Docker0::Drop,
        );
        let expected = [
            "d/n/v1 10.0.0.1:80",
            "d/n/v1 10.0.0.1:80 Duplicate",
            "d/n/v1 10.0.0.1:80 Duplicate",
            "d/n/v1 10.0.0.1:81",
            "d/n/v2 10.0.0.1:80",
        ];
        assert_eq!(instances(&service), expected);
        assert_eq!(service.served().next().unwrap().key.text.split('/').nth(1), Some("service"), "the first key wins");
    }

    #[test]
    fn of_equal_endpoints_the_one_that_is_not_held_is_served() {
        let held = Key { held: true, ..key("/a/d/n/hello/v1/10.0.0.1:80") };
        let service = Service::new("hello".into(), vec![Arc::new(held), Arc::new(key("/b/d/n/hello/v1/10.0.0.1:80"))], Docker0::Drop);
        let served: Vec<bool> = service.served().map(|instance| instance.key.held).collect();
        assert_eq!(served, [false]);
    }

    #[test]
    fn nothing_makes_an_empty_service() {
        let service = service(&[], Docker0::Drop);
        assert_eq!((service.keys().len(), service.instances().len(), service.visible_keys().count()), (0, 0, 0));
    }
}
