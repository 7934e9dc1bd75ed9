//! Whom the system's resolver would ask: the files that say so, and which of their addresses count.
//!
//! On many machines /etc/resolv.conf names a resolver of this machine alone: systemd-resolved's stub, or svcdns itself.
//! Whom that one would ask stands in a file of whoever manages the network then.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use nix::net::if_::if_nametoindex;

use super::{Protocol, Target};
use crate::resolv_conf::{BEFORE, FORMERLY_BEFORE, MOST_OCTETS, RESOLV_CONF, ResolvConf};

/// The other files, in order: systemd-resolved's and NetworkManager's, then those of a resolvconf (Debian's, openresolv's old
/// and new folder), which keep one file for each interface.
const MANAGED: &[Place] = &[
    Place::File("/run/systemd/resolve/resolv.conf"),
    Place::File("/run/NetworkManager/no-stub-resolv.conf"),
    Place::File("/run/NetworkManager/resolv.conf"),
    Place::Folder("/run/resolvconf/interface"),
    Place::Folder("/run/resolvconf/interfaces"),
    Place::Folder("/run/resolvconf/keys"),
];

/// The most name servers that are used: one of the first few answers, or nobody does.
pub(super) const MOST_SERVERS: usize = 16;

/// Most files of a folder that are read (fixed).
const MAX_FILES: usize = 64;

/// Where systemd-resolved listens (systemd-resolved.service(8)).
const STUBS: [IpAddr; 2] = [IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 54))];

/// A file, or a folder whose files count together.
#[derive(Clone, Copy, Debug)]
enum Place {
    File(&'static str),
    Folder(&'static str),
}

/// What the files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Whom to ask, in order; none where no file names anybody.
    pub(super) servers: Vec<Target>,
    /// Where they stand, without the root.
    pub(super) from: PathBuf,
    /// Whether programs of this machine ask us: one of our addresses is named to them.
    pub(super) asked_by_system: bool,
    /// Whether a file that might have named somebody could not be read.
    pub(super) unreadable: bool,
    /// What is wrong with the files, for people, in order.
    pub(super) faults: Vec<String>,
}

/// What stands in one place.
#[derive(Debug, Default)]
struct Found {
    usable: Vec<Target>,
    stubs: Vec<Target>,
    own: bool,
    unreadable: bool,
    faults: Vec<String>,
}

/// Reads the files below a root, for a server that listens on `own`.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    /// What stands in front of every path: `/`, but for tests.
    pub(super) root: PathBuf,
    /// Our own addresses.
    pub(super) own: Vec<SocketAddr>,
}

impl Sources {
    /// The files and folders that may be read, the root in front.
    pub(super) fn places(&self) -> impl Iterator<Item = PathBuf> {
        let managed = MANAGED.iter().map(|(Place::File(path) | Place::Folder(path))| *path);
        [RESOLV_CONF].into_iter().chain(managed).chain([BEFORE, FORMERLY_BEFORE]).map(|path| self.below_root(path))
    }

    /// Looks at the files in order, until one names somebody whom we can ask.
    pub(super) fn look(&self) -> Look {
        let mut look = Look::default();
        let mut stubs = None;
        let managed = MANAGED.iter().copied();
        for place in [Place::File(RESOLV_CONF)].into_iter().chain(managed) {
            let Found { usable, stubs: found_stubs, own, unreadable, faults } = self.read(place);
            look.asked_by_system |= own;
            look.unreadable |= unreadable;
            let (Place::File(path) | Place::Folder(path)) = place;
            if !usable.is_empty() {
                return look.settled(usable, faults, path);
            }
            if !found_stubs.is_empty() {
                stubs.get_or_insert_with(|| (found_stubs, faults.clone(), path));
            }
            look.faults.extend(faults);
        }
        // What was there before is of use only while it is we who stand there now.
        if look.asked_by_system {
            for path in [BEFORE, FORMERLY_BEFORE] {
                let Found { usable, unreadable, faults, .. } = self.read(Place::File(path));
                look.unreadable |= unreadable;
                if !usable.is_empty() {
                    return look.settled(usable, faults, path);
                }
                look.faults.extend(faults);
            }
        }
        // systemd-resolved knows somebody, and does not say whom; should it be us, the loop is found.
        match stubs {
            Some((stubs, faults, path)) => look.settled(stubs, faults, path),
            None => look,
        }
    }

    /// Whether programs of this machine ask us, by /etc/resolv.conf alone.
    pub(super) fn is_asked_by_system(&self) -> bool {
        self.read(Place::File(RESOLV_CONF)).own
    }

    /// Whether it is ourselves.
    pub(super) fn is_own(&self, target: &Target) -> bool {
        self.own.iter().any(|own| target.reaches(*own))
    }

    fn below_root(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn read(&self, place: Place) -> Found {
        let mut found = Found::default();
        match place {
            Place::File(path) => self.read_file(&self.below_root(path), Path::new(path), &mut found),
            Place::Folder(path) => {
                let files = fs::read_dir(self.below_root(path)).into_iter().flatten().flatten();
                let mut names: Vec<_> = files.map(|file| file.file_name()).collect();
                names.sort();
                if names.len() > MAX_FILES {
                    found.faults.push(format!("{path}: only the first {MAX_FILES} files are read (a fixed limit)"));
                    names.truncate(MAX_FILES);
                }
                for name in names {
                    let shown = Path::new(path).join(&name);
                    self.read_file(&self.below_root(path).join(name), &shown, &mut found);
                }
            }
        }
        found
    }

    /// Reads one file; `shown` is its path for people. What is not there says nothing.
    fn read_file(&self, path: &Path, shown: &Path, found: &mut Found) {
        let octets = match octets(path) {
            Ok(octets) => octets,
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
        let conf = ResolvConf::parse(&octets);
        found.faults.extend(conf.faults().map(|(line, fault)| format!("{}:{line}: {fault}", shown.display())));
        if conf.name_servers().next().is_none() && shown == Path::new(RESOLV_CONF) {
            found.faults.push(format!("{} names no name server", shown.display()));
        }
        let mut only_own = conf.name_servers().next().is_some();
        for server in conf.name_servers() {
            let index = |name: &str| if_nametoindex(name).ok();
            let link_local = matches!(server.address, IpAddr::V6(address) if address.is_unicast_link_local());
            let address = server.socket_address(index).filter(|_| !link_local || server.scope.is_some());
            let Some(address) = address else {
                only_own = false;
                let why = server.scope.map_or_else(
                    || "a link-local address needs its interface, such as fe80::1%eth0".to_owned(),
                    |scope| format!("there is no interface {scope}"),
                );
                found.faults.push(format!("{}: {} is left out: {why}", shown.display(), server.address));
                continue;
            };
            let target = Target { address, protocol: Protocol::Plain };
            if self.is_own(&target) {
                found.own = true;
                continue;
            }
            only_own = false;
            let list = if STUBS.contains(&address.ip()) { &mut found.stubs } else { &mut found.usable };
            if list.contains(&target) {
                continue;
            }
            if list.len() == MOST_SERVERS {
                found.faults.push(format!("{}: only the first {MOST_SERVERS} name servers are used (a fixed limit)", shown.display()));
                break;
            }
            list.push(target);
        }
        // A file of an interface need not name anybody else; of the others that are passed over nothing is said.
        if only_own && shown == Path::new(RESOLV_CONF) {
            found.faults.push(format!("{} names only svcdns itself", shown.display()));
        }
    }
}

impl Look {
    /// Asks the servers found in one place; faults in the places passed over are of no concern then.
    fn settled(self, servers: Vec<Target>, faults: Vec<String>, from: &str) -> Self {
        Self { servers, faults, from: from.into(), ..self }
    }
}

impl fmt::Display for Look {
    /// `192.0.2.1 and 192.0.2.2 (from /etc/resolv.conf)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (from {})", List(&self.servers), self.from.display())
    }
}

/// `192.0.2.1, 192.0.2.2 and 192.0.2.3`.
pub(super) struct List<'a>(pub(super) &'a [Target]);

impl fmt::Display for List<'_> {
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

/// The octets of a regular file. Anything else could keep its reader for ever.
fn octets(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut octets = Vec::new();
    fs::File::open(path)?.take(MOST_OCTETS as u64 + 1).read_to_end(&mut octets)?;
    if octets.len() > MOST_OCTETS {
        return Err(io::Error::other(format!("it has more than {MOST_OCTETS} bytes, the fixed limit for a resolv.conf")));
    }
    Ok(octets)
}

#[cfg(test)]
mod tests;
