//! `svcdns doctor` finds each fault of name resolution.
//!
//! Each test causes the faults on a private machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]

mod support;

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Output};

use serde_json::Value;

use support::files::Files;
use support::process::Process;
use support::resolved::{self, Resolved};
use support::svcdns::{self, Svcdns};
use support::{SOON, eventually, machine, netns};

const HELLO: &str = "default/default/hello.svc/latest/10.9.0.5:80";

/// The address of the server under test.
const SERVER: &str = "127.0.0.55";

/// An address without a server, unless a test starts one.
const NOBODY: &str = "127.0.0.99";

const CONF: &str = "/etc/resolv.conf";
const NSSWITCH: &str = "/etc/nsswitch.conf";

fn serve(registry: &str) -> Svcdns {
    Svcdns::serve_at(
        format!("{SERVER}:53").parse().unwrap(),
        &["--registry", registry, "--upstream", "off"],
    )
}

/// Runs `body` on a private machine with a server for hello.svc.
///
/// `body` may change all files of the machine.
fn on_a_machine(test: &str, body: impl FnOnce(&Svcdns)) {
    netns::inside(test, SERVER, || {
        netns::mount_etc_copy();
        netns::mount_tmpfs("/run");
        let files = Files::new(&[(HELLO, "{}")]);
        let server = serve(&files.url());
        server.wait_for("hello.svc", &["10.9.0.5"]);
        body(&server);
    });
}

/// Returns a healthy resolv.conf: svcdns first, then another name server.
fn healthy_conf() -> String {
    format!("nameserver {SERVER}\nnameserver {NOBODY}\noptions timeout:1 attempts:1\n")
}

/// The report of `svcdns doctor --json`; `text` is the same JSON, indented.
struct Diagnosis {
    text: String,
    json: Value,
}

impl Diagnosis {
    fn of(mut ran: Command) -> Self {
        let output = ran.arg("--json").output().unwrap();
        let text = |output: &Output| {
            String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr)
        };
        let json: Value = serde_json::from_str(&text(&output))
            .unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
        let healthy = json["healthy"].as_bool().unwrap();
        assert_eq!(output.status.code(), Some(i32::from(!healthy)), "{json}");
        Self { text: format!("{json:#}"), json }
    }

    fn healthy(&self) -> bool {
        self.json["healthy"].as_bool().unwrap()
    }

    fn cause(&self) -> &str {
        self.json["cause"].as_str().unwrap_or("none")
    }

    /// Returns the finding of this check and level that contains `words`.
    ///
    /// Fails the test without one.
    fn expect(&self, check: &str, level: &str, words: &str) -> &Value {
        let findings = self.json["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| {
            finding["check"] == check
                && finding["level"] == level
                && finding["says"].as_str().unwrap().contains(words)
        });
        found.unwrap_or_else(|| panic!("no {level} of {check} with {words:?} in\n{}", self.text))
    }

    /// Fails the test unless a finding like that of [`Self::expect`] suggests this command.
    fn expect_command(&self, check: &str, level: &str, words: &str, command: &str) {
        let commands = self.expect(check, level, words)["type"].as_array().unwrap();
        assert!(
            commands.iter().any(|suggested| suggested.as_str().unwrap().contains(command)),
            "{command:?} not in {commands:?}"
        );
    }
}

fn doctor(server: &Svcdns) -> Diagnosis {
    let mut command = svcdns::command();
    command.arg("--state-dir").arg(server.state_dir()).arg("doctor");
    Diagnosis::of(command)
}

/// Runs the doctor with a state directory of no server.
fn doctor_without_server() -> Diagnosis {
    let folder = tempfile::tempdir().unwrap();
    let mut command = svcdns::command();
    command.arg("--state-dir").arg(folder.path()).arg("doctor");
    Diagnosis::of(command)
}

#[test]
fn doctor_reports_nothing_broken_on_a_healthy_machine() {
    on_a_machine("doctor_reports_nothing_broken_on_a_healthy_machine", |server| {
        fs::write(CONF, healthy_conf()).unwrap();
        let found = doctor(server);
        assert!(found.healthy(), "{}", found.text);
        assert_eq!(found.cause(), "none");
        found.expect("nsswitch", "ok", "hosts: files dns");
        found.expect("hosts", "ok", "has no name in svc");
        found.expect("nscd", "ok", "is not running");
        found.expect("resolv.conf", "ok", SERVER);
        found.expect("name servers", "ok", "127.0.0.55 is svcdns itself");
        found.expect("name servers", "warning", "Programs with musl");
        found.expect("port 53", "ok", "in use by the running svcdns, svcdns (process");
        found.expect("server", "ok", "serves svc");
        found.expect("other names", "ok", "left to the machine's other name servers");
        found.expect("registry", "ok", "1 key, 1 instance");
        found.expect("lookup", "ok", "Programs find ns.svc at 127.0.0.55");

        let output = server.run(&["doctor"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(
            text.contains("\nNothing is broken; ") && text.contains("warning  name servers"),
            "{text}"
        );
    });
}

#[test]
fn doctor_reports_a_missing_server_as_the_cause() {
    netns::inside("doctor_reports_a_missing_server_as_the_cause", NOBODY, || {
        let found = doctor_without_server();
        assert_eq!((found.healthy(), found.cause()), (false, "server"), "{}", found.text);
        found.expect_command("server", "broken", "No svcdns is running", "svcdns serve");
        found.expect("name servers", "broken", "Nothing responds at 127.0.0.99 port 53");
        found.expect_command(
            "port 53",
            "broken",
            "Nothing listens on 127.0.0.99 port 53",
            "sudo svcdns serve --listen 127.0.0.99:53",
        );
        found.expect("lookup", "broken", "Programs do not find ns.svc");

        let folder = tempfile::tempdir().unwrap();
        let output =
            svcdns::command().arg("--state-dir").arg(folder.path()).arg("doctor").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.contains("BROKEN   server")
                && text.contains("\nLikely cause: server: No svcdns is running"),
            "{text}"
        );
        assert!(text.ends_with("  $ svcdns serve\n"), "{text}");
    });
}

#[test]
fn doctor_finds_name_servers_other_than_svcdns() {
    on_a_machine("doctor_finds_name_servers_other_than_svcdns", |server| {
        let files = Files::new(&[(HELLO, "{}")]);
        let listen = format!("{NOBODY}:53").parse().unwrap();
        let other = Svcdns::serve_at(
            listen,
            &["--registry", &files.url(), "--zone", "elsewhere", "--upstream", "off"],
        );
        fs::write(CONF, format!("nameserver {NOBODY}\noptions timeout:1 attempts:1\n")).unwrap();
        let found = doctor(server);
        assert_eq!(found.cause(), "name servers", "{}", found.text);
        found.expect_command(
            "name servers",
            "broken",
            "127.0.0.99 (svcdns) responds to queries for svc with REFUSED",
            "sudo svcdns install",
        );
        found.expect_command("name servers", "broken", "REFUSED", "svcdns run -- COMMAND");
        found.expect("port 53", "ok", "127.0.0.99 port 53 is in use by svcdns (process");
        found.expect("lookup", "broken", "Programs do not find ns.svc");
        drop(other);
        // No server at that address: the fix is not another server, but to configure programs to
        // use the running one.
        let found = doctor(server);
        assert_eq!(found.cause(), "port 53", "{}", found.text);
        let words = "Programs query 127.0.0.99 port 53, where nothing listens; \
                     svcdns listens on 127.0.0.55:53.";
        found.expect_command("port 53", "broken", words, "sudo svcdns install");
        assert!(!found.text.contains("svcdns serve"), "{}", found.text);

        // A second name server that does not answer: not broken, but slow for some programs.
        fs::write(CONF, healthy_conf()).unwrap();
        assert!(doctor(server).healthy());
        // No second name server and no forwarding: other names do not resolve.
        fs::write(CONF, format!("nameserver {SERVER}\n")).unwrap();
        let found = doctor(server);
        assert_eq!(found.cause(), "other names", "{}", found.text);
        found.expect("other names", "broken", "no name of the Internet is found");
    });
}

#[test]
fn doctor_finds_a_hosts_line_without_dns() {
    on_a_machine("doctor_finds_a_hosts_line_without_dns", |server| {
        fs::write(CONF, healthy_conf()).unwrap();
        for (line, words) in [
            ("hosts: files", "names neither `dns` nor `resolve`"),
            ("hosts: files [NOTFOUND=return] dns", "ends every lookup at `files`"),
            ("hosts: files resolve", "systemd-resolved alone, which is not running"),
        ] {
            fs::write(NSSWITCH, format!("passwd: files\n{line}\n")).unwrap();
            let found = doctor(server);
            assert_eq!(found.cause(), "nsswitch", "{}", found.text);
            found.expect("nsswitch", "broken", words);
            found.expect("lookup", "broken", "Programs do not find ns.svc");
            // The suggested command repairs the line.
            let suggested =
                found.expect("nsswitch", "broken", words)["type"][0].as_str().unwrap().to_owned();
            netns::run("sh", &["-c", suggested.strip_prefix("sudo ").unwrap()]);
            let repaired = doctor(server);
            assert!(repaired.healthy(), "{suggested}: {}", repaired.text);
        }
        fs::write(NSSWITCH, "hosts: files resolve [!UNAVAIL=return] dns\n").unwrap();
        doctor(server).expect("nsswitch", "ok", "is not running, so programs use the name servers");
        fs::remove_file(NSSWITCH).unwrap();
        doctor(server).expect("nsswitch", "ok", "has no hosts line");
    });
}

#[test]
fn doctor_warns_about_unusual_resolv_conf_and_hosts_files() {
    on_a_machine("doctor_warns_about_unusual_resolv_conf_and_hosts_files", |server| {
        let odd = format!(
            "{}nameserver 300.1.1.1\nnameserver {NOBODY}\nnameserver 127.0.0.98\n\
             search corp.example\noptions ndots:5 rotate\n",
            healthy_conf()
        );
        fs::write(CONF, odd).unwrap();
        fs::write("/etc/hosts", "127.0.0.1 localhost\n192.0.2.1 other Hello.SVC # old\n").unwrap();
        let found = doctor(server);
        found.expect_command(
            "hosts",
            "warning",
            "Line 2 of /etc/hosts has Hello.SVC",
            "sudoedit /etc/hosts",
        );
        found.expect(
            "resolv.conf",
            "warning",
            "only the first 3 name servers, and never query 127.0.0.98",
        );
        found.expect_command(
            "resolv.conf",
            "warning",
            "Line 4 of /etc/resolv.conf is ignored by all programs",
            "sed -n 4p",
        );
        found.expect(
            "resolv.conf",
            "warning",
            "`options ndots:5`, programs first query the search list (hello.svc.corp.example)",
        );
        found.expect("resolv.conf", "warning", "`options rotate` spreads queries");

        fs::remove_file(CONF).unwrap();
        let found = doctor(server);
        found.expect("resolv.conf", "warning", "does not exist: programs query 127.0.0.1 port 53");
        assert_eq!(found.cause(), "port 53", "{}", found.text);
        symlink("/run/nowhere", CONF).unwrap();
        doctor(server).expect("resolv.conf", "warning", "(a link to /run/nowhere) does not exist");
        fs::remove_file(CONF).unwrap();
        fs::create_dir(CONF).unwrap();
        doctor(server).expect("resolv.conf", "broken", "is not a file");
        fs::remove_dir(CONF).unwrap();
        fs::write(CONF, "# nothing\n").unwrap();
        doctor(server).expect("resolv.conf", "warning", "has no name server");
    });
}

#[test]
fn doctor_reports_which_process_uses_the_port() {
    on_a_machine("doctor_reports_which_process_uses_the_port", |server| {
        fs::write(CONF, format!("nameserver {NOBODY}\noptions timeout:1 attempts:1\n")).unwrap();
        let udp = UdpSocket::bind((NOBODY, 53)).unwrap();
        let found = doctor(server);
        let own = format!("(process {}), for UDP only", std::process::id());
        found.expect("port 53", "ok", &own);
        let tcp = TcpListener::bind((NOBODY, 53)).unwrap();
        found.expect("name servers", "broken", "Nothing responds at 127.0.0.99 port 53 (");

        // Another user sees the owner of the socket, but not the process.
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(server.state_dir(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = folder.path().join("svcdns");
        fs::copy(env!("CARGO_BIN_EXE_svcdns"), &program).unwrap();
        let mut nobody = Command::new("setpriv");
        nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        nobody.arg("--state-dir").arg(server.state_dir()).arg("doctor").current_dir("/");
        let found = Diagnosis::of(nobody);
        found.expect_command(
            "port 53",
            "ok",
            "in use by a process of the user root; only root can see",
            "sudo svcdns doctor",
        );
        drop((udp, tcp));
    });
}

#[test]
fn doctor_finds_registry_faults() {
    netns::inside("doctor_finds_registry_faults", SERVER, || {
        netns::mount_etc_copy();
        fs::write(CONF, healthy_conf()).unwrap();
        let server = serve("etcd://127.0.0.1:9");
        let found = doctor(&server);
        assert_eq!(found.cause(), "registry", "{}", found.text);
        found.expect_command("registry", "broken", "etcd could not be read yet", "svcdns status");
        server.stop();

        let files = Files::new(&[]);
        let server = serve(&files.url());
        let found = eventually("the registry to be read", SOON, || {
            Some(doctor(&server)).filter(Diagnosis::healthy)
        });
        found.expect("registry", "warning", "nothing is registered there");
        files.put("default/default/bad/latest/10.0.0.3:0", "{}");
        files.put(HELLO, "{}");
        let says = |found: &Diagnosis| found.text.contains("1 key or endpoint cannot be served");
        let found =
            eventually("the bad key to be seen", SOON, || Some(doctor(&server)).filter(says));
        found.expect_command("registry", "warning", "cannot be served", "svcdns ls --rejected");
        server.stop();
    });
}

#[test]
fn doctor_warns_about_an_nscd_that_caches_host_names() {
    const TEST: &str = "doctor_warns_about_an_nscd_that_caches_host_names";
    let Some(tree) = machine::unpacked(TEST, &["nscd"]) else { return };
    on_a_machine(TEST, |server| {
        fs::write(CONF, healthy_conf()).unwrap();
        netns::mount_tmpfs("/var/cache");
        for folder in ["/run/nscd", "/var/cache/nscd"] {
            fs::create_dir_all(folder).unwrap();
        }
        for (setting, level, words) in
            [("yes", "warning", "caches host names"), ("no", "ok", "does not cache host names")]
        {
            fs::write("/etc/nscd.conf", format!("enable-cache hosts {setting}\n")).unwrap();
            let mut nscd =
                Process::start(Command::new(tree.join("usr/sbin/nscd")).arg("--foreground"));
            eventually("nscd to listen", SOON, || {
                std::os::unix::net::UnixStream::connect("/run/nscd/socket").ok()
            });
            let found = doctor(server);
            assert!(found.healthy(), "{}", found.text);
            found.expect("nscd", level, words);
            nscd.kill();
        }
        doctor(server).expect("nscd", "ok", "is not running");
    });
}

#[test]
fn doctor_finds_systemd_resolved_without_a_route_or_with_dnssec() {
    const TEST: &str = "doctor_finds_systemd_resolved_without_a_route_or_with_dnssec";
    let Some(packages) = resolved::packages(TEST) else { return };
    on_a_machine(TEST, |server| {
        fs::remove_file(CONF).unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", CONF).unwrap();

        let mut running = Resolved::start(&packages, "DNSSEC=no");
        let found = doctor(server);
        assert_eq!(found.cause(), "systemd-resolved", "{}", found.text);
        found.expect_command(
            "systemd-resolved",
            "broken",
            "systemd-resolved has no route for svc to svcdns",
            "sudo svcdns install",
        );
        found.expect("name servers", "broken", "127.0.0.53 (systemd-resolved)");
        found.expect("port 53", "ok", "127.0.0.53 port 53 is in use by systemd-resolve (process");
        found.expect("resolv.conf", "ok", "managed by systemd-resolved");

        let routed = format!("DNS={SERVER}\nDomains=~svc\n");
        running.restart(&format!("{routed}DNSSEC=no"));
        let found = doctor(server);
        assert!(found.healthy(), "{}", found.text);
        found.expect(
            "systemd-resolved",
            "ok",
            "forwards queries for svc to svcdns (Global to 127.0.0.55)",
        );
        found.expect(
            "name servers",
            "ok",
            "127.0.0.53 (systemd-resolved) forwards queries for svc to svcdns",
        );

        running.restart(&format!("{routed}DNSSEC=yes"));
        let found = doctor(server);
        assert_eq!(found.cause(), "systemd-resolved", "{}", found.text);
        let trap = "validates answers (Global: DNSSEC=yes), but svc is a private zone";
        found.expect_command(
            "systemd-resolved",
            "broken",
            trap,
            "echo svc | sudo tee /etc/dnssec-trust-anchors.d/svcdns.negative",
        );
        found.expect("lookup", "broken", "Programs do not find ns.svc");
        // The suggested commands repair it.
        let finding = found.expect("systemd-resolved", "broken", trap);
        for suggested in finding["type"].as_array().unwrap() {
            let suggested = suggested.as_str().unwrap().replace("sudo ", "");
            if !suggested.starts_with("systemctl") {
                netns::run("sh", &["-c", &suggested]);
            }
        }
        running.restart(&format!("{routed}DNSSEC=yes"));
        let found = doctor(server);
        assert!(found.healthy(), "{}", found.text);
    });
}
