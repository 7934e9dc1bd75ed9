//! Identification of servers that do not answer like Consul.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::Method;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, SERVER};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::client::ConsulClient;
use super::failure::{ConsulFailureKind, excerpt};

/// Time limit for the identification of a server.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum bytes of an answer that are examined.
const MAX_BYTES: usize = 4096;

/// Describes a server that is not Consul, with a remedy; `None` if it gives no clue.
pub(super) async fn describe(client: &ConsulClient) -> Option<String> {
    let found = timeout(TIMEOUT, async {
        match describe_http(client).await {
            Ok(found) => found,
            Err(ConsulFailureKind::OtherServer) => describe_bytes(client).await,
            Err(_) => None,
        }
    });
    found.await.ok().flatten()
}

/// The answer of etcd to `GET /version`.
#[derive(Deserialize)]
struct EtcdVersion {
    etcdserver: String,
}

/// Describes an HTTP server by its answer to `GET /version`.
async fn describe_http(client: &ConsulClient) -> Result<Option<String>, ConsulFailureKind> {
    let sent = client.respond(&Method::GET, "/version", &Bytes::new()).await;
    let (response, _connection) = sent.map_err(|failure| failure.kind)?;
    let status = response.status();
    let header = |name| {
        response.headers().get(name).map(|value| excerpt(value.as_bytes())).unwrap_or_default()
    };
    let (server, content_type) = (header(SERVER), header(CONTENT_TYPE));
    let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    if let Ok(EtcdVersion { etcdserver }) = serde_json::from_slice(&body) {
        let (version, endpoint) = (excerpt(etcdserver.as_bytes()), &client.connector().endpoint);
        return Ok(Some(format!(
            "it is not Consul but an etcd, version {version}: use etcd://{endpoint}"
        )));
    }
    if excerpt(&body).to_ascii_lowercase().contains("http request to an https server")
        || excerpt(&body).contains("HTTP request was sent to HTTPS port")
    {
        return Ok(Some("it expects TLS: use consul+https://".to_owned()));
    }
    let kind = if content_type.contains("html") { "a web server" } else { "an HTTP server" };
    let server = if server.is_empty() { String::new() } else { format!(" ({server})") };
    Ok(Some(format!(
        "it is not Consul but {kind}{server}, which answers GET /version with {}; the default port \
         of Consul's HTTP interface is 8500",
        status.as_u16()
    )))
}

/// Describes a server that does not answer in HTTP by the first bytes that it sends.
async fn describe_bytes(client: &ConsulClient) -> Option<String> {
    let connector = client.connector();
    let mut stream = connector.connect_tcp().await.ok()?;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", connector.endpoint);
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut bytes = [0; 64];
    let length = stream.read(&mut bytes).await.ok()?;
    kind_of(bytes.get(..length)?)
}

/// Returns the kind of a server that sends these bytes first.
fn kind_of(bytes: &[u8]) -> Option<String> {
    let kind = match bytes {
        [] | [b'H', b'T', b'T', b'P', b'/', ..] => return None,
        // An alert record of TLS (RFC 8446 section 5.1).
        [0x15, 0x03, ..] => return Some("it expects TLS: use consul+https://".to_owned()),
        // A SETTINGS frame (RFC 9113 section 6.5).
        [_, _, _, 0x04, ..] => "an HTTP/2 or gRPC server".to_owned(),
        [b'S', b'S', b'H', b'-', ..] => "an SSH server".to_owned(),
        [b'-', b'E', b'R', b'R', ..] => "a Redis server".to_owned(),
        _ => format!("a server that answers {:?}", excerpt(bytes)),
    };
    Some(format!(
        "it is not Consul's HTTP interface but {kind}; the default port of Consul's HTTP interface \
         is 8500"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_identified_by_their_first_bytes() {
        for (bytes, expected) in [
            (&b"\x15\x03\x03\x00\x02\x02\x46"[..], "use consul+https://"),
            (b"\x00\x00\x06\x04\x00\x00\x00\x00\x00", "gRPC"),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", "an SSH server"),
            (b"-ERR wrong number of arguments", "a Redis server"),
            (b"220 mail.example ESMTP\r\n", "answers \"220 mail.example ESMTP\""),
        ] {
            let found = kind_of(bytes).unwrap();
            assert!(found.contains(expected), "{found}");
        }
        assert_eq!(kind_of(b""), None);
        assert_eq!(kind_of(b"HTTP/1.0 400 Bad Request\r\n"), None, "its HTTP answer says more");
    }
}
