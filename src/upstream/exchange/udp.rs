//! Datagrams: a few connected sockets for each upstream, each with a reader of its own.
//!
//! A connected socket hears nobody but its upstream, and hears when nobody listens there. Making one for each question would
//! cost more than the question, so a question takes one of a few by chance, and each serves a bounded number of questions and
//! seconds: a forger must guess port and id (RFC 5452 section 9.2) of what is gone in milliseconds.

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

/// Sockets for each upstream.
const SOCKETS_PER_UPSTREAM: usize = 8;

/// Questions that a socket serves.
const MAX_QUERIES_PER_SOCKET: u32 = 256;

/// How long a socket serves.
const MAX_SOCKET_AGE: Duration = Duration::from_secs(10);

/// Questions under way on one socket.
const MAX_IN_FLIGHT: usize = 512;

/// Sockets that serve no longer and still wait for answers, for each upstream.
const MAX_LINGERING_SOCKETS: usize = 64;

/// Datagrams that nobody asked for, after which questions leave the socket.
pub(super) const MAX_STRAYS: u32 = 3;

/// Largest datagram that is read whole: we say that we take 1,232 bytes, and a few take that lightly. What is longer is cut, so
/// malformed, so asked for over TCP.
const RECEIVE_BUFFER_BYTES: usize = 4096;

/// Sockets of upstreams that are not asked any more are closed after this.
const UNUSED_POOL_TIMEOUT: Duration = Duration::from_secs(60);

/// The sockets of one lane. They are opened in the runtime that asks first, as they are needed.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Sockets {
    pools: Mutex<HashMap<u64, SocketPool, foldhash::fast::RandomState>>,
}

#[derive(Debug)]
struct SocketPool {
    sockets: [Option<OpenSocket>; SOCKETS_PER_UPSTREAM],
    lingering: Vec<OpenSocket>,
    last_used: Instant,
}

/// A socket and its reader, which ends with it.
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

#[derive(Debug)]
struct QuerySocket {
    io: UdpSocket,
    pending: Pending,
    /// Datagrams that nobody asked for.
    strays: AtomicU32,
    upstream: Arc<Upstream>,
}

impl Sockets {
    /// Asks in one datagram.
    pub(super) async fn over_udp(
        &self,
        upstream: &Arc<Upstream>,
        packet: Packet,
    ) -> Result<PendingOutcome, AttemptError> {
        let socket = self.socket(upstream).map_err(|error| {
            match error.raw_os_error().map(Errno::from_raw) {
                // Want of ours, not the upstream's fault.
                Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                    AttemptError::Busy
                }
                _ => AttemptError::Unreachable(error.to_string()),
            }
        })?;
        let reply = socket.send(packet).await?;
        drop(socket);
        // Closed while it was owed an answer: for want of room among those that linger.
        reply.await.map_err(|_| AttemptError::Busy)
    }

    /// One of the upstream's sockets by chance, opened anew when it has served its time.
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
    fn new(upstream: &Arc<Upstream>, now: Instant) -> io::Result<Self> {
        let address = upstream.target.address;
        // Port 0: the kernel draws one (udp_lib_get_port).
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

    fn is_retired(&self, now: Instant) -> bool {
        // A closed runtime takes the reader with it.
        self.queries >= MAX_QUERIES_PER_SOCKET
            || now.saturating_duration_since(self.opened) >= MAX_SOCKET_AGE
            || self.socket.pending.is_closed()
            || self.reader.is_finished()
    }
}

impl QuerySocket {
    /// Sends a question and waits for its answer from then on.
    async fn send(
        &self,
        mut packet: Packet,
    ) -> Result<tokio::sync::oneshot::Receiver<PendingOutcome>, AttemptError> {
        loop {
            {
                // Held while it is sent: the answer may be here before we have said what we wait for.
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
                    // A new socket is not known to be writable yet.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        drop(table);
                        let why = error.to_string();
                        self.pending.close(|| PendingOutcome::Unreachable(why.clone()));
                        return Err(AttemptError::Unreachable(why));
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

/// Reads a socket for as long as it is open.
async fn read_responses(socket: Arc<QuerySocket>) {
    let mut buffer = vec![0; RECEIVE_BUFFER_BYTES];
    loop {
        let length = match socket.io.recv(&mut buffer).await {
            Ok(length) => length,
            Err(error) => {
                // ICMP: nobody listens there, or no way leads there. All that is under way goes elsewhere at once.
                let why = error.to_string();
                socket.pending.close(|| PendingOutcome::Unreachable(why.clone()));
                return;
            }
        };
        let now = Instant::now();
        match socket.pending.deliver(&buffer[..length], now) {
            Delivery::Response(after) => {
                socket.upstream.health.record_response(after, now);
                let table = socket.pending.lock();
                if table.is_empty() {
                    // Nothing else is awaited, nor sent while this lock is held, so the call that would find nothing is spared:
                    // readiness is forgotten as if it had been opened. Something that nobody asked for is read with the next answer.
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
