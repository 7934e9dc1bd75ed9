//! Starts of svcdns: time to the first answer, and memory.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions};
use tempfile::TempDir;

use super::figures::Spread;
use super::keys::runtime;
use super::reading::Reading;
use super::support::etcd::Etcd;
use super::support::process::Process;
use super::support::{dns, eventually, free_address, seconds, svcdns};
use super::udp_client::{self, UdpClient};

/// Longest wait for a list; generous, because the machine may be busy.
const LIST_TIMEOUT: Duration = seconds(600);

/// A running `svcdns serve`.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    state: TempDir,
}

/// Memory of a process, in KiB.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident_kib: u64,
    pub(crate) peak_kib: u64,
}

impl Server {
    fn start(etcd: &Etcd) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), etcd)
    }

    /// Starts a server in the state directory of an earlier one.
    fn start_in(state: TempDir, etcd: &Etcd) -> Self {
        let address = free_address();
        let mut command = svcdns::command();
        command.args([
            "serve",
            "--registry",
            &etcd.url(),
            "--listen",
            &address.to_string(),
            "--admin-listen",
            "off",
            "--upstream",
            "off",
            "--log",
            "debug",
        ]);
        command.arg("--state-dir").arg(state.path());
        Self { process: Process::start(&mut command), address, state }
    }

    /// Queries every half millisecond until a response is `right`.
    ///
    /// Returns the times between which the server was first able to give it.
    fn wait(&mut self, name: &str, right: impl Fn(&[u8]) -> bool) -> [Instant; 2] {
        let (begun, query, mut client) =
            (Instant::now(), udp_client::query(name), UdpClient::new(self.address));
        let (mut wrong, mut before) = (begun, begun);
        loop {
            let now = Instant::now();
            match client.poll(&query) {
                Some(response) if right(response) => return [wrong, Instant::now()],
                // The server sent this response after the previous poll.
                Some(_) => wrong = before,
                None => {}
            }
            before = now;
            assert!(self.process.ended().is_none(), "svcdns ended:\n{}", self.process.log());
            assert!(
                begun.elapsed() < LIST_TIMEOUT,
                "svcdns does not answer for {name}:\n{}",
                self.process.log()
            );
            thread::sleep(Duration::from_micros(500));
        }
    }

    /// Waits until the server has written a snapshot; returns how long that took, in milliseconds.
    fn wait_for_write(&mut self) -> u64 {
        eventually("the snapshot", LIST_TIMEOUT, || {
            let log = self.process.log();
            let line = log.lines().rfind(|line| line.contains("saved the snapshot"))?;
            line.split("duration_ms=").nth(1)?.split(' ').next()?.parse().ok()
        })
    }

    pub(crate) fn memory(&self) -> Memory {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let kib = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        Memory { resident_kib: kib("VmRSS:"), peak_kib: kib("VmHWM:") }
    }

    pub(crate) fn stop(self) {
        drop(self.stop_and_keep());
    }

    /// Kills the server; returns its state directory.
    fn kill(self) -> TempDir {
        drop(self.process);
        self.state
    }

    /// Stops the server; returns its state directory.
    fn stop_and_keep(mut self) -> TempDir {
        let status = self.process.terminate();
        assert!(status.success(), "svcdns ended with {status}:\n{}", self.process.log());
        self.state
    }
}

/// Times of several starts.
pub(crate) struct Starts {
    /// Time to the first answer, in milliseconds.
    ///
    /// The last poll without the answer is the lower bound.
    pub(crate) first_answer: Vec<Reading>,
    /// Times of bare lists, by page size.
    pub(crate) lists: Vec<(i64, Spread)>,
}

/// Returns the memory of svcdns with an empty registry.
pub(crate) fn memory_of_empty(etcd: &Etcd) -> Memory {
    let mut server = Server::start(etcd);
    server.wait("nothing.svc", |response| dns::code_of(response) == "NXDOMAIN");
    thread::sleep(seconds(1));
    let memory = server.memory();
    server.stop();
    memory
}

/// Starts svcdns several times, each time after bare lists.
///
/// `pages` are the sizes of the lists' pages.
///
/// `last` is the name of the service that is listed last. The last svcdns is returned, running.
pub(crate) fn measure(
    etcd: &Etcd,
    last: &str,
    keys: usize,
    starts: usize,
    pages: &[i64],
) -> (Server, Starts) {
    let (mut first_answer, mut lists) = (Vec::new(), vec![Vec::new(); pages.len()]);
    let mut running: Option<Server> = None;
    for _ in 0..starts {
        if let Some(server) = running.take() {
            server.stop();
        }
        for (page, times) in pages.iter().zip(&mut lists) {
            times.push(list(etcd, *page, keys));
        }
        let begun = Instant::now();
        let mut server = Server::start(etcd);
        let seen =
            server.wait(last, |response| udp_client::answer_count(response).is_some_and(|n| n > 0));
        let [low, high] = seen.map(|at| (at - begun).as_secs_f64() * 1e3);
        first_answer.push(Reading { low, value: high, high });
        running = Some(server);
    }
    let lists = pages.iter().copied().zip(lists.into_iter().map(Spread::of)).collect();
    (running.unwrap(), Starts { first_answer, lists })
}

/// Size and times of a snapshot, and memory around it.
pub(crate) struct SnapshotFigures {
    /// Size of the file, in bytes.
    pub(crate) bytes: u64,
    /// Time to write the file, in milliseconds, as the server logs it.
    pub(crate) write_ms: u64,
    /// Peak memory before the first write, and after it.
    pub(crate) peaks_kib: [u64; 2],
    /// Time from `exec` to the first answer without the registry, in milliseconds.
    pub(crate) first_answer: Vec<Reading>,
    /// Memory of the last server that started from the snapshot.
    pub(crate) memory: Memory,
}

/// Waits for a server's snapshot, kills it and its registry, and starts svcdns several times.
pub(crate) fn measure_snapshot(
    mut server: Server,
    mut etcd: Etcd,
    last: &str,
    starts: usize,
) -> SnapshotFigures {
    let before = server.memory().peak_kib;
    let write_ms = server.wait_for_write();
    let peaks_kib = [before, server.memory().peak_kib];
    etcd.kill();
    let mut first_answer = Vec::new();
    for _ in 0..starts {
        let state = server.kill();
        let begun = Instant::now();
        server = Server::start_in(state, &etcd);
        let seen =
            server.wait(last, |response| udp_client::answer_count(response).is_some_and(|n| n > 0));
        let [low, high] = seen.map(|at| (at - begun).as_secs_f64() * 1e3);
        first_answer.push(Reading { low, value: high, high });
    }
    let memory = server.memory();
    let state = server.stop_and_keep();
    let bytes = fs::metadata(state.path().join("snapshot-etcd")).unwrap().len();
    SnapshotFigures { bytes, write_ms, peaks_kib, first_answer, memory }
}

/// Lists the same keys at one revision, and returns how long it took.
///
/// The time includes connecting.
fn list(etcd: &Etcd, page: i64, keys: usize) -> Duration {
    let begun = Instant::now();
    runtime().block_on(async {
        let mut client = Client::connect([etcd.endpoint(0)], None).await.unwrap();
        let (mut from, mut revision, mut found) = (b"/service/".to_vec(), 0, 0);
        loop {
            let options =
                GetOptions::new().with_range("/service0").with_limit(page).with_revision(revision);
            let response = client.get(from, Some(options)).await.unwrap();
            revision = response.header().unwrap().revision();
            found += response.kvs().len();
            if !response.more() {
                break;
            }
            from = response.kvs().last().unwrap().key().to_vec();
            from.push(0);
        }
        assert_eq!(found, keys);
    });
    begun.elapsed()
}
