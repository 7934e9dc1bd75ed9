//! A private systemd for a test: the machine's own program, as process 1 of nested namespaces.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::machine::{on_a_machine, said};
use super::process::Process;
use super::service_manager::{self, ServiceManager, UNITS};
use super::{SOON, eventually, netns, on_path, seconds, skip, skip_without_kernel_feature};

/// The path of systemd in Debian's package `systemd`.
const PROGRAM: &str = "/lib/systemd/systemd";

/// The mount point of the hierarchy of control groups, for the test.
const HIERARCHY: &str = "/run/test-groups";

/// Namespaces in which systemd runs, as flags of unshare(1).
const NAMESPACES: [&str; 6] =
    ["--cgroup", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"];

/// A running systemd that reads only the units in [`UNITS`].
///
/// The machine's other units would start services and clean /tmp.
///
/// Only for a test's private machine: it uses /run, /etc and /var/lib, and gets its own /tmp and
/// /var/tmp.
pub(crate) struct Systemd {
    process: Process,
    group: PathBuf,
}

/// Returns whether systemd can run on a private machine; skips the test if not.
pub(crate) fn can_run_systemd(test: &str) -> bool {
    // on_a_machine() skips the test of another user.
    !nix::unistd::geteuid().is_root() || netns::is_inside(test) || Systemd::is_available(test)
}

/// Runs `body` on a private machine with systemd, and with a copy of svcdns for its services.
pub(crate) fn on_a_machine_with(test: &str, program: &str, body: impl FnOnce(&Systemd)) {
    if !can_run_systemd(test) {
        return;
    }
    on_a_machine(test, || {
        let systemd = Systemd::start();
        fs::copy(env!("CARGO_BIN_EXE_svcdns"), program).unwrap();
        body(&systemd);
    });
}

impl Systemd {
    /// Returns whether systemd can run here; skips the test if not.
    ///
    /// Call it outside the test's private machine, as root. On a kernel with the needed features a
    /// systemd that does not start fails the test.
    pub(crate) fn is_available(test: &str) -> bool {
        if !Path::new(PROGRAM).exists() {
            skip(test, &format!("no {PROGRAM}"));
            return false;
        }
        for tool in ["mount", "nsenter", "systemctl", "unshare"] {
            if !on_path(tool) {
                skip(test, &format!("no {tool} on PATH"));
                return false;
            }
        }
        match probe_kernel() {
            Ok(()) => true,
            Err(missing) => {
                skip_without_kernel_feature(test, &missing);
                false
            }
        }
    }

    /// Starts systemd and waits until `systemctl` reaches it.
    pub(crate) fn start() -> Self {
        let hierarchy = Hierarchy::of_this_process().unwrap();
        let group = hierarchy.mount_with_new_group();
        service_manager::empty_units();
        for target in ["sysinit", "basic", "multi-user", "shutdown", "test"] {
            let text = "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\n";
            fs::write(format!("{UNITS}/{target}.target"), text).unwrap();
        }
        let script = format!(
            "mount --make-rprivate / && mount -t tmpfs -o mode=1777 none /tmp && \
             mount -t tmpfs -o mode=1777 none /var/tmp && {mount_hierarchy} && \
             exec env -i PATH=$PATH container=test SYSTEMD_UNIT_PATH={UNITS} \
             {PROGRAM} --unit=test.target --show-status=no --log-target=console",
            mount_hierarchy = hierarchy.mount_script()
        );
        let process = Process::start(&mut in_group(&group, &script));
        let mut systemd = Self { process, group };
        eventually("systemd to be reached", SOON, || {
            let ended = systemd.process.ended();
            assert!(ended.is_none(), "systemd ended: {}", systemd.process.log().trim());
            let show = ["systemctl", "show", "--property=Version"];
            systemd.try_run(&show).is_some_and(|output| output.status.success()).then_some(())
        });
        systemd
    }

    /// Runs a program in systemd's namespaces; returns `None` until they exist.
    ///
    /// systemd answers no other processes.
    fn try_run(&self, line: &[&str]) -> Option<Output> {
        let init = child_of(self.process.pid())?;
        let mut enter = Command::new("nsenter");
        enter.args(["--target", &init, "--mount", "--pid", "--cgroup"]).args(line);
        Some(enter.output().unwrap())
    }

    /// Prints the states of the units and of systemd-resolved, for a test that fails.
    fn show_state(&self) {
        let units = "timeout 10 systemctl --no-pager status svcdns* systemd-resolved*";
        for line in [units, "timeout 10 resolvectl --no-pager status"] {
            let line: Vec<&str> = line.split(' ').collect();
            if let Some(output) = self.try_run(&line) {
                eprintln!("--- {}:\n{}", line.join(" "), said(&output));
            }
        }
    }
}

impl ServiceManager for Systemd {
    fn run(&self, line: &[&str]) -> Output {
        self.try_run(line).unwrap()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        if thread::panicking() {
            self.show_state();
        }
        self.process.kill();
        remove_when_empty(&self.group);
    }
}

/// Removes a control group once its processes have ended.
pub(crate) fn remove_when_empty(group: &Path) {
    // A second panic would abort the test program and hide the first one.
    let within = if thread::panicking() { seconds(2) } else { SOON };
    let start = Instant::now();
    while group.exists() && start.elapsed() < within {
        remove_groups(group);
        thread::sleep(Duration::from_millis(20));
    }
    assert!(thread::panicking() || !group.exists(), "the control group is not empty");
}

/// Returns the only child of a process, if it has one.
///
/// /proc/PID/task/PID/children would name it, but not every kernel has that file.
pub(crate) fn child_of(parent: u32) -> Option<String> {
    let parent = format!("PPid:\t{parent}");
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut processes = entries.filter_map(|entry| entry.file_name().into_string().ok());
    processes.find(|process| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        status.lines().any(|line| line == parent)
    })
}

/// Returns the command that runs a script in a control group and [`NAMESPACES`].
fn in_group(group: &Path, script: &str) -> Command {
    let enter = r#"echo $$ > "$0/cgroup.procs" && exec unshare "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", enter]).arg(group).args(NAMESPACES).args(["sh", "-ec", script]);
    command
}

/// The hierarchy of control groups for systemd, and this process's group in it.
pub(crate) struct Hierarchy {
    is_version_1: bool,
    group: String,
}

impl Hierarchy {
    /// Finds the hierarchy; `None` without one for systemd.
    ///
    /// A machine may have both versions. With version 1, systemd sometimes fails to start a command
    /// in the group of its unit (exit status 219).
    pub(crate) fn of_this_process() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let find = |start: &str| {
            groups.lines().find_map(|line| Some(line.split_once(start)?.1.to_owned()))
        };
        match find("0::") {
            Some(group) => Some(Self { is_version_1: false, group }),
            None => Some(Self { is_version_1: true, group: find(":name=systemd:")? }),
        }
    }

    /// Returns the arguments of mount(8) for the hierarchy, without the mount point.
    fn mount_arguments(&self) -> &'static str {
        if self.is_version_1 {
            "-t cgroup -o none,name=systemd,xattr none"
        } else {
            "-t cgroup2 none"
        }
    }

    /// Returns a new group below that of this process, under [`HIERARCHY`].
    fn new_group(&self) -> PathBuf {
        let name = format!("svcdns-test-{:08x}", fastrand::u32(..));
        Path::new(HIERARCHY).join(self.group.trim_start_matches('/')).join(name)
    }

    /// Mounts the hierarchy at [`HIERARCHY`] and creates a group in it.
    pub(crate) fn mount_with_new_group(&self) -> PathBuf {
        let group = self.new_group();
        fs::create_dir_all(HIERARCHY).unwrap();
        let mut mount = Command::new("mount");
        mount.args(self.mount_arguments().split(' ')).arg(HIERARCHY);
        assert!(mount.status().unwrap().success());
        fs::create_dir(&group).unwrap();
        group
    }

    /// Returns the usual mount point of the hierarchy.
    fn usual_place(&self) -> &'static str {
        if self.is_version_1 { "/sys/fs/cgroup/systemd" } else { "/sys/fs/cgroup" }
    }

    /// Returns a script that mounts the hierarchy at its usual mount point.
    pub(crate) fn mount_script(&self) -> String {
        let (arguments, place) = (self.mount_arguments(), self.usual_place());
        let mount = format!("mount {arguments} {place}");
        if self.is_version_1 {
            format!("mount -t tmpfs none /sys/fs/cgroup && mkdir -p {place} && {mount}")
        } else {
            mount
        }
    }
}

/// Tries the kernel features that [`Systemd::start`] needs.
///
/// Like [`Systemd::start`], the probe mounts a hierarchy of control groups, creates a group, enters
/// namespaces in that group, and creates a group there.
///
/// # Errors
/// Returns the error message if that fails.
fn probe_kernel() -> Result<(), String> {
    let Some(hierarchy) = Hierarchy::of_this_process() else {
        return Err("no control group for systemd in /proc/self/cgroup".to_owned());
    };
    let inner = format!(
        "{mount} && mkdir {place}/probe && rmdir {place}/probe",
        mount = hierarchy.mount_script(),
        place = hierarchy.usual_place(),
    );
    // The group may stay busy for a moment after its last process has ended.
    let outer = format!(
        "mount --make-rprivate /; mount -t tmpfs none /run; mkdir {HIERARCHY}; \
         mount {arguments} {HIERARCHY}; mkdir {group}; \
         (echo 0 > {group}/cgroup.procs && unshare {namespaces} sh -ec '{inner}') && code=0 || \
         code=$?; \
         rmdir {group} 2>/dev/null || {{ sleep 1; rmdir {group}; }}; exit $code",
        arguments = hierarchy.mount_arguments(),
        group = hierarchy.new_group().display(),
        namespaces = NAMESPACES.join(" "),
    );
    let output = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec", &outer])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if output.status.success() {
        return Ok(());
    }
    let lines: Vec<String> = said(&output).lines().map(|line| line.trim().to_owned()).collect();
    Err(format!("systemd in namespaces ({}): {}", output.status, lines.join(" ")))
}

/// Removes a control group and all groups below it, unless they are in use.
fn remove_groups(group: &Path) {
    let entries = fs::read_dir(group).into_iter().flatten().filter_map(Result::ok);
    for entry in entries.filter(|entry| entry.path().is_dir()) {
        remove_groups(&entry.path());
    }
    let _ = fs::remove_dir(group);
}
