//! Which core does what, and how long.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// This thread.
pub(crate) const SELF: Pid = Pid::from_raw(0);

/// Keeps a thread on one core.
pub(crate) fn pin(thread: Pid, core: usize) {
    let mut set = CpuSet::new();
    set.set(core).unwrap();
    // A thread may have ended meanwhile.
    let _ = sched_setaffinity(thread, &set);
}

/// Keeps all threads that a process has now on one core, wherever it has placed them itself.
pub(crate) fn pin_process(process: u32, core: usize) {
    for thread in threads(process) {
        pin(Pid::from_raw(thread.cast_signed()), core);
    }
}

/// The threads of a process; none when it has ended.
pub(crate) fn threads(process: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Does something on one core, so that whatever it starts is born there and sees no other; then this thread goes on on another.
pub(crate) fn on<T>(core: usize, then: usize, act: impl FnOnce() -> T) -> T {
    pin(SELF, core);
    let result = act();
    pin(SELF, then);
    result
}

/// The core of the servers, and that of the load; the same one when there is one only.
pub(crate) fn cores() -> (usize, usize) {
    let allowed = sched_getaffinity(SELF).unwrap();
    let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
    let first = cores.next().unwrap();
    (first, cores.next().unwrap_or(first))
}

/// Processor time of the thread that calls this so far.
pub(crate) fn own_time() -> Duration {
    // The kernel adds up when it looks at a thread; else at the next tick only.
    thread::yield_now();
    time_in("/proc/thread-self/schedstat")
}

/// Processor time of a thread of this process so far, and how often it waited for something. To the nanosecond when it waits,
/// else to a tick (10 ms at most).
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
