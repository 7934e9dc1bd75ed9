//! Benchmark of forwarding, with dnsmasq and unbound in the same run.
//!
//! Measures the CPU time per response from the cache and from the upstream, and the
//! latency added to that of the upstream. The program prints figures and asserts nothing about
//! them; `docs/performance.md` explains them. `cargo bench --bench forward` measures; `-- --short`
//! only shows that the program works.
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
#[path = "../figures.rs"]
mod figures;
mod load;
mod queries;
#[path = "../reading.rs"]
mod reading;
mod roles;
mod servers;
#[path = "../../support/mod.rs"]
mod support;

use std::env;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::cores;
use figures::Spread;
use load::LoadResult;
use queries::Kind;
use reading::{Aim, Reading};
use servers::{SETTINGS, Server};

/// The extent of a run.
struct Scale {
    /// Rounds, each with every load on every server.
    rounds: usize,
    /// Duration of a load at full speed.
    period: Duration,
    /// Queries of one round, one at a time.
    one_by_one: usize,
    /// Queries of one round, [`QUERIES_PER_SECOND`].
    at_rate: usize,
}

const FULL: Scale =
    Scale { rounds: 7, period: Duration::from_secs(2), one_by_one: 3000, at_rate: 4000 };
const SHORT: Scale =
    Scale { rounds: 1, period: Duration::from_millis(200), one_by_one: 100, at_rate: 400 };

/// Rate of the load with a fixed rate.
const QUERIES_PER_SECOND: u32 = 2000;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--role") {
        return roles::play(&arguments[at + 1..]);
    }
    let short = arguments.iter().any(|argument| argument == "--short");
    // Measures only some servers, for example to profile one of them.
    let only: Vec<&str> =
        arguments.iter().filter_map(|argument| argument.strip_prefix("--only=")).collect();
    run(if short { &SHORT } else { &FULL }, &only);
}

fn run(scale: &Scale, only: &[&str]) {
    let begun = Instant::now();
    let (core, other) = cores::cores();
    let upstream = Server::role("the upstream itself (not a difference)", &["upstream"]);
    upstream.pin(other);
    cores::pin(cores::SELF, other);
    let to = upstream.address.to_string();
    let echo = || Server::role("bare echo, one datagram per call", &["echo"]);
    let batched = || Server::role("bare echo, up to 64 datagrams per call", &["upstream"]);
    let relay = || Server::role("bare relay, one datagram per call", &["relay", &to]);
    let candidates: [(&str, &dyn Fn() -> Server); 7] = [
        ("svcdns", &|| Server::svcdns(upstream.address)),
        ("dnsmasq", &|| Server::dnsmasq(upstream.address, 150)),
        ("dnsmasq-10000", &|| Server::dnsmasq(upstream.address, 10_000)),
        ("unbound", &|| Server::unbound(upstream.address)),
        ("echo", &echo),
        ("batched", &batched),
        ("relay", &relay),
    ];
    let wanted = |name: &str| only.is_empty() || only.contains(&name);
    let started: Vec<_> = candidates
        .iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, start)| (*name, start()))
        .collect();
    let of = |names: &[&str]| -> Vec<&Server> {
        started.iter().filter(|(name, _)| names.contains(name)).map(|(_, server)| server).collect()
    };
    for (_, server) in &started {
        load::warm(server.address);
        server.pin(core);
    }
    println!("{}", figures::machine());
    println!(
        "All threads of a server on core {core}; the load and the upstream on core {other}. \
         UDP over IPv4 loopback."
    );
    println!("{SETTINGS}\n");

    let cached = processor_time(
        &of(&["svcdns", "dnsmasq-10000", "unbound", "echo", "batched"]),
        core,
        Kind::Cached,
        scale,
    );
    let title =
        format!("Responses from the cache ({} names), µs of processor time", queries::HOT_NAMES);
    print_costs(&title, &cached);
    let times = |cost: &ForwardCost| cost.total.clone();
    print_aim(
        "time of svcdns over unbound's",
        Aim::AtMost(0.6),
        &cached,
        "unbound",
        |cost| &cost.name,
        times,
    );
    println!();

    let uncached = processor_time(
        &of(&["svcdns", "dnsmasq", "dnsmasq-10000", "unbound", "relay"]),
        core,
        Kind::Uncached,
        scale,
    );
    print_costs("Responses from the upstream, µs of processor time", &uncached);
    print_aim(
        "time of svcdns over dnsmasq's",
        Aim::AtMost(0.8),
        &uncached,
        "dnsmasq",
        |cost| &cost.name,
        times,
    );
    println!();

    let forwarders = of(&["svcdns", "dnsmasq", "unbound", "relay"]);
    let one_by_one = |address| load::one_by_one(address, Kind::Uncached, scale.one_by_one);
    let title = "Latency added to the upstream's, µs: one query at a time";
    print_latencies(title, &latencies(&forwarders, &upstream, scale, &one_by_one));
    let at_rate =
        |address| load::at_rate(address, Kind::Uncached, QUERIES_PER_SECOND, scale.at_rate);
    let title =
        format!("Latency added to the upstream's, µs: {QUERIES_PER_SECOND} queries per second");
    print_latencies(&title, &latencies(&forwarders, &upstream, scale, &at_rate));

    println!(
        "Medians of {} rounds, with the lowest and the highest; \
         every round measures all servers in turn.",
        scale.rounds
    );
    println!("An aim is judged by the median of the rounds' ratios. {}", reading::note());
    println!(
        "The whole run took {:.0} s; load average now {}",
        begun.elapsed().as_secs_f64(),
        figures::load_average()
    );
}

/// Processor time per response of one server in each round, in microseconds.
struct ForwardCost {
    name: String,
    user: Vec<f64>,
    system: Vec<f64>,
    /// The sum; its bounds follow from the kernel's unit, [`figures::TICK_US`].
    total: Vec<Reading>,
    /// Responses per second.
    rate: Vec<f64>,
    failed: usize,
}

fn processor_time(servers: &[&Server], core: usize, kind: Kind, scale: &Scale) -> Vec<ForwardCost> {
    let new = |server: &&Server| ForwardCost {
        name: server.name.clone(),
        user: vec![],
        system: vec![],
        total: vec![],
        rate: vec![],
        failed: 0,
    };
    let mut costs: Vec<ForwardCost> = servers.iter().map(new).collect();
    for round in 0..=scale.rounds {
        for (server, cost) in servers.iter().zip(&mut costs) {
            // The first round only warms up. Threads may have been started since the last one.
            server.pin(core);
            let before = figures::processor_time(server.pid());
            let result = load::flood(
                server.address,
                kind,
                if round == 0 { scale.period / 4 } else { scale.period },
            );
            let after = figures::processor_time(server.pid());
            assert!(result.right > 0, "{} gave no right response: {result:?}", server.name);
            if round > 0 {
                let right = result.right as f64;
                let [user, system] = [after[0] - before[0], after[1] - before[1]];
                cost.user.push(user / right);
                cost.system.push(system / right);
                // Each of the two is off by less than a tick.
                let bounds = |ticks: f64| (user + system + ticks * figures::TICK_US) / right;
                cost.total.push(Reading {
                    low: bounds(-2.0),
                    value: bounds(0.0),
                    high: bounds(2.0),
                });
                cost.rate.push(result.right as f64 / result.elapsed.as_secs_f64());
                cost.failed += result.failed;
            }
        }
    }
    costs
}

fn print_costs(title: &str, costs: &[ForwardCost]) {
    println!("{title:<60}   user  system   total  (low to high)  responses/CPU s  responses/s");
    for cost in costs {
        let spread = Reading::values(&cost.total);
        let [low, total, high] = [0.0, 0.5, 1.0].map(|share| spread.percentile(share));
        let [user, system, rate] = [&cost.user, &cost.system, &cost.rate]
            .map(|values| Spread::new(values.clone()).median());
        print!(
            "{:<60} {user:>6.2} {system:>7.2} {total:>7.2}  ({low:>5.2}-{high:>5.2})  \
             {:>15.0} {rate:>12.0}",
            cost.name,
            1e6 / total
        );
        print_failed(cost.failed);
    }
}

fn print_failed(failed: usize) {
    println!(
        "{}",
        if failed == 0 { String::new() } else { format!("  {failed} without a right response") }
    );
}

/// Latency percentiles of one server in each round, less those of the upstream.
struct AddedLatency {
    name: String,
    p50: Vec<Reading>,
    p99: Vec<Reading>,
    failed: usize,
}

/// Measures the upstream and every server in turn.
///
/// The first row is that of the upstream itself.
fn latencies(
    servers: &[&Server],
    upstream: &Server,
    scale: &Scale,
    run_load: &dyn Fn(SocketAddr) -> LoadResult,
) -> Vec<AddedLatency> {
    let all: Vec<&Server> = [upstream].into_iter().chain(servers.iter().copied()).collect();
    let mut rounds: Vec<Vec<[f64; 2]>> = vec![Vec::new(); all.len()];
    let mut failed = vec![0; all.len()];
    for _ in 0..scale.rounds {
        for (at, server) in all.iter().enumerate() {
            let result = run_load(server.address);
            let times = Spread::of(result.times);
            rounds[at].push([0.5, 0.99].map(|share| times.percentile(share) * 1e3));
            failed[at] += result.failed;
        }
    }
    let rows = all.iter().enumerate().map(|(at, server)| {
        let baseline =
            |round: usize, share: usize| if at == 0 { 0.0 } else { rounds[0][round][share] };
        let of = |share: usize| -> Vec<Reading> {
            rounds[at]
                .iter()
                .enumerate()
                .map(|(round, times)| Reading::exact(times[share] - baseline(round, share)))
                .collect()
        };
        AddedLatency { name: server.name.clone(), p50: of(0), p99: of(1), failed: failed[at] }
    });
    rows.collect()
}

fn print_latencies(title: &str, rows: &[AddedLatency]) {
    println!("{title:<60}    p50  (low to high)     p99  (low to high)");
    for added in rows {
        let [p50, p99] = [&added.p50, &added.p99].map(|readings| {
            let spread = Reading::values(readings);
            let [low, median, high] = [0.0, 0.5, 1.0].map(|share| spread.percentile(share));
            format!("{median:>7.1}  ({low:>5.1}-{high:>5.1})")
        });
        print!("{:<60}{p50} {p99}", added.name);
        print_failed(added.failed);
    }
    for (share, of) in [
        ("p50", (|added| added.p50.clone()) as fn(&AddedLatency) -> Vec<Reading>),
        ("p99", |added| added.p99.clone()),
    ] {
        print_aim(
            &format!("{share} of svcdns over dnsmasq's"),
            Aim::AtMost(1.0),
            rows,
            "dnsmasq",
            |added| &added.name,
            of,
        );
    }
    println!();
}

/// Prints the verdict on the ratio of svcdns to another server.
///
/// Prints nothing if one of the two was not measured.
fn print_aim<T>(
    what: &str,
    aim: Aim,
    rows: &[T],
    other: &str,
    name: fn(&T) -> &str,
    of: impl Fn(&T) -> Vec<Reading>,
) {
    let find = |wanted: &str| rows.iter().find(|row| name(row).starts_with(wanted)).map(&of);
    if let (Some(ours), Some(theirs)) = (find("svcdns"), find(other)) {
        let ratios: Vec<Reading> =
            ours.into_iter().zip(theirs).map(|(ours, theirs)| ours.over(theirs)).collect();
        println!("{}", aim.line(what, Reading::median(&ratios)));
    }
}
