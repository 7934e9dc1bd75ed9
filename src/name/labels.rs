//! Domain names in wire form.

use std::cmp::Ordering;
use std::fmt::{self, Write as _};
use std::hash::{Hash, Hasher};

/// Maximum length of a name in wire form, in bytes (RFC 1035 section 2.3.4).
const MAX_NAME_BYTES: usize = 255;

/// Maximum length of a label, in bytes (RFC 1035 section 2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// Maximum number of labels before the root label; each takes at least two bytes.
const MAX_LABELS: usize = 127;

/// A complete domain name in wire form, in lower case and without heap memory.
///
/// The wire form (RFC 1035 section 3.1) is uncompressed and includes the root label. Labels may
/// contain any bytes. ASCII letters are stored in lower case (RFC 4343), so equality and hash are
/// those of the bytes; the order is the canonical one (RFC 4034 section 6.1).
#[derive(Clone, Copy)]
pub struct Name {
    /// The wire form, followed by zeros.
    bytes: [u8; MAX_NAME_BYTES],
    /// Length of the wire form, 1-255 bytes.
    length: u8,
}

/// Error in the wire form or text of a domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has a compression pointer (RFC 1035 section 4.1.4).
    #[error("the name is compressed, which is not allowed here")]
    Compressed,
    /// The name has more than 255 bytes, including the root label.
    #[error("the name is longer than 255 bytes")]
    TooLong,
    /// A label has more than 63 bytes or an unknown type (RFC 6891 section 5).
    #[error("a label is longer than 63 bytes")]
    LabelTooLong,
    /// The bytes end before the root label.
    #[error("the name is truncated")]
    Truncated,
    /// The text is empty, begins with a dot or has two dots in a row.
    #[error("a label is empty")]
    EmptyLabel,
    /// A backslash is not part of a valid escape (RFC 1035 section 5.1).
    #[error("a backslash must be followed by a character or by three digits up to 255")]
    BadEscape,
}

impl Name {
    /// The root, `.`.
    pub const ROOT: Self = Self { bytes: [0; MAX_NAME_BYTES], length: 1 };

    /// Reads the name at the beginning of `wire` and returns its length, 1-255 bytes.
    ///
    /// Ignores all bytes after the name.
    ///
    /// # Errors
    /// Returns [`NameError::Compressed`] for a compression pointer, [`NameError::LabelTooLong`] for
    /// a reserved label type, [`NameError::TooLong`] above 255 bytes, and [`NameError::Truncated`]
    /// if `wire` ends before the root label.
    pub fn from_wire(wire: &[u8]) -> Result<(Self, usize), NameError> {
        let mut root = 0;
        loop {
            match *wire.get(root).ok_or(NameError::Truncated)? {
                0 => break,
                length @ 1..=63 => root += 1 + usize::from(length),
                64..=191 => return Err(NameError::LabelTooLong),
                192.. => return Err(NameError::Compressed),
            }
            if root >= MAX_NAME_BYTES {
                return Err(NameError::TooLong);
            }
        }
        let mut name = Self::ROOT;
        let bytes = &mut name.bytes[..=root];
        bytes.copy_from_slice(&wire[..=root]);
        // Length bytes are at most 63, below 'A', so only letters change.
        bytes.make_ascii_lowercase();
        name.length = to_u8(root + 1);
        Ok((name, root + 1))
    }

    /// Parses the presentation form (RFC 1035 section 5.1).
    ///
    /// `\DDD` is the byte with that decimal number; `\` before any other character makes it
    /// literal. The trailing dot is optional, since every name is complete.
    ///
    /// # Errors
    /// Returns [`NameError::EmptyLabel`] (also for the empty text), [`NameError::LabelTooLong`],
    /// [`NameError::TooLong`] or [`NameError::BadEscape`].
    pub fn from_text(text: &str) -> Result<Self, NameError> {
        if text == "." {
            return Ok(Self::ROOT);
        }
        let mut builder = NameBuilder::new();
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'.' => builder.end_label()?,
                b'\\' => builder.push(escaped(&mut bytes)?)?,
                _ => builder.push(byte)?,
            }
        }
        if builder.in_label() || builder.is_empty() {
            builder.end_label()?;
        }
        Ok(builder.finish())
    }

    /// Joins labels, left to right and without the root label; no labels give the root.
    ///
    /// # Errors
    /// Returns [`NameError::EmptyLabel`], [`NameError::LabelTooLong`] or [`NameError::TooLong`].
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, NameError> {
        let mut builder = NameBuilder::new();
        for label in labels {
            for &byte in label {
                builder.push(byte)?;
            }
            builder.end_label()?;
        }
        Ok(builder.finish())
    }

    /// Returns the wire form: 1-255 bytes, including the root label.
    pub fn as_wire(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// Returns the labels, left to right, without the root label.
    pub fn labels(&self) -> Labels<'_> {
        let bytes = self.as_wire();
        let mut labels = Labels { bytes, starts: [0; MAX_LABELS], next: 0, end: 0 };
        let mut at = 0;
        while bytes[at] != 0 {
            labels.starts[usize::from(labels.end)] = to_u8(at);
            labels.end += 1;
            at += 1 + usize::from(bytes[at]);
        }
        labels
    }

    /// Returns the number of labels, 0-127, without the root label.
    pub fn label_count(&self) -> usize {
        let bytes = self.as_wire();
        let (mut at, mut count) = (0, 0);
        while bytes[at] != 0 {
            at += 1 + usize::from(bytes[at]);
            count += 1;
        }
        count
    }

    /// Returns whether this name is `ancestor` or below it.
    ///
    /// Labels are compared, so `xsvc.` is not below `svc.`.
    pub fn ends_with(&self, ancestor: &Self) -> bool {
        let bytes = self.as_wire();
        let mut at = 0;
        while bytes.len() - at > usize::from(ancestor.length) {
            at += 1 + usize::from(bytes[at]);
        }
        bytes[at..] == *ancestor.as_wire()
    }
}

impl Default for Name {
    /// Returns the root.
    fn default() -> Self {
        Self::ROOT
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_wire() == other.as_wire()
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_wire().hash(state);
    }
}

impl Ord for Name {
    /// Compares in canonical order (RFC 4034 section 6.1): labels from right to left.
    fn cmp(&self, other: &Self) -> Ordering {
        self.labels().rev().cmp(other.labels().rev())
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Name {
    /// Writes the presentation form (RFC 1035 section 5.1) with its trailing dot.
    ///
    /// Special characters of zone files are escaped with `\`, bytes outside printable ASCII as
    /// `\DDD`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.length == 1 {
            return f.write_char('.');
        }
        for label in self.labels() {
            for &byte in label {
                match byte {
                    b'.' | b'\\' | b'"' | b'(' | b')' | b';' | b'@' | b'$' => {
                        write!(f, "\\{}", char::from(byte))?;
                    }
                    b'!'..=b'~' => f.write_char(char::from(byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_char('.')?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({self})")
    }
}

/// Iterator over the labels of a name, from either end, without the root label.
#[derive(Clone, Debug)]
pub struct Labels<'n> {
    /// The wire form.
    bytes: &'n [u8],
    /// Offset of each label's length byte.
    starts: [u8; MAX_LABELS],
    /// Index of the first remaining label.
    next: u8,
    /// Index after the last remaining label.
    end: u8,
}

impl<'n> Labels<'n> {
    /// Returns the label at an index.
    fn label(&self, index: u8) -> &'n [u8] {
        let start = usize::from(self.starts[usize::from(index)]);
        &self.bytes[start + 1..=start + usize::from(self.bytes[start])]
    }
}

impl<'n> Iterator for Labels<'n> {
    type Item = &'n [u8];

    fn next(&mut self) -> Option<&'n [u8]> {
        (self.next < self.end).then(|| {
            self.next += 1;
            self.label(self.next - 1)
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::from(self.end - self.next);
        (left, Some(left))
    }
}

impl DoubleEndedIterator for Labels<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        (self.next < self.end).then(|| {
            self.end -= 1;
            self.label(self.end)
        })
    }
}

impl ExactSizeIterator for Labels<'_> {}

/// Builder of a name: its complete labels and the label in progress.
struct NameBuilder {
    bytes: [u8; MAX_NAME_BYTES],
    /// Offset for the length byte of the label in progress.
    start: usize,
    /// Offset for the next byte.
    at: usize,
}

impl NameBuilder {
    /// Returns a builder without labels.
    fn new() -> Self {
        Self { bytes: [0; MAX_NAME_BYTES], start: 0, at: 1 }
    }

    /// Returns whether no label is complete.
    fn is_empty(&self) -> bool {
        self.start == 0
    }

    /// Returns whether the label in progress has any bytes.
    fn in_label(&self) -> bool {
        self.at > self.start + 1
    }

    /// Adds a byte to the label in progress.
    fn push(&mut self, byte: u8) -> Result<(), NameError> {
        if self.at - self.start > MAX_LABEL_BYTES {
            return Err(NameError::LabelTooLong);
        }
        // The last byte is for the root label.
        if self.at >= MAX_NAME_BYTES - 1 {
            return Err(NameError::TooLong);
        }
        self.bytes[self.at] = byte.to_ascii_lowercase();
        self.at += 1;
        Ok(())
    }

    /// Completes the label in progress.
    fn end_label(&mut self) -> Result<(), NameError> {
        if !self.in_label() {
            return Err(NameError::EmptyLabel);
        }
        self.bytes[self.start] = to_u8(self.at - self.start - 1);
        self.start = self.at;
        self.at += 1;
        Ok(())
    }

    /// Returns the name of the complete labels.
    fn finish(self) -> Name {
        Name { bytes: self.bytes, length: to_u8(self.start + 1) }
    }
}

/// Converts a length or offset within a name, which is at most 255.
fn to_u8(index: usize) -> u8 {
    u8::try_from(index).unwrap_or(u8::MAX)
}

/// Returns the byte of an escape whose backslash has been read.
fn escaped(bytes: &mut impl Iterator<Item = u8>) -> Result<u8, NameError> {
    let first = bytes.next().ok_or(NameError::BadEscape)?;
    if !first.is_ascii_digit() {
        return Ok(first);
    }
    let mut number = u16::from(first - b'0');
    for _ in 0..2 {
        let digit = bytes.next().filter(u8::is_ascii_digit).ok_or(NameError::BadEscape)?;
        number = number * 10 + u16::from(digit - b'0');
    }
    u8::try_from(number).map_err(|_| NameError::BadEscape)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_text(text).unwrap()
    }

    #[test]
    fn from_wire_lowercases_and_returns_the_encoded_length() {
        let (read, length) = Name::from_wire(b"\x05HeLLo\x03SVC\x00rest").unwrap();
        assert_eq!(length, 11);
        assert_eq!(read.as_wire(), b"\x05hello\x03svc\x00");
        assert_eq!(read.to_string(), "hello.svc.");
        assert_eq!(Name::from_wire(b"\x00").unwrap(), (Name::ROOT, 1));
    }

    #[test]
    fn only_ascii_letters_are_lowercased() {
        let (read, _) = Name::from_wire(b"\x04\xC4[@Z\x00").unwrap();
        assert_eq!(read.as_wire(), b"\x04\xC4[@z\x00");
    }

    #[test]
    fn malformed_wire_form_is_rejected() {
        let error = |wire: &[u8]| Name::from_wire(wire).unwrap_err();
        assert_eq!(error(b""), NameError::Truncated);
        assert_eq!(error(b"\x05hel"), NameError::Truncated);
        assert_eq!(error(b"\x05hello"), NameError::Truncated);
        assert_eq!(error(b"\xC0\x0C"), NameError::Compressed);
        assert_eq!(error(b"\x01a\xFF\x0C"), NameError::Compressed);
        assert_eq!(error(b"\x40"), NameError::LabelTooLong);
        assert_eq!(error(b"\x80"), NameError::LabelTooLong);
    }

    #[test]
    fn names_are_limited_to_255_bytes_and_labels_to_63() {
        let label = [b'a'; 64];
        let longest: [&[u8]; 4] = [&label[..63], &label[..63], &label[..63], &label[..61]];
        let name = Name::from_labels(longest).unwrap();
        assert_eq!(name.as_wire().len(), 255);
        assert_eq!(Name::from_wire(name.as_wire()).unwrap(), (name, 255));
        assert_eq!(Name::from_text(&name.to_string()).unwrap(), name);

        let mut too_long = longest;
        too_long[3] = &label[..62];
        assert_eq!(Name::from_labels(too_long), Err(NameError::TooLong));
        let wire: Vec<u8> =
            too_long.iter().flat_map(|l| [&[to_u8(l.len())], *l].concat()).chain([0]).collect();
        assert_eq!(wire.len(), 256);
        assert_eq!(Name::from_wire(&wire), Err(NameError::TooLong));
        assert_eq!(Name::from_labels([&label[..]]), Err(NameError::LabelTooLong));

        let longest = Name::from_labels([&label[..1]; 127]).unwrap();
        assert_eq!((longest.label_count(), longest.as_wire().len()), (127, 255));
        assert_eq!(Name::from_labels([&label[..1]; 128]), Err(NameError::TooLong));
        assert_eq!(Name::from_text(&"a.".repeat(127)), Ok(longest));
        assert_eq!(Name::from_text(&"a.".repeat(128)), Err(NameError::TooLong));
    }

    #[test]
    fn presentation_form_has_escapes() {
        assert_eq!(name(r"a\.b.c"), name(r"a\046b.C."));
        assert_eq!(name(r"a\.b.c").label_count(), 2);
        assert_eq!(name(r"\000\255\065").as_wire(), b"\x03\x00\xFFa\x00");
        assert_eq!(name(r"x\;y\ z").to_string(), r"x\;y\032z.");
        assert_eq!(name("."), Name::ROOT);
        assert_eq!(Name::ROOT.to_string(), ".");
        for bad in [r"\", r"\2", r"\25", r"\256", r"\2x5", r"a.\"] {
            assert_eq!(Name::from_text(bad), Err(NameError::BadEscape), "{bad}");
        }
        for bad in ["", "..", ".a", "a..b", "a.."] {
            assert_eq!(Name::from_text(bad), Err(NameError::EmptyLabel), "{bad}");
        }
        assert_eq!(Name::from_labels([b"a".as_slice(), b""]), Err(NameError::EmptyLabel));
    }

    #[test]
    fn ends_with_compares_whole_labels() {
        assert!(name("hello.svc").ends_with(&name("svc")));
        assert!(name("svc").ends_with(&name("SVC.")));
        assert!(name("svc").ends_with(&Name::ROOT));
        assert!(!name("xsvc").ends_with(&name("svc")));
        assert!(!name(r"x\.svc").ends_with(&name("svc")));
        assert!(!name("svc").ends_with(&name("hello.svc")));
        // The bytes of `svc.` are at the end, but they are part of a longer label.
        assert!(!Name::from_wire(b"\x06xx\x03svc\x00").unwrap().0.ends_with(&name("svc")));
    }

    #[test]
    fn names_sort_in_canonical_order() {
        let sorted = [
            "example",
            "a.example",
            "yljkjljk.a.example",
            "Z.a.example",
            "z.example",
            r"\200.z.example",
        ]
        .map(name);
        assert!(sorted.is_sorted());
        assert!(name("b") > name("z.a"));
    }

    #[test]
    fn labels_iterate_from_both_ends() {
        let name = name("a.b.c");
        let mut labels = name.labels();
        assert_eq!(labels.len(), 3);
        assert_eq!(labels.next_back(), Some(b"c".as_slice()));
        assert_eq!(labels.next(), Some(b"a".as_slice()));
        assert_eq!(labels.next(), Some(b"b".as_slice()));
        assert_eq!((labels.next(), labels.next_back()), (None, None));
    }

    fn any_labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let label = prop_oneof![
            8 => prop::collection::vec(any::<u8>(), 1..8),
            1 => prop::collection::vec(any::<u8>(), 1..=63),
        ];
        prop::collection::vec(label, 0..20)
    }

    proptest! {
        #[test]
        fn wire_and_text_round_trip(labels in any_labels()) {
            let built = Name::from_labels(labels.iter().map(Vec::as_slice));
            let bytes: usize = labels.iter().map(|label| label.len() + 1).sum();
            prop_assert_eq!(built.is_ok(), bytes < 255);
            if let Ok(name) = built {
                prop_assert_eq!(Name::from_wire(name.as_wire()), Ok((name, bytes + 1)));
                prop_assert_eq!(Name::from_text(&name.to_string()), Ok(name));
                prop_assert_eq!(name.label_count(), labels.len());
                let lowered: Vec<_> =
                    labels.iter().map(|label| label.to_ascii_lowercase()).collect();
                prop_assert!(name.labels().eq(lowered.iter().map(Vec::as_slice)));
                prop_assert!(name.labels().rev().eq(lowered.iter().rev().map(Vec::as_slice)));
                for kept in 0..=labels.len() {
                    let ancestor = Name::from_labels(name.labels().skip(kept)).unwrap();
                    prop_assert!(name.ends_with(&ancestor));
                    prop_assert_eq!(ancestor.ends_with(&name), kept == 0);
                }
            }
        }

        #[test]
        fn arbitrary_wire_form_does_not_panic(
            wire in prop::collection::vec(prop_oneof![any::<u8>(), 0..8u8], 0..400),
        ) {
            if let Ok((name, length)) = Name::from_wire(&wire) {
                prop_assert_eq!(name.as_wire(), wire[..length].to_ascii_lowercase());
            }
        }

        #[test]
        fn arbitrary_text_does_not_panic(
            text in prop_oneof![any::<String>(), r"[a.\\0-9é]{0,300}"],
        ) {
            if let Ok(name) = Name::from_text(&text) {
                prop_assert_eq!(Name::from_text(&name.to_string()), Ok(name));
            }
        }
    }
}
