//! The threads that answer over UDP: one for each socket, each with a runtime of its own.
//!
//! The kernel spreads clients over the sockets of an address (SO_REUSEPORT). What a question needs stays in one thread, from
//! its datagram through an exchange with an upstream to the answer.

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

use super::serving::RESTART;
use super::tasks::Tasks;
use super::udp::{Stoppable, UdpShared, Worker};
use super::{BindError, Respond};
use crate::wire::Transport;

/// A thread that answers.
#[derive(Debug)]
pub(super) struct Thread {
    /// Closed when the thread has ended.
    ended: oneshot::Receiver<()>,
    /// Ends the reading when it is time.
    ending: JoinHandle<()>,
}

impl Thread {
    /// Starts a thread of this number for this socket, and waits until it has taken it. It answers until `stop` is cancelled, or the
    /// runtime that this is called in ends.
    ///
    /// # Errors
    /// When the system has no thread, or no runtime.
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
        let (ending, ended) = oneshot::channel();
        let reading = Reading(Arc::new(Stoppable::new(socket)));
        let worker = Worker { socket: Arc::clone(&reading.0), address, responder, shared, stop: stop.clone() };
        let run = move || {
            // Dropped at the end, and by a panic, too.
            let _ending: oneshot::Sender<()> = ending;
            match Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default()) {
                // What is left over ends with the runtime.
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
        started.await.unwrap_or_else(|_| Err(failed(io::Error::other("its thread ended at once"))))?;
        let ending = tokio::spawn(async move {
            let _reading = reading;
            stop.cancelled().await;
        });
        Ok(Self { ended, ending })
    }

    /// Waits until the thread has ended and its socket is closed.
    pub(super) async fn ended(&mut self) {
        if !self.ending.is_finished() {
            let _ = (&mut self.ending).await;
        }
        let _ = (&mut self.ended).await;
    }
}

/// Ends the reading of its socket when it is dropped.
#[derive(Debug)]
struct Reading(Arc<Stoppable>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Answers until the server stops, again after a panic, and lets out the answers in flight.
fn serve<R: Respond>(worker: Arc<Worker<R>>, runtime: &LocalRuntime) {
    let mut tasks = Tasks::new(runtime);
    while catch_unwind(AssertUnwindSafe(|| match worker.address {
        SocketAddr::V4(_) => worker.run::<SockaddrIn>(runtime, &mut tasks),
        SocketAddr::V6(_) => worker.run::<SockaddrIn6>(runtime, &mut tasks),
    }))
    .is_err()
    {
        worker.shared.counters.panics.increment();
        error!(address = %worker.address, transport = "UDP", "the loop of a socket panicked and is started again; please report this");
        std::thread::sleep(RESTART);
    }
    let Tasks { answers, .. } = tasks;
    let (drain, abort) = (worker.shared.drain, worker.shared.abort.clone());
    drop(worker);
    answers.close();
    runtime.block_on(async {
        tokio::select! {
            () = answers.wait() => {}
            () = abort.cancelled() => {}
            () = tokio::time::sleep(drain) => info!(answers = answers.len(), "giving up answers over UDP that did not come in time"),
        }
    });
}
