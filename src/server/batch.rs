//! Datagrams in batches: many are received by one system call, and their answers sent by another.

use std::array;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Most datagrams of one batch.
pub(super) const SIZE: usize = 32;
/// Octets read of a datagram; no query comes near, and the rest of a longer one is lost.
const DATAGRAM: usize = 4096;
/// Octets an answer buffer keeps from one batch to the next.
const KEPT: usize = 4096;

/// Room for the datagrams of a batch and their answers; used again and again, for sockets of one address family only, since
/// the kernel leaves the length of the last source in the headers.
#[derive(Debug)]
pub(super) struct Batch {
    receiving: MultiHeaders<SockaddrStorage>,
    sending: MultiHeaders<SockaddrStorage>,
    /// One datagram after the other; what no datagram has reached yet takes no memory.
    requests: Box<[u8]>,
    /// Of each datagram received: its octets and its source.
    received: Vec<(usize, SockaddrStorage)>,
    answers: Box<[Vec<u8>]>,
    /// Of each answer to send, in the order of `answers`.
    targets: Vec<Option<SockaddrStorage>>,
    /// Answers of `targets` that are done with.
    sent: usize,
}

/// What is left in a socket after a batch was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing: the socket says when there is something again.
    Nothing,
    /// There may be more.
    Perhaps,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            receiving: MultiHeaders::preallocate(SIZE, None),
            sending: MultiHeaders::preallocate(SIZE, None),
            requests: vec![0; DATAGRAM * SIZE].into_boxed_slice(),
            received: Vec::with_capacity(SIZE),
            answers: vec![Vec::new(); SIZE].into_boxed_slice(),
            targets: Vec::with_capacity(SIZE),
            sent: 0,
        }
    }

    /// Receives what is there, up to a batch, in place of the last one.
    ///
    /// # Errors
    /// What the socket reports; `WouldBlock` when there is nothing.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<Left> {
        let Self { receiving, requests, received, targets, sent, .. } = self;
        received.clear();
        targets.clear();
        *sent = 0;
        let outcome = socket.try_io(Interest::READABLE, || {
            let mut requests = requests.chunks_exact_mut(DATAGRAM);
            let mut slices: [_; SIZE] = array::from_fn(|_| [IoSliceMut::new(requests.next().unwrap_or_default())]);
            let messages = recvmmsg(socket.as_raw_fd(), receiving, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
            received.extend(messages.filter_map(|message| Some((message.bytes, message.address?))));
            // Fewer than asked for: the socket is empty. To say so here spares a call that would find nothing.
            if received.len() < SIZE { Err(ErrorKind::WouldBlock.into()) } else { Ok(Left::Perhaps) }
        });
        match outcome {
            Err(error) if error.kind() == ErrorKind::WouldBlock && !received.is_empty() => Ok(Left::Nothing),
            outcome => outcome,
        }
    }

    /// Has each datagram answered: `answer` gets its octets, its source and where the answer goes, and says whether there
    /// is one.
    pub(super) fn answer(&mut self, mut answer: impl FnMut(&[u8], SocketAddr, &mut Vec<u8>) -> bool) {
        let Self { requests, received, answers, targets, .. } = self;
        for ((length, source), request) in received.iter().zip(requests.chunks_exact(DATAGRAM)) {
            let (Some(address), Some(out)) = (socket_addr(source), answers.get_mut(targets.len())) else { continue };
            if answer(request.get(..*length).unwrap_or(request), address, out) {
                targets.push(Some(*source));
            }
        }
    }

    /// Answers that are not sent yet.
    pub(super) fn unsent(&self) -> usize {
        self.targets.len().saturating_sub(self.sent)
    }

    /// Sends answers, as many as the socket takes; says how many, at least one.
    ///
    /// # Errors
    /// What the socket reports of the first answer that was not sent yet; `WouldBlock` when its buffer is full.
    pub(super) fn send(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let Self { sending, answers, targets, sent, .. } = self;
        let (answers, targets) = (answers.get(*sent..targets.len()).unwrap_or_default(), targets.get(*sent..).unwrap_or_default());
        let slices: [_; SIZE] = array::from_fn(|at| [IoSlice::new(answers.get(at).map_or(&[], |answer| &answer[..]))]);
        let count = socket.try_io(Interest::WRITABLE, || {
            let taken = sendmmsg(socket.as_raw_fd(), sending, slices.iter().take(answers.len()), targets, [], MsgFlags::MSG_DONTWAIT)?;
            Ok(taken.count())
        })?;
        *sent += count;
        Ok(count)
    }

    /// Gives up `count` answers that are not sent yet.
    pub(super) fn skip(&mut self, count: usize) {
        self.sent += count;
    }

    /// Gives back what uncommonly long answers took.
    pub(super) fn shrink(&mut self) {
        for answer in self.answers.iter_mut().take(self.targets.len()).filter(|answer| answer.capacity() > KEPT) {
            answer.clear();
            answer.shrink_to(KEPT);
        }
    }
}

/// An address as the standard library has it.
fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair(address: &str) -> (UdpSocket, UdpSocket) {
        (UdpSocket::bind(address).await.unwrap(), UdpSocket::bind(address).await.unwrap())
    }

    /// The next batch of at least one datagram.
    async fn receive(batch: &mut Batch, socket: &UdpSocket) -> Left {
        loop {
            socket.readable().await.unwrap();
            match batch.receive(socket) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                outcome => return outcome.unwrap(),
            }
        }
    }

    fn echo(batch: &mut Batch, expected: SocketAddr) {
        batch.answer(|request, source, out| {
            assert_eq!(source, expected);
            out.clear();
            out.extend_from_slice(request);
            !request.starts_with(b"silent")
        });
    }

    #[tokio::test]
    async fn a_burst_is_answered_in_order_over_several_batches() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (server, client) = pair(address).await;
            let (server_address, client_address) = (server.local_addr().unwrap(), client.local_addr().unwrap());
            let questions: Vec<String> = (0..2 * SIZE + 5).map(|number| format!("question {number}")).collect();
            for question in &questions {
                client.send_to(question.as_bytes(), server_address).await.unwrap();
            }
            let mut batch = Batch::new();
            let mut lefts = Vec::new();
            for _ in 0..3 {
                lefts.push(receive(&mut batch, &server).await);
                echo(&mut batch, client_address);
                server.writable().await.unwrap();
                while batch.unsent() > 0 {
                    batch.send(&server).unwrap();
                }
            }
            assert_eq!(lefts, [Left::Perhaps, Left::Perhaps, Left::Nothing]);
            assert_eq!(batch.received.len(), 5);
            for question in &questions {
                let mut answer = [0; 64];
                let (length, source) = client.recv_from(&mut answer).await.unwrap();
                assert_eq!((&answer[..length], source), (question.as_bytes(), server_address));
            }
            assert_eq!(batch.receive(&server).unwrap_err().kind(), ErrorKind::WouldBlock);
            assert_eq!((batch.received.len(), batch.unsent()), (0, 0));
        }
    }

    #[tokio::test]
    async fn what_gets_no_answer_and_what_cannot_be_sent_costs_no_other() {
        let (server, client) = pair("127.0.0.1:0").await;
        for question in ["first", "silent", "long", "last"] {
            client.send_to(question.as_bytes(), server.local_addr().unwrap()).await.unwrap();
        }
        let mut batch = Batch::new();
        receive(&mut batch, &server).await;
        batch.answer(|request, _, out| {
            out.clear();
            out.extend_from_slice(request);
            if request == b"long" {
                out.resize(70_000, b'x');
            }
            request != b"silent"
        });
        assert_eq!((batch.received.len(), batch.unsent()), (4, 3));
        server.writable().await.unwrap();
        assert_eq!(batch.send(&server).unwrap(), 1, "the kernel stops at the one that is too long");
        assert!(batch.send(&server).is_err());
        batch.skip(1);
        assert_eq!((batch.send(&server).unwrap(), batch.unsent()), (1, 0));
        batch.shrink();
        assert!(batch.answers.iter().all(|answer| answer.capacity() <= KEPT));
        let mut answer = [0; 64];
        for expected in ["first", "last"] {
            let length = client.recv(&mut answer).await.unwrap();
            assert_eq!(&answer[..length], expected.as_bytes());
        }
    }

    #[tokio::test]
    async fn a_datagram_beyond_the_buffer_is_cut() {
        let (server, client) = pair("127.0.0.1:0").await;
        client.send_to(&[7; 9000], server.local_addr().unwrap()).await.unwrap();
        client.send_to(&[], server.local_addr().unwrap()).await.unwrap();
        let mut batch = Batch::new();
        let mut lengths = Vec::new();
        while lengths.len() < 2 {
            receive(&mut batch, &server).await;
            batch.answer(|request, _, _| {
                lengths.push(request.len());
                false
            });
        }
        assert_eq!(lengths, [DATAGRAM, 0]);
    }
}
