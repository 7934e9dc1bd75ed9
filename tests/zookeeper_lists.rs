//! The ZooKeeper registry: lists beside changes, and nodes that may not be read.

#![cfg(feature = "zookeeper")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::followed::Followed;
use support::svcdns::Svcdns;
use support::zookeeper::client::{Acl, Client, Lifetime};
use support::zookeeper::following::{
    follow_both, follow_both_with, follow_with, patient_settings, settings,
};
use support::zookeeper::{HTTP, ROOT, ZooKeeper, folder, leaf_data, put_leaf};
use support::{SOON, dns, eventually, seconds, throughout};
use svcdns::registry::zookeeper::{DigestLogin, Settings};
use svcdns::registry::{Credential, Secret};
use svcdns::service::ListKind;

/// Longer than any test: what happens earlier has another reason.
const LONG: Duration = seconds(3600);

/// An interval so short that there are many lists, or attempts, in each test.
const OFTEN: Duration = Duration::from_millis(30);

/// Creates many services of one leaf each, which end with this session.
fn register_many(programs: &Client, services: usize) {
    let nodes = (0..services).flat_map(|number| {
        let (name, address) = (format!("s{number}"), format!("10.0.1.{}:80", number % 250));
        let leaf = (format!("{}/leaf", folder(&name)), leaf_data(&name, &address, HTTP));
        [(folder(&name), Vec::new(), Lifetime::Persistent), (leaf.0, leaf.1, Lifetime::Ephemeral)]
    });
    programs.create_many(nodes, &[Acl::world(Acl::ALL)]);
}

/// Returns how many of these services have an instance.
fn served(followed: &Followed, services: usize) -> usize {
    (0..services).filter(|number| !followed.instances(&format!("s{number}")).is_empty()).count()
}

#[test]
fn a_mass_expiry_during_a_routine_list_is_held() {
    const SERVICES: usize = 40;
    let test = "a_mass_expiry_during_a_routine_list_is_held";
    let Some((zookeeper, _client)) = ZooKeeper::start_with_root(test) else { return };
    let programs = zookeeper.client();
    register_many(&programs, SERVICES);
    // With one read at a time and without a pause, there is a list nearly all the time.
    let mut settings = settings(&zookeeper);
    settings.tuning.max_reads = 1;
    settings.tuning.relist_interval = Duration::from_millis(1);
    let both = follow_both_with(&settings, LONG);
    both.each(|followed| {
        followed.wait_until("all services", || served(followed, SERVICES) == SERVICES);
        followed.wait_for_report("several lists", |report| report.lists > 2);
    });
    programs.close();
    both.each(|followed| {
        followed.wait_until("all services to be held", || {
            followed.catalog(|catalog| catalog.stats().registries[0].held) == SERVICES
        });
        let before = followed.state.report().lists;
        followed.wait_for_report("a later list", |report| report.lists > before + 2);
        assert_eq!(served(followed, SERVICES), SERVICES, "they are still served");
    });
    both.stop();
}

#[test]
fn routine_lists_beside_changes_lose_nothing() {
    let test = "routine_lists_beside_changes_lose_nothing";
    let Some((zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    let programs = zookeeper.client();
    register_many(&programs, 20);
    let path = put_leaf(&client, "hello.svc", "hello.svc", 1);
    let mut settings = settings(&zookeeper);
    settings.tuning.relist_interval = OFTEN;
    let both = follow_both_with(&settings, LONG);
    both.wait_for("hello", &["10.0.0.1:8000"]);
    for round in 0..60_u8 {
        for last in round..=round + round % 4 {
            client.delete(&path).unwrap();
            let data = leaf_data("hello.svc", &format!("10.0.2.{last}:8000"), HTTP);
            client.create(&path, &data, Lifetime::Ephemeral).unwrap();
        }
        both.wait_for("hello", &[&format!("10.0.2.{}:8000", round + round % 4)]);
        both.each(|followed| {
            assert_eq!(served(followed, 20), 20);
            assert_eq!(followed.catalog(|catalog| catalog.stats().registries[0].held), 0);
        });
    }
    both.each(|followed| {
        followed.wait_for_report("several lists", |report| report.lists > 5);
    });
    programs.close();
    both.stop();
}

#[test]
fn a_routine_list_that_breaks_off_removes_nothing() {
    const SERVICES: usize = 200;
    let test = "a_routine_list_that_breaks_off_removes_nothing";
    let Some((mut zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    for number in 0..SERVICES {
        put_leaf(&client, &format!("s{number}"), "leaf", 1);
    }
    let mut settings = settings(&zookeeper);
    settings.tuning.max_reads = 1;
    settings.tuning.relist_interval = Duration::from_millis(1);
    let both = follow_both_with(&settings, LONG);
    for round in 2..5 {
        both.each(|followed| {
            followed.wait_until("all services", || served(followed, SERVICES) == SERVICES);
            let before = followed.state.report().lists;
            followed.wait_for_report("a list", |report| report.connected && report.lists > before);
        });
        zookeeper.kill();
        both.each(|followed| {
            followed.wait_for_report("disconnected", |report| !report.connected);
            assert_eq!(served(followed, SERVICES), SERVICES);
        });
        zookeeper.start_all();
        put_leaf(&client, "later", &format!("leaf-{round}"), round);
        both.each(|followed| {
            followed.wait_until("the change after the outage", || {
                followed.instances("later").contains(&format!("10.0.0.{round}:8000"))
            });
        });
    }
    both.each(|followed| {
        assert_eq!(served(followed, SERVICES), SERVICES);
        assert!(!followed.kinds().contains(&ListKind::Restored), "{:?}", followed.kinds());
    });
    both.stop();
}

#[test]
fn steady_changes_delay_neither_lists_nor_attempts() {
    let test = "steady_changes_delay_neither_lists_nor_attempts";
    let Some((zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    let paths: Vec<_> =
        (0..4).map(|number| put_leaf(&client, &format!("s{number}"), "leaf", 1)).collect();
    put_leaf(&client, "guarded", "leaf", 2);
    client.set_acl(&folder("guarded"), &[Acl::digest("programs:s3cret", Acl::ALL)]).unwrap();
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        for path in &paths {
            let (client, ends) = (zookeeper.client(), &ends);
            scope.spawn(move || {
                let data = leaf_data("busy", "10.0.0.1:8000", HTTP);
                while !ends.load(Ordering::Relaxed) {
                    client.set(path, &data).unwrap();
                }
            });
        }
        // One read at a time takes longer than a change.
        let mut listing = settings(&zookeeper);
        listing.tuning.max_reads = 1;
        let mut retrying = listing.clone();
        listing.tuning.relist_interval = OFTEN;
        retrying.tuning.retry_interval = OFTEN;
        let listing = follow_with(listing, LONG);
        let retrying = follow_with(retrying, LONG);
        listing.wait_for_report("several lists", |report| report.lists > 3);
        retrying.wait_for_error(&folder("guarded"));
        let admin = Client::connect_as(&zookeeper.addresses(), &["programs:s3cret"]);
        admin.set_acl(&folder("guarded"), &[Acl::world(Acl::ALL)]).unwrap();
        retrying.wait_for("guarded", &["10.0.0.2:8000"]);
        ends.store(true, Ordering::Relaxed);
        listing.stop();
        retrying.stop();
    });
}

#[test]
fn a_session_ends_with_its_follower() {
    let test = "a_session_ends_with_its_follower";
    let Some((zookeeper, _client)) = ZooKeeper::start_patient(test) else { return };
    let sessions = || zookeeper.figure(0, "zk_global_sessions");
    let before = sessions();
    let both = follow_both_with(&patient_settings(&zookeeper), LONG);
    both.each(Followed::wait_until_synced);
    assert!(sessions() >= before + 2);
    both.stop();
    eventually("the end of the sessions", SOON, || (sessions() == before).then_some(()));
}

// Nodes that may not be read

/// Settings with a user whose password is given.
fn with_password(zookeeper: &ZooKeeper, user: &str, password: &str) -> Settings {
    let mut settings = settings(zookeeper);
    settings.login = Some(DigestLogin {
        user: user.to_owned(),
        password: Credential::Given(Secret::from(password)),
        keys: "zookeeper.username and zookeeper.password-file".to_owned(),
    });
    settings
}

#[test]
fn the_right_to_read_is_enough() {
    let Some((zookeeper, client)) = ZooKeeper::start_with_root("the_right_to_read_is_enough")
    else {
        return;
    };
    // `world:anyone` may read one service, and a user the other one.
    let reader = Acl::digest("svcdns:read-s3cret", Acl::READ);
    let writer = Acl::digest("programs:write-s3cret", Acl::ALL);
    let writing = Client::connect_as(&zookeeper.addresses(), &["programs:write-s3cret"]);
    client.set_acl(ROOT, &[writer.clone(), Acl::world(Acl::READ)]).unwrap();
    for (name, last, acl) in [
        ("open.svc", 1, vec![writer.clone(), Acl::world(Acl::READ)]),
        ("guarded.svc", 2, vec![writer, reader]),
    ] {
        writing.ensure(&folder(name), &acl);
        let data = leaf_data(name, &format!("10.0.0.{last}:8000"), HTTP);
        let path = format!("{}/{name}", folder(name));
        writing.create_with(&path, &data, Lifetime::Ephemeral, &acl).unwrap();
    }
    let followed = follow_with(with_password(&zookeeper, "svcdns", "read-s3cret"), LONG);
    followed.wait_for("open", &["10.0.0.1:8000"]);
    followed.wait_for("guarded", &["10.0.0.2:8000"]);
    assert!(followed.state.report().error.is_none(), "{:?}", followed.state.report());
    followed.stop();

    // Without a password, or with a wrong one, the other services are followed.
    for settings in [settings(&zookeeper), with_password(&zookeeper, "svcdns", "wr0ng-s3cret")] {
        let followed = follow_with(settings, LONG);
        followed.wait_for("open", &["10.0.0.1:8000"]);
        let error = followed.wait_for_error(&folder("guarded.svc"));
        assert!(!error.contains("s3cret"), "{error}");
        assert!(followed.instances("guarded").is_empty());
        let data = leaf_data("open.svc", "10.0.0.3:8000", HTTP);
        let path = format!("{}/open.svc", folder("open.svc"));
        let acl = [Acl::digest("programs:write-s3cret", Acl::ALL), Acl::world(Acl::READ)];
        writing.delete(&path).unwrap();
        writing.create_with(&path, &data, Lifetime::Ephemeral, &acl).unwrap();
        followed.wait_for("open", &["10.0.0.3:8000"]);
        let data = leaf_data("open.svc", "10.0.0.1:8000", HTTP);
        writing.set(&path, &data).unwrap();
        followed.wait_for("open", &["10.0.0.1:8000"]);
        followed.stop();
    }
}

#[test]
fn a_root_that_may_not_be_read_is_reported_and_not_treated_as_empty() {
    let test = "a_root_that_may_not_be_read_is_reported_and_not_treated_as_empty";
    let Some((mut zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    put_leaf(&client, "hello.svc", "hello.svc", 1);
    let svcdns = Svcdns::serve(&["--registry", &zookeeper.url(), "--removal-grace", "1s"]);
    svcdns.wait_for("hello.svc", &["10.0.0.1"]);
    client.set_acl(ROOT, &[Acl::digest("programs:s3cret", Acl::ALL)]).unwrap();
    zookeeper.kill();
    zookeeper.start_all();
    eventually("the refusal", SOON, || {
        let text = String::from_utf8(svcdns.run(&["status"]).stdout).unwrap();
        text.contains(&format!("cannot list {ROOT}: permission denied")).then_some(())
    });
    throughout("the service stays", Instant::now(), seconds(4), || {
        dns::addresses(svcdns.address, "hello.svc") == Ok(vec!["10.0.0.1".parse().unwrap()])
    });
    // A server that starts now knows nothing, and says so.
    let other = Svcdns::serve(&["--registry", &zookeeper.url()]);
    other.wait_for_code("hello.svc", "SERVFAIL");
    other.stop();
    let admin = Client::connect_as(&zookeeper.addresses(), &["programs:s3cret"]);
    admin.set_acl(ROOT, &[Acl::world(Acl::ALL)]).unwrap();
    put_leaf(&admin, "later.svc", "later.svc", 2);
    svcdns.wait_for("later.svc", &["10.0.0.2"]);
    svcdns.stop();
}

#[test]
fn a_service_that_may_no_longer_be_read_stays_until_it_may() {
    let test = "a_service_that_may_no_longer_be_read_stays_until_it_may";
    let Some((mut zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    let leaf = put_leaf(&client, "hello.svc", "hello.svc", 1);
    let gone = put_leaf(&client, "gone.svc", "gone.svc", 2);
    let both = follow_both(&zookeeper, Duration::from_millis(500));
    both.wait_for("hello", &["10.0.0.1:8000"]);
    both.wait_for("gone", &["10.0.0.2:8000"]);
    client.set_acl(&folder("hello.svc"), &[Acl::digest("programs:s3cret", Acl::ALL)]).unwrap();
    zookeeper.kill();
    zookeeper.start_all();
    both.each(|followed| {
        followed.wait_for_error(&folder("hello.svc"));
    });
    // The list of other services still tells what is gone.
    client.delete(&gone).unwrap();
    client.delete(&folder("gone.svc")).unwrap();
    both.each(|followed| {
        followed.wait_until("the other service to be unknown", || !followed.knows("gone"));
        throughout("the service stays", Instant::now(), seconds(2), || {
            followed.instances("hello").len() == 1
        });
    });
    let admin = Client::connect_as(&zookeeper.addresses(), &["programs:s3cret"]);
    admin.set_acl(&folder("hello.svc"), &[Acl::world(Acl::ALL)]).unwrap();
    admin.delete(&leaf).unwrap();
    put_leaf(&admin, "hello.svc", "other-leaf", 3);
    both.wait_for("hello", &["10.0.0.3:8000"]);
    both.each(|followed| {
        followed.wait_for_report("no error", |report| report.error.is_none());
    });
    both.stop();
}

#[test]
fn secrets_appear_in_no_output() {
    let Some((zookeeper, client)) = ZooKeeper::start_with_root("secrets_appear_in_no_output")
    else {
        return;
    };
    client.set_acl(ROOT, &[Acl::digest("programs:other", Acl::ALL)]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "hunter2-of-the-test\n").unwrap();
    let file = file.to_str().unwrap();
    let url = zookeeper.url();
    let login = ["--zookeeper-username", "svcdns", "--zookeeper-password-file", file];
    let svcdns = Svcdns::serve(&[&["--registry", &url, "--log", "trace"], &login[..]].concat());
    eventually("the refusal", SOON, || {
        svcdns.log().contains("zookeeper.password-file").then_some(())
    });
    let status = String::from_utf8(svcdns.run(&["status", "--json"]).stdout).unwrap();
    let log = svcdns.log();
    assert!(!log.contains("hunter2") && !status.contains("hunter2"), "{log}{status}");
    svcdns.stop();
}

#[test]
fn every_unreadable_node_is_tried_again() {
    let test = "every_unreadable_node_is_tried_again";
    let Some((zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    let guarded = [Acl::digest("programs:s3cret", Acl::ALL)];
    let nodes = (0..250).map(|number| (folder(&format!("a{number}")), Vec::new()));
    client.create_many(nodes.map(|(path, data)| (path, data, Lifetime::Persistent)), &guarded);
    put_leaf(&client, "zz", "leaf", 1);
    client.set_acl(&folder("zz"), &guarded).unwrap();
    let mut settings = settings(&zookeeper);
    settings.tuning.retry_interval = OFTEN;
    let both = follow_both_with(&settings, LONG);
    both.each(|followed| {
        followed.wait_for_error("(and 250 more nodes)");
    });
    let admin = Client::connect_as(&zookeeper.addresses(), &["programs:s3cret"]);
    admin.set_acl(&folder("zz"), &[Acl::world(Acl::ALL)]).unwrap();
    both.wait_for("zz", &["10.0.0.1:8000"]);
    both.stop();
}

#[test]
fn unreadable_leaves_that_come_and_go_need_no_list() {
    let test = "unreadable_leaves_that_come_and_go_need_no_list";
    let Some((zookeeper, client)) = ZooKeeper::start_patient(test) else { return };
    put_leaf(&client, "hello.svc", "hello.svc", 1);
    let admin = Client::connect_as(&zookeeper.addresses(), &["programs:s3cret"]);
    let mut settings = patient_settings(&zookeeper);
    settings.tuning.retry_interval = OFTEN;
    // A recursive watch of ZooKeeper 3.8 does not report such leaves.
    settings.tuning.one_shot_watches = true;
    let followed = follow_with(settings, LONG);
    followed.wait_for("hello", &["10.0.0.1:8000"]);
    for round in 2..6 {
        let leaf = format!("{}/leaf-{round}", folder("hello.svc"));
        let endpoint = format!("10.0.0.{round}:8000");
        let data = leaf_data("hello.svc", &endpoint, HTTP);
        let guarded = [Acl::digest("programs:s3cret", Acl::ALL)];
        admin.create_with(&leaf, &data, Lifetime::Persistent, &guarded).unwrap();
        followed.wait_for_error(&leaf);
        if round % 2 == 0 {
            admin.set_acl(&leaf, &[Acl::world(Acl::ALL)]).unwrap();
            followed.wait_for("hello", &["10.0.0.1:8000", &endpoint]);
        }
        admin.delete(&leaf).unwrap();
        followed.wait_for_report("no error", |report| report.error.is_none());
        followed.wait_for("hello", &["10.0.0.1:8000"]);
    }
    assert_eq!(followed.state.report().lists, 1, "{:?}", followed.state.report());
    followed.stop();
}

#[test]
fn a_root_that_may_no_longer_be_listed_ends_no_session() {
    let test = "a_root_that_may_no_longer_be_listed_ends_no_session";
    let Some((zookeeper, client)) = ZooKeeper::start_patient(test) else { return };
    put_leaf(&client, "hello.svc", "hello.svc", 1);
    let mut settings = patient_settings(&zookeeper);
    settings.tuning.relist_interval = OFTEN;
    let both = follow_both_with(&settings, LONG);
    both.wait_for("hello", &["10.0.0.1:8000"]);
    client.set_acl(ROOT, &[Acl::digest("programs:s3cret", Acl::ALL)]).unwrap();
    both.each(|followed| {
        followed.wait_for_error(&format!("cannot list {ROOT}: permission denied"));
    });
    for last in 2..5 {
        let path = format!("{}/second", folder("hello.svc"));
        let endpoint = format!("10.0.0.{last}:8000");
        let data = leaf_data("hello.svc", &endpoint, HTTP);
        client.create(&path, &data, Lifetime::Persistent).unwrap();
        both.wait_for("hello", &["10.0.0.1:8000", &endpoint]);
        client.delete(&path).unwrap();
        both.wait_for("hello", &["10.0.0.1:8000"]);
    }
    let admin = Client::connect_as(&zookeeper.addresses(), &["programs:s3cret"]);
    admin.set_acl(ROOT, &[Acl::world(Acl::ALL)]).unwrap();
    put_leaf(&client, "later", "leaf", 9);
    both.wait_for("later", &["10.0.0.9:8000"]);
    both.each(|followed| {
        followed.wait_for_report("no error", |report| report.error.is_none());
        assert_eq!(followed.kinds(), [ListKind::Routine].into(), "one session");
    });
    both.stop();
}

#[test]
fn services_that_may_not_be_read_are_known_names_without_records() {
    let test = "services_that_may_not_be_read_are_known_names_without_records";
    let Some((zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    let guarded = [Acl::digest("programs:s3cret", Acl::ALL)];
    client.ensure(&folder("folder.svc"), &guarded);
    client.ensure(&folder("leaf.svc"), &[Acl::world(Acl::ALL)]);
    let leaf = format!("{}/leaf.svc", folder("leaf.svc"));
    client.create_with(&leaf, b"{}", Lifetime::Ephemeral, &guarded).unwrap();
    put_leaf(&client, "hello.svc", "hello.svc", 1);
    let svcdns = Svcdns::serve(&["--registry", &zookeeper.url()]);
    svcdns.wait_for("hello.svc", &["10.0.0.1"]);
    for name in ["folder.svc", "leaf.svc"] {
        svcdns.wait_for_code(name, "NOERROR");
    }
    svcdns.wait_for_code("unknown.svc", "NXDOMAIN");
    svcdns.stop();
}
