//! The kernel's tables of TCP and UDP sockets (proc(5)).
//!
//! They are read from `/proc/self/net`, which exists even where a process sees only itself in
//! `/proc` (`ProcSubset=pid` of systemd). Sockets of other network namespaces are not in them.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Number of readings of a table of UDP sockets.
///
/// The kernel returns one page per call, and continues after the number of sockets returned so far:
/// if one of them is closed between two calls, it skips another. Its tables of TCP sockets have no
/// such gaps.
const UDP_TABLE_READINGS: usize = 16;

/// A kind of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketKind {
    Tcp,
    Udp,
}

/// A socket in a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SocketEntry {
    /// The local address; IPv4 addresses in IPv6 form are IPv4 addresses here.
    pub(crate) address: SocketAddr,
    /// Whether any peer can reach it: a TCP listener or an unconnected UDP socket.
    pub(crate) open: bool,
    /// The ID of the user who owns the socket.
    pub(crate) user: u32,
    /// The number of the socket, which links in `/proc/PID/fd` name.
    pub(crate) inode: u64,
}

/// Returns the sockets that `is_wanted` selects.
///
/// # Errors
/// If the IPv4 table cannot be read. A machine without IPv6 has no other one.
pub(crate) fn sockets(
    kind: SocketKind,
    is_wanted: impl Fn(&SocketEntry) -> bool,
) -> io::Result<Vec<SocketEntry>> {
    let (tables, readings) = match kind {
        SocketKind::Udp => (["/proc/self/net/udp", "/proc/self/net/udp6"], UDP_TABLE_READINGS),
        SocketKind::Tcp => (["/proc/self/net/tcp", "/proc/self/net/tcp6"], 1),
    };
    let (mut found, mut failure) = (HashSet::new(), None);
    for table in tables {
        for _ in 0..readings {
            match fs::read_to_string(table) {
                Ok(table) => {
                    found.extend(table.lines().filter_map(parse).filter(&is_wanted));
                }
                // Without IPv6, there is no second table.
                Err(error) if table == tables[0] => failure = Some(error),
                Err(_) => {}
            }
        }
    }
    failure.map_or_else(|| Ok(found.into_iter().collect()), Err)
}

/// Parses a line of a table; returns `None` for its heading.
fn parse(line: &str) -> Option<SocketEntry> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let (user, inode) = (fields.nth(3)?.parse().ok()?, fields.nth(1)?.parse().ok()?);
    let (ip, port) = local.split_once(':')?;
    let (ip, port) = (parse_ip(ip)?.to_canonical(), u16::from_str_radix(port, 16).ok()?);
    // Kernel states (include/net/tcp_states.h): TCP_CLOSE, of an unconnected UDP socket, and
    // TCP_LISTEN.
    let open = matches!(state, "07" | "0A");
    Some(SocketEntry { address: SocketAddr::new(ip, port), open, user, inode })
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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    /// Deadline of what happens soon, also on a loaded machine.
    const SOON: Duration = Duration::from_secs(60);

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
                let address = socket.local_addr().unwrap();
                sockets(SocketKind::Udp, |one| one.address == address).unwrap().is_empty()
            });
            let missed = missed.count();
            done.store(true, Ordering::Relaxed);
            assert_eq!(missed, 0);
        });
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
        let socket = |text: &str, open, user, inode| {
            Some(SocketEntry { address: text.parse().unwrap(), open, user, inode })
        };
        assert_eq!(parse(v4), socket("127.0.0.1:53", true, 0, 4711));
        assert_eq!(parse(v6), socket("[::1]:53", true, 102, 4712));
        let everywhere = v4.replace("0100007F", "00000000");
        assert_eq!(parse(&everywhere), socket("0.0.0.0:53", true, 0, 4711));
        let mapped =
            v6.replace("00000000000000000000000001000000", "0000000000000000FFFF00000704537F");
        assert_eq!(parse(&mapped), socket("127.83.4.7:53", true, 102, 4712));
        let connected = v4.replace(" 0A ", " 01 ");
        assert_eq!(parse(&connected), socket("127.0.0.1:53", false, 0, 4711));
        for junk in [
            "",
            "  sl  local_address rem_address   st",
            "0: zz:0035 0 0A 0 0 0 0 0 1",
            "0: é000007:0035 0 0A 0 0 0 0 0 1",
        ] {
            assert_eq!(parse(junk), None, "{junk}");
        }
    }
}
