//! The full path: resolves names on the service model.
//!
//! This path covers every form of the naming grammar. Precompiled nodes are built from its results,
//! so both paths agree by construction.

use std::net::IpAddr;
use std::sync::Arc;

use super::holders::HolderSets;
use super::settings::Settings;
use super::table::Snapshot;
use crate::catalog::{ExclusionReason, Group, Instance, Service};
use crate::name::{
    Interpretation, ParsedName, Selector, ServiceScope, instance_address, interpretations,
    parse_labels,
};
use crate::service::RegistrySet;

/// Result of looking up a name inside a zone.
#[derive(Debug)]
pub(super) enum NameLookup<'s> {
    /// A service or some of its instances; the selection may be empty.
    Selection(Selection<'s>),
    /// The name exists without records of its own.
    ///
    /// Names below it exist (RFC 8020), or its service is in another deployment or namespace.
    NoData,
    /// The name does not exist.
    NxDomain,
}

/// The instances that a name selects.
#[derive(Debug)]
pub(super) struct Selection<'s> {
    /// The service.
    pub(super) service: &'s Arc<Service>,
    /// Served instances, sorted by endpoint, without duplicate endpoints.
    pub(super) instances: Vec<Instance<'s>>,
    /// Instances of other registrations that have the endpoint of one of `instances`.
    pub(super) duplicates: Vec<Instance<'s>>,
    /// Registries that hold the selected endpoints, even where another registry's is served.
    pub(super) holders: HolderSets,
    /// Form of the name.
    pub(super) form: NameForm,
    /// The shortest name of the same service or version, as text in front of the zone.
    ///
    /// `None` for all other forms, and with selectors other than `_via`.
    pub(super) plain_name: Option<String>,
    /// Whether the selector `direct._via` asks for the addresses of the instances.
    pub(super) is_direct: bool,
}

/// Form of a name that selects instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameForm {
    /// A service, one of its versions, or the instances that match the selectors.
    Service,
    /// The instance at an address.
    Instance(IpAddr),
    /// A protocol or port of a service (RFC 2782); such a name has no address records.
    Rfc2782,
}

/// Key of the selector that chooses between the instances and the port bridge.
const VIA_SELECTOR: &[u8] = b"via";
/// Value of that selector for the addresses of the instances.
const VIA_DIRECT: &str = "direct";
/// Value of that selector for the address of the port bridge, where there is one.
const VIA_BRIDGE: &str = "bridge";

/// A step in the resolution of a name, for explanations.
#[derive(Debug)]
pub(super) enum TraceStep<'a> {
    /// The name was parsed, or has no valid form (`None`).
    Parsed(Option<&'a ParsedName<'a>>),
    /// An interpretation was tried.
    Interpretation(&'a Interpretation<'a>, MatchResult),
    /// An instance was selected, or dropped for the given reason (`None` if selected).
    Instance(Instance<'a>, Option<&'static str>),
}

/// Result of trying an interpretation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MatchResult {
    /// No service has the base of this interpretation.
    NoService,
    /// The base exists, but not in this scope or with this version or instance.
    NoMatch,
    /// The name has this meaning.
    Match,
}

/// Resolves the labels in front of a zone, at least one, in lower case.
pub(super) fn resolve<'s>(
    snapshot: &'s Snapshot,
    settings: &Settings,
    labels: &[&[u8]],
    trace: impl FnMut(TraceStep<'_>),
) -> NameLookup<'s> {
    resolve_hinted(snapshot, settings, labels, None, trace)
}

/// Resolves like [`resolve`], but skips the lookup of the service if it is `hint`.
pub(super) fn resolve_hinted<'s>(
    snapshot: &'s Snapshot,
    settings: &Settings,
    labels: &[&[u8]],
    hint: Option<&'s Arc<Service>>,
    mut trace: impl FnMut(TraceStep<'_>),
) -> NameLookup<'s> {
    let Some(parsed) = parse_labels(labels) else {
        trace(TraceStep::Parsed(None));
        return NameLookup::NxDomain;
    };
    trace(TraceStep::Parsed(Some(&parsed)));
    if parsed.tcp_of_base {
        return tcp_of_base(snapshot, settings, &parsed, trace);
    }
    let mut exists = false;
    let mut text = String::new();
    for interpretation in interpretations(&parsed.rest, snapshot.longest_base) {
        let service = join_labels(interpretation.base, &mut text)
            .then(|| hint.filter(|hint| hint.has_base(&text)).or_else(|| snapshot.service(&text)))
            .flatten();
        let Some(service) = service else {
            trace(TraceStep::Interpretation(&interpretation, MatchResult::NoService));
            continue;
        };
        let filter = InstanceFilter::new(settings, &parsed, &interpretation);
        if filter.admits_service(service) {
            trace(TraceStep::Interpretation(&interpretation, MatchResult::Match));
            if parsed.non_terminal {
                return NameLookup::NoData;
            }
            return NameLookup::Selection(filter.select(service, settings, filter.form(), trace));
        }
        trace(TraceStep::Interpretation(&interpretation, MatchResult::NoMatch));
        exists |= filter.in_any_scope(&interpretation).admits_service(service)
            || ends_a_version(service, &filter, &interpretation)
            // An alias exists by configuration, even while its service is not registered.
            || service.alias_target().is_some() && interpretation.is_base_alone();
    }
    let has_no_chain = parsed.rest.len() == labels.len();
    if exists
        || has_no_chain && join_labels(&parsed.rest, &mut text) && snapshot.has_names_below(&text)
    {
        NameLookup::NoData
    } else {
        NameLookup::NxDomain
    }
}

/// Resolves `_<base>._tcp` and the names that end in it.
fn tcp_of_base<'a, 's>(
    snapshot: &'s Snapshot,
    settings: &'a Settings,
    parsed: &'a ParsedName<'a>,
    mut trace: impl FnMut(TraceStep<'_>),
) -> NameLookup<'s> {
    let mut text = String::new();
    if !join_labels(&parsed.rest, &mut text) {
        return NameLookup::NxDomain;
    }
    if parsed.non_terminal {
        let exists =
            if text.is_empty() { !snapshot.is_empty() } else { snapshot.has_names_below(&text) };
        return if exists { NameLookup::NoData } else { NameLookup::NxDomain };
    }
    let interpretation = Interpretation {
        base: &parsed.rest,
        scope: ServiceScope::Configured,
        instance: None,
        version: None,
    };
    let Some(service) = snapshot.service(&text) else {
        trace(TraceStep::Interpretation(&interpretation, MatchResult::NoService));
        return NameLookup::NxDomain;
    };
    let filter = InstanceFilter::new(settings, parsed, &interpretation);
    if !filter.admits_service(service) {
        trace(TraceStep::Interpretation(&interpretation, MatchResult::NoMatch));
        return NameLookup::NoData;
    }
    trace(TraceStep::Interpretation(&interpretation, MatchResult::Match));
    NameLookup::Selection(filter.select(service, settings, NameForm::Rfc2782, trace))
}

/// Joins labels with dots.
///
/// Returns `false` if a label is not UTF-8 or contains a dot, because no text represents it.
pub(super) fn join_labels(labels: &[&[u8]], text: &mut String) -> bool {
    text.clear();
    for (at, label) in labels.iter().enumerate() {
        let Some(label) = std::str::from_utf8(label).ok().filter(|label| !label.contains('.'))
        else {
            return false;
        };
        if at > 0 {
            text.push('.');
        }
        text.push_str(label);
    }
    true
}

/// Returns whether the labels in front of the base end an existing version.
///
/// For example, `0.hello.svc` exists if `v1.2.0.hello.svc` does. A version may also look like an
/// instance label: `10-0-0-2.hello.svc` exists if `10-0-0-9.10-0-0-2.hello.svc` does. The version
/// may exist in any scope that the interpretation allows.
fn ends_a_version<'a>(
    service: &Service,
    filter: &InstanceFilter<'a>,
    interpretation: &Interpretation<'a>,
) -> bool {
    let mut suffix = String::new();
    let instance = interpretation.instance.into_iter();
    let front: Vec<&[u8]> =
        instance.chain(interpretation.version.into_iter().flatten().copied()).collect();
    if front.is_empty() || !join_labels(&front, &mut suffix) {
        return false;
    }
    let any_scope = filter.in_any_scope(interpretation);
    service.visible_groups().any(|group| {
        any_scope.in_scope(group)
            && group.version.strip_suffix(suffix.as_str()).is_some_and(|front| {
                front.len() > 1 && front.ends_with('.')
                    || front.is_empty() && interpretation.instance.is_some()
            })
    })
}

/// Conditions that an instance must meet to be selected; `None` allows anything.
#[derive(Clone, Debug)]
struct InstanceFilter<'a> {
    deployment: Option<&'a [u8]>,
    namespace: Option<&'a [u8]>,
    version: VersionFilter,
    /// Whether the version is part of the name rather than of a selector.
    version_in_labels: bool,
    address: Option<IpAddr>,
    /// The parsed name, with its RFC 2782 label and selectors.
    parsed: &'a ParsedName<'a>,
    /// Whether a selector has a value that no instance can match.
    unsatisfiable: bool,
}

/// Selected versions of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
enum VersionFilter {
    /// `latest`; with the fallback on and no such version, all versions.
    Default,
    Any,
    Exactly(String),
}

impl<'a> InstanceFilter<'a> {
    /// Combines the interpretation with selectors and configured defaults.
    fn new(
        settings: &'a Settings,
        parsed: &'a ParsedName<'a>,
        interpretation: &Interpretation<'a>,
    ) -> Self {
        let selector = |name: &[u8]| {
            parsed
                .selectors
                .iter()
                .find(|selector| selector.key == name)
                .map(|selector| selector.value.as_bytes())
        };
        let (namespace, deployment) = match interpretation.scope {
            ServiceScope::Configured => (None, None),
            ServiceScope::Namespace(namespace) => (Some(namespace), None),
            ServiceScope::Full { namespace, deployment } => (Some(namespace), Some(deployment)),
        };
        let mut version = String::new();
        let version = match interpretation.version {
            Some(labels) if join_labels(labels, &mut version) => VersionFilter::Exactly(version),
            Some(_) => VersionFilter::Exactly(String::from("\0")),
            None if interpretation.instance.is_some() => VersionFilter::Any,
            None => match selector(b"version") {
                Some(value) => VersionFilter::Exactly(String::from_utf8_lossy(value).into_owned()),
                None if selector(b"instance").is_some() => VersionFilter::Any,
                None => VersionFilter::Default,
            },
        };
        let unsatisfiable = parsed.selectors.iter().any(|selector| selector.unsatisfiable);
        Self {
            deployment: Some(
                deployment
                    .or_else(|| selector(b"deployment"))
                    .unwrap_or(settings.deployment.as_bytes()),
            ),
            namespace: Some(
                namespace
                    .or_else(|| selector(b"namespace"))
                    .unwrap_or(settings.namespace.as_bytes()),
            ),
            version,
            version_in_labels: interpretation.version.is_some(),
            address: interpretation.instance.and_then(instance_address),
            parsed,
            unsatisfiable,
        }
    }

    /// Returns a copy that admits every scope that the interpretation allows.
    fn in_any_scope(&self, interpretation: &Interpretation<'a>) -> Self {
        let (namespace, deployment) = match interpretation.scope {
            ServiceScope::Configured => (None, None),
            ServiceScope::Namespace(namespace) => (Some(namespace), None),
            ServiceScope::Full { namespace, deployment } => (Some(namespace), Some(deployment)),
        };
        Self { deployment, namespace, ..self.clone() }
    }

    /// Returns the form of the name.
    fn form(&self) -> NameForm {
        match self.address {
            _ if self.parsed.rfc2782.is_some() => NameForm::Rfc2782,
            Some(address) => NameForm::Instance(address),
            None => NameForm::Service,
        }
    }

    /// Returns whether a group is in the wanted deployment and namespace.
    fn in_scope(&self, group: &Group) -> bool {
        let equal = |wanted: Option<&[u8]>, have: &str| {
            wanted.is_none_or(|wanted| wanted == have.as_bytes())
        };
        equal(self.deployment, &group.deployment) && equal(self.namespace, &group.namespace)
    }

    /// Returns whether a service exists in scope, with the named version or instance.
    fn admits_service(&self, service: &Service) -> bool {
        if let Some(address) = self.address {
            return service.selectable().any(|instance| {
                instance.is_at(address)
                    && self.in_scope(instance.key.group())
                    && self.admits_version(instance.key.group())
            });
        }
        service.visible_groups().any(|group| self.in_scope(group) && self.admits_version(group))
    }

    /// Returns whether a group has the version that is part of the name.
    ///
    /// A version selector decides which instances are selected, not whether the name exists.
    fn admits_version(&self, group: &Group) -> bool {
        match &self.version {
            VersionFilter::Exactly(version) if self.version_in_labels => {
                **version == *group.version
            }
            _ => true,
        }
    }

    /// Selects the matching instances for a name of this form.
    fn select<'s>(
        &self,
        service: &'s Arc<Service>,
        settings: &Settings,
        form: NameForm,
        mut trace: impl FnMut(TraceStep<'_>),
    ) -> Selection<'s> {
        let latest_only = self.version == VersionFilter::Default
            && (!settings.version_fallback
                || service
                    .visible_groups()
                    .any(|group| self.in_scope(group) && &*group.version == "latest"));
        let has_left_out = service.instances().any(|instance| instance.is_left_out());
        let all_fail = [IpAddr::is_ipv4, IpAddr::is_ipv6]
            .map(|is_family| has_left_out && !self.selects_served(service, latest_only, is_family));
        let mut instances: Vec<_> = service
            .instances()
            .map(|instance| {
                let is_served = instance.is_left_out()
                    && instance
                        .endpoint
                        .host
                        .address()
                        .is_some_and(|address| all_fail[usize::from(address.is_ipv6())]);
                Instance { excluded: instance.excluded.filter(|_| !is_served), ..instance }
            })
            .filter(|instance| {
                let dropped = self.drop_reason(instance, latest_only);
                let left_out = instance.excluded.map(|_| "left out");
                trace(TraceStep::Instance(*instance, dropped.or(left_out)));
                dropped.is_none()
            })
            .collect();
        instances.sort_by(|a, b| a.endpoint.cmp(b.endpoint));
        let holders = holders_of(&instances);
        let mut duplicates = Vec::new();
        instances.retain(|instance| {
            let is_duplicate = instance.excluded == Some(ExclusionReason::Duplicate);
            duplicates.extend(is_duplicate.then_some(*instance));
            instance.excluded.is_none()
        });
        // Two versions may register the same endpoint.
        instances.dedup_by(|next, first| {
            let is_duplicate = next.endpoint == first.endpoint;
            duplicates.extend(is_duplicate.then_some(*next));
            is_duplicate
        });
        // The endpoint itself may be excluded, for example because its check fails.
        duplicates.retain(|instance| {
            instances.binary_search_by(|served| served.endpoint.cmp(instance.endpoint)).is_ok()
        });
        let is_direct = self
            .parsed
            .selectors
            .iter()
            .any(|selector| (selector.key, &*selector.value) == (VIA_SELECTOR, VIA_DIRECT));
        let plain_name = (form == NameForm::Service)
            .then(|| self.plain_name(settings, service.base()))
            .flatten();
        Selection { service, instances, duplicates, holders, form, plain_name, is_direct }
    }

    /// Returns whether a served instance with an address of a family matches.
    ///
    /// Without one, those that checks leave out are served: a check never takes the last address of
    /// a name.
    fn selects_served(
        &self,
        service: &Service,
        latest_only: bool,
        is_family: fn(&IpAddr) -> bool,
    ) -> bool {
        service.served().any(|instance| {
            instance.endpoint.host.address().is_some_and(|address| is_family(&address))
                && self.drop_reason(&instance, latest_only).is_none()
        })
    }

    /// Returns the shortest name of the service or version, as text in front of the zone.
    ///
    /// Version `latest` has no name of its own: it is what the service's name selects.
    fn plain_name(&self, settings: &Settings, base: &str) -> Option<String> {
        if !settings.bridge
            || self.parsed.selectors.iter().any(|selector| selector.key != VIA_SELECTOR)
        {
            return None;
        }
        let part = |part: Option<&'a [u8]>| std::str::from_utf8(part?).ok();
        let (namespace, deployment) = (part(self.namespace)?, part(self.deployment)?);
        let mut name = match &self.version {
            VersionFilter::Exactly(version) if version != "latest" => format!("{version}.{base}"),
            _ => base.to_owned(),
        };
        let is_elsewhere = deployment != &*settings.deployment;
        if is_elsewhere || namespace != &*settings.namespace {
            name.extend([".", namespace]);
        }
        if is_elsewhere {
            name.extend([".", deployment]);
        }
        Some(name)
    }

    /// Returns why an instance does not match, or `None` if it does.
    fn drop_reason(&self, instance: &Instance<'_>, latest_only: bool) -> Option<&'static str> {
        let key = instance.key;
        if !self.in_scope(key.group()) {
            return Some("in another deployment or namespace");
        }
        let version = &*key.group().version;
        let version_holds = match &self.version {
            VersionFilter::Default => !latest_only || version == "latest",
            VersionFilter::Any => true,
            VersionFilter::Exactly(wanted) => wanted == version,
        };
        if !version_holds {
            return Some("has another version");
        }
        if self.address.is_some_and(|address| !instance.is_at(address)) {
            return Some("has another address");
        }
        if let Some(label) = self.parsed.rfc2782
            && !has_protocol_or_port(instance, label)
        {
            return Some("has another protocol or port");
        }
        if self.unsatisfiable
            || !self
                .parsed
                .selectors
                .iter()
                .all(|selector| Self::selector_matches(selector, instance))
        {
            return Some("does not match a selector");
        }
        None
    }

    /// Returns whether an instance matches a selector.
    fn selector_matches(selector: &Selector<'_>, instance: &Instance<'_>) -> bool {
        let (value, key) = (&selector.value, instance.key);
        match selector.key {
            VIA_SELECTOR => [VIA_DIRECT, VIA_BRIDGE].contains(&&**value),
            b"deployment" => *value == *key.group().deployment,
            b"namespace" => *value == *key.group().namespace,
            b"version" => *value == *key.group().version,
            b"port" => *value == instance.endpoint.port.to_string(),
            b"instance" => match instance.endpoint.host.address() {
                Some(address) => {
                    instance_address(value.as_bytes()).or_else(|| value.parse().ok())
                        == Some(address)
                }
                None => *value == instance.endpoint.host.to_string(),
            },
            name => {
                std::str::from_utf8(name).is_ok_and(|name| instance.key.metadata.has(name, value))
            }
        }
    }
}

/// Returns the registries that hold each served endpoint, given all instances in its order.
fn holders_of(instances: &[Instance<'_>]) -> HolderSets {
    let is_served = |instance: &Instance<'_>| instance.excluded.is_none();
    let registry = |instance: &Instance<'_>| instance.key.registry();
    let all: RegistrySet = instances.iter().map(registry).collect();
    if all.is_single() && instances.iter().any(is_served) {
        return HolderSets::single(all);
    }
    let endpoints = instances.chunk_by(|a, b| a.endpoint == b.endpoint);
    let served = endpoints.filter(|instances| instances.iter().any(is_served));
    served.map(|instances| instances.iter().map(registry).collect()).collect()
}

/// Returns whether `_<label>._tcp` selects the instance.
///
/// The label is a port or the value of the metadata `protocol`.
fn has_protocol_or_port(instance: &Instance<'_>, label: &[u8]) -> bool {
    let Ok(label) = std::str::from_utf8(label) else { return false };
    label
        .parse::<u16>()
        .is_ok_and(|port| port == instance.endpoint.port && !label.starts_with(['0', '+']))
        || instance
            .key
            .metadata
            .text("protocol")
            .is_some_and(|protocol| protocol.eq_ignore_ascii_case(label))
}
