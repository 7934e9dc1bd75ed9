//! A machine for one test, in namespaces that end with it.
//!
//! Its /etc is a copy; its /run and /var/lib are empty.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use super::files::Files;
use super::netns::{self, run};
use super::process::Process;
use super::upstream::{Record, Upstream};
use super::{SOON, eventually, skip, svcdns};

/// Address of the machine's original name server, where nothing responds.
pub(crate) const NOBODY: &str = "10.9.0.77";

pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Address of a name server of the machine, where a test starts one.
pub(crate) const UPSTREAM: &str = "127.0.0.9";

/// Makes a registry with one service.
pub(crate) fn registry() -> Files {
    Files::new(&[("default/default/hello.svc/latest/10.9.0.5:80", "{}")])
}

/// Returns the lines of resolv.conf that are neither empty nor comments.
pub(crate) fn lines() -> Vec<String> {
    fs::read_to_string(RESOLV_CONF)
        .unwrap()
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

/// Starts a name server on port 53 that knows one name.
pub(crate) fn name_server(address: &str, name: &str, found: &str) -> Upstream {
    let upstream = Upstream::start_at(format!("{address}:53").parse().unwrap());
    upstream.put([Record::soa("example.test", 300, 30), Record::a(name, 300, found)]);
    upstream
}

/// Waits until the C library finds the service.
pub(crate) fn expect_service(when: &str) {
    eventually(&format!("hello.svc {when}"), SOON, || {
        (looked_up("hello.svc") == [netns::ADDRESS]).then_some(())
    });
}

/// Waits until the C library finds only this address.
pub(crate) fn expect_found(name: &str, address: &str) {
    eventually(&format!("{name} through the C library"), SOON, || {
        (looked_up(name) == [address]).then_some(())
    });
}

/// Runs `body` on its own machine.
///
/// Its resolv.conf is a regular file that names [`NOBODY`].
pub(crate) fn on_a_machine(test: &str, body: impl FnOnce()) {
    if !netns::is_inside(test) && !nix::unistd::geteuid().is_root() {
        return skip(test, "only root can replace /etc in a namespace");
    }
    netns::enter(test, || {
        netns::links();
        // The kernel refuses queries at once: no test waits for them.
        netns::add_address(&format!("{NOBODY}/32"));
        run("mount", &["-t", "tmpfs", "-o", "mode=755", "none", "/mnt"]);
        run("cp", &["-a", "/etc", "/mnt/etc"]);
        run("mount", &["--bind", "/mnt/etc", "/etc"]);
        for path in ["/run", "/var/lib"] {
            run("mount", &["-t", "tmpfs", "-o", "mode=755", "none", path]);
        }
        for path in ["/etc/resolvconf", "/etc/NetworkManager", "/etc/svcdns"] {
            let _ = fs::remove_dir_all(path);
        }
        let _ = fs::remove_file("/etc/resolv.conf");
        fs::write("/etc/nsswitch.conf", "passwd: files\nhosts: files dns\n").unwrap();
        fs::write(
            "/etc/resolv.conf",
            format!("# by hand\nnameserver {NOBODY}\noptions timeout:1 attempts:1\n"),
        )
        .unwrap();
        body();
    });
}

/// Describes everything below a directory.
///
/// A description has the type, mode, owner, modification time and content.
pub(crate) fn tree(folder: &str) -> BTreeMap<PathBuf, String> {
    fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let owner = format!(
                "{:o} {}:{}",
                metadata.permissions().mode(),
                metadata.uid(),
                metadata.gid()
            );
            if metadata.is_dir() {
                found.insert(path.clone(), owner);
                walk(&path, found);
            } else if metadata.is_symlink() {
                found.insert(
                    path.clone(),
                    format!("{owner} -> {}", fs::read_link(&path).unwrap().display()),
                );
            } else {
                let modified = metadata.modified().unwrap();
                found.insert(
                    path.clone(),
                    format!(
                        "{owner} {modified:?} {:?}",
                        String::from_utf8_lossy(&fs::read(&path).unwrap())
                    ),
                );
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(Path::new(folder), &mut found);
    found
}

/// Asserts that /etc is unchanged, and /var/lib is empty.
pub(crate) fn assert_as_before(before: &BTreeMap<PathBuf, String>, when: &str) {
    assert_same_tree(before, &tree("/etc"), when);
    let left = tree("/var/lib");
    assert!(left.is_empty(), "{when}, left in /var/lib: {left:?}");
}

/// Asserts that two descriptions by [`tree`] are equal.
pub(crate) fn assert_same_tree(
    before: &BTreeMap<PathBuf, String>,
    now: &BTreeMap<PathBuf, String>,
    when: &str,
) {
    let differences: Vec<String> = before
        .keys()
        .chain(now.keys())
        .filter(|path| before.get(*path) != now.get(*path))
        .map(|path| {
            format!("{}\n  was {:?}\n  is  {:?}", path.display(), before.get(path), now.get(path))
        })
        .collect();
    assert!(differences.is_empty(), "{when}:\n{}", differences.join("\n"));
}

/// Starts a server in root's runtime directory, as a service manager would.
///
/// Its state directory is outside /var/lib, which the tests compare.
pub(crate) fn serve(flags: &[&str]) -> Process {
    let mut command = svcdns::command();
    command.env("RUNTIME_DIRECTORY", "/run/svcdns").env("STATE_DIRECTORY", "/run/svcdns-state");
    let mut process = Process::start(command.args(["serve", "--admin-listen", "off"]).args(flags));
    eventually("the server's socket", SOON, || {
        assert!(process.ended().is_none(), "svcdns serve ended at once:\n{}", process.log());
        svcdns::command().arg("status").output().unwrap().status.success().then_some(())
    });
    process
}

/// Runs the program to its end.
pub(crate) fn svcdns(arguments: &[&str]) -> Output {
    svcdns::command().args(arguments).output().unwrap()
}

/// Runs the program, asserts success, and returns its output.
pub(crate) fn done(arguments: &[&str]) -> String {
    let output = svcdns(arguments);
    let text = said(&output);
    assert!(output.status.success(), "svcdns {arguments:?} ended with {}:\n{text}", output.status);
    text
}

/// Runs the program, asserts this exit code, and returns its output.
pub(crate) fn refused(arguments: &[&str], code: i32) -> String {
    let output = svcdns(arguments);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(code), "svcdns {arguments:?}:\n{text}");
    text
}

/// Returns standard output and standard error.
pub(crate) fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Returns the addresses that the C library finds.
pub(crate) fn looked_up(name: &str) -> Vec<String> {
    let output = Command::new("getent").args(["hosts", name]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Held while a test of this process unpacks packages.
static UNPACKING: Mutex<()> = Mutex::new(());

/// Unpacks Debian packages into a directory of `target/`, without installing them.
///
/// Returns `None` and skips the test if they cannot be downloaded.
pub(crate) fn unpacked(test: &str, packages: &[&str]) -> Option<PathBuf> {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("unpacked-{}", packages.join("-")));
    // Tests of this process run at the same time and may need the same packages.
    let _unpacking = UNPACKING.lock().unwrap_or_else(PoisonError::into_inner);
    if folder.join("complete").exists() {
        return Some(folder);
    }
    // Unpack into a directory of this process first: others may unpack the same packages.
    let unpacking = folder.with_extension(std::process::id().to_string());
    let _ = fs::remove_dir_all(&unpacking);
    fs::create_dir_all(&unpacking).unwrap();
    fs::set_permissions(&unpacking, fs::Permissions::from_mode(0o755)).unwrap();
    let fetch =
        Command::new("apt-get").arg("download").args(packages).current_dir(&unpacking).output();
    match fetch {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            skip(
                test,
                &format!(
                    "apt-get download {}: {}",
                    packages.join(" "),
                    String::from_utf8_lossy(&output.stderr).trim()
                ),
            );
            return None;
        }
        Err(error) => {
            skip(
                test,
                &format!("apt-get, which downloads {}, cannot be run: {error}", packages.join(" ")),
            );
            return None;
        }
    }
    for entry in fs::read_dir(&unpacking)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
    {
        run("dpkg", &["-x", entry.to_str().unwrap(), unpacking.to_str().unwrap()]);
        fs::remove_file(entry).unwrap();
    }
    fs::write(unpacking.join("complete"), "").unwrap();
    if fs::rename(&unpacking, &folder).is_err() {
        let _ = fs::remove_dir_all(&unpacking);
    }
    Some(folder)
}

/// Returns the directory of libraries in an unpacked tree.
pub(crate) fn libraries(tree: &Path) -> PathBuf {
    let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
    let merged_usr = tree.join("usr/lib").join(&machine);
    if merged_usr.is_dir() { merged_usr } else { tree.join("lib").join(machine) }
}

/// Adds the files of `folder` to those of `target`, in this namespace only.
pub(crate) fn put_among(folder: &Path, target: &str) {
    let layers = format!("lowerdir={}:{target}", folder.display());
    run("mount", &["-t", "overlay", "overlay", "-o", &layers, target]);
}
