//! Which process holds a port: to name it to a person, so it is allowed to find nothing.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::wire::Transport;

/// A process that holds a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub process: u32,
    /// Its command, as the kernel shortens it; control characters escaped.
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.command, self.process)
    }
}

/// A socket that has a port of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Where it is bound; an unspecified address means all.
    pub address: SocketAddr,
    /// Whether it takes what comes from anybody: a listening TCP socket, an unconnected UDP socket.
    pub open: bool,
    /// The number of the user it belongs to, which everybody may see.
    pub user: u32,
    /// Its process. None where that cannot be seen: processes of other users show their sockets only to root.
    pub holder: Option<Holder>,
}

/// The sockets that have the port of `wanted`, in the way of one that wants it, or answering in its place. Those of this
/// network namespace; of a socket that several processes share, the first process seen.
pub fn held(transport: Transport, wanted: SocketAddr) -> Vec<Held> {
    let tables = match transport {
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
    };
    let mut found: Vec<(u64, Held)> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().filter_map(|line| conflicting(line, wanted)).collect::<Vec<_>>())
        .collect();
    if !found.is_empty() {
        name_processes(&mut found);
    }
    found.into_iter().map(|(_, held)| held).collect()
}

/// The process whose socket stands in the way of `wanted`; none when there is none to be seen.
pub fn holder_of(transport: Transport, wanted: SocketAddr) -> Option<Holder> {
    held(transport, wanted).into_iter().find_map(|held| held.holder)
}

/// Loopback addresses at which a server for one machine can be: the usual one, then some that nobody else takes
/// (systemd-resolved has 127.0.0.53 and 127.0.0.54).
const LOOPBACK: [u8; 6] = [1, 55, 56, 57, 58, 59];

/// A loopback address whose port 53 nobody has.
pub fn free_loopback() -> Option<Ipv4Addr> {
    LOOPBACK.into_iter().map(|last| Ipv4Addr::new(127, 0, 0, last)).find(|address| {
        let wanted = SocketAddr::new((*address).into(), 53);
        [Transport::Udp, Transport::Tcp].into_iter().all(|transport| held(transport, wanted).is_empty())
    })
}

/// The socket in one line of `/proc/net/{udp,tcp}{,6}` with its inode, where it stands in the way of `wanted`: a TCP
/// connection's own port does so too, not only one that is listened on.
fn conflicting(line: &str, wanted: SocketAddr) -> Option<(u64, Held)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let (user, inode) = (fields.nth(3)?.parse().ok()?, fields.nth(1)?.parse().ok()?);
    let (address, port) = local.split_once(':')?;
    let (held, port) = (table_address(address)?.to_canonical(), u16::from_str_radix(port, 16).ok()?);
    let conflicts = port == wanted.port() && (held == wanted.ip() || held.is_unspecified() || wanted.ip().is_unspecified());
    // States of the kernel (include/net/tcp_states.h): TCP_CLOSE for an unconnected UDP socket, TCP_LISTEN.
    let open = matches!(state, "07" | "0A");
    conflicts.then(|| (inode, Held { address: SocketAddr::new(held, port), open, user, holder: None }))
}

/// An address as the kernel's tables write it: 32-bit words in hexadecimal, each in the machine's own order of octets.
fn table_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut octets = [0; 16];
            for (at, place) in octets.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

/// Finds the processes that have these sockets open.
fn name_processes(sockets: &mut [(u64, Held)]) {
    let processes = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    for entry in processes {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
        for target in descriptors.filter_map(Result::ok).filter_map(|descriptor| fs::read_link(descriptor.path()).ok()) {
            let Some(inode) = socket_inode(&target) else { continue };
            for (_, held) in sockets.iter_mut().filter(|(socket, held)| *socket == inode && held.holder.is_none()) {
                held.holder = Some(Holder { process, command: command_of(&entry.path()) });
            }
        }
        if sockets.iter().all(|(_, held)| held.holder.is_some()) {
            return;
        }
    }
}

/// The number in `socket:[4711]`.
fn socket_inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn command_of(process: &Path) -> String {
    fs::read_to_string(process.join("comm"))
        .map_or_else(|_| "a process".to_owned(), |command| command.trim_end_matches('\n').escape_debug().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn our_own_sockets_are_found_to_be_ours() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        for (transport, address) in [(Transport::Udp, udp.local_addr().unwrap()), (Transport::Tcp, tcp.local_addr().unwrap())] {
            let holder = holder_of(transport, address).unwrap();
            assert_eq!(holder.process, std::process::id());
            assert!(!holder.command.is_empty());
            let found = held(transport, address);
            assert_eq!(found[0].address, address);
            assert!(found[0].open && found[0].user == nix::unistd::Uid::effective().as_raw(), "{found:?}");
        }
    }

    #[test]
    fn a_free_port_has_no_holder() {
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // Another test may take the port in the meantime, at 127.0.0.1; nobody listens at this address.
        assert_eq!(holder_of(Transport::Udp, SocketAddr::new(IpAddr::from([127, 77, 3, 9]), address.port())), None);
    }

    #[test]
    fn lines_of_the_kernels_tables() {
        if cfg!(target_endian = "big") {
            return;
        }
        let v4 = "  12: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
        let v6 = "   3: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000   102        0 4712 2 0 0";
        let wanted = |text: &str| text.parse().unwrap();
        let inode = |line: &str, wanted| conflicting(line, wanted).map(|(inode, _)| inode);
        assert_eq!(inode(v4, wanted("127.0.0.1:53")), Some(4711));
        assert_eq!(inode(v4, wanted("127.0.0.2:53")), None);
        assert_eq!(inode(v4, wanted("127.0.0.1:54")), None);
        assert_eq!(inode(v6, wanted("[::1]:53")), Some(4712));
        let everywhere = v4.replace("0100007F", "00000000");
        assert_eq!(inode(&everywhere, wanted("127.0.0.2:53")), Some(4711));
        let (_, listening) = conflicting(&everywhere, wanted("127.0.0.2:53")).unwrap();
        assert_eq!(listening, Held { address: wanted("0.0.0.0:53"), open: true, user: 0, holder: None });
        assert_eq!(conflicting(v6, wanted("[::1]:53")).map(|(_, held)| (held.open, held.user)), Some((true, 102)));
        let connected = v4.replace(" 0A ", " 01 ");
        assert!(!conflicting(&connected, wanted("127.0.0.1:53")).unwrap().1.open);
        for junk in ["", "  sl  local_address rem_address   st", "0: zz:0035 0 0A 0 0 0 0 0 1", "0: é000007:0035 0 0A 0 0 0 0 0 1"] {
            assert_eq!(inode(junk, wanted("127.0.0.1:53")), None, "{junk}");
        }
    }
}
