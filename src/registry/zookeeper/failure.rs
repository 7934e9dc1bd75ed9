//! ZooKeeper's errors, as failures.

use crate::registry::failure::{Failure, FailureKind};

/// An error that a server sends in place of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ErrorCode(pub(super) i32);

impl ErrorCode {
    pub(super) const UNIMPLEMENTED: Self = Self(-6);
    pub(super) const NO_NODE: Self = Self(-101);
    pub(super) const NO_AUTH: Self = Self(-102);
    pub(super) const BAD_VERSION: Self = Self(-103);
    pub(super) const NODE_EXISTS: Self = Self(-110);
    pub(super) const SESSION_EXPIRED: Self = Self(-112);
    pub(super) const AUTH_FAILED: Self = Self(-115);
    pub(super) const SESSION_MOVED: Self = Self(-118);
    pub(super) const LOGIN_REQUIRED: Self = Self(-124);

    /// Returns the failure if the error ends the session, not only the request.
    pub(super) fn of_session(self, login_keys: Option<&str>) -> Option<Failure> {
        match self {
            Self::SESSION_EXPIRED => Some(Failure::connection("the session has expired")),
            Self::SESSION_MOVED => {
                Some(Failure::connection("the session has moved to another server"))
            }
            Self::AUTH_FAILED => {
                let text = format!("the login was refused: {}", login_remedy(login_keys));
                Some(Failure::new(FailureKind::Login, text))
            }
            Self::LOGIN_REQUIRED => {
                let text = format!(
                    "the server requires a login: {}; of the ways to log in, svcdns has digest",
                    login_remedy(login_keys)
                );
                Some(Failure::new(FailureKind::Login, text))
            }
            _ => None,
        }
    }

    /// Returns the failure of a request for one node.
    pub(super) fn of_node(self, login_keys: Option<&str>) -> Failure {
        match self {
            Self::NO_AUTH => {
                let text = format!(
                    "permission denied: {}, or allow it in the ACL of the node (r for reading)",
                    login_remedy(login_keys)
                );
                Failure::new(FailureKind::Permission, text)
            }
            Self::NO_NODE => Failure::new(FailureKind::Missing, "the node does not exist"),
            Self(code) => {
                let text = match code {
                    -3..=-1 => "the server had an internal error",
                    -4 => "the server has lost its connection to the leader",
                    -5 => "the server could not read the request",
                    -6 => "the server does not know the request",
                    -7 => "the server ran out of time",
                    -8 => "the server found the request invalid",
                    -103 => "the node has changed meanwhile",
                    -108 => "an ephemeral node cannot have children",
                    -110 => "the node exists already",
                    -111 => "the node has children",
                    -114 => "the server found the ACL invalid",
                    -119 => "the server is read-only",
                    -125 => "the quota of the path is used up",
                    -127 => "the server is overloaded",
                    _ => "the server refused the request",
                };
                Failure::connection(format!("{text} (error {code})"))
            }
        }
    }
}

fn login_remedy(login_keys: Option<&str>) -> String {
    match login_keys {
        Some(keys) => format!("check {keys}"),
        None => "configure username and password-file".to_owned(),
    }
}

/// Creates the failure of a server that sent something other than ZooKeeper would.
pub(super) fn malformed() -> Failure {
    Failure::new(FailureKind::Answer, "the server sent a message that is not ZooKeeper's")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_where_the_login_is_configured() {
        let refused = ErrorCode::NO_AUTH.of_node(Some("zookeeper.user"));
        assert_eq!(refused.kind, FailureKind::Permission);
        assert!(refused.text.contains("check zookeeper.user"), "{refused:?}");
        let refused = ErrorCode::NO_AUTH.of_node(None);
        assert!(refused.text.contains("configure username and password-file"), "{refused:?}");
        for code in [ErrorCode::AUTH_FAILED, ErrorCode::LOGIN_REQUIRED] {
            let refused = code.of_session(Some("zookeeper.user")).unwrap();
            assert_eq!(refused.kind, FailureKind::Login);
            assert!(refused.text.contains("zookeeper.user"), "{refused:?}");
        }
        assert_eq!(ErrorCode::NO_NODE.of_session(None), None);
        assert!(ErrorCode(-5000).of_node(None).text.contains("error -5000"));
    }
}
