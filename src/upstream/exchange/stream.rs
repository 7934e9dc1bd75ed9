//! DNS over TCP and TLS: one connection for each upstream, with pipelined queries.
//!
//! RFC 7766 section 6.2.1 asks for the reuse and section 6.2.1.1 for the pipelining.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::packet::Packet;
use super::pending::{Delivery, Pending, PendingOutcome};
use super::udp::MAX_STRAYS;
use super::{AttemptError, Upstream};
use crate::upstream::Protocol;
use crate::wire::HEADER_BYTES;

/// Limit on queries in flight on a connection, even during its handshake.
const MAX_IN_FLIGHT: usize = 4096;

/// Limit on queries sent in one write.
const MAX_QUERIES_PER_WRITE: usize = 256;

/// Time limit for opening a connection, TLS handshake included.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Time limit for a pending response, for one message, and for one write.
const IO_TIMEOUT: Duration = Duration::from_secs(3);

/// Time after which an idle connection is closed.
///
/// RFC 7766 section 6.2.3 recommends a few seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The connection to one upstream, if it is open.
#[derive(Debug, Default)]
pub(super) struct StreamLink(Mutex<Option<Arc<UpstreamConnection>>>);

/// A connection as queries see it; a task of its own reads and writes.
#[derive(Debug)]
struct UpstreamConnection {
    pending: Pending,
    queue: mpsc::Sender<Vec<u8>>,
    /// Whether a response has arrived on this connection.
    has_answered: AtomicBool,
}

/// Queries on the upstream's connection and opens one if there is none.
///
/// # Errors
/// Returns [`AttemptError::Busy`] if too many queries are in flight.
pub(super) async fn exchange(
    upstream: &Arc<Upstream>,
    packet: &Packet,
) -> Result<PendingOutcome, AttemptError> {
    let mut may_retry = true;
    loop {
        let connection = upstream.link.connection(upstream);
        let has_answered = connection.has_answered.load(Ordering::Relaxed);
        let now = Instant::now();
        let reply = {
            let mut table = connection.pending.lock();
            if table.is_closed() {
                // The connection was closed this moment: take the next one.
                continue;
            }
            let id = table.free_id(now).ok_or(AttemptError::Busy)?;
            let packet = packet.with_id(id);
            connection.queue.try_send(packet.framed()).map_err(|_| AttemptError::Busy)?;
            // The health must know of the query before its response can arrive: otherwise the
            // upstream would seem to owe a response for ever.
            upstream.health.record_query(now);
            table.insert(id, packet, now)
        };
        drop(connection);
        match reply
            .await
            .unwrap_or_else(|_| PendingOutcome::Unreachable("the connection was closed".to_owned()))
        {
            // Either side may close an idle connection at any time, also as a query is sent.
            PendingOutcome::Unreachable(_) if has_answered && may_retry => may_retry = false,
            reply => return Ok(reply),
        }
    }
}

impl StreamLink {
    /// Returns the open connection, or starts to open a new one.
    fn connection(&self, upstream: &Arc<Upstream>) -> Arc<UpstreamConnection> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) =
            current.as_ref().filter(|connection| !connection.pending.is_closed())
        {
            return Arc::clone(connection);
        }
        let (queue, queued) = mpsc::channel(MAX_IN_FLIGHT);
        let connection = Arc::new(UpstreamConnection {
            pending: Pending::new(MAX_IN_FLIGHT),
            queue,
            has_answered: AtomicBool::new(false),
        });
        *current = Some(Arc::clone(&connection));
        upstream.connector.runtime.spawn(run_connection(
            Arc::clone(&connection),
            Arc::clone(upstream),
            queued,
        ));
        connection
    }
}

/// Opens a connection and serves it until it ends.
async fn run_connection(
    connection: Arc<UpstreamConnection>,
    upstream: Arc<Upstream>,
    queued: mpsc::Receiver<Vec<u8>>,
) {
    // If this task is cancelled or panics, its queries must still end.
    let closing = CloseOnDrop(&connection);
    let reply = match timeout(CONNECT_TIMEOUT, connect(&upstream)).await {
        Ok(Ok(UpstreamStream::Tcp(stream))) => serve(&connection, &upstream, stream, queued).await,
        Ok(Ok(UpstreamStream::Tls(stream))) => serve(&connection, &upstream, *stream, queued).await,
        Ok(Err(reason)) => ConnectionEnd::Unreachable(reason),
        Err(_) => ConnectionEnd::Unreachable(format!(
            "no connection within {} s",
            CONNECT_TIMEOUT.as_secs()
        )),
    };
    connection.pending.close(|| match &reply {
        ConnectionEnd::Unreachable(reason) => PendingOutcome::Unreachable(reason.clone()),
        ConnectionEnd::Strays => PendingOutcome::Suspicious,
    });
    drop(closing);
}

/// Ends all pending queries of a connection when dropped.
struct CloseOnDrop<'a>(&'a UpstreamConnection);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0
            .pending
            .close(|| PendingOutcome::Unreachable("the connection was closed".to_owned()));
    }
}

/// Reason for the end of a connection.
enum ConnectionEnd {
    Unreachable(String),
    /// Too many messages answered no query.
    Strays,
}

/// A connected transport.
enum UpstreamStream {
    Tcp(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// Opens a connection to the upstream, with a TLS handshake where configured.
async fn connect(upstream: &Upstream) -> Result<UpstreamStream, String> {
    let stream = connect_tcp(upstream).await?;
    match &upstream.target.protocol {
        Protocol::Tls { name } => {
            let stream = upstream
                .connector
                .trust_anchors
                .handshake(stream, name.as_deref(), upstream.target.address.ip(), false)
                .await?;
            Ok(UpstreamStream::Tls(Box::new(stream)))
        }
        _ => Ok(UpstreamStream::Tcp(stream)),
    }
}

/// Opens a TCP connection to the upstream.
pub(super) async fn connect_tcp(upstream: &Upstream) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(upstream.target.address)
        .await
        .map_err(|error| format!("cannot connect over TCP: {error}"))?;
    // Each query is written at once, so Nagle's algorithm would only delay it.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Writes queries and reads responses until either side closes the connection.
async fn serve<S: AsyncRead + AsyncWrite>(
    connection: &UpstreamConnection,
    upstream: &Upstream,
    stream: S,
    queued: mpsc::Receiver<Vec<u8>>,
) -> ConnectionEnd {
    let (reader, writer) = tokio::io::split(stream);
    tokio::select! {
        error = write_queries(writer, queued) => {
            ConnectionEnd::Unreachable(format!("cannot write to the connection: {error}"))
        },
        ended = read_responses(connection, upstream, BufReader::new(reader)) => ended,
    }
}

/// Writes queued queries, many at a time; returns the error that ended it.
async fn write_queries<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut queued: mpsc::Receiver<Vec<u8>>,
) -> io::Error {
    let mut frames = Vec::new();
    loop {
        frames.clear();
        if queued.recv_many(&mut frames, MAX_QUERIES_PER_WRITE).await == 0 {
            return io::ErrorKind::NotConnected.into();
        }
        let written = async {
            writer.write_all(&frames.concat()).await?;
            writer.flush().await
        };
        match timeout(IO_TIMEOUT, written).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(_) => return io::ErrorKind::TimedOut.into(),
        }
    }
}

/// Reads responses until the connection fails, is idle or sends strays.
async fn read_responses<R: AsyncRead + Unpin>(
    connection: &UpstreamConnection,
    upstream: &Upstream,
    mut reader: BufReader<R>,
) -> ConnectionEnd {
    let (mut strays, mut idle_since) = (0, Instant::now());
    loop {
        match timeout(IO_TIMEOUT, reader.fill_buf()).await {
            Ok(Ok([])) => return ConnectionEnd::Unreachable("it closed the connection".to_owned()),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                return ConnectionEnd::Unreachable(format!("the connection broke: {error}"));
            }
            Err(_) => match connection.pending.oldest_sent() {
                Some(sent) if sent.elapsed() >= IO_TIMEOUT => {
                    return ConnectionEnd::Unreachable(
                        "it does not respond on the connection".to_owned(),
                    );
                }
                None if idle_since.elapsed() >= IDLE_TIMEOUT => {
                    return ConnectionEnd::Unreachable("the connection was idle".to_owned());
                }
                _ => continue,
            },
        }
        let message = match timeout(IO_TIMEOUT, read_message(&mut reader)).await {
            Ok(Ok(message)) => message,
            Ok(Err(error)) => {
                return ConnectionEnd::Unreachable(format!("the connection broke: {error}"));
            }
            Err(_) => {
                return ConnectionEnd::Unreachable("it sent an incomplete message".to_owned());
            }
        };
        let now = Instant::now();
        idle_since = now;
        match connection.pending.deliver(&message, now) {
            Delivery::Response(after) => {
                connection.has_answered.store(true, Ordering::Relaxed);
                upstream.health.record_response(after, now);
            }
            Delivery::Stray => {
                strays += 1;
                if strays >= MAX_STRAYS || message.len() < HEADER_BYTES {
                    return ConnectionEnd::Strays;
                }
            }
        }
    }
}

/// Reads one message with its length prefix (RFC 1035 section 4.2.2).
async fn read_message<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<Vec<u8>> {
    let length = reader.read_u16().await?;
    let mut message = vec![0; length.into()];
    reader.read_exact(&mut message).await?;
    Ok(message)
}
