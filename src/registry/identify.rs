//! Identification of servers that are not of a registry's kind.
//!
//! A registry asks here after a failure that another kind of server would cause. Neither a token
//! nor a login is sent.

use std::io;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::tls::{self, TlsTarget, is_plain_server};

/// Time limit for the identification of a server.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Time limit for the answer to one request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum bytes of an answer that are examined.
const MAX_BYTES: u64 = 4096;

/// Maximum length of a quotation from an answer, in characters.
const MAX_EXCERPT_CHARS: usize = 200;

/// The kinds of servers that hold a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerKind {
    Etcd,
    Consul,
    ZooKeeper,
    Nacos,
    Polaris,
}

impl ServerKind {
    /// Returns the name of the program.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Consul => "Consul",
            Self::ZooKeeper => "ZooKeeper",
            Self::Nacos => "Nacos",
            Self::Polaris => "Polaris",
        }
    }

    /// Returns the scheme of the registry's URL, which messages also show.
    pub(super) fn scheme(self) -> String {
        self.name().to_ascii_lowercase()
    }

    /// Returns the message for a server that expects TLS.
    pub(super) fn tls_expected(self) -> &'static str {
        match self {
            Self::Etcd | Self::ZooKeeper => "it expects TLS: set tls = true",
            Self::Consul => "it expects TLS: use consul+https://",
            Self::Nacos => "it expects TLS: use nacos+https://",
            Self::Polaris => "it expects TLS: use polaris+https://",
        }
    }

    /// Returns the message for a server that does not speak TLS.
    pub(super) fn no_tls(self) -> &'static str {
        match self {
            Self::Etcd | Self::ZooKeeper => {
                "it does not speak TLS: remove tls and the other TLS settings"
            }
            Self::Consul => "it does not speak TLS: use consul:// without TLS settings",
            Self::Nacos => "it does not speak TLS: use nacos:// without TLS settings",
            Self::Polaris => "it does not speak TLS: use polaris:// without TLS settings",
        }
    }

    fn default_port(self) -> &'static str {
        match self {
            Self::Etcd => "the default port of etcd is 2379",
            Self::Consul => "the default port of Consul's HTTP interface is 8500",
            Self::ZooKeeper => "the default port of ZooKeeper is 2181",
            Self::Nacos => "the default port of Nacos's HTTP interface is 8848",
            Self::Polaris => {
                "the default port of Polaris's HTTP interface is 8090; 8091 is its gRPC interface"
            }
        }
    }
}

/// Describes a server that is not of the expected kind, or that differs in the use of TLS.
///
/// The description has a remedy. Returns `None` if the server is as expected or gives no clue.
pub(super) async fn describe(
    expected: ServerKind,
    endpoint: &str,
    tls: Option<&TlsTarget>,
) -> Option<String> {
    timeout(TIMEOUT, find(expected, endpoint, tls)).await.ok().flatten()
}

async fn find(expected: ServerKind, endpoint: &str, tls: Option<&TlsTarget>) -> Option<String> {
    if tls.is_some() {
        match identify(endpoint, tls).await {
            Ok(found) => return found?.describe(expected, endpoint),
            Err(error) if is_plain_server(&error) => {}
            Err(error) => {
                let fault = tls::describe_tls_error(tls::tls_error(&error)?);
                return Some(format!("TLS: {fault}"));
            }
        }
    }
    let found = match identify(endpoint, None).await.ok()? {
        None | Some(Found::Tls) if speaks_tls(endpoint).await => Found::Tls,
        found => found?,
    };
    match found {
        Found::Tls if tls.is_some() => None,
        Found::Kind(kind, _) if kind == expected && tls.is_some() => {
            Some(expected.no_tls().to_owned())
        }
        found => found.describe(expected, endpoint),
    }
}

/// What answers at an endpoint.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// A server of a registry, with its version if known.
    Kind(ServerKind, Option<String>),
    /// A server that expects TLS.
    Tls,
    /// Another server, such as "an SSH server".
    Other(String),
}

impl Found {
    fn describe(self, expected: ServerKind, endpoint: &str) -> Option<String> {
        let (name, port) = (expected.name(), expected.default_port());
        match self {
            Self::Kind(kind, _) if kind == expected => None,
            Self::Kind(kind, version) => {
                let article = if kind == ServerKind::Etcd { "an" } else { "a" };
                let version = version.map(|version| format!(", version {version}"));
                let scheme = kind.scheme();
                Some(format!(
                    "it is not {name} but {article} {}{}: use {scheme}://{endpoint}",
                    kind.name(),
                    version.unwrap_or_default()
                ))
            }
            Self::Tls => Some(expected.tls_expected().to_owned()),
            Self::Other(server) => Some(format!("it is not {name} but {server}; {port}")),
        }
    }
}

/// The answer of etcd to `GET /version`.
#[derive(Deserialize)]
struct EtcdVersion {
    etcdserver: String,
}

/// Identifies a server by its answers.
///
/// # Errors
/// Returns an error if there is no connection, or if TLS ends it.
async fn identify(endpoint: &str, tls: Option<&TlsTarget>) -> io::Result<Option<Found>> {
    let bytes = request(endpoint, tls, &get(endpoint, "/version")).await?;
    let Some(answer) = HttpAnswer::parse(&bytes) else {
        // ZooKeeper closes the connection: it takes the request for the length of a message.
        return Ok(match kind_of(&bytes) {
            None => zookeeper(&request(endpoint, tls, "srvr").await?),
            found => found,
        });
    };
    if let Ok(EtcdVersion { etcdserver }) = serde_json::from_slice(answer.body) {
        let version = Some(excerpt(etcdserver.as_bytes()));
        return Ok(Some(Found::Kind(ServerKind::Etcd, version)));
    }
    let text = excerpt(answer.body).to_ascii_lowercase();
    if text.contains("http request to an https server")
        || text.contains("http request was sent to https port")
        || text.contains("requires tls")
    {
        return Ok(Some(Found::Tls));
    }
    let leader = request(endpoint, tls, &get(endpoint, "/v1/status/leader")).await?;
    if HttpAnswer::parse(&leader).is_some_and(|answer| answer.is_consul()) {
        return Ok(Some(Found::Kind(ServerKind::Consul, None)));
    }
    let state = request(endpoint, tls, &get(endpoint, "/nacos/v3/admin/core/state")).await?;
    if let Some(found) = HttpAnswer::parse(&state).and_then(|answer| answer.as_nacos()) {
        return Ok(Some(found));
    }
    let refusal = request(endpoint, tls, &polaris_query(endpoint)).await?;
    if HttpAnswer::parse(&refusal).is_some_and(|answer| answer.is_polaris()) {
        return Ok(Some(Found::Kind(ServerKind::Polaris, None)));
    }
    Ok(Some(Found::Other(answer.describe())))
}

/// Returns a request for a path.
fn get(endpoint: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n")
}

/// Returns a query that Polaris refuses, with its own headers.
fn polaris_query(endpoint: &str) -> String {
    let body = r#"{"type":"SERVICES"}"#;
    format!(
        "POST /v1/Discover HTTP/1.1\r\nHost: {endpoint}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Sends a request and returns the start of the answer, empty if there is none.
async fn request(endpoint: &str, tls: Option<&TlsTarget>, request: &str) -> io::Result<Vec<u8>> {
    let stream = TcpStream::connect(endpoint).await?;
    match tls {
        Some((connector, name)) => {
            exchange(connector.connect(name.clone(), stream).await?, request).await
        }
        None => exchange(stream, request).await,
    }
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        (&mut stream).take(MAX_BYTES).read_to_end(&mut answer).await
    };
    match timeout(ANSWER_TIMEOUT, exchange).await {
        // With TLS 1.3, a refused client certificate is an alert after the handshake.
        Ok(Err(error)) if answer.is_empty() && tls::tls_error(&error).is_some() => Err(error),
        // What was read before another error or the time limit is enough for most servers.
        _ => Ok(answer),
    }
}

/// The start of an answer in HTTP/1.
struct HttpAnswer<'a> {
    status: &'a str,
    head: &'a str,
    body: &'a [u8],
}

impl<'a> HttpAnswer<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if !bytes.starts_with(b"HTTP/1.") {
            return None;
        }
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let (head, body) = bytes.split_at(end.unwrap_or(bytes.len()));
        let head = std::str::from_utf8(head).ok()?;
        let status = head.split_whitespace().nth(1)?.get(..3)?;
        Some(Self { status, head, body: body.get(4..).unwrap_or_default() })
    }

    /// Returns the value of a header, empty if there is none.
    fn header(&self, name: &str) -> String {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(':'));
        let field = fields.find(|(found, _)| found.eq_ignore_ascii_case(name));
        field.map(|(_, value)| excerpt(value.as_bytes())).unwrap_or_default()
    }

    /// Returns whether this is Consul's answer to `GET /v1/status/leader`.
    fn is_consul(&self) -> bool {
        let has_header = self.head.to_ascii_lowercase().contains("\nx-consul-");
        // The leader's address, or an empty text if there is no leader.
        let has_leader =
            self.status == "200" && serde_json::from_slice::<String>(self.body).is_ok();
        has_header || has_leader
    }

    /// Returns Nacos if this is its answer to `GET /nacos/v3/admin/core/state`.
    ///
    /// Versions before 3 have no such path, and say so in the form of all their errors.
    fn as_nacos(&self) -> Option<Found> {
        // The body may have the framing of its chunks.
        let end = self.body.iter().rposition(|byte| *byte == b'}')?;
        let start = self.body.iter().position(|byte| *byte == b'{')?;
        let body: serde_json::Value = serde_json::from_slice(self.body.get(start..=end)?).ok()?;
        let version = body["data"]["version"].as_str();
        let is_nacos = version.is_some()
            || body["path"].as_str().is_some_and(|path| path.starts_with("/nacos/"));
        let version = version.map(|version| excerpt(version.as_bytes()));
        is_nacos.then_some(Found::Kind(ServerKind::Nacos, version))
    }

    /// Returns whether this is Polaris's answer to a query that it refuses.
    fn is_polaris(&self) -> bool {
        !self.header("x-polaris-code").is_empty()
    }

    fn describe(&self) -> String {
        let is_page = self.header("content-type").contains("html");
        let kind = if is_page { "a web server" } else { "an HTTP server" };
        let server = self.header("server");
        let server = if server.is_empty() { String::new() } else { format!(" ({server})") };
        format!("{kind}{server}, which answers GET /version with {}", self.status)
    }
}

/// Recognises ZooKeeper by its answer to the command `srvr`, even if that is turned off.
fn zookeeper(answer: &[u8]) -> Option<Found> {
    let text = excerpt(answer);
    if let Some(rest) = text.strip_prefix("Zookeeper version: ") {
        let version = rest.split(['-', ',', ' ']).next().map(str::to_owned);
        return Some(Found::Kind(ServerKind::ZooKeeper, version));
    }
    let is_refusal = text.contains("is not executed because it is not in the whitelist")
        || text.contains("ZooKeeper instance is not currently serving");
    is_refusal.then_some(Found::Kind(ServerKind::ZooKeeper, None))
}

/// Returns the kind of a server that sends these bytes first.
fn kind_of(bytes: &[u8]) -> Option<Found> {
    let kind = match bytes {
        [] | [b'H', b'T', b'T', b'P', b'/', ..] => return None,
        // An alert record of TLS (RFC 8446 section 5.1).
        [0x15, 0x03, ..] => return Some(Found::Tls),
        // A SETTINGS frame (RFC 9113 section 6.5).
        [_, _, _, 0x04, ..] => "an HTTP/2 or gRPC server".to_owned(),
        [b'S', b'S', b'H', b'-', ..] => "an SSH server".to_owned(),
        [b'-', b'E', b'R', b'R', ..] => "a Redis server".to_owned(),
        _ => format!("a server that answers {:?}", excerpt(bytes)),
    };
    Some(Found::Other(kind))
}

/// Returns whether a server answers a TLS handshake, whatever its certificate.
async fn speaks_tls(endpoint: &str) -> bool {
    let Some(connector) = tls::distrustful_connector() else { return false };
    let Ok(name) = tls::server_name(endpoint, None) else { return false };
    let Ok(stream) = TcpStream::connect(endpoint).await else { return false };
    match connector.connect(name, stream).await {
        Ok(_) => true,
        Err(error) => tls::is_answer_of_tls(&error),
    }
}

/// Returns the start of a text for a message, on one line.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_EXCERPT_CHARS)]);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut excerpt: String = words.chars().take(MAX_EXCERPT_CHARS).collect();
    excerpt.retain(|c| !c.is_control());
    excerpt
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
            let found = kind_of(bytes).unwrap().describe(ServerKind::Consul, "10.0.0.1:8500");
            assert!(found.as_ref().unwrap().contains(expected), "{found:?}");
        }
        assert_eq!(kind_of(b""), None);
        assert_eq!(kind_of(b"HTTP/1.0 400 Bad Request\r\n"), None, "its HTTP answer says more");
    }

    #[test]
    fn zookeeper_is_identified_by_its_answer_to_a_command() {
        let found =
            |text: &str| zookeeper(text.as_bytes())?.describe(ServerKind::Etcd, "10.0.0.1:2181");
        assert_eq!(
            found("Zookeeper version: 3.8.0-${mvngit.commit.id}, built on 2022-08-29\nLatency"),
            Some(
                "it is not etcd but a ZooKeeper, version 3.8.0: use zookeeper://10.0.0.1:2181"
                    .to_owned()
            )
        );
        let refusal = "srvr is not executed because it is not in the whitelist.\n";
        assert!(found(refusal).is_some_and(|text| text.contains("but a ZooKeeper: use")));
        assert_eq!(found("imok"), None);
    }

    #[test]
    fn consul_is_identified_by_its_headers_or_its_leader() {
        let is_consul = |text: &str| HttpAnswer::parse(text.as_bytes()).unwrap().is_consul();
        assert!(is_consul("HTTP/1.1 403 Forbidden\r\nX-Consul-Default-Acl-Policy: deny\r\n\r\n"));
        assert!(is_consul("HTTP/1.1 200 OK\r\n\r\n\"10.0.0.1:8300\""));
        assert!(!is_consul("HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\n<html>"));
        assert!(!is_consul("HTTP/1.1 404 Not Found"));
    }
}
