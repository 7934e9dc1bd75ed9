//! Checks of the instances' endpoints: TCP connections, or HTTP requests.
//!
//! The catalog says which endpoints to check, and [`follow`] reports those that begin to fail or
//! to pass again. The module `checker` decides; it does no I/O, and callers pass the time.

mod burst;
mod checker;
mod failure;
mod follow;
mod monitor;
mod probe;
mod schedule;
mod tls;

pub use failure::CheckFailure;
pub use follow::follow;
pub use monitor::{CheckMonitor, CheckReport, FailingEndpoint};

use std::time::Duration;

use crate::descriptors::DescriptorShare;

/// Configuration of the checks.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Time between two checks of an endpoint, from start to start.
    pub interval: Duration,
    /// Maximum duration of a check; at most the interval, so an endpoint has one check at a time.
    pub timeout: Duration,
    /// Successful checks in a row after which an endpoint that failed passes again.
    pub rise: u32,
    /// Failed checks in a row after which an endpoint fails.
    pub fall: u32,
    /// Maximum random addition to each interval, in percent of it.
    pub jitter: u32,
    /// Limit on the checks that start within a second, of all endpoints together.
    pub max_per_second: u32,
    /// The path that HTTP checks request, percent-encoded, with a leading slash.
    pub path: String,
}

impl Settings {
    /// Returns the settings with no more checks per second than descriptors allow.
    ///
    /// A check uses a descriptor for at most the timeout.
    #[must_use]
    pub fn within_descriptors(self) -> Self {
        let configured = self.max_per_second;
        let settings = self.within(DescriptorShare::Checks.current());
        let max_per_second = settings.max_per_second;
        if max_per_second < configured {
            tracing::warn!(
                configured,
                max_per_second,
                "the limit on open files allows fewer checks than checks.max-per-second"
            );
        }
        settings
    }

    fn within(mut self, open: usize) -> Self {
        let rate = open as u128 * 1_000_000 / self.timeout.as_micros().max(1);
        let rate = u32::try_from(rate).unwrap_or(u32::MAX).max(1);
        self.max_per_second = self.max_per_second.min(rate);
        self
    }

    /// Returns the time between two checks of an endpoint if there are this many.
    ///
    /// The limit per second stretches the interval.
    fn effective_interval(&self, targets: usize) -> Duration {
        let targets = u32::try_from(targets).unwrap_or(u32::MAX);
        self.interval.max(Duration::from_secs(1) * targets / self.max_per_second)
    }

    /// Returns the maximum time until an endpoint that stops responding fails.
    fn detection_time(&self, targets: usize) -> Duration {
        let interval = self.effective_interval(targets);
        (interval + interval * self.jitter / 100) * self.fall + self.timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The default settings.
    pub(in crate::checks) fn settings() -> Settings {
        Settings {
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            jitter: 10,
            max_per_second: 500,
            path: "/health".to_owned(),
        }
    }

    #[test]
    fn the_limit_per_second_stretches_the_interval() {
        let settings = Settings { max_per_second: 100, ..settings() };
        assert_eq!(settings.effective_interval(0), Duration::from_secs(2));
        assert_eq!(settings.effective_interval(200), Duration::from_secs(2));
        assert_eq!(settings.effective_interval(100_000), Duration::from_secs(1000));
        assert_eq!(settings.detection_time(1), Duration::from_millis(7600));
    }

    #[test]
    fn few_descriptors_limit_the_checks_per_second() {
        assert_eq!(settings().within(1_000_000).max_per_second, 500);
        assert_eq!(settings().within(128).max_per_second, 128);
        assert_eq!(settings().within(0).max_per_second, 1);
        let patient = Settings { timeout: Duration::from_secs(60), ..settings() };
        assert_eq!(patient.within(128).max_per_second, 2);
    }
}
