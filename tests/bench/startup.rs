//! Starts of svcdns: how long until it answers, and what it holds.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions};
use tempfile::TempDir;

use super::ask::{self, Asker};
use super::figures::Spread;
use super::keys::runtime;
use super::reading::Reading;
use super::support::etcd::Etcd;
use super::support::process::Process;
use super::support::{dns, free_address, seconds, svcdns};

/// Longest wait for a list: the machine may be busy.
const PATIENCE: Duration = seconds(600);

/// A running `svcdns serve`.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    _state: TempDir,
}

/// Memory of a process, in KiB.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident_kib: u64,
    pub(crate) peak_kib: u64,
}

impl Server {
    fn start(etcd: &Etcd) -> Self {
        let (address, state) = (free_address(), tempfile::tempdir().unwrap());
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
        ]);
        command.arg("--state-dir").arg(state.path());
        Self { process: Process::start(&mut command), address, _state: state }
    }

    /// Asks every half millisecond until an answer is `right`; returns the moments between which the server
    /// had that answer first.
    fn wait(&mut self, name: &str, right: impl Fn(&[u8]) -> bool) -> [Instant; 2] {
        let (begun, question, mut asker) =
            (Instant::now(), ask::question(name), Asker::new(self.address));
        let (mut wrong, mut before) = (begun, begun);
        loop {
            let now = Instant::now();
            match asker.poll(&question) {
                Some(answer) if right(answer) => return [wrong, Instant::now()],
                // The server gave it after the look before.
                Some(_) => wrong = before,
                None => {}
            }
            before = now;
            assert!(self.process.ended().is_none(), "svcdns ended:\n{}", self.process.log());
            assert!(
                begun.elapsed() < PATIENCE,
                "svcdns does not answer for {name}:\n{}",
                self.process.log()
            );
            thread::sleep(Duration::from_micros(500));
        }
    }

    pub(crate) fn memory(&self) -> Memory {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let kib = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        Memory { resident_kib: kib("VmRSS:"), peak_kib: kib("VmHWM:") }
    }

    pub(crate) fn stop(mut self) {
        let status = self.process.terminate();
        assert!(status.success(), "svcdns ended with {status}:\n{}", self.process.log());
    }
}

/// What several starts showed.
pub(crate) struct Starts {
    /// In milliseconds, bounded by the last look that found no such answer.
    pub(crate) first_answer: Vec<Reading>,
    /// Of a bare list, by the size of its pages.
    pub(crate) lists: Vec<(i64, Spread)>,
}

/// The memory of a svcdns that has read an empty registry.
pub(crate) fn memory_of_empty(etcd: &Etcd) -> Memory {
    let mut server = Server::start(etcd);
    server.wait("nothing.svc", |answer| dns::code_of(answer) == "NXDOMAIN");
    thread::sleep(seconds(1));
    let memory = server.memory();
    server.stop();
    memory
}

/// Starts svcdns so often, with bare lists in pages of these sizes in between; the last one goes on running. `last` is the
/// name of the service that is listed last.
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
            server.wait(last, |answer| ask::records(answer).is_some_and(|records| records > 0));
        let [low, high] = seen.map(|at| (at - begun).as_secs_f64() * 1e3);
        first_answer.push(Reading { low, value: high, high });
        running = Some(server);
    }
    let lists = pages.iter().copied().zip(lists.into_iter().map(Spread::of)).collect();
    (running.unwrap(), Starts { first_answer, lists })
}

/// A bare list of the same keys at one revision, from connecting to the last page.
fn list(etcd: &Etcd, page: i64, keys: usize) -> Duration {
    let begun = Instant::now();
    runtime().block_on(async {
        let mut client = Client::connect([etcd.endpoint(0)], None).await.unwrap();
        let (mut from, mut revision, mut found) = (b"/service/".to_vec(), 0, 0);
        loop {
            let options =
                GetOptions::new().with_range("/service0").with_limit(page).with_revision(revision);
            let answer = client.get(from, Some(options)).await.unwrap();
            revision = answer.header().unwrap().revision();
            found += answer.kvs().len();
            if !answer.more() {
                break;
            }
            from = answer.kvs().last().unwrap().key().to_vec();
            from.push(0);
        }
        assert_eq!(found, keys);
    });
    begun.elapsed()
}
