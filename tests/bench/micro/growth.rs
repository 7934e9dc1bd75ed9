//! Growth of response cost, memory and publication time with the registry.

use std::env;
use std::fs;
use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::content::{self, Shape, Store, VALUE};
use super::figures::Spread;
use super::step::{self, Queries, Step};
use super::support::dns;
use super::{count, steps};

/// Queries of each kind.
///
/// The number is the same for every shape, so that reading them costs the same, and large enough
/// that a name has left the processor's caches before its next query.
const QUERIES: usize = 1_000_000;

/// Limit on instances for counting instructions.
///
/// Under valgrind everything is about fifty times slower.
const MAX_COUNTED_INSTANCES: usize = 100_000;

/// Figures of one shape; times in nanoseconds.
struct ShapeFigures {
    a: f64,
    srv: f64,
    nxdomain: f64,
    /// Bytes of memory per instance, now and at the peak.
    held: f64,
    peak: f64,
    /// Times of publications of one change.
    p50: f64,
    p99: f64,
    max: f64,
    /// Time of the whole list, in milliseconds.
    list: f64,
}

/// Returns a step for each kind of response, for names chosen at random.
fn responses(store: &Store, shape: Shape, queries: usize) -> Vec<Step> {
    let each = u16::try_from(shape.instances).unwrap();
    let some = |from: usize, qtype| {
        Queries::of((0..queries).map(|_| {
            dns::query(
                fastrand::u16(..),
                &Shape::name(from + fastrand::usize(..shape.services)),
                qtype,
            )
        }))
    };
    vec![
        Step::response("A", store, some(0, dns::A), 0, each),
        Step::response("SRV", store, some(0, dns::SRV), 0, each),
        Step::response("NXDOMAIN", store, some(50_000_000, dns::A), 3, 0),
    ]
}

/// Returns the steps whose instructions are counted.
pub(crate) fn of(shape: Shape) -> Vec<Step> {
    let store = Store::of(shape);
    let mut all = responses(&store, shape, 4096);
    all.push(steps::publication(store, shape));
    all
}

/// Measures one shape and prints its figures; runs in a child process.
pub(crate) fn measure(shape: Shape, rounds: usize, turn: Duration, changes: usize) {
    let instances = shape.services * shape.instances;
    let empty = Store::empty();
    black_box(&empty);
    let (before, begun) = (memory(), Instant::now());
    let mut store = Store::of(shape);
    let list = begun.elapsed();
    let after = memory();
    let [held, peak] =
        [after.0 - before.0, after.1 - before.1].map(|bytes| bytes / instances as f64);

    let mut took = Vec::with_capacity(changes);
    for number in 0..changes {
        let address = shape.address(shape.services, number / 2 % 1000);
        // An instance is added and removed in turn.
        let key = content::key((number / 2 * 7919) % shape.services, address);
        let change = if number % 2 == 0 { store.put(&key, VALUE) } else { store.delete(&key) };
        let begun = Instant::now();
        store.apply([change]);
        took.push(begun.elapsed());
    }
    let took = Spread::of(took);
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| took.percentile(share) * 1e6);

    let mut steps = responses(&store, shape, if rounds > 2 { QUERIES } else { 1000 });
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

/// Returns the resident memory of this process, now and at its peak, in bytes.
fn memory() -> (f64, f64) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let bytes = |name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() * 1024.0
    };
    (bytes("VmRSS:"), bytes("VmHWM:"))
}

/// Measures one shape in a child process.
fn measure_in_child(shape: Shape, rounds: usize, turn: Duration, changes: usize) -> ShapeFigures {
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
    ShapeFigures { a, srv, nxdomain, held, peak, p50, p99, max, list }
}

/// Measures and prints all shapes, each in a new process.
pub(crate) fn print(
    shapes: &[Shape],
    rounds: usize,
    turn: Duration,
    changes: usize,
    counted: usize,
) {
    println!(
        "\nGrowth                          ns per response          instructions     \
         bytes per instance   µs per publication    list"
    );
    println!(
        "services x instances           A    SRV  NXDOMAIN      A    SRV  publication    \
         held    peak    p50    p99    max      ms"
    );
    let measured: Vec<_> =
        shapes.iter().map(|shape| print_one(*shape, rounds, turn, changes, counted)).collect();
    for (shape, figures) in shapes.iter().zip(&measured).skip(1) {
        println!(
            "A at {} x {} over A at the first: {:.2}",
            shape.services,
            shape.instances,
            figures.a / measured[0].a
        );
    }
    print_parts(shapes, &measured);
    println!(
        "({QUERIES} queries for random names; {changes} publications, \
         each of an added or removed instance)"
    );
}

fn print_one(
    shape: Shape,
    rounds: usize,
    turn: Duration,
    changes: usize,
    counted: usize,
) -> ShapeFigures {
    let figures = measure_in_child(shape, rounds, turn, changes);
    let ShapeFigures { a, srv, nxdomain, held, peak, p50, p99, max, list } = &figures;
    let counts = if shape.services * shape.instances > MAX_COUNTED_INSTANCES {
        vec![String::from("-"); 4]
    } else {
        let counts = count::of(&format!("growth:{}:{}", shape.services, shape.instances), counted);
        counts.into_iter().map(|count| format!("{count:.0}")).collect()
    };
    println!(
        "{:>9} x {:<4} {a:>15.0} {srv:>6.0} {nxdomain:>9.0} {:>6} {:>6} {:>12} \
         {held:>7.0} {peak:>7.0} {:>6.1} {:>6.1} {:>6.0} {list:>7.0}",
        shape.services,
        shape.instances,
        counts[0],
        counts[1],
        counts[3],
        p50 / 1e3,
        p99 / 1e3,
        max / 1e3
    );
    figures
}

/// Prints the bytes per name and per instance.
///
/// Computes them from two shapes with equally many services.
fn print_parts(shapes: &[Shape], measured: &[ShapeFigures]) {
    for ((one, few), (other, many)) in
        shapes.iter().zip(measured).zip(shapes.iter().zip(measured).skip(1))
    {
        if one.services == other.services {
            let [smaller, larger] =
                [few.held * one.instances as f64, many.held * other.instances as f64];
            let each = (larger - smaller) / (other.instances - one.instances) as f64;
            println!(
                "{} services: {:.0} bytes per name, and {each:.0} per instance of it",
                one.services,
                smaller - each * one.instances as f64
            );
        }
    }
}
