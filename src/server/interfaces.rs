//! Addresses of this machine, and notifications of their changes.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::ifaddrs::getifaddrs;
use nix::libc::{RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK};
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use tokio::net::UdpSocket;

/// Notifier of changes to this machine's addresses or links (rtnetlink(7)).
///
/// The content of the notifications is discarded: the caller reads the address list instead.
#[derive(Debug)]
pub(super) struct AddressChanges {
    socket: UdpSocket,
}

impl AddressChanges {
    /// Subscribes to changes. Must be called within a runtime.
    ///
    /// # Errors
    /// If the system refuses the netlink socket.
    pub(super) fn subscribe() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        let groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups.unsigned_abs()))?;
        // tokio polls any datagram socket through its `UdpSocket`.
        Ok(Self { socket: UdpSocket::from_std(socket.into())? })
    }

    /// Waits for the next change and consumes all pending notifications.
    ///
    /// # Errors
    /// If the socket fails.
    pub(super) async fn next(&self) -> io::Result<()> {
        let mut any = false;
        loop {
            if !any {
                self.socket.readable().await?;
            }
            match self.socket.try_recv(&mut [0; 256]) {
                Ok(_) => any = true,
                // The receive buffer overflowed, so notifications are lost.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => any = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if any {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Lists the addresses of all interfaces that are up, without duplicates.
///
/// Every result has the family and port of `unspecified`.
///
/// # Errors
/// If the system cannot list the interfaces.
pub(super) fn local_addresses(unspecified: SocketAddr) -> io::Result<Vec<SocketAddr>> {
    let mut found = Vec::new();
    for interface in getifaddrs()? {
        let Some(address) =
            interface.address.filter(|_| interface.flags.contains(InterfaceFlags::IFF_UP))
        else {
            continue;
        };
        let address = match unspecified.ip() {
            IpAddr::V4(_) => address
                .as_sockaddr_in()
                .map(|address| SocketAddr::V4(SocketAddrV4::new(address.ip(), unspecified.port()))),
            // A link-local address is valid only with the index of its interface.
            IpAddr::V6(_) => address.as_sockaddr_in6().map(|address| {
                SocketAddr::V6(SocketAddrV6::new(
                    address.ip(),
                    unspecified.port(),
                    0,
                    address.scope_id(),
                ))
            }),
        };
        found.extend(address.filter(|address| !found.contains(address)));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_are_listed_by_family_with_the_given_port() {
        let v4 = local_addresses("0.0.0.0:5300".parse().unwrap()).unwrap();
        assert!(v4.contains(&"127.0.0.1:5300".parse().unwrap()), "{v4:?}");
        assert!(v4.iter().all(|address| address.is_ipv4() && address.port() == 5300), "{v4:?}");
        let v6 = local_addresses("[::]:5300".parse().unwrap()).unwrap();
        assert!(v6.iter().all(|address| address.is_ipv6() && address.port() == 5300), "{v6:?}");
    }
}
