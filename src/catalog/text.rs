//! A short text without an allocation of its own.

use std::fmt;
use std::ops::Deref;
use std::str;

/// Octets that fit in place.
const INLINE_BYTES: usize = 22;

/// A text in 24 bytes as long as it has no more than 22, as most names; a longer one lies elsewhere.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum InlineText {
    /// How many of the bytes are the text, which is UTF-8.
    Inline(u8, [u8; INLINE_BYTES]),
    /// Any other.
    Heap(Box<str>),
}

impl From<&str> for InlineText {
    fn from(text: &str) -> Self {
        let mut bytes = [0; INLINE_BYTES];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(text.as_bytes());
                Self::Inline(length, bytes)
            }
            _ => Self::Heap(text.into()),
        }
    }
}

impl InlineText {
    /// The bytes of the text: to compare them, nobody needs to see once more that they are UTF-8.
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline(length, bytes) => &bytes[..usize::from(*length)],
            Self::Heap(text) => text.as_bytes(),
        }
    }
}

impl Deref for InlineText {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            // It was a text when it came.
            Self::Inline(length, bytes) => {
                str::from_utf8(&bytes[..usize::from(*length)]).unwrap_or_default()
            }
            Self::Heap(text) => text,
        }
    }
}

impl fmt::Debug for InlineText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_any_length_come_back() {
        for length in 0..=INLINE_BYTES + 2 {
            let text = "é".repeat(length / 2) + &"a".repeat(length % 2);
            assert_eq!(&*InlineText::from(&*text), text);
            assert_eq!(
                matches!(InlineText::from(&*text), InlineText::Inline(..)),
                length <= INLINE_BYTES
            );
        }
        assert_eq!(size_of::<InlineText>(), 24);
    }
}
