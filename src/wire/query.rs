//! A query, strictly read.
//!
//! What RFC 1035 section 4.1, RFC 6891 section 6.1 and RFC 9619 (one question) demand of one; every loop consumes octets,
//! nothing is allocated, nothing is followed but forwards.

use super::{HEADER, TCP_MAX, Transport, UDP_MAX, UDP_PLAIN, flags, rcode, rtype, u16_at};

/// A packet, looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// Too short for a header, or itself a response: never answered, not even with an error (a forged packet between two
    /// servers would be answered for ever, RUSTSEC-2023-0041).
    Silent,
    /// A header and perhaps a question, but no query we take: to be answered with this code.
    Bad {
        /// As far as it could be read; `question` is empty where it could not.
        query: Query<'a>,
        /// FORMERR, NOTIMP or BADVERS.
        rcode: u16,
    },
    /// A query.
    Query(Query<'a>),
}

/// One question and what its message says about how to answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    /// The message's id.
    pub id: u16,
    /// The flags as received.
    pub flags: u16,
    /// The question's octets as received: name, type and class.
    pub question: &'a [u8],
    /// The type asked for; 0 without a question.
    pub qtype: u16,
    /// The class asked for; 0 without a question.
    pub qclass: u16,
    /// The OPT record, if there is one.
    pub edns: Option<Edns>,
    /// The OPT record's options as received: code, length and data each (RFC 6891 section 6.1.2); they fill it exactly.
    pub options: &'a [u8],
    /// Whether there are records besides OPT, such as a signature (RFC 8945).
    pub more: bool,
}

/// What a query's OPT record says (RFC 6891 section 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest UDP payload the client takes, octets, as written: below 512 means 512.
    pub payload: u16,
    /// The EDNS version.
    pub version: u8,
    /// Whether the client wants DNSSEC records.
    pub dnssec_ok: bool,
}

impl<'a> Query<'a> {
    /// The question's name: uncompressed wire octets with the root label; empty without a question.
    #[must_use]
    pub fn name(&self) -> &'a [u8] {
        self.question.get(..self.question.len().saturating_sub(4)).unwrap_or_default()
    }

    /// The largest response to this query, octets (RFC 6891 section 6.2.5).
    #[must_use]
    pub fn limit(&self, transport: Transport) -> usize {
        match (transport, self.edns) {
            (Transport::Tcp, _) => TCP_MAX,
            (Transport::Udp, None) => UDP_PLAIN,
            (Transport::Udp, Some(edns)) => usize::from(edns.payload).clamp(UDP_PLAIN, UDP_MAX),
        }
    }

    /// Reads a packet.
    #[must_use]
    pub fn parse(packet: &'a [u8]) -> Parsed<'a> {
        let word = |at| u16_at(packet, at).unwrap_or_default();
        let flags = word(2);
        if packet.len() < HEADER || flags & flags::QR != 0 {
            return Parsed::Silent;
        }
        let mut query = Self { id: word(0), flags, question: &[], qtype: 0, qclass: 0, edns: None, options: &[], more: false };
        let counts = [word(6), word(8), word(10)];
        let one_question = word(4) == 1;
        if one_question && let Some(end) = name_end(packet, HEADER, false).filter(|end| packet.len() >= end + 4) {
            query.question = &packet[HEADER..end + 4];
            query.qtype = word(end);
            query.qclass = word(end + 2);
        }
        if flags & flags::OPCODE != 0 {
            // An OPT record is answered by one, as far as it can be read (RFC 6891 section 6.1.1).
            let _ = query.read_tail(packet, counts);
            return Parsed::Bad { query, rcode: rcode::NOTIMP };
        }
        if query.question.is_empty() {
            return Parsed::Bad { query, rcode: rcode::FORMERR };
        }
        if query.read_tail(packet, counts).is_none() {
            return Parsed::Bad { query, rcode: rcode::FORMERR };
        }
        if query.edns.is_some_and(|edns| edns.version != 0) {
            return Parsed::Bad { query, rcode: rcode::BADVERS };
        }
        if matches!(query.qtype, 0 | rtype::OPT) {
            return Parsed::Bad { query, rcode: rcode::FORMERR };
        }
        Parsed::Query(query)
    }

    /// Walks the records behind the question to the end of the message. `None` when they do not fill it exactly, or there is
    /// more than one OPT, or one where none belongs.
    fn read_tail(&mut self, packet: &'a [u8], counts: [u16; 3]) -> Option<()> {
        let mut at = HEADER + self.question.len();
        let (mut found, mut options, mut more) = (None, &[][..], false);
        for (section, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let end = name_end(packet, at, true)?;
                let rtype = u16_at(packet, end)?;
                let data = end + 10;
                let len = usize::from(u16_at(packet, end + 8)?);
                let rdata = packet.get(data..data + len)?;
                if rtype == rtype::OPT {
                    if section != 2 || found.is_some() || end != at + 1 || !options_fit(rdata) {
                        return None;
                    }
                    let dnssec_ok = packet[end + 6] & 0x80 != 0;
                    found = Some(Edns { payload: u16_at(packet, end + 2)?, version: packet[end + 5], dnssec_ok });
                    options = rdata;
                } else {
                    more = true;
                }
                at = data + len;
            }
        }
        if at != packet.len() {
            return None;
        }
        (self.edns, self.options, self.more) = (found, options, more);
        Some(())
    }
}

/// The name that a message asks for, in wire form; none where there is no uncompressed one of at most 255 octets. Nothing else
/// of the message is looked at.
#[must_use]
pub fn question_name(message: &[u8]) -> Option<&[u8]> {
    message.get(HEADER..name_end(message, HEADER, false)?)
}

/// Where the name at `at` ends. A name of at most 255 octets, labels of at most 63; a pointer ends it where `pointers`
/// may stand (it is not followed: nobody here reads those names).
#[must_use]
pub fn name_end(packet: &[u8], at: usize, pointers: bool) -> Option<usize> {
    let mut end = at;
    loop {
        let len = *packet.get(end)?;
        match len {
            0 => return (end + 1 - at <= 255).then_some(end + 1),
            1..=63 => end += 1 + usize::from(len),
            0xC0.. if pointers => return (end + 2 <= packet.len()).then_some(end + 2),
            _ => return None,
        }
    }
}

/// Whether OPT's options fill its data exactly.
fn options_fit(mut data: &[u8]) -> bool {
    while !data.is_empty() {
        let Some(len) = u16_at(data, 2) else { return false };
        let Some(rest) = data.get(4 + usize::from(len)..) else { return false };
        data = rest;
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(hex: &str) -> Vec<u8> {
        let digits: String = hex.split_whitespace().collect();
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
    }

    const HELLO: &str = "05 68656c6c6f 03 737663 00 0001 0001";

    fn rcode_of(hex: &str) -> Option<u16> {
        match Query::parse(&packet(hex)) {
            Parsed::Silent => None,
            Parsed::Bad { rcode, .. } => Some(rcode),
            Parsed::Query(_) => Some(rcode::NOERROR),
        }
    }

    #[test]
    fn a_plain_question() {
        let bytes = packet(&format!("1234 0100 0001 0000 0000 0000 {HELLO}"));
        let Parsed::Query(query) = Query::parse(&bytes) else { panic!("not taken") };
        assert_eq!((query.id, query.qtype, query.qclass, query.edns), (0x1234, 1, 1, None));
        assert_eq!(query.question, &bytes[12..]);
        assert_eq!(query.name(), &bytes[12..23]);
    }

    #[test]
    fn edns_is_read() {
        let bytes = packet(&format!("1234 0100 0001 0000 0000 0001 {HELLO} 00 0029 04d0 00 00 8000 0000"));
        let Parsed::Query(query) = Query::parse(&bytes) else { panic!("not taken") };
        assert_eq!(query.edns, Some(Edns { payload: 1232, version: 0, dnssec_ok: true }));
    }

    #[test]
    fn what_is_not_taken() {
        let opt = "00 0029 04d0 00 00 0000 0000";
        for (what, hex, rcode) in [
            ("a short header", "1234 0100 0001 0000 0000 00".to_owned(), None),
            ("a response", format!("1234 8100 0001 0000 0000 0000 {HELLO}"), None),
            ("a notify", format!("1234 2100 0001 0000 0000 0000 {HELLO}"), Some(rcode::NOTIMP)),
            ("no question", "1234 0100 0000 0000 0000 0000".to_owned(), Some(rcode::FORMERR)),
            ("two questions", format!("1234 0100 0002 0000 0000 0000 {HELLO}{HELLO}"), Some(rcode::FORMERR)),
            ("65,535 questions", "1234 0100 ffff 0000 0000 0000".to_owned(), Some(rcode::FORMERR)),
            ("a cut question", "1234 0100 0001 0000 0000 0000 05 6865".to_owned(), Some(rcode::FORMERR)),
            ("a pointer in the question", "1234 0100 0001 0000 0000 0000 c00c 0001 0001".to_owned(), Some(rcode::FORMERR)),
            ("an octet too many", format!("1234 0100 0001 0000 0000 0000 {HELLO} 00"), Some(rcode::FORMERR)),
            ("a missing record", format!("1234 0100 0001 0000 0000 0001 {HELLO}"), Some(rcode::FORMERR)),
            ("two OPTs", format!("1234 0100 0001 0000 0000 0002 {HELLO} {opt} {opt}"), Some(rcode::FORMERR)),
            ("OPT as an answer", format!("1234 0100 0001 0001 0000 0000 {HELLO} {opt}"), Some(rcode::FORMERR)),
            ("OPT with an owner", format!("1234 0100 0001 0000 0000 0001 {HELLO} c00c 0029 04d0 00 00 0000 0000"), Some(rcode::FORMERR)),
            ("a cut option", format!("1234 0100 0001 0000 0000 0001 {HELLO} 00 0029 04d0 00 00 0000 0004 000a 0008"), Some(rcode::FORMERR)),
            ("EDNS version 1", format!("1234 0100 0001 0000 0000 0001 {HELLO} 00 0029 04d0 00 01 0000 0000"), Some(rcode::BADVERS)),
            ("type 0", "1234 0100 0001 0000 0000 0000 03 737663 00 0000 0001".to_owned(), Some(rcode::FORMERR)),
            ("OPT as a question", "1234 0100 0001 0000 0000 0000 03 737663 00 0029 0001".to_owned(), Some(rcode::FORMERR)),
            ("a record with a pointer", format!("1234 0100 0001 0000 0000 0001 {HELLO} c00c 0001 0001 00000001 0004 7f000001"), Some(0)),
        ] {
            assert_eq!(rcode_of(&hex), rcode, "{what}");
        }
    }

    proptest! {
        #[test]
        fn no_packet_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Query::parse(&bytes);
        }

        #[test]
        fn no_tail_panics(tail in proptest::collection::vec(any::<u8>(), 0..80), additional in 0u16..4) {
            let mut bytes = packet(&format!("1234 0100 0001 0000 0000 {additional:04x} {HELLO}"));
            bytes.extend(tail);
            let _ = Query::parse(&bytes);
        }
    }
}
