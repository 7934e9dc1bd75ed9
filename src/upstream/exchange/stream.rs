//! Messages on a connection, TCP or TLS: one for each upstream, which carries many questions side by side (RFC 7766 section 6.2.1).

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::pending::{Pending, Reply, Taken};
use super::question::Packet;
use super::udp::STRAYS;
use super::{Miss, Upstream};
use crate::upstream::Protocol;
use crate::wire::HEADER_BYTES;

/// Questions under way on one connection, those that wait for its handshake included.
const MOST: usize = 4096;

/// Questions that go out in one write.
const WRITTEN: usize = 256;

/// How long it may take until a connection can be written to, handshakes included.
pub(super) const CONNECT: Duration = Duration::from_secs(3);

/// How long a connection may be silent while it owes an answer, and how long one message may take to come in.
const SILENCE: Duration = Duration::from_secs(3);

/// A connection without questions is closed after this (RFC 7766 section 6.2.3: a few seconds).
const IDLE: Duration = Duration::from_secs(10);

/// The connection to one upstream, while there is one.
#[derive(Debug, Default)]
pub(super) struct Link(Mutex<Option<Arc<Connection>>>);

#[derive(Debug)]
struct Connection {
    pending: Pending,
    queue: mpsc::Sender<Vec<u8>>,
    /// Whether it has carried an answer.
    proven: AtomicBool,
}

/// Asks on the upstream's connection; makes one where there is none.
///
/// # Errors
/// When too much is under way.
pub(super) async fn exchange(upstream: &Arc<Upstream>, packet: &Packet) -> Result<Reply, Miss> {
    let mut again = true;
    loop {
        let connection = upstream.link.connection(upstream);
        let proven = connection.proven.load(Ordering::Relaxed);
        let now = Instant::now();
        let reply = {
            let mut entries = connection.pending.lock();
            if entries.is_closed() {
                // Just now: the next one is a new one.
                continue;
            }
            let id = entries.free_id(now).ok_or(Miss::Busy)?;
            let packet = packet.with_id(id);
            connection.queue.try_send(packet.framed()).map_err(|_| Miss::Busy)?;
            // Before its answer can be taken: else it would be owed for ever.
            upstream.health.asked(now);
            entries.insert(id, packet, now)
        };
        drop(connection);
        match reply.await.unwrap_or_else(|_| Reply::Unreachable("the connection was closed".to_owned())) {
            // Its end and our question met: connections that served are closed by either side at any time.
            Reply::Unreachable(_) if proven && again => again = false,
            reply => return Ok(reply),
        }
    }
}

impl Link {
    /// The connection in force; a new one, which is still to be made, where there is none.
    fn connection(&self, upstream: &Arc<Upstream>) -> Arc<Connection> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = current.as_ref().filter(|connection| !connection.pending.is_closed()) {
            return Arc::clone(connection);
        }
        let (queue, queued) = mpsc::channel(MOST);
        let connection = Arc::new(Connection { pending: Pending::new(MOST), queue, proven: AtomicBool::new(false) });
        *current = Some(Arc::clone(&connection));
        upstream.connector.runtime.spawn(live(Arc::clone(&connection), Arc::clone(upstream), queued));
        connection
    }
}

/// The life of a connection, from the handshake on.
async fn live(connection: Arc<Connection>, upstream: Arc<Upstream>, queued: mpsc::Receiver<Vec<u8>>) {
    // Whatever ends this task, nobody waits for it any more.
    let closing = Closing(&connection);
    let reply = match timeout(CONNECT, connect(&upstream)).await {
        Ok(Ok(Stream::Tcp(stream))) => carry(&connection, &upstream, stream, queued).await,
        Ok(Ok(Stream::Tls(stream))) => carry(&connection, &upstream, *stream, queued).await,
        Ok(Err(why)) => Ended::Unreachable(why),
        Err(_) => Ended::Unreachable(format!("no connection within {} s", CONNECT.as_secs())),
    };
    connection.pending.close(|| match &reply {
        Ended::Unreachable(why) => Reply::Unreachable(why.clone()),
        Ended::Strays => Reply::Doubtful,
    });
    drop(closing);
}

struct Closing<'a>(&'a Connection);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.pending.close(|| Reply::Unreachable("the connection was closed".to_owned()));
    }
}

/// How a connection ended.
enum Ended {
    Unreachable(String),
    /// What came was no answer to anything.
    Strays,
}

enum Stream {
    Tcp(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

async fn connect(upstream: &Upstream) -> Result<Stream, String> {
    let stream = tcp(upstream).await?;
    match &upstream.target.protocol {
        Protocol::Tls { name } => {
            let stream = upstream.connector.trust.handshake(stream, name.as_deref(), upstream.target.address.ip(), false).await?;
            Ok(Stream::Tls(Box::new(stream)))
        }
        _ => Ok(Stream::Tcp(stream)),
    }
}

/// A TCP connection to the upstream.
pub(super) async fn tcp(upstream: &Upstream) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(upstream.target.address).await.map_err(|error| format!("cannot connect over TCP: {error}"))?;
    // A question is one write, and nothing is to be gained by waiting for more.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Writes questions and reads answers until either side ends it.
async fn carry<S: AsyncRead + AsyncWrite>(
    connection: &Connection,
    upstream: &Upstream,
    stream: S,
    queued: mpsc::Receiver<Vec<u8>>,
) -> Ended {
    let (reader, writer) = tokio::io::split(stream);
    tokio::select! {
        error = write(writer, queued) => Ended::Unreachable(format!("cannot write to the connection: {error}")),
        ended = read(connection, upstream, BufReader::new(reader)) => ended,
    }
}

/// Writes what is queued, much of it at once.
async fn write<W: AsyncWrite + Unpin>(mut writer: W, mut queued: mpsc::Receiver<Vec<u8>>) -> io::Error {
    let mut frames = Vec::new();
    loop {
        frames.clear();
        if queued.recv_many(&mut frames, WRITTEN).await == 0 {
            return io::ErrorKind::NotConnected.into();
        }
        let written = async {
            writer.write_all(&frames.concat()).await?;
            writer.flush().await
        };
        match timeout(SILENCE, written).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(_) => return io::ErrorKind::TimedOut.into(),
        }
    }
}

async fn read<R: AsyncRead + Unpin>(connection: &Connection, upstream: &Upstream, mut reader: BufReader<R>) -> Ended {
    let (mut strays, mut idle_since) = (0, Instant::now());
    loop {
        match timeout(SILENCE, reader.fill_buf()).await {
            Ok(Ok([])) => return Ended::Unreachable("it closed the connection".to_owned()),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Ended::Unreachable(format!("the connection broke: {error}")),
            Err(_) => match connection.pending.oldest() {
                Some(sent) if sent.elapsed() >= SILENCE => return Ended::Unreachable("it does not answer on the connection".to_owned()),
                None if idle_since.elapsed() >= IDLE => return Ended::Unreachable("the connection was idle".to_owned()),
                _ => continue,
            },
        }
        let message = match timeout(SILENCE, message(&mut reader)).await {
            Ok(Ok(message)) => message,
            Ok(Err(error)) => return Ended::Unreachable(format!("the connection broke: {error}")),
            Err(_) => return Ended::Unreachable("it sent half a message and no more".to_owned()),
        };
        let now = Instant::now();
        idle_since = now;
        match connection.pending.take(&message, now) {
            Taken::Answer(after) => {
                connection.proven.store(true, Ordering::Relaxed);
                upstream.health.answered(after, now);
            }
            Taken::Stray => {
                strays += 1;
                if strays >= STRAYS || message.len() < HEADER_BYTES {
                    return Ended::Strays;
                }
            }
        }
    }
}

/// One message with its length before it (RFC 1035 section 4.2.2).
async fn message<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<Vec<u8>> {
    let length = reader.read_u16().await?;
    let mut message = vec![0; length.into()];
    reader.read_exact(&mut message).await?;
    Ok(message)
}
