//! The addresses this machine has, and when they change.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::ifaddrs::getifaddrs;
use nix::libc::{RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK};
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use tokio::net::UdpSocket;

/// Tells when addresses or links of this machine change (rtnetlink(7)). What has changed is not read: the list of addresses
/// says how things are.
#[derive(Debug)]
pub(super) struct Changes {
    socket: UdpSocket,
}

impl Changes {
    /// Listens for changes from now on. Within a runtime.
    ///
    /// # Errors
    /// When the system lets us not.
    pub(super) fn watch() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        let groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups.unsigned_abs()))?;
        // The runtime waits for any kind of socket, in this type.
        Ok(Self { socket: UdpSocket::from_std(socket.into())? })
    }

    /// Waits for the next change, and takes in all that were told so far.
    ///
    /// # Errors
    /// When the socket fails.
    pub(super) async fn next(&self) -> io::Result<()> {
        let mut any = false;
        loop {
            if !any {
                self.socket.readable().await?;
            }
            match self.socket.try_recv(&mut [0; 256]) {
                Ok(_) => any = true,
                // More than fits was told, and some of it is lost.
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

/// Every address of an interface that is up, in the family of `unspecified` and with its port, each once.
///
/// # Errors
/// When the system does not say.
pub(super) fn addresses_for(unspecified: SocketAddr) -> io::Result<Vec<SocketAddr>> {
    let mut found = Vec::new();
    for interface in getifaddrs()? {
        let Some(address) = interface.address.filter(|_| interface.flags.contains(InterfaceFlags::IFF_UP)) else { continue };
        let address = match unspecified.ip() {
            IpAddr::V4(_) => address.as_sockaddr_in().map(|address| SocketAddr::V4(SocketAddrV4::new(address.ip(), unspecified.port()))),
            // Link-local addresses mean something only together with their interface's number.
            IpAddr::V6(_) => address
                .as_sockaddr_in6()
                .map(|address| SocketAddr::V6(SocketAddrV6::new(address.ip(), unspecified.port(), 0, address.scope_id()))),
        };
        found.extend(address.filter(|address| !found.contains(address)));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_in_its_family_with_the_port_asked_for() {
        let v4 = addresses_for("0.0.0.0:5300".parse().unwrap()).unwrap();
        assert!(v4.contains(&"127.0.0.1:5300".parse().unwrap()), "{v4:?}");
        assert!(v4.iter().all(|address| address.is_ipv4() && address.port() == 5300), "{v4:?}");
        let v6 = addresses_for("[::]:5300".parse().unwrap()).unwrap();
        assert!(v6.iter().all(|address| address.is_ipv6() && address.port() == 5300), "{v6:?}");
    }
}
