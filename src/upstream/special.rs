//! Special-use names: answered locally, or by private upstreams only.
//!
//! A public upstream cannot know these names, because they belong to this machine, to this network
//! or to nobody. Forwarding them would disclose the names that clients of a private network look
//! up, and burden the root and AS112 servers.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::name::{Name, ReverseScope, local_reverse_zones};
use crate::wire::{
    self, ExtendedError, HEADER_BYTES, Query, flags, put_opt, put_u16, put_u32, question_pointer,
    rcode, rtype,
};

/// Reason why a name and all names below it are special.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// Names of this machine (RFC 6761 section 6.3).
    Localhost,
    /// Names that never exist: `invalid` and `onion`.
    ///
    /// RFC 6761 section 6.4, RFC 7686 section 2.
    NonExistent,
    /// The canary domain of Firefox; NXDOMAIN keeps Firefox from using DNS over HTTPS.
    ///
    /// It is special only while svcdns is the system's resolver.
    Canary,
    /// Names for the discovery of designated resolvers (RFC 9462).
    ///
    /// An upstream's answer would make clients bypass svcdns.
    Designated,
    /// Reverse names of loopback addresses (RFC 6303 section 4).
    ///
    /// Each machine has its own loopback addresses.
    Loopback,
    /// Reverse names of private addresses (RFC 6303 section 4).
    ///
    /// Only private upstreams are queried; without any, only registered addresses have names.
    PrivateReverse,
    /// Another zone local to each private network.
    ///
    /// Only private upstreams are queried; without any, the zone is empty.
    Private,
    /// A single-label name in an address query: a host name of the local network.
    ///
    /// Only private upstreams are queried; without any, the name does not exist.
    SingleLabel,
    /// A token of the loop guard that an upstream has sent back.
    ///
    /// NXDOMAIN ends the query, while some resolvers would repeat a query that fails.
    LoopToken,
}

impl Special {
    /// Explains in words why no upstream is queried.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Localhost => "the name means this machine (RFC 6761)",
            Self::NonExistent => "the name never exists (RFC 6761, RFC 7686)",
            Self::Canary => "NXDOMAIN makes Firefox use the system's resolver, which is svcdns",
            Self::Designated => "an upstream's answer would make clients bypass svcdns (RFC 9462)",
            Self::Loopback => "every machine has its own loopback addresses (RFC 6303)",
            Self::PrivateReverse => {
                "the zone is local to a network, and no upstream there is known (RFC 6303)"
            }
            Self::Private => "the zone is local to a network, and no upstream there is known",
            Self::LoopToken => "svcdns itself has sent this query",
            Self::SingleLabel => {
                "addresses of a single-label name: set forward-single-label to forward it"
            }
        }
    }

    /// Returns whether upstreams with private addresses are queried.
    pub(super) fn is_local_to_network(self) -> bool {
        matches!(self, Self::PrivateReverse | Self::Private | Self::SingleLabel)
    }

    /// Returns whether the name is in the reverse tree, which has registered addresses.
    pub(super) fn is_reverse(self) -> bool {
        matches!(self, Self::Loopback | Self::PrivateReverse)
    }

    /// Returns whether the name is answered locally even if its domain has upstreams.
    pub(super) fn is_fixed(self) -> bool {
        matches!(self, Self::Localhost | Self::NonExistent)
    }
}

/// A local answer: the reason why the name is special, and its zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpecialAnswer {
    /// Reason why the name is special.
    pub(super) special: Special,
    /// Offset of the zone in the name's wire form.
    pub(super) zone_offset: usize,
}

/// Special zones outside the reverse tree, in presentation format.
const ZONES: &[(&str, Special)] = &[
    ("localhost", Special::Localhost),
    ("invalid", Special::NonExistent),
    ("onion", Special::NonExistent),
    ("use-application-dns.net", Special::Canary),
    ("resolver.arpa", Special::Designated),
    // The sources are RFC 8375 section 4, RFC 6762 section 22.1 (although many companies use a zone
    // of that name), and the resolution of ICANN's board of 2024-07-29.
    ("home.arpa", Special::Private),
    ("local", Special::Private),
    ("internal", Special::Private),
];

/// Iterates over all special zones.
pub(super) fn zones() -> impl Iterator<Item = (Name, Special)> {
    let named =
        ZONES.iter().filter_map(|(text, special)| Some((Name::from_text(text).ok()?, *special)));
    named.chain(local_reverse_zones().map(|(zone, scope)| match scope {
        ReverseScope::Loopback => (zone, Special::Loopback),
        ReverseScope::Private => (zone, Special::PrivateReverse),
    }))
}

/// Returns whether all names of `domain` are answered locally.
///
/// Upstreams configured for such a domain would never be queried.
pub fn is_answered_locally(domain: &Name) -> bool {
    zones().any(|(zone, special)| special.is_fixed() && domain.ends_with(&zone))
}

/// TTL of positive local answers, in seconds (RFC 6303 section 3).
const LOCAL_TTL_SECONDS: u32 = 10_800;

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
    /// Writes the response for a name outside the reverse tree into the empty `out`.
    ///
    /// Negative answers and SOA records have the TTL `negative_ttl`, in seconds, because other
    /// upstreams may know the name. The response fits the smallest UDP response, even with a name
    /// of 255 bytes: the SOA record consists of compression pointers.
    pub(super) fn write(self, query: &Query<'_>, negative_ttl: u32, out: &mut Vec<u8>) {
        let content = self.content(query, negative_ttl);
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
                put_record(out, rtype::SOA, negative_ttl, &soa(&zone, negative_ttl));
            }
            SpecialContent::Data(data) => {
                out.extend_from_slice(&wire::OWNER_POINTER);
                let (rtype, ttl) = match query.qtype {
                    rtype::ANY => (rtype::A, LOCAL_TTL_SECONDS),
                    rtype::SOA => (rtype::SOA, negative_ttl),
                    other => (other, LOCAL_TTL_SECONDS),
                };
                put_record(out, rtype, ttl, data);
            }
        }
        put_counts(query, counts, out);
        if let Some(edns) = query.edns {
            put_opt(out, code, edns.dnssec_ok, None);
        }
    }

    /// Returns the content of the answer.
    fn content(self, query: &Query<'_>, negative_ttl: u32) -> SpecialContent {
        let apex = self.zone_offset == 0;
        let addresses = |qtype| match qtype {
            // ANY is answered with one of the RRsets (RFC 8482 section 4.1).
            rtype::A | rtype::ANY => Some(Ipv4Addr::LOCALHOST.octets().to_vec()),
            rtype::AAAA => Some(Ipv6Addr::LOCALHOST.octets().to_vec()),
            _ => None,
        };
        let data = match self.special {
            Special::NonExistent | Special::SingleLabel => {
                return SpecialContent::NxDomain { with_soa: true };
            }
            // These answers are not cacheable: the canary ends once svcdns is not the system's
            // resolver, and a token is used once.
            Special::Canary | Special::LoopToken => {
                return SpecialContent::NxDomain { with_soa: false };
            }
            Special::Localhost => addresses(query.qtype),
            _ => None,
        };
        let zone = self.zone();
        match (data, query.qtype) {
            (Some(data), _) => SpecialContent::Data(data),
            (None, rtype::SOA) if apex => SpecialContent::Data(soa(&zone, negative_ttl)),
            (None, rtype::NS) if apex => SpecialContent::Data(zone),
            (None, _) if apex || self.exists_below() => SpecialContent::NoData,
            (None, _) => SpecialContent::NxDomain { with_soa: true },
        }
    }

    /// Returns whether all names below the zone exist.
    fn exists_below(self) -> bool {
        // All names below resolver.arpa have NODATA for all types (RFC 9462 section 6.1).
        matches!(self.special, Special::Localhost | Special::Designated)
    }

    /// Returns the zone's name as a pointer into the question section.
    ///
    /// The zone of nonexistent top-level names is the root.
    fn zone(self) -> Vec<u8> {
        match self.special {
            Special::NonExistent | Special::Canary | Special::SingleLabel | Special::LoopToken => {
                vec![0]
            }
            _ => question_pointer(self.zone_offset).to_vec(),
        }
    }
}

/// Writes a SERVFAIL response with an EDE into the empty `out`.
pub(super) fn put_failure(query: &Query<'_>, error: ExtendedError<'_>, out: &mut Vec<u8>) {
    put_head(query, rcode::SERVFAIL, 0, out);
    put_counts(query, [0; 3], out);
    if let Some(edns) = query.edns {
        put_opt(out, rcode::SERVFAIL, edns.dnssec_ok, Some(error));
    }
}

/// Writes a response header with this code, and copies the question.
///
/// The section counts remain 0 until [`put_counts`].
fn put_head(query: &Query<'_>, code: u16, extra_flags: u16, out: &mut Vec<u8>) {
    put_u16(out, query.id);
    put_u16(out, query.response_flags(true) | extra_flags | code & 0xF);
    put_u16(out, u16::from(!query.question.is_empty()));
    out.resize(HEADER_BYTES, 0);
    out.extend_from_slice(query.question);
}

/// Writes the section counts, including the OPT record.
fn put_counts(query: &Query<'_>, [answers, authority, additional]: [u16; 3], out: &mut [u8]) {
    for (at, count) in
        [(6, answers), (8, authority), (10, additional + u16::from(query.edns.is_some()))]
    {
        out[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }
}

/// Appends a record without its owner name.
fn put_record(out: &mut Vec<u8>, rtype: u16, ttl: u32, data: &[u8]) {
    put_u16(out, rtype);
    put_u16(out, rtype::IN);
    put_u32(out, ttl);
    // The longest data is that of an SOA record, far below 64 KiB.
    put_u16(out, u16::try_from(data.len()).unwrap_or(u16::MAX));
    out.extend_from_slice(data);
}

/// Builds the SOA data of RFC 6303 section 3, with the zone as its server.
///
/// MINIMUM is the TTL of negative answers, in seconds (RFC 2308 section 5).
fn soa(zone: &[u8], negative_ttl: u32) -> Vec<u8> {
    let mut data = [zone, SOA_RNAME].concat();
    for number in [1, 3600, 1200, 604_800, negative_ttl] {
        put_u32(&mut data, number);
    }
    data
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;

    use super::*;
    use crate::wire::Parsed;

    /// TTL of negative answers in these tests, in seconds.
    const NEGATIVE_TTL: u32 = 7;

    /// Writes a local answer; returns its code, records and authority-section owners.
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
        SpecialAnswer { special, zone_offset }.write(&parsed, NEGATIVE_TTL, &mut out);
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
        assert!(message.authorities.iter().all(|record| record.ttl == NEGATIVE_TTL));
        let authority = message
            .authorities
            .iter()
            .map(|record| record.name.to_string().to_lowercase())
            .collect();
        (message.metadata.response_code.to_str().to_owned(), answers, authority)
    }

    #[test]
    fn special_names_get_their_documented_answers() {
        let soa = "SOA HOME.ARPA. nobody.invalid. 1 3600 1200 604800 7";
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
            ("home.arpa", "home.arpa", Special::Private, rtype::SOA, no_error, soa, ""),
            ("home.arpa", "home.arpa", Special::Private, rtype::NS, no_error, "NS HOME.ARPA.", ""),
            ("home.arpa", "home.arpa", Special::Private, rtype::PTR, no_error, "", "home.arpa."),
            ("nas.home.arpa", "home.arpa", Special::Private, rtype::A, missing, "", "home.arpa."),
            ("printer", "printer", Special::SingleLabel, rtype::AAAA, missing, "", "."),
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
        let mut out = Vec::new();
        SpecialAnswer { special: Special::NonExistent, zone_offset: 2 }.write(
            &parsed,
            NEGATIVE_TTL,
            &mut out,
        );
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
        let count = zones.len();
        assert_eq!(count, ZONES.len() + local_reverse_zones().count());
        zones.sort();
        zones.dedup();
        assert_eq!(zones.len(), count);
    }
}
