//! DNS over UDP, with ports that a forger has to guess (RFC 5452 section 9.2).
//!
//! A connected socket receives only packets from its upstream and ICMP errors. Up to a moderate
//! rate, each query has a separate socket with a new port. Above that rate, and when file
//! descriptors are scarce, queries share a pool. Each query takes a random socket of the pool,
//! whose reader task serves all of its queries. A pooled socket is replaced after a limited number
//! of queries and seconds.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use rand::Rng;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

use super::datagram::{MAX_UDP_RESPONSE_BYTES, mark_empty, readable};
use super::one_shot::{OneShotSocket, QueryRate, ReceiveBuffer};
use super::packet::Packet;
use super::pending::{ABANDONED_QUERY_LIFETIME, Delivery, MAX_STRAYS, Pending, PendingOutcome};
use super::{AttemptError, Upstream};

/// Number of shared sockets for each upstream.
const SOCKETS_PER_UPSTREAM: usize = 64;

/// Number of queries after which a socket is replaced.
const MAX_QUERIES_PER_SOCKET: u32 = 256;

/// Age after which a socket is replaced.
const MAX_SOCKET_AGE: Duration = Duration::from_secs(10);

/// Limit on idle sockets kept for one-query use, per upstream.
const MAX_IDLE_SOCKETS: usize = 8;

/// Limit on queries in flight on one socket.
const MAX_IN_FLIGHT: usize = 512;

/// Limit on replaced sockets that still await responses, per upstream.
const MAX_LINGERING_SOCKETS: usize = 64;

/// Time after which the sockets of an unused upstream are closed.
const UNUSED_POOL_TIMEOUT: Duration = Duration::from_secs(60);

/// The UDP sockets of one lane, opened when needed.
///
/// Their readers run on the Tokio runtime of the query that opens them.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Sockets {
    /// Whether each query over TCP, TLS or HTTPS gets its own connection.
    pub(super) exclusive: bool,
    pools: Mutex<HashMap<u64, SocketPool, foldhash::fast::RandomState>>,
    buffer: ReceiveBuffer,
}

/// The sockets to one upstream.
#[derive(Debug)]
struct SocketPool {
    sockets: [Option<OpenSocket>; SOCKETS_PER_UPSTREAM],
    lingering: Vec<OpenSocket>,
    /// Idle sockets, which have no query and no port.
    idle: Vec<OneShotSocket>,
    /// Sockets whose last query has ended, but which still have its port.
    used: Vec<OneShotSocket>,
    rate: QueryRate,
    last_used: Instant,
}

/// The socket chosen for a query.
#[derive(Debug)]
enum ChosenSocket {
    OneShot(OneShotSocket),
    Shared(Arc<QuerySocket>),
}

/// A socket with its reader task; dropping the socket aborts the task.
#[derive(Debug)]
struct OpenSocket {
    socket: Arc<QuerySocket>,
    queries: u32,
    opened: Instant,
    reader: AbortHandle,
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A connected UDP socket and the queries in flight on it.
#[derive(Debug)]
struct QuerySocket {
    io: UdpSocket,
    pending: Pending,
    /// Number of packets that answered no pending query.
    strays: AtomicU32,
    upstream: Arc<Upstream>,
}

impl Sockets {
    /// Creates sockets for queries that share no connection with other queries.
    pub(in crate::upstream) fn exclusive() -> Self {
        Self { exclusive: true, ..Self::default() }
    }

    /// Sends a query in one datagram and waits for the outcome.
    pub(super) async fn over_udp(
        &self,
        upstream: &Arc<Upstream>,
        packet: Packet,
    ) -> Result<PendingOutcome, AttemptError> {
        match self.socket(upstream).map_err(|error| AttemptError::of_socket(&error))? {
            ChosenSocket::OneShot(socket) => {
                let mut query = socket.send(upstream, packet).await?;
                // Ports are released while the upstream works; later, this would delay the client.
                self.release_ports(upstream);
                let (outcome, socket) = query.outcome(&self.buffer).await;
                if let Some(socket) = socket {
                    self.keep(upstream, socket);
                }
                Ok(outcome)
            }
            ChosenSocket::Shared(socket) => {
                let reply = socket.send(packet).await?;
                drop(socket);
                // The socket was dropped with pending responses, because too many sockets lingered.
                reply.await.map_err(|_| AttemptError::Busy)
            }
        }
    }

    /// Keeps a socket whose query has ended for a later query to the same upstream.
    fn keep(&self, upstream: &Upstream, socket: OneShotSocket) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get_mut(&upstream.serial)
            && pool.used.len() + pool.idle.len() < MAX_IDLE_SOCKETS
        {
            pool.used.push(socket);
        }
    }

    /// Releases the ports of earlier queries to the same upstream.
    fn release_ports(&self, upstream: &Upstream) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get_mut(&upstream.serial) {
            pool.idle.extend(pool.used.drain(..).filter_map(OneShotSocket::release_port));
        }
    }

    /// Returns a socket for one query to the upstream.
    fn socket(&self, upstream: &Arc<Upstream>) -> io::Result<ChosenSocket> {
        let now = Instant::now();
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if !pools.contains_key(&upstream.serial) {
            pools.retain(|_, pool| {
                now.saturating_duration_since(pool.last_used) < UNUSED_POOL_TIMEOUT
            });
        }
        let pool = pools.entry(upstream.serial).or_insert_with(|| SocketPool::new(now));
        pool.last_used = now;
        if pool.rate.record(now)
            && let Some(socket) = pool.one_shot(upstream)
        {
            return Ok(ChosenSocket::OneShot(socket));
        }
        pool.shared(upstream, now).map(ChosenSocket::Shared)
    }
}

impl SocketPool {
    /// Creates a pool without open sockets.
    fn new(now: Instant) -> Self {
        Self {
            sockets: [const { None }; SOCKETS_PER_UPSTREAM],
            lingering: Vec::new(),
            idle: Vec::new(),
            used: Vec::new(),
            rate: QueryRate::new(now),
            last_used: now,
        }
    }

    /// Returns an unshared socket for one query, unless too many are open.
    fn one_shot(&mut self, upstream: &Upstream) -> Option<OneShotSocket> {
        self.idle.pop().or_else(|| {
            let permits = Arc::clone(&upstream.connector.one_shot_permits);
            OneShotSocket::open(upstream, permits.try_acquire_owned().ok()?).ok()
        })
    }

    /// Returns a random shared socket; replaces the socket first if it is worn out.
    fn shared(&mut self, upstream: &Arc<Upstream>, now: Instant) -> io::Result<Arc<QuerySocket>> {
        let slot =
            usize::try_from(rand::rng().next_u32()).unwrap_or_default() % SOCKETS_PER_UPSTREAM;
        if let Some(open) = &mut self.sockets[slot] {
            if !open.is_retired(now) {
                open.queries += 1;
                return Ok(Arc::clone(&open.socket));
            }
            self.lingering.retain(|open| {
                !open.socket.pending.lock().is_empty()
                    && now.saturating_duration_since(open.opened)
                        < MAX_SOCKET_AGE + ABANDONED_QUERY_LIFETIME
            });
            if self.lingering.len() >= MAX_LINGERING_SOCKETS {
                self.lingering.swap_remove(0);
            }
            self.lingering.extend(self.sockets[slot].take());
        }
        let open = OpenSocket::new(upstream, now)?;
        Ok(Arc::clone(&self.sockets[slot].insert(open).socket))
    }
}

impl OpenSocket {
    /// Opens a socket to the upstream and starts its reader.
    fn new(upstream: &Arc<Upstream>, now: Instant) -> io::Result<Self> {
        let address = upstream.target.address;
        // With port 0 the kernel draws a random port (udp_lib_get_port).
        let any: SocketAddr = if address.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let io = std::net::UdpSocket::bind(any)?;
        io.connect(address)?;
        io.set_nonblocking(true)?;
        let socket = Arc::new(QuerySocket {
            io: UdpSocket::from_std(io)?,
            pending: Pending::new(MAX_IN_FLIGHT),
            strays: AtomicU32::new(0),
            upstream: Arc::clone(upstream),
        });
        let reader = tokio::spawn(read_responses(Arc::clone(&socket))).abort_handle();
        Ok(Self { socket, queries: 1, opened: now, reader })
    }

    /// Returns whether the socket must be replaced.
    fn is_retired(&self, now: Instant) -> bool {
        // The reader also ends when its runtime shuts down.
        self.queries >= MAX_QUERIES_PER_SOCKET
            || now.saturating_duration_since(self.opened) >= MAX_SOCKET_AGE
            || self.socket.pending.is_closed()
            || self.reader.is_finished()
    }
}

impl QuerySocket {
    /// Sends a query under a free ID and returns the receiver of its outcome.
    async fn send(
        &self,
        mut packet: Packet,
    ) -> Result<tokio::sync::oneshot::Receiver<PendingOutcome>, AttemptError> {
        loop {
            {
                // The lock is held while sending, because the response may arrive before its query
                // is registered.
                let mut table = self.pending.lock();
                if table.is_closed() {
                    return Err(AttemptError::Unreachable("the socket was closed".to_owned()));
                }
                let now = Instant::now();
                let id = table.free_id(now).ok_or(AttemptError::Busy)?;
                packet.bytes[..2].copy_from_slice(&id.to_be_bytes());
                match self.io.try_send(&packet.bytes) {
                    Ok(_) => {
                        self.upstream.health.record_query(now);
                        return Ok(table.insert(id, packet, now));
                    }
                    // The runtime does not know yet that the new socket is writable.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        drop(table);
                        let reason = error.to_string();
                        self.pending.close(|| PendingOutcome::Unreachable(reason.clone()));
                        return Err(AttemptError::Unreachable(reason));
                    }
                }
            }
            self.io
                .writable()
                .await
                .map_err(|error| AttemptError::Unreachable(error.to_string()))?;
        }
    }
}

/// Reads a socket until it fails or receives too many unexpected packets.
async fn read_responses(socket: Arc<QuerySocket>) {
    let mut buffer = vec![0; MAX_UDP_RESPONSE_BYTES];
    loop {
        let received = match readable(&socket.io).await {
            Ok(()) => socket.io.try_recv(&mut buffer),
            Err(error) => Err(error),
        };
        let length = match received {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                // All pending queries fail at once, so that other upstreams are queried.
                let reason = error.to_string();
                socket.pending.close(|| PendingOutcome::Unreachable(reason.clone()));
                return;
            }
        };
        let now = Instant::now();
        match socket.pending.deliver(&buffer[..length], now) {
            Delivery::Response(after) => {
                socket.upstream.health.record_response(after, now);
                let table = socket.pending.lock();
                if table.is_empty() {
                    // No response is pending, and none can become pending while the lock is held.
                    mark_empty(&socket.io);
                }
            }
            Delivery::Stray => {
                if socket.strays.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_STRAYS {
                    socket.pending.close(|| PendingOutcome::Suspicious);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokio::runtime::Handle;

    use super::super::{Connector, Outgoing};
    use super::*;
    use crate::upstream::{Protocol, Target};
    use crate::wire::flags;

    /// Creates an upstream with no file descriptor left for its queries.
    fn upstream_without_permits(address: SocketAddr) -> Arc<Upstream> {
        let connector = Connector::new(Handle::current(), None);
        connector.one_shot_permits.forget_permits(usize::MAX);
        Upstream::new(Target { address, protocol: Protocol::Plain }, connector)
    }

    /// Returns the packet of a query for `a. A`.
    fn packet() -> Packet {
        let message = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01".to_vec();
        Outgoing::new(message, false).unwrap().to_packet(false, false, false)
    }

    #[tokio::test]
    async fn queries_share_ports_when_descriptors_are_scarce() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let upstream = upstream_without_permits(server.local_addr().unwrap());
        let sockets = Sockets::default();
        let (mut buffer, mut ports) = ([0; 512], HashSet::new());
        for _ in 0..400 {
            let answer = async {
                let (length, source) = server.recv_from(&mut buffer).await.unwrap();
                ports.insert(source.port());
                buffer[2] |= flags::QR.to_be_bytes()[0];
                server.send_to(&buffer[..length], source).await.unwrap();
            };
            let (outcome, ()) = tokio::join!(sockets.over_udp(&upstream, packet()), answer);
            assert!(matches!(outcome.unwrap(), PendingOutcome::Response(_)));
        }
        // All sockets of the pool were used; a busy machine may have replaced some of them.
        assert!((60..=2 * SOCKETS_PER_UPSTREAM).contains(&ports.len()), "{} ports", ports.len());
    }

    #[tokio::test]
    async fn duplicate_responses_do_not_affect_later_queries() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let target = Target { address, protocol: Protocol::Plain };
        let upstream = Upstream::new(target, Connector::new(Handle::current(), None));
        let sockets = Sockets::default();
        let mut buffer = [0; 512];
        for _ in 0..20 {
            let answer = async {
                let (length, source) = server.recv_from(&mut buffer).await.unwrap();
                buffer[2] |= flags::QR.to_be_bytes()[0];
                for _ in 0..5 {
                    server.send_to(&buffer[..length], source).await.unwrap();
                }
            };
            let (outcome, ()) = tokio::join!(sockets.over_udp(&upstream, packet()), answer);
            assert!(matches!(outcome.unwrap(), PendingOutcome::Response(_)));
        }
    }

    #[tokio::test]
    async fn shared_sockets_notice_closed_ports_at_once() {
        // The port is below the ephemeral ports, and the address is unused.
        let upstream = upstream_without_permits("127.94.0.1:9".parse().unwrap());
        let outcome = Sockets::default().over_udp(&upstream, packet()).await.unwrap();
        assert!(matches!(outcome, PendingOutcome::Unreachable(_)), "{outcome:?}");
    }
}
