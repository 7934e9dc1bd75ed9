//! Reasons why a check fails.

use std::io::{Error, ErrorKind};

/// Reason why a check of an endpoint failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CheckFailure {
    /// No program listens on the port, or a firewall rejects the connection.
    #[error("connection refused")]
    Refused,
    /// The connection was not established within the timeout.
    #[error("no connection within the timeout")]
    NoConnection,
    /// The machine does not exist, or is not reachable from the network.
    #[error("host unreachable")]
    Unreachable,
    /// The connection was established, but no HTTP response arrived within the timeout.
    #[error("no response within the timeout")]
    NoResponse,
    /// The connection ended before the HTTP response.
    #[error("connection closed without a response")]
    Closed,
    /// The response is not HTTP/1.
    #[error("the response is not HTTP/1")]
    NotHttp,
    /// The HTTP status is neither 2xx nor 3xx.
    #[error("HTTP status {0}")]
    Status(u16),
    /// This machine could not send the check, which says nothing about the endpoint.
    #[error("this machine cannot check it: {0}")]
    Local(ErrorKind),
}

impl CheckFailure {
    /// Returns the failure of a connection attempt.
    pub(super) fn of_connect(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Self::Refused,
            ErrorKind::TimedOut => Self::NoConnection,
            ErrorKind::HostUnreachable => Self::Unreachable,
            // No route, no address of this family, no free port or descriptor, a local firewall.
            kind => Self::Local(kind),
        }
    }

    /// Returns whether the failure is this machine's own, and says nothing about the endpoint.
    pub(super) fn is_local(self) -> bool {
        matches!(self, Self::Local(_))
    }
}
