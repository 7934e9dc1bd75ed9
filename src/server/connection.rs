//! One connection over TCP (RFC 7766), plain or encrypted (RFC 7858): messages may be pipelined, and answers leave in the order they are ready.
//!
//! Each message holds a place on its connection until its answer is written, and a ready answer waits for room among the
//! octets queued: a client that never reads stops being read from, and is closed when its write has taken too long.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, split};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, error};

use super::serving::Serving;
use super::{Client, DnsTransport, Respond, Response, StreamCounters, StreamKind, padding};

/// One connection, seen from its task.
pub(super) struct Connection<'a, R> {
    pub(super) kind: StreamKind,
    /// The client.
    pub(super) source: SocketAddr,
    /// The address of ours that it is connected to.
    pub(super) destination: SocketAddr,
    /// What all connections share. Once it stops, no further message is read.
    pub(super) serving: &'a Arc<Serving<R>>,
    pub(super) activity: Activity,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client has closed its side between two messages.
    Closed,
    /// Nothing was asked for long enough.
    Idle,
    /// A message began and did not arrive in time.
    Late,
    /// An empty message, or the client's side closed in the middle of one.
    Malformed,
    /// Reset, or another error while reading.
    Broken,
    /// An answer could not be written.
    Unwritable,
    /// Turned away for want of access.
    Refused,
    /// The server stops.
    Stopped,
}

impl End {
    /// Whether octets of the client may wait unread: closing then makes the kernel send a reset, which can destroy answers
    /// that the client has not read yet.
    fn leaves_words_unread(self) -> bool {
        matches!(self, Self::Late | Self::Malformed | Self::Refused | Self::Stopped)
    }
}

impl<R: Respond> Connection<'_, R> {
    /// Lives as long as the connection: answers it, or where the source has no access, refuses it.
    pub(super) async fn hold(self, mut stream: impl AsyncRead + AsyncWrite + Unpin, allowed: bool) {
        let end = if allowed { self.converse(&mut stream).await } else { self.turn_away(&mut stream).await };
        self.count(end);
        if end.leaves_words_unread() {
            part(&mut stream).await;
        } else if !matches!(end, End::Broken | End::Unwritable) {
            // An encrypted stream that just stops would look cut short.
            let _ = timeout(MOMENT, stream.shutdown()).await;
        }
    }

    /// Answers messages until the connection ends, and lets out the answers it owes.
    async fn converse(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> End {
        let (reading, writing) = split(stream);
        let in_flight = self.serving.limits.in_flight.clamp(1, 1 << 16);
        let queued = u32::try_from(self.serving.limits.queued_octets).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        let (sender, answers) = mpsc::channel(in_flight);
        let queue = Queue { sender, room: Arc::new(Semaphore::new(queued as usize)), size: queued };
        // Aborted when this function returns, whatever the reason.
        let mut later = JoinSet::new();
        let mut writing = pin!(self.write(writing, answers));
        let end = tokio::select! {
            end = self.read(reading, queue, Arc::new(Semaphore::new(in_flight)), in_flight, &mut later) => end,
            _ = &mut writing => End::Unwritable,
        };
        if matches!(end, End::Broken | End::Unwritable) {
            return end;
        }
        // The queue ends with the last answer that is still being made.
        let owed = self.serving.limits.answer_timeout.saturating_add(self.serving.limits.write_timeout);
        let written = timeout(owed, writing).await;
        self.reap(&mut later);
        if matches!(written, Ok(Ok(()))) { end } else { End::Unwritable }
    }

    /// Reads messages and has them answered; ends when no further one will be read.
    async fn read(
        &self,
        reading: impl AsyncRead + Unpin,
        queue: Queue,
        places: Arc<Semaphore>,
        in_flight: usize,
        later: &mut JoinSet<()>,
    ) -> End {
        let mut reader = BufReader::new(reading);
        loop {
            let next = async {
                let place = Arc::clone(&places).acquire_owned().await.map_err(|_| End::Broken)?;
                // This message's own place is not one of an answer owed.
                self.first_octet(&mut reader, || places.available_permits() + 1 < in_flight).await?;
                match timeout(self.serving.limits.message_timeout, read_message(&mut reader)).await {
                    Ok(message) => message.map(|request| (request, place)),
                    Err(_) => Err(End::Late),
                }
            };
            let (request, place) = tokio::select! {
                biased;
                () = self.serving.stop.cancelled() => return End::Stopped,
                next = next => match next {
                    Ok(next) => next,
                    Err(end) => return end,
                },
            };
            self.activity.touch();
            self.counted().queries.increment();
            self.reap(later);
            self.answer(request, place, &queue, later).await;
        }
    }

    /// Waits for the first octet of a message, as long as the connection is not idle.
    async fn first_octet(&self, reader: &mut (impl AsyncBufReadExt + Unpin), owed: impl Fn() -> bool) -> Result<(), End> {
        // Not nothing, so that the loop below always waits.
        let patience = self.serving.limits.idle_timeout.max(Duration::from_millis(10));
        loop {
            match timeout(patience.saturating_sub(self.activity.since()), reader.fill_buf()).await {
                Ok(Ok([])) => return Err(End::Closed),
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) => return Err(End::Broken),
                // A connection that is owed an answer is not idle.
                Err(_) if owed() => self.activity.touch(),
                Err(_) if self.activity.since() >= patience => return Err(End::Idle),
                Err(_) => {}
            }
        }
    }

    /// Has one message answered: at once where the answer is ready, else in a task of its own, so that it holds up no other.
    async fn answer(&self, request: Vec<u8>, place: OwnedSemaphorePermit, queue: &Queue, later: &mut JoinSet<()>) {
        let Self { kind, source, destination, serving, .. } = *self;
        let client = Client { source, destination, transport: DnsTransport::Stream(kind) };
        let received = serving.tap.receive();
        let padded = padding::is_wanted(&request, kind);
        let finished = move |mut answer: Vec<u8>| {
            if padded {
                padding::pad(&mut answer);
            }
            answer
        };
        let mut answer = Vec::with_capacity(512);
        let answered = match serving.responder.respond_alone(&request, &client, &mut answer) {
            Response::Ready => Some(answer),
            Response::Silent => None,
            Response::Later => {
                let (serving, queue) = (Arc::clone(serving), queue.clone());
                later.spawn(async move {
                    if let Some(answer) = serving.later(kind, request, client, received).await {
                        queue.push(finished(answer), place).await;
                    }
                });
                return;
            }
        };
        if let Some(received) = received {
            serving.tap.finished(&client, &request, answered.as_deref(), received);
        }
        if let Some(answer) = answered {
            queue.push(finished(answer), place).await;
        }
    }

    /// Forgets the tasks that have ended, so that their number stays within the messages in flight.
    fn reap(&self, later: &mut JoinSet<()>) {
        while let Some(ended) = later.try_join_next() {
            if ended.is_err_and(|failure| failure.is_panic()) {
                self.serving.counters.panics.increment();
            }
        }
    }

    /// Writes answers as they become ready, until the last sender of the queue has gone.
    async fn write(&self, mut writing: impl AsyncWrite + Unpin, mut answers: mpsc::Receiver<Ready>) -> io::Result<()> {
        /// Octets of answers that are gathered for one write, if they are ready together.
        const GATHERED: usize = 16 * 1024;
        let mut octets = Vec::new();
        let mut gathered = Vec::new();
        while let Some(first) = answers.recv().await {
            let mut next = Some(first);
            while let Some(answer) = next {
                append(&mut octets, &answer.octets);
                gathered.push(answer);
                next = if octets.len() < GATHERED { answers.try_recv().ok() } else { None };
            }
            match timeout(self.serving.limits.write_timeout, write_whole(&mut writing, &octets)).await {
                Ok(Ok(())) => {
                    self.counted().answers.add(gathered.len() as u64);
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    self.counted().write_timeouts.increment();
                    return Err(ErrorKind::TimedOut.into());
                }
            }
            self.activity.touch();
            gathered.clear();
            octets.clear();
            octets.shrink_to(GATHERED);
        }
        Ok(())
    }

    /// Refuses the first message, if one comes in time.
    async fn turn_away(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> End {
        let (reading, mut writing) = split(stream);
        let mut reader = BufReader::new(reading);
        let request = tokio::select! {
            biased;
            () = self.serving.stop.cancelled() => return End::Stopped,
            request = timeout(self.serving.limits.message_timeout, read_message(&mut reader)) => match request {
                Ok(Ok(request)) => request,
                Ok(Err(end)) => return end,
                Err(_) => return End::Late,
            },
        };
        let Self { kind, source, destination, serving, .. } = *self;
        let (received, mut answer) = (serving.tap.receive(), Vec::new());
        let refused = serving.responder.refuse(&request, &mut answer);
        if let Some(received) = received {
            let client = Client { source, destination, transport: DnsTransport::Stream(kind) };
            serving.tap.finished(&client, &request, refused.then_some(&*answer), received);
        }
        if !refused {
            return End::Refused;
        }
        let mut octets = Vec::with_capacity(answer.len() + 2);
        append(&mut octets, &answer);
        match timeout(self.serving.limits.write_timeout, write_whole(&mut writing, &octets)).await {
            Ok(Ok(())) => {
                self.counted().answers.increment();
                End::Refused
            }
            _ => End::Unwritable,
        }
    }

    fn counted(&self) -> &StreamCounters {
        self.serving.counters.of(self.kind)
    }

    fn count(&self, end: End) {
        debug!(?end, "a connection ends");
        match end {
            End::Idle => self.counted().idle_timeouts.increment(),
            End::Late => self.counted().message_timeouts.increment(),
            End::Malformed | End::Broken => self.counted().broken.increment(),
            // Time-outs of writes are counted where they are noticed.
            End::Closed | End::Unwritable | End::Refused | End::Stopped => 0,
        };
    }
}

/// Reads one message with its length prefix (RFC 1035 section 4.2.2), which may come in any pieces.
async fn read_message(reader: &mut (impl AsyncBufReadExt + Unpin)) -> Result<Vec<u8>, End> {
    let end_of = |error: io::Error| if error.kind() == ErrorKind::UnexpectedEof { End::Malformed } else { End::Broken };
    let length = reader.read_u16().await.map_err(end_of)?;
    if length == 0 {
        return Err(End::Malformed);
    }
    // Grows with what arrives: a length alone must cost nothing.
    let mut request = Vec::with_capacity(usize::from(length.min(512)));
    let read = reader.take(length.into()).read_to_end(&mut request).await.map_err(end_of)?;
    if read == usize::from(length) { Ok(request) } else { Err(End::Malformed) }
}

/// Writes all of it, also what an encrypted stream would keep back.
async fn write_whole(writing: &mut (impl AsyncWrite + Unpin), octets: &[u8]) -> io::Result<()> {
    writing.write_all(octets).await?;
    writing.flush().await
}

/// Appends `answer` with its length prefix. One longer than the prefix can say would break the connection and is left out.
pub(super) fn append(octets: &mut Vec<u8>, answer: &[u8]) {
    let Ok(length) = u16::try_from(answer.len()) else {
        error!(octets = answer.len(), "an answer is too long for TCP and was left out; please report this");
        return;
    };
    octets.extend_from_slice(&length.to_be_bytes());
    octets.extend_from_slice(answer);
}

/// How long each step of a goodbye may take.
const MOMENT: Duration = Duration::from_millis(300);

/// Says goodbye so that the client can read what was written: closes our side, then reads what it still sends, for a
/// moment and up to a bound.
async fn part(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    const MOST: usize = 256 * 1024;
    if !matches!(timeout(MOMENT, stream.shutdown()).await, Ok(Ok(()))) {
        return;
    }
    let discard = async {
        let mut scratch = [0; 1024];
        let mut left = MOST;
        while let Ok(read @ 1..) = stream.read(&mut scratch).await {
            left = left.saturating_sub(read);
            if left == 0 {
                break;
            }
        }
    };
    let _ = timeout(MOMENT, discard).await;
}

/// An answer that waits to be written; its place and its room are free again once it is dropped.
struct Ready {
    octets: Vec<u8>,
    _place: OwnedSemaphorePermit,
    _room: OwnedSemaphorePermit,
}

/// The way of a connection's answers to its writer.
#[derive(Clone)]
struct Queue {
    /// Has a place for every message in flight, so it is never what holds up an answer.
    sender: mpsc::Sender<Ready>,
    /// Octets that may still be queued.
    room: Arc<Semaphore>,
    /// Octets that may be queued in all.
    size: u32,
}

impl Queue {
    /// Queues an answer once there is room for it. The wait ends at the latest when the writer gives up and the connection
    /// with it.
    async fn push(&self, octets: Vec<u8>, place: OwnedSemaphorePermit) {
        let room = u32::try_from(octets.len()).unwrap_or(u32::MAX).clamp(1, self.size);
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(room).await else { return };
        let _ = self.sender.send(Ready { octets, _place: place, _room: room }).await;
    }
}

/// When something last happened on a connection, for its reader and its writer.
pub(super) struct Activity {
    start: Instant,
    /// Milliseconds after the start.
    last: AtomicU64,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    pub(super) fn touch(&self) {
        self.last.store(self.elapsed(), Ordering::Relaxed);
    }

    fn since(&self) -> Duration {
        Duration::from_millis(self.elapsed().saturating_sub(self.last.load(Ordering::Relaxed)))
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
