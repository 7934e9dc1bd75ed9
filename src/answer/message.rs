//! A response message, put together from ready-made pieces.

use super::counters::Counters;
use super::rrset::RRset;
use super::settings::{Answers, Settings};
use crate::wire::{self, ExtendedError, HEADER_BYTES, Query, Transport, flags, put_opt, rcode};

/// What a response says, before it is known what fits.
#[derive(Debug)]
pub(super) struct Response<'a> {
    /// The response code; its upper bits go into OPT.
    pub(super) rcode: u16,
    /// Whether it comes from a zone served here.
    pub(super) authoritative: bool,
    /// The answer section.
    pub(super) answers: &'a RRset<'a>,
    /// The authority section's SOA; empty for none.
    pub(super) authority: &'a [u8],
    /// An extended error, told to those who speak EDNS.
    pub(super) error: Option<ExtendedError>,
}

impl<'a> Response<'a> {
    /// A response without records, from outside the zones.
    pub(super) fn code(rcode: u16, error: Option<ExtendedError>) -> Self {
        Self { rcode, authoritative: false, answers: &RRset::EMPTY, authority: &[], error }
    }

    /// An authoritative answer.
    pub(super) fn answer(answers: &'a RRset<'a>, error: Option<ExtendedError>) -> Self {
        Self { rcode: rcode::NOERROR, authoritative: true, answers, authority: &[], error }
    }

    /// An authoritative answer that there is nothing, or no such name (RFC 2308 section 2).
    pub(super) fn negative(rcode: u16, soa: &'a [u8], error: Option<ExtendedError>) -> Self {
        Self { rcode, authoritative: true, answers: &RRset::EMPTY, authority: soa, error }
    }
}

/// How responses are written, and where they are counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Writer<'a> {
    pub(super) settings: &'a Settings,
    pub(super) transport: Transport,
    /// A fresh random number: decides which record comes first, and which at all.
    pub(super) draw: u64,
    pub(super) counters: &'a Counters,
}

/// What a written response lacks.
struct Written {
    /// Whether TC says so.
    truncated: bool,
    /// Records of the answer that it left out.
    left_out: usize,
}

impl Writer<'_> {
    /// Writes the response to `query` into `out`, which is empty, and counts it.
    pub(super) fn put(&self, response: &Response<'_>, query: &Query<'_>, out: &mut Vec<u8>) {
        let Written { truncated, left_out } = self.write(response, query, out);
        self.counters.count(response.rcode, truncated, left_out);
    }

    /// Writes the response to `query` into `out`, which is empty.
    ///
    /// As many records as fit, in an order drawn by weight. When not all do, TC says so over UDP, and the OPT and what fits
    /// stay: stubs without TCP still have addresses. Glue takes what room is left and never causes TC (RFC 2181 section 9).
    fn write(&self, response: &Response<'_>, query: &Query<'_>, out: &mut Vec<u8>) -> Written {
        let Self { settings, transport, draw, .. } = *self;
        let Response { rcode, authoritative, answers: set, authority, error } = response;
        let opt = query.edns.map_or(0, |_| wire::opt_len(*error));
        let room = query.limit(transport).saturating_sub(opt);
        // The question is echoed octet for octet, its letters' case included.
        out.extend_from_slice(&[0; HEADER_BYTES]);
        out.extend_from_slice(query.question);

        let answers = settings.answers;
        let wanted = match answers {
            Answers::Count(most) => set.count.min(usize::from(most.get())),
            Answers::All | Answers::Fit => set.count,
        };
        let order = set.order(wanted, room.saturating_sub(out.len()), draw);
        let start = out.len();
        let put = set.put(&order, wanted, room, out);
        // What fits is an answer; nothing is none, whatever the setting.
        let truncated = put < wanted && transport == Transport::Udp && (answers != Answers::Fit || put == 0);
        let authority = if out.len() + authority.len() <= room { *authority } else { &[] };
        if !authority.is_empty() {
            out.extend_from_slice(authority);
        }
        let mut additional = set.put_glue(&order, put, start, room, out);
        if query.edns.is_some() {
            put_opt(out, *rcode, query.edns.is_some_and(|edns| edns.dnssec_ok), *error);
            additional += 1;
        }

        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flags::QR
            | query.flags & (flags::OPCODE | flags::RD | flags::CD)
            | flag(*authoritative, flags::AA)
            | flag(truncated, flags::TC)
            | flag(settings.forwarding, flags::RA)
            | rcode & 0xF;
        // A message has at most 65,535 octets, so fewer records.
        let counts = [usize::from(!query.question.is_empty()), put, usize::from(!authority.is_empty()), additional];
        let [questions, answers, authorities, additional] = counts.map(|count| u16::try_from(count).unwrap_or(u16::MAX));
        if let Some(header) = out.first_chunk_mut::<HEADER_BYTES>() {
            let words = [query.id, flags, questions, answers, authorities, additional];
            for (octets, word) in header.as_chunks_mut::<2>().0.iter_mut().zip(words) {
                *octets = word.to_be_bytes();
            }
        }
        Written { truncated, left_out: set.count - put }
    }
}
