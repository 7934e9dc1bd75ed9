//! Counters of the authoritative side.

use crate::metrics::Counter;

/// Counters of incomplete responses since the start of the process.
#[derive(Debug, Default)]
pub struct Counters {
    truncated: Counter,
    left_out: Counter,
}

impl Counters {
    /// Returns the number of responses with TC set.
    pub fn truncated(&self) -> u64 {
        self.truncated.get()
    }

    /// Returns the number of records left out of responses, with or without TC.
    pub fn left_out(&self) -> u64 {
        self.left_out.get()
    }

    /// Counts the omissions of a response.
    pub(super) fn count(&self, truncated: bool, left_out: usize) {
        if truncated {
            self.truncated.increment();
        }
        if left_out > 0 {
            self.left_out.add(left_out as u64);
        }
    }
}
