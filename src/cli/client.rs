//! Asks the running server through the socket in its runtime directory.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Place;
use crate::admin;
use crate::config::runtime_directories;
use crate::directory::TrustRule;

/// How long the server may take to begin to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How long it may take to send all.
const WHOLE: Duration = Duration::from_secs(60);

/// No server runs where one was looked for.
#[derive(Debug, thiserror::Error)]
#[error("no running svcdns was found ({looked}): start one with `svcdns serve`, or name its runtime directory with --runtime-dir")]
pub(super) struct NotRunning {
    /// Where, and what was found there.
    pub(super) looked: String,
}

/// The way to the running server.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    /// Finds the running server.
    pub(super) async fn find(place: &Place) -> anyhow::Result<Self> {
        let mut looked = Vec::new();
        for candidate in runtime_directories(place.named().as_deref()) {
            let socket = admin::socket_path(&candidate.path)?;
            // A server that root started may run as any user; only one in the temp directory may be
            // a stranger's.
            if candidate.trust == TrustRule::OwnedAndNoLink && !candidate.is_trusted() {
                looked.push(format!("{}: {}", candidate.path.display(), if candidate.path.exists() { "not ours" } else { "not there" }));
                continue;
            }
            match UnixStream::connect(&socket).await {
                Ok(_) => return Ok(Self { socket }),
                Err(error) => {
                    let why = match error.kind() {
                        ErrorKind::NotFound => "not there".to_owned(),
                        ErrorKind::ConnectionRefused => "left behind by a server that is gone".to_owned(),
                        _ => error.to_string(),
                    };
                    looked.push(format!("{}: {why}", socket.display()));
                }
            }
        }
        Err(NotRunning { looked: looked.join(", ") }.into())
    }

    /// Gets what stands behind a path, as JSON text.
    pub(super) async fn text(&self, path: &str) -> anyhow::Result<String> {
        let response = self.request(path).await?;
        let status = response.status();
        let body = timeout(WHOLE, response.into_body().collect()).await.context("the running svcdns takes too long to answer")??;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        if status == StatusCode::OK { Ok(text) } else { Err(anyhow!("{}", text.trim_end())) }
    }

    /// Gets what stands behind a path.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let text = self.text(path).await?;
        serde_json::from_str(&text).context("the running svcdns is of another version: its answer cannot be read")
    }

    /// Begins to read what stands behind a path and never ends.
    pub(super) async fn stream(&self, path: &str) -> anyhow::Result<Lines> {
        let response = self.request(path).await?;
        if response.status() != StatusCode::OK {
            bail!("the running svcdns says {}", response.status());
        }
        Ok(Lines { body: response.into_body(), read: Vec::new() })
    }

    async fn request(&self, path: &str) -> anyhow::Result<Response<Incoming>> {
        let asked = async {
            let stream = UnixStream::connect(&self.socket).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new())?;
            anyhow::Ok(sender.send_request(request).await?)
        };
        let response = timeout(ANSWER, asked).await.context("the running svcdns does not answer")?;
        response.with_context(|| format!("cannot ask the running svcdns at {}", self.socket.display()))
    }
}

/// The lines of a response that never ends.
#[derive(Debug)]
pub(super) struct Lines {
    body: Incoming,
    read: Vec<u8>,
}

impl Lines {
    /// The next line that is not empty; none when the server has gone.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(end) = self.read.iter().position(|&octet| octet == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if line.is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.read.extend_from_slice(frame.data_ref().map_or(&[], |data| &**data)),
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}

/// A value of a query in a URL: everything but letters, digits and `-._~` in percent form (RFC 3986 section 2).
pub(super) fn escaped(text: &str) -> String {
    use std::fmt::Write;
    let mut escaped = String::with_capacity(text.len());
    for octet in text.bytes() {
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            escaped.push(char::from(octet));
        } else {
            let _ = write!(escaped, "%{octet:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        assert_eq!(escaped("a-b.svc"), "a-b.svc");
        assert_eq!(escaped(r"x\046 é&"), "x%5C046%20%C3%A9%26");
    }
}
