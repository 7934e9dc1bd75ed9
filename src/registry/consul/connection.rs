//! Connections to one agent: TCP, TLS and HTTP/1.1.

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::Settings;
use super::failure::{ConsulFailure, ConsulFailureKind};
use crate::registry::tls::describe_handshake_error;

/// A connection that is ready for a request.
pub(super) type HttpConnection = SendRequest<Full<Bytes>>;

/// Opens connections to one agent.
#[derive(Clone)]
pub(super) struct AgentConnector {
    /// The agent as `host:port`.
    pub(super) endpoint: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    dial_timeout: Duration,
}

impl AgentConnector {
    /// Reads the TLS files.
    pub(super) async fn new(settings: &Settings, endpoint: &str) -> Result<Self, ConsulFailure> {
        let invalid = |text: String| ConsulFailure::new(ConsulFailureKind::Settings, text);
        let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
        let host = host.trim_matches(['[', ']']);
        let tls = match &settings.tls {
            Some(tls) => {
                let name = tls.server_name.as_deref().unwrap_or(host).to_owned();
                let shown = name.clone();
                let name = ServerName::try_from(name)
                    .map_err(|_| invalid(format!("{shown:?} is not the name of a TLS server")))?;
                Some((tls.connector().await.map_err(invalid)?, name))
            }
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
                        let text = describe_handshake_error(&error);
                        if text == "it does not speak TLS" {
                            let text = format!("{text}: use consul://");
                            return ConsulFailure::new(ConsulFailureKind::OtherServer, text);
                        }
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

    /// Opens a plain TCP connection.
    pub(super) async fn connect_tcp(&self) -> Result<TcpStream, ConsulFailure> {
        let stream = TcpStream::connect(&self.endpoint).await;
        let stream = stream.map_err(|error| ConsulFailure::connection(error.to_string()))?;
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
