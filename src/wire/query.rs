//! A strict parser for queries.
//!
//! The parser enforces RFC 1035 section 4.1, RFC 6891 section 6.1 and RFC 9619 (a single question).
//! It allocates nothing and follows no compression pointer. Every loop consumes bytes, so it ends.

use super::{HEADER_BYTES, Transport, flags, rcode, response_limit, rtype, u16_at};

/// The result of parsing a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A response or a message shorter than a header: it gets no response at all.
    ///
    /// Otherwise, two servers would answer each other's errors forever (RUSTSEC-2023-0041).
    Silent,
    /// An invalid or unsupported query, which gets this response code.
    Bad {
        /// The parsed parts; `question` is empty if the question could not be parsed.
        query: Query<'a>,
        /// FORMERR, NOTIMP or BADVERS.
        rcode: u16,
    },
    /// A valid query.
    Query(Query<'a>),
}

impl Parsed<'_> {
    /// Returns the query type; 0 without a question.
    #[must_use]
    pub fn qtype(&self) -> u16 {
        match self {
            Self::Silent => 0,
            Self::Bad { query, .. } | Self::Query(query) => query.qtype,
        }
    }
}

/// A query: its question, and the fields that decide how to respond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    /// Message ID.
    pub id: u16,
    /// Flags as received.
    pub flags: u16,
    /// Question entry as received: name, type and class.
    pub question: &'a [u8],
    /// Query type; 0 without a question.
    pub qtype: u16,
    /// Query class; 0 without a question.
    pub qclass: u16,
    /// Contents of the OPT record, if present.
    pub edns: Option<Edns>,
    /// Options of the OPT record as received (RFC 6891 section 6.1.2).
    ///
    /// Each option has a code, a length and data; together they fill the record exactly.
    pub options: &'a [u8],
    /// Whether the message has records besides OPT, such as a signature (RFC 8945).
    pub has_other_records: bool,
}

/// Fields of a query's OPT record (RFC 6891 section 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Requestor's UDP payload size in bytes, not clamped; below 512 means 512.
    pub payload: u16,
    /// EDNS version.
    pub version: u8,
    /// The DO bit: the client wants DNSSEC records.
    pub dnssec_ok: bool,
}

impl<'a> Query<'a> {
    /// Returns the query name in wire form, with the root label.
    ///
    /// Empty if there is no question.
    #[must_use]
    pub fn name(&self) -> &'a [u8] {
        self.question.get(..self.question.len().saturating_sub(4)).unwrap_or_default()
    }

    /// Returns the header flags that every response to this message has.
    ///
    /// `recursion` sets RA. RA and CD have a meaning only for opcode QUERY (RFC 1035 section 4.1.1,
    /// RFC 4035 section 3.2.2).
    #[must_use]
    pub fn response_flags(&self, recursion: bool) -> u16 {
        let copied = flags::QR | self.flags & (flags::OPCODE | flags::RD);
        if self.flags & flags::OPCODE != 0 {
            return copied;
        }
        copied | self.flags & flags::CD | if recursion { flags::RA } else { 0 }
    }

    /// Returns the size limit for a response to this message, in bytes.
    #[must_use]
    pub fn limit(&self, transport: Transport) -> usize {
        response_limit(transport, self.edns.map(|edns| edns.payload))
    }

    /// Parses a message as a query.
    #[must_use]
    pub fn parse(packet: &'a [u8]) -> Parsed<'a> {
        let word = |at| u16_at(packet, at).unwrap_or_default();
        let flags = word(2);
        if packet.len() < HEADER_BYTES || flags & flags::QR != 0 {
            return Parsed::Silent;
        }
        let mut query = Self {
            id: word(0),
            flags,
            question: &[],
            qtype: 0,
            qclass: 0,
            edns: None,
            options: &[],
            has_other_records: false,
        };
        let counts = [word(6), word(8), word(10)];
        let one_question = word(4) == 1;
        if one_question
            && let Some(end) =
                name_end(packet, HEADER_BYTES, false).filter(|end| packet.len() >= end + 4)
        {
            query.question = &packet[HEADER_BYTES..end + 4];
            query.qtype = word(end);
            query.qclass = word(end + 2);
        }
        if flags & flags::OPCODE != 0 {
            // A query with OPT gets a response with OPT, even if parsing fails after it (RFC 6891
            // section 6.1.1).
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

    /// Parses the records after the question.
    ///
    /// Returns `None` if they do not fill the message exactly, or if an OPT record is duplicate,
    /// malformed or in the wrong section.
    fn read_tail(&mut self, packet: &'a [u8], counts: [u16; 3]) -> Option<()> {
        let mut at = HEADER_BYTES + self.question.len();
        let (mut found, mut options, mut has_other_records) = (None, &[][..], false);
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
                    found = Some(Edns {
                        payload: u16_at(packet, end + 2)?,
                        version: packet[end + 5],
                        dnssec_ok,
                    });
                    options = rdata;
                } else {
                    has_other_records = true;
                }
                at = data + len;
            }
        }
        if at != packet.len() {
            return None;
        }
        (self.edns, self.options, self.has_other_records) = (found, options, has_other_records);
        Some(())
    }
}

/// Returns the query name of a message in wire form, without other checks.
///
/// Returns `None` if the name is compressed, truncated or longer than 255 bytes.
#[must_use]
pub fn question_name(message: &[u8]) -> Option<&[u8]> {
    message.get(HEADER_BYTES..name_end(message, HEADER_BYTES, false)?)
}

/// Returns the offset just after the name at `at`.
///
/// The name has at most 255 bytes, with labels of at most 63 bytes. With `pointers`, a compression
/// pointer may end the name; this function does not follow the pointer.
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

/// Returns whether EDNS options fill `data` exactly.
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
        (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect()
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
    fn a_query_without_edns_is_parsed() {
        let bytes = packet(&format!("1234 0100 0001 0000 0000 0000 {HELLO}"));
        let Parsed::Query(query) = Query::parse(&bytes) else { panic!("not taken") };
        assert_eq!((query.id, query.qtype, query.qclass, query.edns), (0x1234, 1, 1, None));
        assert_eq!(query.question, &bytes[12..]);
        assert_eq!(query.name(), &bytes[12..23]);
    }

    #[test]
    fn edns_fields_are_parsed() {
        let bytes =
            packet(&format!("1234 0100 0001 0000 0000 0001 {HELLO} 00 0029 04d0 00 00 8000 0000"));
        let Parsed::Query(query) = Query::parse(&bytes) else { panic!("not taken") };
        assert_eq!(query.edns, Some(Edns { payload: 1232, version: 0, dnssec_ok: true }));
    }

    #[test]
    fn invalid_queries_get_their_response_code() {
        let opt = "00 0029 04d0 00 00 0000 0000";
        for (what, hex, rcode) in [
            ("a short header", "1234 0100 0001 0000 0000 00".to_owned(), None),
            ("a response", format!("1234 8100 0001 0000 0000 0000 {HELLO}"), None),
            ("a notify", format!("1234 2100 0001 0000 0000 0000 {HELLO}"), Some(rcode::NOTIMP)),
            ("no question", "1234 0100 0000 0000 0000 0000".to_owned(), Some(rcode::FORMERR)),
            (
                "two questions",
                format!("1234 0100 0002 0000 0000 0000 {HELLO}{HELLO}"),
                Some(rcode::FORMERR),
            ),
            ("65,535 questions", "1234 0100 ffff 0000 0000 0000".to_owned(), Some(rcode::FORMERR)),
            (
                "a cut question",
                "1234 0100 0001 0000 0000 0000 05 6865".to_owned(),
                Some(rcode::FORMERR),
            ),
            (
                "a pointer in the question",
                "1234 0100 0001 0000 0000 0000 c00c 0001 0001".to_owned(),
                Some(rcode::FORMERR),
            ),
            (
                "an byte too many",
                format!("1234 0100 0001 0000 0000 0000 {HELLO} 00"),
                Some(rcode::FORMERR),
            ),
            (
                "a missing record",
                format!("1234 0100 0001 0000 0000 0001 {HELLO}"),
                Some(rcode::FORMERR),
            ),
            (
                "two OPTs",
                format!("1234 0100 0001 0000 0000 0002 {HELLO} {opt} {opt}"),
                Some(rcode::FORMERR),
            ),
            (
                "OPT as an answer",
                format!("1234 0100 0001 0001 0000 0000 {HELLO} {opt}"),
                Some(rcode::FORMERR),
            ),
            (
                "OPT with an owner",
                format!("1234 0100 0001 0000 0000 0001 {HELLO} c00c 0029 04d0 00 00 0000 0000"),
                Some(rcode::FORMERR),
            ),
            (
                "a cut option",
                format!(
                    "1234 0100 0001 0000 0000 0001 {HELLO} 00 0029 04d0 00 00 0000 0004 000a 0008"
                ),
                Some(rcode::FORMERR),
            ),
            (
                "EDNS version 1",
                format!("1234 0100 0001 0000 0000 0001 {HELLO} 00 0029 04d0 00 01 0000 0000"),
                Some(rcode::BADVERS),
            ),
            (
                "type 0",
                "1234 0100 0001 0000 0000 0000 03 737663 00 0000 0001".to_owned(),
                Some(rcode::FORMERR),
            ),
            (
                "OPT as a question",
                "1234 0100 0001 0000 0000 0000 03 737663 00 0029 0001".to_owned(),
                Some(rcode::FORMERR),
            ),
            (
                "a record with a pointer",
                format!(
                    "1234 0100 0001 0000 0000 0001 {HELLO} c00c 0001 0001 00000001 0004 7f000001"
                ),
                Some(0),
            ),
        ] {
            assert_eq!(rcode_of(&hex), rcode, "{what}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Query::parse(&bytes);
        }

        #[test]
        fn parsing_records_after_the_question_never_panics(
            tail in proptest::collection::vec(any::<u8>(), 0..80),
            additional in 0u16..4,
        ) {
            let mut bytes = packet(&format!("1234 0100 0001 0000 0000 {additional:04x} {HELLO}"));
            bytes.extend(tail);
            let _ = Query::parse(&bytes);
        }
    }
}
