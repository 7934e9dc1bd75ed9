//! The scenarios: each runs one or more cases of the table.

use std::thread;
use std::time::{Duration, Instant};

use super::kind::{Inapplicable, Instance, Kind, Programs, Secret};
use super::run::{
    Run, has, is_gone, is_stale, is_stale_nxdomain, status, time_to_answer, wait_for_rejected,
    weights,
};
use super::support::dns::{self, Prober};
use super::support::files::Files;
use super::support::process::processor_time;
use super::support::svcdns::Svcdns;
use super::support::{SOON, eventually, seconds, throughout};
use super::table::{Times, shown};

/// Cases that run one after another with one store.
pub(crate) struct Scenario {
    /// The cases, as the table names them.
    pub(crate) cases: &'static [&'static str],
    /// Whether `make test` runs it, too.
    pub(crate) is_short: bool,
    /// Whether it runs alone in `make registries`, for its times.
    pub(crate) is_timed: bool,
    /// Runs the cases; fails the test if one fails.
    pub(crate) run: fn(&mut Run) -> Result<(), Inapplicable>,
}

const APPEARS: &str = "an instance appears";
const SECOND: &str = "a second instance appears";
const METADATA: &str = "its metadata changes";
const DEREGISTERED: &str = "it is deregistered";
const LAST: &str = "the last instance is deregistered";
const ODD_NAMES: &str = "odd names are served";
const DEATH: &str = "the program dies: its instance stays for";
const INVALID: &str = "invalid entries are listed, and change nothing for others";
const MANY_START: &str = "10,000 instances of 2,000 services: start to last answer";
const MANY_CHANGE: &str = "one change among them";
const MANY_IDLE: &str = "processor time in 10 idle seconds";
const MANY_REMOVED: &str = "all of them are removed";
const WRONG_SECRET: &str = "a wrong secret hides nothing else; corrected";
const ROTATED: &str = "the secret is rotated without losing a query";

/// Cases of an outage; `{}` says of which.
macro_rules! outage_cases {
    ($outage:literal) => {
        &[
            concat!($outage, ": answers are marked as stale after"),
            concat!($outage, ": the first change after it"),
            concat!($outage, ": answers are no longer marked after"),
            concat!($outage, ": an instance that died meanwhile stays for"),
        ]
    };
}

const BRIEF: &[&str] = outage_cases!("killed for 3 s");
const LONG: &[&str] = outage_cases!("killed for 20 s");
const WIPED: &[&str] = outage_cases!("killed for 3 s, and its data lost");
const LONG_WIPED: &[&str] = outage_cases!("killed for 20 s, and its data lost");
const STALLED: &[&str] = &[
    "stalled: answers are marked as stale after",
    "stalled beyond every time-out: the first change after it",
    "stalled beyond every time-out: answers are no longer marked after",
];

/// Every scenario, in the order of the table.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        cases: &[APPEARS, SECOND, METADATA, DEREGISTERED, LAST],
        is_short: true,
        is_timed: true,
        run: changes,
    },
    Scenario {
        cases: &[ODD_NAMES],
        is_short: true,
        is_timed: false,
        run: |run| {
            odd_names(run);
            Ok(())
        },
    },
    Scenario { cases: &[DEATH], is_short: true, is_timed: false, run: death },
    Scenario { cases: &[INVALID], is_short: true, is_timed: false, run: invalid },
    Scenario {
        cases: BRIEF,
        is_short: true,
        is_timed: false,
        run: |run| outage(run, BRIEF, seconds(3), AfterKill::SameData),
    },
    Scenario {
        cases: LONG,
        is_short: false,
        is_timed: false,
        run: |run| outage(run, LONG, seconds(20), AfterKill::SameData),
    },
    Scenario {
        cases: WIPED,
        is_short: true,
        is_timed: false,
        run: |run| outage(run, WIPED, seconds(3), AfterKill::NoData),
    },
    Scenario {
        cases: LONG_WIPED,
        is_short: false,
        is_timed: false,
        run: |run| outage(run, LONG_WIPED, seconds(20), AfterKill::NoData),
    },
    Scenario { cases: STALLED, is_short: false, is_timed: false, run: stall },
    Scenario { cases: &[WRONG_SECRET, ROTATED], is_short: true, is_timed: false, run: secrets },
    Scenario {
        cases: &[MANY_START, MANY_CHANGE, MANY_IDLE, MANY_REMOVED],
        is_short: false,
        is_timed: true,
        run: |run| {
            many(run);
            Ok(())
        },
    },
];

/// Returns the programs of a registry that can change.
fn programs(kind: &mut dyn Kind) -> &mut dyn Programs {
    kind.programs().expect("a registry that can change")
}

fn changes(run: &mut Run) -> Result<(), Inapplicable> {
    run.kind.programs()?;
    let stays = Instance::new("stays.svc", 1);
    run.kind.put(&stays);
    let server = run.serve();
    server.wait_for("stays.svc", &[&stays.address]);
    let prober = Prober::start(server.address, "stays.svc");
    let mut times = [(); 5].map(|()| Times::default());
    for round in 0..run.rounds {
        let [appears, second, metadata, deregistered, last] = &mut times;
        let base = format!("round-{round}");
        let name = format!("{base}.svc");
        let [one, two] = [1, 2].map(|last| Instance::new(&base, last));
        let heavy = two.weighing(1000 + round);
        let answers = |instances: &[&Instance]| has(server.address, &name, instances);
        run.time(appears, &base, |kind| kind.put(&one), || answers(&[&one]));
        run.time(second, &base, |kind| kind.put(&two), || answers(&[&one, &two]));
        let own_name = format!("10-0-0-2.{name}");
        let is_heavy = || weights(server.address, &own_name) == [heavy.weight];
        run.time(metadata, &base, |kind| kind.put(&heavy), is_heavy);
        run.time(deregistered, &base, |kind| programs(kind).remove(&two), || answers(&[&one]));
        run.time(
            last,
            &base,
            |kind| programs(kind).remove(&one),
            || is_gone(server.address, &name),
        );
        run.rest();
    }
    // Enough queries, however fast the changes were.
    thread::sleep(seconds(1));
    prober.expect_no_loss();
    for (case, times) in [APPEARS, SECOND, METADATA, DEREGISTERED, LAST].into_iter().zip(times) {
        run.passed(case, times.to_string());
    }
    server.stop();
    Ok(())
}

fn odd_names(run: &mut Run) {
    let long = "n".repeat(63);
    let names = [
        ("hello.svc", "hello.svc"),
        ("no-suffix", "no-suffix.svc"),
        ("Mixed-Case.SVC", "mixed-case.svc"),
        ("under_score", "under_score.svc"),
        ("several.labels.deep", "several.labels.deep.svc"),
        ("10-0-0-1", "10-0-0-1.svc"),
        ("0c9f2d6ab0a14a5fb1cd4a1f7a5a2d11", "0c9f2d6ab0a14a5fb1cd4a1f7a5a2d11.svc"),
        (&long, &format!("{long}.svc")),
    ];
    let instances: Vec<_> =
        (1..).zip(names).map(|(last, (name, _))| Instance::new(name, last)).collect();
    for instance in &instances {
        run.kind.put(instance);
    }
    let server = run.serve();
    for (instance, (_, name)) in instances.iter().zip(names) {
        server.wait_for(name, &[&instance.address]);
        server.wait_for(&name.to_uppercase(), &[&instance.address]);
    }
    run.passed(ODD_NAMES, "yes".to_owned());
    server.stop();
}

fn death(run: &mut Run) -> Result<(), Inapplicable> {
    run.kind.programs()?;
    let [lives, dies] = [1, 2].map(|last| Instance::new("hello.svc", last));
    let alone = Instance::new("alone.svc", 3);
    for instance in [&lives, &dies, &alone] {
        run.kind.put(instance);
    }
    let server = run.serve();
    server.wait_for("hello.svc", &[&lives.address, &dies.address]);
    server.wait_for("alone.svc", &[&alone.address]);
    let prober = Prober::start(server.address, "hello.svc");
    let start = Instant::now();
    run.kind.programs()?.let_die(&dies);
    run.kind.programs()?.let_die(&alone);
    let one = time_to_answer(start, || has(server.address, "hello.svc", &[&lives]));
    let other = time_to_answer(start, || is_gone(server.address, "alone.svc"));
    // Programs renew early enough that none is ever taken for dead.
    throughout("the living instance is served", Instant::now(), seconds(3), || {
        has(server.address, "hello.svc", &[&lives])
    });
    prober.expect_no_loss();
    run.passed(DEATH, shown(one.max(other)));
    server.stop();
    Ok(())
}

fn invalid(run: &mut Run) -> Result<(), Inapplicable> {
    run.kind.programs()?;
    let good = Instance::new("good.svc", 1);
    run.kind.put(&good);
    let mut server = run.serve();
    server.wait_for("good.svc", &[&good.address]);
    let prober = Prober::start(server.address, "good.svc");
    let mut shown = run.kind.programs()?.put_invalid();
    // Names that no kind can serve; the second would take over a name of the zone itself.
    for name in ["_tcp", "ns.svc", "*", &"x".repeat(64)] {
        run.kind.put(&Instance::new(name, 2));
        shown.push(name.to_owned());
    }
    let mut times = Times::default();
    let marker = Instance::new("marker.svc", 9);
    let is_answered = || has(server.address, "marker.svc", &[&marker]);
    run.time(&mut times, &marker.name, |kind| kind.put(&marker), is_answered);
    let text = wait_for_rejected(&server, &shown);
    assert!(!text.contains('\u{7}'), "ls --rejected prints control characters");
    assert!(!text.contains("good.svc/"), "a good entry is listed as rejected:\n{text}");
    assert_eq!(dns::dig_short(server.address, &["ns.svc"]), ["127.0.0.1"]);
    assert!(server.is_running(), "the server ended:\n{}", server.log());
    prober.expect_no_loss();
    run.passed(INVALID, format!("{} entries; the next change {times}", shown.len()));
    server.stop();
    Ok(())
}

/// What the store has after it was killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AfterKill {
    SameData,
    NoData,
}

/// Programs of an outage: so many that their common end counts as a mass removal.
const CROWD: u8 = 12;

/// Grace that svcdns gives to programs after a mass removal, its default.
const REMOVAL_GRACE: Duration = seconds(12);

/// Registers a crowd of instances of one service.
fn put_crowd(run: &mut Run) -> Vec<Instance> {
    let crowd: Vec<_> = (1..=CROWD).map(|last| Instance::new("crowd.svc", last)).collect();
    for instance in &crowd {
        run.kind.put(instance);
    }
    crowd
}

fn wait_for_all(server: &Svcdns, name: &str, instances: &[Instance]) {
    let instances: Vec<_> = instances.iter().collect();
    eventually(name, SOON, || has(server.address, name, &instances).then_some(()));
}

fn outage(
    run: &mut Run,
    cases: &[&'static str],
    pause: Duration,
    after_kill: AfterKill,
) -> Result<(), Inapplicable> {
    let facts = run.kind.store()?.facts();
    let crowd = put_crowd(run);
    let [registered, doomed, late] =
        [("registered.svc", 101), ("doomed.svc", 102), ("late.svc", 103)]
            .map(|(name, last)| Instance::new(name, last));
    run.kind.put(&doomed);
    let server = run.serve();
    let _registrant = run.register(&registered);
    wait_for_all(&server, "crowd.svc", &crowd);
    for instance in [&registered, &doomed] {
        server.wait_for(&instance.name, &[&instance.address]);
    }
    let probers = ["registered.svc", "crowd.svc"].map(|name| Prober::start(server.address, name));

    run.kind.programs()?.let_die(&doomed);
    let killed = Instant::now();
    match after_kill {
        AfterKill::SameData => run.kind.store()?.kill(),
        AfterKill::NoData => run.kind.store()?.wipe(),
    }
    let stale = time_to_answer(killed, || is_stale(server.address, "crowd.svc"));
    throughout("names are answered as before", Instant::now(), pause, || {
        has(server.address, "doomed.svc", &[&doomed])
            && is_stale(server.address, "registered.svc")
            && is_stale_nxdomain(server.address, "nothing.svc")
    });
    let starting = Instant::now();
    run.kind.store()?.start();
    let started = Instant::now();
    let mut next_change = Times::default();
    let is_answered = || has(server.address, "late.svc", &[&late]);
    run.time(&mut next_change, &late.name, |kind| kind.put(&late), is_answered);
    let fresh = time_to_answer(started, || !is_stale(server.address, "crowd.svc"));
    let doomed_time = time_to_answer(started, || is_gone(server.address, "doomed.svc"));
    let held = starting.elapsed();
    // Longer than any lease, age or check lives, and than anything is held.
    let longest = facts.expiry.max(REMOVAL_GRACE) + seconds(5);
    thread::sleep(longest.saturating_sub(started.elapsed()));
    let [registered_prober, crowd_prober] = probers;
    registered_prober.expect_no_loss();
    if after_kill == AfterKill::SameData || facts.programs_return_after_a_wipe {
        crowd_prober.expect_no_loss();
        wait_for_all(&server, "crowd.svc", &crowd);
    } else {
        eventually("the end of the crowd", SOON, || {
            is_gone(server.address, "crowd.svc").then_some(())
        });
    }
    if after_kill == AfterKill::NoData {
        assert!(held >= REMOVAL_GRACE, "held for {held:?} only");
    }
    let measured = [shown(stale), next_change.to_string(), shown(fresh), shown(doomed_time)];
    for (case, measured) in cases.iter().zip(measured) {
        run.passed(case, measured);
    }
    server.stop();
    Ok(())
}

fn stall(run: &mut Run) -> Result<(), Inapplicable> {
    let facts = run.kind.store()?.facts();
    let crowd = put_crowd(run);
    let registered = Instance::new("registered.svc", 101);
    let server = run.serve();
    let _registrant = run.register(&registered);
    wait_for_all(&server, "crowd.svc", &crowd);
    server.wait_for("registered.svc", &[&registered.address]);
    let prober = Prober::start(server.address, "crowd.svc");

    run.kind.store()?.stall();
    let stalled = Instant::now();
    let stale = time_to_answer(stalled, || is_stale(server.address, "crowd.svc"));
    let longest = (facts.longest_timeout + seconds(10)).max(facts.expiry + seconds(5));
    throughout("names are answered as before", stalled, longest, || {
        has(server.address, "registered.svc", &[&registered])
    });
    run.kind.store()?.resume();
    let resumed = Instant::now();
    let late = Instance::new("late.svc", 103);
    let mut next_change = Times::default();
    let is_answered = || has(server.address, "late.svc", &[&late]);
    run.time(&mut next_change, &late.name, |kind| kind.put(&late), is_answered);
    let fresh = time_to_answer(resumed, || !is_stale(server.address, "crowd.svc"));
    // What expired during the stall has come back.
    thread::sleep((REMOVAL_GRACE + seconds(5)).saturating_sub(resumed.elapsed()));
    wait_for_all(&server, "crowd.svc", &crowd);
    server.wait_for("registered.svc", &[&registered.address]);
    prober.expect_no_loss();
    let measured = [shown(stale), next_change.to_string(), shown(fresh)];
    for (case, measured) in STALLED.iter().zip(measured) {
        run.passed(case, measured);
    }
    server.stop();
    Ok(())
}

fn secrets(run: &mut Run) -> Result<(), Inapplicable> {
    let login = run.kind.login()?;
    login.require(Secret::First);
    Secret::Wrong.write(&login.file());
    let refusal = login.refusal();
    let address = run.kind.store()?.address();
    let good = Instance::new("good.svc", 1);
    run.kind.put(&good);
    let other = Files::new(&[("default/default/other.svc/latest/10.0.0.9:80", "{}")]);
    let server = run.serve_beside(&format!("[registry.other]\nurl = \"{}\"\n", other.url()));
    server.wait_for("other.svc", &["10.0.0.9"]);
    eventually("the refusal", SOON, || {
        let (connected, error) = status(&server);
        (!connected && error.contains(refusal) && error.contains(&address)).then_some(())
    });
    // Nothing is known of the registry, so no name is said not to exist.
    let unknown = dns::dig(server.address, &["good.svc"]);
    let is_marked = unknown.contains("status: SERVFAIL") || unknown.contains("EDE: 19 ");
    assert!(is_marked, "{unknown}");
    let written = Instant::now();
    Secret::First.write(&run.kind.login()?.file());
    let corrected = time_to_answer(written, || has(server.address, "good.svc", &[&good]));
    run.passed(WRONG_SECRET, shown(corrected));

    let probers = ["good.svc", "other.svc"].map(|name| Prober::start(server.address, name));
    run.kind.login()?.require(Secret::Second);
    let written = Instant::now();
    Secret::Second.write(&run.kind.login()?.file());
    let store = run.kind.store()?;
    store.kill();
    store.start();
    let later = Instance::new("later.svc", 2);
    run.kind.put(&later);
    let rotated = time_to_answer(written, || has(server.address, "later.svc", &[&later]));
    eventually("the end of the error", SOON, || {
        (status(&server) == (true, String::new())).then_some(())
    });
    for prober in probers {
        prober.expect_no_loss();
    }
    assert!(!server.log().contains(Secret::START), "a secret is in the log");
    run.passed(ROTATED, shown(rotated));
    server.stop();
    Ok(())
}

/// Services of [`many`].
const SERVICES: u16 = 2_000;

fn many(run: &mut Run) {
    let name = |service: u16| format!("service-{service}.svc");
    let instance = |service: u16, last: u8| Instance {
        address: format!("10.1.{}.{last}", service % 250),
        ..Instance::new(&name(service), last)
    };
    let of_service = |service| (1..=5).map(move |last| instance(service, last));
    let all: Vec<Instance> = (0..SERVICES).flat_map(of_service).collect();
    run.kind.put_many(&all);
    let start = Instant::now();
    let server = run.serve();
    for service in (0..SERVICES).step_by(97).chain([SERVICES - 1]) {
        let expected: Vec<_> = of_service(service).collect();
        let expected: Vec<_> = expected.iter().collect();
        time_to_answer(start, || has(server.address, &name(service), &expected));
    }
    let memory = server.resident_kib() / 1024;
    run.passed(MANY_START, format!("{}, {memory} MiB", shown(start.elapsed())));
    if let Some(reason) = run.kind.programs().err() {
        for case in [MANY_CHANGE, MANY_IDLE, MANY_REMOVED] {
            run.inapplicable(case, reason);
        }
        return;
    }

    let mut times = Times::default();
    for round in 0..run.rounds {
        let one = instance(round, 6);
        let is_answered = || {
            dns::addresses(server.address, &one.name).is_ok_and(|addresses| addresses.len() == 6)
        };
        run.time(&mut times, &one.name, |kind| kind.put(&one), is_answered);
        run.rest();
    }
    run.passed(MANY_CHANGE, times.to_string());

    let store = run.kind.store().ok().and_then(|store| store.pid());
    let before = [Some(server.pid()), store].map(|pid| pid.map(processor_time));
    thread::sleep(seconds(10));
    let after = [Some(server.pid()), store].map(|pid| pid.map(processor_time));
    let [ours, theirs] = [0, 1].map(|index| Some(after[index]?.saturating_sub(before[index]?)));
    let of_store = theirs.map_or(String::new(), |time| format!(", store {}", shown(time)));
    run.passed(MANY_IDLE, format!("svcdns {}{of_store}", shown(ours.unwrap_or_default())));

    for round in 0..run.rounds {
        programs(&mut *run.kind).remove(&instance(round, 6));
    }
    let removed = Instant::now();
    programs(&mut *run.kind).remove_many(&all);
    // Of a file registry, most of the time: each file is removed by a call of its own.
    let calls = removed.elapsed();
    for service in (0..SERVICES).step_by(97).chain([SERVICES - 1]) {
        time_to_answer(removed, || is_gone(server.address, &name(service)));
    }
    let text = format!("{} (the removal itself {})", shown(removed.elapsed()), shown(calls));
    run.passed(MANY_REMOVED, text);
    server.stop();
}
