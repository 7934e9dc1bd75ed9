//! Threads of the UDP workers: one per socket, each with its own runtime.
//!
//! The kernel spreads clients over the sockets of an address (`SO_REUSEPORT`). A query stays on one
//! thread from its datagram through an upstream exchange to the response.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use nix::sys::socket::{SockaddrIn, SockaddrIn6};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::context::RESTART_DELAY;
use super::tasks::WorkerTasks;
use super::udp::{StoppableSocket, UdpShared, Worker};
use super::{BindError, Respond};
use crate::inherited::SocketName;
use crate::wire::Transport;

/// A running UDP worker thread.
#[derive(Debug)]
pub(super) struct WorkerThread {
    /// Closed when the thread has ended.
    finished: oneshot::Receiver<()>,
    /// Stops the receive loop once the server stops.
    stopper: JoinHandle<()>,
}

impl WorkerThread {
    /// Spawns thread `number` for `socket`, and waits until its runtime has started.
    ///
    /// The worker serves until `stop` is cancelled or the calling runtime shuts down.
    ///
    /// # Errors
    /// If the system cannot create the thread or its runtime.
    pub(super) async fn start<R: Respond>(
        number: usize,
        address: SocketAddr,
        socket: UdpSocket,
        responder: R,
        shared: UdpShared,
        stop: CancellationToken,
    ) -> Result<Self, BindError> {
        let failed = move |source| BindError::System { address, transport: Transport::Udp, source };
        let (starting, started) = oneshot::channel();
        let (finishing, finished) = oneshot::channel();
        let stop_on_drop = StopOnDrop(Arc::new(StoppableSocket::new(socket).map_err(failed)?));
        shared.open.add(SocketName::Dns, address, &stop_on_drop.0);
        let worker = Worker {
            socket: Arc::clone(&stop_on_drop.0),
            address,
            responder,
            heartbeat: shared.heartbeats.add(address, number),
            shared,
            stop: stop.clone(),
        };
        let run = move || {
            // Dropped when the thread ends, even after a panic.
            let _finishing: oneshot::Sender<()> = finishing;
            match Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build_local(LocalOptions::default())
            {
                // Dropping the runtime cancels the remaining tasks.
                Ok(runtime) => {
                    let _ = starting.send(Ok(()));
                    serve(Arc::new(worker), &runtime);
                }
                Err(error) => {
                    let _ = starting.send(Err(failed(error)));
                }
            }
        };
        std::thread::Builder::new().name(format!("udp-{number}")).spawn(run).map_err(failed)?;
        started
            .await
            .unwrap_or_else(|_| Err(failed(io::Error::other("the worker thread ended at once"))))?;
        let stopper = tokio::spawn(async move {
            let _stop_on_drop = stop_on_drop;
            stop.cancelled().await;
        });
        Ok(Self { finished, stopper })
    }

    /// Waits until the thread has ended and its socket is closed.
    pub(super) async fn join(&mut self) {
        if !self.stopper.is_finished() {
            let _ = (&mut self.stopper).await;
        }
        let _ = (&mut self.finished).await;
    }
}

/// Guard that stops the receive loop of its socket on drop.
#[derive(Debug)]
struct StopOnDrop(Arc<StoppableSocket>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Runs the worker until the server stops, restarts it after a panic, then drains.
fn serve<R: Respond>(worker: Arc<Worker<R>>, runtime: &LocalRuntime) {
    let mut tasks = WorkerTasks::new(runtime);
    while catch_unwind(AssertUnwindSafe(|| match worker.address {
        SocketAddr::V4(_) => worker.run::<SockaddrIn>(runtime, &mut tasks),
        SocketAddr::V6(_) => worker.run::<SockaddrIn6>(runtime, &mut tasks),
    }))
    .is_err()
    {
        worker.shared.counters.panics.increment();
        error!(
            address = %worker.address,
            transport = "UDP",
            "the receive loop panicked; restarting it; please report this"
        );
        std::thread::sleep(RESTART_DELAY);
    }
    let WorkerTasks { deferred, .. } = tasks;
    let (drain, abort) = (worker.shared.drain_timeout, worker.shared.abort.clone());
    drop(worker);
    deferred.close();
    runtime.block_on(async {
        tokio::select! {
            () = deferred.wait() => {}
            () = abort.cancelled() => {}
            () = tokio::time::sleep(drain) => info!(
                responses = deferred.len(),
                "dropping deferred UDP responses that missed the drain timeout"
            ),
        }
    });
}
