//! Checks of endpoints by the real program: programs that stop, hang, vanish and return.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::etcd::Etcd;
use support::files::Files;
use support::process::Process;
use support::svcdns::Svcdns;
use support::{SOON, dns, eventually, netns};

/// Flags for fast checks; a loaded machine may take a second to respond.
const FAST: [&str; 7] =
    ["--checks", "--checks-interval", "1s", "--checks-timeout", "1s", "--checks-fall", "2"];

const HTTP: &str = r#"{"insecure":true,"protocol":"http"}"#;

fn serve(registry: &str, flags: &[&str]) -> Svcdns {
    Svcdns::serve(&[&["--registry", registry], &FAST[..], flags].concat())
}

/// Returns the key of an instance of `hello.svc`, as in the file registry.
fn key(endpoint: impl std::fmt::Display) -> String {
    format!("default/default/hello.svc/latest/{endpoint}")
}

fn stdout(server: &Svcdns, arguments: &[&str]) -> String {
    String::from_utf8(server.run(arguments).stdout).unwrap()
}

fn json(server: &Svcdns, arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(server, &[arguments, &["--json"]].concat())).unwrap()
}

/// Waits until a command prints a text; returns all that it prints.
fn wait_for_output(server: &Svcdns, arguments: &[&str], text: &str) -> String {
    eventually(&format!("{text:?} in the output of {arguments:?}"), SOON, || {
        Some(stdout(server, arguments)).filter(|output| output.contains(text))
    })
}

/// Returns the metrics of a server.
fn metrics(server: &Svcdns) -> String {
    let admin = json(server, &["status"])["admin"].as_str().unwrap().to_owned();
    let page = Command::new("curl").args(["-sS", &format!("http://{admin}/metrics")]).output();
    String::from_utf8(page.unwrap().stdout).unwrap()
}

/// Returns the number of checks that have passed.
fn passed(server: &Svcdns) -> u64 {
    let page = metrics(server);
    let count =
        |line: &str| line.strip_prefix("svcdns_checks_total{result=\"passed\"} ")?.parse().ok();
    page.lines().find_map(count).unwrap()
}

/// Python's HTTP server on a loopback address.
struct WebServer {
    process: Process,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl WebServer {
    /// Starts a server on port `port`, and waits until it responds.
    fn start(last: u8, port: u16) -> Self {
        Self::start_with(last, port, |command, address| {
            command.args(["-m", "http.server", "--bind", address]).arg(port.to_string());
        })
    }

    /// Starts a server over TLS, which demands this of its clients.
    fn start_tls(last: u8, port: u16, demand: &str) -> Self {
        Self::start_with(last, port, |command, address| {
            // The name in the certificate is not that of the server.
            let own = rcgen::generate_simple_self_signed(["other.example".to_owned()]).unwrap();
            let directory = command.get_current_dir().unwrap();
            fs::write(directory.join("server.pem"), own.cert.pem()).unwrap();
            fs::write(directory.join("server.key"), own.signing_key.serialize_pem()).unwrap();
            command.args(["-c", TLS_SERVER, address, &port.to_string(), demand]);
        })
    }

    fn start_with(last: u8, port: u16, set: impl FnOnce(&mut Command, &str)) -> Self {
        let address = SocketAddr::from((Ipv4Addr::new(127, 0, 1, last), port));
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("python3");
        command.current_dir(directory.path());
        set(&mut command, &address.ip().to_string());
        let process = Process::start(&mut command);
        eventually("the web server to listen", SOON, || TcpStream::connect(address).ok());
        Self { process, address, _directory: directory }
    }
}

/// A server over TLS, with a certificate in the directory.
///
/// The last argument is what it demands of its clients: `certificate`, `name` (SNI) or `nothing`;
/// with `reset`, it demands a certificate and resets the connections, so no alert arrives.
const TLS_SERVER: &str = r#"
import http.server, socket, ssl, struct, sys
address, port, demand = sys.argv[1], int(sys.argv[2]), sys.argv[3]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("server.pem", "server.key")
if demand == "certificate":
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations("server.pem")
if demand == "name":
    refusal = ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    context.sni_callback = lambda _, name, __: None if name else refusal
if demand == "reset":
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations("server.pem")
    listener = socket.create_server((address, port))
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            context.wrap_socket(connection, server_side=True).close()
        except OSError:
            connection.close()
server = http.server.ThreadingHTTPServer((address, port), http.server.SimpleHTTPRequestHandler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

/// Returns a port that is free on all loopback addresses.
fn free_port() -> u16 {
    TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_stopped_program_leaves_the_answers_and_returns() {
    let etcd = Etcd::start();
    let port = free_port();
    let servers: Vec<_> = (1..=3).map(|last| WebServer::start(last, port)).collect();
    for server in &servers {
        etcd.put(&format!("/service/{}", key(server.address)), HTTP);
    }
    let all = ["127.0.1.1", "127.0.1.2", "127.0.1.3"];
    let server = serve(&etcd.url(), &["--checks-path", "/", "--admin-listen", "127.0.0.1:0"]);
    server.wait_for("hello.svc", &all);

    // Its kernel still accepts connections, and its lease would be renewed by another thread.
    servers[1].process.signal(Signal::SIGSTOP);
    server.wait_for("hello.svc", &["127.0.1.1", "127.0.1.3"]);
    let note = "dropped: check: no response within the timeout, since ";
    let listed = stdout(&server, &["ls", "hello"]);
    assert!(listed.contains(note), "{listed}");
    let explained = stdout(&server, &["explain", "hello"]);
    assert!(
        explained.contains(&format!("127.0.1.2:{port} default/default/latest weight 1: {note}"))
    );
    let status = stdout(&server, &["status"]);
    let line = "checks 3 endpoints (0 over TCP, 3 with HTTP) every 1s: 1 failing, 1 instance left \
                out";
    assert!(status.contains(line), "{status}");
    let instances = json(&server, &["ls", "hello"])[0]["instances"].clone();
    let check = &instances[1]["check"];
    assert_eq!(check["reason"], "no response within the timeout");
    assert!(check["since"].as_u64().unwrap() > 1_700_000_000);
    assert!(instances[0]["check"].is_null() && instances[0]["left-out"].is_null());
    let considered = json(&server, &["explain", "hello"])["considered"].clone();
    assert!(considered[1]["check"].as_str().unwrap().starts_with("no response"));
    let checks = json(&server, &["status"])["checks"].clone();
    assert_eq!((&checks["http"], &checks["failing"]), (&3.into(), &1.into()));
    assert_eq!((&checks["left-out"], &checks["burst-since"]), (&1.into(), &Value::Null));
    assert!(dns::dig_short(server.address, &["hello.svc", "SRV"]).len() == 2);

    servers[1].process.signal(Signal::SIGCONT);
    server.wait_for("hello.svc", &all);
    assert!(!stdout(&server, &["ls", "hello"]).contains("check"));

    // The checks are requests of a client that waits for the end of the response.
    let log = servers[0].process.log();
    assert!(log.contains("\"GET / HTTP/1.1\" 200"), "{log}");
    assert!(!log.contains("Traceback"), "{log}");

    // All of them: the last one is never left out, and with it none.
    for server in &servers {
        server.process.signal(Signal::SIGSTOP);
    }
    let note = "served, although its check fails: no response within the timeout";
    let listed = eventually("all checks to fail", SOON, || {
        Some(stdout(&server, &["ls", "hello"])).filter(|text| text.matches(note).count() == 3)
    });
    assert!(!listed.contains("dropped"), "{listed}");
    server.wait_for("hello.svc", &all);
    let explained = stdout(&server, &["explain", "hello"]);
    assert!(explained.contains("selected, although its check fails: no response"), "{explained}");
    for server in &servers {
        server.process.signal(Signal::SIGCONT);
    }
    wait_for_output(&server, &["status"], ": 0 failing, 0 instances left out");
}

#[test]
fn a_killed_program_leaves_the_answers_before_its_registration_ends() {
    let port = free_port();
    let mut servers: Vec<_> = (11..=12).map(|last| WebServer::start(last, port)).collect();
    let keys: Vec<_> = servers.iter().map(|server| key(server.address)).collect();
    let files = Files::new(&[(&keys[0], HTTP), (&keys[1], "{}")]);
    let server = serve(&files.url(), &["--admin-listen", "127.0.0.1:0"]);
    server.wait_for("hello.svc", &["127.0.1.11", "127.0.1.12"]);
    servers.remove(0).process.kill();
    server.wait_for("hello.svc", &["127.0.1.12"]);
    let listed = stdout(&server, &["ls", "hello"]);
    assert!(listed.contains("dropped: check: connection refused, since "), "{listed}");
    let page = metrics(&server);
    for line in [
        "svcdns_check_targets{probe=\"tcp\"} 2.0",
        "svcdns_check_targets{probe=\"http\"} 0.0",
        "svcdns_check_failing 1.0",
        "svcdns_check_left_out 1.0",
        "svcdns_check_burst 0.0",
        "svcdns_check_interval_seconds 1.0",
        "svcdns_checks_total{result=\"not-http\"} 0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
    }
    for result in ["passed", "refused"] {
        let prefix = format!("svcdns_checks_total{{result=\"{result}\"}} ");
        let count = page.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap();
        assert!(count.parse::<u64>().unwrap() > 0, "{result}");
    }
    let documented: std::collections::BTreeSet<_> = include_str!("../docs/checks.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `svcdns_check")?.split('`').next())
        .collect();
    let shown: std::collections::BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("svcdns_check"))
        .filter_map(|line| line.split(['{', ' ']).next())
        .filter(|name| !name.ends_with("_bucket") && !name.ends_with("_sum"))
        .map(|name| name.trim_end_matches("_count"))
        .collect();
    assert_eq!(documented, shown, "left: docs/checks.md, right: /metrics");
    // The program returns.
    let _again = WebServer::start(11, port);
    server.wait_for("hello.svc", &["127.0.1.11", "127.0.1.12"]);
}

#[test]
fn servers_over_tls_are_checked_over_tls_whatever_their_protocol_and_certificate() {
    const HTTPS: &str = r#"{"protocol":"https"}"#;
    let port = free_port();
    let servers = [
        WebServer::start_tls(31, port, "nothing"),
        WebServer::start_tls(32, port, "nothing"),
        WebServer::start_tls(33, port, "certificate"),
        WebServer::start(34, port),
        WebServer::start_tls(35, port, "name"),
        WebServer::start_tls(36, port, "reset"),
    ];
    let keys: Vec<_> = servers.iter().map(|server| key(server.address)).collect();
    let etcd = Etcd::start();
    for (key, value) in keys.iter().zip([HTTP, HTTPS, HTTPS, "{}", "{}", "{}"]) {
        etcd.put(&format!("/service/{key}"), value);
    }
    let flags = ["--checks-path", "/", "--admin-listen", "127.0.0.1:0"];
    let server = serve(&etcd.url(), &flags);
    let all: Vec<String> = (31..=36).map(|last| format!("127.0.1.{last}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    server.wait_for("hello.svc", &all);
    eventually("several rounds of checks", SOON, || (passed(&server) >= 30).then_some(()));
    let text = stdout(&server, &["status"]);
    assert!(text.contains("checks 6 endpoints (0 over TCP, 6 with HTTP) every 1s: 0 failing"));
    for checked in [&servers[0], &servers[1], &servers[3]] {
        let log = checked.process.log();
        assert!(log.contains("\"GET / HTTP/1.1\" 200"), "{log}");
    }
    // A program that hangs is noticed over TLS, too.
    servers[0].process.signal(Signal::SIGSTOP);
    servers[2].process.signal(Signal::SIGSTOP);
    server.wait_for("hello.svc", &["127.0.1.32", "127.0.1.34", "127.0.1.35", "127.0.1.36"]);
    servers[0].process.signal(Signal::SIGCONT);
    servers[2].process.signal(Signal::SIGCONT);
    server.wait_for("hello.svc", &all);
    drop(server);
    // The status of the response counts, over TLS and without.
    let server = serve(&etcd.url(), &["--checks-path", "/absent"]);
    // Those that refuse the handshake have no status.
    server.wait_for("hello.svc", &["127.0.1.33", "127.0.1.35", "127.0.1.36"]);
    let listed = stdout(&server, &["ls", "hello"]);
    assert_eq!(listed.matches("dropped: check: HTTP status 404, since ").count(), 3, "{listed}");
}

/// Accepts connections on a port of every address, and closes them.
fn accept_everywhere(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    thread::spawn(move || listener.incoming().for_each(drop));
}

/// Removes addresses from this machine: packets to them then get no answer.
fn vanish(addresses: &[String]) {
    for address in addresses {
        netns::run("ip", &["address", "del", &format!("{address}/32"), "dev", "lo"]);
    }
}

fn appear(addresses: &[String]) {
    for address in addresses {
        netns::add_address(&format!("{address}/32"));
    }
}

#[test]
fn vanished_machines_are_left_out_but_not_most_machines_at_once() {
    netns::inside(
        "vanished_machines_are_left_out_but_not_most_machines_at_once",
        "127.0.0.1",
        || {
            accept_everywhere(8000);
            let machines: Vec<String> = (11..=18).map(|last| format!("10.9.0.{last}")).collect();
            let all: Vec<&str> = machines.iter().map(String::as_str).collect();
            appear(&machines);
            let keys: Vec<_> =
                all.iter().map(|machine| (key(format!("{machine}:8000")), "{}")).collect();
            let keys: Vec<_> = keys.iter().map(|(key, value)| (key.as_str(), *value)).collect();
            let files = Files::new(&keys);
            let server = serve(&files.url(), &["--admin-listen", "127.0.0.1:0"]);
            server.wait_for("hello.svc", &all);
            wait_for_output(&server, &["status"], "checks 8 endpoints (8 over TCP, 0 with HTTP)");
            // Three rounds of checks: every endpoint has passed, so the next failures are new ones.
            eventually("all to pass", SOON, || (passed(&server) >= 24).then_some(()));

            vanish(&machines[..1]);
            server.wait_for("hello.svc", &all[1..]);
            let listed = stdout(&server, &["ls", "hello"]);
            assert!(listed.contains("dropped: check: "), "{listed}");
            // After the time in which an instance is left out, it is no part of a burst any more.
            let check = json(&server, &["ls", "hello"])[0]["instances"][0]["check"].clone();
            let millis = json(&server, &["status"])["checks"]["detection-time-ms"].clone();
            let since = Duration::from_secs(check["since"].as_u64().unwrap() + 1);
            let old = UNIX_EPOCH + since + Duration::from_millis(millis.as_u64().unwrap());
            eventually("the failure to be old", SOON, || (SystemTime::now() > old).then_some(()));
            // The next result, of whatever check, notices that.
            let before = passed(&server);
            eventually("the next checks", SOON, || (passed(&server) > before).then_some(()));

            // The network is gone, but for one machine.
            vanish(&machines[1..7]);
            let status = wait_for_output(&server, &["status"], "most checks have failed since ");
            assert!(status.contains("no further instance is left out until most pass again"));
            wait_for_output(&server, &["status"], ": 7 failing, 1 instance left out");
            server.wait_for("hello.svc", &all[1..]);
            assert!(server.log().contains("most checks fail at once"), "{}", server.log());

            appear(&machines[..6]);
            wait_for_output(&server, &["status"], ": 1 failing, 1 instance left out");
            let now: Vec<&str> = all[..6].iter().chain(&all[7..]).copied().collect();
            server.wait_for("hello.svc", &now);
            let log = server.log();
            assert_eq!(log.matches("most checks fail at once").count(), 1, "{log}");
            assert_eq!(log.matches("most checks pass again").count(), 1, "{log}");
        },
    );
}

#[test]
fn a_closed_port_is_not_taken_for_open_because_the_check_connects_to_itself() {
    let name = "a_closed_port_is_not_taken_for_open_because_the_check_connects_to_itself";
    netns::inside(name, "127.0.0.1", || {
        accept_everywhere(8000);
        // The only port for outgoing connections is that of the instance.
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40001 40001").unwrap();
        let own = TcpStream::connect("127.0.0.1:40001").unwrap();
        assert_eq!(own.local_addr().unwrap(), own.peer_addr().unwrap());
        // No port may be left in the state TIME-WAIT.
        socket2::SockRef::from(&own).set_linger(Some(Duration::ZERO)).unwrap();
        drop(own);
        let (closed, open) = (key("127.0.0.1:40001"), key("127.0.0.2:8000"));
        let files = Files::new(&[(&closed, "{}"), (&open, "{}")]);
        let server = Svcdns::serve_at(
            "127.0.0.1:5300".parse().unwrap(),
            &[&["--registry", &files.url()], &FAST[..]].concat(),
        );
        wait_for_output(&server, &["ls", "hello"], "dropped: check: connection refused");
        // The check does not keep the port from the program.
        eventually("the port to be free", SOON, || TcpListener::bind("127.0.0.1:40001").ok());
    });
}

#[test]
fn endpoints_that_accept_and_never_respond_keep_neither_others_nor_the_server_waiting() {
    // The kernel accepts connections for a program that does not.
    let silent: Vec<_> = (0..50).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let port = free_port();
    let endpoint = SocketAddr::from((Ipv4Addr::new(127, 0, 1, 21), port));
    let open = TcpListener::bind(endpoint).unwrap();
    thread::spawn(move || {
        for mut stream in open.incoming().flatten() {
            use std::io::{Read, Write};
            let _ = stream.read(&mut [0; 1000]);
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
        }
    });
    let endpoints: Vec<_> =
        silent.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    let (silent_key, open_key) = (key(endpoints.join(",")), key(endpoint));
    let files = Files::new(&[(&open_key, "{}")]);
    let etcd = Etcd::start();
    etcd.put(&format!("/service/{silent_key}"), "{}");
    let server = Svcdns::serve(
        &[
            &["--registry", &etcd.url(), "--registry", &files.url()],
            &FAST[..],
            &["--checks-path", "/"],
        ]
        .concat(),
    );
    server.wait_for("hello.svc", &["127.0.1.21"]);
    wait_for_output(&server, &["status"], ": 50 failing, 50 instances left out");
    // With TCP, all of them pass.
    drop(server);
    let server = serve(&etcd.url(), &[]);
    server.wait_for("hello.svc", &["127.0.0.1"]);
    eventually("every endpoint to be checked", SOON, || {
        let log = stdout(&server, &["status"]);
        log.contains("checks 50 endpoints (50 over TCP, 0 with HTTP) every 1s: 0 failing")
            .then_some(())
    });
    drop(silent);
}

#[test]
fn the_configurations_on_the_page_are_valid() {
    let page = include_str!("../docs/checks.md");
    let blocks: Vec<_> = page.split("```toml\n").skip(1).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let text = block.split("```").next().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("svcdns.toml");
        fs::write(&path, text).unwrap();
        let output =
            support::svcdns::command().args(["check", "--config"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(shown.contains("checks.enabled"), "{shown}");
    }
}
