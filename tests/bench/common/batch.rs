//! Sends and receives many datagrams per system call.

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

/// Size of a receive buffer; longer messages are truncated.
const BUFFER_BYTES: usize = 1500;

/// Buffers for the datagrams of one call.
pub(crate) struct Batch {
    buffers: Vec<[u8; BUFFER_BYTES]>,
    received: Vec<(usize, Option<SockaddrIn>)>,
    receiving: MultiHeaders<SockaddrIn>,
    sending: MultiHeaders<SockaddrIn>,
}

impl Batch {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            buffers: vec![[0; BUFFER_BYTES]; size],
            received: Vec::with_capacity(size),
            receiving: MultiHeaders::preallocate(size, None),
            sending: MultiHeaders::preallocate(size, None),
        }
    }

    /// Receives the datagrams that have arrived, and returns each with its source.
    ///
    /// `wait` waits for the first one.
    pub(crate) fn receive(
        &mut self,
        socket: &UdpSocket,
        wait: bool,
    ) -> impl Iterator<Item = (&[u8], Option<SockaddrIn>)> {
        let mut slices: Vec<[IoSliceMut; 1]> =
            self.buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let flags = if wait { MsgFlags::MSG_WAITFORONE } else { MsgFlags::MSG_DONTWAIT };
        self.received.clear();
        match recvmmsg(socket.as_raw_fd(), &mut self.receiving, slices.iter_mut(), flags, None) {
            Ok(messages) => {
                self.received.extend(messages.map(|message| (message.bytes, message.address)));
            }
            // ECONNREFUSED: the server does not listen yet.
            Err(Errno::EAGAIN | Errno::ECONNREFUSED | Errno::EINTR) => {}
            Err(error) => panic!("recvmmsg: {error}"),
        }
        self.buffers
            .iter()
            .zip(&self.received)
            .map(|(buffer, (length, from))| (&buffer[..*length], *from))
    }

    /// Sends messages, which may be as many as the size of the batch.
    pub(crate) fn send<M: AsRef<[u8]>>(
        &mut self,
        socket: &UdpSocket,
        messages: &[M],
        to: &[Option<SockaddrIn>],
    ) {
        let mut sent = 0;
        while sent < messages.len() {
            let slices: Vec<[IoSlice; 1]> =
                messages[sent..].iter().map(|message| [IoSlice::new(message.as_ref())]).collect();
            match sendmmsg(
                socket.as_raw_fd(),
                &mut self.sending,
                &slices,
                &to[sent..],
                [],
                MsgFlags::empty(),
            ) {
                Ok(messages) => sent += messages.count(),
                // A pending error of an earlier datagram, which is reported once.
                Err(Errno::ECONNREFUSED | Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => panic!("sendmmsg: {error}"),
            }
        }
    }
}
