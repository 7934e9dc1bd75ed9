//! `svcdns install` on a booted Debian with systemd-resolved.
//!
//! `make systemd` runs this program; `make test` does not, because it downloads a Debian.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use support::booted_debian::BootedDebian;
use support::files::Files;
use support::machine::{assert_same_tree, said};
use support::resolved_route::{self, RESOLVED};
use support::service_manager::ServiceManager;
use support::{SOON, eventually, netns, pages};

/// Interruptions of `install`.
const KILLS: usize = 20;

/// What happens to the machine, and how.
type Moment = (&'static str, fn(&mut BootedDebian));

/// The files of the machine that only we write.
const OURS: [&str; 3] = ["/var/lib/svcdns", "/var/lib/private/svcdns", "/var/lib/svcdns-install"];

/// Boots a Debian in namespaces of the test, with svcdns and an upstream, and runs `body` there.
fn in_booted_debian(test: &str, body: impl FnOnce(&mut BootedDebian, &Report)) {
    if !netns::is_inside(test) {
        assert!(nix::unistd::geteuid().is_root(), "only root can boot a machine");
    }
    let packages = BootedDebian::packages();
    netns::enter(test, || {
        netns::links();
        let server = std::net::SocketAddr::new(netns::ADDRESS.parse().unwrap(), 53);
        let _upstream = resolved_route::serve_outside_name(server);
        let mut machine = BootedDebian::boot(&packages);
        fs::copy(env!("CARGO_BIN_EXE_svcdns"), machine.path("/usr/local/bin/svcdns")).unwrap();
        body(&mut machine, &Report::new());
    });
}

#[test]
fn a_booted_debian_resolves_names_through_restarts_kills_and_reboots() {
    let test = "a_booted_debian_resolves_names_through_restarts_kills_and_reboots";
    in_booted_debian(test, |machine, report| {
        report.say(machine.ends_with(0, &["systemctl", "--version"]).lines().next().unwrap());
        let files = Files::readable_in(&machine.path("/srv"), &[resolved_route::REGISTRATION]);
        let registry = files.url().replacen(machine.path("/").to_str().unwrap(), "/", 1);
        let install = ["svcdns", "install", "--registry", &registry];

        for dnssec in ["no", "yes"] {
            validate(machine, dnssec);
            resolved_route::expect_outside_name(machine, "before the installation");
            let before = machine.tree("/etc");
            let told = machine.ends_with(0, &install);
            let change = told.lines().find(|line| line.starts_with("Chosen change: ")).unwrap();
            report.say(&format!("DNSSEC={dnssec}: installed. {change}"));
            resolved_route::expect_names(machine, "after the installation");
            resolved_route::expect_route_through_restarts(machine);
            report.say("names resolve after restarts and kills of systemd-resolved and svcdns");
            machine.ends_with(0, &["systemctl", "restart", "systemd-networkd.service"]);
            resolved_route::expect_names(machine, "after a restart of systemd-networkd");
            machine.reboot();
            resolved_route::expect_names(machine, "after a reboot");
            resolved_route::expect_route_through_restarts(machine);
            report.say("names resolve after a reboot, and after restarts and kills again");
            let diagnosis = machine.ends_with(0, &["svcdns", "doctor"]);
            report.say(diagnosis.lines().last().unwrap_or_default());
            machine.ends_with(0, &["svcdns", "uninstall"]);
            expect_as_before(machine, &before, "after uninstall");
            report.say("uninstalled: /etc is as before, byte for byte");
        }

        let before = machine.tree("/etc");
        let start = Instant::now();
        machine.ends_with(0, &install);
        let took = start.elapsed();
        machine.ends_with(0, &["svcdns", "uninstall"]);
        expect_as_before(machine, &before, "after uninstall");
        let mut kills = 0;
        while kills < KILLS {
            let after = took.mul_f64(fastrand::f64());
            let when = format!("after a kill of install at {} ms", after.as_millis());
            let is_killed = kill_after(machine, &install, after);
            resolved_route::expect_outside_name(machine, &when);
            if is_killed && kills % 2 == 1 {
                machine.ends_with(0, &install);
                resolved_route::expect_names(machine, &when);
            }
            machine.ends_with(0, &["svcdns", "uninstall"]);
            expect_as_before(machine, &before, &when);
            if is_killed {
                kills += 1;
                report.say(&format!("kill {kills} of install at {} ms", after.as_millis()));
            }
        }
        report.say("uninstalled after each of them: /etc is as before, byte for byte");
    });
}

#[test]
fn a_booted_debian_bridges_services_through_restarts_kills_and_a_reboot() {
    const UNIT: &str = "svcdns.service";
    let test = "a_booted_debian_bridges_services_through_restarts_kills_and_a_reboot";
    in_booted_debian(test, |machine, report| {
        let port = pages::serve_hosts((netns::ADDRESS, 0));
        let key = format!("default/default/hello.svc/latest/{}:{port}", netns::ADDRESS);
        let files = Files::readable_in(&machine.path("/srv"), &[(&key, r#"{"protocol":"http"}"#)]);
        let registry = files.url().replacen(machine.path("/").to_str().unwrap(), "/", 1);
        let install = ["svcdns", "install", "--bridge", "--registry", &registry];
        let before = machine.tree("/etc");

        machine.ends_with(0, &install);
        let address = expect_page(machine, "after the installation");
        let own_table = ["table ip svcdns_bridge_127_83_0_0_16".to_owned()];
        assert_eq!(tables(machine), own_table);
        let status = machine.ends_with(0, &["svcdns", "status"]);
        assert!(status.contains("port bridge: 1 name in 127.83.0.0/16 (redirected)"), "{status}");
        let diagnosis = machine.ends_with(0, &["svcdns", "doctor"]);
        assert!(diagnosis.contains("The kernel redirects connections"), "{diagnosis}");
        report.say(&format!("installed: http://hello.svc/ leads to port {port} from {address}"));
        // Debian's own rules begin with `flush ruleset`.
        let moments: [Moment; 4] = [
            ("a restart", |machine| machine.restart(UNIT)),
            ("a kill", |machine| machine.kill(UNIT)),
            ("a restart of nftables", |machine| {
                machine.ends_with(0, &["systemctl", "restart", "nftables.service"]);
            }),
            ("a reboot", BootedDebian::reboot),
        ];
        for (name, act) in moments {
            act(machine);
            let when = format!("after {name}");
            assert_eq!(expect_page(machine, &when), address, "{when}");
            assert!(tables(machine).contains(&own_table[0]), "{when}: {:?}", tables(machine));
            report.say(&format!("the page comes from the same address {when}"));
        }
        let log = machine.ends_with(0, &["journalctl", "--boot=all", "--unit", UNIT]);
        assert!(!log.contains("port bridge stays off"), "{log}");

        // A killed server that systemd does not start again leaves its table.
        let folder = machine.path("/run/systemd/system/svcdns.service.d");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("no-restart.conf"), "[Service]\nRestart=no\n").unwrap();
        machine.ends_with(0, &["systemctl", "daemon-reload"]);
        let process = machine.main_process(UNIT);
        machine.ends_with(0, &["sh", "-c", &format!("kill -KILL {process}")]);
        eventually("the end of the unit", SOON, || {
            (!machine.succeeds(&["systemctl", "is-active", "--quiet", UNIT])).then_some(())
        });
        assert_eq!(tables(machine).len(), 1, "after a kill");
        machine.ends_with(0, &["svcdns", "uninstall"]);
        assert_eq!(tables(machine), [] as [&str; 0], "after uninstall");
        expect_as_before(machine, &before, "after uninstall of a killed server");
        report.say("uninstalled after a kill: no table is left, and /etc is as before");
        fs::remove_dir_all(folder).unwrap();
        machine.ends_with(0, &["systemctl", "daemon-reload"]);

        // Without rules of the kernel.
        machine.ends_with(0, &[&install[..], &["--bridge-bind", "true"]].concat());
        expect_page(machine, "with bound ports");
        assert_eq!(tables(machine), [] as [&str; 0], "with bound ports");
        let diagnosis = machine.ends_with(0, &["svcdns", "doctor"]);
        assert!(diagnosis.contains("svcdns has bound ports"), "{diagnosis}");
        machine.kill(UNIT);
        expect_page(machine, "with bound ports, after a kill");
        machine.ends_with(0, &["svcdns", "uninstall"]);
        expect_as_before(machine, &before, "after uninstall with bound ports");
        report.say("with bound ports, the page comes too, and nothing is left after uninstall");
    });
}

/// Waits until curl on the machine gets the page of hello.svc; returns the bridge's address.
fn expect_page(machine: &BootedDebian, when: &str) -> String {
    let mut said = String::new();
    let page = || {
        let output = machine.run(&["curl", "-sS", "--max-time", "20", "http://hello.svc/"]);
        said = support::machine::said(&output);
        (said == "page of hello.svc\n").then_some(())
    };
    eventually(&format!("the page {when}"), SOON, page);
    let [address] = &machine.addresses("hello.svc")[..] else { panic!("one address {when}") };
    assert!(address.starts_with("127.83."), "{address} {when}");
    address.clone()
}

/// Returns the kernel's tables on the machine.
fn tables(machine: &BootedDebian) -> Vec<String> {
    let listed = machine.ends_with(0, &["nft", "list", "tables"]);
    listed.lines().map(str::to_owned).collect()
}

/// Turns the validation of systemd-resolved on or off.
fn validate(machine: &BootedDebian, dnssec: &str) {
    let folder = machine.path("/etc/systemd/resolved.conf.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("dnssec.conf"), format!("[Resolve]\nDNSSEC={dnssec}\n")).unwrap();
    machine.restart(RESOLVED);
}

/// Kills `install` alone, without its children; returns whether it still ran.
fn kill_after(machine: &BootedDebian, install: &[&str], after: Duration) -> bool {
    let seconds = format!("{:.3}", after.as_secs_f64());
    let timeout = ["timeout", "--foreground", "--signal=KILL", &seconds];
    let output = machine.run(&[&timeout, install].concat());
    let is_killed = output.status.code() == Some(128 + 9);
    assert!(is_killed || output.status.success(), "{}", said(&output));
    is_killed
}

/// Waits until nothing of svcdns is left on the machine, and compares /etc.
fn expect_as_before(machine: &BootedDebian, before: &BTreeMap<PathBuf, String>, when: &str) {
    assert_same_tree(before, &machine.tree("/etc"), when);
    for path in OURS {
        assert!(!machine.path(path).exists(), "{when}: {path}");
    }
    assert!(!machine.succeeds(&["ip", "link", "show", "svcdns0"]), "{when}: svcdns0");
    let units = machine.ends_with(0, &["systemctl", "list-units", "--all", "svcdns*"]);
    assert!(!units.contains("svcdns"), "{when}: {units}");
    resolved_route::expect_outside_name(machine, when);
}

/// Prints what was done, with the time.
struct Report {
    start: Instant,
}

impl Report {
    fn new() -> Self {
        Self { start: Instant::now() }
    }

    fn say(&self, line: &str) {
        eprintln!("{:4} s  {line}", self.start.elapsed().as_secs());
    }
}
