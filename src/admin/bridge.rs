//! The state of the port bridge, as JSON and as metrics.

use std::cmp::Reverse;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::AdminContext;
use crate::answer::Answerer;
use crate::bridge::{Bridge, BridgedView, Counters, Settings};
use crate::catalog::Service;
use crate::metrics::{MetricLabels, Page};
use crate::name::Name;
use crate::service::BridgeCandidate;

/// Limit on the services with metrics of their own; the label of all others is empty.
const MAX_SERVICES_WITH_METRICS: usize = 100;

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
    /// Reason why it stays off, although it is configured.
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
    fn running(&self) -> Option<&Bridge> {
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
                let (services, counters) = (bridge.services(), bridge.counters());
                let Settings { pool, bind, .. } = bridge.settings();
                Some(Self {
                    pool: pool.to_string(),
                    mode: if *bind { "bound" } else { "redirected" }.to_owned(),
                    names: services.len(),
                    open: counters.open(),
                    connections: services.iter().map(|service| service.counts.connections).sum(),
                    failures: services.iter().map(|service| service.counts.failures).sum(),
                    over_limit: counters.over_limit.get(),
                    unknown: counters.unknown.get(),
                    ..off
                })
            }
        }
    }
}

impl BridgedNameView {
    /// Returns the names of a service that have addresses.
    pub(super) fn of(service: &Service, answerer: &Answerer) -> Vec<Self> {
        let zone = answerer.settings().zones.first().text();
        let view = |(name, address): (String, _)| Self {
            name: format!("{name}.{zone}"),
            address: std::net::Ipv4Addr::to_string(&address),
        };
        answerer.bridged_names(service).into_iter().map(view).collect()
    }
}

/// Describes what the bridge does with a name; `None` if the bridge has nothing to do with it.
pub(super) fn describe(context: &AdminContext, name: &Name) -> Option<String> {
    let bridge = match &context.bridge {
        BridgeState::Off => return None,
        BridgeState::Failed(error) => return Some(format!("off: {error}")),
        BridgeState::Running(bridge) => bridge,
    };
    if let Some(address) = context.answerer.bridged_address(name) {
        return Some(format!(
            "clients on this machine get {address}; their connections are carried to an instance"
        ));
    }
    let BridgeCandidate { name, namespace, registrations } =
        context.answerer.bridge_candidate(name)?;
    let protocols = registrations.iter().map(|one| one.protocol.as_deref());
    Some(match bridge.settings().policy.refusal(&name, &namespace, protocols) {
        Some(refusal) => format!("not bridged: {refusal}"),
        None => "not bridged: no endpoint can be reached through it, or it has no free address or \
                 port (see the log)"
            .to_owned(),
    })
}

/// Adds the metrics of a running bridge.
#[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
pub(super) fn add_metrics(page: &mut Page, state: &BridgeState) {
    let Some(bridge) = state.running() else { return };
    let Counters { accepted, unknown, over_limit, local_failures, accept_errors, .. } =
        bridge.counters();
    page.gauge(
        "svcdns_bridge_open_connections",
        "Open connections through the port bridge",
        bridge.counters().open(),
    );
    page.counter("svcdns_bridge_accepted", "Connections accepted by the bridge", accepted.get());
    let reset =
        [("unknown", unknown.get()), ("limit", over_limit.get()), ("local", local_failures.get())];
    page.counters(
        "svcdns_bridge_reset",
        "Connections reset at once, by reason: no service has the address (unknown), a limit is \
         reached, or this machine has run out of descriptors or ports (local)",
        reset.map(|(reason, count)| (vec![("reason", reason.to_owned())], count)),
    );
    page.counter(
        "svcdns_bridge_accept_errors",
        "Failures to accept a connection",
        accept_errors.get(),
    );
    let (services, names) = with_labels(bridge.services());
    page.gauge("svcdns_bridge_names", "Names with an address of the bridge", names);
    let counts = |number: fn(&BridgedView) -> u64| -> Vec<(MetricLabels, u64)> {
        services.iter().map(|(labels, service)| (labels.clone(), number(service))).collect()
    };
    page.counters(
        "svcdns_bridge_connections",
        "Connections that reached an instance, by service",
        counts(|service| service.counts.connections),
    );
    page.counters(
        "svcdns_bridge_failures",
        "Connections reset because no instance could be reached, by service",
        counts(|service| service.counts.failures),
    );
    page.counters(
        "svcdns_bridge_retries",
        "Attempts at an instance that failed or were too slow, by service",
        counts(|service| service.counts.retries),
    );
    page.counters(
        "svcdns_bridge_request_bytes",
        "Bytes from clients to instances, by service",
        counts(|service| service.counts.request_bytes),
    );
    page.counters(
        "svcdns_bridge_response_bytes",
        "Bytes from instances to clients, by service",
        counts(|service| service.counts.response_bytes),
    );
    let connect_time = services
        .iter()
        .map(|(labels, service)| (labels.clone(), service.counts.connect_time.as_secs_f64()));
    page.gauges(
        "svcdns_bridge_connect_time_seconds",
        "Total time until connections reached an instance, by service",
        connect_time.collect::<Vec<_>>(),
    );
    let open =
        services.iter().map(|(labels, service)| (labels.clone(), service.counts.open as f64));
    page.gauges(
        "svcdns_bridge_service_connections",
        "Open connections through the bridge, by service",
        open.collect::<Vec<_>>(),
    );
}

/// Returns the services with most connections and their labels, the rest added up, and the number.
fn with_labels(mut services: Vec<BridgedView>) -> (Vec<(MetricLabels, BridgedView)>, usize) {
    let number = services.len();
    services.sort_by(|a, b| {
        (Reverse(a.counts.connections), &a.name).cmp(&(Reverse(b.counts.connections), &b.name))
    });
    let rest = services.split_off(number.min(MAX_SERVICES_WITH_METRICS));
    let label = |name: &str| vec![("service", name.to_owned())];
    let mut labelled: Vec<_> =
        services.into_iter().map(|service| (label(&service.name), service)).collect();
    let sum = rest.into_iter().reduce(|mut sum, service| {
        let (sum_of, of) = (&mut sum.counts, service.counts);
        sum_of.open += of.open;
        sum_of.connections += of.connections;
        sum_of.failures += of.failures;
        sum_of.retries += of.retries;
        sum_of.request_bytes += of.request_bytes;
        sum_of.response_bytes += of.response_bytes;
        sum_of.connect_time =
            sum_of.connect_time.checked_add(of.connect_time).unwrap_or(Duration::MAX);
        sum
    });
    labelled.extend(sum.map(|sum| (label(""), sum)));
    (labelled, number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::ServiceCounts;

    #[test]
    fn the_labels_of_metrics_are_bounded() {
        let service = |n: u8| BridgedView {
            name: format!("s{n}").into(),
            address: [127, 83, 0, n].into(),
            counts: ServiceCounts { connections: n.into(), open: 1, ..ServiceCounts::default() },
            loops: Vec::new(),
        };
        let (labelled, number) = with_labels((0..250).map(service).collect());
        assert_eq!((labelled.len(), number), (101, 250));
        assert_eq!(labelled[0].0, [("service", "s249".to_owned())]);
        let (labels, rest) = &labelled[100];
        assert_eq!(*labels, [("service", String::new())]);
        assert_eq!((rest.counts.open, rest.counts.connections), (150, (0..150).sum()));
        assert_eq!(with_labels(vec![service(1)]).0.len(), 1);
    }
}
