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
use super::support::{dns, free_address, seconds, svcdns};
use super::udp_client::{self, UdpClient};

/// Longest wait for a list; generous, because the machine may be busy.
const LIST_TIMEOUT: Duration = seconds(600);

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
