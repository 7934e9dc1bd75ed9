//! Extraction of a host's addresses from a response, following CNAMEs (RFC 1034 section 3.6.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::name::Name;
use crate::wire::{Record, Section, expand_name, question_end, records, rtype};

/// Maximum length of a CNAME chain that is followed.
const MAX_CNAME_CHAIN: usize = 16;

/// Returns the addresses of `host` in a well-formed response.
///
/// `qtype` is A or AAAA. The result is empty if the CNAME chain loops or is too long.
pub(super) fn addresses(message: &[u8], host: &Name, qtype: u16) -> Vec<IpAddr> {
    let Some(question_end) = question_end(message) else { return Vec::new() };
    let answers = || {
        records(message, question_end)
            .map_while(Result::ok)
            .filter(|record| record.section == Section::Answer)
    };
    let mut name = host.as_wire().to_vec();
    let mut owner = Vec::with_capacity(name.len());
    for _ in 0..MAX_CNAME_CHAIN {
        let mut is_ours = |record: &Record| {
            owner.clear();
            record.class == rtype::IN
                && expand_name(message, record.start, &mut owner).is_ok()
                && owner == name
        };
        let ours: Vec<Record> = answers().filter(|record| is_ours(record)).collect();
        let found: Vec<IpAddr> = ours
            .iter()
            .filter(|record| record.rtype == qtype)
            .filter_map(|record| address(record.data(message)))
            .collect();
        let Some(alias) =
            ours.iter().find(|record| record.rtype == rtype::CNAME).filter(|_| found.is_empty())
        else {
            return found;
        };
        name.clear();
        if expand_name(message, alias.fixed + 10, &mut name).is_err() {
            return Vec::new();
        }
    }
    Vec::new()
}

/// Reads an address of 4 or 16 bytes.
pub(super) fn address(data: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(data).map(|bytes| Ipv4Addr::from(bytes).into());
    four.or_else(|_| <[u8; 16]>::try_from(data).map(|bytes| Ipv6Addr::from(bytes).into())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A response: `a.test` is an alias of `b.test`, which has two addresses.
    const MESSAGE: &[u8] = b"\0\0\x81\x80\0\x01\0\x04\0\0\0\0\x01a\x04test\0\0\x01\0\x01\
        \xC0\x0C\0\x05\0\x01\0\0\0\x3C\0\x04\x01B\xC0\x0E\
        \xC0\x24\0\x01\0\x01\0\0\0\x1E\0\x04\xC0\0\x02\x01\
        \x01c\xC0\x0E\0\x01\0\x01\0\0\0\x1E\0\x04\xC0\0\x02\x02\
        \x01b\xC0\x0E\0\x01\0\x01\0\0\0\x1E\0\x04\xC0\0\x02\x03";

    #[test]
    fn cname_chains_are_followed() {
        let host = |text| Name::from_text(text).unwrap();
        let both = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 3])];
        assert_eq!(addresses(MESSAGE, &host("A.test"), rtype::A), both);
        assert_eq!(addresses(MESSAGE, &host("b.test"), rtype::A), both);
        assert!(addresses(MESSAGE, &host("a.test"), rtype::AAAA).is_empty());
        assert!(addresses(MESSAGE, &host("test"), rtype::A).is_empty());
        // A message with a CNAME loop.
        let mut circle = MESSAGE.to_vec();
        circle[37] = b'a';
        assert!(addresses(&circle, &host("a.test"), rtype::AAAA).is_empty());
    }
}
