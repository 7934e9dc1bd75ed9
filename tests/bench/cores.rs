//! Which thread runs on which core, and how long it ran.
#![allow(dead_code, reason = "each benchmark takes what it needs")]

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The core of what is measured, and that of everything else; the same one when there is one only.
pub(crate) fn cores() -> (usize, usize) {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
    let first = cores.next().unwrap();
    (first, cores.next().unwrap_or(first))
}

/// Keeps a thread, 0 for this one, on one core.
pub(crate) fn pin(thread: i32, core: usize) {
    let mut set = CpuSet::new();
    set.set(core).unwrap();
    sched_setaffinity(Pid::from_raw(thread), &set).unwrap();
}

/// The threads of this process.
pub(crate) fn threads() -> BTreeSet<i32> {
    fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

/// Processor time of the thread that calls this so far.
pub(crate) fn own_time() -> Duration {
    // The kernel adds up when it looks at a thread; else at the next tick only.
    thread::yield_now();
    time_in("/proc/thread-self/schedstat")
}

fn time_in(schedstat: &str) -> Duration {
    Duration::from_nanos(fs::read_to_string(schedstat).unwrap().split_whitespace().next().unwrap().parse().unwrap())
}

/// Processor time of a thread of this process so far, and how often it waited for something. To the nanosecond when it waits,
/// else to a tick (10 ms at most).
pub(crate) fn spent(thread: i32) -> (Duration, u64) {
    let status = fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
    let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok()).unwrap();
    (time_in(&format!("/proc/self/task/{thread}/schedstat")), waits)
}
