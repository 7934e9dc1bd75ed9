//! Failures of Polaris: messages and reactions.

use hyper::StatusCode;

use crate::registry::failure::{Failure, FailureKind};
use crate::registry::identify::{ServerKind, excerpt};

/// Code of an answer: executed. A code is a status of HTTP and three more digits.
pub(super) const SUCCESS: u32 = 200_000;

/// Code of an answer: the revision of the query is the current one.
pub(super) const UNCHANGED: u32 = 200_001;

/// Code of an answer: the instance is already registered.
pub(super) const EXISTS: u32 = 400_201;

/// Code of an answer: the service or instance does not exist.
pub(super) const MISSING: u32 = 400_202;

/// Creates the failure of an answer with another code than the expected ones.
///
/// `token_keys` says where the token is configured.
pub(super) fn of_code(code: u32, info: &str, token_keys: Option<&str>) -> Failure {
    let quoted = format!("{code} {}", excerpt(info.as_bytes()));
    match code / 1000 {
        401 | 403 => {
            let remedy = match token_keys {
                Some(keys) => format!("check {keys}, and the policies of its user"),
                None => "configure a token (token-file)".to_owned(),
            };
            Failure::new(FailureKind::Permission, format!("{remedy} ({quoted})"))
        }
        _ if code == MISSING => Failure::new(FailureKind::Missing, quoted),
        400 => Failure::new(
            FailureKind::Settings,
            format!("the server refused the request: check namespace and names ({quoted})"),
        ),
        _ => Failure::connection(format!("the server answered {quoted}")),
    }
}

/// Creates the failure of an answer that is not Polaris's JSON.
pub(super) fn of_status(status: StatusCode, body: &[u8]) -> Failure {
    let message = excerpt(body);
    let quoted = format!("{} {message}", status.as_u16());
    if message.to_ascii_lowercase().contains("http request to an https server") {
        return Failure::new(FailureKind::OtherServer, ServerKind::Polaris.tls_expected());
    }
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let text = format!("a proxy in front of the server refused the request ({quoted})");
            Failure::new(FailureKind::Permission, text)
        }
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            Failure::connection(format!("the server answered {quoted}"))
        }
        _ => {
            let text = format!("the answer is not Polaris's JSON: {quoted:?}");
            Failure::new(FailureKind::Answer, text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_classified() {
        for (code, kind, expected) in [
            (401_001, FailureKind::Permission, "configure a token"),
            (403_001, FailureKind::Permission, "configure a token"),
            (400_202, FailureKind::Missing, "400202"),
            (400_110, FailureKind::Settings, "check namespace"),
            (500_001, FailureKind::Connection, "the server answered 500001 some info"),
        ] {
            let failure = of_code(code, "some\ninfo", None);
            assert_eq!(failure.kind, kind, "{code}");
            assert!(failure.text.contains(expected), "{}", failure.text);
        }
        let known = of_code(401_001, "", Some("polaris.token-file"));
        assert!(known.text.contains("check polaris.token-file"), "{}", known.text);
    }

    #[test]
    fn answers_of_others_are_classified_by_their_status() {
        for (status, body, kind) in [
            (502, "<html>Bad Gateway", FailureKind::Connection),
            (429, "", FailureKind::Connection),
            (403, "denied", FailureKind::Permission),
            (404, "lost", FailureKind::Answer),
            (200, "<html>welcome", FailureKind::Answer),
            (400, "Client sent an HTTP request to an HTTPS server.", FailureKind::OtherServer),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(of_status(status, body.as_bytes()).kind, kind, "{status}");
        }
    }
}
