//! Checks that a request passes before any page sees it.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::Body as _;

use super::connections::AdminConnection;
use super::routes::CHANGING_PATHS;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum RefusedRequest {
    /// The method is not one that reads.
    #[error("only GET and HEAD are allowed")]
    Method,
    /// The method does not change anything.
    #[error("only POST is allowed")]
    ChangingMethod,
    /// The request has a body.
    #[error("a request must have no body")]
    Body,
    /// The request has no `Host`, or several.
    #[error("a request must have one Host header")]
    HostCount,
    /// The request was sent to a name that is not this machine's.
    #[error("the Host header must be localhost or a loopback address")]
    Host,
    /// The request comes from a web page of another machine.
    #[error("the Origin header must be localhost or a loopback address")]
    Origin,
}

impl IntoResponse for RefusedRequest {
    fn into_response(self) -> Response {
        let (status, name, value) = match self {
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, header::ALLOW, "GET, HEAD"),
            Self::ChangingMethod => (StatusCode::METHOD_NOT_ALLOWED, header::ALLOW, "POST"),
            // The body is not read, so the connection cannot be used again.
            Self::Body => (StatusCode::PAYLOAD_TOO_LARGE, header::CONNECTION, "close"),
            Self::HostCount => (StatusCode::BAD_REQUEST, header::CONNECTION, "close"),
            Self::Host | Self::Origin => (StatusCode::FORBIDDEN, header::CONNECTION, "close"),
        };
        (status, [(name, value)], format!("{self}\n")).into_response()
    }
}

/// Passes on requests that only read, and those that change something.
///
/// Marks the connection as busy.
pub(super) async fn check(request: Request, next: Next) -> Response {
    let busy = request.extensions().get::<AdminConnection>().map(AdminConnection::begin);
    let mut response = match allowed(&request) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    };
    drop(busy);
    // No web page may show a response, or run it as a script.
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    response
}

/// Passes on requests that were sent to this machine, and not by a foreign web page.
///
/// Any web page can make a browser send requests to a loopback port. A page on this machine's
/// address has a foreign `Origin`. With DNS rebinding, a page gives its own name the address
/// 127.0.0.1: the browser then sends that name as `Host`.
pub(super) async fn check_sender(request: Request, next: Next) -> Response {
    match sent_to_this_machine(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}

/// Checks the method, and that there is no body.
fn allowed(request: &Request) -> Result<(), RefusedRequest> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        path if CHANGING_PATHS.contains(&path) && *request.method() != Method::POST => {
            Err(RefusedRequest::ChangingMethod)
        }
        path if !CHANGING_PATHS.contains(&path) && !reads => Err(RefusedRequest::Method),
        _ if !request.body().is_end_stream() => Err(RefusedRequest::Body),
        _ => Ok(()),
    }
}

/// Checks the target, `Host` and `Origin` of a request.
fn sent_to_this_machine(target: &Uri, headers: &HeaderMap) -> Result<(), RefusedRequest> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(RefusedRequest::HostCount);
    };
    // A target in absolute form takes precedence over `Host` (RFC 9112, section 3.2.2).
    let target = target.authority().map(Authority::as_str);
    if !target.is_none_or(is_loopback) || !host.to_str().is_ok_and(is_loopback) {
        return Err(RefusedRequest::Host);
    }
    let mut origins = headers.get_all(header::ORIGIN).iter();
    // `null`, the origin of a sandboxed page, is foreign.
    let of_this_machine = |origin: &header::HeaderValue| {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        origin.is_some_and(|(_, host)| is_loopback(host))
    };
    if origins.all(of_this_machine) { Ok(()) } else { Err(RefusedRequest::Origin) }
}

/// Returns whether a host, with or without a port, names this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    let localhost =
        name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost");
    localhost || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_localhost_and_loopback_addresses_count_as_loopback_hosts() {
        for host in [
            "localhost",
            "LocalHost:5380",
            "a.localhost",
            "127.0.0.1",
            "127.9.9.9:1",
            "[::1]:5380",
            "[::1]",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "example.com",
            "127.0.0.1.example.com",
            "localhost.example.com:5380",
            "10.0.0.1",
            "[fd00::1]:1",
            "0.0.0.0",
            "xlocalhost",
            "evil.example@127.0.0.1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    fn checked(target: &str, lines: &[(HeaderName, &'static str)]) -> Result<(), RefusedRequest> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, header::HeaderValue::from_static(value));
        }
        sent_to_this_machine(&target.parse().unwrap(), &headers)
    }

    #[test]
    fn requests_of_foreign_pages_and_to_foreign_names_are_refused() {
        let here = (header::HOST, "localhost:5380");
        let origin = |value| [here.clone(), (header::ORIGIN, value)];
        assert_eq!(checked("/metrics", std::slice::from_ref(&here)), Ok(()));
        assert_eq!(checked("http://127.0.0.1/metrics", std::slice::from_ref(&here)), Ok(()));
        assert_eq!(checked("/metrics", &origin("http://localhost:3000")), Ok(()));
        for foreign in ["null", "http://evil.example", "https://127.0.0.1.evil.example:5380", ""] {
            assert_eq!(checked("/metrics", &origin(foreign)), Err(RefusedRequest::Origin));
        }
        let foreign = [(header::HOST, "evil.example")];
        assert_eq!(checked("/metrics", &foreign), Err(RefusedRequest::Host));
        let target = "http://evil.example/metrics";
        assert_eq!(checked(target, std::slice::from_ref(&here)), Err(RefusedRequest::Host));
        assert_eq!(checked("/metrics", &[]), Err(RefusedRequest::HostCount));
        assert_eq!(checked("/metrics", &[here.clone(), here]), Err(RefusedRequest::HostCount));
    }
}
