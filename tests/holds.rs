//! Holds as people see and end them: the whole program on a real etcd.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use nix::unistd::geteuid;
use serde_json::Value;
use support::etcd::Etcd;
use support::process::Process;
use support::svcdns::{self, Svcdns};
use support::{SOON, dns, eventually};

const HTTP: &str = r#"{"insecure":true,"protocol":"http"}"#;

/// The user `nobody`.
const NOBODY: u32 = 65_534;

/// Registers services with one instance each: `web-1.svc` at 10.0.0.1, and so on.
fn register(etcd: &Etcd, count: u8) {
    for last in 1..=count {
        etcd.put(&key(last), HTTP);
    }
}

fn key(last: u8) -> String {
    format!("/service/default/default/web-{last}.svc/latest/10.0.0.{last}:80")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(server: &Svcdns, arguments: &[&str]) -> Value {
    serde_json::from_slice(&server.run(&[arguments, &["--json"]].concat()).stdout).unwrap()
}

fn holding(server: &Svcdns) -> u64 {
    json(server, &["status"])["holding"].as_u64().unwrap()
}

/// Requests a path over the socket of a server; returns the status code and the body.
fn request(server: &Svcdns, method: &str, path: &str) -> (String, String) {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "60", "-w", "\n%{http_code}", "-X", method, "--unix-socket"])
        .arg(server.state_dir().join("svcdns.sock"))
        .arg(format!("http://localhost{path}"))
        .output()
        .unwrap();
    let text = stdout(&output);
    let (body, code) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{}", stderr(&output)));
    (code.to_owned(), body.to_owned())
}

/// Replaces the times of day and the port of etcd, so that the text equals that of a page.
fn normalized(text: &str, etcd: &Etcd) -> String {
    let text = text.replace(&etcd.endpoint(0), "10.0.0.1:2379");
    let mut words: Vec<&str> = text.split(' ').collect();
    for at in 1..words.len() {
        if words[at].starts_with("UTC") && words[at - 1].matches(':').count() == 2 {
            words[at - 1] = "14:03:05";
        }
    }
    words.join(" ")
}

/// Returns whether a page has these lines in a block of text.
fn shows(page: &str, lines: &str) -> bool {
    page.contains(lines.trim_end())
}

#[test]
fn a_hold_is_shown_everywhere_until_it_is_released() {
    let mut etcd = Etcd::start();
    register(&etcd, 12);
    let flags = ["--registry", &etcd.url(), "--removal-grace", "1h", "--admin-listen"];
    let server = Svcdns::serve(&[&flags[..], &["127.0.0.1:0"]].concat());
    server.wait_for("web-12.svc", &["10.0.0.12"]);
    let nothing = server.run(&["release"]);
    assert_eq!(
        (stdout(&nothing).as_str(), nothing.status.code()),
        ("no removal is on hold\n", Some(0))
    );
    assert_eq!(stdout(&server.run(&["release", "etcd"])), "no removal of etcd is on hold\n");

    etcd.wipe();
    etcd.start_all();
    etcd.put(&key(1), HTTP);
    eventually("11 held removals", SOON, || (holding(&server) == 11).then_some(()));
    let operations = include_str!("../docs/operations.md");
    let cause = "the store may have lost its data, and lacks these keys";

    let status = normalized(&stdout(&server.run(&["status"])), &etcd);
    let held = format!(
        "  11 removals on hold from 14:03:05 UTC to 14:03:05 UTC: {cause}\n  \
         `svcdns release etcd` removes these keys now\n"
    );
    assert!(status.contains(&held), "{status}");
    let hold = json(&server, &["status"])["registries"][0]["holds"][0].take();
    assert_eq!((&hold["cause"], &hold["keys"]), (&"restored".into(), &11.into()));
    assert_eq!(hold["message"], cause);
    assert_eq!(hold["until"].as_u64().unwrap() - hold["since"].as_u64().unwrap(), 3600);

    let listed = stdout(&server.run(&["ls"]));
    assert_eq!(listed.matches("removal held until ").count(), 11, "{listed}");
    let line = listed.lines().find(|line| line.starts_with("web-1.svc.")).unwrap();
    assert!(!line.contains("held"), "{line}");
    let listed = json(&server, &["ls", "web-2"]);
    let instance = &listed[0]["instances"][0];
    assert_eq!((&instance["held"], &instance["hold"]), (&true.into(), &hold));
    assert_eq!(json(&server, &["ls", "web-1"])[0]["instances"][0].get("hold"), None);

    let explained = normalized(&stdout(&server.run(&["explain", "web-2"])), &etcd);
    let wanted = format!("selected (removal held until 14:03:05 UTC: {cause})");
    assert!(explained.contains(&wanted), "{explained}");
    let instance = json(&server, &["explain", "web-2"])["considered"][0].take();
    assert_eq!((&instance["held"], &instance["hold"]), (&true.into(), &hold));

    let (code, metrics) = request(&server, "GET", "/metrics");
    assert_eq!(code, "200");
    let labels = |cause| format!("{{registry=\"etcd\",cause=\"{cause}\"}}");
    for line in [
        "svcdns_held_keys 11.0".to_owned(),
        format!("svcdns_registry_held_keys{} 11.0", labels("restored")),
        format!("svcdns_registry_held_keys{} 0.0", labels("expiry")),
        format!("svcdns_registry_holds_total{} 1", labels("restored")),
        format!("svcdns_registry_holds_total{} 0", labels("reconnect")),
        format!(
            "svcdns_registry_hold_end_timestamp_seconds{} {}.0",
            labels("restored"),
            hold["until"]
        ),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in\n{metrics}");
    }
    assert_eq!(metrics.matches("svcdns_registry_hold_end_timestamp_seconds{").count(), 1);

    let ede = |name: &str| {
        let text = normalized(&dns::dig(server.address, &[name]), &etcd);
        let line = text.lines().find(|line| line.starts_with("; EDE: ")).map(str::to_owned);
        line.unwrap_or(text)
    };
    let text = "(etcd: 11 removals on hold until 14:03:05 UTC)";
    for (name, code) in [("web-2.svc", "3"), ("web-1.svc", "3"), ("nothing.svc", "19")] {
        let found = ede(name);
        assert!(found.starts_with(&format!("; EDE: {code} ")) && found.contains(text), "{found}");
    }
    assert!(
        operations.contains(&text[1..text.len() - 1].replace("11", "12")),
        "docs/operations.md"
    );
    let log = server.log();
    let line = format!("removals are on hold: {cause}; `svcdns release etcd`");
    assert!(log.lines().any(|found| found.contains(&line)), "{log}");

    // Neither a port nor another request changes anything.
    let admin = json(&server, &["status"])["admin"].as_str().unwrap().to_owned();
    let mut port = Command::new("curl");
    port.args(["-sS", "--max-time", "60", "-X", "POST"]);
    let refused = stdout(&port.arg(format!("http://{admin}/v1/release")).output().unwrap());
    assert!(refused.starts_with("only `svcdns release` can end a hold"), "{refused}");
    assert_eq!(request(&server, "GET", "/v1/release").0, "405");
    assert_eq!(request(&server, "POST", "/v1/status").0, "405");
    let unknown = server.run(&["release", "consul"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(
        stderr(&unknown),
        "svcdns: no registry is named \"consul\"; this server follows etcd\n"
    );
    assert_eq!(holding(&server), 11);

    let released = server.run(&["release", "etcd"]);
    assert!(released.status.success(), "{}", stderr(&released));
    let text = normalized(&stdout(&released), &etcd);
    assert_eq!(text, format!("etcd: removed 11 keys, on hold since 14:03:05 UTC: {cause}\n"));
    // On the page, both have the time of the first removal.
    for lines in [text, held] {
        let wanted = lines.replace("11", "12").replacen("14:03:05", "14:02:53", 1);
        assert!(shows(operations, &wanted), "docs/operations.md lacks {wanted}");
    }
    // The reply comes after the publication.
    assert_eq!(dns::code(server.address, "web-2.svc", dns::A), "NXDOMAIN");
    assert_eq!(dns::addresses(server.address, "web-1.svc").unwrap(), [Ipv4Addr::new(10, 0, 0, 1)]);
    assert!(!ede("web-1.svc").starts_with("; EDE"), "fresh again");
    assert_eq!(holding(&server), 0);
    let (_, metrics) = request(&server, "GET", "/metrics");
    assert!(!metrics.contains("svcdns_registry_hold_end_timestamp_seconds{"), "{metrics}");
    let log = server.log();
    for line in ["a hold was ended by hand registry=etcd keys=11", "removals are no longer on hold"]
    {
        assert!(log.contains(line), "{line} in\n{log}");
    }
    // Released keys do not come back, and a program that registers again is served.
    etcd.put(&key(2), HTTP);
    server.wait_for("web-2.svc", &["10.0.0.2"]);
    server.stop();
}

#[test]
fn each_registry_has_its_own_removal_grace_and_is_released_by_name() {
    let (mut long, mut none, mut other) = (Etcd::start(), Etcd::start(), Etcd::start());
    for (etcd, name) in [(&long, "long"), (&none, "none"), (&other, "other")] {
        etcd.put(&format!("/service/default/default/{name}/latest/10.0.0.1:80"), HTTP);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("svcdns.toml");
    let text = format!(
        "removal-grace = '30m'\n[registry.long]\nurl = '{}'\nremoval-grace = '1h'\n\
         [registry.none]\nurl = '{}'\nremoval-grace = '0s'\n[registry.other]\nurl = '{}'\n",
        long.url(),
        none.url(),
        other.url()
    );
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let checked = svcdns::command().args(["check", "--config", file]).output().unwrap();
    let checked = stdout(&checked);
    for (name, grace) in [("long", "\"1h\""), ("none", "\"0s\""), ("other", "\"30m\"")] {
        let key = format!("registry.{name}.removal-grace");
        let mut rows = checked.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        assert!(rows.any(|row| row[..row.len().min(2)] == [&*key, grace]), "{key} in\n{checked}");
    }
    let server = Svcdns::serve(&["--config", file]);
    for name in ["long.svc", "none.svc", "other.svc"] {
        server.wait_for(name, &["10.0.0.1"]);
    }
    for etcd in [&mut long, &mut none, &mut other] {
        etcd.wipe();
        etcd.start_all();
    }
    server.wait_for_code("none.svc", "NXDOMAIN");
    eventually("two holds", SOON, || (holding(&server) == 2).then_some(()));
    let status = json(&server, &["status"]);
    let length = |index: usize| {
        let hold = status["registries"][index]["holds"].as_array().unwrap().first()?;
        Some(hold["until"].as_u64().unwrap() - hold["since"].as_u64().unwrap())
    };
    assert_eq!([0, 1, 2].map(length), [Some(3600), None, Some(1800)]);

    let released = stdout(&server.run(&["release", "other"]));
    assert!(released.starts_with("other: removed 1 key, on hold since "), "{released}");
    assert_eq!(dns::code(server.address, "other.svc", dns::A), "NXDOMAIN");
    assert_eq!(dns::addresses(server.address, "long.svc").unwrap().len(), 1);
    let released = stdout(&server.run(&["release"]));
    assert!(released.starts_with("long: ") && released.lines().count() == 1, "{released}");
    assert_eq!(dns::code(server.address, "long.svc", dns::A), "NXDOMAIN");
    server.stop();
}

/// Runs a copy of the program as another user.
fn run_as(user: u32, program: &Path, arguments: &[&str], state: &Path) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).arg("--state-dir").arg(state).current_dir("/");
    command.uid(user).gid(user).output().unwrap()
}

#[test]
fn only_root_and_the_user_of_the_server_may_release() {
    let test = "only_root_and_the_user_of_the_server_may_release";
    if !geteuid().is_root() {
        return support::skip_without_kernel_feature(
            test,
            "only root can run another user's program",
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    open(folder.path());
    let program = folder.path().join("svcdns");
    fs::copy(env!("CARGO_BIN_EXE_svcdns"), &program).unwrap();
    let registry = folder.path().join("registry");
    fs::create_dir(&registry).unwrap();
    let url = format!("file://{}", registry.display());

    // A server of root.
    let server = Svcdns::serve(&["--registry", &url]);
    open(server.state_dir());
    let denied = run_as(NOBODY, &program, &["release"], server.state_dir());
    assert_eq!(denied.status.code(), Some(1));
    assert_eq!(
        stderr(&denied),
        "svcdns: user 65534 may not end a hold: only root and the user that svcdns runs as (0) \
         may; try `sudo svcdns release`\n"
    );
    // Everybody may read.
    let status = run_as(NOBODY, &program, &["status"], server.state_dir());
    assert!(status.status.success(), "{}", stderr(&status));
    assert_eq!(stdout(&server.run(&["release"])), "no removal is on hold\n");
    server.stop();

    // A server of its own user, as the service is.
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
    chown(&registry, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new(&program);
    command.args([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "off",
        "--upstream",
        "off",
    ]);
    command.args(["--registry", &url, "--state-dir"]).arg(&state).current_dir("/");
    let process = Process::start(command.uid(NOBODY).gid(NOBODY));
    eventually("the server of nobody", SOON, || {
        run_as(0, &program, &["status"], &state).status.success().then_some(())
    });
    for user in [0, NOBODY] {
        let released = run_as(user, &program, &["release"], &state);
        assert_eq!(stdout(&released), "no removal is on hold\n", "{}", stderr(&released));
    }
    let denied = run_as(NOBODY - 1, &program, &["release"], &state);
    assert!(stderr(&denied).contains("svcdns runs as (65534) may"), "{}", stderr(&denied));
    drop(process);
}
