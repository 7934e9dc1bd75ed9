//! Special-use names: answered locally, or by private upstreams only.
//!
//! A public upstream cannot know these names, as they belong to this machine, to this network or to
//! nobody. Forwarding them would disclose what clients of a private network look up, and burden the
//! root and AS112 servers.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use crate::name::{Name, reverse_name};
use crate::wire::{
    self, ExtendedError, HEADER_BYTES, Query, flags, put_opt, put_u16, put_u32, rcode, rtype,
};

/// Reason why a name and all names below it are special.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// This machine (RFC 6761 section 6.3).
    Localhost,
    /// Names that never exist: `invalid` and `onion`.
    ///
    /// RFC 6761 section 6.4, RFC 7686 section 2.
    NonExistent,
    /// The canary domain of Firefox: NXDOMAIN keeps it from using DNS over HTTPS.
    ///
    /// Special only while svcdns is the system's resolver.
    Canary,
    /// Discovery of designated resolvers (RFC 9462).
    ///
    /// An upstream's answer would lead clients around svcdns.
    Designated,
    /// Reverse names of loopback addresses (RFC 6303 section 4).
    ///
    /// Each machine has its own.
    Loopback,
    /// A zone local to each private network (RFC 6303 section 3).
    ///
    /// Only private upstreams are queried; without any, the zone is empty.
    Private,
}

impl Special {
    /// Explains in words why no upstream is queried.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Localhost => "the name means this machine (RFC 6761)",
            Self::NonExistent => "the name never exists (RFC 6761, RFC 7686)",
            Self::Canary => "NXDOMAIN makes Firefox use the system's resolver, which is svcdns",
            Self::Designated => "an upstream's answer would lead clients around svcdns (RFC 9462)",
            Self::Loopback => "every machine has its own loopback addresses (RFC 6303)",
            Self::Private => {
                "the zone is local to a network, and no upstream has a private address (RFC 6303)"
            }
        }
    }

    /// Returns whether the name is answered locally even if its domain has upstreams.
    pub(super) fn is_fixed(self) -> bool {
        matches!(self, Self::Localhost | Self::NonExistent)
    }
}

/// A local answer: why the name is special, and its zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpecialAnswer {
    /// Reason why the name is special.
    pub(super) special: Special,
    /// Offset of the zone in the name's wire form.
    pub(super) zone_offset: usize,
}

/// Special zones in presentation format; [`zones`] adds ranges of reverse zones.
const ZONES: &[(&str, Special)] = &[
    ("localhost", Special::Localhost),
    ("invalid", Special::NonExistent),
    ("onion", Special::NonExistent),
    ("use-application-dns.net", Special::Canary),
    ("resolver.arpa", Special::Designated),
    ("127.in-addr.arpa", Special::Loopback),
    // RFC 8375 section 4, RFC 6762 section 22.1 (although many companies use a zone of that name),
    // and the resolution of ICANN's board of 2024-07-29.
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

/// Iterates over all special zones.
pub(super) fn zones() -> impl Iterator<Item = (Name, Special)> {
    let named = ZONES.iter().map(|(text, special)| ((*text).to_owned(), *special));
    // RFC 6303 section 4.1, and RFC 7793 section 3 for the addresses of RFC 6598.
    let many = (16..=31)
        .map(|n| format!("{n}.172.in-addr.arpa"))
        .chain((64..=127).map(|n| format!("{n}.100.in-addr.arpa")));
    let many = many.map(|text| (text, Special::Private));
    let whole = named
        .chain(many)
        .filter_map(|(text, special)| Some((Name::from_text(&text).ok()?, special)));
    let six = [(Ipv6Addr::UNSPECIFIED, Special::Private), (Ipv6Addr::LOCALHOST, Special::Loopback)];
    whole.chain(six.map(|(address, special)| (reverse_name(address.into()), special)))
}

/// Returns whether all names of `domain` are answered locally.
///
/// Upstreams of such a domain would never be queried.
pub fn is_answered_locally(domain: &Name) -> bool {
    zones().any(|(zone, special)| special.is_fixed() && domain.ends_with(&zone))
}

/// TTL of all local records (RFC 6303 section 3).
const TTL_SECONDS: u32 = 10_800;

/// The reverse names whose PTR record is `localhost`.
static LOOPBACK_REVERSE_NAMES: LazyLock<[Name; 2]> = LazyLock::new(|| {
    [reverse_name(Ipv4Addr::LOCALHOST.into()), reverse_name(Ipv6Addr::LOCALHOST.into())]
});

/// `localhost.` in wire form.
const LOCALHOST: &[u8] = b"\x09localhost\0";

/// `nobody.invalid.` in wire form, the SOA record's mailbox (RFC 6303 section 3).
const SOA_RNAME: &[u8] = b"\x06nobody\x07invalid\0";

/// Content of a local answer.
enum SpecialContent {
    /// NXDOMAIN; the zone's SOA record lets clients cache the answer.
    NxDomain { with_soa: bool },
    /// NOERROR without records.
    NoData,
    /// One record with this RDATA.
    Data(Vec<u8>),
}

impl SpecialAnswer {
    /// Writes the response into the empty `out`; `name` is in lower case.
    ///
    /// The response fits 512 bytes: a name of 255 bytes, an SOA record made of compression
    /// pointers, and OPT.
    pub(super) fn write(self, query: &Query<'_>, name: &Name, out: &mut Vec<u8>) {
        let content = self.content(query, name);
        let (code, counts): (_, [u16; 3]) = match &content {
            SpecialContent::NxDomain { with_soa } => {
                (rcode::NXDOMAIN, [0, u16::from(*with_soa), 0])
            }
            SpecialContent::NoData => (rcode::NOERROR, [0, 1, 0]),
            SpecialContent::Data(_) => (rcode::NOERROR, [1, 0, 0]),
        };
        put_head(query, code, flags::AA, out);
        match &content {
            SpecialContent::NxDomain { with_soa: false } => {}
            SpecialContent::NxDomain { .. } | SpecialContent::NoData => {
                let zone = self.zone();
                out.extend_from_slice(&zone);
                put_record(out, rtype::SOA, &soa(&zone));
            }
            SpecialContent::Data(data) => {
                out.extend_from_slice(&wire::OWNER_POINTER);
                put_record(
                    out,
                    if query.qtype == rtype::ANY { self.any_type() } else { query.qtype },
                    data,
                );
            }
        }
        put_counts(query, counts, out);
        if let Some(edns) = query.edns {
            put_opt(out, code, edns.dnssec_ok, None);
        }
    }

    /// Returns the content of the answer.
    fn content(self, query: &Query<'_>, name: &Name) -> SpecialContent {
        let apex = self.zone_offset == 0;
        let addresses = |qtype| match qtype {
            // ANY is answered with one of the RRsets (RFC 8482 section 4.1).
            rtype::A | rtype::ANY => Some(Ipv4Addr::LOCALHOST.octets().to_vec()),
            rtype::AAAA => Some(Ipv6Addr::LOCALHOST.octets().to_vec()),
            _ => None,
        };
        let data = match self.special {
            Special::NonExistent => return SpecialContent::NxDomain { with_soa: true },
            // Not cacheable, because the canary ends as soon as svcdns is not the system's
            // resolver.
            Special::Canary => return SpecialContent::NxDomain { with_soa: false },
            Special::Localhost => addresses(query.qtype),
            Special::Loopback
                if LOOPBACK_REVERSE_NAMES.contains(name)
                    && matches!(query.qtype, rtype::PTR | rtype::ANY) =>
            {
                Some(LOCALHOST.to_vec())
            }
            _ => None,
        };
        let zone = self.zone();
        match (data, query.qtype) {
            (Some(data), _) => SpecialContent::Data(data),
            (None, rtype::SOA) if apex => SpecialContent::Data(soa(&zone)),
            (None, rtype::NS) if apex => SpecialContent::Data(zone),
            (None, _) if apex || self.exists_below(name) => SpecialContent::NoData,
            (None, _) => SpecialContent::NxDomain { with_soa: true },
        }
    }

    /// Returns whether a name below the zone exists.
    ///
    /// An empty non-terminal does, too (RFC 8020).
    fn exists_below(self, name: &Name) -> bool {
        match self.special {
            // NODATA for all names and types (RFC 9462 section 6.1).
            Special::Localhost | Special::Designated => true,
            Special::Loopback => LOOPBACK_REVERSE_NAMES.iter().any(|known| known.ends_with(name)),
            Special::NonExistent | Special::Canary | Special::Private => false,
        }
    }

    /// Returns the type of the record that answers ANY.
    fn any_type(self) -> u16 {
        if self.special == Special::Loopback { rtype::PTR } else { rtype::A }
    }

    /// Returns the zone's name, as a pointer into the question.
    ///
    /// The zone of nonexistent names is the root.
    fn zone(self) -> Vec<u8> {
        match self.special {
            Special::NonExistent | Special::Canary => vec![0],
            // A name has at most 255 bytes, which 14 bits of a pointer can address.
            _ => (0xC000 | u16::try_from(HEADER_BYTES + self.zone_offset).unwrap_or(0))
                .to_be_bytes()
                .to_vec(),
        }
    }
}

/// Writes a SERVFAIL response with an EDE into the empty `out`.
pub(super) fn put_failure(query: &Query<'_>, error: ExtendedError, out: &mut Vec<u8>) {
    put_head(query, rcode::SERVFAIL, 0, out);
    put_counts(query, [0; 3], out);
    if let Some(edns) = query.edns {
        put_opt(out, rcode::SERVFAIL, edns.dnssec_ok, Some(error));
    }
}

/// Writes a response header with this code and copies the question.
///
/// The section counts remain 0 until [`put_counts`].
fn put_head(query: &Query<'_>, code: u16, extra_flags: u16, out: &mut Vec<u8>) {
    put_u16(out, query.id);
    put_u16(out, query.response_flags(true) | extra_flags | code & 0xF);
    put_u16(out, u16::from(!query.question.is_empty()));
    out.resize(HEADER_BYTES, 0);
    out.extend_from_slice(query.question);
}

/// Writes the section counts, the OPT record included.
fn put_counts(query: &Query<'_>, [answers, authority, additional]: [u16; 3], out: &mut [u8]) {
    for (at, count) in
        [(6, answers), (8, authority), (10, additional + u16::from(query.edns.is_some()))]
    {
        out[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }
}

/// Appends a record without its owner name.
fn put_record(out: &mut Vec<u8>, rtype: u16, data: &[u8]) {
    put_u16(out, rtype);
    put_u16(out, rtype::IN);
    put_u32(out, TTL_SECONDS);
    // The longest data is that of an SOA record.
    put_u16(out, u16::try_from(data.len()).unwrap_or(u16::MAX));
    out.extend_from_slice(data);
}

/// Builds the SOA data of RFC 6303 section 3, with the zone as its server.
fn soa(zone: &[u8]) -> Vec<u8> {
    let mut data = [zone, SOA_RNAME].concat();
    for number in [1, 3600, 1200, 604_800, TTL_SECONDS] {
        put_u32(&mut data, number);
    }
    data
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;

    use super::*;
    use crate::wire::Parsed;

    /// Writes a local answer; returns code, records and authority section owners.
    fn ask(
        text: &str,
        zone: &str,
        special: Special,
        qtype: u16,
    ) -> (String, Vec<String>, Vec<String>) {
        let name = Name::from_text(text).unwrap();
        let mut query = b"\x12\x34\x01\x10\0\x01\0\0\0\0\0\x01".to_vec();
        query.extend(name.as_wire().to_ascii_uppercase());
        put_u16(&mut query, qtype);
        put_u16(&mut query, rtype::IN);
        query.extend_from_slice(b"\0\0\x29\x04\xD0\0\0\x80\0\0\0");
        let Parsed::Query(parsed) = Query::parse(&query) else { panic!("{text}") };
        let zone_offset = name.as_wire().len() - Name::from_text(zone).unwrap().as_wire().len();
        let mut out = Vec::new();
        SpecialAnswer { special, zone_offset }.write(&parsed, &name, &mut out);
        assert!(out.len() <= wire::MAX_UDP_BYTES_WITHOUT_EDNS);
        let message = Message::from_vec(&out).unwrap();
        assert_eq!(message.metadata.id, 0x1234);
        assert!(
            message.metadata.recursion_available
                && message.metadata.recursion_desired
                && message.metadata.checking_disabled
        );
        assert_eq!(&out[HEADER_BYTES..HEADER_BYTES + parsed.question.len()], parsed.question);
        assert!(message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok));
        let answers = message
            .answers
            .iter()
            .map(|record| format!("{} {}", record.record_type(), record.data))
            .collect();
        let authority = message
            .authorities
            .iter()
            .map(|record| record.name.to_string().to_lowercase())
            .collect();
        (message.metadata.response_code.to_str().to_owned(), answers, authority)
    }

    #[test]
    fn special_names_get_their_answers() {
        let soa = "SOA 10.IN-ADDR.ARPA. nobody.invalid. 1 3600 1200 604800 10800";
        let (no_error, missing) = ("No Error", "Non-Existent Domain");
        for (text, zone, special, qtype, code, answers, authority) in [
            ("localhost", "localhost", Special::Localhost, rtype::A, no_error, "A 127.0.0.1", ""),
            (
                "a.b.localhost",
                "localhost",
                Special::Localhost,
                rtype::AAAA,
                no_error,
                "AAAA ::1",
                "",
            ),
            (
                "a.localhost",
                "localhost",
                Special::Localhost,
                rtype::ANY,
                no_error,
                "A 127.0.0.1",
                "",
            ),
            (
                "a.localhost",
                "localhost",
                Special::Localhost,
                rtype::TXT,
                no_error,
                "",
                "localhost.",
            ),
            ("invalid", "invalid", Special::NonExistent, rtype::A, missing, "", "."),
            ("a.onion", "onion", Special::NonExistent, rtype::SOA, missing, "", "."),
            (
                "use-application-dns.net",
                "use-application-dns.net",
                Special::Canary,
                rtype::A,
                missing,
                "",
                "",
            ),
            (
                "resolver.arpa",
                "resolver.arpa",
                Special::Designated,
                rtype::A,
                no_error,
                "",
                "resolver.arpa.",
            ),
            (
                "_dns.resolver.arpa",
                "resolver.arpa",
                Special::Designated,
                64,
                no_error,
                "",
                "resolver.arpa.",
            ),
            ("10.in-addr.arpa", "10.in-addr.arpa", Special::Private, rtype::SOA, no_error, soa, ""),
            (
                "10.in-addr.arpa",
                "10.in-addr.arpa",
                Special::Private,
                rtype::NS,
                no_error,
                "NS 10.IN-ADDR.ARPA.",
                "",
            ),
            (
                "10.in-addr.arpa",
                "10.in-addr.arpa",
                Special::Private,
                rtype::PTR,
                no_error,
                "",
                "10.in-addr.arpa.",
            ),
            (
                "1.0.0.10.in-addr.arpa",
                "10.in-addr.arpa",
                Special::Private,
                rtype::PTR,
                missing,
                "",
                "10.in-addr.arpa.",
            ),
            (
                "1.0.0.127.in-addr.arpa",
                "127.in-addr.arpa",
                Special::Loopback,
                rtype::PTR,
                no_error,
                "PTR localhost.",
                "",
            ),
            (
                "1.0.0.127.in-addr.arpa",
                "127.in-addr.arpa",
                Special::Loopback,
                rtype::ANY,
                no_error,
                "PTR localhost.",
                "",
            ),
            (
                "1.0.0.127.in-addr.arpa",
                "127.in-addr.arpa",
                Special::Loopback,
                rtype::A,
                no_error,
                "",
                "127.in-addr.arpa.",
            ),
            (
                "0.127.in-addr.arpa",
                "127.in-addr.arpa",
                Special::Loopback,
                rtype::PTR,
                no_error,
                "",
                "127.in-addr.arpa.",
            ),
            (
                "2.0.0.127.in-addr.arpa",
                "127.in-addr.arpa",
                Special::Loopback,
                rtype::PTR,
                missing,
                "",
                "127.in-addr.arpa.",
            ),
        ] {
            let list =
                |text: &str| if text.is_empty() { Vec::new() } else { vec![text.to_owned()] };
            assert_eq!(
                ask(text, zone, special, qtype),
                (code.to_owned(), list(answers), list(authority)),
                "{text} {qtype}"
            );
        }
    }

    #[test]
    fn responses_have_no_opt_without_edns() {
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x05onion\0\0\x01\0\x01";
        let Parsed::Query(parsed) = Query::parse(query) else { panic!("no query") };
        let (name, mut out) = (Name::from_text("a.onion").unwrap(), Vec::new());
        SpecialAnswer { special: Special::NonExistent, zone_offset: 2 }
            .write(&parsed, &name, &mut out);
        assert!(Message::from_vec(&out).unwrap().edns.is_none());
        out.clear();
        put_failure(&parsed, ExtendedError { code: 22, text: "why" }, &mut out);
        let message = Message::from_vec(&out).unwrap();
        assert_eq!(
            (message.metadata.response_code.to_str(), message.edns.is_none()),
            ("Server Failure", true)
        );
    }

    #[test]
    fn special_zones_are_distinct() {
        let mut zones: Vec<_> = zones().map(|(zone, _)| zone).collect();
        assert_eq!(zones.len(), ZONES.len() + 16 + 64 + 2);
        zones.sort();
        zones.dedup();
        assert_eq!(zones.len(), ZONES.len() + 16 + 64 + 2);
    }
}
