//! What the steps of an answer and of a publication cost by themselves, in time and in instructions, and how that grows with
//! what is known. A program, not a test: it prints figures and asserts nothing about them, but that every answer is right.
//!
//! `cargo bench --bench micro` measures; `-- --short` only shows that the program works. Instructions are counted by
//! valgrind's callgrind. What the figures mean stands in `docs/performance.md`.
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

/// How much is measured.
struct Scale {
    /// What is known while the steps are measured.
    usual: Shape,
    /// What is known, more and more of it.
    growing: &'static [Shape],
    /// Instances of the name that has many.
    many: usize,
    /// Rounds in which each step has its turn.
    rounds: usize,
    /// How long a step's turn is.
    turn: Duration,
    /// Changes that are published one by one.
    changes: usize,
    /// How often a step is done while its instructions are counted.
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
        ["--count", of, times] => count::play(of, times.parse().unwrap()),
        ["--grow", services, instances, rounds, turn, changes] => {
            let [services, instances, rounds, turn, changes] =
                [services, instances, rounds, turn, changes].map(|number| number.parse().unwrap());
            growth::play(
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
    // Nothing else of this program runs meanwhile: the other core is for the rest of the machine.
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
