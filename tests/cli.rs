//! The commands as users and scripts run them, against real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::files::Files;
use support::process::Process;
use support::svcdns::{self, Svcdns};
use support::{SOON, dns, eventually, seconds};

const HELLO: &str = "default/default/hello.svc/latest/10.0.0.1:80";

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

/// Runs the program to its end, without variables or a server of the environment.
fn run(arguments: &[&str]) -> Output {
    svcdns::command().args(arguments).output().unwrap()
}

/// Starts a server of these registrations and waits until it knows `hello.svc`.
fn serve(files: &Files, flags: &[&str]) -> Svcdns {
    let server = Svcdns::serve(&[&["--registry", &files.url()], flags].concat());
    server.wait_for("hello.svc", &["10.0.0.1"]);
    server
}

#[test]
fn ls_lists_services_dropped_instances_rejections_and_conflicts() {
    let files = Files::new(&[
        (HELLO, r#"{"protocol":"http","weight":"5"}"#),
        ("default/default/hello/latest/10.0.0.9:80", "{}"),
        ("default/prod/web/v1/10.0.0.2:81", "{}"),
        ("default/default/bad/latest/10.0.0.3:0", "{}"),
        ("default/default/_bad/latest/10.0.0.3:80", "{}"),
    ]);
    let server = serve(&files, &[]);
    let listed = server.run(&["ls"]);
    let text = stdout(&listed);
    assert_eq!(code(&listed), 0, "{text}{}", stderr(&listed));
    let line = |start: &str| {
        text.lines()
            .find(|line| line.starts_with(start))
            .unwrap_or_else(|| panic!("{start} in\n{text}"))
            .to_owned()
    };
    let words = |line: String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        words(line("hello.svc.  10.0.0.1:80")),
        [
            "hello.svc.",
            "10.0.0.1:80",
            "default/default",
            "latest",
            "5",
            "protocol=http;",
            "weight=5"
        ]
    );
    assert!(line("hello.svc.  10.0.0.9:80").contains("dropped: shadowed"), "{text}");
    assert_eq!(words(line("web.svc."))[..4], ["web.svc.", "10.0.0.2:81", "default/prod", "v1"]);
    assert!(line("bad.svc.").contains("no usable endpoint"), "{text}");

    let json: Value =
        serde_json::from_str(&stdout(&server.run(&["ls", "--json", "hello.svc"]))).unwrap();
    assert_eq!(json[0]["base"], "hello");
    assert_eq!(json[0]["instances"][0]["endpoint"], "10.0.0.1:80");
    assert_eq!(json[0]["instances"][0]["metadata"]["protocol"], "http");
    assert_eq!(json.as_array().unwrap().len(), 1);
    let absent = server.run(&["ls", "nothing"]);
    assert_eq!((code(&absent), stderr(&absent).trim()), (2, "svcdns: no service nothing"));
    let close = server.run(&["ls", "helo.svc"]);
    let suggestion = "svcdns: no service helo.svc; did you mean hello?";
    assert_eq!((code(&close), stderr(&close).trim()), (2, suggestion));

    let rejected = stdout(&server.run(&["ls", "--rejected"]));
    assert!(
        rejected.contains("10.0.0.3")
            && rejected.contains("the port is not a number from 1 to 65535"),
        "{rejected}"
    );
    assert!(
        rejected.contains("_bad") && rejected.contains("the name is not a DNS name"),
        "{rejected}"
    );
    let counts: Value =
        serde_json::from_str(&stdout(&server.run(&["ls", "--rejected", "--json"]))).unwrap();
    assert!(
        counts["counts"]
            .as_array()
            .unwrap()
            .iter()
            .any(|count| count["reason"] == "port-out-of-range" && count["count"] == 1),
        "{counts}"
    );
    let conflicts = stdout(&server.run(&["ls", "--conflicts"]));
    assert!(
        conflicts
            .lines()
            .any(|line| words(line.to_owned())[..4] == ["hello", "shadowed", "hello.svc", "hello"]),
        "{conflicts}"
    );
    server.stop();
}

#[test]
fn resolve_and_explain_report_the_response() {
    let files = Files::new(&[
        (HELLO, r#"{"protocol":"http"}"#),
        ("default/prod/only/latest/[fd00::5]:80", "{}"),
    ]);
    let server = serve(&files, &[]);
    for name in ["hello", "hello.svc", "hello.svc.", "HELLO"] {
        let found = server.run(&["resolve", name]);
        assert_eq!(
            (code(&found), stdout(&found).as_str()),
            (0, "hello.svc.  5  A  10.0.0.1\n"),
            "{name}: {}",
            stderr(&found)
        );
    }
    let srv = server.run(&["resolve", "hello", "srv"]);
    assert_eq!(stdout(&srv), "hello.svc.  5  SRV  10-0-0-1.hello.svc.:80 priority 0 weight 1\n");
    assert_eq!(stdout(&server.run(&["resolve", "--short", "hello.svc", "A"])), "10.0.0.1\n");
    assert_eq!(
        stdout(&server.run(&["resolve", "hello", "TXT"])),
        "hello.svc.  5  TXT  \"protocol=http\"\n"
    );
    let reverse = stdout(&server.run(&["resolve", "--short", "10.0.0.1"]));
    assert!(reverse.lines().any(|line| line == "10-0-0-1.hello.svc."), "{reverse}");
    assert_eq!(stdout(&server.run(&["resolve", "--short", "only.prod"])), "fd00::5\n");
    // A server named by its address
    let address = server.address.to_string();
    assert_eq!(stdout(&run(&["resolve", "--server", &address, "--short", "hello"])), "10.0.0.1\n");

    let none = server.run(&["resolve", "nothing"]);
    assert_eq!((code(&none), stdout(&none).as_str()), (2, ""));
    assert!(stderr(&none).contains("NXDOMAIN: nothing.svc. does not exist"), "{}", stderr(&none));
    let close = server.run(&["resolve", "helo"]);
    let suggestion = "svcdns: NXDOMAIN: helo.svc. does not exist; did you mean hello?";
    assert_eq!((code(&close), stderr(&close).trim()), (2, suggestion));
    let no_data = server.run(&["resolve", "hello", "AAAA"]);
    assert_eq!(code(&no_data), 2);
    assert!(
        stderr(&no_data).contains("NODATA: hello.svc. has no record of type AAAA"),
        "{}",
        stderr(&no_data)
    );
    let refused = server.run(&["resolve", "example.com."]);
    assert_eq!(code(&refused), 3, "{}", stderr(&refused));
    assert!(
        stderr(&refused).contains("REFUSED: no answer for example.com."),
        "{}",
        stderr(&refused)
    );
    assert_eq!(code(&server.run(&["resolve", "hello", "NOTYPE"])), 1);

    let explained = server.run(&["explain", "hello", "SRV"]);
    let text = stdout(&explained);
    assert_eq!(code(&explained), 0, "{text}{}", stderr(&explained));
    for part in [
        "hello.svc. SRV",
        "service hello: matched",
        "in the zone svc.",
        "10.0.0.1:80 default/default/latest weight 1: selected",
        "NOERROR",
        "10-0-0-1.hello.svc.",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(
        text.lines().any(|line| line.ends_with(", in file")),
        "the registry of a key in\n{text}"
    );
    assert_eq!(code(&server.run(&["explain", "nothing"])), 2);
    let close = server.run(&["explain", "helo"]);
    let suggestion = "NXDOMAIN: no service helo; did you mean hello?";
    assert!(stdout(&close).contains(suggestion), "{}", stdout(&close));
    // A type without a mnemonic, one given by number, and an unusual one
    for (rtype, name) in [("TYPE65280", "TYPE65280"), ("type65", "HTTPS"), ("IXFR", "IXFR")] {
        let explained = server.run(&["explain", "hello", rtype]);
        assert!(stdout(&explained).starts_with(&format!("hello.svc. {name}\n")), "{explained:?}");
    }
    assert_eq!(code(&server.run(&["explain", "hello", "TYPE65280"])), 2);
    assert_eq!(code(&server.run(&["explain", "hello", "TYPE65536"])), 1);
    let unnamed = server.run(&["resolve", "hello", "TYPE65280"]);
    assert!(stderr(&unnamed).contains("no record of type TYPE65280"), "{unnamed:?}");
    let refused = server.run(&["explain", "example.com."]);
    assert_eq!(code(&refused), 3);
    assert!(stdout(&refused).contains("not authoritative (20): "), "{}", stdout(&refused));
    // Straight from the registry
    let direct = run(&[
        "explain",
        "hello",
        "SRV",
        "--registry",
        &files.url(),
        "--config",
        "/dev/null",
        "--json",
    ]);
    let json: Value = serde_json::from_str(&stdout(&direct))
        .unwrap_or_else(|error| panic!("{error}: {direct:?}"));
    assert_eq!((&json["name"], &json["rcode"]), (&"hello.svc.".into(), &"NOERROR".into()));
    assert_eq!(json["considered"][0]["endpoint"], "10.0.0.1:80");
    assert_eq!(json["considered"][0]["registry-name"], "file");
    server.stop();
}

#[test]
fn unnamed_registries_are_numbered_in_commands_log_and_metrics() {
    let files = two_registries();
    let [url, url2] = files.each_ref().map(Files::url);
    let flags = ["--registry", &url, "--registry", &url2, "--admin-listen", "127.0.0.1:0"];
    expect_registry_names(&Svcdns::serve(&flags), [("file", &url), ("file2", &url2)]);
}

#[test]
fn registries_have_their_section_names_in_commands_log_and_metrics() {
    let files = two_registries();
    let [url, url2] = files.each_ref().map(Files::url);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("svcdns.toml");
    let sections = format!(
        "[registry.main]\nurl = '{url}'\n[registry.zweite]\nurl = '{url2}'\n\
         removal-grace = '20s'\n"
    );
    fs::write(&config, sections).unwrap();
    let flags = ["--config", config.to_str().unwrap(), "--admin-listen", "127.0.0.1:0"];
    expect_registry_names(&Svcdns::serve(&flags), [("main", &url), ("zweite", &url2)]);
}

/// Makes two registries with one service in both, and something invalid in each.
fn two_registries() -> [Files; 2] {
    [
        Files::new(&[(HELLO, "{}"), ("default/default/bad/latest/10.0.0.3:0", "{}")]),
        Files::new(&[
            ("default/default/hello.svc/latest/10.0.0.2:80", r#"{"protocol":"http"}"#),
            ("a/b/_bad/c/10.0.0.3:80", "{}"),
        ]),
    ]
}

/// Checks the names, each with its URL, wherever a server of [`two_registries`] shows them.
fn expect_registry_names(server: &Svcdns, [(one, url), (two, url2)]: [(&str, &str); 2]) {
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    let has = |text: &str, wanted: &str| {
        assert!(text.lines().any(|line| line == wanted), "{wanted} in\n{text}");
    };

    let status = stdout(&server.run(&["status"]));
    has(&status, &format!("{one}  {url}"));
    has(&status, &format!("{two}  {url2}"));
    let listed = stdout(&server.run(&["ls", "hello"]));
    assert!(
        listed
            .lines()
            .any(|line| line.contains("10.0.0.1:80") && line.ends_with(&format!("  in {one}"))),
        "{listed}"
    );
    let second = |line: &str| {
        line.contains("10.0.0.2:80") && line.ends_with(&format!("  in {two}; protocol=http"))
    };
    assert!(listed.lines().any(second), "{listed}");
    let rejected = stdout(&server.run(&["ls", "--rejected"]));
    has(&rejected, &format!("  10.0.0.3-0: the port is not a number from 1 to 65535 [in {one}]"));
    assert!(
        rejected
            .lines()
            .any(|line| line.starts_with("  _bad: ") && line.ends_with(&format!(" [in {two}]"))),
        "{rejected}"
    );
    let explained = stdout(&server.run(&["explain", "hello"]));
    for (endpoint, name) in [("10.0.0.1", one), ("10.0.0.2", two)] {
        let key = |line: &str| {
            line.contains(endpoint) && line.ends_with(&format!(", revision 0, in {name}"))
        };
        assert!(explained.lines().any(key), "{endpoint} in {name} in\n{explained}");
    }

    let json = |arguments: &[&str]| -> Value {
        serde_json::from_str(&stdout(&server.run(&[arguments, &["--json"]].concat()))).unwrap()
    };
    let status = json(&["status"]);
    let registries = status["registries"].as_array().unwrap().iter();
    let named: Vec<_> = registries
        .map(|registry| (registry["name"].as_str().unwrap(), registry["url"].as_str().unwrap()))
        .collect();
    assert_eq!(named, [(one, url), (two, url2)]);
    let pairs = |list: &Value| -> Vec<_> {
        let list = list.as_array().unwrap().iter();
        let mut pairs: Vec<_> = list
            .map(|item| (item["registry"].as_u64().unwrap(), item["registry-name"].to_string()))
            .collect();
        pairs.sort();
        pairs
    };
    let both = [(0, format!("{one:?}")), (1, format!("{two:?}"))];
    let hello = json(&["ls", "hello"]);
    for list in [
        &hello[0]["instances"],
        &hello[0]["keys"],
        &json(&["ls", "--rejected"])["listed"],
        &json(&["explain", "hello"])["considered"],
    ] {
        assert_eq!(pairs(list), both, "{list}");
    }

    let (_, page) = curl(&[&format!("http://{}/metrics", status["admin"].as_str().unwrap())]);
    let table = include_str!("../docs/operations.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `svcdns_registry_"));
    let documented: BTreeSet<_> = table.map(|line| line.split('`').next().unwrap()).collect();
    // The end of a hold is shown while there is one (tests/holds.rs).
    let hold_end = ["hold_end_timestamp_seconds"];
    let shown: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("svcdns_registry_")?.split('{').next())
        .chain(hold_end)
        .collect();
    assert_eq!(documented, shown, "left: docs/operations.md, right: /metrics");
    for (name, url, keys) in [(one, url, 2), (two, url2, 1)] {
        has(
            &page,
            &format!(r#"svcdns_registry_info{{registry="{name}",kind="file",url="{url}"}} 1.0"#),
        );
        has(&page, &format!(r#"svcdns_registry_connected{{registry="{name}"}} 1.0"#));
        has(&page, &format!(r#"svcdns_registry_synced{{registry="{name}"}} 1.0"#));
        has(&page, &format!(r#"svcdns_registry_keys{{registry="{name}"}} {keys}.0"#));
        has(&page, &format!(r#"svcdns_registry_disconnects_total{{registry="{name}"}} 0"#));
        for message in ["following", "following the directory"] {
            let line = format!("{message} registry={name} url={url}\n");
            eventually(&line, SOON, || server.log().contains(&line).then_some(()));
        }
    }
}

#[test]
fn watch_shows_changes_as_they_happen() {
    let files = Files::new(&[(HELLO, "{}")]);
    let server = serve(&files, &[]);
    let watch = |flags: &[&str]| {
        let mut command = svcdns::command();
        Process::start(command.args(["watch", "--state-dir"]).arg(server.state_dir()).args(flags))
    };
    let (plain, mut only) = (watch(&[]), watch(&["hello", "--json"]));
    // A watcher is surely connected once it shows a change: make one every 2 s until then.
    let (mut number, start) = (0, Instant::now());
    eventually("both watchers to show a change", SOON, || {
        if start.elapsed() >= number * seconds(2) {
            number += 1;
            files.put(&format!("default/default/hello.svc/latest/10.1.0.{number}:80"), "{}");
        }
        let shown = |process: &Process| process.log().contains("10.1.0.");
        (shown(&plain) && shown(&only)).then_some(())
    });
    files.put("default/default/other/latest/10.0.0.7:70", "{}");
    eventually("the new service", SOON, || {
        plain
            .log()
            .contains("+ other.svc.  10.0.0.7:70  default/default  latest  weight 1")
            .then_some(())
    });
    files.delete("default/default/other/latest/10.0.0.7:70");
    eventually("its removal", SOON, || {
        plain.log().contains("- other.svc.  no longer registered").then_some(())
    });
    assert!(!only.log().contains("other"), "{}", only.log());
    let event: Value = serde_json::from_str(only.log().lines().next().unwrap()).unwrap();
    assert_eq!(
        (&event["service"], &event["added"][0]["version"]),
        (&"hello".into(), &"latest".into())
    );
    server.stop();
    assert_eq!(only.wait(SOON).code(), Some(4), "{}", only.log());
    assert!(only.log().contains("the server exited"), "{}", only.log());
}

#[test]
fn a_registration_lasts_as_long_as_its_command() {
    let files = Files::new(&[(HELLO, "{}")]);
    let server = serve(&files, &[]);
    let register = |arguments: &[&str]| {
        let mut command = svcdns::command();
        Process::start(
            command
                .args(["register", "--config", "/dev/null", "--registry", &files.url()])
                .args(arguments),
        )
    };
    let mut legacy = register(&[
        "legacy.svc",
        "10.0.0.5:8080",
        "--metadata",
        "weight=7",
        "--version",
        "v2",
        "--",
        "sleep",
        "1000",
    ]);
    server.wait_for("legacy.svc", &["10.0.0.5"]);
    let registered = format!("svcdns: legacy.svc is registered in file ({})\n", files.url());
    eventually("the registration to be reported", SOON, || {
        legacy.log().contains(&registered).then_some(())
    });
    assert_eq!(
        dns::dig_short(server.address, &["v2.legacy.svc", "SRV"]),
        ["0 7 8080 10-0-0-5.legacy.svc."]
    );
    legacy.signal(Signal::SIGTERM);
    assert_eq!(
        legacy.wait(SOON).code(),
        Some(143),
        "128 + SIGTERM, as in a shell:\n{}",
        legacy.log()
    );
    server.wait_for_code("legacy.svc", "NXDOMAIN");

    // The exit code is the command's, even if it handles the signal.
    let mut short = register(&["short", "10.0.0.5:1", "--", "sh", "-c", "exit 7"]);
    assert_eq!(short.wait(SOON).code(), Some(7), "{}", short.log());
    let mut careful = register(&[
        "careful",
        "10.0.0.5:2",
        "--",
        "sh",
        "-c",
        "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done",
    ]);
    eventually("the command to run", SOON, || careful.log().contains("ready").then_some(()));
    careful.signal(Signal::SIGTERM);
    assert_eq!(careful.wait(SOON).code(), Some(9), "{}", careful.log());

    // Without a command, a registration lasts until a signal.
    let mut plain = register(&["plain", "10.0.0.6:1", "10.0.0.7:1"]);
    server.wait_for("plain.svc", &["10.0.0.6", "10.0.0.7"]);
    plain.signal(Signal::SIGINT);
    assert_eq!(plain.wait(SOON).code(), Some(0), "{}", plain.log());
    server.wait_for_code("plain.svc", "NXDOMAIN");

    for (arguments, message) in [
        (&["x", "10.0.0.5:0"][..], "the port is not a number from 1 to 65535"),
        (&["a/b", "10.0.0.5:80"], "a name cannot contain '/'"),
        (&["_x", "10.0.0.5:80"], "cannot be a DNS name"),
        (&["x", "10.0.0.5:80", "--metadata", "weight"], "is not KEY=VALUE"),
    ] {
        let mut refused = register(arguments);
        assert_eq!(refused.wait(SOON).code(), Some(1), "{}", refused.log());
        assert!(refused.log().contains(message), "{message}: {}", refused.log());
    }
    let mut absent = register(&["x", "10.0.0.5:80", "--", "/no/such/program"]);
    assert_eq!(absent.wait(SOON).code(), Some(127), "{}", absent.log());
    server.stop();
}

#[test]
fn register_ignores_signals_that_were_ignored_at_startup() {
    let files = Files::new(&[]);
    let program = svcdns::command();
    // As with `nohup`, and `&` in a script.
    for signal in ["HUP", "INT"] {
        let mut starter = Command::new("sh");
        for (name, _) in program.get_envs() {
            starter.env_remove(name);
        }
        starter
            .args(["-c", &format!(r#"trap '' {signal}; exec "$0" "$@""#)])
            .arg(program.get_program());
        starter.args([
            "register",
            "--config",
            "/dev/null",
            "--registry",
            &files.url(),
            "kept",
            "10.0.0.5:1",
            "--",
        ]);
        let mut kept =
            Process::start(starter.args(["sh", "-c", &format!("kill -{signal} $PPID $$; exit 8")]));
        assert_eq!(kept.wait(SOON).code(), Some(8), "both survive SIG{signal}:\n{}", kept.log());
    }
}

#[test]
fn servers_on_one_machine_need_separate_ports_and_state_directories() {
    let files = Files::new(&[(HELLO, "{}")]);
    let first = serve(&files, &[]);
    let second = serve(&files, &["--zone", "internal", "--zone", "svc"]);
    assert_eq!(stdout(&first.run(&["resolve", "hello"])), "hello.svc.  5  A  10.0.0.1\n");
    assert_eq!(stdout(&second.run(&["resolve", "hello"])), "hello.internal.  5  A  10.0.0.1\n");
    let state = first.state_dir().to_str().unwrap();
    let url = files.url();
    let same_directory = run(&[
        "serve",
        "--config",
        "/dev/null",
        "--state-dir",
        state,
        "--listen",
        "127.0.0.1:0",
        "--registry",
        &url,
    ]);
    assert_eq!(code(&same_directory), 1);
    let error = stderr(&same_directory);
    let words = ["another svcdns is running with the state directory", "--state-dir"];
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
    let other = tempfile::tempdir().unwrap();
    let (listen, other) = (first.address.to_string(), other.path().to_str().unwrap().to_owned());
    let same_port = run(&[
        "serve",
        "--config",
        "/dev/null",
        "--state-dir",
        &other,
        "--listen",
        &listen,
        "--registry",
        &url,
    ]);
    assert_eq!(code(&same_port), 1);
    assert!(stderr(&same_port).contains(&listen), "{}", stderr(&same_port));
    assert!(fs::read_dir(&other).unwrap().next().is_none(), "a failed start leaves no files");

    let directory = first.state_dir().to_owned();
    assert_eq!(code(&first.run(&["status"])), 0);
    let files_left = || fs::read_dir(&directory).map_or(0, Iterator::count);
    assert_eq!(files_left(), 3, "two sockets and a lock");
    first.stop();
    assert_eq!(files_left(), 0);
    assert_eq!(code(&second.run(&["status"])), 0);
    second.stop();
}

/// Directories of a server, separate from each other.
struct Directories(tempfile::TempDir);

impl Directories {
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn files(&self, name: &str) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path(name))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// Builds `svcdns serve` of a file registry, with these flags.
fn serve_command(files: &Files, flags: &[&str]) -> Command {
    let mut command = svcdns::command();
    command.args([
        "serve",
        "--config",
        "/dev/null",
        "--listen",
        "127.0.0.1:0",
        "--upstream",
        "off",
    ]);
    command.args(["--admin-listen", "off", "--registry", &files.url()]).args(flags);
    command
}

fn wait_for_status(server: &mut Process, runtime_dir: &str) -> Value {
    eventually("the server's status", SOON, || {
        assert!(server.ended().is_none(), "{}", server.log());
        let output = run(&["status", "--json", "--runtime-dir", runtime_dir]);
        serde_json::from_slice(&output.stdout).ok()
    })
}

#[test]
fn runtime_and_state_directory_can_be_configured_separately() {
    let (files, directories) = (Files::new(&[]), Directories(tempfile::tempdir().unwrap()));
    let (runtime, state, other) =
        (directories.path("runtime"), directories.path("state"), directories.path("other"));
    let flags = |runtime, state| ["--runtime-dir", runtime, "--state-dir", state];
    let mut server = Process::start(&mut serve_command(&files, &flags(&runtime, &state)));
    let status = wait_for_status(&mut server, &runtime);
    assert_eq!(
        (status["runtime-dir"].as_str(), status["state-dir"].as_str()),
        (Some(&*runtime), Some(&*state))
    );
    assert_eq!(directories.files("runtime"), ["svcdns.lock", "svcdns.sock", "take-over.sock"]);
    assert_eq!(directories.files("state"), ["svcdns.lock"]);

    // Commands look in the runtime directory; a flag takes precedence over a variable.
    let find = |flags: &[&str], variables: &[(&str, &str)]| {
        let mut command = svcdns::command();
        code(&command.arg("status").args(flags).envs(variables.iter().copied()).output().unwrap())
    };
    assert_eq!(find(&flags(&runtime, &state), &[]), 0);
    assert_eq!(find(&[], &[("SVCDNS_RUNTIME_DIR", &runtime), ("SVCDNS_STATE_DIR", &state)]), 0);
    assert_eq!(find(&["--runtime-dir", &runtime], &[("SVCDNS_RUNTIME_DIR", &state)]), 0);
    assert_eq!(find(&["--state-dir", &runtime], &[("SVCDNS_RUNTIME_DIR", &state)]), 0);
    assert_eq!(find(&[], &[("RUNTIME_DIRECTORY", &format!("{runtime}:{other}"))]), 0);
    assert_eq!(find(&["--state-dir", &state], &[]), 4);

    // Each directory has one server.
    for (flags, message) in [
        (
            flags(&runtime, &other),
            format!("runtime directory {runtime}: give this one its own with --runtime-dir"),
        ),
        (
            flags(&other, &state),
            format!("state directory {state}: give this one its own with --state-dir"),
        ),
    ] {
        let refused = serve_command(&files, &flags).output().unwrap();
        assert_eq!(code(&refused), 1);
        assert!(stderr(&refused).contains(&message), "{}", stderr(&refused));
    }
    assert!(server.terminate().success());
    assert_eq!([directories.files("runtime"), directories.files("state")], [[""; 0]; 2]);
}

#[test]
fn one_directory_can_serve_as_runtime_and_state_directory() {
    let (files, directories) = (Files::new(&[]), Directories(tempfile::tempdir().unwrap()));
    let (real, link) = (directories.path("real"), directories.path("link"));
    std::os::unix::fs::symlink("real", &link).unwrap();
    fs::create_dir(&real).unwrap();
    let mut server =
        Process::start(&mut serve_command(&files, &["--runtime-dir", &link, "--state-dir", &real]));
    let status = wait_for_status(&mut server, &real);
    assert!(status["state-dir"].is_string(), "{status}");
    assert_eq!(directories.files("real"), ["svcdns.lock", "svcdns.sock", "take-over.sock"]);
    assert!(server.terminate().success());
}

#[test]
fn an_unusable_state_directory_is_an_error_only_if_configured() {
    let (files, directories) = (Files::new(&[]), Directories(tempfile::tempdir().unwrap()));
    let runtime = directories.path("runtime");
    let not_a_directory = directories.path("file");
    fs::write(&not_a_directory, "").unwrap();
    let cannot = format!("cannot use the state directory {not_a_directory}");

    let mut server = serve_command(&files, &["--runtime-dir", &runtime]);
    let mut server = Process::start(server.env("STATE_DIRECTORY", &not_a_directory));
    let status = wait_for_status(&mut server, &runtime);
    assert!(status["state-dir"].is_null() && status["runtime-dir"].is_string(), "{status}");
    let text = stdout(&run(&["status", "--runtime-dir", &runtime]));
    assert!(
        text.contains(&format!("runtime directory {runtime}, state directory none\n")),
        "{text}"
    );
    assert!(server.terminate().success());
    assert_eq!(server.log().matches(&cannot).count(), 1, "{}", server.log());

    let named =
        serve_command(&files, &["--runtime-dir", &runtime, "--state-dir", &not_a_directory])
            .output()
            .unwrap();
    assert_eq!(code(&named), 1);
    assert!(stderr(&named).contains(&cannot), "{}", stderr(&named));
    assert_eq!(directories.files("runtime"), [""; 0], "a failed start leaves no files");
}

#[test]
fn a_user_without_a_home_gets_one_warning_about_missing_state() {
    const NOBODY: u32 = 65534;
    let (files, directories) = (Files::new(&[]), Directories(tempfile::tempdir().unwrap()));
    let mut server = serve_command(&files, &[]);
    // If HOME is not absolute, the home of the user database counts: run as nobody.
    if nix::unistd::geteuid().is_root() {
        // Root has a state directory even without a home.
        let program = directories.path("svcdns");
        fs::copy(env!("CARGO_BIN_EXE_svcdns"), &program).unwrap();
        for path in [Path::new(&program), directories.0.path()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut as_nobody = Command::new(&program);
        for (name, _) in server.get_envs() {
            as_nobody.env_remove(name);
        }
        as_nobody.args(server.get_args()).uid(NOBODY).gid(NOBODY).current_dir("/");
        server = as_nobody;
        fs::create_dir(directories.path("run")).unwrap();
        std::os::unix::fs::chown(directories.path("run"), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    for name in ["RUNTIME_DIRECTORY", "STATE_DIRECTORY", "XDG_STATE_HOME"] {
        server.env_remove(name);
    }
    let mut server = Process::start(
        server.env("HOME", "relative").env("XDG_RUNTIME_DIR", directories.path("run")),
    );
    let status = wait_for_status(&mut server, &directories.path("run/svcdns"));
    assert!(status["state-dir"].is_null(), "{status}");
    assert!(server.terminate().success());
    assert_eq!(server.log().matches("this user has no home").count(), 1, "{}", server.log());
}

#[test]
fn configuration_errors_have_a_position_and_a_suggestion() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("svcdns.toml");
    let file = file.to_str().unwrap();
    fs::write(file, "zone = [\"svc\"]\n\nlisen = [\"127.0.0.1:53\"]\n").unwrap();
    for command in ["check", "serve"] {
        let checked = run(&[command, "--config", file]);
        assert_eq!(
            (code(&checked), stderr(&checked)),
            (1, format!("svcdns: {file}:3:1: unknown key `lisen`: did you mean `listen`?\n"))
        );
    }
    fs::write(file, "ttl = \"7s\"\n").unwrap();
    let mut command = svcdns::command();
    let good = command
        .args(["check", "--config", file, "--zone", "internal"])
        .env("SVCDNS_NAMESPACE", "prod")
        .output()
        .unwrap();
    let text = stdout(&good);
    assert_eq!(code(&good), 0, "{}", stderr(&good));
    for (key, value, origin) in [
        ("ttl", "\"7s\"", format!("{file}:1:1")),
        ("zone", "[\"internal\"]", "--zone".to_owned()),
        ("namespace", "\"prod\"", "SVCDNS_NAMESPACE".to_owned()),
        ("docker0", "\"drop\"", "default".to_owned()),
    ] {
        let line = text
            .lines()
            .find(|line| line.split_whitespace().next() == Some(key))
            .unwrap_or_else(|| panic!("{key} in\n{text}"));
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), [key, value, &origin], "{text}");
    }
    let variable = svcdns::command()
        .args(["check", "--config", "/dev/null"])
        .env("SVCDNS_LISEN", "x")
        .output()
        .unwrap();
    assert!(stderr(&variable).contains("did you mean SVCDNS_LISTEN?"), "{}", stderr(&variable));

    let open = run(&["serve", "--config", "/dev/null", "--listen", "0.0.0.0:0"]);
    assert_eq!(code(&open), 1);
    assert!(
        stderr(&open).contains("0.0.0.0:0 is reachable from other machines")
            && stderr(&open).contains("--allow"),
        "{}",
        stderr(&open)
    );
    let secret =
        run(&["serve", "--config", "/dev/null", "--registry", "etcd://root:hunter2@127.0.0.1"]);
    assert_eq!(code(&secret), 1);
    assert!(
        stderr(&secret).contains("etcd.password-file") && !stderr(&secret).contains("hunter2"),
        "{}",
        stderr(&secret)
    );
}

#[test]
fn exit_codes_are_as_documented() {
    assert_eq!(code(&run(&["--help"])), 0);
    assert_eq!(code(&run(&["--version"])), 0);
    assert_eq!(code(&run(&["serve", "--no-such-flag"])), 64);
    assert_eq!(code(&run(&["resolve"])), 64);
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_str().unwrap();
    for command in
        [&["ls"][..], &["status"], &["watch"], &["resolve", "hello"], &["explain", "hello"]]
    {
        let output = run(&[command, &["--state-dir", empty]].concat());
        assert_eq!(code(&output), 4, "{command:?}: {}", stderr(&output));
        assert!(
            stderr(&output).contains("no running svcdns was found")
                && stderr(&output).contains(empty),
            "{}",
            stderr(&output)
        );
    }
    // A reader that closes the pipe early is no error.
    let piped = Command::new("sh")
        .args([
            "-c",
            &format!("{} check --config /dev/null | head -1", env!("CARGO_BIN_EXE_svcdns")),
        ])
        .output()
        .unwrap();
    assert_eq!(stderr(&piped), "");
}

#[test]
fn a_server_without_its_registry_runs_but_is_not_ready() {
    // Nothing listens on port 1.
    let server =
        Svcdns::serve(&["--registry", "etcd://127.0.0.1:1", "--admin-listen", "127.0.0.1:0"]);
    let resolved = server.run(&["resolve", "hello"]);
    assert_eq!(code(&resolved), 3, "{}", stderr(&resolved));
    assert!(stderr(&resolved).contains("not ready (14)"), "{}", stderr(&resolved));
    let status = stdout(&server.run(&["status"]));
    assert!(
        status.contains("\nnot ready: etcd: ")
            && status.contains("\netcd  etcd://127.0.0.1:1\n  disconnected"),
        "{status}"
    );
    let json: Value = serde_json::from_str(&stdout(&server.run(&["status", "--json"]))).unwrap();
    assert!(json["health"]["unready"][0].as_str().unwrap().starts_with("etcd: "), "{json}");
    let page = |path: &str| curl(&[&format!("http://{}{path}", json["admin"].as_str().unwrap())]);
    let (code, reasons) = page("/readyz");
    assert_eq!(code, "503");
    assert!(reasons.starts_with("etcd: ") && reasons.lines().count() == 1, "{reasons}");
    assert_eq!(page("/livez"), ("200".into(), "serving\n".into()));
    let (_, metrics) = page("/metrics");
    for line in ["svcdns_ready 0.0", "svcdns_listeners{state=\"open\"} 1.0"] {
        assert!(metrics.lines().any(|found| found == line), "{line} in\n{metrics}");
    }
    let lost = "not connected, trying again registry=etcd url=etcd://127.0.0.1:1 reason=";
    eventually("a line about the registry in the log", SOON, || {
        server.log().contains(lost).then_some(())
    });
    assert!(
        stderr(&server.run(&["ls"])).contains("incomplete: not every registry has been read yet")
    );
    server.stop();
    // With two registries, the readable one is listed, with a warning.
    let files = Files::new(&[(HELLO, "{}")]);
    let server = serve(&files, &["--registry", "etcd://127.0.0.1:1"]);
    let status = stdout(&server.run(&["status"]));
    assert!(status.contains("\nnot ready: etcd: ") && !status.contains("ready: file"), "{status}");
    let listed = server.run(&["ls"]);
    assert!(stdout(&listed).contains("10.0.0.1:80"), "{}", stdout(&listed));
    assert!(
        stderr(&listed).contains("incomplete: not every registry has been read yet"),
        "{}",
        stderr(&listed)
    );
    server.stop();
}

#[test]
fn a_server_survives_the_end_of_its_log_reader() {
    let files = Files::new(&[(HELLO, "{}")]);
    let state_dir = tempfile::tempdir().unwrap();
    let state_dir = state_dir.path().to_str().unwrap();
    let mut server = svcdns::command()
        .args([
            "serve",
            "--registry",
            &files.url(),
            "--listen",
            "127.0.0.1:0",
            "--state-dir",
            state_dir,
        ])
        .args([
            "--admin-listen",
            "off",
            "--upstream",
            "off",
            "--config",
            "/dev/null",
            "--log",
            "debug",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(server.stderr.take());
    eventually("an answer", SOON, || {
        assert_eq!(server.try_wait().unwrap(), None, "the server ended");
        (stdout(&run(&["resolve", "--state-dir", state_dir, "--short", "hello", "A"]))
            == "10.0.0.1\n")
            .then_some(())
    });
    kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(server.wait().unwrap().success());
}

/// Sends a request with curl; returns the status code and the body.
fn curl(arguments: &[&str]) -> (String, String) {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "60", "-w", "\n%{http_code}"])
        .args(arguments)
        .output()
        .unwrap();
    let text = stdout(&output);
    let (body, status) =
        text.rsplit_once('\n').unwrap_or_else(|| panic!("curl {arguments:?}: {}", stderr(&output)));
    (status.to_owned(), body.to_owned())
}

#[test]
fn http_accepts_only_get_and_head_for_loopback_hosts() {
    let files = Files::new(&[(HELLO, "{}"), ("default/default/x/latest/10.0.0.1:0", "{}")]);
    let server = serve(&files, &["--admin-listen", "127.0.0.1:0"]);
    let status: Value = serde_json::from_str(&stdout(&server.run(&["status", "--json"]))).unwrap();
    let base = format!("http://{}", status["admin"].as_str().unwrap());
    let get = |path: &str| curl(&[&format!("{base}{path}")]);
    assert_eq!(get("/healthz"), ("200".into(), "alive\n".into()));
    assert_eq!(get("/livez"), ("200".into(), "serving\n".into()));
    assert_eq!(get("/readyz"), ("200".into(), "ready\n".into()));
    assert_eq!(get("/nothing").0, "404");
    let (code, page) = get("/metrics");
    assert_eq!(code, "200");
    for line in [
        "svcdns_services 2.0".to_owned(),
        "svcdns_instances 1.0".to_owned(),
        "svcdns_rejected{reason=\"port-out-of-range\"} 1.0".to_owned(),
        "svcdns_registry_synced{registry=\"file\"} 1.0".to_owned(),
        "svcdns_registry_keys{registry=\"file\"} 2.0".to_owned(),
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
    }
    assert!(
        page.contains("svcdns_answers_total{rcode=\"NOERROR\"}")
            && page.contains("svcdns_publication_seconds_count"),
        "{page}"
    );
    let explained: Value =
        serde_json::from_str(&get("/v1/explain?name=hello.svc&type=SRV&payload=0").1).unwrap();
    assert_eq!((&explained["rcode"], &explained["limit"]), (&"NOERROR".into(), &512.into()));
    for (query, rtype, rcode) in [
        ("name=hello.svc&type=TYPE65", "HTTPS", "NOERROR"),
        ("name=nothing.svc&type=type65280", "TYPE65280", "NXDOMAIN"),
        ("name=hello.svc&type=OPT", "OPT", "FORMERR"),
    ] {
        let explained: Value =
            serde_json::from_str(&get(&format!("/v1/explain?{query}")).1).unwrap();
        assert_eq!(
            (&explained["rtype"], &explained["rcode"]),
            (&rtype.into(), &rcode.into()),
            "{query}"
        );
    }
    for query in ["name=a..b", "name=hello.svc&type=TYPE65536", "name=hello.svc&type=65"] {
        assert_eq!(get(&format!("/v1/explain?{query}")).0, "400", "{query}");
    }

    assert_eq!(curl(&["-X", "POST", &format!("{base}/healthz")]).0, "405");
    assert_eq!(curl(&["-H", "Host: evil.example", &format!("{base}/v1/services")]).0, "403");
    assert_eq!(curl(&["-H", "Host: localhost:1", &format!("{base}/v1/services")]).0, "200");
    // The socket accepts any host: no browser can reach it.
    let socket = server.state_dir().join("svcdns.sock");
    let through = |host: &str| {
        curl(&["--unix-socket", socket.to_str().unwrap(), &format!("http://{host}/readyz")])
    };
    assert_eq!(through("anything"), ("200".into(), "ready\n".into()));
    server.stop();
}

/// Returns the names of the files in a directory.
fn names_in(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn demo_prints_working_commands_and_leaves_no_files() {
    let temp = tempfile::tempdir().unwrap();
    // The demo ignores the configuration of the environment.
    let mut command = svcdns::command();
    let mut demo = Process::start(
        command.arg("demo").env("TMPDIR", temp.path()).env("SVCDNS_ZONE", "elsewhere"),
    );
    let text = eventually("the commands to try", SOON, || {
        assert!(demo.ended().is_none(), "{}", demo.log());
        Some(demo.log()).filter(|log| log.contains("Ctrl-C ends the demo"))
    });
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    assert!(lines.len() >= 8, "{text}");
    for line in &lines {
        let output = Command::new("sh").args(["-c", line]).output().unwrap();
        let printed = stdout(&output);
        assert!(output.status.success(), "{line}\n{printed}{}", stderr(&output));
        let expected = match *line {
            line if line.starts_with("curl") && line.contains("metrics") => "svcdns_services 1.0",
            line if line.starts_with("curl") => "Hello from hello.svc!",
            line if line.ends_with(" status") => "1 service, 1 instance",
            _ => "127",
        };
        assert!(printed.contains(expected), "{line}\n{printed}");
    }
    assert!(
        lines.iter().any(|line| line.starts_with("dig"))
            && lines.iter().any(|line| line.starts_with("curl")),
        "{text}"
    );
    assert_eq!(names_in(temp.path()).len(), 1, "one directory while it runs");
    // A second demo at the same time gets another port.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut second = Process::start(svcdns::command().arg("demo").env("TMPDIR", elsewhere.path()));
    let other = eventually("the commands of the second demo", SOON, || {
        assert!(second.ended().is_none(), "{}", second.log());
        Some(second.log()).filter(|log| log.contains("Ctrl-C ends the demo"))
    });
    let address =
        |text: &str| text.lines().find(|line| line.contains(" answers on ")).unwrap().to_owned();
    assert_ne!(address(&text), address(&other));
    second.signal(Signal::SIGINT);
    assert!(second.wait(SOON).success(), "{}", second.log());
    assert_eq!(names_in(elsewhere.path()), [] as [&str; 0]);
    demo.signal(Signal::SIGINT);
    let status = demo.wait(SOON);
    assert!(status.success(), "{status}: {}", demo.log());
    assert_eq!(names_in(temp.path()), [] as [&str; 0]);
}
