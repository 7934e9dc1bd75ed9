//! Domain names as octets (RFC 1035 sections 2.3.4, 3.1 and 5.1, RFC 4343).

use std::cmp::Ordering;
use std::fmt::{self, Write as _};
use std::hash::{Hash, Hasher};

/// Longest name in wire form, the root label included (RFC 1035 section 2.3.4).
const MAX_NAME_BYTES: usize = 255;

/// Longest label (RFC 1035 section 2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// Most labels of a name, the root label apart: each takes at least two of the 254 octets before the root.
const MAX_LABELS: usize = 127;

/// A complete domain name: wire octets (RFC 1035 section 3.1), ASCII letters lower-cased (RFC 4343), uncompressed, the
/// root label included. Any octet may stand in a label.
///
/// Equality and hash are those of the octets, the order is the canonical one (RFC 4034 section 6.1). No heap.
#[derive(Clone, Copy)]
pub struct Name {
    /// The wire form, zeroes behind it.
    bytes: [u8; MAX_NAME_BYTES],
    /// Octets of the wire form, 1-255.
    length: u8,
}

/// Why octets or a text are no domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A compression pointer where a whole name is wanted (RFC 1035 section 4.1.4).
    #[error("the name is compressed where a whole name is wanted")]
    Compressed,
    /// Over 255 octets with the root label.
    #[error("the name is longer than 255 octets")]
    TooLong,
    /// A label of more than 63 octets, or of a label type that does not exist (RFC 6891 section 5).
    #[error("a label is longer than 63 octets")]
    LabelTooLong,
    /// The octets end before the root label.
    #[error("the name ends in the middle")]
    Truncated,
    /// Two dots in a row, a dot in front, or no text at all.
    #[error("a label is empty")]
    EmptyLabel,
    /// A backslash that is not followed by a character or by a number from 000 to 255 (RFC 1035 section 5.1).
    #[error("a backslash is followed neither by a character nor by three digits up to 255")]
    BadEscape,
}

impl Name {
    /// The root, `.`.
    pub const ROOT: Self = Self { bytes: [0; MAX_NAME_BYTES], length: 1 };

    /// Reads the name at the beginning of `wire` and says how many octets it took (1-255); what follows it is not looked at.
    ///
    /// # Errors
    /// [`NameError::Compressed`] for a compression pointer, [`NameError::LabelTooLong`] for the reserved label types,
    /// [`NameError::TooLong`] above 255 octets, [`NameError::Truncated`] when `wire` ends before the root label.
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
        // Length octets are at most 63, below 'A': only letters change.
        bytes.make_ascii_lowercase();
        name.length = to_u8(root + 1);
        Ok((name, root + 1))
    }

    /// Reads the presentation form (RFC 1035 section 5.1): `\DDD` is an octet by its decimal number, `\` before any other
    /// character takes it as it is, the trailing dot may be left out. Every name is complete, there is no origin.
    ///
    /// # Errors
    /// [`NameError::EmptyLabel`] (the empty text too), [`NameError::LabelTooLong`], [`NameError::TooLong`],
    /// [`NameError::BadEscape`].
    pub fn from_text(text: &str) -> Result<Self, NameError> {
        if text == "." {
            return Ok(Self::ROOT);
        }
        let mut builder = NameBuilder::new();
        let mut bytes = text.bytes();
        while let Some(octet) = bytes.next() {
            match octet {
                b'.' => builder.end_label()?,
                b'\\' => builder.push(escaped(&mut bytes)?)?,
                _ => builder.push(octet)?,
            }
        }
        if builder.in_label() || builder.is_empty() {
            builder.end_label()?;
        }
        Ok(builder.finish())
    }

    /// Puts labels together, left to right, the root label not among them. No labels make the root.
    ///
    /// # Errors
    /// [`NameError::EmptyLabel`], [`NameError::LabelTooLong`], [`NameError::TooLong`].
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, NameError> {
        let mut builder = NameBuilder::new();
        for label in labels {
            for &octet in label {
                builder.push(octet)?;
            }
            builder.end_label()?;
        }
        Ok(builder.finish())
    }

    /// The wire form: 1-255 octets, the root label included.
    pub fn as_wire(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The labels, left to right, without the root label.
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

    /// How many labels there are, 0-127, the root label not counted.
    pub fn label_count(&self) -> usize {
        let bytes = self.as_wire();
        let (mut at, mut count) = (0, 0);
        while bytes[at] != 0 {
            at += 1 + usize::from(bytes[at]);
            count += 1;
        }
        count
    }

    /// Whether this name is `ancestor` or lies below it: compared by labels, so `xsvc.` does not end with `svc.`.
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
    /// The root.
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
    /// The canonical order (RFC 4034 section 6.1): by labels, the rightmost first, so a name stands before those below it.
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
    /// The presentation form (RFC 1035 section 5.1) with its trailing dot. Characters that mean something in a zone file
    /// are escaped with `\`, octets that are not printable ASCII as `\DDD`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.length == 1 {
            return f.write_char('.');
        }
        for label in self.labels() {
            for &octet in label {
                match octet {
                    b'.' | b'\\' | b'"' | b'(' | b')' | b';' | b'@' | b'$' => {
                        write!(f, "\\{}", char::from(octet))?
                    }
                    b'!'..=b'~' => f.write_char(char::from(octet))?,
                    _ => write!(f, "\\{octet:03}")?,
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

/// The labels of a name, left to right, without the root label; from either end.
#[derive(Clone, Debug)]
pub struct Labels<'n> {
    /// The wire form.
    bytes: &'n [u8],
    /// Where each label's length octet stands.
    starts: [u8; MAX_LABELS],
    /// The first label that is left.
    next: u8,
    /// One past the last label that is left.
    end: u8,
}

impl<'n> Labels<'n> {
    /// The label of this place.
    fn label(&self, place: u8) -> &'n [u8] {
        let start = usize::from(self.starts[usize::from(place)]);
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

/// A name in the making: whole labels, and the one that is being written.
struct NameBuilder {
    bytes: [u8; MAX_NAME_BYTES],
    /// Where the length octet of the label in the making stands; between labels, where the root label would.
    start: usize,
    /// Where the next octet goes.
    at: usize,
}

impl NameBuilder {
    /// The root, with a first label about to be written.
    fn new() -> Self {
        Self { bytes: [0; MAX_NAME_BYTES], start: 0, at: 1 }
    }

    /// Whether no whole label has been written.
    fn is_empty(&self) -> bool {
        self.start == 0
    }

    /// Whether the label in the making has an octet.
    fn in_label(&self) -> bool {
        self.at > self.start + 1
    }

    /// Adds an octet to the label in the making.
    fn push(&mut self, octet: u8) -> Result<(), NameError> {
        if self.at - self.start > MAX_LABEL_BYTES {
            return Err(NameError::LabelTooLong);
        }
        // The last octet is the root label's.
        if self.at >= MAX_NAME_BYTES - 1 {
            return Err(NameError::TooLong);
        }
        self.bytes[self.at] = octet.to_ascii_lowercase();
        self.at += 1;
        Ok(())
    }

    /// Ends the label in the making.
    fn end_label(&mut self) -> Result<(), NameError> {
        if !self.in_label() {
            return Err(NameError::EmptyLabel);
        }
        self.bytes[self.start] = to_u8(self.at - self.start - 1);
        self.start = self.at;
        self.at += 1;
        Ok(())
    }

    /// The name of the whole labels.
    fn finish(self) -> Name {
        Name { bytes: self.bytes, length: to_u8(self.start + 1) }
    }
}

/// A length or a place within a name, which no valid name has above 255.
fn to_u8(place: usize) -> u8 {
    u8::try_from(place).unwrap_or(u8::MAX)
}

/// What stands for an escape, whose backslash has been read.
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
    fn wire_form_is_read_lower_cased_and_measured() {
        let (read, taken) = Name::from_wire(b"\x05HeLLo\x03SVC\x00rest").unwrap();
        assert_eq!(taken, 11);
        assert_eq!(read.as_wire(), b"\x05hello\x03svc\x00");
        assert_eq!(read.to_string(), "hello.svc.");
        assert_eq!(Name::from_wire(b"\x00").unwrap(), (Name::ROOT, 1));
    }

    #[test]
    fn only_ascii_letters_lose_their_case() {
        let (read, _) = Name::from_wire(b"\x04\xC4[@Z\x00").unwrap();
        assert_eq!(read.as_wire(), b"\x04\xC4[@z\x00");
    }

    #[test]
    fn wire_form_is_strict() {
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
    fn limits_are_255_octets_and_63_a_label() {
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
    fn presentation_form_knows_escapes() {
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
    fn ancestors_are_found_by_labels() {
        assert!(name("hello.svc").ends_with(&name("svc")));
        assert!(name("svc").ends_with(&name("SVC.")));
        assert!(name("svc").ends_with(&Name::ROOT));
        assert!(!name("xsvc").ends_with(&name("svc")));
        assert!(!name(r"x\.svc").ends_with(&name("svc")));
        assert!(!name("svc").ends_with(&name("hello.svc")));
        // The octets of `svc.` stand at the end, inside a label.
        assert!(!Name::from_wire(b"\x06xx\x03svc\x00").unwrap().0.ends_with(&name("svc")));
    }

    #[test]
    fn the_order_is_canonical() {
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
    fn labels_come_from_both_ends() {
        let name = name("a.b.c");
        let mut labels = name.labels();
        assert_eq!(labels.len(), 3);
        assert_eq!(labels.next_back(), Some(b"c".as_slice()));
        assert_eq!(labels.next(), Some(b"a".as_slice()));
        assert_eq!(labels.next(), Some(b"b".as_slice()));
        assert_eq!((labels.next(), labels.next_back()), (None, None));
    }

    fn any_labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let label = prop_oneof![8 => prop::collection::vec(any::<u8>(), 1..8), 1 => prop::collection::vec(any::<u8>(), 1..=63)];
        prop::collection::vec(label, 0..20)
    }

    proptest! {
        #[test]
        fn wire_and_text_come_back(labels in any_labels()) {
            let built = Name::from_labels(labels.iter().map(Vec::as_slice));
            let bytes: usize = labels.iter().map(|label| label.len() + 1).sum();
            prop_assert_eq!(built.is_ok(), bytes < 255);
            if let Ok(name) = built {
                prop_assert_eq!(Name::from_wire(name.as_wire()), Ok((name, bytes + 1)));
                prop_assert_eq!(Name::from_text(&name.to_string()), Ok(name));
                prop_assert_eq!(name.label_count(), labels.len());
                let lowered: Vec<Vec<u8>> = labels.iter().map(|label| label.to_ascii_lowercase()).collect();
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
        fn no_octets_panic(wire in prop::collection::vec(prop_oneof![any::<u8>(), 0..8u8], 0..400)) {
            if let Ok((name, taken)) = Name::from_wire(&wire) {
                prop_assert_eq!(name.as_wire(), wire[..taken].to_ascii_lowercase());
            }
        }

        #[test]
        fn no_text_panics(text in prop_oneof![any::<String>(), r"[a.\\0-9é]{0,300}"]) {
            if let Ok(name) = Name::from_text(&text) {
                prop_assert_eq!(Name::from_text(&name.to_string()), Ok(name));
            }
        }
    }
}
