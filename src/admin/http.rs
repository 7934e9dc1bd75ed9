//! Connections: how many, how long, and to whom.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::watching::Watching;
use super::{Site, routes};

/// Most connections at a time, of one listener.
const CONNECTIONS: usize = 128;

/// How long a client may take to send the head of a request, and a connection may be idle.
const HEAD: Duration = Duration::from_secs(5);

/// How long a connection may live that carries no live changes.
const LIFE: Duration = Duration::from_secs(60);

/// How long responses under way have to get out once the server stops.
const DRAIN: Duration = Duration::from_secs(1);

/// How long to wait after a failure to accept, which is most often a want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Where to serve.
#[derive(Debug)]
pub enum Listener {
    /// The socket in the runtime directory.
    Socket(UnixListener),
    /// A loopback port; a browser can be made to reach it, so the `Host` header is looked at.
    Port(TcpListener),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Socket(listener) => Box::new(listener.accept().await?.0),
            Self::Port(listener) => Box::new(listener.accept().await?.0),
        })
    }

    /// The address, where it is a port.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(_) => None,
            Self::Port(listener) => listener.local_addr().ok(),
        }
    }
}

/// Serves until `stop`, then lets responses under way go out, for at most a second.
pub async fn serve(listener: Listener, site: Arc<Site>, stop: CancellationToken) {
    let mut router = routes::router(site, stop.clone()).layer(axum::middleware::from_fn(only_reading));
    if matches!(listener, Listener::Port(_)) {
        router = router.layer(axum::middleware::from_fn(only_by_loopback_names));
    }
    let (places, tracker) = (Arc::new(Semaphore::new(CONNECTIONS)), TaskTracker::new());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        match accepted {
            (Ok(place), Ok(stream)) => {
                let (router, stop) = (router.clone(), stop.clone());
                tracker.spawn(async move {
                    converse(stream, router, stop).await;
                    drop(place);
                });
            }
            (Err(_), _) => break,
            (_, Err(error)) => {
                tracing::debug!(%error, "no connection to the HTTP interface");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    tracker.close();
    // Whoever is not done by then is cut off with the runtime.
    let _ = tokio::time::timeout(DRAIN, tracker.wait()).await;
}

async fn converse(stream: Box<dyn Stream>, router: Router, stop: CancellationToken) {
    let watching = Watching::default();
    let service = TowerToHyperService::new(router.layer(axum::Extension(watching.clone())));
    let mut builder = http1::Builder::new();
    let builder = builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut stopping = false;
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = stop.cancelled(), if !stopping => {
                connection.as_mut().graceful_shutdown();
                stopping = true;
            }
            () = tokio::time::sleep(LIFE) => if !watching.is_on() { return },
        }
    }
}

async fn only_reading(request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        next.run(request).await
    } else {
        (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")], "this interface only reads\n").into_response()
    }
}

/// A web page elsewhere can give its own name the address 127.0.0.1, but not send another name in `Host`.
async fn only_by_loopback_names(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if host.is_some_and(is_loopback) {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "ask for this interface by localhost or a loopback address\n").into_response()
    }
}

/// Whether the text of a `Host` header names this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    let localhost = name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost");
    localhost || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for host in
            ["localhost", "LocalHost:5380", "a.localhost", "127.0.0.1", "127.9.9.9:1", "[::1]:5380", "[::1]", "[::ffff:127.0.0.1]:1"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["", "example.com", "127.0.0.1.example.com", "localhost.example.com:5380", "10.0.0.1", "[fd00::1]:1", "0.0.0.0", "xlocalhost"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
