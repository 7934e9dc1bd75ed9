//! Tests in private network, mount and process namespaces.
//!
//! Such a test owns port 53, the addresses and resolv.conf. Every process it starts ends with it.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use super::skip;

/// Environment variable with the test's name, set inside the namespaces.
const INSIDE: &str = "INSIDE_NAMESPACE_OF_TEST";

/// The namespace's address, on a veth pair.
///
/// With loopback only, getaddrinfo with `AI_ADDRCONFIG` would find no addresses.
pub(crate) const ADDRESS: &str = "10.9.0.5";
/// The namespace's IPv6 address.
pub(crate) const ADDRESS_V6: &str = "fd00::5";

/// Runs `body` in new namespaces whose resolv.conf names `nameserver`.
///
/// The test program runs again inside, with only `test`, which is the test's full name.
pub(crate) fn inside(test: &str, nameserver: &str, body: impl FnOnce()) {
    enter(test, || {
        set_up(nameserver);
        body();
    });
}

/// Gives the namespace an additional address, such as a public address.
pub(crate) fn add_address(address: &str) {
    let added = Command::new("ip").args(["address", "add", address, "dev", "lo"]).status().unwrap();
    assert!(added.success(), "{address}");
}

/// Runs `body` in new namespaces without links and with the machine's files.
pub(crate) fn enter(test: &str, body: impl FnOnce()) {
    if is_inside(test) {
        body();
        return;
    }
    let mut unshare = vec!["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    if !nix::unistd::geteuid().is_root() {
        unshare.push("--map-root-user");
    }
    let probe = Command::new("unshare")
        .args(&unshare)
        .args(["ip", "link", "add", "type", "veth"])
        .stdin(Stdio::null())
        .output();
    match probe {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            return skip(
                test,
                &format!(
                    "no network namespace: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                ),
            );
        }
        Err(error) => return skip(test, &format!("no unshare: {error}")),
    }
    // `--nocapture` shows the messages of a long test as they come.
    let is_shown = env::args().any(|argument| argument == "--nocapture");
    let output = Command::new("unshare")
        .args(&unshare)
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(INSIDE, test)
        .stdin(Stdio::null())
        .stderr(if is_shown { Stdio::inherit() } else { Stdio::piped() })
        .output()
        .unwrap();
    let printed = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "inside the namespace:\n{printed}");
    // A name that matches no test would run nothing, and succeed.
    assert!(
        printed.contains("1 passed"),
        "the test {test:?} did not run inside the namespace:\n{printed}"
    );
}

/// Returns whether this process runs inside the test's namespaces.
pub(crate) fn is_inside(test: &str) -> bool {
    env::var(INSIDE).as_deref() == Ok(test)
}

/// Returns a directory in memory that vanishes with the namespace.
fn scratch() -> &'static Path {
    let folder = Path::new("/mnt");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    if !mounts.contains(" /mnt rw") {
        mount_tmpfs("/mnt");
    }
    folder
}

/// Mounts a copy of /etc over /etc, so that a test can remove and link files.
pub(crate) fn mount_etc_copy() {
    let etc = tempfile::tempdir_in(scratch()).unwrap().keep();
    run("cp", &["-a", "/etc/.", etc.to_str().unwrap()]);
    run("mount", &["--bind", etc.to_str().unwrap(), "/etc"]);
}

/// Builds a minimal root directory.
///
/// The root has the machine's programs and libraries, read-only, and its users.
///
/// The directory vanishes with the namespace. Do not remove it by hand: it contains bind mounts of
/// the machine's own directories.
pub(crate) fn minimal_root() -> PathBuf {
    let root = scratch().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    for name in ["passwd", "nsswitch.conf"] {
        fs::copy(Path::new("/etc").join(name), root.join("etc").join(name)).unwrap();
    }
    for name in ["usr", "bin", "lib", "lib64"] {
        let (from, to) = (Path::new("/").join(name), root.join(name));
        if let Ok(target) = fs::read_link(&from) {
            symlink(target, to).unwrap();
        } else if from.is_dir() {
            fs::create_dir(&to).unwrap();
            run("mount", &["--bind", from.to_str().unwrap(), to.to_str().unwrap()]);
            run("mount", &["-o", "remount,bind,ro", to.to_str().unwrap()]);
        }
    }
    root
}

/// Mounts an empty tmpfs over a directory.
pub(crate) fn mount_tmpfs(path: &str) {
    run("mount", &["-t", "tmpfs", "-o", "mode=755", "none", path]);
}

fn set_up(nameserver: &str) {
    links();
    mount_file(
        "/etc/resolv.conf",
        &format!("nameserver {nameserver}\noptions timeout:6 attempts:3\n"),
    );
    if Path::new("/etc/nsswitch.conf").exists() {
        mount_file("/etc/nsswitch.conf", "hosts: files dns\n");
    }
    // nscd outside the namespace would answer through its own resolver.
    if Path::new("/run/nscd").exists() {
        run("mount", &["-t", "tmpfs", "none", "/run/nscd"]);
    }
}

/// Creates the namespace's links and addresses.
pub(crate) fn links() {
    run("ip", &["link", "set", "lo", "up"]);
    run("ip", &["link", "add", "veth0", "type", "veth", "peer", "name", "veth1"]);
    run("ip", &["address", "add", &format!("{ADDRESS}/24"), "dev", "veth0"]);
    run("ip", &["address", "add", &format!("{ADDRESS_V6}/64"), "dev", "veth0", "nodad"]);
    run("ip", &["link", "set", "veth0", "up"]);
    run("ip", &["link", "set", "veth1", "up"]);
}

/// Mounts a new file with this content over a file.
pub(crate) fn mount_file(path: &str, content: &str) {
    // Kept until the namespace ends: a mount point whose file was removed takes no further mount.
    let file = tempfile::NamedTempFile::new_in(scratch()).unwrap().into_temp_path().keep().unwrap();
    fs::write(&file, content).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    run("mount", &["--bind", file.to_str().unwrap(), path]);
    assert_eq!(fs::read_to_string(path).unwrap(), content);
}

/// Sets a parameter of the namespace's kernel, such as `net.ipv4.tcp_fin_timeout`.
pub(crate) fn set_sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value).unwrap();
}

/// Runs a program; fails the test unless it succeeds.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
