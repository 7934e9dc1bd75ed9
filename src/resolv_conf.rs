//! Parser of resolv.conf, as resolv.conf(5) and the C libraries define it.
//!
//! Forwarding reads its upstreams with it, and the installer changes single lines. As in the C
//! library, malformed lines have no effect; [`ResolvConf::faults`] reports them. The parser keeps
//! all bytes.
//!
//! Imports no other module.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// The file that the C library reads.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The copy that `install` keeps of the previous [`RESOLV_CONF`].
///
/// Forwarding uses its name servers while [`RESOLV_CONF`] itself names only svcdns.
pub const RESOLV_CONF_BACKUP: &str = "/var/lib/svcdns-install/resolv.conf.before";

/// The path of the same copy in installations of older versions.
pub const FORMER_RESOLV_CONF_BACKUP: &str = "/var/lib/svcdns/resolv.conf.before";

/// Both places of the copy, the current one first.
pub const RESOLV_CONF_BACKUPS: [&str; 2] = [RESOLV_CONF_BACKUP, FORMER_RESOLV_CONF_BACKUP];

/// The mark of a line of [`RESOLV_CONF`] that a line of svcdns replaces.
///
/// Installed machines have this text.
pub const REPLACED_LINE_MARK: &[u8] = b"#svcdns# ";

/// Largest file to read, in bytes; a longer one is not a resolv.conf.
pub const MAX_RESOLV_CONF_BYTES: usize = 1 << 20;

/// Number of name servers that the C libraries use (MAXNS in glibc and musl).
pub const MAX_NAME_SERVERS: usize = 3;

/// A parsed resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf<'a> {
    /// All lines in order, including their line ends.
    pub lines: Vec<Line<'a>>,
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The bytes of the line, including its line end if there is one.
    pub bytes: &'a [u8],
    /// The parsed content of the line.
    pub directive: Directive<'a>,
}

/// The content of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Directive<'a> {
    /// An empty line or a comment.
    Blank,
    /// `nameserver`: an address, possibly with an interface (RFC 4007 section 11).
    NameServer(NameServer<'a>),
    /// `search` or `domain`: the search list. The last such line counts.
    Search(Vec<&'a str>),
    /// `options`: options of the resolver.
    Options(Vec<&'a str>),
    /// `sortlist`, or a keyword of another system.
    Other(&'a str),
    /// A malformed line.
    Fault(Fault),
}

/// The address of a name server as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameServer<'a> {
    /// The address.
    pub address: IpAddr,
    /// Name or index of the interface of a link-local address.
    pub scope: Option<&'a str>,
}

impl NameServer<'_> {
    /// Returns the socket address, with port 53.
    ///
    /// `index` returns the index of the interface with a name. The result is `None` if the
    /// interface does not exist.
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

/// Reason for ignoring a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The line is not UTF-8.
    #[error("not text")]
    NotText,
    /// No address follows `nameserver`.
    #[error("`nameserver` without an address")]
    NoAddress,
    /// The word after `nameserver` is not an address.
    #[error("the word after `nameserver` is not an address")]
    BadAddress,
    /// A zone ID follows an address that is not link-local.
    #[error("only link-local IPv6 addresses (fe80::/10) have an interface")]
    StrayScope,
    /// The last line is incomplete: another program may still be writing it.
    #[error("the line is not complete")]
    Incomplete,
}

impl<'a> ResolvConf<'a> {
    /// Parses the bytes of the file. Never fails: malformed lines are kept, too.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Self {
        let lines = bytes
            .split_inclusive(|octet| *octet == b'\n')
            .map(|bytes| Line { bytes, directive: parse_line(bytes) })
            .collect();
        Self { lines }
    }

    /// Returns all name servers, in order and without the limit of the C libraries.
    pub fn name_servers(&self) -> impl Iterator<Item = NameServer<'a>> {
        self.lines.iter().filter_map(|line| match &line.directive {
            Directive::NameServer(server) => Some(*server),
            _ => None,
        })
    }

    /// Returns the addresses that the C libraries query.
    ///
    /// The libraries query at most [`MAX_NAME_SERVERS`], or 127.0.0.1 if the file names none.
    pub fn effective_servers(&self) -> Vec<IpAddr> {
        let named: Vec<IpAddr> =
            self.name_servers().map(|server| server.address).take(MAX_NAME_SERVERS).collect();
        if named.is_empty() { vec![Ipv4Addr::LOCALHOST.into()] } else { named }
    }

    /// Returns the search list of the last line that has one.
    pub fn search(&self) -> &[&'a str] {
        let last = self.lines.iter().rev().find_map(|line| match &line.directive {
            Directive::Search(domains) => Some(domains.as_slice()),
            _ => None,
        });
        last.unwrap_or_default()
    }

    /// Returns the options of all lines, in order.
    pub fn options(&self) -> impl Iterator<Item = &'a str> {
        self.lines
            .iter()
            .flat_map(|line| match &line.directive {
                Directive::Options(options) => options.as_slice(),
                _ => &[],
            })
            .copied()
    }

    /// Returns the line number (from 1) and the fault of each malformed line.
    pub fn faults(&self) -> impl Iterator<Item = (usize, Fault)> {
        self.lines.iter().enumerate().filter_map(|(at, line)| match line.directive {
            Directive::Fault(fault) => Some((at + 1, fault)),
            _ => None,
        })
    }
}

/// Parses a line; without a line end, it may be incomplete.
fn parse_line(line: &[u8]) -> Directive<'_> {
    let complete = line.ends_with(b"\n");
    let Ok(line) = std::str::from_utf8(line) else { return Directive::Fault(Fault::NotText) };
    // For glibc a comment starts in the first column. A comment mark after white space is no
    // keyword, so that line has no effect either.
    let line = line.trim_end_matches(['\n', '\r']);
    if line.starts_with(['#', ';']) {
        return Directive::Blank;
    }
    let mut words = line.split_ascii_whitespace();
    let Some(keyword) = words.next() else { return Directive::Blank };
    if keyword.starts_with(['#', ';']) {
        return Directive::Blank;
    }
    match keyword {
        "nameserver" => match words.next() {
            Some(word) => parse_name_server(word, complete),
            None => Directive::Fault(if complete { Fault::NoAddress } else { Fault::Incomplete }),
        },
        "search" | "domain" => Directive::Search(words.collect()),
        "options" => Directive::Options(words.collect()),
        _ if !complete
            && ["nameserver", "search", "domain", "options"]
                .iter()
                .any(|known| known.starts_with(keyword)) =>
        {
            Directive::Fault(Fault::Incomplete)
        }
        other => Directive::Other(other),
    }
}

/// Parses the word after `nameserver`.
fn parse_name_server(word: &str, complete: bool) -> Directive<'_> {
    let (address, scope) = match word.split_once('%') {
        Some((address, scope)) => (address, Some(scope)),
        None => (word, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return Directive::Fault(if complete { Fault::BadAddress } else { Fault::Incomplete });
    };
    match (address, scope) {
        (_, Some("")) => {
            Directive::Fault(if complete { Fault::BadAddress } else { Fault::Incomplete })
        }
        (IpAddr::V6(v6), Some(_)) if is_link_local(v6) => {
            Directive::NameServer(NameServer { address, scope })
        }
        (_, Some(_)) => Directive::Fault(Fault::StrayScope),
        (_, None) => Directive::NameServer(NameServer { address, scope: None }),
    }
}

/// Returns whether an address is in fe80::/10 (RFC 4291 section 2.5.6).
fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xFFC0 == 0xFE80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Vec<String> {
        ResolvConf::parse(text.as_bytes())
            .name_servers()
            .map(|server| server.address.to_string())
            .collect()
    }

    #[test]
    fn an_ordinary_file_is_parsed() {
        let text = "# made by hand\nsearch corp.example example\nnameserver 192.0.2.1\n \
            nameserver\t2001:db8::1 \noptions ndots:2 trust-ad\n";
        let conf = ResolvConf::parse(text.as_bytes());
        assert_eq!(addresses(text), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(conf.search(), ["corp.example", "example"]);
        assert_eq!(conf.options().collect::<Vec<_>>(), ["ndots:2", "trust-ad"]);
        assert_eq!(conf.faults().count(), 0);
        assert_eq!(
            conf.lines.iter().flat_map(|line| line.bytes).copied().collect::<Vec<_>>(),
            text.as_bytes()
        );
    }

    #[test]
    fn malformed_lines_do_not_affect_other_lines() {
        let text = b"nameserver\nnameserver 300.1.1.1\n\xFF\xFE\nnameserver 192.0.2.1%eth0\n\
            nameserver 192.0.2.2 # ours\nsortlist 1.2.3.4\n";
        let conf = ResolvConf::parse(text);
        assert_eq!(
            conf.name_servers().map(|server| server.address).collect::<Vec<_>>(),
            [IpAddr::from([192, 0, 2, 2])]
        );
        let faults: Vec<_> = conf.faults().collect();
        assert_eq!(
            faults,
            [
                (1, Fault::NoAddress),
                (2, Fault::BadAddress),
                (3, Fault::NotText),
                (4, Fault::StrayScope)
            ]
        );
        assert_eq!(conf.lines[5].directive, Directive::Other("sortlist"));
    }

    #[test]
    fn interfaces_are_looked_up_by_name_or_index() {
        let conf = ResolvConf::parse(b"nameserver fe80::1%eth7\nnameserver fe80::2%3\n");
        let index = |name: &str| (name == "eth7").then_some(7);
        let found: Vec<_> =
            conf.name_servers().map(|server| server.socket_address(index)).collect();
        let at = |address: &str, scope| {
            Some(SocketAddrV6::new(address.parse().unwrap(), 53, 0, scope).into())
        };
        assert_eq!(found, [at("fe80::1", 7), at("fe80::2", 3)]);
        assert_eq!(conf.name_servers().next().unwrap().socket_address(|_| None), None);
    }

    #[test]
    fn incomplete_last_lines_are_detected() {
        for text in ["name", "nameserver", "nameserver 192.0.2.", "nameserver fe80::1%"] {
            assert_eq!(
                ResolvConf::parse(text.as_bytes()).faults().collect::<Vec<_>>(),
                [(1, Fault::Incomplete)],
                "{text}"
            );
        }
        // An address is complete without a line end.
        assert_eq!(addresses("nameserver 192.0.2.1"), ["192.0.2.1"]);
        assert_eq!(addresses(""), [""; 0]);
        let effective = |text: &str| ResolvConf::parse(text.as_bytes()).effective_servers();
        assert_eq!(effective(""), [IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(effective(&"nameserver 192.0.2.1\n".repeat(4)).len(), MAX_NAME_SERVERS);
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics_and_keeps_all_bytes(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        ) {
            let conf = ResolvConf::parse(&bytes);
            let kept: Vec<u8> = conf.lines.iter().flat_map(|line| line.bytes).copied().collect();
            proptest::prop_assert_eq!(kept, bytes);
        }
    }
}
