//! Rounds of all servers and loads, and their samples.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use super::common::cores;
use super::figures::Spread;
use super::load::{self, Latency, QUERIES_IN_FLIGHT, QUERIES_IN_FLIGHT_SLOW, Target};
use super::paired::{ByRound, Ratio, paired};
use super::peers::{ECHO, SECOND_ECHO};
use super::queries::Kind;
use super::reading::Reading;
use super::server::Server;

/// Queries per second of [`Load::Waking`], at which wake-ups dominate the cost.
pub(crate) const WAKING_RATE: f64 = 20_000.0;

/// A load on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Load {
    /// Full speed.
    Flood(Kind),
    /// [`WAKING_RATE`], A queries.
    Waking,
    /// Half of the rate that this server reached in the same round, A queries.
    OwnHalf,
    /// Half of the rate that the slowest of [`COMMON`] reached, A queries.
    ///
    /// None of these servers is near its limit, and all have the same work.
    CommonHalf,
}

/// The servers that determine the rate of [`Load::CommonHalf`].
pub(crate) const COMMON: [&str; 4] = ["svcdns", "knot", "nsd", "unbound"];

/// Latency quantiles.
const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];
/// Indexes into [`QUANTILES`].
pub(crate) const P50: usize = 0;
pub(crate) const P99: usize = 1;
pub(crate) const P999: usize = 2;

/// Figures of one server under one load in one round.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// Processor time per right response, in microseconds.
    pub(crate) cost: f64,
    /// Right responses per second.
    pub(crate) rate: f64,
    /// Share of the core's time that the server used.
    pub(crate) busy: f64,
    /// Average bytes per response.
    pub(crate) bytes: f64,
    /// Latencies in microseconds at each of [`QUANTILES`], if known.
    pub(crate) times: [Option<Reading>; QUANTILES.len()],
    /// Wrong and missing responses.
    pub(crate) failed: usize,
    /// Share of the responses whose latency is unknown.
    pub(crate) stalled: f64,
    /// The load's own CPU time per right response, in microseconds.
    pub(crate) load_cost: f64,
    /// p99 of the delay of queries in microseconds, at a fixed rate.
    pub(crate) late: f64,
}

/// A server with all its samples.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) slow: bool,
    pub(crate) version: String,
    pub(crate) empty_kib: u64,
    pub(crate) memory_kib: u64,
    /// Planned rounds of this server.
    pub(crate) rounds: usize,
    pub(crate) samples: BTreeMap<Load, ByRound<Sample>>,
}

impl Row {
    /// Returns the samples under a load; empty if this load was not run.
    pub(crate) fn samples(&self, load: Load) -> impl Iterator<Item = &Sample> {
        self.samples.get(&load).into_iter().flat_map(BTreeMap::values)
    }

    /// Pairs the samples under a load with another server's samples of the same rounds.
    pub(crate) fn beside<'a>(&'a self, other: &'a Self, load: Load) -> Vec<[&'a Sample; 2]> {
        let both = self.samples.get(&load).zip(other.samples.get(&load));
        both.map_or_else(Vec::new, |(ours, theirs)| paired(ours, theirs))
    }

    /// Compares with another server, in the rounds in which `of` is known for both.
    pub(crate) fn ratio(
        &self,
        other: &Self,
        load: Load,
        of: impl Fn(&Sample) -> Option<Reading>,
    ) -> Option<Ratio> {
        let readings = |row: &Self| -> ByRound<Reading> {
            let samples = row.samples.get(&load).into_iter().flatten();
            samples.filter_map(|(round, sample)| Some((*round, of(sample)?))).collect()
        };
        Ratio::of(&readings(self), &readings(other), self.rounds.min(other.rounds))
    }

    pub(crate) fn failed(&self, load: Load) -> usize {
        self.samples(load).map(|sample| sample.failed).sum()
    }
}

/// The extent of a run.
#[derive(Clone, Copy)]
pub(crate) struct Rounds {
    pub(crate) rounds: usize,
    /// Duration of each load on each server in each round.
    pub(crate) period: Duration,
}

impl Rounds {
    /// Returns the planned rounds of a server.
    pub(crate) fn of(self, slow: bool) -> usize {
        if slow { self.rounds.min(MAX_SLOW_ROUNDS) } else { self.rounds }
    }
}

/// Limit for the rounds of slow servers: their higher cost shows in a few.
pub(crate) const MAX_SLOW_ROUNDS: usize = 3;
/// The loads of slow servers.
const SLOW_LOADS: [Load; 4] =
    [Load::Flood(Kind::A), Load::Flood(Kind::Srv), Load::Flood(Kind::NxDomain), Load::OwnHalf];

/// Measures all servers and returns the rate of [`Load::CommonHalf`].
pub(crate) fn measure(
    servers: &[Server],
    rows: &mut [Row],
    loads: &[Load],
    rounds: Rounds,
    core: usize,
) -> f64 {
    // Warms up the servers, and finds the rates that the common rate is derived from.
    let reach = |(server, row): (_, &Row)| {
        sample(server, row.slow, core, rounds.period, Load::Flood(Kind::A), 0.0).rate
    };
    let reached: Vec<f64> = servers.iter().zip(&*rows).map(reach).collect();
    let pairs = || rows.iter().zip(&reached);
    let of_common = pairs().filter(|(row, _)| COMMON.contains(&row.name)).map(|(_, rate)| *rate);
    let common = of_common
        .chain(pairs().map(|(_, rate)| *rate).max_by(f64::total_cmp))
        .min_by(f64::total_cmp)
        .unwrap_or(WAKING_RATE)
        / 2.0;
    for round in 0..rounds.rounds {
        for load in loads {
            for turn in 0..servers.len() {
                // Each round begins with another server.
                let at = (turn + round) % servers.len();
                if round >= rows[at].rounds || !is_measured(&rows[at], *load) {
                    continue;
                }
                let rate = match load {
                    Load::Flood(_) => 0.0,
                    Load::Waking => WAKING_RATE,
                    // The rate of this round: the machine's speed differs between rounds.
                    Load::OwnHalf => rows[at].samples[&Load::Flood(Kind::A)][&round].rate / 2.0,
                    Load::CommonHalf => common,
                };
                // The common rate may exceed what a server can answer.
                if *load == Load::OwnHalf || reached[at] > rate * 1.1 {
                    let sample =
                        sample(&servers[at], rows[at].slow, core, rounds.period, *load, rate);
                    rows[at].samples.entry(*load).or_default().insert(round, sample);
                }
            }
        }
    }
    common
}

/// Checks that a server gives right responses under all its loads.
///
/// # Errors
/// The kind of queries that gets none.
pub(crate) fn check_responses(server: &Server, row: &Row, loads: &[Load]) -> Result<(), String> {
    let wrong = loads.iter().find_map(|load| match load {
        Load::Flood(kind) if is_measured(row, *load) => {
            server.target.response_bytes(*kind).is_none().then_some(kind)
        }
        _ => None,
    });
    wrong.map_or(Ok(()), |kind| Err(format!("no right response to {}", kind.name())))
}

/// Returns whether a server is measured under a load.
///
/// Only svcdns and the handler know names with explicit namespace and deployment; the echo needs
/// no names.
pub(crate) fn is_measured(row: &Row, load: Load) -> bool {
    let known = load != Load::Flood(Kind::Explicit)
        || ["svcdns", "hickory", ECHO, SECOND_ECHO].contains(&row.name);
    known && (!row.slow || SLOW_LOADS.contains(&load))
}

fn sample(
    server: &Server,
    slow: bool,
    core: usize,
    period: Duration,
    load: Load,
    rate: f64,
) -> Sample {
    // The server may have started threads since the last sample.
    server.pin(core);
    let before = settled(server);
    let own = cores::own_time();
    let result = run(&server.target, slow, load, rate, period);
    let own = cores::own_time().saturating_sub(own);
    let spent = settled(server) - before;
    assert!(
        result.right > 0,
        "no right response under {load:?} from {:?}: {result:?}",
        server.target
    );
    let right = result.right as f64;
    Sample {
        cost: spent / right,
        rate: right / result.elapsed.as_secs_f64(),
        busy: spent / 1e6 / result.elapsed.as_secs_f64(),
        bytes: result.bytes as f64 / right,
        times: quantiles(&result),
        failed: result.wrong + result.lost,
        stalled: result.stalled as f64 / right,
        load_cost: own.as_secs_f64() * 1e6 / right,
        late: if result.late.is_empty() {
            0.0
        } else {
            microseconds(result.late.iter()).percentile(0.99)
        },
    }
}

/// Returns the latency quantiles of a load.
///
/// All are unknown if the load was stalled during most responses. A quantile is unknown if it would
/// be the maximum.
fn quantiles(result: &load::LoadResult) -> [Option<Reading>; QUANTILES.len()] {
    if result.times.is_empty() || result.stalled > result.times.len() {
        return [None; QUANTILES.len()];
    }
    let spread = |of: fn(&Latency) -> &u32| microseconds(result.times.iter().map(of));
    let [lower, upper] = [spread(|latency| &latency.lower), spread(|latency| &latency.upper)];
    QUANTILES.map(|share| {
        let [low, high] = [&lower, &upper].map(|spread| spread.percentile(share));
        upper.reaches(share).then_some(Reading { low, value: high, high })
    })
}

fn microseconds<'a>(nanoseconds: impl Iterator<Item = &'a u32>) -> Spread {
    Spread::new(nanoseconds.map(|nanoseconds| f64::from(*nanoseconds) / 1e3).collect())
}

/// Returns the CPU time once the server is idle.
///
/// For a running thread the time may be a tick old.
fn settled(server: &Server) -> f64 {
    thread::sleep(Duration::from_millis(10));
    server.processor_time()
}

/// Runs a load on a server.
fn run(target: &Target, slow: bool, load: Load, rate: f64, period: Duration) -> load::LoadResult {
    match load {
        Load::Flood(kind) => load::flood(
            target,
            kind,
            if slow { QUERIES_IN_FLIGHT_SLOW } else { QUERIES_IN_FLIGHT },
            period,
        ),
        _ => load::at_rate(target, Kind::A, rate, period),
    }
}
