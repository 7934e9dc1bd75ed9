//! The order and the pace of the checks.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Settings;
use crate::service::CheckTarget;

/// Maximum time for which unused checks of the limit per second are kept.
///
/// Timers have a granularity of a millisecond, and the scheduler may run late.
const MAX_CATCH_UP: Duration = Duration::from_millis(20);

/// The times of the next checks, with the limit per second.
///
/// The check that is due first starts first. If there are too many, each starts late, and all
/// intervals stretch alike.
#[derive(Debug)]
pub(super) struct CheckSchedule {
    interval: Duration,
    jitter: Duration,
    /// Minimum time between the starts of two checks.
    gap: Duration,
    /// The next check may not start before this time.
    free: Option<Instant>,
    due: BTreeMap<Turn, CheckTarget>,
    serial: u64,
}

/// The place of a check in the schedule: its time, and a unique number.
pub(super) type Turn = (Instant, u64);

impl CheckSchedule {
    /// Creates an empty schedule.
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            interval: settings.interval,
            jitter: settings.interval * settings.jitter / 100,
            gap: Duration::from_secs(1) / settings.max_per_second.max(1),
            free: None,
            due: BTreeMap::new(),
            serial: 0,
        }
    }

    /// Adds the first check of a target, at a random time within the interval.
    ///
    /// So the checks of targets that were added together are spread evenly.
    pub(super) fn add(&mut self, target: CheckTarget, now: Instant) -> Turn {
        self.insert(target, now + self.interval.mul_f64(fastrand::f64()))
    }

    /// Adds the next check of a target whose check starts now.
    pub(super) fn repeat(&mut self, target: CheckTarget, now: Instant) -> Turn {
        self.insert(target, now + self.interval + self.jitter.mul_f64(fastrand::f64()))
    }

    fn insert(&mut self, target: CheckTarget, at: Instant) -> Turn {
        self.serial += 1;
        let turn = (at, self.serial);
        self.due.insert(turn, target);
        turn
    }

    /// Removes a check.
    pub(super) fn remove(&mut self, turn: Turn) {
        self.due.remove(&turn);
    }

    /// Returns the target whose check may start now, and removes its turn.
    pub(super) fn next(&mut self, now: Instant) -> Option<CheckTarget> {
        let ((at, _), _) = self.due.first_key_value()?;
        if *at > now || self.free.is_some_and(|free| free > now) {
            return None;
        }
        let earliest = now.checked_sub(MAX_CATCH_UP).unwrap_or(now);
        self.free = Some(self.free.map_or(now, |free| free.max(earliest)) + self.gap);
        self.due.pop_first().map(|(_, target)| target)
    }

    /// Returns when the next check may start.
    pub(super) fn wake(&self) -> Option<Instant> {
        let ((at, _), _) = self.due.first_key_value()?;
        Some(self.free.map_or(*at, |free| free.max(*at)))
    }
}
