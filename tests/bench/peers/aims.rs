//! What svcdns is to reach, and whether this run shows it.

use super::measure::{Load, Sample};
use super::peers::ECHO;
use super::questions::Kind;
use super::report::Results;

/// One aim.
struct Aim {
    what: String,
    limit: f64,
    /// Whether the limit is the least that is wanted; else it is the most.
    least: bool,
    value: Option<f64>,
}

impl Aim {
    fn line(&self) -> String {
        let Self { what, limit, least, value } = self;
        let sign = if *least { "≥" } else { "≤" };
        let said = value.map_or_else(
            || "not measured".to_owned(),
            |value| {
                let met = if *least { value >= *limit } else { value <= *limit };
                format!("{value:.2} {}", if met { "met" } else { "MISSED" })
            },
        );
        format!("aim: {what} {sign} {limit:.2}: {said}")
    }
}

fn cost(sample: &Sample) -> f64 {
    sample.cost
}

/// A line for each aim, as far as something was measured of it. `all` holds the results by number of services.
pub(crate) fn lines(all: &[Results]) -> Vec<String> {
    let of = |services: usize| all.iter().find(|results| results.content.services == services);
    let [small, usual, large] = [1_000, 10_000, 1_000_000].map(of);
    let mut aims = Vec::new();
    if let Some(usual) = usual {
        against_echo(usual, &mut aims);
        against_peers(usual, Kind::A, 0.8, &mut aims);
        against_peers(usual, Kind::Srv, 0.8, &mut aims);
        against_peers(usual, Kind::NxDomain, 0.9, &mut aims);
        let p99 = |sample: &Sample| sample.times.map_or(f64::NAN, |times| times[1]);
        let what = "p99 at the common rate over the better of knot's and nsd's".to_owned();
        aims.push(Aim { what, limit: 1.0, least: false, value: over_better(usual, Load::CommonHalf, p99) });
        let what = "p99 at half of its own rate over the better of knot's and nsd's".to_owned();
        aims.push(Aim { what, limit: 1.0, least: false, value: over_better(usual, Load::OwnHalf, p99) });
        let value = over(usual, "hickory", Load::Flood(Kind::SpelledOut), cost);
        aims.push(Aim {
            what: "CPU of A, namespace and deployment spelled out, over the hickory-server handler's".to_owned(),
            limit: 1.0,
            least: false,
            value,
        });
    }
    for (results, limit) in [(small, 0.9), (large, 0.8)] {
        if let Some(results) = results {
            against_peers(results, Kind::A, limit, &mut aims);
        }
    }
    if let (Some(small), Some(large)) = (small, large) {
        let [small, large] = [small, large].map(|results| over(results, ECHO, Load::Flood(Kind::A), cost));
        let value = large.zip(small).map(|(large, small)| large / small);
        aims.push(Aim { what: "growth of CPU over the echo's from 1,000 to 1,000,000 names".to_owned(), limit: 1.1, least: false, value });
    }
    aims.iter().map(Aim::line).collect()
}

fn against_echo(results: &Results, aims: &mut Vec<Aim>) {
    for (kind, limit) in [(Kind::A, 1.08), (Kind::Srv, 1.1), (Kind::NoData, 1.08), (Kind::NxDomain, 1.08), (Kind::Mixed, 1.08)] {
        let (load, name) = (Load::Flood(kind), kind.name());
        let value = over(results, ECHO, load, cost);
        aims.push(Aim { what: format!("CPU of {name} over the echo's"), limit, least: false, value });
        let value = over(results, ECHO, load, |sample| sample.rate);
        aims.push(Aim { what: format!("answers/s of {name} over the echo's"), limit: 0.93, least: true, value });
    }
    let value = over(results, ECHO, Load::Waking, cost);
    aims.push(Aim { what: "CPU over the echo's at 20,000 questions/s".to_owned(), limit: 1.05, least: false, value });
}

fn against_peers(results: &Results, kind: Kind, limit: f64, aims: &mut Vec<Aim>) {
    let what = format!("CPU of {} over the better of knot's and nsd's, {}", kind.name(), results.describe());
    aims.push(Aim { what, limit, least: false, value: over_better(results, Load::Flood(kind), cost) });
}

/// Median of the ratios of svcdns to another.
fn over(results: &Results, other: &str, load: Load, of: fn(&Sample) -> f64) -> Option<f64> {
    results.row("svcdns")?.ratio(results.row(other)?, load, of).map(|ratio| ratio.median())
}

/// The larger of the two ratios: to the better one.
fn over_better(results: &Results, load: Load, of: fn(&Sample) -> f64) -> Option<f64> {
    ["knot", "nsd"]
        .into_iter()
        .map(|other| over(results, other, load, of))
        .collect::<Option<Vec<f64>>>()?
        .into_iter()
        .max_by(f64::total_cmp)
}
