//! Removal of the OPT record from a message: OPT is hop by hop (RFC 6891 section 6.1.1).

use crate::wire::{MalformedMessage, Record, Section, question_end, records, rtype, u16_at};

/// A message without its OPT record, and the content of that record.
#[derive(Debug)]
pub(super) struct Stripped<'a> {
    /// The message without OPT, with the section count adjusted.
    pub(super) bytes: Vec<u8>,
    /// Content of the OPT record, if there was one.
    pub(super) opt: Option<Opt<'a>>,
    /// Offset of the end of the question section.
    pub(super) question_end: usize,
}

/// Content of an OPT record.
#[derive(Debug)]
pub(super) struct Opt<'a> {
    /// Upper eight bits of the response code.
    pub(super) upper_rcode: u8,
    /// The options.
    pub(super) options: &'a [u8],
}

/// Removes the OPT record, wherever it is in the additional section.
///
/// # Errors
/// Returns an error if the message is malformed, does not have exactly one question, or has more
/// than one OPT record.
pub(super) fn strip(message: &[u8]) -> Result<Stripped<'_>, MalformedMessage> {
    let question_end = question_end(message).ok_or(MalformedMessage)?;
    let mut found: Option<Record> = None;
    let mut following = Vec::new();
    for record in records(message, question_end) {
        let record = record?;
        if record.is_opt() {
            let misplaced =
                record.section != Section::Additional || record.fixed != record.start + 1;
            if misplaced || found.replace(record).is_some() {
                return Err(MalformedMessage);
            }
        } else if found.is_some() {
            following.push(record);
        }
    }
    let Some(opt) = found else {
        return Ok(Stripped { bytes: message.to_vec(), opt: None, question_end });
    };
    // The capacity has room for the TTL offsets or for svcdns's own OPT record.
    let mut bytes = Vec::with_capacity(message.len() + 64);
    bytes.extend_from_slice(&message[..opt.start]);
    bytes.extend_from_slice(&message[opt.end..]);
    let additional = u16_at(message, 10).unwrap_or_default().saturating_sub(1);
    bytes[10..12].copy_from_slice(&additional.to_be_bytes());
    move_pointers(&mut bytes, &following, &opt);
    let content = Opt { upper_rcode: opt.ttl.to_be_bytes()[0], options: opt.data(message) };
    Ok(Stripped { bytes, opt: Some(content), question_end })
}

/// Adjusts compression pointers in the records `following` the removed OPT record.
fn move_pointers(bytes: &mut [u8], following: &[Record], opt: &Record) {
    let removed = opt.end - opt.start;
    for record in following {
        move_pointer(bytes, record.start - removed, opt);
        let (skipped, names) = compressible_names(record.rtype);
        let mut at = record.fixed - removed + 10 + skipped;
        for _ in 0..names {
            if at >= record.end - removed {
                break;
            }
            at = move_pointer(bytes, at, opt);
        }
    }
}

/// Adjusts the pointer that ends the name at `at`; returns the name's end.
fn move_pointer(bytes: &mut [u8], mut at: usize, opt: &Record) -> usize {
    loop {
        match bytes.get(at).copied() {
            Some(0) => return at + 1,
            Some(length @ 1..=63) => at += 1 + usize::from(length),
            Some(0xC0..) => {
                let target = usize::from(u16_at(bytes, at).unwrap_or_default() & 0x3FFF);
                if target >= opt.end
                    && let Ok(moved) = u16::try_from(target - (opt.end - opt.start))
                    && let Some(pointer) = bytes.get_mut(at..at + 2)
                {
                    pointer.copy_from_slice(&(0xC000 | moved).to_be_bytes());
                }
                return at + 2;
            }
            _ => return bytes.len(),
        }
    }
}

/// Returns the location of compressible names in RDATA (RFC 3597 section 4).
///
/// The result is the number of bytes in front of the names, and the number of names.
pub(super) fn compressible_names(rtype: u16) -> (usize, usize) {
    match rtype {
        // NS, MD, MF, CNAME, MB, MG, MR, PTR, DNAME.
        rtype::NS | 3 | 4 | rtype::CNAME | 7..=9 | rtype::PTR | rtype::DNAME => (0, 1),
        // SOA, MINFO, RP.
        rtype::SOA | 14 | 17 => (0, 2),
        // MX, AFSDB, RT, KX.
        15 | 18 | 21 | 36 => (2, 1),
        // PX.
        26 => (2, 2),
        rtype::SRV => (6, 1),
        _ => (0, 0),
    }
}
