//! Exchange of a query and its response with one upstream, over any transport.
//!
//! Messages are handled as bytes. An outgoing query gets an ID, a random letter case if configured,
//! and padding if the transport is encrypted. A response keeps its ID, and its question section
//! gets the original letter case back.

mod datagram;
mod https;
mod one_shot;
mod packet;
mod pending;
mod probe;
mod reconnect;
mod stream;
mod tls;
mod udp;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use packet::is_truncated;
pub(super) use packet::{Outgoing, UpstreamResponse};
pub use tls::CaFileError;
pub(super) use tls::check_ca_file;
pub(super) use udp::Sockets;

use self::datagram::MAX_UDP_RESPONSE_BYTES;
use self::https::HttpsLink;
use self::pending::PendingOutcome;
use self::stream::StreamLink;
use self::tls::TrustAnchors;
use super::health::{Health, UpstreamReport};
use super::loop_marks::LoopMarks;
use super::{Protocol, Target};
use crate::descriptors::DescriptorShare;
use crate::name::Name;
use crate::wire::MAX_UDP_BYTES;

/// Consecutive case mismatches after which query names keep their letter case.
const MAX_CASE_MISMATCHES: u8 = 3;

/// Time limit for the TCP retry of a truncated response.
const TCP_RETRY_TIMEOUT: Duration = Duration::from_millis(1500);

/// Limit on one-query sockets, over all lanes and upstreams.
///
/// These sockets never take more than an eighth of the process's file descriptors.
const MAX_ONE_SHOT_SOCKETS: usize = 4096;

/// Shared resources for opening connections to upstreams.
#[derive(Debug)]
pub(super) struct Connector {
    /// Runtime of the connections, which all lanes share and which outlives any lane.
    runtime: Handle,
    trust_anchors: TrustAnchors,
    /// Notified when an upstream comes back to life or becomes unreachable.
    health_changed: Arc<Notify>,
    /// One permit per file descriptor of a [`OneShotSocket`](one_shot::OneShotSocket).
    one_shot_permits: Arc<Semaphore>,
}

impl Connector {
    /// Creates a connector whose connections run on `runtime`.
    ///
    /// `ca_file` contains the trusted CAs; `None` uses the system's trust store.
    pub(super) fn new(runtime: Handle, ca_file: Option<PathBuf>) -> Arc<Self> {
        let permits = DescriptorShare::Upstreams.current();
        Arc::new(Self {
            runtime,
            trust_anchors: TrustAnchors::new(ca_file),
            health_changed: Arc::default(),
            one_shot_permits: Arc::new(Semaphore::new(permits.min(MAX_ONE_SHOT_SOCKETS))),
        })
    }
}

/// An upstream with its health and its connections, shared by all lanes.
pub(super) struct Upstream {
    /// Unique key for the lanes' socket pools; no earlier upstream has had it.
    serial: u64,
    target: Target,
    connector: Arc<Connector>,
    health: Health,
    link: StreamLink,
    https: HttpsLink,
    /// Number of consecutive responses whose question differs in letter case.
    case_mismatches: AtomicU8,
    /// Whether a response has had an OPT record since EDNS was last disabled.
    speaks_edns: AtomicBool,
    /// The query of probes, with an OPT record.
    probe_query: Outgoing,
    /// The first query that the upstream answered with records; probes repeat it.
    answered_query: OnceLock<Outgoing>,
    /// Marks of the queries that the upstream sends back to svcdns.
    loops: LoopMarks,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upstream({})", self.target)
    }
}

/// A well-formed response with the original question; its ID is as received.
#[derive(Debug)]
pub(super) struct Incoming {
    /// The whole message.
    pub(super) message: Vec<u8>,
    /// The upstream that sent the response.
    pub(super) upstream: Arc<Upstream>,
    /// Response code with the upper bits from the OPT record (RFC 6891 section 6.1.3).
    pub(super) rcode: u16,
}

/// Reason why no upstream gave a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QueryFailure {
    /// No upstream is configured, or all of them loop.
    #[error("no upstream is available")]
    NoUpstream,
    /// No upstream answered in time.
    #[error("no upstream answered in time")]
    TimedOut,
    /// All upstreams are dead, and none came back to life in time.
    #[error("all upstreams are dead")]
    Dead,
    /// No upstream could be reached.
    #[error("no upstream can be reached")]
    Unreachable,
    /// Only invalid responses arrived.
    #[error("the upstreams sent no valid response")]
    BadResponse,
}

/// Reason why one attempt at one upstream gave no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    /// The upstream cannot be reached or closed the connection, with the reason.
    #[error("{0}")]
    Unreachable(String),
    /// The response is invalid, with the reason.
    #[error("{0}")]
    BadResponse(Cow<'static, str>),
    /// The response is no well-formed message.
    #[error("its response is malformed")]
    Malformed,
    /// Too many queries are in flight, or local resources are exhausted.
    #[error("too many queries are in flight")]
    Busy,
}

impl AttemptError {
    /// Returns the error for a failed system call on a UDP socket.
    fn of_socket(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            // Local resource exhaustion, not an upstream failure. EAGAIN: no port is free.
            Some(
                Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM | Errno::EAGAIN,
            ) => Self::Busy,
            _ => Self::Unreachable(error.to_string()),
        }
    }
}

impl Upstream {
    /// Creates an upstream that may know all names.
    #[cfg(test)]
    pub(super) fn new(target: Target, connector: Arc<Connector>) -> Arc<Self> {
        Self::for_domain(target, connector, &Name::ROOT)
    }

    /// Creates an upstream of unknown health, without opening a socket.
    ///
    /// Probes query `domain`, the only domain that the upstream has to know.
    pub(super) fn for_domain(
        target: Target,
        connector: Arc<Connector>,
        domain: &Name,
    ) -> Arc<Self> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            serial,
            health: Health::new(target.to_string(), Arc::clone(&connector.health_changed)),
            target,
            connector,
            link: StreamLink::default(),
            https: HttpsLink::default(),
            case_mismatches: AtomicU8::new(0),
            speaks_edns: AtomicBool::new(false),
            probe_query: Outgoing::probe(domain),
            answered_query: OnceLock::new(),
            loops: LoopMarks::default(),
        })
    }

    /// Returns the upstream's address and protocol.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Returns the upstream's measurements.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Returns the notification that an upstream came to life or became unreachable.
    ///
    /// All upstreams of one connector share it.
    pub(super) fn health_changed(&self) -> &Notify {
        &self.connector.health_changed
    }

    /// Returns whether EDNS is enabled and the upstream is known to answer with EDNS.
    pub(super) fn speaks_edns(&self) -> bool {
        self.speaks_edns.load(Ordering::Relaxed)
    }

    /// Returns whether the upstream's address is private, loopback or link-local.
    ///
    /// The private ranges are those of RFC 1918, RFC 4193 and RFC 6598.
    pub(super) fn is_private(&self) -> bool {
        match self.ip() {
            IpAddr::V4(address) => {
                let shared = address.octets()[0] == 100 && address.octets()[1] & 0xC0 == 64;
                address.is_private() || address.is_loopback() || address.is_link_local() || shared
            }
            IpAddr::V6(address) => {
                address.is_loopback()
                    || address.is_unique_local()
                    || address.is_unicast_link_local()
            }
        }
    }

    /// Returns the upstream's state for status output.
    pub(super) fn report(&self) -> UpstreamReport {
        self.health.report(self.is_looping(), Instant::now())
    }

    /// Returns the marks of the queries that the upstream sends back to svcdns.
    pub(super) fn loops(&self) -> &LoopMarks {
        &self.loops
    }

    /// Sets or clears the mark that the upstream loops and must not be queried.
    pub(super) fn set_looping(&self, looping: bool) {
        self.loops.set_all(looping);
    }

    /// Returns whether the upstream is marked as sending all queries back to svcdns.
    pub(super) fn is_looping(&self) -> bool {
        self.loops.covers_all()
    }

    /// Returns the upstream's address.
    pub(super) fn ip(&self) -> IpAddr {
        self.target.address.ip().to_canonical()
    }
}

impl Sockets {
    /// Sends a query to `upstream` and waits for the response, without a time limit.
    ///
    /// A query that fails with EDNS is repeated without it (RFC 6891 section 7). If the repeated
    /// query succeeds and a check confirms that EDNS is the cause, the upstream's next queries have
    /// no EDNS.
    pub(super) async fn attempt(
        &self,
        upstream: &Arc<Upstream>,
        outgoing: &Outgoing,
    ) -> Result<UpstreamResponse, AttemptError> {
        let edns = outgoing.has_opt() && !upstream.health.is_edns_disabled(Instant::now());
        let result = self.send_once(upstream, outgoing, edns).await;
        if let Ok(response) = &result
            && upstream.answered_query.get().is_none()
            && response.has_answers()
        {
            // Another query may have just set it, which does no harm.
            let _ = upstream.answered_query.set(outgoing.clone());
        }
        if !edns {
            return result;
        }
        match &result {
            Ok(response) if !response.may_reject_edns() => {
                if response.has_opt() && !upstream.speaks_edns() {
                    upstream.speaks_edns.store(true, Ordering::Relaxed);
                }
                result
            }
            Ok(_) | Err(AttemptError::Malformed) => {
                // Boxed because it is rare: other attempts must not reserve room for its future.
                Box::pin(self.retry_without_edns(upstream, outgoing, result)).await
            }
            Err(_) => result,
        }
    }

    /// Sends a query without EDNS and waits for the response, without a time limit.
    pub(super) async fn attempt_without_edns(
        &self,
        upstream: &Arc<Upstream>,
        outgoing: &Outgoing,
    ) -> Result<UpstreamResponse, AttemptError> {
        self.send_once(upstream, outgoing, false).await
    }

    /// Repeats a query over TCP after a truncated response over UDP.
    ///
    /// `edns` is whether that response had an OPT record.
    ///
    /// # Errors
    /// Returns [`AttemptError::BadResponse`] if TCP fails: the truncated response shows that the
    /// upstream is reachable.
    pub(super) async fn attempt_over_tcp(
        &self,
        upstream: &Arc<Upstream>,
        outgoing: &Outgoing,
        edns: bool,
    ) -> Result<UpstreamResponse, AttemptError> {
        let retry = self.over_stream(upstream, outgoing, edns, false);
        match tokio::time::timeout(TCP_RETRY_TIMEOUT, retry).await {
            Ok(result) => {
                result.map_err(|error| AttemptError::BadResponse(error.to_string().into()))
            }
            Err(_) => Err(AttemptError::BadResponse(
                "it truncates its response and does not respond over TCP".into(),
            )),
        }
    }

    /// Repeats a query without EDNS; `failed` is the result with EDNS.
    async fn retry_without_edns(
        &self,
        upstream: &Arc<Upstream>,
        outgoing: &Outgoing,
        failed: Result<UpstreamResponse, AttemptError>,
    ) -> Result<UpstreamResponse, AttemptError> {
        let plain = self.send_once(upstream, outgoing, false).await;
        let rejected = failed.as_ref().is_ok_and(UpstreamResponse::rejects_edns);
        match &plain {
            Ok(response) if !response.may_reject_edns() => {
                upstream.check_edns();
                plain
            }
            // The upstream refused the query itself, and its response may carry an extended error.
            _ if failed.is_ok() && !rejected => failed,
            Ok(_) => plain,
            Err(_) => failed.or(plain),
        }
    }

    /// Sends the query once over the upstream's protocol.
    async fn send_once(
        &self,
        upstream: &Arc<Upstream>,
        outgoing: &Outgoing,
        edns: bool,
    ) -> Result<UpstreamResponse, AttemptError> {
        match &upstream.target.protocol {
            Protocol::Plain => self.over_udp_then_tcp(upstream, outgoing, edns).await,
            // Boxed, so that the more common UDP exchange does not reserve room for their futures.
            Protocol::Tcp => Box::pin(self.over_stream(upstream, outgoing, edns, false)).await,
            Protocol::Tls { .. } => {
                Box::pin(self.over_stream(upstream, outgoing, edns, true)).await
            }
            Protocol::Https { .. } => {
                let packet = outgoing.to_packet(edns, false, true);
                let message = Box::pin(https::exchange(upstream, packet, self.exclusive)).await?;
                outgoing.read(message).ok_or(AttemptError::Malformed)
            }
        }
    }

    /// Queries over UDP, then over TCP if the response is malformed or suspicious.
    ///
    /// A truncated response is returned: the caller can use it until the complete one arrives over
    /// TCP.
    async fn over_udp_then_tcp(
        &self,
        upstream: &Arc<Upstream>,
        outgoing: &Outgoing,
        edns: bool,
    ) -> Result<UpstreamResponse, AttemptError> {
        if outgoing.message().len() > MAX_UDP_BYTES {
            return Box::pin(self.over_stream(upstream, outgoing, edns, false)).await;
        }
        let random_case = outgoing.random_case()
            && upstream.case_mismatches.load(Ordering::Relaxed) < MAX_CASE_MISMATCHES;
        let mut case_mismatch = false;
        match self.over_udp(upstream, outgoing.to_packet(edns, random_case, false)).await? {
            PendingOutcome::Response(message) => {
                if random_case {
                    upstream.case_mismatches.store(0, Ordering::Relaxed);
                }
                let may_be_cut = message.len() >= MAX_UDP_RESPONSE_BYTES || is_truncated(&message);
                // A malformed response may have been cut on the way, in which case TCP succeeds.
                // Otherwise, EDNS may be the cause.
                if let Some(response) = outgoing.read(message) {
                    return Ok(response);
                }
                if edns && !may_be_cut {
                    return Err(AttemptError::Malformed);
                }
            }
            PendingOutcome::CaseMismatch(_) => case_mismatch = true,
            PendingOutcome::Suspicious => {}
            PendingOutcome::Unreachable(reason) | PendingOutcome::Disconnected(reason) => {
                return Err(AttemptError::Unreachable(reason));
            }
        }
        let response = Box::pin(self.over_stream(upstream, outgoing, edns, false)).await;
        if case_mismatch && response.is_err() {
            upstream.case_mismatches.fetch_add(1, Ordering::Relaxed);
            return Err(AttemptError::BadResponse(
                "its response changes the letter case of the name, and TCP fails".into(),
            ));
        }
        response
    }

    /// Queries over TCP or TLS.
    async fn over_stream(
        &self,
        upstream: &Arc<Upstream>,
        outgoing: &Outgoing,
        edns: bool,
        padded: bool,
    ) -> Result<UpstreamResponse, AttemptError> {
        // An off-path attacker cannot inject into a connection. The case is randomized over TCP
        // only to learn whether the upstream echoes it.
        let random_case = outgoing.random_case() && !padded;
        let packet = outgoing.to_packet(edns, random_case, padded);
        let message = match stream::exchange(upstream, &packet, self.exclusive).await? {
            PendingOutcome::Response(message) => message,
            PendingOutcome::CaseMismatch(message) => {
                upstream.case_mismatches.store(MAX_CASE_MISMATCHES, Ordering::Relaxed);
                message
            }
            PendingOutcome::Suspicious => {
                return Err(AttemptError::BadResponse(
                    "its response does not match the query".into(),
                ));
            }
            PendingOutcome::Unreachable(reason) | PendingOutcome::Disconnected(reason) => {
                return Err(AttemptError::Unreachable(reason));
            }
        };
        outgoing.read(message).ok_or(AttemptError::Malformed)
    }
}
