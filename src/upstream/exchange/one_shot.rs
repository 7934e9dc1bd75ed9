//! UDP sockets with a new source port for each query.
//!
//! Connecting such a socket draws a random port, as for a new socket (`inet_autobind` in the
//! kernel); dissolving the association releases the port (`__udp_disconnect`). Together, they cost
//! about 1 µs; opening, registering and closing a socket costs about 8 µs. A socket keeps its last
//! port until the next query to the upstream has been sent. From then until its own next query it
//! has no port, so nobody can find the port of a query in advance.

use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;
use rustix::net::SendFlags;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout_at;

use super::datagram::{MAX_UDP_RESPONSE_BYTES, readable};
use super::packet::{Packet, ResponseMatch};
use super::pending::{ABANDONED_QUERY_LIFETIME, MAX_STRAYS, PendingOutcome};
use super::{AttemptError, Upstream};

/// Maximum rate of queries to one upstream at which each gets its own port.
const MAX_RATE_PER_SECOND: u32 = 500;

/// Period over which the rate is measured.
///
/// A burst of as many queries as are allowed in this period gets separate ports.
const RATE_PERIOD: Duration = Duration::from_secs(1);

/// Time for which a high rate is remembered, so that short gaps do not end it.
const MAX_EXCESS: Duration = Duration::from_millis(100);

/// Size of the buffer for late responses, in bytes.
///
/// Only the header and the question are read, which take at most 271 bytes.
const LATE_RESPONSE_BYTES: usize = 512;

/// Measures the rate of queries to one upstream as a leaky bucket.
#[derive(Debug)]
pub(super) struct QueryRate {
    /// Content of the bucket, as the time it takes to leak out.
    content: Duration,
    updated: Instant,
}

impl QueryRate {
    /// Creates an empty bucket.
    pub(super) fn new(now: Instant) -> Self {
        Self { content: Duration::ZERO, updated: now }
    }

    /// Records a query; returns whether the rate is low enough for a separate port.
    pub(super) fn record(&mut self, now: Instant) -> bool {
        let leaked = now.saturating_duration_since(self.updated);
        let content = self.content.saturating_sub(leaked) + RATE_PERIOD / MAX_RATE_PER_SECOND;
        self.content = content.min(RATE_PERIOD + MAX_EXCESS);
        self.updated = now;
        content <= RATE_PERIOD
    }
}

/// The receive buffer that the sockets of one lane share.
#[derive(Debug, Default)]
pub(super) struct ReceiveBuffer(Mutex<Vec<u8>>);

impl ReceiveBuffer {
    /// Receives one datagram and passes it to `read`.
    fn receive<T>(&self, io: &UdpSocket, read: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.resize(MAX_UDP_RESPONSE_BYTES, 0);
        let length = io.try_recv(&mut buffer)?;
        Ok(read(&buffer[..length]))
    }
}

/// A socket for one query at a time; each query has a new port.
#[derive(Debug)]
pub(super) struct OneShotSocket {
    io: UdpSocket,
    /// Permit for one file descriptor.
    _permit: OwnedSemaphorePermit,
}

impl OneShotSocket {
    /// Opens a socket for an upstream's address family.
    pub(super) fn open(upstream: &Upstream, permit: OwnedSemaphorePermit) -> io::Result<Self> {
        let domain = Domain::for_address(upstream.target.address);
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        Ok(Self { io: UdpSocket::from_std(socket.into())?, _permit: permit })
    }

    /// Releases the port of the last query; returns the socket if it can be reused.
    ///
    /// A socket that holds another datagram cannot be reused: the next query would take the
    /// datagram for a forgery.
    pub(super) fn release_port(self) -> Option<Self> {
        rustix::net::connect_unspec(&self.io).ok()?;
        let rest = self.io.try_recv(&mut [0]);
        rest.is_err_and(|error| error.kind() == ErrorKind::WouldBlock).then_some(self)
    }

    /// Sends a query with a random ID from a new port.
    pub(super) async fn send(
        self,
        upstream: &Arc<Upstream>,
        mut packet: Packet,
    ) -> Result<OneShotQuery, AttemptError> {
        let [high, low, ..] = rand::rng().next_u32().to_be_bytes();
        packet.bytes[..2].copy_from_slice(&[high, low]);
        rustix::net::connect(&self.io, &upstream.target.address)
            .map_err(|error| AttemptError::of_socket(&error.into()))?;
        // Tokio learns only in its next turn that a new socket is writable, but most are.
        match rustix::net::send(&self.io, &packet.bytes, SendFlags::DONTWAIT) {
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => {
                self.io
                    .send(&packet.bytes)
                    .await
                    .map_err(|error| AttemptError::of_socket(&error))?;
            }
            Err(error) => return Err(AttemptError::of_socket(&error.into())),
        }
        let sent = Instant::now();
        upstream.health.record_query(sent);
        let query = QueryInFlight { socket: self, upstream: Arc::clone(upstream), packet, sent };
        Ok(OneShotQuery(Some(query)))
    }
}

/// A query on a separate socket, which stays open until the response or a timeout.
///
/// A closed port would answer a late response with an ICMP error. A late response also shows that
/// the upstream is alive.
#[derive(Debug)]
pub(super) struct OneShotQuery(Option<QueryInFlight>);

#[derive(Debug)]
struct QueryInFlight {
    socket: OneShotSocket,
    upstream: Arc<Upstream>,
    packet: Packet,
    sent: Instant,
}

impl QueryInFlight {
    /// Checks whether `message` is the response; if it is, records the response.
    fn accept(&self, message: &[u8]) -> ResponseMatch {
        if message.get(..2) != self.packet.bytes.get(..2) {
            return ResponseMatch::Stray;
        }
        let fit = self.packet.match_response(message);
        if fit != ResponseMatch::Stray {
            let now = Instant::now();
            self.upstream.health.record_response(now.saturating_duration_since(self.sent), now);
        }
        fit
    }

    /// Waits for the response of an abandoned query.
    async fn linger(self) {
        let mut buffer = [0; LATE_RESPONSE_BYTES];
        let received = async {
            let mut strays = 0;
            while strays < MAX_STRAYS && readable(&self.socket.io).await.is_ok() {
                match self.socket.io.try_recv(&mut buffer) {
                    Ok(length) if self.accept(&buffer[..length]) == ResponseMatch::Stray => {
                        strays += 1;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Ok(_) | Err(_) => return,
                }
            }
        };
        let until = self.sent + ABANDONED_QUERY_LIFETIME;
        let _ = timeout_at(until.into(), received).await;
    }
}

impl OneShotQuery {
    /// Waits for the outcome, without a time limit.
    ///
    /// Also returns the socket if it can be reused.
    pub(super) async fn outcome(
        &mut self,
        buffer: &ReceiveBuffer,
    ) -> (PendingOutcome, Option<OneShotSocket>) {
        let mut strays = 0;
        loop {
            let Some(query) = &self.0 else {
                return (PendingOutcome::Unreachable("the socket was closed".to_owned()), None);
            };
            let received = match readable(&query.socket.io).await {
                Ok(()) => buffer.receive(&query.socket.io, |message| match query.accept(message) {
                    ResponseMatch::Full => Some(PendingOutcome::Response(message.to_vec())),
                    ResponseMatch::ExceptCase => {
                        Some(PendingOutcome::CaseMismatch(message.to_vec()))
                    }
                    ResponseMatch::Stray => None,
                }),
                Err(error) => Err(error),
            };
            match received {
                Ok(Some(outcome)) => {
                    return (outcome, self.0.take().map(|query| query.socket));
                }
                Ok(None) => {
                    strays += 1;
                    if strays >= MAX_STRAYS {
                        self.0 = None;
                        return (PendingOutcome::Suspicious, None);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    self.0 = None;
                    return (PendingOutcome::Unreachable(error.to_string()), None);
                }
            }
        }
    }
}

impl Drop for OneShotQuery {
    fn drop(&mut self) {
        if let (Some(query), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(query.linger());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_get_a_port_of_their_own_up_to_a_rate_limit() {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        // Every query up to the limit gets a port, forever.
        let mut rate = QueryRate::new(began);
        assert!((0..20_000).all(|query| rate.record(at(query * 2))));
        // One period's queries at once get a port each, but no more.
        let mut rate = QueryRate::new(began);
        assert_eq!((0..2000).filter(|_| rate.record(began)).count(), 500);
        // At 2,000 queries a second, none gets a port from then on, even after a short gap.
        let mut rate = QueryRate::new(began);
        let low: Vec<_> = (0..20_000).filter(|query| rate.record(at(query / 2))).collect();
        assert!(low.len() < 700 && low[low.len() - 1] < 700, "{low:?}");
        assert!(!rate.record(at(10_090)));
        // At 400 queries a second, all get a port again after one second.
        assert!((0..4000).all(|query| rate.record(at(11_000 + query * 5 / 2)) || query < 400));
    }
}
