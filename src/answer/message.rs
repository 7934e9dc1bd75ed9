//! A response message, put together from ready-made pieces.

use std::collections::HashSet;

use super::record::RRset;
use super::{Answers, Settings};
use crate::wire::{self, ExtendedError, HEADER, Query, Transport, flags, put_opt, put_u16, rcode, rtype, u16_at};

/// What a response says, before it is known what fits.
#[derive(Debug)]
pub(super) struct Response<'a> {
    /// The response code; its upper bits go into OPT.
    pub(super) rcode: u16,
    /// Whether it comes from a zone served here.
    pub(super) authoritative: bool,
    /// The answer section.
    pub(super) answers: RRset<'a>,
    /// The authority section's SOA; empty for none.
    pub(super) authority: &'a [u8],
    /// An extended error, told to those who speak EDNS.
    pub(super) error: Option<ExtendedError>,
}

impl<'a> Response<'a> {
    /// A response without records, from outside the zones.
    pub(super) fn code(rcode: u16, error: Option<ExtendedError>) -> Self {
        Self { rcode, authoritative: false, answers: RRset::EMPTY, authority: &[], error }
    }

    /// An authoritative answer.
    pub(super) fn answer(answers: RRset<'a>, error: Option<ExtendedError>) -> Self {
        Self { rcode: rcode::NOERROR, authoritative: true, answers, authority: &[], error }
    }

    /// An authoritative answer that there is nothing, or no such name (RFC 2308 section 2).
    pub(super) fn negative(rcode: u16, soa: &'a [u8], error: Option<ExtendedError>) -> Self {
        Self { rcode, authoritative: true, answers: RRset::EMPTY, authority: soa, error }
    }
}

/// Writes the response to `query` into `out`, which is empty; returns how many records of the answer it left out.
///
/// As many records as fit, in an order drawn by weight. When not all do, TC says so over UDP, and the OPT and what fits
/// stay: stubs without TCP still have addresses. Glue takes what room is left and never causes TC (RFC 2181 section 9).
pub(super) fn write(
    response: &Response<'_>,
    query: &Query<'_>,
    transport: Transport,
    settings: &Settings,
    draw: u64,
    out: &mut Vec<u8>,
) -> usize {
    let Response { rcode, authoritative, answers: set, authority, error } = response;
    let opt = query.edns.map_or(0, |_| wire::opt_len(*error));
    let room = query.limit(transport).saturating_sub(opt);
    header(query, *rcode, *authoritative, settings.forwarding, out);

    let answers = settings.answers;
    let wanted = match answers {
        Answers::Count(most) => set.count.min(usize::from(most.get())),
        Answers::All | Answers::Fit => set.count,
    };
    let space = room.saturating_sub(out.len());
    let all = wanted == set.count && set.octets(space) <= space;
    // No record is smaller than owner, type, class, TTL and length.
    let order = set.order(all, wanted.min(space / 12 + 1), draw);
    let mut put = 0;
    let mut glued = Vec::new();
    for index in order.take(wanted) {
        let (head, record, glue) = set.unit(index);
        if out.len() + head.len() + record.len() > room {
            break;
        }
        out.extend_from_slice(head);
        out.extend_from_slice(record);
        put += 1;
        if !glue.is_empty() {
            glued.push((record, glue));
        }
    }
    let truncated = put < wanted && transport == Transport::Udp && answers != Answers::Fit;
    let authority = if out.len() + authority.len() <= room { *authority } else { &[] };
    out.extend_from_slice(authority);
    let mut additional = put_glue(&glued, room, out);
    if query.edns.is_some() {
        put_opt(out, *rcode, query.edns.is_some_and(|edns| edns.dnssec_ok), *error);
        additional += 1;
    }

    if truncated {
        out[2] |= flags::TC.to_be_bytes()[0];
    }
    for (at, count) in [(6, put), (8, usize::from(!authority.is_empty())), (10, additional)] {
        // A message has at most 65,535 octets, so fewer records.
        out[at..at + 2].copy_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
    }
    set.count - put
}

/// Writes the header and echoes the question octet for octet, its letters' case included.
fn header(query: &Query<'_>, rcode: u16, authoritative: bool, forwarding: bool, out: &mut Vec<u8>) {
    let echoed = query.flags & (flags::OPCODE | flags::RD | flags::CD);
    let authoritative = if authoritative { flags::AA } else { 0 };
    let recursion = if forwarding { flags::RA } else { 0 };
    put_u16(out, query.id);
    put_u16(out, flags::QR | echoed | authoritative | recursion | rcode & 0xF);
    put_u16(out, u16::from(!query.question.is_empty()));
    out.resize(HEADER, 0);
    out.extend_from_slice(query.question);
}

/// Appends the addresses of the names that records end with, each once, as long as there is room; returns how many.
fn put_glue(glued: &[(&[u8], &[u8])], room: usize, out: &mut Vec<u8>) -> usize {
    let mut seen = HashSet::new();
    let mut count = 0;
    for (record, address) in glued {
        let Some(target) = target(record) else { continue };
        if out.len() + target.len() + 10 + address.len() > room {
            break;
        }
        if glued.len() > 1 && !seen.insert(target) {
            continue;
        }
        out.extend_from_slice(target);
        put_u16(out, if address.len() == 4 { rtype::A } else { rtype::AAAA });
        // Class and TTL as the record's own.
        out.extend_from_slice(&record[4..10]);
        put_u16(out, if address.len() == 4 { 4 } else { 16 });
        out.extend_from_slice(address);
        count += 1;
    }
    count
}

/// The name that the data of an SRV or NS record ends with.
fn target(record: &[u8]) -> Option<&[u8]> {
    record.get(if u16_at(record, 2)? == rtype::SRV { 18 } else { 12 }..)
}
