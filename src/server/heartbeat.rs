//! Signs of life of the UDP workers: each says when it last came round its loop.
//!
//! A worker that hangs, for example in a responder that blocks, leaves its clients without answers
//! while everything else of the process looks well.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::activity::Activity;

/// The loops of all running UDP workers.
#[derive(Debug, Default)]
pub struct Heartbeats {
    workers: Mutex<Vec<Weak<Heartbeat>>>,
}

impl Heartbeats {
    /// Adds a worker, which is alive until its side is dropped.
    pub(super) fn add(&self, address: SocketAddr, number: usize) -> Arc<Heartbeat> {
        let heartbeat = Arc::new(Heartbeat { address, number, activity: Activity::new() });
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|worker| worker.strong_count() > 0);
        workers.push(Arc::downgrade(&heartbeat));
        heartbeat
    }

    /// Returns the workers that have not moved for longer than `limit`.
    ///
    /// An idle worker moves every 250 ms, so a limit of some seconds finds only those that hang. A
    /// worker that has ended is not listed.
    pub fn silent(&self, limit: Duration) -> Vec<SilentWorker> {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = workers.iter().filter_map(Weak::upgrade);
        let silent = alive.map(|worker| SilentWorker {
            address: worker.address,
            number: worker.number,
            silent_for: worker.activity.since(),
        });
        silent.filter(|worker| worker.silent_for > limit).collect()
    }
}

/// The last turn of one worker's loop.
#[derive(Debug)]
pub(super) struct Heartbeat {
    address: SocketAddr,
    number: usize,
    activity: Activity,
}

impl Heartbeat {
    /// Records a turn of the loop; one relaxed store, for each batch.
    pub(super) fn beat(&self, now: Instant) {
        self.activity.touch_at(now);
    }

    /// Returns the time of the last turn, in milliseconds since the worker was added.
    #[cfg(test)]
    pub(super) fn last(&self) -> u64 {
        self.activity.last()
    }
}

/// A UDP worker that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SilentWorker {
    /// Address that the worker serves.
    pub address: SocketAddr,
    /// Number of its thread, `udp-0` and up.
    pub number: usize,
    /// Time since its last turn.
    pub silent_for: Duration,
}

impl fmt::Display for SilentWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, number, silent_for } = self;
        write!(f, "UDP worker {number} on {address} has not moved for {} s", silent_for.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_stops_moving_is_found_until_it_ends() {
        let heartbeats = Heartbeats::default();
        let address = SocketAddr::from(([127, 0, 0, 1], 53));
        let (moving, hanging) = (heartbeats.add(address, 0), heartbeats.add(address, 1));
        let limit = Duration::from_millis(50);
        while heartbeats.silent(limit).is_empty() {
            moving.beat(Instant::now());
        }
        moving.beat(Instant::now());
        // Found again: the machine may have paused this thread before the last beat of the other.
        let silent = heartbeats.silent(Duration::ZERO);
        assert!(silent.iter().any(|worker| worker.number == 1 && worker.silent_for > limit));
        drop((moving, hanging));
        assert_eq!(heartbeats.silent(Duration::ZERO), []);
        let silent_for = Duration::from_millis(12_700);
        assert_eq!(
            SilentWorker { address, number: 2, silent_for }.to_string(),
            "UDP worker 2 on 127.0.0.1:53 has not moved for 12 s"
        );
    }
}
