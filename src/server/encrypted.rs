//! Encrypted listeners: DNS over TLS (RFC 7858) and DNS over QUIC (RFC 9250).

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::VarInt;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::bind_error::{LISTEN_QUIC, LISTEN_TLS};
use super::certificate::{Certificate, TlsPurpose};
use super::context::ServerContext;
use super::quic::QuicListener;
use super::sockets::{canonical, open_tcp, open_udp};
use super::{BindError, EncryptedSettings, Respond, StreamKind, tcp};
use crate::inherited::{InheritedSockets, SocketName};
use crate::wire::Transport;

/// Time limit for notifying QUIC clients that the server closes.
const QUIC_CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// Bound sockets for encrypted DNS, ready to be served.
#[derive(Debug)]
pub(super) struct EncryptedSockets {
    pub(super) tls: Vec<(SocketAddr, TcpListener)>,
    pub(super) quic: Vec<(SocketAddr, UdpSocket)>,
    pub(super) certificate: Arc<Certificate>,
}

impl EncryptedSockets {
    /// Loads the certificate and binds the sockets; `None` if there is no address.
    ///
    /// # Errors
    /// If the certificate cannot be loaded or a socket cannot be bound.
    pub(super) fn open(
        settings: &EncryptedSettings,
        inherited: &mut InheritedSockets,
    ) -> Result<Option<Self>, BindError> {
        let Some(files) =
            settings.certificate.clone().filter(|_| settings.addresses().next().is_some())
        else {
            return Ok(None);
        };
        let certificate = Arc::new(Certificate::open(files)?);
        let (mut tls, mut quic) = (Vec::new(), Vec::new());
        for address in settings.tls.iter().copied().map(canonical) {
            let failed = |error| BindError::explain(Transport::Tcp, &LISTEN_TLS, address, error);
            let passed = inherited
                .sockets
                .extract_if(.., |one| one.name == SocketName::Tls && one.address == address);
            let passed = passed.filter_map(|one| one.socket.tcp()).last();
            let socket = passed.map_or_else(|| open_tcp(address), Ok).map_err(failed)?;
            tls.push((socket.local_addr().map_err(failed)?, socket));
        }
        for address in settings.quic.iter().copied().map(canonical) {
            let failed = |error| BindError::explain(Transport::Udp, &LISTEN_QUIC, address, error);
            let passed = inherited
                .sockets
                .extract_if(.., |one| one.name == SocketName::Quic && one.address == address);
            let passed: Vec<_> = passed.filter_map(|one| one.socket.udp()).collect();
            let sockets = if passed.is_empty() { open_udp(address, 1) } else { Ok(passed) };
            for socket in sockets.map_err(failed)? {
                quic.push((socket.local_addr().map_err(failed)?, socket));
            }
        }
        Ok(Some(Self { tls, quic, certificate }))
    }

    /// Starts the listeners for DNS over TLS; returns the sockets for QUIC.
    ///
    /// # Errors
    /// If the runtime rejects a socket, or TLS its configuration. No socket is served in that case.
    pub(super) fn serve<R: Respond>(
        self,
        context: &Arc<ServerContext<R>>,
    ) -> Result<(EncryptedListeners, QuicSockets), BindError> {
        let Self { tls, quic, certificate } = self;
        let mut tls_listeners = Vec::new();
        for (address, socket) in tls {
            let failed = |source| BindError::System { address, transport: Transport::Tcp, source };
            let config = certificate
                .config(TlsPurpose::Tls)
                .map_err(|error| failed(io::Error::other(error)))?;
            let tls = TlsAcceptor::from(Arc::new(config));
            let listener =
                tcp::StreamListener::new(socket, address, Arc::clone(context), Some(tls))
                    .map_err(failed)?;
            let listener = Arc::new(listener);
            context.open.add(SocketName::Tls, address, &listener);
            tls_listeners.push(listener);
        }
        context.tracker.spawn(Arc::clone(&certificate).follow(context.stop.clone()));
        let mut loops = JoinSet::new();
        for listener in tls_listeners {
            loops.spawn(Arc::clone(context).supervise(
                listener.address,
                StreamKind::Tls,
                move || Arc::clone(&listener).run(),
            ));
        }
        let listeners = EncryptedListeners { loops, endpoints: Vec::new() };
        Ok((listeners, QuicSockets { sockets: quic, certificate }))
    }
}

/// Bound sockets for DNS over QUIC, which two processes cannot read at the same time.
///
/// Each would get a part of every connection.
#[derive(Debug)]
pub(super) struct QuicSockets {
    sockets: Vec<(SocketAddr, UdpSocket)>,
    certificate: Arc<Certificate>,
}

impl QuicSockets {
    /// Starts the listeners, and adds them to those for TLS.
    ///
    /// # Errors
    /// If the runtime rejects a socket, or QUIC its configuration. No socket is served in that
    /// case.
    pub(super) fn serve<R: Respond>(
        self,
        context: &Arc<ServerContext<R>>,
        started: &mut EncryptedListeners,
    ) -> Result<(), BindError> {
        let mut listeners = Vec::new();
        for (address, socket) in self.sockets {
            let failed = |source| BindError::System { address, transport: Transport::Udp, source };
            let config = self.certificate.config(TlsPurpose::Quic);
            let config = config.map_err(|error| failed(io::Error::other(error)))?;
            let listener = QuicListener::new(socket, address, Arc::clone(context), config);
            listeners.push(Arc::new(listener.map_err(failed)?));
        }
        for listener in listeners {
            let address = listener.address;
            context.open.add(SocketName::Quic, address, &listener);
            started.endpoints.push(listener.endpoint.clone());
            let run = move || Arc::clone(&listener).run();
            started.loops.spawn(Arc::clone(context).supervise(address, StreamKind::Quic, run));
        }
        Ok(())
    }
}

/// Running encrypted listeners.
#[derive(Debug)]
pub(super) struct EncryptedListeners {
    loops: JoinSet<()>,
    /// The QUIC endpoints, which outlive their loops: connections share the socket.
    endpoints: Vec<quinn::Endpoint>,
}

impl EncryptedListeners {
    /// Waits until all accept loops have ended.
    pub(super) async fn join_loops(&mut self) {
        while self.loops.join_next().await.is_some() {}
    }

    /// Closes the remaining QUIC connections.
    pub(super) async fn close(self) {
        for endpoint in self.endpoints {
            endpoint.close(VarInt::from_u32(0), b"");
            // Time to notify the clients. If it is too short, their idle timeout ends the
            // connection.
            let _ = timeout(QUIC_CLOSE_TIMEOUT, endpoint.wait_idle()).await;
        }
    }
}
