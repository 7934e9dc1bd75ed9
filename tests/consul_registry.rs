//! The Consul registry against a real Consul agent.
//!
//! The agent is killed, stalled and wiped, and filled with invalid data.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "measurements")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use support::consul::{Consul, goframe_service, write_certificate};
use support::etcd::Etcd;
use support::followed::Followed;
use support::svcdns::{Svcdns, command};
use support::{SOON, dns, eventually, free_address, seconds, throughout};
use svcdns::registry::consul::{ConsulRegistry, Reads, Settings};
use svcdns::registry::{Credential, Secret, Tls};
use svcdns::service::{Change, ListKind, ListScope};

/// Longer than any test: what happens earlier has another reason.
const LONG: Duration = seconds(3600);

fn at(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 8000))
}

fn settings(consul: &Consul) -> Settings {
    let mut settings = Settings::new(vec![consul.address().to_string()]);
    settings.tuning.connection.backoff_max = Duration::from_millis(400);
    settings
}

fn follow(consul: &Consul, grace: Duration) -> Followed {
    follow_with(settings(consul), grace)
}

fn follow_with(settings: Settings, grace: Duration) -> Followed {
    let url = settings.to_string();
    Followed::start(ConsulRegistry::new(settings), &url, grace)
}

#[test]
fn services_and_their_changes_are_followed() {
    let Some(consul) = Consul::start("services_and_their_changes_are_followed") else { return };
    let first = consul.put("hello.svc", "", at(1), r#"{"insecure":true,"protocol":"http"}"#);
    let followed = follow(&consul, LONG);
    followed.wait_until_synced();
    assert_eq!(followed.instances("hello"), ["10.0.0.1:8000".to_owned()].into());
    let names =
        Change::ServiceNames { kind: ListKind::Routine, names: ["hello.svc".into()].into() };
    assert_eq!(followed.changes()[0].1, names);

    // A second instance, a new service, other metadata and removals.
    let second = consul.put("hello.svc", "", at(2), "{}");
    followed.wait_for("hello", &["10.0.0.1:8000", "10.0.0.2:8000"]);
    consul.put("demo", "v1.2.0", at(3), "{}");
    followed.wait_for("demo", &["10.0.0.3:8000"]);
    consul.put("hello.svc", "", at(2), r#"{"weight":"5"}"#);
    followed.wait_until("the new weight", || {
        followed.catalog(|catalog| {
            let weights = catalog.service("hello").unwrap().keys().iter().map(|key| key.weight());
            weights.max() == Some(5)
        })
    });
    let version = followed
        .catalog(|catalog| catalog.service("demo").unwrap().keys()[0].group().version.to_string());
    assert_eq!(version, "v1.2.0");
    consul.deregister(&first);
    followed.wait_for("hello", &["10.0.0.2:8000"]);
    consul.deregister(&second);
    followed.wait_until("hello to be unknown", || !followed.knows("hello"));
    assert!(!followed.knows("consul"), "Consul's own service is left out");
    assert_eq!(followed.kinds(), [ListKind::Routine].into());
    let report = followed.state.report();
    assert!(report.error.is_none() && report.lists == 1 && report.revision > 0, "{report:?}");
    followed.stop();
}

#[test]
fn the_status_of_checks_decides_which_instances_are_served() {
    let Some(consul) = Consul::start("the_status_of_checks_decides_which_instances_are_served")
    else {
        return;
    };
    let ids = [1, 2].map(|last| consul.put("hello.svc", "", at(last), "{}"));
    let followed = follow(&consul, LONG);
    let both = ["10.0.0.1:8000", "10.0.0.2:8000"];
    followed.wait_for("hello", &both);
    consul.set_check("fail", &ids[0]);
    followed.wait_for("hello", &["10.0.0.2:8000"]);
    consul.set_check("warn", &ids[0]);
    followed.wait_for("hello", &both);
    consul.set_check("fail", &ids[0]);
    consul.set_check("fail", &ids[1]);
    followed.wait_for("hello", &[]);
    assert!(followed.knows("hello"), "its instances are registered, but none is alive");
    consul.set_check("pass", &ids[1]);
    followed.wait_for("hello", &["10.0.0.2:8000"]);
    // Maintenance is a critical check of the node.
    consul.request("PUT", "/v1/agent/maintenance?enable=true", &json!(null));
    followed.wait_for("hello", &[]);
    consul.request("PUT", "/v1/agent/maintenance?enable=false", &json!(null));
    followed.wait_for("hello", &["10.0.0.2:8000"]);
    followed.stop();
}

#[test]
fn a_spelling_without_a_living_instance_gives_way_to_the_other() {
    let Some(consul) = Consul::start("a_spelling_without_a_living_instance_gives_way_to_the_other")
    else {
        return;
    };
    let id = consul.put("hello.svc", "", at(1), "{}");
    consul.put("hello", "", at(2), "{}");
    let svcdns = Svcdns::serve(&["--registry", &consul.url()]);
    svcdns.wait_for("hello.svc", &["10.0.0.1"]);
    let output =
        |arguments: &[&str]| String::from_utf8_lossy(&svcdns.run(arguments).stdout).into_owned();
    let shadowed = "shadowed: another spelling of the name wins";
    assert!(output(&["explain", "hello.svc"]).contains(shadowed));
    assert!(output(&["ls", "--conflicts"]).contains("shadowed"));

    consul.set_check("fail", &id);
    svcdns.wait_for("hello.svc", &["10.0.0.2"]);
    svcdns.wait_for("10-0-0-2.hello.svc", &["10.0.0.2"]);
    let explained = output(&["explain", "hello.svc"]);
    assert!(!explained.contains("dropped"), "{explained}");
    assert!(!output(&["ls", "--conflicts"]).contains("shadowed"));

    consul.set_check("pass", &id);
    svcdns.wait_for("hello.svc", &["10.0.0.1"]);
    svcdns.stop();
}

#[test]
fn services_of_other_programs_are_served_with_tags_meta_and_weights() {
    let Some(consul) =
        Consul::start("services_of_other_programs_are_served_with_tags_meta_and_weights")
    else {
        return;
    };
    consul.register(&json!({
        "ID": "web-1", "Name": "web", "Address": "10.0.0.1", "Port": 80, "Tags": ["blue", "v2"],
        "Meta": { "zone": "a", "metadata": "not JSON" }, "Weights": { "Passing": 7, "Warning": 2 },
    }));
    consul.register(&json!({
        "ID": "web-2", "Name": "web", "Address": "10.0.0.2", "Port": 80, "Tags": ["green"],
        "Check": { "CheckID": "service:web-2", "TTL": "1h" },
        "Weights": { "Passing": 7, "Warning": 2 },
    }));
    consul.set_check("warn", "web-2");
    consul.register(&json!({ "ID": "db", "Name": "db", "Port": 5432 }));
    consul.register(&json!({
        "ID": "six", "Name": "six", "Address": "fd00::5", "Port": 80,
    }));
    consul.register(&json!({
        "ID": "host", "Name": "host", "Address": "Web.Example", "Port": 80,
    }));
    let svcdns = Svcdns::serve(&["--registry", &consul.url()]);
    svcdns.wait_for("web.svc", &["10.0.0.1", "10.0.0.2"]);
    svcdns.wait_for("blue._tag.web.svc", &["10.0.0.1"]);
    svcdns.wait_for("v2._tag.web.svc", &["10.0.0.1"]);
    svcdns.wait_for("green._tag.web.svc", &["10.0.0.2"]);
    svcdns.wait_for("a._zone.web.svc", &["10.0.0.1"]);
    svcdns.wait_for("red._tag.web.svc", &[]);
    svcdns.wait_for("db.svc", &["127.0.0.1"]);
    let srv = dns::dig_short(svcdns.address, &["web.svc", "SRV"]);
    let weights: BTreeSet<_> = srv.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(weights, ["7", "2"].into(), "{srv:?}");
    let six = dns::dig_short(svcdns.address, &["six.svc", "AAAA"]);
    assert_eq!(six, ["fd00::5"]);
    let host = dns::dig_short(svcdns.address, &["host.svc", "SRV"]);
    assert_eq!(host.len(), 1, "{host:?}");
    svcdns.stop();
}

#[test]
fn invalid_entries_affect_no_other_entries() {
    let Some(consul) = Consul::start("invalid_entries_affect_no_other_entries") else { return };
    consul.put("hello.svc", "", at(1), "{}");
    // What GoFrame registers for a server on `[::]`.
    consul.register(&json!({
        "ID": "hello.svc--[:0", "Name": "hello.svc", "Tags": [""], "Address": "[", "Port": 0,
        "Meta": { "metadata": "{}", "version": "" },
    }));
    consul.register(&json!({
        "ID": "no-port", "Name": "hello.svc", "Address": "10.0.0.9", "Port": 0,
    }));
    let (_, mut broken) = goframe_service("hello.svc", "", at(2), "{broken");
    broken.as_object_mut().unwrap().remove("Check");
    consul.register(&broken);
    consul.register(&json!({
        "ID": "multicast", "Name": "hello.svc", "Address": "224.0.0.1", "Port": 80,
    }));
    // A node without an address.
    consul.request(
        "PUT",
        "/v1/catalog/register",
        &json!({
            "Node": "a/b%c", "Address": " ", "SkipNodeUpdate": false,
            "Service": { "ID": "no-address", "Service": "hello.svc", "Port": 80 },
        }),
    );
    let followed = follow(&consul, LONG);
    followed.wait_for("hello", &["10.0.0.1:8000"]);
    let rejected = followed.rejections();
    let codes: BTreeSet<_> = rejected.iter().map(|(code, _)| code.as_str()).collect();
    assert_eq!(
        codes,
        ["address-unusable", "host-malformed", "no-address", "no-port", "value-not-json"].into()
    );
    let of_node = ("no-address".to_owned(), "hello.svc/a%2Fb%25c/no-address".to_owned());
    assert!(rejected.contains(&of_node), "{rejected:?}");
    followed.stop();
}

#[test]
fn unusual_names_are_read_and_rejected_only_if_they_are_invalid_in_dns() {
    let Some(consul) =
        Consul::start("unusual_names_are_read_and_rejected_only_if_they_are_invalid_in_dns")
    else {
        return;
    };
    for (last, name) in [(1, "Demo"), (2, "shop/api_x"), (3, "a b?c#d%2F"), (4, "x.y.svc")] {
        consul.put(name, "", at(last), "{}");
    }
    // Consul compares names ignoring case.
    consul.put("demo", "", at(5), "{}");
    let followed = follow(&consul, LONG);
    followed.wait_until_synced();
    followed.wait_for("demo", &["10.0.0.1:8000", "10.0.0.5:8000"]);
    followed.wait_for("x.y", &["10.0.0.4:8000"]);
    let rejected: Vec<_> = followed.rejections().into_iter().map(|(code, _)| code).collect();
    assert_eq!(rejected, ["name-not-dns", "name-not-dns"]);
    let id = consul.put("shop/api_x", "", at(6), "{}");
    followed.wait_until("the third", || followed.rejections().len() == 3);
    consul.deregister(&id);
    followed.wait_until("its end", || followed.rejections().len() == 2);
    followed.stop();
}

#[test]
fn an_outage_withdraws_nothing() {
    let Some(mut consul) = Consul::start_persistent("an_outage_withdraws_nothing") else { return };
    consul.put("hello.svc", "", at(1), "{}");
    consul.put("demo", "", at(2), "{}");
    let followed = follow(&consul, LONG);
    followed.wait_until_synced();
    consul.kill();
    followed.wait_for_report("disconnected", |report| !report.connected && report.error.is_some());
    assert_eq!(followed.instances("hello").len(), 1);
    consul.restart();
    consul.put("hello.svc", "", at(3), "{}");
    followed.wait_for("hello", &["10.0.0.1:8000", "10.0.0.3:8000"]);
    followed.wait_for("demo", &["10.0.0.2:8000"]);
    followed.wait_for_report("recovered", |report| report.connected && report.error.is_none());
    assert_eq!(followed.kinds(), [ListKind::Routine, ListKind::Reconnect].into());
    assert_eq!(followed.state.report().disconnects, 1);
    followed.stop();
}

#[test]
fn the_services_of_a_wiped_agent_are_held_until_they_are_back() {
    let Some(mut consul) =
        Consul::start("the_services_of_a_wiped_agent_are_held_until_they_are_back")
    else {
        return;
    };
    for last in 1..=20 {
        consul.put(&format!("s{last}"), "", at(last), "{}");
    }
    let followed = follow(&consul, LONG);
    followed.wait_until_synced();
    let all = || (1..=20).all(|last| followed.instances(&format!("s{last}")).len() == 1);
    assert!(all());
    consul.wipe();
    consul.restart();
    followed.wait_for_report("connected again", |report| report.connected && report.lists == 2);
    assert!(all(), "removals are held");
    consul.put("s1", "", at(1), "{}");
    consul.put("new", "", at(99), "{}");
    followed.wait_for("new", &["10.0.0.99:8000"]);
    followed.wait_until("all but the first to be held", || {
        followed.catalog(|catalog| catalog.stats().registries[0].held) == 19
    });
    assert!(all(), "they are still served");
    followed.stop();
}

#[test]
fn the_services_of_a_wiped_agent_go_after_the_grace() {
    let Some(mut consul) = Consul::start("the_services_of_a_wiped_agent_go_after_the_grace") else {
        return;
    };
    consul.put("hello.svc", "", at(1), "{}");
    let followed = follow(&consul, seconds(2));
    followed.wait_for("hello", &["10.0.0.1:8000"]);
    consul.wipe();
    consul.restart();
    followed.wait_until("hello to be unknown", || !followed.knows("hello"));
    followed.stop();
}

#[test]
fn checks_that_expire_while_the_agent_is_away_are_held() {
    let Some(consul) = Consul::start("checks_that_expire_while_the_agent_is_away_are_held") else {
        return;
    };
    let ids: Vec<_> = (1..=20)
        .map(|last| {
            let (id, mut service) = goframe_service(&format!("s{last}"), "", at(last), "{}");
            service["Check"]["TTL"] = json!("4s");
            consul.register(&service);
            consul.set_check("pass", &id);
            id
        })
        .collect();
    let followed = follow(&consul, LONG);
    let pass = || ids.iter().for_each(|id| consul.set_check("pass", id));
    let count =
        || (1..=20).filter(|last| !followed.instances(&format!("s{last}")).is_empty()).count();
    followed.wait_until("all services", || count() == 20);
    pass();
    consul.stall();
    thread::sleep(seconds(6));
    consul.resume();
    // All are critical now. Some may be gone before the burst shows that it is one.
    followed.wait_until("held instances", || {
        followed.catalog(|catalog| catalog.stats().registries[0].held) >= 10
    });
    throughout("the instances are held", Instant::now(), seconds(3), || {
        followed.catalog(|catalog| catalog.stats().registries[0].held) >= 10
    });
    pass();
    followed.wait_until("all services back", || {
        count() == 20 && followed.catalog(|catalog| catalog.stats().registries[0].held) == 0
    });
    followed.stop();
}

#[test]
fn a_stalled_agent_is_noticed_and_followed_again() {
    let Some(consul) = Consul::start("a_stalled_agent_is_noticed_and_followed_again") else {
        return;
    };
    consul.put("hello.svc", "", at(1), "{}");
    let followed = follow(&consul, LONG);
    followed.wait_for("hello", &["10.0.0.1:8000"]);
    consul.stall();
    followed.wait_for_report("disconnected", |report| !report.connected);
    let error = followed.wait_for_error("no complete answer within");
    assert!(error.contains(&consul.address().to_string()), "{error}");
    assert_eq!(followed.instances("hello").len(), 1);
    consul.resume();
    followed.wait_for_report("recovered", |report| report.connected && report.error.is_none());
    consul.put("hello.svc", "", at(2), "{}");
    followed.wait_for("hello", &["10.0.0.1:8000", "10.0.0.2:8000"]);
    followed.stop();
}

#[test]
fn the_next_agent_is_used_when_one_ends() {
    let Some(mut first) = Consul::start("the_next_agent_is_used_when_one_ends") else { return };
    let second = Consul::start("the_next_agent_is_used_when_one_ends").unwrap();
    for consul in [&first, &second] {
        consul.put("hello.svc", "", at(1), "{}");
    }
    let mut settings = settings(&first);
    settings.endpoints.push(second.address().to_string());
    settings.reads = Reads::Stale;
    let followed = follow_with(settings, LONG);
    followed.wait_for("hello", &["10.0.0.1:8000"]);
    first.kill();
    second.put("hello.svc", "", at(2), "{}");
    followed
        .wait_until("the second agent", || followed.instances("hello").contains("10.0.0.2:8000"));
    followed.stop();
}

#[test]
fn only_a_limited_number_of_queries_wait_and_all_services_are_followed() {
    let Some(consul) =
        Consul::start("only_a_limited_number_of_queries_wait_and_all_services_are_followed")
    else {
        return;
    };
    consul.fill((0..60).map(|n| (format!("s{n}"), vec![at(1)])));
    let mut settings = settings(&consul);
    settings.max_waiting = 5;
    settings.tuning.max_reads = 4;
    settings.tuning.poll_interval = seconds(1);
    let followed = follow_with(settings, LONG);
    followed.wait_until_synced();
    consul.fill((0..60).map(|n| (format!("s{n}"), vec![at(1), at(2)])));
    followed.wait_until("all second instances", || {
        (0..60).all(|n| followed.instances(&format!("s{n}")).len() == 2)
    });
    // Waiting queries, reads, the names, the changes of checks, the check of the leader, kept
    // connections, and those that a check for room opens for a moment.
    let connections = connections_to(consul.address());
    assert!(connections <= 5 + 4 + 3 + 8 + 10, "{connections} connections");
    followed.stop();
}

#[test]
fn changes_of_checks_are_seen_without_a_waiting_query() {
    let test = "changes_of_checks_are_seen_without_a_waiting_query";
    let Some(consul) = Consul::start(test) else { return };
    let ids = [1, 2, 3].map(|n| consul.put(&format!("s{n}"), "", at(n), "{}"));
    let mut settings = settings(&consul);
    settings.max_waiting = 1;
    settings.tuning.poll_interval = seconds(1);
    // Nothing else reads the polled services again.
    settings.tuning.wait = LONG;
    let followed = follow_with(settings, LONG);
    followed.wait_until_synced();
    for (verb, count) in [("fail", 0), ("warn", 1), ("fail", 0), ("pass", 1)] {
        for id in &ids {
            consul.set_check(verb, id);
        }
        followed.wait_until(verb, || {
            (1..=3).all(|n| followed.instances(&format!("s{n}")).len() == count)
        });
    }
    // The check of a new service is critical until it is passed.
    let (id, service) = goframe_service("new", "", at(4), "{}");
    consul.register(&service);
    followed.wait_until("the service", || followed.knows("new"));
    consul.set_check("pass", &id);
    followed.wait_for("new", &["10.0.0.4:8000"]);
    followed.stop();
}

#[test]
fn the_end_of_an_agent_is_not_taken_for_a_refusal() {
    let test = "the_end_of_an_agent_is_not_taken_for_a_refusal";
    let Some(mut consul) = Consul::start_persistent(test) else { return };
    consul.fill((0..60).map(|n| (format!("s{n}"), vec![at(1)])));
    let followed = follow(&consul, LONG);
    followed.wait_until_synced();
    // It closes queries on new connections without an answer.
    consul.kill();
    followed.wait_for_report("disconnected", |report| !report.connected);
    consul.restart();
    // More than the half of the queries, the kept connections and a check for room.
    followed
        .wait_until("a waiting query for each service", || connections_to(consul.address()) >= 60);
    followed.stop();
}

/// Returns the number of established connections to an address, from this process or others.
fn connections_to(server: SocketAddr) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let peer = format!("0100007F:{:04X}", server.port());
    let established = table.lines().skip(1).filter(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[2] == peer && fields[3] == "01"
    });
    established.count()
}

#[test]
fn an_agent_that_refuses_connections_keeps_room_for_others() {
    let test = "an_agent_that_refuses_connections_keeps_room_for_others";
    let limits = json!({ "limits": { "http_max_conns_per_client": 30 } });
    let Some(consul) = Consul::start_with(test, false, &limits) else { return };
    consul.fill((0..100).map(|n| (format!("s{n}"), vec![at(1)])));
    let mut settings = settings(&consul);
    settings.tuning.poll_interval = seconds(1);
    let followed = follow_with(settings, LONG);
    followed.wait_until_synced();
    followed.wait_until("room for other clients", || {
        connections_to(consul.address()) < 25
            && consul.try_request("GET", "/v1/status/leader", "").is_ok()
    });
    consul.fill((0..100).map(|n| (format!("s{n}"), vec![at(1), at(2)])));
    followed.wait_until("all second instances", || {
        (0..100).all(|n| followed.instances(&format!("s{n}")).len() == 2)
    });
    // The list of names and the check of the agent also find room again, in the same session.
    throughout("the connection is kept", Instant::now(), seconds(8), || {
        let report = followed.state.report();
        report.connected && report.lists == 1 && report.disconnects == 0
    });
    assert_eq!(followed.kinds(), [ListKind::Routine].into());
    followed.stop();
}

#[test]
fn two_daemons_share_the_connections_of_one_agent() {
    let test = "two_daemons_share_the_connections_of_one_agent";
    // Both have the default limit on waiting queries, and Consul its own.
    let Some(consul) = Consul::start(test) else { return };
    consul.fill((0..120).map(|n| (format!("s{n}"), vec![at(1)])));
    let both = [(); 2].map(|()| {
        let followed = follow(&consul, LONG);
        followed.wait_until_synced();
        followed
    });
    throughout("both follow", Instant::now(), seconds(15), || {
        both.iter().all(|followed| {
            let report = followed.state.report();
            report.connected && report.lists == 1 && report.disconnects == 0
        })
    });
    consul.fill((0..120).map(|n| (format!("s{n}"), vec![at(1), at(2)])));
    for followed in both {
        followed.wait_until("all second instances", || {
            (0..120).all(|n| followed.instances(&format!("s{n}")).len() == 2)
        });
        followed.stop();
    }
}

/// Follows services with two daemons at an agent that has this limit on connections.
///
/// Once they have settled, a third client with a connection for each request is never refused.
fn check_that_daemons_leave_room_for_a_third_client(test: &str, limit: usize, waiting: [usize; 2]) {
    let limits = json!({ "limits": { "http_max_conns_per_client": limit } });
    let Some(consul) = Consul::start_with(test, false, &limits) else { return };
    consul.fill((0..100).map(|n| (format!("s{n}"), vec![at(1)])));
    let both = waiting.map(|max_waiting| {
        let mut settings = settings(&consul);
        settings.max_waiting = max_waiting;
        settings.tuning.poll_interval = seconds(1);
        let followed = follow_with(settings, LONG);
        followed.wait_until_synced();
        followed
    });
    let is_served = || consul.try_request("GET", "/v1/status/leader", "").is_ok();
    let mut refused = Instant::now();
    eventually("room for a third client", SOON, || {
        let has_room = is_served() && connections_to(consul.address()) + 5 <= limit;
        if !has_room {
            refused = Instant::now();
        }
        (refused.elapsed() > seconds(8)).then_some(())
    });
    throughout("a third client is served", Instant::now(), seconds(12), is_served);
    consul.fill((0..100).map(|n| (format!("s{n}"), vec![at(1), at(2)])));
    for followed in both {
        followed.wait_until("all second instances", || {
            (0..100).all(|n| followed.instances(&format!("s{n}")).len() == 2)
        });
        let report = followed.state.report();
        assert!(report.connected && report.disconnects == 0, "{report:?}");
        followed.stop();
    }
}

#[test]
fn two_daemons_with_equal_limits_leave_room_for_a_third_client() {
    let test = "two_daemons_with_equal_limits_leave_room_for_a_third_client";
    check_that_daemons_leave_room_for_a_third_client(test, 60, [100, 100]);
}

#[test]
fn a_daemon_that_is_never_refused_makes_room_for_other_clients() {
    // The first takes 49 connections and the second up to 10, so neither of them is refused.
    let test = "a_daemon_that_is_never_refused_makes_room_for_other_clients";
    check_that_daemons_leave_room_for_a_third_client(test, 60, [40, 1]);
}

#[test]
fn the_least_rights_of_a_token_are_enough() {
    let Some(consul) = Consul::start_with_acl("the_least_rights_of_a_token_are_enough") else {
        return;
    };
    consul.put("hello.svc", "", at(1), "{}");
    let page = include_str!("../docs/registries/consul.md");
    let rules = page.split("```hcl\n").nth(1).unwrap().split("```").next().unwrap();
    let token = consul.create_token("svcdns", rules);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, format!("{token}\n")).unwrap();
    let mut settings = settings(&consul);
    settings.token = Some(Credential::File(file.clone()));
    settings.token_keys = Some("consul.token-file".to_owned());
    let followed = follow_with(settings, LONG);
    followed.wait_for("hello", &["10.0.0.1:8000"]);

    // A token that is revoked and then replaced in the file.
    let found = consul.request("GET", "/v1/acl/tokens", &json!(null));
    let accessor = found.as_array().unwrap().iter().find(|found| {
        found["Policies"]
            .as_array()
            .is_some_and(|policies| policies.iter().any(|policy| policy["Name"] == "svcdns"))
    });
    let accessor = accessor.unwrap()["AccessorID"].as_str().unwrap().to_owned();
    consul.request("DELETE", &format!("/v1/acl/token/{accessor}"), &json!(null));
    consul.put("hello.svc", "", at(2), "{}");
    let error = followed.wait_for_error("consul.token-file");
    assert!(!error.contains(&token), "{error}");
    assert!(followed.instances("hello").contains("10.0.0.1:8000"), "nothing is withdrawn");
    let again = json!({ "Policies": [{ "Name": "svcdns" }] });
    let again = consul.request("PUT", "/v1/acl/token", &again);
    fs::write(&file, again["SecretID"].as_str().unwrap()).unwrap();
    followed.wait_for("hello", &["10.0.0.1:8000", "10.0.0.2:8000"]);
    followed.stop();
}

#[test]
fn missing_rights_are_reported_and_not_treated_as_an_empty_registry() {
    let Some(consul) =
        Consul::start_with_acl("missing_rights_are_reported_and_not_treated_as_an_empty_registry")
    else {
        return;
    };
    consul.put("hello.svc", "", at(1), "{}");
    // Without a token, Consul answers with an empty list.
    let followed = follow(&consul, LONG);
    let error = followed.wait_for_error("default policy is deny");
    assert!(error.contains("configure an ACL token"), "{error}");
    assert!(error.contains(&consul.address().to_string()), "{error}");
    assert!(!followed.state.report().synced);
    followed.stop();

    let with = |token: &str| {
        let mut settings = settings(&consul);
        settings.token = Some(Credential::Given(Secret::from(token)));
        settings.token_keys = Some("consul.token-file".to_owned());
        follow_with(settings, LONG)
    };
    let secret = "99999999-8888-7777-6666-555555555555";
    let followed = with(secret);
    let error = followed.wait_for_error("check consul.token-file");
    assert!(error.contains("403") && !error.contains(secret), "{error}");
    followed.stop();

    // The token may read services, but not nodes: Consul leaves out all instances.
    let token = consul.create_token("half", r#"service_prefix "" { policy = "read" }"#);
    let followed = with(&token);
    followed.wait_for_error("may not read its nodes");
    followed.stop();
}

#[test]
fn secrets_appear_in_no_output() {
    let Some(consul) = Consul::start_with_acl("secrets_appear_in_no_output") else { return };
    let secret = "99999999-8888-7777-6666-555555555555";
    let flags = ["--registry", &consul.url(), "--log", "trace"];
    let svcdns = Svcdns::serve_with(([127, 0, 0, 1], 0).into(), &flags, |command| {
        command.env("SVCDNS_CONSUL_TOKEN", secret);
    });
    eventually("the refusal", SOON, || svcdns.log().contains("ACL not found").then_some(()));
    let status = svcdns.run(&["status", "--json"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    let log = svcdns.log();
    assert!(log.contains("SVCDNS_CONSUL_TOKEN"), "{log}");
    assert!(!log.contains(secret) && !status.contains(secret), "{log}{status}");
    let parsed: serde_json::Value = serde_json::from_str(&status).unwrap();
    let registry = &parsed["registries"][0];
    assert_eq!((&registry["name"], &registry["url"]), (&json!("consul"), &json!(consul.url())));
    assert!(registry["error"].as_str().unwrap().contains("check the environment variable"));
    svcdns.stop();
}

#[test]
fn tls_is_verified_and_a_mismatch_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    write_certificate(folder.path());
    let path = |name: &str| folder.path().join(name);
    let tls = json!({ "tls": { "defaults": {
        "ca_file": path("server.pem"), "cert_file": path("server.pem"),
        "key_file": path("server.key"), "verify_incoming": false,
    } } });
    let test = "tls_is_verified_and_a_mismatch_is_explained";
    let Some(consul) = Consul::start_with(test, false, &tls) else { return };
    consul.put("hello.svc", "", at(1), "{}");
    let with = |endpoint: SocketAddr, tls: Option<Tls>| {
        let mut settings = settings(&consul);
        settings.endpoints = vec![endpoint.to_string()];
        settings.tls = tls;
        follow_with(settings, LONG)
    };
    let trusted = Tls { ca_file: Some(path("server.pem")), ..Tls::default() };
    let followed = with(consul.https_address(), Some(trusted.clone()));
    followed.wait_for("hello", &["10.0.0.1:8000"]);
    followed.stop();
    let followed = with(consul.https_address(), None);
    followed.wait_for_error("it expects TLS: use consul+https://");
    followed.stop();
    let followed = with(consul.address(), Some(trusted.clone()));
    followed.wait_for_error("it does not speak TLS: use consul://");
    followed.stop();
    let other = tempfile::tempdir().unwrap();
    write_certificate(other.path());
    let untrusted = Tls { ca_file: Some(other.path().join("server.pem")), ..Tls::default() };
    let followed = with(consul.https_address(), Some(untrusted));
    followed.wait_for_error("not signed by a trusted CA");
    followed.stop();
    let misnamed = Tls { server_name: Some("consul.example".to_owned()), ..trusted };
    let followed = with(consul.https_address(), Some(misnamed));
    followed.wait_for_error("TLS: ");
    followed.stop();
}

#[test]
fn wrong_datacenters_and_namespaces_are_explained() {
    let Some(consul) = Consul::start("wrong_datacenters_and_namespaces_are_explained") else {
        return;
    };
    let mut wrong = settings(&consul);
    wrong.datacenter = Some("elsewhere".to_owned());
    let followed = follow_with(wrong, LONG);
    followed.wait_for_error("check datacenter");
    followed.stop();
    let mut wrong = settings(&consul);
    wrong.namespace = Some("team".to_owned());
    let followed = follow_with(wrong, LONG);
    followed.wait_for_error("remove namespace");
    followed.stop();
    let mut right = settings(&consul);
    (right.datacenter, right.reads) = (Some("dc1".to_owned()), Reads::Consistent);
    let followed = follow_with(right, LONG);
    followed.wait_until_synced();
    followed.stop();
}

#[test]
fn a_later_start_of_the_registry_is_a_reconnect() {
    let Some(consul) = Consul::start("a_later_start_of_the_registry_is_a_reconnect") else {
        return;
    };
    consul.put("hello.svc", "", at(1), "{}");
    let settings = settings(&consul);
    let url = settings.to_string();
    let registry = ConsulRegistry::new(settings);
    let followed = Followed::start_as(ListKind::Reconnect, registry, &url, LONG);
    followed.wait_for("hello", &["10.0.0.1:8000"]);
    let scope = ListScope::Service("hello.svc".into());
    let expected = Change::ListBegin { kind: ListKind::Reconnect, scope };
    assert!(followed.changes().iter().any(|(_, change)| *change == expected));
    followed.stop();
}

#[test]
fn an_etcd_at_the_port_is_recognized() {
    let etcd = Etcd::start();
    let settings = Settings::new(etcd.endpoints());
    let followed = follow_with(settings, LONG);
    let error = followed.wait_for_error("an etcd, version 3.");
    assert!(error.contains(&format!("use etcd://{}", etcd.endpoint(0))), "{error}");
    followed.stop();
}

#[test]
fn a_port_without_a_server_is_reported() {
    let address = free_address().to_string();
    let followed = follow_with(Settings::new(vec![address.clone()]), LONG);
    let error = followed.wait_for_error("Connection refused");
    assert!(error.contains(&address), "{error}");
    followed.stop();
}

#[test]
fn register_writes_goframes_form_and_deregisters_at_the_end() {
    let Some(mut consul) =
        Consul::start("register_writes_goframes_form_and_deregisters_at_the_end")
    else {
        return;
    };
    let mut command = command();
    command.args(["register", "hello.svc", "10.0.0.1:8000", "--registry", &consul.url()]);
    command.args(["--metadata", "protocol=http"]);
    let mut registering = support::process::Process::start(&mut command);
    let entries = |consul: &Consul| {
        let found = consul.request("GET", "/v1/health/service/hello.svc?passing", &json!(null));
        found.as_array().unwrap().clone()
    };
    let found = eventually("the registration", SOON, || entries(&consul).pop());
    let service = &found["Service"];
    assert_eq!(service["ID"], "hello.svc--10.0.0.1:8000");
    assert_eq!(service["Tags"], json!([""]));
    assert_eq!((&service["Address"], &service["Port"]), (&json!("10.0.0.1"), &json!(8000)));
    let meta = json!({ "metadata": r#"{"protocol":"http"}"#, "version": "" });
    assert_eq!(service["Meta"], meta);
    let check = found["Checks"].as_array().unwrap().iter().find(|check| check["Type"] == "ttl");
    assert_eq!(check.unwrap()["CheckID"], "service:hello.svc--10.0.0.1:8000");

    // An agent that starts again without its data.
    consul.wipe();
    consul.restart();
    eventually("the registration after the wipe", SOON, || entries(&consul).pop());
    assert!(registering.terminate().success(), "{}", registering.log());
    assert_eq!(consul.request("GET", "/v1/agent/services", &json!(null)), json!({}));
}

/// Prints the time from Consul's own notification to the answer of svcdns.
///
/// `cargo test --release --test consul_registry measure -- --ignored --nocapture` runs both.
#[test]
#[ignore = "a measurement"]
fn measure_changes() {
    const CHANGES: u8 = 50;
    let Some(consul) = Consul::start("measure_changes") else { return };
    let program = consul.program("hello.svc", "", at(1));
    let svcdns = Svcdns::serve(&["--registry", &consul.url()]);
    svcdns.wait_for("hello.svc", &["10.0.0.1"]);
    let mut late = Vec::new();
    for last in 2..2 + CHANGES {
        let path = "/v1/health/service/hello.svc";
        let (head, _) = consul.exchange("GET", path, "").unwrap();
        let index = head.lines().find_map(|line| line.strip_prefix("X-Consul-Index: ")).unwrap();
        let waiting = format!("{path}?index={}&wait=60s", index.trim());
        let (id, service) = goframe_service("hello.svc", "", at(last), "{}");
        let (notified, answered) = thread::scope(|scope| {
            let notified = scope.spawn(|| {
                consul.try_request("GET", &waiting, "").unwrap();
                Instant::now()
            });
            let answered = scope.spawn(|| {
                while dns::addresses(svcdns.address, "hello.svc").unwrap().len() < 2 {
                    thread::sleep(Duration::from_micros(200));
                }
                Instant::now()
            });
            // Both wait by now, and the changes come too slowly for the limit on their rate.
            thread::sleep(Duration::from_millis(500));
            let mut passing = service;
            passing["Check"]["Status"] = json!("passing");
            consul.register(&passing);
            (notified.join().unwrap(), answered.join().unwrap())
        });
        late.push(answered.saturating_duration_since(notified));
        consul.deregister(&id);
        svcdns.wait_for("hello.svc", &["10.0.0.1"]);
    }
    late.sort();
    println!(
        "From Consul's notification to the answer: median {:?}, p90 {:?}, longest {:?}",
        late[late.len() / 2],
        late[late.len() * 9 / 10],
        late[late.len() - 1]
    );
    program.stop(&consul);
}

/// Prints start, memory and the idle load on Consul with 2,000 services.
#[test]
#[ignore = "a measurement"]
fn measure_many_services() {
    const SERVICES: usize = 2_000;
    const IDLE: Duration = seconds(30);
    let Some(consul) = Consul::start("measure_many_services") else { return };
    consul.fill((0..SERVICES).map(|n| (format!("s{n}"), vec![at(1), at(2)])));
    thread::sleep(seconds(5));
    let idle = |what: &str| {
        let before = consul.process().cpu_time();
        thread::sleep(IDLE);
        let used = consul.process().cpu_time().saturating_sub(before);
        println!("{what}: Consul uses {:.2} % of a core", used.as_secs_f64() * 100.0 / 30.0);
    };
    idle("Without svcdns");
    for max_waiting in ["100", "1"] {
        let before = consul.process().cpu_time();
        let start = Instant::now();
        let flags = ["--registry", &consul.url(), "--consul-max-waiting", max_waiting];
        let svcdns = Svcdns::serve(&flags);
        svcdns.wait_for(&format!("s{}.svc", SERVICES - 1), &["10.0.0.1", "10.0.0.2"]);
        let first = start.elapsed();
        svcdns.wait_for("s0.svc", &["10.0.0.1", "10.0.0.2"]);
        svcdns.wait_for_code("unknown.svc", "NXDOMAIN");
        println!(
            "max-waiting {max_waiting}: first answer after {first:?}, all read after {:?}; {} KiB \
             resident; Consul used {:?} of processor time",
            start.elapsed(),
            svcdns.resident_kib(),
            consul.process().cpu_time().saturating_sub(before)
        );
        thread::sleep(seconds(5));
        idle("With svcdns idle");
        println!("{} connections", connections_to(consul.address()));
        let start = Instant::now();
        consul.fill([("s1".to_owned(), vec![at(3)])].into_iter());
        svcdns.wait_for("s1.svc", &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        println!("a change of one service is answered after {:?}", start.elapsed());
        svcdns.stop();
        consul.request(
            "PUT",
            "/v1/catalog/deregister",
            &json!({
                "Node": "bulk", "ServiceID": "s1--10.0.0.3:8000",
            }),
        );
    }
}
