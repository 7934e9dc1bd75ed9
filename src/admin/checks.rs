//! Checks of endpoints, as the HTTP interface shows them.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::catalog::Instance;
use crate::checks::{CheckMonitor, FailingEndpoint};
use crate::metrics::Page;
use crate::service::WallClock;

/// The state of the checks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChecksView {
    /// Number of endpoints that are checked over TCP.
    pub tcp: usize,
    /// Number of endpoints that are checked with HTTP.
    pub http: usize,
    /// Number of endpoints that fail.
    pub failing: usize,
    /// Number of instances that are left out because of that.
    pub left_out: usize,
    /// Time between two checks of an endpoint, in milliseconds.
    pub interval_ms: u64,
    /// Whether the limit on checks per second makes that longer than configured.
    pub stretched: bool,
    /// Maximum time until an endpoint that stops responding fails, in milliseconds.
    pub detection_time_ms: u64,
    /// Start of the burst, in seconds since 1970-01-01 UTC.
    ///
    /// During a burst, most endpoints fail, and no further instance is left out.
    pub burst_since: Option<u64>,
}

/// The failure of an endpoint's check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckFailureView {
    /// Reason why the latest failed check failed, for people.
    pub reason: String,
    /// Time of the first failed check, in seconds since 1970-01-01 UTC.
    pub since: u64,
    /// Reason and time, for people.
    pub message: String,
}

impl ChecksView {
    /// Returns the state of the checks, which leave out this many instances.
    pub(super) fn new(monitor: &CheckMonitor, left_out: usize) -> Self {
        let report = monitor.report();
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            tcp: report.tcp,
            http: report.http,
            failing: report.failing.len(),
            left_out,
            interval_ms: millis(report.interval),
            stretched: report.stretched,
            detection_time_ms: millis(report.detection_time),
            burst_since: report.burst.map(|since| WallClock::now().time_of(since).0),
        }
    }
}

impl CheckFailureView {
    /// Returns the failure of the check at this address, if it fails.
    pub(super) fn at(monitor: Option<&CheckMonitor>, address: SocketAddr) -> Option<Self> {
        let FailingEndpoint { failure, since } = monitor?.failure_at(address)?;
        let since = WallClock::now().time_of(since);
        let message = format!("{failure}, since {since}");
        Some(Self { reason: failure.to_string(), since: since.0, message })
    }

    /// Returns the failure of an instance's check, if it fails.
    pub(super) fn of(monitor: Option<&CheckMonitor>, instance: &Instance<'_>) -> Option<Self> {
        let address = instance.endpoint.host.address()?;
        Self::at(monitor, SocketAddr::new(address, instance.endpoint.port))
    }
}

/// Adds the metrics of the checks.
pub(super) fn add_metrics(page: &mut Page, monitor: &CheckMonitor, view: &ChecksView) {
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
    let targets = [("tcp", view.tcp), ("http", view.http)]
        .map(|(probe, count)| (vec![("probe", probe.to_owned())], count as f64));
    page.gauges("svcdns_check_targets", "Endpoints that are checked", targets);
    page.gauge("svcdns_check_failing", "Endpoints whose check fails", view.failing);
    page.gauge(
        "svcdns_check_left_out",
        "Instances left out because their check fails",
        view.left_out,
    );
    page.gauge(
        "svcdns_check_burst",
        "1 while most checks fail at once, and no further instance is left out, else 0",
        usize::from(view.burst_since.is_some()),
    );
    #[expect(clippy::cast_precision_loss, reason = "milliseconds below 2^53")]
    let interval = view.interval_ms as f64 / 1000.0;
    page.gauges(
        "svcdns_check_interval_seconds",
        "Time between two checks of an endpoint; the limit per second may make it longer",
        [(Vec::new(), interval)],
    );
    let results = monitor.results();
    let results = results.map(|(result, count)| (vec![("result", result.to_owned())], count));
    page.counters("svcdns_checks", "Completed checks, by result", results);
    page.histogram("svcdns_check_duration", "Duration of the checks", &monitor.durations);
}
