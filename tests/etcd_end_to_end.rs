//! The whole program on a real etcd.
//!
//! Registered services are answered through every failure of the store.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Instant;

use support::dns::Prober;
use support::etcd::Etcd;
use support::process::Process;
use support::svcdns::Svcdns;
use support::{SOON, dns, eventually, seconds, svcdns, throughout};

const HTTP: &str = r#"{"insecure":true,"protocol":"http"}"#;

/// Returns the key of a service with these endpoints.
fn key(name: &str, endpoints: &str) -> String {
    format!("/service/default/default/{name}/latest/{endpoints}")
}

/// Flags for a removal grace that outlasts the test, so every removal is immediate.
const LONG_GRACE: &[&str] = &["--removal-grace", "1h"];

fn serve(etcd: &Etcd, flags: &[&str]) -> Svcdns {
    Svcdns::serve(&[&["--registry", &etcd.url()], flags].concat())
}

/// Returns the command `svcdns register` with these arguments.
fn register(etcd: &Etcd, arguments: &[&str]) -> Command {
    let mut command = svcdns::command();
    command.args(["register", "--registry", &etcd.url()]).args(arguments);
    command
}

#[test]
fn both_default_heads_are_read_and_version_latest_is_preferred() {
    let etcd = Etcd::start();
    etcd.put(&key("hello.svc", "10.0.0.1:80"), HTTP);
    etcd.put("/services/default/default/hello.svc/latest/10.0.0.2:80", HTTP);
    // The same endpoint under both heads counts once.
    etcd.put("/services/default/default/hello.svc/latest/10.0.0.1:80", HTTP);
    etcd.put("/service/default/default/hello.svc/latest-canary/10.0.0.3:80", HTTP);
    // Other heads, one with ours as its prefix.
    etcd.put("/servicesx/default/default/other.svc/latest/10.0.0.4:80", HTTP);
    etcd.put("/config/default/default/other.svc/latest/10.0.0.4:80", HTTP);
    let server = serve(&etcd, &[]);
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(dns::dig_short(server.address, &["hello.svc", "SRV"]).len(), 2);
    assert_eq!(dns::dig_short(server.address, &["latest-canary.hello.svc"]), ["10.0.0.3"]);
    assert_eq!(dns::code(server.address, "other.svc", dns::A), "NXDOMAIN");
    drop(server);
    // The heads are configurable.
    let server = serve(&etcd, &["--heads", "services"]);
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(dns::code(server.address, "latest-canary.hello.svc", dns::A), "NXDOMAIN");
}

#[test]
fn the_register_command_keeps_its_key_and_removes_it_at_the_end() {
    let etcd = Etcd::start();
    let server = serve(&etcd, &[]);
    // Without a command, until SIGTERM.
    let arguments = ["legacy", "10.0.0.1:80", "10.0.0.2:80", "--metadata", "env=gray"];
    let mut alone = Process::start(&mut register(&etcd, &arguments));
    server.wait_for("legacy.svc", &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(dns::dig_short(server.address, &["gray._env.legacy.svc"]), ["10.0.0.1", "10.0.0.2"]);
    assert!(alone.terminate().success(), "{}", alone.log());
    assert_eq!(
        etcd.value(&key("legacy", "10.0.0.1:80,10.0.0.2:80")),
        None,
        "deleted before its lease expires"
    );
    server.wait_for_code("legacy.svc", "NXDOMAIN");
    // With a command, while that runs, and with its exit code.
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    let script = format!("until [ -e {} ]; do sleep 0.1; done; exit 7", done.display());
    let arguments = ["job", "10.0.0.3:80", "--", "sh", "-c", &script];
    let mut with_command = Process::start(&mut register(&etcd, &arguments));
    server.wait_for("job.svc", &["10.0.0.3"]);
    fs::write(done, "").unwrap();
    assert_eq!(with_command.wait(SOON).code(), Some(7), "{}", with_command.log());
    assert_eq!(etcd.value(&key("job", "10.0.0.3:80")), None, "deleted before its lease expires");
    server.wait_for_code("job.svc", "NXDOMAIN");
    // After SIGKILL, until the lease expires.
    let arguments = ["dead", "10.0.0.4:80", "--ttl", "15s", "--", "sleep", "60"];
    let mut killed = Process::start(&mut register(&etcd, &arguments));
    server.wait_for("dead.svc", &["10.0.0.4"]);
    // The last renewal was at most about 5 s ago.
    let start = Instant::now();
    killed.kill();
    throughout("the name exists while its lease lives", start, seconds(5), || {
        dns::addresses(server.address, "dead.svc").is_ok()
    });
    server.wait_for_code("dead.svc", "NXDOMAIN");
}

#[test]
fn only_answers_from_a_disconnected_store_are_stale() {
    let [healthy, mut killed] = [Etcd::start(), Etcd::start()];
    healthy.put(&key("here.svc", "10.0.0.1:80"), HTTP);
    killed.put(&key("there.svc", "10.0.0.2:80"), HTTP);
    for etcd in [&healthy, &killed] {
        etcd.put(&key("both.svc", "10.0.0.3:80"), HTTP);
    }
    let server = serve(&healthy, &["--registry", &killed.url()]);
    server.wait_for("here.svc", &["10.0.0.1"]);
    server.wait_for("there.svc", &["10.0.0.2"]);
    server.wait_for_code("nothing.svc", "NXDOMAIN");
    let errors = || {
        ["here.svc", "there.svc", "both.svc", "nothing.svc"].map(|name| {
            let text = dns::dig(server.address, &[name]);
            let code =
                |line: &str| line.strip_prefix("; EDE: ")?.split(' ').next()?.parse::<u16>().ok();
            text.lines().find_map(code)
        })
    };
    assert_eq!(errors(), [None; 4]);
    killed.kill();
    eventually("stale answers of the store", SOON, || errors()[1].map(drop));
    assert_eq!(errors(), [None, Some(3), None, Some(19)]);
    killed.start_all();
    eventually("fresh answers", SOON, || (errors() == [None; 4]).then_some(()));
    let url = killed.url();
    for (message, count) in [("not connected, trying again", 1), ("session: following", 2)] {
        let line = format!("{message} registry=etcd2 url={url}");
        eventually(&line, SOON, || (server.log().matches(&line).count() >= count).then_some(()));
    }
    server.stop();
}

#[test]
fn a_restored_snapshot_is_served_after_the_removal_grace() {
    let mut etcd = Etcd::start();
    let directory = tempfile::tempdir().unwrap();
    let snapshot = directory.path().join("snapshot.db");
    etcd.put(&key("old", "10.0.0.1:80"), HTTP);
    etcd.put(&key("both", "10.0.0.2:80"), HTTP);
    etcd.save(&snapshot);
    etcd.delete(&key("old", "10.0.0.1:80"));
    etcd.put(&key("new", "10.0.0.3:80"), HTTP);
    for count in 0..20 {
        etcd.put(&key("both", "10.0.0.2:80"), &format!("{{\"weight\":{count}}}"));
    }
    let server = serve(&etcd, &[]);
    server.wait_for("new.svc", &["10.0.0.3"]);
    server.wait_for_code("old.svc", "NXDOMAIN");
    let prober = Prober::start(server.address, "both.svc");
    etcd.restore(&snapshot);
    etcd.start_all();
    // Keys of the snapshot return at once, others are removed after the removal grace, and
    // changes at revisions that were seen before apply.
    server.wait_for("old.svc", &["10.0.0.1"]);
    etcd.put(&key("both", "10.0.0.4:80"), HTTP);
    server.wait_for("both.svc", &["10.0.0.2", "10.0.0.4"]);
    server.wait_for_code("new.svc", "NXDOMAIN");
    prober.expect_no_loss();
}

#[test]
fn a_compaction_during_an_outage_causes_a_new_list() {
    let mut etcd = Etcd::start();
    etcd.put(&key("stays", "10.0.0.1:80"), HTTP);
    etcd.put(&key("goes", "10.0.0.2:80"), HTTP);
    let server = serve(&etcd, &[]);
    server.wait_for("goes.svc", &["10.0.0.2"]);
    let prober = Prober::start(server.address, "stays.svc");
    etcd.elsewhere(|etcd| {
        etcd.delete(&key("goes", "10.0.0.2:80"));
        etcd.put(&key("comes", "10.0.0.3:80"), HTTP);
        for count in 0..20 {
            etcd.put(&key("stays", "10.0.0.1:80"), &format!("{{\"weight\":{count}}}"));
        }
        etcd.compact(etcd.revision());
    });
    etcd.start_all();
    server.wait_for("comes.svc", &["10.0.0.3"]);
    server.wait_for_code("goes.svc", "NXDOMAIN");
    etcd.put(&key("after", "10.0.0.4:80"), HTTP);
    server.wait_for("after.svc", &["10.0.0.4"]);
    prober.expect_no_loss();
}

#[test]
fn leases_that_expire_together_are_held_for_the_removal_grace() {
    let etcd = Etcd::start();
    // Each key has a lease that a process keeps alive.
    let owners: Vec<Process> = (1..=20)
        .map(|last| {
            let lease = etcd.grant(10);
            let lease_id = format!("{lease:x}");
            let owner = Process::start(&mut etcd.command(&["lease", "keep-alive", &lease_id]));
            etcd.put_leased(&key("hello.svc", &format!("10.0.0.{last}:80")), HTTP, lease);
            owner
        })
        .collect();
    let server = serve(&etcd, &["--removal-grace", "20s"]);
    let has_addresses = |count: usize| {
        let addresses = dns::addresses(server.address, "hello.svc");
        addresses.is_ok_and(|addresses| addresses.len() == count).then_some(())
    };
    eventually("20 addresses", SOON, || has_addresses(20));
    let prober = Prober::start(server.address, "hello.svc");
    etcd.stall(0);
    thread::sleep(seconds(14));
    etcd.resume(0);
    eventually("the expiry of all keys", SOON, || {
        let keys = etcd.ctl(&["get", "--prefix", "--keys-only", "/service/"]);
        keys.trim().is_empty().then_some(())
    });
    // Half of them register again, as GoFrame does within seconds.
    for last in 1..=10 {
        etcd.put(&key("hello.svc", &format!("10.0.0.{last}:80")), HTTP);
    }
    eventually("the removal of the others", SOON, || has_addresses(10));
    // The first few removals apply before a mass expiry is detected, but not all 20.
    prober.expect_no_loss();
    drop(owners);
}

#[test]
fn explicitly_deleting_all_keys_takes_effect_at_once() {
    let etcd = Etcd::start();
    for last in 1..=40 {
        etcd.put(&key("hello.svc", &format!("10.0.0.{last}:80")), HTTP);
    }
    let server = serve(&etcd, LONG_GRACE);
    eventually("40 addresses", SOON, || {
        let response = dns::dig(server.address, &["+tcp", "hello.svc"]);
        response.contains("ANSWER: 40,").then_some(())
    });
    etcd.ctl(&["del", "--prefix", "/service/"]);
    server.wait_for_code("hello.svc", "NXDOMAIN");
}

#[test]
fn no_query_is_lost_while_a_member_is_dead() {
    let mut etcd = Etcd::builder().members(3).start();
    etcd.put(&key("hello.svc", "10.0.0.1:80"), HTTP);
    let server = serve(&etcd, &[]);
    server.wait_for("hello.svc", &["10.0.0.1"]);
    let prober = Prober::start(server.address, "hello.svc");
    for member in 0..3 {
        etcd.kill_member(member);
        let name = format!("after-{member}");
        let key = key(&name, "10.0.0.2:80");
        eventually("a write to the others", SOON, || etcd.try_ctl(&["put", &key, HTTP]).ok());
        server.wait_for(&format!("{name}.svc"), &["10.0.0.2"]);
        etcd.start_member(member);
    }
    prober.expect_no_loss();
}

#[test]
fn users_and_client_certificates_are_supported() {
    let password = "s3cret-of-the-test";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    fs::write(&file, password).unwrap();
    let mut etcd = Etcd::start();
    etcd.put(&key("hello.svc", "10.0.0.1:80"), HTTP);
    etcd.enable_auth();
    etcd.add_reader("reader", password, "/service");
    let path = file.to_str().unwrap();
    let login = ["--etcd-username", "reader", "--etcd-password-file", path];
    let server = serve(&etcd, &[&login[..], &["--log", "trace"]].concat());
    server.wait_for("hello.svc", &["10.0.0.1"]);
    assert!(!server.log().contains("s3cret"), "the password is in the log");
    drop(server);

    let etcd = Etcd::builder().tls().start();
    etcd.put(&key("hello.svc", "10.0.0.1:80"), HTTP);
    let files = etcd.certificates();
    let [ca, cert, key] = [files.ca(), files.client(), files.client_key()]
        .map(|path| path.to_str().unwrap().to_owned());
    let flags = ["--etcd-ca-file", &ca, "--etcd-cert-file", &cert, "--etcd-key-file", &key];
    let server = serve(&etcd, &flags);
    server.wait_for("hello.svc", &["10.0.0.1"]);
}
