//! Benchmark of responses during a storm of changes.
//!
//! Measures the CPU time of the answering thread per response, without changes and with
//! 10,000 changes per second. The program prints figures and asserts nothing about them, except
//! that every response is right; `docs/performance.md` explains them. `cargo bench --bench storm`
//! measures; `-- --short` only shows that the program works. `-- --scrape` measures response times
//! while the metrics page is read instead.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program that prints its results and ends at the first error"
)]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "figures are rounded for people"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../content.rs"]
mod content;
mod feeder;
#[path = "../figures.rs"]
mod figures;
mod load;
#[path = "../reading.rs"]
mod reading;
mod scrape;
mod serving;
#[path = "../../support/mod.rs"]
mod support;

use std::env;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::cores;
use content::{Shape, Store};
use feeder::Publications;
use figures::Spread;
use load::{Load, LoadResult};
use reading::{Aim, Reading};
use serving::InProcessServer;

/// The extent of a run.
struct Scale {
    services: usize,
    /// Rounds, each with every load without and with the storm.
    rounds: usize,
    /// Duration of a load.
    period: Duration,
    /// Changes per second.
    changes: u32,
}

const FULL: Scale =
    Scale { services: 10_000, rounds: 9, period: Duration::from_secs(2), changes: 10_000 };
const SHORT: Scale =
    Scale { services: 300, rounds: 1, period: Duration::from_millis(300), changes: 500 };

/// Instances of each service.
const INSTANCES: usize = 3;

/// The loads; the aim is judged by the first.
const LOADS: [(&str, Load); 2] = [
    ("bursts of 64, 50,000 queries per second", Load { lanes: 1, rate: Some(50_000) }),
    ("128 queries in flight", Load { lanes: 2, rate: None }),
];

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--load") {
        return load::send(&arguments[at + 1..]);
    }
    let is_given = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let is_short = is_given("--short");
    if is_given("--scrape") {
        scrape::run(if is_short { &scrape::SHORT } else { &scrape::FULL });
    } else {
        run(if is_short { &SHORT } else { &FULL });
    }
}

fn run(scale: &Scale) {
    let begun = Instant::now();
    let (core, other) = cores::cores();
    // Later threads inherit this core; the server's are moved to the other.
    cores::pin(cores::SELF, other);
    let shape = Shape { services: scale.services, instances: INSTANCES };
    let mut store = Store::of(shape);
    let server = InProcessServer::start(&store.answerer, core);
    println!("{}", figures::machine());
    println!(
        "{} services of {INSTANCES} instances, A queries over UDP; one thread answers on core \
         {core}, the load (a separate process) and the publisher run on core {other}",
        scale.services
    );

    let mut measured: [Vec<Round>; 2] = Default::default();
    let mut published: [Publications; 2] = Default::default();
    for round in 0..scale.rounds {
        for (((_, load), rounds), publications) in
            LOADS.iter().zip(&mut measured).zip(&mut published)
        {
            // The two states take turns in being first.
            let storm_first = round % 2 == 1;
            let mut of = [storm_first, !storm_first].map(|storm| {
                let rate = if storm { scale.changes } else { 0 };
                measure(&server, *load, shape, scale.period, &mut store, rate, publications)
            });
            if storm_first {
                of.swap(0, 1);
            }
            let [quiet, storm] = of;
            rounds.push(Round { quiet, storm });
        }
    }

    println!(
        "\nProcessor time of the answering thread, µs per response      quiet    storm   ratio  \
         (low to high)  responses/s     responses per wake-up"
    );
    for ((name, _), rounds) in LOADS.iter().zip(&measured) {
        print(name, rounds);
    }
    println!("ratio: the median of all rounds, with the lowest and the highest");
    let deciding: Vec<Reading> =
        measured[0].iter().map(|round| Reading::exact(round.ratio())).collect();
    println!(
        "{}",
        Aim::AtMost(1.1).line(
            "processor time with the storm over that without, first row",
            Reading::median(&deciding)
        )
    );
    println!("{}", reading::note());
    for ((name, _), publications) in LOADS.iter().zip(&published) {
        publications.print(name, scale.changes);
    }
    println!(
        "\nMedians of {} rounds of {:.1} s; the whole run took {:.0} s; load average now {}",
        scale.rounds,
        scale.period.as_secs_f64(),
        begun.elapsed().as_secs_f64(),
        figures::load_average()
    );
}

/// Figures of one load.
struct StormCost {
    /// Processor time per response, in microseconds.
    each: f64,
    /// Responses per second.
    rate: f64,
    /// Responses per wake-up of the thread.
    per_wake_up: f64,
}

/// Figures of a load without and with the storm.
struct Round {
    quiet: StormCost,
    storm: StormCost,
}

impl Round {
    /// Returns the CPU time per response with the storm, over that without.
    fn ratio(&self) -> f64 {
        self.storm.each / self.quiet.each
    }
}

/// Runs a load while `rate` changes per second are published.
fn measure(
    server: &InProcessServer,
    load: Load,
    shape: Shape,
    period: Duration,
    store: &mut Store,
    rate: u32,
    publications: &mut Publications,
) -> StormCost {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let feeder = (rate > 0)
            .then(|| scope.spawn(|| feeder::feed(store, shape, rate, &stop, publications)));
        let (before, waits) = server.spent();
        let LoadResult { right, failed, elapsed, .. } =
            load::run(load, server.address, shape, period);
        let (after, waits_after) = server.spent();
        stop.store(true, Ordering::Relaxed);
        if let Some(feeder) = feeder {
            feeder.join().unwrap();
        }
        assert!(right > 0 && failed == 0, "{right} right responses, {failed} wrong or missing");
        StormCost {
            each: (after.as_secs_f64() - before.as_secs_f64()) * 1e6 / right as f64,
            rate: right as f64 / elapsed.as_secs_f64(),
            per_wake_up: right as f64 / (waits_after - waits).max(1) as f64,
        }
    })
}

fn print(name: &str, rounds: &[Round]) {
    let median = |of: &dyn Fn(&Round) -> f64| Spread::new(rounds.iter().map(of).collect()).median();
    let ratio = Spread::new(rounds.iter().map(Round::ratio).collect());
    println!(
        "{name:<58} {:>8.2} {:>8.2} {:>7.2}  ({:.2}-{:.2})  {:>7.0} {:>7.0} {:>7.1} {:>6.1}",
        median(&|round| round.quiet.each),
        median(&|round| round.storm.each),
        ratio.median(),
        ratio.percentile(0.0),
        ratio.percentile(1.0),
        median(&|round| round.quiet.rate),
        median(&|round| round.storm.rate),
        median(&|round| round.quiet.per_wake_up),
        median(&|round| round.storm.per_wake_up),
    );
}
