//! Failures of the stores that have servers.
//!
//! Each kind of registry classifies the messages of its own store.

use std::time::Duration;

use super::identify::{self, ServerKind};
use super::{CredentialError, Secret, Tls};

/// A failed request, watch or session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    /// A message for the user: the failure, its cause and, if known, a remedy.
    pub(super) text: String,
}

/// The kinds of failure, by the reaction that they require.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The connection, the server or the cluster failed: retry, if possible elsewhere.
    Connection,
    /// The connection broke off in a way that another kind of server would cause.
    Protocol,
    /// The server closed a new connection without an answer, as a refusal may also arrive.
    Closed,
    /// The server accepts no more connections from this address: make do with fewer.
    TooManyConnections,
    /// The user or token lacks a permission.
    Permission,
    /// The login is refused or no longer valid: log in again.
    Login,
    /// The server does not know the user, perhaps since it has just started: retry for a while.
    UnknownUser,
    /// The store has authentication turned off: proceed without a login.
    AuthOff,
    /// The object of the request does not exist.
    Missing,
    /// The requested history was compacted: list.
    Compacted,
    /// The response exceeds the limit on its size: request less.
    TooLarge,
    /// The response is not one that this kind of server gives.
    Answer,
    /// The server is of another kind.
    OtherServer,
    /// The settings are invalid, such as an unreadable file or a malformed endpoint.
    Settings,
}

impl FailureKind {
    /// Returns whether the store refused the request or the settings prevent it.
    ///
    /// The connection itself may work.
    pub(super) fn is_refusal(self) -> bool {
        matches!(self, Self::Permission | Self::Login | Self::UnknownUser | Self::Settings)
    }

    /// Returns whether trying again, with the same server and settings, does not help.
    pub(super) fn is_lasting(self) -> bool {
        self.is_refusal() || self == Self::OtherServer
    }

    /// Returns whether the server may simply have reached its limit on connections.
    pub(super) fn is_crowded(self) -> bool {
        matches!(self, Self::TooManyConnections | Self::Closed)
    }

    /// Returns whether a list can replace the events that a watch failed to deliver.
    pub(super) fn is_cured_by_list(self) -> bool {
        matches!(self, Self::Compacted | Self::TooLarge)
    }

    /// Returns whether another kind of server would cause this failure.
    fn is_of_other_server(self) -> bool {
        matches!(
            self,
            Self::Protocol | Self::Closed | Self::Missing | Self::Answer | Self::OtherServer
        )
    }
}

impl Failure {
    pub(super) fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// Creates a failure of the connection, the server or the cluster.
    pub(super) fn connection(text: impl Into<String>) -> Self {
        Self::new(FailureKind::Connection, text)
    }

    /// Creates the failure of a request that exceeded its time limit.
    pub(super) fn timeout(limit: Duration) -> Self {
        Self::connection(format!("no response within {} s", limit.as_secs_f64()))
    }

    /// Returns the failure with the action that failed, such as "list the services".
    pub(super) fn of(self, action: &str) -> Self {
        Self { text: format!("cannot {action}: {}", self.text), ..self }
    }

    /// Returns the failure with the server where it happened.
    pub(super) fn at(self, server: ServerKind, endpoint: &str) -> Self {
        Self { text: format!("{} at {endpoint}: {}", server.scheme(), self.text), ..self }
    }

    /// Hides a secret in the failure, in case a server or a proxy has echoed it.
    pub(super) fn hiding(self, secret: &Secret) -> Self {
        Self { text: secret.hide_in(&self.text), ..self }
    }

    /// Describes the server at the endpoint instead if it is not the one of the settings.
    ///
    /// For a failure on a connection that has never worked.
    pub(super) async fn identified(
        self,
        expected: ServerKind,
        endpoint: &str,
        tls: Option<&Tls>,
    ) -> Self {
        if !self.kind.is_of_other_server() {
            return self;
        }
        let target = match tls {
            None => None,
            // The message about unusable files comes from the connection.
            Some(tls) => match tls.target(endpoint).await {
                Ok(target) => Some(target),
                Err(_) => return self,
            },
        };
        match identify::describe(expected, endpoint, target.as_ref()).await {
            Some(text) => Self::new(FailureKind::OtherServer, text),
            None => self,
        }
    }
}

impl From<CredentialError> for Failure {
    fn from(error: CredentialError) -> Self {
        Self::new(FailureKind::Settings, error.to_string())
    }
}
