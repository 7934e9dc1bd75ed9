//! The addresses of this server, from which no query comes.

use std::net::SocketAddr;

/// All listening addresses of this server.
///
/// A query from one of these addresses is forged to make the server query itself.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnAddresses {
    /// Distinct ports of the addresses, for a cheap first check: few clients use them.
    ports: Vec<u16>,
    addresses: Vec<SocketAddr>,
}

impl OwnAddresses {
    /// Creates the set, indexed by port.
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Self {
        let mut ports: Vec<u16> = addresses.iter().map(SocketAddr::port).collect();
        ports.sort_unstable();
        ports.dedup();
        Self { ports, addresses }
    }

    /// Returns whether `source` is one of the addresses.
    pub(super) fn contains(&self, source: &SocketAddr) -> bool {
        self.ports.iter().any(|port| *port == source.port())
            && self
                .addresses
                .iter()
                .any(|own| own.port() == source.port() && own.ip() == source.ip().to_canonical())
    }
}
