//! resolv.conf, line by line, as resolv.conf(5) describes it and the C libraries read it.
//!
//! The one parser of that file: forwarding takes its upstreams from it, the installer changes single lines of it. A line
//! that makes no sense is ignored, as the C library ignores it, and told in [`ResolvConf::faults`]; all octets are kept.
//!
//! A leaf: imports no other room.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// The file that the C library reads.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The copy that `install` keeps of what [`RESOLV_CONF`] held before: forwarding asks the name
/// servers in it once the file itself names only svcdns.
pub const BEFORE: &str = "/var/lib/svcdns-install/resolv.conf.before";

/// Where the versions before kept that copy: what they installed stands until `install` is run anew.
pub const FORMERLY_BEFORE: &str = "/var/lib/svcdns/resolv.conf.before";

/// Most octets that are read: whatever is longer is no resolv.conf.
pub const MOST_OCTETS: usize = 1 << 20;

/// Name servers that the C libraries take; further ones they ignore (MAXNS of glibc, musl's too).
pub const MOST_NAME_SERVERS: usize = 3;

/// A resolv.conf, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf<'a> {
    /// Every line in order, with its end of line.
    pub lines: Vec<Line<'a>>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The octets as they stand, the end of line included where there is one.
    pub octets: &'a [u8],
    /// What it says.
    pub says: Says<'a>,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says<'a> {
    /// Nothing: empty, or a comment.
    Nothing,
    /// `nameserver`: an address to ask, port 53; the interface of a scoped address (RFC 4007 section 11) as written.
    NameServer(NameServer<'a>),
    /// `search` or `domain`: the search list; the last such line counts.
    Search(Vec<&'a str>),
    /// `options`.
    Options(Vec<&'a str>),
    /// `sortlist`, or a keyword that only other systems know: nothing to us.
    Other(&'a str),
    /// What cannot be understood, and why.
    Fault(Fault),
}

/// The address of a name server as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameServer<'a> {
    /// The address.
    pub address: IpAddr,
    /// The interface that a link-local address lies on: its name or index.
    pub scope: Option<&'a str>,
}

impl NameServer<'_> {
    /// Where to send, port 53. `index` finds the index of an interface by its name; none where there is no such interface.
    pub fn socket_address(&self, index: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
        match (self.address, self.scope) {
            (IpAddr::V6(address), Some(scope)) => {
                let index = scope.parse().ok().or_else(|| index(scope))?;
                Some(SocketAddrV6::new(address, 53, 0, index).into())
            }
            (address, _) => Some(SocketAddr::new(address, 53)),
        }
    }
}

/// Why a line is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Octets that are no text.
    #[error("not text")]
    NotText,
    /// `nameserver` without an address.
    #[error("`nameserver` without an address")]
    NoAddress,
    /// What follows `nameserver` is no address.
    #[error("what follows `nameserver` is not an address")]
    BadAddress,
    /// An interface is named for an address that has none.
    #[error("only link-local IPv6 addresses (fe80::/10) have an interface")]
    StrayScope,
    /// The last line, and it ends in the middle: perhaps somebody is still writing.
    #[error("the line is not complete")]
    Incomplete,
}

impl<'a> ResolvConf<'a> {
    /// Reads the file's octets. Never fails: what cannot be understood is a line of its own.
    #[must_use]
    pub fn parse(octets: &'a [u8]) -> Self {
        let lines = octets.split_inclusive(|octet| *octet == b'\n').map(|octets| Line { octets, says: says(octets) }).collect();
        Self { lines }
    }

    /// The name servers in their order, all of them: the C library takes the first [`MOST_NAME_SERVERS`].
    pub fn name_servers(&self) -> impl Iterator<Item = NameServer<'a>> {
        self.lines.iter().filter_map(|line| match &line.says {
            Says::NameServer(server) => Some(*server),
            _ => None,
        })
    }

    /// The addresses that the C libraries ask: at most [`MOST_NAME_SERVERS`], and this machine where none is named.
    pub fn asked(&self) -> Vec<IpAddr> {
        let named: Vec<IpAddr> = self.name_servers().map(|server| server.address).take(MOST_NAME_SERVERS).collect();
        if named.is_empty() { vec![Ipv4Addr::LOCALHOST.into()] } else { named }
    }

    /// The search list: the last one written.
    pub fn search(&self) -> &[&'a str] {
        let last = self.lines.iter().rev().find_map(|line| match &line.says {
            Says::Search(domains) => Some(domains.as_slice()),
            _ => None,
        });
        last.unwrap_or_default()
    }

    /// The options of all lines, in order.
    pub fn options(&self) -> impl Iterator<Item = &'a str> {
        self.lines
            .iter()
            .flat_map(|line| match &line.says {
                Says::Options(options) => options.as_slice(),
                _ => &[],
            })
            .copied()
    }

    /// The lines that are ignored for a reason: their numbers from 1, and the reason.
    pub fn faults(&self) -> impl Iterator<Item = (usize, Fault)> {
        self.lines.iter().enumerate().filter_map(|(at, line)| match line.says {
            Says::Fault(fault) => Some((at + 1, fault)),
            _ => None,
        })
    }
}

fn says(line: &[u8]) -> Says<'_> {
    let complete = line.ends_with(b"\n");
    let Ok(line) = std::str::from_utf8(line) else { return Says::Fault(Fault::NotText) };
    // A comment needs its mark in the first column for glibc; what stands behind white space is no keyword of anybody's.
    let line = line.trim_end_matches(['\n', '\r']);
    if line.starts_with(['#', ';']) {
        return Says::Nothing;
    }
    let mut words = line.split_ascii_whitespace();
    let Some(keyword) = words.next() else { return Says::Nothing };
    if keyword.starts_with(['#', ';']) {
        return Says::Nothing;
    }
    match keyword {
        "nameserver" => match words.next() {
            Some(word) => name_server(word, complete),
            None => Says::Fault(if complete { Fault::NoAddress } else { Fault::Incomplete }),
        },
        "search" | "domain" => Says::Search(words.collect()),
        "options" => Says::Options(words.collect()),
        _ if !complete && ["nameserver", "search", "domain", "options"].iter().any(|known| known.starts_with(keyword)) => {
            Says::Fault(Fault::Incomplete)
        }
        other => Says::Other(other),
    }
}

fn name_server(word: &str, complete: bool) -> Says<'_> {
    let (address, scope) = match word.split_once('%') {
        Some((address, scope)) => (address, Some(scope)),
        None => (word, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return Says::Fault(if complete { Fault::BadAddress } else { Fault::Incomplete });
    };
    match (address, scope) {
        (_, Some("")) => Says::Fault(if complete { Fault::BadAddress } else { Fault::Incomplete }),
        (IpAddr::V6(v6), Some(_)) if is_link_local(v6) => Says::NameServer(NameServer { address, scope }),
        (_, Some(_)) => Says::Fault(Fault::StrayScope),
        (_, None) => Says::NameServer(NameServer { address, scope: None }),
    }
}

/// fe80::/10 (RFC 4291 section 2.5.6).
fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xFFC0 == 0xFE80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Vec<String> {
        ResolvConf::parse(text.as_bytes()).name_servers().map(|server| server.address.to_string()).collect()
    }

    #[test]
    fn an_ordinary_file() {
        let text =
            "# made by hand\nsearch corp.example example\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 \noptions ndots:2 trust-ad\n";
        let conf = ResolvConf::parse(text.as_bytes());
        assert_eq!(addresses(text), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(conf.search(), ["corp.example", "example"]);
        assert_eq!(conf.options().collect::<Vec<_>>(), ["ndots:2", "trust-ad"]);
        assert_eq!(conf.faults().count(), 0);
        assert_eq!(conf.lines.iter().flat_map(|line| line.octets).copied().collect::<Vec<_>>(), text.as_bytes());
    }

    #[test]
    fn what_makes_no_sense_hurts_nothing_else() {
        let text =
            b"nameserver\nnameserver 300.1.1.1\n\xFF\xFE\nnameserver 192.0.2.1%eth0\nnameserver 192.0.2.2 # ours\nsortlist 1.2.3.4\n";
        let conf = ResolvConf::parse(text);
        assert_eq!(conf.name_servers().map(|server| server.address).collect::<Vec<_>>(), [IpAddr::from([192, 0, 2, 2])]);
        let faults: Vec<_> = conf.faults().collect();
        assert_eq!(faults, [(1, Fault::NoAddress), (2, Fault::BadAddress), (3, Fault::NotText), (4, Fault::StrayScope)]);
        assert_eq!(conf.lines[5].says, Says::Other("sortlist"));
    }

    #[test]
    fn an_interface_is_found() {
        let conf = ResolvConf::parse(b"nameserver fe80::1%eth7\nnameserver fe80::2%3\n");
        let index = |name: &str| (name == "eth7").then_some(7);
        let found: Vec<_> = conf.name_servers().map(|server| server.socket_address(index)).collect();
        let at = |address: &str, scope| Some(SocketAddrV6::new(address.parse().unwrap(), 53, 0, scope).into());
        assert_eq!(found, [at("fe80::1", 7), at("fe80::2", 3)]);
        assert_eq!(conf.name_servers().next().unwrap().socket_address(|_| None), None);
    }

    #[test]
    fn a_half_written_file_is_seen_as_one() {
        for text in ["name", "nameserver", "nameserver 192.0.2.", "nameserver fe80::1%"] {
            assert_eq!(ResolvConf::parse(text.as_bytes()).faults().collect::<Vec<_>>(), [(1, Fault::Incomplete)], "{text}");
        }
        // Without an end of line, and as complete as it can be.
        assert_eq!(addresses("nameserver 192.0.2.1"), ["192.0.2.1"]);
        assert_eq!(addresses(""), [""; 0]);
        let asked = |text: &str| ResolvConf::parse(text.as_bytes()).asked();
        assert_eq!(asked(""), [IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(asked(&"nameserver 192.0.2.1\n".repeat(4)).len(), MOST_NAME_SERVERS);
    }

    proptest::proptest! {
        #[test]
        fn no_octets_panic_and_all_are_kept(octets in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let conf = ResolvConf::parse(&octets);
            let kept: Vec<u8> = conf.lines.iter().flat_map(|line| line.octets).copied().collect();
            proptest::prop_assert_eq!(kept, octets);
        }
    }
}
