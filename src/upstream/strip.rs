//! A message without its OPT record, which is for the neighbour alone (RFC 6891 section 6.1.1).

use crate::wire::{MalformedMessage, Record, Section, question_end, records, rtype, u16_at};

/// What is left of a message, and its OPT record.
#[derive(Debug)]
pub(super) struct Stripped<'a> {
    /// The message without OPT, counted accordingly.
    pub(super) octets: Vec<u8>,
    /// What OPT said, if there was one.
    pub(super) opt: Option<Opt<'a>>,
    /// Where the question ends.
    pub(super) question: usize,
}

/// What an OPT record says.
#[derive(Debug)]
pub(super) struct Opt<'a> {
    /// The upper eight bits of the response code.
    pub(super) upper_rcode: u8,
    /// Its options.
    pub(super) options: &'a [u8],
}

/// Takes OPT out of a message, wherever it stands among the additional records.
///
/// # Errors
/// When the message has not one question, is not well-formed, or has more than one OPT.
pub(super) fn strip(message: &[u8]) -> Result<Stripped<'_>, MalformedMessage> {
    let question = question_end(message).ok_or(MalformedMessage)?;
    let mut found: Option<Record> = None;
    let mut behind = Vec::new();
    for record in records(message, question) {
        let record = record?;
        if record.is_opt() {
            let misplaced = record.section != Section::Additional || record.fixed != record.start + 1;
            if misplaced || found.replace(record).is_some() {
                return Err(MalformedMessage);
            }
        } else if found.is_some() {
            behind.push(record);
        }
    }
    let Some(opt) = found else { return Ok(Stripped { octets: message.to_vec(), opt: None, question }) };
    // Room for the places of the TTLs, and for an OPT of ours.
    let mut octets = Vec::with_capacity(message.len() + 64);
    octets.extend_from_slice(&message[..opt.start]);
    octets.extend_from_slice(&message[opt.end..]);
    let additional = u16_at(message, 10).unwrap_or_default().saturating_sub(1);
    octets[10..12].copy_from_slice(&additional.to_be_bytes());
    move_pointers(&mut octets, &behind, &opt);
    let says = Opt { upper_rcode: opt.ttl.to_be_bytes()[0], options: opt.data(message) };
    Ok(Stripped { octets, opt: Some(says), question })
}

/// Lets the pointers in records that stood `behind` OPT follow what they point to.
fn move_pointers(octets: &mut [u8], behind: &[Record], opt: &Record) {
    let gone = opt.end - opt.start;
    for record in behind {
        move_pointer(octets, record.start - gone, opt);
        let (skipped, names) = names(record.rtype);
        let mut at = record.fixed - gone + 10 + skipped;
        for _ in 0..names {
            if at >= record.end - gone {
                break;
            }
            at = move_pointer(octets, at, opt);
        }
    }
}

/// Moves the pointer that ends the name at `at`, if there is one and it needs to; returns where the name ends.
fn move_pointer(octets: &mut [u8], mut at: usize, opt: &Record) -> usize {
    loop {
        match octets.get(at).copied() {
            Some(0) => return at + 1,
            Some(length @ 1..=63) => at += 1 + usize::from(length),
            Some(0xC0..) => {
                let target = usize::from(u16_at(octets, at).unwrap_or_default() & 0x3FFF);
                if target >= opt.end
                    && let Ok(moved) = u16::try_from(target - (opt.end - opt.start))
                    && let Some(two) = octets.get_mut(at..at + 2)
                {
                    two.copy_from_slice(&(0xC000 | moved).to_be_bytes());
                }
                return at + 2;
            }
            _ => return octets.len(),
        }
    }
}

/// Where in the data of a type names may be compressed (RFC 3597 section 4): octets in front, and how many names.
fn names(rtype: u16) -> (usize, usize) {
    match rtype {
        // NS, MD, MF, CNAME, MB, MG, MR, PTR, DNAME.
        rtype::NS | 3 | 4 | rtype::CNAME | 7..=9 | rtype::PTR | 39 => (0, 1),
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
