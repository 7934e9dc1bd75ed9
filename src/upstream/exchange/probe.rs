//! Probes: svcdns's own queries that find out whether an upstream is alive and supports EDNS.
//!
//! A probe queries the NS records of the root, or of the domain for which the upstream is
//! configured, which every resolver has in its cache. Some upstreams drop queries for names that
//! they do not serve, so the first query that the upstream has answered is sent as well. Each probe
//! has its own socket.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::{AttemptError, Outgoing, Sockets, Upstream, UpstreamResponse};

/// Time limit for the response to a probe; longer than usual round trips.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Time limit for the responses of an EDNS check.
const EDNS_CHECK_TIMEOUT: Duration = Duration::from_millis(800);

/// Time after which a probe is repeated, because a datagram may have been lost.
const PROBE_REPEAT: Duration = Duration::from_millis(150);

/// Minimum time between two EDNS checks of an upstream.
const EDNS_CHECK_INTERVAL: Duration = Duration::from_secs(5);

impl Upstream {
    /// Sends a probe unless one was sent less than `gap` ago.
    ///
    /// Its result changes the upstream's health. Probes have no EDNS, because an upstream that
    /// ignores queries with EDNS is also alive.
    pub(in crate::upstream) fn probe(self: &Arc<Self>, gap: Duration) {
        if !self.health.may_probe(Instant::now(), gap) {
            return;
        }
        let upstream = Arc::clone(self);
        self.connector.runtime.spawn(async move {
            let sockets = Sockets::default();
            let first = upstream.answered_query.get().unwrap_or(&upstream.probe_query);
            let attempt = sockets.send_twice(&upstream, [first, &upstream.probe_query], false);
            if let Ok(Err(error)) = timeout(PROBE_TIMEOUT, attempt).await {
                let unreachable = matches!(error, AttemptError::Unreachable(_));
                upstream.health.record_failure(&error.to_string(), unreachable, Instant::now());
            }
        });
    }

    /// Disables EDNS if the upstream fails queries because of it.
    ///
    /// Called after a query failed with EDNS and succeeded without it. A single failing name or a
    /// lost datagram must not disable EDNS for all names, so svcdns checks with its own queries.
    pub(in crate::upstream) fn check_edns(self: &Arc<Self>) {
        if !self.health.may_check_edns(Instant::now(), EDNS_CHECK_INTERVAL) {
            return;
        }
        let upstream = Arc::clone(self);
        self.connector.runtime.spawn(async move {
            if upstream.fails_with_edns().await {
                upstream.speaks_edns.store(false, Ordering::Relaxed);
                upstream.health.disable_edns(Instant::now());
            }
        });
    }

    /// Returns whether the upstream answers a probe without EDNS but not one with EDNS.
    async fn fails_with_edns(self: &Arc<Self>) -> bool {
        let (sockets, query) = (Sockets::default(), &self.probe_query);
        let with_edns = sockets.send_twice(self, [query, query], true);
        let (with_edns, without) = tokio::join!(
            timeout(EDNS_CHECK_TIMEOUT, with_edns),
            timeout(EDNS_CHECK_TIMEOUT, sockets.send_once(self, query, false)),
        );
        let Ok(Ok(without)) = without else { return false };
        match with_edns {
            Err(_) => true,
            Ok(Err(error)) => matches!(error, AttemptError::Malformed),
            Ok(Ok(response)) => response.may_reject_edns() && response.rcode != without.rcode,
        }
    }
}

impl Sockets {
    /// Sends the first query, and the second if no result arrives in [`PROBE_REPEAT`].
    ///
    /// Returns whichever result arrives first.
    async fn send_twice(
        &self,
        upstream: &Arc<Upstream>,
        [first, second]: [&Outgoing; 2],
        edns: bool,
    ) -> Result<UpstreamResponse, AttemptError> {
        tokio::select! {
            result = self.send_once(upstream, first, edns) => result,
            result = async {
                sleep(PROBE_REPEAT).await;
                self.send_once(upstream, second, edns).await
            } => result,
        }
    }
}
