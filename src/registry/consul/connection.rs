//! Connections to one agent: TCP, TLS and HTTP/1.1.

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Settings;
use super::failure::{ConsulFailure, ConsulFailureKind};
use crate::registry::identify::{self, ServerKind};
use crate::registry::tls::{
    TlsTarget, describe_connect_error, describe_handshake_error, is_plain_server,
};

/// A connection that is ready for a request.
pub(super) type HttpConnection = SendRequest<Full<Bytes>>;

/// Opens connections to one agent.
#[derive(Clone)]
pub(super) struct AgentConnector {
    /// The agent as `host:port`.
    pub(super) endpoint: String,
    tls: Option<TlsTarget>,
    dial_timeout: Duration,
}

impl AgentConnector {
    /// Reads the TLS files.
    pub(super) async fn new(settings: &Settings, endpoint: &str) -> Result<Self, ConsulFailure> {
        let invalid = |text: String| ConsulFailure::new(ConsulFailureKind::Settings, text);
        let tls = match &settings.tls {
            Some(tls) => Some(tls.target(endpoint).await.map_err(invalid)?),
            None => None,
        };
        let dial_timeout = settings.tuning.dial_timeout;
        Ok(Self { endpoint: endpoint.to_owned(), tls, dial_timeout })
    }

    /// Opens a connection.
    pub(super) async fn connect(&self) -> Result<HttpConnection, ConsulFailure> {
        let connect = async {
            let stream = self.connect_tcp().await?;
            match &self.tls {
                None => handshake(stream).await,
                Some((connector, name)) => {
                    let stream = connector.connect(name.clone(), stream).await;
                    let stream = stream.map_err(|error| {
                        if is_plain_server(&error) {
                            let text = ServerKind::Consul.no_tls();
                            return ConsulFailure::new(ConsulFailureKind::OtherServer, text);
                        }
                        let text = describe_handshake_error(&error);
                        ConsulFailure::connection(format!("TLS: {text}"))
                    })?;
                    handshake(stream).await
                }
            }
        };
        timeout(self.dial_timeout, connect).await.unwrap_or_else(|_| {
            let limit = self.dial_timeout.as_secs_f64();
            Err(ConsulFailure::connection(format!("no connection within {limit} s")))
        })
    }

    /// Describes the server at the endpoint if it is not Consul; see [`identify::describe`].
    pub(super) async fn describe_server(&self) -> Option<String> {
        identify::describe(ServerKind::Consul, &self.endpoint, self.tls.as_ref()).await
    }

    /// Opens a plain TCP connection.
    async fn connect_tcp(&self) -> Result<TcpStream, ConsulFailure> {
        let stream = TcpStream::connect(&self.endpoint).await;
        let stream =
            stream.map_err(|error| ConsulFailure::connection(describe_connect_error(&error)))?;
        // Without effect on success: requests are written at once.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<HttpConnection, ConsulFailure> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ConsulFailure::connection(error.to_string()))?;
    // The task ends once the sender is dropped, or the agent closes the connection; the request
    // in flight has the error.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
