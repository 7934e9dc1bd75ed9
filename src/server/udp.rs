//! UDP workers: receive a batch of datagrams, send a batch of responses.
//!
//! A response that is available at once needs no allocation and no task.
//!
//! A worker without pending tasks blocks in the receive call, which saves readiness notifications
//! and turns of the event loop. While deferred responses or other tasks are pending, the worker
//! runs its runtime, which also watches the socket.
//!
//! A worker leaves what its socket shares with other processes as it is: systemd or a successor
//! may have the same one. At its start, it sets the mode and the receive time-out, as they all do;
//! later, it neither changes them nor shuts the socket down. Instead, the receive call times out
//! now and then, and the worker looks whether it must stop.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::Guard;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::LocalRuntime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::backoff::ErrorBackoff;
use super::batch::{Batch, MAX_BATCH_DATAGRAMS, RawAddress, ReceiveWait, send_one};
use super::counters::SAMPLED_EVERY;
use super::heartbeat::{Heartbeat, Heartbeats};
use super::pace::{AfterFailure, BatchSize, SEND_BUFFER_WAIT, SendRetry};
use super::rules::{ServingRules, SharedRules};
use super::tasks::WorkerTasks;
use super::{Client, Counters, Disposition, DnsTransport, Request, Respond};
use crate::inherited::OpenSockets;

/// Consecutive full batches before the worker yields to its thread's other tasks.
const MAX_FULL_BATCHES: usize = 2;
/// Longest wait of an idle worker before it looks whether it must stop.
///
/// Only an idle worker waits this long: a loaded one looks after each batch.
const WAKE_INTERVAL: Duration = Duration::from_millis(250);
/// Batches that a worker answers after the stop: those that had already arrived.
const MAX_LAST_BATCHES: usize = 64;

/// Answers queries on one UDP socket.
#[derive(Debug)]
pub(super) struct Worker<R> {
    pub(super) socket: Arc<StoppableSocket>,
    pub(super) address: SocketAddr,
    pub(super) responder: R,
    pub(super) shared: UdpShared,
    pub(super) heartbeat: Arc<Heartbeat>,
    pub(super) stop: CancellationToken,
}

/// State shared by all UDP workers.
#[derive(Clone, Debug)]
pub(super) struct UdpShared {
    pub(super) rules: SharedRules,
    pub(super) counters: Arc<Counters>,
    /// The open sockets of the server, among them those of the workers.
    pub(super) open: OpenSockets,
    pub(super) heartbeats: Arc<Heartbeats>,
    /// One permit for each deferred response, over all sockets.
    pub(super) deferred_permits: Arc<Semaphore>,
    /// Time limit for a deferred response.
    pub(super) response_timeout: Duration,
    /// Time for responses in flight to finish at shutdown.
    pub(super) drain_timeout: Duration,
    /// Cancelled when responses in flight must be abandoned.
    pub(super) abort: CancellationToken,
}

/// A socket whose receive loop can be stopped from another thread.
#[derive(Debug)]
pub(super) struct StoppableSocket {
    pub(super) socket: UdpSocket,
    stopped: AtomicBool,
}

impl AsFd for StoppableSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl StoppableSocket {
    /// Wraps a socket, and lets its receive calls block for at most [`WAKE_INTERVAL`].
    ///
    /// # Errors
    /// If the system refuses either.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(WAKE_INTERVAL))?;
        Ok(Self { socket, stopped: AtomicBool::new(false) })
    }

    /// Stops the receive loop, an idle one within [`WAKE_INTERVAL`]; sending still works.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Returns whether [`Self::stop`] was called.
    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

/// Buffers and state that a worker reuses for every batch.
#[derive(Debug)]
struct WorkerScratch<A> {
    batch: Batch<A>,
    random: fastrand::Rng,
    backoff: ErrorBackoff,
    /// Queries of the last batch with a deferred response.
    deferred: Vec<DeferredQuery>,
    /// Number of batches so far, one in [`SAMPLED_EVERY`] of which is timed.
    batches: u64,
}

/// State common to all datagrams of a batch.
#[derive(Debug)]
struct BatchContext<A> {
    lookahead: A,
    rules: Guard<Arc<ServingRules>>,
    now: Instant,
}

/// A query whose response is deferred.
#[derive(Debug)]
struct DeferredQuery {
    request: Vec<u8>,
    source: SocketAddr,
    permit: DeferredPermit,
    /// Time of receipt.
    received: Instant,
    /// Whether the sink wants the query.
    is_wanted: bool,
}

impl<R: Respond> Worker<R> {
    /// Serves until the server stops; survives socket errors, but not panics.
    pub(super) fn run<A: RawAddress>(
        self: &Arc<Self>,
        runtime: &LocalRuntime,
        tasks: &mut WorkerTasks,
    ) {
        // The responder may spawn tasks, which need the entered runtime.
        let _entered = runtime.enter();
        let mut scratch = WorkerScratch::<A> {
            batch: Batch::new(),
            random: fastrand::Rng::new(),
            backoff: ErrorBackoff::default(),
            deferred: Vec::with_capacity(MAX_BATCH_DATAGRAMS),
            batches: 0,
        };
        while !self.socket.is_stopped() && !self.stop.is_cancelled() {
            if tasks.need_runtime() || !scratch.deferred.is_empty() {
                runtime.block_on(self.run_with_tasks(&mut scratch, tasks));
            } else {
                self.run_blocking(&mut scratch, tasks);
            }
        }
        runtime.block_on(self.answer_rest(&mut scratch, tasks));
    }

    /// Answers what had arrived before the stop.
    async fn answer_rest<A: RawAddress>(
        self: &Arc<Self>,
        scratch: &mut WorkerScratch<A>,
        tasks: &mut WorkerTasks,
    ) {
        self.spawn_deferred(scratch, tasks);
        for _ in 0..MAX_LAST_BATCHES {
            let socket = &self.socket.socket;
            let received = scratch.batch.receive(socket, MAX_BATCH_DATAGRAMS, ReceiveWait::Never);
            let Ok(count) = received else { return };
            self.answer_batch(scratch, tasks).await;
            if count < MAX_BATCH_DATAGRAMS {
                return;
            }
        }
    }

    /// Answers a batch within the runtime; returns whether a response is deferred.
    async fn answer_batch<A: RawAddress>(
        self: &Arc<Self>,
        scratch: &mut WorkerScratch<A>,
        tasks: &WorkerTasks,
    ) -> bool {
        self.respond_to_batch(scratch);
        let any_deferred = self.spawn_deferred(scratch, tasks);
        let mut retry = SendRetry::default();
        while !self.send_batch(&mut scratch.batch, &mut retry) {
            sleep(SEND_BUFFER_WAIT).await;
        }
        any_deferred
    }

    /// Serves in blocking receive calls until tasks are pending or the server stops.
    fn run_blocking<A: RawAddress>(&self, scratch: &mut WorkerScratch<A>, tasks: &WorkerTasks) {
        let socket = &self.socket.socket;
        let mut batch_size = BatchSize::default();
        while !self.socket.is_stopped() {
            match scratch.batch.receive(socket, batch_size.next(), ReceiveWait::ForDatagram) {
                Ok(count) => {
                    batch_size.record(count);
                    self.note_received(scratch);
                    self.respond_to_batch(scratch);
                    let mut retry = SendRetry::default();
                    while !self.send_batch(&mut scratch.batch, &mut retry) {
                        std::thread::sleep(SEND_BUFFER_WAIT);
                    }
                    if !scratch.deferred.is_empty() || tasks.need_runtime() {
                        return;
                    }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    self.heartbeat.beat(Instant::now());
                }
                Err(error) => std::thread::sleep(self.note_receive_error(&error, scratch)),
            }
        }
    }

    /// Serves while tasks are pending, or until the server stops.
    async fn run_with_tasks<A: RawAddress>(
        self: &Arc<Self>,
        scratch: &mut WorkerScratch<A>,
        tasks: &mut WorkerTasks,
    ) {
        self.spawn_deferred(scratch, tasks);
        // The socket is registered only while the runtime runs: a registered socket costs the
        // kernel a readiness event per datagram, even when no task waits for it.
        let socket = self.socket.socket.as_fd();
        #[expect(
            deprecated,
            reason = "unsound for a descriptor that closes too early; this one is borrowed"
        )]
        let watched = match AsyncFd::with_interest(socket, Interest::READABLE) {
            Ok(watched) => watched,
            // The tasks keep running during the pause.
            Err(error) => return sleep(self.note_receive_error(&error, scratch)).await,
        };
        let mut stopped = pin!(self.stop.cancelled());
        let mut idle = interval(WAKE_INTERVAL);
        idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut full = 0;
        loop {
            let ready = tokio::select! {
                biased;
                () = &mut stopped => return,
                ready = watched.readable() => ready.map(drop),
                now = idle.tick() => {
                    self.heartbeat.beat(now.into_std());
                    continue;
                }
            };
            match ready.and_then(|()| self.receive_watched(&watched, &mut scratch.batch)) {
                Ok(state) => {
                    self.note_received(scratch);
                    let any_deferred = self.answer_batch(scratch, tasks).await;
                    if tasks.record_batch(any_deferred, Instant::now()) {
                        return;
                    }
                    full = if state == SocketState::MaybeMore { full + 1 } else { 0 };
                    if full >= MAX_FULL_BATCHES {
                        full = 0;
                        tokio::task::yield_now().await;
                    }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => {
                    let pause = self.note_receive_error(&error, scratch);
                    tokio::select! {
                        () = &mut stopped => return,
                        () = sleep(pause) => {}
                    }
                }
            }
        }
    }

    /// Receives a batch, and returns whether the socket may hold more datagrams.
    fn receive_watched<A: RawAddress>(
        &self,
        watched: &AsyncFd<BorrowedFd<'_>>,
        batch: &mut Batch<A>,
    ) -> io::Result<SocketState> {
        let mut count = 0;
        let outcome = watched.try_io(Interest::READABLE, |_| {
            let socket = &self.socket.socket;
            count = batch.receive(socket, MAX_BATCH_DATAGRAMS, ReceiveWait::Never)?;
            // A short batch means that the socket is empty. Reporting it saves a receive call that
            // would receive nothing.
            if count < MAX_BATCH_DATAGRAMS {
                Err(ErrorKind::WouldBlock.into())
            } else {
                Ok(SocketState::MaybeMore)
            }
        });
        match outcome {
            Err(error) if error.kind() == ErrorKind::WouldBlock && count > 0 => {
                Ok(SocketState::Drained)
            }
            outcome => outcome,
        }
    }

    /// Resets the backoff after a successful receive call.
    fn note_received<A>(&self, scratch: &mut WorkerScratch<A>) {
        if scratch.backoff.reset() {
            debug!(address = %self.address, "receiving over UDP works again");
        }
    }

    /// Counts and logs a receive error, and returns the length of the pause.
    #[cold]
    fn note_receive_error<A>(&self, error: &io::Error, scratch: &mut WorkerScratch<A>) -> Duration {
        if self.shared.counters.udp_receive_errors.increment().is_power_of_two() {
            warn!(address = %self.address, %error, "cannot receive over UDP; retrying");
        }
        scratch.backoff.next()
    }

    /// Writes the available responses of a batch, and collects the deferred queries.
    fn respond_to_batch<A: RawAddress>(&self, scratch: &mut WorkerScratch<A>) {
        let WorkerScratch { batch, random, deferred, batches, .. } = scratch;
        let lookahead = self.responder.look_ahead(batch.requests());
        let context =
            BatchContext { lookahead, rules: self.shared.rules.load(), now: Instant::now() };
        self.heartbeat.beat(context.now);
        let mut queries = 0;
        batch.respond(|index, message, source, out| {
            let (client, wanted) = (self.client(source), context.rules.tap.wants());
            let request = Request {
                message,
                index,
                client: &client,
                now: context.now,
                random: random.u64(..),
            };
            let written = match self.respond(request, &context, &mut queries, out) {
                Disposition::Ready => true,
                Disposition::Silent => false,
                Disposition::Deferred => match self.acquire_permit() {
                    Some(permit) => {
                        deferred.push(DeferredQuery {
                            request: message.to_vec(),
                            source,
                            permit,
                            received: context.now,
                            is_wanted: wanted,
                        });
                        return false;
                    }
                    None => self.respond_overloaded(message, out),
                },
            };
            if wanted {
                context.rules.tap.report(&client, message, written.then_some(out), context.now);
            }
            written
        });
        if queries > 0 {
            self.shared.counters.udp_queries.add(queries);
        }
        *batches = batches.wrapping_add(1);
        if *batches % SAMPLED_EVERY == 1 && batch.unsent() > 0 {
            self.shared.counters.udp_times.immediate.observe(context.now.elapsed());
        }
    }

    /// Returns the client at `source`. The destination is the socket's own address.
    fn client(&self, source: SocketAddr) -> Client {
        Client { source, destination: self.address, transport: DnsTransport::Udp }
    }

    /// Writes the response to one datagram if available; counts it if it has access.
    fn respond(
        &self,
        request: Request<'_>,
        context: &BatchContext<R::Lookahead>,
        queries: &mut u64,
        out: &mut Vec<u8>,
    ) -> Disposition {
        // Borrowed, because the compiler would copy a `SocketAddr` field by field.
        let source = &request.client.source;
        // A response cannot be sent to port 0.
        if source.port() == 0 || context.rules.own_addresses.contains(source) {
            self.shared.counters.udp_implausible.increment();
            return Disposition::Silent;
        }
        let (responder, message) = (&self.responder, request.message);
        let written = |written| if written { Disposition::Ready } else { Disposition::Silent };
        if context.rules.access.allows(source.ip()) {
            *queries += 1;
            self.catch_panic(message, || responder.respond(request, &context.lookahead, out))
        } else {
            self.shared.counters.udp_refused.increment();
            self.catch_panic(message, || written(responder.refuse(message, out)))
        }
    }

    /// Calls `respond`; a panic loses only the response to this datagram.
    fn catch_panic(&self, request: &[u8], respond: impl FnOnce() -> Disposition) -> Disposition {
        catch_unwind(AssertUnwindSafe(respond)).unwrap_or_else(|_| {
            if self.shared.counters.panics.increment().is_power_of_two() {
                error!(
                    bytes = request.len(),
                    "caught a panic while responding; please report this"
                );
            }
            Disposition::Silent
        })
    }

    /// Acquires a permit for a deferred response, if one is free.
    fn acquire_permit(&self) -> Option<DeferredPermit> {
        let permit = Arc::clone(&self.shared.deferred_permits).try_acquire_owned().ok()?;
        self.shared.counters.udp_deferred.increment();
        Some(DeferredPermit { counters: Arc::clone(&self.shared.counters), _permit: permit })
    }

    /// Writes SERVFAIL because no permit is free; returns whether to send it.
    fn respond_overloaded(&self, request: &[u8], out: &mut Vec<u8>) -> bool {
        if self.shared.counters.udp_overloads.increment().is_power_of_two() {
            warn!("too many deferred UDP responses (the limit is fixed); answering SERVFAIL");
        }
        let fail = || {
            if self.responder.fail(request, out) { Disposition::Ready } else { Disposition::Silent }
        };
        self.catch_panic(request, fail) == Disposition::Ready
    }

    /// Spawns a task for each deferred response of a batch; returns whether any exist.
    ///
    /// The tasks run on this thread, which also owns the responder's sockets, so a response wakes
    /// no other thread.
    fn spawn_deferred<A>(
        self: &Arc<Self>,
        scratch: &mut WorkerScratch<A>,
        tasks: &WorkerTasks,
    ) -> bool {
        let any = !scratch.deferred.is_empty();
        for query in scratch.deferred.drain(..) {
            let DeferredQuery { request, source, permit, received, is_wanted } = query;
            let worker = Arc::clone(self);
            tasks.deferred.spawn(async move {
                let _permit = permit;
                let UdpShared { rules, response_timeout, counters, .. } = &worker.shared;
                let client = worker.client(source);
                let pending =
                    is_wanted.then(|| rules.load().tap.defer(&client, &request, received));
                let response =
                    timeout(*response_timeout, worker.responder.respond_later(request, client))
                        .await
                        .unwrap_or_else(|_| {
                            counters.udp_response_timeouts.increment();
                            None
                        });
                if let Some(pending) = pending {
                    pending.report(response.as_deref());
                }
                if let Some(response) = response {
                    counters.udp_times.deferred.observe(received.elapsed());
                    worker.send(&response, source).await;
                }
            });
        }
        any
    }

    /// Sends the responses of a batch; one failure does not affect the others.
    ///
    /// Returns `false` if the send buffer is full: the caller tries again after
    /// [`SEND_BUFFER_WAIT`].
    fn send_batch<A: RawAddress>(&self, batch: &mut Batch<A>, retry: &mut SendRetry) -> bool {
        while batch.unsent() > 0 {
            match batch.send(&self.socket.socket) {
                Ok(count) => {
                    *retry = SendRetry::default();
                    self.shared.counters.udp_responses.add(count as u64);
                }
                Err(error) => match retry.after(&error) {
                    AfterFailure::Retry => {}
                    AfterFailure::WaitForRoom => return false,
                    AfterFailure::Drop => {
                        let dropped =
                            if error.kind() == ErrorKind::WouldBlock { batch.unsent() } else { 1 };
                        self.count_dropped(&error, dropped);
                        batch.skip(dropped);
                        *retry = SendRetry::default();
                    }
                },
            }
        }
        batch.shrink();
        true
    }

    /// Sends one response, or drops and counts it.
    async fn send(&self, response: &[u8], target: SocketAddr) {
        let mut retry = SendRetry::default();
        loop {
            match send_one(&self.socket.socket, response, target) {
                Ok(()) => {
                    self.shared.counters.udp_responses.increment();
                    return;
                }
                Err(error) => match retry.after(&error) {
                    AfterFailure::Retry => {}
                    AfterFailure::WaitForRoom => sleep(SEND_BUFFER_WAIT).await,
                    AfterFailure::Drop => return self.count_dropped(&error, 1),
                },
            }
        }
    }

    /// Counts responses that could not be sent.
    fn count_dropped(&self, error: &io::Error, responses: usize) {
        if error.kind() == ErrorKind::WouldBlock {
            self.shared.counters.udp_dropped.add(responses as u64);
        } else {
            debug!(%error, "cannot send a response over UDP");
            self.shared.counters.udp_send_errors.add(responses as u64);
        }
    }
}

/// State of a watched socket after a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SocketState {
    /// The socket is empty; the runtime reports the next datagram.
    Drained,
    /// The socket may hold more datagrams.
    MaybeMore,
}

/// Permit for a deferred response; dropping it releases the permit.
#[derive(Debug)]
struct DeferredPermit {
    counters: Arc<Counters>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for DeferredPermit {
    fn drop(&mut self) {
        self.counters.udp_deferred.decrement();
        if std::thread::panicking() && self.counters.panics.increment().is_power_of_two() {
            error!("caught a panic in a deferred response; please report this");
        }
    }
}

#[cfg(test)]
mod tests;
