//! Pipes that move bytes from socket to socket within the kernel (splice(2)).
//!
//! A pipe is borrowed from its thread while bytes are in it, and returned empty. Moving a GiB
//! through a pipe of 1 MiB took half the processor time of a buffer of 128 KiB.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Wanted size of a pipe, in bytes: the kernel's usual maximum (/proc/sys/fs/pipe-max-size).
const PIPE_BYTES: i32 = 1 << 20;

/// Limit on the pipes of a thread; further connections use its buffer.
///
/// Pipes of a user other than root may take 64 MiB together (pipe(7)).
const MAX_PIPES_PER_THREAD: usize = 8;

thread_local! {
    static PIPES: RefCell<PipePool> = const { RefCell::new(PipePool::EMPTY) };
}

/// The pipes of a thread.
#[derive(Debug)]
struct PipePool {
    /// Empty pipes.
    idle: Vec<Pipe>,
    /// Number of all pipes.
    open: usize,
}

impl PipePool {
    /// The pool of a new thread.
    const EMPTY: Self = Self { idle: Vec::new(), open: 0 };
}

/// A pipe with the bytes that are in it.
#[derive(Debug)]
pub(super) struct Pipe {
    output: OwnedFd,
    input: OwnedFd,
    size: usize,
    filled: usize,
}

impl Pipe {
    /// Returns an empty pipe of this thread; `None` if there is none to spare.
    pub(super) fn take() -> Option<Self> {
        PIPES.with_borrow_mut(|pool| {
            if let Some(pipe) = pool.idle.pop() {
                return Some(pipe);
            }
            let pipe = (pool.open < MAX_PIPES_PER_THREAD).then(Self::new)?.ok()?;
            pool.open += 1;
            Some(pipe)
        })
    }

    fn new() -> io::Result<Self> {
        let (output, input) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Returns the new size.
        let size = fcntl(&input, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES))?;
        Ok(Self { output, input, size: usize::try_from(size).unwrap_or(0), filled: 0 })
    }

    /// Returns the pipe to its thread; one that is not empty is closed.
    pub(super) fn give_back(self) {
        PIPES.with_borrow_mut(|pool| {
            if self.filled == 0 {
                pool.idle.push(self);
            } else {
                pool.open -= 1;
            }
        });
    }

    /// Returns whether no byte is in the pipe.
    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Moves bytes from a socket into the empty pipe; returns their number, 0 at the end.
    pub(super) fn poll_fill(
        &mut self,
        sender: &TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(sender.poll_read_ready(context))?;
            let moved =
                sender.try_io(Interest::READABLE, || move_bytes(sender, &self.input, self.size));
            match moved {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                moved => {
                    self.filled = *moved.as_ref().unwrap_or(&0);
                    return Poll::Ready(moved);
                }
            }
        }
    }

    /// Moves bytes from the pipe to a socket; returns their number.
    pub(super) fn poll_drain(
        &mut self,
        receiver: &TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(receiver.poll_write_ready(context))?;
            let moved = receiver
                .try_io(Interest::WRITABLE, || move_bytes(&self.output, receiver, self.filled));
            match moved {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                moved => {
                    self.filled -= *moved.as_ref().unwrap_or(&0);
                    return Poll::Ready(moved);
                }
            }
        }
    }
}

/// Moves up to `length` bytes without waiting.
fn move_bytes(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(from, None, to, None, length, flags)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::stream::pair;
    use super::*;

    #[tokio::test]
    async fn bytes_pass_through_a_pipe_which_returns_to_its_thread() {
        let ((sender, mut writer), (receiver, mut reader)) = (pair(), pair());
        writer.write_all(b"hello").unwrap();
        let mut pipe = Pipe::take().unwrap();
        let poll = std::future::poll_fn(|context| pipe.poll_fill(&sender, context));
        assert_eq!(poll.await.unwrap(), 5);
        assert!(!pipe.is_empty());
        let poll = std::future::poll_fn(|context| pipe.poll_drain(&receiver, context));
        assert_eq!(poll.await.unwrap(), 5);
        let mut received = [0; 5];
        reader.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"hello");
        drop(writer);
        let poll = std::future::poll_fn(|context| pipe.poll_fill(&sender, context));
        assert_eq!(poll.await.unwrap(), 0, "the end");
        pipe.give_back();
        assert_eq!(PIPES.with_borrow(|pool| (pool.idle.len(), pool.open)), (1, 1));
    }

    #[tokio::test]
    async fn the_pipes_of_a_thread_are_limited_and_used_ones_are_closed() {
        let (sender, mut writer) = pair();
        let mut pipes: Vec<_> = std::iter::from_fn(Pipe::take).collect();
        assert_eq!(pipes.len(), MAX_PIPES_PER_THREAD);
        writer.write_all(b"hello").unwrap();
        let mut filled = pipes.pop().unwrap();
        std::future::poll_fn(|context| filled.poll_fill(&sender, context)).await.unwrap();
        filled.give_back();
        // A new one takes its place: nobody gets the bytes of another connection.
        assert!(Pipe::take().unwrap().is_empty() && Pipe::take().is_none());
    }
}
