//! The Nacos registry against servers that answer wrongly.
//!
//! A small server of the test sends the bytes that no real Nacos would send.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::followed::Followed;
use support::nacos::chunked;
use support::replay::{HttpServer, Reaction, Request, json_response, response};
use support::{SOON, eventually, seconds, throughout};
use svcdns::registry::nacos::{NacosRegistry, Settings};
use svcdns::registry::{Credential, Secret};

/// Longer than any test: what happens earlier has another reason.
const LONG: Duration = seconds(3600);

/// A password and a token that no output may contain.
const PASSWORD: &str = "hunter2-of-the-test";
const TOKEN: &str = "deadbeef-of-the-test";

fn settings(server: &HttpServer) -> Settings {
    let mut settings = Settings::new(vec![server.address().to_string()]);
    settings.tuning.polling.interval = Duration::from_millis(200);
    settings.tuning.connection.backoff_max = Duration::from_millis(200);
    settings.tuning.connection.request_timeout = seconds(20);
    settings.username = Some("svcdns".to_owned());
    settings.password = Some(Credential::Given(Secret::from(PASSWORD)));
    settings
}

fn follow(server: &HttpServer) -> Followed {
    let settings = settings(server);
    let url = settings.to_string();
    Followed::start(NacosRegistry::new(settings), &url, LONG)
}

/// Returns an instance at 10.0.0.`last`:80, with fields that no version has.
fn host(last: u8) -> Value {
    json!({
        "ip": format!("10.0.0.{last}"), "port": 80, "weight": 100.0, "healthy": true,
        "enabled": true, "ephemeral": true, "clusterName": "DEFAULT", "metadata": {},
        "future": [1, { "a": null }], "serviceName": "DEFAULT_GROUP@@x",
    })
}

fn hosts(hosts: impl Into<Value>) -> Value {
    json!({ "name": "x", "hosts": hosts.into(), "lastRefTime": 1, "unknown": { "deep": [[]] } })
}

/// Answers like a Nacos with the services `good` and `other`.
fn healthy(request: &Request) -> Reaction {
    let body = match (&*request.path, request.parameter("serviceName")) {
        ("/nacos/v1/auth/login", _) => {
            json!({ "accessToken": TOKEN, "tokenTtl": 18_000, "later": true })
        }
        ("/nacos/v1/ns/service/list", _) => {
            json!({ "count": 2, "doms": ["good", "other"], "future": null })
        }
        ("/nacos/v1/ns/instance/list", "good") => hosts([host(1)]),
        ("/nacos/v1/ns/instance/list", "other") => hosts([host(2)]),
        _ => return Reaction::Answer(chunked(501, &json!({ "path": request.path }))),
    };
    Reaction::Answer(chunked(200, &body))
}

/// Reacts so for the service `other`, and is healthy otherwise.
fn broken_other(reaction: Reaction) -> impl Fn(&Request) -> Reaction + Send + Sync + 'static {
    move |request| match request.parameter("serviceName") {
        "other" => reaction.clone(),
        _ => healthy(request),
    }
}

/// Checks that the reaction for one service is reported and affects no other service.
fn expect_fault_of_one_service(reaction: Reaction, message: &str) {
    let server = HttpServer::start(healthy);
    let followed = follow(&server);
    followed.wait_for("other", &["10.0.0.2:80"]);
    server.set(broken_other(reaction.clone()));
    followed.wait_for_fault_of("other", message, &[TOKEN, PASSWORD]);
    followed.wait_for("other", &["10.0.0.2:80"]);
    followed.wait_for("good", &["10.0.0.1:80"]);
    server.set(healthy);
    followed.wait_for_report("recovered", |report| report.error.is_none());
    followed.stop();

    // The same from the start: the others are served all the same.
    let server = HttpServer::start(broken_other(reaction));
    let followed = follow(&server);
    followed.wait_for("good", &["10.0.0.1:80"]);
    followed.wait_for_error(message);
    followed.wait_until_synced();
    server.set(healthy);
    followed.wait_for("other", &["10.0.0.2:80"]);
    followed.stop();
}

#[test]
fn unknown_fields_are_ignored() {
    let server = HttpServer::start(healthy);
    let followed = follow(&server);
    followed.wait_for("good", &["10.0.0.1:80"]);
    followed.wait_for("other", &["10.0.0.2:80"]);
    followed.stop();
}

#[test]
fn an_answer_that_is_cut_short_affects_only_that_service() {
    let whole = chunked(200, &hosts([host(3)]));
    let cut = Reaction::Close(whole[..whole.len() - 10].to_vec());
    expect_fault_of_one_service(cut, "cut short");
}

#[test]
fn a_connection_without_an_answer_affects_only_that_service() {
    let message = "closed the connection without an answer";
    expect_fault_of_one_service(Reaction::Close(Vec::new()), message);
}

#[test]
fn html_affects_only_that_service() {
    let page = response("200 OK", "text/html", "<html><h1>Proxy</h1></html>");
    expect_fault_of_one_service(Reaction::Answer(page), "not Nacos's JSON");
}

#[test]
fn errors_of_the_server_affect_only_that_service() {
    for (status, message) in [
        ("500 ", "the server failed (500 caused: bad"),
        ("503 ", "the server is not ready (503 caused: bad"),
        ("403 ", "and the permissions of the user (403 caused: bad"),
        ("404 ", "no such path (404 caused: bad"),
    ] {
        let body = format!("caused: bad news for *{TOKEN}*;");
        let refusal = response(status, "text/plain", body);
        expect_fault_of_one_service(Reaction::Answer(refusal), message);
    }
}

#[test]
fn an_answer_without_a_list_affects_only_that_service() {
    for body in [json!({}), json!({ "hosts": null }), json!({ "hosts": {} }), json!([])] {
        let answer = json_response("200 OK", &body);
        expect_fault_of_one_service(Reaction::Answer(answer), "not Nacos's JSON");
    }
}

#[test]
fn an_answer_with_deep_nesting_affects_only_that_service() {
    let deep = response("200 OK", "application/json", "[".repeat(100_000));
    expect_fault_of_one_service(Reaction::Answer(deep), "not Nacos's JSON");
}

#[test]
fn a_huge_answer_affects_only_that_service_and_takes_little_memory() {
    // Without a length, 100 MB follow.
    let mut bytes = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{".to_vec();
    bytes.resize(100 * 1024 * 1024, b' ');
    expect_fault_of_one_service(Reaction::Close(bytes), "more than 67108864 bytes");
}

#[test]
fn a_huge_announced_length_is_refused_at_once() {
    let announced = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{".to_vec();
    expect_fault_of_one_service(Reaction::Close(announced), "more than 67108864 bytes");
}

#[test]
fn instances_of_the_wrong_form_affect_no_others() {
    let with = |field: &str, value: Value| {
        let mut host = host(9);
        host[field] = value;
        host
    };
    let list = hosts([
        json!(null),
        json!([]),
        json!({}),
        with("port", json!("80")),
        with("port", json!(70_000)),
        with("port", json!(-1)),
        with("ip", json!("")),
        with("ip", json!("[")),
        with("metadata", json!("text")),
        host(1),
        host(1),
    ]);
    let server = HttpServer::start(move |request| match request.parameter("serviceName") {
        "good" => Reaction::Answer(chunked(200, &list)),
        _ => healthy(request),
    });
    let followed = follow(&server);
    followed.wait_until_synced();
    followed.wait_for("good", &["10.0.0.1:80"]);
    followed.wait_for("other", &["10.0.0.2:80"]);
    let rejected = followed.rejections();
    let count = |code: &str| rejected.iter().filter(|(found, _)| found == code).count();
    assert_eq!(
        (count("instance-malformed"), count("port-out-of-range"), count("host-malformed")),
        (5, 2, 2),
        "{rejected:?}"
    );
    followed.stop();
}

/// Reacts so to a list of names, and is healthy otherwise.
fn broken_names(reaction: Reaction) -> impl Fn(&Request) -> Reaction + Send + Sync + 'static {
    move |request| match &*request.path {
        "/nacos/v1/ns/service/list" => reaction.clone(),
        _ => healthy(request),
    }
}

#[test]
fn a_list_of_names_that_cannot_be_read_is_an_outage_that_removes_nothing() {
    let whole = chunked(200, &json!({ "count": 1, "doms": ["good"] }));
    for (reaction, message) in [
        (Reaction::Answer(response("200 OK", "text/html", "<html>")), "not Nacos's JSON"),
        (Reaction::Close(whole[..whole.len() - 8].to_vec()), "cut short"),
        (Reaction::Close(Vec::new()), "closed the connection without an answer"),
        (Reaction::Answer(json_response("200 OK", &json!({ "count": 0 }))), "not Nacos's JSON"),
        (Reaction::Answer(chunked(503, &json!({ "message": "starting" }))), "not ready"),
        (Reaction::Answer(chunked(500, &json!({ "message": "broken" }))), "the server failed"),
    ] {
        let server = HttpServer::start(healthy);
        let followed = follow(&server);
        followed.wait_for("other", &["10.0.0.2:80"]);
        server.set(broken_names(reaction));
        let error = followed.wait_for_error(message);
        assert!(error.contains("cannot list the services"), "{error}");
        assert!(!followed.state.report().connected);
        throughout("the names are kept", Instant::now(), seconds(1), || {
            followed.instances("other").len() == 1 && followed.instances("good").len() == 1
        });
        server.set(healthy);
        followed.wait_for_report("recovered", |report| report.error.is_none() && report.connected);
        followed.stop();
    }
}

#[test]
fn a_server_that_hangs_is_an_outage() {
    let server = HttpServer::start(healthy);
    let mut settings = settings(&server);
    settings.tuning.connection.request_timeout = seconds(1);
    settings.tuning.connection.dial_timeout = seconds(1);
    let url = settings.to_string();
    let followed = Followed::start(NacosRegistry::new(settings), &url, LONG);
    followed.wait_for("other", &["10.0.0.2:80"]);
    let start = chunked(200, &json!({ "count": 1, "doms": ["good"] }))[..90].to_vec();
    server.set(broken_names(Reaction::Hang(start)));
    followed.wait_for_error("cannot list the services: no complete answer within 2 s");
    followed.wait_for("other", &["10.0.0.2:80"]);
    server.set(healthy);
    followed.wait_for_report("recovered", |report| report.error.is_none() && report.connected);
    followed.stop();
}

#[test]
fn a_login_that_answers_nonsense_shows_no_secret() {
    for answer in [
        response("200 OK", "text/html", format!("<html>{PASSWORD}")),
        response("200 OK", "text/plain", format!("{{\"accessToken\": {TOKEN:?}")),
        response("403 ", "text/plain", format!("no user with password={PASSWORD}")),
        json_response("200 OK", &json!({ "accessToken": "line\nbreak" })),
    ] {
        let server = HttpServer::start(move |request| match &*request.method {
            "POST" => Reaction::Answer(answer.clone()),
            _ => healthy(request),
        });
        let followed = follow(&server);
        let error = followed.wait_for_error("cannot log in");
        assert!(!error.contains(PASSWORD) && !error.contains(TOKEN), "{error}");
        followed.stop();
    }
}

#[test]
fn endless_pages_end() {
    // Every page is full and brings new names.
    let server = HttpServer::start(|request| {
        if request.path != "/nacos/v1/ns/service/list" {
            return healthy(request);
        }
        let page: usize = request.parameter("pageNo").parse().unwrap();
        let names: Vec<_> = (0..500).map(|number| format!("n-{page}-{number}")).collect();
        Reaction::Answer(chunked(200, &json!({ "count": 1_000_000, "doms": names })))
    });
    let followed = follow(&server);
    eventually("an end of the pages", SOON, || {
        let requests = server.request_count();
        assert!(requests < 20_000, "{requests} requests");
        let is_read = |(_, request): &(Instant, Request)| request.path.ends_with("instance/list");
        server.requests().iter().any(is_read).then_some(())
    });
    followed.stop();
}
