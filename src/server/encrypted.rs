//! Encrypted listeners, for clients elsewhere: DNS over TLS (RFC 7858) and over QUIC (RFC 9250).

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::VarInt;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::bind_error::{LISTEN_QUIC, LISTEN_TLS};
use super::certificate::{Certificate, Purpose};
use super::quic::QuicListener;
use super::serving::Serving;
use super::sockets::{canonical, open_tcp, open_udp};
use super::{BindError, Encrypted, Respond, StreamKind, tcp};
use crate::wire::Transport;

/// How long the last words to clients over QUIC may take.
const GOODBYE: Duration = Duration::from_millis(100);

/// Encrypted listeners that are open and wait to be served.
#[derive(Debug)]
pub(super) struct EncryptedSockets {
    pub(super) tls: Vec<(SocketAddr, TcpListener)>,
    pub(super) quic: Vec<(SocketAddr, UdpSocket)>,
    pub(super) certificate: Arc<Certificate>,
}

impl EncryptedSockets {
    /// Reads the certificate and opens the sockets; none where no address is named.
    ///
    /// # Errors
    /// When either fails.
    pub(super) fn open(settings: &Encrypted) -> Result<Option<Self>, BindError> {
        let Some(files) = settings.certificate.clone().filter(|_| settings.addresses().next().is_some()) else { return Ok(None) };
        let certificate = Arc::new(Certificate::open(files)?);
        let (mut tls, mut quic) = (Vec::new(), Vec::new());
        for address in settings.tls.iter().copied().map(canonical) {
            let failed = |error| BindError::explain(Transport::Tcp, &LISTEN_TLS, address, error);
            let socket = open_tcp(address).map_err(failed)?;
            tls.push((socket.local_addr().map_err(failed)?, socket));
        }
        for address in settings.quic.iter().copied().map(canonical) {
            let failed = |error| BindError::explain(Transport::Udp, &LISTEN_QUIC, address, error);
            for socket in open_udp(address, 1).map_err(failed)? {
                quic.push((socket.local_addr().map_err(failed)?, socket));
            }
        }
        Ok(Some(Self { tls, quic, certificate }))
    }

    /// Answers on these sockets from now on.
    ///
    /// # Errors
    /// When the runtime does not take a socket, or TLS or QUIC does not take the certificate. No
    /// socket is served then.
    pub(super) fn serve<R: Respond>(self, serving: &Arc<Serving<R>>) -> Result<EncryptedListeners, BindError> {
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
            let listener = QuicListener::new(socket, address, Arc::clone(serving), config).map_err(failed)?;
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
        Ok(EncryptedListeners { loops, endpoints })
    }
}

/// Encrypted listeners that are served.
#[derive(Debug)]
pub(super) struct EncryptedListeners {
    loops: JoinSet<()>,
    /// The endpoints of QUIC. They outlive their loops: the connections of one share its socket.
    endpoints: Vec<quinn::Endpoint>,
}

impl EncryptedListeners {
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
