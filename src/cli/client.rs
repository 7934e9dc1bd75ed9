//! HTTP client for the running server, over the socket in its runtime directory.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::ServerLocation;
use crate::admin;
use crate::answer::Explanation;
use crate::config::runtime_directories;
use crate::directory::TrustRule;
use crate::name::Name;
use crate::percent;
use crate::wire::{rtype, type_name};

/// Maximum wait for the head of a response.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum wait for the body of a response, unless it is a stream.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Error: no server is running.
#[derive(Debug, thiserror::Error)]
#[error(
    "no running svcdns was found ({searched}): start one with `svcdns serve`, or name its runtime \
     directory with --runtime-dir"
)]
pub(super) struct NotRunning {
    /// The directories and sockets tried, with the reason why each was not used.
    pub(super) searched: String,
}

/// A client of the HTTP interface of the running server.
#[derive(Debug)]
pub(super) struct AdminClient {
    socket: PathBuf,
}

impl AdminClient {
    /// Finds the running server.
    ///
    /// # Errors
    /// [`NotRunning`] if no socket accepts a connection.
    pub(super) async fn find(location: &ServerLocation) -> anyhow::Result<Self> {
        let mut searched = Vec::new();
        for candidate in runtime_directories(location.named().as_deref()) {
            let socket = admin::socket_path(&candidate.path)?;
            // Anyone can create a directory in the temp directory. In other directories the owner
            // does not matter: a server that root started may run as any user.
            if candidate.trust == TrustRule::OwnedAndNoLink && !candidate.is_trusted() {
                let reason = if candidate.path.exists() {
                    "owned by another user"
                } else {
                    "does not exist"
                };
                searched.push(format!("{}: {reason}", candidate.path.display()));
                continue;
            }
            match UnixStream::connect(&socket).await {
                Ok(_) => return Ok(Self { socket }),
                Err(error) => {
                    let reason = match error.kind() {
                        ErrorKind::NotFound => "does not exist".to_owned(),
                        ErrorKind::ConnectionRefused => {
                            "left behind by a server that exited".to_owned()
                        }
                        _ => error.to_string(),
                    };
                    searched.push(format!("{}: {reason}", socket.display()));
                }
            }
        }
        Err(NotRunning { searched: searched.join(", ") }.into())
    }

    /// Requests a path and returns the JSON text.
    pub(super) async fn get_text(&self, path: &str) -> anyhow::Result<String> {
        self.request_text(Method::GET, path).await
    }

    /// Requests a change by POST and decodes the JSON of the result.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        decode(&self.request_text(Method::POST, path).await?)
    }

    /// Requests a change by POST, waits as long as it takes, and returns the JSON text.
    pub(super) async fn post_patiently(&self, path: &str) -> anyhow::Result<String> {
        read_text(self.send(Method::POST, path).await?).await
    }

    /// Asks the server what a reload would change; the server changes nothing.
    pub(super) async fn check_reload(&self) -> anyhow::Result<ReloadCheck> {
        let response = self.request(Method::POST, "/v1/reload?check=true").await?;
        let status = response.status();
        match (status, read_text(response).await) {
            (StatusCode::FORBIDDEN, _) => Ok(ReloadCheck::NotPermitted),
            (StatusCode::CONFLICT, Err(refusal)) => Ok(ReloadCheck::Refused(refusal.to_string())),
            (_, text) => Ok(ReloadCheck::Accepted(text?)),
        }
    }

    async fn request_text(&self, method: Method, path: &str) -> anyhow::Result<String> {
        read_text(self.request(method, path).await?).await
    }

    /// Requests a path and decodes the JSON.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        decode(&self.get_text(path).await?)
    }

    /// Requests an explanation of the answer to a query.
    ///
    /// `payload` is the client's UDP payload size in bytes, 0 without EDNS.
    pub(super) async fn explain(
        &self,
        name: &Name,
        rtype: u16,
        payload: u16,
    ) -> anyhow::Result<Explanation> {
        let name = percent::encode(&name.to_string());
        let rtype = type_name(rtype);
        self.get(&format!("/v1/explain?name={name}&type={rtype}&payload={payload}")).await
    }

    /// Returns a registered name close to an unknown one, if there is one.
    pub(super) async fn suggest(&self, name: &Name) -> Option<String> {
        self.explain(name, rtype::A, 0).await.ok()?.suggestion
    }

    /// Requests a path whose response is an endless stream of lines.
    pub(super) async fn stream(&self, path: &str) -> anyhow::Result<Lines> {
        let response = self.request(Method::GET, path).await?;
        if response.status() != StatusCode::OK {
            bail!("the running svcdns responded with {}", response.status());
        }
        Ok(Lines { body: response.into_body(), read: Vec::new() })
    }

    async fn request(&self, method: Method, path: &str) -> anyhow::Result<Response<Incoming>> {
        let response = timeout(HEAD_TIMEOUT, self.send(method, path)).await;
        response.context("the running svcdns does not respond")?
    }

    /// Sends a request and waits for the head of the response.
    async fn send(&self, method: Method, path: &str) -> anyhow::Result<Response<Incoming>> {
        let response = async {
            let stream = UnixStream::connect(&self.socket).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let request = Request::builder().method(method).uri(path);
            let request = request.header("host", "localhost").body(Empty::<Bytes>::new())?;
            anyhow::Ok(sender.send_request(request).await?)
        };
        response.await.with_context(|| {
            format!("cannot reach the running svcdns at {}", self.socket.display())
        })
    }
}

/// Reads the body of a response.
///
/// # Errors
/// If the response is not a success; the text of the body is then the error.
async fn read_text(response: Response<Incoming>) -> anyhow::Result<String> {
    let status = response.status();
    if status == StatusCode::METHOD_NOT_ALLOWED {
        bail!("the running svcdns is an older version, which cannot do this");
    }
    let body = timeout(BODY_TIMEOUT, response.into_body().collect())
        .await
        .context("the running svcdns did not send its response in time")??;
    let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    if status == StatusCode::OK { Ok(text) } else { Err(anyhow!("{}", text.trim_end())) }
}

/// Decodes the JSON of a response.
pub(super) fn decode<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text)
        .context("the response of the running svcdns, which is another version, cannot be decoded")
}

/// The server's reply to the question what a reload would change.
#[derive(Debug)]
pub(super) enum ReloadCheck {
    /// The JSON of the changes.
    Accepted(String),
    /// The configuration does not hold, for this reason.
    Refused(String),
    /// The user has no right to ask.
    NotPermitted,
}

/// The lines of an endless response.
#[derive(Debug)]
pub(super) struct Lines {
    body: Incoming,
    read: Vec<u8>,
}

impl Lines {
    /// Waits for the next line that is not empty; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(end) = self.read.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if line.is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    self.read.extend_from_slice(frame.data_ref().map_or(&[], |data| &**data));
                }
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}
