//! Running programs and mount points: the state that files do not show.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::processes;

/// The process name of systemd-resolved, cut to the kernel's limit.
pub(super) const RESOLVED_PROCESS: &str = "systemd-resolve";

/// Maximum length of a process name in the kernel, in bytes (proc_pid_comm(5)).
const MAX_PROCESS_NAME_BYTES: usize = 15;

/// Processes, mounts and the state of systemd-resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeState {
    /// The names of the machine's own processes, each cut to 15 bytes by the kernel.
    ///
    /// Without those of containers.
    pub processes: Vec<String>,
    /// The mounts, in the order in which they were made.
    pub mounts: Vec<Mount>,
    /// The version of systemd-resolved, such as 252, if `resolvectl` prints it.
    pub resolved_version: Option<u32>,
    /// The global DNSSEC mode, if known: `no`, `yes` or `allow-downgrade`.
    pub resolved_dnssec: Option<String>,
}

/// A mount of a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount point.
    pub at: PathBuf,
    /// Whether the mount is read-only.
    pub read_only: bool,
}

impl RuntimeState {
    /// Reads the state of this machine, without the parts that cannot be read.
    pub fn now() -> Self {
        let processes = processes::names();
        let resolved = processes.iter().any(|name| name == RESOLVED_PROCESS);
        let resolvectl = |argument| {
            if resolved { output("resolvectl", &[argument]) } else { None }
        };
        Self {
            resolved_version: resolvectl("--version").as_deref().and_then(parse_version),
            resolved_dnssec: resolvectl("dnssec").as_deref().and_then(parse_global),
            mounts: mounts(),
            processes,
        }
    }

    /// Returns whether a process of this name runs.
    ///
    /// A longer name is truncated as in the kernel.
    pub fn runs(&self, name: &str) -> bool {
        let name = name.get(..MAX_PROCESS_NAME_BYTES).unwrap_or(name);
        self.processes.iter().any(|process| process == name)
    }

    /// Returns the mount at exactly this path, if any.
    pub fn mount_at(&self, path: &Path) -> Option<&Mount> {
        // A later mount covers an earlier one at the same path.
        self.mounts.iter().rev().find(|mount| mount.at == path)
    }
}

/// Returns the mounts that this process sees; none if they cannot be read.
pub(super) fn mounts() -> Vec<Mount> {
    fs::read("/proc/self/mountinfo").map(|table| parse_mounts(&table)).unwrap_or_default()
}

/// Parses the version in `systemd 252 (252.39-1~deb12u1)`.
fn parse_version(text: &str) -> Option<u32> {
    let version = text.lines().next()?.strip_prefix("systemd ")?;
    version.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// Returns the value in a line such as `Global: no`.
fn parse_global(text: &str) -> Option<String> {
    text.lines()
        .find_map(|line| Some(line.strip_prefix("Global:")?.trim().to_owned()))
        .filter(|value| !value.is_empty())
}

/// Parses `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn parse_mounts(table: &[u8]) -> Vec<Mount> {
    let mounts = table.split(|byte| *byte == b'\n').filter_map(|row| {
        let mut fields = row.split(|byte| *byte == b' ');
        let at = fields.nth(4)?;
        let options = fields.next()?;
        let read_only = options.split(|byte| *byte == b',').any(|option| option == b"ro");
        Some(Mount { at: PathBuf::from(OsString::from_vec(unescape(at))), read_only })
    });
    mounts.collect()
}

/// Replaces the kernel's octal escapes, such as `\040` for a space.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let escape = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        let escape = escape.filter(|_| first == b'\\');
        bytes.push(escape.unwrap_or(first));
        rest = if escape.is_some() { &after[3..] } else { after };
    }
    bytes
}

/// Runs a program and returns its output; `None` if it is missing or fails.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systemd_version_and_the_global_setting_are_parsed() {
        assert_eq!(parse_version("systemd 252 (252.39-1~deb12u1)\n+PAM +AUDIT\n"), Some(252));
        assert_eq!(parse_version("systemd 258~rc1 (258~rc1-1)\n"), Some(258));
        assert_eq!(parse_version("resolvectl: not found\n"), None);
        assert_eq!(
            parse_global("Global: allow-downgrade\nLink 2 (eth0): no\n").as_deref(),
            Some("allow-downgrade")
        );
        assert_eq!(parse_global("Link 2 (eth0): no\n"), None);
    }

    #[test]
    fn the_mount_table_is_parsed() {
        let table = b"36 35 98:0 / / rw,noatime - ext4 /dev/root rw\n\
                      40 36 0:32 /x /a\\040b ro,relatime shared:1 - tmpfs t rw\njunk\n";
        let mount = |at: &str, read_only| Mount { at: at.into(), read_only };
        assert_eq!(parse_mounts(table), [mount("/", false), mount("/a b", true)]);
        assert_eq!(unescape(br"a\9zz\"), br"a\9zz\");
    }

    #[test]
    fn this_process_and_the_proc_mount_are_found() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        let state = RuntimeState::now();
        assert!(state.runs(own.trim_end()), "{:?}", state.processes);
        // In a chroot `/` is a directory like any other, but /proc is always a mount.
        assert!(state.mount_at(Path::new("/proc")).is_some(), "{:?}", state.mounts);
    }
}
