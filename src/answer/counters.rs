//! What is counted of answers.

use crate::metrics::Counter;

/// Numbers of answers since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// By response code 0-15; BADVERS counts under 0, as its header says.
    rcodes: [Counter; 16],
    truncated: Counter,
    left_out: Counter,
}

impl Counters {
    /// Answers with this response code, 0-15.
    pub fn responses(&self, rcode: u16) -> u64 {
        self.rcodes.get(usize::from(rcode)).map_or(0, Counter::get)
    }

    /// Answers with TC set.
    pub fn truncated(&self) -> u64 {
        self.truncated.get()
    }

    /// Records that answers left out: for want of room, or by the `answers` setting without TC.
    pub fn left_out(&self) -> u64 {
        self.left_out.get()
    }

    /// Counts a response, with the number of records that it left out.
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
