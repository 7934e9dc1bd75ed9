//! `svcdns install` with the real systemd, also as an upgrade of an older version's installation.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::dns;
use support::files::Files;
use support::former;
use support::machine::{NOBODY, assert_as_before, on_a_machine, put_among, said, tree, unpacked};
use support::resolved;
use support::resolved_route::{self, RESOLVED, ROUTE};
use support::service_manager::{ServiceManager, StandIn, UNITS};
use support::steady_load::{Ask, SteadyLoad};
use support::systemd::{Systemd, can_run_systemd, on_a_machine_with};
use support::{SOON, eventually, netns, skip};
use svcdns::system::{KEEP_UNIT, SERVER_UNIT, keep_unit, server_unit};

/// A copy of svcdns in a place where a service can run it.
const PROGRAM: &str = "/run/svcdns-program";

const JOURNAL: &str = "/var/lib/svcdns-install/install.json";

const INSTALL: [&str; 7] = [
    PROGRAM,
    "install",
    "--keep-nameservers",
    "--upstream",
    "off",
    "--registry",
    "file:///run/registry",
];

/// Returns the unit as distributed, changed to start [`PROGRAM`].
fn distributed_unit() -> String {
    include_str!("../deploy/svcdns.service").replace("/usr/local/bin/svcdns", PROGRAM)
}

#[test]
fn systemd_accepts_the_units() {
    const TEST: &str = "systemd_accepts_the_units";
    if !support::on_path("systemd-analyze") {
        return skip(TEST, "no systemd-analyze on PATH");
    }
    let verify = |name: &str, text: &str| {
        let folder = tempfile::tempdir().unwrap();
        let unit = folder.path().join(name);
        // systemd-analyze checks that the program exists.
        fs::write(&unit, text.replace(PROGRAM, "/bin/true")).unwrap();
        let mut command = Command::new("systemd-analyze");
        said(&command.args(["verify", "--man=no"]).arg(&unit).output().unwrap())
    };
    let config = Path::new("/etc/svc dns/100%.toml");
    let written = server_unit(Path::new(PROGRAM), Some(config));
    let server = [distributed_unit(), server_unit(Path::new(PROGRAM), None), written];
    let units = server.map(|text| (SERVER_UNIT, text));
    for (name, text) in units.into_iter().chain([(KEEP_UNIT, keep_unit(Path::new(PROGRAM)))]) {
        assert_eq!(verify(name, &text), "", "{text}");
        // An unknown key is only a warning.
        let misspelt = text.replace("Restart=always", "Restat=always");
        assert!(verify(name, &misspelt).contains("Restat"), "{text}");
    }
}

#[test]
fn systemd_accepts_the_socket_unit() {
    const TEST: &str = "systemd_accepts_the_socket_unit";
    if !support::on_path("systemd-analyze") {
        return skip(TEST, "no systemd-analyze on PATH");
    }
    let folder = tempfile::tempdir().unwrap();
    // The socket unit starts the service of its name, which must exist.
    let service = distributed_unit().replace(PROGRAM, "/bin/true");
    fs::write(folder.path().join(SERVER_UNIT), service).unwrap();
    let verify = |text: &str| {
        let unit = folder.path().join("svcdns.socket");
        fs::write(&unit, text).unwrap();
        let mut command = Command::new("systemd-analyze");
        said(&command.args(["verify", "--man=no"]).arg(&unit).output().unwrap())
    };
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/svcdns.socket"));
    let text = text.unwrap();
    assert_eq!(verify(&text), "", "{text}");
    for key in ["ReusePort", "TriggerLimitIntervalSec", "FileDescriptorName", "ListenDatagram"] {
        let misspelt = text.replace(&format!("\n{key}="), &format!("\n{key}x="));
        assert!(verify(&misspelt).contains(&format!("{key}x")), "{key}");
    }
}

/// Runs `body` on a private machine with systemd, and passes the state of its /etc.
fn with_systemd(test: &str, body: impl FnOnce(&Systemd, &BTreeMap<PathBuf, String>)) {
    on_a_machine_with(test, PROGRAM, |systemd| {
        former::furnish();
        body(systemd, &tree("/etc"));
    });
}

/// Fails the test if a file has changed, one directory of systemd excepted.
fn assert_nothing_left(before: &BTreeMap<PathBuf, String>, when: &str) {
    let _ = fs::remove_dir("/var/lib/private");
    assert_as_before(before, when);
}

/// Makes the installation of an older version, and starts its server.
fn install_former(systemd: &Systemd) {
    former::install(true);
    for line in ["daemon-reload", "enable svcdns", "restart svcdns"] {
        let line: Vec<&str> = ["systemctl"].into_iter().chain(line.split(' ')).collect();
        systemd.ends_with(0, &line);
    }
    wait_for_server(systemd);
}

fn wait_for_server(systemd: &Systemd) {
    eventually("the server's socket", SOON, || {
        Path::new("/run/svcdns/svcdns.sock").exists().then_some(())
    });
    // The socket may be that of a dead server.
    eventually("the server", SOON, || {
        let line = ["systemctl", "is-active", "svcdns"];
        systemd.ends_with(0, &line);
        systemd.succeeds(&[PROGRAM, "status"]).then_some(())
    });
}

#[test]
fn the_state_directory_exists_until_uninstall() {
    const TEST: &str = "the_state_directory_exists_until_uninstall";
    with_systemd(TEST, |systemd, before| {
        systemd.ends_with(0, &INSTALL);
        let status = systemd.ends_with(0, &[PROGRAM, "status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["runtime-dir"], "/run/svcdns");
        assert_eq!(status["state-dir"], "/var/lib/svcdns");
        let text = systemd.ends_with(0, &[PROGRAM, "status"]);
        let line = "runtime directory /run/svcdns, state directory /var/lib/svcdns\n";
        assert!(text.contains(line), "{text}");

        // The service's user can write there, so the journal is elsewhere.
        let state = Path::new("/var/lib/private/svcdns");
        assert_eq!(fs::read_link("/var/lib/svcdns").unwrap(), Path::new("private/svcdns"));
        assert_ne!(fs::metadata(state).unwrap().uid(), 0);
        assert_eq!(fs::metadata(state).unwrap().mode() & 0o777, 0o700);
        let journal = fs::metadata(JOURNAL).unwrap();
        assert_eq!((journal.uid(), journal.mode() & 0o777), (0, 0o600));

        // Another server, started by root, does not use the directories of the service.
        let refused = systemd.ends_with(1, &[PROGRAM, "serve", "--listen", "127.0.0.1:0"]);
        assert!(refused.contains("belongs to another user"), "{refused}");

        // As if /var/lib could not be written to.
        let drop_in = Path::new("/etc/systemd/system/svcdns.service.d");
        fs::create_dir(drop_in).unwrap();
        fs::write(drop_in.join("none.conf"), "[Service]\nStateDirectory=\n").unwrap();
        let restart = || {
            systemd.ends_with(0, &["systemctl", "daemon-reload"]);
            systemd.ends_with(0, &["systemctl", "restart", "svcdns"]);
            wait_for_server(systemd);
            systemd.ends_with(0, &[PROGRAM, "status"])
        };
        assert!(restart().contains("state directory none\n"));
        fs::remove_dir_all(drop_in).unwrap();
        assert!(restart().contains("state directory /var/lib/svcdns\n"));

        // A new installation keeps the state; `uninstall` keeps foreign files and says so.
        fs::write(state.join("mine"), "").unwrap();
        let told = systemd.ends_with(0, &[&INSTALL[..], &["--ttl", "9s"]].concat());
        assert!(told.contains("is undone first") && state.join("mine").exists(), "{told}");
        let told = systemd.ends_with(0, &[PROGRAM, "uninstall"]);
        assert!(told.contains("/var/lib/svcdns: kept, other files are in it"), "{told}");
        fs::remove_file(state.join("mine")).unwrap();

        systemd.ends_with(0, &INSTALL);
        systemd.ends_with(0, &[PROGRAM, "uninstall"]);
        assert_nothing_left(before, "after uninstall");
    });
}

#[test]
fn restarts_with_the_socket_unit_lose_no_query() {
    const TEST: &str = "restarts_with_the_socket_unit_lose_no_query";
    with_systemd(TEST, |systemd, _| {
        let key = ("default/default/hello.svc/latest/10.0.0.1:80", "{}");
        let files = Files::readable_in(Path::new("/run"), &[key]);
        let (url, flags) = (files.url(), INSTALL.split_last().unwrap().1);
        systemd.ends_with(0, &[flags, &[&url, "--listen", "127.0.0.1:53"]].concat());
        // As the comment says for port 53.
        let unit = include_str!("../deploy/svcdns.socket").replace(":5300\n", ":53\n");
        fs::write(Path::new(UNITS).join("svcdns.socket"), &unit).unwrap();
        // The commands at the top of the unit.
        let commands: Vec<&str> = unit
            .lines()
            .take_while(|line| line.starts_with('#'))
            .filter_map(|line| line.strip_prefix("# systemctl "))
            .flat_map(|line| line.split(" && "))
            .map(|command| command.trim_start_matches("systemctl "))
            .collect();
        assert_eq!(commands.len(), 4, "{commands:?}");
        let systemctl = |command: &str| {
            let line: Vec<&str> = ["systemctl"].into_iter().chain(command.split(' ')).collect();
            systemd.ends_with(0, &line);
        };
        commands.into_iter().for_each(systemctl);
        wait_for_server(systemd);
        let address = "127.0.0.1:53".parse().unwrap();
        eventually("an answer", SOON, || {
            (dns::code(address, "hello.svc", dns::A) == "NOERROR").then_some(())
        });
        let names = vec![("hello.svc".to_owned(), "10.0.0.1".to_owned())];
        let load = SteadyLoad::start(address, Ask { udp_rate: 200, tcp_rate: 10, names });
        for command in ["daemon-reload", "restart svcdns", "daemon-reexec", "restart svcdns"] {
            systemctl(command);
            wait_for_server(systemd);
        }
        let report = load.stop();
        report.expect_no_loss();
        assert_eq!(report.tcp_resets, 0, "{report:?}");
        // Each socket of the unit still has its worker.
        let process = systemd.main_process("svcdns");
        let list = format!("cat /proc/{process}/task/*/comm");
        let threads = systemd.ends_with(0, &["sh", "-c", &list]);
        let workers = threads.lines().filter(|name| name.starts_with("udp-")).count();
        assert_eq!(workers, unit.matches("\nListenDatagram=").count(), "{threads}");
        systemctl("stop svcdns.socket svcdns");
        assert_eq!(dns::code(address, "hello.svc", dns::A), "no answer");
    });
}

#[test]
fn the_keep_unit_restores_the_nameserver_line() {
    const TEST: &str = "the_keep_unit_restores_the_nameserver_line";
    with_systemd(TEST, |systemd, before| {
        let unit = ["systemctl", "is-active", "svcdns-keep"];
        let install: Vec<&str> =
            INSTALL.iter().copied().filter(|flag| *flag != "--keep-nameservers").collect();
        let install: Vec<&str> = install
            .iter()
            .map(|flag| if *flag == "off" { "192.0.2.53" } else { flag })
            .chain(["--listen", "127.0.0.1:53", "--keep"])
            .collect();
        let told = systemd.ends_with(0, &install);
        assert!(told.contains("start svcdns-keep.service"), "{told}");
        systemd.ends_with(0, &unit);
        let lease = "search lease.test\nnameserver 192.0.2.7\n";
        let kept = || {
            let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            text.contains("search lease.test\n") && text.contains("\nnameserver 127.0.0.1\n")
        };
        for _ in 0..2 {
            fs::write("/etc/resolv.conf.new", lease).unwrap();
            fs::rename("/etc/resolv.conf.new", "/etc/resolv.conf").unwrap();
            eventually("the line to be back", SOON, || kept().then_some(()));
            // After a crash, systemd starts the command again.
            systemd.ends_with(0, &["systemctl", "kill", "--signal=KILL", "svcdns-keep"]);
            eventually("the unit", SOON, || systemd.succeeds(&unit).then_some(()));
        }
        let saved = fs::read_to_string("/var/lib/svcdns-install/resolv.conf.before").unwrap();
        assert_eq!(saved, lease);
        // The server reads the file, although it runs as another user.
        let reported = |in_effect: bool| {
            eventually("the status", SOON, || {
                let status = systemd.ends_with(0, &[PROGRAM, "status", "--json"]);
                let status: serde_json::Value = serde_json::from_str(&status).unwrap();
                (status["resolv-conf"]["in-effect"] == in_effect).then_some(())
            });
        };
        reported(true);
        systemd.ends_with(0, &["systemctl", "stop", "svcdns-keep"]);
        let text = fs::read_to_string("/etc/resolv.conf").unwrap();
        fs::write("/etc/resolv.conf", lease).unwrap();
        reported(false);
        fs::write("/etc/resolv.conf", text).unwrap();
        reported(true);
        systemd.ends_with(0, &["systemctl", "start", "svcdns-keep"]);
        assert!(systemd.ends_with(0, &install).contains("Already installed"));

        systemd.ends_with(0, &[PROGRAM, "uninstall"]);
        assert!(!systemd.succeeds(&unit));
        assert_eq!(fs::read_to_string("/etc/resolv.conf").unwrap(), lease);
        former::furnish();
        assert_nothing_left(before, "after uninstall");
    });
}

#[test]
fn an_older_installation_is_replaced() {
    const TEST: &str = "an_older_installation_is_replaced";
    with_systemd(TEST, |systemd, before| {
        install_former(systemd);
        // The user has edited the unit.
        let unit = Path::new("/etc/systemd/system/svcdns.service");
        let edited = fs::read_to_string(unit).unwrap() + "# mine\n";
        fs::write(unit, &edited).unwrap();

        let told = systemd.ends_with(0, &INSTALL);
        assert!(told.contains("An earlier installation is undone first"), "{told}");
        let kept = "/var/lib/svcdns-install/svcdns.service";
        assert!(told.contains(&format!("moved to {kept}")), "{told}");
        let text = fs::read_to_string(unit).unwrap();
        assert!(
            text.contains("StateDirectory=svcdns\n") && !text.contains("--state-dir"),
            "{text}"
        );
        let of_service: Vec<_> = tree("/var/lib/private/svcdns").into_keys().collect();
        assert_eq!(of_service, [Path::new("/var/lib/private/svcdns/svcdns.lock")]);
        assert!(systemd.ends_with(0, &INSTALL).contains("Already installed"));

        systemd.ends_with(0, &[PROGRAM, "uninstall"]);
        assert_eq!(fs::read_to_string(kept).unwrap(), edited);
        fs::remove_dir_all("/var/lib/svcdns-install").unwrap();
        assert_nothing_left(before, "after uninstall");
    });
}

#[test]
fn an_older_installation_is_uninstalled() {
    const TEST: &str = "an_older_installation_is_uninstalled";
    with_systemd(TEST, |systemd, before| {
        install_former(systemd);
        assert!(systemd.ends_with(0, &[PROGRAM, "uninstall", "--dry-run"]).contains("resolv.conf"));
        systemd.ends_with(0, &[PROGRAM, "uninstall"]);
        assert_nothing_left(before, "after uninstall");
        let again = systemd.ends_with(0, &[PROGRAM, "uninstall"]);
        assert!(again.contains("Nothing is installed"), "{again}");
    });
}

#[test]
fn a_journal_that_the_service_can_write_is_not_trusted() {
    const TEST: &str = "a_journal_that_the_service_can_write_is_not_trusted";
    with_systemd(TEST, |systemd, before| {
        install_former(systemd);
        // The user updates the unit by hand, so systemd gives the journal to the service.
        fs::write("/etc/systemd/system/svcdns.service", distributed_unit()).unwrap();
        for line in [&["systemctl", "daemon-reload"][..], &["systemctl", "restart", "svcdns"]] {
            systemd.ends_with(0, line);
        }
        wait_for_server(systemd);
        let given_away = Path::new("/var/lib/private/svcdns/install.json");
        assert_ne!(
            fs::metadata(given_away).unwrap().uid(),
            0,
            "systemd no longer changes the owner"
        );

        let etc = tree("/etc");
        for line in [&INSTALL[..], &[PROGRAM, "uninstall"], &[PROGRAM, "uninstall", "--dry-run"]] {
            let told = systemd.ends_with(1, line);
            let why = "is not trusted because /var/lib/private/svcdns belongs to user";
            assert!(told.contains(why) && told.contains(JOURNAL), "{told}");
            assert_eq!(tree("/etc"), etc, "{line:?}");
        }
        // A link to a file of root's is not trusted either, nor a file of root's in that directory.
        fs::copy(given_away, "/run/copy.json").unwrap();
        fs::remove_file(given_away).unwrap();
        chown("/run/copy.json", Some(0), Some(0)).unwrap();
        symlink("/run/copy.json", given_away).unwrap();
        systemd.ends_with(1, &[PROGRAM, "uninstall"]);
        fs::remove_file(given_away).unwrap();
        fs::copy("/run/copy.json", given_away).unwrap();
        systemd.ends_with(1, &[PROGRAM, "uninstall"]);
        assert_eq!(tree("/etc"), etc);

        // The repair that the message suggests; the copy of the service is then ignored.
        fs::create_dir("/var/lib/svcdns-install").unwrap();
        fs::copy("/run/copy.json", JOURNAL).unwrap();
        let told = systemd.ends_with(0, &[PROGRAM, "uninstall"]);
        assert!(told.contains("svcdns.service, because it has been edited since"), "{told}");
        assert!(given_away.exists(), "root removes only files that it made there");
        for folder in ["/var/lib/private", "/var/lib/svcdns-install"] {
            fs::remove_dir_all(folder).unwrap();
        }
        fs::remove_file("/var/lib/svcdns").unwrap();
        assert_nothing_left(before, "after uninstall");
    });
}

#[test]
fn install_refuses_a_state_directory_with_files_of_others() {
    const TEST: &str = "install_refuses_a_state_directory_with_files_of_others";
    with_systemd(TEST, |systemd, before| {
        fs::create_dir_all("/var/lib/svcdns/registry").unwrap();
        let told = systemd.ends_with(1, &INSTALL);
        assert!(
            told.contains("/var/lib/svcdns") && told.contains("move registry elsewhere"),
            "{told}"
        );
        fs::remove_dir_all("/var/lib/svcdns").unwrap();
        assert_nothing_left(before, "refused");

        // The service could not write to a directory named in the configuration file.
        fs::write("/run/svcdns.toml", "registry = ['file:///run/registry']\nstate-dir = '/s'\n")
            .unwrap();
        let told =
            systemd.ends_with(1, &[&INSTALL[..], &["--config", "/run/svcdns.toml"]].concat());
        assert!(told.contains("/run/svcdns.toml:2:1 sets `state-dir`"), "{told}");
        assert_nothing_left(before, "refused");
    });
}

/// Runs `body` on a private machine with systemd-resolved under a service manager.
///
/// systemd-resolved validates, so that the route needs a link. `body` gets the manager, the command
/// line of `install` and the state of /etc.
fn with_systemd_resolved<M: ServiceManager>(
    test: &str,
    start: impl FnOnce() -> M,
    body: impl FnOnce(&M, &[&str], &BTreeMap<PathBuf, String>),
) {
    let Some(packages) = resolved::packages(test) else { return };
    on_a_machine(test, || {
        let _bus = resolved::furnish(&packages);
        let server = std::net::SocketAddr::new(netns::ADDRESS.parse().unwrap(), 53);
        let _upstream = resolved_route::serve_outside_name(server);
        let files = Files::readable_in(Path::new("/run"), &[resolved_route::REGISTRATION]);
        resolved::configure(&format!("DNSSEC=yes\nDNS={}", netns::ADDRESS));
        let manager = start();
        fs::copy(env!("CARGO_BIN_EXE_svcdns"), PROGRAM).unwrap();
        fs::copy(format!("/usr/lib/systemd/system/{RESOLVED}"), format!("{UNITS}/{RESOLVED}"))
            .unwrap();
        fs::remove_file("/etc/resolv.conf").unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf").unwrap();
        manager.ends_with(0, &["systemctl", "daemon-reload"]);
        manager.ends_with(0, &["systemctl", "start", RESOLVED]);
        resolved_route::expect_outside_name(&manager, "before the installation");
        body(&manager, &[PROGRAM, "install", "--registry", &files.url()], &tree("/etc"));
    });
}

/// Installs, restarts and kills the services, and uninstalls.
fn expect_route_until_uninstalled(
    manager: &impl ServiceManager,
    install: &[&str],
    before: &BTreeMap<PathBuf, String>,
) {
    let told = manager.ends_with(0, install);
    assert!(told.contains("is managed by: systemd-resolved"), "{told}");
    resolved_route::expect_names(manager, "after the installation");
    resolved_route::expect_route_through_restarts(manager);
    assert!(manager.ends_with(0, install).contains("Already installed"));
    manager.ends_with(0, &[PROGRAM, "uninstall"]);
    assert!(!manager.succeeds(&["ip", "link", "show", "svcdns0"]));
    resolved_route::expect_outside_name(manager, "after uninstall");
    assert_nothing_left(before, "after uninstall");
}

#[test]
fn the_route_in_systemd_resolved_survives_restarts_and_kills() {
    const TEST: &str = "the_route_in_systemd_resolved_survives_restarts_and_kills";
    if can_run_systemd(TEST) {
        with_systemd_resolved(TEST, Systemd::start, expect_route_until_uninstalled);
    }
}

/// systemd stops starting a unit after five starts in ten seconds, unless it says otherwise.
#[test]
fn the_route_in_systemd_resolved_survives_many_restarts_in_a_row() {
    const TEST: &str = "the_route_in_systemd_resolved_survives_many_restarts_in_a_row";
    if !can_run_systemd(TEST) {
        return;
    }
    with_systemd_resolved(TEST, Systemd::start, |systemd, install, before| {
        systemd.ends_with(0, install);
        for _ in 0..10 {
            systemd.restart(RESOLVED);
        }
        resolved_route::expect_names(systemd, "after ten restarts");
        // Each kill meets the route's unit while it starts.
        for _ in 0..10 {
            systemd.kill(RESOLVED);
        }
        resolved_route::expect_names(systemd, "after ten kills");
        systemd.ends_with(0, &[PROGRAM, "uninstall"]);
        assert_nothing_left(before, "after uninstall");
    });
}

/// systemd-resolved may end while the unit starts.
#[test]
fn the_route_in_systemd_resolved_survives_a_failed_start_of_its_unit() {
    const TEST: &str = "the_route_in_systemd_resolved_survives_a_failed_start_of_its_unit";
    if !can_run_systemd(TEST) {
        return;
    }
    with_systemd_resolved(TEST, Systemd::start, |systemd, install, before| {
        systemd.ends_with(0, install);
        systemd.ends_with(0, &["systemctl", "stop", ROUTE]);
        let resolved = systemd.main_process(RESOLVED);
        systemd.ends_with(0, &["sh", "-c", &format!("kill -STOP {resolved}")]);
        systemd.ends_with(0, &["systemctl", "start", "--no-block", ROUTE]);
        let command = eventually("a command that waits for systemd-resolved", SOON, || {
            let process = systemd.main_process(ROUTE);
            let name = systemd.run(&["cat", &format!("/proc/{process}/comm")]).stdout;
            (name == b"resolvectl\n").then_some(process)
        });
        systemd.ends_with(0, &["sh", "-c", &format!("kill -KILL {command}")]);
        systemd.ends_with(0, &["sh", "-c", &format!("kill -CONT {resolved}")]);
        resolved_route::expect_names(systemd, "after a failed start");
        systemd.ends_with(0, &[PROGRAM, "uninstall"]);
        assert_nothing_left(before, "after uninstall");
    });
}

/// systemd runs `ExecStop=` only after a successful start.
#[test]
fn uninstall_while_the_route_unit_starts_leaves_no_interface() {
    const TEST: &str = "uninstall_while_the_route_unit_starts_leaves_no_interface";
    if !can_run_systemd(TEST) {
        return;
    }
    with_systemd_resolved(TEST, Systemd::start, |systemd, install, before| {
        systemd.ends_with(0, install);
        systemd.ends_with(0, &["systemctl", "stop", ROUTE]);
        let has_link = || systemd.succeeds(&["ip", "link", "show", "svcdns0"]);
        assert!(!has_link());
        // A `resolvectl` of the unit now waits for systemd-resolved.
        let resolved = systemd.main_process(RESOLVED);
        systemd.ends_with(0, &["sh", "-c", &format!("kill -STOP {resolved}")]);
        systemd.ends_with(0, &["systemctl", "start", "--no-block", ROUTE]);
        eventually("the link", SOON, || has_link().then_some(()));
        systemd.ends_with(0, &[PROGRAM, "uninstall"]);
        assert!(!has_link());
        systemd.ends_with(0, &["sh", "-c", &format!("kill -CONT {resolved}")]);
        let units = systemd.ends_with(0, &["systemctl", "list-units", "--all", "svcdns*"]);
        assert!(!units.contains("svcdns"), "{units}");
        resolved_route::expect_outside_name(systemd, "after uninstall");
        assert_nothing_left(before, "after uninstall");
    });
}

/// Installs beside openresolv, restarts and kills the server, and uninstalls.
///
/// resolv.conf names svcdns exactly while the server runs.
fn expect_record_while_the_server_runs<M: ServiceManager>(
    test: &str,
    start: impl FnOnce() -> M,
    restarts: usize,
) {
    let Some(packages) = unpacked(test, &["openresolv"]) else { return };
    on_a_machine(test, || {
        put_among(&packages.join("sbin"), "/usr/sbin");
        put_among(&packages.join("lib"), "/usr/lib");
        fs::copy(packages.join("etc/resolvconf.conf"), "/etc/resolvconf.conf").unwrap();
        let add = format!("echo nameserver {NOBODY} | resolvconf -a eth0.dhclient");
        netns::run("sh", &["-c", &add]);
        let files = Files::readable_in(Path::new("/run"), &[resolved_route::REGISTRATION]);
        let manager = start();
        fs::copy(env!("CARGO_BIN_EXE_svcdns"), PROGRAM).unwrap();
        let expect_record = |is_there: bool, when: &str| {
            eventually(&format!("a record, {is_there}, {when}"), SOON, || {
                let text = fs::read_to_string("/etc/resolv.conf").unwrap();
                (text.contains("nameserver 127.0.0.1\n") == is_there).then_some(())
            });
        };
        let url = files.url();
        let flags = ["--keep-nameservers", "--upstream", NOBODY, "--registry", &url];
        let told = manager.ends_with(0, &[&[PROGRAM, "install"], &flags[..]].concat());
        assert!(told.contains("is managed by: resolvconf"), "{told}");
        expect_record(true, "after the installation");
        for _ in 0..restarts {
            manager.ends_with(0, &["systemctl", "restart", SERVER_UNIT]);
        }
        expect_record(true, "after restarts");
        manager.kill(SERVER_UNIT);
        expect_record(true, "after a kill");
        eventually("hello.svc after a kill", SOON, || {
            (manager.addresses("hello.svc") == ["10.9.0.80"]).then_some(())
        });
        manager.ends_with(0, &["systemctl", "stop", SERVER_UNIT]);
        expect_record(false, "without the server");
        manager.ends_with(0, &["systemctl", "start", SERVER_UNIT]);
        expect_record(true, "with the server");
        manager.ends_with(0, &[PROGRAM, "uninstall"]);
        expect_record(false, "after uninstall");
        for path in [UNITS.to_owned() + "/" + ROUTE, format!("{UNITS}/{SERVER_UNIT}.wants")] {
            assert!(!Path::new(&path).exists(), "{path}");
        }
    });
}

#[test]
fn the_resolvconf_record_exists_only_while_the_server_runs() {
    const TEST: &str = "the_resolvconf_record_exists_only_while_the_server_runs";
    if can_run_systemd(TEST) {
        expect_record_while_the_server_runs(TEST, Systemd::start, 10);
    }
}

#[test]
fn the_resolvconf_record_follows_the_server_under_a_stand_in_for_systemd() {
    const TEST: &str = "the_resolvconf_record_follows_the_server_under_a_stand_in_for_systemd";
    expect_record_while_the_server_runs(TEST, StandIn::start, 2);
}

#[test]
fn the_unit_of_an_older_version_is_replaced() {
    const TEST: &str = "the_unit_of_an_older_version_is_replaced";
    with_systemd_resolved(TEST, StandIn::start, |manager, install, before| {
        manager.ends_with(0, install);
        let unit = Path::new(UNITS).join(ROUTE);
        let text = fs::read_to_string(&unit).unwrap();
        let line = "StartLimitIntervalSec=0\n";
        fs::write(&unit, text.replace(line, "")).unwrap();
        let journal = fs::read_to_string(JOURNAL).unwrap();
        let at = journal.rfind("StartLimitIntervalSec=0\\n").unwrap();
        let older = [&journal[..at], &journal[at + line.len() + 1..]].concat();
        fs::write(JOURNAL, older).unwrap();

        assert!(manager.ends_with(0, install).contains("An earlier installation is undone first"));
        assert_eq!(fs::read_to_string(&unit).unwrap(), text);
        assert!(manager.ends_with(0, install).contains("Already installed"));
        manager.ends_with(0, &[PROGRAM, "uninstall"]);
        assert_nothing_left(before, "after uninstall");
    });
}

/// Runs the units where systemd cannot run.
#[test]
fn the_units_maintain_the_route_under_a_stand_in_for_systemd() {
    const TEST: &str = "the_units_maintain_the_route_under_a_stand_in_for_systemd";
    with_systemd_resolved(TEST, StandIn::start, expect_route_until_uninstalled);
}
