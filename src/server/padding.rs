//! Padded answers on encrypted transports, whose lengths tell less of what was asked (RFC 7830, RFC 8467 section 4.1).

use super::StreamKind;
use crate::wire::{HEADER, Parsed, Query, put_u16, question_end, records, u16_at};

/// Octets of which a padded answer's length is a multiple (RFC 8467 section 4.1).
const BLOCK: usize = 468;
/// The EDNS option (RFC 7830 section 3).
const PADDING: u16 = 12;

/// Whether the answer to `request` is to be padded: over TLS where the query is padded itself (RFC 7830 section 4), over QUIC
/// whenever it has an OPT record (RFC 9250 section 5.4). Never where everybody can read it.
pub(super) fn is_wanted(request: &[u8], kind: StreamKind) -> bool {
    let (Parsed::Query(query) | Parsed::Bad { query, .. }) = Query::parse(request) else { return false };
    match kind {
        StreamKind::Tcp => false,
        StreamKind::Tls => has_padding(query.options),
        StreamKind::Quic => query.edns.is_some(),
    }
}

/// Pads an answer, if its last record is OPT and there is room.
pub(super) fn pad(answer: &mut Vec<u8>) {
    let Some(Some(Ok(opt))) = question_end(answer).map(|end| records(answer, end).last()) else { return };
    let octets = (BLOCK - (answer.len() + 4) % BLOCK) % BLOCK;
    let length = opt.fixed + 8;
    let (Some(data), Ok(padding)) = (u16_at(answer, length), u16::try_from(octets)) else { return };
    if !opt.is_opt() || answer.len() + 4 + octets > usize::from(u16::MAX) || opt.start < HEADER {
        return;
    }
    answer[length..length + 2].copy_from_slice(&data.saturating_add(padding + 4).to_be_bytes());
    put_u16(answer, PADDING);
    put_u16(answer, padding);
    answer.resize(answer.len() + octets, 0);
}

fn has_padding(mut options: &[u8]) -> bool {
    while let (Some(code), Some(length)) = (u16_at(options, 0), u16_at(options, 2)) {
        if code == PADDING {
            return true;
        }
        options = options.get(4 + usize::from(length)..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a A` with a flags word, and an OPT record with these options.
    fn message(flags: u16, options: &[u8]) -> Vec<u8> {
        let mut message = vec![0, 0];
        message.extend(flags.to_be_bytes());
        message.extend(b"\0\x01\0\0\0\0\0\x01\x01a\0\0\x01\0\x01\0\0\x29\x04\xD0\0\0\0\0");
        put_u16(&mut message, u16::try_from(options.len()).unwrap());
        message.extend(options);
        message
    }

    #[test]
    fn who_pads_gets_padding() {
        let (plain, padded) = (message(0x0100, b"\0\x0A\0\x01x"), message(0x0100, b"\0\x0A\0\x01x\0\x0C\0\0"));
        assert!(is_wanted(&padded, StreamKind::Tls) && !is_wanted(&plain, StreamKind::Tls) && is_wanted(&plain, StreamKind::Quic));
        assert!(!is_wanted(&padded, StreamKind::Tcp));
        for options in [&b""[..], b"\0\x0A\0\x01x", &[&[0, 10, 1, 200][..], &[1; 456]].concat()] {
            let mut answer = message(0x8100, options);
            let before = answer.len();
            pad(&mut answer);
            assert!(answer.len() > before && answer.len().is_multiple_of(BLOCK), "{}", answer.len());
            let end = question_end(&answer).unwrap();
            let records: Vec<_> = records(&answer, end).collect::<Result<_, _>>().unwrap();
            assert!(records[0].is_opt() && has_padding(records[0].data(&answer)));
        }
    }

    #[test]
    fn what_cannot_be_padded_stays() {
        let full = message(0x8100, &[&[0, 10, 0xFF, 0xD0][..], &vec![1; 0xFFD0]].concat());
        for whole in [&full[..], &full[..20], b""] {
            let mut answer = whole.to_vec();
            pad(&mut answer);
            assert!(answer == whole, "{} octets", answer.len());
        }
    }
}
