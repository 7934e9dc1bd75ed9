//! Sockets: UDP and TCP on every listening address, TLS and QUIC where wanted, who may ask, limits, and a clean stop.
//!
//! Knows no registry and no names: a message goes in and a message comes out, made by a [`Respond`]. What this room
//! holds to: no error of a socket and no client ends a loop; every wait has a deadline and every queue a bound
//! (RFC 7766 sections 6 and 10, RFC 9210 section 4); a source without access gets a refusal and nothing else.

mod access;
mod admission;
mod backoff;
mod batch;
mod bind;
mod certificate;
mod connection;
mod counters;
mod encrypted;
mod interfaces;
mod listening;
mod pace;
mod padding;
mod query_log;
mod quic;
mod responder;
mod tasks;
mod tcp;
mod udp;
mod workers;

pub use access::Access;
pub use bind::{BindError, bind};
pub use certificate::{CertificateError, CertificateFiles};
pub use counters::{Counters, StreamCounters};
pub use encrypted::Encrypted;
pub use responder::Responder;

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, iter};

use ipnet::IpNet;
use quinn::VarInt;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::wire::Transport;
use admission::Admission;
use certificate::Purpose;
use counters::Kind;
use encrypted::Opened;
use listening::Listening;
use query_log::QueryLog;
use workers::Shared;

/// Makes answers. Called from many threads at once.
pub trait Respond: Send + Sync + Sized + 'static {
    /// Another one of the same, for a thread of its own: what it needs for itself alone, such as sockets, is its own.
    #[must_use]
    fn fork(&self) -> Self;

    /// What [`Self::look_ahead`] found out.
    type Ahead;

    /// Looks at messages that came together before [`Self::respond`] is asked for each: what they need may be fetched for all at
    /// once.
    fn look_ahead<'r>(&self, requests: impl Iterator<Item = &'r [u8]>) -> Self::Ahead;

    /// Clears `out` and writes the answer to a request, without TCP's length prefix, if it is ready. `ahead` is what was found
    /// out about it and those that came with it. Must neither block nor wait.
    fn respond(&self, request: Request<'_>, ahead: &Self::Ahead, out: &mut Vec<u8>) -> Response;

    /// The same for a message that came alone.
    fn respond_alone(&self, octets: &[u8], transport: Transport, out: &mut Vec<u8>) -> Response {
        let ahead = self.look_ahead(iter::once(octets));
        self.respond(Request { octets, number: 0, transport, now: Instant::now(), draw: fastrand::u64(..) }, &ahead, out)
    }

    /// The answer that [`Response::Later`] promised; none: stay silent. Ends within its own deadline.
    fn later(&self, request: Vec<u8>, transport: Transport) -> impl Future<Output = Option<Vec<u8>>> + Send;

    /// Clears `out` and writes the refusal for a source without access. False: stay silent.
    fn refuse(&self, request: &[u8], out: &mut Vec<u8>) -> bool;

    /// Clears `out` and writes that there is no answer now (SERVFAIL): too many others are waited for. False: stay silent.
    fn fail(&self, request: &[u8], out: &mut Vec<u8>) -> bool;
}

/// A message to answer.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    /// What came, without TCP's length prefix.
    pub octets: &'r [u8],
    /// Its number among those that came together, from 0 on.
    pub number: usize,
    /// How it came.
    pub transport: Transport,
    /// When.
    pub now: Instant,
    /// A fresh random number.
    pub draw: u64,
}

/// What [`Respond::respond`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// The answer is written.
    Ready,
    /// There is nothing to say.
    Silent,
    /// The answer has to be waited for: [`Respond::later`] gives it.
    Later,
}

/// Where to listen, and for whom.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Addresses to listen on, each with UDP and TCP. Port 0 takes a free one. An unspecified address (`0.0.0.0`, `::`)
    /// means each address that the machine has, followed as they come and go.
    pub listen: Vec<SocketAddr>,
    /// Encrypted listeners beside them.
    pub encrypted: Encrypted,
    /// Networks that may ask, besides loopback.
    pub allow: Vec<IpNet>,
    /// Whether loopback may ask without standing in `allow`; on by default.
    pub allow_loopback: bool,
    /// Of how many questions that a thread is asked one is logged; 0 for none. Names and addresses of clients end in the log.
    pub log_queries: u32,
    /// Deadlines and bounds.
    pub limits: Limits,
}

impl Default for Settings {
    /// `127.0.0.1:5300`, for loopback alone.
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 5300))],
            encrypted: Encrypted::default(),
            allow: Vec::new(),
            allow_loopback: true,
            log_queries: 0,
            limits: Limits::default(),
        }
    }
}

/// Settings that cannot be served as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// There is no address to listen on.
    #[error("there is no address to listen on: name one, for example --listen 127.0.0.1:5300")]
    NoAddress,
    /// An encrypted listener has no certificate to show.
    #[error(
        "{address} is for encrypted connections, which need a certificate: name its file with --tls-cert-file and that of its key with \
         --tls-key-file"
    )]
    NoCertificate {
        /// The address.
        address: SocketAddr,
    },
    /// One port is to carry two protocols.
    #[error("{address} is named both for plain and for encrypted connections: each needs a port of its own")]
    Twice {
        /// The address.
        address: SocketAddr,
    },
    /// Other machines could ask, and nobody has said which of them may.
    #[error(
        "{address} can be reached from other machines, and no access rule says which of them may ask: add the networks that may, \
         for example --allow {example}, or listen on a loopback address such as 127.0.0.1:{}", address.port()
    )]
    Exposed {
        /// The address.
        address: SocketAddr,
        /// A network that would be an access rule.
        example: IpNet,
    },
}

impl Settings {
    /// Whether these settings can be served.
    ///
    /// # Errors
    /// When there is no address, or one that other machines can reach without any rule in `allow`, or an encrypted one
    /// without a certificate or on a port of plain DNS.
    pub fn check(&self) -> Result<(), SettingsError> {
        if self.listen.is_empty() {
            return Err(SettingsError::NoAddress);
        }
        let mut encrypted = self.encrypted.addresses();
        if let (Some(address), None) = (self.encrypted.addresses().next(), &self.encrypted.certificate) {
            return Err(SettingsError::NoCertificate { address });
        }
        if let Some(address) = encrypted.find(|address| address.port() != 0 && self.listen.contains(address)) {
            return Err(SettingsError::Twice { address });
        }
        let mut all = self.listen.iter().copied().chain(self.encrypted.addresses());
        match all.find(|address| !address.ip().to_canonical().is_loopback()) {
            Some(address) if self.allow.is_empty() => Err(SettingsError::Exposed { address, example: example_rule(address.ip()) }),
            _ => Ok(()),
        }
    }

    /// The access rule these settings make.
    pub fn access(&self) -> Access {
        let access = Access::new(&self.allow);
        if self.allow_loopback { access } else { access.without_loopback() }
    }
}

/// The network around `address` in its usual size; some private network where the address is none in particular.
fn example_rule(address: IpAddr) -> IpNet {
    let (address, length) = match address.to_canonical() {
        address if address.is_unspecified() => (IpAddr::from([192, 168, 0, 0]), 16),
        address @ IpAddr::V4(_) => (address, 24),
        address @ IpAddr::V6(_) => (address, 64),
    };
    IpNet::new(address, length).map_or_else(|_| IpNet::from(address), |network| network.trunc())
}

/// Deadlines and bounds of the server. A bound of 0 where at least one is needed counts as 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a connection may stay open with nothing asked and nothing owed (RFC 7766 section 6.2.3).
    pub idle_timeout: Duration,
    /// How long a connection may take to agree on its encryption.
    pub handshake_timeout: Duration,
    /// How long a message over TCP may take to arrive, from its first octet to its last.
    pub message_timeout: Duration,
    /// How long a client may take to accept answers that are ready.
    pub write_timeout: Duration,
    /// How long an answer may take to be made.
    pub answer_timeout: Duration,
    /// How long answers in flight have to get out once the server stops.
    pub drain_timeout: Duration,
    /// Threads that answer over UDP on each listening address, each with a socket of its own. Once there are 32 in all,
    /// further addresses get one each.
    pub udp_workers: usize,
    /// Answers over UDP that may be waited for at a time, over all sockets; beyond that, SERVFAIL.
    pub udp_in_flight: usize,
    /// Connections in all.
    pub connections: usize,
    /// Connections of one source address.
    pub connections_per_source: usize,
    /// Connections of one loopback address, where a whole machine may look like one source.
    pub connections_per_loopback_source: usize,
    /// Connections of all sources without access, open only for the time of their refusal.
    pub connections_without_access: usize,
    /// Messages of one connection whose answers are being made or wait to be written.
    pub in_flight: usize,
    /// Octets of answers that may wait on one connection; beyond that no further message of it is read. Answers already
    /// being made (at most `in_flight`, of at most 64 KiB each) may come on top.
    pub queued_octets: usize,
}

/// Most threads that answer over UDP unless told otherwise: far more answers than any one machine asks for.
const MOST_UDP_WORKERS: usize = 4;

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(3),
            message_timeout: Duration::from_secs(3),
            write_timeout: Duration::from_secs(3),
            answer_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(1),
            udp_workers: std::thread::available_parallelism().map_or(1, usize::from).min(MOST_UDP_WORKERS),
            udp_in_flight: 4096,
            connections: 256,
            connections_per_source: 64,
            connections_per_loopback_source: 192,
            connections_without_access: 32,
            in_flight: 32,
            queued_octets: 256 * 1024,
        }
    }
}

/// Sockets that are open and wait to be served.
#[derive(Debug)]
pub struct Bound {
    endpoints: Vec<Endpoint>,
    /// The unspecified addresses among those listened on, ports resolved.
    wildcards: Vec<SocketAddr>,
    encrypted: Option<Opened>,
    access: Access,
    log: QueryLog,
    limits: Limits,
    counters: Arc<Counters>,
}

/// One listening address with its sockets: one for each thread that answers over UDP, and one for TCP.
#[derive(Debug)]
struct Endpoint {
    address: SocketAddr,
    /// Whether it was not named, but is one of a wildcard's: it goes with the address.
    followed: bool,
    udp: Vec<UdpSocket>,
    tcp: TcpListener,
}

/// A socket could not be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve {address}: {source}")]
pub struct ServeError {
    /// The listening address.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

/// How long after a panic a loop is started again.
const RESTART: Duration = Duration::from_millis(100);

impl Bound {
    /// The addresses that are listened on at the start, ports resolved, each for UDP and TCP.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.endpoints.iter().map(|endpoint| endpoint.address).collect()
    }

    /// The addresses of DNS over TLS, ports resolved.
    pub fn tls_addresses(&self) -> Vec<SocketAddr> {
        self.encrypted.iter().flat_map(|encrypted| &encrypted.tls).map(|(address, _)| *address).collect()
    }

    /// The addresses of DNS over QUIC, ports resolved.
    pub fn quic_addresses(&self) -> Vec<SocketAddr> {
        self.encrypted.iter().flat_map(|encrypted| &encrypted.quic).map(|(address, _)| *address).collect()
    }

    /// What is counted, from now until the server has ended.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Serves until `stop` is cancelled, then lets the answers in flight go out, for at most the drain time-out.
    ///
    /// # Errors
    /// When there is no thread for a socket, or the runtime does not take it; nothing is served then.
    pub async fn serve<R: Respond>(self, responder: R, stop: CancellationToken) -> Result<(), ServeError> {
        let Self { endpoints, wildcards, encrypted, access, log, limits, counters } = self;
        // Ends with this future too, should nobody wait for the drain.
        let ending = stop.child_token();
        let _on_drop = ending.clone().drop_guard();
        let abort = CancellationToken::new();
        let _abort_on_drop = abort.clone().drop_guard();
        let tracker = TaskTracker::new();

        let shared = Shared {
            own: Arc::default(),
            access: access.clone(),
            log,
            counters: Arc::clone(&counters),
            places: Arc::new(Semaphore::new(limits.udp_in_flight.clamp(1, Semaphore::MAX_PERMITS))),
            patience: limits.answer_timeout,
            drain: limits.drain_timeout,
            abort: abort.clone(),
        };
        let serving = Arc::new(Serving {
            access,
            log,
            admission: Arc::new(Admission::new(limits.clone(), Arc::clone(&counters))),
            responder: Arc::new(responder),
            limits: limits.clone(),
            counters: Arc::clone(&counters),
            tracker: tracker.clone(),
            stop: ending.clone(),
            abort: abort.clone(),
        });
        let (mut tls_listeners, mut quic_listeners) = (Vec::new(), Vec::new());
        if let Some(Opened { tls, quic, certificate }) = encrypted {
            for (address, socket) in tls {
                let failed = |source| ServeError { address, source };
                let config = certificate.config(Purpose::Tls).map_err(|error| failed(io::Error::other(error)))?;
                tls_listeners.push(Arc::new(tcp::Listener {
                    socket: tokio::net::TcpListener::from_std(socket).map_err(failed)?,
                    address,
                    serving: Arc::clone(&serving),
                    tls: Some(TlsAcceptor::from(Arc::new(config))),
                }));
            }
            for (address, socket) in quic {
                let failed = |source| ServeError { address, source };
                let config = certificate.config(Purpose::Quic).map_err(|error| failed(io::Error::other(error)))?;
                let config = quic::config(config, &limits).map_err(|error| failed(io::Error::other(error)))?;
                let runtime = Arc::new(quinn::TokioRuntime);
                quic_listeners.push(Arc::new(quic::Listener {
                    endpoint: quinn::Endpoint::new(quinn::EndpointConfig::default(), Some(config), socket, runtime).map_err(failed)?,
                    address,
                    serving: Arc::clone(&serving),
                }));
            }
            tracker.spawn(certificate.follow(ending.clone()));
        }
        let mut listening = Listening::new(Arc::clone(&serving), shared);
        for endpoint in endpoints {
            listening.serve(endpoint).await?;
        }

        let mut loops = JoinSet::new();
        for listener in tls_listeners {
            let (counters, stop) = (Arc::clone(&counters), ending.clone());
            let transport = listener.kind().name();
            loops.spawn(keep(listener.address, transport, counters, stop, move || tokio::spawn(Arc::clone(&listener).run())));
        }
        let endpoints: Vec<_> = quic_listeners.iter().map(|listener| listener.endpoint.clone()).collect();
        for listener in quic_listeners {
            let (counters, stop) = (Arc::clone(&counters), ending.clone());
            loops.spawn(keep(listener.address, Kind::Quic.name(), counters, stop, move || tokio::spawn(Arc::clone(&listener).run())));
        }
        listening.follow(&wildcards).await;
        let mut threads = listening.ended().await;
        while loops.join_next().await.is_some() {}

        tracker.close();
        let drained = async {
            tracker.wait().await;
            for thread in &mut threads {
                thread.ended().await;
            }
        };
        let mut drained = pin!(drained);
        if timeout(limits.drain_timeout, drained.as_mut()).await.is_err() {
            info!(connections = tracker.len(), "giving up answers that did not get out in time");
            abort.cancel();
            if timeout(limits.drain_timeout, drained).await.is_err() {
                warn!(connections = tracker.len(), "connections or threads are still busy; leaving them behind");
            }
        }
        for endpoint in endpoints {
            endpoint.close(VarInt::from_u32(0), b"");
            // Time to tell the clients; they notice by themselves if it is too short.
            let _ = timeout(GOODBYE, endpoint.wait_idle()).await;
        }
        Ok(())
    }
}

/// How long the last words to clients over QUIC may take.
const GOODBYE: Duration = Duration::from_millis(100);

/// What all listeners for connections share.
#[derive(Debug)]
struct Serving<R> {
    access: Access,
    log: QueryLog,
    admission: Arc<Admission>,
    responder: Arc<R>,
    limits: Limits,
    counters: Arc<Counters>,
    tracker: TaskTracker,
    /// Cancelled: nothing more is accepted or read.
    stop: CancellationToken,
    /// Cancelled: connections end as they are.
    abort: CancellationToken,
}

impl<R> Serving<R> {
    /// The same, with an end of its own.
    fn until(&self, stop: CancellationToken) -> Self {
        let Self { access, log, admission, responder, limits, counters, tracker, stop: _, abort } = self;
        Self {
            access: access.clone(),
            log: *log,
            admission: Arc::clone(admission),
            responder: Arc::clone(responder),
            limits: limits.clone(),
            counters: Arc::clone(counters),
            tracker: tracker.clone(),
            stop,
            abort: abort.clone(),
        }
    }
}

/// Runs a loop until it ends by itself, and again after a panic in it.
async fn keep(address: SocketAddr, transport: &str, counters: Arc<Counters>, stop: CancellationToken, start: impl Fn() -> JoinHandle<()>) {
    while let Err(failure) = start().await {
        if !failure.is_panic() || stop.is_cancelled() {
            return;
        }
        counters.panics.increment();
        error!(%address, transport, "the loop of a socket panicked and is started again; please report this");
        tokio::time::sleep(RESTART).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(addresses: &[&str], allow: &[&str]) -> Settings {
        Settings {
            listen: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            allow: allow.iter().map(|network| network.parse().unwrap()).collect(),
            ..Settings::default()
        }
    }

    #[test]
    fn the_default_is_loopback_and_can_be_served() {
        assert_eq!(Settings::default().check(), Ok(()));
        assert_eq!(listening(&["127.0.0.53:53", "[::1]:53", "[::ffff:127.0.0.1]:53"], &[]).check(), Ok(()));
    }

    #[test]
    fn other_machines_are_served_only_by_rule() {
        for address in ["0.0.0.0:53", "[::]:53", "192.0.2.2:53", "[fd00::2]:53", "[::ffff:192.0.2.2]:53"] {
            let refused = listening(&["127.0.0.1:53", address], &[]).check();
            assert!(matches!(refused, Err(SettingsError::Exposed { address: found, .. }) if found == address.parse().unwrap()));
            assert_eq!(listening(&[address], &["10.0.0.0/8"]).check(), Ok(()));
        }
        assert_eq!(listening(&[], &[]).check(), Err(SettingsError::NoAddress));
    }

    #[test]
    fn the_refusal_names_the_address_and_a_rule_to_add() {
        let message = listening(&["192.0.2.2:53"], &[]).check().unwrap_err().to_string();
        assert!(message.contains("192.0.2.2:53") && message.contains("--allow 192.0.2.0/24"), "{message}");
        let message = listening(&["[::]:53"], &[]).check().unwrap_err().to_string();
        assert!(message.contains("[::]:53") && message.contains("--allow 192.168.0.0/16"), "{message}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_panics_is_started_again() {
        let counters = Arc::new(Counters::default());
        let starts = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&starts);
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        keep(address, "UDP", Arc::clone(&counters), CancellationToken::new(), move || {
            let start = counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::spawn(async move { assert!(start >= 2, "start {start} fails") })
        })
        .await;
        assert_eq!(starts.load(std::sync::atomic::Ordering::Relaxed), 3);
        assert_eq!(counters.panics.get(), 2);
    }
}
