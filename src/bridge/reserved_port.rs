//! The port to which the kernel redirects connections.
//!
//! It is below 1024: a program of another user cannot bind it, neither before svcdns starts nor
//! after it was killed, when the rules of the kernel may still lead there.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use socket2::{Domain, Protocol, Socket, Type};

/// The ports in the order of preference: most of those from 1001 on have no service (RFC 6335).
const PORTS: [std::ops::RangeInclusive<u16>; 2] = [1001..=1023, 512..=1000];

/// A port that this process keeps, also while nothing listens on it.
///
/// Once the listeners on it are closed, the kernel refuses connections.
#[derive(Debug)]
pub(super) struct ReservedPort {
    address: SocketAddrV4,
    _socket: Socket,
}

impl ReservedPort {
    /// Reserves a free port of an address.
    ///
    /// # Errors
    /// If all are in use, or the process may not bind them.
    pub(super) fn take(address: Ipv4Addr) -> io::Result<Self> {
        let ports = PORTS.into_iter().flatten().map(|port| SocketAddrV4::new(address, port));
        let mut last = io::Error::from(ErrorKind::AddrInUse);
        for address in ports {
            match reserve(address) {
                Ok(socket) => return Ok(Self { address, _socket: socket }),
                Err(error) if error.kind() == ErrorKind::AddrInUse => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Returns the address with the port.
    pub(super) fn address(&self) -> SocketAddrV4 {
        self.address
    }
}

/// Binds an address on which nothing listens.
fn reserve(address: SocketAddrV4) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a former run in TIME_WAIT do not matter.
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::V4(address).into())?;
    // Only from now on can listeners of this program share it: binding fails if it is in use.
    socket.set_reuse_port(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::super::sockets::listen;
    use super::*;

    #[test]
    fn a_port_is_reserved_before_and_after_listeners_use_it() {
        let ip = Ipv4Addr::new(127, 201, 79, 0);
        let first = match ReservedPort::take(ip) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return,
            taken => taken.unwrap(),
        };
        let address = first.address();
        assert!(address.port() < 1024);
        let listeners = [(); 2].map(|()| listen(address, true).unwrap());
        TcpStream::connect(address).unwrap();
        let second = ReservedPort::take(ip).unwrap();
        assert_ne!(second.address(), address, "somebody listens on it");
        drop(listeners);
        assert_eq!(
            TcpStream::connect(address).unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "the kernel refuses at once"
        );
    }
}
