//! A connection over TCP (RFC 7766) or TLS (RFC 7858).
//!
//! Clients may pipeline queries, and responses leave in the order in which they become available. A
//! query holds a permit of its connection until its response is written, and a response waits for
//! room in the queue. The server therefore stops reading from a client that does not read, and
//! closes the connection once a write times out.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, split,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, error};

use super::admission::{ConnectionPermit, UnreadBytes};
use super::connection_table::ConnectionUse;
use super::context::ServerContext;
use super::{Client, Disposition, DnsTransport, Respond, StreamCounters, StreamKind, padding};

/// Read buffer of a connection, bytes.
///
/// Room for a burst of pipelined queries. A larger message is read without it.
const READ_BUFFER_BYTES: usize = 2048;

/// Pause of the client after which nothing more has arrived before the stop.
///
/// What the kernel has received is readable at once, but the runtime may notice it a moment later.
const LAST_READ_PAUSE: Duration = Duration::from_millis(20);

/// Longest time in which queries are read after the stop, from a client that makes no pause.
const LAST_READ_TIME: Duration = Duration::from_millis(200);

/// A connection, from the point of view of its task.
pub(super) struct StreamConnection<'a, R> {
    pub(super) kind: StreamKind,
    /// Address of the client.
    pub(super) source: SocketAddr,
    /// Address of this server that the client connected to.
    pub(super) destination: SocketAddr,
    /// State shared by all connections.
    pub(super) context: &'a Arc<ServerContext<R>>,
    /// Once this tells it to close, the connection reads only what has arrived.
    pub(super) permit: &'a Arc<ConnectionPermit>,
}

/// Reason for closing a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CloseReason {
    /// The client closed its side between two messages.
    Closed,
    /// The idle timeout expired.
    Idle,
    /// A message did not arrive completely in time.
    MessageTimeout,
    /// The message was empty, or the client closed its side before the end of it.
    Malformed,
    /// The connection was reset, or reading failed.
    Broken,
    /// A response could not be written.
    Unwritable,
    /// The source has no access.
    Refused,
    /// The server stops.
    Stopped,
    /// The connection was closed to make room for others.
    Evicted,
}

impl CloseReason {
    /// Returns whether the client may have sent input that was not read.
    ///
    /// In that case, closing the socket makes the kernel send a reset, which can destroy responses
    /// that the client has not read yet.
    fn leaves_unread_input(self) -> bool {
        matches!(self, Self::MessageTimeout | Self::Malformed | Self::Refused | Self::Stopped)
    }
}

impl<R: Respond> StreamConnection<'_, R> {
    /// Serves the connection until it closes; without access, refuses its first query.
    pub(super) async fn serve(
        self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        allowed: bool,
    ) {
        let reason = if allowed {
            self.serve_queries(&mut stream).await
        } else {
            self.refuse_first_query(&mut stream).await
        };
        self.record_close(reason);
        if reason.leaves_unread_input() {
            tokio::select! {
                biased;
                () = self.permit.evicted() => {}
                () = close_gracefully(&mut stream) => {}
            }
        } else if !matches!(reason, CloseReason::Broken | CloseReason::Unwritable) {
            // Without close_notify, the client would mistake the end for a truncation.
            let _ = timeout(CLOSE_STEP_TIMEOUT, stream.shutdown()).await;
        }
    }

    /// Answers queries until the connection ends, then writes the pending responses.
    async fn serve_queries(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> CloseReason {
        let (reading, writing) = split(stream);
        let (in_flight, queued) =
            self.context.rules.limit(|limits| (limits.in_flight, limits.queued_bytes));
        let in_flight = in_flight.clamp(1, 1 << 16);
        let queued = u32::try_from(queued).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        let (sender, responses) = mpsc::channel(in_flight);
        let queue = ResponseQueue {
            sender,
            room: Arc::new(Semaphore::new(queued as usize)),
            size: queued,
            permit: Arc::clone(self.permit),
        };
        // The tasks are aborted when this function returns.
        let mut deferred = JoinSet::new();
        let permits = Arc::new(Semaphore::new(in_flight));
        let mut writing = pin!(self.write(writing, responses));
        let reason = tokio::select! {
            reason = self.read(reading, queue, permits, in_flight, &mut deferred) => reason,
            _ = &mut writing => CloseReason::Unwritable,
        };
        if matches!(reason, CloseReason::Broken | CloseReason::Unwritable) {
            return reason;
        }
        let drain_limit = if reason == CloseReason::Evicted {
            // A new connection takes the place of this one. Send the responses that are ready soon,
            // if the client reads them: a query read just before the eviction may be in progress.
            if self.permit.is_blocked() { Duration::ZERO } else { CLOSE_STEP_TIMEOUT }
        } else {
            self.context
                .rules
                .limit(|limits| limits.response_timeout.saturating_add(limits.write_timeout))
        };
        // The queue ends with the last pending response.
        let written = tokio::select! {
            biased;
            written = timeout(drain_limit, writing) => written,
            () = self.permit.evicted(), if reason != CloseReason::Evicted => {
                return CloseReason::Unwritable;
            }
        };
        self.reap_finished(&mut deferred);
        if matches!(written, Ok(Ok(()))) { reason } else { CloseReason::Unwritable }
    }

    /// Reads queries and starts their responses until no more queries may be read.
    async fn read(
        &self,
        reading: impl AsyncRead + Unpin,
        queue: ResponseQueue,
        permits: Arc<Semaphore>,
        in_flight: usize,
        deferred: &mut JoinSet<()>,
    ) -> CloseReason {
        let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, reading);
        let mut stopped_at = None;
        loop {
            let next = async {
                let permit =
                    Arc::clone(&permits).acquire_owned().await.map_err(|_| CloseReason::Broken)?;
                // The permit of the message being read is not a pending response.
                self.wait_for_message(&mut reader, || permits.available_permits() + 1 < in_flight)
                    .await?;
                let message = timeout(
                    self.context.rules.limit(|limits| limits.message_timeout),
                    read_message(&mut reader),
                );
                match self.permit.await_client(message).await {
                    Ok(message) => message.map(|request| (request, permit)),
                    Err(_) => Err(CloseReason::MessageTimeout),
                }
            };
            let mut next = pin!(next);
            let next = tokio::select! {
                biased;
                () = self.permit.closed() => {
                    let stopped = stopped_at.get_or_insert_with(Instant::now).elapsed();
                    if self.permit.is_evicted() || stopped > LAST_READ_TIME {
                        return self.why_closed();
                    }
                    // The client may have asked before the stop.
                    match timeout(LAST_READ_PAUSE, next.as_mut()).await {
                        Ok(next) => next,
                        Err(_) => return self.why_closed(),
                    }
                }
                next = next.as_mut() => next,
            };
            let (request, permit) = match next {
                Ok(next) => next,
                Err(reason) => return reason,
            };
            self.permit.touch();
            self.reap_finished(deferred);
            self.respond(request, permit, &queue, deferred).await;
        }
    }

    /// Waits for the first byte of a message, up to the idle timeout.
    async fn wait_for_message(
        &self,
        reader: &mut (impl AsyncBufReadExt + Unpin),
        has_pending: impl Fn() -> bool,
    ) -> Result<(), CloseReason> {
        // Never zero, so that the loop below always waits.
        let idle_timeout =
            self.context.rules.limit(|limits| limits.idle_timeout).max(Duration::from_millis(10));
        loop {
            let left = idle_timeout.saturating_sub(self.permit.idle_time());
            match timeout(left, reader.fill_buf()).await {
                Ok(Ok([])) => return Err(CloseReason::Closed),
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) => return Err(CloseReason::Broken),
                // A connection with a pending response is not idle.
                Err(_) if has_pending() => self.permit.touch(),
                Err(_) if self.permit.idle_time() >= idle_timeout => return Err(CloseReason::Idle),
                Err(_) => {}
            }
        }
    }

    /// Responds at once if possible, otherwise in a task that delays no other query.
    async fn respond(
        &self,
        request: Vec<u8>,
        permit: OwnedSemaphorePermit,
        queue: &ResponseQueue,
        deferred: &mut JoinSet<()>,
    ) {
        let Self { kind, source, destination, context, .. } = *self;
        let client = Client { source, destination, transport: DnsTransport::Stream(kind) };
        let sampled = self.counters().count_query();
        let received = context.rules.load().tap.receive();
        let padded = padding::is_wanted(&request, kind);
        let pad = move |mut response: Vec<u8>| {
            if padded {
                padding::pad(&mut response);
            }
            response
        };
        let mut response = Vec::with_capacity(512);
        let ready = match context.responder.respond_alone(&request, &client, &mut response) {
            Disposition::Ready => Some(response),
            Disposition::Silent => None,
            Disposition::Deferred => {
                let (context, queue) = (Arc::clone(context), queue.clone());
                let in_progress = self.permit.begin(ConnectionUse::Query);
                deferred.spawn(async move {
                    let _in_progress = in_progress;
                    if let Some(response) =
                        context.await_response(kind, request, client, received).await
                    {
                        queue.push(pad(response), permit).await;
                    }
                });
                return;
            }
        };
        if let Some(received) = received {
            context.rules.load().tap.report(&client, &request, ready.as_deref(), received);
        }
        if let Some(sampled) = sampled {
            self.counters().times.immediate.observe(sampled.elapsed());
        }
        if let Some(response) = ready {
            queue.push(pad(response), permit).await;
        }
    }

    /// Removes finished tasks, so that the set holds only queries in flight.
    fn reap_finished(&self, deferred: &mut JoinSet<()>) {
        while let Some(ended) = deferred.try_join_next() {
            if ended.is_err_and(|failure| failure.is_panic()) {
                self.context.counters.panics.increment();
            }
        }
    }

    /// Writes responses as they become available.
    ///
    /// Returns once all senders of the queue are gone.
    async fn write(
        &self,
        mut writing: impl AsyncWrite + Unpin,
        mut responses: mpsc::Receiver<QueuedResponse>,
    ) -> io::Result<()> {
        /// Maximum bytes of available responses that one write combines.
        const WRITE_BATCH_BYTES: usize = 16 * 1024;
        let mut bytes = Vec::new();
        let mut gathered = Vec::new();
        while let Some(first) = responses.recv().await {
            let mut next = Some(first);
            while let Some(response) = next {
                append_framed(&mut bytes, &response.bytes);
                gathered.push(response);
                next =
                    if bytes.len() < WRITE_BATCH_BYTES { responses.try_recv().ok() } else { None };
            }
            let write = self.write_tracked(&mut writing, &bytes);
            match timeout(self.context.rules.limit(|limits| limits.write_timeout), write).await {
                Ok(Ok(())) => {
                    self.counters().responses.add(gathered.len() as u64);
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    self.counters().write_timeouts.increment();
                    return Err(ErrorKind::TimedOut.into());
                }
            }
            self.permit.touch();
            gathered.clear();
            bytes.clear();
            bytes.shrink_to(WRITE_BATCH_BYTES);
        }
        Ok(())
    }

    /// Writes and flushes `bytes`; the connection is stalled while the client takes none.
    async fn write_tracked(
        &self,
        writing: &mut (impl AsyncWrite + Unpin),
        bytes: &[u8],
    ) -> io::Result<()> {
        let blocks = ConnectionUse::FullBuffer;
        let mut rest = bytes;
        while !rest.is_empty() {
            let write = writing.write(rest);
            let written = self.permit.await_room(rest.len(), blocks, write).await?;
            if written == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            rest = rest.get(written..).unwrap_or_default();
        }
        self.permit.await_room(bytes.len(), blocks, writing.flush()).await
    }

    /// Returns why the connection must close before its client closes it.
    fn why_closed(&self) -> CloseReason {
        if self.permit.is_evicted() { CloseReason::Evicted } else { CloseReason::Stopped }
    }

    /// Refuses the first query, if it arrives in time.
    async fn refuse_first_query(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> CloseReason {
        let (reading, mut writing) = split(stream);
        let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, reading);
        let message_timeout = self.context.rules.limit(|limits| limits.message_timeout);
        let request = tokio::select! {
            biased;
            () = self.permit.closed() => return self.why_closed(),
            request = timeout(message_timeout, read_message(&mut reader)) => match request {
                Ok(Ok(request)) => request,
                Ok(Err(reason)) => return reason,
                Err(_) => return CloseReason::MessageTimeout,
            },
        };
        let Self { kind, source, destination, context, .. } = *self;
        let (received, mut response) = (context.rules.load().tap.receive(), Vec::new());
        let refused = context.responder.refuse(&request, &mut response);
        if let Some(received) = received {
            let client = Client { source, destination, transport: DnsTransport::Stream(kind) };
            context.rules.load().tap.report(
                &client,
                &request,
                refused.then_some(&*response),
                received,
            );
        }
        if !refused {
            return CloseReason::Refused;
        }
        let mut bytes = Vec::with_capacity(response.len() + 2);
        append_framed(&mut bytes, &response);
        match timeout(
            self.context.rules.limit(|limits| limits.write_timeout),
            write_and_flush(&mut writing, &bytes),
        )
        .await
        {
            Ok(Ok(())) => {
                self.counters().responses.increment();
                CloseReason::Refused
            }
            _ => CloseReason::Unwritable,
        }
    }

    /// Returns the counters of this kind of connection.
    fn counters(&self) -> &StreamCounters {
        self.context.counters.of(self.kind)
    }

    /// Logs and counts the end of a connection.
    fn record_close(&self, reason: CloseReason) {
        debug!(?reason, "connection closed");
        match reason {
            CloseReason::Idle => self.counters().idle_timeouts.increment(),
            CloseReason::MessageTimeout => self.counters().message_timeouts.increment(),
            CloseReason::Malformed | CloseReason::Broken => self.counters().broken.increment(),
            // Write timeouts and evictions are counted where they occur.
            CloseReason::Closed
            | CloseReason::Unwritable
            | CloseReason::Refused
            | CloseReason::Stopped
            | CloseReason::Evicted => 0,
        };
    }
}

/// Reads one message with its length prefix (RFC 1035 section 4.2.2).
async fn read_message(reader: &mut (impl AsyncBufReadExt + Unpin)) -> Result<Vec<u8>, CloseReason> {
    let close_reason = |error: io::Error| {
        if error.kind() == ErrorKind::UnexpectedEof {
            CloseReason::Malformed
        } else {
            CloseReason::Broken
        }
    };
    let length = reader.read_u16().await.map_err(close_reason)?;
    if length == 0 {
        return Err(CloseReason::Malformed);
    }
    // The buffer grows with the data, so that a length prefix alone allocates little.
    let mut request = Vec::with_capacity(usize::from(length.min(512)));
    let read = reader.take(length.into()).read_to_end(&mut request).await.map_err(close_reason)?;
    if read == usize::from(length) { Ok(request) } else { Err(CloseReason::Malformed) }
}

/// Writes all bytes and flushes the buffer of an encrypted stream.
async fn write_and_flush(writing: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    writing.write_all(bytes).await?;
    writing.flush().await
}

/// Appends `response` with its length prefix.
///
/// Omits a response too long for the prefix: it would corrupt the stream.
pub(super) fn append_framed(bytes: &mut Vec<u8>, response: &[u8]) {
    let Ok(length) = u16::try_from(response.len()) else {
        error!(bytes = response.len(), "response too long for TCP, dropped; please report this");
        return;
    };
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(response);
}

/// Time limit for each step of closing a connection.
const CLOSE_STEP_TIMEOUT: Duration = Duration::from_millis(300);

/// Closes the sending side, then discards input: the client can read all responses.
async fn close_gracefully(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    /// Bytes of input to discard before closing anyway.
    const MAX_DISCARDED_BYTES: usize = 256 * 1024;
    if !matches!(timeout(CLOSE_STEP_TIMEOUT, stream.shutdown()).await, Ok(Ok(()))) {
        return;
    }
    let discard = async {
        let mut scratch = [0; 1024];
        let mut left = MAX_DISCARDED_BYTES;
        while let Ok(read @ 1..) = stream.read(&mut scratch).await {
            left = left.saturating_sub(read);
            if left == 0 {
                break;
            }
        }
    };
    let _ = timeout(CLOSE_STEP_TIMEOUT, discard).await;
}

/// A response that waits to be written; dropping it frees its permit and its room.
struct QueuedResponse {
    bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
    _room: OwnedSemaphorePermit,
    _unread: Option<UnreadBytes>,
}

/// Queue of responses that wait for a connection's writer.
#[derive(Clone)]
struct ResponseQueue {
    /// Has room for every query in flight, so sending never waits.
    sender: mpsc::Sender<QueuedResponse>,
    /// Bytes that may still be queued.
    room: Arc<Semaphore>,
    /// Capacity of the queue, in bytes.
    size: u32,
    permit: Arc<ConnectionPermit>,
}

impl ResponseQueue {
    /// Queues a response once there is room.
    ///
    /// The wait ends at the latest when the writer fails and the connection closes.
    async fn push(&self, bytes: Vec<u8>, permit: OwnedSemaphorePermit) {
        let unread = self.permit.is_blocked().then(|| self.permit.hold(bytes.len()));
        let room = u32::try_from(bytes.len()).unwrap_or(u32::MAX).clamp(1, self.size);
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(room).await else { return };
        let response = QueuedResponse { bytes, _permit: permit, _room: room, _unread: unread };
        let _ = self.sender.send(response).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Limits;
    use crate::server::admission::Admission;
    use crate::server::context::tests::context;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::io::{ReadBuf, duplex, join};
    use tokio_util::sync::CancellationToken;

    /// Evicts a connection while its task reads a query.
    struct EvictingReader<R> {
        reading: R,
        admission: Arc<Admission>,
    }

    impl<R: AsyncRead + Unpin> AsyncRead for EvictingReader<R> {
        fn poll_read(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let Self { reading, admission } = self.get_mut();
            admission.make_room();
            Pin::new(reading).poll_read(context, buffer)
        }
    }

    #[tokio::test]
    async fn a_query_that_was_read_before_the_eviction_is_answered() {
        let context = context(Limits::default());
        let (admission, source) = (&context.admission, SocketAddr::from(([127, 0, 0, 1], 9)));
        let permit =
            admission.admit(StreamKind::Tcp, source.ip(), false, CancellationToken::new()).unwrap();
        let (mut client, server) = duplex(1024);
        client.write_all(b"\0\x05later").await.unwrap();
        let (reading, writing) = split(server);
        let reading = EvictingReader { reading, admission: Arc::clone(admission) };
        let connection = StreamConnection {
            kind: StreamKind::Tcp,
            source,
            destination: source,
            context: &context,
            permit: &permit,
        };
        connection.serve(join(reading, writing), true).await;
        assert!(permit.is_evicted());
        let mut response = Vec::new();
        client.read_to_end(&mut response).await.unwrap();
        assert_eq!(response, b"\0\x12tcp later, at last");
    }
}
