//! Listeners for plain DNS, and the addresses that a wildcard expands to.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::bind_error::LISTEN;
use super::context::ServerContext;
use super::interfaces::{AddressChanges, local_addresses};
use super::sockets::{PlainEndpoint, worker_count};
use super::udp::{OwnAddresses, UdpShared};
use super::workers::WorkerThread;
use super::{BindError, Respond, StreamKind, tcp};
use crate::inherited::SocketName;
use crate::wire::Transport;

/// Time to collect further address changes before a rescan: they come in bursts.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Interval of retries for an address that could not be bound.
///
/// For example, an IPv6 address may still be in duplicate address detection (RFC 4862 section 5.4).
const BIND_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of rescans without a notification, in case the kernel dropped one.
const RESCAN_INTERVAL: Duration = Duration::from_secs(30);

/// Callback for an address of the machine that cannot be bound.
pub(super) type BindErrorHandler = Box<dyn Fn(SocketAddr, BindError) + Send>;

/// All active listeners for plain DNS.
pub(super) struct PlainListeners<R> {
    context: Arc<ServerContext<R>>,
    shared: UdpShared,
    on_bind_error: BindErrorHandler,
    active: HashMap<SocketAddr, ActiveEndpoint>,
    /// Number of UDP worker threads started so far; also numbers the next thread.
    threads_started: usize,
}

/// An address with running UDP workers and a TCP accept loop.
#[derive(Debug)]
struct ActiveEndpoint {
    /// Whether the address comes from a wildcard: its removal ends the listener.
    followed: bool,
    /// Cancelled when this address must stop receiving and accepting.
    stop: CancellationToken,
    threads: Vec<WorkerThread>,
    tcp: JoinHandle<()>,
}

impl<R: Respond> PlainListeners<R> {
    /// Creates an empty set of listeners.
    pub(super) fn new(
        context: Arc<ServerContext<R>>,
        shared: UdpShared,
        on_bind_error: BindErrorHandler,
    ) -> Self {
        Self { context, shared, on_bind_error, active: HashMap::new(), threads_started: 0 }
    }

    /// Starts the UDP workers and the accept loop of one address.
    ///
    /// # Errors
    /// If the runtime rejects the TCP socket or a worker thread cannot start. Nothing is served on
    /// this address in that case.
    pub(super) async fn serve(&mut self, endpoint: PlainEndpoint) -> Result<(), BindError> {
        let PlainEndpoint { address, followed, udp, tcp } = endpoint;
        let stop = self.context.stop.child_token();
        let stop_on_error = stop.clone().drop_guard();
        let context = Arc::new(self.context.with_stop(stop.clone()));
        let listener = tcp::StreamListener::new(tcp, address, Arc::clone(&context), None);
        let listener = Arc::new(listener.map_err(|source| BindError::System {
            address,
            transport: Transport::Tcp,
            source,
        })?);
        context.open.add(SocketName::Dns, address, &listener);
        let mut threads = Vec::with_capacity(udp.len());
        for socket in udp {
            let responder = self.context.responder.fork();
            threads.push(
                WorkerThread::start(
                    self.threads_started,
                    address,
                    socket,
                    responder,
                    self.shared.clone(),
                    stop.clone(),
                )
                .await?,
            );
            self.threads_started += 1;
        }
        let tcp = tokio::spawn(
            context.supervise(address, StreamKind::Tcp, move || Arc::clone(&listener).run()),
        );
        self.active.insert(
            address,
            ActiveEndpoint { followed, stop: stop_on_error.disarm(), threads, tcp },
        );
        self.publish_own_addresses();
        Ok(())
    }

    /// Keeps a listener on every machine address that `wildcards` cover, until the server stops.
    pub(super) async fn follow_addresses(&mut self, wildcards: &[SocketAddr]) {
        let stop = self.context.stop.clone();
        if wildcards.is_empty() {
            return stop.cancelled().await;
        }
        let mut changes = AddressChanges::subscribe()
            .inspect_err(|error| {
                warn!(
                    %error,
                    interval_s = RESCAN_INTERVAL.as_secs(),
                    "cannot subscribe to address changes; polling the addresses"
                );
            })
            .ok();
        // Number of consecutive failures to bind each address.
        let mut failed_attempts = HashMap::new();
        while !stop.is_cancelled() {
            self.sync_addresses(wildcards, &mut failed_attempts).await;
            let pause =
                if failed_attempts.is_empty() { RESCAN_INTERVAL } else { BIND_RETRY_INTERVAL };
            let changed = async {
                match &changes {
                    Some(changes) => changes.next().await,
                    None => std::future::pending().await,
                }
            };
            let changed = tokio::select! {
                () = stop.cancelled() => return,
                changed = changed => changed,
                () = sleep(pause) => continue,
            };
            if let Err(error) = changed {
                warn!(
                    %error,
                    interval_s = RESCAN_INTERVAL.as_secs(),
                    "lost the subscription to address changes; polling the addresses"
                );
                changes = None;
            }
            sleep(DEBOUNCE).await;
        }
    }

    /// Starts listeners on new addresses and stops listeners on removed ones.
    async fn sync_addresses(
        &mut self,
        wildcards: &[SocketAddr],
        failed_attempts: &mut HashMap<SocketAddr, u32>,
    ) {
        let mut present = Vec::new();
        for wildcard in wildcards {
            match local_addresses(*wildcard) {
                Ok(found) => present.extend(found),
                Err(error) => {
                    return warn!(%error, "cannot list the addresses of this machine; retrying");
                }
            }
        }
        let is_removed = |address: &SocketAddr, endpoint: &mut ActiveEndpoint| {
            endpoint.followed && !present.contains(address)
        };
        let removed: Vec<(SocketAddr, ActiveEndpoint)> =
            self.active.extract_if(is_removed).collect();
        if !removed.is_empty() {
            self.publish_own_addresses();
        }
        for (_, endpoint) in &removed {
            endpoint.stop.cancel();
        }
        for (address, ActiveEndpoint { threads, tcp, .. }) in removed {
            let _ = tcp.await;
            for mut thread in threads {
                thread.join().await;
            }
            info!(%address, "stopped listening: the address was removed");
        }
        failed_attempts.retain(|address, _| present.contains(address));
        for address in present {
            if self.active.contains_key(&address) {
                continue;
            }
            if self
                .listen_on(address, failed_attempts.get(&address).copied().unwrap_or_default())
                .await
            {
                failed_attempts.remove(&address);
                info!(%address, "listening over UDP and TCP: the address was added");
            } else {
                *failed_attempts.entry(address).or_default() += 1;
            }
        }
    }

    /// Binds and serves `address` after earlier `failures`; returns whether it works.
    async fn listen_on(&mut self, address: SocketAddr, failures: u32) -> bool {
        let error = match PlainEndpoint::open(
            address,
            worker_count(self.udp_thread_count(), self.context.limits.udp_workers),
        ) {
            Ok(endpoint) => match self.serve(PlainEndpoint { followed: true, ..endpoint }).await {
                Ok(()) => return true,
                Err(error) => error,
            },
            // The address is in duplicate address detection (RFC 4862 section 5.4), or is gone.
            Err((_, error)) if error.kind() == ErrorKind::AddrNotAvailable => return false,
            Err((transport, error)) => BindError::explain(transport, &LISTEN, address, error),
        };
        // Reported once, on the second failure: the server's own closing socket may cause the
        // first.
        if failures == 1 {
            (self.on_bind_error)(address, error);
        }
        false
    }

    /// Returns the number of running UDP worker threads.
    fn udp_thread_count(&self) -> usize {
        self.active.values().map(|endpoint| endpoint.threads.len()).sum()
    }

    /// Waits for all accept loops, and returns the worker threads that may still drain.
    pub(super) async fn join_tcp(self) -> Vec<WorkerThread> {
        let mut draining = Vec::new();
        for ActiveEndpoint { threads, tcp, .. } in self.active.into_values() {
            let _ = tcp.await;
            draining.extend(threads);
        }
        draining
    }

    /// Tells the UDP workers the server's current addresses.
    fn publish_own_addresses(&self) {
        self.shared
            .own_addresses
            .store(Arc::new(OwnAddresses::new(self.active.keys().copied().collect())));
    }
}
