//! The queries and their right responses.
//!
//! A name's address is a hash of the name, so that no response fits another name.

/// The zone of all names.
const ZONE: &[u8] = b"\x05bench\x07example\x00";

/// Labels between a name's number and the zone, which choose the TTL.
const HOT: &[u8] = b"\x03hot";
const ONCE: &[u8] = b"\x04once";

/// Number of names that are queried repeatedly.
pub(crate) const HOT_NAMES: u32 = 1000;

/// TTL of a hot name in seconds; longer than any run.
const HOT_TTL: u32 = 3600;
/// TTL of a name that is queried once, in seconds.
const ONCE_TTL: u32 = 30;

/// A kind of names to query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One of [`HOT_NAMES`].
    Cached,
    /// A new name each time.
    Uncached,
}

/// Writes an A query and returns the right address.
///
/// The query has no EDNS, like those of the C library.
pub(crate) fn write(kind: Kind, id: u16, out: &mut Vec<u8>) -> [u8; 4] {
    match kind {
        Kind::Cached => write_hot(fastrand::u32(..HOT_NAMES), id, out),
        Kind::Uncached => write_name(
            ONCE,
            u64::from(fastrand::u32(..)) << 32 | u64::from(fastrand::u32(..)),
            id,
            out,
        ),
    }
}

/// Writes the query for a hot name, and returns the right address.
pub(crate) fn write_hot(number: u32, id: u16, out: &mut Vec<u8>) -> [u8; 4] {
    write_name(HOT, number.into(), id, out)
}

fn write_name(kind: &[u8], number: u64, id: u16, out: &mut Vec<u8>) -> [u8; 4] {
    out.clear();
    out.extend(id.to_be_bytes());
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    out.push(16);
    out.extend(
        (0..16)
            .rev()
            .map(|digit| b"0123456789abcdef"[usize::from((number >> (digit * 4)) as u8 & 15)]),
    );
    out.extend(kind);
    out.extend(ZONE);
    let address = address(&out[12..]);
    out.extend([0, 1, 0, 1]);
    address
}

/// Returns the address of a name in wire form; its case does not matter.
fn address(name: &[u8]) -> [u8; 4] {
    let hash = name.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0193)
    });
    hash.to_be_bytes()
}

/// Writes the response to such a query; `None` if the message is not one.
pub(crate) fn respond(query: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut end = 12;
    while *query.get(end)? != 0 {
        end += 1 + usize::from(query[end]);
    }
    let (name, end) = (query.get(12..=end)?, end + 5);
    let first = usize::from(*name.first()?) + 1;
    let hot = name.get(first..)?.get(..HOT.len())?.eq_ignore_ascii_case(HOT);
    out.clear();
    out.extend(query.get(..end)?);
    // QR and RA; RD and CD as in the query; one answer record.
    out[2] = 0x80 | query[2] & 0x01;
    out[3] = 0x80 | query[3] & 0x10;
    let opt = query[11];
    out[6..12].copy_from_slice(&[0, 1, 0, 0, 0, opt]);
    out.extend([0xC0, 12, 0, 1, 0, 1]);
    out.extend(if hot { HOT_TTL } else { ONCE_TTL }.to_be_bytes());
    out.extend([0, 4]);
    out.extend(address(name));
    if opt == 1 {
        out.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    }
    Some(())
}

/// Returns whether a message is a complete NOERROR response with this address only.
///
/// The response must be without EDNS: the address is expected at its end.
pub(crate) fn is_right(message: &[u8], address: [u8; 4]) -> bool {
    let [_, _, a, b, _, _, answers @ ..] = message else { return false };
    u16::from_be_bytes([*a, *b]) & 0x820F == 0x8000
        && answers.starts_with(&[0, 1])
        && message.ends_with(&address)
}
