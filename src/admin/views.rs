//! What is known, in the form that goes out as JSON and that the commands read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Site;
use super::forwarding::ForwardingView;
use crate::answer::Answerer;
use crate::catalog::{self, ConflictKind, Instance, RegistryStats, Rejections, Service};
use crate::registry::{RegistryState, name_at};
use crate::service::Rejected;

/// The server, at a glance.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// The version of svcdns.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// When it started, in seconds since 1970.
    pub started: u64,
    /// How long it has run, in seconds.
    pub uptime: u64,
    /// Where it answers.
    pub listen: Vec<SocketAddr>,
    /// Where it answers over TLS.
    pub tls: Vec<SocketAddr>,
    /// Where it answers over QUIC.
    pub quic: Vec<SocketAddr>,
    /// Where this interface is served besides the socket.
    pub admin: Option<SocketAddr>,
    /// Its runtime directory; empty for a server of a version that had none.
    #[serde(default)]
    pub runtime_dir: String,
    /// Its state directory, if it has one.
    pub state_dir: Option<String>,
    /// The zones it serves, the first one first, with a trailing dot.
    pub zones: Vec<String>,
    /// The deployment that short names mean.
    pub deployment: String,
    /// The namespace that short names mean.
    pub namespace: String,
    /// Whether absence means something yet.
    pub synced: bool,
    /// Whether a registry cannot be reached, so that data may be old.
    pub stale: bool,
    /// Keys served although their registry says that they are gone.
    pub holding: usize,
    /// The registries, in the order of the configuration.
    pub registries: Vec<RegistryView>,
    /// How other names are resolved; none where they are refused.
    pub forwarding: Option<ForwardingView>,
    /// Services known.
    pub services: usize,
    /// Instances known, those left out included.
    pub instances: usize,
    /// Keys and endpoints that cannot be served.
    pub rejected: u64,
    /// Publications so far.
    pub generation: u64,
}

/// A registry's condition.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RegistryView {
    /// The registry's name; empty from an older server.
    #[serde(default)]
    pub name: String,
    /// The registry as written, without secrets.
    pub url: String,
    /// Whether it can be reached now.
    pub connected: bool,
    /// Whether it was ever read completely.
    pub synced: bool,
    /// Its revision up to which everything was read.
    pub revision: u64,
    /// How many seconds ago the last change or sign of life came.
    pub last_event_age: Option<u64>,
    /// What went wrong last, while it does.
    pub error: Option<String>,
    /// Complete lists read.
    pub lists: u64,
    /// Connections lost.
    pub disconnects: u64,
    /// Keys that are served, those included that it no longer has and that are held.
    pub keys: usize,
    /// Their endpoints.
    pub instances: usize,
    /// Differences that routine lists found against what the events had said.
    pub differences: u64,
}

/// A service with all that is registered for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ServiceView {
    /// The registered name less a zone.
    pub base: String,
    /// Its name in the first zone.
    pub name: String,
    /// Its instances, those left out included.
    pub instances: Vec<InstanceView>,
    /// Its keys.
    pub keys: Vec<KeyView>,
}

/// Where an instance is and which it is.
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
    /// Where and which it is.
    #[serde(flatten)]
    pub endpoint: EndpointView,
    /// What it says about itself.
    pub metadata: BTreeMap<String, String>,
    /// The key it stands in.
    pub key: String,
    /// Its registry's place in the configuration, from 0.
    pub registry: usize,
    /// Its registry's name.
    pub registry_name: String,
    /// Whether the registry says that it is gone, and that is not believed yet.
    pub held: bool,
    /// Why it is not served, where it is not.
    pub left_out: Option<String>,
}

/// A key of a registry.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KeyView {
    /// The key as the store has it.
    pub key: String,
    /// Its registry's place in the configuration, from 0.
    pub registry: usize,
    /// Its registry's name.
    pub registry_name: String,
    /// The revision of its last change.
    pub revision: u64,
    /// Whether the registry says that it is gone, and that is not believed yet.
    pub held: bool,
    /// Its endpoints that cannot be served: what was found, and why.
    pub rejected: Vec<(String, String)>,
}

/// What cannot be served.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RejectionsView {
    /// How many, by reason.
    pub counts: Vec<RejectionCount>,
    /// How many more there are than are listed.
    pub unlisted: u64,
    /// The first ones of each registry.
    pub listed: Vec<RejectionView>,
}

/// How many keys and endpoints cannot be served for one reason.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RejectionCount {
    /// The reason, for scripts.
    pub reason: String,
    /// The reason, for people.
    pub message: String,
    /// How many.
    pub count: u64,
}

/// A key or endpoint that cannot be served.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RejectionView {
    /// Its registry's place in the configuration, from 0.
    pub registry: usize,
    /// Its registry's name.
    pub registry_name: String,
    /// The key.
    pub key: String,
    /// Whether only an endpoint of it is rejected.
    pub endpoint_only: bool,
    /// What was found.
    pub found: String,
    /// Why it cannot be served, for scripts.
    pub reason: String,
    /// Why it cannot be served, for people.
    pub message: String,
}

/// One name that two things claim.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConflictView {
    /// The name in front of the zone.
    pub name: String,
    /// `shadowed` (two spellings of one name) or `hidden` (two readings of one name).
    pub kind: String,
    /// The deployment of the loser.
    pub deployment: String,
    /// The namespace of the loser.
    pub namespace: String,
    /// What the name answers for.
    pub winner: String,
    /// What it does not answer for.
    pub loser: String,
}

/// A change of a service, as it happens.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EventView {
    /// The service's base.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
    /// Instances that are served now.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub added: Vec<EndpointView>,
    /// Instances that are no longer served.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub removed: Vec<EndpointView>,
    /// Whether nothing of the service is left.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub gone: bool,
    /// How many changes were left out here, because the reader was too slow.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub missed: Option<u64>,
}

impl Status {
    /// The server as it is now.
    pub(super) fn new(site: &Site) -> Self {
        let Site { about, answerer, registries, .. } = site;
        let (snapshot, condition, settings) = (answerer.snapshot(), answerer.registry_status(), answerer.settings());
        let stats = answerer.stats();
        let registry = |(state, stats): (&Arc<RegistryState>, &RegistryStats)| {
            let report = state.report();
            RegistryView {
                name: state.name.to_string(),
                url: state.url.clone(),
                connected: report.connected,
                synced: report.synced,
                revision: report.revision,
                last_event_age: report.last_event.map(|at| SystemTime::now().duration_since(at).unwrap_or_default().as_secs()),
                error: report.error,
                lists: report.lists,
                disconnects: report.disconnects,
                keys: stats.keys,
                instances: stats.instances,
                differences: stats.differences,
            }
        };
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: about.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            uptime: about.began.elapsed().as_secs(),
            listen: about.listen.clone(),
            tls: about.tls.clone(),
            quic: about.quic.clone(),
            admin: about.admin,
            runtime_dir: about.runtime_dir.display().to_string(),
            state_dir: about.state_dir.as_ref().map(|path| path.display().to_string()),
            zones: settings.zones.iter().map(|zone| zone.text().to_owned()).collect(),
            deployment: settings.deployment.to_string(),
            namespace: settings.namespace.to_string(),
            synced: condition.synced,
            stale: !condition.disconnected.is_empty(),
            holding: condition.held_keys,
            registries: registries.iter().zip(&stats.registries).map(registry).collect(),
            forwarding: site.forwarder.as_deref().map(ForwardingView::new),
            services: snapshot.len(),
            instances: stats.registries.iter().map(|stats| stats.instances).sum(),
            rejected: answerer.rejections().counts.values().sum(),
            generation: snapshot.generation(),
        }
    }
}

impl ServiceView {
    /// A service of the registries under its name in the zone of this text (with a trailing dot).
    pub(super) fn new(service: &Service, zone: &str, registries: &[Arc<RegistryState>]) -> Self {
        let keys = service.keys().iter().map(|key| KeyView {
            key: service.text(key),
            registry: key.registry().index(),
            registry_name: name_at(registries, key.registry().index()),
            revision: key.revision,
            held: key.held(),
            rejected: key.rejected().iter().map(|Rejected { found, reason }| (found.to_string(), reason.to_string())).collect(),
        });
        Self {
            base: service.base().to_owned(),
            name: format!("{}.{zone}", service.base()),
            instances: service.instances().map(|instance| InstanceView::new(&instance, registries)).collect(),
            keys: keys.collect(),
        }
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
    fn new(instance: &Instance<'_>, registries: &[Arc<RegistryState>]) -> Self {
        let key = instance.key;
        Self {
            endpoint: EndpointView::new(instance),
            metadata: key.metadata.iter().map(|(name, value)| (name.to_owned(), value.into_owned())).collect(),
            key: instance.text(),
            registry: key.registry().index(),
            registry_name: name_at(registries, key.registry().index()),
            held: key.held(),
            left_out: instance.excluded.map(|reason| reason.to_string()),
        }
    }
}

impl ConflictView {
    /// The conflicts as they are now.
    pub fn all(answerer: &Answerer) -> Vec<Self> {
        let (snapshot, settings) = (answerer.snapshot(), answerer.settings());
        let find = |base: &str| snapshot.service(base).cloned();
        let found = catalog::conflicts(snapshot.services(), find, &settings.zones, &settings.deployment, &settings.namespace);
        let view = |conflict: catalog::Conflict| Self {
            name: conflict.name,
            kind: match conflict.kind {
                ConflictKind::Shadowed => "shadowed".to_owned(),
                ConflictKind::Hidden => "hidden".to_owned(),
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
    /// The rejections as they are now.
    pub(super) fn new(rejections: &Rejections, registries: &[Arc<RegistryState>]) -> Self {
        Self {
            counts: rejections
                .counts
                .iter()
                .map(|(reason, count)| RejectionCount { reason: reason.code().to_owned(), message: reason.to_string(), count: *count })
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
    fn the_status_of_a_server_of_the_version_before_is_understood() {
        // `install` asks that server before it replaces it.
        let status: Status = serde_json::from_str(include_str!("../../tests/former/status.json")).unwrap();
        assert_eq!((status.runtime_dir.as_str(), status.registries.len()), ("", 1));
        assert_eq!(status.state_dir.as_deref(), Some("/run/svcdns"));
    }
}
