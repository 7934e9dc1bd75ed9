//! Processes of containers are not mistaken for those of the machine.
//!
//! The processes are real, in their own namespaces, and named like resolver managers.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::files::Files;
use support::machine::{
    assert_as_before, done, looked_up, on_a_machine, said, serve, svcdns, tree,
};
use support::process::Process;
use support::{SOON, eventually, netns};
use svcdns::system::RuntimeState;

/// Programs whose processes affect `install` and `doctor`, and other programs of containers.
const NAMES: [&str; 10] = [
    "systemd-resolved",
    "systemd-networkd",
    "NetworkManager",
    "dhclient",
    "dhcpcd",
    "udhcpc",
    "dnsmasq",
    "nscd",
    "nmcli",
    "resolvconf",
];

/// Namespaces of a container, as flags of unshare(1).
const CONTAINER: [&str; 5] = ["--pid", "--net", "--mount", "--fork", "--kill-child"];

/// Copies sleep(1) under this name.
fn program(folder: &Path, name: &str) -> String {
    let path = folder.join(name);
    if !path.exists() {
        fs::copy("/bin/sleep", &path).unwrap();
    }
    path.display().to_string()
}

/// Runs a program of this name in namespaces of its own.
fn start(folder: &Path, namespaces: &[&str], name: &str) -> Process {
    let program = program(folder, name);
    let process = Process::start(Command::new("unshare").args(namespaces).args([&program, "1000"]));
    eventually(&format!("{name} to run"), SOON, || (!processes(name).is_empty()).then_some(()));
    process
}

/// Returns the directories in /proc of the live processes with this name.
fn processes(name: &str) -> Vec<PathBuf> {
    let cut = name.get(..15).unwrap_or(name);
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok).map(|entry| entry.path());
    let is_alive = |folder: &PathBuf| {
        let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
        status.starts_with(&format!("Name:\t{cut}\n")) && !status.contains("\nState:\tZ")
    };
    entries.filter(is_alive).collect()
}

fn seen(name: &str) -> bool {
    RuntimeState::now().runs(name)
}

#[test]
fn processes_in_another_pid_or_network_namespace_are_not_detected() {
    const TEST: &str = "processes_in_another_pid_or_network_namespace_are_not_detected";
    netns::enter(TEST, || {
        let folder = tempfile::tempdir().unwrap();
        for (namespaces, counts) in [
            (&CONTAINER[..], false),
            (&["--pid", "--fork", "--kill-child"], false),
            (&["--net"], false),
            // systemd gives its own services such namespaces.
            (&["--mount"], true),
            (&["--uts", "--ipc"], true),
        ] {
            for name in NAMES {
                let mut process = start(folder.path(), namespaces, name);
                assert_eq!(seen(name), counts, "{name} in {namespaces:?}");
                process.kill();
                eventually("its end", SOON, || processes(name).is_empty().then_some(()));
            }
        }
    });
}

#[test]
fn zombie_processes_are_not_detected() {
    netns::enter("zombie_processes_are_not_detected", || {
        let folder = tempfile::tempdir().unwrap();
        let program = program(folder.path(), "NetworkManager");
        let mut child = Command::new(program).arg("1000").stdin(Stdio::null()).spawn().unwrap();
        eventually("NetworkManager to be seen", SOON, || seen("NetworkManager").then_some(()));
        child.kill().unwrap();
        let status = format!("/proc/{}/status", child.id());
        eventually("the zombie", SOON, || {
            fs::read_to_string(&status).unwrap().contains("State:\tZ").then_some(())
        });
        assert_eq!(
            fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap(),
            "NetworkManager\n"
        );
        assert!(!seen("NetworkManager"));
        child.wait().unwrap();
    });
}

#[test]
fn unprivileged_users_can_tell_container_processes_apart() {
    const TEST: &str = "unprivileged_users_can_tell_container_processes_apart";
    on_a_machine(TEST, || {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        netns::run("chmod", &["755", folder.path().to_str().unwrap()]);
        fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").unwrap();
        let _own = start(folder.path(), &["--mount"], "udhcpc");
        let _other = start(folder.path(), &CONTAINER, "dhclient");
        let program = folder.path().join("svcdns");
        fs::copy(env!("CARGO_BIN_EXE_svcdns"), &program).unwrap();
        // That user may not read the namespaces of root's processes.
        let as_nobody = |line: &[&str]| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).args(line);
            said(&command.output().unwrap())
        };
        let link = processes("dhclient")[0].join("ns/net");
        let told = as_nobody(&["readlink", "-v", link.to_str().unwrap()]);
        assert!(told.contains("Permission denied"), "{told}");
        let line = [
            program.to_str().unwrap(),
            "install",
            "--dry-run",
            "--registry",
            "file:///dev/shm",
            "--runtime-dir",
            "/run/none",
        ];
        let told = as_nobody(&line);
        assert!(told.contains("udhcpc rewrites /etc/resolv.conf"), "{told}");
    });
}

#[test]
fn resolver_managers_in_containers_do_not_affect_an_installation() {
    const TEST: &str = "resolver_managers_in_containers_do_not_affect_an_installation";
    on_a_machine(TEST, || {
        let folder = tempfile::tempdir_in("/run").unwrap();
        // With such lines, a running systemd-resolved would be the manager.
        fs::write("/etc/nsswitch.conf", "passwd: files\nhosts: files resolve dns\n").unwrap();
        fs::create_dir_all("/etc/NetworkManager").unwrap();
        fs::write("/etc/NetworkManager/NetworkManager.conf", "[main]\ndns=dnsmasq\n").unwrap();
        let text = "# Generated by NetworkManager\nnameserver 10.9.0.77\n\
                    options timeout:1 attempts:1\n";
        fs::write("/etc/resolv.conf", text).unwrap();
        let before = tree("/etc");
        let processes: Vec<Process> =
            NAMES.iter().map(|name| start(folder.path(), &CONTAINER, name)).collect();
        let files = Files::new(&[("default/default/hello.svc/latest/10.9.0.5:80", "{}")]);
        let _server = serve(&["--registry", &files.url(), "--listen", "127.0.0.1:53"]);
        let told = done(&["install", "--keep-nameservers", "--registry", &files.url()]);
        assert!(
            told.contains("managed by: NetworkManager")
                && told.contains("a line in /etc/resolv.conf")
                && !told.contains("nmcli"),
            "{told}"
        );
        assert_eq!(looked_up("hello.svc"), [netns::ADDRESS]);
        let found = said(&svcdns(&["doctor"]));
        assert!(
            found.contains("systemd-resolved is not running")
                && found.contains("nscd, which would"),
            "{found}"
        );
        assert!(!found.contains("BROKEN"), "{found}");
        done(&["uninstall"]);
        assert_as_before(&before, "after uninstall");
        drop(processes);

        // The control: the same process on the machine itself is its manager.
        let _own = start(folder.path(), &["--mount"], "systemd-resolved");
        let told = said(&svcdns(&["install", "--dry-run", "--registry", &files.url()]));
        assert!(
            told.contains("managed by: systemd-resolved") || told.contains("resolvectl"),
            "{told}"
        );
    });
}
