//! Benchmark of single steps of a response and of a publication.
//!
//! Also shows how both grow with the registry. The program prints figures and asserts nothing
//! about them, except that every response is right; `docs/performance.md` explains them. `cargo
//! bench --bench micro` measures; `-- --short` only shows that the program works. Instructions are
//! counted by valgrind's callgrind.
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
mod count;
#[path = "../figures.rs"]
mod figures;
mod growth;
mod one_name;
mod step;
mod steps;
#[path = "../../support/mod.rs"]
mod support;

use std::env;
use std::time::{Duration, Instant};

use common::cores;
use content::Shape;

/// The extent of a run.
struct Scale {
    /// Registered services while the steps are measured.
    usual: Shape,
    /// Registered services of each measurement of growth.
    growing: &'static [Shape],
    /// Instances of the name with many.
    many: usize,
    /// Rounds, in each of which every step is measured once.
    rounds: usize,
    /// Duration of a measurement of a step.
    turn: Duration,
    /// Changes that are published one by one.
    changes: usize,
    /// Repetitions of a step while its instructions are counted.
    counted: usize,
}

const fn shape(services: usize, instances: usize) -> Shape {
    Shape { services, instances }
}

const FULL: Scale = Scale {
    usual: shape(10_000, 3),
    growing: &[
        shape(1000, 1),
        shape(10_000, 3),
        shape(100_000, 1),
        shape(100_000, 3),
        shape(1_000_000, 1),
    ],
    many: 10_000,
    rounds: 15,
    turn: Duration::from_millis(40),
    changes: 5000,
    counted: 2000,
};

const SHORT: Scale = Scale {
    usual: shape(100, 3),
    growing: &[shape(100, 1), shape(100, 3)],
    many: 100,
    rounds: 2,
    turn: Duration::from_millis(1),
    changes: 20,
    counted: 5,
};

fn main() {
    let arguments: Vec<&'static str> =
        env::args().skip(1).map(|argument| &*argument.leak()).collect();
    match arguments[..] {
        ["--count", of, times] => count::count(of, times.parse().unwrap()),
        ["--grow", services, instances, rounds, turn, changes] => {
            let [services, instances, rounds, turn, changes] =
                [services, instances, rounds, turn, changes].map(|number| number.parse().unwrap());
            growth::measure(
                shape(services, instances),
                rounds,
                Duration::from_millis(turn as u64),
                changes,
            );
        }
        _ => run(if arguments.contains(&"--short") { &SHORT } else { &FULL }),
    }
}

fn run(scale: &Scale) {
    let begun = Instant::now();
    // This program uses one core only; the other is for the rest of the machine.
    cores::pin(cores::SELF, cores::cores().0);
    println!("{}", figures::machine());
    println!("In one thread, without sockets. Instructions: {}", count::version());
    steps::print(scale.usual, scale.rounds, scale.turn, scale.counted);
    growth::print(scale.growing, scale.rounds, scale.turn, scale.changes, scale.counted);
    one_name::print(scale.usual, scale.many, scale.rounds, scale.turn, scale.counted.div_ceil(10));
    println!(
        "\nThe whole run took {:.0} s; load average now {}",
        begun.elapsed().as_secs_f64(),
        figures::load_average()
    );
}
