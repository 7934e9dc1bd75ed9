//! Instance labels: addresses written as single labels.

use std::net::{IpAddr, Ipv4Addr};

/// Maximum length of an instance label, in bytes: 8 groups of 4 digits, 7 hyphens.
pub const MAX_INSTANCE_LABEL_BYTES: usize = 39;

/// Returns the label of the instance at an address: `10-0-0-1`.
///
/// An IPv6 label has all eight groups, without leading zeros: `fd00-0-0-0-0-0-0-5`.
pub fn instance_label(address: IpAddr) -> String {
    let mut label = Vec::with_capacity(MAX_INSTANCE_LABEL_BYTES);
    put_instance_label(address, &mut label);
    label.into_iter().map(char::from).collect()
}

/// Appends an instance label without its length byte.
pub fn put_instance_label(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => {
            let (label, length) = ipv4_label(address.octets());
            out.extend_from_slice(&label[..length]);
        }
        IpAddr::V6(address) => {
            for (index, group) in address.segments().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'-');
                }
                let digits = (4 - group.leading_zeros() / 4).max(1);
                out.extend(
                    (0..digits)
                        .rev()
                        .map(|digit| b"0123456789abcdef"[usize::from(group >> (4 * digit) & 0xF)]),
                );
            }
        }
    }
}

/// Returns the instance label of an IPv4 address and its length, 7-15 bytes.
pub fn ipv4_label(address: [u8; 4]) -> ([u8; 16], usize) {
    let (mut label, mut end) = ([b'-'; 16], 0);
    for byte in address {
        let [digits @ .., count] = DECIMAL_DIGITS[usize::from(byte)];
        label[end..end + 3].copy_from_slice(&digits);
        // With fewer than three digits, the padding starts with the hyphen.
        end += usize::from(count) + 1;
    }
    // The last hyphen does not count.
    (label, end - 1)
}

/// Decimal digits of every byte value, and the number of digits.
///
/// A table is fast, and each SRV record needs four entries.
const DECIMAL_DIGITS: [[u8; 4]; 256] = {
    let mut decimals = [[b'-'; 4]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut unit, mut at) = (
            if byte > 99 {
                100
            } else if byte > 9 {
                10
            } else {
                1
            },
            0,
        );
        while unit > 0 {
            decimals[byte][at] = b"0123456789"[byte / unit % 10];
            unit /= 10;
            at += 1;
        }
        decimals[byte][3] = b"\0\x01\x02\x03"[at];
        byte += 1;
    }
    decimals
};

/// Parses an instance label: the inverse of [`instance_label`].
///
/// Groups have no leading zeros. A shortened IPv6 address (`fd00--5` for `fd00::5`) is accepted
/// unless it begins or ends with `-`, which host names must not.
pub fn instance_address(label: &[u8]) -> Option<IpAddr> {
    if label.len() > MAX_INSTANCE_LABEL_BYTES || label.starts_with(b"-") || label.ends_with(b"-") {
        return None;
    }
    let mut text = [0; MAX_INSTANCE_LABEL_BYTES];
    let text = &mut text[..label.len()];
    for (to, &from) in text.iter_mut().zip(label) {
        *to = match from {
            b'-' => b':',
            digit if digit.is_ascii_hexdigit() => digit,
            _ => return None,
        };
    }
    let groups = || label.split(|&byte| byte == b'-');
    if groups().any(|group| group.len() > 1 && group[0] == b'0') {
        return None;
    }
    if groups().count() == 4 && groups().all(|group| !group.is_empty()) {
        let mut bytes = [0; 4];
        for (byte, group) in bytes.iter_mut().zip(groups()) {
            *byte = decimal(group)?;
        }
        return Some(Ipv4Addr::from(bytes).into());
    }
    std::str::from_utf8(text).ok()?.parse().ok().map(IpAddr::V6)
}

/// Parses a byte in decimal digits without leading zeros.
pub(super) fn decimal(digits: &[u8]) -> Option<u8> {
    if digits.is_empty()
        || digits.len() > 3
        || !digits.iter().all(u8::is_ascii_digit)
        || (digits.len() > 1 && digits[0] == b'0')
    {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;

    fn address(label: &str) -> Option<String> {
        instance_address(label.as_bytes()).map(|address| address.to_string())
    }

    #[test]
    fn instance_labels_are_formatted_and_parsed() {
        let label = |address: &str| instance_label(address.parse().unwrap());
        assert_eq!(label("10.0.0.1"), "10-0-0-1");
        assert_eq!(label("fd00::5"), "fd00-0-0-0-0-0-0-5");
        assert_eq!(label("::"), "0-0-0-0-0-0-0-0");
        assert_eq!(label("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff").len(), 38);
        assert_eq!(address("10-0-0-1").as_deref(), Some("10.0.0.1"));
        assert_eq!(address("fd00-0-0-0-0-0-0-5").as_deref(), Some("fd00::5"));
        assert_eq!(address("FD00-0-0-0-0-0-0-5").as_deref(), Some("fd00::5"));
        assert_eq!(address("0-0-0-0-0-ffff-a00-1").as_deref(), Some("::ffff:10.0.0.1"));
    }

    #[test]
    fn shortened_ipv6_labels_are_parsed() {
        assert_eq!(address("fd00--5").as_deref(), Some("fd00::5"));
        assert_eq!(address("1--2").as_deref(), Some("1::2"));
        assert_eq!(address("fd00--1-2-5").as_deref(), Some("fd00::1:2:5"));
        assert_eq!(address("1-2-3--5-6-7-8").as_deref(), Some("1:2:3:0:5:6:7:8"));
        for bad in ["--1", "fd00--", "--", "fd00--1--5", "fd00---5", "1-2-3-4--5-6-7-8"] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    fn invalid_instance_labels_are_rejected() {
        for bad in [
            "",
            "-",
            "1",
            "v1",
            "hello",
            "10-0-0",
            "10-0-0-256",
            "10-0-0-01",
            "010-0-0-1",
            "10-0-0-1-",
            "-10-0-0-1",
            "10-0-0-a",
            "10-0-0-1-2",
            "10.0.0.1",
            "1--1.2.3.4",
            "fd00-0-0-0-0-0-0-05",
            "fd00--0005",
            "g--1",
            "10000--1",
            "1-2-3-4-5-6-7",
            "1-2-3-4-5-6-7-8-9",
            "+1-0-0-1",
            "10-0--1-1-1-1-1-1-1-1-1-1-1-1-1-1-1-1-1-1",
            "fd00:-5",
        ] {
            assert_eq!(address(bad), None, "{bad}");
        }
        assert_eq!(instance_address(b"10-0-0-\xFF"), None);
    }

    fn any_address() -> impl Strategy<Value = IpAddr> {
        let sparse = prop::array::uniform8(prop_oneof![Just(0u16), any::<u16>()])
            .prop_map(|segments| Ipv6Addr::from(segments).into());
        prop_oneof![
            any::<Ipv4Addr>().prop_map(IpAddr::V4),
            any::<Ipv6Addr>().prop_map(IpAddr::V6),
            sparse
        ]
    }

    proptest! {
        #[test]
        fn instance_labels_round_trip(address in any_address()) {
            let label = instance_label(address);
            prop_assert!(label.len() <= MAX_INSTANCE_LABEL_BYTES);
            prop_assert_eq!(instance_address(label.as_bytes()), Some(address));
        }

        #[test]
        fn shortened_labels_round_trip(address in any::<[u16; 3]>()) {
            let [first, middle, last] = address;
            prop_assume!(first != 0 && last != 0);
            let address: IpAddr = Ipv6Addr::new(first, middle, 0, 0, 0, 0, 0, last).into();
            let label = address.to_string().replace(':', "-");
            prop_assert_eq!(instance_address(label.as_bytes()), Some(address));
        }

        #[test]
        fn a_full_label_has_one_spelling(
            label in "[0-9a-f]{1,3}(-[0-9a-f]{1,2}){3}((-[0-9a-f]{1,2}){4})?",
        ) {
            if let Some(address) = instance_address(label.as_bytes()) {
                prop_assert_eq!(instance_label(address), label);
            }
        }

        #[test]
        fn arbitrary_labels_do_not_panic(
            label in prop::collection::vec(any::<u8>(), 0..64),
            hyphens in "[-0-9a-f]{0,45}",
        ) {
            prop_assert!(instance_address(&label).is_none() || label.len() >= 4);
            if let Some(address) = instance_address(hyphens.as_bytes()) {
                let full = instance_label(address);
                prop_assert_eq!(instance_address(full.as_bytes()), Some(address));
            }
        }
    }
}
