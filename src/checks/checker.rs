//! Decisions: which check starts when, and which endpoints fail.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::burst::{BurstChange, BurstDetector, Standing};
use super::probe::HttpScheme;
use super::schedule::{CheckSchedule, Turn};
use super::{CheckFailure, CheckMonitor, FailingEndpoint, Settings};
use crate::service::{CheckChange, CheckTarget, CheckVerdict, Probe};

/// The targets with the results of their checks.
///
/// Verdicts change only when a target has failed or passed often enough, so readers of the verdicts
/// do no work for a single check.
#[derive(Debug)]
pub(super) struct Checker {
    settings: Settings,
    monitor: Arc<CheckMonitor>,
    schedule: CheckSchedule,
    targets: HashMap<CheckTarget, WatchedTarget, RandomState>,
    burst: BurstDetector<StartedCheck>,
    /// Number of targets checked with HTTP.
    http: usize,
    /// Number of targets wanted so far.
    wanted: u64,
    verdicts: Vec<CheckVerdict>,
}

/// A target with the results of its latest checks.
#[derive(Debug)]
struct WatchedTarget {
    /// Unique number of the request to check the target.
    request: u64,
    /// The next check.
    turn: Turn,
    /// The scheme of the next check, if it is an HTTP check.
    scheme: HttpScheme,
    standing: Standing,
    /// Successful checks since the last failed one.
    passes: u32,
    /// Failed checks since the last successful one.
    failures: u32,
    /// Time of the first of `failures`.
    began: Instant,
    /// Whether the target failed often enough, and has not passed often enough since.
    fails: bool,
    /// Whether the latest verdict says so; not during a burst.
    left_out: bool,
}

/// A check that has started.
#[derive(Clone, Copy, Debug)]
pub(super) struct StartedCheck {
    pub(super) target: CheckTarget,
    /// The scheme of an HTTP check; after the check, that of the next one.
    pub(super) scheme: HttpScheme,
    /// [`WatchedTarget::request`].
    request: u64,
}

impl Checker {
    /// Creates a checker without targets.
    pub(super) fn new(settings: Settings, monitor: Arc<CheckMonitor>) -> Self {
        let checker = Self {
            schedule: CheckSchedule::new(&settings),
            settings,
            monitor,
            targets: HashMap::default(),
            burst: BurstDetector::default(),
            http: 0,
            wanted: 0,
            verdicts: Vec::new(),
        };
        checker.report_targets();
        checker
    }

    /// Adds and removes targets.
    pub(super) fn change(&mut self, changes: impl IntoIterator<Item = CheckChange>, now: Instant) {
        for change in changes {
            match change {
                CheckChange::Wanted(target) => self.add(target, now),
                CheckChange::Unwanted(target) => self.remove(target),
            }
        }
        self.update_burst(now);
        self.report_targets();
    }

    fn add(&mut self, target: CheckTarget, now: Instant) {
        self.remove(target);
        self.wanted += 1;
        self.http += usize::from(target.probe == Probe::Http);
        let watched = WatchedTarget {
            request: self.wanted,
            turn: self.schedule.add(target, now),
            scheme: HttpScheme::default(),
            standing: Standing::Unknown,
            passes: 0,
            failures: 0,
            began: now,
            fails: false,
            left_out: false,
        };
        self.targets.insert(target, watched);
    }

    fn remove(&mut self, target: CheckTarget) {
        let Some(mut watched) = self.targets.remove(&target) else { return };
        self.http -= usize::from(target.probe == Probe::Http);
        self.schedule.remove(watched.turn);
        self.burst.change(&mut watched.standing, Standing::Unknown, target.address);
        if watched.fails {
            self.monitor.report().failing.remove(&target);
        }
        if watched.left_out {
            // The receiver of the verdicts may want the target again before it has this one's.
            self.verdicts.push(CheckVerdict { target, fails: false });
        }
    }

    /// Returns the check to start now, if one is due and the limit per second allows it.
    pub(super) fn start_next(&mut self, now: Instant) -> Option<StartedCheck> {
        let target = self.schedule.next(now)?;
        let turn = self.schedule.repeat(target, now);
        let watched = self.targets.get_mut(&target)?;
        watched.turn = turn;
        Some(StartedCheck { target, scheme: watched.scheme, request: watched.request })
    }

    /// Returns when the next check may start.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.schedule.wake()
    }

    /// Records the result of a check.
    ///
    /// Ignored if the target is no longer wanted, or if this machine could not check it.
    pub(super) fn record(
        &mut self,
        check: StartedCheck,
        result: Result<(), CheckFailure>,
        now: Instant,
    ) {
        let target = check.target;
        let is_same = |watched: &&mut WatchedTarget| watched.request == check.request;
        let Some(watched) = self.targets.get_mut(&target).filter(is_same) else { return };
        watched.scheme = check.scheme;
        let is_loopback = target.address.to_canonical().is_loopback();
        match result {
            Ok(()) => {
                watched.failures = 0;
                watched.passes = watched.passes.saturating_add(1);
                if !is_loopback {
                    self.burst.change(&mut watched.standing, Standing::Passing, target.address);
                }
                if watched.fails && watched.passes >= self.settings.rise {
                    watched.fails = false;
                    self.monitor.report().failing.remove(&target);
                    if std::mem::take(&mut watched.left_out) {
                        self.verdicts.push(CheckVerdict { target, fails: false });
                    }
                }
            }
            Err(failure) if failure.is_local() => {}
            Err(failure) => {
                watched.passes = 0;
                watched.failures = watched.failures.saturating_add(1);
                if watched.failures == 1 {
                    watched.began = now;
                    if !is_loopback {
                        self.burst.change(
                            &mut watched.standing,
                            Standing::NewlyFailing,
                            target.address,
                        );
                        self.burst.begin_to_fail(check, now);
                    }
                }
                if watched.fails || watched.failures >= self.settings.fall {
                    let since = watched.began.into_std();
                    let mut report = self.monitor.report();
                    let known =
                        report.failing.entry(target).or_insert(FailingEndpoint { failure, since });
                    known.failure = failure;
                    let begins = !std::mem::replace(&mut watched.fails, true);
                    if begins && (is_loopback || self.burst.since.is_none()) {
                        watched.left_out = true;
                        self.verdicts.push(CheckVerdict { target, fails: true });
                    }
                }
            }
        }
        self.update_burst(now);
    }

    /// Takes the verdicts since the last call.
    pub(super) fn take_verdicts(&mut self) -> Vec<CheckVerdict> {
        std::mem::take(&mut self.verdicts)
    }

    /// Begins or ends a burst if the latest results say so.
    fn update_burst(&mut self, now: Instant) {
        let window = self.settings.detection_time(self.targets.len());
        while let Some((began, check)) = self.burst.expire(window, now) {
            let Some(watched) = self.targets.get_mut(&check.target) else { continue };
            let is_same = watched.request == check.request && watched.began == began;
            if is_same && watched.standing == Standing::NewlyFailing {
                let address = check.target.address;
                self.burst.change(&mut watched.standing, Standing::Failing, address);
            }
        }
        let Some(change) = self.burst.update(now) else { return };
        let mut report = self.monitor.report();
        report.burst = self.burst.since.map(Instant::into_std);
        for (target, watched) in &mut self.targets {
            if watched.standing != Standing::NewlyFailing {
                continue;
            }
            if std::mem::take(&mut watched.left_out) {
                self.verdicts.push(CheckVerdict { target: *target, fails: false });
            }
            if change == BurstChange::Ends {
                // Failures during the burst say nothing about the target.
                self.burst.change(&mut watched.standing, Standing::Unknown, target.address);
                (watched.fails, watched.failures) = (false, 0);
                report.failing.remove(target);
            }
        }
        match change {
            BurstChange::Begins => tracing::warn!(
                "most checks fail at once, perhaps because of this machine's network: no further \
                 instance is left out until most pass again"
            ),
            BurstChange::Ends => tracing::info!("most checks pass again"),
        }
    }

    /// Reports the number of targets and the interval, and logs when that is stretched.
    fn report_targets(&self) {
        let targets = self.targets.len();
        let interval = self.settings.effective_interval(targets);
        let mut report = self.monitor.report();
        (report.tcp, report.http) = (targets - self.http, self.http);
        report.interval = interval;
        report.detection_time = self.settings.detection_time(targets);
        let stretched = interval > self.settings.interval;
        if stretched && !report.stretched {
            tracing::warn!(
                targets,
                max_per_second = self.settings.max_per_second,
                ?interval,
                "too many endpoints to check each in the configured interval: the interval is \
                 longer (checks.max-per-second)"
            );
        }
        report.stretched = stretched;
    }
}

#[cfg(test)]
mod tests;
