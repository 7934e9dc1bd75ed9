//! A test in a network, mount and process namespace of its own: port 53, addresses and resolv.conf are its to choose, and
//! all that it starts ends with it.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use super::skip;

/// Set in the process inside, to the test's name.
const INSIDE: &str = "INSIDE_NAMESPACE_OF_TEST";

/// The namespace's own address, on a veth pair: loopback alone would make getaddrinfo's `AI_ADDRCONFIG` find nothing.
pub(crate) const ADDRESS: &str = "10.9.0.5";
/// And its IPv6 address.
pub(crate) const ADDRESS_V6: &str = "fd00::5";

/// Runs `body` inside a new namespace, by starting this test again in it. `test` is the test's whole name. `nameserver` is
/// what the namespace's resolv.conf says.
pub(crate) fn inside(test: &str, nameserver: &str, body: impl FnOnce()) {
    enter(test, || {
        furnish(nameserver);
        body();
    });
}

/// Runs `body` inside a new namespace with its links, and leaves the files to it.
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
    let output = Command::new("unshare")
        .args(&unshare)
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, test)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "inside the namespace:\n{printed}");
    // A name that matches no test would run none, and pass.
    assert!(
        printed.contains("1 passed"),
        "the test {test:?} did not run inside the namespace:\n{printed}"
    );
}

/// Whether this process already runs inside the namespace of this test.
pub(crate) fn is_inside(test: &str) -> bool {
    env::var(INSIDE).as_deref() == Ok(test)
}

/// A folder in memory that goes with the namespace.
fn scratch() -> &'static Path {
    let folder = Path::new("/mnt");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    if !mounts.contains(" /mnt rw") {
        empty("/mnt");
    }
    folder
}

/// Puts a copy of /etc over /etc, in this mount namespace only, so that a test can remove and link what it wants.
pub(crate) fn own_etc() {
    let etc = tempfile::tempdir_in(scratch()).unwrap().keep();
    run("cp", &["-a", "/etc/.", etc.to_str().unwrap()]);
    run("mount", &["--bind", etc.to_str().unwrap(), "/etc"]);
}

/// A root of its own in memory: the machine's programs and libraries, which nobody can write to there, and the users. It goes
/// with the namespace, and is never to be removed by hand: what is mounted there is the machine's own.
pub(crate) fn small_root() -> PathBuf {
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

/// Puts an empty folder in memory over a folder, in this mount namespace only.
pub(crate) fn empty(path: &str) {
    run("mount", &["-t", "tmpfs", "-o", "mode=755", "none", path]);
}

fn furnish(nameserver: &str) {
    links();
    put_over(
        "/etc/resolv.conf",
        &format!("nameserver {nameserver}\noptions timeout:6 attempts:3\n"),
    );
    if Path::new("/etc/nsswitch.conf").exists() {
        put_over("/etc/nsswitch.conf", "hosts: files dns\n");
    }
    // A cache daemon of the machine outside would answer from its own resolver.
    if Path::new("/run/nscd").exists() {
        run("mount", &["-t", "tmpfs", "none", "/run/nscd"]);
    }
}

/// Makes the namespace's links and addresses.
pub(crate) fn links() {
    run("ip", &["link", "set", "lo", "up"]);
    run("ip", &["link", "add", "veth0", "type", "veth", "peer", "name", "veth1"]);
    run("ip", &["address", "add", &format!("{ADDRESS}/24"), "dev", "veth0"]);
    run("ip", &["address", "add", &format!("{ADDRESS_V6}/64"), "dev", "veth0", "nodad"]);
    run("ip", &["link", "set", "veth0", "up"]);
    run("ip", &["link", "set", "veth1", "up"]);
}

/// Puts a file of this content over another, in this mount namespace only.
pub(crate) fn put_over(path: &str, content: &str) {
    // Kept until the namespace goes: over a mount of a file that was removed, nothing can be mounted.
    let file = tempfile::NamedTempFile::new_in(scratch()).unwrap().into_temp_path().keep().unwrap();
    fs::write(&file, content).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    run("mount", &["--bind", file.to_str().unwrap(), path]);
    assert_eq!(fs::read_to_string(path).unwrap(), content);
}

/// Runs a program that has to succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
