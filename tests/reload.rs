//! Another configuration while the server runs: by the command, and by SIGHUP.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Output;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::files::Files;
use support::reloading::Reloading;
use support::steady_load::{Ask, SteadyLoad};
use support::upstream::{Record, Upstream};
use support::{SOON, dns, eventually, free_address, svcdns};

/// The user `nobody`.
const NOBODY: u32 = 65_534;

/// Returns a file for a server at this address, with more lines.
fn file(address: SocketAddr, files: &Files, lines: &str) -> String {
    // Below the first header, keys are those of a section.
    let general = lines.split("\n[").next().unwrap();
    let has = |key: &str| general.lines().any(|line| line.starts_with(key));
    let mut text = format!("registry = ['{}']\n", files.url());
    if !has("listen =") {
        text.push_str("listen = ['{address}']\n");
    }
    if !has("upstream =") {
        text.push_str("upstream = ['off']\n");
    }
    if !has("admin-listen =") {
        text.push_str("admin-listen = 'off'\n");
    }
    format!("{text}{lines}\n").replace("{address}", &address.to_string())
}

fn hello() -> Files {
    Files::new(&[("default/default/hello.svc/latest/10.0.0.1:80", "{}")])
}

fn start(files: &Files) -> Reloading {
    let address = free_address();
    let server = Reloading::start(address, &file(address, files, ""));
    eventually("hello.svc", SOON, || {
        (dns::addresses(address, "hello.svc").ok()?.len() == 1).then_some(())
    });
    server
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Returns inodes of the sockets of DNS, as links of descriptors.
fn sockets(server: &Reloading) -> Vec<String> {
    let port = format!(":{:04X}", server.address.port());
    let mut inodes = Vec::new();
    for table in ["udp", "tcp"] {
        let text = fs::read_to_string(format!("/proc/{}/net/{table}", server.pid())).unwrap();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // State 07 is an unconnected UDP socket, 0A a listening TCP socket.
            if fields[1].ends_with(&port) && ["07", "0A"].contains(&fields[3]) {
                inodes.push(format!("socket:[{}]", fields[9]));
            }
        }
    }
    // While other sockets change, the kernel's table can show one twice or not at all.
    assert!(!inodes.is_empty());
    inodes
}

/// Fails the test unless the server still has these sockets: others would replace them.
fn assert_open(server: &Reloading, sockets: &[String]) {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let open: Vec<String> = descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .collect();
    assert!(sockets.iter().all(|socket| open.contains(socket)), "{sockets:?}: {open:?}");
}

/// Returns a load that asks for `hello.svc`.
fn load(server: SocketAddr, tcp_rate: u32) -> SteadyLoad {
    let names = vec![("hello.svc".to_owned(), "10.0.0.1".to_owned())];
    SteadyLoad::start(server, Ask { udp_rate: 500, tcp_rate, names })
}

fn ttl(server: &Reloading) -> String {
    let text = dns::dig(server.address, &["+noall", "+answer", "hello.svc"]);
    text.split_whitespace().nth(1).unwrap_or("none").to_owned()
}

#[test]
fn a_server_whose_http_port_was_taken_at_its_start_reloads() {
    let (files, address) = (hello(), free_address());
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = format!("admin-listen = '{}'", taken.local_addr().unwrap());
    let server = Reloading::start(address, &file(address, &files, &port));
    eventually("hello.svc", SOON, || {
        (dns::addresses(address, "hello.svc").ok()?.len() == 1).then_some(())
    });
    let lines = server.reload_lines(&file(address, &files, &format!("ttl = '9s'\n{port}")));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(ttl(&server), "9");
    // Once the port is free, a reload opens it.
    let port = taken.local_addr().unwrap();
    drop(taken);
    let text = format!("ttl = '9s'\nadmin-listen = '{port}'");
    server.reload_lines(&file(address, &files, &text));
    eventually("the HTTP port", SOON, || std::net::TcpStream::connect(port).ok());
}

#[test]
fn the_command_prints_each_change_and_its_place() {
    let files = hello();
    let server = start(&files);
    let text = |lines| file(server.address, &files, lines);
    let place = server.file().display().to_string();

    assert_eq!(server.reload_lines(&text("")), ["nothing changed"]);
    let changed = text("ttl = '10s'\n[alias]\nwww = 'hello'\n[bridge]\nbind = true");
    let lines = [
        format!(r#"ttl: "5s" → "10s" ({place}:5:1)"#),
        format!("bridge.bind: needs a restart, stays false, then true ({place}:9:1)"),
        format!(r#"alias.www: not set → "hello" ({place}:7:1)"#),
    ];
    // `check` says it beforehand, and changes nothing.
    server.write(&changed);
    let checked = server.run(&["check", "--config", &place]);
    let checked = stdout(&checked);
    let (_, after) = checked.split_once("\nA reload of the running server").expect(&checked);
    assert_eq!(after.lines().skip(1).collect::<Vec<_>>(), lines);
    assert_eq!(ttl(&server), "5");

    assert_eq!(server.reload_lines(&changed), lines);
    assert_eq!(ttl(&server), "10");
    let page = include_str!("../docs/operations.md");
    let shown = lines.join("\n").replace(&place, "/etc/svcdns/svcdns.toml");
    assert!(page.contains(&format!("$ sudo svcdns reload\n{shown}\n```")), "{shown}");
    assert_eq!(dns::code(server.address, "www.svc", dns::A), "NOERROR");
    // What needs a restart is said again, until it is restarted.
    assert_eq!(server.reload_lines(&changed), lines[1..2]);

    let json = server.run(&["reload", "--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        json["changes"],
        serde_json::json!([{
            "path": "bridge.bind", "before": "false", "after": "true",
            "source": format!("{place}:9:1"), "needs-restart": true,
        }])
    );
    let log = server.log();
    assert!(log.contains(&lines[0]) && log.contains(&lines[1]), "{log}");
    server.stop();
}

#[test]
fn an_empty_file_means_defaults() {
    let files = hello();
    let server = start(&files);
    server.reload_lines(&file(server.address, &files, "ttl = '10s'"));
    // The default port may be in use; that is no error of the file.
    let output = server.reload("");
    let printed = stdout(&output) + &stderr(&output);
    assert!(
        printed.contains(r#"ttl: "10s" → "5s" (default)"#) || printed.contains("port is in use"),
        "{printed}"
    );
}

#[test]
fn a_broken_configuration_changes_nothing() {
    let files = hello();
    let server = start(&files);
    let place = server.file().display().to_string();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let holder = TcpListener::bind(taken).unwrap();
    let load = load(server.address, 20);
    let before = sockets(&server);
    let not_a_certificate = server.folder().join("not.pem");
    fs::write(&not_a_certificate, "no certificate").unwrap();
    let not_a_certificate = not_a_certificate.display().to_string();
    let cases = [
        ("ttl = ", format!("{place}:5:")),
        ("ttll = '9s'", format!("{place}:5:1: unknown key `ttll`: did you mean `ttl`?")),
        ("ttl = '9 apples'", format!("{place}:5:7: ttl: ")),
        ("ttl = '9s'\nmax-keys = 0", format!("{place}:6:12: max-keys: ")),
        ("ttl = '9s'\nlisten = ['0.0.0.0:53']", "is reachable from other machines".to_owned()),
        (
            "ttl = '9s'\nlisten = ['{address}', '{taken}']",
            format!("{place}:5:1: listen: cannot listen on {taken}"),
        ),
        (
            "ttl = '9s'\nadmin-listen = '{taken}'",
            format!("{place}:5:1: admin-listen: Address already in use"),
        ),
        (
            "ttl = '9s'\nupstream = ['127.0.0.1']\nupstream-ca-file = '/none/ca.pem'",
            "/none/ca.pem".to_owned(),
        ),
        (
            "ttl = '9s'\nupstream = ['127.0.0.1']\nupstream-ca-file = '{bad}'",
            not_a_certificate.clone(),
        ),
        (
            "ttl = '9s'\n[tls]\nlisten = ['127.0.0.1:{port}']\ncert-file = '/none/c.pem'\n\
             key-file = '/none/k.pem'",
            "/none/c.pem".to_owned(),
        ),
        ("ttl = '9s'\n[alias]\na = 'b'\nb = 'a'", "alias.".to_owned()),
    ];
    for (number, (lines, reason)) in cases.iter().enumerate() {
        let lines = lines
            .replace("{taken}", &taken.to_string())
            .replace("{bad}", &not_a_certificate)
            .replace("{port}", &free_address().port().to_string());
        let output = server.reload(&file(server.address, &files, &lines));
        assert_eq!(output.status.code(), Some(1), "{lines}: {output:?}");
        assert_eq!(stdout(&output), "", "{lines}");
        assert!(stderr(&output).contains(reason), "{lines}\n{reason}\n{}", stderr(&output));
        // A thread of its own writes the log.
        eventually("the refusal in the log", SOON, || {
            (server.log().matches("the configuration was not reloaded").count() > number)
                .then_some(())
        });
        // `check` knows it, too, also of what only the running server can find out.
        let checked = server.run(&["check", "--config", &place]);
        assert_eq!(checked.status.code(), Some(1), "{lines}: {checked:?}");
        assert!(stderr(&checked).contains(reason), "{lines}\n{}", stderr(&checked));
        assert_eq!(ttl(&server), "5", "{lines}");
        assert_open(&server, &before);
    }
    let report = load.stop();
    report.expect_no_loss();
    drop(holder);
    // The file is repaired.
    let lines = server.reload_lines(&file(server.address, &files, "ttl = '9s'"));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(ttl(&server), "9");
    let metrics = server.run(&["status"]);
    assert!(metrics.status.success());
    server.stop();
}

#[test]
fn sighup_and_the_command_do_the_same() {
    let files = hello();
    let server = start(&files);
    let text = |lines| file(server.address, &files, lines);
    server.write(&text("ttl = '11s'"));
    server.signal(Signal::SIGHUP);
    eventually("the new TTL", SOON, || (ttl(&server) == "11").then_some(()));
    assert_eq!(server.run(&["reload"]).stdout, b"nothing changed\n");
    server.write(&text("ttl = "));
    server.signal(Signal::SIGHUP);
    eventually("the refusal in the log", SOON, || {
        let log = server.log();
        let (_, refusal) = log.split_once("the configuration was not reloaded")?;
        refusal.contains(&format!("{}:5:", server.file().display())).then_some(())
    });
    assert_eq!(ttl(&server), "11");
    server.stop();
}

#[test]
fn ten_reloads_under_load_lose_no_answer() {
    let files = hello();
    let upstream = Upstream::start();
    upstream.put([Record::a("www.example", 60, "192.0.2.80")]);
    let server = start(&files);
    let other = free_address();
    let names = vec![
        ("hello.svc".to_owned(), "10.0.0.1".to_owned()),
        ("nothing.svc".to_owned(), "NXDOMAIN".to_owned()),
    ];
    let load = SteadyLoad::start(server.address, Ask { udp_rate: 1_000, tcp_rate: 50, names });
    for turn in 0..10 {
        let text = match turn % 5 {
            0 => format!("ttl = '{}s'\nlog-queries = 1000", turn + 6),
            1 => format!("listen = ['{}', '{other}']", server.address),
            2 => format!("upstream = ['{}']", upstream.flag()),
            3 => "zone = ['svc', 'corp']\ntcp-connections = 100".to_owned(),
            _ => "ttl = ".to_owned(),
        };
        let output = server.reload(&file(server.address, &files, &text));
        assert_eq!(output.status.success(), turn % 5 != 4, "{text}\n{output:?}");
        thread::sleep(Duration::from_millis(200));
    }
    let report = load.stop();
    report.expect_no_loss();
    server.stop();
}

#[test]
fn a_service_of_another_registry_comes_and_goes_under_load() {
    let files = hello();
    let more = Files::new(&[("default/default/more.svc/latest/10.0.0.2:80", "{}")]);
    let server = start(&files);
    let load = load(server.address, 20);
    let both = format!("registry = ['{}', '{}']", files.url(), more.url());
    let one = file(server.address, &files, "");
    let two = one.replace(&format!("registry = ['{}']", files.url()), &both);
    for _ in 0..3 {
        server.reload_lines(&two);
        eventually("more.svc", SOON, || dns::addresses(server.address, "more.svc").ok());
        server.reload_lines(&one);
        eventually("no more.svc", SOON, || {
            (dns::code(server.address, "more.svc", dns::A) == "NXDOMAIN").then_some(())
        });
    }
    let report = load.stop();
    report.expect_no_loss();
    server.stop();
}

#[test]
fn strangers_may_not_reload() {
    if !nix::unistd::geteuid().is_root() {
        return support::skip("strangers_may_not_reload", "only root can be another user");
    }
    let files = hello();
    let server = start(&files);
    for path in [server.folder().to_owned(), server.folder().join("state")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let socket = server.folder().join("state/svcdns.sock");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    chown(server.file(), Some(NOBODY), None).unwrap();
    let output = svcdns::command()
        .args(["reload", "--runtime-dir"])
        .arg(server.folder().join("state"))
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let expected = format!(
        "user {NOBODY} may not reload the configuration: only root and the user that svcdns runs \
         as (0) may; try `sudo svcdns reload`"
    );
    assert!(stderr(&output).contains(&expected), "{output:?}");
    server.stop();
}

#[test]
fn without_a_server_there_is_nothing_to_reload() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = svcdns::command();
    let output = command.args(["reload", "--runtime-dir"]).arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(stderr(&output).contains("no running svcdns was found"), "{output:?}");
}

/// Returns the numbers of descriptors and threads of a server.
fn resources(server: &Reloading) -> (usize, usize) {
    let count =
        |folder: &str| fs::read_dir(format!("/proc/{}/{folder}", server.pid())).unwrap().count();
    (count("fd"), count("task"))
}

#[test]
fn many_reloads_leave_nothing_behind() {
    let files = hello();
    let upstreams = [Upstream::start(), Upstream::start()];
    for upstream in &upstreams {
        upstream.put([Record::a("www.example", 0, "192.0.2.80")]);
    }
    let (server, other) = (start(&files), free_address());
    let admin = free_address();
    let cycle = || {
        for upstream in &upstreams {
            let lines = format!(
                "admin-listen = '{admin}'\nupstream = ['{}']\nlisten = ['{}', '{other}']\n\
                 zone = ['svc', 'corp']",
                upstream.flag(),
                server.address
            );
            server.reload_lines(&file(server.address, &files, &lines));
            assert_eq!(dns::code(server.address, "www.example", dns::A), "NOERROR");
        }
        server.reload_lines(&file(server.address, &files, ""));
    };
    cycle();
    // Threads of the runtime that block are kept for a while.
    let (descriptors, threads) = resources(&server);
    for _ in 0..25 {
        cycle();
    }
    eventually("as few descriptors and threads as before", SOON, || {
        let (descriptors_now, threads_now) = resources(&server);
        (descriptors_now <= descriptors + 2 && threads_now <= threads + 4).then_some(())
    });
    server.stop();
}
