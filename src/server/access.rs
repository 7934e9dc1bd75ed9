//! Access control: which client addresses may query.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// Access list for client addresses.
#[derive(Clone, Debug)]
pub struct Access {
    loopback: bool,
    networks: Box<[IpNet]>,
}

impl Access {
    /// Creates a list that allows loopback and `networks`.
    pub fn new(networks: &[IpNet]) -> Self {
        Self { loopback: true, networks: networks.iter().copied().map(canonical).collect() }
    }

    /// Returns the list without the implicit entry for loopback.
    #[must_use]
    pub fn without_loopback(self) -> Self {
        Self { loopback: false, ..self }
    }

    /// Returns whether `source` has access.
    ///
    /// An IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) counts as the IPv4 address.
    pub fn allows(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        (self.loopback && source.is_loopback())
            || self.networks.iter().any(|network| network.contains(&source))
    }
}

/// Converts a network of IPv4-mapped addresses to an IPv4 network.
///
/// For example, `::ffff:10.0.0.0/104` becomes `10.0.0.0/8`.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
        (Some(address), Some(length)) => Ipv4Net::new(address, length).map_or(network, IpNet::V4),
        _ => network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(networks: &[&str]) -> Access {
        Access::new(&networks.iter().map(|network| network.parse().unwrap()).collect::<Vec<_>>())
    }

    fn allows(access: &Access, source: &str) -> bool {
        access.allows(source.parse().unwrap())
    }

    #[test]
    fn loopback_needs_no_rule() {
        let access = access(&[]);
        for source in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(allows(&access, source), "{source}");
        }
        for source in ["10.0.0.1", "0.0.0.0", "::", "fd00::1", "128.0.0.1"] {
            assert!(!allows(&access, source), "{source}");
        }
    }

    #[test]
    fn loopback_access_can_require_a_rule() {
        let access = access(&["127.0.0.2/32"]).without_loopback();
        assert!(allows(&access, "127.0.0.2"));
        assert!(!allows(&access, "127.0.0.1"));
        assert!(!allows(&access, "::1"));
    }

    #[test]
    fn networks_match_ipv4_mapped_addresses() {
        let access = access(&["10.1.0.0/16", "fd00:1::/32", "::ffff:192.168.0.0/112"]);
        for source in
            ["10.1.255.255", "::ffff:10.1.0.1", "fd00:1::9", "192.168.3.4", "::ffff:192.168.3.4"]
        {
            assert!(allows(&access, source), "{source}");
        }
        for source in ["10.2.0.0", "::ffff:10.2.0.1", "fd00:2::9", "192.169.0.0"] {
            assert!(!allows(&access, source), "{source}");
        }
    }

    #[test]
    fn a_network_with_prefix_length_0_allows_only_its_address_family() {
        let access = access(&["0.0.0.0/0"]);
        assert!(allows(&access, "203.0.113.9"));
        assert!(!allows(&access, "2001:db8::1"));
    }
}
