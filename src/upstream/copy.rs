//! Copying of single records into a new message.
//!
//! A record cannot be moved as bytes, because its names may point into other records.

use super::strip::compressible_names;
use crate::wire::{
    HEADER_BYTES, MAX_TCP_BYTES, MalformedMessage, Record, Section, copy_name, name_end,
};

/// Maximum names of a new message that later names may point to.
///
/// Each name is compared with all of them, so more would take long.
const MAX_POINTED_NAMES: usize = 32;
/// Last of the types of RFC 1035.
///
/// Data of later types has no compressed names (RFC 3597 section 4).
const LAST_COMPRESSIBLE_TYPE: u16 = 16;

/// Builder of a message from records of other messages.
#[derive(Debug)]
pub(super) struct RecordCopier {
    bytes: Vec<u8>,
    counts: [u16; 3],
    /// Start and end of the names that pointers may point to; they contain no pointers.
    names: Vec<(usize, usize)>,
}

impl RecordCopier {
    /// Starts a message with this question: name, type and class.
    pub(super) fn new(question: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(512);
        bytes.resize(HEADER_BYTES, 0);
        bytes[5] = 1;
        bytes.extend_from_slice(question);
        let name_end = bytes.len().saturating_sub(4);
        Self { bytes, counts: [0; 3], names: vec![(HEADER_BYTES, name_end)] }
    }

    /// Appends a record of a well-formed `message`, in order of sections.
    ///
    /// Returns the offset of its data.
    ///
    /// # Errors
    /// Returns an error, and appends nothing, if names in the data are malformed or the message
    /// would become too long.
    pub(super) fn copy(
        &mut self,
        message: &[u8],
        record: &Record,
    ) -> Result<usize, MalformedMessage> {
        let (start, names) = (self.bytes.len(), self.names.len());
        let copied = self.try_copy(message, record).filter(|_| self.bytes.len() <= MAX_TCP_BYTES);
        if copied.is_some() {
            self.counts[record.section as usize] += 1;
        } else {
            self.bytes.truncate(start);
            self.names.truncate(names);
        }
        copied.ok_or(MalformedMessage)
    }

    /// Appends a record, perhaps only in part; returns the offset of its data.
    fn try_copy(&mut self, message: &[u8], record: &Record) -> Option<usize> {
        self.copy_name(message, record.start, true)?;
        let fixed = message.get(record.fixed..record.fixed + 10)?;
        self.bytes.extend_from_slice(fixed);
        let data = self.bytes.len();
        let (skipped, names) = compressible_names(record.rtype);
        let mut at = record.fixed + 10;
        // Records without data, as in updates, contain no names.
        if names > 0 && at < record.end {
            let front = message.get(at..at + skipped)?;
            self.bytes.extend_from_slice(front);
            at += skipped;
            for _ in 0..names {
                let end = name_end(message, at, true).filter(|end| *end <= record.end);
                self.copy_name(message, at, record.rtype <= LAST_COMPRESSIBLE_TYPE)?;
                at = end?;
            }
        }
        self.bytes.extend_from_slice(message.get(at..record.end)?);
        let length = u16::try_from(self.bytes.len() - data).ok()?;
        self.bytes[data - 2..data].copy_from_slice(&length.to_be_bytes());
        Some(data)
    }

    /// Appends the name at `at` of `message`; if possible, as a pointer.
    fn copy_name(&mut self, message: &[u8], at: usize, compress: bool) -> Option<()> {
        let start = self.bytes.len();
        copy_name(message, at, &mut self.bytes).ok()?;
        let (before, name) = self.bytes.split_at(start);
        // The root label is shorter than a pointer.
        if !compress || name.len() == 1 {
            return Some(());
        }
        // Length bytes are below 'A', so only letters may differ in case.
        let known = self.names.iter().find(|(start, end)| {
            before.get(*start..*end).is_some_and(|known| known.eq_ignore_ascii_case(name))
        });
        if let Some((known, _)) = known {
            let pointer = 0xC000 | u16::try_from(*known).ok()?;
            self.bytes.truncate(start);
            self.bytes.extend_from_slice(&pointer.to_be_bytes());
        } else if self.names.len() < MAX_POINTED_NAMES && start < 0x4000 {
            // A pointer has 14 bits.
            self.names.push((start, self.bytes.len()));
        }
        Some(())
    }

    /// Returns the message with these flags, including the response code, and ID 0.
    pub(super) fn finish(mut self, flags: u16) -> Vec<u8> {
        self.bytes[2..4].copy_from_slice(&flags.to_be_bytes());
        for (section, count) in
            [Section::Answer, Section::Authority, Section::Additional].into_iter().zip(self.counts)
        {
            let at = 6 + 2 * section as usize;
            self.bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;

    use super::*;
    use crate::wire::{question_end, records};

    /// A response to `a.test A` with CNAME, A, MX, SRV and SOA records, all compressed.
    const MESSAGE: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x04\0\x01\0\0\x01a\x04test\0\0\x01\0\x01\
        \xC0\x0C\0\x05\0\x01\0\0\0\x3C\0\x04\x01B\xC0\x0E\
        \xC0\x24\0\x01\0\x01\0\0\0\x1E\0\x04\xC0\0\x02\x01\
        \xC0\x0C\0\x0F\0\x01\0\0\0\x3C\0\x04\0\x0A\xC0\x24\
        \xC0\x0C\0\x21\0\x01\0\0\0\x3C\0\x08\0\x01\0\x02\0\x50\xC0\x24\
        \xC0\x0E\0\x06\0\x01\0\0\0\x3C\0\x1B\xC0\x24\x02me\xC0\x0E\0\0\0\x01\0\0\0\x02\0\0\0\x03\
        \0\0\0\x04\0\0\0\x05";

    #[test]
    fn copied_records_are_equal() {
        let end = question_end(MESSAGE).unwrap();
        let mut copier = RecordCopier::new(&MESSAGE[HEADER_BYTES..end]);
        for record in records(MESSAGE, end).map(Result::unwrap) {
            let data = copier.copy(MESSAGE, &record).unwrap();
            assert!(data > end);
        }
        let copy = copier.finish(0x8180);
        let read = |bytes: &[u8]| {
            let message = Message::from_vec(bytes).unwrap();
            (message.answers, message.authorities)
        };
        assert_eq!(read(&copy), read(MESSAGE));
        // Two names have no pointers: SRV targets are not compressed, and `me.test` is written out.
        assert!(copy.len() < MESSAGE.len() + 20, "{} bytes", copy.len());
    }

    #[test]
    fn each_record_can_be_copied_alone() {
        let end = question_end(MESSAGE).unwrap();
        for (at, record) in records(MESSAGE, end).map(Result::unwrap).enumerate() {
            let mut copier = RecordCopier::new(&MESSAGE[HEADER_BYTES..end]);
            copier.copy(MESSAGE, &record).unwrap();
            let copy = Message::from_vec(&copier.finish(0x8180)).unwrap();
            let whole = Message::from_vec(MESSAGE).unwrap();
            let mut all = whole.answers.iter().chain(&whole.authorities);
            let mut copied = copy.answers.iter().chain(&copy.authorities);
            assert_eq!(copied.next(), all.nth(at));
            assert_eq!(copied.next(), None);
        }
    }

    #[test]
    fn malformed_names_in_record_data_are_errors() {
        // MX data of one byte; a CNAME whose name exceeds its data; a forward pointer.
        for record in [
            &b"\xC0\x0C\0\x0F\0\x01\0\0\0\x3C\0\x01\0"[..],
            b"\xC0\x0C\0\x05\0\x01\0\0\0\x3C\0\x01\x01a\0",
            b"\xC0\x0C\0\x05\0\x01\0\0\0\x3C\0\x02\xC0\xFF",
        ] {
            let message = [&MESSAGE[..7], b"\x01\0\0\0\0", &MESSAGE[12..24], record].concat();
            let end = question_end(&message).unwrap();
            let first = records(&message, end).next().unwrap().unwrap();
            let mut copier = RecordCopier::new(&message[HEADER_BYTES..end]);
            assert_eq!(copier.copy(&message, &first), Err(MalformedMessage), "{record:x?}");
        }
    }

    #[test]
    fn copying_beyond_64_kib_is_an_error() {
        let long = [&[63][..], &[b'x'; 63]].concat().repeat(3);
        let record = [&long[..], b"\0\0\x10\0\x01\0\0\0\x3C\0\0"].concat();
        let message = [&MESSAGE[..24], &record].concat();
        let end = question_end(&message).unwrap();
        let first = records(&message, end).next().unwrap().unwrap();
        let mut copier = RecordCopier::new(&message[HEADER_BYTES..end]);
        copier.names.clear();
        copier.names.extend([(0, 0); MAX_POINTED_NAMES]);
        let copied = (0..1000).take_while(|_| copier.copy(&message, &first).is_ok()).count();
        assert_eq!(copied, (MAX_TCP_BYTES - end) / record.len());
    }
}
