//! Addresses of the pool that other programs of this machine use.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use ipnet::Ipv4Net;

/// The tables of the kernel's sockets, and the state of a socket that receives (proc(5)).
const SOCKET_TABLES: [(&str, &str); 2] = [("/proc/net/tcp", "0A"), ("/proc/net/udp", "07")];

/// Returns a socket of this machine that listens on an address of the pool, if there is one.
///
/// Without /proc, it finds none.
pub(super) fn listening_in(pool: Ipv4Net) -> Option<SocketAddr> {
    SOCKET_TABLES.iter().find_map(|(path, state)| {
        let table = fs::read_to_string(path).unwrap_or_default();
        find(&table, state, pool).map(SocketAddr::V4)
    })
}

/// Finds a socket in this state in a table.
fn find(table: &str, state: &str, pool: Ipv4Net) -> Option<SocketAddrV4> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let local = fields.next()?;
            (fields.nth(1)? == state).then(|| parse(local)).flatten()
        })
        .find(|address| pool.contains(address.ip()))
}

/// Parses `0100007F:0050`: the address in the machine's byte order, and the port.
fn parse(text: &str) -> Option<SocketAddrV4> {
    let (address, port) = text.split_once(':')?;
    let address = u32::from_str_radix(address, 16).ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(SocketAddrV4::new(Ipv4Addr::from(address.to_ne_bytes()), port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn listeners_in_the_pool_are_found_and_clients_are_not() {
        // A pool of this test: others of the machine must not be found.
        let pool: Ipv4Net = "127.201.77.0/24".parse().unwrap();
        assert_eq!(listening_in(pool), None);
        let socket = UdpSocket::bind("127.201.77.3:0").unwrap();
        assert_eq!(listening_in(pool), Some(socket.local_addr().unwrap()));
        drop(socket);
        let listener = TcpListener::bind("127.201.77.9:0").unwrap();
        assert_eq!(listening_in(pool), Some(listener.local_addr().unwrap()));
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop(listener);
        assert_eq!(listening_in(pool), None);
        drop(client);
    }
}
