//! The Consul registry against servers that answer wrongly.
//!
//! A small server of the test sends the bytes that no real Consul would send.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::followed::Followed;
use support::{seconds, throughout};
use svcdns::registry::Credential;
use svcdns::registry::Secret;
use svcdns::registry::consul::{ConsulRegistry, Settings};
use svcdns::service::{Change, ListKind};

/// Longer than any test: what happens earlier has another reason.
const LONG: Duration = seconds(3600);

/// A token that no output may contain.
const TOKEN: &str = "deadbeef-0000-1111-2222-333333333333";

/// A header after which the server keeps the connection open, and sends no more.
const HOLD: &str = "X-Test-Hold: yes\r\n";

/// Answers a request: the path with its parameters, to the bytes of the response.
type Respond = dyn Fn(&str) -> Vec<u8> + Send + Sync;

/// A server whose responses a test makes up; each connection has one request.
struct FakeServer {
    address: SocketAddr,
    respond: Arc<Mutex<Arc<Respond>>>,
    stop: Arc<AtomicBool>,
    /// Number of requests so far.
    requests: Arc<AtomicU64>,
}

impl FakeServer {
    fn start(respond: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            respond: Arc::new(Mutex::new(Arc::new(respond))),
            stop: Arc::default(),
            requests: Arc::default(),
        };
        let (respond, stop) = (Arc::clone(&server.respond), Arc::clone(&server.stop));
        let requests = Arc::clone(&server.requests);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (respond, requests) = (Arc::clone(&respond), Arc::clone(&requests));
                thread::spawn(move || answer(&stream.unwrap(), &respond, &requests));
            }
        });
        server
    }

    /// Answers otherwise from now on.
    fn set(&self, respond: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) {
        *self.respond.lock().unwrap() = Arc::new(respond);
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::new(vec![self.address.to_string()]);
        settings.tuning.connection.backoff_max = Duration::from_millis(200);
        settings.tuning.connection.request_timeout = seconds(20);
        settings.token = Some(Credential::Given(Secret::from(TOKEN)));
        settings
    }

    fn follow(&self) -> Followed {
        let settings = self.settings();
        let url = settings.to_string();
        Followed::start(ConsulRegistry::new(settings), &url, LONG)
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

/// Reads a request and sends the response to it.
fn answer(mut stream: &TcpStream, respond: &Mutex<Arc<Respond>>, requests: &AtomicU64) {
    let mut lines = BufReader::new(stream).lines();
    let Some(Ok(first)) = lines.next() else { return };
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    requests.fetch_add(1, Ordering::Relaxed);
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let respond = Arc::clone(&respond.lock().unwrap());
    // A client that has given up is not a failure of the server.
    let response = respond(&path);
    let _ = stream.write_all(&response);
    if response.windows(HOLD.len()).any(|bytes| bytes == HOLD.as_bytes()) {
        // The client closes the connection once it has waited for long enough.
        let _ = std::io::Read::read(&mut stream, &mut [0]);
    }
}

/// Returns a response as Consul sends it.
fn consul(index: u64, body: &[u8]) -> Vec<u8> {
    with_headers(&format!("X-Consul-Index: {index}\r\nX-Consul-Knownleader: true\r\n"), body)
}

fn with_headers(headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut response = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{headers}Content-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    )
    .into_bytes();
    response.extend_from_slice(body);
    response
}

/// Returns an entry of a service at 10.0.0.`last`:80.
fn entry(name: &str, last: u8) -> Value {
    json!({
        "Node": { "Node": "n", "Address": "10.0.0.200", "Future": [1, { "a": null }] },
        "Service": {
            "ID": format!("{name}-{last}"), "Service": name, "Tags": [], "Port": 80,
            "Address": format!("10.0.0.{last}"), "Meta": null, "Unknown": { "Deep": [[]] },
        },
        "Checks": [{ "Status": "passing", "Type": "ttl", "New": true }],
        "Later": "field",
    })
}

/// Answers like a Consul with the services `good` and `other` at index 10.
///
/// Waiting queries end after a second, unchanged.
fn healthy(path: &str) -> Vec<u8> {
    if path.contains("index=") {
        thread::sleep(seconds(1));
    }
    let (path, _) = path.split_once('?').unwrap_or((path, ""));
    match path {
        "/v1/catalog/services" => consul(10, br#"{"consul":[],"good":[""],"other":null}"#),
        "/v1/health/service/good" => consul(10, json!([entry("good", 1)]).to_string().as_bytes()),
        "/v1/health/service/other" => consul(10, json!([entry("other", 2)]).to_string().as_bytes()),
        "/v1/status/leader" => consul(10, br#""127.0.0.1:8300""#),
        _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
    }
}

/// Answers for the service `other` with these bytes, and is healthy otherwise.
fn broken_other(bytes: Vec<u8>) -> impl Fn(&str) -> Vec<u8> + Send + Sync + 'static {
    move |path| {
        if path.starts_with("/v1/health/service/other") { bytes.clone() } else { healthy(path) }
    }
}

/// Checks that the bytes for one service are reported and affect no other service.
fn expect_fault_of_one_service(bytes: Vec<u8>, message: &str) {
    let server = FakeServer::start(healthy);
    let followed = server.follow();
    followed.wait_for("other", &["10.0.0.2:80"]);
    server.set(broken_other(bytes));
    let error = followed.wait_for_error(message);
    assert!(error.contains("read the service \"other\""), "{error}");
    assert!(error.contains(&server.address.to_string()) && !error.contains(TOKEN), "{error}");
    let report = followed.state.report();
    assert!(report.connected, "{report:?}");
    followed.wait_for("other", &["10.0.0.2:80"]);
    followed.wait_for("good", &["10.0.0.1:80"]);
    server.set(healthy);
    followed.wait_for_report("recovered", |report| report.error.is_none());
    followed.stop();
}

#[test]
fn unknown_fields_are_ignored() {
    let server = FakeServer::start(healthy);
    let followed = server.follow();
    followed.wait_for("good", &["10.0.0.1:80"]);
    followed.wait_for("other", &["10.0.0.2:80"]);
    followed.stop();
}

#[test]
fn an_answer_that_is_cut_short_affects_only_that_service() {
    let whole = consul(11, json!([entry("other", 3)]).to_string().as_bytes());
    expect_fault_of_one_service(whole[..whole.len() - 10].to_vec(), "cut short");
}

#[test]
fn a_connection_without_an_answer_affects_only_that_service() {
    expect_fault_of_one_service(Vec::new(), "closed the connection without an answer");
}

#[test]
fn html_affects_only_that_service() {
    let page = with_headers("X-Consul-Index: 11\r\n", b"<html><h1>Proxy</h1></html>");
    expect_fault_of_one_service(page, "not Consul's JSON");
}

#[test]
fn an_error_of_a_proxy_that_echoes_the_token_hides_it() {
    let body = format!("bad gateway for {TOKEN}");
    let length = body.len();
    let response = format!(
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    expect_fault_of_one_service(response.into_bytes(), "bad gateway for ***");
}

#[test]
fn a_response_of_the_wrong_json_type_affects_only_its_service() {
    expect_fault_of_one_service(consul(11, br#"{"not":"a list"}"#), "not Consul's JSON");
}

#[test]
fn an_answer_with_deep_nesting_affects_only_that_service() {
    let deep = "[".repeat(100_000);
    expect_fault_of_one_service(consul(11, deep.as_bytes()), "not Consul's JSON");
}

#[test]
fn a_huge_answer_affects_only_that_service_and_takes_little_memory() {
    // Without a length, 100 MB follow.
    let mut bytes = b"HTTP/1.1 200 OK\r\nX-Consul-Index: 11\r\nConnection: close\r\n\r\n[".to_vec();
    bytes.resize(100 * 1024 * 1024, b' ');
    expect_fault_of_one_service(bytes, "more than 67108864 bytes");
}

#[test]
fn a_huge_announced_length_is_refused_at_once() {
    let announced =
        b"HTTP/1.1 200 OK\r\nX-Consul-Index: 11\r\nContent-Length: 99999999999\r\n\r\n[".to_vec();
    expect_fault_of_one_service(announced, "more than 67108864 bytes");
}

#[test]
fn entries_of_the_wrong_form_affect_no_others() {
    let with = |id: &str, port: Value| {
        let service = json!({ "ID": id, "Service": "good", "Address": "10.0.0.9", "Port": port });
        json!({ "Service": service })
    };
    let bad = [
        json!(null),
        json!([]),
        json!("text"),
        json!({}),
        with("text", json!("80")),
        with("big", json!(70000)),
        with("negative", json!(-1)),
        json!({ "Service": { "ID": "tags", "Service": "good", "Tags": "x" } }),
        entry("good", 1),
        entry("good", 1),
        entry("stranger", 9),
    ];
    let body = Value::from(bad.to_vec()).to_string();
    let server = FakeServer::start(move |path| {
        if path.starts_with("/v1/health/service/good") {
            if path.contains("index=") {
                thread::sleep(seconds(1));
            }
            consul(10, body.as_bytes())
        } else {
            healthy(path)
        }
    });
    let followed = server.follow();
    followed.wait_until_synced();
    followed.wait_for("good", &["10.0.0.1:80"]);
    followed.wait_for("other", &["10.0.0.2:80"]);
    assert!(!followed.knows("stranger"));
    let rejected = followed.rejections();
    let count = |code: &str| rejected.iter().filter(|(found, _)| found == code).count();
    assert_eq!(
        (count("entry-not-json"), count("port-out-of-range"), count("no-address")),
        (5, 2, 1),
        "{rejected:?}"
    );
    followed.stop();
}

#[test]
fn an_index_that_goes_back_is_a_restored_store_whose_removals_are_held() {
    let server = FakeServer::start(healthy);
    let followed = server.follow();
    followed.wait_until_synced();
    server.set(|path| {
        if path.contains("index=") {
            thread::sleep(Duration::from_millis(100));
        }
        if path.starts_with("/v1/catalog/services") {
            consul(3, br#"{"good":[]}"#)
        } else if path.starts_with("/v1/health/service/good") {
            consul(3, json!([entry("good", 7)]).to_string().as_bytes())
        } else {
            healthy(path)
        }
    });
    followed.wait_for("good", &["10.0.0.1:80", "10.0.0.7:80"]);
    let is_restored = |change: &Change| {
        matches!(
            change,
            Change::ServiceNames { kind: ListKind::Restored, .. }
                | Change::ListBegin { kind: ListKind::Restored, .. }
        )
    };
    assert!(followed.changes().iter().any(|(_, change)| is_restored(change)));
    followed.wait_for("other", &["10.0.0.2:80"]);
    followed.stop();
}

/// Returns the number of restored stores among the changes.
fn restorations(followed: &Followed) -> usize {
    let is_restored =
        |change: &Change| matches!(change, Change::ServiceNames { kind: ListKind::Restored, .. });
    followed.changes().iter().filter(|(_, change)| is_restored(change)).count()
}

/// Waits a little at an index, and answers for `other` with these instances.
fn other_with(path: &str, index: u64, instances: &[u8]) -> Vec<u8> {
    if path.contains("index=") {
        thread::sleep(Duration::from_millis(100));
    }
    let entries: Vec<_> = instances.iter().map(|last| entry("other", *last)).collect();
    consul(index, Value::from(entries).to_string().as_bytes())
}

#[test]
fn a_service_without_an_index_holds_up_no_removals_of_others() {
    let with_other = |index: u64, instances: &'static [u8]| {
        move |path: &str| match path.split('?').next() {
            Some("/v1/health/service/good") => {
                consul(0, json!([entry("good", 1)]).to_string().as_bytes())
            }
            Some("/v1/health/service/other") => other_with(path, index, instances),
            _ => healthy(path),
        }
    };
    let server = FakeServer::start(with_other(10, &[2, 3]));
    let followed = server.follow();
    followed.wait_for("other", &["10.0.0.2:80", "10.0.0.3:80"]);
    followed.wait_for("good", &["10.0.0.1:80"]);
    let error = followed.wait_for_error("X-Consul-Index of the answer is 0");
    assert!(error.contains("\"good\""), "{error}");
    server.set(with_other(11, &[2]));
    followed.wait_for("other", &["10.0.0.2:80"]);
    assert_eq!((restorations(&followed), followed.state.report().lists), (0, 1));
    server.set(healthy);
    followed.wait_for_report("recovered", |report| report.error.is_none());
    followed.stop();
}

#[test]
fn an_index_that_goes_back_causes_new_lists_and_holds_the_removals_of_its_service() {
    let server = FakeServer::start(healthy);
    let followed = server.follow();
    followed.wait_for("other", &["10.0.0.2:80"]);
    server.set(|path| match path.split('?').next() {
        Some("/v1/health/service/other") => other_with(path, 5, &[7]),
        _ => healthy(path),
    });
    followed.wait_for("other", &["10.0.0.2:80", "10.0.0.7:80"]);
    followed.wait_for_report("a second round", |report| report.lists == 2);
    throughout("no further round", Instant::now(), seconds(3), || {
        followed.state.report().lists == 2
    });
    assert_eq!(restorations(&followed), 1);
    followed.wait_for("good", &["10.0.0.1:80"]);
    followed.stop();
}

#[test]
fn rounds_of_an_index_that_goes_back_again_and_again_become_rare() {
    let server = FakeServer::start(healthy);
    let followed = server.follow();
    followed.wait_for("other", &["10.0.0.2:80"]);
    let answers = Arc::new(AtomicU64::new(0));
    let unsteady = |path: &str, answers: &AtomicU64| match path.split('?').next() {
        Some("/v1/health/service/other") => {
            other_with(path, 50 + answers.fetch_add(1, Ordering::Relaxed) % 2, &[2])
        }
        _ => healthy(path),
    };
    let count = Arc::clone(&answers);
    server.set(move |path| unsteady(path, &count));
    // The waits between rounds double from 0.1 s.
    followed.wait_for_report("rounds", |report| report.lists >= 4);
    let start = Instant::now();
    thread::sleep(seconds(6));
    let rounds = followed.state.report().lists;
    assert!(rounds < 10 + start.elapsed().as_secs() / 6, "{rounds} rounds");
    // New services do not wait for the next round.
    server.set(move |path| match path.split('?').next() {
        Some("/v1/catalog/services") => {
            thread::sleep(Duration::from_millis(100));
            consul(11, br#"{"good":[],"other":[],"new":[]}"#)
        }
        Some("/v1/health/service/new") => {
            consul(11, json!([entry("new", 9)]).to_string().as_bytes())
        }
        _ => unsteady(path, &answers),
    });
    followed.wait_for("new", &["10.0.0.9:80"]);
    followed.wait_for("good", &["10.0.0.1:80"]);
    followed.stop();
}

#[test]
fn a_list_of_names_without_an_index_is_followed_and_reported() {
    let with_names = |names: &'static [u8]| {
        move |path: &str| match path.split('?').next() {
            Some("/v1/catalog/services") => consul(0, names),
            _ => healthy(path),
        }
    };
    let server = FakeServer::start(with_names(br#"{"good":[],"other":[]}"#));
    let followed = server.follow();
    followed.wait_until_synced();
    let error = followed.wait_for_error("X-Consul-Index of the answer is 0");
    assert!(error.contains("cannot wait for changes of the services"), "{error}");
    followed.wait_for("other", &["10.0.0.2:80"]);
    throughout("one round", Instant::now(), seconds(3), || {
        let report = followed.state.report();
        report.connected && report.lists == 1 && report.error.is_some()
    });
    server.set(with_names(br#"{"good":[]}"#));
    followed.wait_until("other to be unknown", || !followed.knows("other"));
    server.set(healthy);
    followed.wait_for("other", &["10.0.0.2:80"]);
    followed.wait_for_report("recovered", |report| report.error.is_none());
    assert_eq!((restorations(&followed), followed.state.report().lists), (0, 1));
    followed.stop();
}

#[test]
fn a_large_answer_that_stops_does_not_keep_others_away() {
    let server = FakeServer::start(healthy);
    let mut settings = server.settings();
    settings.tuning.connection.request_timeout = seconds(2);
    let url = settings.to_string();
    let followed = Followed::start(ConsulRegistry::new(settings), &url, LONG);
    followed.wait_for("other", &["10.0.0.2:80"]);
    let stopped = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&stopped);
    server.set(move |path| match path.split('?').next() {
        Some("/v1/health/service/good") if path.contains("index=") => {
            let headers = format!("X-Consul-Index: 11\r\n{HOLD}");
            let mut response = with_headers(&headers, &vec![b' '; 2 * 1024 * 1024]);
            response.truncate(response.len() - 1);
            count.fetch_add(1, Ordering::Relaxed);
            response
        }
        Some("/v1/health/service/other") if stopped.load(Ordering::Relaxed) > 0 => {
            let mut body = json!([entry("other", 3)]).to_string().into_bytes();
            body.resize(2 * 1024 * 1024, b' ');
            consul(11, &body)
        }
        _ => healthy(path),
    });
    followed.wait_for("other", &["10.0.0.3:80"]);
    followed.wait_for("good", &["10.0.0.1:80"]);
    followed.stop();
}

#[test]
fn an_index_that_never_makes_queries_wait_causes_no_flood() {
    let server = FakeServer::start(|path| {
        // Without its parameters, no query waits.
        let (path, _) = path.split_once('?').unwrap_or((path, ""));
        if path == "/v1/health/service/good" {
            consul(0, json!([entry("good", 1)]).to_string().as_bytes())
        } else {
            healthy(path)
        }
    });
    let followed = server.follow();
    followed.wait_for("good", &["10.0.0.1:80"]);
    thread::sleep(seconds(3));
    let before = server.requests.load(Ordering::Relaxed);
    let start = Instant::now();
    thread::sleep(seconds(5));
    let requests = server.requests.load(Ordering::Relaxed) - before;
    let limit = 15 * (start.elapsed().as_secs() + 1);
    assert!(requests < limit, "{requests} requests, more than {limit}");
    followed.wait_for("good", &["10.0.0.1:80"]);
    followed.stop();
}

#[test]
fn a_cluster_without_a_leader_keeps_its_services() {
    let server = FakeServer::start(healthy);
    let followed = server.follow();
    followed.wait_for("other", &["10.0.0.2:80"]);
    server.set(|path| {
        if path.starts_with("/v1/status/leader") {
            return consul(0, br#""""#);
        }
        with_headers("X-Consul-Index: 12\r\nX-Consul-Knownleader: false\r\n", b"{}")
    });
    followed.wait_for_error("the cluster has no leader");
    followed.wait_for_report("disconnected", |report| !report.connected);
    followed.wait_for("other", &["10.0.0.2:80"]);
    server.set(|_| {
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 17\r\nConnection: close\r\n\r\n\
          No cluster leader"
            .to_vec()
    });
    throughout("the services stay", Instant::now(), seconds(1), || {
        followed.instances("good").len() == 1
    });
    server.set(healthy);
    followed.wait_for_report("recovered", |report| report.connected && report.error.is_none());
    followed.stop();
}

#[test]
fn other_servers_are_named_in_the_error() {
    let not_found = "HTTP/1.1 404 Not Found\r\nServer: nginx/1.22.1\r\nContent-Type: text/html\r\n\
                     Content-Length: 18\r\nConnection: close\r\n\r\n<html>lost</html>\n";
    let empty_object = with_headers("", b"{}");
    for (bytes, expected) in [
        (not_found.as_bytes().to_vec(), "it is not Consul but a web server (nginx/1.22.1)"),
        (empty_object, "it is not Consul but an HTTP server"),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n".to_vec(), "but an SSH server"),
        (b"\x15\x03\x01\x00\x02\x02\x16".to_vec(), "it expects TLS: use consul+https://"),
        (b"-ERR unknown command 'GET'\r\n".to_vec(), "but a Redis server"),
        (b"220 mail.example ESMTP\r\n".to_vec(), "220 mail.example ESMTP"),
        (Vec::new(), "default port of Consul's HTTP interface is 8500"),
    ] {
        let server = FakeServer::start(move |_| bytes.clone());
        let followed = server.follow();
        let error = followed.wait_for_error(expected);
        assert!(error.contains(&server.address.to_string()) && !error.contains(TOKEN), "{error}");
        assert!(!followed.state.report().synced);
        followed.stop();
    }
}

#[test]
fn a_server_that_never_answers_is_reported() {
    let server = FakeServer::start(|_| {
        thread::sleep(LONG);
        Vec::new()
    });
    let mut settings = server.settings();
    settings.tuning.connection.request_timeout = seconds(1);
    settings.tuning.connection.dial_timeout = seconds(2);
    let url = settings.to_string();
    let followed = Followed::start(ConsulRegistry::new(settings), &url, LONG);
    followed.wait_for_error("no complete answer within 3 s");
    followed.stop();
}

#[test]
fn a_malformed_list_of_names_keeps_all_services() {
    let server = FakeServer::start(healthy);
    let followed = server.follow();
    followed.wait_for("other", &["10.0.0.2:80"]);
    server.set(|path| {
        if path.starts_with("/v1/catalog/services") {
            consul(11, b"{\"good\":[")
        } else {
            healthy(path)
        }
    });
    followed.wait_for_report("disconnected", |report| !report.connected);
    followed.wait_for("other", &["10.0.0.2:80"]);
    followed.wait_for("good", &["10.0.0.1:80"]);
    server.set(healthy);
    followed.wait_for_report("recovered", |report| report.connected && report.error.is_none());
    followed.stop();
}
