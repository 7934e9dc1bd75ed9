//! Test whether an upstream is svcdns itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Target;

impl Target {
    /// Returns whether packets to this target arrive at the listening address `own`.
    ///
    /// If `own` is the unspecified address, every loopback address matches. The addresses of the
    /// machine's interfaces are not checked.
    pub fn reaches(&self, own: SocketAddr) -> bool {
        let (ip, own_ip) = (destination(self.address.ip()), own.ip().to_canonical());
        let meant = if own_ip.is_unspecified() {
            ip.is_loopback() && ip.is_ipv4() == own_ip.is_ipv4()
        } else {
            ip == own_ip
        };
        meant && self.address.port() == own.port() && scope(self.address) == scope(own)
    }
}

/// Returns the address at which a packet arrives: loopback for the unspecified one.
fn destination(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

/// Returns the interface index of a link-local address; 0 for all other addresses.
fn scope(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V6(address) if address.ip().is_unicast_link_local() => address.scope_id(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Protocol;
    use super::*;

    #[test]
    fn upstream_targets_that_reach_the_servers_own_listeners_are_recognized() {
        for (target, own, reaches) in [
            ("127.0.0.1", "127.0.0.1:53", true),
            ("127.0.0.2", "127.0.0.1:53", false),
            ("127.0.0.1:5300", "127.0.0.1:53", false),
            ("0.0.0.0", "127.0.0.1:53", true),
            ("::", "[::1]:53", true),
            ("::ffff:192.0.2.1", "192.0.2.1:53", true),
            ("127.0.0.53", "0.0.0.0:53", true),
            ("192.0.2.1", "0.0.0.0:53", false),
            ("::1", "0.0.0.0:53", false),
            ("[fe80::1%2]:53", "[fe80::1%2]:53", true),
            ("[fe80::1%3]:53", "[fe80::1%2]:53", false),
            ("[2001:db8::1%3]:53", "[2001:db8::1]:53", true),
        ] {
            let address = target
                .parse::<SocketAddr>()
                .unwrap_or_else(|_| SocketAddr::new(target.parse().unwrap(), 53));
            let target = Target { address, protocol: Protocol::Plain };
            assert_eq!(target.reaches(own.parse().unwrap()), reaches, "{target:?} {own}");
        }
    }
}
