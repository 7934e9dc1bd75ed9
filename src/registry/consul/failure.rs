//! Failures of Consul, from its answers.

use hyper::StatusCode;

use crate::registry::failure::{Failure, FailureKind};
use crate::registry::identify::{ServerKind, excerpt};

/// Explains why the server may have closed a new connection without an answer.
pub(super) fn explained(failure: Failure) -> Failure {
    if failure.kind != FailureKind::Closed {
        return failure;
    }
    let text = format!(
        "{}: it may have too many of this address (limits.http_max_conns_per_client), or be \
         another kind of server (the default port of Consul's HTTP interface is 8500)",
        failure.text
    );
    Failure { text, ..failure }
}

/// Creates the fault of an answer whose index says nothing.
pub(super) fn invalid_index() -> Failure {
    Failure::new(
        FailureKind::Answer,
        "the X-Consul-Index of the answer is 0 or malformed, so changes are seen only every few \
         seconds: upgrade Consul, or connect without a proxy",
    )
}

/// Creates the failure of a cluster without a leader.
pub(super) fn no_leader() -> Failure {
    Failure::connection(
        "the cluster has no leader, so its data may be old (consul operator raft list-peers shows \
         the servers)",
    )
}

/// Creates the failure of a response with another status than 200.
///
/// `token_keys` says where the token is configured. This function is the only code that
/// matches on Consul's messages: it sends them as plain text.
pub(super) fn of_status(status: StatusCode, body: &[u8], token_keys: Option<&str>) -> Failure {
    let message = excerpt(body);
    let lower = message.to_ascii_lowercase();
    let quoted = format!("{} {message}", status.as_u16());
    match status {
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
            let remedy = match token_keys {
                Some(keys) => format!("check {keys}, and the policies of the token"),
                None => "configure an ACL token (token-file)".to_owned(),
            };
            Failure::new(FailureKind::Permission, format!("{remedy} ({quoted})"))
        }
        StatusCode::TOO_MANY_REQUESTS => Failure::new(
            FailureKind::TooManyConnections,
            format!(
                "the agent accepts no more connections or requests from this address: lower \
                 max-waiting, or raise limits.http_max_conns_per_client of the agent ({quoted})"
            ),
        ),
        StatusCode::BAD_REQUEST if lower.contains("http request to an https server") => {
            Failure::new(FailureKind::OtherServer, ServerKind::Consul.tls_expected())
        }
        StatusCode::BAD_REQUEST if lower.contains("enterprise") => Failure::new(
            FailureKind::Settings,
            format!("this Consul has no namespaces: remove namespace ({quoted})"),
        ),
        _ if lower.contains("no cluster leader") => no_leader(),
        _ if lower.contains("no path to datacenter") => Failure::new(
            FailureKind::Settings,
            format!("the datacenter is unknown or unreachable: check datacenter ({quoted})"),
        ),
        StatusCode::BAD_REQUEST => {
            Failure::new(FailureKind::Settings, format!("the agent refused the request ({quoted})"))
        }
        StatusCode::NOT_FOUND => Failure::new(FailureKind::Missing, quoted),
        // Consul has no other reason to refuse what svcdns asks.
        _ if status.is_client_error() => {
            Failure::new(FailureKind::Answer, format!("the agent answered {quoted}"))
        }
        _ => Failure::connection(format!("the agent answered {quoted}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_classified_by_consuls_message() {
        for (status, body, kind, expected) in [
            (403, "ACL not found", FailureKind::Permission, "token-file"),
            (
                429,
                "Your IP is issuing too many concurrent connections, please rate limit your calls",
                FailureKind::TooManyConnections,
                "http_max_conns_per_client",
            ),
            (500, "No cluster leader", FailureKind::Connection, "no leader"),
            (500, "No path to datacenter", FailureKind::Settings, "check datacenter"),
            (
                400,
                "Invalid query parameter: \"ns\" - Namespaces are a Consul Enterprise feature",
                FailureKind::Settings,
                "remove namespace",
            ),
            (
                400,
                "Client sent an HTTP request to an HTTPS server.\n",
                FailureKind::OtherServer,
                "use consul+https://",
            ),
            (415, "415: Unsupported Media Type", FailureKind::Answer, "answered 415"),
            (502, "<html>\n<h1>Bad\x07 Gateway", FailureKind::Connection, "502 <html> <h1>Bad Gat"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let failure = of_status(status, body.as_bytes(), None);
            assert_eq!(failure.kind, kind, "{body}");
            assert!(failure.text.contains(expected), "{}", failure.text);
        }
        let known = of_status(StatusCode::FORBIDDEN, b"", Some("consul.token-file"));
        assert!(known.text.contains("check consul.token-file"), "{}", known.text);
    }
}
