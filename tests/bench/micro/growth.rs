//! How the cost of an answer, the memory and the time of a publication grow with the number of names.

use std::env;
use std::fs;
use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::content::{self, Shape, Store, VALUE};
use super::figures::Spread;
use super::step::{self, Questions, Step};
use super::support::dns;
use super::{count, steps};

/// Questions of each kind. As many whatever is known, so that reading them costs the same; so many that the names of one have
/// left the processor's caches before it comes again.
const QUESTIONS: usize = 1_000_000;

/// Where more instances are known their instructions are not counted: in valgrind, all comes fifty times slower.
const COUNTED: usize = 100_000;

/// What a process found that knows so much; times in nanoseconds.
struct Grown {
    a: f64,
    srv: f64,
    nxdomain: f64,
    /// Octets of memory an instance, now and at the peak.
    held: f64,
    peak: f64,
    /// Of one publication of one change.
    p50: f64,
    p99: f64,
    max: f64,
    /// Milliseconds in which all came, in one list.
    list: f64,
}

/// Answers to names at random, all names alike.
fn answers(store: &Store, shape: Shape, questions: usize) -> Vec<Step> {
    let each = u16::try_from(shape.instances).unwrap();
    let some = |from: usize, qtype| {
        Questions::of((0..questions).map(|_| {
            dns::question(
                fastrand::u16(..),
                &Shape::name(from + fastrand::usize(..shape.services)),
                qtype,
            )
        }))
    };
    vec![
        Step::answer("A", store, some(0, dns::A), 0, each),
        Step::answer("SRV", store, some(0, dns::SRV), 0, each),
        Step::answer("NXDOMAIN", store, some(50_000_000, dns::A), 3, 0),
    ]
}

/// The steps whose instructions are counted.
pub(crate) fn of(shape: Shape) -> Vec<Step> {
    let store = Store::of(shape);
    let mut all = answers(&store, shape, 4096);
    all.push(steps::publication(store, shape));
    all
}

/// The child: a process that knows so much, and prints what that costs.
pub(crate) fn play(shape: Shape, rounds: usize, turn: Duration, changes: usize) {
    let instances = shape.services * shape.instances;
    let empty = Store::empty();
    black_box(&empty);
    let (before, begun) = (memory(), Instant::now());
    let mut store = Store::of(shape);
    let list = begun.elapsed();
    let after = memory();
    let [held, peak] =
        [after.0 - before.0, after.1 - before.1].map(|octets| octets / instances as f64);

    let mut took = Vec::with_capacity(changes);
    for number in 0..changes {
        let address = shape.address(shape.services, number / 2 % 1000);
        // An instance comes and goes again.
        let key = content::key((number / 2 * 7919) % shape.services, address);
        let change = if number % 2 == 0 { store.put(&key, VALUE) } else { store.delete(&key) };
        let begun = Instant::now();
        store.apply([change]);
        took.push(begun.elapsed());
    }
    let took = Spread::of(took);
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| took.percentile(share) * 1e6);

    let mut steps = answers(&store, shape, if rounds > 2 { QUESTIONS } else { 1000 });
    let [a, srv, nxdomain] =
        step::time(&mut steps, rounds, turn).iter().map(Spread::median).collect::<Vec<_>>()[..]
    else {
        unreachable!()
    };
    let list = list.as_secs_f64() * 1e3;
    for figure in [a, srv, nxdomain, held, peak, p50, p99, max, list] {
        print!("{figure} ");
    }
}

/// Resident memory of this process, now and at its peak, in octets.
fn memory() -> (f64, f64) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let octets = |name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() * 1024.0
    };
    (octets("VmRSS:"), octets("VmHWM:"))
}

fn grow(shape: Shape, rounds: usize, turn: Duration, changes: usize) -> Grown {
    let numbers = [shape.services, shape.instances, rounds, turn.as_millis() as usize, changes];
    let mut command = Command::new(env::current_exe().unwrap());
    let output = command
        .arg("--grow")
        .args(numbers.map(|number| number.to_string()))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let figures: Vec<f64> = text.split_whitespace().map(|figure| figure.parse().unwrap()).collect();
    let [a, srv, nxdomain, held, peak, p50, p99, max, list] = figures[..] else {
        panic!("ended with {} and {text:?}", output.status)
    };
    Grown { a, srv, nxdomain, held, peak, p50, p99, max, list }
}

/// Measures and prints all shapes, each in a process of its own.
pub(crate) fn print(
    shapes: &[Shape],
    rounds: usize,
    turn: Duration,
    changes: usize,
    counted: usize,
) {
    println!(
        "\nMore and more is known                ns an answer          instructions      octets an instance  µs a publication     list"
    );
    println!(
        "services x instances           A    SRV  NXDOMAIN      A    SRV  publication    held    peak    p50    p99    max      ms"
    );
    let grown: Vec<_> =
        shapes.iter().map(|shape| print_one(*shape, rounds, turn, changes, counted)).collect();
    for (shape, later) in shapes.iter().zip(&grown).skip(1) {
        println!(
            "A at {} x {} to A at the first: {:.2}",
            shape.services,
            shape.instances,
            later.a / grown[0].a
        );
    }
    print_parts(shapes, &grown);
    println!(
        "({QUESTIONS} questions at random over all names; {changes} publications of an instance that comes or goes)"
    );
}

fn print_one(shape: Shape, rounds: usize, turn: Duration, changes: usize, counted: usize) -> Grown {
    let grown = grow(shape, rounds, turn, changes);
    let Grown { a, srv, nxdomain, held, peak, p50, p99, max, list } = &grown;
    let counts = if shape.services * shape.instances > COUNTED {
        vec![String::from("-"); 4]
    } else {
        let counts = count::of(&format!("growth:{}:{}", shape.services, shape.instances), counted);
        counts.into_iter().map(|count| format!("{count:.0}")).collect()
    };
    println!(
        "{:>9} x {:<4} {a:>15.0} {srv:>6.0} {nxdomain:>9.0} {:>6} {:>6} {:>12} {held:>7.0} {peak:>7.0} {:>6.1} {:>6.1} {:>6.0} {list:>7.0}",
        shape.services,
        shape.instances,
        counts[0],
        counts[1],
        counts[3],
        p50 / 1e3,
        p99 / 1e3,
        max / 1e3
    );
    grown
}

/// What a name and what an instance holds, of two shapes of as many services.
fn print_parts(shapes: &[Shape], grown: &[Grown]) {
    for ((one, few), (other, many)) in
        shapes.iter().zip(grown).zip(shapes.iter().zip(grown).skip(1))
    {
        if one.services == other.services {
            let [least, most] =
                [few.held * one.instances as f64, many.held * other.instances as f64];
            let each = (most - least) / (other.instances - one.instances) as f64;
            println!(
                "{} services: {:.0} octets a name, and {each:.0} an instance of it",
                one.services,
                least - each * one.instances as f64
            );
        }
    }
}
