//! Record types, response codes and extended DNS errors (EDE) as text.
//!
//! All commands, the HTTP interface, logs and metrics format and parse them here.

use std::borrow::Cow;

use hickory_proto::rr::RecordType;

use super::{ExtendedError, rtype};

/// Returns the name of a record type (RFC 3597 section 5).
///
/// A type without a name becomes `TYPE65280`.
#[must_use]
pub fn type_name(rtype: u16) -> String {
    match RecordType::from(rtype) {
        RecordType::Unknown(number) => format!("TYPE{number}"),
        known => known.to_string(),
    }
}

/// Parses a record type, by name or as `TYPE65280`, in any letter case.
///
/// Parses everything that [`type_name`] returns.
#[must_use]
pub fn type_number(name: &str) -> Option<u16> {
    /// Types that hickory formats but does not parse.
    const WRITTEN_ONLY: [u16; 3] = [0, rtype::OPT, rtype::IXFR];
    let name = name.to_ascii_uppercase();
    if let Some(number) = name.strip_prefix("TYPE") {
        return number.parse().ok().filter(|_| number.bytes().all(|digit| digit.is_ascii_digit()));
    }
    let read = name.parse().map(RecordType::into).ok();
    read.or_else(|| WRITTEN_ONLY.into_iter().find(|number| type_name(*number) == name))
}

/// Returns the name of a response code (RFC 6895 section 2.3).
///
/// A code without a name becomes `RCODE12`.
#[must_use]
pub fn rcode_name(rcode: u16) -> Cow<'static, str> {
    Cow::Borrowed(match rcode {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        6 => "YXDOMAIN",
        7 => "YXRRSET",
        8 => "NXRRSET",
        9 => "NOTAUTH",
        10 => "NOTZONE",
        11 => "DSOTYPENI",
        // 16 has this name in OPT. In TSIG, which svcdns does not parse, it is BADSIG.
        16 => "BADVERS",
        17 => "BADKEY",
        18 => "BADTIME",
        19 => "BADMODE",
        20 => "BADNAME",
        21 => "BADALG",
        22 => "BADTRUNC",
        23 => "BADCOOKIE",
        other => return Cow::Owned(format!("RCODE{other}")),
    })
}

/// Returns an extended DNS error (EDE) with the name of its code.
///
/// For example, `stale answer (3): registry away`.
#[must_use]
pub fn extended_error_text(code: u16, extra: &str) -> String {
    let name = match code {
        ExtendedError::OTHER => "other",
        ExtendedError::STALE_ANSWER => "stale answer",
        ExtendedError::NOT_READY => "not ready",
        ExtendedError::BLOCKED => "blocked",
        ExtendedError::PROHIBITED => "prohibited",
        ExtendedError::STALE_NXDOMAIN => "stale NXDOMAIN answer",
        ExtendedError::NOT_AUTHORITATIVE => "not authoritative",
        ExtendedError::NOT_SUPPORTED => "not supported",
        ExtendedError::NO_REACHABLE_AUTHORITY => "no reachable authority",
        ExtendedError::NETWORK_ERROR => "network error",
        // svcdns itself sends no other code, but an upstream may send one.
        _ => "extended error",
    };
    if extra.is_empty() { format!("{name} ({code})") } else { format!("{name} ({code}): {extra}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_type_round_trips() {
        for rtype in 0..=u16::MAX {
            let name = type_name(rtype);
            assert_eq!(type_number(&name), Some(rtype), "{name}");
            assert_eq!(type_number(&format!("type{rtype}")), Some(rtype));
        }
        assert_eq!([1, 65, 251, 65280].map(type_name), ["A", "HTTPS", "IXFR", "TYPE65280"]);
        assert_eq!(["aaaa", "Srv", "*"].map(type_number), [Some(28), Some(33), Some(255)]);
        assert_eq!(
            ["", "NOTYPE", "TYPE", "TYPE65536", "TYPE+1", "TYPE-1", "65", "UNKNOWN"]
                .map(type_number),
            [None; 8]
        );
    }

    #[test]
    fn response_codes_have_their_iana_names() {
        let names = [0, 3, 5, 11, 12, 15, 16, 23, 24, 4095].map(rcode_name);
        let expected = [
            "NOERROR",
            "NXDOMAIN",
            "REFUSED",
            "DSOTYPENI",
            "RCODE12",
            "RCODE15",
            "BADVERS",
            "BADCOOKIE",
            "RCODE24",
            "RCODE4095",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn extended_errors_show_name_code_and_text() {
        assert_eq!(
            extended_error_text(ExtendedError::STALE_ANSWER, "registry away"),
            "stale answer (3): registry away"
        );
        assert_eq!(extended_error_text(ExtendedError::PROHIBITED, ""), "prohibited (18)");
        assert_eq!(extended_error_text(6, "bogus"), "extended error (6): bogus");
    }
}
