//! Benchmark of restarts, take-overs and reloads under load.
//!
//! Asks at half of the rate that the machine can serve, for a minute with ten restarts by the way
//! of a socket unit, another with ten take-overs, and another with ten reloads, one of them of a
//! broken file. The program prints figures, and fails if an answer is lost or wrong.
//! `cargo bench --bench restarts` measures; `-- --short` only shows that the program works.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program that prints its results and ends at the first error"
)]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures are rounded for people"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../figures.rs"]
mod figures;
mod load;
#[path = "../../support/mod.rs"]
mod support;
mod ways;
mod world;

use std::env;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use load::{Outcome, Question};
use ways::{Reloads, Restarts, TakeOvers};
use world::World;

/// The extent of a run.
struct Scale {
    /// Time of each way under load.
    period: Duration,
    /// Events in this time.
    events: u32,
    /// Time in which the highest rate is measured.
    flat_out: Duration,
    /// Rate of the load in queries per second; `None` for half of the highest.
    rate: Option<u32>,
}

const FULL: Scale = Scale {
    period: Duration::from_secs(60),
    events: 10,
    flat_out: Duration::from_secs(5),
    rate: None,
};
const SHORT: Scale = Scale {
    period: Duration::from_secs(3),
    events: 5,
    flat_out: Duration::from_millis(200),
    rate: Some(1_000),
};

/// A server and what happens to it under load.
trait Way {
    /// What happens.
    const EVENTS: &'static str;

    /// Starts the server, which answers when this returns.
    fn start(world: &World) -> Self;

    /// Returns the address that the load asks.
    fn address(&self) -> SocketAddr;

    /// Lets it happen, for this time, counted from 0; returns when it is over.
    fn act(&mut self, world: &World, number: u32);
}

fn main() {
    let scale = if env::args().any(|argument| argument == "--short") { &SHORT } else { &FULL };
    let (begun, world) = (Instant::now(), World::new());
    println!("{}", figures::machine());
    println!(
        "{} names: of a file registry, a static service, an alias, a cached name of an upstream, \
         and one that does not exist\n",
        world.questions.len()
    );
    println!(
        "way          events  sent/s       sent     lost    wrong  p50 µs  p99 µs  longest ms"
    );
    let lossless = [
        measure::<Restarts>(&world, scale),
        measure::<TakeOvers>(&world, scale),
        measure::<Reloads>(&world, scale),
    ];
    println!(
        "\nsent/s: half of what the same load gets without a rate, before each way\nThe whole run \
         took {:.0} s; load average now {}",
        begun.elapsed().as_secs_f64(),
        figures::load_average()
    );
    assert!(lossless.iter().all(|&lossless| lossless), "an answer was lost or wrong");
}

/// Measures a way and prints it; returns whether each query got its right answer.
fn measure<W: Way>(world: &World, scale: &Scale) -> bool {
    let mut way = W::start(world);
    let address = way.address();
    let flat_out = run_for(scale.flat_out, address, &world.questions, None);
    let highest = flat_out.answered as f64 / flat_out.elapsed.as_secs_f64();
    let rate = scale.rate.unwrap_or((highest / 2.0) as u32);
    let stop = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        let load = scope.spawn(|| load::run(address, &world.questions, Some(rate), &stop));
        let (begun, pause) = (Instant::now(), scale.period / (scale.events + 1));
        for number in 0..scale.events {
            let due = begun + pause * (number + 1);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            way.act(world, number);
        }
        thread::sleep((begun + scale.period).saturating_duration_since(Instant::now()));
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    let Outcome { sent, wrong, ref times, longest, elapsed, .. } = outcome;
    let [p50, p99] = [0.5, 0.99].map(|share| times.percentile(share) * 1e3);
    println!(
        "{:<12} {:>6} {:>7.0} {sent:>10} {:>8} {wrong:>8} {p50:>7.0} {p99:>7.0} {:>11.1}",
        W::EVENTS,
        scale.events,
        sent as f64 / elapsed.as_secs_f64(),
        outcome.lost(),
        longest.as_secs_f64() * 1e3
    );
    for (name, head) in flat_out.first_wrong.iter().chain(&outcome.first_wrong) {
        println!("wrong: {name}: header {head:02x?}");
    }
    outcome.lost() == 0 && wrong == 0 && flat_out.wrong == 0
}

fn run_for(
    period: Duration,
    server: SocketAddr,
    questions: &[Question],
    rate: Option<u32>,
) -> Outcome {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| load::run(server, questions, rate, &stop));
        thread::sleep(period);
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap()
    })
}
