//! What all listeners for connections share: the responder, access, limits, counters, and the stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

use super::admission::Admission;
use super::sink::Tap;
use super::{Access, Client, Counters, Limits, Respond, StreamKind};

/// How long after a panic a loop is started again.
pub(super) const RESTART: Duration = Duration::from_millis(100);

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
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::server::echo::Echo;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// What listeners of an echo share, for loopback alone.
    pub(in crate::server) fn serving(limits: Limits) -> Arc<Serving<Echo>> {
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
