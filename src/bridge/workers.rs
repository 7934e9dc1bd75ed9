//! The threads that accept connections and forward their bytes.
//!
//! Each thread has a runtime of its own: a connection stays on its thread, and no byte wakes
//! another one. The threads listen on one address together (SO_REUSEPORT), so the kernel spreads
//! new connections over them.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{AcceptedClient, serve};
use super::shared::Shared;
use super::sockets::{SocketOptions, original_destination};

/// Limit on threads.
const MAX_THREADS: usize = 4;

/// Pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Which destination a connection to a listener is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Destination {
    /// The one that the kernel redirected from.
    Redirected,
    /// The address of the listener.
    Own(SocketAddrV4),
}

/// The threads of a bridge.
#[derive(Debug)]
pub(super) struct Workers {
    threads: Vec<mpsc::UnboundedSender<Listening>>,
    next: AtomicUsize,
}

/// A listener for a thread, and when to close it.
#[derive(Debug)]
struct Listening {
    listener: std::net::TcpListener,
    destination: Destination,
    stop: CancellationToken,
}

/// The ends of the threads.
#[derive(Debug)]
pub(super) struct WorkersEnd {
    /// Cancelled once a thread has ended, also by a panic.
    first: CancellationToken,
    /// Counts the threads that have not ended.
    threads: TaskTracker,
}

impl WorkersEnd {
    /// Waits until a thread has ended.
    pub(super) async fn first(&self) {
        self.first.cancelled().await;
    }

    /// Waits until all threads have ended.
    pub(super) async fn all(&self) {
        self.threads.wait().await;
    }
}

impl Workers {
    /// Starts the threads.
    ///
    /// Once `stop` is cancelled, each one closes its listeners, waits for its connections as long
    /// as the settings allow, and resets the rest.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(super) fn start(
        shared: &Arc<Shared>,
        stop: &CancellationToken,
    ) -> io::Result<(Self, WorkersEnd)> {
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let mut threads = Vec::new();
        let ended = WorkersEnd { first: CancellationToken::new(), threads: TaskTracker::new() };
        for number in 0..count {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (sender, listeners) = mpsc::unbounded_channel();
            // Dropped at the end of the thread, even after a panic.
            let ending = (ended.first.clone().drop_guard(), ended.threads.token());
            let (shared, stop) = (Arc::clone(shared), stop.clone());
            std::thread::Builder::new().name(format!("bridge-{number}")).spawn(move || {
                let _ending = ending;
                runtime.block_on(work(listeners, shared, stop));
                // Connections that are still open are dropped, which resets them.
                drop(runtime);
            })?;
            threads.push(sender);
        }
        ended.threads.close();
        Ok((Self { threads, next: AtomicUsize::new(0) }, ended))
    }

    /// Returns the number of threads.
    pub(super) fn count(&self) -> usize {
        self.threads.len()
    }

    /// Accepts the connections of a listener, on the next thread in turn, until `stop`.
    pub(super) fn accept(
        &self,
        listener: std::net::TcpListener,
        destination: Destination,
        stop: CancellationToken,
    ) {
        let thread = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        // A thread ends early only at shutdown.
        let _ = self.threads[thread].send(Listening { listener, destination, stop });
    }
}

/// The work of one thread.
async fn work(
    mut listeners: mpsc::UnboundedReceiver<Listening>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    loop {
        let listening = tokio::select! {
            () = stop.cancelled() => break,
            listening = listeners.recv() => listening,
        };
        let Some(Listening { listener, destination, stop: close }) = listening else { break };
        let options = SocketOptions::new(shared.settings.keepalive);
        match options.set(&listener).and_then(|()| TcpListener::from_std(listener)) {
            Ok(listener) => {
                let (shared, connections) = (Arc::clone(&shared), connections.clone());
                tokio::spawn(async move {
                    close
                        .run_until_cancelled(accept(&listener, destination, &shared, &connections))
                        .await;
                });
            }
            Err(error) => tracing::warn!(%error, "the bridge cannot use one of its listeners"),
        }
    }
    drop(listeners);
    connections.close();
    let _ = tokio::time::timeout(shared.settings.drain, connections.wait()).await;
}

/// Accepts connections until it is cancelled.
async fn accept(
    listener: &TcpListener,
    destination: Destination,
    shared: &Arc<Shared>,
    connections: &TaskTracker,
) {
    loop {
        match listener.accept().await {
            Ok((stream, SocketAddr::V4(client))) => {
                let destination = destination_of(&stream, destination);
                let stream = AcceptedClient::new(stream);
                if destination.is_some_and(|destination| shared.is_probe(destination)) {
                    continue;
                }
                shared.counters.accepted.increment();
                if let Some(destination) = destination {
                    connections.spawn(serve(stream, client, destination, Arc::clone(shared)));
                } else {
                    shared.counters.unknown.increment();
                }
            }
            Ok((stream, SocketAddr::V6(_))) => drop(AcceptedClient::new(stream)),
            Err(error) => {
                if shared.counters.accept_errors.increment().is_power_of_two() {
                    tracing::warn!(%error, "the bridge cannot accept a connection");
                }
                if !concerns_one_connection(&error) {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Returns whether accepting failed because of the accepted connection (accept(2)).
fn concerns_one_connection(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(
            Errno::ECONNABORTED
                | Errno::EPROTO
                | Errno::ENETDOWN
                | Errno::ENETUNREACH
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
                | Errno::EPERM
        )
    )
}

/// Returns the destination of a connection; `None` if it was not redirected.
fn destination_of(stream: &TcpStream, destination: Destination) -> Option<SocketAddrV4> {
    match destination {
        Destination::Redirected => original_destination(stream).ok(),
        Destination::Own(address) => Some(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aborted_connection_does_not_pause_its_listener() {
        let of =
            |errno: Errno| concerns_one_connection(&io::Error::from_raw_os_error(errno as i32));
        assert!(of(Errno::ECONNABORTED) && of(Errno::EPERM));
        assert!(!of(Errno::EMFILE) && !of(Errno::ENFILE) && !of(Errno::ENOMEM));
    }
}
