//! Bytes that every room which touches packets shares: the header, the one question, OPT and its
//! extended errors; types and codes as text.
//!
//! A leaf: imports no other room. Knows no data and no policy: what is malformed is said here, what to answer elsewhere.

mod query;
mod records;
mod text;

pub use query::{Edns, Parsed, Query, name_end, question_name};
pub use records::{Malformed, Record, Records, Section, expand_name, name_stands_in, question_end, records};
pub use text::{extended_error_text, rcode_name, type_name, type_number};

/// Octets of a message header (RFC 1035 section 4.1.1).
pub const HEADER: usize = 12;
/// The largest UDP answer, whatever the client offers: fits IPv6's minimum MTU unfragmented (DNS flag day 2020).
pub const UDP_MAX: usize = 1232;
/// The largest UDP answer to a client that offers nothing (RFC 1035 section 2.3.4).
pub const UDP_PLAIN: usize = 512;
/// The largest message over TCP: its length prefix has two octets.
pub const TCP_MAX: usize = 65535;
/// A compression pointer to the owner of the question, which always stands right after the header.
pub const OWNER: [u8; 2] = [0xC0, 0x0C];

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A length-prefixed message on a connection.
    Tcp,
}

impl Transport {
    /// Returns its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        }
    }
}

/// Header flag bits of the third and fourth octet, as one big-endian number (RFC 1035 section 4.1.1, RFC 4035 section 3).
pub mod flags {
    /// This is a response.
    pub const QR: u16 = 0x8000;
    /// The four bits of the opcode.
    pub const OPCODE: u16 = 0x7800;
    /// The answer is authoritative.
    pub const AA: u16 = 0x0400;
    /// The answer is truncated.
    pub const TC: u16 = 0x0200;
    /// Recursion is desired.
    pub const RD: u16 = 0x0100;
    /// Recursion is available.
    pub const RA: u16 = 0x0080;
    /// The data is authentic.
    pub const AD: u16 = 0x0020;
    /// Checking is disabled.
    pub const CD: u16 = 0x0010;
}

/// Response codes (RFC 1035 section 4.1.1, RFC 6891 section 9).
pub mod rcode {
    /// No error.
    pub const NOERROR: u16 = 0;
    /// The message could not be understood.
    pub const FORMERR: u16 = 1;
    /// The server cannot answer now.
    pub const SERVFAIL: u16 = 2;
    /// The name does not exist.
    pub const NXDOMAIN: u16 = 3;
    /// The operation is not implemented.
    pub const NOTIMP: u16 = 4;
    /// The server will not answer.
    pub const REFUSED: u16 = 5;
    /// The EDNS version is not known here.
    pub const BADVERS: u16 = 16;
}

/// Record types and classes used here (IANA DNS parameters).
pub mod rtype {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Name server.
    pub const NS: u16 = 2;
    /// Another name for this one.
    pub const CNAME: u16 = 5;
    /// Start of authority.
    pub const SOA: u16 = 6;
    /// Name for a reverse name.
    pub const PTR: u16 = 12;
    /// Text.
    pub const TXT: u16 = 16;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// Service location (RFC 2782).
    pub const SRV: u16 = 33;
    /// EDNS pseudo-record (RFC 6891).
    pub const OPT: u16 = 41;
    /// Incremental zone transfer.
    pub const IXFR: u16 = 251;
    /// Zone transfer.
    pub const AXFR: u16 = 252;
    /// Any type the server chooses (RFC 8482).
    pub const ANY: u16 = 255;
    /// The Internet class.
    pub const IN: u16 = 1;
}

/// An extended error (RFC 8914): a code and a few words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedError {
    /// The info code.
    pub code: u16,
    /// Extra text, UTF-8, short: it takes room from the answer.
    pub text: &'static str,
}

impl ExtendedError {
    /// Info code 0: other.
    pub const OTHER: u16 = 0;
    /// Info code 3: stale answer.
    pub const STALE_ANSWER: u16 = 3;
    /// Info code 14: not ready.
    pub const NOT_READY: u16 = 14;
    /// Info code 15: blocked.
    pub const BLOCKED: u16 = 15;
    /// Info code 18: prohibited.
    pub const PROHIBITED: u16 = 18;
    /// Info code 19: stale NXDOMAIN answer.
    pub const STALE_NXDOMAIN: u16 = 19;
    /// Info code 20: not authoritative.
    pub const NOT_AUTHORITATIVE: u16 = 20;
    /// Info code 21: not supported.
    pub const NOT_SUPPORTED: u16 = 21;
    /// Info code 22: no reachable authority.
    pub const NO_REACHABLE_AUTHORITY: u16 = 22;
    /// Info code 23: network error.
    pub const NETWORK_ERROR: u16 = 23;
}

/// Octets of an OPT record without options.
pub const OPT: usize = 11;

/// Octets of the OPT record that [`put_opt`] writes.
#[must_use]
pub fn opt_len(error: Option<ExtendedError>) -> usize {
    OPT + error.map_or(0, |error| 6 + error.text.len())
}

/// Appends our OPT record (RFC 6891 section 6.1.2): our own payload size, the upper bits of `rcode`, the DO bit as asked
/// (RFC 3225), and an extended error.
pub fn put_opt(out: &mut Vec<u8>, rcode: u16, dnssec_ok: bool, error: Option<ExtendedError>) {
    put_opt_with(out, rcode, dnssec_ok, &[], error);
}

/// The same, with other `options` in front of the extended error: well-formed, at most some 60,000 octets.
pub fn put_opt_with(out: &mut Vec<u8>, rcode: u16, dnssec_ok: bool, options: &[u8], error: Option<ExtendedError>) {
    out.push(0);
    put_u16(out, rtype::OPT);
    put_u16(out, PAYLOAD);
    out.push((rcode >> 4).to_be_bytes()[1]);
    out.push(0);
    put_u16(out, if dnssec_ok { 0x8000 } else { 0 });
    let length = options.len() + opt_len(error) - OPT;
    put_u16(out, u16::try_from(length).unwrap_or_default());
    out.extend_from_slice(options);
    if let Some(error) = error {
        put_error(out, error);
    }
}

/// Appends an extended error as an option (RFC 8914 section 2).
pub fn put_error(out: &mut Vec<u8>, ExtendedError { code, text }: ExtendedError) {
    put_u16(out, EXTENDED_ERROR);
    put_u16(out, u16::try_from(2 + text.len()).unwrap_or_default());
    put_u16(out, code);
    out.extend_from_slice(text.as_bytes());
}

/// The EDNS option that holds an extended error (RFC 8914 section 2).
pub const EXTENDED_ERROR: u16 = 15;

/// Our own receive size, as told in OPT.
const PAYLOAD: u16 = 1232;

/// Appends a big-endian number.
pub fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends a big-endian number.
pub fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// The big-endian number at `at`, or none past the end.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes([four[0], four[1], four[2], four[3]]))
}

/// The big-endian number at `at`, or none past the end.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}
