//! Datagrams in batches: many are received by one system call, and their answers sent by another.

use std::array;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike, recvmmsg, sendmmsg, sendto};

/// Most datagrams of one batch.
pub(super) const SIZE: usize = 32;
/// Octets read of a datagram: more than the 1,232 that we offer to take; the rest of a longer one is lost. An odd number of
/// cache lines, so that the datagrams of a batch do not all compete for the same places in the cache.
const DATAGRAM: usize = 21 * 64;
/// Octets an answer buffer keeps from one batch to the next.
const KEPT: usize = 4096;

/// An address of one family, as the system calls take it.
pub(super) trait Address: SockaddrLike + Copy {
    /// As the standard library has it.
    fn to_std(self) -> SocketAddr;
    /// None of another family.
    fn from_std(address: SocketAddr) -> Option<Self>;
}

impl Address for SockaddrIn {
    fn to_std(self) -> SocketAddr {
        SocketAddrV4::from(self).into()
    }

    fn from_std(address: SocketAddr) -> Option<Self> {
        if let SocketAddr::V4(v4) = address { Some(v4.into()) } else { None }
    }
}

impl Address for SockaddrIn6 {
    fn to_std(self) -> SocketAddr {
        SocketAddrV6::from(self).into()
    }

    fn from_std(address: SocketAddr) -> Option<Self> {
        if let SocketAddr::V6(v6) = address { Some(v6.into()) } else { None }
    }
}

/// Room for the datagrams of a batch and their answers; used again and again, for sockets of the family of `A`.
#[derive(Debug)]
pub(super) struct Batch<A> {
    receiving: MultiHeaders<A>,
    sending: MultiHeaders<A>,
    /// One datagram after the other; what no datagram has reached yet takes no memory.
    requests: Box<[u8]>,
    /// Of each datagram received: its octets and its source.
    received: Vec<(usize, SocketAddr)>,
    answers: Box<[Vec<u8>]>,
    /// Of each answer to send, in the order of `answers`.
    targets: Vec<Option<A>>,
    /// Answers of `targets` that are done with.
    sent: usize,
}

impl<A: Address> Batch<A> {
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

    /// Receives what is there, at most `most` datagrams and a batch, in place of the last ones; says how many. Waits for the
    /// first one if the socket does.
    ///
    /// One alone is received by the plainer call, which costs less; whether there are others stays open then.
    ///
    /// # Errors
    /// What the socket reports; `WouldBlock` when there is nothing and the socket does not wait.
    pub(super) fn receive(&mut self, socket: &UdpSocket, most: usize) -> io::Result<usize> {
        let Self { receiving, requests, received, targets, sent, .. } = self;
        received.clear();
        targets.clear();
        *sent = 0;
        if most == 1 {
            received.push(socket.recv_from(&mut requests[..DATAGRAM])?);
            return Ok(1);
        }
        let mut requests = requests.chunks_exact_mut(DATAGRAM);
        let mut slices: [_; SIZE] = array::from_fn(|_| [IoSliceMut::new(requests.next().unwrap_or_default())]);
        let messages = recvmmsg(socket.as_raw_fd(), receiving, slices.iter_mut().take(most), MsgFlags::MSG_WAITFORONE, None)?;
        received.extend(messages.filter_map(|message| Some((message.bytes, message.address?.to_std()))));
        Ok(received.len())
    }

    /// The datagrams received.
    pub(super) fn requests(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let requests = self.received.iter().zip(self.requests.chunks_exact(DATAGRAM));
        requests.map(|((length, _), request)| request.get(..*length).unwrap_or(request))
    }

    /// Has each datagram answered: `answer` gets its number, its octets, its source and where the answer goes, and says
    /// whether there is one.
    pub(super) fn answer(&mut self, mut answer: impl FnMut(usize, &[u8], SocketAddr, &mut Vec<u8>) -> bool) {
        let Self { requests, received, answers, targets, .. } = self;
        for (number, ((length, source), request)) in received.iter().zip(requests.chunks_exact(DATAGRAM)).enumerate() {
            let (Some(target), Some(out)) = (A::from_std(*source), answers.get_mut(targets.len())) else { continue };
            if answer(number, request.get(..*length).unwrap_or(request), *source, out) {
                targets.push(Some(target));
            }
        }
    }

    /// Answers that are not sent yet.
    pub(super) fn unsent(&self) -> usize {
        self.targets.len().saturating_sub(self.sent)
    }

    /// Sends answers, as many as the socket takes without waiting; says how many, at least one.
    ///
    /// # Errors
    /// What the socket reports of the first answer that was not sent yet; `WouldBlock` when its buffer is full.
    pub(super) fn send(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let Self { sending, answers, targets, sent, .. } = self;
        let (answers, targets) = (answers.get(*sent..targets.len()).unwrap_or_default(), targets.get(*sent..).unwrap_or_default());
        let count = if let ([answer], [Some(target)]) = (answers, targets) {
            sendto(socket.as_raw_fd(), answer, target, MsgFlags::MSG_DONTWAIT)?;
            1
        } else {
            let slices: [_; SIZE] = array::from_fn(|at| [IoSlice::new(answers.get(at).map_or(&[], |answer| &answer[..]))]);
            sendmmsg(socket.as_raw_fd(), sending, slices.iter().take(answers.len()), targets, [], MsgFlags::MSG_DONTWAIT)?.count()
        };
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

/// Sends one answer without waiting.
///
/// # Errors
/// What the socket reports; `WouldBlock` when its buffer is full.
pub(super) fn send_one(socket: &UdpSocket, answer: &[u8], target: SocketAddr) -> io::Result<()> {
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    match target {
        SocketAddr::V4(v4) => sendto(fd, answer, &SockaddrIn::from(v4), flags)?,
        SocketAddr::V6(v6) => sendto(fd, answer, &SockaddrIn6::from(v6), flags)?,
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    fn pair(address: &str) -> (UdpSocket, UdpSocket) {
        (UdpSocket::bind(address).unwrap(), UdpSocket::bind(address).unwrap())
    }

    fn a_burst_is_answered_in_order<A: Address>(address: &str) {
        let (server, client) = pair(address);
        let (server_address, client_address) = (server.local_addr().unwrap(), client.local_addr().unwrap());
        let questions: Vec<String> = (0..2 * SIZE + 6).map(|number| format!("question {number}")).collect();
        for question in &questions {
            client.send_to(question.as_bytes(), server_address).unwrap();
        }
        let mut batch = Batch::<A>::new();
        let mut counts = Vec::new();
        for most in [SIZE, 1, SIZE, SIZE] {
            counts.push(batch.receive(&server, most).unwrap());
            batch.answer(|_, request, source, out| {
                assert_eq!(source, client_address);
                out.clear();
                out.extend_from_slice(request);
                true
            });
            while batch.unsent() > 0 {
                batch.send(&server).unwrap();
            }
        }
        assert_eq!(counts, [SIZE, 1, SIZE, 5]);
        for question in &questions {
            let mut answer = [0; 64];
            let (length, source) = client.recv_from(&mut answer).unwrap();
            assert_eq!((&answer[..length], source), (question.as_bytes(), server_address));
        }
        server.set_nonblocking(true).unwrap();
        for most in [1, SIZE] {
            assert_eq!(batch.receive(&server, most).unwrap_err().kind(), ErrorKind::WouldBlock);
            assert_eq!((batch.received.len(), batch.unsent()), (0, 0));
        }
    }

    #[test]
    fn a_burst_is_answered_in_order_over_several_batches() {
        a_burst_is_answered_in_order::<SockaddrIn>("127.0.0.1:0");
        a_burst_is_answered_in_order::<SockaddrIn6>("[::1]:0");
    }

    #[test]
    fn what_gets_no_answer_and_what_cannot_be_sent_costs_no_other() {
        let (server, client) = pair("127.0.0.1:0");
        for question in ["first", "silent", "long", "last"] {
            client.send_to(question.as_bytes(), server.local_addr().unwrap()).unwrap();
        }
        let mut batch = Batch::<SockaddrIn>::new();
        assert_eq!(batch.receive(&server, SIZE).unwrap(), 4);
        batch.answer(|_, request, _, out| {
            out.clear();
            out.extend_from_slice(request);
            if request == b"long" {
                out.resize(70_000, b'x');
            }
            request != b"silent"
        });
        assert_eq!(batch.unsent(), 3);
        assert_eq!(batch.send(&server).unwrap(), 1, "the kernel stops at the one that is too long");
        assert!(batch.send(&server).is_err());
        batch.skip(1);
        assert_eq!((batch.send(&server).unwrap(), batch.unsent()), (1, 0));
        batch.shrink();
        assert!(batch.answers.iter().all(|answer| answer.capacity() <= KEPT));
        let mut answer = [0; 64];
        for expected in ["first", "last"] {
            let length = client.recv(&mut answer).unwrap();
            assert_eq!(&answer[..length], expected.as_bytes());
        }
    }

    #[test]
    fn a_datagram_beyond_the_buffer_is_cut() {
        for most in [1, SIZE] {
            let (server, client) = pair("127.0.0.1:0");
            client.send_to(&[7; 9000], server.local_addr().unwrap()).unwrap();
            client.send_to(&[], server.local_addr().unwrap()).unwrap();
            let mut batch = Batch::<SockaddrIn>::new();
            let mut lengths = Vec::new();
            while lengths.len() < 2 {
                batch.receive(&server, most).unwrap();
                batch.answer(|_, request, _, _| {
                    lengths.push(request.len());
                    false
                });
            }
            assert_eq!(lengths, [DATAGRAM, 0]);
        }
    }

    #[test]
    fn one_answer_goes_out_over_either_family() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (server, client) = pair(address);
            send_one(&server, b"answer", client.local_addr().unwrap()).unwrap();
            let mut answer = [0; 64];
            assert_eq!(client.recv_from(&mut answer).unwrap(), (6, server.local_addr().unwrap()));
        }
    }
}
