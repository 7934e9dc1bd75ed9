//! Benchmark of svcdns with a large etcd: start, memory, changes.
//!
//! The program prints figures and asserts nothing about them; `docs/performance.md` explains them.
//! `cargo bench --bench registry` measures everything, with `-- --million` only the largest
//! registry. `-- --short` only shows that the program works.
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

mod changes;
mod figures;
mod keys;
mod reading;
mod startup;
#[path = "../support/mod.rs"]
mod support;
mod udp_client;
mod watcher;

use std::env;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use changes::ChangeTimes;
use figures::{Spread, megabytes};
use keys::INSTANCES;
use reading::{Aim, Reading};
use startup::{Memory, Server, SnapshotFigures, Starts};
use support::etcd::Etcd;
use support::seconds;

/// The extent of a run.
struct Scale {
    /// Services with [`INSTANCES`] keys each.
    services: usize,
    /// Starts of svcdns; each follows a bare list.
    starts: usize,
    /// Changes measured with svcdns, and as many with the bare watcher.
    changes: usize,
    /// Average time between two changes.
    pause: Duration,
    /// Time from the list to the second measurement of memory.
    settle: Duration,
    /// Services with a single key each, in the largest registry.
    million: usize,
    /// Starts with the largest registry.
    million_starts: usize,
}

const FULL: Scale = Scale {
    services: 10_000,
    starts: 9,
    changes: 2000,
    pause: Duration::from_millis(10),
    settle: seconds(30),
    million: 1_000_000,
    million_starts: 6,
};

const SHORT: Scale = Scale {
    services: 300,
    starts: 2,
    changes: 50,
    pause: Duration::from_millis(5),
    settle: seconds(1),
    million: 2000,
    million_starts: 1,
};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--watcher") {
        return watcher::watch(&arguments[at + 1]);
    }
    let given = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
    let scale = if given("--short") { &SHORT } else { &FULL };
    let begun = Instant::now();
    println!("{}", figures::machine());
    println!(
        "{} with its data in memory; svcdns, etcd and the benchmark share the cores and use \
         loopback, nothing is pinned",
        etcd_version()
    );
    if !given("--million") {
        measure_many_instances(scale);
    }
    measure_million(scale);
    println!("\n{}", reading::note());
    println!(
        "The whole run took {:.0} s; load average now {}",
        begun.elapsed().as_secs_f64(),
        figures::load_average()
    );
}

/// Measures starts, memory and changes with services of several instances.
fn measure_many_instances(scale: &Scale) {
    let etcd = Etcd::start();
    let empty = startup::memory_of_empty(&etcd);
    let instances = scale.services * INSTANCES;
    print_content(instances, scale.services, keys::fill(&etcd, scale.services));

    let (server, starts) = startup::measure(
        &etcd,
        &keys::name(scale.services - 1),
        instances,
        scale.starts,
        &[5000, 20_000],
    );
    print_starts(&starts, 500.0);
    print_memory(&server, empty, instances, scale.settle, 60);
    let measured = changes::measure(&etcd, &server, scale.services, scale.changes, scale.pause);
    memory_row("after the changes below", server.memory(), Some((empty, instances)));

    println!(
        "\nA new instance, {} times each, ms               p50     p90     p99     max",
        scale.changes
    );
    let changes::Changes { svcdns, watcher } = measured;
    let [ours, its] = [&svcdns.visible, &watcher.visible].map(|visible| Reading::values(visible));
    percentile_row("put to the changed answer, svcdns", &ours);
    percentile_row("put to the changed answer, bare watcher", &its);
    let [p50, p90, p99, max] =
        [0.5, 0.9, 0.99, 1.0].map(|share| ours.percentile(share) / its.percentile(share));
    println!("{:<44} {p50:>6.2} {p90:>7.2} {p99:>7.2} {max:>7.2}", "ratio");
    for (program, times) in [("svcdns", &svcdns), ("bare watcher", &watcher)] {
        let ChangeTimes { visible, acknowledged } = times;
        percentile_row(&format!("put to its acknowledgement, {program}"), acknowledged);
        let resolution = visible.iter().map(|reading| reading.high - reading.value).collect();
        percentile_row(&format!("resolution (±), {program}"), &Spread::new(resolution));
    }
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let ratio = Reading::quantile(&svcdns.visible, share)
            .over(Reading::quantile(&watcher.visible, share));
        println!(
            "{}",
            Aim::AtMost(1.1).line(&format!("{name} of svcdns over the watcher's"), ratio)
        );
    }
    print_snapshot(server, etcd, &keys::name(scale.services - 1), scale.starts);
}

/// Measures starts and memory with a million services of a single instance.
fn measure_million(scale: &Scale) {
    let etcd = Etcd::builder().argument("--quota-backend-bytes=8589934592").start();
    let empty = startup::memory_of_empty(&etcd);
    print_content(scale.million, scale.million, keys::fill_single(&etcd, scale.million));
    let (server, starts) = startup::measure(
        &etcd,
        &keys::single_name(scale.million - 1),
        scale.million,
        scale.million_starts,
        &[20_000],
    );
    print_starts(&starts, 6000.0);
    print_memory(&server, empty, scale.million, scale.settle, 400);
    print_snapshot(server, etcd, &keys::single_name(scale.million - 1), scale.million_starts);
}

/// Measures and prints the snapshot of a server, and starts from it without the registry.
fn print_snapshot(server: Server, etcd: Etcd, last: &str, starts: usize) {
    let SnapshotFigures { bytes, write_ms, peaks_kib: [before, after], first_answer, memory } =
        startup::measure_snapshot(server, etcd, last, starts);
    println!(
        "\nSnapshot: {:.1} MB, written in {write_ms} ms; peak memory {:.1} MB before it, {:.1} MB \
         after it",
        bytes as f64 / 1e6,
        megabytes(before),
        megabytes(after)
    );
    println!("Time to the first answer without etcd, ms               min  median     max");
    row("exec of svcdns to an A record of the last service", &Reading::values(&first_answer));
    let aim = Aim::AtMost(1000.0);
    println!("{}", aim.line("median time in ms", Reading::median(&first_answer)));
    memory_row("after a start from the snapshot", memory, None);
}

fn print_content(keys: usize, services: usize, (bytes, filling): (usize, Duration)) {
    println!(
        "\n{keys} keys of {services} services in etcd, {:.1} MB of keys and values",
        bytes as f64 / 1e6
    );
    println!("(put by the benchmark in {:.1} s)", filling.as_secs_f64());
}

/// Prints the times of starts; `aim` is in milliseconds.
fn print_starts(starts: &Starts, aim: f64) {
    let first_answer = Reading::values(&starts.first_answer);
    println!("\nTime to the first answer, ms                            min  median     max");
    row("exec of svcdns to an A record of the last service", &first_answer);
    for (page, times) in &starts.lists {
        row(&format!("bare list by the same client library, pages of {page}"), times);
    }
    for (page, times) in &starts.lists {
        println!(
            "{:<50} {:>16.2}",
            format!("ratio to the bare list in pages of {page}"),
            first_answer.median() / times.median()
        );
    }
    println!(
        "{}",
        Aim::AtMost(aim)
            .line("median time to the first answer in ms", Reading::median(&starts.first_answer))
    );
}

/// Prints the memory now and after a while; `aim` is in MB.
fn print_memory(server: &Server, empty: Memory, instances: usize, settle: Duration, aim: u32) {
    println!(
        "\nResident memory of svcdns, MB (aim: {aim})                now    peak  \
         bytes per instance above the empty registry"
    );
    memory_row("empty registry", empty, None);
    thread::sleep(seconds(1));
    memory_row("1 s after the first answer", server.memory(), Some((empty, instances)));
    thread::sleep(settle);
    memory_row(&format!("{} s later", settle.as_secs()), server.memory(), Some((empty, instances)));
}

fn etcd_version() -> String {
    let etcd = Command::new("etcd").arg("--version").output().unwrap().stdout;
    String::from_utf8_lossy(&etcd).lines().next().unwrap_or_default().replace("Version: ", "")
}

fn row(name: &str, spread: &Spread) {
    println!(
        "{name:<50} {:>8.1} {:>7.1} {:>7.1}",
        spread.percentile(0.0),
        spread.median(),
        spread.percentile(1.0)
    );
}

fn percentile_row(name: &str, spread: &Spread) {
    let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|share| spread.percentile(share));
    println!("{name:<44} {p50:>6.2} {p90:>7.2} {p99:>7.2} {max:>7.2}");
}

fn memory_row(name: &str, memory: Memory, over: Option<(Memory, usize)>) {
    let each = over.map_or(String::new(), |(empty, instances)| {
        let bytes =
            |now: u64, before: u64| (now.saturating_sub(before) * 1024) as f64 / instances as f64;
        format!(
            "{:.0}, at the peak {:.0}",
            bytes(memory.resident_kib, empty.resident_kib),
            bytes(memory.peak_kib, empty.peak_kib)
        )
    });
    println!(
        "{name:<50} {:>8.1} {:>7.1}  {each}",
        megabytes(memory.resident_kib),
        megabytes(memory.peak_kib)
    );
}
