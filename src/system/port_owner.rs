//! The sockets bound to a port, and the processes that own them, from `/proc`.
//!
//! The results are used only in messages, so a lookup that finds nothing is not an error.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::wire::Transport;

/// The last bytes of the loopback addresses that a server of this machine may use.
///
/// 127.0.0.1, then addresses that no other program uses by default; systemd-resolved has
/// 127.0.0.53 and 127.0.0.54.
const LOOPBACK_LAST_BYTES: [u8; 6] = [1, 55, 56, 57, 58, 59];

/// Number of readings of a table of UDP sockets.
///
/// The kernel returns one page per call, and continues after the number of sockets returned so far:
/// if one of them is closed between two calls, it skips another. Its tables of TCP sockets have no
/// such gaps.
const UDP_TABLE_READINGS: usize = 16;

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
    let mut found = read_tables(transport, wanted);
    if !found.is_empty() {
        find_owners(&mut found);
    }
    found.into_iter().map(|(_, socket)| socket).collect()
}

/// Returns the inodes and the sockets that conflict with `wanted`, without their owners.
fn read_tables(transport: Transport, wanted: SocketAddr) -> Vec<(u64, BoundSocket)> {
    let (tables, readings) = match transport {
        Transport::Udp => (["/proc/net/udp", "/proc/net/udp6"], UDP_TABLE_READINGS),
        Transport::Tcp => (["/proc/net/tcp", "/proc/net/tcp6"], 1),
    };
    let mut found = Vec::new();
    for table in tables {
        for _ in 0..readings {
            let Ok(table) = fs::read_to_string(table) else { continue };
            for socket in table.lines().filter_map(|line| conflicting(line, wanted)) {
                if readings == 1 || !found.contains(&socket) {
                    found.push(socket);
                }
            }
        }
    }
    found
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

/// Parses a line of `/proc/net/{udp,tcp}{,6}`: the inode and the socket.
///
/// Returns `None` unless the socket conflicts with `wanted`. The local port of a TCP connection
/// conflicts too, not only that of a listener.
fn conflicting(line: &str, wanted: SocketAddr) -> Option<(u64, BoundSocket)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let (user, inode) = (fields.nth(3)?.parse().ok()?, fields.nth(1)?.parse().ok()?);
    let (ip, port) = local.split_once(':')?;
    let (ip, port) = (parse_ip(ip)?.to_canonical(), u16::from_str_radix(port, 16).ok()?);
    let conflicts = port == wanted.port()
        && (ip == wanted.ip() || ip.is_unspecified() || wanted.ip().is_unspecified());
    // Kernel states (include/net/tcp_states.h): TCP_CLOSE, of an unconnected UDP socket, and
    // TCP_LISTEN.
    let open = matches!(state, "07" | "0A");
    let address = SocketAddr::new(ip, port);
    conflicts.then_some((inode, BoundSocket { address, open, user, owner: None }))
}

/// Parses an IP address of the kernel's tables.
///
/// The kernel writes 32-bit words in hexadecimal, each in host byte order.
fn parse_ip(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes)
    };
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, place) in bytes.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
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
    use std::net::{TcpListener, UdpSocket};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
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
    fn a_udp_socket_is_found_even_while_others_are_closed() {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut open, begun) = (Vec::new(), Instant::now());
                while !done.load(Ordering::Relaxed) && begun.elapsed() < SOON {
                    open.extend((0..60).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()));
                    // At all places of the table.
                    while open.len() > 200 {
                        drop(open.swap_remove(fastrand::usize(..open.len())));
                    }
                }
            });
            let missed = (0..150).filter(|_| {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                read_tables(Transport::Udp, socket.local_addr().unwrap()).is_empty()
            });
            let missed = missed.count();
            done.store(true, Ordering::Relaxed);
            assert_eq!(missed, 0);
        });
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
    fn lines_of_the_kernel_tables_are_parsed() {
        if cfg!(target_endian = "big") {
            return;
        }
        let v4 = "  12: 0100007F:0035 00000000:0000 0A 00000000:00000000 \
                  00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
        let v6 = "   3: 00000000000000000000000001000000:0035 \
                  00000000000000000000000000000000:0000 07 00000000:00000000 \
                  00:00000000 00000000   102        0 4712 2 0 0";
        let wanted = |text: &str| text.parse().unwrap();
        let inode = |line: &str, wanted| conflicting(line, wanted).map(|(inode, _)| inode);
        assert_eq!(inode(v4, wanted("127.0.0.1:53")), Some(4711));
        assert_eq!(inode(v4, wanted("127.0.0.2:53")), None);
        assert_eq!(inode(v4, wanted("127.0.0.1:54")), None);
        assert_eq!(inode(v6, wanted("[::1]:53")), Some(4712));
        let everywhere = v4.replace("0100007F", "00000000");
        assert_eq!(inode(&everywhere, wanted("127.0.0.2:53")), Some(4711));
        let (_, listening) = conflicting(&everywhere, wanted("127.0.0.2:53")).unwrap();
        assert_eq!(
            listening,
            BoundSocket { address: wanted("0.0.0.0:53"), open: true, user: 0, owner: None }
        );
        assert_eq!(
            conflicting(v6, wanted("[::1]:53")).map(|(_, socket)| (socket.open, socket.user)),
            Some((true, 102))
        );
        let connected = v4.replace(" 0A ", " 01 ");
        assert!(!conflicting(&connected, wanted("127.0.0.1:53")).unwrap().1.open);
        for junk in [
            "",
            "  sl  local_address rem_address   st",
            "0: zz:0035 0 0A 0 0 0 0 0 1",
            "0: é000007:0035 0 0A 0 0 0 0 0 1",
        ] {
            assert_eq!(inode(junk, wanted("127.0.0.1:53")), None, "{junk}");
        }
    }
}
