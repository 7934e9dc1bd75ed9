//! Failures of etcd, from the errors of its client library.

use std::error::Error as _;
use std::io;

use etcd_client::Error;
use tokio_rustls::rustls;

use crate::registry::failure::{Failure, FailureKind};
use crate::registry::identify::ServerKind;
use crate::registry::tls;

/// Converts an error of the client library; `action` is, say, `list /service/`.
pub(super) fn of_error(action: &str, error: &Error) -> Failure {
    let (kind, text) = classify(error);
    Failure::new(kind, text).of(action)
}

/// Creates the failure of a watch that etcd canceled for this reason.
pub(super) fn canceled(reason: &str) -> Failure {
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
    Failure::new(kind, format!("the watch was canceled: {reason}"))
}

// gRPC status codes as numbers, so that we need no gRPC crate of the client library's version.
const INVALID_ARGUMENT: i32 = 3;
const PERMISSION_DENIED: i32 = 7;
const FAILED_PRECONDITION: i32 = 9;
const OUT_OF_RANGE: i32 = 11;
const UNAUTHENTICATED: i32 = 16;

/// Returns the kind and text of an error of the client library.
///
/// This function and [`canceled`] are the only code that matches on etcd's messages:
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
            assert_eq!(canceled(reason).kind, kind, "{reason}");
        }
    }
}
