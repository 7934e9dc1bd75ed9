//! From a client's question to the message that goes out, and from what came back to the client's answer.
//!
//! Octets in, octets out. A message is looked into once, when it comes; an answer made from it is a copy with its id, flags,
//! question and TTLs patched and an OPT record of ours behind it. EDNS is hop by hop (RFC 6891 section 6.1.1).

use super::strip::{Stripped, strip};
use crate::wire::{
    self, OPTION_EXTENDED_ERROR, ExtendedError, HEADER_BYTES, MalformedMessage, Query, Section, Transport, flags, name_overlaps, put_extended_error, put_opt_with,
    question_end, rcode, records, rtype, u16_at, u32_at,
};

/// Longest life of an answer that there is nothing, seconds (RFC 2308 section 5).
const MOST_NEGATIVE: u32 = 3 * 3600;
/// TTL of an answer past its end, seconds (RFC 8767 section 4).
pub(super) const STALE_TTL: u32 = 30;

/// An upstream's message in the form that answers are copied from.
#[derive(Debug)]
pub(super) struct Stored {
    /// The message without OPT, then the options that clients may have, then the places of its TTLs, two octets each.
    octets: Box<[u8]>,
    /// Where the options begin.
    options: u32,
    /// Where the places begin.
    places: u32,
    /// The whole response code, OPT's upper bits included.
    rcode: u16,
    /// What it is worth.
    kind: Kind,
}

/// What a message says, and how long that holds, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// There are records: for as long as the first of all in the message.
    Positive(u32),
    /// There are none, or no such name: for as long as the SOA record says (RFC 2308 section 5).
    Negative(u32),
    /// The upstream could not or would not answer (RFC 9520 section 2).
    Failure,
    /// No upstream said anything: there is no message but one of ours.
    Silence,
    /// Good for those who asked, but not to be kept: truncated, a referral, or negative without an SOA record.
    Passing,
}

/// How old what is given is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// As it came.
    Fresh,
    /// Kept for so many seconds.
    Kept(u32),
    /// Past its end (RFC 8767).
    Stale,
}

/// Whether a question's answer depends on nothing but what the cache distinguishes: it carries no options that are passed on,
/// and no records.
pub(super) fn is_plain(query: &Query<'_>) -> bool {
    !query.has_other_records && options(query.options).all(|(code, _)| is_hop_by_hop(code))
}

/// The message to send upstream for `query`, which came as `request`; its id is 0. AD is set, so that the answer says whether
/// the upstream found it authentic (RFC 6840 section 5.7).
///
/// # Errors
/// When the request is not what `query` was read from.
pub(super) fn outgoing(request: &[u8], query: &Query<'_>) -> Result<Vec<u8>, MalformedMessage> {
    let Stripped { mut octets, .. } = strip(request)?;
    set_flags(&mut octets, query.flags & (flags::RD | flags::CD) | flags::AD);
    Ok(with_opt(octets, query))
}

/// The same for a plain query, of which the request is not needed.
pub(super) fn outgoing_plain(query: &Query<'_>) -> Vec<u8> {
    let mut octets = Vec::with_capacity(HEADER_BYTES + query.question.len() + wire::EMPTY_OPT_BYTES);
    octets.resize(HEADER_BYTES, 0);
    octets[5] = 1;
    octets.extend_from_slice(query.question);
    set_flags(&mut octets, query.flags & (flags::RD | flags::CD) | flags::AD);
    with_opt(octets, query)
}

fn with_opt(mut octets: Vec<u8>, query: &Query<'_>) -> Vec<u8> {
    octets[..2].fill(0);
    let more = u16_at(&octets, 10).unwrap_or_default().saturating_add(1);
    octets[10..12].copy_from_slice(&more.to_be_bytes());
    let passed: Vec<u8> = options(query.options).filter(|(code, _)| !is_hop_by_hop(*code)).flat_map(|(_, whole)| whole).copied().collect();
    put_opt_with(&mut octets, 0, query.edns.is_some_and(|edns| edns.dnssec_ok), &passed, None);
    octets
}

impl Stored {
    /// Takes an upstream's message apart: one question, records that fill it, at most one OPT. `plain`: the question was
    /// ([`is_plain`]); else the answer's options are for the client that sent some.
    ///
    /// # Errors
    /// When the message is not well-formed.
    pub(super) fn new(message: &[u8], plain: bool) -> Result<Self, MalformedMessage> {
        let Stripped { mut octets, opt, question } = strip(message)?;
        let upper = opt.as_ref().map_or(0, |opt| u16::from(opt.upper_rcode) << 4);
        let rcode = upper | u16_at(&octets, 2).unwrap_or_default() & 0xF;
        let (kind, places) = read(&octets, question, rcode)?;
        let end = octets.len();
        for (code, whole) in options(opt.map_or(&[][..], |opt| opt.options)) {
            if code == OPTION_EXTENDED_ERROR || !plain && !is_hop_by_hop(code) {
                octets.extend_from_slice(whole);
            }
        }
        let options_end = octets.len();
        octets.extend(places.iter().flat_map(|at| at.to_be_bytes()));
        // A copy of the right length: what is kept for long is not to be cut from what was for a moment.
        Ok(Self { options: place(end), places: place(options_end), octets: octets.as_slice().into(), rcode, kind })
    }

    /// A failure of which there is no message: SERVFAIL and why. `question` is name, type and class.
    pub(super) fn failure(question: &[u8], error: ExtendedError) -> Self {
        let mut octets = vec![0; HEADER_BYTES];
        set_flags(&mut octets, flags::QR | rcode::SERVFAIL);
        octets[5] = 1;
        octets.extend_from_slice(question);
        let options = place(octets.len());
        put_extended_error(&mut octets, error);
        let places = place(octets.len());
        Self { octets: octets.into(), options, places, rcode: rcode::SERVFAIL, kind: Kind::Silence }
    }

    /// What it says.
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the upstream said that records are missing.
    pub(super) fn is_truncated(&self) -> bool {
        u16_at(&self.octets, 2).unwrap_or_default() & flags::TC != 0
    }

    /// The message, without OPT.
    pub(super) fn message(&self) -> &[u8] {
        self.octets.get(..self.options as usize).unwrap_or_default()
    }

    /// Octets that it takes in memory, the value itself not among them.
    pub(super) fn octets(&self) -> usize {
        self.octets.len()
    }

    /// Writes the answer to `query` into `out`, which is empty. The question is one that this answers, in whatever case.
    pub(super) fn write(&self, query: &Query<'_>, transport: Transport, age: Age, out: &mut Vec<u8>) {
        let message = self.message();
        let options = self.octets.get(self.options as usize..self.places as usize).unwrap_or_default();
        let places = self.octets.get(self.places as usize..).unwrap_or_default();
        let error = (age == Age::Stale).then_some(ExtendedError {
            code: if self.rcode == rcode::NXDOMAIN { ExtendedError::STALE_NXDOMAIN } else { ExtendedError::STALE_ANSWER },
            text: "",
        });
        let limit = query.limit(transport);
        let room = limit.saturating_sub(query.edns.map_or(0, |_| wire::opt_len(error)));
        if message.len() <= room {
            out.extend_from_slice(message);
        } else {
            cut(message, HEADER_BYTES + query.question.len(), room, out);
        }
        let rcode = if query.edns.is_none() && self.rcode > 0xF { rcode::SERVFAIL } else { self.rcode };
        let wants_ad = query.flags & flags::AD != 0 || query.edns.is_some_and(|edns| edns.dnssec_ok);
        let kept = flags::TC | if age == Age::Fresh { flags::AA } else { 0 } | if wants_ad { flags::AD } else { 0 };
        let said = u16_at(out, 2).unwrap_or_default() & kept;
        out[..2].copy_from_slice(&query.id.to_be_bytes());
        set_flags(out, flags::QR | flags::RA | query.flags & (flags::RD | flags::CD) | said | rcode & 0xF);
        out[HEADER_BYTES..HEADER_BYTES + query.question.len()].copy_from_slice(query.question);
        self.patch_ttls(places, age, out);
        if let Some(edns) = query.edns {
            let more = u16_at(out, 10).unwrap_or_default().saturating_add(1);
            out[10..12].copy_from_slice(&more.to_be_bytes());
            // What explains an answer gives way to it.
            let fits = out.len() + wire::opt_len(error) + options.len() <= limit;
            put_opt_with(out, rcode, edns.dnssec_ok, if fits { options } else { &[] }, error);
        }
    }

    fn patch_ttls(&self, places: &[u8], age: Age, out: &mut [u8]) {
        let most = if let Kind::Negative(life) = self.kind { life } else { u32::MAX };
        let aged = |ttl: u32| match age {
            Age::Fresh => ttl,
            Age::Kept(seconds) => ttl.min(most).saturating_sub(seconds),
            Age::Stale => STALE_TTL,
        };
        if age == Age::Fresh {
            return;
        }
        for place in places.chunks_exact(2) {
            let at = usize::from(u16::from_be_bytes([place[0], place[1]]));
            let Some(four) = out.get_mut(at..at + 4) else { return };
            let ttl = aged(u32::from_be_bytes([four[0], four[1], four[2], four[3]]));
            four.copy_from_slice(&ttl.to_be_bytes());
        }
    }
}

/// A message of ours in place of an upstream's: NOERROR, no records, and why. `question` is name, type and class.
pub(super) fn without_records(question: &[u8], error: ExtendedError) -> Vec<u8> {
    let mut octets = vec![0; HEADER_BYTES];
    set_flags(&mut octets, flags::QR | flags::RA);
    (octets[5], octets[11]) = (1, 1);
    octets.extend_from_slice(question);
    wire::put_opt(&mut octets, rcode::NOERROR, false, Some(error));
    octets
}

/// Judges a message without OPT, and finds its TTLs.
fn read(message: &[u8], question: usize, rcode: u16) -> Result<(Kind, Vec<u16>), MalformedMessage> {
    let qtype = u16_at(message, question - 4).unwrap_or_default();
    let (mut places, mut least, mut negative, mut answered) = (Vec::new(), u32::MAX, None, false);
    for record in records(message, question) {
        let record = record?;
        // It would become another name as the TTL goes down.
        if name_overlaps(message, record.start, &places) {
            return Err(MalformedMessage);
        }
        places.push(u16::try_from(record.ttl_at()).map_err(|_| MalformedMessage)?);
        // RFC 2181 section 8: with the uppermost bit set it counts as 0.
        let ttl = if record.ttl >> 31 == 0 { record.ttl } else { 0 };
        least = least.min(ttl);
        answered |= record.section == Section::Answer && (record.rtype == qtype || qtype == rtype::ANY);
        if record.section == Section::Authority && record.rtype == rtype::SOA && record.data(message).len() >= 22 {
            negative = u32_at(message, record.end - 4).map(|minimum| minimum.min(MOST_NEGATIVE));
        }
    }
    let truncated = u16_at(message, 2).unwrap_or_default() & flags::TC != 0;
    let kind = match rcode {
        rcode::NOERROR | rcode::NXDOMAIN if truncated => Kind::Passing,
        rcode::NOERROR if answered => Kind::Positive(least),
        rcode::NOERROR | rcode::NXDOMAIN => negative.map_or(Kind::Passing, |minimum| Kind::Negative(minimum.min(least))),
        _ => Kind::Failure,
    };
    Ok((kind, places))
}

/// As much of `message` as `room` has: whole records, in order. TC tells where what was asked for is missing; additional
/// records may be missing without (RFC 2181 section 9), but for those of a referral (RFC 9471 section 3).
fn cut(message: &[u8], question: usize, room: usize, out: &mut Vec<u8>) {
    let (mut end, mut counts, mut missing) = (question, [0u16; 3], Section::Additional);
    for record in records(message, question).map_while(Result::ok) {
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

/// The largest answer to a message of any opcode, octets, as its OPT record has it.
pub(super) fn limit(request: &[u8], transport: Transport) -> usize {
    let mut records = question_end(request).map(|question| records(request, question)).into_iter().flatten().map_while(Result::ok);
    match (transport, records.find(wire::Record::is_opt)) {
        (Transport::Tcp, _) => wire::MAX_TCP_BYTES,
        (Transport::Udp, None) => wire::MAX_UDP_BYTES_WITHOUT_EDNS,
        (Transport::Udp, Some(opt)) => usize::from(opt.class).clamp(wire::MAX_UDP_BYTES_WITHOUT_EDNS, wire::MAX_UDP_BYTES),
    }
}

/// Leaves of a message with one question what fits, with TC where something is missing.
///
/// # Errors
/// When it has no question.
pub(super) fn cut_to(limit: usize, message: &mut Vec<u8>) -> Result<(), MalformedMessage> {
    let question = question_end(message).ok_or(MalformedMessage)?;
    if message.len() > limit {
        let whole = std::mem::take(message);
        cut(&whole, question, limit, message);
        message[2] |= flags::TC.to_be_bytes()[0];
    }
    Ok(())
}

fn set_flags(message: &mut [u8], flags: u16) {
    if let Some(two) = message.get_mut(2..4) {
        two.copy_from_slice(&flags.to_be_bytes());
    }
}

/// A place in a message; none is above 65,535, and options and places behind it keep it far below 2^32.
fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// Options that are between two neighbours only: cookies (RFC 7873), keep-alive (RFC 7828), padding (RFC 7830).
fn is_hop_by_hop(code: u16) -> bool {
    matches!(code, 10..=12)
}

/// The options in OPT's data: code, and the option whole. Ends where they do not fit.
fn options(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (code, length) = (u16_at(data, 0)?, usize::from(u16_at(data, 2)?));
        let whole = data.get(..4 + length)?;
        data = &data[4 + length..];
        Some((code, whole))
    })
}

#[cfg(test)]
mod tests;
