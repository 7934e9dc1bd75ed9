//! A strict iterator over the records of a message, for forwarded responses.
//!
//! The iterator checks that names are well-formed, that every record lies within the message, and
//! that the last record ends it. It does not inspect record data. Every loop consumes bytes, so it
//! ends.

use super::query::name_end;
use super::{HEADER_BYTES, rtype, u16_at, u32_at};

/// A section after the question section (RFC 1035 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// The answer section.
    Answer,
    /// The authority section.
    Authority,
    /// The additional section.
    Additional,
}

/// A record of a message, by its offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Section of the record.
    pub section: Section,
    /// Offset of the owner name.
    pub start: usize,
    /// Offset of the fixed fields, which follow the owner name.
    ///
    /// Relative to it, the type is at 0, the class at 2, the TTL at 4, the data length at 8, the
    /// data at 10.
    pub fixed: usize,
    /// Offset just after the data.
    pub end: usize,
    /// Type.
    pub rtype: u16,
    /// Class; in OPT, the payload size.
    pub class: u16,
    /// TTL in seconds; in OPT, the upper bits of the response code and the flags.
    pub ttl: u32,
}

impl Record {
    /// Returns the record data; `message` must be the message of this record.
    #[must_use]
    pub fn data<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        message.get(self.fixed + 10..self.end).unwrap_or_default()
    }

    /// Returns the offset of the TTL, which has four bytes.
    #[must_use]
    pub fn ttl_at(&self) -> usize {
        self.fixed + 4
    }

    /// Returns whether this is the OPT pseudo-record (RFC 6891).
    #[must_use]
    pub fn is_opt(&self) -> bool {
        self.rtype == rtype::OPT
    }
}

/// Error: a message is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message is not well-formed")]
pub struct MalformedMessage;

/// Returns the offset just after the single question of a message.
///
/// Returns `None` unless there is exactly one question, complete and uncompressed.
#[must_use]
pub fn question_end(message: &[u8]) -> Option<usize> {
    let end = name_end(message, HEADER_BYTES, false).filter(|_| u16_at(message, 4) == Some(1))? + 4;
    (end <= message.len()).then_some(end)
}

/// Iterates over the records from `at`, the end of the question section.
///
/// The iterator ends after the first error. Without an error, the records fill the message exactly.
#[must_use]
pub fn records(message: &[u8], at: usize) -> Records<'_> {
    let count = |at| u16_at(message, at).unwrap_or_default();
    Records { message, at, counts: [count(6), count(8), count(10)], over: false }
}

/// An iterator over records, returned by [`records`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    message: &'a [u8],
    at: usize,
    counts: [u16; 3],
    over: bool,
}

impl Records<'_> {
    /// Parses the record at the current offset, and advances to the next one.
    fn read(&mut self, section: Section) -> Option<Record> {
        let (message, start) = (self.message, self.at);
        let fixed = name_end(message, start, true)?;
        each_label(message, start, |_, _| {}).ok()?;
        let end = fixed + 10 + usize::from(u16_at(message, fixed + 8)?);
        let record = Record {
            section,
            start,
            fixed,
            end,
            rtype: u16_at(message, fixed)?,
            class: u16_at(message, fixed + 2)?,
            ttl: u32_at(message, fixed + 4)?,
        };
        self.at = end;
        (end <= message.len()).then_some(record)
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, MalformedMessage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let sections = [Section::Answer, Section::Authority, Section::Additional];
        let next = sections.into_iter().zip(&mut self.counts).find(|(_, count)| **count > 0);
        let Some((section, count)) = next else {
            self.over = true;
            return (self.at != self.message.len()).then_some(Err(MalformedMessage));
        };
        *count -= 1;
        let record = self.read(section).ok_or(MalformedMessage);
        self.over = record.is_err();
        Some(record)
    }
}

/// Appends the name at `at` to `out`, uncompressed and in lower case.
///
/// Includes the root label. Compression pointers must lead backwards, so every chain ends (RFC 1035
/// section 4.1.4).
///
/// # Errors
/// The name leaves the message or is longer than 255 bytes, a pointer does not lead backwards, or
/// there are too many pointers.
pub fn expand_name(message: &[u8], at: usize, out: &mut Vec<u8>) -> Result<(), MalformedMessage> {
    each_label(message, at, |_, label| out.extend(label.iter().map(u8::to_ascii_lowercase)))
}

/// Appends the name at `at` to `out`, uncompressed but in its own letter case.
///
/// # Errors
/// The errors are those of [`expand_name`].
pub fn copy_name(message: &[u8], at: usize, out: &mut Vec<u8>) -> Result<(), MalformedMessage> {
    each_label(message, at, |_, label| out.extend_from_slice(label))
}

/// Returns whether the name at `at` overlaps any of the four-byte ranges.
///
/// `offsets` are the offsets of the ranges, in ascending order. A compression pointer may lead into
/// bytes that are not a name, such as a TTL. The name must be well-formed.
#[must_use]
pub fn name_overlaps(message: &[u8], at: usize, offsets: &[u16]) -> bool {
    let mut found = false;
    let walked = each_label(message, at, |start, label| {
        let next = offsets.partition_point(|place| usize::from(*place) + 4 <= start);
        found |= offsets.get(next).is_some_and(|place| usize::from(*place) < start + label.len());
    });
    found && walked.is_ok()
}

/// Maximum compression pointers in one name.
///
/// Each pointer follows a label, and a name has at most 127 labels. Without this limit, a message
/// full of chained pointers would be walked to its end for every record.
const MAX_POINTERS: usize = 127;

/// Calls `visit` with the offset and bytes of each label, including the root.
///
/// The bytes begin with the length byte.
fn each_label(
    message: &[u8],
    mut at: usize,
    mut visit: impl FnMut(usize, &[u8]),
) -> Result<(), MalformedMessage> {
    let (mut previous, mut bytes, mut pointers) = (at, 0, 0);
    loop {
        let length = *message.get(at).ok_or(MalformedMessage)?;
        match length {
            0..=63 => {
                let label = message.get(at..=at + usize::from(length)).ok_or(MalformedMessage)?;
                bytes += label.len();
                if bytes > 255 {
                    return Err(MalformedMessage);
                }
                visit(at, label);
                if length == 0 {
                    return Ok(());
                }
                at += label.len();
            }
            0xC0.. => {
                let target = usize::from(u16_at(message, at).ok_or(MalformedMessage)? & 0x3FFF);
                pointers += 1;
                if target >= previous || target < HEADER_BYTES || pointers > MAX_POINTERS {
                    return Err(MalformedMessage);
                }
                (previous, at) = (target, target);
            }
            _ => return Err(MalformedMessage),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Answers `a.test A` with a CNAME to `b.test` and its address, names compressed.
    const MESSAGE: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x02\0\0\0\x01\x01a\x04test\0\0\x01\0\x01\
        \xC0\x0C\0\x05\0\x01\0\0\0\x3C\0\x04\x01B\xC0\x0E\
        \xC0\x24\0\x01\0\x01\0\0\0\x1E\0\x04\xC0\0\x02\x01\
        \0\0\x29\x04\xD0\0\0\0\0\0\0";

    #[test]
    fn records_are_listed_with_their_section() {
        let end = question_end(MESSAGE).unwrap();
        let found: Vec<_> = records(MESSAGE, end).map(Result::unwrap).collect();
        assert_eq!(
            found
                .iter()
                .map(|record| (record.section, record.rtype, record.ttl))
                .collect::<Vec<_>>(),
            [
                (Section::Answer, 5, 60),
                (Section::Answer, rtype::A, 30),
                (Section::Additional, rtype::OPT, 0),
            ]
        );
        assert_eq!(found[1].data(MESSAGE), [192, 0, 2, 1]);
        let mut name = Vec::new();
        expand_name(MESSAGE, found[1].start, &mut name).unwrap();
        assert_eq!(name, b"\x01b\x04test\0");
    }

    #[test]
    fn records_must_fill_the_message_exactly() {
        let end = question_end(MESSAGE).unwrap();
        for message in [&MESSAGE[..MESSAGE.len() - 1], &[MESSAGE, b"\0"].concat()] {
            assert!(records(message, end).any(|record| record.is_err()));
        }
        // The record count is wrong.
        let mut lying = MESSAGE.to_vec();
        lying[7] = 200;
        assert!(records(&lying, end).any(|record| record.is_err()));
    }

    #[test]
    fn forward_compression_pointers_are_malformed() {
        let mut out = Vec::new();
        for name in [
            &b"\xC0\x0C"[..],
            b"\x01a\xC0\x0C",
            b"\xC0\x0E\0",
            b"\xC0",
            b"\x05a",
            b"\xC0\x01",
            b"\x80",
        ] {
            let message = [&[0; HEADER_BYTES], name].concat();
            assert_eq!(
                expand_name(&message, HEADER_BYTES, &mut out),
                Err(MalformedMessage),
                "{name:x?}"
            );
            // A record without data, whose owner is the name.
            let record = [
                &[0, 0, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0][..],
                name,
                &[0, 1, 0, 1, 0, 0, 0, 0, 0, 0],
            ]
            .concat();
            assert!(records(&record, HEADER_BYTES).any(|record| record.is_err()), "{name:x?}");
        }
    }

    #[test]
    fn long_pointer_chains_are_malformed() {
        let chain = |pointers: u16| {
            let mut message = [0; HEADER_BYTES + 1].to_vec();
            for at in 0..pointers {
                let target = if at == 0 { 12 } else { 13 + 2 * (at - 1) };
                message.extend_from_slice(&(0xC000 | target).to_be_bytes());
            }
            let mut out = Vec::new();
            expand_name(&message, message.len() - 2, &mut out).map(|()| out)
        };
        assert_eq!(chain(127), Ok(vec![0]));
        assert_eq!(chain(128), Err(MalformedMessage));
    }

    #[test]
    fn names_that_overlap_ttl_fields_are_detected() {
        // At 12 is the label `a`. At 16 is a TTL that reads as a one-byte label and the root label.
        // At 20 is a pointer to each.
        let message =
            [&[0; 12][..], b"\x01a\0\0", &[1, b'b', 0, 0], &[0xC0, 12, 0xC0, 16]].concat();
        assert_eq!([20, 22].map(|at| name_overlaps(&message, at, &[16])), [false, true]);
        assert_eq!([20, 22].map(|at| name_overlaps(&message, at, &[4, 9, 30])), [true, false]);
    }

    proptest! {
        #[test]
        fn iteration_never_panics_and_always_ends(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            at in 0usize..220,
        ) {
            let walked = records(&bytes, at).count();
            prop_assert!(walked <= bytes.len() + 1);
            let _ = question_end(&bytes);
            let _ = expand_name(&bytes, at, &mut Vec::new());
        }
    }
}
