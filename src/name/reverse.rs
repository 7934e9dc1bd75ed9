//! Reverse names: conversion from addresses and networks, and back.
//!
//! IPv4 addresses are below `in-addr.arpa.` (RFC 1035 section 3.5), one label per byte. IPv6
//! addresses are below `ip6.arpa.` (RFC 3596 section 2.5), one label per four bits. A name with
//! fewer labels is the name of a network.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::LazyLock;

use ipnet::IpNet;

use super::addresses::decimal;
use super::labels::Name;

/// Prefix length of IPv4 networks from [`ReverseNetwork::neighbourhood`].
const IPV4_NEIGHBOURHOOD_BITS: u8 = 24;
/// Prefix length of IPv6 networks from [`ReverseNetwork::neighbourhood`].
const IPV6_NEIGHBOURHOOD_BITS: u8 = 64;

/// Returns the reverse name of an address.
pub fn reverse_name(address: IpAddr) -> Name {
    let name = match address {
        IpAddr::V4(address) => {
            let labels = address.octets().map(|byte| byte.to_string());
            Name::from_labels(
                labels.iter().rev().map(String::as_bytes).chain([b"in-addr".as_slice(), b"arpa"]),
            )
        }
        IpAddr::V6(address) => {
            let digits = format!("{:032x}", address.to_bits());
            Name::from_labels(digits.as_bytes().chunks(1).rev().chain([b"ip6".as_slice(), b"arpa"]))
        }
    };
    // Never fails: the longest reverse name has 74 bytes.
    name.unwrap_or_default()
}

/// Returns whether a name in wire form, in any letter case, may be a reverse name.
///
/// A cheap test: nearly all other names fail it, since they do not end like a name below `arpa.`.
#[must_use]
pub fn may_be_reverse(wire: &[u8]) -> bool {
    wire.len().checked_sub(6).is_some_and(|at| wire[at..].eq_ignore_ascii_case(b"\x04arpa\0"))
}

/// Network of the addresses whose names are at or below a reverse name.
///
/// The network of a complete reverse name is a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReverseNetwork {
    /// The network, by its lowest address.
    network: IpNet,
    /// Whether the name is the network's own name, without labels in front of it.
    is_exact: bool,
}

impl ReverseNetwork {
    /// Returns the network of a name at or below `in-addr.arpa.` or `ip6.arpa.`.
    ///
    /// Only the last labels count, up to the number of labels of an address.
    pub fn of(name: &Name) -> Option<Self> {
        if !may_be_reverse(name.as_wire()) {
            return None;
        }
        let mut labels = name.labels().rev();
        if labels.next()? != b"arpa" {
            return None;
        }
        let family = labels.next()?;
        let mut bits = 0;
        let first = match family {
            b"in-addr" => {
                let mut bytes = [0; 4];
                for byte in &mut bytes {
                    let Some(value) = labels.clone().next().and_then(decimal) else { break };
                    *byte = value;
                    bits += 8;
                    labels.next();
                }
                IpAddr::from(bytes)
            }
            b"ip6" => {
                let mut address = 0;
                while bits < 128 {
                    let Some(&[digit]) = labels.clone().next() else { break };
                    let Some(digit) = char::from(digit).to_digit(16) else { break };
                    address |= u128::from(digit) << (124 - bits);
                    bits += 4;
                    labels.next();
                }
                Ipv6Addr::from_bits(address).into()
            }
            _ => return None,
        };
        let network = IpNet::new(first, bits).ok()?;
        Some(Self { network, is_exact: labels.next().is_none() })
    }

    /// Returns the address if the name is complete.
    pub fn address(self) -> Option<IpAddr> {
        let Self { network, is_exact } = self;
        (is_exact && network.prefix_len() == network.max_prefix_len()).then(|| network.addr())
    }

    /// Returns the addresses of the network.
    pub fn addresses(self) -> RangeInclusive<IpAddr> {
        self.network.network()..=self.network.broadcast()
    }

    /// Returns the addresses below the name; `None` if an address is above the name.
    pub fn addresses_below(self) -> Option<RangeInclusive<IpAddr>> {
        self.is_exact.then(|| self.addresses())
    }

    /// Returns the network, or the /24 (IPv6: the /64) around a smaller one.
    #[must_use]
    pub fn neighbourhood(self) -> Self {
        let bits = match self.network {
            IpNet::V4(_) => IPV4_NEIGHBOURHOOD_BITS,
            IpNet::V6(_) => IPV6_NEIGHBOURHOOD_BITS,
        };
        if self.network.prefix_len() <= bits {
            return self;
        }
        let around = IpNet::new(self.network.addr(), bits).map(|network| network.trunc());
        Self { network: around.unwrap_or(self.network), is_exact: false }
    }
}

/// Returns the address of a complete reverse name: the inverse of [`reverse_name`].
///
/// Returns `None` for any other name, including names between an address and `arpa.`.
pub fn reverse_address(name: &Name) -> Option<IpAddr> {
    ReverseNetwork::of(name)?.address()
}

/// Reason for serving a reverse zone locally instead of asking the public DNS.
///
/// See RFC 6303.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReverseScope {
    /// Each machine has its own loopback addresses.
    Loopback,
    /// Each private network has its own private addresses.
    Private,
}

/// Locally served reverse zones in presentation form.
///
/// [`local_reverse_zones`] adds ranges of zones.
const ZONES: &[(&str, ReverseScope)] = &[
    ("127.in-addr.arpa", ReverseScope::Loopback),
    // RFC 6303 sections 4.1 to 4.6.
    ("10.in-addr.arpa", ReverseScope::Private),
    ("168.192.in-addr.arpa", ReverseScope::Private),
    ("0.in-addr.arpa", ReverseScope::Private),
    ("254.169.in-addr.arpa", ReverseScope::Private),
    ("2.0.192.in-addr.arpa", ReverseScope::Private),
    ("100.51.198.in-addr.arpa", ReverseScope::Private),
    ("113.0.203.in-addr.arpa", ReverseScope::Private),
    ("255.255.255.255.in-addr.arpa", ReverseScope::Private),
    ("d.f.ip6.arpa", ReverseScope::Private),
    ("8.e.f.ip6.arpa", ReverseScope::Private),
    ("9.e.f.ip6.arpa", ReverseScope::Private),
    ("a.e.f.ip6.arpa", ReverseScope::Private),
    ("b.e.f.ip6.arpa", ReverseScope::Private),
    ("8.b.d.0.1.0.0.2.ip6.arpa", ReverseScope::Private),
];

/// Iterates over all locally served reverse zones.
pub fn local_reverse_zones() -> impl Iterator<Item = (Name, ReverseScope)> {
    let named = ZONES.iter().map(|(text, scope)| ((*text).to_owned(), *scope));
    // RFC 6303 section 4.1, and RFC 7793 section 3 for the addresses of RFC 6598.
    let many = (16..=31)
        .map(|n| format!("{n}.172.in-addr.arpa"))
        .chain((64..=127).map(|n| format!("{n}.100.in-addr.arpa")))
        .map(|text| (text, ReverseScope::Private));
    let whole =
        named.chain(many).filter_map(|(text, scope)| Some((Name::from_text(&text).ok()?, scope)));
    let six = [
        (Ipv6Addr::UNSPECIFIED, ReverseScope::Private),
        (Ipv6Addr::LOCALHOST, ReverseScope::Loopback),
    ];
    whole.chain(six.map(|(address, scope)| (reverse_name(address.into()), scope)))
}

/// Returns the locally served reverse zone that contains a name, if there is one.
///
/// The zone is given by its offset in the name's wire form.
pub fn local_reverse_zone(name: &Name) -> Option<(usize, ReverseScope)> {
    static ZONES: LazyLock<HashMap<Box<[u8]>, ReverseScope>> = LazyLock::new(|| {
        local_reverse_zones().map(|(zone, scope)| (zone.as_wire().into(), scope)).collect()
    });
    let bytes = name.as_wire();
    if !may_be_reverse(bytes) {
        return None;
    }
    let mut offset = 0;
    while bytes[offset] != 0 {
        if let Some(scope) = ZONES.get(&bytes[offset..]) {
            return Some((offset, *scope));
        }
        offset += 1 + usize::from(bytes[offset]);
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn network(text: &str) -> Option<ReverseNetwork> {
        ReverseNetwork::of(&Name::from_text(text).unwrap())
    }

    #[test]
    fn reverse_names_are_formatted() {
        let name = |address: &str| reverse_name(address.parse().unwrap()).to_string();
        assert_eq!(name("10.0.2.255"), "255.2.0.10.in-addr.arpa.");
        assert_eq!(
            name("2001:db8::567:89ab"),
            "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa."
        );
    }

    #[test]
    fn only_complete_reverse_names_have_an_address() {
        let address = |text: &str| reverse_address(&Name::from_text(text).unwrap());
        assert_eq!(address("1.0.0.10.IN-ADDR.ARPA"), Some(Ipv4Addr::new(10, 0, 0, 1).into()));
        let full = reverse_name("fd00::5".parse().unwrap()).to_string();
        assert_eq!(address(&full.to_uppercase()), Some("fd00::5".parse().unwrap()));
        for bad in [
            ".",
            "arpa",
            "in-addr.arpa",
            "ip6.arpa",
            "0.0.10.in-addr.arpa",
            "9.1.0.0.10.in-addr.arpa",
            "01.0.0.10.in-addr.arpa",
            "256.0.0.10.in-addr.arpa",
            "x.0.0.10.in-addr.arpa",
            "1.0.0.10.in-addr.svc",
            "1.0.0.10.ip6.arpa",
            &full[2..],
            &format!("0.{full}"),
            &full.replacen('5', "55", 1),
            &full.replacen('5', "g", 1),
        ] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    fn partial_reverse_names_denote_networks() {
        let range = |text: &str| {
            let found = network(text)?;
            let addresses = found.addresses();
            Some(format!("{}-{} {}", addresses.start(), addresses.end(), found.is_exact))
        };
        for (text, addresses) in [
            ("9.10.in-addr.arpa", "10.9.0.0-10.9.255.255 true"),
            ("5.0.9.10.in-addr.arpa", "10.9.0.5-10.9.0.5 true"),
            ("x.5.0.9.10.in-addr.arpa", "10.9.0.5-10.9.0.5 false"),
            ("1.5.0.9.10.in-addr.arpa", "10.9.0.5-10.9.0.5 false"),
            ("0/25.9.10.IN-ADDR.ARPA", "10.9.0.0-10.9.255.255 false"),
            ("in-addr.arpa", "0.0.0.0-255.255.255.255 true"),
            ("d.f.ip6.arpa", "fd00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff true"),
            ("1.d.f.ip6.arpa", "fd10::-fd1f:ffff:ffff:ffff:ffff:ffff:ffff:ffff true"),
            ("11.d.f.ip6.arpa", "fd00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff false"),
            ("ip6.arpa", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff true"),
        ] {
            assert_eq!(range(text).as_deref(), Some(addresses), "{text}");
        }
        for text in [".", "arpa", "home.arpa", "ip6.arpa.svc", "xarpa", "in-addr.xarpa"] {
            assert_eq!(network(text), None, "{text}");
        }
    }

    #[test]
    fn the_neighbourhood_of_an_address_is_its_24_or_64_network() {
        for (text, first, last) in [
            ("5.0.9.10.in-addr.arpa", "10.9.0.0", "10.9.0.255"),
            ("x.5.0.9.10.in-addr.arpa", "10.9.0.0", "10.9.0.255"),
            ("9.10.in-addr.arpa", "10.9.0.0", "10.9.255.255"),
        ] {
            let addresses = network(text).unwrap().neighbourhood().addresses();
            assert_eq!(
                addresses,
                first.parse::<IpAddr>().unwrap()..=last.parse().unwrap(),
                "{text}"
            );
        }
        let six = ReverseNetwork::of(&reverse_name("2001:db9:1:2:3::4".parse().unwrap())).unwrap();
        assert_eq!(
            six.neighbourhood().addresses(),
            "2001:db9:1:2::".parse::<IpAddr>().unwrap()
                ..="2001:db9:1:2:ffff:ffff:ffff:ffff".parse().unwrap()
        );
    }

    #[test]
    fn local_reverse_zones_are_found_by_name() {
        let find = |text: &str| {
            let name = Name::from_text(text).unwrap();
            let (offset, scope) = local_reverse_zone(&name)?;
            let (zone, _) = Name::from_wire(&name.as_wire()[offset..]).unwrap();
            Some((zone.to_string(), scope))
        };
        for (text, zone, scope) in [
            ("10.in-addr.arpa", "10.in-addr.arpa.", ReverseScope::Private),
            ("x.5.0.9.10.in-addr.arpa", "10.in-addr.arpa.", ReverseScope::Private),
            ("1.0.31.172.in-addr.arpa", "31.172.in-addr.arpa.", ReverseScope::Private),
            ("127.100.in-addr.arpa", "127.100.in-addr.arpa.", ReverseScope::Private),
            ("1.0.0.127.in-addr.arpa", "127.in-addr.arpa.", ReverseScope::Loopback),
        ] {
            assert_eq!(find(text), Some((zone.to_owned(), scope)), "{text}");
        }
        for text in ["in-addr.arpa", "32.172.in-addr.arpa", "8.8.8.8.in-addr.arpa", "home.arpa"] {
            assert_eq!(find(text), None, "{text}");
        }
    }

    fn any_address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![any::<Ipv4Addr>().prop_map(IpAddr::V4), any::<Ipv6Addr>().prop_map(IpAddr::V6)]
    }

    proptest! {
        #[test]
        fn reverse_names_round_trip(address in any_address()) {
            prop_assert_eq!(reverse_address(&reverse_name(address)), Some(address));
        }

        #[test]
        fn an_address_is_in_the_network_of_every_ancestor_of_its_name(
            address in any_address(),
            labels in 0_usize..32,
        ) {
            let name = reverse_name(address);
            let above: Vec<_> = name.labels().skip(labels.min(name.label_count() - 2)).collect();
            let network = ReverseNetwork::of(&Name::from_labels(above).unwrap()).unwrap();
            prop_assert!(network.addresses_below().unwrap().contains(&address));
            prop_assert!(network.neighbourhood().addresses().contains(&address));
        }
    }
}
