//! A DNS client on one UDP socket.
#![allow(dead_code, reason = "each benchmark uses some of it")]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use super::support::{SOON, dns};

/// A socket connected to one server.
pub(crate) struct UdpClient {
    socket: UdpSocket,
    buffer: [u8; 4096],
}

impl UdpClient {
    pub(crate) fn new(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self { socket, buffer: [0; 4096] }
    }

    /// Sends a query and returns the response.
    ///
    /// # Panics
    /// If no response comes within [`SOON`].
    pub(crate) fn exchange(&mut self, query: &[u8]) -> &[u8] {
        self.socket.send(query).unwrap();
        let length = self.socket.recv(&mut self.buffer).unwrap();
        &self.buffer[..length]
    }

    /// Returns a response that has arrived, or else sends the query.
    ///
    /// The response may be that to an earlier query. Works while no server listens yet.
    pub(crate) fn poll(&mut self, query: &[u8]) -> Option<&[u8]> {
        self.socket.set_nonblocking(true).unwrap();
        let length = self.socket.recv(&mut self.buffer).ok();
        if length.is_none() {
            // Refused until the server listens.
            let _ = self.socket.send(query);
        }
        length.map(|length| &self.buffer[..length])
    }
}

/// Builds an A query without EDNS.
pub(crate) fn query(name: &str) -> Vec<u8> {
    dns::query(fastrand::u16(..), name, dns::A)
}

/// Returns the number of answer records of a response; `None` unless it is NOERROR.
pub(crate) fn answer_count(response: &[u8]) -> Option<usize> {
    (dns::code_of(response) == "NOERROR")
        .then(|| usize::from(u16::from_be_bytes([response[6], response[7]])))
}

/// Returns whether a response contains an A record with this address.
pub(crate) fn contains(response: &[u8], address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    // RDLENGTH and RDATA.
    response.windows(6).any(|bytes| bytes == [0, 4, a, b, c, d])
}
