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
use super::listeners::PlainListeners;
use super::udp::UdpShared;
use super::workers::WorkerThread;
use super::{BindError, Bound, Respond};

impl Bound {
    /// Serves until `stop` is cancelled, then drains.
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
        stop: CancellationToken,
    ) -> Result<(), BindError> {
        let Self {
            endpoints,
            wildcards,
            encrypted,
            access,
            tap,
            limits,
            counters,
            heartbeats,
            open,
            quic_is_free,
        } = self;
        // The server also stops if the caller drops this future.
        let stop = stop.child_token();
        let _on_drop = stop.clone().drop_guard();
        let abort = CancellationToken::new();
        let _abort_on_drop = abort.clone().drop_guard();

        let shared = UdpShared {
            own_addresses: Arc::default(),
            access: access.clone(),
            tap: tap.clone(),
            counters: Arc::clone(&counters),
            open: open.clone(),
            heartbeats,
            deferred_permits: Arc::new(Semaphore::new(
                limits.udp_in_flight.clamp(1, Semaphore::MAX_PERMITS),
            )),
            response_timeout: limits.response_timeout,
            drain_timeout: limits.drain_timeout,
            abort: abort.clone(),
        };
        let context = Arc::new(ServerContext {
            access,
            tap,
            admission: Arc::new(Admission::new(limits.clone(), Arc::clone(&counters))),
            responder: Arc::new(responder),
            limits,
            counters,
            open,
            tracker: TaskTracker::new(),
            stop,
            abort,
        });
        let admission = Arc::clone(&context.admission);
        context.tracker.spawn(admission.shorten_deadlines(context.stop.clone()));
        let encrypted = encrypted.map(|sockets| sockets.serve(&context)).transpose()?;
        let (mut encrypted, mut quic) = encrypted.unzip();
        if quic_is_free.is_cancelled()
            && let Some((quic, encrypted)) = quic.take().zip(encrypted.as_mut())
        {
            quic.serve(&context, encrypted)?;
        }
        let mut listeners =
            PlainListeners::new(Arc::clone(&context), shared, Box::new(on_bind_error));
        for endpoint in endpoints {
            listeners.serve(endpoint).await?;
        }

        if let Some((quic, encrypted)) = quic.zip(encrypted.as_mut()) {
            tokio::select! {
                () = context.stop.cancelled() => {}
                () = quic_is_free.cancelled() => quic.serve(&context, encrypted)?,
            }
        }
        listeners.follow_addresses(&wildcards).await;
        let threads = listeners.join_tcp().await;
        if let Some(encrypted) = &mut encrypted {
            encrypted.join_loops().await;
        }
        drain(&context, threads).await;
        if let Some(encrypted) = encrypted {
            encrypted.close().await;
        }
        Ok(())
    }
}

/// Waits for responses in flight; aborts connections that miss the drain timeout.
async fn drain<R>(context: &ServerContext<R>, mut threads: Vec<WorkerThread>) {
    let ServerContext { tracker, abort, limits, .. } = context;
    tracker.close();
    let drained = async {
        tracker.wait().await;
        for thread in &mut threads {
            thread.join().await;
        }
    };
    let mut drained = pin!(drained);
    if timeout(limits.drain_timeout, drained.as_mut()).await.is_err() {
        info!(connections = tracker.len(), "aborting connections that missed the drain timeout");
        abort.cancel();
        if timeout(limits.drain_timeout, drained).await.is_err() {
            warn!(
                connections = tracker.len(),
                "connections or threads still run after the drain; abandoning them"
            );
        }
    }
}
