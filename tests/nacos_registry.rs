//! The Nacos registry against recordings of Nacos 2.4.3 and 3.0.3.
//!
//! No package has Nacos's server. Some tests replay recorded exchanges byte for byte; the others
//! use a server that answers in their form ([`support::nacos`]).

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "measurements")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::followed::Followed;
use support::nacos::{Nacos, USER, chunked};
use support::process::Process;
use support::replay::{HttpServer, Reaction, Recordings, Request, response};
use support::svcdns::{Svcdns, command};
use support::{SOON, eventually, seconds, throughout};
use svcdns::catalog::Instance;
use svcdns::registry::nacos::{NacosRegistry, Settings};
use svcdns::registry::{Credential, Secret, Tls};
use svcdns::service::{Change, ListKind, ListScope};

/// Longer than any test: what happens earlier has another reason.
const LONG: Duration = seconds(3600);

/// A grace that ends within a test.
const SHORT: Duration = seconds(3);

/// How many times faster long timelines pass.
const SPEED: u32 = 10;

fn settings(address: SocketAddr) -> Settings {
    let mut settings = Settings::new(vec![address.to_string()]);
    settings.tuning.polling.interval = Duration::from_millis(200);
    settings.tuning.connection.backoff_max = Duration::from_millis(400);
    settings
}

fn follow(settings: Settings, grace: Duration) -> Followed {
    let url = settings.to_string();
    Followed::start(NacosRegistry::new(settings), &url, grace)
}

/// Returns a request as it was recorded: with smaller pages, and with what is left out today.
///
/// The recorded requests have their token in the query.
fn as_recorded(request: &Request) -> Request {
    let mut request = request.clone();
    if let Some(size) = request.parameters.get_mut("pageSize") {
        "100".clone_into(size);
    }
    if request.parameter("groupNameParam") == "DEFAULT_GROUP" {
        request.parameters.remove("groupNameParam");
    }
    if let Some(token) = request.header("authorization").strip_prefix("Bearer ") {
        request.parameters.insert("accessToken".to_owned(), token.to_owned());
    }
    request
}

/// Starts a server that knows these exchanges only; others get the recorded answer to a request of
/// a path that does not exist.
fn replay(recordings: &Recordings, names: &[&str]) -> HttpServer {
    let (answers, missing) = (recordings.answers(names), missing(recordings));
    HttpServer::start(move |request| {
        Reaction::Answer(answers(&as_recorded(request)).unwrap_or_else(|| missing.clone()))
    })
}

fn missing(recordings: &Recordings) -> Vec<u8> {
    if recordings.has("60-not-found") {
        recordings.response("60-not-found")
    } else {
        recordings.response("22-v2-instances")
    }
}

/// Returns the metadata of each served instance of a name.
fn metadata(followed: &Followed, base: &str) -> BTreeMap<String, Value> {
    followed.catalog(|catalog| {
        let service = catalog.service(base).unwrap();
        let of_instance = |instance: Instance<'_>| {
            let metadata = serde_json::to_value(&*instance.key.metadata).unwrap();
            (instance.endpoint.to_string(), metadata)
        };
        service.served().map(of_instance).collect()
    })
}

/// Returns how often a service was listed.
fn lists_of(followed: &Followed, name: &str) -> usize {
    let is_list = |change: &Change| match change {
        Change::ListBegin { scope: ListScope::Service(of), .. } => **of == *name,
        _ => false,
    };
    followed.changes().iter().filter(|(_, change)| is_list(change)).count()
}

// Recorded exchanges

/// The services of the recordings of 2.4.3, with their instances in v1.
const V1: &[&str] = &[
    "10-v1-services",
    "30-v1-instances-hello",
    "32-v1-instances-demo",
    "34-v1-instances-user-svc",
    "44-v1-instances-cluster",
    "47-v1-instances-slash",
    "48-v1-instances-case",
];

/// The served endpoint of hello.svc; that of docker0, 172.17.0.1, is registered, too.
const HELLO: [&str; 1] = ["10.9.0.5:40027"];

#[test]
fn recorded_services_of_2_4_are_served() {
    let recordings = Recordings::open("nacos/2.4.3");
    let server = replay(&recordings, V1);
    let followed = follow(settings(server.address()), LONG);
    followed.wait_until_synced();
    followed.wait_for("hello", &HELLO);
    let registered = followed.catalog(|catalog| catalog.service("hello").unwrap().keys().len());
    assert_eq!(registered, 2);
    followed.wait_for("demo", &["10.9.0.5:8000"]);
    followed.wait_for("zone-svc", &["10.9.0.5:9004"]);
    followed.wait_for("mixed_name", &["10.9.0.5:9006"]);
    let user = &metadata(&followed, "user-svc")["10.9.0.5:9001"];
    assert_eq!(*user, json!({ "region": "eu", "weight": "5" }));
    let weights = followed.catalog(|catalog| {
        ["user-svc", "hello"].map(|base| catalog.service(base).unwrap().keys()[0].weight())
    });
    assert_eq!(weights, [5, 1], "Nacos's own weight of 100 does not count");
    let rejected = followed.rejections();
    assert!(rejected.iter().any(|(code, key)| code == "name-not-dns" && key.starts_with("a%2Fb/")));
    let report = followed.state.report();
    assert!(report.error.is_none() && report.lists == 1, "{report:?}");
    followed.stop();
}

#[test]
fn recorded_services_of_v2_are_served_where_v1_is_missing() {
    let recordings = Recordings::open("nacos/2.4.3");
    let names =
        ["69-v2-emptied", "11-v2-services", "31-v2-instances-hello", "35-v2-instances-user-svc"];
    let server = replay(&recordings, &names);
    let followed = follow(settings(server.address()), LONG);
    followed.wait_for("hello", &HELLO);
    followed.wait_for("user-svc", &["10.9.0.5:9001"]);
    assert_eq!(followed.instances("demo"), BTreeSet::new(), "emptied");
    followed.stop();
}

#[test]
fn recorded_groups_and_clusters_are_selected() {
    let recordings = Recordings::open("nacos/2.4.3");
    let names = ["12-v1-services-group", "38-v1-instances-group"];
    let server = replay(&recordings, &names);
    let mut of_group = settings(server.address());
    of_group.group = "SHOP_GROUP".to_owned();
    let followed = follow(of_group, LONG);
    followed.wait_for("pay-svc", &["10.9.0.5:9002"]);
    followed.stop();

    let names = ["14-v1-services-namespace", "42-v1-instances-namespace"];
    let server = replay(&recordings, &names);
    let mut of_namespace = settings(server.address());
    of_namespace.namespace = Some("shop-ns".to_owned());
    let followed = follow(of_namespace, LONG);
    followed.wait_for("cart-svc", &["10.9.0.5:9003"]);
    followed.stop();

    let server = replay(&recordings, V1);
    let mut of_cluster = settings(server.address());
    of_cluster.clusters = vec!["c2".to_owned()];
    let followed = follow(of_cluster, LONG);
    followed.wait_for("zone-svc", &["10.9.0.5:9004"]);
    assert_eq!(followed.instances("hello"), BTreeSet::new(), "of the cluster DEFAULT");
    followed.stop();
}

#[test]
fn recorded_services_of_3_0_are_served_through_v1() {
    let recordings = Recordings::open("nacos/3.0.3");
    let server = replay(&recordings, &["24-v1-services", "21-v1-instances"]);
    let followed = follow(settings(server.address()), LONG);
    followed.wait_for("hello", &["10.9.0.5:34657"]);
    followed.stop();
}

#[test]
fn recorded_services_of_v3_are_served_with_the_login_of_an_administrator() {
    let recordings = Recordings::open("nacos/3.0.3");
    let names = [
        "12-login",
        "33-v3-services",
        "20-v3-instances",
        "60-v3-instances-demo",
        "61-v3-instances-user-svc",
    ];
    let answers = recordings.answers(&names);
    let (gone, denied) = (missing(&recordings), recordings.response("23-v3-services"));
    // The tokens of two logins differ.
    let token = recordings.request("33-v3-services").parameter("accessToken").to_owned();
    let server = HttpServer::start(move |request| {
        let mut request = as_recorded(request);
        let is_list = request.path.starts_with("/nacos/v3/admin");
        match request.parameters.remove("accessToken") {
            Some(_) if is_list => {
                request.parameters.insert("accessToken".to_owned(), token.clone());
            }
            None if is_list => return Reaction::Answer(denied.clone()),
            _ => {}
        }
        Reaction::Answer(answers(&request).unwrap_or_else(|| gone.clone()))
    });
    let mut without_login = settings(server.address());
    let followed = follow(without_login.clone(), LONG);
    let error = followed.wait_for_error("only v3 of the interface");
    assert!(error.contains("administrators") && error.contains("configure a user"), "{error}");
    followed.stop();

    without_login.username = Some("nacos".to_owned());
    without_login.password = Some(Credential::Given(Secret::from("recording")));
    let followed = follow(without_login, LONG);
    followed.wait_for("hello", &["10.9.0.5:34657"]);
    followed.wait_for("demo", &["10.9.0.5:8000"]);
    followed.wait_for("user-svc", &["10.9.0.5:9001"]);
    assert!(!followed.knows("pay-svc"), "it is in another group");
    followed.stop();
}

#[test]
fn a_service_without_instances_in_the_selected_clusters_may_have_been_lost() {
    let list = Recordings::open("nacos/2.4.3").body("32-v1-instances-demo");
    let answer = move |clusters: &[&str]| {
        let mut list = list.clone();
        let host = |cluster: &&str| {
            let mut host = list["hosts"][0].clone();
            host["clusterName"] = (*cluster).into();
            host
        };
        let hosts: Vec<_> = clusters.iter().map(host).collect();
        list["hosts"] = hosts.into();
        move |request: &Request| {
            let names = json!({ "count": 1, "doms": ["demo"] });
            let is_names = request.path.ends_with("service/list");
            Reaction::Answer(chunked(200, if is_names { &names } else { &list }))
        }
    };
    let server = HttpServer::start(answer(&["DEFAULT", "c2"]));
    let mut settings = settings(server.address());
    settings.clusters = vec!["c2".to_owned()];
    let followed = follow(settings, LONG);
    followed.wait_for("demo", &["10.9.0.5:8000"]);
    server.set(answer(&["DEFAULT"]));
    let before = server.request_count();
    eventually("further queries", SOON, || (server.request_count() > before + 10).then_some(()));
    assert_eq!(followed.instances("demo").len(), 1);
    server.set(answer(&["DEFAULT", "c2"]));
    followed.wait_for("demo", &["10.9.0.5:8000"]);
    followed.stop();
}

/// Follows recorded services, and replays a timeline of one request from now on, `speed` times
/// faster.
///
/// Returns the time of its start.
fn follow_timeline(
    recordings: &Recordings,
    names: &[&str],
    (timeline, speed): (&str, u32),
    grace: Duration,
) -> (HttpServer, Followed, Instant) {
    let server = replay(recordings, names);
    let followed = follow(settings(server.address()), grace);
    followed.wait_until_synced();
    let start = play_timeline(&server, recordings, names, (timeline, speed));
    (server, followed, start)
}

/// Replays a timeline of one request from now on, `speed` times faster; returns its start.
fn play_timeline(
    server: &HttpServer,
    recordings: &Recordings,
    names: &[&str],
    (timeline, speed): (&str, u32),
) -> Instant {
    let (answers, missing) = (recordings.answers(names), missing(recordings));
    let (asked, timeline) = (recordings.request(timeline), recordings.timeline(timeline));
    let start = Instant::now();
    server.set(move |request| {
        let request = as_recorded(request);
        if !asked.asks_as(&request) {
            return Reaction::Answer(answers(&request).unwrap_or_else(|| missing.clone()));
        }
        match timeline.at(start.elapsed() * speed) {
            Some(answer) => Reaction::Answer(answer.to_vec()),
            None => Reaction::Close(Vec::new()),
        }
    });
    start
}

#[test]
fn a_recorded_program_that_stops_is_removed() {
    let recordings = Recordings::open("nacos/2.4.3");
    for timeline in ["64-v1-sigterm", "65-v1-sigkill"] {
        let names = ["10-v1-services", "62-v1-instances-second"];
        let (_server, followed, _) = follow_timeline(&recordings, &names, (timeline, 1), LONG);
        followed.wait_for("hello", &HELLO);
        assert_eq!(followed.kinds(), [ListKind::Routine].into());
        followed.stop();
    }
}

#[test]
fn a_recorded_program_that_is_frozen_is_removed_and_returns() {
    let recordings = Recordings::open("nacos/2.4.3");
    let names = ["10-v1-services", "62-v1-instances-second"];
    let timeline = ("66-v1-frozen", SPEED);
    let (server, followed, start) = follow_timeline(&recordings, &names, timeline, LONG);
    followed.wait_for("hello", &HELLO);
    let removed = recordings.timeline("66-v1-frozen").first(|body| !body.contains("40725"));
    assert!(removed == seconds(25) && start.elapsed() >= removed / SPEED);
    play_timeline(&server, &recordings, &names, ("67-v1-thawed", 1));
    followed.wait_for("hello", &[HELLO[0], "10.9.0.5:40725"]);
    followed.stop();
}

#[test]
fn a_recorded_instance_without_heartbeats_is_removed_once_it_is_unhealthy() {
    let recordings = Recordings::open("nacos/2.4.3");
    let names = ["10-v1-services", "81-v1-instances-byhttp"];
    let server = {
        let (answers, missing) = (recordings.answers(&names), missing(&recordings));
        HttpServer::start(move |request| {
            let request = as_recorded(request);
            if request.path.ends_with("service/list") {
                return Reaction::Answer(chunked(200, &json!({ "count": 1, "doms": ["byhttp"] })));
            }
            Reaction::Answer(answers(&request).unwrap_or_else(|| missing.clone()))
        })
    };
    let followed = follow(settings(server.address()), LONG);
    followed.wait_for("byhttp", &["10.9.0.5:9100"]);
    let unhealthy = recordings.response("85-v1-beats-stopped.2");
    server.set(move |request| {
        if request.path.ends_with("service/list") {
            return Reaction::Answer(chunked(200, &json!({ "count": 1, "doms": ["byhttp"] })));
        }
        Reaction::Answer(unhealthy.clone())
    });
    followed.wait_for("byhttp", &[]);
    assert!(followed.knows("byhttp"), "it is registered, and not alive");
    followed.stop();
}

#[test]
fn a_recorded_emptied_service_is_served_until_that_has_lasted() {
    let recordings = Recordings::open("nacos/2.4.3");
    let names = ["10-v1-services", "32-v1-instances-demo", "30-v1-instances-hello"];
    let timeline = ("68-v1-emptied", 1);
    let (_server, followed, start) = follow_timeline(&recordings, &names, timeline, SHORT);
    throughout("the service is served", start, SHORT, || followed.instances("demo").len() == 1);
    followed.wait_until("the end of the service", || !followed.knows("demo"));
    followed.wait_for("hello", &HELLO);
    assert!(followed.kinds().contains(&ListKind::Doubted));
    followed.stop();
}

#[test]
fn a_recorded_restart_loses_no_name() {
    let recordings = Recordings::open("nacos/2.4.3");
    // Connections are refused, then lists are empty for 0.4 s, then all is there again.
    let names = ["10-v1-services", "30-v1-instances-hello"];
    let server = replay(&recordings, &names);
    let followed = follow(settings(server.address()), LONG);
    followed.wait_for("hello", &HELLO);
    let lists = recordings.timeline("B1-v1-restart");
    // The list of names after another restart was partial for a second.
    let names = recordings.timeline("B3-v1-services-restart");
    let start = Instant::now();
    server.set(move |request| {
        let is_list = request.path.ends_with("service/list");
        let (timeline, shift) = if is_list {
            (&names, names.first(|body| body.contains("user-svc")))
        } else {
            (&lists, lists.first(|body| body.contains("hello.svc")))
        };
        // Both servers begin to answer two seconds after the kill here.
        let since = (start.elapsed() + shift).checked_sub(seconds(2)).unwrap_or_default();
        match timeline.at(since).filter(|_| start.elapsed() > seconds(2)) {
            Some(answer) => Reaction::Answer(answer.to_vec()),
            None => Reaction::Close(Vec::new()),
        }
    });
    followed.wait_for_report("the outage", |report| report.disconnects >= 1);
    served_until(&followed, &[("hello", 1)], "the return of the program", || {
        let is_over = followed.kinds().contains(&ListKind::Restored) && held(&followed) == 0;
        is_over && followed.state.report().lists >= 2
    });
    followed.stop();
}

#[test]
fn recorded_refusals_are_reported_with_a_remedy() {
    for (version, login, expected) in [
        ("2.4.3", "23-login-wrong-password", "(403 user not found!)"),
        ("2.4.3", "24-login-unknown-user", "(500 caused: User nobody not found;)"),
        ("2.4.3", "05b-login-too-early", "(500 caused: User nacos not found;)"),
        ("3.0.3", "11-login-too-early", "(403 Access Denied)"),
        ("3.0.3", "13-login-wrong", "(500 No message available)"),
    ] {
        let answer = Recordings::open(&format!("nacos/{version}-auth")).response(login);
        let server = HttpServer::start(move |_| Reaction::Answer(answer.clone()));
        let mut settings = settings(server.address());
        settings.username = Some("nacos".to_owned());
        settings.password = Some(Credential::Given(Secret::from("hunter2")));
        settings.login_keys = Some("nacos.username".to_owned());
        let followed = follow(settings, LONG);
        let error = followed.wait_for_error(expected);
        assert!(error.contains("cannot log in: check nacos.username"), "{error}");
        assert!(error.contains(&server.address().to_string()), "{error}");
        followed.stop();
    }
    for (folder, name) in [
        ("nacos/2.4.3-auth", "09-v1-services-no-token"),
        ("nacos/2.4.3-auth", "41-v1-no-permission"),
        ("nacos/3.0.3-auth", "24-v1-services"),
    ] {
        let answer = Recordings::open(folder).response(name);
        let server = HttpServer::start(move |_| Reaction::Answer(answer.clone()));
        let followed = follow(settings(server.address()), LONG);
        followed.wait_for_error("cannot list the services: configure a user");
        followed.stop();
    }
}

#[test]
fn a_recorded_refusal_of_a_token_leads_to_a_new_login() {
    let (old, new) = ("nacos/2.4.3-auth", "nacos/3.0.3-auth");
    let of_new = ["14-login-v1", "34-v1-services", "31-v1-instances"];
    let of_old = ["52-login-default-life", "32-v1-services", "30-v1-instances"];
    expect_login_after_refusal(old, of_old, "20-v1-token-expired", "10.9.0.5:39597");
    expect_login_after_refusal(new, of_new, "54-v1-services", "10.9.0.5:33769");
    expect_login_after_refusal(new, of_new, "64-v1-services", "10.9.0.5:33769");
}

/// Checks that svcdns logs in again after this refusal of its token, without an outage.
fn expect_login_after_refusal(
    folder: &str,
    [login, names, instances]: [&str; 3],
    refusal: &str,
    endpoint: &str,
) {
    let recordings = Recordings::open(folder);
    let (login, expired) = (recordings.response(login), recordings.response(refusal));
    let answers = recordings.answers(&[names, instances]);
    let token = recordings.request(names).parameter("accessToken").to_owned();
    let logins = Arc::new(Mutex::new(0));
    let count = Arc::clone(&logins);
    let server = HttpServer::start(move |request| {
        let mut logins = count.lock().unwrap();
        if request.method == "POST" {
            *logins += 1;
            return Reaction::Answer(login.clone());
        }
        if *logins < 2 {
            return Reaction::Answer(expired.clone());
        }
        let mut request = as_recorded(request);
        request.parameters.insert("accessToken".to_owned(), token.clone());
        Reaction::Answer(answers(&request).unwrap_or_else(|| expired.clone()))
    });
    let mut settings = settings(server.address());
    settings.username = Some("nacos".to_owned());
    settings.password = Some(Credential::Given(Secret::from("recording")));
    let followed = follow(settings, LONG);
    followed.wait_for("hello", &[endpoint]);
    assert_eq!(followed.state.report().disconnects, 0);
    followed.stop();
}

// A server in the form of the recordings

fn put(nacos: &Nacos, name: &str, last: u8) {
    nacos.put(name, &format!("10.0.0.{last}"), 80, &json!({ "protocol": "grpc" }));
}

fn end(nacos: &Nacos, name: &str, last: u8) {
    nacos.end(name, &format!("10.0.0.{last}"), 80);
}

/// Returns the number of held keys.
fn held(followed: &Followed) -> usize {
    followed.catalog(|catalog| catalog.stats().registries[0].held)
}

/// Waits until something is done, while these names keep as many instances.
fn served_until(
    followed: &Followed,
    names: &[(&str, usize)],
    what: &str,
    is_done: impl Fn() -> bool,
) {
    followed.wait_until(what, || {
        for (name, count) in names {
            assert_eq!(followed.instances(name).len(), *count, "{name} before {what}");
        }
        is_done()
    });
}

#[test]
fn changes_are_followed() {
    let nacos = Nacos::start();
    put(&nacos, "hello.svc", 1);
    let followed = follow(settings(nacos.address()), SHORT);
    followed.wait_for("hello", &["10.0.0.1:80"]);
    put(&nacos, "hello.svc", 2);
    followed.wait_for("hello", &["10.0.0.1:80", "10.0.0.2:80"]);
    put(&nacos, "demo", 3);
    followed.wait_for("demo", &["10.0.0.3:80"]);
    nacos.put("demo", "10.0.0.3", 80, &json!({ "weight": "7" }));
    followed.wait_until("the new weight", || {
        followed.catalog(|catalog| catalog.service("demo").unwrap().keys()[0].weight() == 7)
    });
    nacos.disable("hello.svc", "10.0.0.1", 80);
    followed.wait_for("hello", &["10.0.0.2:80"]);
    end(&nacos, "demo", 3);
    followed.wait_until("demo to be unknown", || !followed.knows("demo"));
    assert_eq!(followed.kinds(), [ListKind::Routine, ListKind::Doubted].into());
    followed.stop();
}

#[test]
fn unchanged_services_are_not_listed_again() {
    let nacos = Nacos::start();
    for last in 1..=5 {
        put(&nacos, "hello.svc", last);
    }
    let followed = follow(settings(nacos.address()), LONG);
    followed.wait_until_synced();
    let before = nacos.server().request_count();
    eventually("fifty reads in changing order", SOON, || {
        (nacos.server().request_count() > before + 50).then_some(())
    });
    assert_eq!(lists_of(&followed, "hello.svc"), 1);
    followed.stop();
}

#[test]
fn more_names_than_fit_into_a_page_are_read() {
    let nacos = Nacos::start();
    for number in 0..1_234_u16 {
        let [high, low] = number.to_be_bytes();
        nacos.put(&format!("service-{number}"), &format!("10.1.{high}.{low}"), 80, &json!({}));
    }
    let followed = follow(settings(nacos.address()), LONG);
    followed.wait_until_synced();
    for number in [0, 499, 500, 777, 1_000, 1_233] {
        assert!(followed.knows(&format!("service-{number}")), "service-{number}");
    }
    followed.stop();
}

#[test]
fn a_page_whose_total_is_its_own_length_ends_no_list() {
    // Nacos 1.x and 2.0 give the number of names on the page, and repeat all names after the last.
    let names: Vec<_> = (0..700).map(|number| format!("service-{number}")).collect();
    let hosts = Recordings::open("nacos/2.4.3").body("32-v1-instances-demo");
    let server = HttpServer::start(move |request| {
        if !request.path.ends_with("service/list") {
            return Reaction::Answer(chunked(200, &hosts));
        }
        let page: usize = request.parameter("pageNo").parse().unwrap();
        let of_page = names.chunks(500).nth(page - 1).unwrap_or(&names);
        Reaction::Answer(chunked(200, &json!({ "count": of_page.len(), "doms": of_page })))
    });
    let followed = follow(settings(server.address()), LONG);
    followed.wait_until_synced();
    assert!(followed.knows("service-0") && followed.knows("service-699"));
    followed.stop();
}

#[test]
fn after_an_outage_removals_are_held_until_the_programs_are_back() {
    let mut nacos = Nacos::start();
    for name in ["one", "two", "three"] {
        put(&nacos, name, 1);
        put(&nacos, name, 2);
    }
    put(&nacos, "gone", 3);
    let followed = follow(settings(nacos.address()), seconds(5));
    followed.wait_until_synced();
    nacos.kill();
    followed.wait_for_report("the outage", |report| !report.connected && report.error.is_some());
    end(&nacos, "gone", 3);
    nacos.restart();
    let all = ["one", "two", "three"].map(|name| (name, 2));
    served_until(&followed, &all, "the end of what did not return", || !followed.knows("gone"));
    assert_eq!(held(&followed), 0);
    assert_eq!(followed.kinds(), [ListKind::Routine, ListKind::Restored].into());
    followed.stop();
}

#[test]
fn after_an_outage_new_services_and_changes_are_routine_again() {
    let mut nacos = Nacos::start();
    put(&nacos, "hello.svc", 1);
    put(&nacos, "hello.svc", 2);
    let followed = follow(settings(nacos.address()), LONG);
    followed.wait_until_synced();
    nacos.kill();
    followed.wait_for_report("the outage", |report| !report.connected);
    nacos.restart();
    followed.wait_for_report("the end of the outage", |report| report.lists == 2);
    followed.wait_until("the return of the programs", || held(&followed) == 0);
    let before = followed.changes().len();
    put(&nacos, "new", 3);
    followed.wait_for("new", &["10.0.0.3:80"]);
    end(&nacos, "hello.svc", 1);
    followed.wait_for("hello", &["10.0.0.2:80"]);
    let since = followed.changes().split_off(before);
    let is_routine = |change: &Change| match change {
        Change::ListBegin { kind, .. } | Change::ServiceNames { kind, .. } => {
            *kind == ListKind::Routine
        }
        _ => true,
    };
    assert!(since.iter().all(|(_, change)| is_routine(change)), "{since:?}");
    followed.stop();
}

#[test]
fn a_restart_that_nobody_notices_loses_no_name() {
    let nacos = Nacos::start();
    let names = ["one", "two", "three"];
    for name in names {
        put(&nacos, name, 1);
        put(&nacos, name, 2);
    }
    let followed = follow(settings(nacos.address()), LONG);
    followed.wait_until_synced();
    nacos.forget(seconds(2));
    // The programs return one after the other.
    let all = names.map(|name| (name, 2));
    served_until(&followed, &all, "removals to be held", || held(&followed) > 0);
    served_until(&followed, &all, "the return of all", || held(&followed) == 0);
    let report = followed.state.report();
    assert!(report.connected && report.disconnects == 0, "{report:?}");
    followed.stop();
}

#[test]
fn without_a_grace_an_emptied_service_ends_at_once() {
    let nacos = Nacos::start();
    put(&nacos, "hello.svc", 1);
    put(&nacos, "demo", 2);
    let followed = follow(settings(nacos.address()), Duration::ZERO);
    followed.wait_for("hello", &["10.0.0.1:80"]);
    end(&nacos, "hello.svc", 1);
    followed.wait_until("hello to be unknown", || !followed.knows("hello"));
    followed.stop();
}

#[test]
fn a_stalled_server_is_an_outage() {
    let nacos = Nacos::start();
    put(&nacos, "hello.svc", 1);
    let mut settings = settings(nacos.address());
    settings.tuning.connection.request_timeout = seconds(1);
    settings.tuning.connection.dial_timeout = seconds(1);
    let followed = follow(settings, LONG);
    followed.wait_for("hello", &["10.0.0.1:80"]);
    nacos.stall();
    let error = followed.wait_for_error("no complete answer within 2 s");
    assert!(error.contains("cannot list the services"), "{error}");
    assert!(!followed.state.report().connected);
    nacos.resume();
    put(&nacos, "hello.svc", 2);
    followed.wait_for("hello", &["10.0.0.1:80", "10.0.0.2:80"]);
    followed.wait_for_report("recovered", |report| report.connected && report.error.is_none());
    followed.stop();
}

#[test]
fn a_server_with_tls_is_followed() {
    let recordings = Recordings::open("nacos/2.4.3");
    let answers = recordings.answers(&["30-v1-instances-hello"]);
    let (server, certificate) = HttpServer::start_tls(move |request| {
        let names = || chunked(200, &json!({ "count": 1, "doms": ["hello.svc"] }));
        Reaction::Answer(answers(request).unwrap_or_else(names))
    });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    fs::write(&file, certificate).unwrap();
    let mut settings = settings(server.address());
    settings.tls = Some(Tls { ca_file: Some(file), ..Tls::default() });
    let followed = follow(settings, LONG);
    followed.wait_for("hello", &HELLO);
    followed.stop();
}

#[test]
fn another_server_is_used_if_one_fails() {
    let [mut one, two] = [Nacos::start(), Nacos::start()];
    for nacos in [&one, &two] {
        put(nacos, "hello.svc", 1);
    }
    one.kill();
    let mut settings = settings(one.address());
    settings.endpoints.push(two.address().to_string());
    let followed = follow(settings, LONG);
    followed.wait_for("hello", &["10.0.0.1:80"]);
    followed.stop();
}

/// Requires a login, and returns settings with its password in a file.
fn with_login(nacos: &Nacos, file: &std::path::Path) -> Settings {
    nacos.require_password("first-secret");
    fs::write(file, "first-secret\n").unwrap();
    let mut settings = settings(nacos.address());
    settings.username = Some(USER.to_owned());
    settings.password = Some(Credential::File(file.to_owned()));
    settings
}

/// Returns the number of logins so far.
fn logins(nacos: &Nacos) -> usize {
    let requests = nacos.server().requests();
    requests.iter().filter(|(_, request)| request.path.ends_with("/login")).count()
}

#[test]
fn the_access_token_is_renewed_before_its_end() {
    let nacos = Nacos::start();
    put(&nacos, "hello.svc", 1);
    let directory = tempfile::tempdir().unwrap();
    let settings = with_login(&nacos, &directory.path().join("password"));
    let life = seconds(5);
    nacos.set_token_life(life);
    let followed = follow(settings, LONG);
    followed.wait_for("hello", &["10.0.0.1:80"]);
    eventually("three renewals, one of them before the end of a token", SOON, || {
        let requests = nacos.server().requests();
        let logins = requests.iter().filter(|(_, request)| request.path.ends_with("/login"));
        let times: Vec<_> = logins.map(|(at, _)| *at).collect();
        let is_early = times.windows(2).any(|pair| pair[1] - pair[0] < life);
        (times.len() >= 4 && is_early).then_some(())
    });
    put(&nacos, "hello.svc", 2);
    followed.wait_for("hello", &["10.0.0.1:80", "10.0.0.2:80"]);
    let report = followed.state.report();
    assert!(report.disconnects == 0 && report.error.is_none(), "{report:?}");
    let requests = nacos.server().requests();
    let is_exposed = |(_, request): &(Instant, Request)| {
        request.parameters.values().any(|value| value.contains("token"))
    };
    assert!(!requests.iter().any(is_exposed), "a token is in a URL, which servers log");
    followed.stop();
}

#[test]
fn a_login_is_repeated_if_the_server_refuses_its_token() {
    let nacos = Nacos::start();
    put(&nacos, "hello.svc", 1);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    let followed = follow(with_login(&nacos, &file), LONG);
    followed.wait_for("hello", &["10.0.0.1:80"]);
    let before = logins(&nacos);
    nacos.invalidate_tokens();
    put(&nacos, "hello.svc", 2);
    followed.wait_for("hello", &["10.0.0.1:80", "10.0.0.2:80"]);
    assert!(logins(&nacos) > before);
    assert_eq!(followed.state.report().disconnects, 0);

    // A password that is wrong now is an outage; the file is read again.
    nacos.require_password("second-secret");
    nacos.invalidate_tokens();
    let error = followed.wait_for_error("cannot log in: check");
    assert!(!error.contains("secret"), "{error}");
    followed.wait_for("hello", &["10.0.0.1:80", "10.0.0.2:80"]);
    fs::write(&file, "second-secret\n").unwrap();
    put(&nacos, "hello.svc", 3);
    followed.wait_for("hello", &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
    followed.wait_for_report("recovered", |report| report.connected && report.error.is_none());
    followed.stop();
}

// Registration

/// Starts `svcdns register` for a service with one endpoint.
fn register(nacos: &Nacos, more: &[&str]) -> Process {
    let url = nacos.url();
    let arguments = ["register", "--config", "/dev/null", "--registry", &url];
    let service =
        ["web.svc", "10.0.0.9:9100", "--metadata", "protocol=http", "--metadata", "weight=3"];
    Process::start(command().args(arguments).args(more).args(service))
}

#[test]
fn register_writes_what_goframe_writes_and_takes_itself_back() {
    let mut nacos = Nacos::start();
    let mut process = register(&nacos, &[]);
    let is_there = |nacos: &Nacos| (nacos.instances("web.svc").len() == 1).then_some(());
    eventually("the instance", SOON, || is_there(&nacos));
    let stored = nacos.metadata("web.svc", "10.0.0.9", 9100).unwrap();
    assert_eq!(stored, json!({ "protocol": "http", "weight": "3" }));
    // As recorded, byte by byte, but for the names, the address and the order of the fields.
    let recorded = Recordings::open("nacos/2.4.3").request("80-v1-register").form();
    let sent = nacos.server().requests();
    let is_write = |(_, request): &&(Instant, Request)| request.method == "POST";
    let form = sent.iter().find(is_write).unwrap().1.form();
    assert_eq!(form.keys().collect::<Vec<_>>(), recorded.keys().collect::<Vec<_>>());
    for (name, value) in &recorded {
        if !["serviceName", "ip", "port", "metadata"].contains(&&**name) {
            assert_eq!(&form[name], value, "{name}");
        }
    }
    let followed = follow(settings(nacos.address()), LONG);
    followed.wait_for("web", &["10.0.0.9:9100"]);

    // A restarted server has lost the instance, and says so at the next heartbeat.
    nacos.kill();
    nacos.restart();
    eventually("the instance again", SOON, || is_there(&nacos));
    let recorded = Recordings::open("nacos/2.4.3").request("83-v1-beat-light").form();
    let sent = nacos.server().requests();
    let is_beat = |(_, request): &&(Instant, Request)| request.path.ends_with("/beat");
    let form = sent.iter().find(is_beat).unwrap().1.form();
    assert_eq!(form.keys().collect::<Vec<_>>(), recorded.keys().collect::<Vec<_>>());
    assert_eq!(form["serviceName"], "DEFAULT_GROUP@@web.svc");

    process.terminate();
    eventually("the end of the instance", SOON, || {
        nacos.instances("web.svc").is_empty().then_some(())
    });
    followed.stop();
}

#[test]
fn register_waits_for_a_server_that_does_not_know_its_users_yet() {
    let nacos = Nacos::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    with_login(&nacos, &file);
    nacos.refuse_early_logins(3);
    let login = ["--nacos-username", USER, "--nacos-password-file", file.to_str().unwrap()];
    let _process = register(&nacos, &login);
    eventually("the instance", SOON, || (nacos.instances("web.svc").len() == 1).then_some(()));
    assert_eq!(logins(&nacos), 4);
}

#[test]
fn register_ends_at_once_if_the_password_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    fs::write(&file, "hunter2").unwrap();
    for (folder, refusal) in
        [("nacos/2.4.3-auth", "23-login-wrong-password"), ("nacos/3.0.3-auth", "13-login-wrong")]
    {
        let answer = Recordings::open(folder).response(refusal);
        let server = HttpServer::start(move |_| Reaction::Answer(answer.clone()));
        let url = format!("nacos://{}", server.address());
        let arguments = ["register", "--config", "/dev/null", "--registry", &url];
        let login = ["--nacos-username", USER, "--nacos-password-file", file.to_str().unwrap()];
        let service = ["web", "10.0.0.9:80"];
        let output = command().args(arguments).args(login).args(service).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains("cannot log in: check"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        assert_eq!(server.request_count(), 1, "no second login");
    }
}

#[test]
fn register_takes_back_an_instance_whose_registration_was_not_answered() {
    let server = HttpServer::start(|request| match &*request.method {
        "DELETE" => Reaction::Answer(response("200 ", "text/plain;charset=UTF-8", "ok")),
        _ => Reaction::Close(Vec::new()),
    });
    let url = format!("nacos://{}", server.address());
    let arguments = ["register", "--config", "/dev/null", "--registry", &url, "web", "10.0.0.9:80"];
    let mut process = Process::start(command().args(arguments));
    let has = |method: &str| {
        let requests = server.requests();
        requests.iter().any(|(_, request)| request.method == method).then_some(())
    };
    eventually("a registration", SOON, || has("POST"));
    process.terminate();
    eventually("the removal", SOON, || has("DELETE"));
}

#[test]
fn register_believes_only_the_answer_of_nacos() {
    let server = HttpServer::start(|_| {
        Reaction::Answer(response("200 OK", "text/html", "<html>Welcome to the proxy</html>"))
    });
    let url = format!("nacos://{}", server.address());
    let arguments = ["register", "--config", "/dev/null", "--registry", &url, "web", "10.0.0.9:80"];
    let _process = Process::start(command().args(arguments));
    // Heartbeats follow only a registration.
    eventually("three attempts", SOON, || {
        let requests = server.requests();
        let is_write = |(_, request): &&(Instant, Request)| request.method == "POST";
        (requests.iter().filter(is_write).count() >= 3).then_some(())
    });
    let requests = server.requests();
    assert!(!requests.iter().any(|(_, request)| request.method == "PUT"), "{requests:?}");
}

#[test]
fn register_uses_v3_where_v1_is_missing() {
    let recordings = Recordings::open("nacos/3.0.3");
    let written = Arc::new(Mutex::new(Vec::new()));
    let (log, gone) = (Arc::clone(&written), missing(&recordings));
    let [registered, beat, unknown] =
        ["72-v3-register", "74-v3-heartbeat", "71-v3-heartbeat-unknown"]
            .map(|name| recordings.response(name));
    let removed = recordings.response("77-v3-deregister");
    let server = HttpServer::start(move |request| {
        if request.path != "/nacos/v3/client/ns/instance" {
            return Reaction::Answer(gone.clone());
        }
        let mut log = log.lock().unwrap();
        let is_beat = request.form().contains_key("heartBeat");
        let word = match &*request.method {
            "DELETE" => "removed",
            _ if is_beat => "beat",
            _ => "registered",
        };
        log.push(word);
        let beats = log.iter().filter(|word| **word == "beat").count();
        Reaction::Answer(match word {
            "removed" => removed.clone(),
            // The second heartbeat finds that the server has forgotten the instance.
            "beat" if beats == 2 => unknown.clone(),
            "beat" => beat.clone(),
            _ => registered.clone(),
        })
    });
    let url = format!("nacos://{}", server.address());
    let arguments = ["register", "--config", "/dev/null", "--registry", &url, "web", "10.0.0.9:80"];
    let mut process = Process::start(command().args(arguments));
    eventually("the second registration", SOON, || {
        let words = written.lock().unwrap();
        (*words == ["registered", "beat", "beat", "registered"]).then_some(())
    });
    process.terminate();
    eventually("the removal", SOON, || {
        (written.lock().unwrap().last() == Some(&"removed")).then_some(())
    });
}

#[test]
fn register_explains_what_nacos_cannot_hold() {
    let nacos = Nacos::start();
    let url = nacos.url();
    let arguments = ["register", "--config", "/dev/null", "--registry", &url];
    let output =
        command().args(arguments).args(["--version", "v2", "web", "10.0.0.9:80"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("Nacos has no place for"), "{error}");
    assert_eq!(nacos.server().request_count(), 0);
}

#[test]
fn names_are_answered_over_dns() {
    let nacos = Nacos::start();
    put(&nacos, "hello.svc", 1);
    let server = Svcdns::serve(&["--registry", &nacos.url()]);
    server.wait_for("hello.svc", &["10.0.0.1"]);
    let output = server.run(&["status"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&nacos.url()), "{text}");
    server.stop();
}

// Measurements

#[test]
#[ignore = "a measurement of minutes: see docs/registries/nacos.md"]
fn measure_the_cost_of_polling() {
    for services in [100_u16, 1_000, 10_000] {
        let nacos = Nacos::start();
        let place = |number: u16| {
            let [high, low] = number.to_be_bytes();
            (format!("service-{number}"), format!("10.1.{high}.{low}"))
        };
        for number in 0..services {
            let (name, ip) = place(number);
            nacos.put(&name, &ip, 80, &json!({ "protocol": "http" }));
        }
        let start = Instant::now();
        let settings = Settings::new(vec![nacos.address().to_string()]);
        let followed = follow(settings, LONG);
        followed.wait_until_synced();
        let synced = start.elapsed();
        // The reads spread over the first pass.
        thread::sleep(seconds(5));
        let before = nacos.server().request_count();
        thread::sleep(seconds(20));
        let rate = (nacos.server().request_count() - before) / 20;

        let mut times = Vec::new();
        for round in 0..if services > 1_000 { 3 } else { 20 } {
            let (name, ip) = place(fastrand::u16(0..services));
            let weight = 1_000 + round;
            let changed = Instant::now();
            nacos.put(&name, &ip, 80, &json!({ "weight": weight.to_string() }));
            followed.wait_until("the new weight", || {
                followed
                    .catalog(|catalog| catalog.service(&name).unwrap().keys()[0].weight() == weight)
            });
            times.push(changed.elapsed());
        }
        times.sort_unstable();
        println!(
            "{services} services: all read after {synced:.1?}, {rate} requests a second; from a \
             change to its publication {:.1?} (median), {:.1?} (longest), of which {:.1?} \
             until the server shows it",
            times[times.len() / 2],
            times[times.len() - 1],
            support::nacos::EFFECT_DELAY
        );
        followed.stop();
    }
}
