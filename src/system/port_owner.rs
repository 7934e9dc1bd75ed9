//! The sockets bound to a port, and the processes that own them, from `/proc`.
//!
//! The results are used only in messages, so a lookup that finds nothing is not an error.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::socket_table::{SocketEntry, SocketKind, sockets};
use crate::wire::Transport;

/// The last bytes of the loopback addresses that a server of this machine may use.
///
/// 127.0.0.1, then addresses that no other program uses by default; systemd-resolved has
/// 127.0.0.53 and 127.0.0.54.
const LOOPBACK_LAST_BYTES: [u8; 6] = [1, 55, 56, 57, 58, 59];

/// A process that owns a socket, or has a file open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortOwner {
    /// The process ID.
    pub process: u32,
    /// The command name, cut to 15 bytes by the kernel; control characters are escaped.
    pub command: String,
}

impl PortOwner {
    /// Reads the command name of a process.
    fn new(process: u32) -> Self {
        let command = fs::read_to_string(format!("/proc/{process}/comm")).map_or_else(
            |_| "a process".to_owned(),
            |command| command.trim_end_matches('\n').escape_debug().collect(),
        );
        Self { process, command }
    }
}

impl fmt::Display for PortOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.command, self.process)
    }
}

/// A socket bound to a port of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundSocket {
    /// The local address; unspecified for a socket bound to all addresses.
    pub address: SocketAddr,
    /// Whether any peer can reach it: a TCP listener or an unconnected UDP socket.
    pub open: bool,
    /// The ID of the user who owns the socket.
    pub user: u32,
    /// The process that owns the socket.
    ///
    /// `None` if that cannot be read: only root sees the sockets of other users' processes.
    pub owner: Option<PortOwner>,
}

/// Returns the sockets that conflict with `wanted`.
///
/// Such sockets have the same port and an overlapping address. Those of other namespaces are not
/// found. If several processes share a socket, the first one found is its owner.
pub fn find_bound_sockets(transport: Transport, wanted: SocketAddr) -> Vec<BoundSocket> {
    with_owners(read_tables(transport, |socket| conflicts(socket.address, wanted)))
}

/// Returns the sockets at an address for which `is_wanted` holds, and that any peer can reach.
///
/// Sockets bound to all addresses do not count.
pub fn find_open_sockets(is_wanted: impl Fn(IpAddr) -> bool) -> Vec<BoundSocket> {
    let is_found = |socket: &SocketEntry| socket.open && is_wanted(socket.address.ip());
    let mut found = read_tables(Transport::Tcp, is_found);
    found.extend(read_tables(Transport::Udp, is_found));
    with_owners(found)
}

/// Returns the sockets with their owners.
fn with_owners(mut found: Vec<(u64, BoundSocket)>) -> Vec<BoundSocket> {
    if !found.is_empty() {
        find_owners(&mut found);
    }
    found.into_iter().map(|(_, socket)| socket).collect()
}

/// Returns the inodes and the sockets for which `is_wanted` holds, without their owners.
fn read_tables(
    transport: Transport,
    is_wanted: impl Fn(&SocketEntry) -> bool,
) -> Vec<(u64, BoundSocket)> {
    let kind = match transport {
        Transport::Udp => SocketKind::Udp,
        Transport::Tcp => SocketKind::Tcp,
    };
    let found = sockets(kind, is_wanted).unwrap_or_default();
    let bound = |SocketEntry { address, open, user, inode }| {
        (inode, BoundSocket { address, open, user, owner: None })
    };
    found.into_iter().map(bound).collect()
}

/// Returns whether no socket can be bound to one address while another one is to the other.
///
/// The local port of a TCP connection conflicts too, not only that of a listener.
fn conflicts(bound: SocketAddr, wanted: SocketAddr) -> bool {
    let (ip, other) = (bound.ip(), wanted.ip());
    bound.port() == wanted.port() && (ip == other || ip.is_unspecified() || other.is_unspecified())
}

/// Returns the first process found whose socket conflicts with `wanted`, if any.
pub fn find_port_owner(transport: Transport, wanted: SocketAddr) -> Option<PortOwner> {
    find_bound_sockets(transport, wanted).into_iter().find_map(|socket| socket.owner)
}

/// Returns a loopback address whose port 53 is free, if any.
pub fn free_loopback() -> Option<Ipv4Addr> {
    LOOPBACK_LAST_BYTES.into_iter().map(|last| Ipv4Addr::new(127, 0, 0, last)).find(|address| {
        let wanted = SocketAddr::new((*address).into(), 53);
        [Transport::Udp, Transport::Tcp]
            .into_iter()
            .all(|transport| find_bound_sockets(transport, wanted).is_empty())
    })
}

/// Returns the other processes that have a file or directory open.
pub(super) fn find_openers(path: &Path) -> Vec<PortOwner> {
    let mut openers: Vec<u32> = open_descriptors()
        .filter(|(process, target)| target == path && *process != std::process::id())
        .map(|(process, _)| process)
        .collect();
    openers.dedup();
    openers.into_iter().map(PortOwner::new).collect()
}

/// Finds the owner of each socket among the open descriptors of all processes.
fn find_owners(sockets: &mut [(u64, BoundSocket)]) {
    for (process, target) in open_descriptors() {
        let Some(inode) = socket_inode(&target) else { continue };
        for (_, socket) in
            sockets.iter_mut().filter(|(other, socket)| *other == inode && socket.owner.is_none())
        {
            socket.owner = Some(PortOwner::new(process));
        }
        if sockets.iter().all(|(_, socket)| socket.owner.is_some()) {
            return;
        }
    }
}

/// Returns the open descriptors of all processes: the process ID and the target.
///
/// The descriptors of a process are consecutive.
fn open_descriptors() -> impl Iterator<Item = (u32, PathBuf)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    processes.flat_map(|process: u32| {
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten();
        let targets =
            descriptors.filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok());
        targets.map(move |target| (process, target))
    })
}

/// Parses the inode in `socket:[4711]`.
fn socket_inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, TcpListener, UdpSocket};
    use std::time::{Duration, Instant};

    use super::*;

    /// Deadline of what happens soon, also on a loaded machine.
    const SOON: Duration = Duration::from_secs(60);

    #[test]
    fn the_owner_of_a_socket_is_found() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        for (transport, address) in [
            (Transport::Udp, udp.local_addr().unwrap()),
            (Transport::Tcp, tcp.local_addr().unwrap()),
        ] {
            let begun = Instant::now();
            let owner = loop {
                let owner = find_port_owner(transport, address).unwrap();
                // A child of another test shares the socket until it executes its program.
                if owner.process == std::process::id() || begun.elapsed() > SOON {
                    break owner;
                }
            };
            assert_eq!(owner.process, std::process::id());
            assert!(!owner.command.is_empty());
            let found = find_bound_sockets(transport, address);
            assert_eq!(found[0].address, address);
            assert!(
                found[0].open && found[0].user == nix::unistd::Uid::effective().as_raw(),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_free_port_has_no_owner() {
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // Other tests may use the port at 127.0.0.1; no other test uses this address.
        assert_eq!(
            find_port_owner(
                Transport::Udp,
                SocketAddr::new(IpAddr::from([127, 77, 3, 9]), address.port())
            ),
            None
        );
    }

    #[test]
    fn addresses_conflict_if_one_contains_the_other() {
        let conflict =
            |bound: &str, wanted: &str| conflicts(bound.parse().unwrap(), wanted.parse().unwrap());
        assert!(conflict("127.0.0.1:53", "127.0.0.1:53"));
        assert!(!conflict("127.0.0.1:53", "127.0.0.2:53"));
        assert!(!conflict("127.0.0.1:53", "127.0.0.1:54"));
        assert!(conflict("0.0.0.0:53", "127.0.0.2:53"));
        assert!(conflict("127.0.0.2:53", "0.0.0.0:53"));
        assert!(conflict("[::1]:53", "[::1]:53"));
    }
}
