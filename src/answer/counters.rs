//! Counters of the authoritative side.

use crate::metrics::Counter;

/// Counters of responses since the start of the process.
#[derive(Debug, Default)]
pub struct Counters {
    /// By response code, 0-15. BADVERS counts as 0, as in its header.
    rcodes: [Counter; 16],
    truncated: Counter,
    left_out: Counter,
}

impl Counters {
    /// Returns the number of responses with this response code, 0-15.
    pub fn responses(&self, rcode: u16) -> u64 {
        self.rcodes.get(usize::from(rcode)).map_or(0, Counter::get)
    }

    /// Returns the number of responses with TC set.
    pub fn truncated(&self) -> u64 {
        self.truncated.get()
    }

    /// Returns the number of records left out of responses, with or without TC.
    pub fn left_out(&self) -> u64 {
        self.left_out.get()
    }

    /// Counts a response and the records left out of it.
    pub(super) fn count(&self, rcode: u16, truncated: bool, left_out: usize) {
        self.rcodes[usize::from(rcode & 0xF)].increment();
        if truncated {
            self.truncated.increment();
        }
        if left_out > 0 {
            self.left_out.add(left_out as u64);
        }
    }
}
