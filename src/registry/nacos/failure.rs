//! Failures of Nacos, from its answers.

use hyper::StatusCode;
use serde::Deserialize;

use crate::registry::failure::{Failure, FailureKind};
use crate::registry::identify::{ServerKind, excerpt};

/// Explains why the server may have closed a new connection without an answer.
pub(super) fn explained(failure: Failure) -> Failure {
    if failure.kind != FailureKind::Closed {
        return failure;
    }
    let text = format!(
        "{}: it may be another kind of server, or Nacos's gRPC port (the default port of Nacos's \
         HTTP interface is 8848)",
        failure.text
    );
    Failure { text, ..failure }
}

/// The error page of the framework that Nacos is built on.
#[derive(Deserialize)]
struct ErrorPage {
    message: String,
}

/// Returns the message of an error's body: JSON, plain text or, from Nacos 1.x, HTML.
fn message_of(body: &[u8]) -> String {
    match serde_json::from_slice(body) {
        Ok(ErrorPage { message }) => excerpt(message.as_bytes()),
        Err(_) => excerpt(body),
    }
}

/// Creates the failure of a response with another status than 200.
///
/// `login_keys` says where the login is configured. This function and [`of_login`] are the only
/// code that matches on Nacos's messages.
pub(super) fn of_status(status: StatusCode, body: &[u8], login_keys: Option<&str>) -> Failure {
    let message = message_of(body);
    let quoted = format!("{} {message}", status.as_u16());
    // A page of HTML may have the message at its end.
    let lower = String::from_utf8_lossy(body).to_ascii_lowercase();
    match status {
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
            let is_of_token =
                ["token", "signature", "user not found"].iter().any(|fault| lower.contains(fault));
            let kind = if is_of_token && login_keys.is_some() {
                FailureKind::Login
            } else {
                FailureKind::Permission
            };
            let remedy = match login_keys {
                Some(keys) => format!("check {keys}, and the permissions of the user"),
                None => "configure a user (username and password-file)".to_owned(),
            };
            Failure::new(kind, format!("{remedy} ({quoted})"))
        }
        StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::NOT_IMPLEMENTED => {
            Failure::new(FailureKind::Missing, format!("the server has no such path ({quoted})"))
        }
        StatusCode::BAD_REQUEST
            if lower.contains("requires tls") || lower.contains("http request") =>
        {
            Failure::new(FailureKind::OtherServer, ServerKind::Nacos.tls_expected())
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            Failure::connection(format!("the server is not ready ({quoted})"))
        }
        _ if status.is_server_error() => {
            Failure::connection(format!("the server failed ({quoted})"))
        }
        _ => Failure::new(FailureKind::Answer, format!("unexpected answer ({quoted})")),
    }
}

/// Creates the failure of a login.
///
/// To a wrong password, Nacos 2 answers 403 and Nacos 3 answers 500; to an unknown user, the other
/// way around. For some seconds after its start, it knows no user.
pub(super) fn of_login(status: StatusCode, body: &[u8], login_keys: &str) -> Failure {
    let is_refusal = matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::FORBIDDEN
            | StatusCode::UNAUTHORIZED
            | StatusCode::INTERNAL_SERVER_ERROR
    );
    let failure = of_status(status, body, Some(login_keys));
    if !is_refusal || failure.kind == FailureKind::OtherServer {
        return failure.of("log in");
    }
    let message = message_of(body);
    let lower = message.to_ascii_lowercase();
    let is_user_unknown = match status {
        StatusCode::INTERNAL_SERVER_ERROR => lower.contains("user") && lower.contains("not found"),
        StatusCode::FORBIDDEN => lower.contains("access denied"),
        _ => false,
    };
    let quoted = format!("({} {message})", status.as_u16());
    if is_user_unknown {
        let text = format!(
            "cannot log in: check {login_keys}; a server that has just started knows no user for \
             some seconds {quoted}"
        );
        return Failure::new(FailureKind::UnknownUser, text);
    }
    Failure::new(FailureKind::Login, format!("cannot log in: check {login_keys} {quoted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_configure() {
        let expired = br#"{"status":403,"error":"Forbidden","message":"token expired!"}"#;
        let failure = of_status(StatusCode::FORBIDDEN, expired, Some("nacos.password-file"));
        assert_eq!(failure.kind, FailureKind::Login, "log in again");
        assert!(failure.text.contains("nacos.password-file"), "{}", failure.text);
        assert!(failure.text.contains("(403 token expired!)"), "{}", failure.text);
        let failure = of_status(StatusCode::FORBIDDEN, expired, None);
        assert_eq!(failure.kind, FailureKind::Permission);
        assert!(failure.text.contains("configure a user"), "{}", failure.text);
        let denied = br#"{"message":"authorization failed!"}"#;
        let failure = of_status(StatusCode::FORBIDDEN, denied, Some("keys"));
        assert_eq!(failure.kind, FailureKind::Permission, "another login does not help");
        let invalid = br#"{"status":403,"message":"Code: 401, Message: token invalid!."}"#;
        let failure = of_status(StatusCode::FORBIDDEN, invalid, Some("keys"));
        assert_eq!(failure.kind, FailureKind::Login, "Nacos 3");
        let page = format!("<html>{}<div>token expired!</div>", " ".repeat(10_000));
        let failure = of_status(StatusCode::FORBIDDEN, page.as_bytes(), Some("keys"));
        assert_eq!(failure.kind, FailureKind::Login, "the error page of Nacos 1.x");
    }

    #[test]
    fn wrong_passwords_and_unknown_users_are_distinguished() {
        let denied = r#"{"status":403,"error":"Forbidden","message":"Access Denied"}"#;
        let failed = r#"{"error":"Internal Server Error","message":"No message available"}"#;
        for (status, body, kind) in [
            (403, "user not found!", FailureKind::Login),
            (500, "caused: User nacos not found;", FailureKind::UnknownUser),
            (500, failed, FailureKind::Login),
            (403, denied, FailureKind::UnknownUser),
            (400, "", FailureKind::Login),
            (401, "", FailureKind::Login),
        ] {
            let code = StatusCode::from_u16(status).unwrap();
            let failure = of_login(code, body.as_bytes(), "keys");
            assert_eq!(failure.kind, kind, "{status} {body}");
            assert!(failure.text.contains("check keys"), "{}", failure.text);
        }
        let failure = of_login(StatusCode::SERVICE_UNAVAILABLE, b"starting", "keys");
        assert_eq!(failure.kind, FailureKind::Connection);
        assert_eq!(of_login(StatusCode::GONE, b"", "keys").kind, FailureKind::Missing);
    }
}
