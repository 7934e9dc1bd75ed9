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

use super::pending::{LINGER, Pending, Reply, Taken};
use super::question::Packet;
use super::{Miss, Upstream};

/// Sockets for each upstream.
const POOL: usize = 8;

/// Questions that a socket serves.
const USES: u32 = 256;

/// How long a socket serves.
const AGE: Duration = Duration::from_secs(10);

/// Questions under way on one socket.
const MOST: usize = 512;

/// Sockets that serve no longer and still wait for answers, for each upstream.
const LINGERING: usize = 64;

/// Datagrams that nobody asked for, after which questions leave the socket.
pub(super) const STRAYS: u32 = 3;

/// Largest datagram that is read whole: we say that we take 1,232 octets, and a few take that lightly. What is longer is cut, so
/// malformed, so asked for over TCP.
const BUFFER: usize = 4096;

/// Sockets of upstreams that are not asked any more are closed after this.
const UNUSED: Duration = Duration::from_secs(60);

/// The sockets of one lane. They are made in the runtime that asks first, as they are needed.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Sockets {
    pools: Mutex<HashMap<u64, Pool, foldhash::fast::RandomState>>,
}

#[derive(Debug)]
struct Pool {
    sockets: [Option<Open>; POOL],
    lingering: Vec<Open>,
    used: Instant,
}

/// A socket and its reader, which ends with it.
#[derive(Debug)]
struct Open {
    socket: Arc<Socket>,
    uses: u32,
    made: Instant,
    reader: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[derive(Debug)]
struct Socket {
    io: UdpSocket,
    pending: Pending,
    /// Datagrams that nobody asked for.
    strays: AtomicU32,
    upstream: Arc<Upstream>,
}

impl Sockets {
    /// Asks in one datagram.
    pub(super) async fn over_udp(&self, upstream: &Arc<Upstream>, packet: Packet) -> Result<Reply, Miss> {
        let socket = self.socket(upstream).map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            // Want of ours, not the upstream's fault.
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => Miss::Busy,
            _ => Miss::Unreachable(error.to_string()),
        })?;
        let reply = socket.send(packet).await?;
        drop(socket);
        // Closed while it was owed an answer: for want of room among those that linger.
        reply.await.map_err(|_| Miss::Busy)
    }

    /// One of the upstream's sockets by chance, made anew when it has served its time.
    fn socket(&self, upstream: &Arc<Upstream>) -> io::Result<Arc<Socket>> {
        let now = Instant::now();
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if !pools.contains_key(&upstream.serial) {
            pools.retain(|_, pool| now.saturating_duration_since(pool.used) < UNUSED);
        }
        let pool =
            pools.entry(upstream.serial).or_insert_with(|| Pool { sockets: [const { None }; POOL], lingering: Vec::new(), used: now });
        pool.used = now;
        let slot = usize::try_from(rand::rng().next_u32()).unwrap_or_default() % POOL;
        if let Some(open) = &mut pool.sockets[slot] {
            if !open.is_over(now) {
                open.uses += 1;
                return Ok(Arc::clone(&open.socket));
            }
            pool.lingering.retain(|open| !open.socket.pending.lock().is_empty() && now.saturating_duration_since(open.made) < AGE + LINGER);
            if pool.lingering.len() >= LINGERING {
                pool.lingering.swap_remove(0);
            }
            pool.lingering.extend(pool.sockets[slot].take());
        }
        let open = Open::new(upstream, now)?;
        Ok(Arc::clone(&pool.sockets[slot].insert(open).socket))
    }
}

impl Open {
    fn new(upstream: &Arc<Upstream>, now: Instant) -> io::Result<Self> {
        let address = upstream.target.address;
        // Port 0: the kernel draws one (udp_lib_get_port).
        let any: SocketAddr = if address.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let io = std::net::UdpSocket::bind(any)?;
        io.connect(address)?;
        io.set_nonblocking(true)?;
        let socket = Arc::new(Socket {
            io: UdpSocket::from_std(io)?,
            pending: Pending::new(MOST),
            strays: AtomicU32::new(0),
            upstream: Arc::clone(upstream),
        });
        let reader = tokio::spawn(read(Arc::clone(&socket))).abort_handle();
        Ok(Self { socket, uses: 1, made: now, reader })
    }

    fn is_over(&self, now: Instant) -> bool {
        // A closed runtime takes the reader with it.
        self.uses >= USES || now.saturating_duration_since(self.made) >= AGE || self.socket.pending.is_closed() || self.reader.is_finished()
    }
}

impl Socket {
    /// Sends a question and waits for its answer from then on.
    async fn send(&self, mut packet: Packet) -> Result<tokio::sync::oneshot::Receiver<Reply>, Miss> {
        loop {
            {
                // Held while it is sent: the answer may be here before we have said what we wait for.
                let mut entries = self.pending.lock();
                if entries.is_closed() {
                    return Err(Miss::Unreachable("the socket was closed".to_owned()));
                }
                let now = Instant::now();
                let id = entries.free_id(now).ok_or(Miss::Busy)?;
                packet.octets[..2].copy_from_slice(&id.to_be_bytes());
                match self.io.try_send(&packet.octets) {
                    Ok(_) => {
                        self.upstream.health.asked(now);
                        return Ok(entries.insert(id, packet, now));
                    }
                    // A new socket is not known to be writable yet.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        drop(entries);
                        let why = error.to_string();
                        self.pending.close(|| Reply::Unreachable(why.clone()));
                        return Err(Miss::Unreachable(why));
                    }
                }
            }
            self.io.writable().await.map_err(|error| Miss::Unreachable(error.to_string()))?;
        }
    }
}

/// Reads a socket for as long as it is open.
async fn read(socket: Arc<Socket>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match socket.io.recv(&mut buffer).await {
            Ok(length) => length,
            Err(error) => {
                // ICMP: nobody listens there, or no way leads there. All that is under way goes elsewhere at once.
                let why = error.to_string();
                socket.pending.close(|| Reply::Unreachable(why.clone()));
                return;
            }
        };
        let now = Instant::now();
        match socket.pending.take(&buffer[..length], now) {
            Taken::Answer(after) => {
                socket.upstream.health.answered(after, now);
                let entries = socket.pending.lock();
                if entries.is_empty() {
                    // Nothing else is awaited, nor sent while this lock is held, so the call that would find nothing is spared:
                    // readiness is forgotten as if it had been made. Something that nobody asked for is read with the next answer.
                    let _ = socket.io.try_io(Interest::READABLE, || -> io::Result<()> { Err(io::ErrorKind::WouldBlock.into()) });
                }
            }
            Taken::Stray => {
                if socket.strays.fetch_add(1, Ordering::Relaxed) + 1 >= STRAYS {
                    socket.pending.close(|| Reply::Doubtful);
                    return;
                }
            }
        }
    }
}
