//! Connections of the HTTP interface, with their limits and access check.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::release::Requester;
use super::routes::RELEASE_PATH;
use super::streams::StreamCount;
use super::{AdminContext, routes};

/// Limit on the open connections of a listener.
const MAX_CONNECTIONS: usize = 128;

/// Maximum wait for the head of a request; also limits idle connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum lifetime of a connection without a change stream.
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
    /// Any web page can make a browser send requests to the port, so the `Host` header is checked.
    Port(TcpListener),
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
    let mut router =
        routes::router(context, stop.clone()).layer(axum::middleware::from_fn(check_method));
    if matches!(listener, AdminListener::Port(_)) {
        router = router.layer(axum::middleware::from_fn(check_host));
    }
    let (permits, tracker) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), TaskTracker::new());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, listener.accept().await)
            } => accepted,
        };
        match accepted {
            (Ok(permit), Ok((stream, requester))) => {
                let router = router.clone().layer(Extension(requester));
                let stop = stop.clone();
                tracker.spawn(async move {
                    serve_connection(stream, router, stop).await;
                    drop(permit);
                });
            }
            (Err(_), _) => break,
            (_, Err(error)) => {
                tracing::debug!(%error, "cannot accept a connection to the HTTP interface");
                tokio::time::sleep(ACCEPT_RETRY_PAUSE).await;
            }
        }
    }
    tracker.close();
    // Connections that remain are closed when the runtime ends.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, tracker.wait()).await;
}

/// Serves a connection for at most [`CONNECTION_LIFETIME`], or until `stop`.
async fn serve_connection(stream: Box<dyn ByteStream>, router: Router, stop: CancellationToken) {
    let streams = StreamCount::default();
    let service = TowerToHyperService::new(router.layer(Extension(streams.clone())));
    let mut builder = http1::Builder::new();
    let builder = builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut stopping = false;
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = stop.cancelled(), if !stopping => {
                connection.as_mut().graceful_shutdown();
                stopping = true;
            }
            () = tokio::time::sleep(CONNECTION_LIFETIME) => if !streams.any() { return },
        }
    }
}

/// Accepts GET and HEAD only, and POST to release held removals.
async fn check_method(request: Request, next: Next) -> Response {
    let may_post = request.uri().path() == RELEASE_PATH;
    if matches!(*request.method(), Method::GET | Method::HEAD)
        || (*request.method() == Method::POST && may_post)
    {
        next.run(request).await
    } else {
        (
            StatusCode::METHOD_NOT_ALLOWED,
            [(header::ALLOW, "GET, HEAD")],
            "only GET and HEAD are allowed\n",
        )
            .into_response()
    }
}

/// Accepts only requests whose `Host` header names this machine.
///
/// The check stops DNS rebinding: a web page can give its own name the address 127.0.0.1, but the
/// browser still sends that name as `Host`.
async fn check_host(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if host.is_some_and(is_loopback) {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "the Host header must be localhost or a loopback address\n")
            .into_response()
    }
}

/// Returns whether a `Host` header names this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    let localhost =
        name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost");
    localhost || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_localhost_and_loopback_addresses_count_as_loopback_hosts() {
        for host in [
            "localhost",
            "LocalHost:5380",
            "a.localhost",
            "127.0.0.1",
            "127.9.9.9:1",
            "[::1]:5380",
            "[::1]",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "example.com",
            "127.0.0.1.example.com",
            "localhost.example.com:5380",
            "10.0.0.1",
            "[fd00::1]:1",
            "0.0.0.0",
            "xlocalhost",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
