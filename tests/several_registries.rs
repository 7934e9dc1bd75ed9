//! Several registries as one zone: merging, the failure of one, static services and `diff`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::process::Output;

use serde_json::Value;
use support::consul::Consul;
use support::dns::Prober;
use support::etcd::Etcd;
use support::files::Files;
use support::svcdns::{self, Svcdns};
use support::{SOON, dns, eventually};
use tempfile::TempDir;

const HTTP: &str = r#"{"protocol":"http"}"#;

/// Returns the key of a service with this endpoint.
fn key(name: &str, endpoint: &str) -> String {
    format!("/service/default/default/{name}/latest/{endpoint}")
}

/// Writes a configuration file.
fn write_config(text: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("svcdns.toml");
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap().to_owned();
    (directory, file)
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Returns whether the response for a name and type has an EDE of stale data.
fn is_stale(server: &Svcdns, name: &str, rtype: &str) -> bool {
    let text = dns::dig(server.address, &[name, rtype]);
    assert!(text.contains("status: NOERROR"), "{text}");
    text.contains("EDE: 3 ")
}

/// Returns a field of a registry in `status`.
fn status_of(server: &Svcdns, registry: &str, field: &str) -> Value {
    let status = json(&server.run(&["status", "--json"]));
    let mut registries = status["registries"].as_array().unwrap().iter();
    registries.find(|view| view["name"] == registry).unwrap()[field].clone()
}

/// Returns the registry and the reason for dropping each instance of a service.
fn instances(server: &Svcdns, name: &str) -> Vec<(String, String, Option<String>)> {
    let services = json(&server.run(&["ls", name, "--json"]));
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let instances = services[0]["instances"].as_array().unwrap().iter();
    instances
        .map(|instance| {
            let (endpoint, registry) = (&instance["endpoint"], &instance["registry-name"]);
            assert!(instance["registry"].is_u64(), "{instance}");
            (text(endpoint).unwrap(), text(registry).unwrap(), text(&instance["left-out"]))
        })
        .collect()
}

/// Kills and wipes the first of two registries, and checks the names of the second throughout.
fn check_that_a_wiped_registry_takes_nothing_from_another(merge: &str) {
    let (mut one, two) = (Etcd::start(), Etcd::start());
    one.put(&key("first.svc", "10.0.0.1:80"), HTTP);
    one.put(&key("both.svc", "10.0.0.2:80"), HTTP);
    one.put(&key("mixed.svc", "10.0.0.4:80"), HTTP);
    two.put(&key("both.svc", "10.0.0.2:80"), HTTP);
    two.put(&key("second.svc", "10.0.0.3:80"), HTTP);
    two.put(&key("mixed.svc", "10.0.0.5:80"), HTTP);
    let server = Svcdns::serve(&[
        "--registry",
        &one.url(),
        "--registry",
        &two.url(),
        "--merge",
        merge,
        "--removal-grace",
        "3s",
    ]);
    let mixed: &[&str] = if merge == "first" { &["10.0.0.4"] } else { &["10.0.0.4", "10.0.0.5"] };
    for (name, addresses) in [
        ("first.svc", &["10.0.0.1"][..]),
        ("both.svc", &["10.0.0.2"]),
        ("second.svc", &["10.0.0.3"]),
        ("mixed.svc", mixed),
    ] {
        server.wait_for(name, addresses);
    }
    let probers =
        ["both.svc", "second.svc", "mixed.svc"].map(|name| Prober::start(server.address, name));
    let check = |server: &Svcdns| {
        for name in ["both.svc", "second.svc", "10-0-0-2.both.svc", "10-0-0-3.second.svc"] {
            for rtype in ["A", "AAAA", "SRV", "TXT"] {
                let stale = is_stale(server, name, rtype);
                assert!(!stale, "{merge}: {name} {rtype} is marked as stale");
            }
        }
    };
    check(&server);

    one.wipe();
    eventually("a lost connection", SOON, || {
        (status_of(&server, "etcd", "connected") == false).then_some(())
    });
    check(&server);
    assert!(is_stale(&server, "first.svc", "A") && is_stale(&server, "mixed.svc", "A"));
    assert_eq!(status_of(&server, "etcd2", "connected"), true);

    one.start_all();
    eventually("the end of the removal grace", SOON, || {
        check(&server);
        (dns::code(server.address, "first.svc", dns::A) == "NXDOMAIN").then_some(())
    });
    server.wait_for("mixed.svc", &["10.0.0.5"]);
    check(&server);
    for prober in probers {
        prober.expect_no_loss();
    }
    server.stop();
}

#[test]
fn a_registry_that_is_killed_and_wiped_takes_nothing_from_another() {
    check_that_a_wiped_registry_takes_nothing_from_another("union");
}

#[test]
fn a_registry_that_precedes_another_takes_nothing_from_it_when_wiped() {
    check_that_a_wiped_registry_takes_nothing_from_another("first");
}

#[test]
fn the_first_registry_that_holds_a_name_is_served_alone() {
    let one = Files::new(&[
        ("default/default/hello.svc/latest/10.0.0.1:80", "{}"),
        ("default/prod/hello.svc/latest/10.0.0.2:80", "{}"),
    ]);
    let two = Files::new(&[
        ("default/default/hello/v2/10.0.0.3:80", "{}"),
        ("default/dev/hello.svc/latest/10.0.0.4:80", "{}"),
        ("default/default/other.svc/latest/[fd00::5]:80", "{}"),
    ]);
    let text = format!(
        "merge = \"first\"\n[registry.one]\nurl = \"{}\"\n[registry.two]\nurl = \"{}\"\n",
        one.url(),
        two.url()
    );
    let (_directory, file) = write_config(&text);
    let server = Svcdns::serve(&["--config", &file]);
    for (name, address) in
        [("hello.svc", "10.0.0.1"), ("hello.prod.svc", "10.0.0.2"), ("hello.dev.svc", "10.0.0.4")]
    {
        server.wait_for(name, &[address]);
    }
    assert_eq!(dns::dig_short(server.address, &["other.svc", "AAAA"]), ["fd00::5"]);
    assert_eq!(dns::code(server.address, "v2.hello.svc", dns::A), "NXDOMAIN");
    let dropped = instances(&server, "hello");
    let (_, _, reason) = dropped.iter().find(|(at, ..)| at == "10.0.0.3:80").unwrap();
    let preceded = "preceded: registry one has the name, and comes first (merge, override)";
    assert_eq!(reason.as_deref(), Some(preceded), "{dropped:?}");
    let conflicts = stdout(&server.run(&["ls", "--conflicts"]));
    let words: Vec<_> = conflicts.lines().nth(1).unwrap().split_whitespace().collect();
    let expected = ["hello", "preceded", "registry", "one", "registry", "two", "default/default"];
    assert_eq!(words, expected, "{conflicts}");
    let explained = stdout(&server.run(&["explain", "hello.svc"]));
    assert!(explained.contains(&format!("dropped: {preceded}")), "{explained}");
    assert!(explained.contains(", in one\n") && explained.contains(", in two\n"), "{explained}");

    // A key without a usable endpoint is no reason to hide the second registry's instances.
    one.put("default/default/hello.svc/latest/10.0.0.1:0", "{}");
    one.delete("default/default/hello.svc/latest/10.0.0.1:80");
    server.wait_for("hello.svc", &["10.0.0.3"]);
    one.put("default/default/hello.svc/latest/10.0.0.1:80", "{}");
    server.wait_for("hello.svc", &["10.0.0.1"]);

    // The second registry's instances return as soon as the first has none.
    one.delete("default/default/hello.svc/latest/10.0.0.1:80");
    server.wait_for("hello.svc", &["10.0.0.3"]);
    server.stop();
}

#[test]
fn static_services_are_served_until_a_registry_holds_the_name() {
    let files = Files::new(&[
        ("default/default/hello.svc/latest/10.0.0.1:80", "{}"),
        ("default/default/hidden.svc/latest/[fd00::9]:80", HTTP),
    ]);
    let text = format!(
        r#"
registry = ["{}"]
[[static]]
name = "legacy"
endpoints = ["10.0.0.7:8080", "legacy.example:8081"]
metadata = {{ weight = 5, protocol = "http", beta = true }}
[[static]]
name = "legacy"
version = "v2"
endpoints = ["10.0.0.8:8080"]
[[static]]
name = "hello"
endpoints = ["10.0.0.9:80"]
[[static]]
name = "hidden"
override = true
endpoints = ["10.0.0.6:80"]
[[static]]
name = "far"
namespace = "prod"
deployment = "blue"
endpoints = ["10.0.0.10:80"]
"#,
        files.url()
    );
    let (_directory, file) = write_config(&text);
    let server = Svcdns::serve(&["--config", &file]);
    for (name, address) in [
        ("hello.svc", "10.0.0.1"),
        ("legacy.svc", "10.0.0.7"),
        ("v2.legacy.svc", "10.0.0.8"),
        ("true._beta.legacy.svc", "10.0.0.7"),
        ("hidden.svc", "10.0.0.6"),
        ("far.prod.blue.svc", "10.0.0.10"),
    ] {
        server.wait_for(name, &[address]);
    }
    let srv = dns::dig_short(server.address, &["legacy.svc", "SRV"]);
    assert_eq!(srv, ["0 5 8080 10-0-0-7.legacy.svc.", "0 5 8081 legacy.example."]);
    // Nothing of an overridden name is left: neither other types nor the reverse name.
    assert_eq!(dns::dig_short(server.address, &["hidden.svc", "AAAA"]), [""; 0]);
    assert_eq!(dns::dig_short(server.address, &["hidden.svc", "TXT"]), [r#""""#]);
    assert_eq!(dns::dig_short(server.address, &["-x", "fd00::9"]), [""; 0]);
    let conflicts = stdout(&server.run(&["ls", "--conflicts"]));
    let rows: Vec<Vec<_>> =
        conflicts.lines().skip(1).map(|line| line.split_whitespace().take(6).collect()).collect();
    let expected = [
        ["hello", "preceded", "registry", "file", "registry", "static"],
        ["hidden", "preceded", "registry", "static", "registry", "file"],
    ];
    assert_eq!(rows, expected, "{conflicts}");
    let url = format!("static://{file}");
    assert_eq!(status_of(&server, "static", "url"), url.as_str());
    assert_eq!(status_of(&server, "static", "error"), Value::Null);
    assert_eq!(status_of(&server, "static", "connected"), true);
    assert_eq!(status_of(&server, "static", "instances"), 6);

    // A program that registers under the name takes over, and gives it back.
    files.put("default/default/legacy.svc/latest/10.0.0.20:80", "{}");
    server.wait_for("legacy.svc", &["10.0.0.20"]);
    files.delete("default/default/legacy.svc/latest/10.0.0.20:80");
    server.wait_for("legacy.svc", &["10.0.0.7"]);
    server.stop();
}

#[test]
fn diff_shows_what_one_registry_has_and_the_other_lacks() {
    let etcd = Etcd::start();
    etcd.put(&key("hello.svc", "10.0.0.1:80"), r#"{"weight":5,"protocol":"http"}"#);
    etcd.put(&key("hello.svc", "10.0.0.2:80"), HTTP);
    etcd.put(&key("gone.svc", "10.0.0.3:80"), "{}");
    let files = Files::new(&[
        ("default/default/hello.svc/latest/10.0.0.1:80", r#"{"weight":"7","zone":"b"}"#),
        ("default/default/hello.svc/latest/10.0.0.2:80", HTTP),
        ("default/prod/new/v1/10.0.0.4:80", "{}"),
        ("default/default/bad/latest/10.0.0.5:0", "{}"),
    ]);
    let (etcd_url, files_url) = (etcd.url(), files.url());
    let text = format!(
        "[registry.old]\nurl = \"{etcd_url}\"\n[registry.new]\nurl = \"{files_url}\"\n\
         [[static]]\nname = \"new\"\nendpoints = [\"10.0.0.4:80\"]\n"
    );
    let (_directory, file) = write_config(&text);
    let output = diff(&file, &["old", "new"]);
    let (text, notes) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(1), "{text}{notes}");
    let rows: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let changed = "protocol=http in old, weight=5 in old, weight=7 in new, zone=b in new";
    let expected = [
        "SERVICE ENDPOINT DEPLOYMENT/NAMESPACE VERSION DIFFERENCE",
        "gone.svc 10.0.0.3:80 default/default latest only in old",
        &format!("hello.svc 10.0.0.1:80 default/default latest {changed}"),
        "new 10.0.0.4:80 default/prod v1 only in new",
        "",
        "1 instance only in old, 1 only in new, 1 with other metadata, 1 equal",
    ];
    assert_eq!(rows, expected, "{text}");
    assert_eq!(
        notes.trim(),
        "svcdns: 1 key or endpoint of new cannot be served and was not compared"
    );
    // URLs work without any configuration.
    let urls = diff("/dev/null", &[&etcd_url, &files_url, "--json"]);
    assert_eq!(urls.status.code(), Some(1));
    let view = json(&urls);
    assert_eq!((&view["a"]["url"], &view["b"]["url"]), (&etcd_url.into(), &files_url.into()));
    assert_eq!(view["equal"], 1);
    let names = |list: &str| {
        let list = view[list].as_array().unwrap().iter();
        list.map(|one| one["service"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("only-in-a"), ["gone.svc"]);
    assert_eq!(names("only-in-b"), ["new"]);
    assert_eq!(names("metadata"), ["hello.svc"]);
    assert_eq!(view["metadata"][0]["a"]["weight"], "5");

    let same = diff(&file, &["old", "old"]);
    assert_eq!(same.status.code(), Some(0));
    assert_eq!(stdout(&same), "old and old are equal: 3 instances\n");
    let unknown = diff(&file, &["old", "nwe"]);
    assert_eq!(unknown.status.code(), Some(2));
    let expected =
        "no registry is named nwe; the configuration has old, new, static; or give a URL";
    assert!(stderr(&unknown).contains(expected), "{}", stderr(&unknown));
}

/// Returns the result of `diff` with a configuration file.
fn diff(file: &str, arguments: &[&str]) -> Output {
    svcdns::command().args(["diff", "--config", file]).args(arguments).output().unwrap()
}

#[test]
fn diff_compares_what_registries_hold_whatever_the_aliases() {
    let etcd = Etcd::start();
    etcd.put(&key("hello.svc", "10.0.0.1:80"), HTTP);
    etcd.put(&key("hello.svc", "10.0.0.2:80"), HTTP);
    etcd.put(&key("other", "10.0.0.3:80"), HTTP);
    let empty = Files::new(&[]);
    let aliases = "[alias]\n\"hello\" = \"legacy\"\n\"other\" = \"legacy\"\nwww = \"third\"\n";
    let (_directory, file) = write_config(aliases);
    let output = diff(&file, &[&etcd.url(), &empty.url(), "--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let view = json(&output);
    let only: Vec<_> = view["only-in-a"].as_array().unwrap().iter().collect();
    let found: Vec<_> = only.iter().map(|one| [&one["service"], &one["endpoint"]]).collect();
    let expected =
        [["hello.svc", "10.0.0.1:80"], ["hello.svc", "10.0.0.2:80"], ["other", "10.0.0.3:80"]];
    assert_eq!(found, expected);

    // An alias is no instance.
    etcd.put(&key("third", "10.0.0.4:80"), HTTP);
    let output = diff(&file, &[&etcd.url(), &etcd.url()]);
    assert!(stdout(&output).ends_with("equal: 4 instances\n"), "{output:?}");
}

#[test]
fn diff_fails_if_a_directory_does_not_exist() {
    let files = Files::new(&[]);
    let missing = format!("{}/missing", files.url());
    for arguments in [[&missing, &files.url()], [&files.url(), &missing]] {
        let output = diff("/dev/null", &arguments.map(String::as_str));
        assert_eq!((output.status.code(), &*stdout(&output)), (Some(2), ""), "{output:?}");
        let error = stderr(&output);
        let expected = format!("{missing} could not be read completely: the directory does not");
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn diff_names_the_argument_that_is_no_registry() {
    let output = diff("/dev/null", &["http://x", "etcd://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(2));
    let error = stderr(&output);
    assert!(error.starts_with("svcdns: http://x: unknown kind of registry"), "{error}");
}

#[test]
fn diff_fails_if_one_service_of_a_registry_cannot_be_read() {
    let Some(consul) =
        Consul::start_with_acl("diff_fails_if_one_service_of_a_registry_cannot_be_read")
    else {
        return;
    };
    consul.put("hello.svc", "", "10.0.0.1:80".parse().unwrap(), "{}");
    let files = Files::new(&[]);
    let diff_with = |token: &str| {
        let mut command = svcdns::command();
        command.args(["diff", "--config", "/dev/null", &consul.url(), &files.url()]);
        command.env("SVCDNS_CONSUL_TOKEN", token).output().unwrap()
    };
    // The token may read the names of services, but not the nodes of their instances.
    let half = consul.create_token("half", r#"service_prefix "" { policy = "read" }"#);
    let output = diff_with(&half);
    assert_eq!((output.status.code(), &*stdout(&output)), (Some(2), ""), "{output:?}");
    let error = stderr(&output);
    let expected = format!("{} could not be read completely: ", consul.url());
    assert!(error.contains(&expected) && error.contains("may not read its nodes"), "{error}");

    // A refusal ends the command at once: it is not the end of the wait.
    let output = diff_with("99999999-8888-7777-6666-555555555555");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = stderr(&output);
    assert!(error.contains("a registry cannot be read: ") && error.contains("403"), "{error}");
    assert_eq!(diff_with(consul.token().unwrap()).status.code(), Some(1));
}

#[test]
fn diff_fails_at_once_if_a_registry_is_of_another_kind() {
    let etcd = Etcd::start();
    let files = Files::new(&[]);
    let url = format!("consul://{}", etcd.endpoint(0));
    let output = diff("/dev/null", &[&url, &files.url()]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = stderr(&output);
    assert!(error.contains("a registry cannot be read: "), "{error}");
    assert!(error.contains("it is not Consul but an etcd"), "{error}");
}

#[test]
fn diff_fails_if_a_registry_cannot_be_read() {
    let etcd = Etcd::builder().stopped();
    let files = Files::new(&[("default/default/hello.svc/latest/10.0.0.1:80", "{}")]);
    let output = diff("/dev/null", &[&etcd.url(), &files.url()]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = stderr(&output);
    assert!(error.contains("could be read within") && error.contains(&etcd.endpoint(0)), "{error}");
    assert_eq!(stdout(&output), "");
}

#[test]
fn register_leaves_static_services_alone() {
    let files = Files::new(&[]);
    let text = format!(
        "registry = [\"{}\"]\n[[static]]\nname = \"legacy\"\nendpoints = [\"10.0.0.7:80\"]\n",
        files.url()
    );
    let (_directory, file) = write_config(&text);
    let mut command = svcdns::command();
    command.args(["register", "--config", &file, "legacy", "10.0.0.8:80", "--", "true"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!stderr(&output).contains("static"), "{output:?}");
}
