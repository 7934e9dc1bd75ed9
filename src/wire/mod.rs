//! The parts of the DNS wire format that other modules share, and their text forms.
//!
//! Imports no other module. Reports malformed messages; the callers decide on the response.

mod query;
mod records;
mod text;

pub use query::{Edns, Parsed, Query, name_end, question_name};
pub use records::{
    MalformedMessage, Record, Records, Section, copy_name, expand_name, name_overlaps,
    question_end, records,
};
pub use text::{extended_error_text, rcode_name, type_name, type_number};

/// Size of a message header, in bytes (RFC 1035 section 4.1.1).
pub const HEADER_BYTES: usize = 12;
/// Maximum size of a UDP response in bytes, even if the client advertises more.
///
/// Fits IPv6's minimum MTU without fragmentation (DNS flag day 2020).
pub const MAX_UDP_BYTES: usize = 1232;
/// Maximum size of a UDP response without EDNS, in bytes (RFC 1035 section 2.3.4).
pub const MAX_UDP_BYTES_WITHOUT_EDNS: usize = 512;
/// Maximum size of a message over TCP, in bytes: the length prefix has two bytes.
pub const MAX_TCP_BYTES: usize = 65535;

/// Returns the size limit for a response, in bytes (RFC 6891 section 6.2.5).
///
/// `payload` is the UDP payload size that the client advertises; `None` means no EDNS.
#[must_use]
pub fn response_limit(transport: Transport, payload: Option<u16>) -> usize {
    match (transport, payload) {
        (Transport::Tcp, _) => MAX_TCP_BYTES,
        (Transport::Udp, None) => MAX_UDP_BYTES_WITHOUT_EDNS,
        (Transport::Udp, Some(payload)) => {
            usize::from(payload).clamp(MAX_UDP_BYTES_WITHOUT_EDNS, MAX_UDP_BYTES)
        }
    }
}

/// Compression pointer to the name in the question section, right after the header.
pub const OWNER_POINTER: [u8; 2] = [0xC0, 0x0C];

/// Returns a compression pointer to `offset` in the name of the question section.
#[must_use]
pub fn question_pointer(offset: usize) -> [u8; 2] {
    // A name has at most 255 bytes, so its offsets fit the 14 bits of a pointer.
    (0xC000 | u16::try_from(HEADER_BYTES + offset).unwrap_or(0)).to_be_bytes()
}

/// Transport of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A message with a length prefix, on a connection.
    Tcp,
}

impl Transport {
    /// Returns the name for display.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        }
    }
}

/// Header flags, bytes 2 and 3 of a message in network order.
///
/// RFC 1035 section 4.1.1, RFC 4035 section 3.
pub mod flags {
    /// The message is a response.
    pub const QR: u16 = 0x8000;
    /// Mask of the opcode.
    pub const OPCODE: u16 = 0x7800;
    /// Authoritative answer.
    pub const AA: u16 = 0x0400;
    /// Truncated.
    pub const TC: u16 = 0x0200;
    /// Recursion desired.
    pub const RD: u16 = 0x0100;
    /// Recursion available.
    pub const RA: u16 = 0x0080;
    /// Authentic data.
    pub const AD: u16 = 0x0020;
    /// Checking disabled.
    pub const CD: u16 = 0x0010;
}

/// Response codes (RFC 1035 section 4.1.1, RFC 6891 section 9).
pub mod rcode {
    /// The query succeeded.
    pub const NOERROR: u16 = 0;
    /// Format error.
    pub const FORMERR: u16 = 1;
    /// Server failure.
    pub const SERVFAIL: u16 = 2;
    /// The name does not exist.
    pub const NXDOMAIN: u16 = 3;
    /// The server does not implement the request.
    pub const NOTIMP: u16 = 4;
    /// Refused by policy.
    pub const REFUSED: u16 = 5;
    /// Unsupported EDNS version.
    pub const BADVERS: u16 = 16;
}

/// Record types and classes used here (IANA DNS parameters).
pub mod rtype {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Name server.
    pub const NS: u16 = 2;
    /// Canonical name of an alias.
    pub const CNAME: u16 = 5;
    /// Start of authority.
    pub const SOA: u16 = 6;
    /// Pointer to a name, for reverse lookups.
    pub const PTR: u16 = 12;
    /// Text.
    pub const TXT: u16 = 16;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// Service location (RFC 2782).
    pub const SRV: u16 = 33;
    /// Alias of a whole subtree (RFC 6672).
    pub const DNAME: u16 = 39;
    /// EDNS pseudo-record (RFC 6891).
    pub const OPT: u16 = 41;
    /// DNSSEC signature of an RRset (RFC 4034).
    pub const RRSIG: u16 = 46;
    /// Service parameters of web servers (RFC 9460).
    pub const HTTPS: u16 = 65;
    /// Incremental zone transfer.
    pub const IXFR: u16 = 251;
    /// Zone transfer.
    pub const AXFR: u16 = 252;
    /// Any type, at the server's choice (RFC 8482).
    pub const ANY: u16 = 255;
    /// The Internet class.
    pub const IN: u16 = 1;
}

/// An extended DNS error (RFC 8914).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedError<'a> {
    /// Info code.
    pub code: u16,
    /// Extra text; short, because it takes room from the answer section.
    pub text: &'a str,
}

impl ExtendedError<'_> {
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

/// Size of an OPT record without options, in bytes.
pub const EMPTY_OPT_BYTES: usize = 11;

/// Returns the size of the OPT record that [`put_opt`] writes, in bytes.
#[must_use]
pub fn opt_len(error: Option<ExtendedError<'_>>) -> usize {
    EMPTY_OPT_BYTES + error.map_or(0, |error| 6 + error.text.len())
}

/// Appends the server's OPT record (RFC 6891 section 6.1.2).
///
/// The record contains the server's payload size, the upper bits of `rcode`, the DO bit (RFC 3225)
/// and an extended error.
pub fn put_opt(out: &mut Vec<u8>, rcode: u16, dnssec_ok: bool, error: Option<ExtendedError<'_>>) {
    put_opt_with(out, rcode, dnssec_ok, &[], error);
}

/// Appends the server's OPT record with other `options` before the EDE.
///
/// The options must be well-formed, and at most about 60,000 bytes long.
pub fn put_opt_with(
    out: &mut Vec<u8>,
    rcode: u16,
    dnssec_ok: bool,
    options: &[u8],
    error: Option<ExtendedError<'_>>,
) {
    out.push(0);
    put_u16(out, rtype::OPT);
    put_u16(out, UDP_PAYLOAD_BYTES);
    out.push((rcode >> 4).to_be_bytes()[1]);
    out.push(0);
    put_u16(out, if dnssec_ok { 0x8000 } else { 0 });
    let length = options.len() + opt_len(error) - EMPTY_OPT_BYTES;
    put_u16(out, u16::try_from(length).unwrap_or_default());
    out.extend_from_slice(options);
    if let Some(error) = error {
        put_extended_error(out, error);
    }
}

/// Appends an extended DNS error (EDE) as an EDNS option (RFC 8914 section 2).
pub fn put_extended_error(out: &mut Vec<u8>, ExtendedError { code, text }: ExtendedError<'_>) {
    put_u16(out, OPTION_EXTENDED_ERROR);
    put_u16(out, u16::try_from(2 + text.len()).unwrap_or_default());
    put_u16(out, code);
    out.extend_from_slice(text.as_bytes());
}

/// Code of the EDNS option for extended DNS errors (RFC 8914 section 2).
pub const OPTION_EXTENDED_ERROR: u16 = 15;

/// UDP payload size that the server advertises in OPT, in bytes.
const UDP_PAYLOAD_BYTES: u16 = 1232;

/// Appends a 16-bit number in network order.
pub fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends a 32-bit number in network order.
pub fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Reads the 32-bit number in network order at `at`; `None` if it is incomplete.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes([four[0], four[1], four[2], four[3]]))
}

/// Reads the 16-bit number in network order at `at`; `None` if it is incomplete.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}
