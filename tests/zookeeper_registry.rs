//! The ZooKeeper registry against real servers: content and TLS.
//!
//! `zookeeper_lists.rs` has lists and nodes that may not be read, `zookeeper_outages.rs` has
//! servers that fail and sessions that end.

#![cfg(feature = "zookeeper")]
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "measurements")]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use support::consul::write_certificate;
use support::followed::Followed;
use support::process::processor_time;
use support::svcdns::Svcdns;
use support::zookeeper::client::{Acl, Lifetime};
use support::zookeeper::following::{
    follow, follow_both, follow_both_with, follow_with, patient_settings, settings,
};
use support::zookeeper::{HTTP, ROOT, ZooKeeper, folder, leaf_data, put_leaf};
use support::{SOON, dns, free_address, seconds};
use svcdns::registry::Tls;
use svcdns::registry::zookeeper::Settings;
use svcdns::service::ListKind;

/// Longer than any test: what happens earlier has another reason.
const LONG: Duration = seconds(3600);

#[test]
fn services_and_their_changes_are_followed() {
    let Some((zookeeper, client)) =
        ZooKeeper::start_patient("services_and_their_changes_are_followed")
    else {
        return;
    };
    let first = zookeeper.program("hello.svc", 1);
    let both = follow_both_with(&patient_settings(&zookeeper), LONG);
    both.each(|followed| {
        followed.wait_until_synced();
        assert_eq!(followed.instances("hello"), ["10.0.0.1:8000".to_owned()].into());
    });

    // A second leaf, a new service, other data and removals.
    let second = put_leaf(&client, "hello.svc", "10.0.0.2-8000", 2);
    both.wait_for("hello", &["10.0.0.1:8000", "10.0.0.2:8000"]);
    let demo = zookeeper.program("demo", 3);
    both.wait_for("demo", &["10.0.0.3:8000"]);
    client.set(&second, &leaf_data("hello.svc", "10.0.0.2:8000", r#"{"weight":5}"#)).unwrap();
    both.each(|followed| {
        followed.wait_until("the new weight", || {
            followed.catalog(|catalog| {
                let keys = catalog.service("hello").unwrap().keys();
                keys.iter().map(|key| key.weight()).max() == Some(5)
            })
        });
    });
    // The same leaf may also register another service.
    client.set(&second, &leaf_data("moved", "10.0.0.2:8000", HTTP)).unwrap();
    both.wait_for("moved", &["10.0.0.2:8000"]);
    both.wait_for("hello", &["10.0.0.1:8000"]);
    client.delete(&second).unwrap();
    both.wait_for("moved", &[]);
    first.stop();
    demo.stop();
    both.wait_for("hello", &[]);
    both.wait_for("demo", &[]);
    both.each(|followed| {
        assert_eq!(followed.kinds(), [ListKind::Routine].into());
        let report = followed.state.report();
        assert!(report.error.is_none() && report.disconnects == 0, "{report:?}");
    });
    both.stop();
}

#[test]
fn the_identity_comes_from_the_key_and_not_from_node_names() {
    let Some((zookeeper, client)) =
        ZooKeeper::start_with_root("the_identity_comes_from_the_key_and_not_from_node_names")
    else {
        return;
    };
    // The names of this node and its leaves say nothing.
    let odd = format!("{ROOT}/service-default-my-ns-user-svc-v1.2.0");
    client.ensure(&odd, &[Acl::world(Acl::ALL)]);
    let key = |name: &str, last: u8| {
        let text = format!("/service/prod/my-ns/{name}/v1.2.0/10.0.0.{last}:8000,10.1.0.{last}:80");
        format!(r#"{{"Key":"{text}","Value":"{{\"protocol\":\"grpc\"}}"}}"#).into_bytes()
    };
    for (leaf, name, last) in [("a", "user-svc", 1), ("b", "user-svc", 2), ("c", "Other.SVC", 3)] {
        client.create(&format!("{odd}/{leaf}"), &key(name, last), Lifetime::Persistent).unwrap();
    }
    let followed = follow(&zookeeper, LONG);
    // One group of each leaf with its deployment, namespace and version.
    followed.wait_until("both leaves of user-svc", || {
        let groups: Vec<_> = followed.catalog(|catalog| {
            let keys = catalog.service("user-svc").into_iter().flat_map(|found| found.keys());
            let parts = keys.map(|key| {
                let group = key.group();
                [&group.deployment, &group.namespace, &group.version].map(ToString::to_string)
            });
            parts.collect()
        });
        groups == vec![["prod", "my-ns", "v1.2.0"].map(str::to_owned); 2]
    });
    followed.wait_until("the other service", || followed.knows("other"));
    followed.stop();
}

#[test]
fn a_second_goframe_program_replaces_the_first() {
    let Some((zookeeper, _client)) =
        ZooKeeper::start_with_root("a_second_goframe_program_replaces_the_first")
    else {
        return;
    };
    let first = zookeeper.program("hello.svc", 1);
    let both = follow_both(&zookeeper, LONG);
    both.wait_for("hello", &["10.0.0.1:8000"]);
    let second = zookeeper.program("hello.svc", 2);
    both.wait_for("hello", &["10.0.0.2:8000"]);
    second.stop();
    both.wait_for("hello", &[]);
    both.each(|followed| assert!(followed.knows("hello"), "its node remains"));
    // The first still runs, but has no node.
    first.stop();
    both.stop();
}

#[test]
fn ls_and_explain_say_that_a_second_program_replaces_the_first() {
    let test = "ls_and_explain_say_that_a_second_program_replaces_the_first";
    let Some((zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    let leaf = put_leaf(&client, "hello.svc", "hello.svc", 1);
    let svcdns = Svcdns::serve(&["--registry", &zookeeper.url()]);
    svcdns.wait_for("hello.svc", &["10.0.0.1"]);
    let words = "a second program of the same service replaces the first";
    for command in [&["ls"][..], &["ls", "hello"], &["explain", "hello.svc"]] {
        let text = String::from_utf8(svcdns.run(command).stdout).unwrap();
        assert!(text.contains(words), "{command:?}: {text}");
    }
    // The second program has stopped: this is what the first one sees.
    client.delete(&leaf).unwrap();
    svcdns.wait_for("hello.svc", &[]);
    for command in
        [&["ls", "hello"][..], &["explain", "hello.svc"], &["explain", "hello.svc", "SRV"]]
    {
        let text = String::from_utf8(svcdns.run(command).stdout).unwrap();
        assert!(text.contains(words), "{command:?}: {text}");
    }
    // Only where there is a key from ZooKeeper.
    let text = String::from_utf8(svcdns.run(&["explain", "unknown.svc"]).stdout).unwrap();
    assert!(!text.contains(words), "{text}");
    svcdns.stop();
}

#[test]
fn a_leaf_that_is_swapped_again_and_again_has_its_last_data() {
    let Some((zookeeper, client)) =
        ZooKeeper::start_patient("a_leaf_that_is_swapped_again_and_again_has_its_last_data")
    else {
        return;
    };
    let path = put_leaf(&client, "hello.svc", "hello.svc", 1);
    let both = follow_both_with(&patient_settings(&zookeeper), LONG);
    both.wait_for("hello", &["10.0.0.1:8000"]);
    for round in 0..40_u8 {
        // Between one and four swaps without a pause; the reads of svcdns fall in between.
        for last in round..round + 1 + round % 4 {
            client.delete(&path).unwrap();
            let data = leaf_data("hello.svc", &format!("10.0.1.{last}:8000"), HTTP);
            client.create(&path, &data, Lifetime::Ephemeral).unwrap();
        }
        let last = format!("10.0.1.{}:8000", round + round % 4);
        both.wait_for("hello", &[&last]);
    }
    both.each(|followed| assert_eq!(followed.state.report().lists, 1));
    both.stop();
}

#[test]
fn an_empty_service_node_is_a_known_name_without_records() {
    let Some((zookeeper, client)) =
        ZooKeeper::start_with_root("an_empty_service_node_is_a_known_name_without_records")
    else {
        return;
    };
    client.ensure(&folder("empty.svc"), &[Acl::world(Acl::ALL)]);
    put_leaf(&client, "hello.svc", "hello.svc", 1);
    let svcdns = Svcdns::serve(&["--registry", &zookeeper.url()]);
    svcdns.wait_for("hello.svc", &["10.0.0.1"]);
    svcdns.wait_for("empty.svc", &[]);
    svcdns.wait_for_code("unknown.svc", "NXDOMAIN");
    // A program that stops leaves such a node behind.
    let program = zookeeper.program("demo", 2);
    svcdns.wait_for("demo.svc", &["10.0.0.2"]);
    program.stop();
    svcdns.wait_for("demo.svc", &[]);
    // The name is unknown once someone deletes the node.
    client.delete(&folder("empty.svc")).unwrap();
    client.delete(&folder("demo")).unwrap();
    for name in ["empty.svc", "demo.svc"] {
        svcdns.wait_for_code(name, "NXDOMAIN");
    }
    svcdns.stop();
}

#[test]
fn junk_leaves_are_listed_and_affect_no_others() {
    let Some((zookeeper, client)) =
        ZooKeeper::start_with_root("junk_leaves_are_listed_and_affect_no_others")
    else {
        return;
    };
    let good = put_leaf(&client, "hello.svc", "hello.svc", 1);
    let folder = folder("hello.svc");
    let large = vec![b'x'; 900_000];
    let junk: [(&str, &[u8]); 7] = [
        ("not-json", b"not json"),
        ("empty", b""),
        ("no-key", br#"{"Value":"{}"}"#),
        ("few-segments", br#"{"Key":"/service/few","Value":"{}"}"#),
        (
            "bad-value",
            br#"{"Key":"/service/default/default/hello.svc/latest/10.0.0.9:80","Value":"x"}"#,
        ),
        ("binary", b"\x00\xff\xfe\x80"),
        ("large", &large),
    ];
    let reasons = [
        "leaf-not-json",
        "leaf-not-json",
        "leaf-not-json",
        "too-few-segments",
        "value-not-json",
        "leaf-not-json",
        "value-too-long",
    ];
    for (leaf, data) in junk {
        client.create(&format!("{folder}/{leaf}"), data, Lifetime::Persistent).unwrap();
    }
    // A leaf of the root, data of a service node, and a node below a leaf.
    client.create(&format!("{ROOT}/plain"), b"data", Lifetime::Persistent).unwrap();
    client.set(&folder, b"data of the service node").unwrap();
    client.create(&format!("{good}/below"), b"{}", Lifetime::Persistent).unwrap();
    let followed = follow(&zookeeper, LONG);
    followed.wait_for("hello", &["10.0.0.1:8000"]);
    followed.wait_until("the rejections", || followed.rejections().len() >= junk.len());
    let rejected = followed.rejections();
    for ((leaf, _), reason) in junk.into_iter().zip(reasons) {
        let key = format!("{folder}/{leaf}");
        assert!(rejected.contains(&(reason.to_owned(), key)), "{leaf} is not in {rejected:?}");
    }
    // A leaf that is corrected is served, and one that is removed is no longer listed.
    client.set(&format!("{folder}/empty"), &leaf_data("hello.svc", "10.0.0.2:80", "{}")).unwrap();
    followed.wait_for("hello", &["10.0.0.1:8000", "10.0.0.2:80"]);
    for (leaf, _) in junk {
        client.delete(&format!("{folder}/{leaf}")).unwrap();
    }
    followed.wait_for("hello", &["10.0.0.1:8000"]);
    followed.wait_until("no rejection of a leaf", || {
        followed.rejections().iter().all(|(_, key)| !key.contains("hello.svc/"))
    });
    followed.stop();
}

#[test]
fn a_root_that_comes_later_or_is_deleted_is_followed() {
    let test = "a_root_that_comes_later_or_is_deleted_is_followed";
    let Some(zookeeper) = ZooKeeper::start(test) else { return };
    let client = zookeeper.client();
    let both = follow_both(&zookeeper, Duration::from_millis(500));
    both.each(Followed::wait_until_synced);
    for round in 1..=3 {
        client.ensure(ROOT, &[Acl::world(Acl::ALL)]);
        let leaf = put_leaf(&client, "hello.svc", "hello.svc", round);
        both.wait_for("hello", &[&format!("10.0.0.{round}:8000")]);
        for path in [&leaf, &folder("hello.svc"), ROOT] {
            client.delete(path).unwrap();
        }
        both.each(|followed| {
            followed.wait_until("hello to be unknown", || !followed.knows("hello"));
        });
    }
    both.stop();
}

#[test]
fn another_root_is_read_and_no_other() {
    let Some((zookeeper, client)) = ZooKeeper::start_with_root("another_root_is_read_and_no_other")
    else {
        return;
    };
    put_leaf(&client, "hello.svc", "hello.svc", 1);
    for path in ["/teams", "/teams/gogf", "/teams/gogf/x", "/teams/gogf-2", "/teams/gogf-2/x"] {
        client.ensure(path, &[Acl::world(Acl::ALL)]);
    }
    for (root, last) in [("gogf", 2), ("gogf-2", 3)] {
        let data = leaf_data("hello.svc", &format!("10.0.0.{last}:8000"), HTTP);
        client.create(&format!("/teams/{root}/x/y"), &data, Lifetime::Persistent).unwrap();
    }
    let url = format!("{}/teams/gogf", zookeeper.url());
    let svcdns = Svcdns::serve(&["--registry", &url]);
    svcdns.wait_for("hello.svc", &["10.0.0.2"]);
    let data = leaf_data("later.svc", "10.0.0.4:80", HTTP);
    client.create("/teams/gogf-2/x/z", &data, Lifetime::Persistent).unwrap();
    client.create("/teams/gogf/x/z", &data, Lifetime::Persistent).unwrap();
    svcdns.wait_for("later.svc", &["10.0.0.4"]);
    svcdns.stop();
}

#[test]
fn more_names_than_fit_into_a_megabyte_are_followed() {
    let Some((zookeeper, client)) =
        ZooKeeper::start_with_root("more_names_than_fit_into_a_megabyte_are_followed")
    else {
        return;
    };
    // ZooKeeper's own clients refuse an answer of more than 1 MiB, and its servers send it.
    let name = |number: usize| format!("s{number}-{}.{}", "x".repeat(50), "y".repeat(60));
    let nodes = (0..8_000).map(|number| (folder(&name(number)), Vec::new(), Lifetime::Persistent));
    client.create_many(nodes, &[Acl::world(Acl::ALL)]);
    put_leaf(&client, &name(7_999), "leaf", 1);
    let both = follow_both(&zookeeper, LONG);
    both.wait_for(&name(7_999), &["10.0.0.1:8000"]);
    put_leaf(&client, "later", "leaf", 2);
    both.wait_for("later", &["10.0.0.2:8000"]);
    both.stop();
}

#[test]
fn tls_is_verified_and_a_mismatch_is_explained() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [folder.path(), other.path()] {
        write_certificates(folder);
    }
    let test = "tls_is_verified_and_a_mismatch_is_explained";
    let Some(zookeeper) = ZooKeeper::start_with_tls(test, folder.path(), "none") else { return };
    let client = zookeeper.client();
    client.ensure(ROOT, &[Acl::world(Acl::ALL)]);
    put_leaf(&client, "hello.svc", "hello.svc", 1);
    let with = |endpoint: SocketAddr, tls: Option<Tls>| {
        let mut settings = settings(&zookeeper);
        settings.endpoints = vec![endpoint.to_string()];
        settings.tls = tls;
        follow_with(settings, LONG)
    };
    let (plain, secure) = (zookeeper.address(0), zookeeper.secure_address(0));
    let trusting = |folder: &Path| Tls { ca_file: Some(folder.join("ca.pem")), ..Tls::default() };
    let followed = with(secure, Some(trusting(folder.path())));
    followed.wait_for("hello", &["10.0.0.1:8000"]);
    put_leaf(&client, "later", "leaf", 2);
    followed.wait_for("later", &["10.0.0.2:8000"]);
    followed.stop();
    for (endpoint, tls, expected) in [
        (secure, None, "it expects TLS"),
        (plain, Some(trusting(folder.path())), "it does not speak TLS"),
        (secure, Some(trusting(other.path())), "not signed by a trusted CA"),
    ] {
        let followed = with(endpoint, tls);
        let error = followed.wait_for_error(expected);
        assert!(error.contains(&endpoint.to_string()), "{error}");
        followed.stop();
    }
}

/// Writes a certificate for 127.0.0.1 with its key, for ZooKeeper, and its CA.
fn write_certificates(folder: &Path) {
    write_certificate(folder);
    let [certificate, key] =
        ["server.pem", "server.key"].map(|name| fs::read_to_string(folder.join(name)).unwrap());
    fs::write(folder.join("ca.pem"), &certificate).unwrap();
    fs::write(folder.join("server.pem"), format!("{certificate}{key}")).unwrap();
}

#[test]
fn a_port_without_a_server_is_reported() {
    let address = free_address().to_string();
    let followed = follow_with(Settings::new(vec![address.clone()]), LONG);
    let error = followed.wait_for_error("Connection refused");
    assert!(error.contains(&address), "{error}");
    followed.stop();
}

/// Prints the time from ZooKeeper's own notification to the answer of svcdns.
///
/// `cargo test --release --test zookeeper_registry measure -- --ignored --nocapture` runs both.
#[test]
#[ignore = "a measurement"]
fn measure_changes() {
    const CHANGES: u8 = 50;
    let Some((zookeeper, client)) = ZooKeeper::start_with_root("measure_changes") else { return };
    put_leaf(&client, "hello.svc", "hello.svc", 1);
    let svcdns = Svcdns::serve(&["--registry", &zookeeper.url()]);
    svcdns.wait_for("hello.svc", &["10.0.0.1"]);
    let notifications = zookeeper.client();
    let notifications = notifications.watch(&folder("hello.svc"));
    let (mut late, mut whole) = (Vec::new(), Vec::new());
    for last in 2..2 + CHANGES {
        // The changes come too slowly for the limit on their rate.
        thread::sleep(Duration::from_millis(500));
        while notifications.try_recv().is_ok() {}
        let start = Instant::now();
        let answered = thread::scope(|scope| {
            let answered = scope.spawn(|| {
                while dns::addresses(svcdns.address, "hello.svc").unwrap().len() < 2 {
                    thread::sleep(Duration::from_micros(200));
                }
                Instant::now()
            });
            let path = put_leaf(&client, "hello.svc", "second", last);
            let answered = answered.join().unwrap();
            let notified = notifications.recv_timeout(SOON).unwrap();
            late.push(answered.saturating_duration_since(notified));
            client.delete(&path).unwrap();
            answered
        });
        whole.push(answered - start);
        svcdns.wait_for("hello.svc", &["10.0.0.1"]);
    }
    for (what, mut times) in
        [("ZooKeeper's notification", late), ("the call that creates the node", whole)]
    {
        times.sort();
        println!(
            "From {what} to the answer: median {:?}, p90 {:?}, longest {:?}",
            times[times.len() / 2],
            times[times.len() * 9 / 10],
            times[times.len() - 1]
        );
    }
}

/// Prints how long the instance of a dead program stays with ZooKeeper's and GoFrame's defaults.
#[test]
#[ignore = "a measurement"]
fn measure_the_death_of_a_program() {
    let test = "measure_the_death_of_a_program";
    let Some(zookeeper) = ZooKeeper::start_with(test, "tickTime=2000\n") else { return };
    zookeeper.client().ensure(ROOT, &[Acl::world(Acl::ALL)]);
    let svcdns = Svcdns::serve(&["--registry", &zookeeper.url()]);
    for round in 1..=3 {
        let program = zookeeper.program("hello.svc", round);
        svcdns.wait_for("hello.svc", &[&format!("10.0.0.{round}")]);
        thread::sleep(seconds(5));
        let died = Instant::now();
        drop(program);
        svcdns.wait_for("hello.svc", &[]);
        println!("After {:?}, the instance of the dead program is gone", died.elapsed());
    }
    svcdns.stop();
}

/// Prints start, memory and the idle load with 10,000 services of one instance.
#[test]
#[ignore = "a measurement"]
fn measure_many_services() {
    const SERVICES: usize = 10_000;
    const IDLE: Duration = seconds(30);
    let Some((zookeeper, _)) = ZooKeeper::start_with_root("measure_many_services") else { return };
    let programs = zookeeper.client();
    let name = |number: usize| format!("service-{number}.svc");
    let nodes = (0..SERVICES).flat_map(|number| {
        let (folder, name) = (folder(&name(number)), name(number));
        let data = leaf_data(&name, "10.0.0.1:8000", HTTP);
        let leaf = (format!("{folder}/{name}"), data, Lifetime::Ephemeral);
        [(folder, Vec::new(), Lifetime::Persistent), leaf]
    });
    programs.create_many(nodes, &[Acl::world(Acl::ALL)]);
    thread::sleep(seconds(5));
    let percent = |used: Duration| used.as_secs_f64() * 100.0 / IDLE.as_secs_f64();
    let before = zookeeper.process(0).cpu_time();
    thread::sleep(IDLE);
    let idle = zookeeper.process(0).cpu_time().saturating_sub(before);
    println!("Without svcdns: ZooKeeper uses {:.2} % of a core", percent(idle));
    for _ in 0..3 {
        let before = zookeeper.process(0).cpu_time();
        let start = Instant::now();
        let svcdns = Svcdns::serve(&["--registry", &zookeeper.url()]);
        svcdns.wait_for(&name(0), &["10.0.0.1"]);
        let first = start.elapsed();
        for number in (0..SERVICES).step_by(97).chain([SERVICES - 1]) {
            svcdns.wait_for(&name(number), &["10.0.0.1"]);
        }
        svcdns.wait_for_code("unknown.svc", "NXDOMAIN");
        println!(
            "first answer after {first:?}, all read after {:?}; {} KiB resident; ZooKeeper used \
             {:?} of processor time",
            start.elapsed(),
            svcdns.resident_kib(),
            zookeeper.process(0).cpu_time().saturating_sub(before)
        );
        thread::sleep(seconds(5));
        let own = || processor_time(svcdns.pid());
        let before = [zookeeper.process(0).cpu_time(), own()];
        thread::sleep(IDLE);
        let after = [zookeeper.process(0).cpu_time(), own()];
        let [server, ours] =
            [0, 1].map(|index| percent(after[index].saturating_sub(before[index])));
        println!(
            "With svcdns idle: ZooKeeper uses {server:.2} % of a core, svcdns {ours:.2} %; {} KiB \
             resident, {} watches",
            svcdns.resident_kib(),
            zookeeper.figure(0, "zk_watch_count")
        );
        svcdns.stop();
    }
    programs.close();
}
