//! Pinning of threads to cores, and CPU times.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread.
pub(crate) const SELF: Pid = Pid::from_raw(0);

/// Pins a thread to a core.
pub(crate) fn pin(thread: Pid, core: usize) {
    let mut set = CpuSet::new();
    set.set(core).unwrap();
    // The thread may have ended.
    let _ = sched_setaffinity(thread, &set);
}

/// Pins all current threads of a process to a core.
///
/// Overrides even cores that the process has chosen itself.
pub(crate) fn pin_process(process: u32, core: usize) {
    for thread in threads(process) {
        pin(Pid::from_raw(thread.cast_signed()), core);
    }
}

/// Returns the threads of a process; empty if it has ended.
pub(crate) fn threads(process: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Runs `act` on one core, then pins this thread to another.
///
/// Processes and threads that `act` starts inherit the first core, and see no other.
pub(crate) fn on<T>(core: usize, then: usize, act: impl FnOnce() -> T) -> T {
    pin(SELF, core);
    let result = act();
    pin(SELF, then);
    result
}

/// Returns two cores: for the servers, and for the load.
///
/// The two are the same if there is only one.
pub(crate) fn cores() -> (usize, usize) {
    let allowed = sched_getaffinity(SELF).unwrap();
    let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
    let first = cores.next().unwrap();
    (first, cores.next().unwrap_or(first))
}

/// Returns the CPU time of the calling thread.
pub(crate) fn own_time() -> Duration {
    // The kernel updates the time at a scheduling point; otherwise only at the next tick.
    thread::yield_now();
    time_in("/proc/thread-self/schedstat")
}

/// Returns CPU time and voluntary context switches of a thread.
///
/// The thread must be one of this process. The time is exact while the thread waits; otherwise it
/// may be a tick old (at most 10 ms).
pub(crate) fn spent(thread: u32) -> (Duration, u64) {
    let status = fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
    let waits = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok())
        .unwrap();
    (time_in(&format!("/proc/self/task/{thread}/schedstat")), waits)
}

fn time_in(schedstat: &str) -> Duration {
    Duration::from_nanos(
        fs::read_to_string(schedstat).unwrap().split_whitespace().next().unwrap().parse().unwrap(),
    )
}
