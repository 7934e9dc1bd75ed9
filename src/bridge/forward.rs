//! Forwarding of bytes between a client and an instance, unchanged, in both directions.
//!
//! A connection holds no buffer while it is idle: each thread has one, from which received bytes
//! are written at once. Nothing is read from the sender before the receiver has room (back
//! pressure). Bytes that the receiver does not take all the same are kept with the connection;
//! their number is bounded for each thread. Large transfers pass through a pipe instead, without
//! being copied to this process.
//!
//! The end of one direction is passed on as the end of that direction (half-close); an error ends
//! the connection with a reset on both sides.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::counters::ServiceCounters;
use super::pipe::Pipe;
use super::sockets::reset_on_close;
use super::stream::{poll_read, poll_write};

/// Size of a thread's buffer, in bytes: the most that one system call moves.
const BUFFER_BYTES: usize = 128 * 1024;
/// Limit on a read, in bytes, while it is unknown whether the receiver takes more at once.
const FIRST_READ_BYTES: usize = 16 * 1024;
/// Limit on a read, in bytes, while the backlog of the thread is full.
const MIN_READ_BYTES: usize = 4 * 1024;
/// Limit on the bytes of a thread that receivers have not taken yet; beyond, reads are minimal.
const MAX_BACKLOG_BYTES: usize = 4 * 1024 * 1024;

/// Bytes of one read from which on a transfer is large.
const LARGE_READ_BYTES: usize = 32 * 1024;
/// Bytes of one read below which a transfer is no longer large.
const SMALL_READ_BYTES: usize = 8 * 1024;

/// Bytes after which a direction lets the other connections of its thread go on.
const MAX_POLL_BYTES: u64 = 2 * 1024 * 1024;

thread_local! {
    /// The buffer of this thread, used during a single poll.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into());
    /// Bytes of this thread's connections that receivers have not taken yet.
    static BACKLOG: Cell<usize> = const { Cell::new(0) };
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
    backlog: Option<Backlog>,
    progress: Progress,
    /// Bytes that were written.
    bytes: u64,
    /// Whether the receiver took all of the last read at once, which was as long as allowed.
    is_quick: bool,
    /// Whether the transfer is large.
    is_large: bool,
    /// Whether the direction reads from its sender next, and so notices its failure.
    will_read: bool,
    /// The pipe with bytes of a large transfer.
    pipe: Option<Pipe>,
}

/// Received bytes that the receiver has not taken yet.
#[derive(Debug)]
struct Backlog {
    bytes: Box<[u8]>,
    written: usize,
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
        let Self { counters, client, instance, request, response } = self;
        let (client, instance) = (&*client, &*instance);
        let (mut client_failure, mut instance_failure) =
            (FailureWatch::default(), FailureWatch::default());
        let ended = std::future::poll_fn(|context| {
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
                return Poll::Ready(Ok(()));
            }
            // A side from which nothing is read may be gone. If the client is slow, it still gets
            // what the instance sent before it failed.
            let is_ended = response.progress == Progress::Closed;
            let has_failed = (!request.will_read && client_failure.poll(client, context))
                || (is_ended && instance_failure.poll(instance, context));
            if has_failed {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            Poll::Pending
        });
        match ended.await {
            Ok(()) => ForwardEnd::Closed,
            Err::<(), io::Error>(_) => ForwardEnd::Broken,
        }
    }
}

/// Waits until a stream fails, such as by a reset; takes memory only once it is used.
#[derive(Default)]
struct FailureWatch<'s>(Option<Pin<Box<dyn Future<Output = ()> + Send + 's>>>);

impl<'s> FailureWatch<'s> {
    /// Returns whether the stream has failed; otherwise, its failure wakes the task.
    fn poll(&mut self, stream: &'s TcpStream, context: &mut Context<'_>) -> bool {
        let failure = self.0.get_or_insert_with(|| {
            Box::pin(async {
                // An error of the runtime is a failure too.
                let _ = stream.ready(Interest::ERROR).await;
            })
        });
        failure.as_mut().poll(context).is_ready()
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

impl Backlog {
    fn new(bytes: &[u8]) -> Self {
        BACKLOG.set(BACKLOG.get() + bytes.len());
        Self { bytes: bytes.into(), written: 0 }
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        // Connections stay on their thread.
        BACKLOG.set(BACKLOG.get().saturating_sub(self.bytes.len()));
    }
}

impl Direction {
    /// Moves bytes until a side has to be waited for; ready once the direction has ended.
    fn poll(
        &mut self,
        sender: &TcpStream,
        receiver: &TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let before = self.bytes;
        self.will_read = false;
        loop {
            ready!(self.poll_backlog(receiver, context))?;
            ready!(self.poll_pipe(receiver, context))?;
            if self.bytes - before >= MAX_POLL_BYTES {
                self.will_read = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            match self.progress {
                Progress::Open => ready!(self.poll_receive(sender, receiver, context))?,
                Progress::Ended => {
                    match SockRef::from(receiver).shutdown(Shutdown::Write) {
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
        receiver: &TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while let Some(backlog) = &mut self.backlog {
            let rest = &backlog.bytes[backlog.written..];
            let written = ready!(poll_write(receiver, rest, context))?;
            backlog.written += written;
            self.bytes += written as u64;
            if backlog.written == backlog.bytes.len() {
                self.backlog = None;
            }
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

    /// Receives once, as soon as the receiver has room for bytes.
    fn poll_receive(
        &mut self,
        sender: &TcpStream,
        receiver: &TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(receiver.poll_write_ready(context))?;
        let received = match self.is_large.then(Pipe::take).flatten() {
            Some(pipe) => self.poll_fill(pipe, sender, context),
            None => self.poll_copy(sender, receiver, context),
        };
        self.will_read = received.is_pending();
        received
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

    /// Receives once into the thread's buffer, and writes as much as the receiver takes.
    fn poll_copy(
        &mut self,
        sender: &TcpStream,
        receiver: &TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let limit = self.read_limit();
        BUFFER.with_borrow_mut(|buffer| {
            let received = ready!(poll_read(sender, &mut buffer[..limit], context))?;
            if received == 0 {
                self.progress = Progress::Ended;
                return Poll::Ready(Ok(()));
            }
            let bytes = &buffer[..received];
            let written = match poll_write(receiver, bytes, context) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            self.bytes += written as u64;
            self.is_large = received >= LARGE_READ_BYTES;
            self.is_quick = written == limit;
            if written < received {
                self.backlog = Some(Backlog::new(&bytes[written..]));
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Returns the most bytes to read at once: the receiver may not take them.
    fn read_limit(&self) -> usize {
        if BACKLOG.get() >= MAX_BACKLOG_BYTES {
            MIN_READ_BYTES
        } else if self.is_quick {
            BUFFER_BYTES
        } else {
            FIRST_READ_BYTES
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net;

    use super::super::stream::pair;
    use super::*;

    /// Polls a future once.
    async fn poll_once<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        let mut future = future;
        std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
    }

    /// Writes until the stream takes no more.
    fn fill(stream: &TcpStream) {
        let block = vec![0; 1 << 16];
        while stream.try_write(&block).is_ok() {}
    }

    /// A connection through a forwarding: the client's end and the instance's.
    fn connection(counters: &ServiceCounters) -> (Forwarding<'_>, net::TcpStream, net::TcpStream) {
        let ((client, client_end), (instance, instance_end)) = (pair(), pair());
        (Forwarding::new(client, instance, counters), client_end, instance_end)
    }

    #[tokio::test]
    async fn nothing_is_read_before_the_receiver_has_room() {
        let counters = ServiceCounters::default();
        let (mut forwarding, mut client, mut instance) = connection(&counters);
        forwarding.client.writable().await.unwrap();
        fill(&forwarding.client);
        instance.write_all(&[1; 1000]).unwrap();
        forwarding.instance.readable().await.unwrap();
        assert!(poll_once(std::pin::pin!(forwarding.run(None))).await.is_pending());
        assert!(forwarding.response.backlog.is_none());
        assert_eq!(forwarding.instance.peek(&mut [0; 2000]).await.unwrap(), 1000);
        // Once the client reads, it gets these bytes as well.
        instance.shutdown(Shutdown::Write).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let reading = std::thread::spawn(move || {
            let mut received = Vec::new();
            client.read_to_end(&mut received).map(|_| received)
        });
        assert_eq!(forwarding.run(None).await, ForwardEnd::Closed);
        let received = reading.join().unwrap().unwrap();
        assert!(received.ends_with(&[1; 1000]) && received[received.len() - 1001] == 0);
    }

    #[tokio::test]
    async fn the_backlog_of_a_thread_is_bounded() {
        let (mut direction, quick) =
            (Direction::default(), Direction { is_quick: true, ..Direction::default() });
        assert_eq!([direction.read_limit(), quick.read_limit()], [FIRST_READ_BYTES, BUFFER_BYTES]);
        let others: Vec<_> = (0..MAX_BACKLOG_BYTES / BUFFER_BYTES)
            .map(|_| Backlog::new(&vec![0; BUFFER_BYTES]))
            .collect();
        assert_eq!([direction.read_limit(), quick.read_limit()], [MIN_READ_BYTES; 2]);
        direction.backlog = Some(Backlog::new(&[0; MIN_READ_BYTES]));
        drop(others);
        assert_eq!(BACKLOG.get(), MIN_READ_BYTES);
        drop(direction);
        assert_eq!(BACKLOG.get(), 0);
    }

    #[tokio::test]
    async fn a_fast_transfer_lets_the_others_of_its_thread_go_on() {
        const BYTES: usize = 256 << 20;
        let counters = ServiceCounters::default();
        let (mut forwarding, mut client, mut instance) = connection(&counters);
        let writing = std::thread::spawn(move || {
            let block = vec![0; 1 << 20];
            (0..BYTES / block.len()).for_each(|_| instance.write_all(&block).unwrap());
        });
        let reading = std::thread::spawn(move || {
            let (mut block, mut left) = (vec![0; 1 << 20], BYTES);
            while left > 0 {
                left -= client.read(&mut block).unwrap();
            }
        });
        let mut most = 0;
        while forwarding.response.bytes < BYTES as u64 {
            let before = forwarding.response.bytes;
            let _ = poll_once(std::pin::pin!(forwarding.run(None))).await;
            most = most.max(forwarding.response.bytes - before);
            tokio::task::yield_now().await;
        }
        // The last pipe may exceed the limit.
        assert!(most < 2 * MAX_POLL_BYTES, "{most} bytes in one poll");
        writing.join().unwrap();
        reading.join().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_resets_after_its_end_is_noticed_while_the_instance_is_silent() {
        let counters = ServiceCounters::default();
        let (mut forwarding, client, _instance) = connection(&counters);
        client.shutdown(Shutdown::Write).unwrap();
        forwarding.client.readable().await.unwrap();
        assert!(poll_once(std::pin::pin!(forwarding.run(None))).await.is_pending());
        assert_eq!(forwarding.request.progress, Progress::Closed);
        // The same reset answers a keepalive probe to a client that is gone.
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(forwarding.run(None).await, ForwardEnd::Broken);
    }

    #[tokio::test]
    async fn a_client_that_resets_is_noticed_while_the_instance_takes_nothing() {
        let counters = ServiceCounters::default();
        let (mut forwarding, mut client, _instance) = connection(&counters);
        forwarding.instance.writable().await.unwrap();
        fill(&forwarding.instance);
        client.write_all(b"more").unwrap();
        forwarding.client.readable().await.unwrap();
        assert!(poll_once(std::pin::pin!(forwarding.run(None))).await.is_pending());
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(forwarding.run(None).await, ForwardEnd::Broken);
    }
}
