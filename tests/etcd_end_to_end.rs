//! The whole program on a real etcd: what is registered is answered, through every failure of the store.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use support::dns::Prober;
use support::etcd::Etcd;
use support::process::Process;
use support::svcdns::Svcdns;
use support::{SOON, dns, eventually, seconds, svcdns, throughout};

const HTTP: &str = r#"{"insecure":true,"protocol":"http"}"#;

fn key(name: &str, endpoints: &str) -> String {
    format!("/service/default/default/{name}/latest/{endpoints}")
}

/// So long that nothing goes by the end of the removal grace: what goes was believed to be gone.
const NO_DOUBT: &[&str] = &["--removal-grace", "1h"];

fn serve(etcd: &Etcd, flags: &[&str]) -> Svcdns {
    Svcdns::serve(&[&["--registry", &etcd.url()], flags].concat())
}

/// `svcdns register` of one endpoint, which runs until it is ended.
fn register(etcd: &Etcd, arguments: &[&str]) -> Command {
    let mut command = svcdns::command();
    command.args(["register", "--registry", &etcd.url()]).args(arguments);
    command
}

#[test]
fn registrations_come_and_go() {
    let etcd = Etcd::start();
    etcd.put(&key("hello.svc", "10.0.0.1:80"), HTTP);
    let server = serve(&etcd, NO_DOUBT);
    server.wait_for("hello.svc", &["10.0.0.1"]);
    // A second instance, and one with several endpoints in one key
    etcd.put(&key("hello.svc", "10.0.0.2:80"), HTTP);
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    etcd.put(&key("hello.svc", "10.0.0.3:80,10.0.0.4:80,10.0.0.4:81"), HTTP);
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
    assert_eq!(dns::dig_short(server.address, &["hello.svc", "SRV"]).len(), 5);
    // Metadata put over the same key
    etcd.put(&key("hello.svc", "10.0.0.1:80"), r#"{"weight":"7"}"#);
    eventually("the new weight", SOON, || {
        let lines = dns::dig_short(server.address, &["10-0-0-1.hello.svc", "SRV"]);
        (lines == ["0 7 80 10-0-0-1.hello.svc."]).then_some(())
    });
    // Gone on purpose: at once, down to the last
    for endpoints in ["10.0.0.1:80", "10.0.0.3:80,10.0.0.4:80,10.0.0.4:81"] {
        etcd.delete(&key("hello.svc", endpoints));
    }
    server.wait_for("hello.svc", &["10.0.0.2"]);
    etcd.delete(&key("hello.svc", "10.0.0.2:80"));
    server.wait_for_code("hello.svc", "NXDOMAIN");
    server.stop();
}

#[test]
fn both_heads_are_followed_and_latest_canary_is_not_latest() {
    let etcd = Etcd::start();
    etcd.put(&key("hello.svc", "10.0.0.1:80"), HTTP);
    etcd.put("/services/default/default/hello.svc/latest/10.0.0.2:80", HTTP);
    // The same endpoint under both heads is one.
    etcd.put("/services/default/default/hello.svc/latest/10.0.0.1:80", HTTP);
    etcd.put("/service/default/default/hello.svc/latest-canary/10.0.0.3:80", HTTP);
    // Neither head, and one that only begins like ours.
    etcd.put("/servicesx/default/default/other.svc/latest/10.0.0.4:80", HTTP);
    etcd.put("/config/default/default/other.svc/latest/10.0.0.4:80", HTTP);
    let server = serve(&etcd, &[]);
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(dns::dig_short(server.address, &["hello.svc", "SRV"]).len(), 2);
    assert_eq!(dns::dig_short(server.address, &["latest-canary.hello.svc"]), ["10.0.0.3"]);
    assert_eq!(dns::code(server.address, "other.svc", dns::A), "NXDOMAIN");
    drop(server);
    // Heads are a setting.
    let server = serve(&etcd, &["--heads", "services"]);
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(dns::code(server.address, "latest-canary.hello.svc", dns::A), "NXDOMAIN");
}

#[test]
fn the_register_command_keeps_its_key_and_takes_it_along() {
    let etcd = Etcd::start();
    let server = serve(&etcd, &[]);
    // By itself, until SIGTERM
    let mut alone = Process::start(&mut register(&etcd, &["legacy", "10.0.0.1:80", "10.0.0.2:80", "--metadata", "env=gray"]));
    server.wait_for("legacy.svc", &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(dns::dig_short(server.address, &["gray._env.legacy.svc"]), ["10.0.0.1", "10.0.0.2"]);
    assert!(alone.terminate().success(), "{}", alone.log());
    assert_eq!(etcd.value(&key("legacy", "10.0.0.1:80,10.0.0.2:80")), None, "not left to the end of its lease");
    server.wait_for_code("legacy.svc", "NXDOMAIN");
    // With a command: for as long as that runs, with its exit code
    let folder = tempfile::tempdir().unwrap();
    let done = folder.path().join("done");
    let script = format!("until [ -e {} ]; do sleep 0.1; done; exit 7", done.display());
    let mut with_command = Process::start(&mut register(&etcd, &["job", "10.0.0.3:80", "--", "sh", "-c", &script]));
    server.wait_for("job.svc", &["10.0.0.3"]);
    fs::write(done, "").unwrap();
    assert_eq!(with_command.wait(SOON).code(), Some(7), "{}", with_command.log());
    assert_eq!(etcd.value(&key("job", "10.0.0.3:80")), None, "not left to the end of its lease");
    server.wait_for_code("job.svc", "NXDOMAIN");
    // SIGKILL: until the lease ends
    let mut killed = Process::start(&mut register(&etcd, &["dead", "10.0.0.4:80", "--ttl", "15s", "--", "sleep", "60"]));
    server.wait_for("dead.svc", &["10.0.0.4"]);
    // It was renewed 5 s ago at most, or a little more.
    let begun = Instant::now();
    killed.kill();
    throughout("the name is there while the lease lives", begun, seconds(5), || dns::addresses(server.address, "dead.svc").is_ok());
    server.wait_for_code("dead.svc", "NXDOMAIN");
}

#[test]
fn an_outage_of_3_seconds_loses_no_answer() {
    an_outage_loses_no_answer(seconds(3));
}

#[test]
fn an_outage_of_20_seconds_loses_no_answer() {
    an_outage_loses_no_answer(seconds(20));
}

/// The store is killed for longer or shorter than the leases of those who live in it.
fn an_outage_loses_no_answer(outage: Duration) {
    let mut etcd = Etcd::start();
    let server = serve(&etcd, &[]);
    let registered = Process::start(&mut register(&etcd, &["hello.svc", "10.0.0.1:80", "--ttl", "15s"]));
    etcd.put(&key("fixed", "10.0.0.2:80"), HTTP);
    server.wait_for("hello.svc", &["10.0.0.1"]);
    server.wait_for("fixed.svc", &["10.0.0.2"]);
    let probers = [Prober::start(server.address, "hello.svc"), Prober::start(server.address, "fixed.svc")];
    etcd.kill();
    eventually("answers to say that they may be stale (EDE 3)", SOON, || {
        dns::dig(server.address, &["hello.svc"]).contains("EDE: 3 ").then_some(())
    });
    thread::sleep(outage);
    assert_eq!(dns::code(server.address, "nothing.svc", dns::A), "NXDOMAIN", "what is not known does not become an error");
    etcd.start_all();
    eventually("answers to be fresh again", SOON, || (!dns::dig(server.address, &["hello.svc"]).contains("EDE: 3 ")).then_some(()));
    // Changes arrive again, and the leased key stays with its registrant, long enough for an old lease to have ended.
    etcd.put(&key("late", "10.0.0.3:80"), HTTP);
    server.wait_for("late.svc", &["10.0.0.3"]);
    thread::sleep(seconds(17));
    for prober in probers {
        prober.expect_no_loss();
    }
    drop(registered);
}

#[test]
fn a_store_that_is_down_marks_only_answers_it_holds() {
    let [stays, mut falls] = [Etcd::start(), Etcd::start()];
    stays.put(&key("here.svc", "10.0.0.1:80"), HTTP);
    falls.put(&key("there.svc", "10.0.0.2:80"), HTTP);
    for etcd in [&stays, &falls] {
        etcd.put(&key("both.svc", "10.0.0.3:80"), HTTP);
    }
    let server = serve(&stays, &["--registry", &falls.url()]);
    server.wait_for("here.svc", &["10.0.0.1"]);
    server.wait_for("there.svc", &["10.0.0.2"]);
    server.wait_for_code("nothing.svc", "NXDOMAIN");
    let errors = || {
        ["here.svc", "there.svc", "both.svc", "nothing.svc"].map(|name| {
            let text = dns::dig(server.address, &[name]);
            text.lines().find_map(|line| line.strip_prefix("; EDE: ")?.split(' ').next()?.parse::<u16>().ok())
        })
    };
    assert_eq!(errors(), [None; 4]);
    falls.kill();
    eventually("the store's answers to be marked as stale", SOON, || errors()[1].map(drop));
    assert_eq!(errors(), [None, Some(3), Some(3), Some(19)]);
    falls.start_all();
    eventually("all answers to be fresh again", SOON, || (errors() == [None; 4]).then_some(()));
    let url = falls.url();
    for (message, count) in [("not connected, trying again", 1), ("supervisor: following", 2)] {
        let line = format!("{message} registry=etcd2 url={url}");
        eventually(&line, SOON, || (server.log().matches(&line).count() >= count).then_some(()));
    }
    server.stop();
}

#[test]
fn a_wiped_store_is_not_believed_before_its_registrants_had_time() {
    let mut etcd = Etcd::start();
    let server = serve(&etcd, &["--removal-grace", "20s"]);
    let registered = Process::start(&mut register(&etcd, &["hello.svc", "10.0.0.1:80"]));
    etcd.put(&key("gone", "10.0.0.2:80"), HTTP);
    server.wait_for("hello.svc", &["10.0.0.1"]);
    server.wait_for("gone.svc", &["10.0.0.2"]);
    let prober = Prober::start(server.address, "hello.svc");
    etcd.wipe();
    etcd.start_all();
    // Whoever lives is back within the grace; who is not is gone after it.
    eventually("the registrant to be back in etcd", SOON, || etcd.value(&key("hello.svc", "10.0.0.1:80")));
    server.wait_for_code("gone.svc", "NXDOMAIN");
    server.wait_for("hello.svc", &["10.0.0.1"]);
    prober.expect_no_loss();
    drop(registered);
}

#[test]
fn a_store_restored_from_an_older_snapshot_is_the_truth_after_the_grace() {
    let mut etcd = Etcd::start();
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("snapshot.db");
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
    // What the snapshot has comes back at once, what it lacks goes after the grace, and changes at low revisions count.
    server.wait_for("old.svc", &["10.0.0.1"]);
    etcd.put(&key("both", "10.0.0.4:80"), HTTP);
    server.wait_for("both.svc", &["10.0.0.2", "10.0.0.4"]);
    server.wait_for_code("new.svc", "NXDOMAIN");
    prober.expect_no_loss();
}

#[test]
fn compaction_during_an_outage_is_caught_up_by_a_list() {
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
fn leases_that_a_stalled_store_let_expire_all_at_once_are_held_until_their_owners_are_back() {
    let etcd = Etcd::start();
    // Each on a lease that its owner keeps alive.
    let owners: Vec<Process> = (1..=20)
        .map(|last| {
            let lease = etcd.grant(10);
            let owner = Process::start(&mut etcd.command(&["lease", "keep-alive", &format!("{lease:x}")]));
            etcd.put_leased(&key("hello.svc", &format!("10.0.0.{last}:80")), HTTP, lease);
            owner
        })
        .collect();
    let server = serve(&etcd, &["--removal-grace", "20s"]);
    eventually("20 addresses", SOON, || dns::addresses(server.address, "hello.svc").is_ok_and(|found| found.len() == 20).then_some(()));
    let prober = Prober::start(server.address, "hello.svc");
    etcd.stall(0);
    thread::sleep(seconds(14));
    etcd.resume(0);
    eventually("etcd to have expired them", SOON, || {
        etcd.ctl(&["get", "--prefix", "--keys-only", "/service/"]).trim().is_empty().then_some(())
    });
    // Half of them register again, as GoFrame does within seconds.
    for at in 0..10 {
        etcd.put(&key("hello.svc", &format!("10.0.0.{}:80", at + 1)), HTTP);
    }
    eventually("the others to go after the grace", SOON, || {
        dns::addresses(server.address, "hello.svc").is_ok_and(|found| found.len() == 10).then_some(())
    });
    // Fewer than 10 of the 20 are believed to be gone before etcd is asked about their leases.
    prober.expect_no_loss();
    drop(owners);
}

#[test]
fn explicit_deletes_of_everything_are_believed_at_once() {
    let etcd = Etcd::start();
    for at in 1..=40 {
        etcd.put(&key("hello.svc", &format!("10.0.0.{at}:80")), HTTP);
    }
    let server = serve(&etcd, NO_DOUBT);
    eventually("40 addresses", SOON, || dns::dig(server.address, &["+tcp", "hello.svc"]).contains("ANSWER: 40,").then_some(()));
    etcd.ctl(&["del", "--prefix", "/service/"]);
    server.wait_for_code("hello.svc", "NXDOMAIN");
}

#[test]
fn a_dead_endpoint_among_several_costs_nothing() {
    let mut etcd = Etcd::builder().members(3).start();
    etcd.put(&key("hello.svc", "10.0.0.1:80"), HTTP);
    let server = serve(&etcd, &[]);
    server.wait_for("hello.svc", &["10.0.0.1"]);
    let prober = Prober::start(server.address, "hello.svc");
    for member in 0..3 {
        etcd.kill_member(member);
        let name = format!("after-{member}");
        eventually("the two others to take a write", SOON, || etcd.try_ctl(&["put", &key(&name, "10.0.0.2:80"), HTTP]).ok());
        server.wait_for(&format!("{name}.svc"), &["10.0.0.2"]);
        etcd.start_member(member);
    }
    prober.expect_no_loss();
}

#[test]
fn user_password_and_certificates() {
    let secret = "reader:s3cret-of-the-test";
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, secret.split_once(':').unwrap().1).unwrap();
    let mut etcd = Etcd::start();
    etcd.put(&key("hello.svc", "10.0.0.1:80"), HTTP);
    etcd.enable_auth();
    etcd.add_reader("reader", secret.split_once(':').unwrap().1, "/service");
    let server = serve(&etcd, &["--etcd-username", "reader", "--etcd-password-file", password.to_str().unwrap(), "--log", "trace"]);
    server.wait_for("hello.svc", &["10.0.0.1"]);
    assert!(!server.log().contains("s3cret"), "the password stands in the log");
    drop(server);
    // A wrong one: no data, and a message that says so
    fs::write(&password, "wrong").unwrap();
    let server = serve(&etcd, &["--etcd-username", "reader", "--etcd-password-file", password.to_str().unwrap()]);
    eventually("a log line about the login", SOON, || server.log().to_lowercase().contains("authentication").then_some(()));
    assert_eq!(dns::code(server.address, "hello.svc", dns::A), "SERVFAIL");
    drop(server);

    let etcd = Etcd::builder().tls().start();
    etcd.put(&key("hello.svc", "10.0.0.1:80"), HTTP);
    let files = etcd.certificates();
    let paths = [files.ca(), files.client(), files.client_key()].map(|path| path.to_str().unwrap().to_owned());
    let flags = ["--etcd-ca-file", &paths[0], "--etcd-cert-file", &paths[1], "--etcd-key-file", &paths[2]];
    let server = serve(&etcd, &flags);
    server.wait_for("hello.svc", &["10.0.0.1"]);
}

#[test]
fn ten_thousand_keys() {
    let etcd = Etcd::start();
    let entries = (0..10_000).map(|number| {
        let address = format!("10.{}.{}.{}:80", 1 + number / 62_500, number / 250 % 250, 1 + number % 250);
        (key(&format!("service-{number}.svc"), &address), HTTP.to_owned())
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(etcd.put_many(entries));
    let started = Instant::now();
    let server = serve(&etcd, &[]);
    server.wait_for("service-9999.svc", &["10.1.39.250"]);
    eprintln!("10,000 keys: answered {:?} after the start (debug build), {} KiB resident", started.elapsed(), server.resident_kib());
    for number in (0..10_000).step_by(997) {
        let expected = format!("10.1.{}.{}", number / 250 % 250, 1 + number % 250);
        assert_eq!(dns::addresses(server.address, &format!("service-{number}.svc")), Ok(vec![expected.parse().unwrap()]));
    }
    // One change among them
    etcd.put(&key("service-0.svc", "10.9.9.9:80"), HTTP);
    server.wait_for("service-0.svc", &["10.1.0.1", "10.9.9.9"]);
    // All gone at once, on purpose: etcd 3.4 takes seconds to tell of 10,000 deletes at one revision with their old values.
    etcd.ctl(&["del", "--prefix", "/service/"]);
    server.wait_for_code("service-9999.svc", "NXDOMAIN");
    server.wait_for_code("service-0.svc", "NXDOMAIN");
}
