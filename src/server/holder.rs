//! Which process holds a port: for the message of a failed bind, so it is allowed to find nothing.

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

/// The process whose socket stands in the way of `wanted`. None when there is none to be seen: the processes of other users
/// show theirs only to root.
pub(super) fn holder_of(transport: Transport, wanted: SocketAddr) -> Option<Holder> {
    let tables = match transport {
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
    };
    let inodes: Vec<u64> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().filter_map(|line| conflicting_inode(line, wanted)).collect::<Vec<_>>())
        .collect();
    if inodes.is_empty() { None } else { process_with_socket(&inodes) }
}

/// The inode of the socket in one line of `/proc/net/{udp,tcp}{,6}`, where that socket stands in the way of `wanted`: a TCP
/// connection's own port does so too, not only one that is listened on.
fn conflicting_inode(line: &str, wanted: SocketAddr) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let inode = fields.nth(7)?.parse().ok()?;
    let (address, port) = local.split_once(':')?;
    let held = table_address(address)?;
    let conflicts = u16::from_str_radix(port, 16).ok()? == wanted.port()
        && (held == wanted.ip() || held.is_unspecified() || wanted.ip().is_unspecified());
    conflicts.then_some(inode)
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

/// The first process seen with one of these sockets open.
fn process_with_socket(inodes: &[u64]) -> Option<Holder> {
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    for entry in processes {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
        let holds = descriptors.filter_map(Result::ok).filter_map(|descriptor| fs::read_link(descriptor.path()).ok()).any(|target| {
            target
                .to_str()
                .and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
                .is_some_and(|inode: u64| inodes.contains(&inode))
        });
        if holds {
            return Some(Holder { process, command: command_of(&entry.path()) });
        }
    }
    None
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
        assert_eq!(conflicting_inode(v4, wanted("127.0.0.1:53")), Some(4711));
        assert_eq!(conflicting_inode(v4, wanted("127.0.0.2:53")), None);
        assert_eq!(conflicting_inode(v4, wanted("127.0.0.1:54")), None);
        assert_eq!(conflicting_inode(v6, wanted("[::1]:53")), Some(4712));
        let everywhere = v4.replace("0100007F", "00000000");
        assert_eq!(conflicting_inode(&everywhere, wanted("127.0.0.2:53")), Some(4711));
        for junk in ["", "  sl  local_address rem_address   st", "0: zz:0035 0 0A 0 0 0 0 0 1", "0: é000007:0035 0 0A 0 0 0 0 0 1"] {
            assert_eq!(conflicting_inode(junk, wanted("127.0.0.1:53")), None, "{junk}");
        }
    }
}
