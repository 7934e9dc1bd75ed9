//! The running server: from open sockets to the last response.

use std::future::Future;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::admission::Admission;
use super::encrypted::Opened;
use super::listening::Listening;
use super::sink::Tap;
use super::workers::{Shared, Thread};
use super::{Access, BindError, Client, Counters, Limits, Respond, StreamKind};

/// How long after a panic a loop is started again.
pub(super) const RESTART: Duration = Duration::from_millis(100);

/// Sockets that are open and wait to be served.
#[derive(Debug)]
pub struct Bound {
    pub(super) endpoints: Vec<Endpoint>,
    /// The unspecified addresses among those listened on, ports resolved.
    pub(super) wildcards: Vec<SocketAddr>,
    pub(super) encrypted: Option<Opened>,
    pub(super) access: Access,
    pub(super) tap: Tap,
    pub(super) limits: Limits,
    pub(super) counters: Arc<Counters>,
}

/// One listening address with its sockets: one for each thread that answers over UDP, and one for TCP.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    /// Whether it was not named, but is one of a wildcard's: it goes with the address.
    pub(super) followed: bool,
    pub(super) udp: Vec<UdpSocket>,
    pub(super) tcp: TcpListener,
}

impl Bound {
    /// The addresses that are listened on at the start, ports resolved, each for UDP and TCP.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.endpoints.iter().map(|endpoint| endpoint.address).collect()
    }

    /// The addresses of DNS over TLS, ports resolved.
    pub fn tls_addresses(&self) -> Vec<SocketAddr> {
        self.encrypted.iter().flat_map(|encrypted| &encrypted.tls).map(|(address, _)| *address).collect()
    }

    /// The addresses of DNS over QUIC, ports resolved.
    pub fn quic_addresses(&self) -> Vec<SocketAddr> {
        self.encrypted.iter().flat_map(|encrypted| &encrypted.quic).map(|(address, _)| *address).collect()
    }

    /// What is counted, from now until the server has ended.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

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

        let shared = Shared {
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
        let mut encrypted = encrypted.map(|opened| opened.serve(&serving)).transpose()?;
        let mut listening = Listening::new(Arc::clone(&serving), shared, Box::new(report));
        for endpoint in endpoints {
            listening.serve(endpoint).await?;
        }

        listening.follow(&wildcards).await;
        let threads = listening.ended().await;
        if let Some(encrypted) = &mut encrypted {
            encrypted.ended().await;
        }
        serving.drain(threads).await;
        if let Some(encrypted) = encrypted {
            encrypted.close().await;
        }
        Ok(())
    }
}

/// What all listeners for connections share.
#[derive(Debug)]
pub(super) struct Serving<R> {
    pub(super) access: Access,
    pub(super) tap: Tap,
    pub(super) admission: Arc<Admission>,
    pub(super) responder: Arc<R>,
    pub(super) limits: Limits,
    pub(super) counters: Arc<Counters>,
    pub(super) tracker: TaskTracker,
    /// Cancelled: nothing more is accepted or read.
    pub(super) stop: CancellationToken,
    /// Cancelled: connections end as they are.
    pub(super) abort: CancellationToken,
}

impl<R: Respond> Serving<R> {
    /// The same, with an end of its own.
    pub(super) fn until(&self, stop: CancellationToken) -> Self {
        let Self { access, tap, admission, responder, limits, counters, tracker, stop: _, abort } = self;
        Self {
            access: access.clone(),
            tap: tap.clone(),
            admission: Arc::clone(admission),
            responder: Arc::clone(responder),
            limits: limits.clone(),
            counters: Arc::clone(counters),
            tracker: tracker.clone(),
            stop,
            abort: abort.clone(),
        }
    }

    /// Runs the loop of a listener until it ends by itself, and again after a panic in it.
    pub(super) async fn keep<F>(self: Arc<Self>, address: SocketAddr, kind: StreamKind, run: impl Fn() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        while let Err(failure) = tokio::spawn(run()).await {
            if !failure.is_panic() || self.stop.is_cancelled() {
                return;
            }
            self.counters.panics.increment();
            error!(%address, transport = kind.name(), "the loop of a socket panicked and is started again; please report this");
            tokio::time::sleep(RESTART).await;
        }
    }

    /// Starts the task of a connection. It ends early when all connections are to end as they are.
    pub(super) fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let abort = self.abort.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                biased;
                () = abort.cancelled() => {}
                () = connection => {}
            }
        });
    }

    /// Waits for the response that [`super::Response::Later`] promised, for at most the answer
    /// time-out. `received` is the time of receipt of a query that the sink wants.
    pub(super) async fn later(&self, kind: StreamKind, request: Vec<u8>, client: Client, received: Option<Instant>) -> Option<Vec<u8>> {
        let kept = received.map(|received| self.tap.keep(&client, &request, received));
        let later = timeout(self.limits.answer_timeout, self.responder.later(request, client)).await;
        let response = later.unwrap_or_else(|_| {
            self.counters.of(kind).answer_timeouts.increment();
            None
        });
        if let Some(kept) = kept {
            kept.finished(response.as_deref());
        }
        response
    }

    /// Waits until the responses in flight are out. Gives up those that miss the drain time-out.
    async fn drain(&self, mut threads: Vec<Thread>) {
        let Self { tracker, abort, limits, .. } = self;
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
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::echo::Echo;
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// What listeners of an echo share, for loopback alone.
    pub(in super::super) fn serving(limits: Limits) -> Arc<Serving<Echo>> {
        let counters = Arc::new(Counters::default());
        Arc::new(Serving {
            access: Access::new(&[]),
            tap: Tap::default(),
            admission: Arc::new(Admission::new(limits.clone(), Arc::clone(&counters))),
            responder: Arc::default(),
            limits,
            counters,
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_panics_is_started_again() {
        let serving = serving(Limits::default());
        let starts = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&starts);
        let run = move || {
            let start = counted.fetch_add(1, Ordering::Relaxed);
            async move { assert!(start >= 2, "start {start} fails") }
        };
        Arc::clone(&serving).keep(SocketAddr::from(([127, 0, 0, 1], 1)), StreamKind::Tcp, run).await;
        assert_eq!(starts.load(Ordering::Relaxed), 3);
        assert_eq!(serving.counters.panics.get(), 2);
    }
}
