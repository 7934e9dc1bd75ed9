//! The report of a run: on the terminal, as Markdown in `docs/benchmarks.md`, and its chart.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::load::{IN_FLIGHT, IN_FLIGHT_SLOW, IN_FULL, SOCKETS};
use super::measure::{Rounds, SLOW_ROUNDS};
use super::peers::{PEERS, Peer};
use super::report::{self, Results};
use super::{aims, chart, figures, go, reading};

/// What a run replaces stands between these lines.
const BEGIN: &str = "<!-- Written by `cargo bench --bench peers`: begin -->";
const END: &str = "<!-- end -->";

const PAGE: &str = "benchmarks.md";
const CHART: &str = "benchmarks.svg";

/// All that a run has to say.
pub(crate) struct Page<'a> {
    pub(crate) machine: String,
    /// Of the servers, and of the load.
    pub(crate) cores: (usize, usize),
    pub(crate) peers: Vec<(&'a Peer, String)>,
    /// Servers that were not measured, and why.
    pub(crate) left_out: Vec<String>,
    pub(crate) all: Vec<Results>,
    pub(crate) rounds: Rounds,
    pub(crate) begun: Instant,
}

impl Page<'_> {
    /// How it was measured, a line each.
    fn circumstances(&self) -> Vec<String> {
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
                "All threads of a server on core {core}, the load on core {other}; IPv4, UDP, loopback; queries of 38 bytes without EDNS, names of 20 bytes; where namespace and deployment are spelled out, 16 more"
            ),
            format!(
                "As many as are answered: {IN_FLIGHT} in flight from {SOCKETS} sockets. Of every answer are checked id, query, code, number of records and length, which costs the load the same for all servers; of one in {IN_FULL} that its records are those of the name, too"
            ),
            format!(
                "{rounds} round(s), in each every server in turn, {} ms under each load; median (lower–upper quartile). A ratio is of two samples of the same round, and only rounds that both servers took part in count; the medians beside it are of the same rounds",
                period.as_millis()
            ),
            "A row or a cell that lacks most of its rounds is left out: the rate was beyond the server, or the load stood still during most answers, and what remains says nothing. A note below the table names each such server".to_owned(),
            reading::note(),
            format!(
                "{slow}: {SLOW_ROUNDS} rounds at most, {IN_FLIGHT_SLOW} in flight, and only A, SRV, NXDOMAIN and half of what each answered: with 10,000 services they are tens to hundreds of times as slow as the others, and the run is to end"
            ),
            "CPU: user and system time of all threads of the server (/proc/PID/task/*/schedstat), by right answers".to_owned(),
        ];
        lines.extend(self.left_out.iter().map(|reason| format!("Not measured: {reason}")));
        lines
    }

    fn ended(&self) -> String {
        format!(
            "The whole run took {:.0} s; load average now {}",
            self.begun.elapsed().as_secs_f64(),
            figures::load_average()
        )
    }

    /// For the terminal.
    pub(crate) fn text(&self) -> String {
        let mut text = self.circumstances().join("\n") + "\n\n";
        for table in [report::settings(&self.peers)]
            .into_iter()
            .chain(self.all.iter().flat_map(Results::tables))
        {
            writeln!(text, "{}", table.text()).unwrap();
        }
        for line in aims::lines(&self.all) {
            writeln!(text, "{line}").unwrap();
        }
        text + &self.ended() + "\n"
    }

    fn markdown(&self) -> String {
        let mut text =
            format!("![Processor time of an answer, by query and server]({CHART})\n\n");
        for line in self.circumstances() {
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
        format!("{text}\n{}\n", self.ended())
    }

    /// Writes page and chart, in `docs` when the run was a whole one.
    pub(crate) fn write(&self, whole: bool) {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let folder: PathBuf = if whole { docs.clone() } else { go::program("") };
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
