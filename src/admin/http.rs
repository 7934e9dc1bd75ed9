//! Connections of the HTTP interface, with their limits and access check.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::from_fn;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connections::{AdminConnection, AdminConnections};
use super::requester::Requester;
use super::{AdminContext, guard, routes};

/// Limit on the open connections of a listener.
const MAX_CONNECTIONS: usize = 128;

/// Limit on the head of a request, in bytes. A longer one is answered with 431.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Limit on the header lines of a request. More of them are answered with 431.
const MAX_HEADERS: usize = 64;

/// Maximum wait for the head of a request; also limits idle connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval at which a connection is closed unless it is busy, however active it was before.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);

/// Maximum wait for responses in progress once the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause after a failed accept, which usually means that file descriptors ran out.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A listener of the HTTP interface.
#[derive(Debug)]
pub enum AdminListener {
    /// The socket in the runtime directory.
    Socket(UnixListener),
    /// A loopback port.
    ///
    /// Any web page can make a browser send requests to it, so the sender is checked.
    Port(Arc<TcpListener>),
}

/// The byte stream of a connection, over TCP or a Unix socket.
trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

impl AdminListener {
    /// Accepts a connection, and finds out who sends its requests.
    async fn accept(&self) -> io::Result<(Box<dyn ByteStream>, Requester)> {
        Ok(match self {
            Self::Socket(listener) => {
                let (stream, _) = listener.accept().await?;
                let user = stream.peer_cred().map(|credentials| credentials.uid());
                (Box::new(stream), Requester(user.ok()))
            }
            Self::Port(listener) => (Box::new(listener.accept().await?.0), Requester(None)),
        })
    }

    /// Returns the address of a port; `None` for a socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(_) => None,
            Self::Port(listener) => listener.local_addr().ok(),
        }
    }
}

/// Serves until `stop`, then sends the responses in progress for at most 1 s.
pub async fn serve(listener: AdminListener, context: Arc<AdminContext>, stop: CancellationToken) {
    let mut router = routes::router(context, stop.clone());
    if matches!(listener, AdminListener::Port(_)) {
        router = router.layer(from_fn(guard::check_sender));
    }
    let router = router.layer(from_fn(guard::check));
    let (connections, tracker) = (AdminConnections::new(MAX_CONNECTIONS), TaskTracker::new());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, requester)) => {
                // Without room, the connection is closed.
                let Some(connection) = connections.admit() else { continue };
                let router = router.clone().layer(Extension(requester));
                tracker.spawn(serve_connection(stream, connection, router, stop.clone()));
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection to the HTTP interface");
                tokio::time::sleep(ACCEPT_RETRY_PAUSE).await;
            }
        }
    }
    tracker.close();
    // Connections that remain are closed when the runtime ends.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, tracker.wait()).await;
}

/// Serves a connection until it is replaced, or is not busy after [`CONNECTION_LIFETIME`].
///
/// After `stop`, it ends with the response in progress.
async fn serve_connection(
    stream: Box<dyn ByteStream>,
    connection: AdminConnection,
    router: Router,
    stop: CancellationToken,
) {
    let service = TowerToHyperService::new(router.layer(Extension(connection.clone())));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut stopping = false;
    loop {
        tokio::select! {
            _ = serving.as_mut() => return,
            () = connection.replaced() => return,
            () = stop.cancelled(), if !stopping => {
                serving.as_mut().graceful_shutdown();
                stopping = true;
            }
            () = tokio::time::sleep(CONNECTION_LIFETIME) => if !connection.is_busy() { return },
        }
    }
}
