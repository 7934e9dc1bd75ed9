//! Strings that store short text without an allocation.

use std::fmt;
use std::ops::Deref;
use std::str;

/// Maximum length of a text that is stored inline, in bytes.
const INLINE_BYTES: usize = 22;

/// A string of 24 bytes, stored inline if it fits, as most names do.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum InlineText {
    /// Length and bytes of a short text; the bytes are UTF-8.
    Inline(u8, [u8; INLINE_BYTES]),
    /// A longer text.
    Heap(Box<str>),
}

impl From<&str> for InlineText {
    fn from(text: &str) -> Self {
        let mut bytes = [0; INLINE_BYTES];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(start), Ok(length)) => {
                start.copy_from_slice(text.as_bytes());
                Self::Inline(length, bytes)
            }
            _ => Self::Heap(text.into()),
        }
    }
}

impl InlineText {
    /// Returns the bytes of the text, so that comparisons need no UTF-8 validation.
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
            // The bytes came from a `str`.
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
    fn texts_of_any_length_round_trip() {
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
