//! Doubt about lists that lack instances: the store may have lost its data.
//!
//! Its programs then register again one after the other, so the first lists after the loss may lack
//! instances that still run.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Minimum number of emptied lists that suggests a loss of data.
const MIN_EMPTIED: usize = 2;

/// Number of lists of a store per emptied list that suggests a loss, if there are many: 1 %.
const LISTS_PER_EMPTIED: usize = 100;

/// The latest signs that a store has lost its data.
#[derive(Debug)]
pub(super) struct DataLoss {
    /// Last time at which names vanished although their lists had instances.
    vanished: Option<Instant>,
    /// The latest times at which a list with instances was missing.
    emptied: VecDeque<Instant>,
    /// Time for which a loss of data makes other losses doubtful: the removal grace.
    patience: Duration,
}

impl DataLoss {
    /// Creates the record of a store without such signs; `patience` is the removal grace.
    pub(super) fn new(patience: Duration) -> Self {
        Self { vanished: None, emptied: VecDeque::new(), patience }
    }

    /// Records that names have vanished although their lists had instances.
    pub(super) fn note_vanished(&mut self, now: Instant) {
        self.vanished = Some(now);
    }

    /// Records that a list with instances is missing, of this many lists.
    pub(super) fn note_emptied(&mut self, lists: usize, now: Instant) {
        self.emptied.push_back(now);
        if self.emptied.len() > min_emptied(lists) {
            self.emptied.pop_front();
        }
    }

    /// Returns whether a store with this many lists has lately lost its data.
    pub(super) fn is_recent(&self, lists: usize, now: Instant) -> bool {
        let is_recent = |time: &Instant| now.saturating_duration_since(*time) < self.patience;
        self.vanished.as_ref().is_some_and(is_recent)
            || self.emptied.iter().filter(|time| is_recent(time)).count() >= min_emptied(lists)
    }
}

/// Returns how many lists must be emptied before other losses are doubtful.
fn min_emptied(lists: usize) -> usize {
    MIN_EMPTIED.max(lists / LISTS_PER_EMPTIED)
}
