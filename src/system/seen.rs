//! What runs on the machine and what is mounted: all that files alone do not tell.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{ffi::OsString, fs};

/// What was seen running and mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The names of the processes of this machine, as the kernel shortens them to 15 octets.
    pub processes: Vec<String>,
    /// What is mounted, and where.
    pub mounts: Vec<Mount>,
    /// The version of systemd-resolved, where its client says so: 252.
    pub resolved_version: Option<u32>,
    /// What `resolvectl dnssec` says of the machine as a whole: `no`, `yes`, `allow-downgrade`; none where it says nothing.
    pub resolved_dnssec: Option<String>,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub at: PathBuf,
    /// Whether nothing can be written there.
    pub read_only: bool,
}

impl Seen {
    /// Looks around on this machine. What cannot be seen is left out.
    pub fn now() -> Self {
        let processes = processes();
        let resolved = processes.iter().any(|name| name == RESOLVED);
        Self {
            resolved_version: resolved.then(|| output("resolvectl", &["--version"])).flatten().as_deref().and_then(version),
            resolved_dnssec: resolved.then(|| output("resolvectl", &["dnssec"])).flatten().as_deref().and_then(global),
            mounts: fs::read("/proc/self/mountinfo").map(|table| mounts(&table)).unwrap_or_default(),
            processes,
        }
    }

    /// Whether a process of this name runs; longer names are shortened as the kernel does.
    pub fn runs(&self, name: &str) -> bool {
        let name = name.get(..15).unwrap_or(name);
        self.processes.iter().any(|seen| seen == name)
    }

    /// The mount whose point is exactly this path.
    pub fn mount_at(&self, path: &Path) -> Option<&Mount> {
        // What was mounted last lies on top.
        self.mounts.iter().rev().find(|mount| mount.at == path)
    }
}

/// The name of systemd-resolved's process, as the kernel shortens it.
pub(super) const RESOLVED: &str = "systemd-resolve";

fn processes() -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let numbered = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.bytes().all(|octet| octet.is_ascii_digit())));
    let mut names: Vec<String> = numbered
        .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
        .map(|name| name.trim_end_matches('\n').to_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// `systemd 252 (252.39-1~deb12u1)` is 252.
fn version(text: &str) -> Option<u32> {
    let number = text.lines().next()?.strip_prefix("systemd ")?;
    number.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// `Global: no` is `no`.
fn global(text: &str) -> Option<String> {
    text.lines().find_map(|line| Some(line.strip_prefix("Global:")?.trim().to_owned())).filter(|text| !text.is_empty())
}

/// The mounts of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn mounts(table: &[u8]) -> Vec<Mount> {
    let rows = table.split(|octet| *octet == b'\n').filter_map(|row| {
        let mut fields = row.split(|octet| *octet == b' ');
        let at = fields.nth(4)?;
        let options = fields.next()?;
        let read_only = options.split(|octet| *octet == b',').any(|option| option == b"ro");
        Some(Mount { at: PathBuf::from(OsString::from_vec(unescaped(at))), read_only })
    });
    rows.collect()
}

/// `\040` is a space, as the kernel writes it.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, behind)) = rest.split_first() {
        let escape = behind.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        let escape = escape.filter(|_| first == b'\\');
        octets.push(escape.unwrap_or(first));
        rest = if escape.is_some() { &behind[3..] } else { behind };
    }
    octets
}

/// What a program prints; none where it is not there or fails.
pub(super) fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_says() {
        assert_eq!(version("systemd 252 (252.39-1~deb12u1)\n+PAM +AUDIT\n"), Some(252));
        assert_eq!(version("systemd 258~rc1 (258~rc1-1)\n"), Some(258));
        assert_eq!(version("resolvectl: not found\n"), None);
        assert_eq!(global("Global: allow-downgrade\nLink 2 (eth0): no\n").as_deref(), Some("allow-downgrade"));
        assert_eq!(global("Link 2 (eth0): no\n"), None);
    }

    #[test]
    fn mounts_are_read() {
        let table = b"36 35 98:0 / / rw,noatime - ext4 /dev/root rw\n40 36 0:32 /x /a\\040b ro,relatime shared:1 - tmpfs t rw\njunk\n";
        let read_only = |at: &str, read_only| Mount { at: at.into(), read_only };
        assert_eq!(mounts(table), [read_only("/", false), read_only("/a b", true)]);
        assert_eq!(unescaped(br"a\9zz\"), br"a\9zz\");
    }

    #[test]
    fn this_very_process_is_seen() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        let seen = Seen::now();
        assert!(seen.runs(own.trim_end()), "{:?}", seen.processes);
        // In a chroot `/` is a folder like any other, but /proc is always a mount.
        assert!(seen.mount_at(Path::new("/proc")).is_some(), "{:?}", seen.mounts);
    }
}
