//! Listeners for plain DNS, and the addresses that a wildcard expands to.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::bind_error::LISTEN;
use super::context::ServerContext;
use super::encrypted::EncryptedListeners;
use super::handle::{ListenerChange, PreparedListeners};
use super::interfaces::{AddressChanges, local_addresses};
use super::listening::{ListenState, SharedListenState};
use super::own_addresses::OwnAddresses;
use super::sockets::{PlainEndpoint, worker_count};
use super::udp::UdpShared;
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
    state: SharedListenState,
    active: HashMap<SocketAddr, ActiveEndpoint>,
    /// Unspecified addresses whose expansions are followed, with resolved ports.
    wildcards: Vec<SocketAddr>,
    /// Consecutive failures to bind each address that a wildcard stands for.
    failures: HashMap<SocketAddr, u32>,
    /// Cancelled when the UDP workers must stop.
    udp_stop: CancellationToken,
    /// Number of UDP worker threads started so far; also numbers the next thread.
    threads_started: usize,
}

/// An address with running UDP workers and a TCP accept loop.
#[derive(Debug)]
struct ActiveEndpoint {
    /// Whether the address comes from a wildcard: its removal ends the listener.
    followed: bool,
    /// Cancelled when this address must stop accepting.
    stop: CancellationToken,
    /// Cancelled when this address must stop receiving over UDP.
    udp_stop: CancellationToken,
    threads: Vec<WorkerThread>,
    tcp: JoinHandle<()>,
}

impl<R: Respond> PlainListeners<R> {
    /// Creates an empty set of listeners, of which `state` tells others.
    pub(super) fn new(
        context: Arc<ServerContext<R>>,
        shared: UdpShared,
        on_bind_error: BindErrorHandler,
        state: SharedListenState,
        udp_stop: CancellationToken,
    ) -> Self {
        let wildcards = state.lock().listening.wildcards();
        Self {
            context,
            shared,
            on_bind_error,
            state,
            active: HashMap::new(),
            wildcards,
            failures: HashMap::new(),
            udp_stop,
            threads_started: 0,
        }
    }

    /// Starts the UDP workers and the accept loop of one address.
    ///
    /// # Errors
    /// If the runtime rejects the TCP socket or a worker thread cannot start. Nothing is served on
    /// this address in that case.
    pub(super) async fn serve(&mut self, endpoint: PlainEndpoint) -> Result<(), BindError> {
        let PlainEndpoint { address, followed, udp, tcp } = endpoint;
        let (stop, udp_stop) = (self.context.stop.child_token(), self.udp_stop.child_token());
        let stop_on_error = (stop.clone().drop_guard(), udp_stop.clone().drop_guard());
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
                    udp_stop.clone(),
                )
                .await?,
            );
            self.threads_started += 1;
        }
        let tcp = tokio::spawn(
            context.supervise(address, StreamKind::Tcp, move || Arc::clone(&listener).run()),
        );
        let (stop, udp_stop) = (stop_on_error.0.disarm(), stop_on_error.1.disarm());
        self.active.insert(address, ActiveEndpoint { followed, stop, udp_stop, threads, tcp });
        self.publish_addresses();
        Ok(())
    }

    /// Follows the machine's addresses and changes of the configuration, until the server stops.
    pub(super) async fn follow(
        &mut self,
        mut changes: mpsc::Receiver<ListenerChange>,
        encrypted: &mut EncryptedListeners<R>,
    ) {
        let stop = self.context.stop.clone();
        let mut addresses = None;
        while !stop.is_cancelled() {
            if !self.wildcards.is_empty() {
                addresses = addresses.or_else(subscribe);
                self.sync_addresses().await;
            }
            let pause =
                if self.failures.is_empty() { RESCAN_INTERVAL } else { BIND_RETRY_INTERVAL };
            let changed = async {
                match &addresses {
                    Some(addresses) => AddressChanges::next(addresses).await,
                    None => std::future::pending().await,
                }
            };
            let changed = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(ListenerChange { prepared, done }) = changes.recv() => {
                    self.apply(prepared, encrypted).await;
                    // Nobody waits any more if the reload has been given up.
                    let _ = done.send(());
                    continue;
                }
                () = encrypted.quic_freed() => {
                    if let Err(error) = encrypted.serve_waiting() {
                        error!(%error, "cannot serve DNS over QUIC");
                    }
                    continue;
                }
                changed = changed => changed,
                () = sleep(pause) => continue,
            };
            if let Err(error) = changed {
                warn!(
                    %error,
                    interval_s = RESCAN_INTERVAL.as_secs(),
                    "lost the subscription to address changes; polling the addresses"
                );
                addresses = None;
            }
            sleep(DEBOUNCE).await;
        }
    }

    /// Puts a prepared change into operation.
    ///
    /// New listeners serve before the old ones end.
    async fn apply(&mut self, prepared: PreparedListeners, encrypted: &mut EncryptedListeners<R>) {
        let PreparedListeners { rules, listening, endpoints, encrypted: sockets, .. } = prepared;
        self.context.rules.replace(&rules);
        {
            let mut state = self.state.lock();
            state.missing.retain(|address, _| listening.covers(address));
            state.listening = listening.clone();
        }
        self.wildcards = listening.wildcards();
        for endpoint in endpoints {
            let address = endpoint.address;
            match self.serve(endpoint).await {
                Ok(()) => info!(%address, "listening over UDP and TCP"),
                Err(error) => self.report_missing(address, error),
            }
        }
        let first = listening.tls.iter().chain(&listening.quic).next();
        if let (Err(error), Some((_, address))) = (encrypted.serve(sockets), first) {
            self.report_missing(*address, error);
        }
        for (address, endpoint) in &mut self.active {
            endpoint.followed = !listening.names(address);
        }
        self.end_where(|address, _| !listening.covers(address), "it is no longer configured").await;
    }

    /// Starts listeners on new addresses of the machine, and ends listeners on removed ones.
    async fn sync_addresses(&mut self) {
        let mut present = Vec::new();
        for wildcard in &self.wildcards {
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
        self.end_where(is_removed, "the address was removed").await;
        self.failures.retain(|address, _| present.contains(address));
        {
            let mut state = self.state.lock();
            let ListenState { listening, missing, .. } = &mut *state;
            // An address that the machine has lost is not missing, unless it is configured itself.
            missing.retain(|address, _| present.contains(address) || listening.names(address));
        }
        for address in present {
            if self.active.contains_key(&address) {
                continue;
            }
            if self.listen_on(address).await {
                self.failures.remove(&address);
                info!(%address, "listening over UDP and TCP: the address was added");
            } else {
                *self.failures.entry(address).or_default() += 1;
            }
        }
    }

    /// Ends the listeners for which `is_ended` holds, after the queries in hand.
    async fn end_where(
        &mut self,
        is_ended: impl FnMut(&SocketAddr, &mut ActiveEndpoint) -> bool,
        reason: &str,
    ) {
        let ended: Vec<(SocketAddr, ActiveEndpoint)> = self.active.extract_if(is_ended).collect();
        if ended.is_empty() {
            return;
        }
        self.publish_addresses();
        for (_, endpoint) in &ended {
            endpoint.stop.cancel();
            endpoint.udp_stop.cancel();
        }
        for (address, ActiveEndpoint { threads, tcp, .. }) in ended {
            let _ = tcp.await;
            for mut thread in threads {
                thread.join().await;
            }
            info!(%address, "stopped listening: {reason}");
        }
    }

    /// Binds and serves `address`; returns whether it works.
    async fn listen_on(&mut self, address: SocketAddr) -> bool {
        let workers = self.context.rules.limit(|limits| limits.udp_workers);
        let workers = worker_count(self.udp_thread_count(), workers);
        let error = match PlainEndpoint::open(address, workers, &mut Vec::new()) {
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
        if self.failures.get(&address) == Some(&1) {
            self.report_missing(address, error);
        }
        false
    }

    /// Tells others that an address is not served.
    fn report_missing(&self, address: SocketAddr, error: BindError) {
        self.state.lock().missing.insert(address, error.to_string());
        (self.on_bind_error)(address, error);
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

    /// Tells the UDP workers, and others, the server's current addresses.
    fn publish_addresses(&self) {
        let own_addresses = OwnAddresses::new(self.active.keys().copied().collect());
        self.context.rules.set_own_addresses(&own_addresses);
        let workers = |(address, endpoint): (&SocketAddr, &ActiveEndpoint)| {
            (*address, endpoint.threads.len())
        };
        let mut state = self.state.lock();
        state.active = self.active.iter().map(workers).collect();
        state.missing.retain(|address, _| !self.active.contains_key(address));
    }
}

/// Subscribes to changes of the machine's addresses, if possible.
fn subscribe() -> Option<AddressChanges> {
    AddressChanges::subscribe()
        .inspect_err(|error| {
            warn!(
                %error,
                interval_s = RESCAN_INTERVAL.as_secs(),
                "cannot subscribe to address changes; polling the addresses"
            );
        })
        .ok()
}
