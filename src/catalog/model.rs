//! The services built from the registries' keys, as readers of the catalog see them.

use std::net::{IpAddr, Ipv4Addr};
use std::slice;
use std::sync::Arc;

use serde::Serialize;

use super::key::{Group, RegistryKey};
use super::rules::{Docker0, ServiceRules};
use super::text::InlineText;
use crate::service::{Endpoint, Host, RegistryId, RegistrySet};

/// Everything registered under one base name, in all its groups.
///
/// Immutable: a change builds a new service. The memory layout favours many services with a single
/// instance: besides its key, which the mirror shares, such a service is one allocation of 56
/// bytes.
#[derive(Clone, Debug)]
pub struct Service {
    base: InlineText,
    keys: ServiceKeys,
}

/// A service before and after a change.
#[derive(Clone, Debug)]
pub struct ServiceChange {
    /// The service before, `None` if it is new.
    pub before: Option<Arc<Service>>,
    /// The service after, `None` if it was removed.
    pub after: Option<Arc<Service>>,
}

impl ServiceChange {
    /// Returns the base name of the service.
    pub fn base(&self) -> &str {
        self.after.as_ref().or(self.before.as_ref()).map_or("", |service| service.base())
    }
}

/// The keys of a service, in the most compact form that can hold them.
#[derive(Clone, Debug)]
enum ServiceKeys {
    /// A service without keys.
    Empty,
    /// One key with one endpoint, which no rule excludes.
    Single(Arc<RegistryKey>),
    /// Any other number of keys or endpoints.
    Sorted(Box<SortedKeys>),
    /// The keys of another service, of which this one is an alias.
    Alias(Arc<Service>),
}

/// Keys and instances in their published order.
#[derive(Clone, Debug)]
struct SortedKeys {
    /// Sorted by [`RegistryKey::order`].
    keys: Box<[Arc<RegistryKey>]>,
    /// Sorted by (deployment, namespace, version, endpoint, position of the key).
    instances: Box<[InstanceRef]>,
}

/// The instances of a [`ServiceKeys::Single`].
const SINGLE_INSTANCE: &[InstanceRef] = &[InstanceRef { key: 0, endpoint: 0, excluded: None }];

/// An instance as indexes into its service's keys and endpoints.
#[derive(Clone, Copy, Debug)]
struct InstanceRef {
    /// Index of the key in the service.
    key: u32,
    /// Index of the endpoint in the key.
    endpoint: u16,
    /// Reason for not serving the instance; `None` if it is served.
    excluded: Option<ExclusionReason>,
}

/// An instance of a service: one endpoint of one key.
#[derive(Clone, Copy, Debug)]
pub struct Instance<'a> {
    /// The service that the instance belongs to.
    pub service: &'a Service,
    /// The key that has the endpoint.
    pub key: &'a Arc<RegistryKey>,
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// Reason for not serving the instance; `None` if it is served.
    pub excluded: Option<ExclusionReason>,
}

impl Instance<'_> {
    /// Returns whether the endpoint has this address.
    pub fn is_at(&self, address: IpAddr) -> bool {
        self.endpoint.host.address() == Some(address)
    }

    /// Returns whether the check of its endpoint leaves it out.
    pub fn is_left_out(&self) -> bool {
        self.excluded == Some(ExclusionReason::CheckFailed)
    }

    /// Returns whether names can select it: it is served, or only its check leaves it out.
    pub fn is_selectable(&self) -> bool {
        self.excluded.is_none() || self.is_left_out()
    }

    /// Returns the key as stored in its registry.
    pub fn text(&self) -> String {
        self.service.text(self.key)
    }

    /// Returns the first registry that precedes the instance's, if that is why it is not served.
    ///
    /// O(log keys).
    pub fn preceding_registry(&self) -> Option<RegistryId> {
        let keys = self.service.keys();
        let first = keys.partition_point(|key| key.scope() < self.key.scope());
        let winner = keys.get(first).filter(|_| self.excluded == Some(ExclusionReason::Preceded));
        winner.map(|key| key.registry())
    }
}

/// Reason for not serving a known instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum ExclusionReason {
    /// Another registry holds the name in this deployment and namespace, and precedes this one.
    ///
    /// [`Instance::preceding_registry`] tells which.
    #[error("preceded: another registry has the name, and comes first (merge, override)")]
    Preceded,
    /// Another spelling of the name wins in this deployment and namespace.
    #[error("shadowed: another spelling of the name wins in this deployment and namespace")]
    Shadowed,
    /// The address of Docker's bridge, which is a different machine for every client.
    #[error(
        "172.17.0.1 is every Docker host's own bridge, \
 and the same port is registered at another address"
    )]
    Docker0,
    /// Another key of the group has the same endpoint, for example in another registry.
    #[error("the same endpoint is registered by another key")]
    Duplicate,
    /// The check of its endpoint fails, and the name of its service or version has others.
    ///
    /// Names that select no served instance get it all the same.
    #[error("check: it fails")]
    CheckFailed,
}

impl ExclusionReason {
    /// Describes [`Self::Preceded`] with the name of the registry that comes first.
    pub fn preceded_by(registry: &str) -> String {
        format!("preceded: registry {registry} has the name, and comes first (merge, override)")
    }

    /// Describes [`Self::CheckFailed`] with the failure of the check.
    pub fn check_failed(failure: &str) -> String {
        format!("check: {failure}")
    }
}

/// The default address of Docker's bridge.
const DOCKER0: Host = Host::V4(Ipv4Addr::new(172, 17, 0, 1));

impl Service {
    /// Creates a service without keys.
    pub fn empty(base: &str) -> Self {
        Self { base: base.into(), keys: ServiceKeys::Empty }
    }

    /// Creates a service with the keys of another one under its own base name.
    pub fn alias(base: &str, target: Arc<Self>) -> Self {
        Self { base: base.into(), keys: ServiceKeys::Alias(target) }
    }

    /// Returns the service of which this one is an alias, if it is one.
    pub fn alias_target(&self) -> Option<&Arc<Self>> {
        match &self.keys {
            ServiceKeys::Alias(target) => Some(target),
            ServiceKeys::Empty | ServiceKeys::Single(_) | ServiceKeys::Sorted(_) => None,
        }
    }

    /// Builds the service of a base name from its keys, given in any order. O(n log n).
    pub fn new(base: &str, keys: Vec<Arc<RegistryKey>>, rules: ServiceRules) -> Self {
        Self { base: base.into(), keys: ServiceKeys::new(keys, rules) }
    }

    /// Builds a service with the same base name from other keys.
    pub(super) fn with(&self, keys: Vec<Arc<RegistryKey>>, rules: ServiceRules) -> Self {
        Self { base: self.base.clone(), keys: ServiceKeys::new(keys, rules) }
    }

    /// Excludes the served instances that fail, except where a name would be left without any.
    ///
    /// The name is that of the service if it has all versions, because none is `latest`; otherwise,
    /// and without `version_fallback`, it is that of the version. Addresses of the two families
    /// count apart, because a client may use only one. Instances with a host name, which is not
    /// checked and may have no address, do not count.
    pub(super) fn leave_out_failing(
        &mut self,
        version_fallback: bool,
        fails: impl Fn(&RegistryKey, &Endpoint) -> bool,
    ) {
        // A single instance is the last one.
        let ServiceKeys::Sorted(sorted) = &mut self.keys else { return };
        let SortedKeys { keys, instances } = &mut **sorted;
        let endpoint_of = |instance: &InstanceRef| {
            &keys[instance.key as usize].endpoints[usize::from(instance.endpoint)]
        };
        let fails =
            |instance: &InstanceRef| fails(&keys[instance.key as usize], endpoint_of(instance));
        let is_served = |instance: &InstanceRef| instance.excluded.is_none();
        let group_of = |instance: &InstanceRef| keys[instance.key as usize].group();
        let of_scope =
            |a: &InstanceRef, b: &InstanceRef| group_of(a).scope() == group_of(b).scope();
        for scope in instances.chunk_by_mut(of_scope) {
            let is_latest = |instance: &InstanceRef| &*group_of(instance).version == "latest";
            let has_latest = scope.iter().any(|one| is_served(one) && is_latest(one));
            let has_all = version_fallback && !has_latest;
            let of_name = |a: &InstanceRef, b: &InstanceRef| has_all || group_of(a) == group_of(b);
            for name in scope.chunk_by_mut(of_name) {
                for is_family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
                    let is_served = |instance: &InstanceRef| {
                        let address = endpoint_of(instance).host.address();
                        is_served(instance) && address.is_some_and(|address| is_family(&address))
                    };
                    if name.iter().any(|instance| is_served(instance) && !fails(instance)) {
                        let served = name.iter_mut().filter(|instance| is_served(instance));
                        for instance in served.filter(|instance| fails(instance)) {
                            instance.excluded = Some(ExclusionReason::CheckFailed);
                        }
                    }
                }
            }
        }
    }

    /// Returns the registered name in lower case, without the suffix of a served zone.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Returns whether this is the base name; faster than comparing [`Self::base`].
    pub fn has_base(&self, base: &str) -> bool {
        self.base.as_bytes() == base.as_bytes()
    }

    /// Returns the keys, with the winning layer and spelling first in each scope.
    ///
    /// The keys are sorted by deployment, namespace, layer, rank, version, registry, key text
    /// without the endpoints, and endpoints. The layers below the winning one, which have no
    /// usable endpoint, are last in their scope; so are such ranks in the winning layer.
    pub fn keys(&self) -> &[Arc<RegistryKey>] {
        match &self.keys {
            ServiceKeys::Empty => &[],
            ServiceKeys::Single(key) => slice::from_ref(key),
            ServiceKeys::Sorted(sorted) => &sorted.keys,
            ServiceKeys::Alias(target) => target.keys(),
        }
    }

    /// Returns the instances in the order of [`Self::instances`].
    fn refs(&self) -> &[InstanceRef] {
        match &self.keys {
            ServiceKeys::Empty => &[],
            ServiceKeys::Single(_) => SINGLE_INSTANCE,
            ServiceKeys::Sorted(sorted) => &sorted.instances,
            ServiceKeys::Alias(target) => target.refs(),
        }
    }

    /// Returns one of the service's keys as stored in its registry.
    pub fn text(&self, key: &RegistryKey) -> String {
        // The text of a key contains the registered name, not that of an alias.
        key.text(&self.alias_target().map_or(self, |target| target).base)
    }

    /// Returns all instances, including excluded ones.
    ///
    /// Sorted by deployment, namespace, version and endpoint.
    pub fn instances(&self) -> impl ExactSizeIterator<Item = Instance<'_>> {
        let keys = self.keys();
        self.refs().iter().map(|instance| {
            let key = &keys[instance.key as usize];
            Instance {
                service: self,
                key,
                endpoint: &key.endpoints[usize::from(instance.endpoint)],
                excluded: instance.excluded,
            }
        })
    }

    /// Returns the instances that are served, in the order of [`Self::instances`].
    pub fn served(&self) -> impl Iterator<Item = Instance<'_>> {
        self.instances().filter(|instance| instance.excluded.is_none())
    }

    /// Returns the instances that names can select, in the order of [`Self::instances`].
    pub fn selectable(&self) -> impl Iterator<Item = Instance<'_>> {
        self.instances().filter(Instance::is_selectable)
    }

    /// Returns the groups with a key of a winning layer and spelling, sorted and unique.
    ///
    /// Takes O(log keys) for each group.
    pub fn visible_groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        let mut rest: &[Arc<RegistryKey>] = self.keys();
        let mut winner: Option<&RegistryKey> = None;
        std::iter::from_fn(move || {
            let first = loop {
                let first = rest.first()?;
                match winner {
                    // The remaining keys of this deployment and namespace are not served.
                    Some(winner)
                        if winner.scope() == first.scope()
                            && winner.precedence() != first.precedence() =>
                    {
                        rest = &rest[rest.partition_point(|key| key.scope() == first.scope())..];
                    }
                    _ => break first,
                }
            };
            winner = Some(first);
            rest = &rest[rest.partition_point(|key| {
                key.group() == first.group() && key.precedence() == first.precedence()
            })..];
            Some(first.group())
        })
    }
}

impl ServiceKeys {
    /// Sorts the keys, and decides which instances are excluded.
    fn new(
        mut keys: Vec<Arc<RegistryKey>>,
        ServiceRules { docker0, unsynced }: ServiceRules,
    ) -> Self {
        if keys.len() > 1 && keys.iter().any(|key| unsynced.contains(key.registry())) {
            leave_out_unsynced(&mut keys, unsynced);
        }
        if keys.is_empty() {
            return Self::Empty;
        }
        if keys.len() == 1
            && keys[0].endpoints.len() == 1
            && let Some(key) = keys.pop()
        {
            return Self::Single(key);
        }
        keys.sort_unstable_by(|a, b| a.order(b));
        for scope in keys.chunk_by_mut(|a, b| a.scope() == b.scope()) {
            move_winner_to_front(scope);
        }
        let mut refs = Vec::with_capacity(keys.iter().map(|key| key.endpoints.len()).sum());
        let mut first = 0;
        for scope in keys.chunk_by(|a, b| a.scope() == b.scope()) {
            add_scope(&mut refs, scope, first, docker0);
            first += scope.len();
        }
        Self::Sorted(Box::new(SortedKeys { keys: keys.into(), instances: refs.into() }))
    }
}

/// Moves the keys of the winning layer to the front of a sorted scope, its winning rank first.
///
/// The layer of the first key that holds the name wins, and in it the rank of the first key with a
/// usable endpoint; without such a key, the first layer or rank.
fn move_winner_to_front(scope: &mut [Arc<RegistryKey>]) {
    let layer = scope.iter().find(|key| key.holds_name()).map_or(0, |key| key.layer());
    scope.rotate_left(scope.partition_point(|key| key.layer() < layer));
    let length = scope.partition_point(|key| key.layer() == scope[0].layer());
    let layer = &mut scope[..length];
    let rank = layer.iter().find(|key| !key.endpoints.is_empty()).map_or(0, |key| key.rank());
    layer.rotate_left(layer.partition_point(|key| key.rank() < rank));
}

/// Leaves out the keys of unsynced registries that would hide keys of synced ones.
fn leave_out_unsynced(keys: &mut Vec<Arc<RegistryKey>>, unsynced: RegistrySet) {
    keys.sort_unstable_by(|a, b| a.order(b));
    let mut kept = Vec::with_capacity(keys.len());
    for scope in keys.chunk_by(|a, b| a.scope() == b.scope()) {
        let is_synced = |key: &&Arc<RegistryKey>| !unsynced.contains(key.registry());
        let mut holders = scope.iter().filter(|key| key.holds_name());
        let lowest = holders.find(is_synced).map(|key| key.precedence());
        let hides_none = |key: &&Arc<RegistryKey>| {
            is_synced(key) || lowest.is_none_or(|lowest| key.precedence() >= lowest)
        };
        kept.extend(scope.iter().filter(hides_none).cloned());
    }
    *keys = kept;
}

/// Adds the instances of one scope; `first` is the index of its first key.
fn add_scope(
    refs: &mut Vec<InstanceRef>,
    keys: &[Arc<RegistryKey>],
    first: usize,
    docker0: Docker0,
) {
    let winner = &keys[0];
    let mut ports: Vec<u16> = Vec::new();
    if docker0 == Docker0::Drop {
        let visible = keys.iter().take_while(|key| key.precedence() == winner.precedence());
        ports.extend(
            visible
                .flat_map(|key| key.endpoints.iter())
                .filter(|e| e.host != DOCKER0)
                .map(|e| e.port),
        );
        ports.sort_unstable();
        ports.dedup();
    }
    let added = refs.len();
    for (offset, key) in keys.iter().enumerate() {
        for (endpoint, at) in key.endpoints.iter().zip(0..=u16::MAX) {
            let excluded = if key.layer() != winner.layer() {
                Some(ExclusionReason::Preceded)
            } else if key.rank() != winner.rank() {
                Some(ExclusionReason::Shadowed)
            } else if endpoint.host == DOCKER0 && ports.binary_search(&endpoint.port).is_ok() {
                Some(ExclusionReason::Docker0)
            } else {
                None
            };
            // 2^32 keys of one service would not fit in memory.
            let key = u32::try_from(first + offset).unwrap_or(u32::MAX);
            refs.push(InstanceRef { key, endpoint: at, excluded });
        }
    }
    let of = |instance: &InstanceRef| {
        let key = &keys[instance.key as usize - first];
        (&*key.group().version, &key.endpoints[usize::from(instance.endpoint)])
    };
    // Among equal endpoints, one that its registry still has is preferred to a held one.
    let held = |instance: &InstanceRef| keys[instance.key as usize - first].held();
    refs[added..].sort_by(|a, b| {
        of(a)
            .cmp(&of(b))
            .then(a.excluded.cmp(&b.excluded))
            .then(held(a).cmp(&held(b)))
            .then(a.key.cmp(&b.key))
    });
    for at in added + 1..refs.len() {
        let (before, here) = (refs[at - 1], refs[at]);
        let served = |instance: InstanceRef| {
            matches!(instance.excluded, None | Some(ExclusionReason::Duplicate))
        };
        if served(here) && served(before) && of(&before) == of(&here) {
            refs[at].excluded = Some(ExclusionReason::Duplicate);
        }
    }
}

#[cfg(test)]
mod tests;
