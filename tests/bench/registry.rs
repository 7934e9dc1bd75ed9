//! What svcdns costs with a large etcd behind it: time to the first answer, memory, time from a change to its answer, and
//! processor time of an answer. A program, not a test: it prints figures and asserts nothing about them.
//!
//! `cargo bench --bench registry` measures; `-- --short` only shows that the program works. What the figures mean stands
//! in `docs/performance.md`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for people; what fails ends it")]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "figures are rounded for people")]

mod ask;
mod changes;
mod cost;
mod figures;
mod keys;
mod startup;
#[path = "../support/mod.rs"]
mod support;
mod yardstick;

use std::env;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use figures::{Spread, megabytes};
use keys::INSTANCES;
use support::etcd::Etcd;
use support::seconds;

/// How much is measured.
struct Scale {
    /// Services, of [`INSTANCES`] keys each.
    services: usize,
    /// Starts of svcdns, and as many bare lists beside them.
    starts: usize,
    changes: usize,
    /// Between two changes.
    pause: Duration,
    /// Questions of one round of load.
    questions: usize,
    /// Rounds of load on each of the two servers.
    rounds: usize,
    /// How long memory may settle after the list.
    settle: Duration,
}

const FULL: Scale = Scale {
    services: 10_000,
    starts: 9,
    changes: 1000,
    pause: Duration::from_millis(15),
    questions: 60_000,
    rounds: 3,
    settle: seconds(30),
};

const SHORT: Scale =
    Scale { services: 300, starts: 2, changes: 30, pause: Duration::from_millis(5), questions: 1000, rounds: 1, settle: seconds(1) };

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--yardstick") {
        return yardstick::serve(arguments[at + 1].parse().unwrap());
    }
    let short = arguments.iter().any(|argument| argument == "--short");
    run(if short { &SHORT } else { &FULL });
}

fn run(scale: &Scale) {
    println!("{}", figures::machine());
    println!(
        "{} with its data in memory; svcdns, etcd and the benchmark share the cores over loopback, nothing is pinned\n",
        etcd_version()
    );
    let begun = Instant::now();
    let etcd = Etcd::start();
    let empty = startup::memory_of_empty(&etcd);
    let (octets, filling) = keys::fill(&etcd, scale.services);
    let instances = scale.services * INSTANCES;
    println!("{instances} keys of {} services in etcd, {:.1} MB of keys and values", scale.services, octets as f64 / 1e6);
    println!("(put by the benchmark in {:.1} s)\n", filling.as_secs_f64());

    let (server, starts) = startup::measure(&etcd, scale.services, scale.starts);
    println!("Time to the first answer, ms                            min  median     max");
    row("exec of svcdns to an A record of the last service", &starts.first_answer);
    row("bare list by the same client library, pages of 5000", &starts.list_5000);
    row("bare list by the same client library, pages of 20000", &starts.list_20000);
    println!("{:<50} {:>15.2}", "ratio to the bare list in pages of 5000", starts.first_answer.median() / starts.list_5000.median());
    println!("{:<50} {:>15.2}\n", "ratio to the bare list in pages of 20000", starts.first_answer.median() / starts.list_20000.median());

    println!("Resident memory of svcdns, MB                           now    peak  octets an instance over an empty svcdns");
    memory_row("empty registry", empty, None);
    thread::sleep(seconds(1));
    memory_row("1 s after the first answer", server.memory(), Some((empty, instances)));
    thread::sleep(scale.settle);
    memory_row(&format!("{} s later", scale.settle.as_secs()), server.memory(), Some((empty, instances)));

    let costs = cost::measure(&server, scale.services, scale.questions, scale.rounds);
    memory_row("after the questions below", server.memory(), Some((empty, instances)));
    let seen = changes::measure(&etcd, server.address, scale.services, scale.changes, scale.pause);
    memory_row("after the changes below", server.memory(), Some((empty, instances)));

    println!("\nA new instance, {} times, ms                    p50     p90     p99     max", scale.changes);
    percentile_row("put sent to changed answer", &seen.answered);
    percentile_row("put sent to a bare watcher's event", &seen.watched);
    percentile_row("put sent to acknowledged", &seen.acknowledged);
    percentile_row("a bare watcher's event to changed answer", &seen.behind);
    let ratio = |share| seen.answered.percentile(share) / seen.watched.percentile(share);
    println!("{:<40} {:>10.2} {:>7.2} {:>7.2} {:>7.2}", "ratio of the first two", ratio(0.5), ratio(0.9), ratio(0.99), ratio(1.0));
    println!("(one question every {:.3} ms meanwhile)", seen.poll.median());

    println!("\nYardstick: processor time of an A answer over UDP, µs  user  system   total   answers/s");
    for (name, cost) in [("svcdns", &costs.svcdns), ("hickory-server over a HashMap", &costs.yardstick)] {
        let rate = cost.rate.median();
        println!("{name:<50} {:>8.1} {:>7.1} {:>7.1} {rate:>11.0}", cost.user.median(), cost.system.median(), cost.total.median());
    }
    println!("{:<50} {:>24.2}", "ratio", costs.svcdns.total.median() / costs.yardstick.total.median());
    println!("(medians of {} rounds of {} questions from {} sockets)", scale.rounds, scale.questions, cost::SOCKETS);
    server.stop();
    println!("\nThe whole run took {:.0} s; load average now {}", begun.elapsed().as_secs_f64(), figures::load_average());
}

fn etcd_version() -> String {
    let etcd = Command::new("etcd").arg("--version").output().unwrap().stdout;
    String::from_utf8_lossy(&etcd).lines().next().unwrap_or_default().replace("Version: ", "")
}

fn row(name: &str, spread: &Spread) {
    println!("{name:<50} {:>8.1} {:>7.1} {:>7.1}", spread.percentile(0.0), spread.median(), spread.percentile(1.0));
}

fn percentile_row(name: &str, spread: &Spread) {
    let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|share| spread.percentile(share));
    println!("{name:<40} {p50:>10.2} {p90:>7.2} {p99:>7.2} {max:>7.2}");
}

fn memory_row(name: &str, memory: startup::Memory, over: Option<(startup::Memory, usize)>) {
    let each = over.map_or(String::new(), |(empty, instances)| {
        format!("{:.0}", (memory.resident_kib.saturating_sub(empty.resident_kib) * 1024) as f64 / instances as f64)
    });
    println!("{name:<50} {:>8.1} {:>7.1} {each:>7}", megabytes(memory.resident_kib), megabytes(memory.peak_kib));
}
