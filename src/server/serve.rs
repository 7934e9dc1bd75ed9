//! Runs the server: from bound sockets to the last response.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::admission::Admission;
use super::context::ServerContext;
use super::encrypted::EncryptedListeners;
use super::listeners::PlainListeners;
use super::rules::SharedRules;
use super::udp::UdpShared;
use super::workers::WorkerThread;
use super::{BindError, Bound, Respond};

/// The order in which a server ends its parts.
///
/// Clients over UDP have no connection that tells them of the end, so they come last.
#[derive(Clone, Debug)]
pub struct StopOrder {
    /// Ends accepting; connections close once the queries that have arrived are answered.
    pub stop: CancellationToken,
    /// Ends receiving over UDP, and then the server.
    pub last: CancellationToken,
}

impl From<CancellationToken> for StopOrder {
    /// Ends everything at once.
    fn from(stop: CancellationToken) -> Self {
        Self { last: stop.clone(), stop }
    }
}

impl Bound {
    /// Serves until `stops` end it, then drains.
    ///
    /// Connections that miss the drain timeout are aborted. The server then waits for their end,
    /// for at most the same time.
    ///
    /// Calls `on_bind_error` if an address that the machine gained later cannot be bound; the
    /// server keeps retrying that address.
    ///
    /// # Errors
    /// If a worker thread cannot start or the runtime rejects a socket. Nothing is served in that
    /// case.
    pub async fn serve<R: Respond>(
        self,
        responder: R,
        on_bind_error: impl Fn(SocketAddr, BindError) + Send + 'static,
        stops: impl Into<StopOrder>,
    ) -> Result<(), BindError> {
        let Self { endpoints, encrypted, rules, counters, .. } = self;
        let Self { heartbeats, open, quic_is_free, handle, changes, .. } = self;
        let StopOrder { stop, last } = stops.into();
        if stop.is_cancelled() {
            // The queries that wait in inherited sockets are for the next server. This one may know
            // no name yet.
            return Ok(());
        }
        // The server also stops if the caller drops this future.
        let (stop, last) = (stop.child_token(), last.child_token());
        let _on_drop = (stop.clone().drop_guard(), last.clone().drop_guard());
        let (abort, abort_udp) = (CancellationToken::new(), CancellationToken::new());
        let _abort_on_drop = (abort.clone().drop_guard(), abort_udp.clone().drop_guard());

        let (limits, rules) = (rules.limits.clone(), SharedRules::new(rules));
        let shared = UdpShared {
            rules: rules.clone(),
            counters: Arc::clone(&counters),
            open: open.clone(),
            heartbeats,
            deferred_permits: Arc::new(Semaphore::new(
                limits.udp_in_flight.clamp(1, Semaphore::MAX_PERMITS),
            )),
            response_timeout: limits.response_timeout,
            drain_timeout: limits.drain_timeout,
            abort: abort_udp.clone(),
        };
        let context = Arc::new(ServerContext {
            admission: Arc::new(Admission::new(rules.clone(), Arc::clone(&counters))),
            rules,
            responder: Arc::new(responder),
            counters,
            open,
            tracker: TaskTracker::new(),
            stop,
            abort,
        });
        let admission = Arc::clone(&context.admission);
        context.tracker.spawn(admission.shorten_deadlines(context.stop.clone()));
        let mut encrypted_listeners = EncryptedListeners::new(Arc::clone(&context), quic_is_free);
        encrypted_listeners.serve(encrypted)?;
        let mut listeners = PlainListeners::new(
            Arc::clone(&context),
            shared,
            Box::new(on_bind_error),
            handle.state.clone(),
            last.clone(),
        );
        for endpoint in endpoints {
            listeners.serve(endpoint).await?;
        }
        handle.state.lock().is_serving = true;

        listeners.follow(changes, &mut encrypted_listeners).await;
        let threads = listeners.join_tcp().await;
        encrypted_listeners.join_loops().await;
        drain_connections(&context).await;
        encrypted_listeners.close().await;
        last.cancelled().await;
        join_workers(threads, &context.rules, &abort_udp).await;
        Ok(())
    }
}

/// Waits for the connections to end; aborts those that miss the drain timeout.
async fn drain_connections<R>(context: &ServerContext<R>) {
    let ServerContext { tracker, abort, rules, .. } = context;
    let drain_timeout = rules.limit(|limits| limits.drain_timeout);
    tracker.close();
    if timeout(drain_timeout, tracker.wait()).await.is_err() {
        info!(connections = tracker.len(), "aborting connections that missed the drain timeout");
        abort.cancel();
        if timeout(drain_timeout, tracker.wait()).await.is_err() {
            warn!(
                connections = tracker.len(),
                "connections still run after the drain; abandoning them"
            );
        }
    }
}

/// Waits for the UDP workers to end; aborts responses that miss the drain timeout.
async fn join_workers(
    mut threads: Vec<WorkerThread>,
    rules: &SharedRules,
    abort: &CancellationToken,
) {
    let drain_timeout = rules.limit(|limits| limits.drain_timeout);
    let ended = async {
        for thread in &mut threads {
            thread.join().await;
        }
    };
    let mut ended = pin!(ended);
    if timeout(drain_timeout, ended.as_mut()).await.is_err() {
        abort.cancel();
        if timeout(drain_timeout, ended).await.is_err() {
            warn!("UDP threads still run after the drain; abandoning them");
        }
    }
}
