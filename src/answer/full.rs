//! What a name asks for, decided on the model: every form of the naming grammar.
//!
//! The ready-made records of the table are made by this same code, so the two can only agree.

use std::net::IpAddr;
use std::sync::Arc;

use super::settings::Settings;
use super::table::Snapshot;
use crate::catalog::{Group, Instance, Service};
use crate::name::{
    Interpretation, ParsedName, Selector, ServiceScope, instance_address, interpretations,
    parse_labels,
};
use crate::service::RegistrySet;

/// What stands at a name inside a zone.
#[derive(Debug)]
pub(super) enum NameLookup<'s> {
    /// A service, or some of its instances; perhaps none.
    Selection(Selection<'s>),
    /// The name exists, and answers nothing by itself: names lie below it (RFC 8020), or the service lives elsewhere.
    NoData,
    /// The name does not exist.
    NxDomain,
}

/// The instances that a name selects.
#[derive(Debug)]
pub(super) struct Selection<'s> {
    /// The service.
    pub(super) service: &'s Arc<Service>,
    /// Those served, sorted by endpoint, equal endpoints once.
    pub(super) instances: Vec<Instance<'s>>,
    /// The registries that hold them, each that holds one of equal endpoints included.
    pub(super) registries: RegistrySet,
    /// What the name names.
    pub(super) form: NameForm,
}

/// What a name that selects instances names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameForm {
    /// A service, a version of it, or what selectors leave of it.
    Service,
    /// The instance at an address.
    Instance(IpAddr),
    /// A protocol or port of a service (RFC 2782): it has no addresses.
    Rfc2782,
}

/// One step of the way from a name to its instances, told to whoever wants to explain it.
#[derive(Debug)]
pub(super) enum TraceStep<'a> {
    /// The name parsed, or not.
    Parsed(Option<&'a ParsedName<'a>>),
    /// A reading was tried.
    Interpretation(&'a Interpretation<'a>, MatchResult),
    /// An instance was taken (`None`) or dropped.
    Instance(Instance<'a>, Option<&'static str>),
}

/// What became of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MatchResult {
    /// No service of that base.
    NoService,
    /// The service is known, but not in that deployment and namespace, or without such a version or instance.
    NoMatch,
    /// This is what the name means.
    Match,
}

/// Resolves the labels in front of a zone: lower-cased, left to right, at least one.
pub(super) fn resolve<'s>(
    snapshot: &'s Snapshot,
    settings: &Settings,
    labels: &[&[u8]],
    trace: impl FnMut(TraceStep<'_>),
) -> NameLookup<'s> {
    resolve_hinted(snapshot, settings, labels, None, trace)
}

/// The same, sooner where the name turns out to be that of a service `near`, which is one of the snapshot's.
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
            return NameLookup::Selection(filter.select(
                service,
                settings.version_fallback,
                filter.form(),
                trace,
            ));
        }
        trace(TraceStep::Interpretation(&interpretation, MatchResult::NoMatch));
        exists |= filter.in_any_scope(&interpretation).admits_service(service)
            || ends_a_version(service, &filter, &interpretation);
    }
    let plain = parsed.rest.len() == labels.len();
    if exists
        || plain && join_labels(&parsed.rest, &mut text) && snapshot.is_empty_non_terminal(&text)
    {
        NameLookup::NoData
    } else {
        NameLookup::NxDomain
    }
}

/// `_<base>._tcp` and the names above it.
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
        let exists = if text.is_empty() {
            !snapshot.is_empty()
        } else {
            snapshot.is_empty_non_terminal(&text)
        };
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
    NameLookup::Selection(filter.select(
        service,
        settings.version_fallback,
        NameForm::Rfc2782,
        trace,
    ))
}

/// Joins labels with dots. False when a label could not be part of such a text: it holds a dot, or is no text.
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

/// Whether a version of the service, in any scope the reading allows, ends with the reading's version as its last labels:
/// `0.hello.svc` above `v1.2.0.hello.svc`.
fn ends_a_version<'a>(
    service: &Service,
    filter: &InstanceFilter<'a>,
    interpretation: &Interpretation<'a>,
) -> bool {
    let mut suffix = String::new();
    let Some(version) = interpretation.version.filter(|_| interpretation.instance.is_none()) else {
        return false;
    };
    if !join_labels(version, &mut suffix) {
        return false;
    }
    let any_scope = filter.in_any_scope(interpretation);
    service.visible_groups().any(|group| {
        any_scope.in_scope(group)
            && group
                .version
                .strip_suffix(suffix.as_str())
                .is_some_and(|front| front.len() > 1 && front.ends_with('.'))
    })
}

/// What an instance must be to be meant. `None` stands for anything.
#[derive(Clone, Debug)]
struct InstanceFilter<'a> {
    deployment: Option<&'a [u8]>,
    namespace: Option<&'a [u8]>,
    version: VersionFilter,
    /// Whether the version stands in the name itself, not in a selector.
    version_in_labels: bool,
    address: Option<IpAddr>,
    /// What else must hold: RFC 2782 label and selectors on instances.
    parsed: &'a ParsedName<'a>,
    /// Two parts of the name contradict each other.
    unsatisfiable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum VersionFilter {
    /// `latest`, or every one where no key is of `latest` and the fallback is on.
    Default,
    Any,
    Exactly(String),
}

impl<'a> InstanceFilter<'a> {
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

    /// The same, in any deployment and namespace that the reading does not spell out, whatever the selectors say.
    fn in_any_scope(&self, interpretation: &Interpretation<'a>) -> Self {
        let (namespace, deployment) = match interpretation.scope {
            ServiceScope::Configured => (None, None),
            ServiceScope::Namespace(namespace) => (Some(namespace), None),
            ServiceScope::Full { namespace, deployment } => (Some(namespace), Some(deployment)),
        };
        Self { deployment, namespace, ..self.clone() }
    }

    fn form(&self) -> NameForm {
        match self.address {
            _ if self.parsed.rfc2782.is_some() => NameForm::Rfc2782,
            Some(address) => NameForm::Instance(address),
            None => NameForm::Service,
        }
    }

    fn in_scope(&self, group: &Group) -> bool {
        let equal = |wanted: Option<&[u8]>, have: &str| {
            wanted.is_none_or(|wanted| wanted == have.as_bytes())
        };
        equal(self.deployment, &group.deployment) && equal(self.namespace, &group.namespace)
    }

    /// Whether the service is known where it is wanted, with the version or instance that the name spells out.
    fn admits_service(&self, service: &Service) -> bool {
        if let Some(address) = self.address {
            return service.served().any(|instance| {
                instance.endpoint.host.address() == Some(address)
                    && self.in_scope(instance.key.group())
                    && self.admits_version(instance.key.group())
            });
        }
        service.visible_groups().any(|group| self.in_scope(group) && self.admits_version(group))
    }

    /// A version selector that matches nothing is no reason for the name not to exist; a version label is.
    fn admits_version(&self, group: &Group) -> bool {
        match &self.version {
            VersionFilter::Exactly(version) if self.version_in_labels => {
                **version == *group.version
            }
            _ => true,
        }
    }

    /// Selects the instances meant, for a name of this form.
    fn select<'s>(
        &self,
        service: &'s Arc<Service>,
        version_fallback: bool,
        form: NameForm,
        mut trace: impl FnMut(TraceStep<'_>),
    ) -> Selection<'s> {
        let latest_only = self.version == VersionFilter::Default
            && (!version_fallback
                || service
                    .visible_groups()
                    .any(|group| self.in_scope(group) && &*group.version == "latest"));
        let mut registries = RegistrySet::EMPTY;
        let mut instances: Vec<_> = service
            .instances()
            .filter(|instance| {
                let mut dropped = self.drop_reason(instance, latest_only);
                if dropped.is_none() && instance.is_behind_answers() {
                    registries.insert(instance.key.registry());
                }
                dropped = dropped.or_else(|| instance.left_out.map(|_| "left out"));
                trace(TraceStep::Instance(*instance, dropped));
                dropped.is_none()
            })
            .collect();
        instances.sort_by(|a, b| a.endpoint.cmp(b.endpoint));
        // Of two versions.
        instances.dedup_by(|a, b| a.endpoint == b.endpoint);
        Selection { service, instances, registries, form }
    }

    /// Says why an instance is not meant, if it is not, whether it is served or left out.
    fn drop_reason(&self, instance: &Instance<'_>, latest_only: bool) -> Option<&'static str> {
        let key = instance.key;
        if !self.in_scope(key.group()) {
            return Some("another deployment or namespace");
        }
        let version = &*key.group().version;
        let version_holds = match &self.version {
            VersionFilter::Default => !latest_only || version == "latest",
            VersionFilter::Any => true,
            VersionFilter::Exactly(wanted) => wanted == version,
        };
        if !version_holds {
            return Some("another version");
        }
        if self.address.is_some_and(|address| instance.endpoint.host.address() != Some(address)) {
            return Some("another instance");
        }
        if let Some(label) = self.parsed.rfc2782
            && !has_protocol_or_port(instance, label)
        {
            return Some("another protocol or port");
        }
        if self.unsatisfiable
            || !self
                .parsed
                .selectors
                .iter()
                .all(|selector| Self::selector_matches(selector, instance))
        {
            return Some("a selector does not hold");
        }
        None
    }

    fn selector_matches(selector: &Selector<'_>, instance: &Instance<'_>) -> bool {
        let (value, key) = (&selector.value, instance.key);
        match selector.key {
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
            name => std::str::from_utf8(name)
                .ok()
                .and_then(|name| instance.key.metadata.text(name))
                .is_some_and(|text| text.eq_ignore_ascii_case(value)),
        }
    }
}

/// Whether an instance is what `_<label>._tcp` asks for: by its port, or by its metadata's `protocol`.
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
