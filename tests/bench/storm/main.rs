//! What a storm of changes costs those who ask: processor time of the answering threads for each answer while nothing
//! changes, and while 10,000 changes a second are published. A program, not a test: it prints figures and asserts nothing
//! about them, but that every answer is right.
//!
//! `cargo bench --bench storm` measures; `-- --short` only shows that the program works. What the figures mean stands in
//! `docs/performance.md`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for people; what fails ends it"
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
mod serving;
#[path = "../../support/mod.rs"]
mod support;

use std::env;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::cores;
use content::{Shape, Store};
use feeder::Fed;
use figures::Spread;
use load::{Load, Seen};
use reading::{Aim, Reading};
use serving::Serving;

/// How much is measured.
struct Scale {
    services: usize,
    /// Of each load, without and with the storm.
    rounds: usize,
    /// Length of one load.
    period: Duration,
    /// Changes a second.
    changes: u32,
}

const FULL: Scale =
    Scale { services: 10_000, rounds: 9, period: Duration::from_secs(2), changes: 10_000 };
const SHORT: Scale =
    Scale { services: 300, rounds: 1, period: Duration::from_millis(300), changes: 500 };

/// Instances of each service.
const INSTANCES: usize = 3;

/// The loads, the one that decides first.
const LOADS: [(&str, Load); 2] = [
    ("bursts of 64, 50,000 questions a second", Load { lanes: 1, rate: Some(50_000) }),
    ("as many as are answered", Load { lanes: 2, rate: None }),
];

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--load") {
        return load::play(&arguments[at + 1..]);
    }
    run(if arguments.iter().any(|argument| argument == "--short") { &SHORT } else { &FULL });
}

fn run(scale: &Scale) {
    let begun = Instant::now();
    let (core, other) = cores::cores();
    // Threads made from here on inherit this; those that answer are taken away from it.
    cores::pin(cores::SELF, other);
    let shape = Shape { services: scale.services, instances: INSTANCES };
    let mut store = Store::of(shape);
    let serving = Serving::start(&store.answerer, core);
    println!("{}", figures::machine());
    println!(
        "{} services of {INSTANCES} instances, A questions over UDP; one thread answers on core {core}, the load (a process of its own) and \
         who publishes changes on core {other}",
        scale.services
    );

    let mut measured: [Vec<Round>; 2] = Default::default();
    let mut fed: [Fed; 2] = Default::default();
    for round in 0..scale.rounds {
        for (((_, load), rounds), fed) in LOADS.iter().zip(&mut measured).zip(&mut fed) {
            // Each state comes first as often as the other.
            let storm_first = round % 2 == 1;
            let mut of = [storm_first, !storm_first].map(|storm| {
                let rate = if storm { scale.changes } else { 0 };
                one(&serving, *load, shape, scale.period, &mut store, rate, fed)
            });
            if storm_first {
                of.swap(0, 1);
            }
            let [quiet, storm] = of;
            rounds.push(Round { quiet, storm });
        }
    }

    println!(
        "\nProcessor time of the answering thread, µs an answer         quiet    storm   ratio  (low to high)   answers/s     answers a wake-up"
    );
    for ((name, _), rounds) in LOADS.iter().zip(&measured) {
        print(name, rounds);
    }
    println!("ratio: median of the rounds', with the lowest and the highest");
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
    for ((name, _), fed) in LOADS.iter().zip(&fed) {
        fed.print(name, scale.changes);
    }
    println!(
        "\nMedians of {} rounds of {:.1} s; the whole run took {:.0} s; load average now {}",
        scale.rounds,
        scale.period.as_secs_f64(),
        begun.elapsed().as_secs_f64(),
        figures::load_average()
    );
}

/// What one load cost.
struct Cost {
    /// Processor time of an answer, in microseconds.
    each: f64,
    /// Answers a second.
    rate: f64,
    /// Answers for each time that the thread had to wait for a question.
    together: f64,
}

struct Round {
    quiet: Cost,
    storm: Cost,
}

impl Round {
    /// Processor time of an answer with the storm over that without.
    fn ratio(&self) -> f64 {
        self.storm.each / self.quiet.each
    }
}

/// One load, with so many changes a second meanwhile.
fn one(
    serving: &Serving,
    load: Load,
    shape: Shape,
    period: Duration,
    store: &mut Store,
    rate: u32,
    fed: &mut Fed,
) -> Cost {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let feeder =
            (rate > 0).then(|| scope.spawn(|| feeder::feed(store, shape, rate, &stop, fed)));
        let (before, waits) = serving.spent();
        let Seen { right, failed, elapsed } = load::run(load, serving.address, shape, period);
        let (after, waits_after) = serving.spent();
        stop.store(true, Ordering::Relaxed);
        if let Some(feeder) = feeder {
            feeder.join().unwrap();
        }
        assert!(right > 0 && failed == 0, "{right} right answers, {failed} wrong or missing");
        Cost {
            each: (after.as_secs_f64() - before.as_secs_f64()) * 1e6 / right as f64,
            rate: right as f64 / elapsed.as_secs_f64(),
            together: right as f64 / (waits_after - waits).max(1) as f64,
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
        median(&|round| round.quiet.together),
        median(&|round| round.storm.together),
    );
}
