//! The message that goes out, and whether what comes in answers it.

use rand::Rng;

use crate::wire::{HEADER, TCP_MAX, flags, question_end, rcode, records, u16_at};

/// The EDNS option of padding (RFC 7830).
const PADDING_OPTION: u16 = 12;

/// A message as it is to go out: id 0, one question, OPT included.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct Outgoing {
    message: Vec<u8>,
    /// Where the question ends.
    question_end: usize,
    /// The OPT record's place.
    opt: Option<(usize, usize)>,
    /// Whether letters go out in random case (draft-vixie-dnsext-dns0x20).
    random_case: bool,
}

impl Outgoing {
    /// A message to ask; none when it is not well-formed, has not exactly one question, or leaves no room for padding. With `random_case` each try has
    /// letters of its own, and answers must echo them.
    pub(in crate::upstream) fn new(message: Vec<u8>, random_case: bool) -> Option<Self> {
        if message.len() > TCP_MAX - 256 {
            return None;
        }
        let end = question_end(&message)?;
        let mut opt = None;
        for record in records(&message, end) {
            let record = record.ok()?;
            if record.is_opt() {
                // The owner of OPT is the root.
                opt = (record.fixed == record.start + 1).then_some((record.start, record.end));
            }
        }
        Some(Self { message, question_end: end, opt, random_case })
    }

    /// The whole message.
    pub(in crate::upstream) fn message(&self) -> &[u8] {
        &self.message
    }

    /// Whether there is an OPT record.
    pub(super) fn has_opt(&self) -> bool {
        self.opt.is_some()
    }

    /// Whether letters go out in random case.
    pub(super) fn random_case(&self) -> bool {
        self.random_case
    }

    /// The bytes of one try, id still 0. `padded` to a multiple of 128 bytes, where there is an OPT record to hold the padding
    /// (RFC 8467 section 4.1).
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
            randomize_case(&mut bytes[HEADER..self.question_end - 4]);
        }
        Packet { bytes, question_end: self.question_end, exact_case: random_case }
    }

    /// The length of an OPT record's data stands in the two bytes before it; the owner is one byte.
    fn lengthen_opt(&self, bytes: &mut [u8], by: usize) {
        if let Some((start, _)) = self.opt
            && let Some(length) = u16_at(bytes, start + 9)
        {
            let length = length.saturating_add(u16::try_from(by).unwrap_or_default());
            bytes[start + 9..start + 11].copy_from_slice(&length.to_be_bytes());
        }
    }

    /// Reads what came in as the answer to this. The question gets its own letters back.
    pub(super) fn read(&self, mut message: Vec<u8>) -> Option<UpstreamResponse> {
        if u16_at(&message, 4) == Some(0) {
            // A header alone: an error of one who did not understand the question (RFC 1035 section 4.1.1).
            message.truncate(HEADER);
            message.extend_from_slice(&self.message[HEADER..self.question_end]);
            message[4..HEADER].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        }
        let end = question_end(&message)?;
        let mut rcode = u16_at(&message, 2)? & 0xF;
        let mut opt = false;
        for record in records(&message, end) {
            let record = record.ok()?;
            if record.is_opt() {
                // The upper eight bits stand first in what is the TTL of other records.
                rcode |= u16::from(record.ttl.to_be_bytes()[0]) << 4;
                opt = true;
            }
        }
        message
            .get_mut(HEADER..self.question_end)?
            .copy_from_slice(&self.message[HEADER..self.question_end]);
        Some(UpstreamResponse { message, rcode, opt })
    }
}

/// Letters of the labels in `name`, upper or lower case by chance. Length bytes are below any letter.
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

/// The bytes of one try.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    /// Where the question ends.
    question_end: usize,
    /// Whether the answer must have the letters as they are here.
    exact_case: bool,
}

/// What a message is to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseMatch {
    /// Its answer.
    Full,
    /// Its answer but for the letters' case.
    ExceptCase,
    /// Something else.
    Stray,
}

impl Packet {
    /// The same with this id.
    pub(super) fn with_id(&self, id: u16) -> Self {
        let mut bytes = self.bytes.clone();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        Self { bytes, ..*self }
    }

    /// With its length before it (RFC 1035 section 4.2.2).
    pub(super) fn framed(&self) -> Vec<u8> {
        let length = u16::try_from(self.bytes.len()).unwrap_or(u16::MAX);
        [&length.to_be_bytes(), self.bytes.as_slice()].concat()
    }

    /// Whether `message`, whose id is ours, answers this question: a response with the same opcode and question
    /// (RFC 5452 section 9.1).
    pub(super) fn match_response(&self, message: &[u8]) -> ResponseMatch {
        let word = |bytes, at| u16_at(bytes, at).unwrap_or_default();
        let flags = word(message, 2);
        if message.len() < HEADER
            || flags & flags::QR == 0
            || (flags ^ word(&self.bytes, 2)) & flags::OPCODE != 0
        {
            return ResponseMatch::Stray;
        }
        let question = &self.bytes[HEADER..self.question_end];
        match word(message, 4) {
            0 if matches!(flags & 0xF, rcode::FORMERR | rcode::NOTIMP) => ResponseMatch::Full,
            1 => match message.get(HEADER..self.question_end) {
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

/// Type and class are numbers: a type of 0x41 is not one of 0x61.
fn same_type(one: &[u8], other: &[u8]) -> bool {
    one[one.len() - 4..] == other[other.len() - 4..]
}

/// An answer that belongs to the question and is well-formed.
#[derive(Debug)]
pub(in crate::upstream) struct UpstreamResponse {
    /// The whole message.
    pub(in crate::upstream) message: Vec<u8>,
    /// The response code with its upper bits.
    pub(in crate::upstream) rcode: u16,
    /// Whether there is an OPT record.
    opt: bool,
}

impl UpstreamResponse {
    /// Whether records are missing from it.
    pub(in crate::upstream) fn is_truncated(&self) -> bool {
        u16_at(&self.message, 2).unwrap_or_default() & flags::TC != 0
    }

    /// Whether it speaks of the name question for: it exists, or it does not.
    pub(in crate::upstream) fn is_final(&self) -> bool {
        matches!(self.rcode, rcode::NOERROR | rcode::NXDOMAIN)
    }

    /// Whether it may be a refusal of EDNS (RFC 6891 section 7): who knows it answers with an OPT.
    pub(super) fn rejects_edns(&self) -> bool {
        matches!(self.rcode, rcode::FORMERR | rcode::NOTIMP) && !self.opt
            || self.rcode == rcode::BADVERS
    }
}
