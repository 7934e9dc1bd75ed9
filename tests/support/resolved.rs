//! The real systemd-resolved of this machine's release, unpacked, on a private bus.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::machine::{put_among, unpacked};
use super::process::Process;
use super::{SOON, eventually, on_path, skip};

/// The user id of systemd-resolved if the machine has no user for it.
const USER: u32 = 64_999;

/// A running systemd-resolved.
///
/// Only for a test's private machine: it uses /run and adds a user to /etc.
pub(crate) struct Resolved {
    _bus: Process,
    daemon: Process,
}

/// Returns the unpacked packages; skips the test if they are not available.
pub(crate) fn packages(test: &str) -> Option<PathBuf> {
    if !on_path("dbus-daemon") {
        skip(test, "no dbus-daemon on PATH");
        return None;
    }
    unpacked(test, &["systemd-resolved", "libsystemd-shared"])
}

impl Resolved {
    /// Starts systemd-resolved and waits until it answers on the bus.
    ///
    /// `settings` are lines of `[Resolve]`, see resolved.conf(5).
    pub(crate) fn start(packages: &Path, settings: &str) -> Self {
        Self { _bus: furnish(packages), daemon: daemon(settings) }
    }

    /// Stops and starts systemd-resolved, which forgets settings made over the bus.
    pub(crate) fn restart(&mut self, settings: &str) {
        self.daemon.terminate();
        fs::remove_dir_all("/run/systemd/resolve").unwrap();
        self.daemon = daemon(settings);
    }
}

/// Gives the machine the files, the user and the bus of systemd-resolved.
///
/// Returns the process of the bus.
pub(crate) fn furnish(packages: &Path) -> Process {
    for (folder, place) in [("usr/bin", "/usr/bin"), ("lib", "/usr/lib"), ("usr/lib", "/usr/lib")] {
        let folder = packages.join(folder);
        if folder.is_dir() {
            put_among(&folder, place);
        }
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    if !users.contains("systemd-resolve:") {
        fs::write(
            "/etc/passwd",
            format!("{users}systemd-resolve:x:{USER}:{USER}::/:/usr/sbin/nologin\n"),
        )
        .unwrap();
        let groups = fs::read_to_string("/etc/group").unwrap();
        fs::write("/etc/group", format!("{groups}systemd-resolve:x:{USER}:\n")).unwrap();
    }
    fs::create_dir_all("/run/dbus").unwrap();
    let bus = "<busconfig><type>system</type>\
               <listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>\
               <policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/>\
               <allow send_type=\"method_call\"/><allow send_destination=\"*\"/>\
               <allow receive_sender=\"*\"/></policy></busconfig>";
    fs::write("/run/dbus/conf", bus).unwrap();
    let bus = Process::start(Command::new("dbus-daemon").args([
        "--config-file=/run/dbus/conf",
        "--nofork",
        "--nopidfile",
    ]));
    eventually("the bus", SOON, || Path::new("/run/dbus/system_bus_socket").exists().then_some(()));
    bus
}

/// Writes lines of `[Resolve]`, see resolved.conf(5).
pub(crate) fn configure(settings: &str) {
    fs::create_dir_all("/run/systemd/resolved.conf.d").unwrap();
    fs::write("/run/systemd/resolved.conf.d/test.conf", format!("[Resolve]\n{settings}\n"))
        .unwrap();
}

fn daemon(settings: &str) -> Process {
    configure(settings);
    // systemd-resolved refuses a directory of another user.
    fs::create_dir_all("/run/systemd/resolve").unwrap();
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let user = users
        .lines()
        .find_map(|line| line.strip_prefix("systemd-resolve:x:")?.split(':').next()?.parse().ok())
        .unwrap();
    chown("/run/systemd/resolve", Some(user), Some(user)).unwrap();
    let mut daemon = Process::start(&mut Command::new("/usr/lib/systemd/systemd-resolved"));
    eventually("systemd-resolved to answer on its bus", SOON, || {
        assert!(daemon.ended().is_none(), "{}", daemon.log());
        Command::new("resolvectl").arg("status").output().unwrap().status.success().then_some(())
    });
    daemon
}
