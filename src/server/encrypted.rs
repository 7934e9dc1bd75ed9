//! Encrypted listeners: DNS over TLS (RFC 7858) and DNS over QUIC (RFC 9250).

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::VarInt;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::bind_error::{LISTEN_QUIC, LISTEN_TLS};
use super::certificate::{Certificate, TlsPurpose};
use super::context::ServerContext;
use super::listening::{ListenSet, resolved};
use super::quic::{QuicListener, server_config};
use super::sockets::{canonical, open_tcp, open_udp};
use super::{BindError, EncryptedSettings, Respond, StreamKind, tcp};
use crate::inherited::{InheritedSockets, SocketName};
use crate::wire::Transport;

/// Time limit for notifying QUIC clients that the server closes.
const QUIC_CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// Bound sockets for encrypted DNS, ready to be served.
#[derive(Debug)]
pub(super) struct EncryptedSockets {
    tls: Vec<(SocketAddr, TcpListener)>,
    quic: Vec<(SocketAddr, UdpSocket)>,
    /// The certificate, if its files are not those in operation.
    certificate: Option<Certificate>,
    /// All encrypted addresses of the configuration, and the files of their certificate.
    pub(super) listening: ListenSet,
}

impl EncryptedSockets {
    /// Loads the certificate and binds the sockets that are not `active`.
    ///
    /// # Errors
    /// If the certificate cannot be loaded or a socket cannot be bound.
    pub(super) fn open(
        settings: &EncryptedSettings,
        inherited: &mut InheritedSockets,
        active: &ListenSet,
    ) -> Result<Self, BindError> {
        let files = settings.certificate.clone().filter(|_| settings.addresses().next().is_some());
        let mut opened = Self {
            tls: Vec::new(),
            quic: Vec::new(),
            certificate: None,
            listening: ListenSet { certificate: files.clone(), ..ListenSet::default() },
        };
        let Some(files) = files else { return Ok(opened) };
        if active.certificate.as_ref() != Some(&files) {
            opened.certificate = Some(Certificate::open(files)?);
        }
        for listen in settings.tls.iter().copied().map(canonical) {
            if let Some(address) = resolved(&active.tls, listen) {
                opened.listening.tls.push((listen, address));
                continue;
            }
            let failed = |error| BindError::explain(Transport::Tcp, &LISTEN_TLS, listen, error);
            let passed = inherited
                .sockets
                .extract_if(.., |one| one.name == SocketName::Tls && one.address == listen);
            let passed = passed.filter_map(|one| one.socket.tcp()).last();
            let socket = passed.map_or_else(|| open_tcp(listen), Ok).map_err(failed)?;
            socket.set_nonblocking(true).map_err(failed)?;
            let address = socket.local_addr().map_err(failed)?;
            opened.listening.tls.push((listen, address));
            opened.tls.push((address, socket));
        }
        for listen in settings.quic.iter().copied().map(canonical) {
            if let Some(address) = resolved(&active.quic, listen) {
                opened.listening.quic.push((listen, address));
                continue;
            }
            let failed = |error| BindError::explain(Transport::Udp, &LISTEN_QUIC, listen, error);
            let passed = inherited
                .sockets
                .extract_if(.., |one| one.name == SocketName::Quic && one.address == listen);
            let passed: Vec<_> = passed.filter_map(|one| one.socket.udp()).collect();
            let sockets = if passed.is_empty() { open_udp(listen, 1) } else { Ok(passed) };
            for socket in sockets.map_err(failed)? {
                socket.set_nonblocking(true).map_err(failed)?;
                let address = socket.local_addr().map_err(failed)?;
                if resolved(&opened.listening.quic, listen).is_none() {
                    opened.listening.quic.push((listen, address));
                }
                opened.quic.push((address, socket));
            }
        }
        Ok(opened)
    }
}

/// Running encrypted listeners.
#[derive(Debug)]
pub(super) struct EncryptedListeners<R> {
    context: Arc<ServerContext<R>>,
    certificate: Option<Arc<Certificate>>,
    active: Vec<ActiveListener>,
    /// Cancelled once no other process reads the sockets for QUIC.
    quic_is_free: CancellationToken,
    /// Sockets for QUIC until then: of two readers, each would get a part of every connection.
    waiting: Vec<(SocketAddr, UdpSocket)>,
}

/// An encrypted listener with a running accept loop.
#[derive(Debug)]
struct ActiveListener {
    kind: StreamKind,
    address: SocketAddr,
    /// Cancelled when this listener must stop accepting.
    stop: CancellationToken,
    accepting: JoinHandle<()>,
    /// The QUIC endpoint, which outlives its loop: connections share the socket.
    endpoint: Option<quinn::Endpoint>,
}

impl<R: Respond> EncryptedListeners<R> {
    /// Creates an empty set of listeners.
    pub(super) fn new(context: Arc<ServerContext<R>>, quic_is_free: CancellationToken) -> Self {
        let (active, waiting) = (Vec::new(), Vec::new());
        Self { context, certificate: None, active, quic_is_free, waiting }
    }

    /// Waits until no other process reads the sockets for QUIC; forever if none waits for that.
    pub(super) fn quic_freed(&self) -> impl Future<Output = ()> + use<R> {
        let free = (!self.waiting.is_empty()).then(|| self.quic_is_free.clone());
        async move {
            match free {
                Some(free) => free.cancelled().await,
                None => std::future::pending().await,
            }
        }
    }

    /// Starts listeners for the sockets for QUIC that have waited.
    ///
    /// # Errors
    /// If the runtime rejects a socket, or QUIC its configuration.
    pub(super) fn serve_waiting(&mut self) -> Result<(), BindError> {
        let Some(certificate) = self.certificate.clone() else { return Ok(()) };
        for (address, socket) in std::mem::take(&mut self.waiting) {
            self.serve_quic(address, socket, &certificate)?;
        }
        Ok(())
    }

    /// Starts listeners for all bound sockets, and ends those of other addresses.
    ///
    /// # Errors
    /// If the runtime rejects a socket, or TLS or QUIC rejects its configuration. The listeners
    /// that were active before then serve on.
    pub(super) fn serve(&mut self, sockets: EncryptedSockets) -> Result<(), BindError> {
        let EncryptedSockets { tls, quic, certificate: replaced, listening } = sockets;
        match (&self.certificate, replaced) {
            (Some(certificate), Some(other)) => certificate.replace(&other),
            (None, Some(certificate)) => {
                let certificate = Arc::new(certificate);
                let following = Arc::clone(&certificate).follow(self.context.stop.clone());
                self.context.tracker.spawn(following);
                self.certificate = Some(certificate);
            }
            (Some(certificate), None) if listening.certificate.is_none() => certificate.rest(),
            (_, None) => {}
        }
        let is_wanted = |listener: &ActiveListener| {
            let pairs =
                if listener.kind == StreamKind::Tls { &listening.tls } else { &listening.quic };
            pairs.iter().any(|(_, address)| *address == listener.address)
        };
        for ended in self.active.extract_if(.., |listener| !is_wanted(listener)) {
            ended.stop.cancel();
            self.context.tracker.spawn(ended.close());
        }
        self.waiting
            .retain(|(waiting, _)| listening.quic.iter().any(|(_, address)| address == waiting));
        let Some(certificate) = self.certificate.clone() else { return Ok(()) };
        for (address, socket) in tls {
            self.serve_tls(address, socket, &certificate)?;
        }
        for endpoint in self.active.iter().filter_map(|listener| listener.endpoint.as_ref()) {
            let tls = certificate.config(TlsPurpose::Quic).map_err(io::Error::other);
            let limits = &self.context.rules.load().limits;
            if let Ok(Ok(config)) = tls.map(|tls| server_config(tls, limits)) {
                endpoint.set_server_config(Some(config));
            }
        }
        self.waiting.extend(quic);
        if self.quic_is_free.is_cancelled() { self.serve_waiting() } else { Ok(()) }
    }

    /// Starts a listener for DNS over TLS.
    fn serve_tls(
        &mut self,
        address: SocketAddr,
        socket: TcpListener,
        certificate: &Arc<Certificate>,
    ) -> Result<(), BindError> {
        let failed = |source| BindError::System { address, transport: Transport::Tcp, source };
        let config =
            certificate.config(TlsPurpose::Tls).map_err(|error| failed(io::Error::other(error)))?;
        let tls = TlsAcceptor::from(Arc::new(config));
        let stop = self.context.stop.child_token();
        let context = Arc::new(self.context.with_stop(stop.clone()));
        let listener = tcp::StreamListener::new(socket, address, Arc::clone(&context), Some(tls))
            .map_err(failed)?;
        let listener = Arc::new(listener);
        context.open.add(SocketName::Tls, address, &listener);
        let run = move || Arc::clone(&listener).run();
        let accepting = tokio::spawn(context.supervise(address, StreamKind::Tls, run));
        let kind = StreamKind::Tls;
        self.active.push(ActiveListener { kind, address, stop, accepting, endpoint: None });
        Ok(())
    }

    /// Starts a listener for DNS over QUIC.
    fn serve_quic(
        &mut self,
        address: SocketAddr,
        socket: UdpSocket,
        certificate: &Arc<Certificate>,
    ) -> Result<(), BindError> {
        let failed = |source| BindError::System { address, transport: Transport::Udp, source };
        let config = certificate
            .config(TlsPurpose::Quic)
            .map_err(|error| failed(io::Error::other(error)))?;
        let stop = self.context.stop.child_token();
        let context = Arc::new(self.context.with_stop(stop.clone()));
        let listener =
            QuicListener::new(socket, address, Arc::clone(&context), config).map_err(failed)?;
        let listener = Arc::new(listener);
        context.open.add(SocketName::Quic, address, &listener);
        let endpoint = Some(listener.endpoint.clone());
        let run = move || Arc::clone(&listener).run();
        let accepting = tokio::spawn(context.supervise(address, StreamKind::Quic, run));
        let kind = StreamKind::Quic;
        self.active.push(ActiveListener { kind, address, stop, accepting, endpoint });
        Ok(())
    }

    /// Waits until all accept loops have ended.
    pub(super) async fn join_loops(&mut self) {
        for listener in &mut self.active {
            let _ = (&mut listener.accepting).await;
        }
    }

    /// Closes the remaining QUIC connections.
    pub(super) async fn close(self) {
        for endpoint in self.active.into_iter().filter_map(|listener| listener.endpoint) {
            close_endpoint(endpoint).await;
        }
    }
}

impl ActiveListener {
    /// Waits until the accept loop and the connections of the listener have ended.
    async fn close(self) {
        let _ = self.accepting.await;
        if let Some(endpoint) = self.endpoint {
            // The connections end by themselves: they were told to stop.
            endpoint.wait_idle().await;
            close_endpoint(endpoint).await;
        }
    }
}

/// Closes a QUIC endpoint.
async fn close_endpoint(endpoint: quinn::Endpoint) {
    endpoint.close(VarInt::from_u32(0), b"");
    // Time to notify the clients. If it is too short, their idle timeout ends the connection.
    let _ = timeout(QUIC_CLOSE_TIMEOUT, endpoint.wait_idle()).await;
}
