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
use support::netns;
use support::resolved_route::{self, RESOLVED};
use support::service_manager::ServiceManager;

/// Interruptions of `install`.
const KILLS: usize = 20;

/// The files of the machine that only we write.
const OURS: [&str; 3] = ["/var/lib/svcdns", "/var/lib/private/svcdns", "/var/lib/svcdns-install"];

#[test]
fn a_booted_debian_resolves_names_through_restarts_kills_and_reboots() {
    const TEST: &str = "a_booted_debian_resolves_names_through_restarts_kills_and_reboots";
    if !netns::is_inside(TEST) {
        assert!(nix::unistd::geteuid().is_root(), "only root can boot a machine");
    }
    let packages = BootedDebian::packages();
    netns::enter(TEST, || {
        netns::links();
        let server = std::net::SocketAddr::new(netns::ADDRESS.parse().unwrap(), 53);
        let _upstream = resolved_route::serve_outside_name(server);
        let mut machine = BootedDebian::boot(&packages);
        let report = Report::new();
        report.say(machine.ends_with(0, &["systemctl", "--version"]).lines().next().unwrap());
        fs::copy(env!("CARGO_BIN_EXE_svcdns"), machine.path("/usr/local/bin/svcdns")).unwrap();
        let files = Files::readable_in(&machine.path("/srv"), &[resolved_route::REGISTRATION]);
        let registry = files.url().replacen(machine.path("/").to_str().unwrap(), "/", 1);
        let install = ["svcdns", "install", "--registry", &registry];

        for dnssec in ["no", "yes"] {
            validate(&machine, dnssec);
            resolved_route::expect_outside_name(&machine, "before the installation");
            let before = machine.tree("/etc");
            let told = machine.ends_with(0, &install);
            let change = told.lines().find(|line| line.starts_with("Chosen change: ")).unwrap();
            report.say(&format!("DNSSEC={dnssec}: installed. {change}"));
            resolved_route::expect_names(&machine, "after the installation");
            resolved_route::expect_route_through_restarts(&machine);
            report.say("names resolve after restarts and kills of systemd-resolved and svcdns");
            machine.ends_with(0, &["systemctl", "restart", "systemd-networkd.service"]);
            resolved_route::expect_names(&machine, "after a restart of systemd-networkd");
            machine.reboot();
            resolved_route::expect_names(&machine, "after a reboot");
            resolved_route::expect_route_through_restarts(&machine);
            report.say("names resolve after a reboot, and after restarts and kills again");
            let diagnosis = machine.ends_with(0, &["svcdns", "doctor"]);
            report.say(diagnosis.lines().last().unwrap_or_default());
            machine.ends_with(0, &["svcdns", "uninstall"]);
            expect_as_before(&machine, &before, "after uninstall");
            report.say("uninstalled: /etc is as before, byte for byte");
        }

        let before = machine.tree("/etc");
        let start = Instant::now();
        machine.ends_with(0, &install);
        let took = start.elapsed();
        machine.ends_with(0, &["svcdns", "uninstall"]);
        expect_as_before(&machine, &before, "after uninstall");
        let mut kills = 0;
        while kills < KILLS {
            let after = took.mul_f64(fastrand::f64());
            let when = format!("after a kill of install at {} ms", after.as_millis());
            let is_killed = kill_after(&machine, &install, after);
            resolved_route::expect_outside_name(&machine, &when);
            if is_killed && kills % 2 == 1 {
                machine.ends_with(0, &install);
                resolved_route::expect_names(&machine, &when);
            }
            machine.ends_with(0, &["svcdns", "uninstall"]);
            expect_as_before(&machine, &before, &when);
            if is_killed {
                kills += 1;
                report.say(&format!("kill {kills} of install at {} ms", after.as_millis()));
            }
        }
        report.say("uninstalled after each of them: /etc is as before, byte for byte");
    });
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
