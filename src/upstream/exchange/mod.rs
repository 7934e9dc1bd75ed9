//! Exchange of one query and its response with one upstream, over any transport.
//!
//! Messages are handled as bytes. An outgoing query gets an id, a random letter case where
//! configured, and padding where the transport is encrypted. A response keeps its id; its question
//! section gets the original letter case back.

mod https;
mod packet;
mod pending;
mod stream;
mod tls;
mod udp;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

pub(super) use packet::{Outgoing, UpstreamResponse};
pub use tls::CaFileError;
pub(super) use tls::check_ca_file;
pub(super) use udp::Sockets;

use self::https::HttpsLink;
use self::pending::PendingOutcome;
use self::stream::StreamLink;
use self::tls::TrustAnchors;
use super::health::{Health, UpstreamReport};
use super::loop_marks::LoopMarks;
use super::{Protocol, Target};
use crate::wire::MAX_UDP_BYTES;

/// Consecutive case mismatches after which query names keep their letter case.
const MAX_CASE_MISMATCHES: u8 = 3;

/// Time limit for the TCP retry of a truncated response.
const TCP_RETRY_TIMEOUT: Duration = Duration::from_millis(1500);

/// What is needed to open connections to upstreams.
#[derive(Debug)]
pub(super) struct Connector {
    /// Runtime of the connections, which all lanes share and which outlive any lane.
    runtime: Handle,
    trust_anchors: TrustAnchors,
}

impl Connector {
    /// Makes a connector whose connections live on `runtime`.
    ///
    /// `ca_file` holds the trusted CAs; `None` uses the system's trust store.
    pub(super) fn new(runtime: Handle, ca_file: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Self { runtime, trust_anchors: TrustAnchors::new(ca_file) })
    }
}

/// An upstream with its health and its connections, shared by all lanes.
pub(super) struct Upstream {
    /// Key of the lanes' socket pools, unlike that of any earlier upstream.
    serial: u64,
    target: Target,
    connector: Arc<Connector>,
    health: Health,
    link: StreamLink,
    https: HttpsLink,
    /// Number of consecutive responses whose question differs in letter case.
    case_mismatches: AtomicU8,
    loops: LoopMarks,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upstream({})", self.target)
    }
}

/// A well-formed response with the original question; its id is as received.
#[derive(Debug)]
pub(super) struct Incoming {
    /// The whole message.
    pub(super) message: Vec<u8>,
    /// The upstream that sent the response.
    pub(super) upstream: Arc<Upstream>,
    /// Response code with the upper bits from the OPT record (RFC 6891 section 6.1.3).
    pub(super) rcode: u16,
}

/// Why no upstream gave a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QueryFailure {
    /// No upstream is configured, or all of them loop.
    #[error("no upstream is available")]
    NoUpstream,
    /// No upstream answered in time.
    #[error("no upstream answered in time")]
    TimedOut,
    /// No upstream could be reached.
    #[error("no upstream can be reached")]
    Unreachable,
    /// Only invalid responses arrived.
    #[error("the upstreams sent no valid response")]
    BadResponse,
}

/// Why one attempt at one upstream gave no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    /// The upstream cannot be reached or closed the connection, with the reason.
    #[error("{0}")]
    Unreachable(String),
    /// The response is invalid, with the reason.
    #[error("{0}")]
    BadResponse(Cow<'static, str>),
    /// Too many queries are in flight, or local resources are exhausted.
    #[error("too many queries are in flight")]
    Busy,
}

impl Upstream {
    /// Makes an upstream of unknown health, without opening a socket.
    pub(super) fn new(target: Target, connector: Arc<Connector>) -> Arc<Self> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            serial,
            health: Health::new(target.to_string()),
            target,
            connector,
            link: StreamLink::default(),
            https: HttpsLink::default(),
            case_mismatches: AtomicU8::new(0),
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

    /// Returns whether the upstream's address is private, loopback or link-local.
    ///
    /// Private are the ranges of RFC 1918, RFC 4193 and RFC 6598.
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

    /// Returns which queries the upstream sends back to svcdns.
    pub(super) fn loops(&self) -> &LoopMarks {
        &self.loops
    }

    /// Marks the upstream as looping, so that it is not queried, or clears the mark.
    pub(super) fn set_looping(&self, looping: bool) {
        self.loops.set_all(looping);
    }

    /// Returns whether the upstream sends all queries back to svcdns and is not queried.
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
    /// An upstream that rejects EDNS is asked again without it (RFC 6891 section 7), and from then
    /// on at the first attempt.
    pub(super) async fn attempt(
        &self,
        upstream: &Arc<Upstream>,
        outgoing: &Outgoing,
    ) -> Result<UpstreamResponse, AttemptError> {
        let edns = outgoing.has_opt() && !upstream.health.is_edns_disabled(Instant::now());
        let response = self.send_once(upstream, outgoing, edns).await?;
        if !(edns && response.rejects_edns()) {
            return Ok(response);
        }
        let plain = self.send_once(upstream, outgoing, false).await?;
        if !plain.rejects_edns() {
            upstream.health.disable_edns(Instant::now());
        }
        Ok(plain)
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
            Protocol::Tcp => Box::pin(over_stream(upstream, outgoing, edns, false)).await,
            Protocol::Tls { .. } => Box::pin(over_stream(upstream, outgoing, edns, true)).await,
            Protocol::Https { .. } => {
                let message =
                    Box::pin(https::exchange(upstream, outgoing.to_packet(edns, false, true)))
                        .await?;
                outgoing
                    .read(message)
                    .ok_or_else(|| AttemptError::BadResponse("its response is malformed".into()))
            }
        }
    }

    /// Queries over UDP, then over TCP if the response is unusable or suspicious.
    ///
    /// Unusable is a truncated or malformed response.
    async fn over_udp_then_tcp(
        &self,
        upstream: &Arc<Upstream>,
        outgoing: &Outgoing,
        edns: bool,
    ) -> Result<UpstreamResponse, AttemptError> {
        if outgoing.message().len() > MAX_UDP_BYTES {
            return Box::pin(over_stream(upstream, outgoing, edns, false)).await;
        }
        let random_case = outgoing.random_case()
            && upstream.case_mismatches.load(Ordering::Relaxed) < MAX_CASE_MISMATCHES;
        let mut case_mismatch = false;
        match self.over_udp(upstream, outgoing.to_packet(edns, random_case, false)).await? {
            PendingOutcome::Response(message) => {
                if random_case {
                    upstream.case_mismatches.store(0, Ordering::Relaxed);
                }
                // A malformed response may have been cut on the way: TCP decides.
                if let Some(response) = outgoing.read(message) {
                    if !response.is_truncated() {
                        return Ok(response);
                    }
                    let complete = Box::pin(tokio::time::timeout(
                        TCP_RETRY_TIMEOUT,
                        over_stream(upstream, outgoing, edns, false),
                    ))
                    .await;
                    let reason = match complete {
                        Ok(Ok(complete)) => return Ok(complete),
                        Ok(Err(error)) => error.to_string(),
                        Err(_) => {
                            "it truncates its response and does not respond over TCP".to_owned()
                        }
                    };
                    // The truncated response shows that the upstream is alive.
                    upstream.health.record_failure(&reason, false, Instant::now());
                    return Ok(response);
                }
            }
            PendingOutcome::CaseMismatch(_) => case_mismatch = true,
            PendingOutcome::Suspicious => {}
            PendingOutcome::Unreachable(reason) => return Err(AttemptError::Unreachable(reason)),
        }
        let response = Box::pin(over_stream(upstream, outgoing, edns, false)).await;
        if case_mismatch && response.is_err() {
            upstream.case_mismatches.fetch_add(1, Ordering::Relaxed);
            return Err(AttemptError::BadResponse(
                "its response changes the letter case of the name, and TCP fails".into(),
            ));
        }
        response
    }
}

/// Queries over TCP or TLS.
async fn over_stream(
    upstream: &Arc<Upstream>,
    outgoing: &Outgoing,
    edns: bool,
    padded: bool,
) -> Result<UpstreamResponse, AttemptError> {
    // An off-path attacker cannot inject into a connection. The case is randomized over TCP only to
    // learn whether the upstream echoes it.
    let random_case = outgoing.random_case() && !padded;
    let message = match stream::exchange(upstream, &outgoing.to_packet(edns, random_case, padded))
        .await?
    {
        PendingOutcome::Response(message) => message,
        PendingOutcome::CaseMismatch(message) => {
            upstream.case_mismatches.store(MAX_CASE_MISMATCHES, Ordering::Relaxed);
            message
        }
        PendingOutcome::Suspicious => {
            return Err(AttemptError::BadResponse("its response does not match the query".into()));
        }
        PendingOutcome::Unreachable(reason) => return Err(AttemptError::Unreachable(reason)),
    };
    outgoing
        .read(message)
        .ok_or_else(|| AttemptError::BadResponse("its response is malformed".into()))
}
