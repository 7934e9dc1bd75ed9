//! How far the next page of a list reaches.
//!
//! etcd walks all keys of the range that it is asked for, to count them, however few it returns: of a million keys that is
//! half a second. So a page asks for a range that holds about as many keys as it may bring, judged by how close to each
//! other the last ones stood. A wrong guess costs a request, never a key: ranges follow upon each other without a gap.

/// So many pages in a row that bring little, and the next one is not bounded: the keys behind may be anywhere.
const SHORT: u32 = 8;

/// What was learned of the distance of keys.
#[derive(Debug, Default)]
pub(super) struct Stride {
    /// The first octet in which keys differed.
    place: usize,
    /// How far to reach, counted in the eight octets from there; 0 while nothing is known.
    step: u64,
    /// Pages in a row that brought little.
    short: u32,
}

impl Stride {
    /// Learns from a page that was to bring `asked` keys and brought so many, from `first` to `last`; the next one is to
    /// bring `wanted`.
    pub(super) fn learn(&mut self, keys: usize, asked: u32, wanted: u32, first: &[u8], last: &[u8]) {
        if keys < 2 || keys < asked as usize / 4 {
            return self.learn_nothing();
        }
        self.short = 0;
        self.place = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let distance = u128::from(number(last, self.place).saturating_sub(number(first, self.place)));
        let step = distance * u128::from(wanted) / (keys.max(1) as u128);
        self.step = u64::try_from(step).unwrap_or(u64::MAX).max(1);
    }

    /// Learns from a page that brought next to nothing.
    pub(super) fn learn_nothing(&mut self) {
        self.short += 1;
        if self.step > u64::MAX / 2 && self.place > 0 {
            self.place -= 1;
            self.step >>= 8;
        }
        self.step = self.step.saturating_mul(2);
    }

    /// The end of the page that begins with this key; none where it is not to be bounded.
    pub(super) fn reach(&self, from: &[u8]) -> Option<Vec<u8>> {
        if self.step == 0 || self.short > SHORT {
            return None;
        }
        let mut reach: Vec<u8> = from.iter().copied().chain(std::iter::repeat(0)).take(self.place + 8).collect();
        let mut carry = u128::from(self.step);
        for octet in reach.iter_mut().rev() {
            carry += u128::from(*octet);
            let [low, ..] = carry.to_le_bytes();
            *octet = low;
            carry >>= 8;
        }
        (carry == 0).then_some(reach)
    }
}

/// The eight octets from this place, as a number.
fn number(key: &[u8], place: usize) -> u64 {
    (place..place + 8).fold(0, |number, at| number << 8 | u64::from(key.get(at).copied().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_holds_about_as_many_keys_as_are_wanted() {
        let mut stride = Stride::default();
        assert_eq!(stride.reach(b"/a/"), None);
        stride.learn(100, 100, 300, b"/a/0000", b"/a/0100");
        assert_eq!(stride.reach(b"/a/0100\0").unwrap(), b"/a/0400\0\0\0\0\0");
        // Nothing there: further, beyond the digits.
        stride.learn_nothing();
        assert_eq!(stride.reach(b"/a/0400").unwrap(), b"/a/0:00\0\0\0\0\0");
    }

    #[test]
    fn who_finds_nothing_goes_on_without_a_bound() {
        let mut stride = Stride::default();
        stride.learn(100, 100, 100, b"/a/0000", b"/a/0100");
        for _ in 0..SHORT {
            stride.learn_nothing();
            assert!(stride.reach(b"/a/").is_some());
        }
        stride.learn_nothing();
        assert_eq!(stride.reach(b"/a/"), None);
        stride.learn(100, 100, 100, b"/b", b"/c");
        assert!(stride.reach(b"/c\0").is_some());
        assert_eq!(stride.reach(b"\xff\xff\xff"), None, "beyond every key");
    }

    proptest! {
        #[test]
        fn a_range_is_never_empty(pages in prop::collection::vec((0_usize..9, ".{0,12}", ".{0,12}"), 1..20), from in ".{0,12}") {
            let mut stride = Stride::default();
            for (keys, a, b) in pages {
                let (first, last) = if a < b { (a, b) } else { (b, a) };
                stride.learn(keys, 8, 8, first.as_bytes(), last.as_bytes());
                prop_assert!(stride.reach(from.as_bytes()).is_none_or(|reach| reach.as_slice() > from.as_bytes()));
            }
        }
    }
}
