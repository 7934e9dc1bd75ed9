//! State shared by all connection listeners.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

use super::admission::Admission;
use super::rules::SharedRules;
use super::{Client, Counters, Respond, StreamCounters, StreamKind};
use crate::inherited::OpenSockets;

/// Pause before a panicked loop is restarted.
pub(super) const RESTART_DELAY: Duration = Duration::from_millis(100);

/// State shared by all connection listeners.
#[derive(Debug)]
pub(super) struct ServerContext<R> {
    pub(super) rules: SharedRules,
    pub(super) admission: Arc<Admission>,
    pub(super) responder: Arc<R>,
    pub(super) counters: Arc<Counters>,
    pub(super) open: OpenSockets,
    pub(super) tracker: TaskTracker,
    /// Cancelled when listeners must stop accepting and connections stop reading.
    pub(super) stop: CancellationToken,
    /// Cancelled when open connections must end without a drain.
    pub(super) abort: CancellationToken,
}

impl<R: Respond> ServerContext<R> {
    /// Returns a copy with another `stop` token.
    pub(super) fn with_stop(&self, stop: CancellationToken) -> Self {
        let Self { rules, admission, responder, counters, open, tracker, stop: _, abort } = self;
        Self {
            rules: rules.clone(),
            admission: Arc::clone(admission),
            responder: Arc::clone(responder),
            counters: Arc::clone(counters),
            open: open.clone(),
            tracker: tracker.clone(),
            stop,
            abort: abort.clone(),
        }
    }

    /// Runs a listener's loop until it returns; restarts the loop after a panic.
    pub(super) async fn supervise<F>(
        self: Arc<Self>,
        address: SocketAddr,
        kind: StreamKind,
        run: impl Fn() -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        while let Err(failure) = tokio::spawn(run()).await {
            if !failure.is_panic() || self.stop.is_cancelled() {
                return;
            }
            self.counters.panics.increment();
            error!(
                %address,
                transport = kind.name(),
                "the accept loop panicked; restarting it; please report this"
            );
            tokio::time::sleep(RESTART_DELAY).await;
        }
    }

    /// Spawns a connection's task, which ends early once `abort` is cancelled.
    ///
    /// The task takes twice the size of `connection`: a large future should be boxed.
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

    /// Waits for a deferred response, up to the response timeout.
    ///
    /// `received` is the time of receipt if the sink wants this query, otherwise `None`.
    pub(super) async fn await_response(
        &self,
        kind: StreamKind,
        request: Vec<u8>,
        client: Client,
        received: Option<Instant>,
    ) -> Option<Vec<u8>> {
        let StreamCounters { deferred, times, .. } = self.counters.of(kind);
        let (_deferred, began) = (deferred.hold(), Instant::now());
        let pending =
            received.map(|received| self.rules.load().tap.defer(&client, &request, received));
        let response = timeout(
            self.rules.limit(|limits| limits.response_timeout),
            self.responder.respond_later(request, client),
        )
        .await;
        let response = response.unwrap_or_else(|_| {
            self.counters.of(kind).response_timeouts.increment();
            None
        });
        if let Some(pending) = pending {
            pending.report(response.as_deref());
        }
        if response.is_some() {
            times.deferred.observe(began.elapsed());
        }
        response
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::server::Limits;
    use crate::server::echo::Echo;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Returns a context with an echo responder that serves loopback clients only.
    pub(in crate::server) fn context(limits: Limits) -> Arc<ServerContext<Echo>> {
        let (counters, rules) = (Arc::new(Counters::default()), SharedRules::of(limits));
        Arc::new(ServerContext {
            admission: Arc::new(Admission::new(rules.clone(), Arc::clone(&counters))),
            rules,
            responder: Arc::default(),
            counters,
            open: OpenSockets::default(),
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_loop_is_restarted_after_a_panic() {
        let context = context(Limits::default());
        let starts = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&starts);
        let run = move || {
            let start = counted.fetch_add(1, Ordering::Relaxed);
            async move { assert!(start >= 2, "start {start} fails") }
        };
        Arc::clone(&context)
            .supervise(SocketAddr::from(([127, 0, 0, 1], 1)), StreamKind::Tcp, run)
            .await;
        assert_eq!(starts.load(Ordering::Relaxed), 3);
        assert_eq!(context.counters.panics.get(), 2);
    }
}
