//! The tables of the report.

use super::content::Content;
use super::figures::{Spread, megabytes};
use super::measure::{self, Load, P50, P99, P999, Row, Sample, WAKING_RATE};
use super::paired::are_enough;
use super::peers::{ECHO, Peer};
use super::reading::Reading;
use super::table::Table;

/// The samples of all servers with one content.
pub(crate) struct Results {
    pub(crate) content: Content,
    pub(crate) rows: Vec<Row>,
    /// Queries per second of [`Load::CommonHalf`].
    pub(crate) common: f64,
}

impl Results {
    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// Describes the content: `10,000 services of 3 instances`.
    pub(crate) fn describe(&self) -> String {
        let plural = if self.content.instances == 1 { "" } else { "s" };
        format!(
            "{} services of {} instance{plural}",
            thousands(self.content.services as f64),
            self.content.instances
        )
    }

    /// Returns all tables of this content.
    pub(crate) fn tables(&self) -> Vec<Table> {
        let mut loads: Vec<Load> =
            self.rows.iter().flat_map(|row| row.samples.keys().copied()).collect();
        loads.sort_unstable();
        loads.dedup();
        let costs = loads
            .iter()
            .filter(|load| matches!(load, Load::Flood(_) | Load::Waking))
            .map(|load| self.costs(*load));
        let times = loads
            .iter()
            .filter(|load| matches!(load, Load::OwnHalf | Load::CommonHalf))
            .map(|load| self.times(*load));
        costs.chain(times).chain([self.memory()]).collect()
    }

    fn costs(&self, load: Load) -> Table {
        let what = match load {
            Load::Flood(kind) => format!("{}, full speed", kind.name()),
            _ => format!("A, {} queries per second", thousands(WAKING_RATE)),
        };
        let echo = self.row(ECHO);
        let row = |row: &Row| {
            // All figures of a row are of the rounds of its ratios.
            let pairs = row.beside(echo.unwrap_or(row), load);
            if !are_enough(pairs.len(), row.rounds) {
                return Err(pairs.len());
            }
            let ours =
                |of: fn(&Sample) -> f64| pairs.iter().map(|[ours, _]| of(ours)).collect::<Vec<_>>();
            let median = |of| Spread::new(ours(of)).median();
            let over = |of: fn(&Sample) -> f64| {
                let ratios = pairs.iter().map(|[ours, theirs]| of(ours) / of(theirs));
                if echo.is_some() { spread(ratios.collect(), 2) } else { String::new() }
            };
            Ok(vec![
                title(row),
                spread(ours(|sample| sample.cost), 2),
                over(|sample| sample.cost),
                thousands(median(|sample| sample.rate)),
                over(|sample| sample.rate),
                format!("{:.0} %", 100.0 * median(|sample| sample.busy)),
                // At a fixed rate the load polls, and its CPU time says nothing.
                if matches!(load, Load::Flood(_)) {
                    format!("{:.2}", median(|sample| sample.load_cost))
                } else {
                    String::new()
                },
                format!("{:.0}", median(|sample| sample.bytes)),
                row.failed(load).to_string(),
                pairs.len().to_string(),
            ])
        };
        let (rows, notes) = self.rows_and_notes(load, row);
        Table {
            title: format!("{}: {what}", self.describe()),
            head: vec![
                "",
                "CPU µs per response",
                "over the echo's",
                "responses/s",
                "over the echo's",
                "core busy",
                "load's CPU µs",
                "bytes",
                "wrong or lost",
                "rounds",
            ],
            rows,
            notes,
        }
    }

    fn times(&self, load: Load) -> Table {
        let what = match load {
            Load::OwnHalf => "half of each server's full rate".to_owned(),
            _ => format!("{} queries per second for all", thousands(self.common)),
        };
        let row = |row: &Row| {
            let known: Vec<&Sample> =
                row.samples(load).filter(|sample| sample.times[P50].is_some()).collect();
            if !are_enough(known.len(), row.rounds) {
                return Err(known.len());
            }
            let of = |of: fn(&Sample) -> f64| {
                Spread::new(known.iter().map(|sample| of(sample)).collect())
            };
            let cell = |quantile: usize, of: fn(Reading) -> f64| {
                let times: Vec<f64> =
                    known.iter().filter_map(|sample| sample.times[quantile]).map(of).collect();
                if are_enough(times.len(), row.rounds) { spread(times, 1) } else { String::new() }
            };
            Ok(vec![
                title(row),
                thousands(of(|sample| sample.rate).median()),
                cell(P50, |time| time.value),
                cell(P99, |time| time.value),
                cell(P99, |time| time.low),
                cell(P999, |time| time.value),
                format!("{:.2}", of(|sample| sample.cost).median()),
                spread(known.iter().map(|sample| sample.late).collect(), 1),
                format!("{:.1} %", 100.0 * of(|sample| sample.stalled).percentile(1.0)),
                row.failed(load).to_string(),
                known.len().to_string(),
            ])
        };
        let (rows, notes) = self.rows_and_notes(load, row);
        Table {
            title: format!("{}: A, latency in µs at {what}", self.describe()),
            head: vec![
                "",
                "responses/s",
                "p50",
                "p99",
                "p99, lower bound",
                "p99.9",
                "CPU µs per response",
                "sent late, p99",
                "without latency, max",
                "wrong or lost",
                "rounds",
            ],
            rows,
            notes,
        }
    }

    /// Returns the rows of a load, and a note about each server without one.
    ///
    /// `make` fails with the number of measured rounds if there are too few.
    fn rows_and_notes(
        &self,
        load: Load,
        make: impl Fn(&Row) -> Result<Vec<String>, usize>,
    ) -> (Vec<Vec<String>>, Vec<String>) {
        let (mut rows, mut notes) = (Vec::new(), Vec::new());
        for row in self.rows.iter().filter(|row| measure::is_measured(row, load)) {
            match make(row) {
                Ok(cells) => rows.push(cells),
                Err(rounds) => notes.push(format!(
                    "Left out: {}, measured in {rounds} of {} rounds",
                    row.name, row.rounds
                )),
            }
        }
        (rows, notes)
    }

    fn memory(&self) -> Table {
        let instances = (self.content.services * self.content.instances) as f64;
        let row = |row: &Row| {
            let added = (row.memory_kib.saturating_sub(row.empty_kib) * 1024) as f64;
            let [empty, now] =
                [row.empty_kib, row.memory_kib].map(|kib| format!("{:.1}", megabytes(kib)));
            vec![title(row), empty, now, format!("{:.0}", added / instances)]
        };
        Table {
            title: format!("{}: resident memory in MB, after the load", self.describe()),
            head: vec!["", "empty", "now", "bytes per instance"],
            rows: self.rows.iter().map(row).collect(),
            notes: Vec::new(),
        }
    }
}

/// Returns the table of the servers' versions and settings.
pub(crate) fn settings(peers: &[(&Peer, String)]) -> Table {
    Table {
        title: "The servers".to_owned(),
        head: vec!["", "version", "settings"],
        rows: peers
            .iter()
            .map(|(peer, version)| {
                vec![peer.name.to_owned(), version.clone(), peer.settings.to_owned()]
            })
            .collect(),
        notes: Vec::new(),
    }
}

fn title(row: &Row) -> String {
    format!("{} {}", row.name, row.version).trim_end().to_owned()
}

/// Formats median and quartiles: `1.05 (1.01–1.20)`.
///
/// Values outside the quartiles say more about the machine than about the server.
fn spread(values: Vec<f64>, digits: usize) -> String {
    let spread = Spread::new(values);
    let [low, median, high] = [0.25, 0.5, 0.75].map(|share| spread.percentile(share));
    format!("{median:.digits$} ({low:.digits$}–{high:.digits$})")
}

/// Formats a number with separators: `12,345`.
pub(crate) fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
