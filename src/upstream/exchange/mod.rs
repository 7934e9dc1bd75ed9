//! One question to one upstream: a datagram, or a message on a connection, and the answer that belongs to it.
//!
//! Messages pass as bytes. What is changed on the way out is the id, the letters' case where that is wanted, the padding
//! where it is encrypted; on the way in the id stays as received and the question gets its own letters back.

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
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
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
use super::{Protocol, Target};
use crate::wire::UDP_MAX;

/// Answers in other letters than the question's, without a right one between them, after which letters are left as they are.
const MAX_CASE_MISMATCHES: u8 = 3;

/// How long TCP may take to bring the whole of an answer that is there, truncated.
const TCP_RETRY_TIMEOUT: Duration = Duration::from_millis(1500);

/// How connections to upstreams are made.
#[derive(Debug)]
pub(super) struct Connector {
    /// Where connections live: they are shared by all lanes, and outlive any of them.
    runtime: Handle,
    trust_anchors: TrustAnchors,
}

impl Connector {
    /// Connections that live on `runtime`, certificates judged by the authorities in `ca_file` or else the machine's own.
    pub(super) fn new(runtime: Handle, ca_file: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Self { runtime, trust_anchors: TrustAnchors::new(ca_file) })
    }
}

/// One upstream with what is known of it and its connections; shared by all lanes.
pub(super) struct Upstream {
    /// Tells it from others in the lanes' tables, also from one that stood at the same address before.
    serial: u64,
    target: Target,
    connector: Arc<Connector>,
    health: Health,
    link: StreamLink,
    https: HttpsLink,
    /// Answers in other letters than the question's, one after the other.
    case_mismatches: AtomicU8,
    /// Whether it leads back to us.
    looping: AtomicBool,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upstream({})", self.target)
    }
}

/// An answer: well-formed, a response, with our question as we wrote it. The id is as received.
#[derive(Debug)]
pub(super) struct Incoming {
    /// The whole message.
    pub(super) message: Vec<u8>,
    /// Who answered.
    pub(super) upstream: Arc<Upstream>,
    /// The response code, with the upper bits from the OPT record (RFC 6891 section 6.1.3).
    pub(super) rcode: u16,
}

/// Why there is no answer at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QueryFailure {
    /// There is nobody to ask: none, or all are set looping.
    #[error("there is no upstream to ask")]
    NoUpstream,
    /// None answered in time.
    #[error("no upstream answered in time")]
    TimedOut,
    /// None could be reached.
    #[error("no upstream can be reached")]
    Unreachable,
    /// What came back was no answer.
    #[error("what the upstreams sent was no answer")]
    BadResponse,
}

/// Why one try at one upstream brought no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    /// It cannot be reached, or hung up; why, for people.
    #[error("{0}")]
    Unreachable(String),
    /// What it sent is no answer; why, for people.
    #[error("{0}")]
    BadResponse(Cow<'static, str>),
    /// Too much is under way to it.
    #[error("too many questions to it are under way")]
    Busy,
}

impl Upstream {
    /// An upstream of which nothing is known yet. Opens nothing.
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
            looping: AtomicBool::new(false),
        })
    }

    /// Where it is, and how it is spoken to.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// What was measured of it.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Whether its address is in private space: RFC 1918, RFC 4193, RFC 6598, link-local and loopback ones.
    pub(super) fn is_private(&self) -> bool {
        match self.target.address.ip().to_canonical() {
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

    /// What people may want to know of it.
    pub(super) fn report(&self) -> UpstreamReport {
        self.health.report(self.is_looping(), Instant::now())
    }

    /// Sets it looping because it leads back to us, or takes it back.
    pub(super) fn set_looping(&self, looping: bool) {
        self.looping.store(looping, Ordering::Relaxed);
    }

    /// Whether it leads back to us and is not asked.
    pub(super) fn is_looping(&self) -> bool {
        self.looping.load(Ordering::Relaxed)
    }
}

impl Sockets {
    /// One try: asks `upstream` until it answers or cannot. Waits for ever; whoever calls it has the clock.
    ///
    /// Who does not understand the question with EDNS is asked without (RFC 6891 section 7), from then on at once.
    pub(super) async fn attempt(
        &self,
        upstream: &Arc<Upstream>,
        outgoing: &Outgoing,
    ) -> Result<UpstreamResponse, AttemptError> {
        let edns = outgoing.has_opt() && !upstream.health.is_edns_disabled(Instant::now());
        let answer = self.send_once(upstream, outgoing, edns).await?;
        if !(edns && answer.rejects_edns()) {
            return Ok(answer);
        }
        let plain = self.send_once(upstream, outgoing, false).await?;
        if !plain.rejects_edns() {
            upstream.health.disable_edns(Instant::now());
        }
        Ok(plain)
    }

    async fn send_once(
        &self,
        upstream: &Arc<Upstream>,
        outgoing: &Outgoing,
        edns: bool,
    ) -> Result<UpstreamResponse, AttemptError> {
        match &upstream.target.protocol {
            Protocol::Plain => self.over_udp_then_tcp(upstream, outgoing, edns).await,
            // All but datagrams take their room only when they are needed.
            Protocol::Tcp => Box::pin(over_stream(upstream, outgoing, edns, false)).await,
            Protocol::Tls { .. } => Box::pin(over_stream(upstream, outgoing, edns, true)).await,
            Protocol::Https { .. } => {
                let message =
                    Box::pin(https::exchange(upstream, outgoing.to_packet(edns, false, true)))
                        .await?;
                outgoing
                    .read(message)
                    .ok_or_else(|| AttemptError::BadResponse("its answer is malformed".into()))
            }
        }
    }

    /// Over UDP, and over TCP when the answer is truncated, or is none that a forger could not have sent.
    async fn over_udp_then_tcp(
        &self,
        upstream: &Arc<Upstream>,
        outgoing: &Outgoing,
        edns: bool,
    ) -> Result<UpstreamResponse, AttemptError> {
        if outgoing.message().len() > UDP_MAX {
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
                // What is malformed may have been cut on the way.
                if let Some(answer) = outgoing.read(message) {
                    if !answer.is_truncated() {
                        return Ok(answer);
                    }
                    let whole = Box::pin(tokio::time::timeout(
                        TCP_RETRY_TIMEOUT,
                        over_stream(upstream, outgoing, edns, false),
                    ))
                    .await;
                    let why = match whole {
                        Ok(Ok(whole)) => return Ok(whole),
                        Ok(Err(miss)) => miss.to_string(),
                        Err(_) => "it truncates its answer and says no more over TCP".to_owned(),
                    };
                    // It lives all the same.
                    upstream.health.record_failure(&why, false, Instant::now());
                    return Ok(answer);
                }
            }
            PendingOutcome::CaseMismatch(_) => case_mismatch = true,
            PendingOutcome::Suspicious => {}
            PendingOutcome::Unreachable(why) => return Err(AttemptError::Unreachable(why)),
        }
        let answer = Box::pin(over_stream(upstream, outgoing, edns, false)).await;
        if case_mismatch && answer.is_err() {
            upstream.case_mismatches.fetch_add(1, Ordering::Relaxed);
            return Err(AttemptError::BadResponse(
                "it answers in other letters than the question's, and not over TCP".into(),
            ));
        }
        answer
    }
}

/// Over TCP or TLS.
async fn over_stream(
    upstream: &Arc<Upstream>,
    outgoing: &Outgoing,
    edns: bool,
    padded: bool,
) -> Result<UpstreamResponse, AttemptError> {
    // Nobody can guess his way into a connection: letters matter only to learn whether they are echoed.
    let random_case = outgoing.random_case() && !padded;
    let message =
        match stream::exchange(upstream, &outgoing.to_packet(edns, random_case, padded)).await? {
            PendingOutcome::Response(message) => message,
            PendingOutcome::CaseMismatch(message) => {
                upstream.case_mismatches.store(MAX_CASE_MISMATCHES, Ordering::Relaxed);
                message
            }
            PendingOutcome::Suspicious => {
                return Err(AttemptError::BadResponse("it answers what nobody asked".into()));
            }
            PendingOutcome::Unreachable(why) => return Err(AttemptError::Unreachable(why)),
        };
    outgoing
        .read(message)
        .ok_or_else(|| AttemptError::BadResponse("its answer is malformed".into()))
}
