//! Many datagrams in one system call.

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

/// Longest message that is received whole.
const LONGEST: usize = 1500;

/// Room for as many datagrams as one call may move.
pub(crate) struct Batch {
    buffers: Vec<[u8; LONGEST]>,
    received: Vec<(usize, Option<SockaddrIn>)>,
    receiving: MultiHeaders<SockaddrIn>,
    sending: MultiHeaders<SockaddrIn>,
}

impl Batch {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            buffers: vec![[0; LONGEST]; size],
            received: Vec::with_capacity(size),
            receiving: MultiHeaders::preallocate(size, None),
            sending: MultiHeaders::preallocate(size, None),
        }
    }

    /// Receives what is there; waits for a first datagram when `wait` says so. The messages and where they came from.
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
                self.received.extend(messages.map(|message| (message.bytes, message.address)))
            }
            // Refused: nobody listens yet.
            Err(Errno::EAGAIN | Errno::ECONNREFUSED | Errno::EINTR) => {}
            Err(error) => panic!("recvmmsg: {error}"),
        }
        self.buffers
            .iter()
            .zip(&self.received)
            .map(|(buffer, (length, from))| (&buffer[..*length], *from))
    }

    /// Sends all of these, at most as many as the batch has room for.
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
                // An error of an earlier datagram; it is told once.
                Err(Errno::ECONNREFUSED | Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => panic!("sendmmsg: {error}"),
            }
        }
    }
}
