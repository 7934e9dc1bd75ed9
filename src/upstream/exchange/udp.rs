//! DNS over UDP: a few connected sockets for each upstream, each with a reader task.
//!
//! A connected socket receives packets from its upstream only, and ICMP errors. A socket for each
//! query would cost more than the query itself. Each query therefore takes a random socket of a
//! small pool, and each socket is replaced after a limited number of queries and seconds. A forger
//! has to guess both port and id within milliseconds (RFC 5452 section 9.2).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use nix::errno::Errno;
use rand::Rng;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

use super::packet::Packet;
use super::pending::{ABANDONED_QUERY_LIFETIME, Delivery, Pending, PendingOutcome};
use super::{AttemptError, Upstream};

/// Number of sockets for each upstream.
const SOCKETS_PER_UPSTREAM: usize = 8;

/// Number of queries after which a socket is replaced.
const MAX_QUERIES_PER_SOCKET: u32 = 256;

/// Age after which a socket is replaced.
const MAX_SOCKET_AGE: Duration = Duration::from_secs(10);

/// Limit on queries in flight on one socket.
const MAX_IN_FLIGHT: usize = 512;

/// Limit on replaced sockets that still await responses, per upstream.
const MAX_LINGERING_SOCKETS: usize = 64;

/// Number of unexpected packets after which the pending queries move to TCP.
pub(super) const MAX_STRAYS: u32 = 3;

/// Size of the receive buffer, which limits the UDP responses that are read whole.
///
/// Queries advertise 1,232 bytes, which some upstreams exceed. A longer response is cut, hence
/// malformed, hence retried over TCP.
const RECEIVE_BUFFER_BYTES: usize = 4096;

/// Time after which the sockets of an unused upstream are closed.
const UNUSED_POOL_TIMEOUT: Duration = Duration::from_secs(60);

/// The UDP sockets of one lane, opened when needed.
///
/// Their readers run on the Tokio runtime of the query that opens them.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Sockets {
    pools: Mutex<HashMap<u64, SocketPool, foldhash::fast::RandomState>>,
}

/// The sockets to one upstream.
#[derive(Debug)]
struct SocketPool {
    sockets: [Option<OpenSocket>; SOCKETS_PER_UPSTREAM],
    lingering: Vec<OpenSocket>,
    last_used: Instant,
}

/// A socket with its reader task, which is aborted with it.
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
    /// Sends a query in one datagram and waits for the outcome.
    pub(super) async fn over_udp(
        &self,
        upstream: &Arc<Upstream>,
        packet: Packet,
    ) -> Result<PendingOutcome, AttemptError> {
        let socket = self.socket(upstream).map_err(|error| {
            match error.raw_os_error().map(Errno::from_raw) {
                // Local resource exhaustion, not an upstream failure.
                Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                    AttemptError::Busy
                }
                _ => AttemptError::Unreachable(error.to_string()),
            }
        })?;
        let reply = socket.send(packet).await?;
        drop(socket);
        // The socket was dropped with responses pending: too many sockets were lingering.
        reply.await.map_err(|_| AttemptError::Busy)
    }

    /// Returns a random socket of the upstream's pool, replaced if it is worn out.
    fn socket(&self, upstream: &Arc<Upstream>) -> io::Result<Arc<QuerySocket>> {
        let now = Instant::now();
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if !pools.contains_key(&upstream.serial) {
            pools.retain(|_, pool| {
                now.saturating_duration_since(pool.last_used) < UNUSED_POOL_TIMEOUT
            });
        }
        let pool = pools.entry(upstream.serial).or_insert_with(|| SocketPool {
            sockets: [const { None }; SOCKETS_PER_UPSTREAM],
            lingering: Vec::new(),
            last_used: now,
        });
        pool.last_used = now;
        let slot =
            usize::try_from(rand::rng().next_u32()).unwrap_or_default() % SOCKETS_PER_UPSTREAM;
        if let Some(open) = &mut pool.sockets[slot] {
            if !open.is_retired(now) {
                open.queries += 1;
                return Ok(Arc::clone(&open.socket));
            }
            pool.lingering.retain(|open| {
                !open.socket.pending.lock().is_empty()
                    && now.saturating_duration_since(open.opened)
                        < MAX_SOCKET_AGE + ABANDONED_QUERY_LIFETIME
            });
            if pool.lingering.len() >= MAX_LINGERING_SOCKETS {
                pool.lingering.swap_remove(0);
            }
            pool.lingering.extend(pool.sockets[slot].take());
        }
        let open = OpenSocket::new(upstream, now)?;
        Ok(Arc::clone(&pool.sockets[slot].insert(open).socket))
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

    /// Returns whether the socket has to be replaced.
    fn is_retired(&self, now: Instant) -> bool {
        // When a runtime shuts down, it ends the reader with it.
        self.queries >= MAX_QUERIES_PER_SOCKET
            || now.saturating_duration_since(self.opened) >= MAX_SOCKET_AGE
            || self.socket.pending.is_closed()
            || self.reader.is_finished()
    }
}

impl QuerySocket {
    /// Sends a query under a free id and returns the receiver of its outcome.
    async fn send(
        &self,
        mut packet: Packet,
    ) -> Result<tokio::sync::oneshot::Receiver<PendingOutcome>, AttemptError> {
        loop {
            {
                // The lock is held while sending: the response may arrive before its query is
                // registered.
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
                    // The runtime does not know yet that a new socket is writable.
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
    let mut buffer = vec![0; RECEIVE_BUFFER_BYTES];
    loop {
        let length = match socket.io.recv(&mut buffer).await {
            Ok(length) => length,
            Err(error) => {
                // An ICMP error: the port is closed or the host unreachable. All pending queries
                // fail at once, so that other upstreams are queried.
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
                    // Clearing the readiness here saves a receive call that would find nothing. An
                    // unexpected packet is read with the next response.
                    let _ = socket.io.try_io(Interest::READABLE, || -> io::Result<()> {
                        Err(io::ErrorKind::WouldBlock.into())
                    });
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
