//! What forwarding counts.

use crate::metrics::Counter;

/// Numbers since the start. A count never says what was asked or by whom.
#[derive(Debug, Default)]
pub struct Counters {
    /// Questions answered from the cache.
    pub hits: Counter,
    /// Questions that had to be asked.
    pub misses: Counter,
    /// Questions that waited for an equal one which was being asked already.
    pub merged: Counter,
    /// Questions answered with what was past its end, for want of anything better.
    pub stale: Counter,
    /// Answers asked for anew ahead of their end, because they are wanted.
    pub prefetches: Counter,
    /// Questions, refreshes among them, that no upstream answered.
    pub failures: Counter,
    /// Questions turned away because too many were waiting.
    pub overloaded: Counter,
    /// Messages with an opcode other than QUERY that were passed on.
    pub passed: Counter,
}
