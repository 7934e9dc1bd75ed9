//! Failures of etcd: messages and reactions.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use etcd_client::Error;
use tokio_rustls::rustls;

use super::Settings;
use crate::registry::identify::{self, ServerKind};
use crate::registry::tls;

/// A failed call or watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EtcdFailure {
    pub(super) kind: FailureKind,
    /// A message for the user: the failure, its cause and, if known, a remedy.
    pub(super) text: String,
}

/// The kinds of failure, by the reaction that they require.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The connection, member or cluster failed: retry, if possible elsewhere.
    Connection,
    /// The connection broke off in a way that another kind of server would cause.
    Protocol,
    /// The user lacks a permission.
    Permission,
    /// The user is unknown, or the token is no longer valid: log in again.
    Login,
    /// The store has authentication turned off: proceed without a login.
    AuthOff,
    /// The requested history was compacted: list.
    Compacted,
    /// The response exceeds the limit for messages: request less.
    TooLarge,
    /// The settings are invalid, such as an unreadable file or a malformed endpoint.
    Settings,
}

impl FailureKind {
    /// Returns whether the store refused the request or the settings prevent it.
    ///
    /// The connection itself may work.
    pub(super) fn is_refusal(self) -> bool {
        matches!(self, Self::Permission | Self::Login | Self::Settings)
    }

    /// Returns whether a list can replace the events that a watch failed to deliver.
    pub(super) fn is_cured_by_list(self) -> bool {
        matches!(self, Self::Compacted | Self::TooLarge)
    }
}

impl EtcdFailure {
    pub(super) fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// Returns the failure with the endpoint where it happened.
    pub(super) fn at(self, endpoint: &str) -> Self {
        Self { text: format!("etcd at {endpoint}: {}", self.text), ..self }
    }

    /// Converts an error of the client library; `action` is, say, `list /service/`.
    pub(super) fn of(action: &str, error: &Error) -> Self {
        let (kind, text) = classify(error);
        Self { kind, text: format!("cannot {action}: {text}") }
    }

    /// Describes the server at the endpoint instead if it is not the etcd of the settings.
    ///
    /// For a failure on a connection that has never worked.
    pub(super) async fn identified(self, settings: &Settings, endpoint: &str) -> Self {
        if self.kind != FailureKind::Protocol {
            return self;
        }
        let target = match &settings.tls {
            None => None,
            // The message about unusable files comes from the connection.
            Some(tls) => match tls.target(endpoint).await {
                Ok(target) => Some(target),
                Err(_) => return self,
            },
        };
        match identify::describe(ServerKind::Etcd, endpoint, target.as_ref()).await {
            Some(text) => Self { text, ..self },
            None => self,
        }
    }

    /// Creates the failure of an action that exceeded its time limit.
    pub(super) fn timeout(action: &str, limit: Duration) -> Self {
        let text = format!("cannot {action}: no response within {} s", limit.as_secs_f64());
        Self::new(FailureKind::Connection, text)
    }

    /// Creates the failure of a watch that etcd canceled for this reason.
    pub(super) fn canceled(reason: &str) -> Self {
        let lower = reason.to_ascii_lowercase();
        let (kind, reason) = if lower.contains("permission") {
            let text = "permission denied: the user's role needs read permission on it";
            (FailureKind::Permission, text)
        } else if lower.contains("auth") || lower.contains("user name is empty") {
            (FailureKind::Login, reason)
        } else {
            let text = if reason.is_empty() { "etcd gave no reason" } else { reason };
            (FailureKind::Connection, text)
        };
        Self::new(kind, format!("the watch was canceled: {reason}"))
    }
}

// gRPC status codes as numbers, so that we need no gRPC crate of the client library's version.
const INVALID_ARGUMENT: i32 = 3;
const PERMISSION_DENIED: i32 = 7;
const FAILED_PRECONDITION: i32 = 9;
const OUT_OF_RANGE: i32 = 11;
const UNAUTHENTICATED: i32 = 16;

/// Returns the kind and text of an error of the client library.
///
/// This function and [`EtcdFailure::canceled`] are the only code that matches on etcd's messages:
/// etcd gives several errors the same status code, without details to tell them apart.
fn classify(error: &Error) -> (FailureKind, String) {
    match error {
        Error::GRpcStatus(status) => {
            let message = status.message();
            // Without gRPC's trailers, the response is not from etcd, whatever its status.
            if message.starts_with("grpc-status header missing") {
                return (FailureKind::Protocol, message.to_owned());
            }
            let kind = match i32::from(status.code()) {
                PERMISSION_DENIED => FailureKind::Permission,
                UNAUTHENTICATED => FailureKind::Login,
                FAILED_PRECONDITION if message.contains("authentication is not enabled") => {
                    FailureKind::AuthOff
                }
                INVALID_ARGUMENT
                    if message.contains("auth") || message.contains("user name is empty") =>
                {
                    FailureKind::Login
                }
                OUT_OF_RANGE if message.contains("compacted") => FailureKind::Compacted,
                OUT_OF_RANGE if message.contains("too large") => FailureKind::TooLarge,
                _ => FailureKind::Connection,
            };
            if kind == FailureKind::Permission {
                let text = "permission denied: grant it to the user's role (etcdctl role \
                            grant-permission)";
                return (kind, text.to_owned());
            }
            match (kind, status.source()) {
                (FailureKind::Connection, Some(source)) => classify_connection(message, source),
                (kind, source) => (kind, with_sources(message, source)),
            }
        }
        Error::TransportError(error) => classify_connection(&error.to_string(), error),
        Error::InvalidUri(_) | Error::InvalidArgs(_) => (FailureKind::Settings, error.to_string()),
        other => (FailureKind::Connection, other.to_string()),
    }
}

/// Returns the kind and text of an error below gRPC: of TCP, TLS or HTTP/2.
fn classify_connection(
    message: &str,
    source: &(dyn std::error::Error + 'static),
) -> (FailureKind, String) {
    let mut cause = Some(source);
    while let Some(error) = cause {
        let stream_error = error.downcast_ref::<io::Error>();
        let tls_error = error.downcast_ref().or_else(|| tls::tls_error(stream_error?));
        match (tls_error, stream_error) {
            (Some(rustls::Error::InvalidMessage(_)), _) => {
                return (FailureKind::Protocol, ServerKind::Etcd.no_tls().to_owned());
            }
            (Some(error), _) => {
                let text = format!("TLS: {}", tls::describe_tls_error(error));
                return (FailureKind::Connection, text);
            }
            (None, Some(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return (FailureKind::Connection, tls::describe_connect_error(error));
            }
            _ => cause = error.source(),
        }
    }
    (FailureKind::Protocol, with_sources(message, Some(source)))
}

/// Appends the sources of an error to its message, each once.
///
/// The last source is often the most useful, such as "Connection refused".
fn with_sources(message: &str, mut source: Option<&(dyn std::error::Error + 'static)>) -> String {
    let mut text = message.to_owned();
    while let Some(error) = source {
        let message = error.to_string();
        if !text.contains(&message) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&message);
        }
        source = error.source();
    }
    if text.is_empty() { "the connection failed".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canceled_watches_are_classified_by_their_reason() {
        // etcd 3.4 gives Go's error text of a gRPC status.
        for (reason, kind) in [
            (
                "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
                FailureKind::Permission,
            ),
            (
                "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
                FailureKind::Login,
            ),
            (
                "rpc error: code = InvalidArgument desc = etcdserver: user name is empty",
                FailureKind::Login,
            ),
            ("etcdserver: no leader", FailureKind::Connection),
            ("", FailureKind::Connection),
        ] {
            assert_eq!(EtcdFailure::canceled(reason).kind, kind, "{reason}");
        }
    }
}
