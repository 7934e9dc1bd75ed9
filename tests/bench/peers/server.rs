//! A running server: its threads, CPU time and memory.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::common::cores;
use super::interrupt;
use super::load::Target;
use super::queries::Kind;
use super::support::process::Process;
use super::support::seconds;

/// Longest time for a server to load a million names.
const LOAD_TIMEOUT: Duration = seconds(300);

/// A running server.
pub(crate) struct Server {
    process: Process,
    pub(crate) target: Target,
    /// Its configuration and state.
    _folder: TempDir,
}

impl Server {
    pub(crate) fn new(process: Process, target: Target, folder: TempDir) -> Self {
        Self { process, target, _folder: folder }
    }

    /// Waits until the server answers for its last service.
    ///
    /// # Errors
    /// The reason why it does not.
    pub(crate) fn wait(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        let content = self.target.content;
        let (service, kind) = if content.services == 0 {
            (0, Kind::NxDomain)
        } else {
            (content.services - 1, Kind::A)
        };
        while !self.target.answers(service, kind) {
            interrupt::check();
            if self.process.ended().is_some() {
                return Err(format!("the server ended:\n{}", self.process.log()));
            }
            if begun.elapsed() > LOAD_TIMEOUT {
                return Err(format!("no right response:\n{}", self.process.log()));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Returns the server's processes: nsd has several.
    fn processes(&self) -> Vec<u32> {
        let mut found = vec![self.process.pid()];
        let mut at = 0;
        while let Some(process) = found.get(at) {
            for thread in cores::threads(*process) {
                let children =
                    fs::read_to_string(format!("/proc/{}/task/{thread}/children", found[at]))
                        .unwrap_or_default();
                found.extend(
                    children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()),
                );
            }
            at += 1;
        }
        found
    }

    /// Pins all current threads of the server to a core.
    pub(crate) fn pin(&self, core: usize) {
        self.processes().iter().for_each(|process| cores::pin_process(*process, core));
    }

    /// Returns user and system time of all threads, in microseconds.
    ///
    /// The time is exact while the threads wait.
    pub(crate) fn processor_time(&self) -> f64 {
        let threads = self.processes().into_iter().flat_map(|process| {
            cores::threads(process)
                .into_iter()
                .map(move |thread| format!("/proc/{process}/task/{thread}/schedstat"))
        });
        let nanoseconds = threads.map(|path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0)
        });
        nanoseconds.sum::<u64>() as f64 / 1e3
    }

    /// Returns the resident memory in KiB; pages that its processes share count once.
    pub(crate) fn memory_kib(&self) -> u64 {
        let of = |process: u32| {
            let text =
                fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("Pss:").map(str::to_owned))
                .unwrap_or_default();
            line.split_whitespace().next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0)
        };
        self.processes().into_iter().map(of).sum()
    }
}

impl Drop for Server {
    /// Stops the server with SIGTERM, then kills it with its children.
    fn drop(&mut self) {
        let processes = self.processes();
        if self.process.ended().is_none() {
            self.process.signal(Signal::SIGTERM);
        }
        let begun = Instant::now();
        while self.process.ended().is_none() && begun.elapsed() < seconds(10) {
            thread::sleep(Duration::from_millis(10));
        }
        self.process.kill();
        for child in &processes[1..] {
            // Usually the child has already ended.
            let _ = kill(Pid::from_raw(child.cast_signed()), Signal::SIGKILL);
        }
    }
}
