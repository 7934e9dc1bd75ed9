//! The state of the checks, for commands and metrics.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use super::CheckFailure;
use crate::metrics::{Counter, DurationHistogram};
use crate::service::{CheckTarget, Probe};

/// The state of the checks, shared by the checker and its readers.
#[derive(Debug, Default)]
pub struct CheckMonitor {
    /// Duration of the checks.
    pub durations: DurationHistogram,
    report: Mutex<CheckReport>,
    results: [Counter; RESULTS.len()],
}

/// The current state of the checks.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Number of endpoints checked over TCP.
    pub tcp: usize,
    /// Number of endpoints checked with HTTP.
    pub http: usize,
    /// Time between two checks of an endpoint.
    pub interval: Duration,
    /// Whether the limit per second makes that longer than configured.
    pub stretched: bool,
    /// Maximum time until an endpoint that stops responding fails.
    pub detection_time: Duration,
    /// Start of the burst, while most endpoints fail and nothing is left out.
    pub burst: Option<Instant>,
    /// The endpoints that fail, whether or not their instances are left out.
    pub failing: HashMap<CheckTarget, FailingEndpoint, RandomState>,
}

/// Reason and time of an endpoint's failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailingEndpoint {
    /// Reason why the latest failed check failed.
    pub failure: CheckFailure,
    /// End of the first failed check.
    pub since: Instant,
}

/// Names of the results of checks.
const RESULTS: [&str; 9] = [
    "passed",
    "refused",
    "no-connection",
    "unreachable",
    "no-response",
    "closed",
    "not-http",
    "status",
    "local",
];

impl CheckMonitor {
    /// Returns why an endpoint fails, if it does.
    pub fn failure_at(&self, address: SocketAddr) -> Option<FailingEndpoint> {
        let report = self.report();
        [Probe::Http, Probe::Tcp].into_iter().find_map(|probe| {
            let target = CheckTarget { address: address.ip(), port: address.port(), probe };
            report.failing.get(&target).copied()
        })
    }

    /// Returns the current report, locked.
    pub fn report(&self) -> MutexGuard<'_, CheckReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of checks by the name of their result.
    pub fn results(&self) -> impl Iterator<Item = (&'static str, u64)> {
        RESULTS.into_iter().zip(self.results.iter().map(Counter::get))
    }

    /// Counts the result of a check.
    pub(super) fn count(&self, result: Result<(), CheckFailure>, took: Duration) {
        let index = match result {
            Ok(()) => 0,
            Err(CheckFailure::Refused) => 1,
            Err(CheckFailure::NoConnection) => 2,
            Err(CheckFailure::Unreachable) => 3,
            Err(CheckFailure::NoResponse) => 4,
            Err(CheckFailure::Closed) => 5,
            Err(CheckFailure::NotHttp) => 6,
            Err(CheckFailure::Status(_)) => 7,
            Err(CheckFailure::Local(_)) => 8,
        };
        self.results[index].increment();
        self.durations.observe(took);
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn every_result_is_counted_under_its_name() {
        let monitor = CheckMonitor::default();
        let results = [
            ("passed", Ok(())),
            ("refused", Err(CheckFailure::Refused)),
            ("no-connection", Err(CheckFailure::NoConnection)),
            ("unreachable", Err(CheckFailure::Unreachable)),
            ("no-response", Err(CheckFailure::NoResponse)),
            ("closed", Err(CheckFailure::Closed)),
            ("not-http", Err(CheckFailure::NotHttp)),
            ("status", Err(CheckFailure::Status(503))),
            ("local", Err(CheckFailure::Local(ErrorKind::NetworkUnreachable))),
        ];
        for (name, result) in results {
            monitor.count(result, Duration::ZERO);
            let counted: Vec<_> = monitor.results().filter(|(_, count)| *count > 0).collect();
            assert!(counted.contains(&(name, 1)), "{name} in {counted:?}");
        }
        assert!(monitor.results().all(|(_, count)| count == 1));
    }
}
