//! DNS rebinding guard: withholds private addresses of public names.
//!
//! In DNS rebinding, a web page makes a browser connect to hosts of a private network as if they
//! belonged to the page's own site. With the guard on, the client gets an answer without records
//! and with EDE 15 (RFC 8914), as from dnsmasq.
//!
//! Other responses would do harm. NXDOMAIN would deny other types and all names below (RFC 8020).
//! REFUSED would make the C library query the next name server. Removing only the private addresses
//! would pass on the rest of a forged answer.

use std::net::IpAddr;

use super::Settings;
use super::addresses::address;
use crate::name::Name;
use crate::wire::{ExtendedError, Section, question_end, records, rtype, u16_at};

/// EDE of a withheld answer (RFC 8914).
pub(super) const WITHHELD: ExtendedError<'static> = ExtendedError {
    code: ExtendedError::BLOCKED,
    text: "a public name with a private address: see rebinding-guard of svcdns",
};

/// Types SVCB and HTTPS (RFC 9460), whose hints contain addresses.
const SVCB_TYPES: [u16; 2] = [64, 65];

/// The rebinding guard, if it is on.
#[derive(Clone, Debug)]
pub(super) struct RebindingGuard {
    /// Domains whose names may have private addresses.
    allowed: Vec<Name>,
}

impl RebindingGuard {
    /// Creates the guard from the settings; returns `None` if it is off.
    ///
    /// Domains with their own upstreams are exempt, because the user chose those upstreams.
    pub(super) fn of(settings: &Settings) -> Option<Self> {
        let allowed = settings
            .rebinding
            .as_ref()?
            .iter()
            .chain(settings.domains.iter().map(|(domain, _)| domain));
        Some(Self { allowed: allowed.copied().collect() })
    }

    /// Returns whether to withhold an upstream's well-formed response for `name`.
    pub(super) fn withholds(&self, name: &Name, message: &[u8]) -> bool {
        !self.allowed.iter().any(|domain| name.ends_with(domain)) && has_private_address(message)
    }
}

/// Returns whether the answer or additional section contains a private address.
fn has_private_address(message: &[u8]) -> bool {
    let Some(end) = question_end(message) else { return false };
    let records = records(message, end).map_while(Result::ok);
    records.filter(|record| record.section != Section::Authority && record.class == rtype::IN).any(
        |record| {
            let data = record.data(message);
            match record.rtype {
                rtype::A | rtype::AAAA => address(data).is_some_and(is_private),
                kind if SVCB_TYPES.contains(&kind) => hints(data).any(is_private),
                _ => false,
            }
        },
    )
}

/// Iterates over the address hints in SVCB data (RFC 9460 section 7.3, keys 4, 6).
fn hints(data: &[u8]) -> impl Iterator<Item = IpAddr> {
    // The priority comes first, then a name that is never compressed.
    let name = data
        .get(2..)
        .and_then(|rest| Name::from_wire(rest).ok())
        .map_or(usize::MAX, |(_, bytes)| 2 + bytes);
    let mut rest = data.get(name..).unwrap_or_default();
    let parameters = std::iter::from_fn(move || {
        let (key, length) = (u16_at(rest, 0)?, usize::from(u16_at(rest, 2)?));
        let value = rest.get(4..4 + length)?;
        rest = &rest[4 + length..];
        Some((key, value))
    });
    parameters.flat_map(|(key, value)| {
        let bytes = match key {
            4 => 4,
            6 => 16,
            // A length above that of any value, so that there are no chunks.
            _ => usize::from(u16::MAX) + 1,
        };
        value.chunks_exact(bytes).filter_map(address)
    })
}

/// Returns whether an address is private, link-local, loopback or unspecified.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        // 0.0.0.0/8 is this machine or this network (RFC 791 section 3.2).
        IpAddr::V4(address) => {
            address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.octets()[0] == 0
        }
        IpAddr::V6(address) => {
            address.is_loopback()
                || address.is_unspecified()
                || address.is_unique_local()
                || address.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::put_u16;

    /// Returns a response for `a.example` with one record of this type and RDATA.
    fn answer(rtype: u16, data: &[u8]) -> Vec<u8> {
        let mut message = b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x01a\x07example\0".to_vec();
        put_u16(&mut message, rtype);
        message.extend_from_slice(b"\0\x01\xC0\x0C");
        put_u16(&mut message, rtype);
        message.extend_from_slice(b"\0\x01\0\0\0\x3C");
        put_u16(&mut message, u16::try_from(data.len()).unwrap());
        message.extend_from_slice(data);
        message
    }

    fn bytes(address: &str) -> (u16, Vec<u8>) {
        match address.parse().unwrap() {
            IpAddr::V4(address) => (rtype::A, address.octets().to_vec()),
            IpAddr::V6(address) => (rtype::AAAA, address.octets().to_vec()),
        }
    }

    #[test]
    fn private_addresses_are_detected() {
        for (address, private) in [
            ("10.1.2.3", true),
            ("172.16.0.1", true),
            ("172.32.0.1", false),
            ("192.168.1.1", true),
            ("127.0.0.2", true),
            ("169.254.1.1", true),
            ("0.0.0.0", true),
            ("192.0.2.1", false),
            ("100.64.0.1", false),
            ("::", true),
            ("::1", true),
            ("fd00::1", true),
            ("fe80::1", true),
            ("::ffff:10.0.0.1", true),
            ("::ffff:192.0.2.1", false),
            ("2001:db8::1", false),
        ] {
            let (rtype, data) = bytes(address);
            assert_eq!(has_private_address(&answer(rtype, &data)), private, "{address}");
        }
        // TXT data of four bytes is no address.
        assert!(!has_private_address(&answer(rtype::TXT, &[10, 0, 0, 1])));
        assert!(!has_private_address(b"short"));
    }

    #[test]
    fn address_hints_of_https_records_are_checked() {
        let record = |address: &str| {
            let (_, hint) = bytes(address);
            let key = if hint.len() == 4 { 4 } else { 6 };
            let mut data = b"\0\x01\0\0\x01\0\x03\x02h2\0".to_vec();
            data.pop();
            put_u16(&mut data, key);
            put_u16(&mut data, u16::try_from(hint.len()).unwrap());
            data.extend(hint);
            answer(65, &data)
        };
        assert!(
            has_private_address(&record("10.0.0.1")) && has_private_address(&record("fd00::1"))
        );
        assert!(
            !has_private_address(&record("192.0.2.1"))
                && !has_private_address(&record("2001:db8::1"))
        );
        for data in
            [&b""[..], b"\0", b"\0\x01", b"\0\x01\x05ab", b"\0\x01\0\0\x04\0\x08\x0A\0\0\x01"]
        {
            assert!(!has_private_address(&answer(64, data)), "{data:x?}");
        }
    }

    #[test]
    fn exempt_domains_may_have_private_addresses() {
        let name = |text: &str| Name::from_text(text).unwrap();
        let guard = RebindingGuard { allowed: vec![name("lan.example")] };
        let private = answer(rtype::A, &[10, 0, 0, 1]);
        assert!(
            guard.withholds(&name("a.example"), &private)
                && guard.withholds(&name("xlan.example"), &private)
        );
        assert!(!guard.withholds(&name("a.lan.example"), &private));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_record_data_does_not_panic(
            rtype in 0u16..70,
            data in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80),
        ) {
            let _ = has_private_address(&answer(rtype, &data));
        }
    }
}
