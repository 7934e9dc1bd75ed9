//! Outgoing queries, and the matching of responses to them (RFC 5452).

use rand::Rng;

use crate::name::Name;
use crate::wire::{
    HEADER_BYTES, MAX_TCP_BYTES, MAX_UDP_BYTES, Section, flags, put_u16, question_end, rcode,
    records, rtype, u16_at,
};

/// Code of the EDNS padding option (RFC 7830).
const PADDING_OPTION: u16 = 12;

/// A query ready to be sent: ID 0, one question, usually an OPT record.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct Outgoing {
    message: Vec<u8>,
    /// Offset of the end of the question section.
    question_end: usize,
    /// Start and end of the OPT record.
    opt: Option<(usize, usize)>,
    /// Whether to randomize the letter case (draft-vixie-dnsext-dns0x20).
    random_case: bool,
}

impl Outgoing {
    /// Creates a query from a complete message.
    ///
    /// With `random_case`, each attempt randomizes the letter case again, and the response must
    /// echo it. Returns `None` if the message is malformed, does not have exactly one question, or
    /// leaves no room for padding.
    pub(in crate::upstream) fn new(message: Vec<u8>, random_case: bool) -> Option<Self> {
        if message.len() > MAX_TCP_BYTES - 256 {
            return None;
        }
        let end = question_end(&message)?;
        let mut opt = None;
        for record in records(&message, end) {
            let record = record.ok()?;
            if record.is_opt() {
                // The owner name of OPT is the root, one byte.
                opt = (record.fixed == record.start + 1).then_some((record.start, record.end));
            }
        }
        Some(Self { message, question_end: end, opt, random_case })
    }

    /// Creates a query for the NS records of `domain`, with RD and an OPT record.
    pub(super) fn probe(domain: &Name) -> Self {
        let mut message = Vec::with_capacity(HEADER_BYTES + domain.as_wire().len() + 4 + 11);
        for word in [0, flags::RD, 1, 0, 0, 1] {
            put_u16(&mut message, word);
        }
        message.extend_from_slice(domain.as_wire());
        put_u16(&mut message, rtype::NS);
        put_u16(&mut message, rtype::IN);
        let end = message.len();
        message.push(0);
        put_u16(&mut message, rtype::OPT);
        put_u16(&mut message, u16::try_from(MAX_UDP_BYTES).unwrap_or(512));
        message.extend_from_slice(&[0; 6]);
        let opt = Some((end, message.len()));
        Self { message, question_end: end, opt, random_case: false }
    }

    /// Returns the whole message.
    pub(in crate::upstream) fn message(&self) -> &[u8] {
        &self.message
    }

    /// Returns whether the query wants DNSSEC records (DO).
    pub(in crate::upstream) fn wants_dnssec(&self) -> bool {
        // DO is the first bit of the third byte of OPT's TTL, which follows owner, type and class.
        self.opt.is_some_and(|(start, _)| {
            self.message.get(start + 7).is_some_and(|byte| byte & 0x80 != 0)
        })
    }

    /// Returns whether the query has an OPT record.
    pub(in crate::upstream) fn has_opt(&self) -> bool {
        self.opt.is_some()
    }

    /// Returns whether the letter case is randomized.
    pub(super) fn random_case(&self) -> bool {
        self.random_case
    }

    /// Builds the packet of one attempt, with ID 0.
    ///
    /// With `padded`, a message with an OPT record is padded to a multiple of 128 bytes (RFC 8467
    /// section 4.1). Without `edns`, the OPT record is left out.
    pub(super) fn to_packet(&self, edns: bool, random_case: bool, padded: bool) -> Packet {
        let mut bytes = Vec::with_capacity(self.message.len() + 2);
        match self.opt {
            Some((start, end)) if !edns => {
                bytes.extend_from_slice(&self.message[..start]);
                bytes.extend_from_slice(&self.message[end..]);
                let additional = u16_at(&bytes, 10).unwrap_or_default().saturating_sub(1);
                bytes[10..12].copy_from_slice(&additional.to_be_bytes());
            }
            Some((_, end)) if padded => {
                let filler = (self.message.len() + 4).wrapping_neg() % 128;
                bytes.extend_from_slice(&self.message[..end]);
                bytes.extend_from_slice(&PADDING_OPTION.to_be_bytes());
                bytes.extend_from_slice(&[0, u8::try_from(filler).unwrap_or_default()]);
                bytes.resize(bytes.len() + filler, 0);
                bytes.extend_from_slice(&self.message[end..]);
                self.lengthen_opt(&mut bytes, filler + 4);
            }
            _ => bytes.extend_from_slice(&self.message),
        }
        if random_case {
            // The last four bytes of the question are its type and class.
            randomize_case(&mut bytes[HEADER_BYTES..self.question_end - 4]);
        }
        Packet { bytes, question_end: self.question_end, exact_case: random_case }
    }

    /// Increases the data length of the OPT record by `by`.
    ///
    /// The length follows the owner name (one byte), type, class and TTL.
    fn lengthen_opt(&self, bytes: &mut [u8], by: usize) {
        if let Some((start, _)) = self.opt
            && let Some(length) = u16_at(bytes, start + 9)
        {
            let length = length.saturating_add(u16::try_from(by).unwrap_or_default());
            bytes[start + 9..start + 11].copy_from_slice(&length.to_be_bytes());
        }
    }

    /// Parses the response to this query and restores the letter case of its question.
    ///
    /// Returns `None` if the message is malformed.
    pub(super) fn read(&self, mut message: Vec<u8>) -> Option<UpstreamResponse> {
        if u16_at(&message, 4) == Some(0) {
            // An error response may be only a header, without a question section (RFC 1035 section
            // 4.1.1).
            message.truncate(HEADER_BYTES);
            message.extend_from_slice(&self.message[HEADER_BYTES..self.question_end]);
            message[4..HEADER_BYTES].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        }
        let end = question_end(&message)?;
        let mut rcode = u16_at(&message, 2)? & 0xF;
        let mut opt = false;
        for record in records(&message, end) {
            let record = record.ok()?;
            if record.is_opt() {
                if opt || record.section != Section::Additional {
                    return None;
                }
                // OPT holds the upper eight bits of the code in the first byte of its TTL field.
                rcode |= u16::from(record.ttl.to_be_bytes()[0]) << 4;
                opt = true;
            }
        }
        message
            .get_mut(HEADER_BYTES..self.question_end)?
            .copy_from_slice(&self.message[HEADER_BYTES..self.question_end]);
        Some(UpstreamResponse { message, rcode, opt })
    }
}

/// Returns whether the message has TC set.
pub(super) fn is_truncated(message: &[u8]) -> bool {
    u16_at(message, 2).unwrap_or_default() & flags::TC != 0
}

/// Randomizes the case of the letters in `name`.
///
/// Length bytes are not affected, because they are below any letter.
fn randomize_case(name: &mut [u8]) {
    let mut random = rand::rng();
    for chunk in name.chunks_mut(64) {
        let mut bits = random.next_u64();
        for byte in chunk {
            if byte.is_ascii_alphabetic() && bits & 1 == 1 {
                *byte ^= 0x20;
            }
            bits >>= 1;
        }
    }
}

/// The packet of one attempt.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    /// Offset of the end of the question section.
    question_end: usize,
    /// Whether the response must echo the exact letter case.
    exact_case: bool,
}

/// Match of a message with a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseMatch {
    /// The message is the response to the query.
    Full,
    /// The message is the response to the query, but does not echo its letter case.
    ExceptCase,
    /// The message is no response to the query.
    Stray,
}

impl Packet {
    /// Returns a copy with this ID.
    pub(super) fn with_id(&self, id: u16) -> Self {
        let mut bytes = self.bytes.clone();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        Self { bytes, ..*self }
    }

    /// Returns the bytes with the length prefix of TCP (RFC 1035 section 4.2.2).
    pub(super) fn framed(&self) -> Vec<u8> {
        let length = u16::try_from(self.bytes.len()).unwrap_or(u16::MAX);
        [&length.to_be_bytes(), self.bytes.as_slice()].concat()
    }

    /// Checks whether `message`, whose ID matches, is the response to this query.
    ///
    /// The opcode and the question must be those of the query (RFC 5452 section 9.1).
    pub(super) fn match_response(&self, message: &[u8]) -> ResponseMatch {
        let word = |bytes, at| u16_at(bytes, at).unwrap_or_default();
        let flags = word(message, 2);
        if message.len() < HEADER_BYTES
            || flags & flags::QR == 0
            || (flags ^ word(&self.bytes, 2)) & flags::OPCODE != 0
        {
            return ResponseMatch::Stray;
        }
        let question = &self.bytes[HEADER_BYTES..self.question_end];
        match word(message, 4) {
            0 if matches!(flags & 0xF, rcode::FORMERR | rcode::NOTIMP) => ResponseMatch::Full,
            1 => match message.get(HEADER_BYTES..self.question_end) {
                Some(echo) if echo == question => ResponseMatch::Full,
                Some(echo) if echo.eq_ignore_ascii_case(question) && same_type(echo, question) => {
                    if self.exact_case {
                        ResponseMatch::ExceptCase
                    } else {
                        ResponseMatch::Full
                    }
                }
                _ => ResponseMatch::Stray,
            },
            _ => ResponseMatch::Stray,
        }
    }
}

/// Returns whether type and class are equal; their bytes are not letters.
fn same_type(one: &[u8], other: &[u8]) -> bool {
    one[one.len() - 4..] == other[other.len() - 4..]
}

/// A well-formed response to the query.
#[derive(Debug)]
pub(in crate::upstream) struct UpstreamResponse {
    /// The whole message.
    pub(in crate::upstream) message: Vec<u8>,
    /// Response code with the upper bits from the OPT record.
    pub(in crate::upstream) rcode: u16,
    /// Whether the response has an OPT record.
    opt: bool,
}

impl UpstreamResponse {
    /// Returns whether the response is truncated (TC).
    pub(in crate::upstream) fn is_truncated(&self) -> bool {
        is_truncated(&self.message)
    }

    /// Returns whether the response has an OPT record.
    pub(in crate::upstream) fn has_opt(&self) -> bool {
        self.opt
    }

    /// Returns whether the answer section has records.
    pub(super) fn has_answers(&self) -> bool {
        u16_at(&self.message, 6).unwrap_or_default() > 0
    }

    /// Returns whether the response is conclusive: NOERROR or NXDOMAIN.
    pub(in crate::upstream) fn is_final(&self) -> bool {
        matches!(self.rcode, rcode::NOERROR | rcode::NXDOMAIN)
    }

    /// Returns whether the response rejects EDNS (RFC 6891 section 7).
    ///
    /// An upstream that knows EDNS sends an OPT record even with an error.
    pub(super) fn rejects_edns(&self) -> bool {
        matches!(self.rcode, rcode::FORMERR | rcode::NOTIMP) && !self.opt
            || self.rcode == rcode::BADVERS
    }

    /// Returns whether EDNS may be the cause of the response code.
    ///
    /// Some upstreams copy the OPT record of a query that they do not understand; some reject it
    /// with REFUSED or SERVFAIL.
    pub(super) fn may_reject_edns(&self) -> bool {
        matches!(self.rcode, rcode::FORMERR | rcode::NOTIMP | rcode::BADVERS)
            || matches!(self.rcode, rcode::REFUSED | rcode::SERVFAIL) && !self.opt
    }
}
