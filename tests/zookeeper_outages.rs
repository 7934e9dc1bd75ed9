//! The ZooKeeper registry while servers fail: alone and as an ensemble.
//!
//! Servers are killed, stalled and wiped, and sessions expire, those of `register` too.

#![cfg(feature = "zookeeper")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::dns::Prober;
use support::followed::Followed;
use support::process::Process;
use support::svcdns::{Svcdns, command};
use support::zookeeper::client::{Acl, Client, Code};
use support::zookeeper::following::{follow, follow_both, follow_with, settings};
use support::zookeeper::{EXPIRY, HTTP, ROOT, ZooKeeper, folder, leaf_data, put_leaf};
use support::{SOON, dns, eventually, seconds, throughout};
use svcdns::service::ListKind;

/// Longer than any test: what happens earlier has another reason.
const LONG: Duration = seconds(3600);

#[test]
fn an_outage_withdraws_nothing() {
    let Some((mut zookeeper, client)) = ZooKeeper::start_with_root("an_outage_withdraws_nothing")
    else {
        return;
    };
    let programs = [("hello.svc", 1), ("demo", 2)];
    let programs = programs.map(|(name, last)| zookeeper.program(name, last));
    let both = follow_both(&zookeeper, LONG);
    both.wait_for("demo", &["10.0.0.2:8000"]);
    for round in 3..6 {
        // The sessions outlive the outage, and the watches do not.
        zookeeper.kill();
        both.each(|followed| {
            followed.wait_for_report("disconnected", |report| {
                !report.connected && report.error.is_some()
            });
            assert_eq!(followed.instances("hello").len(), 1);
        });
        zookeeper.start_all();
        put_leaf(&client, "later", &format!("leaf-{round}"), round);
        both.each(|followed| {
            followed.wait_until("the change after the outage", || {
                followed.instances("later").contains(&format!("10.0.0.{round}:8000"))
            });
        });
        both.wait_for("hello", &["10.0.0.1:8000"]);
        both.each(|followed| {
            followed
                .wait_for_report("recovered", |report| report.connected && report.error.is_none());
        });
    }
    both.each(|followed| {
        assert_eq!(followed.kinds(), [ListKind::Routine, ListKind::Reconnect].into());
    });
    drop(programs);
    both.stop();
}

#[test]
fn reconnecting_leaves_no_watches_behind() {
    let test = "reconnecting_leaves_no_watches_behind";
    let Some(mut zookeeper) = ZooKeeper::start_ensemble(test, 3) else { return };
    let client = zookeeper.client();
    client.ensure(ROOT, &[Acl::world(Acl::ALL)]);
    for number in 0..20 {
        put_leaf(&client, &format!("s{number}"), "leaf", 1);
    }
    let both = follow_both(&zookeeper, LONG);
    both.each(Followed::wait_until_synced);
    let watches = |zookeeper: &ZooKeeper| -> u64 {
        (0..3).map(|member| zookeeper.figure(member, "zk_watch_count")).sum()
    };
    let before = eventually("watches", SOON, || {
        let count = watches(&zookeeper);
        (count > 0).then_some(count)
    });
    for round in 2..6 {
        for member in 0..3 {
            zookeeper.kill_member(member);
            zookeeper.start_member(member);
        }
        put_leaf(&client, "s0", &format!("leaf-{round}"), round);
        both.each(|followed| {
            followed.wait_until("the change", || {
                followed.instances("s0").contains(&format!("10.0.0.{round}:8000"))
            });
        });
    }
    // One-shot watches also have one for each new leaf.
    eventually(&format!("no more than {before} watches, and 4"), SOON, || {
        (watches(&zookeeper) <= before + 4).then_some(())
    });
    both.stop();
}

#[test]
fn the_members_of_an_ensemble_may_be_killed_in_turn() {
    let test = "the_members_of_an_ensemble_may_be_killed_in_turn";
    let Some(mut zookeeper) = ZooKeeper::start_ensemble(test, 3) else { return };
    let client = zookeeper.client();
    client.ensure(ROOT, &[Acl::world(Acl::ALL)]);
    let _stays = zookeeper.program("stays.svc", 1);
    let svcdns = Svcdns::serve(&["--registry", &zookeeper.url()]);
    svcdns.wait_for("stays.svc", &["10.0.0.1"]);
    let prober = Prober::start(svcdns.address, "stays.svc");
    for member in 0..3 {
        zookeeper.kill_member(member);
        let name = format!("without-{member}.svc");
        put_leaf(&client, &name, &name, 2);
        svcdns.wait_for(&name, &["10.0.0.2"]);
        zookeeper.start_member(member);
    }
    // Without a majority, the last member closes all connections.
    zookeeper.kill_member(0);
    zookeeper.kill_member(1);
    let is_stale = || {
        let answer = dns::dig(svcdns.address, &["stays.svc"]);
        answer.contains("EDE: 3 ") && answer.contains("10.0.0.1")
    };
    eventually("stale answers", SOON, || is_stale().then_some(()));
    throughout("answers stay stale", Instant::now(), seconds(3), is_stale);
    zookeeper.start_member(1);
    put_leaf(&client, "again.svc", "again.svc", 3);
    svcdns.wait_for("again.svc", &["10.0.0.3"]);
    eventually("answers that are not stale", SOON, || (!is_stale()).then_some(()));
    prober.expect_no_loss();
    svcdns.stop();
}

#[test]
fn another_member_is_used_when_one_stalls() {
    let test = "another_member_is_used_when_one_stalls";
    let Some(zookeeper) = ZooKeeper::start_ensemble(test, 3) else { return };
    let others = [zookeeper.address(1), zookeeper.address(2)];
    let client = Client::connect(&others);
    client.ensure(ROOT, &[Acl::world(Acl::ALL)]);
    put_leaf(&client, "hello.svc", "hello.svc", 1);
    let leader = (0..3).find(|member| zookeeper.ask(*member, "srvr").contains("Mode: leader"));
    for member in (0..3).filter(|member| Some(*member) != leader) {
        let mut settings = settings(&zookeeper);
        settings.endpoints.swap(0, member);
        let followed = follow_with(settings, LONG);
        followed.wait_for("hello", &["10.0.0.1:8000"]);
        zookeeper.stall(member);
        let writer = (0..3).find(|other| *other != member).unwrap();
        let client = Client::connect(&[zookeeper.address(writer)]);
        let path = put_leaf(&client, "hello.svc", "second", 2);
        followed.wait_for("hello", &["10.0.0.1:8000", "10.0.0.2:8000"]);
        client.delete(&path).unwrap();
        followed.wait_for("hello", &["10.0.0.1:8000"]);
        zookeeper.resume(member);
        followed.stop();
    }
}

#[test]
fn the_services_of_a_wiped_server_are_held_until_they_are_back() {
    let test = "the_services_of_a_wiped_server_are_held_until_they_are_back";
    let Some((mut zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    // The new store begins with lower transaction numbers than these.
    for last in 1..=20 {
        put_leaf(&client, &format!("s{last}"), "leaf", last);
    }
    let followed = follow(&zookeeper, LONG);
    let all = || (1..=20).all(|last| followed.instances(&format!("s{last}")).len() == 1);
    followed.wait_until("all services", all);
    zookeeper.wipe();
    zookeeper.start_all();
    let held = || followed.catalog(|catalog| catalog.stats().registries[0].held);
    followed.wait_until("all to be held", || held() == 20);
    assert!(all(), "they are still served");
    let client = zookeeper.client();
    client.ensure(ROOT, &[Acl::world(Acl::ALL)]);
    put_leaf(&client, "s1", "leaf", 1);
    put_leaf(&client, "new", "leaf", 99);
    followed.wait_for("new", &["10.0.0.99:8000"]);
    followed.wait_until("all but the first to be held", || held() == 19);
    assert!(all(), "they are still served");
    followed.stop();
}

#[test]
fn the_services_of_a_wiped_server_go_after_the_grace() {
    let test = "the_services_of_a_wiped_server_go_after_the_grace";
    let Some((mut zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    put_leaf(&client, "hello.svc", "hello.svc", 1);
    let followed = follow(&zookeeper, seconds(2));
    followed.wait_for("hello", &["10.0.0.1:8000"]);
    zookeeper.wipe();
    zookeeper.start_all();
    followed.wait_until("hello to be unknown", || !followed.knows("hello"));
    followed.stop();
}

#[test]
fn an_instance_stays_until_the_session_of_its_dead_program_expires() {
    let test = "an_instance_stays_until_the_session_of_its_dead_program_expires";
    let Some((zookeeper, _client)) = ZooKeeper::start_with_root(test) else { return };
    let [lives, dies] =
        [("lives.svc", 1), ("dies.svc", 2)].map(|(name, last)| zookeeper.program(name, last));
    let svcdns = Svcdns::serve(&["--registry", &zookeeper.url()]);
    svcdns.wait_for("dies.svc", &["10.0.0.2"]);
    let died = Instant::now();
    drop(dies);
    // The server has counted from the last ping of the program, a third of a session ago at most.
    throughout("the instance stays", died, EXPIRY / 2, || {
        dns::addresses(svcdns.address, "dies.svc").is_ok_and(|found| found.len() == 1)
    });
    svcdns.wait_for("dies.svc", &[]);
    svcdns.wait_for("lives.svc", &["10.0.0.1"]);
    lives.stop();
    svcdns.stop();
}

#[test]
fn many_sessions_that_expire_together_are_held() {
    let Some((zookeeper, _client)) =
        ZooKeeper::start_with_root("many_sessions_that_expire_together_are_held")
    else {
        return;
    };
    let name = |last: u8| format!("s{last}");
    let start_all =
        || (1..=20).map(|last| zookeeper.program(&name(last), last)).collect::<Vec<_>>();
    let programs = start_all();
    let followed = follow(&zookeeper, LONG);
    let all = || (1..=20).all(|last| followed.instances(&name(last)).len() == 1);
    followed.wait_until("all services", all);
    drop(programs);
    followed.wait_until("held instances", || {
        followed.catalog(|catalog| catalog.stats().registries[0].held) >= 10
    });
    let programs = start_all();
    followed.wait_until("all services, none held", || {
        all() && followed.catalog(|catalog| catalog.stats().registries[0].held) == 0
    });
    drop(programs);
    followed.stop();
}

#[test]
fn changes_while_the_session_of_a_stopped_svcdns_expires_are_seen() {
    let test = "changes_while_the_session_of_a_stopped_svcdns_expires_are_seen";
    let Some((zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    let gone = put_leaf(&client, "gone.svc", "gone.svc", 1);
    let changed = put_leaf(&client, "changed.svc", "changed.svc", 2);
    let svcdns = Svcdns::serve(&["--registry", &zookeeper.url()]);
    svcdns.wait_for("gone.svc", &["10.0.0.1"]);
    let sessions = |zookeeper: &ZooKeeper| zookeeper.figure(0, "zk_global_sessions");
    let before = sessions(&zookeeper);
    svcdns.signal(Signal::SIGSTOP);
    eventually("the end of the session of svcdns", SOON, || {
        (sessions(&zookeeper) < before).then_some(())
    });
    client.delete(&gone).unwrap();
    client.set(&changed, &leaf_data("changed.svc", "10.0.0.3:8000", HTTP)).unwrap();
    put_leaf(&client, "new.svc", "new.svc", 4);
    svcdns.signal(Signal::SIGCONT);
    svcdns.wait_for("new.svc", &["10.0.0.4"]);
    svcdns.wait_for("changed.svc", &["10.0.0.3"]);
    svcdns.wait_for("gone.svc", &[]);
    // The new session has watches, too.
    put_leaf(&client, "later.svc", "later.svc", 5);
    svcdns.wait_for("later.svc", &["10.0.0.5"]);
    svcdns.stop();
}

#[test]
fn a_stalled_server_is_noticed_and_followed_again() {
    let Some((zookeeper, client)) =
        ZooKeeper::start_with_root("a_stalled_server_is_noticed_and_followed_again")
    else {
        return;
    };
    put_leaf(&client, "hello.svc", "hello.svc", 1);
    let followed = follow(&zookeeper, LONG);
    followed.wait_for("hello", &["10.0.0.1:8000"]);
    zookeeper.stall(0);
    followed.wait_for_report("disconnected", |report| !report.connected && report.error.is_some());
    let error = followed.state.report().error.unwrap();
    assert!(error.contains(&zookeeper.address(0).to_string()), "{error}");
    assert_eq!(followed.instances("hello").len(), 1);
    zookeeper.resume(0);
    followed.wait_for_report("recovered", |report| report.connected && report.error.is_none());
    put_leaf(&client, "hello.svc", "second", 2);
    followed.wait_for("hello", &["10.0.0.1:8000", "10.0.0.2:8000"]);
    followed.stop();
}

// Registering

/// Starts `svcdns register`.
fn register(zookeeper: &ZooKeeper, arguments: &[&str]) -> Process {
    let mut command = command();
    command.arg("register").args(arguments).args(["--registry", &zookeeper.url()]);
    Process::start(&mut command)
}

/// Waits until a service has this leaf, and returns its session.
fn wait_for_leaf(client: &Client, name: &str, expected: &[u8]) -> i64 {
    let path = format!("{}/{name}", folder(name));
    eventually(&format!("the leaf {path}"), SOON, || {
        let node = client.get(&path).ok()?;
        (node.data == expected).then_some(node.owner)
    })
}

#[test]
fn register_writes_goframes_form_and_deletes_it_at_the_end() {
    let test = "register_writes_goframes_form_and_deletes_it_at_the_end";
    let Some(zookeeper) = ZooKeeper::start(test) else { return };
    let client = zookeeper.client();
    let arguments = ["hello.svc", "10.0.0.1:8000", "--metadata", "protocol=http"];
    let mut registering = register(&zookeeper, &arguments);
    // Byte for byte what a GoFrame server writes.
    let expected = concat!(
        r#"{"Key":"/service/default/default/hello.svc/latest/10.0.0.1:8000","#,
        r#""Value":"{\"protocol\":\"http\"}"}"#
    );
    let owner = wait_for_leaf(&client, "hello.svc", expected.as_bytes());
    assert_ne!(owner, 0, "the leaf is ephemeral");
    for path in [ROOT, &folder("hello.svc")] {
        let node = client.get(path).unwrap();
        assert_eq!((node.data.as_slice(), node.owner), (&b""[..], 0), "{path}");
    }
    assert_eq!(client.children(ROOT).unwrap(), ["service-default-default-hello.svc-latest"]);
    assert_eq!(client.children(&folder("hello.svc")).unwrap(), ["hello.svc"]);
    assert!(registering.terminate().success(), "{}", registering.log());
    assert_eq!(client.children(&folder("hello.svc")).unwrap(), [""; 0]);
}

#[test]
fn a_registration_keeps_its_session_through_an_outage() {
    let test = "a_registration_keeps_its_session_through_an_outage";
    let Some((mut zookeeper, client)) = ZooKeeper::start_patient(test) else { return };
    let mut registering = register(&zookeeper, &["hello.svc", "10.0.0.1:8000", "--ttl", "1h"]);
    let expected = leaf_data("hello.svc", "10.0.0.1:8000", "{}");
    let owner = wait_for_leaf(&client, "hello.svc", &expected);
    for _ in 0..2 {
        zookeeper.kill();
        zookeeper.start_all();
        // Only a program that is connected again creates the leaf again.
        let path = format!("{}/hello.svc", folder("hello.svc"));
        eventually("the deletion", SOON, || client.delete(&path).ok());
        assert_eq!(wait_for_leaf(&client, "hello.svc", &expected), owner);
    }
    assert!(registering.terminate().success(), "{}", registering.log());
}

#[test]
fn a_registration_comes_back_after_a_wipe_and_the_end_of_its_session() {
    let test = "a_registration_comes_back_after_a_wipe_and_the_end_of_its_session";
    let Some((mut zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    let mut registering = register(&zookeeper, &["hello.svc", "10.0.0.1:8000"]);
    let expected = leaf_data("hello.svc", "10.0.0.1:8000", "{}");
    let owner = wait_for_leaf(&client, "hello.svc", &expected);
    registering.signal(Signal::SIGSTOP);
    let path = format!("{}/hello.svc", folder("hello.svc"));
    eventually("the end of the session", SOON, || {
        (client.get(&path) == Err(Code::NO_NODE)).then_some(())
    });
    registering.signal(Signal::SIGCONT);
    let second = wait_for_leaf(&client, "hello.svc", &expected);
    assert_ne!(second, owner);

    zookeeper.wipe();
    zookeeper.start_all();
    let client = zookeeper.client();
    wait_for_leaf(&client, "hello.svc", &expected);
    // Someone deletes the leaf, though the program runs.
    client.delete(&path).unwrap();
    wait_for_leaf(&client, "hello.svc", &expected);
    assert!(registering.terminate().success(), "{}", registering.log());
    assert_eq!(client.get(&path), Err(Code::NO_NODE));
}

#[test]
fn a_registration_that_starts_again_replaces_its_old_leaf() {
    let test = "a_registration_that_starts_again_replaces_its_old_leaf";
    let Some((zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    let expected = leaf_data("hello.svc", "10.0.0.1:8000", "{}");
    let mut first = register(&zookeeper, &["hello.svc", "10.0.0.1:8000"]);
    let old = wait_for_leaf(&client, "hello.svc", &expected);
    first.kill();
    let mut second = register(&zookeeper, &["hello.svc", "10.0.0.1:8000"]);
    eventually("a leaf of the new session", SOON, || {
        (wait_for_leaf(&client, "hello.svc", &expected) != old).then_some(())
    });
    // The end of the old session does not take the new leaf away.
    throughout("the leaf stays", Instant::now(), EXPIRY + seconds(2), || {
        client.get(&format!("{}/hello.svc", folder("hello.svc"))).is_ok()
    });
    assert!(second.terminate().success(), "{}", second.log());
}
