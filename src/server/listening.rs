//! The addresses that are listened on for plain DNS, each with its threads for UDP and its loop for TCP.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::udp::Own;
use super::workers::{Shared, Thread};
use super::{Endpoint, Respond, ServeError, Serving, keep, tcp};

/// All that is listened on.
#[derive(Debug)]
pub(super) struct Listening<R> {
    serving: Arc<Serving<R>>,
    shared: Shared,
    open: HashMap<SocketAddr, Open>,
}

/// One address that is listened on.
#[derive(Debug)]
struct Open {
    /// Cancelled: nothing more is accepted or read there.
    stop: CancellationToken,
    threads: Vec<Thread>,
    tcp: JoinHandle<()>,
}

impl<R: Respond> Listening<R> {
    /// Nothing yet.
    pub(super) fn new(serving: Arc<Serving<R>>, shared: Shared) -> Self {
        Self { serving, shared, open: HashMap::new() }
    }

    /// Answers on these sockets from now on.
    ///
    /// # Errors
    /// When the runtime does not take the one for TCP, or there is no thread for one for UDP; none of them is served then.
    pub(super) async fn open(&mut self, endpoint: Endpoint) -> Result<(), ServeError> {
        let Endpoint { address, udp, tcp } = endpoint;
        let stop = self.serving.stop.child_token();
        let unless_done = stop.clone().drop_guard();
        let listener = Arc::new(tcp::Listener {
            socket: tokio::net::TcpListener::from_std(tcp).map_err(|source| ServeError { address, source })?,
            address,
            serving: Arc::new(self.serving.until(stop.clone())),
            tls: None,
        });
        let mut threads = Vec::with_capacity(udp.len());
        for socket in udp {
            let responder = self.serving.responder.fork();
            threads.push(Thread::start(address, socket, responder, self.shared.clone(), stop.clone()).await?);
        }
        let tcp = tokio::spawn(keep(address, listener.kind().name(), Arc::clone(&self.serving.counters), stop.clone(), move || {
            tokio::spawn(Arc::clone(&listener).run())
        }));
        self.open.insert(address, Open { stop: unless_done.disarm(), threads, tcp });
        self.tell_own();
        Ok(())
    }

    /// Threads that answer over UDP.
    pub(super) fn threads(&self) -> usize {
        self.open.values().map(|open| open.threads.len()).sum()
    }

    /// Waits until all loops have ended, and says which threads may still have answers to let out.
    pub(super) async fn ended(self) -> Vec<Thread> {
        let mut left = Vec::new();
        for Open { threads, tcp, .. } in self.open.into_values() {
            let _ = tcp.await;
            left.extend(threads);
        }
        left
    }

    /// Tells the threads which addresses are our own.
    fn tell_own(&self) {
        self.shared.own.store(Arc::new(Own::new(self.open.keys().copied().collect())));
    }
}
