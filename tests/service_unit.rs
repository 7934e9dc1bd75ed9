//! The service under the real systemd: its start, reload and watchdog.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;

use support::service_manager::{ServiceManager, UNITS};
use support::systemd::{Systemd, on_a_machine_with};
use support::{SOON, eventually};

/// A copy of svcdns in a place where a service can run it.
const PROGRAM: &str = "/run/svcdns-program";

/// The configuration file of the service.
const CONFIG: &str = "/etc/svcdns/svcdns.toml";

/// Installs the unit as distributed and a configuration, and starts the service.
fn start_service(systemd: &Systemd) {
    fs::create_dir_all("/etc/svcdns").unwrap();
    write_config("ttl = \"7s\"");
    let unit = include_str!("../deploy/svcdns.service").replace("/usr/local/bin/svcdns", PROGRAM);
    fs::write(format!("{UNITS}/svcdns.service"), unit).unwrap();
    systemd.ends_with(0, &["systemctl", "daemon-reload"]);
    systemd.ends_with(0, &["systemctl", "start", "svcdns"]);
}

fn write_config(line: &str) {
    let text = format!(
        "listen = [\"127.0.0.1:5300\"]\nadmin-listen = \"off\"\nupstream = [\"off\"]\n{line}\n\
         [[static]]\nname = \"hello\"\nendpoints = [\"10.9.0.5:80\"]\n"
    );
    fs::write(CONFIG, text).unwrap();
}

/// Returns the record of the service as `svcdns resolve` prints it.
fn record(systemd: &Systemd) -> String {
    let output = systemd.run(&[PROGRAM, "resolve", "hello.svc"]);
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn expect_record(systemd: &Systemd, expected: &str) {
    let mut last = String::new();
    let found = || {
        last = record(systemd);
        last.contains(expected).then_some(())
    };
    eventually(&format!("the record {expected}"), SOON, found);
}

/// Returns a property of the service.
fn property(systemd: &Systemd, name: &str) -> String {
    let line = ["systemctl", "show", "--value", "--property", name, "svcdns"];
    systemd.ends_with(0, &line).trim().to_owned()
}

#[test]
fn systemctl_reload_applies_the_file_and_fails_if_it_is_not_valid() {
    const TEST: &str = "systemctl_reload_applies_the_file_and_fails_if_it_is_not_valid";
    on_a_machine_with(TEST, PROGRAM, |systemd| {
        start_service(systemd);
        // `systemctl start` has waited for READY.
        let process = systemd.main_process("svcdns");
        expect_record(systemd, "hello.svc. 7 A 10.9.0.5");
        eventually("the status", SOON, || {
            property(systemd, "StatusText").starts_with("ready").then_some(())
        });

        write_config("ttl = \"9s\"");
        systemd.ends_with(0, &["systemctl", "reload", "svcdns"]);
        expect_record(systemd, "hello.svc. 9 A 10.9.0.5");
        write_config("ttl = \"soon\"");
        systemd.ends_with(1, &["systemctl", "reload", "svcdns"]);
        assert_eq!(property(systemd, "ActiveState"), "active");
        expect_record(systemd, "hello.svc. 9 A 10.9.0.5");
        write_config("ttl = \"11s\"");
        systemd.ends_with(0, &["systemctl", "reload", "svcdns"]);
        expect_record(systemd, "hello.svc. 11 A 10.9.0.5");
        assert_eq!(systemd.main_process("svcdns"), process, "no restart");
        assert_eq!(property(systemd, "NRestarts"), "0");
    });
}

#[test]
fn the_watchdog_restarts_a_server_that_hangs() {
    const TEST: &str = "the_watchdog_restarts_a_server_that_hangs";
    on_a_machine_with(TEST, PROGRAM, |systemd| {
        let folder = format!("{UNITS}/svcdns.service.d");
        fs::create_dir_all(&folder).unwrap();
        let text = "[Service]\nWatchdogSec=5s\nTimeoutAbortSec=5s\n";
        fs::write(format!("{folder}/watchdog.conf"), text).unwrap();
        start_service(systemd);
        expect_record(systemd, "hello.svc. 7 A 10.9.0.5");
        let process = systemd.main_process("svcdns");
        systemd.ends_with(0, &["sh", "-c", &format!("kill -STOP {process}")]);
        eventually("a new process", SOON, || {
            (![0, process].contains(&systemd.main_process("svcdns"))).then_some(())
        });
        expect_record(systemd, "hello.svc. 7 A 10.9.0.5");
        assert_ne!(property(systemd, "NRestarts"), "0");
    });
}

#[test]
fn a_service_is_not_taken_over() {
    const TEST: &str = "a_service_is_not_taken_over";
    on_a_machine_with(TEST, PROGRAM, |systemd| {
        start_service(systemd);
        let process = systemd.main_process("svcdns");
        let line = [PROGRAM, "serve", "--take-over", "--runtime-dir", "/run/svcdns"];
        let told = systemd.run(&line);
        let told = support::machine::said(&told);
        assert!(told.contains("belongs to user") || told.contains("systemctl restart"), "{told}");
        assert_eq!(systemd.main_process("svcdns"), process);
        expect_record(systemd, "hello.svc. 7 A 10.9.0.5");
    });
}
