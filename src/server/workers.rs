//! The threads that answer over UDP: each with a runtime of its own and a socket of its own on every listening address.
//!
//! The kernel spreads clients over the sockets of an address (SO_REUSEPORT). What a question needs stays in one thread, from
//! its datagram through an exchange with an upstream to the answer.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinSet, spawn_local};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use super::udp::Worker;
use super::{Access, Counters, Respond, ServeError, keep};

/// What the workers of all threads share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    /// All listening addresses.
    pub(super) own: Arc<[SocketAddr]>,
    pub(super) access: Access,
    pub(super) counters: Arc<Counters>,
    /// A place for each answer that is waited for.
    pub(super) places: Arc<Semaphore>,
    /// How long such an answer may take.
    pub(super) patience: Duration,
    /// How long answers in flight have to get out at the end.
    pub(super) drain: Duration,
    /// Cancelled: nothing more is read.
    pub(super) stop: CancellationToken,
    /// Cancelled: answers in flight are given up.
    pub(super) abort: CancellationToken,
}

/// A thread that answers.
#[derive(Debug)]
pub(super) struct Thread {
    /// Closed when the thread has ended.
    ended: oneshot::Receiver<()>,
}

impl Thread {
    /// Starts a thread for these sockets, and waits until it has taken them.
    ///
    /// # Errors
    /// When the system has no thread, or no runtime, or takes no socket.
    pub(super) async fn start<R: Respond>(
        number: usize,
        sockets: Vec<(SocketAddr, UdpSocket)>,
        responder: R,
        shared: Shared,
    ) -> Result<Self, ServeError> {
        let Some(&(address, _)) = sockets.first() else { return Ok(Self { ended: oneshot::channel().1 }) };
        let failed = |source| ServeError { address, source };
        let (starting, started) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let run = move || {
            // Dropped at the end, and by a panic, too.
            let _ending: oneshot::Sender<()> = ending;
            match Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default()) {
                // What is left over ends with the runtime.
                Ok(runtime) => runtime.block_on(serve(sockets, responder, shared, starting)),
                Err(error) => {
                    let _ = starting.send(Err(ServeError { address, source: error }));
                }
            }
        };
        std::thread::Builder::new().name(format!("udp-{number}")).spawn(run).map_err(failed)?;
        started.await.unwrap_or_else(|_| Err(failed(io::Error::other("its thread ended at once"))))?;
        Ok(Self { ended })
    }

    /// Waits until the thread has ended.
    pub(super) async fn ended(&mut self) {
        let _ = (&mut self.ended).await;
    }
}

/// Answers on all sockets until the server stops, and lets out the answers in flight.
async fn serve<R: Respond>(
    sockets: Vec<(SocketAddr, UdpSocket)>,
    responder: R,
    shared: Shared,
    starting: oneshot::Sender<Result<(), ServeError>>,
) {
    let (responder, tracker) = (Arc::new(responder), TaskTracker::new());
    let mut workers = Vec::with_capacity(sockets.len());
    for (address, socket) in sockets {
        match tokio::net::UdpSocket::from_std(socket) {
            Ok(socket) => workers.push(Arc::new(Worker {
                socket,
                address,
                own: Arc::clone(&shared.own),
                access: shared.access.clone(),
                responder: Arc::clone(&responder),
                counters: Arc::clone(&shared.counters),
                places: Arc::clone(&shared.places),
                patience: shared.patience,
                tracker: tracker.clone(),
                stop: shared.stop.clone(),
            })),
            Err(source) => {
                let _ = starting.send(Err(ServeError { address, source }));
                return;
            }
        }
    }
    let _ = starting.send(Ok(()));
    let mut loops = JoinSet::new();
    for worker in workers {
        let (counters, stop) = (Arc::clone(&shared.counters), shared.stop.clone());
        loops.spawn_local(keep(worker.address, "UDP", counters, stop, move || spawn_local(Arc::clone(&worker).run())));
    }
    while loops.join_next().await.is_some() {}
    tracker.close();
    tokio::select! {
        () = tracker.wait() => {}
        () = shared.abort.cancelled() => {}
        () = tokio::time::sleep(shared.drain) => info!(answers = tracker.len(), "giving up answers over UDP that did not come in time"),
    }
}
