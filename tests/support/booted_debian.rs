//! A Debian with its own systemd as process 1, booted by systemd-nspawn.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use super::machine::tree;
use super::process::Process;
use super::service_manager::ServiceManager;
use super::systemd::{Hierarchy, child_of, remove_when_empty};
use super::{SOON, eventually, netns, seconds};

/// Packages beside those of a minimal Debian.
const PACKAGES: &str =
    "curl,dbus,iproute2,libnss-resolve,nftables,systemd,systemd-resolved,systemd-sysv";

/// The machine's name, and the end of its link's name outside.
const NAME: &str = "debian";

/// The address of the machine's link outside.
const GATEWAY: &str = "10.9.2.1";

/// The setting of the machine's link, as on a machine whose administrator set the servers.
const NETWORK: &str = "[Match]\nName=host0\n\n[Network]\nAddress=10.9.2.2/24\nGateway=10.9.2.1\n\
                       DNS=10.9.0.5\nDHCP=no\n";

/// Exit status by which systemd-nspawn asks to be started again (systemd-nspawn@.service).
const REBOOTED: i32 = 133;

/// A Debian with systemd, systemd-networkd and systemd-resolved.
///
/// Only in a test's namespaces. Its files vanish with them.
pub(crate) struct BootedDebian {
    root: PathBuf,
    group: PathBuf,
    process: Process,
}

impl BootedDebian {
    /// Returns the packages of a release, unpacked and set up; creates them if necessary.
    ///
    /// The release is that of `DEBIAN_RELEASE`, else this machine's.
    pub(crate) fn packages() -> PathBuf {
        // One test makes them for all.
        static MAKING: Mutex<()> = Mutex::new(());
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let release = env::var("DEBIAN_RELEASE").unwrap_or_default();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("debian-{release}"));
        let complete = folder.join("complete");
        if fs::read_to_string(&complete).ok().as_deref() != Some(PACKAGES) {
            let _ = fs::remove_dir_all(&folder);
            let mut make = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/debian.sh"));
            make.arg(&folder).arg(PACKAGES).args([release].iter().filter(|name| !name.is_empty()));
            assert!(make.status().unwrap().success(), "{make:?}");
            fs::write(complete, PACKAGES).unwrap();
        }
        folder
    }

    /// Boots a copy of these packages.
    pub(crate) fn boot(packages: &Path) -> Self {
        netns::mount_tmpfs("/run");
        netns::mount_tmpfs("/mnt");
        let [root, changes, work] = ["root", "changes", "work"].map(|name| {
            let folder = Path::new("/mnt").join(name);
            fs::create_dir(&folder).unwrap();
            folder
        });
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            packages.display(),
            changes.display(),
            work.display()
        );
        netns::run("mount", &["-t", "overlay", "overlay", "-o", &layers, root.to_str().unwrap()]);
        fs::write(root.join("etc/systemd/network/50-host0.network"), NETWORK).unwrap();
        fs::write(root.join("etc/hostname"), format!("{NAME}\n")).unwrap();
        let units = root.join("etc/systemd/system");
        std::os::unix::fs::symlink(
            "/usr/lib/systemd/system/systemd-networkd.service",
            units.join("multi-user.target.wants/systemd-networkd.service"),
        )
        .unwrap();
        let hierarchy = Hierarchy::of_this_process().unwrap();
        let group = hierarchy.mount_with_new_group();
        netns::run("sh", &["-c", &hierarchy.mount_script()]);
        let mut machine = Self { process: spawn(&root, &group), root, group };
        machine.wait_until_booted();
        machine
    }

    /// Reboots, and waits until the machine has started.
    pub(crate) fn reboot(&mut self) {
        // The connection may end before the answer.
        let _ = self.run(&["systemctl", "reboot"]);
        let status = self.process.wait(SOON);
        assert_eq!(status.code(), Some(REBOOTED), "{}", self.process.log());
        self.process = spawn(&self.root, &self.group);
        self.wait_until_booted();
    }

    /// Returns the outside path of a path on the machine.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Describes everything in a directory of the machine.
    pub(crate) fn tree(&self, path: &str) -> std::collections::BTreeMap<PathBuf, String> {
        tree(self.path(path).to_str().unwrap())
    }

    fn wait_until_booted(&mut self) {
        let link = format!("ve-{NAME}");
        let set_up = format!("ip address replace {GATEWAY}/24 dev {link} && ip link set {link} up");
        eventually("the link of the machine", SOON, || {
            self.assert_runs();
            let output = Command::new("sh").args(["-c", &set_up]).output().unwrap();
            output.status.success().then_some(())
        });
        eventually("the end of the boot", seconds(300), || {
            self.assert_runs();
            let output = self.try_run(&["systemctl", "is-system-running"])?;
            let state = String::from_utf8_lossy(&output.stdout).into_owned();
            // `degraded`: a unit failed that has nothing to do with names.
            ["running", "degraded"].contains(&state.trim()).then_some(())
        });
    }

    fn assert_runs(&mut self) {
        let ended = self.process.ended();
        assert!(ended.is_none(), "systemd-nspawn ended:\n{}", self.process.log());
    }

    /// Runs a program on the machine; returns `None` until it has a process 1.
    fn try_run(&self, line: &[&str]) -> Option<Output> {
        let init = child_of(self.process.pid())?;
        let mut enter = Command::new("nsenter");
        enter.args(["--target", &init, "--all", "env", "-i", "LC_ALL=C"]);
        enter.arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").args(line);
        Some(enter.output().unwrap())
    }
}

impl ServiceManager for BootedDebian {
    fn run(&self, line: &[&str]) -> Output {
        self.try_run(line).unwrap()
    }
}

impl Drop for BootedDebian {
    fn drop(&mut self) {
        // The machine's process 1 outlives systemd-nspawn.
        if let Some(init) = child_of(self.process.pid()) {
            netns::run("sh", &["-c", &format!("kill -KILL {init}")]);
        }
        self.process.kill();
        remove_when_empty(&self.group);
    }
}

fn spawn(root: &Path, group: &Path) -> Process {
    let enter = r#"echo $$ > "$0/cgroup.procs" && exec systemd-nspawn "$@""#;
    let mut nspawn = Command::new("sh");
    nspawn.args(["-c", enter]).arg(group);
    // Without systemd outside there is nothing to register the machine with.
    nspawn.args(["--quiet", "--boot", "--register=no", "--keep-unit", "--link-journal=no"]);
    nspawn.args(["--network-veth", "--machine", NAME, "--directory"]).arg(root);
    Process::start(&mut nspawn)
}
