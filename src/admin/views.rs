//! The JSON of the HTTP interface, which the commands also read.
//!
//! Scripts depend on the field names.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::AdminContext;
use super::bridge::{BridgeView, BridgedNameView};
use super::checks::{CheckFailureView, ChecksView};
use super::forwarding::ForwardingView;
use super::health::HealthReport;
use super::resolv_conf::ResolvConfView;
use crate::answer::{AliasTarget, Answerer, Snapshot};
use crate::catalog::{
    self, ConflictKind, ExclusionReason, HoldView, Instance, RegistryStats, Rejections, Service,
    conflicts_with_alias,
};
use crate::checks::CheckMonitor;
use crate::registry::{RegistryState, name_at};
use crate::service::{Rejected, WallClock};

/// The state of the server, its registries and its forwarder: `/v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ServerStatus {
    /// The version of svcdns.
    pub version: String,
    /// The process ID.
    pub pid: u32,
    /// Start of the server, in seconds since 1970-01-01 UTC.
    pub started: u64,
    /// Time since the start, in seconds.
    pub uptime: u64,
    /// Addresses of the UDP and TCP listeners.
    pub listen: Vec<SocketAddr>,
    /// Addresses of the TLS listeners.
    pub tls: Vec<SocketAddr>,
    /// Addresses of the QUIC listeners.
    pub quic: Vec<SocketAddr>,
    /// Address of the HTTP interface's TCP listener, if it has one.
    pub admin: Option<SocketAddr>,
    /// The runtime directory; empty if an older server sent it.
    #[serde(default)]
    pub runtime_dir: String,
    /// The state directory, if the server has one.
    pub state_dir: Option<String>,
    /// The served zones in the order of the configuration, each with a trailing dot.
    pub zones: Vec<String>,
    /// The deployment of names that do not contain one.
    pub deployment: String,
    /// The namespace of names that do not contain one.
    pub namespace: String,
    /// Whether every registry has been read, so that the absence of a name is certain.
    pub synced: bool,
    /// Whether data may be stale because a registry is unreachable.
    pub stale: bool,
    /// Number of held keys: removed by the registry, but still served.
    pub holding: usize,
    /// The registries, in the order of the configuration.
    pub registries: Vec<RegistryView>,
    /// The forwarder; `None` if forwarding is off.
    pub forwarding: Option<ForwardingView>,
    /// The port bridge; `None` if it is not configured, or from an older server.
    #[serde(default)]
    pub bridge: Option<BridgeView>,
    /// Whether the machine's resolv.conf names this server; `None` unless `install` changed it.
    #[serde(default)]
    pub resolv_conf: Option<ResolvConfView>,
    /// The aliases, in order of their names; none from an older server.
    #[serde(default)]
    pub aliases: Vec<AliasView>,
    /// Published services.
    pub services: usize,
    /// Number of registered instances, including dropped ones.
    pub instances: usize,
    /// Number of keys and endpoints that cannot be served.
    pub rejected: u64,
    /// Generation of the published snapshot.
    pub generation: u64,
    /// The checks of endpoints; `None` if they are off, or from an older server.
    #[serde(default)]
    pub checks: Option<ChecksView>,
    /// Whether it serves and is ready; `None` from an older server.
    #[serde(default)]
    pub health: Option<HealthReport>,
}

/// The state of a registry.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RegistryView {
    /// The name; empty if an older server sent it.
    #[serde(default)]
    pub name: String,
    /// The URL as the configuration writes it, without secrets.
    pub url: String,
    /// Whether the registry is reachable now.
    pub connected: bool,
    /// Whether the registry has been read completely at least once.
    pub synced: bool,
    /// Store revision up to which svcdns has read.
    pub revision: u64,
    /// Time since the last event or other message, in seconds.
    pub last_event_age: Option<u64>,
    /// The current error.
    pub error: Option<String>,
    /// Number of complete lists read.
    pub lists: u64,
    /// Time since the last of them was complete, in seconds.
    #[serde(default)]
    pub last_list_age: Option<u64>,
    /// Number of connections lost.
    pub disconnects: u64,
    /// Number of keys that are served, including held ones.
    pub keys: usize,
    /// Number of endpoints of the served keys.
    pub instances: usize,
    /// Changes that routine lists found although no event had reported them.
    pub differences: u64,
    /// The holds of the registry; none from an older server.
    #[serde(default)]
    pub holds: Vec<HoldView>,
    /// Time since the data in the registry's snapshot was current, in seconds.
    ///
    /// `None` if there is no snapshot.
    #[serde(default)]
    pub snapshot_age: Option<u64>,
}

impl RegistryView {
    /// Returns whether svcdns knows nothing of the registry: it has read neither it nor a snapshot.
    pub fn is_unread(&self) -> bool {
        !self.synced && self.snapshot_age.is_none()
    }
}

/// A service with its keys and instances.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ServiceView {
    /// The registered name without a zone.
    pub base: String,
    /// The name in the first served zone.
    pub name: String,
    /// Names of the service's aliases in the first served zone; none from an older server.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Its names that have an address of the port bridge; none from an older server.
    #[serde(default)]
    pub bridged: Vec<BridgedNameView>,
    /// The instances, including dropped ones.
    pub instances: Vec<InstanceView>,
    /// The registry keys of the service.
    pub keys: Vec<KeyView>,
}

/// An alias of a service, or of a name outside the served zones.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AliasView {
    /// The alias without a zone.
    pub base: String,
    /// The alias in the first served zone.
    pub name: String,
    /// The base of the service; `None` if the target is outside the served zones.
    pub service: Option<String>,
    /// The name of the target, with a final dot.
    pub target: String,
    /// Whether a service with the target's name is registered.
    pub registered: bool,
    /// Whether a service with the alias's name is registered; the alias takes its place.
    pub replaces: bool,
}

/// The address and identity of an instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EndpointView {
    /// `host:port`.
    pub endpoint: String,
    /// GoFrame's deployment.
    pub deployment: String,
    /// GoFrame's namespace.
    pub namespace: String,
    /// The version.
    pub version: String,
    /// The weight.
    pub weight: u16,
}

/// An instance of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InstanceView {
    /// Address and identity.
    #[serde(flatten)]
    pub endpoint: EndpointView,
    /// The metadata.
    pub metadata: BTreeMap<String, String>,
    /// The key that registers the instance.
    pub key: String,
    /// Index of the registry in the configuration, from 0.
    pub registry: usize,
    /// Name of the registry.
    pub registry_name: String,
    /// Whether the instance is held: removed by the registry, but still served.
    pub held: bool,
    /// The hold of which the instance is part, if it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<HoldView>,
    /// Reason for dropping the instance; `None` if it is served.
    pub left_out: Option<String>,
    /// The failure of its endpoint's check, even if the instance is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckFailureView>,
}

/// A key of a registry.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KeyView {
    /// The key in the store.
    pub key: String,
    /// Index of the registry in the configuration, from 0.
    pub registry: usize,
    /// Name of the registry.
    pub registry_name: String,
    /// Revision of the last change.
    pub revision: u64,
    /// Whether the key is held: removed by the registry, but still served.
    pub held: bool,
    /// Endpoints that cannot be served, each with the reason.
    pub rejected: Vec<(String, String)>,
}

/// The keys and endpoints that cannot be served.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RejectionsView {
    /// The number of rejected keys and endpoints, by reason.
    pub counts: Vec<RejectionCount>,
    /// The number of rejected keys and endpoints that are not listed.
    pub unlisted: u64,
    /// The first rejections of each registry.
    pub listed: Vec<RejectionView>,
}

/// The number of rejected keys and endpoints for one reason.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RejectionCount {
    /// Code of the reason, for scripts.
    pub reason: String,
    /// Text of the reason, for people.
    pub message: String,
    /// The number of keys and endpoints rejected for this reason.
    pub count: u64,
}

/// A key or endpoint that cannot be served.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RejectionView {
    /// Index of the registry in the configuration, from 0.
    pub registry: usize,
    /// Name of the registry.
    pub registry_name: String,
    /// The key.
    pub key: String,
    /// Whether only an endpoint is rejected and the key itself is served.
    pub endpoint_only: bool,
    /// The text that cannot be served.
    pub found: String,
    /// Code of the reason, for scripts.
    pub reason: String,
    /// Text of the reason, for people.
    pub message: String,
}

/// A name that two services, or versions or instances of services, claim.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConflictView {
    /// The name without its zone.
    pub name: String,
    /// `preceded` (two registries), `shadowed` (two spellings), `hidden` (two interpretations) or
    /// `alias` (an alias wins).
    pub kind: String,
    /// The deployment of the loser.
    pub deployment: String,
    /// The namespace of the loser.
    pub namespace: String,
    /// The service, version or instance that the name denotes.
    pub winner: String,
    /// The service, version or instance that lost the name.
    pub loser: String,
}

/// A change of a service: a line of `/v1/watch`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EventView {
    /// The registered name without a zone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
    /// Instances that are served after the change, but were not before it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub added: Vec<EndpointView>,
    /// Instances that were served before the change, but are not after it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub removed: Vec<EndpointView>,
    /// Whether the change removed the service.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub gone: bool,
    /// The number of changes that the client missed because it was too slow.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub missed: Option<u64>,
}

impl ServerStatus {
    /// Captures the current state of the server.
    pub(super) fn new(context: &AdminContext) -> Self {
        let AdminContext { answerer, registries, .. } = context;
        let (info, snapshot) = (context.info.load(), answerer.snapshot());
        let settings = snapshot.settings();
        let registry_status = snapshot.registry_status();
        let (stats, clock) = (answerer.stats(), WallClock::now());
        let holds_of = |index| {
            let holds = snapshot.holds().iter().filter(|hold| hold.registry.index() == index);
            holds.map(|hold| hold.view(&clock)).collect()
        };
        let registry = |(index, (state, stats)): (_, (&Arc<RegistryState>, &RegistryStats))| {
            let report = state.report();
            let age = |at| SystemTime::now().duration_since(at).unwrap_or_default().as_secs();
            RegistryView {
                name: state.name.to_string(),
                url: state.url.clone(),
                connected: report.connected,
                synced: report.synced,
                revision: report.revision,
                last_event_age: report.last_event.map(age),
                error: report.error,
                lists: report.lists,
                last_list_age: report.last_list.map(|at| at.elapsed().as_secs()),
                disconnects: report.disconnects,
                keys: stats.keys,
                instances: stats.instances,
                differences: stats.differences,
                holds: holds_of(index),
                snapshot_age: report.snapshot.map(age),
            }
        };
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: info.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            uptime: info.started_at.elapsed().as_secs(),
            listen: info.listen.clone(),
            tls: info.tls.clone(),
            quic: info.quic.clone(),
            admin: info.admin,
            runtime_dir: info.runtime_dir.display().to_string(),
            state_dir: info.state_dir.as_ref().map(|path| path.display().to_string()),
            zones: settings.zones.iter().map(|zone| zone.text().to_owned()).collect(),
            deployment: settings.deployment.to_string(),
            namespace: settings.namespace.to_string(),
            synced: registry_status.synced,
            stale: !registry_status.disconnected.is_empty(),
            holding: registry_status.held_keys,
            registries: registries
                .load()
                .iter()
                .zip(&stats.registries)
                .enumerate()
                .map(registry)
                .collect(),
            forwarding: ForwardingView::new(&context.forwarder),
            bridge: BridgeView::new(&context.bridge),
            resolv_conf: context.resolv_conf.view(),
            aliases: AliasView::all(answerer),
            services: snapshot.len(),
            instances: stats.registries.iter().map(|stats| stats.instances).sum(),
            rejected: answerer.rejections().counts.values().sum(),
            generation: snapshot.generation(),
            health: Some(context.health()),
            checks: context.checks.as_deref().map(|checks| ChecksView::new(checks, stats.left_out)),
        }
    }
}

impl ServiceView {
    /// Creates the view of a registered service.
    pub(super) fn new(
        service: &Service,
        snapshot: &Snapshot,
        answerer: &Answerer,
        registries: &[Arc<RegistryState>],
        checks: Option<&CheckMonitor>,
    ) -> Self {
        let settings = snapshot.settings();
        let zone = settings.zones.first().text();
        let keys = service.keys().iter().map(|key| KeyView {
            key: service.text(key),
            registry: key.registry().index(),
            registry_name: name_at(registries, key.registry().index()),
            revision: key.revision,
            held: key.held(),
            rejected: key
                .rejected()
                .iter()
                .map(|Rejected { found, reason }| (found.to_string(), reason.to_string()))
                .collect(),
        });
        Self {
            base: service.base().to_owned(),
            name: format!("{}.{zone}", service.base()),
            aliases: settings
                .aliases
                .of_service(service.base())
                .map(|alias| format!("{alias}.{zone}"))
                .collect(),
            bridged: BridgedNameView::of(service, answerer),
            instances: service
                .instances()
                .map(|instance| InstanceView::new(&instance, snapshot, registries, checks))
                .collect(),
            keys: keys.collect(),
        }
    }
}

impl AliasView {
    /// Returns all aliases.
    fn all(answerer: &Answerer) -> Vec<Self> {
        let snapshot = answerer.snapshot();
        let settings = snapshot.settings();
        let zone = settings.zones.first().text();
        let is_registered = |base: &str| {
            snapshot.service(base).is_some_and(|service| service.alias_target().is_none())
        };
        let view = |(base, target): (&str, &AliasTarget)| {
            let service = match target {
                AliasTarget::Base(service) => Some(service.to_string()),
                AliasTarget::Outside(_) => None,
            };
            let name = target.to_string();
            Self {
                base: base.to_owned(),
                name: format!("{base}.{zone}"),
                target: service
                    .as_ref()
                    .map_or_else(|| name.clone(), |base| format!("{base}.{zone}")),
                registered: is_registered(name.trim_end_matches('.')),
                replaces: snapshot.replaced().any(|replaced| replaced.has_base(base)),
                service,
            }
        };
        settings.aliases.iter().map(view).collect()
    }
}

impl EndpointView {
    pub(super) fn new(instance: &Instance<'_>) -> Self {
        let group = instance.key.group();
        Self {
            endpoint: instance.endpoint.to_string(),
            deployment: group.deployment.to_string(),
            namespace: group.namespace.to_string(),
            version: group.version.to_string(),
            weight: instance.key.weight(),
        }
    }
}

impl InstanceView {
    fn new(
        instance: &Instance<'_>,
        snapshot: &Snapshot,
        registries: &[Arc<RegistryState>],
        checks: Option<&CheckMonitor>,
    ) -> Self {
        let key = instance.key;
        let check = CheckFailureView::of(checks, instance);
        let failed = check.as_ref().filter(|_| instance.is_left_out());
        let failed = failed.map(|check| ExclusionReason::check_failed(&check.message));
        let preceded = instance
            .preceding_registry()
            .map(|registry| ExclusionReason::preceded_by(&name_at(registries, registry.index())));
        Self {
            endpoint: EndpointView::new(instance),
            metadata: key
                .metadata
                .iter()
                .map(|(name, value)| (name.to_owned(), value.into_owned()))
                .collect(),
            key: instance.text(),
            registry: key.registry().index(),
            registry_name: name_at(registries, key.registry().index()),
            held: key.held(),
            hold: snapshot.hold_of(key).map(|hold| hold.view(&WallClock::now())),
            left_out: preceded
                .or(failed)
                .or_else(|| instance.excluded.map(|reason| reason.to_string())),
            check,
        }
    }
}

impl ConflictView {
    /// Returns all current conflicts.
    pub fn all(answerer: &Answerer, registries: &[Arc<RegistryState>]) -> Vec<Self> {
        let snapshot = answerer.snapshot();
        let settings = snapshot.settings();
        let outside = |base: &str| {
            let target = settings.aliases.target(base)?;
            let service = Service::empty(&target.to_string());
            Some(Arc::new(Service::alias(base, Arc::new(service))))
        };
        let find = |base: &str| snapshot.service(base).cloned().or_else(|| outside(base));
        let mut found = catalog::conflicts(
            snapshot.services(),
            find,
            |registry| name_at(registries, registry.index()),
            &settings.zones,
            &settings.deployment,
            &settings.namespace,
        );
        for service in snapshot.replaced() {
            let target = settings.aliases.target(service.base());
            let target = target.map(ToString::to_string).unwrap_or_default();
            found.extend(conflicts_with_alias(service, &target, &settings.zones));
        }
        found.sort_unstable();
        let view = |conflict: catalog::Conflict| Self {
            name: conflict.name,
            kind: match conflict.kind {
                ConflictKind::Preceded => "preceded".to_owned(),
                ConflictKind::Shadowed => "shadowed".to_owned(),
                ConflictKind::Hidden => "hidden".to_owned(),
                ConflictKind::Alias => "alias".to_owned(),
            },
            deployment: conflict.deployment.into(),
            namespace: conflict.namespace.into(),
            winner: conflict.winner,
            loser: conflict.loser,
        };
        found.into_iter().map(view).collect()
    }
}

impl RejectionsView {
    /// Creates the view of all rejections.
    pub(super) fn new(rejections: &Rejections, registries: &[Arc<RegistryState>]) -> Self {
        Self {
            counts: rejections
                .counts
                .iter()
                .map(|(reason, count)| RejectionCount {
                    reason: reason.code().to_owned(),
                    message: reason.to_string(),
                    count: *count,
                })
                .collect(),
            unlisted: rejections.unlisted,
            listed: rejections
                .listed
                .iter()
                .map(|listed| RejectionView {
                    registry: listed.registry.index(),
                    registry_name: name_at(registries, listed.registry.index()),
                    key: listed.key.to_string(),
                    endpoint_only: listed.endpoint_only,
                    found: listed.rejected.found.to_string(),
                    reason: listed.rejected.reason.code().to_owned(),
                    message: listed.rejected.reason.to_string(),
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_sent_by_an_older_server_can_be_decoded() {
        // `install` may query an older server before it replaces that server.
        let status: ServerStatus =
            serde_json::from_str(include_str!("../../tests/former/status.json")).unwrap();
        assert_eq!((status.runtime_dir.as_str(), status.registries.len()), ("", 1));
        assert_eq!(status.state_dir.as_deref(), Some("/run/svcdns"));
    }
}
