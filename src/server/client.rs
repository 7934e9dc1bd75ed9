//! The client of a query: what the server knows of a query besides its bytes.

use std::net::SocketAddr;

use crate::wire::Transport;

/// The client of a query, the address it asked, and the transport it used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The client's address.
    pub source: SocketAddr,
    /// The address of ours that the query came to.
    pub destination: SocketAddr,
    /// How the query came.
    pub transport: DnsTransport,
}

/// The transport of a query, with connections told apart by kind.
///
/// [`Transport`] is the coarser view that decides how large a response may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsTransport {
    /// One datagram (RFC 1035 section 4.2.1).
    Udp,
    /// A message on a connection.
    Stream(StreamKind),
}

/// A kind of connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Plain TCP (RFC 7766).
    Tcp,
    /// DNS over TLS (RFC 7858).
    Tls,
    /// DNS over QUIC (RFC 9250), with a QUIC stream for each query.
    Quic,
}

impl DnsTransport {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => Transport::Udp.name(),
            Self::Stream(kind) => kind.name(),
        }
    }
}

impl StreamKind {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => Transport::Tcp.name(),
            Self::Tls => "DNS over TLS",
            Self::Quic => "DNS over QUIC",
        }
    }
}

impl From<DnsTransport> for Transport {
    fn from(transport: DnsTransport) -> Self {
        match transport {
            DnsTransport::Udp => Self::Udp,
            DnsTransport::Stream(_) => Self::Tcp,
        }
    }
}
