//! Forwarding of bytes between a client and an instance, unchanged, in both directions.
//!
//! A connection holds no buffer while it is idle: each thread has one, from which received bytes
//! are written at once. Only bytes that the receiver does not take yet are kept with the
//! connection, and nothing more is read from the sender until they are written (back pressure).
//! Large transfers pass through a pipe instead, without being copied to this process.
//!
//! The end of one direction is passed on as the end of that direction (half-close); an error ends
//! the connection with a reset on both sides.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::counters::ServiceCounters;
use super::pipe::Pipe;
use super::sockets::reset_on_close;

/// Size of a thread's buffer, in bytes: the most that one system call moves.
const BUFFER_BYTES: usize = 128 * 1024;

/// Bytes of one read from which on a transfer is large.
const LARGE_READ_BYTES: usize = 32 * 1024;
/// Bytes of one read below which a transfer is no longer large.
const SMALL_READ_BYTES: usize = 8 * 1024;

thread_local! {
    /// The buffer of this thread, used during a single poll.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into());
}

/// The streams of a connection.
///
/// If it is dropped before both directions have ended, both peers get a reset.
#[derive(Debug)]
pub(super) struct Forwarding<'c> {
    counters: &'c ServiceCounters,
    client: TcpStream,
    instance: TcpStream,
    /// From the client to the instance.
    request: Direction,
    /// From the instance to the client.
    response: Direction,
}

/// The bytes of one direction.
#[derive(Debug, Default)]
struct Direction {
    /// Received bytes that the receiver has not taken yet, from `written` on.
    backlog: Vec<u8>,
    written: usize,
    progress: Progress,
    /// Bytes that were written.
    bytes: u64,
    /// Whether the transfer is large.
    is_large: bool,
    /// The pipe with bytes of a large transfer.
    pipe: Option<Pipe>,
}

/// How far a direction is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Progress {
    /// The sender may send more.
    #[default]
    Open,
    /// The sender has closed its side; the receiver does not know yet.
    Ended,
    /// The receiver knows.
    Closed,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ForwardEnd {
    /// Both sides closed it.
    Closed,
    /// One side reset it or failed.
    Broken,
    /// It was idle for too long.
    Idle,
}

impl<'c> Forwarding<'c> {
    /// Connects two streams; counts their bytes.
    pub(super) fn new(
        client: TcpStream,
        instance: TcpStream,
        counters: &'c ServiceCounters,
    ) -> Self {
        let (request, response) = (Direction::default(), Direction::default());
        Self { counters, client, instance, request, response }
    }

    /// Forwards until both directions have ended, one fails, or no byte arrives for `idle`.
    pub(super) async fn run(&mut self, idle: Option<Duration>) -> ForwardEnd {
        let Some(idle) = idle else { return self.until_closed().await };
        loop {
            let before = [self.request.bytes, self.response.bytes];
            match tokio::time::timeout(idle, self.until_closed()).await {
                Ok(end) => return end,
                Err(_) if [self.request.bytes, self.response.bytes] == before => {
                    return ForwardEnd::Idle;
                }
                Err(_) => {}
            }
        }
    }

    async fn until_closed(&mut self) -> ForwardEnd {
        match std::future::poll_fn(|context| self.poll(context)).await {
            Ok(()) => ForwardEnd::Closed,
            Err(_) => ForwardEnd::Broken,
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { counters, client, instance, request, response } = self;
        let before = (request.bytes, response.bytes);
        let requested = request.poll(client, instance, context);
        let responded = response.poll(instance, client, context);
        for (counter, more) in [
            (&counters.request_bytes, request.bytes - before.0),
            (&counters.response_bytes, response.bytes - before.1),
        ] {
            if more > 0 {
                counter.fetch_add(more, Ordering::Relaxed);
            }
        }
        // A failure of one direction ends both, whatever the state of the other one.
        let (requested, responded) = (requested?, responded?);
        if requested.is_ready() && responded.is_ready() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Forwarding<'_> {
    fn drop(&mut self) {
        for direction in [&mut self.request, &mut self.response] {
            direction.pipe.take().into_iter().for_each(Pipe::give_back);
        }
        let is_closed = |direction: &Direction| direction.progress == Progress::Closed;
        if !(is_closed(&self.request) && is_closed(&self.response)) {
            // A plain close would look like the end of the data.
            reset_on_close(&self.client);
            reset_on_close(&self.instance);
        }
    }
}

impl Direction {
    /// Moves bytes until a side has to be waited for; ready once the direction has ended.
    fn poll(
        &mut self,
        sender: &mut TcpStream,
        receiver: &mut TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_backlog(receiver, context))?;
            ready!(self.poll_pipe(receiver, context))?;
            match self.progress {
                Progress::Open if self.is_large => match Pipe::take() {
                    Some(pipe) => ready!(self.poll_fill(pipe, sender, context))?,
                    None => ready!(self.poll_sender(sender, receiver, context))?,
                },
                Progress::Open => ready!(self.poll_sender(sender, receiver, context))?,
                Progress::Ended => {
                    match ready!(Pin::new(&mut *receiver).poll_shutdown(context)) {
                        // The receiver has reset the connection: reading from it fails as well.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                        shut_down => shut_down?,
                    }
                    self.progress = Progress::Closed;
                }
                Progress::Closed => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Writes what the receiver did not take before.
    fn poll_backlog(
        &mut self,
        receiver: &mut TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.written < self.backlog.len() {
            let rest = &self.backlog[self.written..];
            let written = ready!(Pin::new(&mut *receiver).poll_write(context, rest))?;
            self.written += written;
            self.bytes += written as u64;
        }
        if !self.backlog.is_empty() {
            (self.backlog, self.written) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what is in the pipe, and returns it to its thread.
    fn poll_pipe(
        &mut self,
        receiver: &TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(pipe) = &mut self.pipe {
            while !pipe.is_empty() {
                self.bytes += ready!(pipe.poll_drain(receiver, context))? as u64;
            }
            self.pipe.take().into_iter().for_each(Pipe::give_back);
        }
        Poll::Ready(Ok(()))
    }

    /// Receives once into a pipe, which the direction keeps if there are bytes in it.
    fn poll_fill(
        &mut self,
        mut pipe: Pipe,
        sender: &TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        match pipe.poll_fill(sender, context) {
            Poll::Ready(Ok(received @ 1..)) => {
                self.is_large = received >= SMALL_READ_BYTES;
                self.pipe = Some(pipe);
                Poll::Ready(Ok(()))
            }
            other => {
                pipe.give_back();
                ready!(other)?;
                self.progress = Progress::Ended;
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Receives once, and writes as much of it as the receiver takes.
    fn poll_sender(
        &mut self,
        sender: &mut TcpStream,
        receiver: &mut TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut received = ReadBuf::new(buffer);
            ready!(Pin::new(sender).poll_read(context, &mut received))?;
            let received = received.filled();
            if received.is_empty() {
                self.progress = Progress::Ended;
                return Poll::Ready(Ok(()));
            }
            let written = match Pin::new(receiver).poll_write(context, received) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            self.bytes += written as u64;
            self.is_large = received.len() >= LARGE_READ_BYTES;
            if written < received.len() {
                self.backlog = received[written..].to_vec();
            }
            Poll::Ready(Ok(()))
        })
    }
}
