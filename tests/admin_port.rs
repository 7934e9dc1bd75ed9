//! The HTTP interface under attack: refusals, limits, and answers that go on meanwhile.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use support::dns::Prober;
use support::files::Files;
use support::svcdns::Svcdns;
use support::{SOON, dns, eventually};

/// Connections that the port serves at once.
const MAX_CONNECTIONS: usize = 128;

const HELLO: (&str, &str) = ("default/default/hello.svc/latest/10.0.0.1:80", "{}");

fn serve(files: &Files) -> (Svcdns, SocketAddr) {
    let server = Svcdns::serve(&["--registry", &files.url(), "--admin-listen", "127.0.0.1:0"]);
    server.wait_for("hello.svc", &["10.0.0.1"]);
    let status: Value = serde_json::from_slice(&server.run(&["status", "--json"]).stdout).unwrap();
    let port = status["admin"].as_str().unwrap().parse().unwrap();
    (server, port)
}

/// Sends bytes on a connection of their own; returns what is sent back until the server ends it.
fn sent(port: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(port).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    // The server may refuse a request before it is complete.
    let _ = stream.write_all(request);
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    String::from_utf8_lossy(&response).into_owned()
}

#[test]
fn requests_that_no_honest_client_sends_are_refused_with_a_reason() {
    let files = Files::new(&[HELLO]);
    let (server, port) = serve(&files);
    let get = |head: &str| format!("GET /metrics HTTP/1.1\r\nConnection: close\r\n{head}\r\n");
    let here = "Host: localhost\r\n";
    let with = |head: &str| get(&format!("{here}{head}"));
    let long_line = "a".repeat(20_000);
    for (request, status, reason) in [
        (get(here), "200", "svcdns_services 1.0"),
        (with("Origin: http://localhost:3000\r\n"), "200", "svcdns_services 1.0"),
        (with("Content-Length: 0\r\n"), "200", "svcdns_services 1.0"),
        (with("Origin: http://evil.example\r\n"), "403", "the Origin header must be"),
        (with("Origin: null\r\n"), "403", "the Origin header must be"),
        (get("Host: evil.example\r\n"), "403", "the Host header must be"),
        (get("Host: 127.0.0.1.evil.example:80\r\n"), "403", "the Host header must be"),
        (with("Host: evil.example\r\n"), "400", "one Host header"),
        (get(""), "400", "one Host header"),
        (with("").replace("/metrics", "http://evil.example/metrics"), "403", "the Host header"),
        (with("Content-Length: 3\r\n"), "413", "must have no body"),
        (with("Transfer-Encoding: chunked\r\n"), "413", "must have no body"),
        (with("").replacen("GET", "POST", 1), "405", "only GET and HEAD"),
        (with("").replacen("GET", "DELETE", 1), "405", "only GET and HEAD"),
        (with("").replacen("GET", "OPTIONS", 1), "405", "only GET and HEAD"),
        (with("").replace("/metrics", "/v1/release"), "405", "only POST"),
        (with(&format!("X-Long: {long_line}\r\n")), "431", ""),
        (with(&"X-Header: a\r\n".repeat(100)), "431", ""),
        (with("").replace("/metrics", &format!("/{long_line}")), "431", ""),
        ("\x16\x03\x01\x02\x00\x01\x00\x01".to_owned(), "400", ""),
        ("EHLO evil.example\r\n\r\n".to_owned(), "400", ""),
    ] {
        let response = sent(port, request.as_bytes());
        let first = response.lines().next().unwrap_or_default();
        let asked: String = request.chars().take(200).collect();
        assert!(first.starts_with(&format!("HTTP/1.1 {status} ")), "{asked}\n{response}");
        assert!(response.contains(reason), "{asked}\n{response}");
    }
    let response = sent(port, get(here).as_bytes());
    for header in ["x-content-type-options: nosniff", "cross-origin-resource-policy: same-origin"] {
        assert!(response.contains(header), "{response}");
    }
    server.stop();
}

/// A request that ends the connection, as short as `curl` sends it.
fn page(port: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    sent(port, request.as_bytes())
}

#[test]
fn a_thousand_slow_connections_delay_neither_dns_nor_other_requests() {
    let files = Files::new(&[HELLO]);
    let (server, port) = serve(&files);
    let prober = Prober::start(server.address, "hello.svc");
    // None of them ever completes a request.
    let mut slow = Vec::new();
    for number in 0..1000 {
        let mut stream = TcpStream::connect(port).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        if number % 2 == 0 {
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: local");
        }
        slow.push(stream);
        if number % 100 == 99 {
            assert!(page(port, "/healthz").starts_with("HTTP/1.1 200 "), "after {number}");
            assert!(page(port, "/metrics").contains("svcdns_services 1.0"), "after {number}");
            assert!(server.run(&["status"]).status.success(), "after {number}");
            // TCP shares its threads with HTTP.
            let text = dns::dig(server.address, &["+tcp", "hello.svc"]);
            assert!(text.contains("10.0.0.1"), "after {number}: {text}");
        }
    }
    prober.expect_no_loss();
    // The first ones were closed for the others.
    let mut closed = 0;
    for stream in &mut slow[..1000 - MAX_CONNECTIONS - 10] {
        let mut byte = [0];
        closed += usize::from(!matches!(stream.read(&mut byte), Ok(1)));
    }
    assert!(closed >= 1000 - MAX_CONNECTIONS - 10, "{closed}");
    server.stop();
}

#[test]
fn clients_that_do_not_read_hold_back_only_their_own_pages() {
    let keys: Vec<String> = (0..15_000)
        .map(|number| {
            let [high, low] = u16::try_from(number % 65_000).unwrap().to_be_bytes();
            format!("default/default/service-{number}.svc/latest/10.1.{high}.{low}:80")
        })
        .collect();
    let mut all: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "{}")).collect();
    all.push(HELLO);
    let files = Files::new(&all);
    let (server, port) = serve(&files);
    // More than the buffers of the kernel take.
    let complete = page(port, "/v1/services");
    assert!(complete.len() > 4_000_000, "{} bytes", complete.len());
    let ask = || {
        let mut stream = TcpStream::connect(port).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(b"GET /v1/services HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        stream
    };
    // Two pages are being sent, and nobody reads them.
    let unread = [ask(), ask()];
    for stream in &unread {
        assert_eq!(stream.peek(&mut [0]).unwrap(), 1);
    }
    let waiting: Vec<TcpStream> = (0..50).map(|_| ask()).collect();
    let refused = page(port, "/v1/services");
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("try again"), "{refused}");
    // What does not grow with the registry is answered, and so is the socket.
    assert!(page(port, "/metrics").contains("svcdns_services "), "metrics");
    assert!(page(port, "/v1/status").starts_with("HTTP/1.1 200 "), "status");
    let listed = server.run(&["ls", "--json"]);
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    drop((unread, waiting));
    eventually("the page is sent again", SOON, || {
        (page(port, "/v1/services").len() == complete.len()).then_some(())
    });
    server.stop();
}

#[test]
fn a_request_in_parts_is_read_and_one_that_stops_is_ended() {
    let files = Files::new(&[HELLO]);
    let (server, port) = serve(&files);
    let mut stream = TcpStream::connect(port).unwrap();
    for part in ["GET /healthz HT", "TP/1.1\r\nHost: localhost\r\nConn", "ection: close\r\n\r\n"] {
        stream.write_all(part.as_bytes()).unwrap();
        stream.flush().unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.ends_with("alive\n"), "{response}");
    let response = sent(port, b"GET /healthz HTTP/1.1\r\nHost: local");
    assert!(!response.contains("alive"), "{response}");
    server.stop();
}
