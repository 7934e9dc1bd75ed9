//! Rounds in which every server is asked in turn, and what they showed.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use super::common::cores;
use super::figures::Spread;
use super::load::{self, IN_FLIGHT, IN_FLIGHT_SLOW, Target, Took};
use super::paired::{ByRound, Ratio, paired};
use super::peers::{ECHO, SECOND_ECHO};
use super::queries::Kind;
use super::reading::Reading;
use super::server::Server;

/// Queries a second where wake-ups dominate.
pub(crate) const WAKING: f64 = 20_000.0;

/// How a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Load {
    /// As much as it answers.
    Flood(Kind),
    /// [`WAKING`] queries a second for A.
    Waking,
    /// For A, half of what it answered itself.
    OwnHalf,
    /// For A, half of what the slowest of [`COMMON`] answered: none of them is near its end, and all have the same to do.
    CommonHalf,
}

/// Whose rates make the common one.
pub(crate) const COMMON: [&str; 4] = ["svcdns", "knot", "nsd", "unbound"];

/// Quantiles of the times of answers that are told: p50, p99, p99.9.
const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];
/// Where among them p50 and p99 are.
pub(crate) const P50: usize = 0;
pub(crate) const P99: usize = 1;
pub(crate) const P999: usize = 2;

/// What one server showed under one load in one round.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// Microseconds of processor time for a right answer.
    pub(crate) cost: f64,
    /// Right answers per second.
    pub(crate) rate: f64,
    /// Share of its core's time.
    pub(crate) busy: f64,
    /// Octets of an answer, on average.
    pub(crate) bytes: f64,
    /// Times of answers in microseconds at each of [`QUANTILES`], where they are known.
    pub(crate) times: [Option<Reading>; QUANTILES.len()],
    /// Wrong and lost answers.
    pub(crate) failed: usize,
    /// Share of the answers whose time could not be told.
    pub(crate) stalled: f64,
    /// Microseconds of the load's own processor time for a right answer.
    pub(crate) load_cost: f64,
    /// How late the load was with a query in microseconds, where a rate was set: p99.
    pub(crate) late: f64,
}

/// A server, and all that was measured of it.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) slow: bool,
    pub(crate) version: String,
    pub(crate) empty_kib: u64,
    pub(crate) memory_kib: u64,
    /// Rounds that the server is to take part in.
    pub(crate) rounds: usize,
    pub(crate) samples: BTreeMap<Load, ByRound<Sample>>,
}

impl Row {
    /// Returns the samples under a load; none when the server was not asked so.
    pub(crate) fn samples(&self, load: Load) -> impl Iterator<Item = &Sample> {
        self.samples.get(&load).into_iter().flat_map(BTreeMap::values)
    }

    /// Pairs the samples under a load with those of another server in the same rounds.
    pub(crate) fn beside<'a>(&'a self, other: &'a Self, load: Load) -> Vec<[&'a Sample; 2]> {
        let both = self.samples.get(&load).zip(other.samples.get(&load));
        both.map_or_else(Vec::new, |(ours, theirs)| paired(ours, theirs))
    }

    /// Compares with another server, in the rounds in which both were measured and `of` is known.
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

/// How often and how long.
#[derive(Clone, Copy)]
pub(crate) struct Rounds {
    pub(crate) rounds: usize,
    /// Of each load on each server in each round.
    pub(crate) period: Duration,
}

impl Rounds {
    /// Rounds that a server is to take part in.
    pub(crate) fn of(self, slow: bool) -> usize {
        if slow { self.rounds.min(SLOW_ROUNDS) } else { self.rounds }
    }
}

/// Rounds that slow servers take part in: what they cost more than others shows in a few.
pub(crate) const SLOW_ROUNDS: usize = 3;
/// And what they are asked.
const SLOW_LOADS: [Load; 4] =
    [Load::Flood(Kind::A), Load::Flood(Kind::Srv), Load::Flood(Kind::NxDomain), Load::OwnHalf];

/// Measures all servers under all loads; the rate of [`Load::CommonHalf`].
pub(crate) fn measure(
    servers: &[Server],
    rows: &mut [Row],
    loads: &[Load],
    rounds: Rounds,
    core: usize,
) -> f64 {
    // Makes everything ready, and tells the rates that later loads are halves of.
    let reach = |(server, row): (_, &Row)| {
        sample(server, row.slow, core, rounds.period, Load::Flood(Kind::A), 0.0).rate
    };
    let reached: Vec<f64> = servers.iter().zip(&*rows).map(reach).collect();
    let pairs = || rows.iter().zip(&reached);
    let of_common = pairs().filter(|(row, _)| COMMON.contains(&row.name)).map(|(_, rate)| *rate);
    let common = of_common
        .chain(pairs().map(|(_, rate)| *rate).max_by(f64::total_cmp))
        .min_by(f64::total_cmp)
        .unwrap_or(WAKING)
        / 2.0;
    for round in 0..rounds.rounds {
        for load in loads {
            for turn in 0..servers.len() {
                // Each round begins with another.
                let at = (turn + round) % servers.len();
                if round >= rows[at].rounds || !is_asked(&rows[at], *load) {
                    continue;
                }
                let rate = match load {
                    Load::Flood(_) => 0.0,
                    Load::Waking => WAKING,
                    // Of this round, whose machine may be faster or slower than that of the others.
                    Load::OwnHalf => rows[at].samples[&Load::Flood(Kind::A)][&round].rate / 2.0,
                    Load::CommonHalf => common,
                };
                // A rate that is the same for all may be beyond a server.
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

/// Whether a server gives a right answer to all that it will be asked; what it does not.
pub(crate) fn answers_rightly(server: &Server, row: &Row, loads: &[Load]) -> Result<(), String> {
    let wrong = loads.iter().find_map(|load| match load {
        Load::Flood(kind) if is_asked(row, *load) => {
            server.target.size_of_answer(*kind).is_none().then_some(kind)
        }
        _ => None,
    });
    wrong.map_or(Ok(()), |kind| Err(format!("it gives no right answer to {}", kind.name())))
}

/// Returns whether a server is measured under a load: only svcdns and the handler know names that
/// are spelled out.
pub(crate) fn is_asked(row: &Row, load: Load) -> bool {
    let known = load != Load::Flood(Kind::SpelledOut)
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
    // Threads may have been started since the last time.
    server.pin(core);
    let before = settled(server);
    let own = cores::own_time();
    let seen = ask(&server.target, slow, load, rate, period);
    let own = cores::own_time().saturating_sub(own);
    let spent = settled(server) - before;
    assert!(seen.right > 0, "no right answer under {load:?} from {:?}: {seen:?}", server.target);
    let right = seen.right as f64;
    Sample {
        cost: spent / right,
        rate: right / seen.elapsed.as_secs_f64(),
        busy: spent / 1e6 / seen.elapsed.as_secs_f64(),
        bytes: seen.bytes as f64 / right,
        times: quantiles(&seen),
        failed: seen.wrong + seen.lost,
        stalled: seen.stalled as f64 / right,
        load_cost: own.as_secs_f64() * 1e6 / right,
        late: if seen.late.is_empty() {
            0.0
        } else {
            microseconds(seen.late.iter()).percentile(0.99)
        },
    }
}

/// Takes the quantiles of a load's times.
///
/// None is known where the load stood still during most answers, nor one that would only be the
/// longest time of all.
fn quantiles(seen: &load::Seen) -> [Option<Reading>; QUANTILES.len()] {
    if seen.times.is_empty() || seen.stalled > seen.times.len() {
        return [None; QUANTILES.len()];
    }
    let spread = |of: fn(&Took) -> &u32| microseconds(seen.times.iter().map(of));
    let [least, most] = [spread(|took| &took.least), spread(|took| &took.most)];
    QUANTILES.map(|share| {
        let [low, high] = [&least, &most].map(|spread| spread.percentile(share));
        most.reaches(share).then_some(Reading { low, value: high, high })
    })
}

fn microseconds<'a>(nanoseconds: impl Iterator<Item = &'a u32>) -> Spread {
    Spread::new(nanoseconds.map(|nanoseconds| f64::from(*nanoseconds) / 1e3).collect())
}

/// Processor time so far, taken while the server waits: of a thread that runs it is known only to the last tick.
fn settled(server: &Server) -> f64 {
    thread::sleep(Duration::from_millis(10));
    server.processor_time()
}

fn ask(target: &Target, slow: bool, load: Load, rate: f64, period: Duration) -> load::Seen {
    match load {
        Load::Flood(kind) => {
            load::flood(target, kind, if slow { IN_FLIGHT_SLOW } else { IN_FLIGHT }, period)
        }
        _ => load::at_rate(target, Kind::A, rate, period),
    }
}
