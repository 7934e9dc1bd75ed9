//! The key range of the next page of a list.
//!
//! etcd visits all keys of a requested range to count them, no matter how few it returns; for a
//! million keys this takes half a second. Each page therefore requests only a range that should
//! hold the wanted number of keys, estimated from the distance of the previous ones. Consecutive
//! ranges leave no gap, so a wrong estimate costs a request but never a key.

/// Maximum consecutive sparse pages; the next page then has no upper bound.
///
/// The next keys may be at any distance.
const MAX_SPARSE_PAGES: u32 = 8;

/// The estimated distance of keys, learned from the pages so far.
#[derive(Debug, Default)]
pub(super) struct Stride {
    /// Offset of the first byte in which the keys of a page differed.
    offset: usize,
    /// Width of the next range in the eight bytes at `offset`; 0 while unknown.
    width: u64,
    /// Consecutive pages that held few keys.
    sparse_pages: u32,
}

impl Stride {
    /// Updates the estimate from a page of `keys` keys, from `first` to `last`.
    ///
    /// At most `limit` keys were requested. The next page should hold `wanted` keys.
    pub(super) fn record(
        &mut self,
        keys: usize,
        limit: u32,
        wanted: u32,
        first: &[u8],
        last: &[u8],
    ) {
        if keys < 2 || keys < limit as usize / 4 {
            return self.record_sparse();
        }
        self.sparse_pages = 0;
        self.offset = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let (first, last) = (number_at(first, self.offset), number_at(last, self.offset));
        let distance = u128::from(last.saturating_sub(first));
        let width = distance * u128::from(wanted) / (keys.max(1) as u128);
        self.width = u64::try_from(width).unwrap_or(u64::MAX).max(1);
    }

    /// Doubles the range after a page that held few keys or none.
    pub(super) fn record_sparse(&mut self) {
        self.sparse_pages += 1;
        if self.width > u64::MAX / 2 && self.offset > 0 {
            self.offset -= 1;
            self.width >>= 8;
        }
        self.width = self.width.saturating_mul(2);
    }

    /// Returns the exclusive end of a page that starts at `from`; `None` for no bound.
    pub(super) fn range_end(&self, from: &[u8]) -> Option<Vec<u8>> {
        if self.width == 0 || self.sparse_pages > MAX_SPARSE_PAGES {
            return None;
        }
        let padded = from.iter().copied().chain(std::iter::repeat(0));
        let mut end: Vec<u8> = padded.take(self.offset + 8).collect();
        let mut carry = u128::from(self.width);
        for byte in end.iter_mut().rev() {
            carry += u128::from(*byte);
            let [low, ..] = carry.to_le_bytes();
            *byte = low;
            carry >>= 8;
        }
        (carry == 0).then_some(end)
    }
}

/// Returns the eight bytes at `offset` as a number, with zeros for missing bytes.
fn number_at(key: &[u8], offset: usize) -> u64 {
    (offset..offset + 8)
        .fold(0, |number, index| number << 8 | u64::from(key.get(index).copied().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_sized_for_the_wanted_number_of_keys() {
        let mut stride = Stride::default();
        assert_eq!(stride.range_end(b"/a/"), None);
        stride.record(100, 100, 300, b"/a/0000", b"/a/0100");
        assert_eq!(stride.range_end(b"/a/0100\0").unwrap(), b"/a/0400\0\0\0\0\0");
        // An empty page doubles the range, here to beyond the digits.
        stride.record_sparse();
        assert_eq!(stride.range_end(b"/a/0400").unwrap(), b"/a/0:00\0\0\0\0\0");
    }

    #[test]
    fn ranges_are_unbounded_after_many_sparse_pages() {
        let mut stride = Stride::default();
        stride.record(100, 100, 100, b"/a/0000", b"/a/0100");
        for _ in 0..MAX_SPARSE_PAGES {
            stride.record_sparse();
            assert!(stride.range_end(b"/a/").is_some());
        }
        stride.record_sparse();
        assert_eq!(stride.range_end(b"/a/"), None);
        stride.record(100, 100, 100, b"/b", b"/c");
        assert!(stride.range_end(b"/c\0").is_some());
        assert_eq!(stride.range_end(b"\xff\xff\xff"), None, "beyond every key");
    }

    proptest! {
        #[test]
        fn ranges_are_never_empty(
            pages in prop::collection::vec((0_usize..9, ".{0,12}", ".{0,12}"), 1..20),
            from in ".{0,12}",
        ) {
            let mut stride = Stride::default();
            for (keys, a, b) in pages {
                let (first, last) = if a < b { (a, b) } else { (b, a) };
                stride.record(keys, 8, 8, first.as_bytes(), last.as_bytes());
                let end = stride.range_end(from.as_bytes());
                prop_assert!(end.is_none_or(|end| end.as_slice() > from.as_bytes()));
            }
        }
    }
}
