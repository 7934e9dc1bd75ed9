//! The name servers in the system's resolver configuration.
//!
//! On many machines, /etc/resolv.conf names a resolver on the machine itself: the stub of
//! systemd-resolved, or svcdns. The actual name servers are then in a file of the network manager.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use nix::net::if_::if_nametoindex;

use super::{Protocol, Target};
use crate::regular_file;
use crate::resolv_conf::{
    MAX_RESOLV_CONF_BYTES, REPLACED_LINE_MARK, RESOLV_CONF, RESOLV_CONF_BACKUPS, ResolvConf,
};

/// Files of network managers, in order of preference.
///
/// The files of systemd-resolved and NetworkManager come first, then the directories of resolvconf
/// (Debian's, openresolv's old and new), which contain a file for each interface.
const MANAGED: &[SourceLocation] = &[
    SourceLocation::File("/run/systemd/resolve/resolv.conf"),
    SourceLocation::File("/run/NetworkManager/no-stub-resolv.conf"),
    SourceLocation::File("/run/NetworkManager/resolv.conf"),
    SourceLocation::Folder("/run/resolvconf/interface"),
    SourceLocation::Folder("/run/resolvconf/interfaces"),
    SourceLocation::Folder("/run/resolvconf/keys"),
];

/// Limit on name servers that are used; further servers would hardly be queried.
pub(super) const MAX_NAME_SERVERS: usize = 16;

/// Limit on the files read in a directory.
const MAX_FILES_PER_FOLDER: usize = 64;

/// Listening addresses of systemd-resolved (systemd-resolved.service(8)).
const RESOLVED_STUBS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 53)),
    IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 54)),
];

/// A file, or a directory whose files are read as one.
#[derive(Clone, Copy, Debug)]
enum SourceLocation {
    File(&'static str),
    Folder(&'static str),
}

/// Content of the system's resolver configuration at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SourcesSnapshot {
    /// The name servers in order; empty if no file names one.
    pub(super) servers: Vec<Target>,
    /// Whether the file sets `rotate`, which makes the order of its servers irrelevant.
    pub(super) rotate: bool,
    /// The file or directory that names the servers, without the root.
    pub(super) from: PathBuf,
    /// Whether the configuration names one of the server's own addresses.
    pub(super) is_system_resolver: bool,
    /// Whether a file that might name servers could not be read.
    pub(super) unreadable: bool,
    /// Descriptions of problems with the files, in order.
    pub(super) faults: Vec<String>,
}

/// Content of one file or directory.
#[derive(Debug, Default)]
struct LocationContent {
    usable: Vec<Target>,
    stubs: Vec<Target>,
    rotate: bool,
    own: bool,
    unreadable: bool,
    faults: Vec<String>,
}

/// Reader of the configuration files below a root directory.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    /// Prefix of all paths: `/` except in tests.
    pub(super) root: PathBuf,
    /// Addresses on which svcdns listens.
    pub(super) own: Vec<SocketAddr>,
}

impl Sources {
    /// Returns the paths of all files and directories, below the root.
    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let managed =
            MANAGED.iter().map(|(SourceLocation::File(path) | SourceLocation::Folder(path))| *path);
        let paths = [RESOLV_CONF].into_iter().chain(managed).chain(RESOLV_CONF_BACKUPS);
        paths.map(|path| self.below_root(path))
    }

    /// Reads the files in order until one names a usable server.
    pub(super) fn snapshot(&self) -> SourcesSnapshot {
        let mut snapshot = SourcesSnapshot::default();
        let mut stubs = None;
        let managed = MANAGED.iter().copied();
        for location in [SourceLocation::File(RESOLV_CONF)].into_iter().chain(managed) {
            let LocationContent { usable, stubs: found_stubs, rotate, own, unreadable, faults } =
                self.read(location);
            snapshot.is_system_resolver |= own;
            snapshot.unreadable |= unreadable;
            let (SourceLocation::File(path) | SourceLocation::Folder(path)) = location;
            if !usable.is_empty() {
                return snapshot.with_servers(usable, rotate, faults, path);
            }
            if !found_stubs.is_empty() {
                stubs.get_or_insert_with(|| (found_stubs, rotate, faults.clone(), path));
            }
            snapshot.faults.extend(faults);
        }
        // The saved configuration is used only while /etc/resolv.conf names svcdns.
        if snapshot.is_system_resolver {
            // The lines in the file itself come first: a VPN client may have saved the file, and
            // restored it after the copy was made.
            let LocationContent { usable, rotate, .. } = self.read_replaced_lines();
            if !usable.is_empty() {
                return snapshot.with_servers(usable, rotate, Vec::new(), RESOLV_CONF);
            }
            for path in RESOLV_CONF_BACKUPS {
                let LocationContent { usable, rotate, unreadable, faults, .. } =
                    self.read(SourceLocation::File(path));
                snapshot.unreadable |= unreadable;
                if !usable.is_empty() {
                    return snapshot.with_servers(usable, rotate, faults, path);
                }
                snapshot.faults.extend(faults);
            }
        }
        // systemd-resolved has upstreams that it does not disclose. If it forwards to svcdns, the
        // loop guard detects that.
        match stubs {
            Some((stubs, rotate, faults, path)) => {
                snapshot.with_servers(stubs, rotate, faults, path)
            }
            None => snapshot,
        }
    }

    /// Returns whether /etc/resolv.conf names one of the server's own addresses.
    pub(super) fn is_system_resolver(&self) -> bool {
        self.read(SourceLocation::File(RESOLV_CONF)).own
    }

    /// Returns whether the target is svcdns itself.
    pub(super) fn is_own(&self, target: &Target) -> bool {
        self.own.iter().any(|own| target.reaches(*own))
    }

    /// Returns a path below the root.
    fn below_root(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Reads a file, or all files of a directory.
    fn read(&self, location: SourceLocation) -> LocationContent {
        let mut found = LocationContent::default();
        match location {
            SourceLocation::File(path) => {
                self.read_file(&self.below_root(path), Path::new(path), &mut found);
            }
            SourceLocation::Folder(path) => {
                let files = fs::read_dir(self.below_root(path)).into_iter().flatten().flatten();
                let mut names: Vec<_> = files.map(|file| file.file_name()).collect();
                names.sort();
                if names.len() > MAX_FILES_PER_FOLDER {
                    found.faults.push(format!(
                        "{path}: only the first {MAX_FILES_PER_FOLDER} files are read (a fixed \
                         limit)"
                    ));
                    names.truncate(MAX_FILES_PER_FOLDER);
                }
                for name in names {
                    let shown = Path::new(path).join(&name);
                    self.read_file(&self.below_root(path).join(name), &shown, &mut found);
                }
            }
        }
        found
    }

    /// Reads one file; `shown` is its path in messages. A missing file is not a fault.
    fn read_file(&self, path: &Path, shown: &Path, found: &mut LocationContent) {
        let bytes = match regular_file::read_blocking(path, MAX_RESOLV_CONF_BYTES as u64) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if shown == Path::new(RESOLV_CONF) {
                    found.faults.push(format!("there is no {}", shown.display()));
                }
                return;
            }
            Err(error) => {
                found.unreadable = true;
                found.faults.push(format!("{} cannot be read: {error}", shown.display()));
                return;
            }
        };
        let conf = ResolvConf::parse(&bytes);
        found.faults.extend(
            conf.faults().map(|(line, fault)| format!("{}:{line}: {fault}", shown.display())),
        );
        if conf.name_servers().next().is_none() && shown == Path::new(RESOLV_CONF) {
            found.faults.push(format!("{} names no name server", shown.display()));
        }
        let only_own = self.add_servers(&conf, shown, found);
        // Only /etc/resolv.conf has to name other servers; an interface's file need not.
        if only_own && shown == Path::new(RESOLV_CONF) {
            found.faults.push(format!("{} names only svcdns itself", shown.display()));
        }
    }

    /// Reads the lines that svcdns's line replaces in /etc/resolv.conf.
    ///
    /// `install` keeps them in the file as comments.
    fn read_replaced_lines(&self) -> LocationContent {
        let mut found = LocationContent::default();
        let path = self.below_root(RESOLV_CONF);
        let Ok(bytes) = regular_file::read_blocking(&path, MAX_RESOLV_CONF_BYTES as u64) else {
            return found;
        };
        let mut lines = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            lines.extend_from_slice(line.strip_prefix(REPLACED_LINE_MARK).unwrap_or_default());
        }
        self.add_servers(&ResolvConf::parse(&lines), Path::new(RESOLV_CONF), &mut found);
        found.rotate |= ResolvConf::parse(&bytes).options().any(|option| option == "rotate");
        found
    }

    /// Adds the name servers of a file; returns whether it names only svcdns.
    fn add_servers(
        &self,
        conf: &ResolvConf<'_>,
        shown: &Path,
        found: &mut LocationContent,
    ) -> bool {
        found.rotate |= conf.options().any(|option| option == "rotate");
        let mut only_own = conf.name_servers().next().is_some();
        for server in conf.name_servers() {
            let index = |name: &str| if_nametoindex(name).ok();
            let link_local =
                matches!(server.address, IpAddr::V6(address) if address.is_unicast_link_local());
            let address =
                server.socket_address(index).filter(|_| !link_local || server.scope.is_some());
            let Some(address) = address else {
                only_own = false;
                let why = server.scope.map_or_else(
                    || "a link-local address needs its interface, such as fe80::1%eth0".to_owned(),
                    |scope| format!("there is no interface {scope}"),
                );
                found.faults.push(format!(
                    "{}: {} is ignored: {why}",
                    shown.display(),
                    server.address
                ));
                continue;
            };
            let target = Target { address, protocol: Protocol::Plain };
            if self.is_own(&target) {
                found.own = true;
                continue;
            }
            only_own = false;
            let list = if RESOLVED_STUBS.contains(&address.ip()) {
                &mut found.stubs
            } else {
                &mut found.usable
            };
            if list.contains(&target) {
                continue;
            }
            if list.len() == MAX_NAME_SERVERS {
                found.faults.push(format!(
                    "{}: only the first {MAX_NAME_SERVERS} name servers are used (a fixed limit)",
                    shown.display()
                ));
                break;
            }
            list.push(target);
        }
        only_own
    }
}

impl SourcesSnapshot {
    /// Completes the snapshot; drops the faults of the files before this one.
    fn with_servers(
        self,
        servers: Vec<Target>,
        rotate: bool,
        faults: Vec<String>,
        from: &str,
    ) -> Self {
        Self { servers, rotate, faults, from: from.into(), ..self }
    }
}

impl fmt::Display for SourcesSnapshot {
    /// Formats the servers: `192.0.2.1 and 192.0.2.2 (from /etc/resolv.conf)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (from {})", TargetList(&self.servers), self.from.display())
    }
}

/// Formats targets as `192.0.2.1, 192.0.2.2 and 192.0.2.3`.
pub(super) struct TargetList<'a>(pub(super) &'a [Target]);

impl fmt::Display for TargetList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, target) in self.0.iter().enumerate() {
            let before = match at {
                0 => "",
                _ if at + 1 == self.0.len() => " and ",
                _ => ", ",
            };
            write!(f, "{before}{target}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
