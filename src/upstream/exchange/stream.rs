//! DNS over TCP and TLS: one connection for each upstream, with pipelined queries.
//!
//! RFC 7766 section 6.2.1 recommends reusing connections, section 6.2.1.1 pipelining. If a
//! connection ends, its queries in flight are sent again on a new one.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::packet::Packet;
use super::pending::{Delivery, MAX_STRAYS, Pending, PendingOutcome};
use super::reconnect::{Answered, ConnectError, LostConnections, MAX_EXCLUSIVE_CONNECTIONS};
use super::{AttemptError, Upstream};
use crate::upstream::Protocol;
use crate::wire::HEADER_BYTES;

/// Limit on queries in flight on a connection, even during its handshake.
const MAX_IN_FLIGHT: usize = 4096;

/// Limit on queries sent in one write.
const MAX_QUERIES_PER_WRITE: usize = 256;

/// Time limit for opening a connection, including the TLS handshake.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Time limit for a pending response, for one message, and for one write.
const IO_TIMEOUT: Duration = Duration::from_secs(3);

/// Time after which an idle connection is closed.
///
/// RFC 7766 section 6.2.3 recommends a few seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit for reading the remaining responses when a write fails.
const LAST_RESPONSES_TIMEOUT: Duration = Duration::from_millis(100);

/// The connections to one upstream.
#[derive(Debug)]
pub(super) struct StreamLink {
    /// The connection that queries share, if it is open.
    shared: Mutex<Option<Arc<UpstreamConnection>>>,
    /// One permit for each connection that carries a single query.
    exclusive_permits: Arc<Semaphore>,
    /// Number of responses received on all connections.
    responses: AtomicUsize,
}

impl Default for StreamLink {
    fn default() -> Self {
        Self {
            shared: Mutex::default(),
            exclusive_permits: Arc::new(Semaphore::new(MAX_EXCLUSIVE_CONNECTIONS)),
            responses: AtomicUsize::new(0),
        }
    }
}

/// A connection from the view of its queries; a separate task reads and writes.
#[derive(Debug)]
struct UpstreamConnection {
    pending: Pending,
    queue: mpsc::Sender<Vec<u8>>,
    /// Number of responses received on this connection.
    responses: AtomicUsize,
    /// Permit of a connection that ends after its first response.
    exclusive: Option<OwnedSemaphorePermit>,
}

/// Sends a query on the upstream's connection, which is opened if there is none.
///
/// If the connection ends, the query is sent again on the next one. An `exclusive` query gets its
/// own connection if possible.
///
/// # Errors
/// Returns [`AttemptError::Busy`] if too many queries are in flight.
pub(super) async fn exchange(
    upstream: &Arc<Upstream>,
    packet: &Packet,
    exclusive: bool,
) -> Result<PendingOutcome, AttemptError> {
    let mut lost = LostConnections::default();
    loop {
        let connection = upstream.link.connection(upstream, exclusive || lost.need_exclusive());
        let before = connection.responses(upstream);
        // Without a receiver, the connection has just ended: take the next one.
        let Some(reply) = connection.send(upstream, packet)? else { continue };
        let reason = match reply.await {
            Ok(PendingOutcome::Disconnected(reason)) => reason,
            Ok(outcome) => return Ok(outcome),
            Err(_) => "the connection was closed".to_owned(),
        };
        match lost.record(Answered::between(before, connection.responses(upstream))) {
            Some(pause) if pause.is_zero() => {}
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Ok(PendingOutcome::Unreachable(reason)),
        }
    }
}

impl StreamLink {
    /// Returns the open connection, or starts to open a new one.
    ///
    /// An `exclusive` connection is always new, unless there are too many of them.
    fn connection(&self, upstream: &Arc<Upstream>, exclusive: bool) -> Arc<UpstreamConnection> {
        if exclusive && let Ok(permit) = Arc::clone(&self.exclusive_permits).try_acquire_owned() {
            return UpstreamConnection::open(upstream, Some(permit));
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) =
            shared.as_ref().filter(|connection| !connection.pending.is_closed())
        {
            return Arc::clone(connection);
        }
        Arc::clone(shared.insert(UpstreamConnection::open(upstream, None)))
    }
}

impl UpstreamConnection {
    /// Starts to open a connection; queries can be sent at once.
    fn open(upstream: &Arc<Upstream>, exclusive: Option<OwnedSemaphorePermit>) -> Arc<Self> {
        let (queue, queued) = mpsc::channel(MAX_IN_FLIGHT);
        let connection = Arc::new(Self {
            pending: Pending::new(MAX_IN_FLIGHT),
            queue,
            responses: AtomicUsize::new(0),
            exclusive,
        });
        upstream.connector.runtime.spawn(run_connection(
            Arc::clone(&connection),
            Arc::clone(upstream),
            queued,
        ));
        connection
    }

    /// Sends a query under a free ID and returns the receiver of its outcome.
    ///
    /// Returns `None` if the connection has ended.
    fn send(
        &self,
        upstream: &Upstream,
        packet: &Packet,
    ) -> Result<Option<oneshot::Receiver<PendingOutcome>>, AttemptError> {
        let now = Instant::now();
        let mut table = self.pending.lock();
        if table.is_closed() {
            return Ok(None);
        }
        let id = table.free_id(now).ok_or(AttemptError::Busy)?;
        let packet = packet.with_id(id);
        match self.queue.try_send(packet.framed()) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(AttemptError::Busy),
            Err(TrySendError::Closed(_)) => {
                // The task of the connection is about to close the table.
                drop(table);
                self.disconnect();
                return Ok(None);
            }
        }
        // The query must be recorded before its response can arrive: otherwise, it would count as
        // unanswered forever.
        upstream.health.record_query(now);
        Ok(Some(table.insert(id, packet, now)))
    }

    /// Returns the numbers of responses on this connection and on all connections.
    fn responses(&self, upstream: &Upstream) -> [usize; 2] {
        [&self.responses, &upstream.link.responses].map(|count| count.load(Ordering::Relaxed))
    }

    /// Ends all queries in flight, so that they are sent again elsewhere.
    fn disconnect(&self) {
        self.pending.close(|| PendingOutcome::Disconnected("the connection was closed".to_owned()));
    }
}

/// Opens a connection and serves it until it ends.
async fn run_connection(
    connection: Arc<UpstreamConnection>,
    upstream: Arc<Upstream>,
    queued: mpsc::Receiver<Vec<u8>>,
) {
    // If this task is cancelled or panics, the guard still ends its queries.
    let closing = CloseOnDrop(&connection);
    let reply = match timeout(CONNECT_TIMEOUT, connect(&upstream)).await {
        Ok(Ok(UpstreamStream::Tcp(stream))) => serve(&connection, &upstream, stream, queued).await,
        Ok(Ok(UpstreamStream::Tls(stream))) => serve(&connection, &upstream, *stream, queued).await,
        Ok(Err(ConnectError { reason, closed: true })) => ConnectionEnd::Disconnected(reason),
        Ok(Err(ConnectError { reason, closed: false })) => ConnectionEnd::Unreachable(reason),
        Err(_) => ConnectionEnd::Unreachable(format!(
            "no connection within {} s",
            CONNECT_TIMEOUT.as_secs()
        )),
    };
    connection.pending.close(|| match &reply {
        ConnectionEnd::Unreachable(reason) => PendingOutcome::Unreachable(reason.clone()),
        ConnectionEnd::Disconnected(reason) => PendingOutcome::Disconnected(reason.clone()),
        ConnectionEnd::Strays => PendingOutcome::Suspicious,
    });
    drop(closing);
}

/// Guard that ends all pending queries of a connection when dropped.
struct CloseOnDrop<'a>(&'a UpstreamConnection);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.disconnect();
    }
}

/// Reason for the end of a connection.
enum ConnectionEnd {
    /// The connection could not be opened; the text gives the reason.
    Unreachable(String),
    /// The open connection is no longer usable; the text gives the reason.
    Disconnected(String),
    /// Too many messages answered no pending query.
    Strays,
}

/// A connected stream, with or without TLS.
enum UpstreamStream {
    Tcp(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// Opens a connection to the upstream, with a TLS handshake if configured.
async fn connect(upstream: &Upstream) -> Result<UpstreamStream, ConnectError> {
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
    let mut reading = pin!(read_responses(connection, upstream, BufReader::new(reader)));
    tokio::select! {
        error = write_queries(writer, queued) => {
            // The upstream has closed the connection, but may have answered before that.
            timeout(LAST_RESPONSES_TIMEOUT, reading).await.unwrap_or_else(|_| {
                ConnectionEnd::Disconnected(format!("cannot write to the connection: {error}"))
            })
        },
        ended = &mut reading => ended,
    }
}

/// Writes queued queries in batches; returns the error of a failed write.
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
            Ok(Ok([])) => {
                return ConnectionEnd::Disconnected("it closed the connection".to_owned());
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                return ConnectionEnd::Disconnected(format!("the connection broke: {error}"));
            }
            Err(_) => match connection.pending.oldest_sent() {
                Some(sent) if sent.elapsed() >= IO_TIMEOUT => {
                    return ConnectionEnd::Disconnected(
                        "it does not respond on the connection".to_owned(),
                    );
                }
                None if idle_since.elapsed() >= IDLE_TIMEOUT => {
                    return ConnectionEnd::Disconnected("the connection was idle".to_owned());
                }
                _ => continue,
            },
        }
        let message = match timeout(IO_TIMEOUT, read_message(&mut reader)).await {
            Ok(Ok(message)) => message,
            Ok(Err(error)) => {
                return ConnectionEnd::Disconnected(format!("the connection broke: {error}"));
            }
            Err(_) => {
                return ConnectionEnd::Disconnected("it sent an incomplete message".to_owned());
            }
        };
        let now = Instant::now();
        idle_since = now;
        match connection.pending.deliver(&message, now) {
            Delivery::Response(after) => {
                connection.responses.fetch_add(1, Ordering::Relaxed);
                upstream.link.responses.fetch_add(1, Ordering::Relaxed);
                upstream.health.record_response(after, now);
                if connection.exclusive.is_some() {
                    return ConnectionEnd::Disconnected("its query was answered".to_owned());
                }
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
