//! Starts without the registry, from snapshots of its keys.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use serde_json::{Value, json};
use support::consul::Consul;
use support::etcd::Etcd;
use support::nacos::{self, Nacos};
use support::polaris::{self, PolarisServer};
use support::process::Process;
use support::strace::{self, Tracer};
use support::svcdns::Svcdns;
#[cfg(feature = "zookeeper")]
use support::zookeeper::{ZooKeeper, put_leaf};
use support::{SOON, dns, eventually, free_address, netns, skip};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const HTTP: &str = r#"{"protocol":"http"}"#;

/// Offsets in a snapshot: after the magic bytes come the version and the time.
const VERSION_AT: usize = 8;
const TIME_AT: usize = 12;

fn key(name: &str, last: usize) -> String {
    format!("/service/default/default/{name}/latest/10.0.0.{last}:80")
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

/// Starts an etcd with the service `hello` at 10.0.0.1 and 10.0.0.2.
fn hello() -> Etcd {
    let etcd = Etcd::start();
    etcd.put(&key("hello.svc", 1), HTTP);
    etcd.put(&key("hello.svc", 2), HTTP);
    etcd
}

fn flags(etcd: &Etcd) -> [String; 2] {
    ["--registry".to_owned(), etcd.url()]
}

/// Starts a server that has read an etcd of [`hello`].
fn synced(etcd: &Etcd) -> Svcdns {
    let server = Svcdns::serve(&flags(etcd));
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    server
}

/// Saves a snapshot of an etcd of [`hello`], and stops both servers.
fn saved() -> (Etcd, TempDir) {
    let mut etcd = hello();
    let state = synced(&etcd).stop_and_keep();
    etcd.kill();
    (etcd, state)
}

/// Returns the snapshots in a state directory.
fn snapshots(state: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("snapshot-"))
        .collect();
    found.sort();
    found
}

/// Returns the only snapshot in a state directory.
fn snapshot(state: &Path) -> PathBuf {
    let found = snapshots(state);
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

/// Changes the snapshot, and makes its digest right again.
fn rewrite(path: &Path, change: impl FnOnce(&mut [u8])) {
    let mut bytes = fs::read(path).unwrap();
    let end = bytes.len() - SHA256_OUTPUT_LEN;
    change(&mut bytes[..end]);
    let right = digest(&SHA256, &bytes[..end]);
    bytes[end..].copy_from_slice(right.as_ref());
    fs::write(path, bytes).unwrap();
}

/// Returns the response for a name as dig prints it.
fn dig(server: &Svcdns, name: &str) -> String {
    dns::dig(server.address, &[name])
}

fn registries(server: &Svcdns) -> Value {
    let output = server.run(&["status", "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    status["registries"].clone()
}

/// Checks that the very first answers come from the snapshot, and say so.
fn check_answers_from_snapshot(server: &Svcdns) {
    let text = dig(server, "hello.svc");
    for part in ["status: NOERROR", "EDE: 3 ", "\t5\tIN\tA\t10.0.0.1", "\t5\tIN\tA\t10.0.0.2"] {
        assert!(text.replace(' ', "\t").contains(&part.replace(' ', "\t")), "{part}: {text}");
    }
    let text = dig(server, "absent.svc");
    assert!(text.contains("status: NXDOMAIN") && text.contains("EDE: 19 "), "{text}");
}

/// Checks that nothing is known.
fn check_knows_nothing(server: &Svcdns) {
    let text = dig(server, "hello.svc");
    assert!(text.contains("status: SERVFAIL") && text.contains("EDE: 14 "), "{text}");
}

#[test]
fn a_stopped_server_starts_again_without_its_registry() {
    let mut etcd = hello();
    let server = synced(&etcd);
    // SIGTERM writes the snapshot, even if no write is due.
    let state = server.stop_and_keep();
    let mode = fs::metadata(snapshot(state.path())).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
    etcd.delete(&key("hello.svc", 2));
    etcd.put(&key("hello.svc", 3), HTTP);
    etcd.put(&key("new.svc", 4), HTTP);
    etcd.kill();

    let server = Svcdns::serve_again(state, &flags(&etcd));
    check_answers_from_snapshot(&server);
    assert!(server.log().contains("answering from the snapshot"), "{}", server.log());
    let registry = &registries(&server)[0];
    assert_eq!((&registry["connected"], &registry["synced"]), (&false.into(), &false.into()));
    assert!(registry["snapshot-age"].is_u64() && registry["instances"] == 2, "{registry}");
    let text = server.run(&["status"]).stdout;
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("disconnected, answering from the snapshot, "), "{text}");
    assert!(text.contains(" s old"), "{text}");
    let warning = server.run(&["ls"]).stderr;
    assert!(String::from_utf8_lossy(&warning).starts_with("svcdns: stale: "), "{warning:?}");

    // A second stop without the registry keeps the data and its age.
    let state = server.stop_and_keep();
    let server = Svcdns::serve_again(state, &flags(&etcd));
    check_answers_from_snapshot(&server);
    // The first list is applied as a difference.
    etcd.start_all();
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.3"]);
    server.wait_for("new.svc", &["10.0.0.4"]);
    eventually("fresh answers", SOON, || {
        (!dig(&server, "hello.svc").contains("EDE")).then_some(())
    });
    server.wait_for_code("absent.svc", "NXDOMAIN");
    assert!(!dig(&server, "absent.svc").contains("EDE"));
}

#[test]
fn a_killed_server_starts_again_without_its_registry() {
    let mut etcd = hello();
    let server = synced(&etcd);
    eventually("the snapshot", SOON, || {
        snapshots(server.state_dir()).iter().any(|path| path.extension().is_none()).then_some(())
    });
    let state = server.kill();
    etcd.kill();
    let server = Svcdns::serve_again(state, &flags(&etcd));
    check_answers_from_snapshot(&server);
}

#[test]
fn a_start_without_the_registry_does_not_rewrite_its_snapshot() {
    let (etcd, state) = saved();
    let before = fs::read(snapshot(state.path())).unwrap();
    // Another configuration leaves out a part of the keys, until it is corrected.
    let fewer = [&flags(&etcd)[..], &["--max-instances-per-service=1".to_owned()]].concat();
    let server = Svcdns::serve_again(state, &fewer);
    assert_eq!(dns::addresses(server.address, "hello.svc").unwrap().len(), 1);
    let state = server.stop_and_keep();
    assert_eq!(fs::read(snapshot(state.path())).unwrap(), before);
    let server = Svcdns::serve_again(state, &flags(&etcd));
    check_answers_from_snapshot(&server);
}

#[test]
fn a_registry_without_keys_is_saved_once_it_has_been_read() {
    let mut etcd = Etcd::start();
    let server = Svcdns::serve(&flags(&etcd));
    server.wait_for_code("absent.svc", "NXDOMAIN");
    eventually("the snapshot", SOON, || {
        snapshots(server.state_dir()).iter().any(|path| path.extension().is_none()).then_some(())
    });
    let state = server.kill();
    etcd.kill();
    let server = Svcdns::serve_again(state, &flags(&etcd));
    let text = dig(&server, "absent.svc");
    assert!(text.contains("status: NXDOMAIN") && text.contains("EDE: 19 "), "{text}");
}

/// Checks that a server answers `hello.svc` from its snapshot once `kill` has ended its registry.
///
/// Also checks that the snapshot has none of these texts.
fn check_start_without(flags: &[&str], secrets: &[&str], kill: impl FnOnce()) {
    let server = Svcdns::serve(flags);
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    let state = server.stop_and_keep();
    let bytes = fs::read(snapshot(state.path())).unwrap();
    for secret in secrets {
        let is_there = bytes.windows(secret.len()).any(|text| text == secret.as_bytes());
        assert!(!is_there, "the snapshot contains {secret}");
    }
    kill();
    let server = Svcdns::serve_again(state, flags);
    check_answers_from_snapshot(&server);
}

/// Writes a secret to a file with the mode that svcdns requires.
fn secret_file(folder: &TempDir, secret: &str) -> String {
    let path = folder.path().join("its-secret-file");
    fs::write(&path, secret).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_snapshot_of_etcd_has_no_secret() {
    let mut etcd = hello();
    etcd.add_writer("its-user", "its-password", "/service");
    etcd.enable_auth();
    let folder = tempfile::tempdir().unwrap();
    let (url, file) = (etcd.url(), secret_file(&folder, "its-password"));
    let flags = ["--registry", &url, "--etcd-username", "its-user", "--etcd-password-file", &file];
    check_start_without(&flags, &["its-user", "its-password", "its-secret-file"], || etcd.kill());
}

#[test]
fn a_start_without_nacos_answers_from_the_snapshot() {
    let mut nacos = Nacos::start();
    for address in ["10.0.0.1", "10.0.0.2"] {
        nacos.put("hello.svc", address, 80, &json!({ "protocol": "grpc" }));
    }
    nacos.require_password("its-password");
    let folder = tempfile::tempdir().unwrap();
    let (url, file) = (nacos.url(), secret_file(&folder, "its-password"));
    let flags =
        ["--registry", &url, "--nacos-username", nacos::USER, "--nacos-password-file", &file];
    check_start_without(&flags, &["its-password", "its-secret-file"], || nacos.kill());
}

#[test]
fn a_start_without_polaris_answers_from_the_snapshot() {
    let polaris = PolarisServer::start();
    polaris.require("its-token");
    for last in [1, 2] {
        let metadata = polaris::goframe_metadata("latest");
        polaris.put("service-default-default-hello.svc-latest", address(last), &metadata);
    }
    let folder = tempfile::tempdir().unwrap();
    let (url, file) = (polaris.url(), secret_file(&folder, "its-token"));
    let flags = ["--registry", &url, "--polaris-token-file", &file];
    check_start_without(&flags, &["its-token", "its-secret-file"], || drop(polaris));
}

#[test]
fn a_start_without_consul_answers_from_the_snapshot() {
    let test = "a_start_without_consul_answers_from_the_snapshot";
    let Some(mut consul) = Consul::start_with_acl(test) else { return };
    for last in [1, 2] {
        consul.put("hello.svc", "", address(last), HTTP);
    }
    let token = consul.token().unwrap().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let (url, file) = (consul.url(), secret_file(&folder, &token));
    let flags = ["--registry", &url, "--consul-token-file", &file];
    check_start_without(&flags, &[&token, "its-secret-file"], || consul.kill());
}

#[cfg(feature = "zookeeper")]
#[test]
fn a_start_without_zookeeper_answers_from_the_snapshot() {
    let test = "a_start_without_zookeeper_answers_from_the_snapshot";
    let Some((mut zookeeper, client)) = ZooKeeper::start_with_root(test) else { return };
    for last in [1, 2] {
        put_leaf(&client, "hello.svc", &format!("hello.svc-{last}"), last);
    }
    let url = zookeeper.url();
    check_start_without(&["--registry", &url], &[], || zookeeper.kill());
}

#[test]
fn a_server_killed_while_it_saves_leaves_a_usable_snapshot() {
    let mut etcd = hello();
    let mut state = synced(&etcd).stop_and_keep();
    // Large enough that a write takes several milliseconds.
    let many = (0..20_000).map(|n| (key(&format!("s{n}"), 7), HTTP.to_owned()));
    Runtime::new().unwrap().block_on(etcd.put_many(many));
    let mut unfinished = 0;
    for round in 0..20 {
        let server = Svcdns::serve_again(state, &flags(&etcd));
        server.wait_for("s19999.svc", &["10.0.0.7"]);
        server.signal(Signal::SIGTERM);
        thread::sleep(Duration::from_millis(round * 2));
        state = server.kill();
        let names = snapshots(state.path());
        unfinished += names.iter().filter(|path| path.extension().is_some()).count();
        let is_unusable =
            |path: &PathBuf| path.extension().is_some_and(|suffix| suffix == "unusable");
        assert!(!names.iter().any(is_unusable), "{names:?}");
    }
    eprintln!("{unfinished} of 20 writes were unfinished");
    etcd.kill();
    let server = Svcdns::serve_again(state, &flags(&etcd));
    check_answers_from_snapshot(&server);
    assert!(!server.log().contains("cannot use the snapshot"), "{}", server.log());
}

#[test]
fn a_second_server_with_the_state_directory_leaves_its_snapshot_alone() {
    let etcd = hello();
    let server = synced(&etcd);
    let server = Svcdns::serve_again(server.stop_and_keep(), &flags(&etcd));
    let path = snapshot(server.state_dir());
    let before = fs::read(&path).unwrap();
    // Of another registry, it would set the snapshot aside.
    let other = format!("etcd://{}", free_address());
    let second = server.run(&["serve", "--registry", &other, "--listen", "127.0.0.1:0"]);
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && error.contains("another svcdns is running"), "{error}");
    assert_eq!(fs::read(snapshot(server.state_dir())).unwrap(), before);
    server.stop();
}

#[test]
fn the_first_list_of_a_wiped_registry_is_held_for_the_removal_grace() {
    let mut etcd = hello();
    let state = synced(&etcd).stop_and_keep();
    etcd.wipe();
    etcd.start_all();
    etcd.put(&key("other.svc", 9), HTTP);
    etcd.delete(&key("other.svc", 9));
    let flags = [&flags(&etcd)[..], &["--removal-grace".to_owned(), "1h".to_owned()]].concat();
    let server = Svcdns::serve_again(state, &flags);
    eventually("the first list", SOON, || (registries(&server)[0]["synced"] == true).then_some(()));
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    assert!(dig(&server, "hello.svc").contains("EDE: 3 "), "held data is stale");
}

#[test]
fn unusable_snapshots_are_set_aside() {
    let (etcd, mut state) = saved();
    let path = snapshot(state.path());
    let whole = fs::read(&path).unwrap();
    let aside =
        path.with_file_name(path.file_name().unwrap().to_str().unwrap().to_owned() + ".unusable");
    let middle = whole.len() / 2;
    let flip = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let newer = || {
        fs::write(&path, &whole).unwrap();
        rewrite(&path, |bytes| bytes[VERSION_AT + 3] = 2);
        fs::read(&path).unwrap()
    };
    for (bytes, reason) in [
        (flip(0), "it is damaged"),
        (flip(middle), "it is damaged"),
        (flip(whole.len() - 1), "it is damaged"),
        (whole[..middle].to_vec(), "it is damaged"),
        (Vec::new(), "it is damaged"),
        (newer(), "a newer svcdns wrote it (format 2, this one reads 1)"),
    ] {
        let _ = fs::remove_file(&aside);
        fs::write(&path, &bytes).unwrap();
        let server = Svcdns::serve_again(state, &flags(&etcd));
        check_knows_nothing(&server);
        assert!(server.log().contains(reason), "{reason}: {}", server.log());
        assert!(server.log().contains(".unusable"), "{}", server.log());
        assert_eq!(fs::read(&aside).unwrap(), bytes, "{reason}");
        // Without data, nothing is saved.
        state = server.stop_and_keep();
        assert!(!path.exists(), "{reason}");
    }
    // The snapshot of another registry with the same name.
    fs::write(&path, &whole).unwrap();
    let other = format!("etcd://{}", free_address());
    let server = Svcdns::serve_again(state, &["--registry", &other]);
    check_knows_nothing(&server);
    assert!(server.log().contains(&etcd.url()), "{}", server.log());
    assert!(!path.exists() && aside.exists());
}

#[test]
fn a_snapshot_without_access_is_left_where_it_is() {
    let (mut etcd, state) = saved();
    let path = snapshot(state.path());
    let whole = fs::read(&path).unwrap();
    let set_mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    set_mode(0);
    let server = Svcdns::serve_unprivileged(state, &flags(&etcd));
    check_knows_nothing(&server);
    let log = server.log();
    assert!(log.contains("cannot use the snapshot: it cannot be read: Permission denied"), "{log}");
    assert!(log.contains("it is kept until the registry has been read"), "{log}");
    let state = server.stop_and_keep();
    assert_eq!(snapshots(state.path()), std::slice::from_ref(&path));
    set_mode(0o640);
    assert_eq!(fs::read(&path).unwrap(), whole);
    let server = Svcdns::serve_again(state, &flags(&etcd));
    check_answers_from_snapshot(&server);
    // Once the registry has been read, its data replaces even a file without access.
    let state = server.stop_and_keep();
    set_mode(0);
    etcd.start_all();
    etcd.put(&key("hello.svc", 3), HTTP);
    let server = Svcdns::serve_unprivileged(state, &flags(&etcd));
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let state = server.stop_and_keep();
    etcd.kill();
    let server = Svcdns::serve_again(state, &flags(&etcd));
    let addresses = dns::addresses(server.address, "hello.svc").unwrap();
    assert_eq!(addresses.len(), 3, "{addresses:?}");
}

#[test]
fn what_is_no_file_in_place_of_a_snapshot_is_set_aside() {
    let (mut etcd, state) = saved();
    let path = snapshot(state.path());
    fs::remove_file(&path).unwrap();
    // Otherwise, no snapshot could ever replace it.
    fs::create_dir(&path).unwrap();
    let server = Svcdns::serve_again(state, &flags(&etcd));
    check_knows_nothing(&server);
    assert!(server.log().contains("it is a directory"), "{}", server.log());
    assert!(server.log().contains(".unusable"), "{}", server.log());
    etcd.start_all();
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    let state = server.stop_and_keep();
    assert!(path.is_file());
    drop(state);
}

#[test]
fn a_state_directory_that_is_read_only_at_the_start_is_not_used() {
    let name = "a_state_directory_that_is_read_only_at_the_start_is_not_used";
    netns::inside(name, "127.0.0.1", || {
        let mut etcd = hello();
        let state = synced(&etcd).stop_and_keep();
        let (path, directory) = (snapshot(state.path()), state.path().to_str().unwrap());
        let whole = fs::read(&path).unwrap();
        netns::run("mount", &["--bind", directory, directory]);
        netns::run("mount", &["-o", "remount,bind,ro", directory]);

        // A default directory, as systemd sets it: the server runs without one.
        let (runtime, address) = (tempfile::tempdir().unwrap(), "127.0.0.1:5300");
        let flags = flags(&etcd);
        let mut command = support::svcdns::command();
        command.args(["serve", "--listen", address, "--upstream", "off", "--admin-listen", "off"]);
        command.args(&flags).arg("--runtime-dir").arg(runtime.path());
        let mut server = Process::start(command.env("STATE_DIRECTORY", directory));
        eventually("the answer", SOON, || {
            let found = dns::addresses(address.parse().unwrap(), "hello.svc").ok()?;
            (found.len() == 2).then_some(())
        });
        let log = server.log();
        assert!(log.contains("no state is kept across restarts"), "{log}");
        assert!(log.contains("Read-only file system"), "{log}");
        assert!(server.terminate().success());

        // A directory that the user has named must be usable.
        let output = support::svcdns::command()
            .args(["serve", "--listen", "127.0.0.1:0", "--upstream", "off"])
            .args(["--state-dir", directory])
            .args(&flags)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        let reason = format!("cannot use the state directory {directory}: Read-only file system");
        assert!(error.contains(&reason), "{error}");
        etcd.kill();
        netns::run("umount", &[directory]);
        assert_eq!(fs::read(&path).unwrap(), whole);
        let server = Svcdns::serve_again(state, &flags);
        check_answers_from_snapshot(&server);
    });
}

#[test]
fn the_age_of_a_snapshot_decides_whether_it_is_used() {
    let (etcd, state) = saved();
    let path = snapshot(state.path());
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let set_time = |seconds: u64| {
        rewrite(&path, |bytes| {
            bytes[TIME_AT..TIME_AT + 8].copy_from_slice(&seconds.to_be_bytes());
        });
    };
    // Six days are not too old, and seven days and an hour are.
    set_time(now - 6 * 86_400);
    let server = Svcdns::serve_again(state, &flags(&etcd));
    check_answers_from_snapshot(&server);
    // A stop without the registry does not make the data younger.
    let state = server.stop_and_keep();
    let server = Svcdns::serve_again(
        state,
        &[&flags(&etcd)[..], &["--max-stale=5days".to_owned()]].concat(),
    );
    check_knows_nothing(&server);
    let state = server.stop_and_keep();
    set_time(now - 7 * 86_400 - 3_600);
    let server = Svcdns::serve_again(state, &flags(&etcd));
    check_knows_nothing(&server);
    assert!(server.log().contains("older than max-stale"), "{}", server.log());
    // The file stays: if the clock was wrong, a later start can use it.
    let state = server.stop_and_keep();
    let longer = [&flags(&etcd)[..], &["--max-stale=8days".to_owned()]].concat();
    let server = Svcdns::serve_again(state, &longer);
    check_answers_from_snapshot(&server);
    // The clock has gone back by years.
    let state = server.stop_and_keep();
    set_time(now + 5 * 365 * 86_400);
    let server = Svcdns::serve_again(state, &flags(&etcd));
    check_answers_from_snapshot(&server);
    assert!(server.log().contains("the clock has gone back"), "{}", server.log());
}

#[test]
fn of_two_registries_only_the_unreachable_one_is_stale() {
    let (mut one, two) = (hello(), Etcd::start());
    two.put(&key("second.svc", 7), HTTP);
    let both = [flags(&one), flags(&two)].concat();
    let server = Svcdns::serve(&both);
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    server.wait_for("second.svc", &["10.0.0.7"]);
    let state = server.stop_and_keep();
    assert_eq!(snapshots(state.path()).len(), 2);
    one.kill();
    two.put(&key("second.svc", 8), HTTP);
    let server = Svcdns::serve_again(state, &both);
    check_answers_from_snapshot(&server);
    server.wait_for("second.svc", &["10.0.0.7", "10.0.0.8"]);
    eventually("fresh answers of the second", SOON, || {
        (!dig(&server, "second.svc").contains("EDE")).then_some(())
    });
    assert!(dig(&server, "hello.svc").contains("EDE: 3 "));
    assert!(dig(&server, "absent.svc").contains("EDE: 19 "));
}

#[test]
fn nothing_is_saved_if_snapshots_are_off() {
    let etcd = hello();
    let off = [&flags(&etcd)[..], &["--snapshot=false".to_owned()]].concat();
    let server = Svcdns::serve(&off);
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    let state = server.stop_and_keep();
    assert_eq!(snapshots(state.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_snapshot_is_on_disk_before_it_gets_its_name() {
    if !strace::can_trace() {
        return skip("a_snapshot_is_on_disk_before_it_gets_its_name", "strace cannot trace");
    }
    let etcd = hello();
    let server = synced(&etcd);
    let output = tempfile::tempdir().unwrap();
    let trace = output.path().join("trace");
    let arguments = ["-e", "trace=write,fsync,rename", "-o", trace.to_str().unwrap()];
    let mut tracer = Tracer::attach(server.pid(), &arguments);
    let state = server.stop_and_keep();
    tracer.wait();
    let trace = fs::read_to_string(&trace).unwrap();
    let name = snapshot(state.path()).to_str().unwrap().to_owned();
    let directory = state.path().to_str().unwrap();
    let position = |what: &str, parts: &[&str]| {
        let lines: Vec<&str> = trace.lines().collect();
        let is = |line: &&str| parts.iter().all(|part| line.contains(part));
        lines.iter().rposition(is).unwrap_or_else(|| panic!("no {what} in\n{trace}"))
    };
    let steps = [
        position("write", &["write(", &format!("<{name}.new>")]),
        position("fsync of the file", &["fsync(", &format!("<{name}.new>")]),
        position("rename", &["rename(", &format!("\"{name}.new\", \"{name}\"")]),
        position("fsync of the directory", &["fsync(", &format!("<{directory}>")]),
    ];
    assert!(steps.is_sorted(), "{steps:?} in\n{trace}");
}

#[test]
fn a_stop_does_not_wait_for_a_disk_that_hangs() {
    if !strace::can_trace() {
        return skip("a_stop_does_not_wait_for_a_disk_that_hangs", "strace cannot trace");
    }
    let mut etcd = hello();
    let server = synced(&etcd);
    let mut server = Svcdns::serve_again(server.stop_and_keep(), &flags(&etcd));
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    let delay = ["-e", "trace=fsync", "-e", "inject=fsync:delay_enter=3600s"];
    let tracer = Tracer::attach(server.pid(), &delay);
    etcd.put(&key("hello.svc", 3), HTTP);
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    server.signal(Signal::SIGTERM);
    let log =
        eventually("the end", SOON, || Some(server.log()).filter(|log| log.contains("stopped")));
    assert!(log.contains("the snapshots were not written in time"), "{log}");
    // A traced process ends only once its tracer has noticed.
    drop(tracer);
    eventually("the end", SOON, || (!server.is_running()).then_some(()));
    let state = server.kill();
    // The previous snapshot is still there.
    etcd.kill();
    let server = Svcdns::serve_again(state, &flags(&etcd));
    check_answers_from_snapshot(&server);
}

#[test]
fn a_full_or_read_only_disk_stops_only_the_snapshots() {
    netns::inside("a_full_or_read_only_disk_stops_only_the_snapshots", "127.0.0.1", || {
        let disk = tempfile::tempdir().unwrap();
        let path = disk.path().to_str().unwrap();
        netns::run("mount", &["-t", "tmpfs", "-o", "size=256k", "disk", path]);
        let etcd = hello();
        let state = tempfile::tempdir_in(path).unwrap();
        let server = Svcdns::serve_again(state, &flags(&etcd));
        let filler = disk.path().join("filler");
        // Writes until the disk is full.
        let _ = fs::write(&filler, vec![1; 1 << 20]);
        server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
        let warnings = |text: &str| server.log().matches(text).count();
        let wait_for = |text: &str, count: usize| {
            eventually(text, SOON, || (warnings(text) == count).then_some(()));
        };
        wait_for("cannot save the snapshot", 1);
        etcd.put(&key("hello.svc", 3), HTTP);
        server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        fs::remove_file(&filler).unwrap();
        wait_for("saved the snapshot again", 1);
        let saved = fs::read(snapshot(server.state_dir())).unwrap();
        assert_eq!(warnings("cannot save the snapshot"), 1, "{}", server.log());

        // The lock is open for writing, so the disk itself cannot become read-only here.
        let directory = server.state_dir().to_str().unwrap().to_owned();
        netns::run("mount", &["-t", "tmpfs", "-o", "ro", "disk", &directory]);
        etcd.put(&key("hello.svc", 4), HTTP);
        wait_for("cannot save the snapshot", 2);
        server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        assert!(server.log().contains("Read-only file system"), "{}", server.log());
        netns::run("umount", &[&directory]);
        assert_eq!(fs::read(snapshot(server.state_dir())).unwrap(), saved);
        server.signal(Signal::SIGTERM);
        let mut server = server;
        eventually("the end", SOON, || (!server.is_running()).then_some(()));
    });
}
