//! The Polaris registry against a server that answers as a real one was recorded.
//!
//! Timelines are replayed faster than they were recorded. Every recorded program has two endpoints,
//! of which the one at Docker's 172.17.0.1 is left out.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "measurements")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::followed::Followed;
use support::polaris::{PolarisServer, goframe_metadata};
use support::replay::{Reaction, Recordings, Request, response};
use support::svcdns::{Svcdns, command};
use support::{SOON, eventually, seconds, throughout};
use svcdns::registry::polaris::{PolarisRegistry, Settings};
use svcdns::registry::{Credential, Secret};
use svcdns::service::{Change, ListKind, ListScope};

/// Longer than any test: what happens earlier has another reason.
const LONG: Duration = seconds(3600);

/// A token that no output may contain.
const TOKEN: &str = "token-of-the-test";

/// How many times faster timelines pass.
const SPEED: u32 = 10;

fn settings(server: &PolarisServer) -> Settings {
    let mut settings = Settings::new(vec![server.address().to_string()]);
    settings.tuning.connection.backoff_max = Duration::from_millis(300);
    settings.tuning.polling.interval = Duration::from_millis(100);
    settings
}

fn follow(server: &PolarisServer, grace: Duration) -> Followed {
    follow_with(settings(server), grace)
}

fn follow_with(settings: Settings, grace: Duration) -> Followed {
    let url = settings.to_string();
    Followed::start(PolarisRegistry::new(settings), &url, grace)
}

fn at(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

/// Starts a server with the three recorded programs.
fn recorded_server() -> PolarisServer {
    let server = PolarisServer::start();
    for recording in ["03-instance-hello", "04-instance-demo", "05-instance-user-svc"] {
        server.replay(recording);
    }
    server.replay_names(Some("02-services"));
    server
}

/// Returns the keys of a base, each with its version and metadata.
fn keys(followed: &Followed, base: &str) -> Vec<String> {
    followed.catalog(|catalog| {
        let Some(service) = catalog.service(base) else { return Vec::new() };
        let line = |key: &svcdns::catalog::RegistryKey| {
            let metadata: Vec<_> =
                key.metadata.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let group = key.group();
            format!(
                "{}/{}/{} {} weight {}",
                group.deployment,
                group.namespace,
                group.version,
                metadata.join(" "),
                key.weight()
            )
        };
        service.keys().iter().map(|key| line(key)).collect()
    })
}

/// Returns the queries so far.
fn queries(server: &PolarisServer) -> Vec<Value> {
    let requests = server.http.requests().into_iter();
    requests.filter_map(|(_, request)| request.json()).collect()
}

#[test]
fn recorded_services_have_identity_metadata_and_weight() {
    let server = recorded_server();
    let mut settings = settings(&server);
    settings.naming.namespaces = vec!["my-ns".to_owned()];
    let followed = follow_with(settings, LONG);
    followed.wait_until_synced();
    let hello = ["10.9.0.5:32893"].map(str::to_owned);
    assert_eq!(followed.instances("hello"), hello.into());
    assert_eq!(followed.instances("demo").len(), 1);
    assert_eq!(followed.instances("user-svc"), ["10.9.0.5:9001".to_owned()].into());
    // GoFrame's additions and empty values are left out; Polaris's weight of 100 does not count.
    assert_eq!(keys(&followed, "user-svc"), ["default/my-ns/v1.2.0 weight=5 weight 5"]);
    let of_hello = "default/default/latest insecure=true protocol=http weight 1";
    assert_eq!(keys(&followed, "hello"), [of_hello; 2]);
    assert_eq!(followed.kinds(), [ListKind::Routine].into());
    // The server's own filter returns dead instances as healthy ones.
    assert!(queries(&server).iter().all(|query| query.get("Filter").is_none()));
    followed.stop();
    let without_setting = follow(&server, LONG);
    without_setting.wait_for("ns-user-svc", &["10.9.0.5:9001"]);
    assert_eq!(keys(&without_setting, "ns-user-svc"), ["default/my/v1.2.0 weight=5 weight 5"]);
    without_setting.stop();
}

#[test]
fn unchanged_lists_are_polled_with_their_revision_and_send_nothing() {
    let server = recorded_server();
    let followed = follow(&server, LONG);
    followed.wait_until_synced();
    let before = followed.changes().len();
    let polled = server.http.request_count();
    eventually("further queries", SOON, || {
        (server.http.request_count() > polled + 40).then_some(())
    });
    assert_eq!(followed.changes().len(), before);
    let later = &queries(&server)[polled + 8..];
    assert!(later.iter().all(|query| query["service"]["revision"].is_string()), "{later:?}");
    followed.stop();
}

#[test]
fn a_second_instance_appears_and_leaves_although_its_revision_returns() {
    let server = recorded_server();
    let followed = follow(&server, LONG);
    let one = ["10.9.0.5:32893"];
    let both = ["10.9.0.5:32893", "10.9.0.5:33037"];
    followed.wait_for("hello", &one);
    server.replay("30-instance-hello-second");
    followed.wait_for("hello", &both);
    // SIGTERM: the list of before comes back, with its revision.
    server.replay_timeline("32-sigterm", 1);
    followed.wait_for("hello", &one);
    server.replay("30-instance-hello-second");
    followed.wait_for("hello", &both);
    assert_eq!(followed.kinds(), [ListKind::Routine].into());
    followed.stop();
}

#[test]
fn a_program_that_deregisters_late_is_served_until_polaris_shows_it() {
    let server = PolarisServer::start();
    server.replay("87-before-emptied");
    let followed = follow(&server, LONG);
    followed.wait_for("demo", &["10.9.0.5:8000"]);
    let sent = Instant::now();
    server.replay_timeline("88-emptied-late", SPEED);
    followed.wait_until("the end of demo", || !followed.knows("demo"));
    // 29 s in the recording; an emptied service is believed at once.
    assert!(sent.elapsed() >= seconds(28) / SPEED, "after {:?}", sent.elapsed());
    // The emptied service stays listed.
    server.replay_names(Some("91-services-emptied"));
    followed.wait_until_synced();
    assert!(!followed.knows("demo"));
    followed.stop();
}

#[test]
fn a_killed_program_is_left_out_once_it_is_unhealthy_though_still_listed() {
    let server = PolarisServer::start();
    // The answer of the time before the kill does not pass.
    server.replay_timeline("34-sigkill", 0);
    let followed = follow(&server, LONG);
    followed.wait_for("hello", &["10.9.0.5:32893", "10.9.0.5:42051"]);
    server.replay_timeline("34-sigkill", SPEED);
    // After 55 s; it is still listed after 130 s.
    followed.wait_for("hello", &["10.9.0.5:32893"]);
    server.replay("E2-one-unhealthy");
    followed.wait_for("hello", &["10.9.0.5:43261"]);
    followed.stop();
}

#[test]
fn a_service_whose_instances_are_all_unhealthy_is_known_without_an_instance() {
    let server = PolarisServer::start();
    server.replay("E5-all-unhealthy");
    let followed = follow(&server, LONG);
    followed.wait_until_synced();
    assert!(followed.instances("hello").is_empty() && followed.knows("hello"));
    followed.stop();
}

#[test]
fn isolated_instances_are_left_out_and_weights_of_operators_do_not_count() {
    let server = PolarisServer::start();
    let mut settings = settings(&server);
    settings.naming.namespaces = vec!["my-ns".to_owned()];
    server.replay("05-instance-user-svc");
    let followed = follow_with(settings, LONG);
    followed.wait_for("user-svc", &["10.9.0.5:9001"]);
    server.replay_timeline("55-isolated", 1);
    followed.wait_for("user-svc", &[]);
    assert!(followed.knows("user-svc"), "its name exists");
    server.replay_timeline("57-unisolated", 1);
    followed.wait_for("user-svc", &["10.9.0.5:9001"]);
    server.replay("59-instance-weight-0");
    followed.wait_until("the list with weight 0", || {
        let lists = followed.changes();
        lists.iter().filter(|(_, change)| matches!(change, Change::ListEnd { .. })).count() >= 4
    });
    assert_eq!(keys(&followed, "user-svc"), ["default/my-ns/v1.2.0 weight=5 weight 5"]);
    followed.stop();
}

#[test]
fn an_outage_with_data_loses_nothing() {
    let server = PolarisServer::start();
    server.replay("80-before-restart");
    let followed = follow(&server, seconds(12));
    let living = ["10.9.0.5:32893"];
    followed.wait_for("hello", &living);
    // No answer for 15 s, then the same instances.
    server.replay_timeline("81-restart-with-data", SPEED);
    server.misbehave({
        let end = Instant::now() + seconds(15) / SPEED;
        move |_| (Instant::now() < end).then(|| Reaction::Close(Vec::new()))
    });
    followed.wait_for_report("an outage", |report| report.disconnects >= 1);
    followed.wait_for("hello", &living);
    followed.wait_for_report("connected", |report| report.connected && report.error.is_none());
    followed.wait_for("hello", &living);
    assert_eq!(followed.kinds(), [ListKind::Routine, ListKind::Restored].into());
    followed.stop();
}

#[test]
fn a_wiped_server_is_not_believed_until_the_removal_grace_ends() {
    let mut server = PolarisServer::start();
    server.replay("03-instance-hello");
    let grace = seconds(4);
    let followed = follow(&server, grace);
    let hello = ["10.9.0.5:32893"];
    followed.wait_for("hello", &hello);
    server.http.kill();
    server.wipe();
    followed.wait_for_report("disconnected", |report| !report.connected);
    let starting = Instant::now();
    server.http.restart();
    followed.wait_for_report("connected", |report| report.connected);
    followed.wait_until("the end of hello", || !followed.knows("hello"));
    assert!(starting.elapsed() >= grace, "after {:?}", starting.elapsed());
    assert!(followed.kinds().contains(&ListKind::Restored));
    // The programs come back 67 s after the restart, one after the other.
    server.replay_timeline("D2-restart-without-data-again", 60);
    followed.wait_until("both programs", || followed.instances("hello").len() == 2);
    followed.stop();
}

#[test]
fn a_grace_that_is_longer_than_the_return_of_the_programs_loses_nothing() {
    /// How many times faster the timeline passes.
    const SPEED: u32 = 25;
    let server = PolarisServer::start();
    server.replay("80-before-restart");
    let followed = follow(&server, seconds(75) / SPEED + seconds(30));
    let living = ["10.9.0.5:32893"];
    followed.wait_for("hello", &living);
    // The service is unknown until 67 s after the kill.
    let start = Instant::now();
    server.replay_timeline("85-restart-without-data", SPEED);
    throughout("hello is served", start, seconds(75) / SPEED, || {
        followed.instances("hello") == living.map(str::to_owned).into()
    });
    let returned = Recordings::open("polaris").timeline("85-restart-without-data");
    assert!(returned.first(|body| body.contains("\"healthy\": true")) > seconds(60));
    followed.stop();
}

#[test]
fn a_restart_that_no_query_notices_withdraws_nothing_at_once() {
    let server = recorded_server();
    let grace = seconds(4);
    let followed = follow(&server, grace);
    followed.wait_until_synced();
    let hello = ["10.9.0.5:32893"];
    followed.wait_for("hello", &hello);
    let wiped = Instant::now();
    server.wipe();
    server.replay("04-instance-demo");
    followed.wait_until("the end of hello", || !followed.knows("hello"));
    assert!(wiped.elapsed() >= grace, "after {:?}", wiped.elapsed());
    assert!(followed.knows("demo") && followed.state.report().disconnects == 0);
    followed.stop();
}

#[test]
fn programs_that_return_one_by_one_after_an_unnoticed_wipe_stay_served() {
    let server = PolarisServer::start();
    fill(&server, 1, 1);
    fill(&server, 1, 2);
    let both = ["10.0.0.1:80", "10.0.0.2:80"];
    let followed = follow(&server, seconds(60));
    followed.wait_for("service-0", &both);
    server.wipe();
    let wiped = server.http.request_count();
    eventually("queries for the missing service", SOON, || {
        (server.http.request_count() > wiped + 10).then_some(())
    });
    // One program is back before the other.
    fill(&server, 1, 2);
    let held = || followed.catalog(|catalog| catalog.stats().registries[0].held);
    followed.wait_until("the other program to be held", || held() == 1);
    assert_eq!(followed.instances("service-0"), both.map(str::to_owned).into());
    fill(&server, 1, 1);
    followed.wait_until("both programs", || held() == 0);
    assert_eq!(followed.instances("service-0"), both.map(str::to_owned).into());
    assert_eq!(followed.state.report().disconnects, 0);
    followed.stop();
}

#[test]
fn a_deleted_service_is_gone_and_others_stay() {
    let server = recorded_server();
    let followed = follow(&server, LONG);
    followed.wait_until_synced();
    // An operator can delete a service only once it has no instance.
    server.empty(|name| name.contains("-demo-"));
    followed.wait_until("the end of demo", || !followed.knows("demo"));
    server.replay("67-deleted-service");
    server.replay_names(Some("68-services-after-delete"));
    followed.wait_until("two names", || {
        let is_short = |change: &Change| match change {
            Change::ServiceNames { names, .. } => names.len() == 2,
            _ => false,
        };
        followed.changes().iter().any(|(_, change)| is_short(change))
    });
    followed.wait_for("hello", &["10.9.0.5:32893"]);
    followed.wait_for_report("no error", |report| report.connected && report.error.is_none());
    followed.stop();
}

#[test]
fn an_unknown_namespace_is_an_empty_registry() {
    let server = PolarisServer::start();
    server.replay_names(Some("10-unknown-namespace-services"));
    let mut settings = settings(&server);
    settings.namespace = "nosuch".to_owned();
    let followed = follow_with(settings, LONG);
    followed.wait_until_synced();
    assert_eq!(queries(&server)[0]["service"]["namespace"], "nosuch");
    followed.stop();
}

// Credentials

#[test]
fn a_wrong_token_is_explained_and_a_corrected_one_is_read_again() {
    let server = recorded_server();
    server.require(TOKEN);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    fs::write(&file, "wrong-token-of-the-test\n").unwrap();
    let mut settings = settings(&server);
    settings.token = Some(Credential::File(file.clone()));
    settings.token_keys = Some("polaris.token-file".to_owned());
    let followed = follow_with(settings, LONG);
    let error = followed.wait_for_error("check polaris.token-file");
    assert!(error.contains("401001 access is not approved"), "{error}");
    assert!(error.contains(&server.address().to_string()) && !error.contains("wrong-token"));
    assert!(!followed.state.report().synced);
    fs::write(&file, TOKEN).unwrap();
    followed.wait_until_synced();
    followed.wait_for("demo", &["10.9.0.5:8000"]);

    // The token is replaced in Polaris: what is known stays.
    server.require("second-token-of-the-test");
    followed.wait_for_error("check polaris.token-file");
    followed.wait_for_report("disconnected", |report| !report.connected);
    assert!(followed.knows("demo") && followed.knows("hello"));
    fs::write(&file, "second-token-of-the-test").unwrap();
    followed.wait_for_report("connected", |report| report.connected && report.error.is_none());
    followed.stop();
}

#[test]
fn a_missing_token_is_explained() {
    let server = recorded_server();
    server.require(TOKEN);
    let followed = follow(&server, LONG);
    followed.wait_for_error("configure a token (token-file) (401001 access is not approved)");
    followed.stop();
}

#[test]
fn a_token_that_a_server_echoes_is_hidden() {
    let server = recorded_server();
    server.misbehave(|request| {
        let echo = format!("<html>{}", request.header("x-polaris-token"));
        let answer = Reaction::Answer(response("404 Not Found", "text/html", echo));
        is_for(request, "-demo-").then_some(answer)
    });
    let mut settings = settings(&server);
    settings.token = Some(Credential::Given(Secret::from(TOKEN)));
    let followed = follow_with(settings, LONG);
    let error = followed.wait_for_error("***");
    assert!(!error.contains(TOKEN), "{error}");
    followed.stop();
}

// Misbehaviour

/// Returns whether a request is for the instances of a service whose name contains this text.
fn is_for(request: &Request, service: &str) -> bool {
    let body = request.json().unwrap_or_default();
    body["service"]["name"].as_str().is_some_and(|name| name.contains(service))
}

/// Checks that a fault of one service is reported, affects no other, and is recovered from.
fn expect_fault_of_one_service(reaction: Reaction, message: &str) {
    let server = recorded_server();
    let mut settings = settings(&server);
    settings.tuning.connection.request_timeout = seconds(2);
    settings.tuning.connection.dial_timeout = seconds(2);
    settings.token = Some(Credential::Given(Secret::from(TOKEN)));
    let followed = follow_with(settings, LONG);
    followed.wait_until_synced();
    server.misbehave(move |request| is_for(request, "-demo-").then(|| reaction.clone()));
    followed.wait_for_fault_of("service-default-default-demo-latest", message, &[TOKEN]);
    assert!(followed.knows("demo") && followed.knows("hello"));
    // Changes of others are seen meanwhile.
    let mut second = Recordings::open("polaris").body("30-instance-hello-second");
    second["service"]["revision"] = "another".into();
    let answer = response("200 OK", "text/plain", second.to_string());
    server.misbehave(move |request| {
        is_for(request, "-hello.svc-").then(|| Reaction::Answer(answer.clone()))
    });
    followed.wait_until("the change of hello", || followed.instances("hello").len() == 2);
    followed.wait_for_report("recovered", |report| report.error.is_none());
    followed.stop();
}

#[test]
fn a_cut_answer_affects_only_its_service() {
    let whole = Recordings::open("polaris").response("87-before-emptied");
    let cut = whole[..whole.len() / 2].to_vec();
    expect_fault_of_one_service(Reaction::Close(cut), "cut short");
}

#[test]
fn a_page_of_a_proxy_affects_only_its_service() {
    let page = response("502 Bad Gateway", "text/html", "<html>\n<h1>Bad Gateway</h1>");
    let message = "the server answered 502 <html> <h1>Bad Gateway</h1>";
    expect_fault_of_one_service(Reaction::Answer(page), message);
}

#[test]
fn a_page_with_status_200_affects_only_its_service() {
    let page = response("200 OK", "text/html", "<html>welcome");
    expect_fault_of_one_service(Reaction::Answer(page), "the answer is not Polaris's JSON");
}

#[test]
fn an_answer_of_another_type_affects_only_its_service() {
    let other = Recordings::open("polaris").response("02-services");
    expect_fault_of_one_service(Reaction::Answer(other), "the answer is of type \"SERVICES\"");
}

#[test]
fn a_silent_connection_affects_only_its_service() {
    expect_fault_of_one_service(Reaction::Hang(Vec::new()), "no complete answer within");
}

#[test]
fn a_refused_content_type_affects_only_its_service() {
    let refused = Recordings::open("polaris").response("16-no-content-type");
    expect_fault_of_one_service(Reaction::Answer(refused), "415 415: Unsupported Media Type");
}

#[test]
fn services_that_fail_do_not_multiply_the_reads_of_the_names() {
    let server = PolarisServer::start();
    fill(&server, 51, 1);
    let mut settings = settings(&server);
    settings.tuning.polling.interval = seconds(1);
    let followed = follow_with(settings, LONG);
    followed.wait_until_synced();
    let page = response("500 Internal Server Error", "text/plain", "failed");
    let (before, start) = (server.http.request_count(), Instant::now());
    server.misbehave(move |request| {
        let is_failing = is_for(request, "-service-") && !is_for(request, "-service-0-");
        is_failing.then(|| Reaction::Answer(page.clone()))
    });
    eventually("many failures", SOON, || {
        (server.http.request_count() > before + 200).then_some(())
    });
    let elapsed = start.elapsed();
    let since = &queries(&server)[before..];
    let reads = since.iter().filter(|query| query["type"] == "SERVICES").count();
    assert!(reads <= 2 + usize::try_from(elapsed.as_secs()).unwrap(), "{reads} in {elapsed:?}");
    followed.stop();
}

#[test]
fn a_silent_server_is_noticed_and_keeps_its_instances() {
    let server = recorded_server();
    let mut settings = settings(&server);
    settings.tuning.connection.request_timeout = seconds(1);
    settings.tuning.connection.dial_timeout = seconds(1);
    let followed = follow_with(settings, LONG);
    followed.wait_until_synced();
    server.http.stall();
    followed.wait_for_error("cannot list the services: no complete answer within 2 s");
    assert!(followed.knows("hello") && !followed.state.report().connected);
    server.http.resume();
    followed.wait_for_report("connected", |report| report.connected && report.error.is_none());
    followed.stop();
}

#[test]
fn unknown_fields_and_null_ones_are_ignored() {
    let server = recorded_server();
    let mut body = Recordings::open("polaris").body("03-instance-hello");
    body["future"] = json!([{ "deep": { "er": null } }]);
    body["services"] = Value::Null;
    for instance in body["instances"].as_array_mut().unwrap() {
        instance["future"] = json!({ "a": [1] });
        instance["priority"] = Value::Null;
        instance["weight"] = json!("text");
    }
    let answer = response("200 OK", "application/json", body.to_string());
    server.misbehave(move |request| {
        is_for(request, "-hello.svc-").then(|| Reaction::Answer(answer.clone()))
    });
    let followed = follow(&server, LONG);
    followed.wait_for("hello", &["10.9.0.5:32893"]);
    followed.stop();
}

#[test]
fn an_emptied_service_with_ever_new_revisions_is_listed_once() {
    let server = recorded_server();
    let empty = Recordings::open("polaris").body("76-instance-http-gone");
    server.misbehave(move |request| {
        let number = fastrand::u128(..);
        let mut body = empty.clone();
        body["service"]["revision"] = number.to_string().into();
        let answer = || response("200 OK", "text/plain", body.to_string());
        is_for(request, "-demo-").then(|| Reaction::Answer(answer()))
    });
    let followed = follow(&server, LONG);
    followed.wait_until_synced();
    let before = server.http.request_count();
    eventually("further queries", SOON, || {
        (server.http.request_count() > before + 60).then_some(())
    });
    let lists = followed.changes().iter().filter(|(_, change)| is_list_of_demo(change)).count();
    assert_eq!(lists, 1);
    followed.stop();
}

/// Returns whether a list of the service `demo` begins.
fn is_list_of_demo(change: &Change) -> bool {
    let Change::ListBegin { scope: ListScope::Service(name), .. } = change else { return false };
    name.contains("-demo-")
}

#[test]
fn odd_names_are_served_or_rejected_alone() {
    let server = PolarisServer::start();
    let metadata = goframe_metadata("latest");
    let long = "n".repeat(63);
    for (last, name) in (1..).zip([
        "several.labels.deep",
        "Mixed-Case.SVC",
        "under_score",
        "10-0-0-1",
        "with-many-hyphens-in-it",
        &long,
        "sla/sh",
        "_tcp",
        "blank name",
    ]) {
        server.put(&format!("service-default-default-{name}-latest"), at(last), &metadata);
    }
    server.put("NotOfGoFrame", at(20), &json!({ "version": "v2" }));
    server.put("service-default-default-hello-v1-rc-1", at(21), &goframe_metadata("v1-rc-1"));
    server.put("services-default-default-older-v1", at(22), &goframe_metadata("v1"));
    let followed = follow(&server, LONG);
    for (base, endpoint) in [
        ("several.labels.deep", "10.0.0.1:80"),
        ("mixed-case", "10.0.0.2:80"),
        ("under_score", "10.0.0.3:80"),
        ("10-0-0-1", "10.0.0.4:80"),
        ("with-many-hyphens-in-it", "10.0.0.5:80"),
        (&long, "10.0.0.6:80"),
        ("notofgoframe", "10.0.0.20:80"),
        ("hello", "10.0.0.21:80"),
        ("older", "10.0.0.22:80"),
    ] {
        followed.wait_for(base, &[endpoint]);
    }
    let key = |name: &str, last: u8| {
        format!("name-not-dns service-default-default-{name}-latest/10.0.0.{last}:80")
    };
    let expected = BTreeSet::from([key("sla%2Fsh", 7), key("_tcp", 8), key("blank name", 9)]);
    eventually("all rejections", SOON, || {
        let rejected = followed.rejections().into_iter().map(|(code, key)| format!("{code} {key}"));
        (rejected.collect::<BTreeSet<_>>() == expected).then_some(())
    });
    followed.stop();
}

#[test]
fn versions_of_one_name_are_services_of_their_own() {
    let server = PolarisServer::start();
    let service = |version: &str| format!("service-default-default-hello-{version}");
    let [first, second] = ["v1", "v2"].map(|version| (service(version), goframe_metadata(version)));
    server.put(&first.0, at(1), &first.1);
    let body = server.put(&second.0, at(2), &second.1);
    let followed = follow(&server, LONG);
    followed.wait_for("hello", &["10.0.0.1:80", "10.0.0.2:80"]);
    server.deregister(&body);
    followed.wait_for("hello", &["10.0.0.1:80"]);
    server.empty(|name| name.ends_with("-v1"));
    followed.wait_until("the end of hello", || !followed.knows("hello"));
    followed.stop();
}

// Registration

/// Starts `svcdns register` for a service at 10.9.0.5:9100.
fn register(server: &PolarisServer) -> support::process::Process {
    let mut register = command();
    register.args(["register", "--registry", &server.url(), "byhttp", "10.9.0.5:9100"]);
    register.args(["--metadata", "protocol=http", "--metadata", "insecure=true"]);
    support::process::Process::start(&mut register)
}

#[test]
fn register_writes_what_was_recorded_and_takes_it_back() {
    let server = PolarisServer::start();
    let mut registrant = register(&server);
    let followed = follow(&server, LONG);
    followed.wait_for("byhttp", &["10.9.0.5:9100"]);
    // The times at the server may be late, by different times.
    let period = seconds(9)..Duration::from_millis(11_500);
    eventually("a heartbeat after the recorded period", SOON, || {
        let requests = server.http.requests();
        let is_write = |(_, request): &&(Instant, Request)| request.path != "/v1/Discover";
        let times: Vec<_> = requests.iter().filter(is_write).map(|(at, _)| *at).collect();
        times.windows(2).any(|pair| period.contains(&(pair[1] - pair[0]))).then_some(())
    });
    registrant.terminate();
    eventually("the removal", SOON, || {
        let writes = server.writes();
        writes.iter().any(|(path, _)| path == "/v1/DeregisterInstance").then_some(())
    });
    let recordings = Recordings::open("polaris");
    let writes = server.writes();
    for (path, recording) in [
        ("/v1/RegisterInstance", "70-register-http"),
        ("/v1/Heartbeat", "72-heartbeat-http"),
        ("/v1/DeregisterInstance", "74-deregister-http"),
    ] {
        let recorded = recordings.request(recording);
        assert_eq!(recorded.path, path);
        let found = writes.iter().find(|(written, _)| *written == path).unwrap();
        assert_eq!(Some(&found.1), recorded.json().as_ref(), "{path}");
    }
    let count = |path: &str| writes.iter().filter(|(written, _)| written == path).count();
    assert_eq!((count("/v1/RegisterInstance"), count("/v1/DeregisterInstance")), (1, 1));
    followed.stop();
}

#[test]
fn register_notices_a_wipe_although_heartbeats_are_accepted() {
    let server = PolarisServer::start();
    let _registrant = register(&server);
    // A registration that the cache does not show yet is not taken for lost.
    eventually("two looks for the registration", SOON, || {
        let queries = queries(&server);
        let looks = queries.iter().filter(|query| query["type"] == "INSTANCE");
        (looks.count() >= 2).then_some(())
    });
    let registrations = || {
        let writes = server.writes();
        writes.iter().filter(|(path, _)| path == "/v1/RegisterInstance").count()
    };
    assert_eq!(registrations(), 1);
    let followed = follow(&server, seconds(30));
    followed.wait_for("byhttp", &["10.9.0.5:9100"]);
    server.wipe();
    eventually("another registration", SOON, || (registrations() == 2).then_some(()));
    followed.wait_for("byhttp", &["10.9.0.5:9100"]);
    followed.stop();
}

#[test]
fn register_refuses_what_would_be_read_back_otherwise() {
    let server = PolarisServer::start();
    let url = server.url();
    let run = |more: &[&str]| {
        let mut register = command();
        register.args(["register", "--registry", &url, "--namespace", "my-ns"]);
        let output = register.args(["web", "10.0.0.1:80"]).args(more).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (success, error) = run(&[]);
    assert!(!success && error.contains("add \"my-ns\" to polaris.namespaces"), "{error}");
    assert!(server.writes().is_empty());
}

// The program

#[test]
fn the_grpc_port_in_a_url_is_explained() {
    let url = "polaris://127.0.0.1:8091";
    let output = command().args(["check", "--registry", url]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{error}");
    assert!(
        error.contains("8091 is the port of Polaris's gRPC interface")
            && error.contains("polaris://127.0.0.1:8090"),
        "{error}"
    );
}

#[test]
fn names_are_answered_over_dns() {
    let server = recorded_server();
    let flags = ["--registry", &server.url(), "--polaris-namespaces", "my-ns"];
    let svcdns = Svcdns::serve(&flags);
    svcdns.wait_for("demo.svc", &["10.9.0.5"]);
    svcdns.wait_for("hello.svc", &["10.9.0.5"]);
    svcdns.wait_for("user-svc.my-ns.svc", &["10.9.0.5"]);
    let list = svcdns.run(&["ls"]);
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.contains("user-svc") && list.contains("weight=5"), "{list}");
    svcdns.stop();
}

/// Registers services `service-0` … of one instance each, which are listed at once.
fn fill(server: &PolarisServer, services: usize, last: u8) {
    let metadata = goframe_metadata("latest");
    server.fill((0..services).map(|number| {
        json!({
            "service": format!("service-default-default-service-{number}-latest"),
            "host": format!("10.0.0.{last}"), "port": 80, "version": "latest", "weight": 100,
            "metadata": metadata, "health_check": { "heartbeat": { "ttl": 10 } },
        })
    }));
}

/// Follows this many services at the default pace.
fn follow_at_default_pace(services: usize) -> (PolarisServer, Followed) {
    let server = PolarisServer::start();
    fill(&server, services, 1);
    let settings = Settings::new(vec![server.address().to_string()]);
    let followed = follow_with(settings, LONG);
    followed.wait_until_synced();
    (server, followed)
}

/// Measures the queries per second while nothing changes.
fn measure_rate(server: &PolarisServer, period: Duration) -> f64 {
    let (before, start) = (server.http.request_count(), Instant::now());
    thread::sleep(period);
    let count = server.http.request_count() - before;
    f64::from(u32::try_from(count).unwrap()) / start.elapsed().as_secs_f64()
}

/// Measures the times from changes in the server to the catalog, in ascending order.
fn measure_changes(server: &PolarisServer, followed: &Followed, services: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for number in (0..services).step_by((services / 7).max(1)) {
        let start = Instant::now();
        server.fill(std::iter::once(json!({
            "service": format!("service-default-default-service-{number}-latest"),
            "host": "10.0.0.2", "port": 80, "version": "latest", "weight": 100,
            "metadata": {}, "health_check": { "heartbeat": { "ttl": 10 } },
        })));
        followed.wait_for(&format!("service-{number}"), &["10.0.0.1:80", "10.0.0.2:80"]);
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times
}

#[test]
fn polling_stays_below_the_limit_on_requests() {
    let (server, followed) = follow_at_default_pace(1_000);
    let rate = measure_rate(&server, seconds(3));
    assert!(rate <= 202.0, "{rate} queries/s");
    followed.stop();
}

#[test]
#[ignore = "a measurement of minutes: see docs/registries/polaris.md"]
fn measure_the_cost_of_polling() {
    for services in [1, 100, 1_000] {
        let (server, followed) = follow_at_default_pace(services);
        let rate = measure_rate(&server, seconds(10));
        let times = measure_changes(&server, &followed, services);
        let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
        println!("{services} services: {rate:.0} queries/s, {median:.1?}, max {longest:.1?}");
        followed.stop();
    }
}
