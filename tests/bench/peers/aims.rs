//! The aims of svcdns, and the verdicts of this run.

use super::measure::{Load, P99, Sample};
use super::paired::Ratio;
use super::peers::ECHO;
use super::queries::Kind;
use super::reading::{Aim, Reading};
use super::report::Results;

/// An aim with its measured figure.
struct Line {
    what: String,
    aim: Aim,
    measured: Option<Measured>,
}

/// A measured figure with its origin.
struct Measured {
    reading: Reading,
    /// Describes the medians and the number of rounds behind the figure.
    origin: String,
}

impl Line {
    fn new(what: impl Into<String>, aim: Aim, measured: Option<Measured>) -> Self {
        Self { what: what.into(), aim, measured }
    }

    fn text(&self) -> String {
        let Self { what, aim, measured } = self;
        measured.as_ref().map_or_else(
            || format!("aim: {what} {aim}: not measured in enough rounds"),
            |Measured { reading, origin }| format!("{} ({origin})", aim.line(what, *reading)),
        )
    }
}

impl Measured {
    fn new(ratio: &Ratio, other: &str) -> Self {
        let Ratio { median, rounds, medians: [ours, theirs] } = ratio;
        Self {
            reading: *median,
            origin: format!("{ours:.2} and {other}'s {theirs:.2} in {rounds} rounds"),
        }
    }
}

/// Takes the figure of an aim from a sample; `None` if it is unknown.
type Figure = fn(&Sample) -> Option<Reading>;

const COST: Figure = |sample| Some(Reading::exact(sample.cost));
const RATE: Figure = |sample| Some(Reading::exact(sample.rate));
const P99_TIME: Figure = |sample| sample.times[P99];

/// Returns a line for each aim whose content was measured.
pub(crate) fn lines(all: &[Results]) -> Vec<String> {
    let of = |services: usize| all.iter().find(|results| results.content.services == services);
    let [small, usual, large] = [1_000, 10_000, 1_000_000].map(of);
    let mut aims = Vec::new();
    if let Some(usual) = usual {
        against_echo(usual, &mut aims);
        against_peers(usual, Kind::A, 0.8, &mut aims);
        against_peers(usual, Kind::Srv, 0.8, &mut aims);
        against_peers(usual, Kind::NxDomain, 0.9, &mut aims);
        let what = "p99 at the common rate over the better of knot's and nsd's";
        aims.push(Line::new(
            what,
            Aim::AtMost(1.0),
            over_better(usual, Load::CommonHalf, P99_TIME),
        ));
        let what = "p99 at half of its full rate over the better of knot's and nsd's";
        aims.push(Line::new(what, Aim::AtMost(1.0), over_better(usual, Load::OwnHalf, P99_TIME)));
        let what = "CPU of A, explicit namespace and deployment, over the hickory-server handler's";
        aims.push(Line::new(
            what,
            Aim::AtMost(1.0),
            over(usual, "hickory", Load::Flood(Kind::Explicit), COST),
        ));
    }
    for (results, limit) in [(small, 0.9), (large, 0.8)] {
        if let Some(results) = results {
            against_peers(results, Kind::A, limit, &mut aims);
        }
    }
    if let (Some(small), Some(large)) = (small, large) {
        let what = "growth of CPU over the echo's from 1,000 to 1,000,000 names";
        aims.push(Line::new(what, Aim::AtMost(1.1), growth(small, large)));
    }
    aims.iter().map(Line::text).collect()
}

fn against_echo(results: &Results, aims: &mut Vec<Line>) {
    for (kind, limit) in [
        (Kind::A, 1.08),
        (Kind::Srv, 1.1),
        (Kind::NoData, 1.08),
        (Kind::NxDomain, 1.08),
        (Kind::Mixed, 1.08),
    ] {
        let (load, name) = (Load::Flood(kind), kind.name());
        aims.push(Line::new(
            format!("CPU of {name} over the echo's"),
            Aim::AtMost(limit),
            over(results, ECHO, load, COST),
        ));
        aims.push(Line::new(
            format!("responses/s of {name} over the echo's"),
            Aim::AtLeast(0.93),
            over(results, ECHO, load, RATE),
        ));
    }
    let what = "CPU over the echo's at 20,000 queries/s";
    aims.push(Line::new(what, Aim::AtMost(1.05), over(results, ECHO, Load::Waking, COST)));
}

fn against_peers(results: &Results, kind: Kind, limit: f64, aims: &mut Vec<Line>) {
    let what = format!(
        "CPU of {} over the better of knot's and nsd's, {}",
        kind.name(),
        results.describe()
    );
    aims.push(Line::new(what, Aim::AtMost(limit), over_better(results, Load::Flood(kind), COST)));
}

fn ratio(results: &Results, other: &str, load: Load, of: Figure) -> Option<Ratio> {
    results.row("svcdns")?.ratio(results.row(other)?, load, of)
}

fn over(results: &Results, other: &str, load: Load, of: Figure) -> Option<Measured> {
    Some(Measured::new(&ratio(results, other, load, of)?, other))
}

/// Compares with the better of knot and nsd, whose ratio is the larger one.
fn over_better(results: &Results, load: Load, of: Figure) -> Option<Measured> {
    let [knot, nsd] = [over(results, "knot", load, of)?, over(results, "nsd", load, of)?];
    let reading = knot.reading.max(nsd.reading);
    let larger = if knot.reading.value > nsd.reading.value { knot } else { nsd };
    Some(Measured { reading, ..larger })
}

fn growth(small: &Results, large: &Results) -> Option<Measured> {
    let [small, large] =
        [small, large].map(|results| ratio(results, ECHO, Load::Flood(Kind::A), COST));
    let (small, large) = (small?, large?);
    let origin = format!(
        "{:.2} in {} rounds and {:.2} in {}",
        large.median.value, large.rounds, small.median.value, small.rounds
    );
    Some(Measured { reading: large.median.over(small.median), origin })
}
