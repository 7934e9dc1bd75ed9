//! Counters of the forwarder.

use crate::metrics::Counter;

/// Counters since startup; they contain no names and no client addresses.
#[derive(Debug, Default)]
pub struct Counters {
    /// Queries answered from the cache.
    pub hits: Counter,
    /// Queries that had to be forwarded.
    pub misses: Counter,
    /// Queries that waited for an identical query in flight.
    pub merged: Counter,
    /// Queries answered with a stale entry because no upstream answered in time.
    pub stale: Counter,
    /// Cache entries refreshed before they expired.
    pub prefetches: Counter,
    /// Queries, including refreshes, that no upstream answered.
    pub failures: Counter,
    /// Queries rejected because too many clients were waiting.
    pub overloaded: Counter,
    /// Messages with opcodes other than QUERY that were forwarded.
    pub passed: Counter,
}
