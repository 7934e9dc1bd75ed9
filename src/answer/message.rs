//! Composition of a response message.

use super::counters::Counters;
use super::rrset::{RRset, Room};
use super::settings::{Answers, Settings};
use super::tally::ResponseSource;
use crate::wire::{self, ExtendedError, HEADER_BYTES, Query, Transport, flags, put_opt, rcode};

/// Content of a response before truncation.
#[derive(Debug)]
pub(super) struct ResponseContent<'a> {
    /// Response code; its upper bits are written to OPT.
    pub(super) rcode: u16,
    /// Whether the response comes from a served zone.
    pub(super) authoritative: bool,
    /// RRset of the answer section.
    pub(super) answers: &'a RRset<'a>,
    /// SOA record of the authority section; empty for none.
    pub(super) soa: &'a [u8],
    /// EDE (RFC 8914), sent if the client uses EDNS.
    pub(super) error: Option<ExtendedError<'a>>,
    /// Where the content comes from.
    pub(super) source: ResponseSource,
}

impl<'a> ResponseContent<'a> {
    /// Returns a non-authoritative response without records.
    pub(super) fn code(rcode: u16, error: Option<ExtendedError<'a>>) -> Self {
        let is_refused = rcode == rcode::REFUSED;
        let source = if is_refused { ResponseSource::Refused } else { ResponseSource::Local };
        Self { rcode, authoritative: false, answers: &RRset::EMPTY, soa: &[], error, source }
    }

    /// Returns the content of an authoritative answer.
    pub(super) fn answer(answers: &'a RRset<'a>, error: Option<ExtendedError<'a>>) -> Self {
        let source = source_of_data(error);
        Self { rcode: rcode::NOERROR, authoritative: true, answers, soa: &[], error, source }
    }

    /// Returns an authoritative NODATA or NXDOMAIN response (RFC 2308 section 2).
    pub(super) fn negative(rcode: u16, soa: &'a [u8], error: Option<ExtendedError<'a>>) -> Self {
        let source = source_of_data(error);
        Self { rcode, authoritative: true, answers: &RRset::EMPTY, soa, error, source }
    }
}

/// Returns whether data of the registries with this EDE is fresh or stale.
fn source_of_data(error: Option<ExtendedError<'_>>) -> ResponseSource {
    match error.map(|error| error.code) {
        Some(ExtendedError::STALE_ANSWER | ExtendedError::STALE_NXDOMAIN) => ResponseSource::Stale,
        _ => ResponseSource::Registry,
    }
}

/// The recipient of a response, as far as the response depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The transport, which limits the size of the response.
    pub transport: Transport,
    /// Whether the client is on this machine, and so can reach addresses of the port bridge.
    pub is_local: bool,
}

impl From<Transport> for Recipient {
    /// Returns a recipient on another machine.
    fn from(transport: Transport) -> Self {
        Self { transport, is_local: false }
    }
}

/// Writes responses and counts them.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResponseWriter<'a> {
    pub(super) settings: &'a Settings,
    pub(super) transport: Transport,
    /// Whether the client gets the addresses of the port bridge.
    pub(super) bridged: bool,
    /// Random number from which the selection and order of records follow.
    pub(super) draw: u64,
    pub(super) counters: &'a Counters,
}

/// Omissions in a written response.
struct Omission {
    /// Whether TC is set.
    truncated: bool,
    /// Number of answer records that are missing.
    left_out: usize,
}

impl ResponseWriter<'_> {
    /// Writes the response to `query` into the empty `out` and counts it.
    pub(super) fn write(
        &self,
        response: &ResponseContent<'_>,
        query: &Query<'_>,
        out: &mut Vec<u8>,
    ) {
        let Omission { truncated, left_out } = self.compose(response, query, out);
        self.counters.count(truncated, left_out);
    }

    /// Writes the response to `query` into the empty `out`.
    ///
    /// The answer section takes as many records as fit, in an order drawn by weight. If records are
    /// missing, a UDP response has TC set but keeps OPT and the records that fit: a stub resolver
    /// without TCP can use them. Glue fills the remaining room and never causes TC (RFC 2181
    /// section 9).
    fn compose(
        &self,
        response: &ResponseContent<'_>,
        query: &Query<'_>,
        out: &mut Vec<u8>,
    ) -> Omission {
        let Self { settings, transport, draw, .. } = *self;
        let ResponseContent { rcode, authoritative, answers: set, soa, error, source: _ } =
            response;
        let opt = query.edns.map_or(0, |_| wire::opt_len(*error));
        let room = Room {
            bytes: query.limit(transport).saturating_sub(opt),
            name_bytes: query.name().len(),
        };
        // The question section is echoed byte for byte, so the case of its letters survives.
        out.extend_from_slice(&[0; HEADER_BYTES]);
        out.extend_from_slice(query.question);

        let answers = settings.answers;
        let wanted = match answers {
            Answers::Count(limit) => set.count.min(usize::from(limit.get())),
            Answers::All | Answers::Fit => set.count,
        };
        let order = set.order(wanted, room, out.len(), draw);
        let start = out.len();
        let put = set.put(&order, wanted, room, out);
        // `Answers::Fit` suppresses TC only if at least one record fits.
        let truncated =
            put < wanted && transport == Transport::Udp && (answers != Answers::Fit || put == 0);
        let soa = if out.len() + soa.len() <= room.bytes { *soa } else { &[] };
        if !soa.is_empty() {
            out.extend_from_slice(soa);
        }
        let mut additional = set.put_glue(&order, put, start, room, out);
        if query.edns.is_some() {
            put_opt(out, *rcode, query.edns.is_some_and(|edns| edns.dnssec_ok), *error);
            additional += 1;
        }

        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = query.response_flags(settings.forwarding)
            | flag(*authoritative, flags::AA)
            | flag(truncated, flags::TC)
            | rcode & 0xF;
        // A message has at most 65,535 bytes, so it has fewer records.
        let counts = [
            usize::from(!query.question.is_empty()),
            put,
            usize::from(!soa.is_empty()),
            additional,
        ];
        let [questions, answers, authorities, additional] =
            counts.map(|count| u16::try_from(count).unwrap_or(u16::MAX));
        if let Some(header) = out.first_chunk_mut::<HEADER_BYTES>() {
            let words = [query.id, flags, questions, answers, authorities, additional];
            for (bytes, word) in header.as_chunks_mut::<2>().0.iter_mut().zip(words) {
                *bytes = word.to_be_bytes();
            }
        }
        Omission { truncated, left_out: set.count - put }
    }
}
