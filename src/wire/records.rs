//! The records of a message, strictly walked.
//!
//! For messages of others that are passed on: every record lies within the message and the last one ends it, every name is
//! well-formed. Data is not looked into; every loop consumes octets.

use super::query::name_end;
use super::{HEADER, rtype, u16_at, u32_at};

/// A section behind the question (RFC 1035 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// The answer section.
    Answer,
    /// The authority section.
    Authority,
    /// The additional section.
    Additional,
}

/// One record of a message, by its places in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The section.
    pub section: Section,
    /// Where the owner begins.
    pub start: usize,
    /// Where the type begins: the owner ends before. Class at +2, TTL at +4, length of the data at +8, data at +10.
    pub fixed: usize,
    /// Where the data ends, and the record with it.
    pub end: usize,
    /// The type.
    pub rtype: u16,
    /// The class; a payload size for OPT.
    pub class: u16,
    /// The TTL in seconds; extended flags for OPT.
    pub ttl: u32,
}

impl Record {
    /// The data, of the message that the record was found in.
    #[must_use]
    pub fn data<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        message.get(self.fixed + 10..self.end).unwrap_or_default()
    }

    /// Where the TTL's four octets begin.
    #[must_use]
    pub fn ttl_at(&self) -> usize {
        self.fixed + 4
    }

    /// Whether it is the OPT pseudo-record (RFC 6891).
    #[must_use]
    pub fn is_opt(&self) -> bool {
        self.rtype == rtype::OPT
    }
}

/// The message is not well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message is not well-formed")]
pub struct Malformed;

/// Where the one question of a message ends; none when there is not exactly one, or it is cut or compressed.
#[must_use]
pub fn question_end(message: &[u8]) -> Option<usize> {
    let end = name_end(message, HEADER, false).filter(|_| u16_at(message, 4) == Some(1))? + 4;
    (end <= message.len()).then_some(end)
}

/// Walks the records behind the question, which ends at `at`. After the last one, or the first error, it is over: what ends
/// without an error fills the message exactly.
#[must_use]
pub fn records(message: &[u8], at: usize) -> Records<'_> {
    let count = |at| u16_at(message, at).unwrap_or_default();
    Records { message, at, counts: [count(6), count(8), count(10)], over: false }
}

/// An iterator over records; made by [`records`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    message: &'a [u8],
    at: usize,
    counts: [u16; 3],
    over: bool,
}

impl Records<'_> {
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
    type Item = Result<Record, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let sections = [Section::Answer, Section::Authority, Section::Additional];
        let next = sections.into_iter().zip(&mut self.counts).find(|(_, count)| **count > 0);
        let Some((section, count)) = next else {
            self.over = true;
            return (self.at != self.message.len()).then_some(Err(Malformed));
        };
        *count -= 1;
        let record = self.read(section).ok_or(Malformed);
        self.over = record.is_err();
        Some(record)
    }
}

/// The name that begins at `at`, without compression and in lower case, the root label included, appended to `out`. Pointers
/// lead backwards only, so that every chain of them ends (RFC 1035 section 4.1.4).
///
/// # Errors
/// When the name leaves the message, a pointer does not lead back, there are too many of them, or it is longer than 255 octets.
pub fn expand_name(message: &[u8], at: usize, out: &mut Vec<u8>) -> Result<(), Malformed> {
    each_label(message, at, |_, label| out.extend(label.iter().map(u8::to_ascii_lowercase)))
}

/// Whether the name that begins at `at`, which is well-formed, stands in part in these places of four octets each, in ascending
/// order: a pointer may lead anywhere, to what is no name but a TTL, too.
#[must_use]
pub fn name_stands_in(message: &[u8], at: usize, places: &[u16]) -> bool {
    let mut found = false;
    let looked = each_label(message, at, |start, label| {
        let next = places.partition_point(|place| usize::from(*place) + 4 <= start);
        found |= places.get(next).is_some_and(|place| usize::from(*place) < start + label.len());
    });
    found && looked.is_ok()
}

/// Pointers of one name, at most: a label before each, and a name has no more labels. A message full of pointers that lead
/// from one to the next would else be walked from end to end for each of its records.
const MOST_POINTERS: usize = 127;

/// Gives every label of the name that begins at `at`, its place and its octets with the length in front, the root label included.
fn each_label(message: &[u8], mut at: usize, mut give: impl FnMut(usize, &[u8])) -> Result<(), Malformed> {
    let (mut before, mut octets, mut pointers) = (at, 0, 0);
    loop {
        let length = *message.get(at).ok_or(Malformed)?;
        match length {
            0..=63 => {
                let label = message.get(at..=at + usize::from(length)).ok_or(Malformed)?;
                octets += label.len();
                if octets > 255 {
                    return Err(Malformed);
                }
                give(at, label);
                if length == 0 {
                    return Ok(());
                }
                at += label.len();
            }
            0xC0.. => {
                let target = usize::from(u16_at(message, at).ok_or(Malformed)? & 0x3FFF);
                pointers += 1;
                if target >= before || target < HEADER || pointers > MOST_POINTERS {
                    return Err(Malformed);
                }
                (before, at) = (target, target);
            }
            _ => return Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `a.test A` answered by a CNAME to `b.test` and its address, with names compressed.
    const MESSAGE: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x02\0\0\0\x01\x01a\x04test\0\0\x01\0\x01\
        \xC0\x0C\0\x05\0\x01\0\0\0\x3C\0\x04\x01B\xC0\x0E\
        \xC0\x24\0\x01\0\x01\0\0\0\x1E\0\x04\xC0\0\x02\x01\
        \0\0\x29\x04\xD0\0\0\0\0\0\0";

    #[test]
    fn records_are_found() {
        let end = question_end(MESSAGE).unwrap();
        let found: Vec<_> = records(MESSAGE, end).map(Result::unwrap).collect();
        assert_eq!(
            found.iter().map(|record| (record.section, record.rtype, record.ttl)).collect::<Vec<_>>(),
            [(Section::Answer, 5, 60), (Section::Answer, rtype::A, 30), (Section::Additional, rtype::OPT, 0),]
        );
        assert_eq!(found[1].data(MESSAGE), [192, 0, 2, 1]);
        let mut name = Vec::new();
        expand_name(MESSAGE, found[1].start, &mut name).unwrap();
        assert_eq!(name, b"\x01b\x04test\0");
    }

    #[test]
    fn what_does_not_fill_the_message_is_malformed() {
        let end = question_end(MESSAGE).unwrap();
        for message in [&MESSAGE[..MESSAGE.len() - 1], &[MESSAGE, b"\0"].concat()] {
            assert!(records(message, end).any(|record| record.is_err()));
        }
        // Counts that lie.
        let mut lying = MESSAGE.to_vec();
        lying[7] = 200;
        assert!(records(&lying, end).any(|record| record.is_err()));
    }

    #[test]
    fn pointers_lead_back_or_nowhere() {
        let mut out = Vec::new();
        for name in [&b"\xC0\x0C"[..], b"\x01a\xC0\x0C", b"\xC0\x0E\0", b"\xC0", b"\x05a", b"\xC0\x01", b"\x80"] {
            let message = [&[0; HEADER], name].concat();
            assert_eq!(expand_name(&message, HEADER, &mut out), Err(Malformed), "{name:x?}");
            // As the owner of the only record, whose data is empty
            let record = [&[0, 0, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0][..], name, &[0, 1, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
            assert!(records(&record, HEADER).any(|record| record.is_err()), "{name:x?}");
        }
    }

    #[test]
    fn chains_of_pointers_are_short() {
        let chain = |pointers: u16| {
            let mut message = [0; HEADER + 1].to_vec();
            for at in 0..pointers {
                let target = if at == 0 { 12 } else { 13 + 2 * (at - 1) };
                message.extend_from_slice(&(0xC000 | target).to_be_bytes());
            }
            let mut out = Vec::new();
            expand_name(&message, message.len() - 2, &mut out).map(|()| out)
        };
        assert_eq!(chain(127), Ok(vec![0]));
        assert_eq!(chain(128), Err(Malformed));
    }

    #[test]
    fn a_name_may_stand_in_what_is_no_name() {
        // At 12 the label `a`, at 16 a TTL that reads as a label of one octet and the root, at 20 pointers to each.
        let message = [&[0; 12][..], b"\x01a\0\0", &[1, b'b', 0, 0], &[0xC0, 12, 0xC0, 16]].concat();
        assert_eq!([20, 22].map(|at| name_stands_in(&message, at, &[16])), [false, true]);
        assert_eq!([20, 22].map(|at| name_stands_in(&message, at, &[4, 9, 30])), [true, false]);
    }

    proptest! {
        #[test]
        fn no_message_panics_or_goes_on_for_ever(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..220) {
            let walked = records(&bytes, at).count();
            prop_assert!(walked <= bytes.len() + 1);
            let _ = question_end(&bytes);
            let _ = expand_name(&bytes, at, &mut Vec::new());
        }
    }
}
