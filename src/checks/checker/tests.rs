use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::time::Duration;

use super::*;
use crate::checks::tests::settings;

/// A checker with simulated time and targets.
struct Simulation {
    checker: Checker,
    monitor: Arc<CheckMonitor>,
    now: Instant,
    /// Failures of the targets' checks; the others pass.
    failures: BTreeMap<CheckTarget, CheckFailure>,
    /// Checks that time out, by the time when they end.
    pending: BTreeMap<(Instant, u64), StartedCheck>,
    started: u64,
    /// The targets that the verdicts so far leave out.
    left_out: BTreeSet<CheckTarget>,
}

const SECOND: Duration = Duration::from_secs(1);

impl Simulation {
    fn new(settings: Settings, targets: impl IntoIterator<Item = CheckTarget>) -> Self {
        let monitor = Arc::<CheckMonitor>::default();
        let mut simulation = Self {
            checker: Checker::new(settings, Arc::clone(&monitor)),
            monitor,
            now: Instant::now(),
            failures: BTreeMap::new(),
            pending: BTreeMap::new(),
            started: 0,
            left_out: BTreeSet::new(),
        };
        simulation.change(targets.into_iter().map(CheckChange::Wanted));
        simulation
    }

    fn change(&mut self, changes: impl IntoIterator<Item = CheckChange>) {
        self.checker.change(changes, self.now);
        self.take_verdicts();
    }

    /// Runs the checks until this much later, or until `stop`; returns the time that passed.
    fn run_until(&mut self, limit: Duration, stop: impl Fn(&Self) -> bool) -> Duration {
        let began = self.now;
        while !stop(self) {
            while let Some(check) = self.checker.start_next(self.now) {
                self.started += 1;
                match self.failures.get(&check.target) {
                    Some(CheckFailure::NoConnection | CheckFailure::NoResponse) => {
                        let end = self.now + self.checker.settings.timeout;
                        self.pending.insert((end, self.started), check);
                    }
                    Some(failure) => self.checker.record(check, Err(*failure), self.now),
                    None => self.checker.record(check, Ok(()), self.now),
                }
            }
            self.take_verdicts();
            let ends = self.pending.keys().next().map(|(end, _)| *end);
            let next = self.checker.wake().into_iter().chain(ends).min();
            let Some(next) = next.filter(|next| *next <= began + limit) else { break };
            if stop(self) {
                break;
            }
            self.now = next;
            while let Some(entry) = self.pending.first_entry().filter(|e| e.key().0 <= self.now) {
                let check = entry.remove();
                let failure = self.failures.get(&check.target).copied();
                self.checker.record(check, failure.map_or(Ok(()), Err), self.now);
            }
        }
        if !stop(self) {
            self.now = began + limit;
        }
        self.now - began
    }

    fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    fn take_verdicts(&mut self) {
        for CheckVerdict { target, fails } in self.checker.take_verdicts() {
            let changed =
                if fails { self.left_out.insert(target) } else { self.left_out.remove(&target) };
            assert!(changed, "a verdict that changes nothing: {target:?} {fails}");
        }
    }

    fn fail(&mut self, targets: &[CheckTarget], failure: CheckFailure) {
        self.failures.extend(targets.iter().map(|target| (*target, failure)));
    }

    fn in_burst(&self) -> bool {
        self.monitor.report().burst.is_some()
    }

    fn failing(&self) -> usize {
        self.monitor.report().failing.len()
    }
}

/// Returns targets at 10.0.x.y, one for each address.
fn targets(number: u32) -> Vec<CheckTarget> {
    (0..number)
        .map(|n| CheckTarget {
            address: std::net::Ipv4Addr::from_bits(0x0a00_0001 + n).into(),
            port: 80,
            probe: Probe::Tcp,
        })
        .collect()
}

#[test]
fn a_target_fails_and_passes_again_within_the_stated_times() {
    for _ in 0..20 {
        let targets = targets(10);
        let mut simulation = Simulation::new(settings(), targets.clone());
        simulation.run(10 * SECOND);
        assert!(simulation.left_out.is_empty());
        simulation.fail(&targets[..1], CheckFailure::NoResponse);
        let took = simulation.run_until(60 * SECOND, |simulation| !simulation.left_out.is_empty());
        assert!(took <= simulation.monitor.report().detection_time, "{took:?}");
        assert!(took >= 2 * 2 * SECOND, "not before the third failed check: {took:?}");
        assert_eq!(simulation.left_out, BTreeSet::from([targets[0]]));
        simulation.failures.clear();
        let took = simulation.run_until(60 * SECOND, |simulation| simulation.left_out.is_empty());
        // The second successful check.
        assert!(took <= Duration::from_millis(2 * 2200) + SECOND, "{took:?}");
        assert_eq!(simulation.failing(), 0);
    }
}

#[test]
fn a_target_that_flaps_keeps_its_verdict() {
    let targets = targets(3);
    let mut simulation = Simulation::new(settings(), targets.clone());
    simulation.run(5 * SECOND);
    // Two failed checks in a row at most: never three.
    let mut verdicts = 0;
    for round in 0..50 {
        let fails = round % 3 != 2;
        simulation.failures.clear();
        if fails {
            simulation.fail(&targets[..1], CheckFailure::Refused);
        }
        let checks = simulation.checker.targets[&targets[0]].turn;
        simulation.run_until(5 * SECOND, |simulation| {
            simulation.checker.targets[&targets[0]].turn != checks
        });
        verdicts += simulation.left_out.len();
    }
    assert_eq!(verdicts, 0);
}

#[test]
fn new_targets_pass_until_they_have_failed_often_enough() {
    let targets = targets(5);
    let mut simulation = Simulation::new(settings(), targets.clone());
    simulation.fail(&targets[..1], CheckFailure::Refused);
    let took = simulation.run_until(60 * SECOND, |simulation| !simulation.left_out.is_empty());
    assert!(took >= 2 * 2 * SECOND, "{took:?}");
    // A registration that returns is new.
    simulation.change([CheckChange::Unwanted(targets[0]), CheckChange::Wanted(targets[0])]);
    assert!(simulation.left_out.is_empty());
    assert_eq!(simulation.failing(), 0);
}

#[test]
fn results_of_targets_that_are_gone_are_ignored() {
    let targets = targets(1);
    let mut simulation = Simulation::new(Settings { fall: 1, ..settings() }, targets.clone());
    simulation.fail(&targets, CheckFailure::NoConnection);
    simulation.run_until(5 * SECOND, |simulation| !simulation.pending.is_empty());
    simulation.change([CheckChange::Unwanted(targets[0])]);
    simulation.run(5 * SECOND);
    assert!(simulation.left_out.is_empty());
    assert!(simulation.checker.targets.is_empty());
    assert_eq!(simulation.checker.wake(), None);
    // Nor does the result of an earlier registration count for a new one.
    simulation.change([CheckChange::Wanted(targets[0])]);
    simulation.run_until(5 * SECOND, |simulation| !simulation.pending.is_empty());
    simulation.change([CheckChange::Unwanted(targets[0]), CheckChange::Wanted(targets[0])]);
    let turn = simulation.checker.targets[&targets[0]].turn;
    while simulation.checker.targets[&targets[0]].turn == turn && !simulation.pending.is_empty() {
        simulation.run(Duration::from_millis(10));
    }
    assert!(simulation.left_out.is_empty());
}

#[test]
fn failures_of_this_machine_say_nothing_about_a_target() {
    let targets = targets(4);
    let mut simulation = Simulation::new(settings(), targets.clone());
    simulation.run(5 * SECOND);
    simulation.fail(&targets[..1], CheckFailure::Refused);
    simulation.run(20 * SECOND);
    assert_eq!(simulation.left_out.len(), 1);
    // There is no route any more: neither do further targets fail, nor does this one pass.
    simulation.fail(&targets, CheckFailure::Local(ErrorKind::NetworkUnreachable));
    simulation.run(60 * SECOND);
    assert_eq!(simulation.left_out.len(), 1);
    assert!(!simulation.in_burst());
}

#[test]
fn a_burst_of_failures_changes_nothing() {
    for failure in [CheckFailure::NoConnection, CheckFailure::Unreachable, CheckFailure::Refused] {
        for number in [3, 10, 500] {
            let targets = targets(number);
            let mut simulation = Simulation::new(settings(), targets.clone());
            simulation.run(10 * SECOND);
            simulation.fail(&targets, failure);
            // At any time, not only at the end.
            simulation.run_until(300 * SECOND, |simulation| !simulation.left_out.is_empty());
            assert!(simulation.left_out.is_empty(), "{failure} of {number}");
            assert!(simulation.in_burst());
            assert_eq!(simulation.failing(), targets.len());
            simulation.failures.clear();
            simulation.run_until(60 * SECOND, |simulation| {
                !simulation.left_out.is_empty() || !simulation.in_burst()
            });
            assert!(!simulation.in_burst(), "{failure} of {number}");
            simulation.run_until(300 * SECOND, |simulation| !simulation.left_out.is_empty());
            assert!(simulation.left_out.is_empty(), "{failure} of {number}");
            assert_eq!(simulation.failing(), 0);
        }
    }
}

#[test]
fn a_burst_gives_back_what_it_had_left_out() {
    // With `fall = 1`, the first targets are left out before the burst is recognizable.
    let targets = targets(100);
    let mut simulation = Simulation::new(Settings { fall: 1, ..settings() }, targets.clone());
    simulation.run(10 * SECOND);
    simulation.fail(&targets[..1], CheckFailure::Refused);
    simulation.run(60 * SECOND);
    assert_eq!(simulation.left_out, BTreeSet::from([targets[0]]));
    simulation.fail(&targets, CheckFailure::Refused);
    simulation.run_until(60 * SECOND, |simulation| simulation.left_out.len() > 1);
    simulation.run_until(60 * SECOND, Simulation::in_burst);
    // The target that failed long before remains left out.
    assert_eq!(simulation.left_out, BTreeSet::from([targets[0]]));
    simulation.failures.clear();
    simulation.run(60 * SECOND);
    assert!(!simulation.in_burst());
    assert!(simulation.left_out.is_empty());
}

#[test]
fn a_machine_that_fails_is_no_burst() {
    // All but two targets are at one address.
    let mut targets = targets(3);
    for port in 81..100 {
        targets.push(CheckTarget { port, ..targets[0] });
    }
    let mut simulation = Simulation::new(settings(), targets.clone());
    simulation.run(10 * SECOND);
    let machine: Vec<_> =
        targets.iter().filter(|target| target.address == targets[0].address).copied().collect();
    simulation.fail(&machine, CheckFailure::NoConnection);
    simulation.run(20 * SECOND);
    assert!(!simulation.in_burst());
    assert_eq!(simulation.left_out, machine.into_iter().collect());
}

#[test]
fn targets_that_fail_one_after_the_other_are_no_burst() {
    let targets = targets(20);
    let mut simulation = Simulation::new(settings(), targets.clone());
    simulation.run(10 * SECOND);
    for number in 1..=19 {
        simulation.fail(&targets[..number], CheckFailure::Refused);
        simulation.run(30 * SECOND);
        assert_eq!(simulation.left_out.len(), number);
        assert!(!simulation.in_burst(), "{number}");
    }
}

#[test]
fn targets_that_fail_after_a_burst_are_left_out() {
    let targets = targets(20);
    let mut simulation = Simulation::new(settings(), targets.clone());
    simulation.run(10 * SECOND);
    simulation.fail(&targets, CheckFailure::NoConnection);
    simulation.run(60 * SECOND);
    assert!(simulation.in_burst());
    // One of them does not return with the network.
    simulation.failures.retain(|target, _| *target == targets[7]);
    simulation.run(30 * SECOND);
    assert_eq!(simulation.left_out, BTreeSet::from([targets[7]]));
}

#[test]
fn a_burst_ends_when_its_targets_are_gone() {
    let targets = targets(10);
    let mut simulation = Simulation::new(settings(), targets.clone());
    simulation.run(5 * SECOND);
    simulation.fail(&targets[..8], CheckFailure::Refused);
    simulation.run(30 * SECOND);
    assert!(simulation.in_burst() && simulation.left_out.is_empty());
    // The registry drops them at the end of their leases.
    simulation.change(targets[..8].iter().copied().map(CheckChange::Unwanted));
    assert!(!simulation.in_burst());
    simulation.fail(&targets[8..9], CheckFailure::Refused);
    simulation.run(30 * SECOND);
    assert_eq!(simulation.left_out.len(), 1);
}

#[test]
fn loopback_targets_neither_make_a_burst_nor_are_kept_by_one() {
    let mut targets = targets(4);
    for port in 1..=20 {
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        targets.push(CheckTarget { address, port, probe: Probe::Tcp });
    }
    let mut simulation = Simulation::new(settings(), targets.clone());
    simulation.run(10 * SECOND);
    // The network is gone, while most targets pass.
    simulation.fail(&targets[..4], CheckFailure::NoConnection);
    simulation.run(30 * SECOND);
    assert!(simulation.in_burst() && simulation.left_out.is_empty());
    simulation.fail(&targets[4..5], CheckFailure::Refused);
    simulation.run(30 * SECOND);
    assert_eq!(simulation.left_out, BTreeSet::from([targets[4]]));
    simulation.failures.clear();
    simulation.run(30 * SECOND);
    assert!(!simulation.in_burst() && simulation.left_out.is_empty());
}

#[test]
fn the_limit_per_second_holds_for_all_targets_and_stretches_their_intervals_alike() {
    let settings = Settings { max_per_second: 100, ..settings() };
    let targets = targets(100_000);
    let mut simulation = Simulation::new(settings, targets.clone());
    assert!(simulation.monitor.report().stretched);
    simulation.run(10 * SECOND);
    assert!((990..=1010).contains(&simulation.started), "{} checks", simulation.started);
    // Each target is checked once before any is checked twice.
    let mut checked = BTreeSet::new();
    simulation.started = 0;
    simulation.run(980 * SECOND);
    for (target, watched) in &simulation.checker.targets {
        if watched.passes > 0 {
            assert_eq!(watched.passes, 1);
            checked.insert(*target);
        }
    }
    assert!((98_500..=99_500).contains(&checked.len()), "{} checked", checked.len());
    // Targets that are gone leave nothing behind.
    simulation.change(targets[10..].iter().copied().map(CheckChange::Unwanted));
    assert_eq!(simulation.checker.targets.len(), 10);
    assert!(!simulation.monitor.report().stretched);
    simulation.started = 0;
    simulation.run(10 * SECOND);
    assert!((40..=60).contains(&simulation.started), "{} checks of 10", simulation.started);
}

#[test]
fn a_burst_is_recognized_although_the_interval_is_stretched() {
    let settings = Settings { max_per_second: 10, ..settings() };
    let targets = targets(1000);
    let mut simulation = Simulation::new(settings, targets.clone());
    simulation.run(200 * SECOND);
    simulation.fail(&targets, CheckFailure::NoConnection);
    simulation.run_until(1000 * SECOND, |simulation| !simulation.left_out.is_empty());
    assert!(simulation.left_out.is_empty() && simulation.in_burst());
}
