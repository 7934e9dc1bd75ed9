//! The battery: cases that every kind of registry passes against its real store.
//!
//! A server of the real program follows the store, and every case is judged by its answers over
//! UDP. The table of results has the times from a change to its answer. `make test` runs the short
//! form, `make registries` everything. `BATTERY=etcd:` or `BATTERY="file: odd names"` runs only the
//! cases whose `KIND: CASE` contains the text.
//!
//! A new kind is one file that implements [`kind::ServedKind`], or [`kind::Kind`] if some cases do
//! not apply to it, and a line in [`KINDS`].
#![cfg(feature = "zookeeper")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "prints its progress and results")]

mod cases;
mod consul;
mod etcd;
mod file;
mod kind;
mod nacos;
mod polaris;
mod run;
mod statics;
#[path = "../support/mod.rs"]
mod support;
mod table;
mod zookeeper;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::{env, thread};

use cases::{SCENARIOS, Scenario};
use kind::Kind;
use run::Run;
use support::zookeeper::Release;
use table::{Cell, Table};
use zookeeper::ZooKeeperKind;

/// Starts the store of a kind; `None` if this machine has none.
type StartStore = fn() -> Option<Box<dyn Kind>>;

/// Each kind by the name of its column.
const KINDS: &[(&str, StartStore)] = &[
    ("etcd", || Some(Box::new(etcd::EtcdKind::start()))),
    ("file", || Some(Box::new(file::FileKind::start()))),
    ("static", || Some(Box::<statics::StaticKind>::default())),
    ("Consul", || Some(Box::new(consul::ConsulKind::start()?))),
    ("ZooKeeper 3.8", || Some(Box::new(ZooKeeperKind::start(Release::Debian)?))),
    ("ZooKeeper 3.9", || Some(Box::new(ZooKeeperKind::start(Release::Fetched("3.9.5"))?))),
    // Has no recursive watches.
    ("ZooKeeper 3.5", || Some(Box::new(ZooKeeperKind::start(Release::Fetched("3.5.10"))?))),
    ("Nacos (recordings)", || Some(Box::new(nacos::NacosKind::start()))),
    ("Polaris (recordings)", || Some(Box::new(polaris::PolarisKind::start()))),
];

/// Kinds that only the whole battery runs with: other releases of a kind above.
const OTHER_RELEASES: [&str; 2] = ["ZooKeeper 3.9", "ZooKeeper 3.5"];

/// Scenarios that run at once; most of the time they wait.
const THREADS: usize = 12;

/// A scenario with one kind.
struct Job {
    scenario: &'static Scenario,
    name: &'static str,
    start: StartStore,
}

#[test]
fn every_kind_of_registry_passes_the_short_battery() {
    let mut jobs = jobs(|scenario| scenario.is_short);
    jobs.retain(|job| !OTHER_RELEASES.contains(&job.name));
    run_battery(&jobs, &[], 1);
}

#[test]
#[ignore = "takes minutes: make registries"]
fn every_kind_of_registry_passes_the_whole_battery() {
    let (timed, others) = (jobs(|scenario| scenario.is_timed), jobs(|scenario| !scenario.is_timed));
    run_battery(&others, &timed, 7);
}

/// Returns the jobs of these scenarios that the environment selects.
fn jobs(is_wanted: impl Fn(&Scenario) -> bool) -> Vec<Job> {
    let selected = env::var("BATTERY").unwrap_or_default();
    let scenarios = SCENARIOS.iter().filter(|scenario| is_wanted(scenario));
    let jobs = scenarios.flat_map(|scenario| {
        KINDS.iter().map(move |(name, start)| Job { scenario, name, start: *start })
    });
    jobs.filter(|job| job.keys().any(|(case, kind)| format!("{kind}: {case}").contains(&selected)))
        .collect()
}

impl Job {
    /// Returns the cells of the table that the job fills.
    fn keys(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let name = self.name;
        self.scenario.cases.iter().map(move |case| (*case, name))
    }

    /// Runs the scenario; a panic is a failure of the cases without a result.
    fn run(&self, rounds: u16, table: &Table) {
        for (case, kind) in self.keys() {
            table.set(case, kind, Cell::Failed);
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let kind = (self.start)().ok_or("its server is not installed here")?;
            (self.scenario.run)(&mut Run::new(self.name, kind, rounds, table))
        }));
        if let Ok(Err(reason)) = outcome {
            for (case, kind) in self.keys() {
                table.set(case, kind, Cell::Inapplicable(reason));
            }
        }
    }
}

/// Runs jobs one by one, then others at once; prints the table and fails if a case failed.
fn run_battery(at_once: &[Job], one_by_one: &[Job], rounds: u16) {
    let table = Table::default();
    for job in one_by_one {
        job.run(rounds, &table);
    }
    let queue = Mutex::new(at_once.iter().collect::<VecDeque<_>>());
    let next = || queue.lock().unwrap().pop_front();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(job) = next() {
                    job.run(rounds, &table);
                }
            });
        }
    });
    let keys: Vec<_> = one_by_one.iter().chain(at_once).flat_map(Job::keys).collect();
    let is_row = |case: &&str| keys.iter().any(|(selected, _)| selected == case);
    let is_column = |kind: &&str| keys.iter().any(|(_, selected)| selected == kind);
    let cases = SCENARIOS.iter().flat_map(|scenario| scenario.cases).copied();
    let kinds = KINDS.iter().map(|(name, _)| *name);
    let (cases, kinds): (Vec<_>, Vec<_>) =
        (cases.filter(is_row).collect(), kinds.filter(is_column).collect());
    println!("\n{}", table.markdown(&cases, &kinds));
    let failures = table.failures();
    assert!(!keys.is_empty(), "BATTERY selects no case");
    assert!(failures.is_empty(), "failed:\n{}", failures.join("\n"));
}
