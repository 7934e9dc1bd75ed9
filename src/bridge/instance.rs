//! The state of an instance: its open connections, and whether it is set aside.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pause of an instance after its first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause of an instance.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Longest time for which a single connection probes an instance whose pause has ended.
const PROBE_TIME: Duration = Duration::from_secs(2);

/// Milliseconds since the bridge was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Millis(pub(super) u64);

/// The clock of pauses.
#[derive(Clone, Copy, Debug)]
pub(super) struct PauseClock(Instant);

impl PauseClock {
    /// Starts the clock.
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns the time.
    pub(super) fn now(self) -> Millis {
        Millis(millis(self.0.elapsed()))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The state of an instance, shared by all names that lead to it.
#[derive(Debug)]
pub(super) struct InstanceState {
    /// Where the instance listens.
    pub(super) address: SocketAddr,
    open: AtomicU32,
    failures: AtomicU32,
    /// End of the pause, in milliseconds; 0 for none.
    paused_until: AtomicU64,
    /// Until then, in milliseconds, one connection probes the instance; 0 if none does.
    probed_until: AtomicU64,
}

impl InstanceState {
    /// Creates the state of an instance without connections.
    pub(super) fn new(address: SocketAddr) -> Self {
        let (open, failures) = (AtomicU32::new(0), AtomicU32::new(0));
        let (paused_until, probed_until) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { address, open, failures, paused_until, probed_until }
    }

    /// Returns the number of open connections, and of attempts.
    pub(super) fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Returns whether the last attempt failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failures.load(Ordering::Relaxed) > 0
    }

    /// Returns whether the instance is set aside: it is paused, or another connection probes it.
    pub(super) fn is_set_aside(&self, now: Millis) -> bool {
        self.is_paused(now) || self.probed_until.load(Ordering::Relaxed) > now.0
    }

    /// Returns whether the pause has not ended yet.
    fn is_paused(&self, now: Millis) -> bool {
        self.paused_until.load(Ordering::Relaxed) > now.0
    }

    /// Returns whether a connection may try the instance, which is not set aside.
    ///
    /// If it failed last time, only the first connection after the pause may: should it be dead
    /// still, all others would wait for it as well.
    pub(super) fn admit(&self, now: Millis) -> bool {
        if !self.has_failed() {
            return true;
        }
        let before = self.probed_until.load(Ordering::Relaxed);
        let end = now.0.saturating_add(millis(PROBE_TIME));
        before <= now.0
            && self
                .probed_until
                .compare_exchange(before, end, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Ends the pause: a connection was established.
    pub(super) fn record_success(&self) {
        // Read first: usually nothing has to be written to the shared cache line.
        if self.has_failed() {
            self.failures.store(0, Ordering::Relaxed);
            self.paused_until.store(0, Ordering::Relaxed);
            self.probed_until.store(0, Ordering::Relaxed);
        }
    }

    /// Sets the instance aside, for longer with each failure.
    ///
    /// The failures of attempts that began before the pause do not extend it.
    pub(super) fn record_failure(&self, now: Millis) {
        if self.is_paused(now) {
            return;
        }
        let before = self.failures.fetch_add(1, Ordering::Relaxed);
        let pause = FIRST_PAUSE.saturating_mul(1 << before.min(16)).min(MAX_PAUSE);
        self.paused_until.store(now.0.saturating_add(millis(pause)), Ordering::Relaxed);
        self.probed_until.store(0, Ordering::Relaxed);
    }
}

/// An open connection, or an attempt, as counted at its instance.
#[derive(Debug)]
pub(super) struct OpenCount(Arc<InstanceState>);

impl OpenCount {
    /// Counts a connection until the value is dropped.
    pub(super) fn new(state: Arc<InstanceState>) -> Self {
        state.open.fetch_add(1, Ordering::Relaxed);
        Self(state)
    }

    /// Returns the instance.
    pub(super) fn instance(&self) -> &InstanceState {
        &self.0
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_end_with_a_success() {
        let state = InstanceState::new("192.0.2.1:80".parse().unwrap());
        let mut now = 0;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            state.record_failure(Millis(now));
            // A failure within the pause changes nothing.
            state.record_failure(Millis(now + 1));
            let end = (now..now + 60_000).find(|at| !state.is_set_aside(Millis(*at))).unwrap();
            pauses.push(end - now);
            now = end;
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        state.record_failure(Millis(now));
        state.record_success();
        assert!(!state.is_set_aside(Millis(now)));
        state.record_failure(Millis(now));
        assert!(state.is_set_aside(Millis(now + 249)) && !state.is_set_aside(Millis(now + 250)));
    }

    #[test]
    fn after_a_pause_a_single_connection_probes_the_instance() {
        let state = InstanceState::new("192.0.2.1:80".parse().unwrap());
        assert!(state.admit(Millis(0)) && state.admit(Millis(0)), "it never failed");
        state.record_failure(Millis(0));
        let now = Millis(250);
        assert!(!state.is_set_aside(now) && state.admit(now));
        assert!(state.is_set_aside(now) && !state.admit(now), "another one probes it");
        // A probe without a result, because its client went away, does not last for ever.
        assert!(!state.is_set_aside(Millis(2250)) && state.admit(Millis(2250)));
        state.record_failure(Millis(2251));
        assert!(state.is_set_aside(Millis(2750)) && !state.is_set_aside(Millis(2751)));
        assert!(state.admit(Millis(2751)));
        state.record_success();
        assert!(!state.is_set_aside(Millis(2751)) && state.admit(Millis(2751)));
    }

    #[test]
    fn connections_are_counted_until_they_are_dropped() {
        let state = Arc::new(InstanceState::new("192.0.2.1:80".parse().unwrap()));
        let (one, two) = (OpenCount::new(Arc::clone(&state)), OpenCount::new(Arc::clone(&state)));
        assert_eq!(state.open(), 2);
        drop(one);
        assert_eq!(two.instance().open(), 1);
        drop(two);
        assert_eq!(state.open(), 0);
    }
}
