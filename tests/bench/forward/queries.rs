//! What is asked, and what the right answer is: an address made of the name, so that no answer can be mistaken for another's.

/// Where all names lie.
const ZONE: &[u8] = b"\x05bench\x07example\x00";

/// Labels in front of a name that say how long its address may be kept.
const HOT: &[u8] = b"\x03hot";
const ONCE: &[u8] = b"\x04once";

/// Names that are asked again and again.
pub(crate) const HOT_NAMES: u32 = 1000;

/// Seconds that the address of a hot name may be kept: longer than any run.
const HOT_TTL: u32 = 3600;
/// And that of a name asked once.
const ONCE_TTL: u32 = 30;

/// Which names are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One of [`HOT_NAMES`].
    Cached,
    /// A name that nobody has asked for before.
    Uncached,
}

/// Writes a query for the A records of a name, without EDNS, as the C library asks; the address that must come back.
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

/// The query for one of the hot names.
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

/// The address of a name on the wire, whatever its case.
fn address(name: &[u8]) -> [u8; 4] {
    let hash = name.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0193)
    });
    hash.to_be_bytes()
}

/// What a server says to such a query; none for what is no query.
pub(crate) fn answer(query: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut end = 12;
    while *query.get(end)? != 0 {
        end += 1 + usize::from(query[end]);
    }
    let (name, end) = (query.get(12..=end)?, end + 5);
    let first = usize::from(*name.first()?) + 1;
    let hot = name.get(first..)?.get(..HOT.len())?.eq_ignore_ascii_case(HOT);
    out.clear();
    out.extend(query.get(..end)?);
    // A response to a query that desires recursion or does not, recursion available, one answer.
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

/// Whether an answer without EDNS is the right one: a response, not truncated, no error, one address, this one.
pub(crate) fn is_right(message: &[u8], address: [u8; 4]) -> bool {
    let [_, _, a, b, _, _, answers @ ..] = message else { return false };
    u16::from_be_bytes([*a, *b]) & 0x820F == 0x8000
        && answers.starts_with(&[0, 1])
        && message.ends_with(&address)
}
