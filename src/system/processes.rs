//! The processes of this machine, without those of its containers.
//!
//! On a host, `/proc` also lists the processes of containers. They resolve names for themselves
//! only, and must not be taken for the machine's own.

use std::fs;
use std::path::{Path, PathBuf};

/// The namespaces that distinguish a container's process from one of the machine.
///
/// Not the mount namespace: systemd gives its own services private ones.
const COMPARED_NAMESPACES: [&str; 2] = ["pid", "net"];

/// The namespaces of a process that this process may see.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Namespaces {
    /// The target of each link in `/proc/PID/ns`, in the order of [`COMPARED_NAMESPACES`].
    ///
    /// `None` if it cannot be read: only root sees those of other users' processes.
    links: [Option<PathBuf>; COMPARED_NAMESPACES.len()],
    /// The number of nested PID namespaces in which the process has an ID.
    ///
    /// All users can read it. `None` before Linux 4.1.
    depth: Option<usize>,
}

/// Returns the names of this machine's live processes, sorted and without duplicates.
pub(super) fn names() -> Vec<String> {
    let own = read_status(Path::new("/proc/self"))
        .map(|status| Namespaces::read(Path::new("/proc/self"), &status));
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let processes = entries.filter(|entry| {
        entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let mut names: Vec<String> =
        processes.filter_map(|entry| own_name(&entry.path(), own.as_ref())).collect();
    names.sort();
    names.dedup();
    names
}

/// Returns the name of a process, if it is alive and in the namespaces `own`.
fn own_name(process: &Path, own: Option<&Namespaces>) -> Option<String> {
    let status = read_status(process)?;
    if has_ended(&status) {
        return None;
    }
    if own.is_some_and(|own| Namespaces::read(process, &status).differ(own)) {
        return None;
    }
    let name = fs::read(process.join("comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned())
}

/// Reads `/proc/PID/status`, whose process name need not be UTF-8.
fn read_status(process: &Path) -> Option<String> {
    let bytes = fs::read(process.join("status")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the value of a field of `/proc/PID/status` (proc_pid_status(5)).
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Returns whether a process has ended and is a zombie, which waits for its parent.
fn has_ended(status: &str) -> bool {
    field(status, "State").is_some_and(|state| state.starts_with(['Z', 'X', 'x']))
}

impl Namespaces {
    /// Reads the namespaces of a process with this `/proc/PID/status`.
    fn read(process: &Path, status: &str) -> Self {
        let links =
            COMPARED_NAMESPACES.map(|name| fs::read_link(process.join("ns").join(name)).ok());
        let depth = field(status, "NSpid").map(|ids| ids.split_ascii_whitespace().count());
        Self { links, depth }
    }

    /// Returns whether a namespace is known to differ.
    fn differ(&self, other: &Self) -> bool {
        fn both<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> bool {
            one.zip(other).is_some_and(|(one, other)| one != other)
        }
        both(self.depth.as_ref(), other.depth.as_ref())
            || self
                .links
                .iter()
                .zip(&other.links)
                .any(|(one, other)| both(one.as_ref(), other.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_pid_status_are_parsed() {
        let status = "Name:\tState:\\nZ\nState:\tZ (zombie)\nNSpid:\t4711\t1\n";
        assert!(has_ended(status));
        assert!(!has_ended(&status.replace("Z (zombie)", "S (sleeping)")));
        assert_eq!(field(status, "NSpid"), Some("4711\t1"));
        assert_eq!(field(status, "NStgid"), None);
    }

    #[test]
    fn an_unreadable_namespace_counts_as_equal_unless_the_depth_differs() {
        let namespaces = |pid: Option<&str>, net: Option<&str>, depth| Namespaces {
            links: [pid.map(PathBuf::from), net.map(PathBuf::from)],
            depth,
        };
        let own = namespaces(Some("pid:[1]"), Some("net:[2]"), Some(1));
        for (other, differs) in [
            (own.clone(), false),
            (namespaces(Some("pid:[9]"), Some("net:[2]"), Some(1)), true),
            (namespaces(Some("pid:[1]"), Some("net:[9]"), Some(1)), true),
            // Another user's process.
            (namespaces(None, None, Some(1)), false),
            (namespaces(None, None, Some(2)), true),
            (namespaces(None, None, None), false),
        ] {
            assert_eq!(other.differ(&own), differs, "{other:?}");
            assert_eq!(own.differ(&other), differs, "{other:?}");
        }
    }
}
