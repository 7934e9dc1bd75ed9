//! Queries to upstreams and responses to clients, as bytes.
//!
//! An upstream's message is parsed once, on arrival. A response to a client is a copy of the
//! message with patched ID, flags, question and TTLs, and with svcdns's own OPT record. EDNS is hop
//! by hop (RFC 6891 section 6.1.1).

use super::strip::{Stripped, strip};
use crate::wire::{
    self, ExtendedError, HEADER_BYTES, MalformedMessage, OPTION_EXTENDED_ERROR, Query, Section,
    Transport, copy_name, flags, name_overlaps, put_extended_error, put_opt_with, question_end,
    rcode, records, rtype, u16_at, u32_at,
};

/// Upper bound of the TTL of negative answers (RFC 2308 section 5).
const MAX_NEGATIVE_TTL_SECONDS: u32 = 3 * 3600;
/// TTL of stale records (RFC 8767 section 4).
pub(super) const STALE_TTL_SECONDS: u32 = 30;

/// An upstream's message, as returned by the exchange.
#[derive(Debug)]
pub(super) struct UpstreamMessage {
    /// The message, with any ID.
    pub(super) bytes: Vec<u8>,
    /// Offset of the target of the last alias, if the target is resolved elsewhere.
    ///
    /// In that case, the message contains only the chain of aliases up to that target.
    pub(super) alias_target_at: Option<u16>,
}

impl From<Vec<u8>> for UpstreamMessage {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, alias_target_at: None }
    }
}

/// An upstream's message, prepared for copying to clients.
#[derive(Debug)]
pub(super) struct StoredResponse {
    /// The message (OPT removed), then the EDNS options for clients, then the offsets of TTLs.
    ///
    /// Each offset has two bytes.
    bytes: Box<[u8]>,
    /// Start of the options.
    options_at: u32,
    /// Start of the TTL offsets.
    ttl_offsets_at: u32,
    /// Response code with the upper bits from the OPT record.
    rcode: u16,
    /// Whether the message can be cached, and for how long.
    kind: ResponseKind,
    /// Offset as in [`UpstreamMessage::alias_target_at`]; 0 for none.
    alias_target_at: u16,
}

/// Classification of a response; TTLs are in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseKind {
    /// The response has records; the TTL is the smallest in the message.
    Positive(u32),
    /// The name or records do not exist; the SOA has the TTL (RFC 2308 section 5).
    Negative(u32),
    /// The upstream failed or refused to answer (RFC 9520 section 2).
    Failure,
    /// No upstream answered; the message is svcdns's own SERVFAIL.
    NoResponse,
    /// A response for the waiting clients only.
    ///
    /// It is truncated, a referral, or negative without an SOA record.
    Uncacheable,
}

/// Age of a response given to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// The response has just been received.
    Fresh,
    /// The entry is cached and this many seconds old.
    Cached(u32),
    /// The entry is cached and its TTL has expired (RFC 8767).
    Stale,
}

/// Returns whether the response to this query depends only on the cache key.
///
/// A shareable query has no options to forward and no records besides OPT.
pub(super) fn is_shareable(query: &Query<'_>) -> bool {
    !query.has_other_records && options(query.options).all(|(code, _)| is_hop_by_hop(code))
}

/// Builds the message to send upstream for `query`, with ID 0.
///
/// `request` is the client's message. AD is set, so that the upstream reports whether the data is
/// authentic (RFC 6840 section 5.7).
///
/// # Errors
/// Returns an error if `request` is malformed.
pub(super) fn upstream_query(
    request: &[u8],
    query: &Query<'_>,
) -> Result<Vec<u8>, MalformedMessage> {
    let Stripped { mut bytes, .. } = strip(request)?;
    set_flags(&mut bytes, query.flags & (flags::RD | flags::CD) | flags::AD);
    Ok(with_opt(bytes, query))
}

/// Builds the message to send upstream for a shareable query from the query alone.
pub(super) fn shareable_upstream_query(query: &Query<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + query.question.len() + wire::EMPTY_OPT_BYTES);
    bytes.resize(HEADER_BYTES, 0);
    bytes[5] = 1;
    bytes.extend_from_slice(query.question);
    set_flags(&mut bytes, query.flags & (flags::RD | flags::CD) | flags::AD);
    with_opt(bytes, query)
}

/// Completes a query: appends an OPT record with the options to forward.
fn with_opt(mut bytes: Vec<u8>, query: &Query<'_>) -> Vec<u8> {
    bytes[..2].fill(0);
    let additional = u16_at(&bytes, 10).unwrap_or_default().saturating_add(1);
    bytes[10..12].copy_from_slice(&additional.to_be_bytes());
    let passed: Vec<u8> = options(query.options)
        .filter(|(code, _)| !is_hop_by_hop(*code))
        .flat_map(|(_, whole)| whole)
        .copied()
        .collect();
    put_opt_with(&mut bytes, 0, query.edns.is_some_and(|edns| edns.dnssec_ok), &passed, None);
    bytes
}

impl StoredResponse {
    /// Prepares an upstream's message; `shareable` is the result of [`is_shareable`].
    ///
    /// A response to a shareable query may go to many clients, so it keeps no options except
    /// EDEs.
    ///
    /// # Errors
    /// Returns an error if the message is malformed, does not have exactly one question, or has
    /// more than one OPT record.
    pub(super) fn new(message: &[u8], shareable: bool) -> Result<Self, MalformedMessage> {
        let Stripped { mut bytes, opt, question_end } = strip(message)?;
        let upper = opt.as_ref().map_or(0, |opt| u16::from(opt.upper_rcode) << 4);
        let rcode = upper | u16_at(&bytes, 2).unwrap_or_default() & 0xF;
        let (kind, ttl_offsets) = classify(&bytes, question_end, rcode)?;
        let end = bytes.len();
        for (code, whole) in options(opt.map_or(&[][..], |opt| opt.options)) {
            if code == OPTION_EXTENDED_ERROR || !shareable && !is_hop_by_hop(code) {
                bytes.extend_from_slice(whole);
            }
        }
        let options_end = bytes.len();
        bytes.extend(ttl_offsets.iter().flat_map(|at| at.to_be_bytes()));
        // The copy has the exact length, so that a cached message keeps no spare capacity.
        Ok(Self {
            options_at: offset(end),
            ttl_offsets_at: offset(options_end),
            bytes: bytes.as_slice().into(),
            rcode,
            kind,
            alias_target_at: 0,
        })
    }

    /// Prepares an upstream's message like [`Self::new`], including its last alias.
    ///
    /// # Errors
    /// The errors are those of [`Self::new`].
    pub(super) fn from_upstream(
        message: &UpstreamMessage,
        shareable: bool,
    ) -> Result<Self, MalformedMessage> {
        let mut stored = Self::new(&message.bytes, shareable)?;
        // The offset remains valid: the removed OPT record came after the answer section.
        if let Some(target_at) = message.alias_target_at {
            let ttl = |at: &[u8]| {
                let at = usize::from(u16::from_be_bytes([at[0], at[1]]));
                u32_at(&stored.bytes, at).filter(|ttl| ttl >> 31 == 0).unwrap_or(0)
            };
            let ttl_offsets = stored.bytes.get(stored.ttl_offsets_at as usize..);
            let min_ttl = ttl_offsets.unwrap_or_default().chunks_exact(2).map(ttl).min();
            // The aliases are a positive answer for every query type.
            stored.kind = ResponseKind::Positive(min_ttl.unwrap_or(0));
            stored.alias_target_at = target_at;
        }
        Ok(stored)
    }

    /// Returns a SERVFAIL with an extended error.
    ///
    /// `question` is the name, type and class.
    pub(super) fn failure(question: &[u8], error: ExtendedError<'_>) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        set_flags(&mut bytes, flags::QR | rcode::SERVFAIL);
        bytes[5] = 1;
        bytes.extend_from_slice(question);
        let options = offset(bytes.len());
        put_extended_error(&mut bytes, error);
        let ttl_offsets = offset(bytes.len());
        Self {
            bytes: bytes.into(),
            options_at: options,
            ttl_offsets_at: ttl_offsets,
            rcode: rcode::SERVFAIL,
            kind: ResponseKind::NoResponse,
            alias_target_at: 0,
        }
    }

    /// Returns whether the message ends with an alias that is resolved elsewhere.
    pub(super) fn has_alias_target(&self) -> bool {
        self.alias_target_at != 0
    }

    /// Returns the target of that alias in wire form, if there is one.
    pub(super) fn alias_target(&self) -> Option<Vec<u8>> {
        let mut target = Vec::new();
        let at = usize::from(Some(self.alias_target_at).filter(|at| *at != 0)?);
        copy_name(self.message(), at, &mut target).ok().map(|()| target)
    }

    /// Returns the classification of the message.
    pub(super) fn kind(&self) -> ResponseKind {
        self.kind
    }

    /// Returns the response code with the upper bits from the OPT record.
    pub(super) fn rcode(&self) -> u16 {
        self.rcode
    }

    /// Returns whether the message has TC set.
    pub(super) fn is_truncated(&self) -> bool {
        u16_at(&self.bytes, 2).unwrap_or_default() & flags::TC != 0
    }

    /// Returns the message without OPT.
    pub(super) fn message(&self) -> &[u8] {
        self.bytes.get(..self.options_at as usize).unwrap_or_default()
    }

    /// Returns the size in bytes, excluding the struct itself.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Writes the response to `query` into the empty `out`.
    ///
    /// The message must answer the query's question; the letter case may differ.
    pub(super) fn write(
        &self,
        query: &Query<'_>,
        transport: Transport,
        age: Age,
        out: &mut Vec<u8>,
    ) {
        let message = self.message();
        let options = self
            .bytes
            .get(self.options_at as usize..self.ttl_offsets_at as usize)
            .unwrap_or_default();
        let ttl_offsets = self.bytes.get(self.ttl_offsets_at as usize..).unwrap_or_default();
        let error = (age == Age::Stale).then_some(ExtendedError {
            code: if self.rcode == rcode::NXDOMAIN {
                ExtendedError::STALE_NXDOMAIN
            } else {
                ExtendedError::STALE_ANSWER
            },
            text: "",
        });
        let limit = query.limit(transport);
        let room = limit.saturating_sub(query.edns.map_or(0, |_| wire::opt_len(error)));
        if message.len() <= room {
            out.extend_from_slice(message);
        } else {
            truncate_into(message, HEADER_BYTES + query.question.len(), room, out);
        }
        let rcode =
            if query.edns.is_none() && self.rcode > 0xF { rcode::SERVFAIL } else { self.rcode };
        let wants_ad =
            query.flags & flags::AD != 0 || query.edns.is_some_and(|edns| edns.dnssec_ok);
        let kept = flags::TC
            | if age == Age::Fresh { flags::AA } else { 0 }
            | if wants_ad { flags::AD } else { 0 };
        let kept_flags = u16_at(out, 2).unwrap_or_default() & kept;
        out[..2].copy_from_slice(&query.id.to_be_bytes());
        set_flags(
            out,
            flags::QR
                | flags::RA
                | query.flags & (flags::RD | flags::CD)
                | kept_flags
                | rcode & 0xF,
        );
        out[HEADER_BYTES..HEADER_BYTES + query.question.len()].copy_from_slice(query.question);
        self.patch_ttls(ttl_offsets, age, out);
        if let Some(edns) = query.edns {
            let additional = u16_at(out, 10).unwrap_or_default().saturating_add(1);
            out[10..12].copy_from_slice(&additional.to_be_bytes());
            // Options only explain the answer, so they are dropped if they do not fit.
            let fits = out.len() + wire::opt_len(error) + options.len() <= limit;
            put_opt_with(out, rcode, edns.dnssec_ok, if fits { options } else { &[] }, error);
        }
    }

    /// Sets the TTLs in a copy of the message to the values for this age.
    fn patch_ttls(&self, ttl_offsets: &[u8], age: Age, out: &mut [u8]) {
        let max = if let ResponseKind::Negative(seconds) = self.kind { seconds } else { u32::MAX };
        let aged = |ttl: u32| match age {
            Age::Fresh => ttl,
            Age::Cached(seconds) => ttl.min(max).saturating_sub(seconds),
            Age::Stale => STALE_TTL_SECONDS,
        };
        if age == Age::Fresh {
            return;
        }
        for ttl_offset in ttl_offsets.chunks_exact(2) {
            let at = usize::from(u16::from_be_bytes([ttl_offset[0], ttl_offset[1]]));
            let Some(field) = out.get_mut(at..at + 4) else { return };
            let ttl = aged(u32::from_be_bytes([field[0], field[1], field[2], field[3]]));
            field.copy_from_slice(&ttl.to_be_bytes());
        }
    }
}

/// Builds a NOERROR response without records, with an EDE (RFC 8914).
///
/// `question` is the name, type and class.
pub(super) fn empty_response(question: &[u8], error: ExtendedError<'_>) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    set_flags(&mut bytes, flags::QR | flags::RA);
    (bytes[5], bytes[11]) = (1, 1);
    bytes.extend_from_slice(question);
    wire::put_opt(&mut bytes, rcode::NOERROR, false, Some(error));
    bytes
}

/// Classifies a message without OPT, and returns the offsets of its TTLs.
fn classify(
    message: &[u8],
    question_end: usize,
    rcode: u16,
) -> Result<(ResponseKind, Vec<u16>), MalformedMessage> {
    let qtype = u16_at(message, question_end - 4).unwrap_or_default();
    let (mut ttl_offsets, mut min_ttl, mut negative, mut answered) =
        (Vec::new(), u32::MAX, None, false);
    for record in records(message, question_end) {
        let record = record?;
        // A name that points into a TTL field would change with the TTL.
        if name_overlaps(message, record.start, &ttl_offsets) {
            return Err(MalformedMessage);
        }
        ttl_offsets.push(u16::try_from(record.ttl_at()).map_err(|_| MalformedMessage)?);
        // A TTL with the highest bit set counts as 0 (RFC 2181 section 8).
        let ttl = if record.ttl >> 31 == 0 { record.ttl } else { 0 };
        min_ttl = min_ttl.min(ttl);
        answered |=
            record.section == Section::Answer && (record.rtype == qtype || qtype == rtype::ANY);
        if record.section == Section::Authority
            && record.rtype == rtype::SOA
            && record.data(message).len() >= 22
        {
            negative = u32_at(message, record.end - 4)
                .map(|minimum| minimum.min(MAX_NEGATIVE_TTL_SECONDS));
        }
    }
    let truncated = u16_at(message, 2).unwrap_or_default() & flags::TC != 0;
    let kind = match rcode {
        rcode::NOERROR | rcode::NXDOMAIN if truncated => ResponseKind::Uncacheable,
        rcode::NOERROR if answered => ResponseKind::Positive(min_ttl),
        rcode::NOERROR | rcode::NXDOMAIN => negative.map_or(ResponseKind::Uncacheable, |minimum| {
            ResponseKind::Negative(minimum.min(min_ttl))
        }),
        _ => ResponseKind::Failure,
    };
    Ok((kind, ttl_offsets))
}

/// Copies as many complete records of `message` as fit into `room` bytes.
///
/// TC is set if answer or authority records are missing. Missing additional records do not set it
/// (RFC 2181 section 9), except in a referral (RFC 9471 section 3).
fn truncate_into(message: &[u8], question_end: usize, room: usize, out: &mut Vec<u8>) {
    let (mut end, mut counts, mut missing) = (question_end, [0u16; 3], Section::Additional);
    for record in records(message, question_end).map_while(Result::ok) {
        if record.end > room {
            missing = record.section;
            break;
        }
        end = record.end;
        counts[record.section as usize] += 1;
    }
    out.extend_from_slice(message.get(..end).unwrap_or_default());
    for (at, count) in [6, 8, 10].into_iter().zip(counts) {
        out[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }
    let referral = counts[0] == 0 && u16_at(message, 2).unwrap_or_default() & 0xF == rcode::NOERROR;
    if missing < Section::Additional || referral {
        out[2] |= flags::TC.to_be_bytes()[0];
    }
}

/// Returns the response size limit for a message of any opcode, in bytes.
pub(super) fn response_limit(request: &[u8], transport: Transport) -> usize {
    let mut records = question_end(request)
        .map(|question_end| records(request, question_end))
        .into_iter()
        .flatten()
        .map_while(Result::ok);
    wire::response_limit(transport, records.find(wire::Record::is_opt).map(|opt| opt.class))
}

/// Truncates a message to `limit` bytes and sets TC if it was longer.
///
/// # Errors
/// Returns an error if the message has no question.
pub(super) fn truncate_to(limit: usize, message: &mut Vec<u8>) -> Result<(), MalformedMessage> {
    let question_end = question_end(message).ok_or(MalformedMessage)?;
    if message.len() > limit {
        let whole = std::mem::take(message);
        truncate_into(&whole, question_end, limit, message);
        message[2] |= flags::TC.to_be_bytes()[0];
    }
    Ok(())
}

/// Overwrites the flags of a message, including the response code.
fn set_flags(message: &mut [u8], flags: u16) {
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&flags.to_be_bytes());
    }
}

/// Converts an offset, which is far below 2^32.
///
/// A message has at most 65,535 bytes; options and TTL offsets add little.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// Returns whether an option is hop by hop.
///
/// These are cookies (RFC 7873), keep-alive (RFC 7828) and padding (RFC 7830).
fn is_hop_by_hop(code: u16) -> bool {
    matches!(code, 10..=12)
}

/// Iterates over the options in OPT data; each item is the code and all bytes.
///
/// Ends at the first option that exceeds the data.
pub(super) fn options(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (code, length) = (u16_at(data, 0)?, usize::from(u16_at(data, 2)?));
        let whole = data.get(..4 + length)?;
        data = &data[4 + length..];
        Some((code, whole))
    })
}

#[cfg(test)]
mod tests;
