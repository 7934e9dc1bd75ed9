//! Whether a thread's runtime has work to do, or only tasks that wait for what may never come.

use std::time::{Duration, Instant};

use tokio::runtime::{LocalRuntime, RuntimeMetrics};
use tokio_util::task::TaskTracker;

/// Batches without anything to wait for before the runtime rests: changing over costs a few system calls.
const QUIET: u32 = 8;
/// How long it takes to tell tasks that stay (readers of sockets kept open to upstreams) from those that end: longer than any
/// question may take.
const WINDOW: Duration = Duration::from_secs(5);

/// The tasks of one thread's runtime.
#[derive(Debug)]
pub(super) struct Tasks {
    /// The answers that clients wait for.
    pub(super) answers: TaskTracker,
    all: RuntimeMetrics,
    /// Tasks that stay and need no care while no answer is waited for. What reaches them meanwhile they find later.
    staying: usize,
    /// Fewest tasks since `since`, seen while no answer was waited for.
    fewest: Option<usize>,
    since: Instant,
    /// Batches in a row without anything to wait for.
    quiet: u32,
}

impl Tasks {
    pub(super) fn new(runtime: &LocalRuntime) -> Self {
        let all = runtime.handle().metrics();
        Self { answers: TaskTracker::new(), all, staying: 0, fewest: None, since: Instant::now(), quiet: 0 }
    }

    /// Whether there are tasks to care for: answers that clients wait for, or more than those that stay, such as a question
    /// asked anew in the background.
    pub(super) fn are_under_way(&self) -> bool {
        !self.answers.is_empty() || self.all.num_alive_tasks() > self.staying
    }

    /// Notes that a batch was answered beside the tasks, and whether any of it is `waited_for`. Says whether the runtime may
    /// rest from now on.
    pub(super) fn may_rest(&mut self, waited_for: bool, now: Instant) -> bool {
        if self.answers.is_empty() {
            let alive = self.all.num_alive_tasks();
            self.fewest = Some(self.fewest.map_or(alive, |fewest| fewest.min(alive)));
        }
        if now.saturating_duration_since(self.since) >= WINDOW {
            self.staying = self.fewest.take().unwrap_or(self.staying);
            self.since = now;
        }
        self.quiet = if waited_for || self.are_under_way() { 0 } else { self.quiet + 1 };
        let rest = self.quiet >= QUIET;
        if rest {
            self.quiet = 0;
            self.staying = self.staying.min(self.all.num_alive_tasks());
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::runtime::{Builder, LocalOptions};
    use tokio::task::{spawn_local, yield_now};

    #[test]
    fn the_runtime_rests_once_only_those_tasks_are_left_that_stay() {
        let runtime = Builder::new_current_thread().build_local(LocalOptions::default()).unwrap();
        let mut tasks = Tasks::new(&runtime);
        let start = tasks.since;
        assert!(!tasks.are_under_way());
        runtime.block_on(async {
            let rests = |tasks: &mut Tasks, now| (0..QUIET).map(|_| tasks.may_rest(false, now)).collect::<Vec<_>>().contains(&true);
            // A question that leaves behind the reader of a socket: whether that one ends is not known at first.
            let answer = tasks.answers.spawn_local(async { drop(spawn_local(pending::<()>())) });
            assert!(tasks.are_under_way() && !rests(&mut tasks, start));
            answer.await.unwrap();
            assert!(tasks.answers.is_empty() && tasks.are_under_way());
            assert!(!rests(&mut tasks, start + WINDOW / 2));
            assert!(rests(&mut tasks, start + WINDOW));
            assert!(!tasks.are_under_way());
            // The next question is over with its answer.
            let answer = tasks.answers.spawn_local(yield_now());
            assert!(tasks.are_under_way() && !rests(&mut tasks, start + WINDOW));
            answer.await.unwrap();
            assert!(!tasks.are_under_way());
            assert!(!tasks.may_rest(true, start + WINDOW), "not at once");
            assert!(rests(&mut tasks, start + WINDOW));
            // A question asked anew in the background needs care, though nobody waits for it.
            let background = spawn_local(yield_now());
            assert!(tasks.are_under_way());
            background.await.unwrap();
            assert!(!tasks.are_under_way());
        });
    }
}
