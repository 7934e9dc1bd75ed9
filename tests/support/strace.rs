//! Kills svcdns at a chosen system call.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::machine::said;
use super::{SOON, eventually};

/// System calls that change files.
pub(crate) const FILE_CALLS: [&str; 9] =
    ["rename", "unlink", "fsync", "mkdir", "rmdir", "symlink", "ftruncate", "fchown", "fchmod"];

/// Where strace writes.
const TRACE: &str = "/run/trace";

/// Returns whether strace can trace a process here.
pub(crate) fn can_trace() -> bool {
    Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .status()
        .is_ok_and(|status| status.success())
}

/// An strace that follows all threads of a process, until the process ends.
pub(crate) struct Tracer(Child);

impl Tracer {
    /// Attaches to a process; returns once all its threads are traced.
    pub(crate) fn attach(pid: u32, arguments: &[&str]) -> Self {
        let mut command = Command::new("strace");
        command.args(["-f", "-y"]).args(arguments).args(["-p", &pid.to_string()]);
        let tracer = Self(command.stderr(Stdio::null()).spawn().unwrap());
        let tasks = format!("/proc/{pid}/task");
        eventually("strace to attach", SOON, || {
            let mut tasks = fs::read_dir(&tasks).unwrap();
            let traced = |task: &Path| {
                let status = fs::read_to_string(task.join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0")
            };
            tasks.all(|task| traced(&task.unwrap().path())).then_some(())
        });
        tracer
    }

    /// Waits until the process has ended.
    pub(crate) fn wait(&mut self) {
        self.0.wait().unwrap();
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs svcdns under strace, which kills a process at its n-th such system call.
///
/// The process is svcdns or a program that svcdns runs. Returns `false` if svcdns ends by itself,
/// because no process makes that many calls.
pub(crate) fn killed_at(call: &str, n: usize, arguments: &[&str]) -> bool {
    run(&["-f"], call, n, arguments)
}

/// Runs svcdns like [`killed_at`], but never kills the programs that svcdns runs.
pub(crate) fn killed_alone_at(call: &str, n: usize, arguments: &[&str]) -> bool {
    run(&[], call, n, arguments)
}

/// Runs svcdns to its end; returns how often its first thread makes each system call.
///
/// Calls of the programs that svcdns runs do not count.
pub(crate) fn calls_alone(arguments: &[&str]) -> BTreeMap<String, usize> {
    let mut command = Command::new("strace");
    command.args(["-qq", "-o", TRACE, env!("CARGO_BIN_EXE_svcdns")]).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(TRACE).unwrap().lines() {
        let name = line.split_once('(').map(|(name, _)| name).unwrap_or_default();
        let is_call = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        // The kernel makes this call itself, and strace has no name for a signal there.
        if is_call && !name.is_empty() && name != "restart_syscall" {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    counts
}

fn run(flags: &[&str], call: &str, n: usize, arguments: &[&str]) -> bool {
    let output = Command::new("strace")
        .args(flags)
        .args(["-qq", "-o", TRACE, "-e", &format!("trace={call}"), "-e"])
        .arg(format!("inject={call}:signal=SIGKILL:when={n}"))
        .arg(env!("CARGO_BIN_EXE_svcdns"))
        .args(arguments)
        .output()
        .unwrap();
    let killed = !output.status.success();
    let trace = fs::read_to_string(TRACE).unwrap_or_default();
    assert!(killed == trace.contains("killed by SIGKILL"), "{}\n{trace}", said(&output));
    killed
}
