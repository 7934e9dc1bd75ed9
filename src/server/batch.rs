//! Batches of datagrams: one call receives many, another sends the responses.

use std::array;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike, recvmmsg, sendmmsg, sendto,
};

/// Maximum datagrams in a batch.
pub(super) const MAX_BATCH_DATAGRAMS: usize = 32;
/// Size of the buffer for one datagram, in bytes; the kernel discards the rest.
///
/// The size exceeds the 1,232 bytes that the server's OPT record advertises. It is an odd number of
/// cache lines, so that the datagrams of a batch spread over all cache sets.
const DATAGRAM_BUFFER_BYTES: usize = 21 * 64;
/// Capacity in bytes that a response buffer keeps from one batch to the next.
const RETAINED_RESPONSE_BYTES: usize = 4096;

/// An IPv4 or IPv6 socket address in the form that system calls take.
pub(super) trait RawAddress: SockaddrLike + Copy {
    /// Converts the address to the standard library's type.
    fn to_std(self) -> SocketAddr;
    /// Converts `address`; `None` if it is of the other family.
    fn from_std(address: SocketAddr) -> Option<Self>;
}

impl RawAddress for SockaddrIn {
    fn to_std(self) -> SocketAddr {
        SocketAddrV4::from(self).into()
    }

    fn from_std(address: SocketAddr) -> Option<Self> {
        if let SocketAddr::V4(v4) = address { Some(v4.into()) } else { None }
    }
}

impl RawAddress for SockaddrIn6 {
    fn to_std(self) -> SocketAddr {
        SocketAddrV6::from(self).into()
    }

    fn from_std(address: SocketAddr) -> Option<Self> {
        if let SocketAddr::V6(v6) = address { Some(v6.into()) } else { None }
    }
}

/// What a receive call does while the socket is empty.
///
/// The choice is made for each call: the mode of the socket also applies to the other processes
/// that have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReceiveWait {
    /// Waits for a datagram, at most for the receive time-out of the socket.
    ForDatagram,
    /// Returns at once.
    Never,
}

/// Reusable buffers for a batch of datagrams and their responses.
///
/// `A` is the address family of the socket.
#[derive(Debug)]
pub(super) struct Batch<A> {
    receiving: MultiHeaders<A>,
    sending: MultiHeaders<A>,
    /// Datagram buffers, one after the other; a page takes memory once it is written.
    requests: Box<[u8]>,
    /// Length and source of each received datagram.
    received: Vec<(usize, SocketAddr)>,
    responses: Box<[Vec<u8>]>,
    /// Target of each response to send, in the order of `responses`.
    targets: Vec<Option<A>>,
    /// Number of leading `targets` that are sent or skipped.
    sent: usize,
}

impl<A: RawAddress> Batch<A> {
    /// Allocates the buffers.
    pub(super) fn new() -> Self {
        Self {
            receiving: MultiHeaders::preallocate(MAX_BATCH_DATAGRAMS, None),
            sending: MultiHeaders::preallocate(MAX_BATCH_DATAGRAMS, None),
            requests: vec![0; DATAGRAM_BUFFER_BYTES * MAX_BATCH_DATAGRAMS].into_boxed_slice(),
            received: Vec::with_capacity(MAX_BATCH_DATAGRAMS),
            responses: vec![Vec::new(); MAX_BATCH_DATAGRAMS].into_boxed_slice(),
            targets: Vec::with_capacity(MAX_BATCH_DATAGRAMS),
            sent: 0,
        }
    }

    /// Receives up to `max` datagrams in place of the last batch; returns the count.
    ///
    /// `max` is at most [`MAX_BATCH_DATAGRAMS`]. The socket must be a blocking one; the method
    /// waits for the first datagram only. To wait for one datagram, it calls `recvfrom`, which is
    /// cheaper than `recvmmsg`.
    ///
    /// # Errors
    /// Errors of the socket; `WouldBlock` if it stayed empty.
    pub(super) fn receive(
        &mut self,
        socket: &UdpSocket,
        max: usize,
        wait: ReceiveWait,
    ) -> io::Result<usize> {
        let Self { receiving, requests, received, targets, sent, .. } = self;
        received.clear();
        targets.clear();
        *sent = 0;
        if max == 1 && wait == ReceiveWait::ForDatagram {
            received.push(socket.recv_from(&mut requests[..DATAGRAM_BUFFER_BYTES])?);
            return Ok(1);
        }
        let mut requests = requests.chunks_exact_mut(DATAGRAM_BUFFER_BYTES);
        let mut slices: [_; MAX_BATCH_DATAGRAMS] =
            array::from_fn(|_| [IoSliceMut::new(requests.next().unwrap_or_default())]);
        let messages = recvmmsg(
            socket.as_raw_fd(),
            receiving,
            slices.iter_mut().take(max),
            match wait {
                ReceiveWait::ForDatagram => MsgFlags::MSG_WAITFORONE,
                ReceiveWait::Never => MsgFlags::MSG_DONTWAIT,
            },
            None,
        )?;
        received.extend(
            messages.filter_map(|message| Some((message.bytes, message.address?.to_std()))),
        );
        Ok(received.len())
    }

    /// Returns the datagrams received.
    pub(super) fn requests(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let requests = self.received.iter().zip(self.requests.chunks_exact(DATAGRAM_BUFFER_BYTES));
        requests.map(|((length, _), request)| request.get(..*length).unwrap_or(request))
    }

    /// Calls `respond` for each datagram, in the order of receipt.
    ///
    /// `respond` gets the index, bytes, source and response buffer, and returns whether to send the
    /// response.
    pub(super) fn respond(
        &mut self,
        mut respond: impl FnMut(usize, &[u8], SocketAddr, &mut Vec<u8>) -> bool,
    ) {
        let Self { requests, received, responses, targets, .. } = self;
        for (index, ((length, source), request)) in
            received.iter().zip(requests.chunks_exact(DATAGRAM_BUFFER_BYTES)).enumerate()
        {
            let (Some(target), Some(out)) =
                (A::from_std(*source), responses.get_mut(targets.len()))
            else {
                continue;
            };
            if respond(index, request.get(..*length).unwrap_or(request), *source, out) {
                targets.push(Some(target));
            }
        }
    }

    /// Returns the number of responses that are not sent yet.
    pub(super) fn unsent(&self) -> usize {
        self.targets.len().saturating_sub(self.sent)
    }

    /// Sends as many responses as fit without waiting; returns their number (≥ 1).
    ///
    /// # Errors
    /// The error of the first unsent response; `WouldBlock` if the send buffer is full.
    pub(super) fn send(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let Self { sending, responses, targets, sent, .. } = self;
        let (responses, targets) = (
            responses.get(*sent..targets.len()).unwrap_or_default(),
            targets.get(*sent..).unwrap_or_default(),
        );
        let count = if let ([response], [Some(target)]) = (responses, targets) {
            sendto(socket.as_raw_fd(), response, target, MsgFlags::MSG_DONTWAIT)?;
            1
        } else {
            let slices: [_; MAX_BATCH_DATAGRAMS] = array::from_fn(|at| {
                [IoSlice::new(responses.get(at).map_or(&[], |response| &response[..]))]
            });
            sendmmsg(
                socket.as_raw_fd(),
                sending,
                slices.iter().take(responses.len()),
                targets,
                [],
                MsgFlags::MSG_DONTWAIT,
            )?
            .count()
        };
        *sent += count;
        Ok(count)
    }

    /// Drops the next `count` unsent responses.
    pub(super) fn skip(&mut self, count: usize) {
        self.sent += count;
    }

    /// Shrinks buffers that have grown for an unusually long response.
    pub(super) fn shrink(&mut self) {
        for response in self
            .responses
            .iter_mut()
            .take(self.targets.len())
            .filter(|response| response.capacity() > RETAINED_RESPONSE_BYTES)
        {
            response.clear();
            response.shrink_to(RETAINED_RESPONSE_BYTES);
        }
    }
}

/// Sends one response without waiting.
///
/// # Errors
/// Errors of the socket; `WouldBlock` if the send buffer is full.
pub(super) fn send_one(socket: &UdpSocket, response: &[u8], target: SocketAddr) -> io::Result<()> {
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    match target {
        SocketAddr::V4(v4) => sendto(fd, response, &SockaddrIn::from(v4), flags)?,
        SocketAddr::V6(v6) => sendto(fd, response, &SockaddrIn6::from(v6), flags)?,
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::time::Duration;

    fn pair(address: &str) -> (UdpSocket, UdpSocket) {
        (UdpSocket::bind(address).unwrap(), UdpSocket::bind(address).unwrap())
    }

    fn answers_a_burst_in_order<A: RawAddress>(address: &str) {
        let (server, client) = pair(address);
        let (server_address, client_address) =
            (server.local_addr().unwrap(), client.local_addr().unwrap());
        let queries: Vec<String> =
            (0..2 * MAX_BATCH_DATAGRAMS + 6).map(|number| format!("query {number}")).collect();
        for query in &queries {
            client.send_to(query.as_bytes(), server_address).unwrap();
        }
        let mut batch = Batch::<A>::new();
        let mut counts = Vec::new();
        for max in [MAX_BATCH_DATAGRAMS, 1, MAX_BATCH_DATAGRAMS, MAX_BATCH_DATAGRAMS] {
            counts.push(batch.receive(&server, max, ReceiveWait::ForDatagram).unwrap());
            batch.respond(|_, request, source, out| {
                assert_eq!(source, client_address);
                out.clear();
                out.extend_from_slice(request);
                true
            });
            while batch.unsent() > 0 {
                batch.send(&server).unwrap();
            }
        }
        assert_eq!(counts, [MAX_BATCH_DATAGRAMS, 1, MAX_BATCH_DATAGRAMS, 5]);
        for query in &queries {
            let mut response = [0; 64];
            let (length, source) = client.recv_from(&mut response).unwrap();
            assert_eq!((&response[..length], source), (query.as_bytes(), server_address));
        }
        server.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        for wait in [ReceiveWait::Never, ReceiveWait::ForDatagram] {
            for max in [1, MAX_BATCH_DATAGRAMS] {
                let empty = batch.receive(&server, max, wait).unwrap_err();
                assert_eq!(empty.kind(), ErrorKind::WouldBlock);
                assert_eq!((batch.received.len(), batch.unsent()), (0, 0));
            }
        }
    }

    #[test]
    fn bursts_are_answered_in_order_over_several_batches() {
        answers_a_burst_in_order::<SockaddrIn>("127.0.0.1:0");
        answers_a_burst_in_order::<SockaddrIn6>("[::1]:0");
    }

    #[test]
    fn silent_and_unsendable_responses_do_not_affect_other_responses() {
        let (server, client) = pair("127.0.0.1:0");
        for query in ["first", "silent", "long", "last"] {
            client.send_to(query.as_bytes(), server.local_addr().unwrap()).unwrap();
        }
        let mut batch = Batch::<SockaddrIn>::new();
        let wait = ReceiveWait::ForDatagram;
        assert_eq!(batch.receive(&server, MAX_BATCH_DATAGRAMS, wait).unwrap(), 4);
        batch.respond(|_, request, _, out| {
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
        assert!(
            batch.responses.iter().all(|response| response.capacity() <= RETAINED_RESPONSE_BYTES)
        );
        let mut response = [0; 64];
        for expected in ["first", "last"] {
            let length = client.recv(&mut response).unwrap();
            assert_eq!(&response[..length], expected.as_bytes());
        }
    }

    #[test]
    fn datagrams_longer_than_the_buffer_are_truncated() {
        for max in [1, MAX_BATCH_DATAGRAMS] {
            let (server, client) = pair("127.0.0.1:0");
            client.send_to(&[7; 9000], server.local_addr().unwrap()).unwrap();
            client.send_to(&[], server.local_addr().unwrap()).unwrap();
            let mut batch = Batch::<SockaddrIn>::new();
            let mut lengths = Vec::new();
            while lengths.len() < 2 {
                batch.receive(&server, max, ReceiveWait::ForDatagram).unwrap();
                batch.respond(|_, request, _, _| {
                    lengths.push(request.len());
                    false
                });
            }
            assert_eq!(lengths, [DATAGRAM_BUFFER_BYTES, 0]);
        }
    }

    #[test]
    fn single_responses_are_sent_over_ipv4_and_ipv6() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (server, client) = pair(address);
            send_one(&server, b"response", client.local_addr().unwrap()).unwrap();
            let mut response = [0; 64];
            assert_eq!(client.recv_from(&mut response).unwrap(), (8, server.local_addr().unwrap()));
        }
    }
}
