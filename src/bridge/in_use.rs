//! Sockets of this machine in the pool.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use ipnet::Ipv4Net;

use crate::socket_table::{SocketKind, sockets};

/// Returns the addresses of the pool on which programs of this machine receive.
///
/// # Errors
/// If the kernel's tables of sockets cannot be read.
pub(super) fn addresses_in_use(pool: Ipv4Net) -> io::Result<BTreeSet<Ipv4Addr>> {
    let mut addresses = BTreeSet::new();
    for kind in [SocketKind::Tcp, SocketKind::Udp] {
        let found = sockets(kind, |socket| socket.open && in_pool(pool, socket.address).is_some())?;
        addresses.extend(found.iter().filter_map(|socket| in_pool(pool, socket.address)));
    }
    Ok(addresses)
}

/// Returns the address if it is in the pool.
pub(super) fn in_pool(pool: Ipv4Net, address: SocketAddr) -> Option<Ipv4Addr> {
    match address.ip().to_canonical() {
        IpAddr::V4(address) if pool.contains(&address) => Some(address),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Returns whether a program of this machine listens on an address; `false` if that is unknown.
pub(super) fn is_listening(address: SocketAddrV4) -> bool {
    let listeners =
        sockets(SocketKind::Tcp, |socket| socket.open && socket.address == SocketAddr::V4(address));
    listeners.is_ok_and(|found| !found.is_empty())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn addresses_with_listeners_are_in_use_and_those_of_clients_are_not() {
        // A pool of this test: others of the machine must not be found.
        let pool: Ipv4Net = "127.201.77.0/24".parse().unwrap();
        let in_use = || addresses_in_use(pool).unwrap().into_iter().collect::<Vec<_>>();
        assert_eq!(in_use(), [] as [Ipv4Addr; 0]);
        let udp = UdpSocket::bind("127.201.77.3:0").unwrap();
        let tcp = TcpListener::bind("127.201.77.9:0").unwrap();
        assert_eq!(in_use(), [[127, 201, 77, 3], [127, 201, 77, 9]].map(Ipv4Addr::from));
        let SocketAddr::V4(listener) = tcp.local_addr().unwrap() else { panic!("IPv4") };
        assert!(is_listening(listener));
        let client = TcpStream::connect(listener).unwrap();
        drop((udp, tcp));
        assert_eq!(in_use(), [] as [Ipv4Addr; 0]);
        assert!(!is_listening(listener));
        drop(client);
    }

    #[test]
    fn sockets_of_ipv6_programs_are_found() {
        let pool: Ipv4Net = "127.201.78.0/24".parse().unwrap();
        // A machine without IPv6 has no such sockets.
        let Ok(tcp) = TcpListener::bind("[::ffff:127.201.78.4]:0") else { return };
        let udp = UdpSocket::bind("[::ffff:127.201.78.5]:0").unwrap();
        let expected = [[127, 201, 78, 4], [127, 201, 78, 5]].map(Ipv4Addr::from);
        assert_eq!(addresses_in_use(pool).unwrap(), BTreeSet::from(expected));
        drop((tcp, udp));
    }
}
