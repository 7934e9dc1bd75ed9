//! Names that are answered here, or by upstreams in private address space alone, whatever upstreams there are.
//!
//! Each stands for something that a public upstream cannot know: this machine, this network, or nothing at all. Asking one
//! all the same tells it what is asked for in a private network, and costs the root and AS112 servers a question.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use crate::name::{Name, reverse_name};
use crate::wire::{self, ExtendedError, HEADER_BYTES, Query, flags, put_opt, put_u16, put_u32, rcode, rtype};

/// What is special about a name and all names below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// This machine (RFC 6761 section 6.3).
    Localhost,
    /// No such name, ever: `invalid` (RFC 6761 section 6.4), `onion` (RFC 7686 section 2).
    Missing,
    /// What Firefox asks for to learn whether it may resolve names elsewhere than the system does: NXDOMAIN keeps it here.
    /// Only while svcdns is the system's resolver.
    Canary,
    /// Where a resolver says how else it can be asked (RFC 9462): an upstream's word would lead clients around svcdns.
    Designated,
    /// Reverse names of loopback addresses: every machine has its own (RFC 6303 section 4).
    Loopback,
    /// A zone that each private network has its own of: asked for in private address space alone, else empty
    /// (RFC 6303 section 3).
    Private,
}

impl Special {
    /// Why no upstream is asked, for people.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Localhost => "it is this machine (RFC 6761)",
            Self::Missing => "no such name ever exists (RFC 6761, RFC 7686)",
            Self::Canary => "NXDOMAIN keeps Firefox with the system's resolver, which svcdns is",
            Self::Designated => "an upstream's word would lead clients around svcdns (RFC 9462)",
            Self::Loopback => "every machine has its own loopback addresses (RFC 6303)",
            Self::Private => "each private network has its own, and no upstream is in private address space (RFC 6303)",
        }
    }

    /// Whether not even an upstream named for the domain is asked.
    pub(super) fn is_fixed(self) -> bool {
        matches!(self, Self::Localhost | Self::Missing)
    }
}

/// An answer of ours: what is special, and the zone it is special for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// What is special.
    pub(super) special: Special,
    /// How many octets of the name stand in front of the zone.
    pub(super) front: usize,
}

/// The zones, in presentation form. Reverse zones with many neighbours are made by [`all`].
const ZONES: &[(&str, Special)] = &[
    ("localhost", Special::Localhost),
    ("invalid", Special::Missing),
    ("onion", Special::Missing),
    ("use-application-dns.net", Special::Canary),
    ("resolver.arpa", Special::Designated),
    ("127.in-addr.arpa", Special::Loopback),
    // RFC 8375 section 4, RFC 6762 section 22.1 (many companies have a zone of that name all the same), and ICANN's board of
    // 2024-07-29.
    ("home.arpa", Special::Private),
    ("local", Special::Private),
    ("internal", Special::Private),
    // RFC 6303 sections 4.1 to 4.6.
    ("10.in-addr.arpa", Special::Private),
    ("168.192.in-addr.arpa", Special::Private),
    ("0.in-addr.arpa", Special::Private),
    ("254.169.in-addr.arpa", Special::Private),
    ("2.0.192.in-addr.arpa", Special::Private),
    ("100.51.198.in-addr.arpa", Special::Private),
    ("113.0.203.in-addr.arpa", Special::Private),
    ("255.255.255.255.in-addr.arpa", Special::Private),
    ("d.f.ip6.arpa", Special::Private),
    ("8.e.f.ip6.arpa", Special::Private),
    ("9.e.f.ip6.arpa", Special::Private),
    ("a.e.f.ip6.arpa", Special::Private),
    ("b.e.f.ip6.arpa", Special::Private),
    ("8.b.d.0.1.0.0.2.ip6.arpa", Special::Private),
];

/// Every special zone.
pub(super) fn all() -> impl Iterator<Item = (Name, Special)> {
    let named = ZONES.iter().map(|(text, special)| ((*text).to_owned(), *special));
    // RFC 6303 section 4.1, and RFC 7793 section 3 for the addresses of RFC 6598.
    let many = (16..=31).map(|n| format!("{n}.172.in-addr.arpa")).chain((64..=127).map(|n| format!("{n}.100.in-addr.arpa")));
    let many = many.map(|text| (text, Special::Private));
    let whole = named.chain(many).filter_map(|(text, special)| Some((Name::from_text(&text).ok()?, special)));
    let six = [(Ipv6Addr::UNSPECIFIED, Special::Private), (Ipv6Addr::LOCALHOST, Special::Loopback)];
    whole.chain(six.map(|(address, special)| (reverse_name(address.into()), special)))
}

/// Whether names in this domain are always answered here, so that naming upstreams for it would be in vain.
pub fn answered_here(domain: &Name) -> bool {
    all().any(|(zone, special)| special.is_fixed() && domain.ends_with(&zone))
}

/// TTL of everything said here, seconds: that of RFC 6303 section 3.
const TTL: u32 = 10_800;

/// The reverse names that lead to `localhost`.
static LOOPBACK: LazyLock<[Name; 2]> =
    LazyLock::new(|| [reverse_name(Ipv4Addr::LOCALHOST.into()), reverse_name(Ipv6Addr::LOCALHOST.into())]);

/// `localhost.`
const LOCALHOST: &[u8] = b"\x09localhost\0";

/// `nobody.invalid.`, who is responsible (RFC 6303 section 3).
const NOBODY: &[u8] = b"\x06nobody\x07invalid\0";

/// What an answer of ours holds.
enum Says {
    /// No such name; the zone's SOA goes with it, where it may be remembered.
    NoName { remembered: bool },
    /// No record of this type.
    NoData,
    /// This record's data.
    Data(Vec<u8>),
}

impl Answer {
    /// Writes the response to `query`, whose name is `name` in lower case, into `out`, which is empty. It fits the smallest
    /// datagram: a name of 255 octets, a SOA record of pointers, and OPT.
    pub(super) fn write(self, query: &Query<'_>, name: &Name, out: &mut Vec<u8>) {
        let says = self.says(query, name);
        let (code, counts): (_, [u16; 3]) = match &says {
            Says::NoName { remembered } => (rcode::NXDOMAIN, [0, u16::from(*remembered), 0]),
            Says::NoData => (rcode::NOERROR, [0, 1, 0]),
            Says::Data(_) => (rcode::NOERROR, [1, 0, 0]),
        };
        put_head(query, code, flags::AA, out);
        match &says {
            Says::NoName { remembered: false } => {}
            Says::NoName { .. } | Says::NoData => {
                let zone = self.zone();
                out.extend_from_slice(&zone);
                put_record(out, rtype::SOA, &soa(&zone));
            }
            Says::Data(data) => {
                out.extend_from_slice(&wire::OWNER_POINTER);
                put_record(out, if query.qtype == rtype::ANY { self.any_type() } else { query.qtype }, data);
            }
        }
        put_counts(query, counts, out);
        if let Some(edns) = query.edns {
            put_opt(out, code, edns.dnssec_ok, None);
        }
    }

    fn says(self, query: &Query<'_>, name: &Name) -> Says {
        let apex = self.front == 0;
        let addresses = |qtype| match qtype {
            // RFC 8482 section 4.1: ANY gets one RRset of those there are.
            rtype::A | rtype::ANY => Some(Ipv4Addr::LOCALHOST.octets().to_vec()),
            rtype::AAAA => Some(Ipv6Addr::LOCALHOST.octets().to_vec()),
            _ => None,
        };
        let data = match self.special {
            Special::Missing => return Says::NoName { remembered: true },
            // Not to be remembered: it ends when svcdns is the system's resolver no more.
            Special::Canary => return Says::NoName { remembered: false },
            Special::Localhost => addresses(query.qtype),
            Special::Loopback if LOOPBACK.contains(name) && matches!(query.qtype, rtype::PTR | rtype::ANY) => Some(LOCALHOST.to_vec()),
            _ => None,
        };
        let zone = self.zone();
        match (data, query.qtype) {
            (Some(data), _) => Says::Data(data),
            (None, rtype::SOA) if apex => Says::Data(soa(&zone)),
            (None, rtype::NS) if apex => Says::Data(zone),
            (None, _) if apex || self.exists_below(name) => Says::NoData,
            (None, _) => Says::NoName { remembered: true },
        }
    }

    /// Whether a name below the zone exists (RFC 8020: also when only names below it do).
    fn exists_below(self, name: &Name) -> bool {
        match self.special {
            // RFC 9462 section 6.1: NODATA for all of it.
            Special::Localhost | Special::Designated => true,
            Special::Loopback => LOOPBACK.iter().any(|known| known.ends_with(name)),
            Special::Missing | Special::Canary | Special::Private => false,
        }
    }

    /// The type that ANY is answered with.
    fn any_type(self) -> u16 {
        if self.special == Special::Loopback { rtype::PTR } else { rtype::A }
    }

    /// The zone's name: a pointer into the question. What does not exist at all has the root for its zone.
    fn zone(self) -> Vec<u8> {
        match self.special {
            Special::Missing | Special::Canary => vec![0],
            // A name has at most 255 octets, a pointer 14 bits.
            _ => (0xC000 | u16::try_from(HEADER_BYTES + self.front).unwrap_or(0)).to_be_bytes().to_vec(),
        }
    }
}

/// Writes SERVFAIL with this reason into `out`, which is empty.
pub(super) fn put_failure(query: &Query<'_>, error: ExtendedError, out: &mut Vec<u8>) {
    put_head(query, rcode::SERVFAIL, 0, out);
    put_counts(query, [0; 3], out);
    if let Some(edns) = query.edns {
        put_opt(out, rcode::SERVFAIL, edns.dnssec_ok, Some(error));
    }
}

/// Writes the header of a response with this code, and echoes the question; counts are put by [`put_counts`].
fn put_head(query: &Query<'_>, code: u16, more: u16, out: &mut Vec<u8>) {
    put_u16(out, query.id);
    put_u16(out, flags::QR | flags::RA | more | query.flags & (flags::OPCODE | flags::RD | flags::CD) | code & 0xF);
    put_u16(out, u16::from(!query.question.is_empty()));
    out.resize(HEADER_BYTES, 0);
    out.extend_from_slice(query.question);
}

/// Writes the numbers of records, OPT's besides.
fn put_counts(query: &Query<'_>, [answers, authority, additional]: [u16; 3], out: &mut [u8]) {
    for (at, count) in [(6, answers), (8, authority), (10, additional + u16::from(query.edns.is_some()))] {
        out[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }
}

/// Appends what follows a record's owner.
fn put_record(out: &mut Vec<u8>, rtype: u16, data: &[u8]) {
    put_u16(out, rtype);
    put_u16(out, rtype::IN);
    put_u32(out, TTL);
    // At most a SOA's.
    put_u16(out, u16::try_from(data.len()).unwrap_or(u16::MAX));
    out.extend_from_slice(data);
}

/// The data of the SOA record of RFC 6303 section 3: the zone itself as its server.
fn soa(zone: &[u8]) -> Vec<u8> {
    let mut data = [zone, NOBODY].concat();
    for number in [1, 3600, 1200, 604_800, TTL] {
        put_u32(&mut data, number);
    }
    data
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;

    use super::*;
    use crate::wire::Parsed;

    /// A question with EDNS for this name and type, answered: code, answers, owners of the authority section's records.
    fn ask(text: &str, zone: &str, special: Special, qtype: u16) -> (String, Vec<String>, Vec<String>) {
        let name = Name::from_text(text).unwrap();
        let mut query = b"\x12\x34\x01\x10\0\x01\0\0\0\0\0\x01".to_vec();
        query.extend(name.as_wire().to_ascii_uppercase());
        put_u16(&mut query, qtype);
        put_u16(&mut query, rtype::IN);
        query.extend_from_slice(b"\0\0\x29\x04\xD0\0\0\x80\0\0\0");
        let Parsed::Query(parsed) = Query::parse(&query) else { panic!("{text}") };
        let front = name.as_wire().len() - Name::from_text(zone).unwrap().as_wire().len();
        let mut out = Vec::new();
        Answer { special, front }.write(&parsed, &name, &mut out);
        assert!(out.len() <= wire::MAX_UDP_BYTES_WITHOUT_EDNS);
        let message = Message::from_vec(&out).unwrap();
        assert_eq!(message.metadata.id, 0x1234);
        assert!(message.metadata.recursion_available && message.metadata.recursion_desired && message.metadata.checking_disabled);
        assert_eq!(&out[HEADER_BYTES..HEADER_BYTES + parsed.question.len()], parsed.question);
        assert!(message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok));
        let answers = message.answers.iter().map(|record| format!("{} {}", record.record_type(), record.data)).collect();
        let authority = message.authorities.iter().map(|record| record.name.to_string().to_lowercase()).collect();
        (message.metadata.response_code.to_str().to_owned(), answers, authority)
    }

    #[test]
    fn what_is_said_of_special_names() {
        let soa = "SOA 10.IN-ADDR.ARPA. nobody.invalid. 1 3600 1200 604800 10800";
        let (no_error, missing) = ("No Error", "Non-Existent Domain");
        for (text, zone, special, qtype, code, answers, authority) in [
            ("localhost", "localhost", Special::Localhost, rtype::A, no_error, "A 127.0.0.1", ""),
            ("a.b.localhost", "localhost", Special::Localhost, rtype::AAAA, no_error, "AAAA ::1", ""),
            ("a.localhost", "localhost", Special::Localhost, rtype::ANY, no_error, "A 127.0.0.1", ""),
            ("a.localhost", "localhost", Special::Localhost, rtype::TXT, no_error, "", "localhost."),
            ("invalid", "invalid", Special::Missing, rtype::A, missing, "", "."),
            ("a.onion", "onion", Special::Missing, rtype::SOA, missing, "", "."),
            ("use-application-dns.net", "use-application-dns.net", Special::Canary, rtype::A, missing, "", ""),
            ("resolver.arpa", "resolver.arpa", Special::Designated, rtype::A, no_error, "", "resolver.arpa."),
            ("_dns.resolver.arpa", "resolver.arpa", Special::Designated, 64, no_error, "", "resolver.arpa."),
            ("10.in-addr.arpa", "10.in-addr.arpa", Special::Private, rtype::SOA, no_error, soa, ""),
            ("10.in-addr.arpa", "10.in-addr.arpa", Special::Private, rtype::NS, no_error, "NS 10.IN-ADDR.ARPA.", ""),
            ("10.in-addr.arpa", "10.in-addr.arpa", Special::Private, rtype::PTR, no_error, "", "10.in-addr.arpa."),
            ("1.0.0.10.in-addr.arpa", "10.in-addr.arpa", Special::Private, rtype::PTR, missing, "", "10.in-addr.arpa."),
            ("1.0.0.127.in-addr.arpa", "127.in-addr.arpa", Special::Loopback, rtype::PTR, no_error, "PTR localhost.", ""),
            ("1.0.0.127.in-addr.arpa", "127.in-addr.arpa", Special::Loopback, rtype::ANY, no_error, "PTR localhost.", ""),
            ("1.0.0.127.in-addr.arpa", "127.in-addr.arpa", Special::Loopback, rtype::A, no_error, "", "127.in-addr.arpa."),
            ("0.127.in-addr.arpa", "127.in-addr.arpa", Special::Loopback, rtype::PTR, no_error, "", "127.in-addr.arpa."),
            ("2.0.0.127.in-addr.arpa", "127.in-addr.arpa", Special::Loopback, rtype::PTR, missing, "", "127.in-addr.arpa."),
        ] {
            let list = |text: &str| if text.is_empty() { Vec::new() } else { vec![text.to_owned()] };
            assert_eq!(ask(text, zone, special, qtype), (code.to_owned(), list(answers), list(authority)), "{text} {qtype}");
        }
    }

    #[test]
    fn without_edns_there_is_none_in_return() {
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x05onion\0\0\x01\0\x01";
        let Parsed::Query(parsed) = Query::parse(query) else { panic!("no query") };
        let (name, mut out) = (Name::from_text("a.onion").unwrap(), Vec::new());
        Answer { special: Special::Missing, front: 2 }.write(&parsed, &name, &mut out);
        assert!(Message::from_vec(&out).unwrap().edns.is_none());
        out.clear();
        put_failure(&parsed, ExtendedError { code: 22, text: "why" }, &mut out);
        let message = Message::from_vec(&out).unwrap();
        assert_eq!((message.metadata.response_code.to_str(), message.edns.is_none()), ("Server Failure", true));
    }

    #[test]
    fn the_table_holds_each_zone_once() {
        let mut zones: Vec<_> = all().map(|(zone, _)| zone).collect();
        assert_eq!(zones.len(), ZONES.len() + 16 + 64 + 2);
        zones.sort();
        zones.dedup();
        assert_eq!(zones.len(), ZONES.len() + 16 + 64 + 2);
    }
}
