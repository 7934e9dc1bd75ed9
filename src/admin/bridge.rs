//! The state of the port bridge, as JSON and as metrics.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::AdminContext;
use crate::answer::Answerer;
use crate::bridge::{Bridge, BridgedInstance, BridgedPort, Counters, ServiceCounts, Settings};
use crate::catalog::Service;
use crate::metrics::{MetricLabels, Page};
use crate::name::Name;
use crate::service::BridgeCandidate;

/// Whether the port bridge of a server runs.
#[derive(Clone, Debug, Default)]
pub enum BridgeState {
    /// It is not configured.
    #[default]
    Off,
    /// It runs.
    Running(Bridge),
    /// It is configured, but stays off for this reason.
    Failed(String),
}

/// The state of the port bridge.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BridgeView {
    /// The network that its addresses are from; empty if it stays off.
    pub pool: String,
    /// How it gets connections: `redirected` or `bound`; empty if it stays off.
    pub mode: String,
    /// Reason why it stays off, or no client gets an address now, although it is configured.
    pub error: Option<String>,
    /// Number of names with an address.
    pub names: usize,
    /// Open connections.
    pub open: usize,
    /// Connections that reached an instance.
    pub connections: u64,
    /// Connections that were reset because no instance could be reached.
    pub failures: u64,
    /// Connections that were reset because a limit was reached.
    pub over_limit: u64,
    /// Connections that were reset because their address belongs to no name.
    pub unknown: u64,
}

/// A name and its address of the port bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgedNameView {
    /// The name in the first served zone.
    pub name: String,
    /// The address.
    pub address: String,
}

impl BridgeState {
    /// Returns the running bridge, if there is one.
    pub fn running(&self) -> Option<&Bridge> {
        match self {
            Self::Running(bridge) => Some(bridge),
            Self::Off | Self::Failed(_) => None,
        }
    }
}

impl BridgeView {
    /// Captures the current state; `None` if the bridge is not configured.
    pub(super) fn new(state: &BridgeState) -> Option<Self> {
        let off = Self {
            pool: String::new(),
            mode: String::new(),
            error: None,
            names: 0,
            open: 0,
            connections: 0,
            failures: 0,
            over_limit: 0,
            unknown: 0,
        };
        match state {
            BridgeState::Off => None,
            BridgeState::Failed(error) => Some(Self { error: Some(error.clone()), ..off }),
            BridgeState::Running(bridge) => {
                let (total, counters) = (bridge.total(), bridge.counters());
                let Settings { pool, bind, .. } = bridge.settings();
                Some(Self {
                    pool: pool.to_string(),
                    error: bridge.problem(),
                    mode: if *bind { "bound" } else { "redirected" }.to_owned(),
                    names: bridge.names(),
                    open: counters.open(),
                    connections: total.connections,
                    failures: total.failures,
                    over_limit: counters.over_limit.get(),
                    unknown: counters.unknown.get(),
                })
            }
        }
    }
}

impl BridgedNameView {
    /// Returns the names of a service that have addresses.
    pub(super) fn of(service: &Service, answerer: &Answerer) -> Vec<Self> {
        let settings = answerer.settings();
        let zone = settings.zones.first().text();
        let view = |(name, address): (String, _)| Self {
            name: format!("{name}.{zone}"),
            address: std::net::Ipv4Addr::to_string(&address),
        };
        answerer.bridged_names(service).into_iter().map(view).collect()
    }
}

/// Limit on the ports, and on the instances of a port, that an explanation lists.
const MAX_LISTED: usize = 8;

/// Describes what the bridge does with a name; `None` if the bridge has nothing to do with it.
pub(super) fn describe(context: &AdminContext, name: &Name) -> Option<String> {
    let bridge = match &context.bridge {
        BridgeState::Off => return None,
        BridgeState::Failed(error) => return Some(format!("off: {error}")),
        BridgeState::Running(bridge) => bridge,
    };
    let address = context.answerer.bridged_address(name);
    let candidate = context.answerer.bridge_candidate(name)?;
    let BridgeCandidate { name, namespace, registrations } = &candidate;
    let protocols = || registrations.iter().map(|one| one.protocol.as_deref());
    let policy = &bridge.settings().policy;
    let Some(address) = address else {
        let reason = match policy.refusal(name, namespace, protocols()) {
            Some(refusal) => refusal.to_string(),
            None => bridge.problem().unwrap_or_else(|| {
                "no endpoint can be reached through it, or it has no free address or port (see \
                 the log)"
                    .to_owned()
            }),
        };
        return Some(format!("not bridged: {reason}"));
    };
    let mut text = format!("clients on this machine get {address}");
    if let Some(protocol) = policy.accepted(protocols()) {
        let _ = write!(text, ", because bridge.protocols has {protocol}");
    }
    let mut ports = bridge.ports(address);
    // Those of the settings first: the others mean what they say.
    ports.sort_by_key(|port| !bridge.settings().ports.contains(&port.port));
    let listed = ports.iter().take(MAX_LISTED).map(|BridgedPort { port, instances }| {
        let instances = join(instances.iter().map(describe_instance), instances.len());
        format!("port {port} leads to {instances}")
    });
    if !ports.is_empty() {
        let _ = write!(text, "; {}", listed.collect::<Vec<_>>().join("; "));
    }
    if ports.len() > MAX_LISTED {
        let _ = write!(text, "; and {} more ports", ports.len() - MAX_LISTED);
    }
    let loops = bridge.loops(address);
    if !loops.is_empty() {
        let addresses = join(loops.iter().map(ToString::to_string), loops.len());
        let _ = write!(text, "; left out, because it is in the bridge's pool: {addresses}");
    }
    Some(text)
}

/// Describes an instance behind a port.
fn describe_instance(instance: &BridgedInstance) -> String {
    let BridgedInstance { address, open, is_set_aside } = instance;
    let aside = if *is_set_aside { ", set aside" } else { "" };
    format!("{address} ({open} open{aside})")
}

/// Joins the first texts of a list of this length.
fn join(texts: impl Iterator<Item = String>, length: usize) -> String {
    let mut joined = texts.take(MAX_LISTED).collect::<Vec<_>>().join(", ");
    if length > MAX_LISTED {
        let _ = write!(joined, " and {} more", length - MAX_LISTED);
    }
    joined
}

/// Adds the metrics of a running bridge.
#[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
pub(super) fn add_metrics(page: &mut Page, state: &BridgeState) {
    let Some(bridge) = state.running() else { return };
    let counters = bridge.counters();
    page.gauge(
        "svcdns_bridge_open_connections",
        "Open connections through the port bridge",
        counters.open(),
    );
    page.counter(
        "svcdns_bridge_accepted",
        "Connections accepted by the bridge",
        counters.accepted.get(),
    );
    let Counters { unknown, without_instance, foreign, over_limit, local_failures, .. } = counters;
    let reset = [
        ("unknown", unknown),
        ("port", without_instance),
        ("foreign", foreign),
        ("limit", over_limit),
        ("local", local_failures),
    ];
    page.counters(
        "svcdns_bridge_reset",
        "Connections reset at once, by reason: no service has the address (unknown), no instance \
         has the port (port), the client is on another machine (foreign), a limit is reached \
         (limit), or this machine has run out of descriptors or memory (local)",
        reset.map(|(reason, count)| (vec![("reason", reason.to_owned())], count.get())),
    );
    page.counter(
        "svcdns_bridge_accept_errors",
        "Failures to accept a connection",
        counters.accept_errors.get(),
    );
    page.counter(
        "svcdns_bridge_rules_restored",
        "Times that another program removed the bridge's rules from the kernel, and svcdns added \
         them again",
        counters.restored.get(),
    );
    page.gauge("svcdns_bridge_names", "Names with an address of the bridge", bridge.names());
    let by_label: Vec<(MetricLabels, ServiceCounts)> = bridge
        .counts_by_label()
        .into_iter()
        .map(|(service, counts)| (vec![("service", service.into_string())], counts))
        .collect();
    let counts = |number: fn(&ServiceCounts) -> u64| -> Vec<(MetricLabels, u64)> {
        by_label.iter().map(|(labels, counts)| (labels.clone(), number(counts))).collect()
    };
    page.counters(
        "svcdns_bridge_connections",
        "Connections that reached an instance, by service",
        counts(|counts| counts.connections),
    );
    page.counters(
        "svcdns_bridge_failures",
        "Connections reset because no instance could be reached, by service",
        counts(|counts| counts.failures),
    );
    page.counters(
        "svcdns_bridge_retries",
        "Attempts at an instance that failed or were too slow, by service",
        counts(|counts| counts.retries),
    );
    page.counters(
        "svcdns_bridge_request_bytes",
        "Bytes from clients to instances, by service",
        counts(|counts| counts.request_bytes),
    );
    page.counters(
        "svcdns_bridge_response_bytes",
        "Bytes from instances to clients, by service",
        counts(|counts| counts.response_bytes),
    );
    page.times(
        "svcdns_bridge_connect_time",
        "Total time until connections reached an instance, by service",
        by_label.iter().map(|(labels, counts)| (labels.clone(), counts.connect_time)),
    );
    let open = by_label.iter().map(|(labels, counts)| (labels.clone(), counts.open as f64));
    page.gauges(
        "svcdns_bridge_service_connections",
        "Open connections through the bridge, by service",
        open.collect::<Vec<_>>(),
    );
}
