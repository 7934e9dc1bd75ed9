//! Padding of responses on encrypted transports (RFC 7830, RFC 8467).
//!
//! Equal lengths reveal less about the query to an observer.

use super::StreamKind;
use crate::wire::{HEADER_BYTES, Parsed, Query, put_u16, question_end, records, u16_at};

/// Size that padded responses are multiples of, in bytes (RFC 8467 section 4.1).
const BLOCK_BYTES: usize = 468;
/// Code of the EDNS padding option (RFC 7830 section 3).
const OPTION_PADDING: u16 = 12;

/// Returns whether to pad the response to `request`.
///
/// Over TLS, a response is padded if the query is (RFC 7830 section 4). Over QUIC, it is padded if
/// the query has an OPT record (RFC 9250 section 5.4). Over plain TCP, it never is.
pub(super) fn is_wanted(request: &[u8], kind: StreamKind) -> bool {
    let (Parsed::Query(query) | Parsed::Bad { query, .. }) = Query::parse(request) else {
        return false;
    };
    match kind {
        StreamKind::Tcp => false,
        StreamKind::Tls => has_padding(query.options),
        StreamKind::Quic => query.edns.is_some(),
    }
}

/// Pads a response if its last record is OPT and there is room.
pub(super) fn pad(response: &mut Vec<u8>) {
    let Some(Some(Ok(opt))) = question_end(response).map(|end| records(response, end).last())
    else {
        return;
    };
    let bytes = (BLOCK_BYTES - (response.len() + 4) % BLOCK_BYTES) % BLOCK_BYTES;
    let length = opt.fixed + 8;
    let (Some(data), Ok(padding)) = (u16_at(response, length), u16::try_from(bytes)) else {
        return;
    };
    if !opt.is_opt()
        || response.len() + 4 + bytes > usize::from(u16::MAX)
        || opt.start < HEADER_BYTES
    {
        return;
    }
    response[length..length + 2].copy_from_slice(&data.saturating_add(padding + 4).to_be_bytes());
    put_u16(response, OPTION_PADDING);
    put_u16(response, padding);
    response.resize(response.len() + bytes, 0);
}

/// Returns whether EDNS options contain the padding option.
fn has_padding(mut options: &[u8]) -> bool {
    while let (Some(code), Some(length)) = (u16_at(options, 0), u16_at(options, 2)) {
        if code == OPTION_PADDING {
            return true;
        }
        options = options.get(4 + usize::from(length)..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an `A` query for `a` with these flags and OPT options.
    fn message(flags: u16, options: &[u8]) -> Vec<u8> {
        let mut message = vec![0, 0];
        message.extend(flags.to_be_bytes());
        message.extend(b"\0\x01\0\0\0\0\0\x01\x01a\0\0\x01\0\x01\0\0\x29\x04\xD0\0\0\0\0");
        put_u16(&mut message, u16::try_from(options.len()).unwrap());
        message.extend(options);
        message
    }

    #[test]
    fn responses_to_padded_queries_are_padded_to_a_whole_block() {
        let (plain, padded) =
            (message(0x0100, b"\0\x0A\0\x01x"), message(0x0100, b"\0\x0A\0\x01x\0\x0C\0\0"));
        assert!(
            is_wanted(&padded, StreamKind::Tls)
                && !is_wanted(&plain, StreamKind::Tls)
                && is_wanted(&plain, StreamKind::Quic)
        );
        assert!(!is_wanted(&padded, StreamKind::Tcp));
        for options in [&b""[..], b"\0\x0A\0\x01x", &[&[0, 10, 1, 200][..], &[1; 456]].concat()] {
            let mut response = message(0x8100, options);
            let before = response.len();
            pad(&mut response);
            assert!(
                response.len() > before && response.len().is_multiple_of(BLOCK_BYTES),
                "{}",
                response.len()
            );
            let end = question_end(&response).unwrap();
            let records: Vec<_> = records(&response, end).collect::<Result<_, _>>().unwrap();
            assert!(records[0].is_opt() && has_padding(records[0].data(&response)));
        }
    }

    #[test]
    fn responses_without_room_or_opt_are_not_padded() {
        let full = message(0x8100, &[&[0, 10, 0xFF, 0xD0][..], &vec![1; 0xFFD0]].concat());
        for whole in [&full[..], &full[..20], b""] {
            let mut response = whole.to_vec();
            pad(&mut response);
            assert!(response == whole, "{} bytes", response.len());
        }
    }
}
