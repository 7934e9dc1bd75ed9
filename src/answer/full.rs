//! What a name asks for, decided on the model: every form of the naming grammar.
//!
//! The ready-made records of the table are made by this same code, so the two can only agree.

use std::net::IpAddr;
use std::sync::Arc;

use super::settings::Settings;
use super::table::Snapshot;
use crate::catalog::{Group, Instance, Service};
use crate::name::{Asked, Reading, Scope, Selector, asked, instance_address, readings};
use crate::service::RegistrySet;

/// What stands at a name inside a zone.
#[derive(Debug)]
pub(super) enum Found<'s> {
    /// A service, or some of its instances; perhaps none.
    Service(Selection<'s>),
    /// The name exists, and answers nothing by itself: names lie below it (RFC 8020), or the service lives elsewhere.
    Empty,
    /// The name does not exist.
    Absent,
}

/// The instances that a name selects.
#[derive(Debug)]
pub(super) struct Selection<'s> {
    /// The service.
    pub(super) service: &'s Arc<Service>,
    /// Those served, sorted by endpoint, equal endpoints once.
    pub(super) instances: Vec<Instance<'s>>,
    /// The registries that hold them, each that holds one of equal endpoints included.
    pub(super) holders: RegistrySet,
    /// What the name names.
    pub(super) form: Form,
}

/// What a name that selects instances names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A service, a version of it, or what selectors leave of it.
    Service,
    /// The instance at an address.
    Instance(IpAddr),
    /// A protocol or port of a service (RFC 2782): it has no addresses.
    Rfc2782,
}

/// One step of the way from a name to its instances, told to whoever wants to explain it.
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// The name parsed, or not.
    Parsed(Option<&'a Asked<'a>>),
    /// A reading was tried.
    Reading(&'a Reading<'a>, Outcome),
    /// An instance was taken (`None`) or dropped.
    Instance(Instance<'a>, Option<&'static str>),
}

/// What became of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// No service of that base.
    Unknown,
    /// The service is known, but not in that deployment and namespace, or without such a version or instance.
    Elsewhere,
    /// This is what the name means.
    Taken,
}

/// Resolves the labels in front of a zone: lower-cased, left to right, at least one.
pub(super) fn resolve<'s>(snapshot: &'s Snapshot, settings: &Settings, labels: &[&[u8]], step: impl FnMut(Step<'_>)) -> Found<'s> {
    resolve_near(snapshot, settings, labels, None, step)
}

/// The same, sooner where the name turns out to be that of a service `near`, which is one of the snapshot's.
pub(super) fn resolve_near<'s>(
    snapshot: &'s Snapshot,
    settings: &Settings,
    labels: &[&[u8]],
    near: Option<&'s Arc<Service>>,
    mut step: impl FnMut(Step<'_>),
) -> Found<'s> {
    let Some(asked) = asked(labels) else {
        step(Step::Parsed(None));
        return Found::Absent;
    };
    step(Step::Parsed(Some(&asked)));
    if asked.tcp_of_base {
        return tcp_of_base(snapshot, settings, &asked, step);
    }
    let mut exists = false;
    let mut text = String::new();
    for reading in readings(&asked.rest, snapshot.longest_base) {
        let service =
            join(reading.base, &mut text).then(|| near.filter(|near| near.has_base(&text)).or_else(|| snapshot.service(&text))).flatten();
        let Some(service) = service else {
            step(Step::Reading(&reading, Outcome::Unknown));
            continue;
        };
        let want = Want::new(settings, &asked, &reading);
        if want.known(service) {
            step(Step::Reading(&reading, Outcome::Taken));
            if asked.partial {
                return Found::Empty;
            }
            return Found::Service(want.select(service, settings.version_fallback, want.form(), step));
        }
        step(Step::Reading(&reading, Outcome::Elsewhere));
        exists |= want.anywhere(&reading).known(service) || above_version(service, &want, &reading);
    }
    let plain = asked.rest.len() == labels.len();
    if exists || plain && join(&asked.rest, &mut text) && snapshot.is_above(&text) { Found::Empty } else { Found::Absent }
}

/// `_<base>._tcp` and the names above it.
fn tcp_of_base<'a, 's>(snapshot: &'s Snapshot, settings: &'a Settings, asked: &'a Asked<'a>, mut step: impl FnMut(Step<'_>)) -> Found<'s> {
    let mut text = String::new();
    if !join(&asked.rest, &mut text) {
        return Found::Absent;
    }
    if asked.partial {
        let exists = if text.is_empty() { !snapshot.is_empty() } else { snapshot.is_above(&text) };
        return if exists { Found::Empty } else { Found::Absent };
    }
    let reading = Reading { base: &asked.rest, scope: Scope::Configured, instance: None, version: None };
    let Some(service) = snapshot.service(&text) else {
        step(Step::Reading(&reading, Outcome::Unknown));
        return Found::Absent;
    };
    let want = Want::new(settings, asked, &reading);
    if !want.known(service) {
        step(Step::Reading(&reading, Outcome::Elsewhere));
        return Found::Empty;
    }
    step(Step::Reading(&reading, Outcome::Taken));
    Found::Service(want.select(service, settings.version_fallback, Form::Rfc2782, step))
}

/// Joins labels with dots. False when a label could not be part of such a text: it holds a dot, or is no text.
pub(super) fn join(labels: &[&[u8]], text: &mut String) -> bool {
    text.clear();
    for (at, label) in labels.iter().enumerate() {
        let Some(label) = std::str::from_utf8(label).ok().filter(|label| !label.contains('.')) else { return false };
        if at > 0 {
            text.push('.');
        }
        text.push_str(label);
    }
    true
}

/// Whether a version of the service, in any scope the reading allows, ends with the reading's version as its last labels:
/// `0.hello.svc` above `v1.2.0.hello.svc`.
fn above_version<'a>(service: &Service, want: &Want<'a>, reading: &Reading<'a>) -> bool {
    let mut suffix = String::new();
    let Some(version) = reading.version.filter(|_| reading.instance.is_none()) else { return false };
    if !join(version, &mut suffix) {
        return false;
    }
    let anywhere = want.anywhere(reading);
    service.visible_groups().any(|group| {
        anywhere.in_scope(group) && group.version.strip_suffix(suffix.as_str()).is_some_and(|front| front.len() > 1 && front.ends_with('.'))
    })
}

/// What an instance must be to be meant. `None` stands for anything.
#[derive(Clone, Debug)]
struct Want<'a> {
    deployment: Option<&'a [u8]>,
    namespace: Option<&'a [u8]>,
    version: Version,
    /// Whether the version stands in the name itself, not in a selector.
    version_spelled: bool,
    address: Option<IpAddr>,
    /// What else must hold: RFC 2782 label and selectors on instances.
    asked: &'a Asked<'a>,
    /// Two parts of the name contradict each other.
    impossible: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    /// `latest`, or every one where no key is of `latest` and the fallback is on.
    Default,
    Any,
    Exactly(String),
}

impl<'a> Want<'a> {
    fn new(settings: &'a Settings, asked: &'a Asked<'a>, reading: &Reading<'a>) -> Self {
        let selector = |name: &[u8]| asked.selectors.iter().find(|selector| selector.key == name).map(|selector| selector.value.as_bytes());
        let (namespace, deployment) = match reading.scope {
            Scope::Configured => (None, None),
            Scope::Namespace(namespace) => (Some(namespace), None),
            Scope::Full { namespace, deployment } => (Some(namespace), Some(deployment)),
        };
        let mut version = String::new();
        let version = match reading.version {
            Some(labels) if join(labels, &mut version) => Version::Exactly(version),
            Some(_) => Version::Exactly(String::from("\0")),
            None if reading.instance.is_some() => Version::Any,
            None => match selector(b"version") {
                Some(value) => Version::Exactly(String::from_utf8_lossy(value).into_owned()),
                None if selector(b"instance").is_some() => Version::Any,
                None => Version::Default,
            },
        };
        let impossible = asked.selectors.iter().any(|selector| selector.impossible);
        Self {
            deployment: Some(deployment.or_else(|| selector(b"deployment")).unwrap_or(settings.deployment.as_bytes())),
            namespace: Some(namespace.or_else(|| selector(b"namespace")).unwrap_or(settings.namespace.as_bytes())),
            version,
            version_spelled: reading.version.is_some(),
            address: reading.instance.and_then(instance_address),
            asked,
            impossible,
        }
    }

    /// The same, in any deployment and namespace that the reading does not spell out, whatever the selectors say.
    fn anywhere(&self, reading: &Reading<'a>) -> Self {
        let (namespace, deployment) = match reading.scope {
            Scope::Configured => (None, None),
            Scope::Namespace(namespace) => (Some(namespace), None),
            Scope::Full { namespace, deployment } => (Some(namespace), Some(deployment)),
        };
        Self { deployment, namespace, ..self.clone() }
    }

    fn form(&self) -> Form {
        match self.address {
            _ if self.asked.rfc2782.is_some() => Form::Rfc2782,
            Some(address) => Form::Instance(address),
            None => Form::Service,
        }
    }

    fn in_scope(&self, group: &Group) -> bool {
        let equal = |want: Option<&[u8]>, have: &str| want.is_none_or(|want| want == have.as_bytes());
        equal(self.deployment, &group.deployment) && equal(self.namespace, &group.namespace)
    }

    /// Whether the service is known where it is wanted, with the version or instance that the name spells out.
    fn known(&self, service: &Service) -> bool {
        if let Some(address) = self.address {
            return service.served().any(|instance| {
                instance.endpoint.host.address() == Some(address)
                    && self.in_scope(instance.key.group())
                    && self.spelled_version(instance.key.group())
            });
        }
        service.visible_groups().any(|group| self.in_scope(group) && self.spelled_version(group))
    }

    /// A version selector that matches nothing is no reason for the name not to exist; a version label is.
    fn spelled_version(&self, group: &Group) -> bool {
        match &self.version {
            Version::Exactly(version) if self.version_spelled => **version == *group.version,
            _ => true,
        }
    }

    /// Selects the instances meant, for a name of this form.
    fn select<'s>(&self, service: &'s Arc<Service>, version_fallback: bool, form: Form, mut step: impl FnMut(Step<'_>)) -> Selection<'s> {
        let latest_only = self.version == Version::Default
            && (!version_fallback || service.visible_groups().any(|group| self.in_scope(group) && &*group.version == "latest"));
        let mut holders = RegistrySet::EMPTY;
        let mut instances: Vec<_> = service
            .instances()
            .filter(|instance| {
                let mut dropped = self.drops(instance, latest_only);
                if dropped.is_none() && instance.is_behind_answers() {
                    holders.insert(instance.key.registry());
                }
                dropped = dropped.or_else(|| instance.excluded.map(|_| "left out"));
                step(Step::Instance(*instance, dropped));
                dropped.is_none()
            })
            .collect();
        instances.sort_by(|a, b| a.endpoint.cmp(b.endpoint));
        // Of two versions.
        instances.dedup_by(|a, b| a.endpoint == b.endpoint);
        Selection { service, instances, holders, form }
    }

    /// Says why an instance is not meant, if it is not, whether it is served or left out.
    fn drops(&self, instance: &Instance<'_>, latest_only: bool) -> Option<&'static str> {
        let key = instance.key;
        if !self.in_scope(key.group()) {
            return Some("another deployment or namespace");
        }
        let version = &*key.group().version;
        let version_holds = match &self.version {
            Version::Default => !latest_only || version == "latest",
            Version::Any => true,
            Version::Exactly(wanted) => wanted == version,
        };
        if !version_holds {
            return Some("another version");
        }
        if self.address.is_some_and(|address| instance.endpoint.host.address() != Some(address)) {
            return Some("another instance");
        }
        if let Some(label) = self.asked.rfc2782
            && !has_service(instance, label)
        {
            return Some("another protocol or port");
        }
        if self.impossible || !self.asked.selectors.iter().all(|selector| Self::holds(selector, instance)) {
            return Some("a selector does not hold");
        }
        None
    }

    fn holds(selector: &Selector<'_>, instance: &Instance<'_>) -> bool {
        let (value, key) = (&selector.value, instance.key);
        match selector.key {
            b"deployment" => *value == *key.group().deployment,
            b"namespace" => *value == *key.group().namespace,
            b"version" => *value == *key.group().version,
            b"port" => *value == instance.endpoint.port.to_string(),
            b"instance" => match instance.endpoint.host.address() {
                Some(address) => instance_address(value.as_bytes()).or_else(|| value.parse().ok()) == Some(address),
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
fn has_service(instance: &Instance<'_>, label: &[u8]) -> bool {
    let Ok(label) = std::str::from_utf8(label) else { return false };
    label.parse::<u16>().is_ok_and(|port| port == instance.endpoint.port && !label.starts_with(['0', '+']))
        || instance.key.metadata.text("protocol").is_some_and(|protocol| protocol.eq_ignore_ascii_case(label))
}
