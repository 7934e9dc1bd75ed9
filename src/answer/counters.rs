//! What is counted of answers.

use crate::metrics::Counter;

/// Numbers of answers since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// By response code 0-15; BADVERS counts under 0, as its header says.
    rcodes: [Counter; 16],
    cut: Counter,
    left_out: Counter,
}

impl Counters {
    /// Answers with this response code, 0-15.
    pub fn answers(&self, rcode: u16) -> u64 {
        self.rcodes.get(usize::from(rcode)).map_or(0, Counter::get)
    }

    /// Answers that left records out, for want of room or by the `answers` setting.
    pub fn cut(&self) -> u64 {
        self.cut.get()
    }

    /// Records that those answers left out.
    pub fn left_out(&self) -> u64 {
        self.left_out.get()
    }

    /// Counts a response that left out so many records.
    pub(super) fn count(&self, rcode: u16, left_out: usize) {
        self.rcodes[usize::from(rcode & 0xF)].increment();
        if left_out > 0 {
            self.cut.increment();
            self.left_out.add(left_out as u64);
        }
    }
}
