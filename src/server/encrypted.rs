//! Encrypted listeners, for clients elsewhere: DNS over TLS (RFC 7858) and over QUIC (RFC 9250).

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::VarInt;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::bind::{BindError, LISTEN_QUIC, LISTEN_TLS, canonical, open_tcp, open_udp};
use super::certificate::{Certificate, CertificateFiles, Purpose};
use super::serve::Serving;
use super::{Respond, StreamKind, quic, tcp};
use crate::wire::Transport;

/// How long the last words to clients over QUIC may take.
const GOODBYE: Duration = Duration::from_millis(100);

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

impl Opened {
    /// Answers on these sockets from now on.
    ///
    /// # Errors
    /// When the runtime does not take a socket, or TLS or QUIC does not take the certificate. No
    /// socket is served then.
    pub(super) fn serve<R: Respond>(self, serving: &Arc<Serving<R>>) -> Result<Encrypting, BindError> {
        let Self { tls, quic, certificate } = self;
        let (mut tls_listeners, mut quic_listeners) = (Vec::new(), Vec::new());
        for (address, socket) in tls {
            let failed = |source| BindError::System { address, transport: Transport::Tcp, source };
            let config = certificate.config(Purpose::Tls).map_err(|error| failed(io::Error::other(error)))?;
            let tls = TlsAcceptor::from(Arc::new(config));
            let listener = tcp::Listener::new(socket, address, Arc::clone(serving), Some(tls)).map_err(failed)?;
            tls_listeners.push(Arc::new(listener));
        }
        for (address, socket) in quic {
            let failed = |source| BindError::System { address, transport: Transport::Udp, source };
            let config = certificate.config(Purpose::Quic).map_err(|error| failed(io::Error::other(error)))?;
            let listener = quic::Listener::new(socket, address, Arc::clone(serving), config).map_err(failed)?;
            quic_listeners.push(Arc::new(listener));
        }
        serving.tracker.spawn(certificate.follow(serving.stop.clone()));
        let endpoints = quic_listeners.iter().map(|listener| listener.endpoint.clone()).collect();
        let mut loops = JoinSet::new();
        for listener in tls_listeners {
            loops.spawn(Arc::clone(serving).keep(listener.address, StreamKind::Tls, move || Arc::clone(&listener).run()));
        }
        for listener in quic_listeners {
            loops.spawn(Arc::clone(serving).keep(listener.address, StreamKind::Quic, move || Arc::clone(&listener).run()));
        }
        Ok(Encrypting { loops, endpoints })
    }
}

/// Encrypted listeners that are served.
#[derive(Debug)]
pub(super) struct Encrypting {
    loops: JoinSet<()>,
    /// The endpoints of QUIC. They outlive their loops: the connections of one share its socket.
    endpoints: Vec<quinn::Endpoint>,
}

impl Encrypting {
    /// Waits until nothing more is accepted.
    pub(super) async fn ended(&mut self) {
        while self.loops.join_next().await.is_some() {}
    }

    /// Closes what connections over QUIC are left.
    pub(super) async fn close(self) {
        for endpoint in self.endpoints {
            endpoint.close(VarInt::from_u32(0), b"");
            // Time to tell the clients; they notice by themselves if it is too short.
            let _ = timeout(GOODBYE, endpoint.wait_idle()).await;
        }
    }
}
