//! The keys of registries that are polled.

use std::time::Duration;

use crate::config::error::ConfigError;
use crate::config::key::Key;
use crate::config::layers::Layers;
use crate::config::values::{duration, number, one};
use crate::registry::PollingTuning;

/// Bounds of `poll-interval`.
const POLL_INTERVALS: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(3_600));

/// Upper bound of `max-requests`, per second.
const MAX_MAX_REQUESTS: usize = 10_000;

/// The keys with which one kind of registry limits its polling.
pub(super) struct PollingKeys {
    pub(super) interval: &'static Key,
    pub(super) max_requests: &'static Key,
}

impl PollingKeys {
    /// Reads the values of the keys.
    pub(super) fn read(
        &self,
        layers: &Layers,
        tuning: &mut PollingTuning,
    ) -> Result<(), ConfigError> {
        tuning.interval =
            one(layers, self.interval, |text| duration(text, POLL_INTERVALS.0, POLL_INTERVALS.1))?;
        tuning.max_requests =
            one(layers, self.max_requests, |text| number(text, MAX_MAX_REQUESTS))?;
        Ok(())
    }
}
