//! A systemd of the test's own: the machine's, as process 1 of further namespaces.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::machine::said;
use super::process::Process;
use super::{SOON, eventually, skip};

/// Where Debian's package `systemd` has it.
const PROGRAM: &str = "/lib/systemd/systemd";

/// The only place in which it looks for units: those of the machine would start, and clean /tmp.
const UNITS: &str = "/etc/systemd/system";

/// A running systemd that knows no units but those that are written to [`UNITS`]. Only for machines
/// of a test's own: it uses their /run, /etc and /var/lib, and has /tmp and /var/tmp for itself.
pub(crate) struct Systemd {
    process: Process,
    group: PathBuf,
}

impl Systemd {
    /// Starts it, and waits until `systemctl` reaches it; none, and the test is skipped, if it
    /// cannot run here.
    pub(crate) fn start(test: &str) -> Option<Self> {
        if !Path::new(PROGRAM).exists() {
            skip(test, "no systemd");
            return None;
        }
        let Some((group, mount)) = control_group() else {
            skip(test, "no control group can be made for systemd");
            return None;
        };
        fs::remove_dir_all(UNITS).unwrap();
        fs::create_dir_all(UNITS).unwrap();
        for target in ["sysinit", "basic", "multi-user", "shutdown", "test"] {
            let text = "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\n";
            fs::write(format!("{UNITS}/{target}.target"), text).unwrap();
        }
        let begin = format!(
            "mount --make-rprivate / && mount -t tmpfs -o mode=1777 none /tmp && \
             mount -t tmpfs -o mode=1777 none /var/tmp && \
             mount -t tmpfs none /sys/fs/cgroup && {mount} && \
             exec env -i PATH=$PATH container=test SYSTEMD_UNIT_PATH={UNITS} \
             {PROGRAM} --unit=test.target --show-status=no --log-target=console"
        );
        let enter = r#"echo $$ > "$0/cgroup.procs" && exec unshare --cgroup --pid --fork --kill-child --mount --mount-proc sh -c "$1""#;
        let mut command = Command::new("sh");
        let process = Process::start(command.args(["-c", enter]).arg(&group).arg(begin));
        let mut systemd = Self { process, group };
        let reached = eventually("systemd to be reached", SOON, || {
            let show = ["systemctl", "show", "--property=Version"];
            let reached = systemd.run(&show).is_some_and(|output| output.status.success());
            reached.then_some(true).or_else(|| systemd.process.ended().map(|_| false))
        });
        if !reached {
            skip(test, &format!("systemd does not run here: {}", systemd.process.log().trim()));
            return None;
        }
        Some(systemd)
    }

    /// Runs a program among its processes, and returns what it wrote; it must end with this code.
    pub(crate) fn ends_with(&self, code: i32, line: &[&str]) -> String {
        let output = self.run(line).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line:?}:\n{}", said(&output));
        said(&output)
    }

    /// Runs a program among its processes; whether it ended well.
    pub(crate) fn succeeds(&self, line: &[&str]) -> bool {
        self.run(line).unwrap().status.success()
    }

    /// Runs a program among its processes: it answers no others. None before it has begun.
    fn run(&self, line: &[&str]) -> Option<Output> {
        let parent = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        let mut enter = Command::new("nsenter");
        enter.args(["--target", children.trim(), "--mount", "--pid", "--cgroup"]).args(line);
        Some(enter.output().unwrap())
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.process.kill();
        eventually("the control group to be empty", SOON, || {
            remove_groups(&self.group);
            (!self.group.exists()).then_some(())
        });
    }
}

/// Where the hierarchy of control groups is mounted for this test.
const GROUPS: &str = "/run/test-groups";

/// Makes a control group for systemd to be at home in; with the command that mounts its hierarchy.
fn control_group() -> Option<(PathBuf, &'static str)> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let find = |start: &str| own.lines().find_map(|line| Some(line.split_once(start)?.1));
    // A hybrid machine has a hierarchy of version 1 for systemd; it must be that one.
    let (path, kind, mount) = match find(":name=systemd:") {
        Some(path) => {
            let kind = &["-t", "cgroup", "-o", "none,name=systemd,xattr"][..];
            let mount = "mkdir /sys/fs/cgroup/systemd && \
                         mount -t cgroup -o none,name=systemd,xattr none /sys/fs/cgroup/systemd";
            (path, kind, mount)
        }
        None => (find("0::")?, &["-t", "cgroup2"][..], "mount -t cgroup2 none /sys/fs/cgroup"),
    };
    fs::create_dir_all(GROUPS).unwrap();
    let mounted = Command::new("mount").args(kind).args(["none", GROUPS]).status();
    let group = Path::new(GROUPS).join(path.trim_start_matches('/'));
    let group = group.join(format!("svcdns-test-{:08x}", fastrand::u32(..)));
    (mounted.is_ok_and(|status| status.success()) && fs::create_dir(&group).is_ok()).then_some((group, mount))
}

fn remove_groups(group: &Path) {
    let below = fs::read_dir(group).into_iter().flatten().filter_map(Result::ok);
    for entry in below.filter(|entry| entry.path().is_dir()) {
        remove_groups(&entry.path());
    }
    let _ = fs::remove_dir(group);
}
