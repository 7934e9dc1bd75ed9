//! Questions from one socket, one after the other.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use super::support::{SOON, dns};

/// A socket that asks one server.
pub(crate) struct Asker {
    socket: UdpSocket,
    buffer: [u8; 4096],
}

impl Asker {
    pub(crate) fn new(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self { socket, buffer: [0; 4096] }
    }

    /// The answer; ends the program when none comes.
    pub(crate) fn ask(&mut self, question: &[u8]) -> &[u8] {
        self.socket.send(question).unwrap();
        let length = self.socket.recv(&mut self.buffer).unwrap();
        &self.buffer[..length]
    }

    /// Asks, and takes an answer that is there already, be it to an earlier question; nothing while nobody listens.
    pub(crate) fn poll(&mut self, question: &[u8]) -> Option<&[u8]> {
        self.socket.set_nonblocking(true).unwrap();
        let length = self.socket.recv(&mut self.buffer).ok();
        if length.is_none() {
            // Refused until the server listens.
            let _ = self.socket.send(question);
        }
        length.map(|length| &self.buffer[..length])
    }
}

/// A question for the addresses of a name, without EDNS.
pub(crate) fn question(name: &str) -> Vec<u8> {
    dns::question(fastrand::u16(..), name, dns::A)
}

/// Number of records of the answer section, of an answer without an error.
pub(crate) fn records(answer: &[u8]) -> Option<usize> {
    (dns::code_of(answer) == "NOERROR")
        .then(|| usize::from(u16::from_be_bytes([answer[6], answer[7]])))
}

/// Whether an A record with this address is among the answers.
pub(crate) fn holds(answer: &[u8], address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    // The length of the record's data and the data.
    answer.windows(6).any(|octets| octets == [0, 4, a, b, c, d])
}
