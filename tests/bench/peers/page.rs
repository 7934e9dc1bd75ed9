//! The report of a run: on the terminal, as a Markdown page, and a chart.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::load::{FULL_CHECK_INTERVAL, QUERIES_IN_FLIGHT, QUERIES_IN_FLIGHT_SLOW, SOCKETS};
use super::measure::{MAX_SLOW_ROUNDS, Rounds};
use super::peers::{PEERS, Peer};
use super::report::{self, Results};
use super::support::go;
use super::{aims, chart, figures, reading};

/// A run replaces the text between these lines.
const BEGIN: &str = "<!-- Written by `cargo bench --bench peers`: begin -->";
const END: &str = "<!-- end -->";

const PAGE: &str = "benchmarks.md";
const CHART: &str = "benchmarks.svg";

/// The report of a run.
pub(crate) struct Page<'a> {
    pub(crate) machine: String,
    /// The core of the servers, and that of the load.
    pub(crate) cores: (usize, usize),
    pub(crate) peers: Vec<(&'a Peer, String)>,
    /// Servers that were not measured, and why.
    pub(crate) left_out: Vec<String>,
    pub(crate) all: Vec<Results>,
    pub(crate) rounds: Rounds,
    pub(crate) begun: Instant,
}

impl Page<'_> {
    /// Returns the conditions of the run, one per line.
    fn conditions(&self) -> Vec<String> {
        let (core, other) = self.cores;
        let Rounds { rounds, period } = self.rounds;
        let slow = PEERS
            .iter()
            .filter(|peer| peer.slow)
            .map(|peer| peer.name)
            .collect::<Vec<_>>()
            .join(", ");
        let mut lines = vec![
            format!("{}, {}", jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC"), self.machine),
            format!(
                "All threads of a server on core {core}, the load on core {other}; UDP over IPv4 \
                 loopback; queries of 38 bytes without EDNS, names of 20 bytes; with explicit \
                 namespace and deployment 16 bytes more"
            ),
            format!(
                "Full speed: {QUERIES_IN_FLIGHT} queries in flight from {SOCKETS} sockets. The \
                 load checks id, question, code, number of records and length of every response, \
                 which costs it the same for all servers, and the records of one response in \
                 {FULL_CHECK_INTERVAL}"
            ),
            format!(
                "{rounds} round(s), each with every server in turn, {} ms under each load; median \
                 (lower–upper quartile). A ratio pairs samples of the same round; rounds with a \
                 sample of only one of the two servers are left out, and the medians beside the \
                 ratio are of the remaining rounds",
                period.as_millis()
            ),
            "A row or a cell with samples of fewer than half of the rounds is left out: the rate \
             was too high for the server, or the load was stalled during most responses. A note \
             below the table names each such server"
                .to_owned(),
            reading::note(),
            format!(
                "{slow}: at most {MAX_SLOW_ROUNDS} rounds, {QUERIES_IN_FLIGHT_SLOW} queries in \
                 flight, and only A, SRV, NXDOMAIN and half of the full rate: with 10,000 services \
                 they are tens to hundreds of times as slow as the others"
            ),
            "CPU: user and system time of all threads of the server \
             (/proc/PID/task/*/schedstat) per right response"
                .to_owned(),
        ];
        lines.extend(self.left_out.iter().map(|reason| format!("Not measured: {reason}")));
        lines
    }

    fn duration(&self) -> String {
        format!(
            "The whole run took {:.0} s; load average now {}",
            self.begun.elapsed().as_secs_f64(),
            figures::load_average()
        )
    }

    /// Returns the report for the terminal.
    pub(crate) fn text(&self) -> String {
        let mut text = self.conditions().join("\n") + "\n\n";
        for table in [report::settings(&self.peers)]
            .into_iter()
            .chain(self.all.iter().flat_map(Results::tables))
        {
            writeln!(text, "{}", table.text()).unwrap();
        }
        for line in aims::lines(&self.all) {
            writeln!(text, "{line}").unwrap();
        }
        text + &self.duration() + "\n"
    }

    fn markdown(&self) -> String {
        let mut text = format!("![Processor time per response, by query and server]({CHART})\n\n");
        for line in self.conditions() {
            writeln!(text, "- {line}").unwrap();
        }
        text.push('\n');
        for line in aims::lines(&self.all) {
            writeln!(text, "- {line}").unwrap();
        }
        for table in [report::settings(&self.peers)]
            .into_iter()
            .chain(self.all.iter().flat_map(Results::tables))
        {
            write!(text, "\n{}", table.markdown()).unwrap();
        }
        format!("{text}\n{}\n", self.duration())
    }

    /// Writes page and chart.
    ///
    /// The files are in `docs/` after a complete run, otherwise in `target/peers/`.
    pub(crate) fn write(&self, complete: bool) {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let folder: PathBuf = if complete { docs.clone() } else { go::outputs() };
        fs::create_dir_all(&folder).unwrap();
        let old = fs::read_to_string(docs.join(PAGE)).unwrap();
        let (before, rest) = old.split_once(BEGIN).unwrap();
        let (_, after) = rest.split_once(END).unwrap();
        fs::write(
            folder.join(PAGE),
            format!("{before}{BEGIN}\n\n{}\n{END}{after}", self.markdown()),
        )
        .unwrap();
        let below = self.machine.split("; load").next().unwrap_or_default();
        let usual = self.all.iter().find(|results| results.content.srv);
        if let Some(svg) = usual.and_then(|results| chart::svg(results, below)) {
            fs::write(folder.join(CHART), svg).unwrap();
        }
        println!("Written to {}", folder.display());
    }
}
