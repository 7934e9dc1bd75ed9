//! The commands, as people and scripts use them: the real program against real servers.
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

/// Runs the program to its end, without any server or configuration of the surroundings.
fn run(arguments: &[&str]) -> Output {
    svcdns::command().args(arguments).output().unwrap()
}

/// A server of these registrations, once it knows `hello.svc`.
fn serve(files: &Files, flags: &[&str]) -> Svcdns {
    let server = Svcdns::serve(&[&["--registry", &files.url()], flags].concat());
    server.wait_for("hello.svc", &["10.0.0.1"]);
    server
}

#[test]
fn ls_lists_what_is_known_left_out_rejected_and_in_conflict() {
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
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start} in\n{text}")).to_owned();
    let words = |line: String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        words(line("hello.svc.  10.0.0.1:80")),
        ["hello.svc.", "10.0.0.1:80", "default/default", "latest", "5", "protocol=http;", "weight=5"]
    );
    assert!(line("hello.svc.  10.0.0.9:80").contains("left out: shadowed"), "{text}");
    assert_eq!(words(line("web.svc."))[..4], ["web.svc.", "10.0.0.2:81", "default/prod", "v1"]);
    assert!(line("bad.svc.").contains("no usable endpoint"), "{text}");

    let json: Value = serde_json::from_str(&stdout(&server.run(&["ls", "--json", "hello.svc"]))).unwrap();
    assert_eq!(json[0]["base"], "hello");
    assert_eq!(json[0]["instances"][0]["endpoint"], "10.0.0.1:80");
    assert_eq!(json[0]["instances"][0]["metadata"]["protocol"], "http");
    assert_eq!(json.as_array().unwrap().len(), 1);
    let absent = server.run(&["ls", "nothing"]);
    assert_eq!((code(&absent), stderr(&absent).trim()), (2, "svcdns: nothing is registered as nothing"));

    let rejected = stdout(&server.run(&["ls", "--rejected"]));
    assert!(rejected.contains("10.0.0.3") && rejected.contains("the port is not a number from 1 to 65535"), "{rejected}");
    assert!(rejected.contains("_bad") && rejected.contains("the name is not a DNS name"), "{rejected}");
    let counts: Value = serde_json::from_str(&stdout(&server.run(&["ls", "--rejected", "--json"]))).unwrap();
    assert!(
        counts["counts"].as_array().unwrap().iter().any(|count| count["reason"] == "port-out-of-range" && count["count"] == 1),
        "{counts}"
    );
    let conflicts = stdout(&server.run(&["ls", "--conflicts"]));
    assert!(conflicts.lines().any(|line| words(line.to_owned())[..4] == ["hello", "shadowed", "hello.svc", "hello"]), "{conflicts}");
    server.stop();
}

#[test]
fn resolve_and_explain_say_what_dns_says() {
    let files = Files::new(&[(HELLO, r#"{"protocol":"http"}"#), ("default/prod/only/latest/[fd00::5]:80", "{}")]);
    let server = serve(&files, &[]);
    for name in ["hello", "hello.svc", "hello.svc.", "HELLO"] {
        let found = server.run(&["resolve", name]);
        assert_eq!((code(&found), stdout(&found).as_str()), (0, "hello.svc.  5  A  10.0.0.1\n"), "{name}: {}", stderr(&found));
    }
    let srv = server.run(&["resolve", "hello", "srv"]);
    assert_eq!(stdout(&srv), "hello.svc.  5  SRV  10-0-0-1.hello.svc.:80 priority 0 weight 1\n");
    assert_eq!(stdout(&server.run(&["resolve", "--short", "hello.svc", "A"])), "10.0.0.1\n");
    assert_eq!(stdout(&server.run(&["resolve", "hello", "TXT"])), "hello.svc.  5  TXT  \"protocol=http\"\n");
    let reverse = stdout(&server.run(&["resolve", "--short", "10.0.0.1"]));
    assert!(reverse.lines().any(|line| line == "10-0-0-1.hello.svc."), "{reverse}");
    assert_eq!(stdout(&server.run(&["resolve", "--short", "only.prod"])), "fd00::5\n");
    // Another server than that of a state directory
    let address = server.address.to_string();
    assert_eq!(stdout(&run(&["resolve", "--server", &address, "--short", "hello"])), "10.0.0.1\n");

    let none = server.run(&["resolve", "nothing"]);
    assert_eq!((code(&none), stdout(&none).as_str()), (2, ""));
    assert!(stderr(&none).contains("nothing.svc.: there is no such name (NXDOMAIN)"), "{}", stderr(&none));
    let no_data = server.run(&["resolve", "hello", "AAAA"]);
    assert_eq!(code(&no_data), 2);
    assert!(stderr(&no_data).contains("the name exists and has no record of type AAAA"), "{}", stderr(&no_data));
    let refused = server.run(&["resolve", "example.com."]);
    assert_eq!(code(&refused), 3, "{}", stderr(&refused));
    assert!(stderr(&refused).contains("the server answered REFUSED"), "{}", stderr(&refused));
    assert_eq!(code(&server.run(&["resolve", "hello", "NOTYPE"])), 1);

    let explained = server.run(&["explain", "hello", "SRV"]);
    let text = stdout(&explained);
    assert_eq!(code(&explained), 0, "{text}{}", stderr(&explained));
    for part in
        ["hello.svc. SRV", "service hello: matched", "in the zone svc.", "10.0.0.1:80 default/default/latest weight 1: selected", "NOERROR", "10-0-0-1.hello.svc."]
    {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(text.lines().any(|line| line.ends_with(", in file")), "the registry of a key in\n{text}");
    assert_eq!(code(&server.run(&["explain", "nothing"])), 2);
    let close = server.run(&["explain", "helo"]);
    let suggestion = "NXDOMAIN: no service helo; did you mean hello?";
    assert!(stdout(&close).contains(suggestion), "{}", stdout(&close));
    // A type without a name, one by its number, and one with a name that few read
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
    // The same straight from the registry
    let anew = run(&["explain", "hello", "SRV", "--registry", &files.url(), "--config", "/dev/null", "--json"]);
    let json: Value = serde_json::from_str(&stdout(&anew)).unwrap_or_else(|error| panic!("{error}: {anew:?}"));
    assert_eq!((&json["name"], &json["rcode"]), (&"hello.svc.".into(), &"NOERROR".into()));
    assert_eq!(json["considered"][0]["endpoint"], "10.0.0.1:80");
    assert_eq!(json["considered"][0]["registry-name"], "file");
    server.stop();
}

#[test]
fn registries_show_by_name() {
    let files = [
        Files::new(&[(HELLO, "{}"), ("default/default/bad/latest/10.0.0.3:0", "{}")]),
        Files::new(&[("default/default/hello.svc/latest/10.0.0.2:80", r#"{"protocol":"http"}"#), ("a/b/_bad/c/10.0.0.3:80", "{}")]),
    ];
    let [url, url2] = [files[0].url(), files[1].url()];
    let flags = ["--registry", &url, "--registry", &url2, "--admin-listen", "127.0.0.1:0"];
    let server = Svcdns::serve(&flags);
    server.wait_for("hello.svc", &["10.0.0.1", "10.0.0.2"]);
    let has = |text: &str, wanted: &str| assert!(text.lines().any(|line| line == wanted), "{wanted} in\n{text}");

    let status = stdout(&server.run(&["status"]));
    has(&status, &format!("file  {url}"));
    has(&status, &format!("file2  {url2}"));
    let listed = stdout(&server.run(&["ls", "hello"]));
    assert!(listed.lines().any(|line| line.contains("10.0.0.1:80") && line.ends_with("  in file")), "{listed}");
    assert!(listed.lines().any(|line| line.contains("10.0.0.2:80") && line.ends_with("  in file2; protocol=http")), "{listed}");
    let rejected = stdout(&server.run(&["ls", "--rejected"]));
    has(&rejected, "  10.0.0.3-0: the port is not a number from 1 to 65535 [in file]");
    assert!(rejected.lines().any(|line| line.starts_with("  _bad: ") && line.ends_with(" [in file2]")), "{rejected}");
    let explained = stdout(&server.run(&["explain", "hello"]));
    for (endpoint, name) in [("10.0.0.1", "file"), ("10.0.0.2", "file2")] {
        let key = |line: &str| line.contains(endpoint) && line.ends_with(&format!(", revision 0, in {name}"));
        assert!(explained.lines().any(key), "{endpoint} in {name} in\n{explained}");
    }

    let json = |arguments: &[&str]| -> Value { serde_json::from_str(&stdout(&server.run(&[arguments, &["--json"]].concat()))).unwrap() };
    let status = json(&["status"]);
    let registries = status["registries"].as_array().unwrap().iter();
    let named: Vec<_> = registries.map(|registry| (registry["name"].as_str().unwrap(), registry["url"].as_str().unwrap())).collect();
    assert_eq!(named, [("file", &*url), ("file2", &*url2)]);
    let pairs = |list: &Value| -> Vec<_> {
        let list = list.as_array().unwrap().iter();
        let mut pairs: Vec<_> = list.map(|item| (item["registry"].as_u64().unwrap(), item["registry-name"].to_string())).collect();
        pairs.sort();
        pairs
    };
    let both = [(0, r#""file""#.to_owned()), (1, r#""file2""#.to_owned())];
    let hello = json(&["ls", "hello"]);
    for list in
        [&hello[0]["instances"], &hello[0]["keys"], &json(&["ls", "--rejected"])["listed"], &json(&["explain", "hello"])["considered"]]
    {
        assert_eq!(pairs(list), both, "{list}");
    }

    let (_, page) = curl(&[&format!("http://{}/metrics", status["admin"].as_str().unwrap())]);
    let table = include_str!("../docs/operations.md").lines().filter_map(|line| line.strip_prefix("| `svcdns_registry_"));
    let told: BTreeSet<_> = table.map(|line| line.split('`').next().unwrap()).collect();
    let shown: BTreeSet<_> = page.lines().filter_map(|line| line.strip_prefix("svcdns_registry_")?.split('{').next()).collect();
    assert_eq!(told, shown, "the table of docs/operations.md, and the page");
    for (name, url, keys) in [("file", &url, 2), ("file2", &url2, 1)] {
        has(&page, &format!(r#"svcdns_registry_info{{registry="{name}",kind="file",url="{url}"}} 1.0"#));
        has(&page, &format!(r#"svcdns_registry_connected{{registry="{name}"}} 1.0"#));
        has(&page, &format!(r#"svcdns_registry_synced{{registry="{name}"}} 1.0"#));
        has(&page, &format!(r#"svcdns_registry_keys{{registry="{name}"}} {keys}.0"#));
        has(&page, &format!(r#"svcdns_registry_disconnects_total{{registry="{name}"}} 0"#));
        for message in ["following", "following the directory"] {
            let line = format!("{message} registry={name} url={url}\n");
            eventually(&line, SOON, || server.log().contains(&line).then_some(()));
        }
    }
    server.stop();
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
    // Whether a watcher is there already, only a change that it shows can tell: one every two seconds till then.
    let (mut number, begun) = (0, Instant::now());
    eventually("both watchers to show a change", SOON, || {
        if begun.elapsed() >= number * seconds(2) {
            number += 1;
            files.put(&format!("default/default/hello.svc/latest/10.1.0.{number}:80"), "{}");
        }
        let shown = |process: &Process| process.log().contains("10.1.0.");
        (shown(&plain) && shown(&only)).then_some(())
    });
    files.put("default/default/other/latest/10.0.0.7:70", "{}");
    eventually("the new service", SOON, || {
        plain.log().contains("+ other.svc.  10.0.0.7:70  default/default  latest  weight 1").then_some(())
    });
    files.delete("default/default/other/latest/10.0.0.7:70");
    eventually("its end", SOON, || plain.log().contains("- other.svc.  nothing is registered any more").then_some(()));
    assert!(!only.log().contains("other"), "{}", only.log());
    let event: Value = serde_json::from_str(only.log().lines().next().unwrap()).unwrap();
    assert_eq!((&event["service"], &event["added"][0]["version"]), (&"hello".into(), &"latest".into()));
    server.stop();
    assert_eq!(only.wait(SOON).code(), Some(4), "{}", only.log());
    assert!(only.log().contains("the server has gone"), "{}", only.log());
}

#[test]
fn register_lasts_as_long_as_its_command() {
    let files = Files::new(&[(HELLO, "{}")]);
    let server = serve(&files, &[]);
    let register = |arguments: &[&str]| {
        let mut command = svcdns::command();
        Process::start(command.args(["register", "--config", "/dev/null", "--registry", &files.url()]).args(arguments))
    };
    let mut legacy = register(&["legacy.svc", "10.0.0.5:8080", "--metadata", "weight=7", "--version", "v2", "--", "sleep", "1000"]);
    server.wait_for("legacy.svc", &["10.0.0.5"]);
    let told = format!("svcdns: legacy.svc is registered in file ({})\n", files.url());
    eventually("the registration to be told", SOON, || legacy.log().contains(&told).then_some(()));
    assert_eq!(dns::dig_short(server.address, &["v2.legacy.svc", "SRV"]), ["0 7 8080 10-0-0-5.legacy.svc."]);
    legacy.signal(Signal::SIGTERM);
    assert_eq!(legacy.wait(SOON).code(), Some(143), "as a shell says of a command ended by SIGTERM:\n{}", legacy.log());
    server.wait_for_code("legacy.svc", "NXDOMAIN");

    // The command's own code, and its own handling of a signal
    let mut short = register(&["short", "10.0.0.5:1", "--", "sh", "-c", "exit 7"]);
    assert_eq!(short.wait(SOON).code(), Some(7), "{}", short.log());
    let mut careful =
        register(&["careful", "10.0.0.5:2", "--", "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"]);
    eventually("the command to run", SOON, || careful.log().contains("ready").then_some(()));
    careful.signal(Signal::SIGTERM);
    assert_eq!(careful.wait(SOON).code(), Some(9), "{}", careful.log());

    // Without a command: until it is told to end
    let mut plain = register(&["plain", "10.0.0.6:1", "10.0.0.7:1"]);
    server.wait_for("plain.svc", &["10.0.0.6", "10.0.0.7"]);
    plain.signal(Signal::SIGINT);
    assert_eq!(plain.wait(SOON).code(), Some(0), "{}", plain.log());
    server.wait_for_code("plain.svc", "NXDOMAIN");

    for (arguments, said) in [
        (&["x", "10.0.0.5:0"][..], "the port is not a number from 1 to 65535"),
        (&["a/b", "10.0.0.5:80"], "a name cannot contain '/'"),
        (&["_x", "10.0.0.5:80"], "cannot be a DNS name"),
        (&["x", "10.0.0.5:80", "--metadata", "weight"], "is not KEY=VALUE"),
    ] {
        let mut refused = register(arguments);
        assert_eq!(refused.wait(SOON).code(), Some(1), "{}", refused.log());
        assert!(refused.log().contains(said), "{said}: {}", refused.log());
    }
    let mut absent = register(&["x", "10.0.0.5:80", "--", "/no/such/program"]);
    assert_eq!(absent.wait(SOON).code(), Some(127), "{}", absent.log());
    server.stop();
}

#[test]
fn register_leaves_ignored_what_it_was_started_with_ignored() {
    let files = Files::new(&[]);
    let program = svcdns::command();
    // As `nohup` does, and a script's `&`.
    for signal in ["HUP", "INT"] {
        let mut starter = Command::new("sh");
        for (name, _) in program.get_envs() {
            starter.env_remove(name);
        }
        starter.args(["-c", &format!(r#"trap '' {signal}; exec "$0" "$@""#)]).arg(program.get_program());
        starter.args(["register", "--config", "/dev/null", "--registry", &files.url(), "kept", "10.0.0.5:1", "--"]);
        let mut kept = Process::start(starter.args(["sh", "-c", &format!("kill -{signal} $PPID $$; exit 8")]));
        assert_eq!(kept.wait(SOON).code(), Some(8), "both live on after SIG{signal}:\n{}", kept.log());
    }
}

#[test]
fn servers_side_by_side_need_their_own_ports_and_state_directories() {
    let files = Files::new(&[(HELLO, "{}")]);
    let first = serve(&files, &[]);
    let second = serve(&files, &["--zone", "internal", "--zone", "svc"]);
    assert_eq!(stdout(&first.run(&["resolve", "hello"])), "hello.svc.  5  A  10.0.0.1\n");
    assert_eq!(stdout(&second.run(&["resolve", "hello"])), "hello.internal.  5  A  10.0.0.1\n");
    let state = first.state_dir().to_str().unwrap();
    let url = files.url();
    let same_directory = run(&["serve", "--config", "/dev/null", "--state-dir", state, "--listen", "127.0.0.1:0", "--registry", &url]);
    assert_eq!(code(&same_directory), 1);
    let said = stderr(&same_directory);
    assert!(said.contains("another svcdns is running with the state directory") && said.contains("--state-dir"), "{said}");
    let other = tempfile::tempdir().unwrap();
    let (listen, other) = (first.address.to_string(), other.path().to_str().unwrap().to_owned());
    let same_port = run(&["serve", "--config", "/dev/null", "--state-dir", &other, "--listen", &listen, "--registry", &url]);
    assert_eq!(code(&same_port), 1);
    assert!(stderr(&same_port).contains(&listen), "{}", stderr(&same_port));
    assert!(fs::read_dir(&other).unwrap().next().is_none(), "a server that could not start leaves nothing behind");

    let gone = first.state_dir().to_owned();
    assert_eq!(code(&first.run(&["status"])), 0);
    let left = || fs::read_dir(&gone).map_or(0, Iterator::count);
    assert_eq!(left(), 2, "socket and lock");
    first.stop();
    assert_eq!(left(), 0);
    assert_eq!(code(&second.run(&["status"])), 0);
    second.stop();
}

/// A server's directories, apart from each other, with what is in them.
struct Apart(tempfile::TempDir);

impl Apart {
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn files(&self, name: &str) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(self.path(name)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// `svcdns serve` of an empty registry with these flags.
fn serve_command(files: &Files, flags: &[&str]) -> Command {
    let mut command = svcdns::command();
    command.args(["serve", "--config", "/dev/null", "--listen", "127.0.0.1:0", "--upstream", "off"]);
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
fn a_server_has_a_runtime_and_a_state_directory() {
    let (files, apart) = (Files::new(&[]), Apart(tempfile::tempdir().unwrap()));
    let (runtime, state, other) = (apart.path("runtime"), apart.path("state"), apart.path("other"));
    let flags = |runtime, state| ["--runtime-dir", runtime, "--state-dir", state];
    let mut server = Process::start(&mut serve_command(&files, &flags(&runtime, &state)));
    let status = wait_for_status(&mut server, &runtime);
    assert_eq!((status["runtime-dir"].as_str(), status["state-dir"].as_str()), (Some(&*runtime), Some(&*state)));
    assert_eq!(apart.files("runtime"), ["svcdns.lock", "svcdns.sock"]);
    assert_eq!(apart.files("state"), ["svcdns.lock"]);

    // Commands look in the runtime directory; a flag counts more than a variable.
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

    // Each of them has one server.
    for (flags, told) in [
        (flags(&runtime, &other), format!("runtime directory {runtime}: give this one its own with --runtime-dir")),
        (flags(&other, &state), format!("state directory {state}: give this one its own with --state-dir")),
    ] {
        let refused = serve_command(&files, &flags).output().unwrap();
        assert_eq!(code(&refused), 1);
        assert!(stderr(&refused).contains(&told), "{}", stderr(&refused));
    }
    assert!(server.terminate().success());
    assert_eq!([apart.files("runtime"), apart.files("state")], [[""; 0]; 2]);
}

#[test]
fn the_same_directory_twice_is_one_that_holds_both() {
    let (files, apart) = (Files::new(&[]), Apart(tempfile::tempdir().unwrap()));
    let (real, link) = (apart.path("real"), apart.path("link"));
    std::os::unix::fs::symlink("real", &link).unwrap();
    fs::create_dir(&real).unwrap();
    let mut server = Process::start(&mut serve_command(&files, &["--runtime-dir", &link, "--state-dir", &real]));
    let status = wait_for_status(&mut server, &real);
    assert!(status["state-dir"].is_string(), "{status}");
    assert_eq!(apart.files("real"), ["svcdns.lock", "svcdns.sock"]);
    assert!(server.terminate().success());
}

#[test]
fn a_server_goes_on_without_a_state_directory_unless_one_was_named() {
    let (files, apart) = (Files::new(&[]), Apart(tempfile::tempdir().unwrap()));
    let runtime = apart.path("runtime");
    let in_the_way = apart.path("file");
    fs::write(&in_the_way, "").unwrap();
    let cannot = format!("cannot use the state directory {in_the_way}");

    let mut server = serve_command(&files, &["--runtime-dir", &runtime]);
    let mut server = Process::start(server.env("STATE_DIRECTORY", &in_the_way));
    let status = wait_for_status(&mut server, &runtime);
    assert!(status["state-dir"].is_null() && status["runtime-dir"].is_string(), "{status}");
    let text = stdout(&run(&["status", "--runtime-dir", &runtime]));
    assert!(text.contains(&format!("runtime directory {runtime}, state directory none\n")), "{text}");
    assert!(server.terminate().success());
    assert_eq!(server.log().matches(&cannot).count(), 1, "{}", server.log());

    let named = serve_command(&files, &["--runtime-dir", &runtime, "--state-dir", &in_the_way]).output().unwrap();
    assert_eq!(code(&named), 1);
    assert!(stderr(&named).contains(&cannot), "{}", stderr(&named));
    assert_eq!(apart.files("runtime"), [""; 0], "a server that could not start leaves nothing behind");
}

#[test]
fn a_server_of_a_user_without_a_home_says_once_that_it_keeps_nothing() {
    const NOBODY: u32 = 65534;
    let (files, apart) = (Files::new(&[]), Apart(tempfile::tempdir().unwrap()));
    let mut server = serve_command(&files, &[]);
    // Where HOME is empty, it is the home of the user database that counts.
    if nix::unistd::geteuid().is_root() {
        // Root has a state directory without a home.
        let program = apart.path("svcdns");
        fs::copy(env!("CARGO_BIN_EXE_svcdns"), &program).unwrap();
        for path in [Path::new(&program), apart.0.path()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut as_nobody = Command::new(&program);
        for (name, _) in server.get_envs() {
            as_nobody.env_remove(name);
        }
        as_nobody.args(server.get_args()).uid(NOBODY).gid(NOBODY).current_dir("/");
        server = as_nobody;
        fs::create_dir(apart.path("run")).unwrap();
        std::os::unix::fs::chown(apart.path("run"), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    for name in ["RUNTIME_DIRECTORY", "STATE_DIRECTORY", "XDG_STATE_HOME"] {
        server.env_remove(name);
    }
    let mut server = Process::start(server.env("HOME", "relative").env("XDG_RUNTIME_DIR", apart.path("run")));
    let status = wait_for_status(&mut server, &apart.path("run/svcdns"));
    assert!(status["state-dir"].is_null(), "{status}");
    assert!(server.terminate().success());
    assert_eq!(server.log().matches("this user has no home").count(), 1, "{}", server.log());
}

#[test]
fn mistakes_are_told_with_their_place_and_a_suggestion() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("svcdns.toml");
    let file = file.to_str().unwrap();
    fs::write(file, "zone = [\"svc\"]\n\nlisen = [\"127.0.0.1:53\"]\n").unwrap();
    for command in ["check", "serve"] {
        let said = run(&[command, "--config", file]);
        assert_eq!((code(&said), stderr(&said)), (1, format!("svcdns: {file}:3:1: there is no key `lisen`: did you mean `listen`?\n")));
    }
    fs::write(file, "ttl = \"7s\"\n").unwrap();
    let mut command = svcdns::command();
    let good = command.args(["check", "--config", file, "--zone", "internal"]).env("SVCDNS_NAMESPACE", "prod").output().unwrap();
    let text = stdout(&good);
    assert_eq!(code(&good), 0, "{}", stderr(&good));
    for (key, value, origin) in [
        ("ttl", "\"7s\"", format!("{file}:1:1")),
        ("zone", "[\"internal\"]", "--zone".to_owned()),
        ("namespace", "\"prod\"", "SVCDNS_NAMESPACE".to_owned()),
        ("docker0", "\"drop\"", "default".to_owned()),
    ] {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(key)).unwrap_or_else(|| panic!("{key} in\n{text}"));
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), [key, value, &origin], "{text}");
    }
    let variable = svcdns::command().args(["check", "--config", "/dev/null"]).env("SVCDNS_LISEN", "x").output().unwrap();
    assert!(stderr(&variable).contains("did you mean SVCDNS_LISTEN?"), "{}", stderr(&variable));

    let open = run(&["serve", "--config", "/dev/null", "--listen", "0.0.0.0:0"]);
    assert_eq!(code(&open), 1);
    assert!(
        stderr(&open).contains("0.0.0.0:0 is reachable from other machines") && stderr(&open).contains("--allow"),
        "{}",
        stderr(&open)
    );
    let secret = run(&["serve", "--config", "/dev/null", "--registry", "etcd://root:hunter2@127.0.0.1"]);
    assert_eq!(code(&secret), 1);
    assert!(stderr(&secret).contains("etcd.password-file") && !stderr(&secret).contains("hunter2"), "{}", stderr(&secret));
    let later = run(&["serve", "--config", "/dev/null", "--registry", "consul://127.0.0.1:8500"]);
    assert!(stderr(&later).contains("not supported yet"), "{}", stderr(&later));
}

#[test]
fn exit_codes_hold() {
    assert_eq!(code(&run(&["--help"])), 0);
    assert_eq!(code(&run(&["--version"])), 0);
    assert_eq!(code(&run(&["serve", "--no-such-flag"])), 64);
    assert_eq!(code(&run(&["resolve"])), 64);
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_str().unwrap();
    for command in [&["ls"][..], &["status"], &["watch"], &["resolve", "hello"], &["explain", "hello"]] {
        let output = run(&[command, &["--state-dir", empty]].concat());
        assert_eq!(code(&output), 4, "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("no running svcdns was found") && stderr(&output).contains(empty), "{}", stderr(&output));
    }
    // A reader who has seen enough is no error.
    let helped =
        Command::new("sh").args(["-c", &format!("{} check --config /dev/null | head -1", env!("CARGO_BIN_EXE_svcdns"))]).output().unwrap();
    assert_eq!(stderr(&helped), "");
}

#[test]
fn a_server_without_its_registry_runs_and_says_so() {
    // Nothing listens on port 1.
    let server = Svcdns::serve(&["--registry", "etcd://127.0.0.1:1", "--admin-listen", "127.0.0.1:0"]);
    let asked = server.run(&["resolve", "hello"]);
    assert_eq!(code(&asked), 3, "{}", stderr(&asked));
    assert!(stderr(&asked).contains("not ready (14)"), "{}", stderr(&asked));
    let status = stdout(&server.run(&["status"]));
    assert!(status.contains("not ready") && status.contains("\netcd  etcd://127.0.0.1:1\n  not connected"), "{status}");
    let json: Value = serde_json::from_str(&stdout(&server.run(&["status", "--json"]))).unwrap();
    let (code, reasons) = curl(&[&format!("http://{}/readyz", json["admin"].as_str().unwrap())]);
    assert_eq!(code, "503");
    assert!(reasons.starts_with("etcd: "), "{reasons}");
    let lost = "not connected, trying again registry=etcd url=etcd://127.0.0.1:1 reason=";
    eventually("a line about the registry in the log", SOON, || server.log().contains(lost).then_some(()));
    assert!(stderr(&server.run(&["ls"])).contains("not every registry has been read completely yet"));
    server.stop();
    // Of two, the one that can be read is listed, and that there may be more is told.
    let files = Files::new(&[(HELLO, "{}")]);
    let server = serve(&files, &["--registry", "etcd://127.0.0.1:1"]);
    let listed = server.run(&["ls"]);
    assert!(stdout(&listed).contains("10.0.0.1:80"), "{}", stdout(&listed));
    assert!(stderr(&listed).contains("not every registry has been read completely yet"), "{}", stderr(&listed));
    server.stop();
}

#[test]
fn a_server_whose_log_nobody_reads_any_more_goes_on() {
    let files = Files::new(&[(HELLO, "{}")]);
    let state_dir = tempfile::tempdir().unwrap();
    let state_dir = state_dir.path().to_str().unwrap();
    let mut server = svcdns::command()
        .args(["serve", "--registry", &files.url(), "--listen", "127.0.0.1:0", "--state-dir", state_dir])
        .args(["--admin-listen", "off", "--upstream", "off", "--config", "/dev/null", "--log", "debug"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(server.stderr.take());
    eventually("an answer", SOON, || {
        assert_eq!(server.try_wait().unwrap(), None, "it ended");
        (stdout(&run(&["resolve", "--state-dir", state_dir, "--short", "hello", "A"])) == "10.0.0.1\n").then_some(())
    });
    kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(server.wait().unwrap().success());
}

/// The status code and body of a request with curl.
fn curl(arguments: &[&str]) -> (String, String) {
    let output = Command::new("curl").args(["-sS", "--max-time", "60", "-w", "\n%{http_code}"]).args(arguments).output().unwrap();
    let text = stdout(&output);
    let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("curl {arguments:?}: {}", stderr(&output)));
    (status.to_owned(), body.to_owned())
}

#[test]
fn http_is_for_reading_and_only_by_loopback_names() {
    let files = Files::new(&[(HELLO, "{}"), ("default/default/x/latest/10.0.0.1:0", "{}")]);
    let server = serve(&files, &["--admin-listen", "127.0.0.1:0"]);
    let status: Value = serde_json::from_str(&stdout(&server.run(&["status", "--json"]))).unwrap();
    let base = format!("http://{}", status["admin"].as_str().unwrap());
    let get = |path: &str| curl(&[&format!("{base}{path}")]);
    assert_eq!(get("/healthz"), ("200".into(), "alive\n".into()));
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
    assert!(page.contains("svcdns_answers_total{rcode=\"NOERROR\"}") && page.contains("svcdns_publication_seconds_count"), "{page}");
    let explained: Value = serde_json::from_str(&get("/v1/explain?name=hello.svc&type=SRV&payload=0").1).unwrap();
    assert_eq!((&explained["rcode"], &explained["limit"]), (&"NOERROR".into(), &512.into()));
    for (query, rtype, rcode) in [
        ("name=hello.svc&type=TYPE65", "HTTPS", "NOERROR"),
        ("name=nothing.svc&type=type65280", "TYPE65280", "NXDOMAIN"),
        ("name=hello.svc&type=OPT", "OPT", "FORMERR"),
    ] {
        let explained: Value = serde_json::from_str(&get(&format!("/v1/explain?{query}")).1).unwrap();
        assert_eq!((&explained["rtype"], &explained["rcode"]), (&rtype.into(), &rcode.into()), "{query}");
    }
    for query in ["name=a..b", "name=hello.svc&type=TYPE65536", "name=hello.svc&type=65"] {
        assert_eq!(get(&format!("/v1/explain?{query}")).0, "400", "{query}");
    }

    assert_eq!(curl(&["-X", "POST", &format!("{base}/healthz")]).0, "405");
    assert_eq!(curl(&["-H", "Host: evil.example", &format!("{base}/v1/services")]).0, "403");
    assert_eq!(curl(&["-H", "Host: localhost:1", &format!("{base}/v1/services")]).0, "200");
    // By the socket, everything is the same but for the name, which no browser has a say in.
    let socket = server.state_dir().join("svcdns.sock");
    let through = |host: &str| curl(&["--unix-socket", socket.to_str().unwrap(), &format!("http://{host}/readyz")]);
    assert_eq!(through("anything"), ("200".into(), "ready\n".into()));
    server.stop();
}

/// What is in a folder.
fn names_in(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn demo_prints_lines_that_work_and_leaves_nothing_behind() {
    let temp = tempfile::tempdir().unwrap();
    // Its own settings count, not those of the surroundings.
    let mut command = svcdns::command();
    let mut demo = Process::start(command.arg("demo").env("TMPDIR", temp.path()).env("SVCDNS_ZONE", "elsewhere"));
    let text = eventually("what to try", SOON, || {
        assert!(demo.ended().is_none(), "{}", demo.log());
        Some(demo.log()).filter(|log| log.contains("Ctrl-C ends it all"))
    });
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    assert!(lines.len() >= 8, "{text}");
    for line in &lines {
        let output = Command::new("sh").args(["-c", line]).output().unwrap();
        let said = stdout(&output);
        assert!(output.status.success(), "{line}\n{said}{}", stderr(&output));
        let expected = match *line {
            line if line.starts_with("curl") && line.contains("metrics") => "svcdns_services 1.0",
            line if line.starts_with("curl") => "Hello from hello.svc!",
            line if line.ends_with(" status") => "1 service, 1 instance",
            _ => "127",
        };
        assert!(said.contains(expected), "{line}\n{said}");
    }
    assert!(lines.iter().any(|line| line.starts_with("dig")) && lines.iter().any(|line| line.starts_with("curl")), "{text}");
    assert_eq!(names_in(temp.path()).len(), 1, "one folder while it runs");
    // A second one beside it finds a port of its own.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut second = Process::start(svcdns::command().arg("demo").env("TMPDIR", elsewhere.path()));
    let other = eventually("what to try with the second one", SOON, || {
        assert!(second.ended().is_none(), "{}", second.log());
        Some(second.log()).filter(|log| log.contains("Ctrl-C ends it all"))
    });
    let address = |text: &str| text.lines().find(|line| line.contains(" answers on ")).unwrap().to_owned();
    assert_ne!(address(&text), address(&other));
    second.signal(Signal::SIGINT);
    assert!(second.wait(SOON).success(), "{}", second.log());
    assert_eq!(names_in(elsewhere.path()), [] as [&str; 0]);
    demo.signal(Signal::SIGINT);
    let status = demo.wait(SOON);
    assert!(status.success(), "{status}: {}", demo.log());
    assert_eq!(names_in(temp.path()), [] as [&str; 0]);
}
