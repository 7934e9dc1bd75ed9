//! The message that goes out, and whether what comes in answers it.

use rand::Rng;

use crate::wire::{HEADER_BYTES, MAX_TCP_BYTES, flags, question_end, rcode, records, u16_at};

/// The EDNS option of padding (RFC 7830).
const PADDING: u16 = 12;

/// A message as it is to go out: id 0, one question, OPT included.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct Outgoing {
    message: Vec<u8>,
    /// Where the question ends.
    end: usize,
    /// The OPT record's place.
    opt: Option<(usize, usize)>,
    /// Whether letters go out in random case (draft-vixie-dnsext-dns0x20).
    random_case: bool,
}

impl Outgoing {
    /// A message to ask; none when it is not well-formed, has not exactly one question, or leaves no room for padding. With `random_case` each try has
    /// letters of its own, and answers must echo them.
    pub(in crate::upstream) fn new(message: Vec<u8>, random_case: bool) -> Option<Self> {
        if message.len() > MAX_TCP_BYTES - 256 {
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
        Some(Self { message, end, opt, random_case })
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

    /// The octets of one try, id still 0. `padded` to a multiple of 128 octets, where there is an OPT record to hold the padding
    /// (RFC 8467 section 4.1).
    pub(super) fn dress(&self, edns: bool, random_case: bool, padded: bool) -> Packet {
        let mut octets = Vec::with_capacity(self.message.len() + 2);
        match self.opt {
            Some((start, end)) if !edns => {
                octets.extend_from_slice(&self.message[..start]);
                octets.extend_from_slice(&self.message[end..]);
                let additional = u16_at(&octets, 10).unwrap_or_default().saturating_sub(1);
                octets[10..12].copy_from_slice(&additional.to_be_bytes());
            }
            Some((_, end)) if padded => {
                let filler = (self.message.len() + 4).wrapping_neg() % 128;
                octets.extend_from_slice(&self.message[..end]);
                octets.extend_from_slice(&PADDING.to_be_bytes());
                octets.extend_from_slice(&[0, u8::try_from(filler).unwrap_or_default()]);
                octets.resize(octets.len() + filler, 0);
                octets.extend_from_slice(&self.message[end..]);
                self.lengthen_opt(&mut octets, filler + 4);
            }
            _ => octets.extend_from_slice(&self.message),
        }
        if random_case {
            // The last four octets of the question are its type and class.
            shuffle_case(&mut octets[HEADER_BYTES..self.end - 4]);
        }
        Packet { octets, end: self.end, exact: random_case }
    }

    /// The length of an OPT record's data stands in the two octets before it; the owner is one octet.
    fn lengthen_opt(&self, octets: &mut [u8], by: usize) {
        if let Some((start, _)) = self.opt
            && let Some(length) = u16_at(octets, start + 9)
        {
            let length = length.saturating_add(u16::try_from(by).unwrap_or_default());
            octets[start + 9..start + 11].copy_from_slice(&length.to_be_bytes());
        }
    }

    /// Reads what came in as the answer to this. The question gets its own letters back.
    pub(super) fn read(&self, mut message: Vec<u8>) -> Option<Answer> {
        if u16_at(&message, 4) == Some(0) {
            // A header alone: an error of one who did not understand the question (RFC 1035 section 4.1.1).
            message.truncate(HEADER_BYTES);
            message.extend_from_slice(&self.message[HEADER_BYTES..self.end]);
            message[4..HEADER_BYTES].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
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
        message.get_mut(HEADER_BYTES..self.end)?.copy_from_slice(&self.message[HEADER_BYTES..self.end]);
        Some(Answer { message, rcode, opt })
    }
}

/// Letters of the labels in `name`, upper or lower case by chance. Length octets are below any letter.
fn shuffle_case(name: &mut [u8]) {
    let mut random = rand::rng();
    for chunk in name.chunks_mut(64) {
        let mut bits = random.next_u64();
        for octet in chunk {
            if octet.is_ascii_alphabetic() && bits & 1 == 1 {
                *octet ^= 0x20;
            }
            bits >>= 1;
        }
    }
}

/// The octets of one try.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) octets: Vec<u8>,
    /// Where the question ends.
    end: usize,
    /// Whether the answer must have the letters as they are here.
    exact: bool,
}

/// What a message is to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// Its answer.
    Answer,
    /// Its answer but for the letters' case.
    OtherCase,
    /// Something else.
    Stray,
}

impl Packet {
    /// The same with this id.
    pub(super) fn with_id(&self, id: u16) -> Self {
        let mut octets = self.octets.clone();
        octets[..2].copy_from_slice(&id.to_be_bytes());
        Self { octets, ..*self }
    }

    /// With its length before it (RFC 1035 section 4.2.2).
    pub(super) fn framed(&self) -> Vec<u8> {
        let length = u16::try_from(self.octets.len()).unwrap_or(u16::MAX);
        [&length.to_be_bytes(), self.octets.as_slice()].concat()
    }

    /// Whether `message`, whose id is ours, answers this question: a response with the same opcode and question
    /// (RFC 5452 section 9.1).
    pub(super) fn fits(&self, message: &[u8]) -> Fit {
        let word = |octets, at| u16_at(octets, at).unwrap_or_default();
        let flags = word(message, 2);
        if message.len() < HEADER_BYTES || flags & flags::QR == 0 || (flags ^ word(&self.octets, 2)) & flags::OPCODE != 0 {
            return Fit::Stray;
        }
        let asked = &self.octets[HEADER_BYTES..self.end];
        match word(message, 4) {
            0 if matches!(flags & 0xF, rcode::FORMERR | rcode::NOTIMP) => Fit::Answer,
            1 => match message.get(HEADER_BYTES..self.end) {
                Some(echo) if echo == asked => Fit::Answer,
                Some(echo) if echo.eq_ignore_ascii_case(asked) && same_type(echo, asked) => {
                    if self.exact {
                        Fit::OtherCase
                    } else {
                        Fit::Answer
                    }
                }
                _ => Fit::Stray,
            },
            _ => Fit::Stray,
        }
    }
}

/// Type and class are numbers: a type of 0x41 is not one of 0x61.
fn same_type(one: &[u8], other: &[u8]) -> bool {
    one[one.len() - 4..] == other[other.len() - 4..]
}

/// An answer that belongs to the question and is well-formed.
#[derive(Debug)]
pub(in crate::upstream) struct Answer {
    /// The whole message.
    pub(in crate::upstream) message: Vec<u8>,
    /// The response code with its upper bits.
    pub(in crate::upstream) rcode: u16,
    /// Whether there is an OPT record.
    opt: bool,
}

impl Answer {
    /// Whether records are missing from it.
    pub(in crate::upstream) fn is_truncated(&self) -> bool {
        u16_at(&self.message, 2).unwrap_or_default() & flags::TC != 0
    }

    /// Whether it speaks of the name asked for: it exists, or it does not.
    pub(in crate::upstream) fn is_final(&self) -> bool {
        matches!(self.rcode, rcode::NOERROR | rcode::NXDOMAIN)
    }

    /// Whether it may be a refusal of EDNS (RFC 6891 section 7): who knows it answers with an OPT.
    pub(super) fn denies_edns(&self) -> bool {
        matches!(self.rcode, rcode::FORMERR | rcode::NOTIMP) && !self.opt || self.rcode == rcode::BADVERS
    }
}
