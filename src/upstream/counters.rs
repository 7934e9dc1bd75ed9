//! Counters of the forwarder.

use crate::metrics::Counter;

/// Counts since the start; no counter reveals names or clients.
#[derive(Debug, Default)]
pub struct Counters {
    /// Queries answered from the cache.
    pub hits: Counter,
    /// Queries that had to be forwarded.
    pub misses: Counter,
    /// Queries that waited for an equal one in flight.
    pub merged: Counter,
    /// Queries answered with a stale entry because no upstream answered in time.
    pub stale: Counter,
    /// Cache entries refreshed before they expired.
    pub prefetches: Counter,
    /// Queries, refreshes included, that no upstream answered.
    pub failures: Counter,
    /// Queries rejected because too many clients were waiting.
    pub overloaded: Counter,
    /// Messages with an opcode other than QUERY that were forwarded.
    pub passed: Counter,
}
