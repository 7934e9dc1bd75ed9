//! Encrypted listeners, for clients elsewhere: DNS over TLS (RFC 7858) and over QUIC (RFC 9250).

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use super::bind::{BindError, LISTEN_QUIC, LISTEN_TLS, canonical, open_tcp, open_udp};
use super::certificate::{Certificate, CertificateFiles};
use crate::wire::Transport;

/// Where to listen for encrypted connections; nowhere by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encrypted {
    /// Addresses for DNS over TLS. An unspecified one (`0.0.0.0`, `::`) is every address, also one the machine gets later.
    pub tls: Vec<SocketAddr>,
    /// Addresses for DNS over QUIC, likewise.
    pub quic: Vec<SocketAddr>,
    /// The certificate to show; needed once there is an address.
    pub certificate: Option<CertificateFiles>,
}

/// Encrypted listeners that are open and wait to be served.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) tls: Vec<(SocketAddr, TcpListener)>,
    pub(super) quic: Vec<(SocketAddr, UdpSocket)>,
    pub(super) certificate: Arc<Certificate>,
}

impl Encrypted {
    /// All addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.tls.iter().chain(&self.quic).copied()
    }

    /// Reads the certificate and opens the sockets; none where no address is named.
    ///
    /// # Errors
    /// When either fails.
    pub(super) fn open(&self) -> Result<Option<Opened>, BindError> {
        let Some(files) = self.certificate.clone().filter(|_| self.addresses().next().is_some()) else { return Ok(None) };
        let certificate = Arc::new(Certificate::open(files)?);
        let (mut tls, mut quic) = (Vec::new(), Vec::new());
        for address in self.tls.iter().copied().map(canonical) {
            let failed = |error| BindError::explain(Transport::Tcp, &LISTEN_TLS, address, error);
            let socket = open_tcp(address).map_err(failed)?;
            tls.push((socket.local_addr().map_err(failed)?, socket));
        }
        for address in self.quic.iter().copied().map(canonical) {
            let failed = |error| BindError::explain(Transport::Udp, &LISTEN_QUIC, address, error);
            for socket in open_udp(address, 1).map_err(failed)? {
                quic.push((socket.local_addr().map_err(failed)?, socket));
            }
        }
        Ok(Some(Opened { tls, quic, certificate }))
    }
}
