//! One question to one upstream: a datagram, or a message on a connection, and the answer that belongs to it.
//!
//! Messages pass as octets. What is changed on the way out is the id, the letters' case where that is wanted, the padding
//! where it is encrypted; on the way in the id stays as received and the question gets its own letters back.

mod https;
mod pending;
mod question;
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

pub(super) use question::{Answer, Outgoing};
pub use tls::CaFileError;
pub(super) use tls::check as check_ca_file;
pub(super) use udp::Sockets;

use self::https::Https;
use self::pending::Reply;
use self::stream::Link;
use self::tls::Trust;
use super::health::{Health, UpstreamReport};
use super::{Protocol, Target};
use crate::wire::MAX_UDP_BYTES;

/// Answers in other letters than the question's, without a right one between them, after which letters are left as they are.
const OTHER_CASES: u8 = 3;

/// How long TCP may take to bring the whole of an answer that is there, truncated.
const WHOLE: Duration = Duration::from_millis(1500);

/// How connections to upstreams are made.
#[derive(Debug)]
pub(super) struct Connector {
    /// Where connections live: they are shared by all lanes, and outlive any of them.
    runtime: Handle,
    trust: Trust,
}

impl Connector {
    /// Connections that live on `runtime`, certificates judged by the authorities in `ca_file` or else the machine's own.
    pub(super) fn new(runtime: Handle, ca_file: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Self { runtime, trust: Trust::new(ca_file) })
    }
}

/// One upstream with what is known of it and its connections; shared by all lanes.
pub(super) struct Upstream {
    /// Tells it from others in the lanes' tables, also from one that stood at the same address before.
    serial: u64,
    target: Target,
    connector: Arc<Connector>,
    health: Health,
    link: Link,
    https: Https,
    /// Answers in other letters than the question's, one after the other.
    other_cases: AtomicU8,
    /// Whether it leads back to us.
    aside: AtomicBool,
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
pub(super) enum Failure {
    /// There is nobody to ask: none, or all are set aside.
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
    Bad,
}

/// Why one try at one upstream brought no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Miss {
    /// It cannot be reached, or hung up; why, for people.
    #[error("{0}")]
    Unreachable(String),
    /// What it sent is no answer; why, for people.
    #[error("{0}")]
    Bad(Cow<'static, str>),
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
            link: Link::default(),
            https: Https::default(),
            other_cases: AtomicU8::new(0),
            aside: AtomicBool::new(false),
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
            IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
        }
    }

    /// What people may want to know of it.
    pub(super) fn report(&self) -> UpstreamReport {
        self.health.report(self.is_set_aside(), Instant::now())
    }

    /// Sets it aside because it leads back to us, or takes it back.
    pub(super) fn set_aside(&self, looping: bool) {
        self.aside.store(looping, Ordering::Relaxed);
    }

    /// Whether it leads back to us and is not asked.
    pub(super) fn is_set_aside(&self) -> bool {
        self.aside.load(Ordering::Relaxed)
    }
}

impl Sockets {
    /// One try: asks `upstream` until it answers or cannot. Waits for ever; whoever calls it has the clock.
    ///
    /// Who does not understand the question with EDNS is asked without (RFC 6891 section 7), from then on at once.
    pub(super) async fn attempt(&self, upstream: &Arc<Upstream>, outgoing: &Outgoing) -> Result<Answer, Miss> {
        let edns = outgoing.has_opt() && !upstream.health.is_without_edns(Instant::now());
        let answer = self.by_protocol(upstream, outgoing, edns).await?;
        if !(edns && answer.denies_edns()) {
            return Ok(answer);
        }
        let plain = self.by_protocol(upstream, outgoing, false).await?;
        if !plain.denies_edns() {
            upstream.health.without_edns(Instant::now());
        }
        Ok(plain)
    }

    async fn by_protocol(&self, upstream: &Arc<Upstream>, outgoing: &Outgoing, edns: bool) -> Result<Answer, Miss> {
        match &upstream.target.protocol {
            Protocol::Plain => self.plain(upstream, outgoing, edns).await,
            // All but datagrams take their room only when they are needed.
            Protocol::Tcp => Box::pin(over_stream(upstream, outgoing, edns, false)).await,
            Protocol::Tls { .. } => Box::pin(over_stream(upstream, outgoing, edns, true)).await,
            Protocol::Https { .. } => {
                let message = Box::pin(https::exchange(upstream, outgoing.dress(edns, false, true))).await?;
                outgoing.read(message).ok_or_else(|| Miss::Bad("its answer is malformed".into()))
            }
        }
    }

    /// Over UDP, and over TCP when the answer is truncated, or is none that a forger could not have sent.
    async fn plain(&self, upstream: &Arc<Upstream>, outgoing: &Outgoing, edns: bool) -> Result<Answer, Miss> {
        if outgoing.message().len() > MAX_UDP_BYTES {
            return Box::pin(over_stream(upstream, outgoing, edns, false)).await;
        }
        let random_case = outgoing.random_case() && upstream.other_cases.load(Ordering::Relaxed) < OTHER_CASES;
        let mut other_case = false;
        match self.over_udp(upstream, outgoing.dress(edns, random_case, false)).await? {
            Reply::Message(message) => {
                if random_case {
                    upstream.other_cases.store(0, Ordering::Relaxed);
                }
                // What is malformed may have been cut on the way.
                if let Some(answer) = outgoing.read(message) {
                    if !answer.is_truncated() {
                        return Ok(answer);
                    }
                    let whole = Box::pin(tokio::time::timeout(WHOLE, over_stream(upstream, outgoing, edns, false))).await;
                    let why = match whole {
                        Ok(Ok(whole)) => return Ok(whole),
                        Ok(Err(miss)) => miss.to_string(),
                        Err(_) => "it truncates its answer and says no more over TCP".to_owned(),
                    };
                    // It lives all the same.
                    upstream.health.failed(&why, false, Instant::now());
                    return Ok(answer);
                }
            }
            Reply::OtherCase(_) => other_case = true,
            Reply::Doubtful => {}
            Reply::Unreachable(why) => return Err(Miss::Unreachable(why)),
        }
        let answer = Box::pin(over_stream(upstream, outgoing, edns, false)).await;
        if other_case && answer.is_err() {
            upstream.other_cases.fetch_add(1, Ordering::Relaxed);
            return Err(Miss::Bad("it answers in other letters than the question's, and not over TCP".into()));
        }
        answer
    }
}

/// Over TCP or TLS.
async fn over_stream(upstream: &Arc<Upstream>, outgoing: &Outgoing, edns: bool, padded: bool) -> Result<Answer, Miss> {
    // Nobody can guess his way into a connection: letters matter only to learn whether they are echoed.
    let random_case = outgoing.random_case() && !padded;
    let message = match stream::exchange(upstream, &outgoing.dress(edns, random_case, padded)).await? {
        Reply::Message(message) => message,
        Reply::OtherCase(message) => {
            upstream.other_cases.store(OTHER_CASES, Ordering::Relaxed);
            message
        }
        Reply::Doubtful => return Err(Miss::Bad("it answers what nobody asked".into())),
        Reply::Unreachable(why) => return Err(Miss::Unreachable(why)),
    };
    outgoing.read(message).ok_or_else(|| Miss::Bad("its answer is malformed".into()))
}
