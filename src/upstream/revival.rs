//! Waits for an upstream to come back to life while all of them are dead.

use std::pin::pin;
use std::time::{Duration, Instant};

use super::exchange::QueryFailure;
use super::health::{Rank, SILENCE_LIMIT};
use super::order::{UpstreamList, UpstreamOrder};

/// Time for which a query waits for an upstream to come back to life.
///
/// Clients get a failure within 1 s, so that they can query another resolver.
pub(super) const REVIVAL_TIMEOUT: Duration = Duration::from_millis(800);

/// Minimum time between two probes of an upstream while queries wait for it.
pub(super) const PROBE_GAP: Duration = Duration::from_millis(250);

/// Probes the upstreams, all of which are dead, until one may be queried.
///
/// In strict order, that is the first upstream that answers, unless an earlier one in the list
/// answers within [`SILENCE_LIMIT`]: when a network comes back, its servers answer in any order.
///
/// # Errors
/// Returns an error if no upstream answers within [`REVIVAL_TIMEOUT`] or by `deadline`.
pub(super) async fn await_revival(
    list: &UpstreamList,
    began: Instant,
    deadline: Instant,
) -> Result<(), QueryFailure> {
    let until = deadline.min(began + REVIVAL_TIMEOUT);
    let Some(first) = list.usable().next() else { return Err(QueryFailure::NoUpstream) };
    loop {
        let mut changed = pin!(first.health_changed().notified());
        // Registered before the first check, so that no change is missed.
        changed.as_mut().enable();
        let now = Instant::now();
        let (mut alive, mut pending, mut pending_before) = (false, false, false);
        for upstream in list.usable() {
            if upstream.health().rank(now) != Rank::Dead {
                pending_before |= pending && !alive;
                alive = true;
                continue;
            }
            upstream.probe(PROBE_GAP);
            pending |= !upstream.health().is_unreachable_since(began);
        }
        let waits_for_earlier =
            pending_before && list.order() == UpstreamOrder::Strict && now < began + SILENCE_LIMIT;
        if alive && !waits_for_earlier {
            return Ok(());
        }
        if !alive && !pending {
            return Err(QueryFailure::Unreachable);
        }
        if now >= until {
            return if alive { Ok(()) } else { Err(QueryFailure::Dead) };
        }
        let limit = if alive { began + SILENCE_LIMIT } else { until };
        let wake = until.min(limit).min(now + PROBE_GAP);
        let _ = tokio::time::timeout_at(wake.into(), changed).await;
    }
}
