//! Detection of bursts: most targets begin to fail within a short time.
//!
//! The cause is then more likely this machine's own network than the targets, so nothing must be
//! left out. Targets on loopback addresses do not count, because they pass without a network.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::Instant;

/// Minimum number of targets that begin to fail in a burst.
const MIN_FAILING: usize = 3;

/// Minimum number of addresses that these targets have: a single one is a machine that failed.
const MIN_ADDRESSES: usize = 2;

/// The latest result of a target, as far as bursts are concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// There is no result, or the target does not count.
    #[default]
    Unknown,
    /// The latest check passed.
    Passing,
    /// The latest check failed, and the first of these failures is recent.
    NewlyFailing,
    /// The target has failed for longer.
    Failing,
}

/// The beginning or the end of a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BurstChange {
    Begins,
    Ends,
}

/// Counts of the targets' standings; tells when a burst begins and ends.
///
/// `T` identifies a target. A burst begins when at least three targets at two addresses are newly
/// failing, and at least as many as pass. It ends when more than twice as many pass as still fail.
#[derive(Debug)]
pub(super) struct BurstDetector<T> {
    /// Start of the current burst.
    pub(super) since: Option<Instant>,
    passing: usize,
    newly_failing: usize,
    /// Number of newly failing targets by address.
    addresses: HashMap<IpAddr, usize, RandomState>,
    /// Targets that began to fail, in order, until they have failed for longer or passed.
    began: VecDeque<(Instant, T)>,
}

impl<T> Default for BurstDetector<T> {
    fn default() -> Self {
        Self {
            since: None,
            passing: 0,
            newly_failing: 0,
            addresses: HashMap::default(),
            began: VecDeque::new(),
        }
    }
}

impl<T> BurstDetector<T> {
    /// Replaces the standing of a target at this address.
    pub(super) fn change(&mut self, standing: &mut Standing, new: Standing, address: IpAddr) {
        let old = std::mem::replace(standing, new);
        match old {
            Standing::Passing => self.passing -= 1,
            Standing::NewlyFailing => {
                self.newly_failing -= 1;
                if let Some(number) = self.addresses.get_mut(&address) {
                    *number -= 1;
                    if *number == 0 {
                        self.addresses.remove(&address);
                    }
                }
            }
            Standing::Unknown | Standing::Failing => {}
        }
        match new {
            Standing::Passing => self.passing += 1,
            Standing::NewlyFailing => {
                self.newly_failing += 1;
                *self.addresses.entry(address).or_default() += 1;
            }
            Standing::Unknown | Standing::Failing => {}
        }
    }

    /// Records that a target begins to fail; its standing is [`Standing::NewlyFailing`].
    pub(super) fn begin_to_fail(&mut self, target: T, now: Instant) {
        self.began.push_back((now, target));
    }

    /// Returns the next target that began to fail longer ago than the window, with the time.
    ///
    /// None during a burst: it lasts as long as its targets fail.
    pub(super) fn expire(&mut self, window: Duration, now: Instant) -> Option<(Instant, T)> {
        let is_old = |(began, _): &(Instant, T)| now.saturating_duration_since(*began) > window;
        self.began.front().filter(|began| self.since.is_none() && is_old(began))?;
        self.began.pop_front()
    }

    /// Begins or ends a burst if the counts say so.
    pub(super) fn update(&mut self, now: Instant) -> Option<BurstChange> {
        if self.since.is_some() {
            let is_over = self.newly_failing == 0 || self.passing > 2 * self.newly_failing;
            is_over.then(|| {
                self.since = None;
                self.began.clear();
                BurstChange::Ends
            })
        } else {
            let is_burst = self.newly_failing >= MIN_FAILING.max(self.passing)
                && self.addresses.len() >= MIN_ADDRESSES;
            is_burst.then(|| {
                self.since = Some(now);
                BurstChange::Begins
            })
        }
    }
}
