//! What is asked, and what the right answer is.

use super::content::{Content, LABEL, NEGATIVE_SIZE, QUESTION};

const A: u16 = 1;
const SRV: u16 = 33;
const AAAA: u16 = 28;

/// Namespace and deployment, which a name may leave out when they are the configured ones.
const SPELLED_OUT: &[u8] = b"\x07default\x07default";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The addresses of a service.
    A,
    /// Its instances with their ports.
    Srv,
    /// Addresses of a kind that it has none of.
    NoData,
    /// A name that is not there.
    NxDomain,
    /// Of ten queries seven for A and one for each of the others.
    Mixed,
    /// A, namespace and deployment spelled out: svcdns has such names nowhere, it works them out.
    SpelledOut,
}

impl Kind {
    /// How many there are.
    pub(crate) const COUNT: usize = Self::SpelledOut as usize + 1;

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Srv => "SRV",
            Self::NoData => "NODATA",
            Self::NxDomain => "NXDOMAIN",
            Self::Mixed => "mixed",
            Self::SpelledOut => "A of name.default.default.svc",
        }
    }

    fn draw(self) -> Self {
        match self {
            Self::Mixed => match fastrand::u8(..10) {
                0..7 => Self::A,
                7 => Self::Srv,
                8 => Self::NoData,
                _ => Self::NxDomain,
            },
            kind => kind,
        }
    }
}

/// What was asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) kind: Kind,
    service: usize,
}

/// Writes a query about a service at random, as the C library asks: recursion desired, no EDNS. `zone` is what follows a
/// name's first label, on the wire.
pub(crate) fn write(
    kind: Kind,
    content: Content,
    zone: &[u8],
    id: u16,
    out: &mut Vec<u8>,
) -> Asked {
    write_about(fastrand::usize(..content.services.max(1)), kind, content, zone, id, out)
}

/// The same about this service.
pub(crate) fn write_about(
    service: usize,
    kind: Kind,
    content: Content,
    zone: &[u8],
    id: u16,
    out: &mut Vec<u8>,
) -> Asked {
    let kind = kind.draw();
    out.clear();
    out.extend(id.to_be_bytes());
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    out.push(LABEL as u8);
    if kind == Kind::NxDomain {
        content.write_unknown(service, usize::from(id), out);
    } else {
        content.write_label(service, out);
    }
    if kind == Kind::SpelledOut {
        out.extend(SPELLED_OUT);
    }
    out.extend(zone);
    let qtype = match kind {
        Kind::Srv => SRV,
        Kind::NoData => AAAA,
        _ => A,
    };
    out.extend(qtype.to_be_bytes());
    out.extend([0, 1]);
    Asked { kind, service }
}

/// Whether this can be the right answer: to this query, whole, with the right code and as many records as there are instances.
/// It costs the same for an echo, whose code and count are the query's.
pub(crate) fn fits(
    message: &[u8],
    query: &[u8],
    asked: Asked,
    content: Content,
    echo: bool,
) -> bool {
    let (code, records) = match asked.kind {
        _ if echo => (0, 0),
        Kind::NxDomain => (3, 0),
        Kind::NoData => (0, 0),
        _ => (0, content.instances),
    };
    message.len() >= query.len()
        && word(message, 2) & 0x820F == 0x8000 | code
        && usize::from(word(message, 6)) == records
        && message[12..query.len()] == query[12..]
}

/// Whether an answer that fits holds exactly the records of that service.
pub(crate) fn is_right(message: &[u8], query: &[u8], asked: Asked, content: Content) -> bool {
    let wanted = match asked.kind {
        Kind::NoData | Kind::NxDomain => return true,
        Kind::Srv => SRV,
        _ => A,
    };
    holds_all(&message[query.len()..], wanted, asked.service, content).is_some()
}

/// Whether the records that begin here are those of all instances of a service.
fn holds_all(mut records: &[u8], wanted: u16, service: usize, content: Content) -> Option<()> {
    let mut found = 0_u64;
    for _ in 0..content.instances {
        let after = after_name(records)?;
        let data = after.get(10..10 + usize::from(word(after, 8)))?;
        let address = match wanted {
            _ if word(after, 0) != wanted => return None,
            A => data.try_into().ok()?,
            _ if word(data, 4) != Content::port(service) => return None,
            _ => address_of(data.get(7..7 + usize::from(*data.get(6)?))?)?,
        };
        found |= 1 << content.instance(service, address)?;
        records = &after[10 + data.len()..];
    }
    (found.count_ones() as usize == content.instances).then_some(())
}

fn after_name(mut records: &[u8]) -> Option<&[u8]> {
    loop {
        match *records.first()? {
            0 => return records.get(1..).filter(|rest| rest.len() >= 10),
            0xC0.. => return records.get(2..).filter(|rest| rest.len() >= 10),
            length => records = records.get(usize::from(length) + 1..)?,
        }
    }
}

/// The address that the first label of an SRV record's target tells: `10-100-100-100`, or `0a646464` as Consul writes it.
fn address_of(label: &[u8]) -> Option<[u8; 4]> {
    let text = std::str::from_utf8(label).ok()?;
    if text.len() == 8 {
        return u32::from_str_radix(text, 16).ok().map(u32::to_be_bytes);
    }
    let mut parts = text.split('-').map(|part| part.parse().ok());
    Some([parts.next()??, parts.next()??, parts.next()??, parts.next()??])
}

fn word(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |pair| u16::from_be_bytes([pair[0], pair[1]]))
}

/// Octets of svcdns's answer.
pub(crate) fn size(asked: Asked, content: Content) -> usize {
    match asked.kind {
        Kind::Srv => content.srv_size(),
        Kind::NoData | Kind::NxDomain => NEGATIVE_SIZE,
        Kind::SpelledOut => content.a_size() + SPELLED_OUT.len(),
        _ => content.a_size(),
    }
}

/// The same, told from the query alone and with as little work as can be: its type, and the last digit of the first label.
pub(crate) fn size_of_answer_to(query: &[u8], content: Content) -> usize {
    // Other types' first byte is 0, too. In a name that is spelled out a letter stands here.
    match query.get(QUESTION - 3) {
        Some(33) => content.srv_size(),
        Some(28) => NEGATIVE_SIZE,
        _ if query.get(12 + LABEL) != Some(&b'0') => NEGATIVE_SIZE,
        _ if query.len() > QUESTION => content.a_size() + SPELLED_OUT.len(),
        _ => content.a_size(),
    }
}
