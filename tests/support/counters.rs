//! Waiting for a server's counters.

use std::time::{Duration, Instant};

use svcdns::server::Counters;

/// Waits until the counters satisfy `holds`.
///
/// Fails the test after `within`, naming `what`.
pub(crate) async fn until(
    counters: &Counters,
    within: Duration,
    what: &str,
    holds: impl Fn(&Counters) -> bool,
) {
    let start = Instant::now();
    while !holds(counters) {
        assert!(start.elapsed() < within, "not within {within:?}: {what}; {counters:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
