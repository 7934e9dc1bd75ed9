//! A single check of an endpoint.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::{CheckFailure, Settings};
use crate::service::{CheckTarget, Probe};

/// Limit on the headers of a response, in bytes.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Limit on the body that a check reads, in bytes.
///
/// The body is read so that the server can send all of it and reports no broken connection.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// Name under which requests appear in the logs of servers.
const AGENT: &str = concat!("svcdns/", env!("CARGO_PKG_VERSION"), " (check)");

/// Checks an endpoint once, within the timeout.
///
/// # Errors
/// If the check fails.
pub(super) async fn probe(target: CheckTarget, settings: &Settings) -> Result<(), CheckFailure> {
    let deadline = Instant::now() + settings.timeout;
    let stream = connect(target.socket_address(), deadline).await?;
    match target.probe {
        Probe::Tcp => Ok(()),
        Probe::Http => {
            match get(stream, target.socket_address(), &settings.path, deadline).await? {
                status if status.is_success() || status.is_redirection() => Ok(()),
                status => Err(CheckFailure::Status(status.as_u16())),
            }
        }
    }
}

async fn connect(address: SocketAddr, deadline: Instant) -> Result<TcpStream, CheckFailure> {
    let connected = timeout_at(deadline, TcpStream::connect(address)).await;
    let stream = connected
        .map_err(|_| CheckFailure::NoConnection)?
        .map_err(|error| CheckFailure::of_connect(&error))?;
    // TCP connects a socket to itself if the kernel picks the target as its own port: nobody
    // listens there, and the connection must not keep the port from a program that starts.
    if stream.local_addr().is_ok_and(|own| own == address) {
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        return Err(CheckFailure::Refused);
    }
    Ok(stream)
}

/// Requests a path, and returns the status of the final response; follows no redirect.
async fn get(
    stream: TcpStream,
    address: SocketAddr,
    path: &str,
    deadline: Instant,
) -> Result<StatusCode, CheckFailure> {
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, AGENT)
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| CheckFailure::NotHttp)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEADER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failure_of(&error))?;
    let mut connection = std::pin::pin!(connection);
    let mut connection_ended = false;
    let exchange = async {
        let mut response =
            sender.send_request(request).await.map_err(|error| failure_of(&error))?;
        let _ = timeout_at(deadline, drain(&mut response)).await;
        Ok(response.status())
    };
    let mut exchange = std::pin::pin!(timeout_at(deadline, exchange));
    loop {
        tokio::select! {
            result = &mut exchange => return result.unwrap_or(Err(CheckFailure::NoResponse)),
            _ = &mut connection, if !connection_ended => connection_ended = true,
        }
    }
}

/// Reads the body up to its limit; its content does not matter, nor does an error.
async fn drain(response: &mut Response<hyper::body::Incoming>) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = response.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > MAX_BODY_BYTES {
            return;
        }
    }
}

fn failure_of(error: &hyper::Error) -> CheckFailure {
    if error.is_parse() { CheckFailure::NotHttp } else { CheckFailure::Closed }
}
