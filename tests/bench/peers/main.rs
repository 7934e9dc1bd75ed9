//! Benchmark of responses from the registry, compared with other servers.
//!
//! The echo is as fast as the kernel lets a UDP server be. The program prints figures and asserts
//! nothing about them, except that every server gives right responses and that those of the echo
//! are as long as svcdns's.
//!
//! `cargo bench --bench peers` measures everything, and writes `docs/benchmarks.md` and its chart.
//! A run with less writes the same files to `target/peers/`:
//!
//!   `--short`             only shows that the program works, with the installed servers
//!   `--scale=1k|10k|1m`   only this number of services
//!   `--only=a,b`          only these servers; `echo,echo-again` shows the error of ratios
//!   `--rounds=N`          this number of rounds
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program that prints its results and ends at the first error"
)]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures are rounded for people"
)]

mod aims;
mod chart;
#[path = "../common/mod.rs"]
mod common;
mod consul;
mod content;
#[path = "../figures.rs"]
mod figures;
mod handler;
mod interrupt;
mod load;
mod measure;
mod page;
mod paired;
mod peers;
mod queries;
#[path = "../reading.rs"]
mod reading;
mod report;
mod roles;
mod server;
#[path = "../../support/mod.rs"]
mod support;
mod table;

use std::collections::BTreeMap;
use std::env;
use std::thread;
use std::time::{Duration, Instant};

use common::cores;
use content::Content;
use measure::{Load, Rounds, Row};
use peers::{CHECKED, ECHO, PEERS, Peer, SECOND_ECHO};
use queries::Kind;
use report::Results;
use server::Server;
use support::etcd::Etcd;

/// Connections to etcd that put the keys.
const CONNECTIONS: usize = 4;

/// Rounds of a complete run.
///
/// Many short rounds: other work on the machine then affects all servers alike.
const ROUNDS: usize = 21;

/// The parsed arguments.
struct Options {
    short: bool,
    only: Vec<String>,
    contents: Vec<Content>,
    rounds: Rounds,
}

impl Options {
    fn read(arguments: &[String]) -> Self {
        let value =
            |name: &str| arguments.iter().rev().find_map(|argument| argument.strip_prefix(name));
        let short = arguments.iter().any(|argument| argument == "--short");
        let only = value("--only=")
            .map_or_else(Vec::new, |names| names.split(',').map(str::to_owned).collect());
        for name in &only {
            assert!(PEERS.iter().any(|peer| peer.name == name), "no server {name}");
        }
        let content = |services, instances, srv| Content { services, instances, srv };
        let (small, usual, large) =
            (content(1_000, 1, false), content(10_000, 3, true), content(1_000_000, 1, false));
        let contents = match value("--scale=") {
            _ if short => vec![content(200, 3, true)],
            None => vec![usual, small, large],
            Some("1k") => vec![small],
            Some("10k") => vec![usual],
            Some("1m") => vec![large],
            Some(other) => panic!("no scale {other}"),
        };
        let rounds = value("--rounds=")
            .map_or(if short { 1 } else { ROUNDS }, |rounds| rounds.parse().unwrap());
        Self {
            short,
            only,
            contents,
            rounds: Rounds { rounds, period: Duration::from_millis(if short { 60 } else { 250 }) },
        }
    }

    /// Returns whether the run measures everything for the page.
    fn is_complete(&self) -> bool {
        !self.short
            && self.only.is_empty()
            && self.contents.len() == 3
            && self.rounds.rounds >= ROUNDS
    }

    fn wants(&self, peer: &Peer) -> bool {
        if self.only.is_empty() {
            ![SECOND_ECHO, CHECKED].contains(&peer.name)
        } else {
            self.only.iter().any(|name| name == peer.name)
        }
    }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--role") {
        return roles::play(&arguments[at + 1..]);
    }
    interrupt::watch();
    run(&Options::read(&arguments));
}

fn run(options: &Options) {
    let begun = Instant::now();
    let (machine, cores) = (figures::machine(), cores::cores());
    let (mut peers, mut left_out) = (Vec::new(), Vec::new());
    let fewest = options.contents.iter().map(|content| content.services).min().unwrap_or(0);
    for peer in PEERS.iter().filter(|peer| options.wants(peer) && peer.max_services >= fewest) {
        if options.short && !peer.short && options.only.is_empty() {
            left_out.push(format!("{}: not with --short", peer.name));
            continue;
        }
        match (peer.version)() {
            Ok(version) => peers.push((peer, version)),
            Err(reason) => {
                assert!(
                    peer.optional || !options.is_complete(),
                    "a complete run needs {}: {reason}",
                    peer.name
                );
                left_out.push(format!("{}: {reason}", peer.name));
            }
        }
    }
    let mut all = Vec::new();
    for content in &options.contents {
        all.push(measure_content(*content, &mut peers, &mut left_out, options.rounds, cores));
    }
    let page = page::Page { machine, cores, peers, left_out, all, rounds: options.rounds, begun };
    print!("{}", page.text());
    page.write(options.is_complete());
}

/// Starts all servers with a content on one core, and measures them from another.
///
/// An optional server that cannot be started is left out from then on.
fn measure_content<'a>(
    content: Content,
    peers: &mut Vec<(&'a Peer, String)>,
    left_out: &mut Vec<String>,
    rounds: Rounds,
    (core, other): (usize, usize),
) -> Results {
    cores::pin(cores::SELF, other);
    let etcd = Etcd::builder().argument("--quota-backend-bytes=8589934592").start();
    let start = |peer: &Peer, content| -> Result<Server, String> {
        let mut server = cores::on(core, other, || (peer.start)(content, &etcd))?;
        server.wait()?;
        server.pin(core);
        Ok(server)
    };
    let mut leave_out = |peer: &'a Peer, reason: String| {
        assert!(peer.optional, "{}: {reason}", peer.name);
        left_out.push(format!("{}: {}", peer.name, reason.lines().last().unwrap_or_default()));
    };
    let mut empty = BTreeMap::new();
    peers.retain(|(peer, _)| {
        if content.services > peer.max_services {
            return true;
        }
        match start(peer, content.empty()) {
            Ok(server) => empty.insert(peer.name, memory_after_start(&server)).is_none(),
            Err(reason) => {
                leave_out(peer, reason);
                false
            }
        }
    });
    fill(&etcd, content, empty.contains_key("svcdns"), empty.contains_key("coredns"));
    let (loads, mut rows, mut servers) = (loads(content), Vec::new(), Vec::new());
    peers.retain(|(peer, version)| {
        let Some(empty_kib) = empty.get(peer.name) else { return true };
        let row = Row {
            name: peer.name,
            slow: peer.slow,
            rounds: rounds.of(peer.slow),
            version: version.clone(),
            empty_kib: *empty_kib,
            memory_kib: 0,
            samples: BTreeMap::new(),
        };
        match start(peer, content)
            .and_then(|server| measure::check_responses(&server, &row, &loads).map(|()| server))
        {
            Ok(server) => {
                servers.push(server);
                rows.push(row);
            }
            Err(reason) => leave_out(peer, reason),
        }
        servers.len() == rows.len() && rows.last().is_some_and(|row| row.name == peer.name)
    });
    check_equal_lengths(&rows, &servers, &loads);
    let common = measure::measure(&servers, &mut rows, &loads, rounds, core);
    for (row, server) in rows.iter_mut().zip(&servers) {
        row.memory_kib = server.memory_kib();
    }
    Results { content, rows, common }
}

fn loads(content: Content) -> Vec<Load> {
    let kinds: &[Kind] = if content.srv {
        &[Kind::A, Kind::Srv, Kind::NoData, Kind::NxDomain, Kind::Mixed, Kind::Explicit]
    } else {
        &[Kind::A, Kind::NxDomain]
    };
    let floods = kinds.iter().map(|kind| Load::Flood(*kind));
    let rates = [Load::Waking, Load::OwnHalf, Load::CommonHalf];
    floods.chain(rates.into_iter().filter(|_| content.srv)).collect()
}

/// Returns the memory of a server that has just started.
fn memory_after_start(server: &Server) -> u64 {
    thread::sleep(Duration::from_millis(300));
    server.memory_kib()
}

/// Asserts that the echo's responses are as long as svcdns's.
fn check_equal_lengths(rows: &[Row], servers: &[Server], loads: &[Load]) {
    let find = |name| rows.iter().position(|row| row.name == name).map(|at| &servers[at].target);
    let (Some(svcdns), Some(echo)) = (find("svcdns"), find(ECHO)) else { return };
    for load in loads {
        if let Load::Flood(kind) = load
            && *kind != Kind::Mixed
        {
            let [ours, its] = [svcdns, echo].map(|target| target.response_bytes(*kind));
            assert_eq!(ours, its, "bytes per response to {kind:?}, of svcdns and of the echo");
        }
    }
}

/// Puts the content into etcd, for svcdns and for CoreDNS.
///
/// svcdns reads GoFrame's form, CoreDNS that of SkyDNS.
fn fill(etcd: &Etcd, content: Content, goframe: bool, skydns: bool) {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let part = if goframe { content.services.div_ceil(CONNECTIONS) } else { 0 };
    thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let services = (connection * part).min(content.services)
                ..((connection + 1) * part).min(content.services);
            scope.spawn(move || {
                runtime().block_on(
                    etcd.put_many(content.keys(services).inspect(|_| interrupt::check())),
                );
            });
        }
    });
    if skydns {
        runtime().block_on(etcd.put_many(peers::skydns_keys(content)));
    }
}
