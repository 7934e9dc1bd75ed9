//! The client of a query: everything that the server knows besides the message.

use std::net::SocketAddr;

use crate::wire::Transport;

/// Client address, destination address and transport of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Address of the client.
    pub source: SocketAddr,
    /// Address of this server that received the query.
    pub destination: SocketAddr,
    /// Transport of the query.
    pub transport: DnsTransport,
}

/// Transport of a query, distinguishing the kinds of streams.
///
/// [`Transport`] distinguishes only datagrams and streams, which decides the size of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsTransport {
    /// A datagram (RFC 1035 section 4.2.1).
    Udp,
    /// A message on a connection.
    Stream(StreamKind),
}

/// Kind of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Plain TCP (RFC 7766).
    Tcp,
    /// DNS over TLS (RFC 7858).
    Tls,
    /// DNS over QUIC (RFC 9250), with one QUIC stream per query.
    Quic,
}

impl DnsTransport {
    /// Returns the name for display.
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => Transport::Udp.name(),
            Self::Stream(kind) => kind.name(),
        }
    }
}

impl StreamKind {
    /// Returns the name for display.
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
