//! What was measured, as tables.

use super::content::Content;
use super::figures::{Spread, megabytes};
use super::measure::{Load, Row, WAKING};
use super::peers::{ECHO, Peer};
use super::table::Table;

/// What was measured with one content.
pub(crate) struct Results {
    pub(crate) content: Content,
    pub(crate) rows: Vec<Row>,
    /// Questions a second of [`Load::CommonHalf`].
    pub(crate) common: f64,
}

impl Results {
    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// `10,000 services of 3 instances`.
    pub(crate) fn describe(&self) -> String {
        let plural = if self.content.instances == 1 { "" } else { "s" };
        format!("{} services of {} instance{plural}", thousands(self.content.services as f64), self.content.instances)
    }

    /// All tables of this content.
    pub(crate) fn tables(&self) -> Vec<Table> {
        let mut loads: Vec<Load> = self.rows.iter().flat_map(|row| row.samples.keys().copied()).collect();
        loads.sort_unstable();
        loads.dedup();
        let costs = loads.iter().filter(|load| matches!(load, Load::Flood(_) | Load::Waking)).map(|load| self.costs(*load));
        let times = loads.iter().filter(|load| matches!(load, Load::OwnHalf | Load::CommonHalf)).map(|load| self.times(*load));
        costs.chain(times).chain([self.memory()]).collect()
    }

    fn costs(&self, load: Load) -> Table {
        let what = match load {
            Load::Flood(kind) => format!("{}, as many as are answered", kind.name()),
            _ => format!("A, {} questions a second", thousands(WAKING)),
        };
        let echo = self.row(ECHO);
        let row = |row: &Row| {
            let cost = row.spread(load, |sample| sample.cost)?;
            let over = |of: fn(&super::measure::Sample) -> f64| echo.and_then(|echo| row.ratio(echo, load, of));
            let median = |of: fn(&super::measure::Sample) -> f64| row.spread(load, of).map_or(0.0, |spread| spread.median());
            Some(vec![
                title(row),
                spread(Some(&cost), 2),
                spread(over(|sample| sample.cost).as_ref(), 2),
                thousands(median(|sample| sample.rate)),
                spread(over(|sample| sample.rate).as_ref(), 2),
                format!("{:.0} %", 100.0 * median(|sample| sample.busy)),
                // Where a rate is set the load never waits.
                if matches!(load, Load::Flood(_)) { format!("{:.2}", median(|sample| sample.load_cost)) } else { String::new() },
                format!("{:.0}", median(|sample| sample.octets)),
                row.failed(load).to_string(),
            ])
        };
        Table {
            title: format!("{}: {what}", self.describe()),
            head: vec![
                "",
                "CPU µs an answer",
                "over the echo's",
                "answers/s",
                "over the echo's",
                "core busy",
                "load's CPU µs",
                "octets",
                "wrong or lost",
            ],
            rows: self.rows.iter().filter_map(row).collect(),
        }
    }

    fn times(&self, load: Load) -> Table {
        let what = match load {
            Load::OwnHalf => "half of what each answered itself".to_owned(),
            _ => format!("{} questions a second for all", thousands(self.common)),
        };
        let row = |row: &Row| {
            let at = |share: usize| row.spread(load, |sample| sample.times.map_or(f64::NAN, |times| times[share]));
            let [rate, cost, stalled, late] = [
                row.spread(load, |sample| sample.rate)?,
                row.spread(load, |sample| sample.cost)?,
                row.spread(load, |sample| sample.stalled)?,
                row.spread(load, |sample| sample.late)?,
            ];
            Some(vec![
                title(row),
                thousands(rate.median()),
                spread(at(0).as_ref(), 1),
                spread(at(1).as_ref(), 1),
                spread(at(2).as_ref(), 1),
                format!("{:.2}", cost.median()),
                spread(Some(&late), 1),
                format!("{:.1} %", 100.0 * stalled.percentile(1.0)),
                row.failed(load).to_string(),
            ])
        };
        Table {
            title: format!("{}: A, time of an answer in µs at {what}", self.describe()),
            head: vec!["", "answers/s", "p50", "p99", "p99.9", "CPU µs an answer", "asked late, p99", "left out, at most", "wrong or lost"],
            rows: self.rows.iter().filter_map(row).collect(),
        }
    }

    fn memory(&self) -> Table {
        let instances = (self.content.services * self.content.instances) as f64;
        let row = |row: &Row| {
            let added = (row.memory_kib.saturating_sub(row.empty_kib) * 1024) as f64;
            let [empty, now] = [row.empty_kib, row.memory_kib].map(|kib| format!("{:.1}", megabytes(kib)));
            vec![title(row), empty, now, format!("{:.0}", added / instances)]
        };
        Table {
            title: format!("{}: resident memory in MB, after the load", self.describe()),
            head: vec!["", "empty", "now", "octets an instance"],
            rows: self.rows.iter().map(row).collect(),
        }
    }
}

/// How each server was told to serve.
pub(crate) fn settings(peers: &[(&Peer, String)]) -> Table {
    Table {
        title: "The servers".to_owned(),
        head: vec!["", "version", "settings"],
        rows: peers.iter().map(|(peer, version)| vec![peer.name.to_owned(), version.clone(), peer.settings.to_owned()]).collect(),
    }
}

fn title(row: &Row) -> String {
    format!("{} {}", row.name, row.version).trim_end().to_owned()
}

/// `1.05 (1.01–1.20)`: the median, and between what half of the rounds lie: outliers are the machine's.
fn spread(spread: Option<&Spread>, digits: usize) -> String {
    spread.map_or_else(String::new, |spread| {
        let [low, median, high] = [0.25, 0.5, 0.75].map(|share| spread.percentile(share));
        format!("{median:.digits$} ({low:.digits$}–{high:.digits$})")
    })
}

/// `12,345`.
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
