//! Service managers of a test's private machine: the real systemd, or a stand-in.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use super::machine::{put_among, said};
use super::{SOON, eventually};

/// The directory of the units that a test's service manager reads.
pub(crate) const UNITS: &str = "/etc/systemd/system";

/// The directory of the stand-in's program.
const STAND_IN: &str = "/run/stand-in-program";

/// A service manager, and the processes that can reach it.
pub(crate) trait ServiceManager {
    /// Runs a program that can reach the manager.
    fn run(&self, line: &[&str]) -> Output;

    /// Runs a program and returns its output; fails the test unless it exits with this code.
    fn ends_with(&self, code: i32, line: &[&str]) -> String {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(code), "{line:?}:\n{}", said(&output));
        said(&output)
    }

    /// Runs a program and returns whether it succeeds.
    fn succeeds(&self, line: &[&str]) -> bool {
        self.run(line).status.success()
    }

    /// Returns the addresses that the C library finds.
    fn addresses(&self, name: &str) -> Vec<String> {
        let output = self.run(&["getent", "ahostsv4", name]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut found: Vec<String> =
            text.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect();
        found.dedup();
        found
    }

    /// Returns the main process of a unit; 0 if it has none.
    fn main_process(&self, unit: &str) -> u32 {
        let line = ["systemctl", "show", "--property=MainPID", "--value", unit];
        self.ends_with(0, &line).trim().parse().unwrap()
    }

    /// Restarts a unit, regardless of its start limit.
    fn restart(&self, unit: &str) {
        self.ends_with(0, &["systemctl", "reset-failed", unit]);
        self.ends_with(0, &["systemctl", "restart", unit]);
    }

    /// Kills the main process of a unit, and waits until the manager has started a new one.
    ///
    /// The start limit of the unit does not prevent the new start.
    fn kill(&self, unit: &str) {
        self.ends_with(0, &["systemctl", "reset-failed", unit]);
        let process = self.main_process(unit);
        assert_ne!(process, 0, "{unit} does not run");
        self.ends_with(0, &["sh", "-c", &format!("kill -KILL {process}")]);
        eventually(&format!("a new process of {unit}"), SOON, || {
            (![0, process].contains(&self.main_process(unit))).then_some(())
        });
    }
}

/// Removes all units, and makes their directory.
pub(crate) fn empty_units() {
    let _ = fs::remove_dir_all(UNITS);
    fs::create_dir_all(UNITS).unwrap();
}

/// A program in place of `systemctl` that runs the commands of units.
///
/// Only for a test's private machine: it uses /run, /etc and /var/lib.
pub(crate) struct StandIn;

impl StandIn {
    /// Puts the program in place, on a machine without units.
    pub(crate) fn start() -> Self {
        empty_units();
        // sd_booted(3) recognizes systemd by this directory.
        fs::create_dir_all("/run/systemd/system").unwrap();
        fs::create_dir_all(STAND_IN).unwrap();
        let program = Path::new(STAND_IN).join("systemctl");
        fs::write(&program, include_str!("systemctl.py")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        put_among(Path::new(STAND_IN), "/usr/bin");
        Self
    }
}

impl ServiceManager for StandIn {
    fn run(&self, line: &[&str]) -> Output {
        Command::new(line[0]).args(&line[1..]).output().unwrap()
    }
}
