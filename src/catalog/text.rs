//! A short text without an allocation of its own.

use std::fmt;
use std::ops::Deref;
use std::str;

/// Octets that fit in place.
const SHORT: usize = 22;

/// A text in 24 octets as long as it has no more than 22, as most names; a longer one lies elsewhere.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Text {
    /// How many of the octets are the text, which is UTF-8.
    Short(u8, [u8; SHORT]),
    /// Any other.
    Long(Box<str>),
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let mut octets = [0; SHORT];
        match (octets.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(text.as_bytes());
                Self::Short(length, octets)
            }
            _ => Self::Long(text.into()),
        }
    }
}

impl Text {
    /// The octets of the text: to compare them, nobody needs to see once more that they are UTF-8.
    pub(super) fn octets(&self) -> &[u8] {
        match self {
            Self::Short(length, octets) => &octets[..usize::from(*length)],
            Self::Long(text) => text.as_bytes(),
        }
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            // It was a text when it came.
            Self::Short(length, octets) => str::from_utf8(&octets[..usize::from(*length)]).unwrap_or_default(),
            Self::Long(text) => text,
        }
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_any_length_come_back() {
        for length in 0..=SHORT + 2 {
            let text = "é".repeat(length / 2) + &"a".repeat(length % 2);
            assert_eq!(&*Text::from(&*text), text);
            assert_eq!(matches!(Text::from(&*text), Text::Short(..)), length <= SHORT);
        }
        assert_eq!(size_of::<Text>(), 24);
    }
}
