//! The queries and their right responses.

use super::content::{Content, LABEL_BYTES, NEGATIVE_BYTES, QUERY_BYTES};

const A: u16 = 1;
const SRV: u16 = 33;
const AAAA: u16 = 28;

/// Labels of the default namespace and deployment, which a name may omit.
const NAMESPACE_AND_DEPLOYMENT: &[u8] = b"\x07default\x07default";

/// A kind of queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A of a service.
    A,
    /// SRV of a service.
    Srv,
    /// AAAA of a service with IPv4 addresses only.
    NoData,
    /// A of an unknown name.
    NxDomain,
    /// Seven of ten queries are A, and one each SRV, NODATA and NXDOMAIN.
    Mixed,
    /// A of a name with namespace and deployment: svcdns has no node for it.
    Explicit,
}

impl Kind {
    /// The number of kinds.
    pub(crate) const COUNT: usize = Self::Explicit as usize + 1;

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Srv => "SRV",
            Self::NoData => "NODATA",
            Self::NxDomain => "NXDOMAIN",
            Self::Mixed => "mixed",
            Self::Explicit => "A of name.default.default.svc",
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

/// The kind and service of a query, which determine the right response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) kind: Kind,
    service: usize,
}

/// Writes a query for a random service, as the C library does: RD set, no EDNS.
///
/// `zone` is the rest of the name after its first label, in wire form.
pub(crate) fn write(
    kind: Kind,
    content: Content,
    zone: &[u8],
    id: u16,
    out: &mut Vec<u8>,
) -> Expected {
    write_for(fastrand::usize(..content.services.max(1)), kind, content, zone, id, out)
}

/// Writes a query for this service, like [`write`].
pub(crate) fn write_for(
    service: usize,
    kind: Kind,
    content: Content,
    zone: &[u8],
    id: u16,
    out: &mut Vec<u8>,
) -> Expected {
    let kind = kind.draw();
    out.clear();
    out.extend(id.to_be_bytes());
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    out.push(LABEL_BYTES as u8);
    if kind == Kind::NxDomain {
        content.write_unknown(service, usize::from(id), out);
    } else {
        content.write_label(service, out);
    }
    if kind == Kind::Explicit {
        out.extend(NAMESPACE_AND_DEPLOYMENT);
    }
    out.extend(zone);
    let qtype = match kind {
        Kind::Srv => SRV,
        Kind::NoData => AAAA,
        _ => A,
    };
    out.extend(qtype.to_be_bytes());
    out.extend([0, 1]);
    Expected { kind, service }
}

/// Makes the checks of a response that cost the same for all servers.
///
/// The checks are question, QR, TC, code and number of answer records. An echo's code and count
/// are those of the query.
pub(crate) fn fits(
    message: &[u8],
    query: &[u8],
    expected: Expected,
    content: Content,
    echo: bool,
) -> bool {
    let (code, records) = match expected.kind {
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

/// Returns whether a response that fits has exactly the records of the service.
pub(crate) fn is_right(message: &[u8], query: &[u8], expected: Expected, content: Content) -> bool {
    let wanted = match expected.kind {
        Kind::NoData | Kind::NxDomain => return true,
        Kind::Srv => SRV,
        _ => A,
    };
    has_all_instances(&message[query.len()..], wanted, expected.service, content).is_some()
}

/// Returns `Some` if the records are those of all instances of a service.
fn has_all_instances(
    mut records: &[u8],
    wanted: u16,
    service: usize,
    content: Content,
) -> Option<()> {
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

/// Parses the first label of an SRV target as an address.
///
/// `10-100-100-100`, or Consul's `0a646464`.
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

/// Returns the length of svcdns's response in bytes.
pub(crate) fn response_bytes(expected: Expected, content: Content) -> usize {
    match expected.kind {
        Kind::Srv => content.srv_bytes(),
        Kind::NoData | Kind::NxDomain => NEGATIVE_BYTES,
        Kind::Explicit => content.a_bytes() + NAMESPACE_AND_DEPLOYMENT.len(),
        _ => content.a_bytes(),
    }
}

/// Returns the length of svcdns's response from the query alone, with little work.
///
/// Type and last digit of the first label determine the length.
pub(crate) fn response_bytes_for(query: &[u8], content: Content) -> usize {
    // The low byte of the type; with an explicit namespace it is a letter of the name.
    match query.get(QUERY_BYTES - 3) {
        Some(33) => content.srv_bytes(),
        Some(28) => NEGATIVE_BYTES,
        _ if query.get(12 + LABEL_BYTES) != Some(&b'0') => NEGATIVE_BYTES,
        _ if query.len() > QUERY_BYTES => content.a_bytes() + NAMESPACE_AND_DEPLOYMENT.len(),
        _ => content.a_bytes(),
    }
}
