//! The running server: from open sockets to the last response.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::admission::Admission;
use super::listening::Listening;
use super::serving::Serving;
use super::udp::UdpShared;
use super::workers::Thread;
use super::{BindError, Bound, Respond};

impl Bound {
    /// Serves until `stop` is cancelled, then lets the answers in flight go out, for at most the drain time-out.
    ///
    /// Calls `report` when it cannot listen on a new address of the machine. It tries again.
    ///
    /// # Errors
    /// When there is no thread for a socket, or the runtime does not take it; nothing is served then.
    pub async fn serve<R: Respond>(
        self,
        responder: R,
        report: impl Fn(SocketAddr, BindError) + Send + 'static,
        stop: CancellationToken,
    ) -> Result<(), BindError> {
        let Self { endpoints, wildcards, encrypted, access, tap, limits, counters } = self;
        // Ends with this future too, should nobody wait for the drain.
        let ending = stop.child_token();
        let _on_drop = ending.clone().drop_guard();
        let abort = CancellationToken::new();
        let _abort_on_drop = abort.clone().drop_guard();

        let shared = UdpShared {
            own: Arc::default(),
            access: access.clone(),
            tap: tap.clone(),
            counters: Arc::clone(&counters),
            places: Arc::new(Semaphore::new(limits.udp_in_flight.clamp(1, Semaphore::MAX_PERMITS))),
            patience: limits.answer_timeout,
            drain: limits.drain_timeout,
            abort: abort.clone(),
        };
        let serving = Arc::new(Serving {
            access,
            tap,
            admission: Arc::new(Admission::new(limits.clone(), Arc::clone(&counters))),
            responder: Arc::new(responder),
            limits,
            counters,
            tracker: TaskTracker::new(),
            stop: ending,
            abort,
        });
        let mut encrypted = encrypted.map(|sockets| sockets.serve(&serving)).transpose()?;
        let mut listening = Listening::new(Arc::clone(&serving), shared, Box::new(report));
        for endpoint in endpoints {
            listening.serve(endpoint).await?;
        }

        listening.follow(&wildcards).await;
        let threads = listening.ended().await;
        if let Some(encrypted) = &mut encrypted {
            encrypted.ended().await;
        }
        drain(&serving, threads).await;
        if let Some(encrypted) = encrypted {
            encrypted.close().await;
        }
        Ok(())
    }
}

/// Waits until the responses in flight are out. Gives up those that miss the drain time-out.
async fn drain<R>(serving: &Serving<R>, mut threads: Vec<Thread>) {
    let Serving { tracker, abort, limits, .. } = serving;
    tracker.close();
    let drained = async {
        tracker.wait().await;
        for thread in &mut threads {
            thread.ended().await;
        }
    };
    let mut drained = pin!(drained);
    if timeout(limits.drain_timeout, drained.as_mut()).await.is_err() {
        info!(connections = tracker.len(), "giving up answers that did not get out in time");
        abort.cancel();
        if timeout(limits.drain_timeout, drained).await.is_err() {
            warn!(connections = tracker.len(), "connections or threads are still busy; leaving them behind");
        }
    }
}
