//! Decides whether a worker's runtime must run.
//!
//! Some tasks only wait, possibly forever. While there are no other tasks, the worker can block in
//! the receive call.

use std::time::{Duration, Instant};

use tokio::runtime::{LocalRuntime, RuntimeMetrics};
use tokio_util::task::TaskTracker;

/// Consecutive batches without tasks before the worker blocks in the receive call.
///
/// Switching between the two modes costs several system calls.
const IDLE_BATCHES_BEFORE_BLOCKING: u32 = 8;
/// Minimum lifetime of a long-lived task; longer than any query takes.
///
/// For example, readers of idle upstream connections are long-lived tasks.
const OBSERVATION_WINDOW: Duration = Duration::from_secs(5);

/// Tasks of one worker's runtime.
#[derive(Debug)]
pub(super) struct WorkerTasks {
    /// Tasks that make deferred responses.
    pub(super) deferred: TaskTracker,
    metrics: RuntimeMetrics,
    /// Number of tasks that only wait while no response is deferred.
    ///
    /// These tasks may process their input late.
    long_lived: usize,
    /// Lowest number of tasks since `window_start`, sampled without deferred responses.
    min_alive: Option<usize>,
    window_start: Instant,
    /// Consecutive batches without pending tasks.
    idle_batches: u32,
}

impl WorkerTasks {
    /// Starts to observe the tasks of `runtime`.
    pub(super) fn new(runtime: &LocalRuntime) -> Self {
        let metrics = runtime.handle().metrics();
        Self {
            deferred: TaskTracker::new(),
            metrics,
            long_lived: 0,
            min_alive: None,
            window_start: Instant::now(),
            idle_batches: 0,
        }
    }

    /// Returns whether the runtime must run.
    ///
    /// The runtime must run while responses are deferred or short-lived tasks, such as a background
    /// refresh, exist.
    pub(super) fn need_runtime(&self) -> bool {
        !self.deferred.is_empty() || self.metrics.num_alive_tasks() > self.long_lived
    }

    /// Records a batch; returns whether the worker may block in the receive call.
    ///
    /// `any_deferred` is whether the batch deferred a response.
    pub(super) fn record_batch(&mut self, any_deferred: bool, now: Instant) -> bool {
        if self.deferred.is_empty() {
            let alive = self.metrics.num_alive_tasks();
            self.min_alive = Some(self.min_alive.map_or(alive, |min_alive| min_alive.min(alive)));
        }
        if now.saturating_duration_since(self.window_start) >= OBSERVATION_WINDOW {
            self.long_lived = self.min_alive.take().unwrap_or(self.long_lived);
            self.window_start = now;
        }
        self.idle_batches =
            if any_deferred || self.need_runtime() { 0 } else { self.idle_batches + 1 };
        let may_block = self.idle_batches >= IDLE_BATCHES_BEFORE_BLOCKING;
        if may_block {
            self.idle_batches = 0;
            self.long_lived = self.long_lived.min(self.metrics.num_alive_tasks());
        }
        may_block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::runtime::{Builder, LocalOptions};
    use tokio::task::{spawn_local, yield_now};

    #[test]
    fn the_worker_blocks_on_the_socket_once_only_long_lived_tasks_remain() {
        let runtime = Builder::new_current_thread().build_local(LocalOptions::default()).unwrap();
        let mut tasks = WorkerTasks::new(&runtime);
        let start = tasks.window_start;
        assert!(!tasks.need_runtime());
        runtime.block_on(async {
            let may_block = |tasks: &mut WorkerTasks, now| {
                (0..IDLE_BATCHES_BEFORE_BLOCKING)
                    .map(|_| tasks.record_batch(false, now))
                    .collect::<Vec<_>>()
                    .contains(&true)
            };
            // This query leaves a connection's reader behind, which is not yet known to be
            // long-lived.
            let response = tasks.deferred.spawn_local(async { drop(spawn_local(pending::<()>())) });
            assert!(tasks.need_runtime() && !may_block(&mut tasks, start));
            response.await.unwrap();
            assert!(tasks.deferred.is_empty() && tasks.need_runtime());
            assert!(!may_block(&mut tasks, start + OBSERVATION_WINDOW / 2));
            assert!(may_block(&mut tasks, start + OBSERVATION_WINDOW));
            assert!(!tasks.need_runtime());
            // The next query leaves nothing behind.
            let response = tasks.deferred.spawn_local(yield_now());
            assert!(tasks.need_runtime() && !may_block(&mut tasks, start + OBSERVATION_WINDOW));
            response.await.unwrap();
            assert!(!tasks.need_runtime());
            assert!(!tasks.record_batch(true, start + OBSERVATION_WINDOW), "not at once");
            assert!(may_block(&mut tasks, start + OBSERVATION_WINDOW));
            // A background refresh needs the runtime, although no client waits for it.
            let background = spawn_local(yield_now());
            assert!(tasks.need_runtime());
            background.await.unwrap();
            assert!(!tasks.need_runtime());
        });
    }
}
