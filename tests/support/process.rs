//! Child processes that end with their test.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::etcd::signal_child;
use super::{SOON, eventually};

/// A child process with a log of its output.
///
/// When dropped, the process is killed and reaped; if the test fails, the log's end is printed.
pub(crate) struct Process {
    child: Child,
    name: String,
    folder: TempDir,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a program whose output is collected in a log.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_with(command, |_| {})
    }

    /// Starts a program after a last change to its command, such as another output.
    pub(crate) fn start_with(command: &mut Command, change: impl FnOnce(&mut Command)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        change(command);
        let begun = Instant::now();
        loop {
            match command.spawn() {
                Ok(child) => return Self { child, name, folder, ended: None },
                // A program that was just copied may still be open for writing in a child that
                // another thread forked and that has not called exec yet.
                Err(error)
                    if error.kind() == ErrorKind::ExecutableFileBusy && begun.elapsed() < SOON =>
                {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("cannot start {name}: {error}"),
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the output so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Returns the processor time that the process has used.
    pub(crate) fn cpu_time(&self) -> Duration {
        processor_time(self.pid())
    }

    /// Sends a signal to this process only, not to its children.
    pub(crate) fn signal(&self, signal: Signal) {
        signal_child(self.child.id(), signal);
    }

    /// Returns the exit status, if the process has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended
    }

    /// Waits until the process ends; fails the test if that takes longer.
    pub(crate) fn wait(&mut self, within: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        eventually(&what, within, || self.ended())
    }

    /// Sends SIGTERM and waits.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait(SOON)
    }

    /// Sends SIGKILL and waits; does nothing if the process has ended.
    pub(crate) fn kill(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::SIGKILL);
            self.wait(SOON);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(60).collect();
            eprintln!("--- {} (pid {}), last lines:", self.name, self.child.id());
            for line in tail.into_iter().rev() {
                eprintln!("    {line}");
            }
        }
    }
}

/// Unit of the times in `/proc/PID/stat`.
const CLOCK_TICK: Duration = Duration::from_millis(10);

/// Returns the processor time of a process so far, user and system.
pub(crate) fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The program's name is in parentheses; utime and stime are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u32>().unwrap());
    CLOCK_TICK * ticks.sum()
}

/// Gives later children the default SIGHUP, SIGINT and SIGQUIT.
///
/// `nohup`, and `&` in a script, start the tests with these signals ignored. Children inherit that,
/// and a shell cannot trap such a signal. A handler is not inherited, so the child gets the
/// default. Signals that are not ignored get no handler: Ctrl-C still ends the tests.
pub(crate) fn stop_ignoring_signals() {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(mask.trim(), 16).unwrap();
    for kind in [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit()] {
        if ignored & 1 << (kind.as_raw_value() - 1) != 0 {
            // The handler outlives the runtime and the receiver.
            let runtime = runtime::Builder::new_current_thread().enable_io().build().unwrap();
            let _entered = runtime.enter();
            drop(signal(kind).unwrap());
        }
    }
}
