//! The addresses this machine has.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// Every address of an interface that is up, in the family of `unspecified` and with its port, each once. Later changes of
/// the machine's addresses are not seen.
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
