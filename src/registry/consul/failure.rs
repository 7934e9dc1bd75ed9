//! Failures of Consul: messages and reactions.

use std::time::Duration;

use hyper::StatusCode;

use crate::registry::FeedClosed;
use crate::registry::identify::{ServerKind, excerpt};

/// A failed query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConsulFailure {
    pub(super) kind: ConsulFailureKind,
    /// A message for the user: the failure, its cause and, if known, a remedy.
    pub(super) text: String,
}

/// The kinds of failure, by the reaction that they require.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConsulFailureKind {
    /// The connection, the agent or the cluster failed: retry, if possible elsewhere.
    Connection,
    /// The agent accepts no more connections from this address: make do with fewer.
    TooManyConnections,
    /// The server closed a new connection without an answer, as a refusal may also arrive.
    Closed,
    /// The token is unknown, or lacks a permission.
    Permission,
    /// The object of the request does not exist.
    Missing,
    /// The settings are invalid, such as an unreadable file or an unknown datacenter.
    Settings,
    /// The answer is not one that Consul gives.
    Answer,
    /// The answer exceeds the limit on its size.
    TooLarge,
    /// The answer is from another kind of server.
    OtherServer,
}

impl ConsulFailureKind {
    /// Returns whether the agent may simply have reached its connection limit.
    pub(super) fn is_crowded(self) -> bool {
        matches!(self, Self::TooManyConnections | Self::Closed)
    }

    /// Returns whether the store refused the request or the settings prevent it.
    ///
    /// The connection itself may work.
    pub(super) fn is_refusal(self) -> bool {
        matches!(self, Self::Permission | Self::Settings)
    }
}

impl ConsulFailure {
    pub(super) fn new(kind: ConsulFailureKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    pub(super) fn connection(text: impl Into<String>) -> Self {
        Self::new(ConsulFailureKind::Connection, text)
    }

    /// Creates the failure of a request on a new connection that the server closed at once.
    pub(super) fn closed() -> Self {
        Self::new(
            ConsulFailureKind::Closed,
            "the server closed the connection without an answer: it may have too many of this \
             address (limits.http_max_conns_per_client), or be another kind of server (the \
             default port of Consul's HTTP interface is 8500)",
        )
    }

    /// Returns the failure with the action that failed, such as "list the services".
    pub(super) fn of(self, action: &str) -> Self {
        Self { text: format!("cannot {action}: {}", self.text), ..self }
    }

    /// Returns the failure with the endpoint where it happened.
    pub(super) fn at(self, endpoint: &str) -> Self {
        Self { text: format!("consul at {endpoint}: {}", self.text), ..self }
    }

    /// Creates the failure of a request that exceeded its time limit.
    pub(super) fn timeout(limit: Duration) -> Self {
        Self::connection(format!("no complete answer within {} s", limit.as_secs_f64()))
    }

    /// Creates the fault of an answer whose index says nothing.
    pub(super) fn invalid_index() -> Self {
        Self::new(
            ConsulFailureKind::Answer,
            "the X-Consul-Index of the answer is 0 or malformed, so changes are seen only every \
             few seconds: upgrade Consul, or connect without a proxy",
        )
    }

    /// Creates the failure of a cluster without a leader.
    pub(super) fn no_leader() -> Self {
        Self::connection(
            "the cluster has no leader, so its data may be old (consul operator raft list-peers \
             shows the servers)",
        )
    }

    /// Creates the failure of a response with another status than 200.
    ///
    /// `token_keys` says where the token is configured. This function is the only code that
    /// matches on Consul's messages: it sends them as plain text.
    pub(super) fn of_status(status: StatusCode, body: &[u8], token_keys: Option<&str>) -> Self {
        let message = excerpt(body);
        let lower = message.to_ascii_lowercase();
        let quoted = format!("{} {message}", status.as_u16());
        match status {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                let remedy = match token_keys {
                    Some(keys) => format!("check {keys}, and the policies of the token"),
                    None => "configure an ACL token (token-file)".to_owned(),
                };
                Self::new(ConsulFailureKind::Permission, format!("{remedy} ({quoted})"))
            }
            StatusCode::TOO_MANY_REQUESTS => Self::new(
                ConsulFailureKind::TooManyConnections,
                format!(
                    "the agent accepts no more connections or requests from this address: lower \
                     max-waiting, or raise limits.http_max_conns_per_client of the agent ({quoted})"
                ),
            ),
            StatusCode::BAD_REQUEST if lower.contains("http request to an https server") => {
                Self::new(ConsulFailureKind::OtherServer, ServerKind::Consul.tls_expected())
            }
            StatusCode::BAD_REQUEST if lower.contains("enterprise") => Self::new(
                ConsulFailureKind::Settings,
                format!("this Consul has no namespaces: remove namespace ({quoted})"),
            ),
            _ if lower.contains("no cluster leader") => Self::no_leader(),
            _ if lower.contains("no path to datacenter") => Self::new(
                ConsulFailureKind::Settings,
                format!("the datacenter is unknown or unreachable: check datacenter ({quoted})"),
            ),
            StatusCode::BAD_REQUEST => Self::new(
                ConsulFailureKind::Settings,
                format!("the agent refused the request ({quoted})"),
            ),
            StatusCode::NOT_FOUND => Self::new(ConsulFailureKind::Missing, quoted),
            _ => Self::connection(format!("the agent answered {quoted}")),
        }
    }
}

/// Reason for the end of a session.
pub(super) enum AgentSessionEnd {
    /// The feed is closed.
    Closed,
    /// The agent or the cluster failed; the next session may succeed.
    Failed(ConsulFailure),
}

impl From<FeedClosed> for AgentSessionEnd {
    fn from(_: FeedClosed) -> Self {
        Self::Closed
    }
}

impl From<ConsulFailure> for AgentSessionEnd {
    fn from(failure: ConsulFailure) -> Self {
        Self::Failed(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_classified_by_consuls_message() {
        for (status, body, kind, expected) in [
            (403, "ACL not found", ConsulFailureKind::Permission, "token-file"),
            (
                429,
                "Your IP is issuing too many concurrent connections, please rate limit your calls",
                ConsulFailureKind::TooManyConnections,
                "http_max_conns_per_client",
            ),
            (500, "No cluster leader", ConsulFailureKind::Connection, "no leader"),
            (500, "No path to datacenter", ConsulFailureKind::Settings, "check datacenter"),
            (
                400,
                "Invalid query parameter: \"ns\" - Namespaces are a Consul Enterprise feature",
                ConsulFailureKind::Settings,
                "remove namespace",
            ),
            (
                400,
                "Client sent an HTTP request to an HTTPS server.\n",
                ConsulFailureKind::OtherServer,
                "use consul+https://",
            ),
            (
                502,
                "<html>\n<h1>Bad\x07 Gateway",
                ConsulFailureKind::Connection,
                "502 <html> <h1>Bad Gat",
            ),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let failure = ConsulFailure::of_status(status, body.as_bytes(), None);
            assert_eq!(failure.kind, kind, "{body}");
            assert!(failure.text.contains(expected), "{}", failure.text);
        }
        let known = ConsulFailure::of_status(StatusCode::FORBIDDEN, b"", Some("consul.token-file"));
        assert!(known.text.contains("check consul.token-file"), "{}", known.text);
    }
}
