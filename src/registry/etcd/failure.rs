//! What went wrong with etcd, in words, and what it means for what to do next.

use std::error::Error as _;

use etcd_client::Error;

/// Something that did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// For people: what happened, to what, what to do.
    pub(super) text: String,
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The connection, the member or the cluster: try again, elsewhere where there is an elsewhere.
    Connection,
    /// The user may not do this.
    Permission,
    /// The member does not know the user, or no longer knows the token: log in again.
    Login,
    /// A user was named, and the store has authentication turned off: go on without a login.
    AuthOff,
    /// The history that was asked for is gone: list.
    Compacted,
    /// The answer is larger than what is accepted: ask for less.
    TooLarge,
    /// The settings cannot work: a file that cannot be read, an endpoint that is none.
    Settings,
}

impl Kind {
    /// Whether the store refuses us, or our settings do, while the connection may be fine.
    pub(super) fn is_refusal(self) -> bool {
        matches!(self, Self::Permission | Self::Login | Self::Settings)
    }
}

impl Failure {
    pub(super) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// A failure of the client library, while `doing` something ("list /service/").
    pub(super) fn of(doing: &str, error: &Error) -> Self {
        let (kind, text) = explain(error);
        Self { kind, text: format!("cannot {doing}: {text}") }
    }

    /// No answer in time.
    pub(super) fn late(doing: &str, limit: std::time::Duration) -> Self {
        Self::new(Kind::Connection, format!("cannot {doing}: no answer within {} s", limit.as_secs_f64()))
    }

    /// A watch was canceled, for this reason as etcd gives it.
    pub(super) fn canceled(reason: &str) -> Self {
        let lower = reason.to_ascii_lowercase();
        let (kind, reason) = if lower.contains("permission") {
            (Kind::Permission, "permission denied: the user's role needs read permission on it")
        } else if lower.contains("auth") || lower.contains("user name is empty") {
            (Kind::Login, reason)
        } else {
            (Kind::Connection, if reason.is_empty() { "etcd gave no reason" } else { reason })
        };
        Self::new(kind, format!("the watch was canceled: {reason}"))
    }
}

// gRPC status codes, by number so that no gRPC crate of our own has to match the client library's.
const INVALID_ARGUMENT: i32 = 3;
const PERMISSION_DENIED: i32 = 7;
const FAILED_PRECONDITION: i32 = 9;
const OUT_OF_RANGE: i32 = 11;
const UNAUTHENTICATED: i32 = 16;

/// Finds out what a failure of the client library means.
///
/// Together with [`Failure::canceled`] the only place that reads etcd's messages: etcd gives several
/// of its errors the same status code, with no details to tell them apart.
fn explain(error: &Error) -> (Kind, String) {
    match error {
        Error::GRpcStatus(status) => {
            let message = status.message();
            let kind = match i32::from(status.code()) {
                PERMISSION_DENIED => Kind::Permission,
                UNAUTHENTICATED => Kind::Login,
                FAILED_PRECONDITION if message.contains("authentication is not enabled") => Kind::AuthOff,
                INVALID_ARGUMENT if message.contains("auth") || message.contains("user name is empty") => Kind::Login,
                OUT_OF_RANGE if message.contains("compacted") => Kind::Compacted,
                OUT_OF_RANGE if message.contains("too large") => Kind::TooLarge,
                _ => Kind::Connection,
            };
            let text = match kind {
                Kind::Permission => "permission denied: the user's role needs it (etcdctl role grant-permission)".to_owned(),
                _ => chain(message, status.source()),
            };
            (kind, text)
        }
        Error::TransportError(error) => (Kind::Connection, chain(&error.to_string(), error.source())),
        Error::InvalidUri(_) | Error::InvalidArgs(_) => (Kind::Settings, error.to_string()),
        other => (Kind::Connection, other.to_string()),
    }
}

/// A message and its causes, each once: the last one is what helps ("Connection refused").
fn chain(message: &str, mut source: Option<&(dyn std::error::Error + 'static)>) -> String {
    let mut text = message.to_owned();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
        source = error.source();
    }
    if text.is_empty() { "the connection failed".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_canceled_watch_decides_what_to_do() {
        // The spellings of etcd 3.4: Go's error text of a gRPC status.
        for (reason, kind) in [
            ("rpc error: code = PermissionDenied desc = etcdserver: permission denied", Kind::Permission),
            ("rpc error: code = Unauthenticated desc = etcdserver: invalid auth token", Kind::Login),
            ("rpc error: code = InvalidArgument desc = etcdserver: user name is empty", Kind::Login),
            ("etcdserver: no leader", Kind::Connection),
            ("", Kind::Connection),
        ] {
            assert_eq!(Failure::canceled(reason).kind, kind, "{reason}");
        }
    }
}
